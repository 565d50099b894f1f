"""What only a GPU can show: parity with a CPU, workers of the command line, memory that runs out, and speed.

    benchmarks/gpu.sh [--small] [--seconds 480]

Needs the checkout, its packages without an install, and no network; every model is made on the spot. Prints a summary.
The exit code is 1 if scores, or a job's output, are not what they should be; speed never decides. Without a GPU all of
it runs on the CPU at small sizes, which shows that the script works and nothing else.

A part that fails or takes too long is reported, and the next begins. Speed (gpu_speed.py) comes last.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from gpu_report import Cells, OutOfTimeError, Report, checkpoints
from gpu_speed import speed
from numpy.typing import NDArray
from torch.nn.attention import varlen
from transformers.utils import logging

from batchscore import Scorer
from batchscore.errors import DeviceMemoryError
from batchscore.runners.base import BaseRunner

Scores = NDArray[np.float32]


@dataclass(frozen=True)
class Model:
    """A tiny checkpoint, and what of attention it stands for."""

    name: str  # in tests/checkpoints.py or tests/more_checkpoints.py
    rule: str
    options: dict[str, Any] = field(default_factory=dict)
    kernel: bool = True  # in 16 bits its attention is for the variable-length kernel


LOGITS = {"use_activation": False}  # of which a sigmoid would hide the ends
BASIC = {"chat_template": "basic", **LOGITS}
MODELS = [
    Model("bert_pairs", "cross-encoder, both ways, first token", LOGITS),
    Model("xlmr_pairs", "cross-encoder, positions behind the padding id", LOGITS),
    Model("modernbert_pairs_mean", "cross-encoder, window both ways, mean", LOGITS),
    Model("llama_pairs", "cross-encoder, causal, grouped queries", LOGITS),
    Model("mistral_pairs", "cross-encoder, causal window, grouped queries", LOGITS),
    Model("gemma2_pairs", "cross-encoder, softcap", BASIC, kernel=False),
    Model("qwen3_reranker", "cross-encoder, answer tokens", {"config": "qwen3-reranker", **LOGITS}),
    Model("deberta_pairs", "cross-encoder, padded", LOGITS, kernel=False),
    Model("nemotron", "bi-encoder, both ways, grouped queries"),
    Model("bert", "bi-encoder, first token"),
    Model("nomic_moe", "bi-encoder, experts", {"config": "nomic-embed-text"}),
    Model("bert_splade", "bi-encoder, SPLADE"),
    Model("colbert", "late interaction, MaxSim, hidden tokens"),
    Model("jina_listwise", "a list in one prompt"),
]

# How far 16 bits are from float32 depends on a model and its texts, not on the device: both round every layer's output
# to the same numbers and differ in the order of sums. So a CPU in bfloat16 is the yardstick: as far again, four times,
# is allowed, and for float16, whose numbers are 8 times finer, an eighth of that. A wrong mask moves scores by about
# their whole spread, which float16 shows at once. float32 differs by the order of sums alone: 1e-4 of the spread.
ALLOWED, FLOOR = {"float32": 0.0, "bfloat16": 4.0, "float16": 0.5}, 1e-4


# ---- parity


def parity(report: Report) -> None:
    """Scores of every kind of model in every dtype against float32 on a CPU, alone and again."""
    queries, documents = checkpoints.pairs(12 if report.small else 60, seed=1)
    documents = [text or "bird" for text in documents]
    on_gpu = report.device == "cuda"
    for model in MODELS[::3] if report.small else MODELS:
        expected, rounded = (
            scores_of(report, model, queries, documents, device="cpu", dtype=dtype) for dtype in ("float32", "bfloat16")
        )
        spread = float(np.std(expected))
        for dtype in ("float32", "bfloat16", *(["float16"] if on_gpu else [])):
            options = {"device": report.device, "dtype": dtype, "padded": report.small}
            with counted_kernel() as calls:
                scores = scores_of(report, model, queries, documents, **options)
            worst, allowed = distance(scores, expected) / spread, ALLOWED[dtype] * distance(rounded, expected) / spread
            allowed += FLOOR
            text = f"{model.name:22} {dtype:9} {worst:.1e} of the spread, {allowed:.1e} allowed ({model.rule})"
            report.check(worst <= allowed, text)
            if on_gpu and bool(calls) != (model.kernel and dtype != "float32"):
                report.check(False, f"{model.name} in {dtype}: {len(calls)} calls of the variable-length kernel")


def distance(scores: Scores, expected: Scores) -> float:
    """The largest difference."""
    return float(np.abs(scores - expected).max())


def scores_of(report: Report, model: Model, queries: Cells, documents: Cells, **options: Any) -> Scores:
    """Scores in packs; the same bits if asked again, which a resumed job relies on."""
    with Scorer(report.checkpoint(model.name), cache_mb=0, batch_tokens=512, **model.options, **options) as scorer:
        scores: Scores = scorer.score(queries, documents)
        if not np.array_equal(scores, scorer.score(queries, documents)):
            report.check(False, f"{model.name}: other bits the second time, {options}")
    return scores


@contextmanager
def counted_kernel() -> Iterator[list[str]]:
    """Meanwhile a list gets an entry for each call of the variable-length kernel."""
    calls: list[str] = []
    kernel = varlen.varlen_attn

    def counted(*tensors: Any, **keywords: Any) -> Any:
        calls.append(str(sorted(keywords)))
        return kernel(*tensors, **keywords)

    counted.__wrapped__ = kernel  # type: ignore[attr-defined]  # whose signature is read
    varlen.varlen_attn = counted
    try:
        yield calls
    finally:
        varlen.varlen_attn = kernel


# ---- the command line's workers


class Job:
    """`batchscore score` of a tiny cross-encoder, begun; its parts stay, unit by unit."""

    def __init__(self, report: Report, devices: str) -> None:
        self.folder = report.folder / f"out-{devices.replace(':', '').replace(',', '-')}"
        self.model, pairs = report.checkpoint("bert_ce"), report.folder / "pairs.jsonl"
        self.rows, unit = (600, 20) if report.small else (20_000, 100)
        if not pairs.exists():
            rows = (dict(zip(("query", "document"), pair_of(row), strict=True)) for row in range(self.rows))
            pairs.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        command = [sys.executable, "-m", "batchscore", "score", "--model", self.model, "--in", str(pairs)]
        command += ["--out", f"{self.folder}/", "--devices", devices, "--dtype", "float32", "--window-rows", str(unit)]
        self.log = self.folder.with_suffix(".log")
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)

    def parts(self) -> list[Path]:
        """Parts that are there."""
        return sorted(self.folder.glob("part-*.parquet"))

    def scores(self, seconds: float) -> Scores | str:
        """The scores, or the end of what was said if it failed."""
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = -1
        if code:
            return f"exit code {code}: {self.log.read_text('utf-8')[-1500:]}"
        columns = [pq.read_table(part, columns=["score"])["score"].to_numpy() for part in self.parts()]
        scores: Scores = np.concatenate(columns)
        return scores

    def kill_a_worker(self, seconds: float) -> bool:
        """SIGKILL one of its worker processes once a part is there; whether the job was still running."""
        end = time.monotonic() + seconds
        while not self.parts() and time.monotonic() < end and self.process.poll() is None:
            time.sleep(0.005)
        workers = children(self.process.pid)
        for worker in workers[:1]:
            os.kill(worker, signal.SIGKILL)
        return bool(workers) and self.process.poll() is None


def children(parent: int) -> list[int]:
    """Worker processes of a process, by what multiprocessing calls them."""
    pids = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            # behind the name, which may hold anything: state, parent
            above = int(stat.read_text("utf-8").rpartition(")")[2].split()[1])
            command = (stat.parent / "cmdline").read_text("utf-8")
        except (OSError, ValueError):
            continue
        if above == parent and ("spawn_main" in command or "forkserver" in command):
            pids.append(int(stat.parent.name))
    return pids


class Workers:
    """Jobs that run beside the parity: one on all devices, and one of two workers, one of which is killed."""

    def __init__(self, report: Report) -> None:
        self.two = Job(report, "cuda:0,cuda:0" if report.device == "cuda" else "cpu:2")
        self.jobs = {"two workers, one of them killed": self.two}
        if not report.small:
            self.jobs["--devices auto"] = Job(report, "auto")
        self.killed = False
        self.killer = Thread(target=self._kill, daemon=True)
        self.killer.start()

    def _kill(self) -> None:
        self.killed = self.two.kill_a_worker(200)

    def end(self) -> None:
        """End what still runs."""
        for job in self.jobs.values():
            job.process.kill()

    def workers(self, report: Report) -> None:
        """Wait for the jobs and compare their scores with those of one CPU."""
        self.killer.join()
        report.check(self.killed, "a worker was killed while its job ran")
        rows = [pair_of(row) for row in range(self.two.rows)]
        with Scorer(self.two.model, device="cpu", dtype="float32") as scorer:
            expected = scorer.score([query for query, _ in rows], [document for _, document in rows])
        for name, job in self.jobs.items():
            scores = job.scores(150)
            if isinstance(scores, str):
                report.check(False, f"{name}: {scores}")
            else:
                right = len(scores) == len(expected) and distance(scores, expected) < 1e-4
                report.check(right, f"{name}: {len(scores):,} scores as on one CPU")


def pair_of(row: int) -> tuple[str, str]:
    """The query and the document of a job's row."""
    return f"river {row % 9}", f"{row} {'bird ' * (row % 30)}"


