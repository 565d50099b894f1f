"""`plan --probe` against the run that it is of: predicted and measured seconds of four jobs of different shape.

Each round plans and then runs each job, both as processes of their own, so that what else the machine does meets both.
Processor time, which others change little, is compared too.

    .venv/bin/python benchmarks/plans.py --rounds 3
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from models import model_folder
from workloads import Texts

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Job:
    """What is planned and run."""

    title: str
    command: str
    model: str  # of models.py
    rows: Callable[[float], Rows]
    options: Sequence[str]


def short_pairs(scale: float) -> Rows:
    """Queries and titles."""
    texts = Texts(1)
    return [{"query": texts.query(), "document": texts.document(14, 40)} for _ in range(round(12_000 * scale))]


def long_documents(scale: float) -> Rows:
    """A few hundred words each."""
    texts = Texts(2)
    return [{"query": texts.query(), "document": texts.document(300, 600)} for _ in range(round(900 * scale))]


def repeated_texts(scale: float) -> Rows:
    """Every query with the same documents: few texts, many pairs."""
    texts = Texts(3)
    corpus = [texts.document() for _ in range(round(3_000 * scale))]
    queries = [texts.query() for _ in range(round(400 * scale))]
    return [{"query": query, "document": document} for query in queries for document in texts.sample(corpus, 100)]


def lists(scale: float) -> Rows:
    """Candidates of each query, in a list."""
    texts = Texts(4)
    return [
        {"query": texts.query(), "documents": [texts.document() for _ in range(20)]} for _ in range(round(60 * scale))
    ]


JOBS = (
    Job("short pairs, MiniLM cross-encoder", "score", "MiniLM cross-encoder", short_pairs, ["--unit-rows", "3000"]),
    Job("long documents, MiniLM cross-encoder", "score", "MiniLM cross-encoder", long_documents, []),
    Job("repeated texts, MiniLM bi-encoder", "score", "MiniLM bi-encoder", repeated_texts, ["--unit-rows", "5000"]),
    Job("lists, small Qwen3 reranker", "rerank", "small Qwen3 reranker", lists, ["--config", "qwen3-reranker"]),
)


def main() -> None:
    """Print a line for each job and round, and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--scale", type=float, default=1.0, help="of the rows")
    parser.add_argument("--probe-seconds", type=float, default=20.0)
    parser.add_argument("--models", type=Path, default=Path(".bench/models"))
    parser.add_argument("--only", type=int, help="number of a job, from 0")
    asked = parser.parse_args()
    jobs = JOBS if asked.only is None else JOBS[asked.only : asked.only + 1]
    with tempfile.TemporaryDirectory() as folder:
        inputs = [Path(folder, f"{number}.jsonl") for number in range(len(jobs))]
        for job, path in zip(jobs, inputs, strict=True):
            path.write_text("".join(json.dumps(row) + "\n" for row in job.rows(asked.scale)), "utf-8")
        heads = f"{'load':>12}{'planning':>10}{'predicted':>11}{'measured':>10}{'ratio':>8}"
        print(f"{'job':40}{heads}{'busy':>8}{'used':>8}{'ratio':>8}")
        for _ in range(asked.rounds):
            for job, path in zip(jobs, inputs, strict=True):
                print(_line(job, path, asked.probe_seconds, str(model_folder(job.model, asked.models))), flush=True)


def _line(job: Job, path: Path, seconds: float, model: str) -> str:
    """Plan and run a job."""
    call = ["--model", model, "--in", str(path), *job.options, "--quiet"]
    out = path.with_suffix(".parquet")
    load = os.getloadavg()[0]
    probe = ["plan", "--command", job.command, *call, "--out", str(out), "--probe", "--json"]
    planned, planning, _ = _run([*probe, "--probe-seconds", str(seconds)])
    found = json.loads(planned)["prediction"]
    predicted, busy = found["tasks"]["1"], found["busy"]
    _, measured, used = _run([job.command, *call, "--out", str(out), "--overwrite"])
    loads = f"{load:6.1f}{os.getloadavg()[0]:6.1f}"  # before and after
    numbers = f"{planning:10.1f}{predicted:11.1f}{measured:10.1f}{predicted / measured:8.2f}"
    return f"{job.title:40}{loads}{numbers}{busy:8.1f}{used:8.1f}{busy / used:8.2f}"


def _run(words: Sequence[str]) -> tuple[str, float, float]:
    """(standard output, seconds, seconds of processor time) of a call."""
    start, before = perf_counter(), os.times()
    run = subprocess.run([sys.executable, "-m", "batchscore", *words], check=True, stdout=subprocess.PIPE, text=True)
    seconds, after = perf_counter() - start, os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return run.stdout, seconds, used


if __name__ == "__main__":
    main()
