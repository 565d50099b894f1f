"""The formats of an input, by the words that `--in-format` takes."""

from __future__ import annotations

from typing import Literal

Form = Literal[
    "parquet", "jsonl", "json", "csv", "tsv", "msmarco", "trec-run", "trec-qrels", "trec-topics", "dataset"
]  # how a file is read
DialectName = Literal["rank-llm", "pyserini", "mteb"]  # what the rows of one mean that has queries with their documents
InFormat = Literal[
    "auto", "parquet", "jsonl", "json", "csv", "tsv", "msmarco", "trec-run", "trec-qrels", "trec-topics",
    "rank-llm", "pyserini", "mteb",
]  # fmt: skip
