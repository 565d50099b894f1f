"""What a person, a log file or a cron mail sees of a run: all on stderr, since stdout is for data."""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from threading import Lock
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from batchscore.cli.sources import hint_of
from batchscore.errors import BatchscoreError, ClosedPipeError, debug_traceback, first_line
from batchscore.stop import Stop

if TYPE_CHECKING:  # these import torch, and the first line is shown before that
    from batchscore.jobs.events import Outcome
    from batchscore.jobs.meter import Meter

_SECONDS_BETWEEN_LINES = 5.0


class Display:
    """The events of a run in the chosen form: a bar on a terminal, else a line every few seconds, as text or JSON."""

    def __init__(self, *, quiet: bool, log_format: str) -> None:
        self._quiet, self.is_json = quiet, log_format == "json"
        # texts from outside are shown as they are: a path may have `:100:` or `[red]` in it
        self._console = Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)
        self._bar: Progress | None = None
        self._shown = perf_counter()
        self._lock = Lock()
        self.meter: Meter | None = None  # of the run, once it has one
        self._loading: set[str] = set()  # what was shown already

    def loading(self, model: str, stage: Literal["files", "weights"]) -> None:
        """Show what the next seconds or minutes go into."""
        if stage in self._loading:
            return
        self._loading.add(stage)
        if self.is_json:
            self._event("loading", {"model": model, "stage": stage})
        elif stage == "weights":
            self.note("loading  weights")
        elif os.path.isdir(os.path.expanduser(model)):
            self.note(f"loading  {model}")
        else:
            self.note(f"loading  {model} from the Hugging Face hub, or from its cache on this machine")

    def started(self, lines: Sequence[str], description: Mapping[str, Any]) -> None:
        """Show what is about to run."""
        if self.is_json:
            self._event("start", description)
        elif not self._quiet:
            for line in lines:
                self._print(line)
            if self._console.is_terminal and "stream" not in description:  # whose lines a bar would be mixed with
                self._bar = _bar(self._console)
                self._bar.start()

    def progress(self, meter: Meter) -> None:
        """Called after each pack, from any thread."""
        self.meter = meter
        if self._quiet:
            return
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=meter.fraction or 0.0, text=_progress_text(meter))
            return
        with self._lock:
            if perf_counter() - self._shown < _SECONDS_BETWEEN_LINES:
                return
            self._shown = perf_counter()
        if self.is_json:
            self._event("progress", _progress_values(meter))
        else:
            share = "" if meter.fraction is None else f"{meter.fraction:4.0%}  "
            self._print(f"{share}{_progress_text(meter)}{_eta_text(meter)}")

    def note(self, line: str) -> None:
        """Show a line of news."""
        if self.is_json:
            self._event("note", {"message": line})
        elif not self._quiet:
            self._print(line)

    def bad_row(self, record: Mapping[str, Any]) -> None:
        """Show a bad row of a stream, even when quiet: nothing else tells of it."""
        if self.is_json:
            self._event("bad_row", record, "warning")
            return
        from batchscore.jobs.events import bad_row_line

        self._print(f"bad row: {bad_row_line(record)}")

    def warning(self, line: str) -> None:
        """Show what went wrong beside the run, even when quiet."""
        if self.is_json:
            self._event("warning", {"message": line}, "warning")
        else:
            self._print(line)

    def finished(self, outcome: Outcome) -> None:
        """Show how it went; the last line stands on its own."""
        self.stop()
        if self.is_json:
            self._event("finish", outcome.counts, "warning" if outcome.bad_rows else "info")
        elif not self._quiet:
            for line in _summary_lines(outcome):
                self._print(line)

    def error(self, error: BatchscoreError) -> None:
        """Show why it stopped, even when quiet."""
        self.stop()
        trace, hint = debug_traceback(error), hint_of(error)
        if self.is_json:
            values = {"message": error.message, "hint": hint, "exit_code": error.exit_code}
            self._event("error", values | ({"traceback": trace} if trace else {}), "error")
            return
        if trace:
            self._print(trace)
        self._print(f"error: {error.message}")
        if hint:
            self._print(f"hint: {hint}")

    def bug(self, error: Exception) -> None:
        """Show an error that nobody meant to raise as an event, which has its traceback."""
        self.stop()
        trace = "".join(traceback.format_exception(error))
        values = {"message": f"{type(error).__name__}: {first_line(error)}", "hint": None, "exit_code": 1}
        self._event("error", {**values, "traceback": trace}, "error")

    def stop(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _print(self, line: str) -> None:
        with suppress(OSError, SystemExit):  # the reader of a pipe is gone; rich would end the program
            self._console.print(line)

    def _event(
        self, event: str, values: Mapping[str, Any], level: Literal["info", "warning", "error"] = "info"
    ) -> None:
        if not self._quiet or event in ("error", "warning", "bad_row"):
            now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
            line = json.dumps({"ts": now, "level": level, "event": event, **values}, ensure_ascii=False)
            with suppress(OSError):
                sys.stderr.write(f"{line}\n")
                sys.stderr.flush()


@contextmanager
def exit_on_error(display: Display | None = None, stop: Stop | None = None) -> Iterator[None]:
    """Show an error of this block and end the program with its exit code."""
    display = display or Display(quiet=False, log_format="text")
    try:
        yield
    except BatchscoreError as error:
        if not isinstance(error, ClosedPipeError):
            display.error(error)
        if stop is not None and stop.unsettled:  # an ordinary exit would wait for the busy thread
            sys.stderr.flush()
            os._exit(error.exit_code)
        raise typer.Exit(error.exit_code) from error
    except Exception as error:
        if isinstance(error, typer.Exit) or not display.is_json:
            raise
        display.bug(error)
        raise typer.Exit(1) from error


def _bar(console: Console) -> Progress:
    columns = (
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[text]}", markup=False),
        TimeRemainingColumn(),
    )
    bar = Progress(*columns, console=console, transient=True)
    bar.add_task("", total=1.0, text="")
    return bar


