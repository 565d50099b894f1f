"""Runs of the command line as processes of their own, and what they leave on the disk."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

WORDS = "river horse paper cloud seven green stone quiet apple winter market signal".split()


def random_rows(count: int, seed: int = 0, queries: int = 20) -> list[dict[str, Any]]:
    """Distinct documents of a few words for a few queries, scattered."""
    draw = random.Random(seed)
    return [
        {
            "id": f"r{number}",
            "query": f"{WORDS[draw.randrange(queries) % len(WORDS)]} {draw.randrange(queries)}",
            "document": f"{number} " + " ".join(draw.choices(WORDS, k=draw.randint(1, 24))),
        }
        for number in range(count)
    ]


def write_rows(path: str, rows: Sequence[dict[str, Any]]) -> str:
    """Rows as .parquet or .jsonl."""
    if path.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(list(rows)), path, row_group_size=1000)
    else:
        Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def command(*arguments: str) -> list[str]:
    """The command line of `batchscore` with these arguments."""
    return [sys.executable, "-m", "batchscore", *arguments]


def start(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    """Start `batchscore` with one thread, which makes runs comparable bit for bit."""
    variables = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.Popen(command(*arguments), env=variables, stderr=subprocess.PIPE, text=True)


def finish(*arguments: str, **environment: str) -> tuple[int, str]:
    """(exit code, stderr) of a run to its end."""
    run = start(*arguments, **environment)
    said = run.communicate(timeout=300)[1]
    return run.returncode, said


def contents(folder: str) -> dict[str, bytes]:
    """Every file of a folder but the records, which have times in them."""
    return {path.name: path.read_bytes() for path in Path(folder).iterdir() if not path.name.startswith("_run")}


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    """Poll a condition."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("waited in vain")
