"""What programs learn of a run when it is over: an envelope on stdout (--json), metrics in a file (--metrics-file).

Both are written whether the run ended well, failed, was stopped, or was refused before it began.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from time import time
from typing import TYPE_CHECKING, Any

from batchscore import __version__
from batchscore.cli.display import Display
from batchscore.cli.metrics import Sample, check_metrics_file, write_metrics
from batchscore.cli.sources import hint_of
from batchscore.errors import BatchscoreError, GateError, OutputError, first_line
from batchscore.stop import Stop

if TYPE_CHECKING:  # it imports torch
    from batchscore.jobs.events import Outcome

_STATUS = {0: "ok", 7: "bad-rows", 75: "stopped"}  # any other exit code: failed


@dataclass(slots=True)
class Result:
    """Tells how a run of a command ended; `display` knows how far it came."""

    command: str
    display: Display
    as_json: bool  # whether there is an envelope
    metrics_file: str | None
    samples: list[Sample] = field(default_factory=list)  # metrics that are known by now
    started: float = field(default_factory=time)

    @classmethod
    def asked_for(cls, command: str, options: Mapping[str, Any]) -> Result:
        """From the options of a call, some of which may be missing because the call is wrong."""
        display = Display(quiet=bool(options.get("quiet")), log_format=options.get("log_format") or "text")
        has_envelope = bool(options.get("as_json")) and "log_format" in options  # else JSON is the command's own
        result = cls(command, display, has_envelope, options.get("metrics_file"))
        with suppress(BatchscoreError):
            result.check()
        return result

    def check(self) -> None:
        """Forget a metrics file that cannot be one, and raise UsageError or NotFoundError."""
        path, self.metrics_file = self.metrics_file, None
        if path is not None:
            check_metrics_file(path)
        self.metrics_file = path

    @contextmanager
    def of_errors(self, stop: Stop | None = None) -> Iterator[None]:
        """A block whose errors are told, and settle how the run ends: a signal no longer changes that."""
        try:
            yield
        except Exception as error:
            if stop is not None:
                stop.polled = True
            self.failed(error)
            raise

    def finished(self, outcome: Outcome) -> None:
        """Tell how a run came to its end, and how good its ranking is."""
        spent = {**self._spent(), "rows": outcome.done["rows"], "from_store": outcome.done.get("from_store")}
        self.samples += _samples({**spent, "bad_rows": outcome.bad_rows})
        files = {"output": outcome.output, "errors": outcome.errors, "record": outcome.record}
        counts = dict(outcome.counts)
        ending: dict[str, Any] = {"end": outcome.end, "counts": counts, "outputs": files, "error": None}
        if (evaluation := outcome.evaluation) is not None:
            ending["evaluation"] = evaluation.describe()
            try:
                evaluation.require_pass()
            except GateError as error:
                ending["error"] = {"message": error.message, "hint": None}
        self._tell(outcome.exit_code, ending)

    def passed(self) -> None:
        """Tell that a command without rows of its own has succeeded."""
        self._tell(0, {})

    def failed(self, error: Exception) -> None:
        """Tell why a run did not come to its end."""
        spent = self._spent()
        self.samples += _samples(spent)
        code, message, hint = 1, f"{type(error).__name__}: {first_line(error)}", None
        if isinstance(error, BatchscoreError):
            code, message, hint = error.exit_code, error.message, hint_of(error)
        outputs = dict.fromkeys(("output", "errors", "record"))
        reason = {"message": message, "hint": hint}
        self._tell(code, {"end": None, "counts": spent, "outputs": outputs, "error": reason})

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

    def _tell(self, exit_code: int, ending: Mapping[str, Any]) -> None:
        if self.metrics_file is not None:
            try:
                write_metrics(self.metrics_file, self.command, exit_code, self.started, self.samples)
            except OSError as error:  # the run is what it is without them
                self.display.error(OutputError(f"--metrics-file {self.metrics_file}: {first_line(error)}"))
        if self.as_json:
            head = {"status": _STATUS.get(exit_code, "failed"), "exit_code": exit_code, "command": self.command}
            times = {"started": _utc(self.started), "finished": _utc(time())}
            envelope = {**head, "version": __version__, **times, **ending}
            with suppress(OSError):  # the reader of a pipe is gone
                sys.stdout.write(json.dumps(envelope, ensure_ascii=False) + "\n")
                sys.stdout.flush()


def _samples(spent: Mapping[str, Any]) -> list[Sample]:
    """Metrics of what a run has done, as far as it is known."""
    rows, tokens, seconds = spent.get("rows"), spent.get("tokens_forwarded"), dict(spent.get("seconds", {}))
    elapsed = seconds.pop("total", None)
    values = {
        "rows": rows,
        "bad_rows": spent.get("bad_rows"),
        "from_store": spent.get("from_store"),
        "tokens": tokens,
        "rows_per_second": rows / elapsed if rows is not None and elapsed else None,
        "tokens_per_second": tokens / elapsed if tokens is not None and elapsed else None,
        "peak_memory_bytes": spent["peak_rss_mb"] * 2**20 if "peak_rss_mb" in spent else None,
    }
    known = [Sample(f"batchscore_run_{name}", value) for name, value in values.items() if value is not None]
    stages = [Sample("batchscore_run_stage_seconds", value, (("stage", name),)) for name, value in seconds.items()]
    return [*known, *stages]


def _utc(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="seconds")
