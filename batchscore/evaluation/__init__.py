"""How good rankings and scores are: measures, intervals, comparisons, and the gate of a nightly job."""
