"""The formats of an input, by the words that `--in-format` takes."""

from __future__ import annotations

from typing import Literal

Form = Literal["parquet", "jsonl", "csv", "tsv", "msmarco", "trec-run", "trec-qrels", "dataset"]
InFormat = Literal["auto", "parquet", "jsonl", "csv", "tsv", "msmarco", "trec-run", "trec-qrels"]
