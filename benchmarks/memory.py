"""Rows a second and peak memory of everything that is not the model, against the size of the input.

    python benchmarks/memory.py [--command score|rerank] [--devices cpu:2] [--model MODEL] [ROWS ...]

The model is a random BERT of one layer, and the pairs are of few distinct texts, so that reading, sorting, ranking and
writing are what is timed. Pairs are scattered: a query's documents are all over the input. Prints one line a size:
rows, seconds, rows a second, and the peak resident memory of the largest process as the run record has it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from models import model_folder

QUERIES, DOCUMENTS = 200, 500
SLICE = 100_000  # rows written at once


def write_pairs(path: Path, rows: int) -> None:
    """Random pairs of 200 queries and 500 documents, with an id."""
    random = np.random.default_rng(0)
    queries = pa.array([f"what is item {number}?" for number in range(QUERIES)])
    documents = pa.array([f"Item {number} is a thing of kind {number % 17}." for number in range(DOCUMENTS)])
    writer = None
    for start in range(0, rows, SLICE):
        size = min(SLICE, rows - start)
        table = pa.table(
            {
                "id": np.arange(start, start + size),
                "query": queries.take(pa.array(random.integers(QUERIES, size=size))),
                "document": documents.take(pa.array(random.integers(DOCUMENTS, size=size))),
            }
        )
        writer = writer or pq.ParquetWriter(path, table.schema)
        writer.write_table(table)
    if writer is not None:
        writer.close()


def main() -> None:
    """Run every size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--command", choices=["score", "rerank"], default="score")
    parser.add_argument("--devices")
    parser.add_argument("--model")
    parser.add_argument("rows", type=int, nargs="*", default=[10_000, 1_000_000, 10_000_000])
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = given.model or str(model_folder("tiny bi-encoder", Path(folder)))
        for rows in given.rows:
            pairs, out = Path(folder) / "pairs.parquet", Path(folder) / "out.parquet"
            write_pairs(pairs, rows)
            command = [sys.executable, "-m", "batchscore", given.command, "-m", model, "-i", str(pairs), "-o", str(out)]
            command += ["--devices", given.devices] if given.devices else []
            subprocess.run([*command, "--quiet", "--overwrite"], check=True)
            counts = json.loads(Path(f"{out}.run.json").read_text("utf-8"))["counts"]
            seconds = counts["seconds"]["total"]
            speed, peak = rows / seconds, counts["peak_rss_mb"]
            print(f"{rows:>10,} rows  {seconds:7.1f} s  {speed:>8,.0f} rows/s  peak {peak:,} MB", flush=True)


if __name__ == "__main__":
    main()
