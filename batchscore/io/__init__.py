"""The input in bounded windows and the output in one piece; the only place that knows pyarrow and datasets."""
