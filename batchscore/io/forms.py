"""The formats of inputs and outputs, by the words that `--in-format` and `--out-format` take."""

from __future__ import annotations

from typing import Literal

Form = Literal[
    "parquet",
    "jsonl",
    "json",
    "csv",
    "tsv",
    "msmarco",
    "trec-run",
    "trec-qrels",
    "trec-topics",
    "dataset",
    "lines",
]  # how a file is read
# what the rows of a file mean that has queries with their documents
DialectName = Literal["rank-llm", "pyserini", "mteb", "openai-batch"]
InFormat = Literal[
    "auto", "parquet", "jsonl", "json", "csv", "tsv", "msmarco", "trec-run", "trec-qrels", "trec-topics",
    "rank-llm", "pyserini", "mteb", "openai-batch",
]  # fmt: skip
OutForm = Literal["parquet", "jsonl", "csv", "tsv", "npy", "trec", "msmarco", "mteb", "rank-llm", "lines"]
OutFormat = Literal["auto", "parquet", "jsonl", "csv", "tsv", "npy", "trec", "msmarco", "mteb", "rank-llm"]
Lines = Literal["lines"]  # as they are, in and out: of commands that read and write nothing else