def _progress_values(meter: Meter) -> dict[str, Any]:
    """JSON-able state of a run."""
    return {
        "rows_surveyed": meter.surveyed,
        "texts": round(meter.texts),
        "rows": round(meter.rows),
        "total_rows": meter.total,
        "tokens": meter.tokens,
        "fraction": meter.fraction,
        "rows_per_second": round(meter.rows / meter.elapsed, 1),
        "tokens_per_second": round(meter.tokens / meter.elapsed, 1),
        "eta_seconds": _eta(meter),
    }


def _eta(meter: Meter) -> int | None:
    """Seconds to go at the speed so far."""
    return None if meter.seconds_left is None else round(meter.seconds_left)


def _progress_text(meter: Meter) -> str:
    if meter.is_surveying:
        return f"{meter.surveyed:,} rows read for their texts"
    if meter.is_encoding:
        texts = f"{meter.texts:,.0f} of {meter.total_texts:,} texts"
        return f"{texts}  {meter.tokens / meter.elapsed:,.0f} tokens/s"
    return f"{meter.rows:,.0f} rows  {meter.tokens / meter.elapsed:,.0f} tokens/s"


def _eta_text(meter: Meter) -> str:
    eta = _eta(meter)
    return "" if eta is None else f"  {eta // 3600}:{eta // 60 % 60:02}:{eta % 60:02} to go"


def _summary_lines(outcome: Outcome) -> list[str]:
    """How a run went; the last line stands on its own."""
    counts, plan = outcome.counts, outcome.plan
    seconds, spec, placement = counts["seconds"], plan.setup.spec, plan.setup.placement
    stages = ", ".join(f"{stage} {spent:.1f}" for stage, spent in seconds.items() if stage != "total")
    cut = ", ".join(f"{name} {number:,}" for name, number in counts.get("cut", {}).items() if number) or "none"
    # a model that reads a pair at once has no texts of its own to count
    label = "pairs" if spec.score_type == "cross-encoder" else "texts"
    distinct, tokens, memory = counts.get("texts", 0), counts.get("tokens", 0), counts["peak_rss_mb"]
    once = "each read once" if counts.get("encode") == "once" else "each counted once per unit"
    stored = f", {counts['from_store']:,} from the store" if "from_store" in counts else ""
    lines = [
        f"{label}    {distinct:,} distinct, {once}{stored}; {tokens:,} tokens; peak memory {memory:,} MB",
        f"cut      {cut}",
        f"seconds  {stages} (these overlap, and add up over workers)",
        *([f"record   {outcome.record}"] if outcome.record else []),
    ]
    if measured := counts.get("quantization"):
        from batchscore.engine.quantization import QuantizationError  # imports torch, as the run has by now

        lines.append(QuantizationError(**measured).line)
    if outcome.bad_rows:
        lines.append(f"errors   {outcome.bad_rows:,} bad rows ({plan.errors}): {outcome.errors or 'see above'}")
    rows, spent = outcome.done["rows"], max(seconds["total"], 1e-3)
    # forwarded, as in the lines of progress: tokens that a cache or an earlier run answered took no time
    speed = f"{rows / spent:,.0f} rows/s, {counts['tokens_forwarded'] / spent:,.0f} tokens/s"
    where = f"on {placement.device} in {placement.numbers} -> {outcome.output}"
    return [*lines, f"{rows:,} rows in {spent:,.1f} s ({speed}) {where}"]