# ---- memory that runs out


def memory(report: Report) -> None:
    """A pack for which there is no memory is halved, and its scores stay."""
    queries, documents = checkpoints.pairs(40 if report.small else 20_000, seed=2)
    documents = [text or "bird" for text in documents]
    model = Model("bert_pairs", "", LOGITS)
    options: dict[str, Any] = {"device": report.device, "dtype": "float32", "cache_mb": 0, "batch_tokens": 10**7}
    with Scorer(report.checkpoint(model.name), window_rows=len(queries), **model.options, **options) as scorer:
        if report.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        with watched_packs() as packs:
            expected = scorer.score(queries, documents)
        largest, count = max(packs), len(packs)
        with watched_packs(largest // 2 if report.small else None) as packs, less_memory(report):
            scores = scorer.score(queries, documents)
    # the other worker's pack may be halved without a try
    report.check(len(packs) > count, f"a pack of {max(packs):,} tokens ran out of memory and was halved: {packs[:8]}")
    report.check(distance(scores, expected) < 1e-4, "its scores stay")


@contextmanager
def watched_packs(limit: int | None = None) -> Iterator[list[int]]:
    """Meanwhile a list gets the tokens of each pack; those over a limit find no memory, as if the device had less."""
    tokens: list[int] = []
    states = BaseRunner.states

    def watched(runner: BaseRunner, batch: Any) -> Any:
        tokens.append(batch.num_tokens)
        if limit and tokens[-1] > limit:
            raise DeviceMemoryError(f"no memory for {tokens[-1]} tokens")
        return states(runner, batch)

    BaseRunner.states = watched  # type: ignore[assignment,method-assign]
    try:
        yield tokens
    finally:
        BaseRunner.states = states  # type: ignore[method-assign]


@contextmanager
def less_memory(report: Report) -> Iterator[None]:
    """Two thirds of what torch has taken at its height since that was reset."""
    if report.device != "cuda":
        yield
        return
    _, total = torch.cuda.mem_get_info()
    fraction = torch.cuda.max_memory_allocated() * 2 / 3 / total
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(fraction)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


# ---- all of it


def main() -> None:
    """Run every part, and exit by what failed."""
    parser = argparse.ArgumentParser(description="What only a GPU can show.")
    parser.add_argument("--small", action="store_true", help="on the CPU at small sizes, as without a GPU")
    parser.add_argument("--seconds", type=float, default=480, help="after which a part ends")
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() and not args.small else "cpu"
    where = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    print(f"{where}; torch {torch.__version__}, Python {sys.version.split()[0]}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        report = Report(device == "cpu", device, time.monotonic() + args.seconds, Path(folder))
        workers = Workers(report)
        parts = [(parity, 150), (workers.workers, 90), (memory, 60), (speed, args.seconds)]
        for part, seconds in parts:
            try:
                with report.at_most(seconds):
                    part(report)
            except OutOfTimeError as error:
                report.say(f"{part.__name__}: {error}")
            except Exception:
                report.check(False, f"{part.__name__}: {traceback.format_exc()}")
        workers.end()
    print(f"{len(report.failures)} failures" if report.failures else "all as on a CPU", flush=True)
    for failure in report.failures:
        print(f"  {failure.splitlines()[0]}")
    sys.exit(1 if report.failures else 0)


if __name__ == "__main__":
    main()
