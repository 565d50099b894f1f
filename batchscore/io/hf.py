"""Hugging Face datasets: a folder of `save_to_disk`, memory-mapped, or one of the Hub, streamed.

Both come as Arrow tables batch by batch and are never held whole; the price is that the Hub is read again by each run.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from batchscore.errors import InputError, MissingDependencyError, NotFoundError, UsageError, first_line
from batchscore.io.block import Block, RowCursor
from batchscore.io.schema import Shape, join
from batchscore.io.storage import iso_time
from batchscore.io.units import Span, Steps, count_steps, table_steps

_ROWS = 4096  # a table of the stream
MARKERS = ("state.json", "dataset_dict.json")  # what `save_to_disk` leaves in a folder


class DatasetReader:
    """One split of a dataset."""

    first_place = 0

    def __init__(self, file: str, dataset: Any, rows: int | None, size: int = 0, modified: str | None = None) -> None:
        self.file = file
        self.size = size
        self.modified = modified
        self._dataset = dataset
        self._rows = rows
        self._is_streamed = rows is None or not hasattr(dataset, "select")
        self._cursor = RowCursor(lambda row: 0 if self._is_streamed else row, self._stream)

    def require_unchanged(self) -> None:
        """Nothing: it stays open."""

    def column_names(self) -> list[str]:
        """From the features or, where a streamed dataset declares none, from its first row."""
        return list(self._dataset.column_names or next(iter(self._dataset), {}))

    def has_column(self, column: str) -> bool:
        """As the features say."""
        return column in self.column_names()

    def head(self, columns: Sequence[str]) -> Any:
        """The first row, as an Arrow table."""
        for table in self._stream(columns, 0):
            return table.slice(0, 1)
        return self._empty(columns)

    def steps(self, group: str | None) -> Iterator[Steps]:
        """Row by row where their number is known, else by reading through."""
        size = self.size // max(1, self._rows or 0)
        if group is None and self._rows is not None:
            yield from count_steps(self._rows, size)
        else:
            yield from table_steps(self._stream([group or self.column_names()[0]], 0), size)

    def read(self, span: Span, columns: Sequence[str] | None, shapes: Mapping[str, Shape]) -> Block:
        """The rows of a span; a streamed dataset is read up to there."""
        tables = self._cursor.read(columns, span.start, span.stop)
        if sum(map(len, tables)) < span.rows:
            raise InputError(f"{self.file} has fewer rows than when the job began", hint="see that it has not changed")
        # of a streamed dataset the number of rows is what its card says
        if self._is_streamed and span.stop == self._rows and self._cursor.read(columns, span.stop, span.stop + 1):
            raise InputError(
                f"{self.file} has more rows than the {self._rows:,} of its card",
                hint="download it with save_to_disk, and name the folder",
            )
        table = join(tables) if tables else self._empty(columns)
        return Block(table, self.file, range(span.start, span.stop), "row")

    def close(self) -> None:
        """Leave the stream."""
        self._cursor.close()

    def _chosen(self, columns: Sequence[str] | None) -> Any:
        if columns is None:
            return self._dataset
        return self._dataset.select_columns([name for name in self.column_names() if name in columns])

    def _empty(self, columns: Sequence[str] | None) -> Any:
        return self._chosen(columns).features.arrow_schema.empty_table()

    def _stream(self, columns: Sequence[str] | None, start: int) -> Iterator[Any]:
        """Arrow tables of the rows from `start` on."""
        dataset, done = self._chosen(columns), start
        if start:
            dataset = dataset.select(range(start, len(dataset)))
        tables = dataset.with_format("arrow").iter(batch_size=_ROWS)
        try:
            for table in tables:
                yield table
                done += table.num_rows
        except Exception as error:  # remote readers document no exceptions
            raise InputError(f"{self.file}, row {done}: cannot be read: {error}") from error
        finally:
            # a Parquet scan left half done aborts the process at exit (huggingface/datasets#7566)
            del tables
            if self._is_streamed:
                gc.collect()


def open_folder(folder: str, split: str | None) -> DatasetReader:
    """Open what `save_to_disk` wrote."""
    datasets = _import_datasets(folder)
    try:
        loaded = datasets.load_from_disk(folder)
    except Exception as error:  # whatever the many files of a folder can be wrong in
        raise InputError(f"{folder} is not a readable dataset: {error}", hint="save the dataset again") from error
    splits = loaded if isinstance(loaded, dict) else {str(loaded.split or "train"): loaded}
    chosen = _choose(splits, split, folder)
    files = [os.stat(part["filename"]) for part in chosen.cache_files]
    modified = iso_time(max((file.st_mtime for file in files), default=0))
    return DatasetReader(folder, chosen, chosen.num_rows, sum(file.st_size for file in files), modified)


def open_hub(name: str, split: str | None, file: str) -> DatasetReader:
    """Stream `name` from the Hub; `file` is what the user called it."""
    datasets = _import_datasets(file)
    try:
        splits = datasets.load_dataset(name, streaming=True)
    except Exception as error:  # the Hub client's own, and whatever a dataset's files raise
        message = f"{file} is no file here and no dataset of the Hub: {first_line(error)}"
        raise NotFoundError(message, hint=_HUB_HINT) from error
    chosen = _choose(splits, split, file)
    declared = (chosen.info.splits or {}).get(str(chosen.split))
    return DatasetReader(file, chosen, declared.num_examples if declared else None)


_HUB_HINT = "check the path, or the dataset's name and your network"


def _choose(splits: Mapping[str, Any], split: str | None, file: str) -> Any:
    if split is None and len(splits) == 1:
        return next(iter(splits.values()))
    if split is not None and split in splits:
        return splits[split]
    what = "has several splits" if split is None else f"has no split {split!r}"
    raise UsageError(f"{file} {what}; splits: {', '.join(splits)}", hint=f"pass --split {next(iter(splits))}")


def _import_datasets(file: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        what = f"{file} can only be read as a Hugging Face dataset, which needs the package datasets"
        raise MissingDependencyError(what, hint="pip install datasets") from error
    return datasets
