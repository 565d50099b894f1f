"""The metrics of a run in a file for Prometheus's textfile collector, which reads it at any moment.

All are gauges, since each run replaces the numbers of the one before. What a run that failed leaves in place is when
the last one succeeded: that is what one is alerted by.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import time

from batchscore import __version__
from batchscore.errors import NotFoundError, UsageError

_COMPLETE = (0, 7)  # exit codes of a run that did what it had to do
_LAST_SUCCESS = "batchscore_last_success_timestamp_seconds"
METRICS = {
    "batchscore_run_info": "What ran last: its version is a label.",
    "batchscore_run_start_timestamp_seconds": "When the last run began.",
    "batchscore_run_end_timestamp_seconds": "When the last run ended, well or not.",
    _LAST_SUCCESS: "When a run last ended with exit code 0 or 7.",
    "batchscore_run_exit_code": "Exit code of the last run.",
    "batchscore_run_duration_seconds": "Time that the last run took, from its start to its end.",
    "batchscore_run_rows": "Rows that the last run finished.",
    "batchscore_run_bad_rows": "Bad rows of the job, if the last run completed it, else of the last run.",
    "batchscore_run_from_store": "Texts, or pairs of a cross-encoder, that the last run found in its store.",
    "batchscore_run_tokens": "Tokens that the model read in the last run.",
    "batchscore_run_rows_per_second": "Rows of the last run by the time that it took after loading.",
    "batchscore_run_tokens_per_second": "Tokens of the last run by the time that it took after loading.",
    "batchscore_run_stage_seconds": "Time in stages of the last run, which overlap and add up over workers.",
    "batchscore_run_peak_memory_bytes": "Peak resident memory of the largest process of the last run.",
    "batchscore_eval_measure": "A measure of an evaluated run; the label run counts from 1, or is baseline.",
    "batchscore_eval_queries": "Queries that an evaluated run was measured on.",
}


@dataclass(frozen=True, slots=True)
class Sample:
    """A value of a metric, and labels that it has besides those of its file."""

    name: str
    value: float
    labels: tuple[tuple[str, str], ...] = ()


def check_metrics_file(path: str) -> None:
    """Raise UsageError or NotFoundError for a file that could not be written, or that nobody would read."""
    if not path.endswith(".prom"):
        raise UsageError(f"--metrics-file {path}: the collector reads files that end in .prom", hint="rename it")
    if not os.path.isdir(os.path.dirname(os.path.expanduser(path)) or "."):
        raise NotFoundError(f"--metrics-file {path}: no such folder", hint="make the folder, or check the path")


def write_metrics(path: str, command: str, exit_code: int, started: float, samples: Sequence[Sample]) -> None:
    """Replace the file with these samples and what every run has, in one step. Raises OSError.

    Its name is a label, so that no two files of a folder have the same series.
    """
    file, now = Path(path).expanduser(), time()
    success = now if exit_code in _COMPLETE else _value_in(file, _LAST_SUCCESS)
    ending = {
        "batchscore_run_start_timestamp_seconds": started,
        "batchscore_run_end_timestamp_seconds": now,
        "batchscore_run_exit_code": exit_code,
        "batchscore_run_duration_seconds": now - started,
        **({} if success is None else {_LAST_SUCCESS: success}),
    }
    info = Sample("batchscore_run_info", 1, (("version", __version__),))
    every = [info, *(Sample(name, value) for name, value in ending.items()), *samples]
    _replace(file, _text(every, (("command", command), ("name", file.stem))))


def _text(samples: Sequence[Sample], labels: tuple[tuple[str, str], ...]) -> str:
    """Prometheus's text format, in the order of `METRICS`."""
    lines = []
    for name, text in METRICS.items():
        family = [sample for sample in samples if sample.name == name]
        lines += [f"# HELP {name} {text}", f"# TYPE {name} gauge"] if family else []
        lines += [f"{name}{_shown((*labels, *sample.labels))} {float(sample.value)!r}" for sample in family]
    return "".join(f"{line}\n" for line in lines)


def _shown(labels: tuple[tuple[str, str], ...]) -> str:
    escapes = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})
    return "{" + ",".join(f'{name}="{value.translate(escapes)}"' for name, value in labels) + "}"


def _value_in(file: Path, name: str) -> float | None:
    """The value of a metric that an earlier run has left."""
    with suppress(OSError, ValueError):
        found = re.search(rf"^{name}\{{.*\}} (\S+)$", file.read_text("utf-8"), re.MULTILINE)
        return float(found[1]) if found else None
    return None


def _replace(file: Path, text: str) -> None:
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        temporary.write_text(text, "utf-8", "backslashreplace")
        temporary.replace(file)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
