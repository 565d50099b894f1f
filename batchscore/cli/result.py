"""What programs learn of a run when it is over: an envelope on stdout (--json), metrics in a file (--metrics-file).

Both are written whether the run ended well, failed, was stopped, or was refused before it began.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from time import time
from typing import TYPE_CHECKING, Any

from batchscore import __version__
from batchscore.cli.display import Display
from batchscore.cli.sources import hint_of
from batchscore.errors import BatchscoreError, NotFoundError, OutputError, UsageError, first_line
from batchscore.stop import Stop

if TYPE_CHECKING:  # it imports torch
    from batchscore.jobs.events import Outcome

_STATUS = {0: "ok", 7: "bad-rows", 75: "stopped"}  # any other exit code: failed
_COMPLETE = (0, 7)  # exit codes of a run that did what it had to do
_LAST_SUCCESS = "batchscore_last_success_timestamp_seconds"
_METRICS = {  # gauges, since each run replaces the numbers of the one before
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
}


@dataclass(slots=True)
class Report:
    """Tells how a run of a command ended; `display` knows how far it came."""

    command: str
    display: Display
    as_json: bool
    metrics_file: str | None
    started: float = field(default_factory=time)

    @classmethod
    def asked_for(cls, command: str, options: Mapping[str, Any]) -> Report:
        """From the options of a call, some of which may have no value because the call is wrong."""
        display = Display(quiet=bool(options.get("quiet")), log_format=options.get("log_format") or "text")
        report = cls(command, display, bool(options.get("as_json")), options.get("metrics_file"))
        with suppress(BatchscoreError):
            report.check()
        return report

    def check(self) -> None:
        """Forget a metrics file that could not be written, or that nobody would read: UsageError or NotFoundError."""
        path, self.metrics_file = self.metrics_file, None
        if path is None:
            return
        if not path.endswith(".prom"):
            raise UsageError(f"--metrics-file {path}: the collector reads files that end in .prom", hint="rename it")
        if not os.path.isdir(os.path.dirname(os.path.expanduser(path)) or "."):
            raise NotFoundError(f"--metrics-file {path}: no such folder", hint="make the folder, or check the path")
        self.metrics_file = path

    @contextmanager
    def of_errors(self, stop: Stop) -> Iterator[None]:
        """A block whose errors are told, and settle how the run ends: a signal no longer changes that."""
        try:
            yield
        except Exception as error:
            stop.polled = True
            self.failed(error)
            raise

    def finished(self, outcome: Outcome) -> None:
        """Tell how a run came to its end."""
        spent = {**self._spent(), "rows": outcome.done["rows"], "from_store": outcome.done.get("from_store")}
        files = {"output": outcome.output, "errors": outcome.errors, "record": outcome.record}
        ending = {"end": outcome.end, "counts": dict(outcome.counts), "outputs": files, "error": None}
        self._tell(outcome.exit_code, ending, {**spent, "bad_rows": outcome.bad_rows})

    def failed(self, error: Exception) -> None:
        """Tell why a run did not come to its end."""
        spent = self._spent()
        code, message, hint = 1, f"{type(error).__name__}: {first_line(error)}", None
        if isinstance(error, BatchscoreError):
            code, message, hint = error.exit_code, error.message, hint_of(error)
        outputs = dict.fromkeys(("output", "errors", "record"))
        ending = {"end": None, "counts": spent, "outputs": outputs, "error": {"message": message, "hint": hint}}
        self._tell(code, ending, spent)

    def _spent(self) -> dict[str, Any]:
        """What this run has done so far; nothing before the model has read something."""
        meter = self.display.meter
        if meter is None:
            return {}
        from batchscore.jobs.meter import peak_rss_mb

        seconds = {stage: round(spent, 3) for stage, spent in meter.seconds.items()}
        return {
            "rows": round(meter.rows),
            "tokens_forwarded": meter.tokens,
            "seconds": {"total": round(meter.elapsed, 3), **seconds},
            "peak_rss_mb": peak_rss_mb(),
        }

    def _tell(self, exit_code: int, ending: Mapping[str, Any], spent: Mapping[str, Any]) -> None:
        now = time()
        if self.metrics_file is not None:
            try:
                _replace(self.metrics_file, self._metrics(exit_code, now, spent))
            except OSError as error:  # the run is what it is without them
                self.display.error(OutputError(f"--metrics-file {self.metrics_file}: {first_line(error)}"))
        if self.as_json:
            times = {"started": _day(self.started), "finished": _day(now)}
            head = {"status": _STATUS.get(exit_code, "failed"), "exit_code": exit_code, "command": self.command}
            envelope = {**head, "version": __version__, **times, **ending}
            with suppress(OSError):  # the reader of a pipe is gone
                sys.stdout.write(json.dumps(envelope, ensure_ascii=False) + "\n")
                sys.stdout.flush()

    def _metrics(self, exit_code: int, now: float, spent: Mapping[str, Any]) -> str:
        """The text of the metrics file."""
        path = Path(str(self.metrics_file)).expanduser()
        labels = {"command": self.command, "name": path.stem}
        samples = [("batchscore_run_info", {"version": __version__}, 1.0)]
        samples += [
            (name, {}, value) for name, value in self._values(exit_code, now, spent).items() if value is not None
        ]
        seconds = {stage: value for stage, value in spent.get("seconds", {}).items() if stage != "total"}
        samples += [("batchscore_run_stage_seconds", {"stage": stage}, value) for stage, value in seconds.items()]
        success = now if exit_code in _COMPLETE else _value_in(path, _LAST_SUCCESS)
        samples += [] if success is None else [(_LAST_SUCCESS, {}, success)]
        lines = []
        for name, text in _METRICS.items():
            family = [(more, value) for sampled, more, value in samples if sampled == name]
            lines += [f"# HELP {name} {text}", f"# TYPE {name} gauge"] if family else []
            lines += [f"{name}{_shown({**labels, **more})} {value!r}" for more, value in family]
        return "".join(f"{line}\n" for line in lines)

    def _values(self, exit_code: int, now: float, spent: Mapping[str, Any]) -> dict[str, float | None]:
        """Metrics without further labels; None: not known."""
        rows, tokens, elapsed = spent.get("rows"), spent.get("tokens_forwarded"), spent.get("seconds", {}).get("total")
        return {
            "batchscore_run_start_timestamp_seconds": self.started,
            "batchscore_run_end_timestamp_seconds": now,
            "batchscore_run_exit_code": exit_code,
            "batchscore_run_duration_seconds": now - self.started,
            "batchscore_run_rows": rows,
            "batchscore_run_bad_rows": spent.get("bad_rows"),
            "batchscore_run_from_store": spent.get("from_store"),
            "batchscore_run_tokens": tokens,
            "batchscore_run_rows_per_second": rows / elapsed if rows is not None and elapsed else None,
            "batchscore_run_tokens_per_second": tokens / elapsed if tokens is not None and elapsed else None,
            "batchscore_run_peak_memory_bytes": spent["peak_rss_mb"] * 2**20 if "peak_rss_mb" in spent else None,
        }


def _shown(labels: Mapping[str, str]) -> str:
    """Labels as the text format has them."""
    escaped = (
        (name, value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')) for name, value in labels.items()
    )
    return "{" + ",".join(f'{name}="{value}"' for name, value in escaped) + "}"


def _value_in(path: Path, name: str) -> float | None:
    """The value of a metric in the file of an earlier run."""
    with suppress(OSError, ValueError):
        found = re.search(rf"^{name}\{{.*\}} (\S+)$", path.read_text("utf-8"), re.MULTILINE)
        return float(found[1]) if found else None
    return None


def _replace(path: str, text: str) -> None:
    """Write a file that the collector, which reads it at any moment, finds whole."""
    file = Path(path).expanduser()
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        temporary.write_text(text, "utf-8", "backslashreplace")
        temporary.replace(file)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def _day(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="seconds")
