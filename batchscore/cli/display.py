"""What a person, a log file or a cron mail sees of a run: all of it on stderr, since the output file is the result."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from threading import Lock
from time import perf_counter
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from batchscore.errors import BatchscoreError
from batchscore.stop import Stop

if TYPE_CHECKING:  # which needs torch
    from batchscore.jobs.meter import Meter

_SECONDS_BETWEEN_LINES = 5.0


class Display:
    """Progress and summary in the chosen form: a bar on a terminal, else a line every few seconds, as text or JSON."""

    def __init__(self, *, quiet: bool, log_format: str) -> None:
        self._quiet, self._json = quiet, log_format == "json"
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._bar: Progress | None = None
        self._shown = perf_counter()
        self._lock = Lock()

    def start(self, lines: Sequence[str], plan: Mapping[str, Any]) -> None:
        """Say what is about to run."""
        if self._json:
            self._event("start", plan)
        elif not self._quiet:
            for line in lines:
                self._print(line)
            if self._console.is_terminal:
                self._bar = _bar(self._console)
                self._bar.start()

    def update(self, meter: Meter) -> None:
        """Called after each pack, from any thread."""
        if self._quiet:
            return
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=meter.fraction or 0.0, what=_progress_text(meter))
            return
        with self._lock:
            if perf_counter() - self._shown < _SECONDS_BETWEEN_LINES:
                return
            self._shown = perf_counter()
        if self._json:
            self._event("progress", progress(meter))
        else:
            share = "" if meter.fraction is None else f"{meter.fraction:4.0%}  "
            self._print(f"{share}{_progress_text(meter)}{_eta_text(meter)}")

    def say(self, line: str) -> None:
        """A line of news in the middle of a run."""
        if self._json:
            self._event("note", {"message": line})
        elif not self._quiet:
            self._print(line)

    def finish(self, lines: Sequence[str], counts: Mapping[str, Any]) -> None:
        """Say how it went; the last line stands on its own."""
        self.stop()
        if self._json:
            self._event("finish", counts)
        elif not self._quiet:
            for line in lines:
                self._print(line)

    def error(self, message: str, hint: str | None, exit_code: int) -> None:
        """Say why it stopped, also when quiet."""
        self.stop()
        if self._json:
            self._event("error", {"message": message, "hint": hint, "exit_code": exit_code})
            return
        self._print(f"error: {message}")
        if hint:
            self._print(f"hint: {hint}")

    def stop(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _print(self, line: str) -> None:
        with suppress(OSError, SystemExit):  # a reader that went away; rich would end the program
            self._console.print(line, markup=False)

    def _event(self, event: str, values: Mapping[str, Any]) -> None:
        if not self._quiet or event == "error":
            with suppress(OSError):
                sys.stderr.write(json.dumps({"event": event, **values}, ensure_ascii=False) + "\n")
                sys.stderr.flush()


@contextmanager
def explained(display: Display | None = None, stop: Stop | None = None) -> Iterator[None]:
    """Say what went wrong and end with its exit code."""
    display = display or Display(quiet=False, log_format="text")
    try:
        yield
    except BatchscoreError as error:
        display.error(error.message, error.hint, error.exit_code)
        if stop is not None and stop.unsettled:  # a thread that the end would wait for
            sys.stderr.flush()
            os._exit(error.exit_code)
        raise typer.Exit(error.exit_code) from error


def _bar(console: Console) -> Progress:
    columns = (BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[what]}"), TimeRemainingColumn())
    bar = Progress(*columns, console=console, transient=True)
    bar.add_task("", total=1.0, what="")
    return bar


def progress(meter: Meter) -> dict[str, Any]:
    """JSON-able state of a run."""
    seconds = perf_counter() - meter.started
    return {
        "rows": round(meter.rows),
        "tokens": meter.tokens,
        "fraction": meter.fraction,
        "rows_per_second": round(meter.rows / seconds, 1),
        "tokens_per_second": round(meter.tokens / seconds, 1),
        "eta_seconds": _eta(meter),
    }


def _eta(meter: Meter) -> int | None:
    """Seconds to go if the rest goes like the part that is done."""
    seconds = perf_counter() - meter.started
    return round(seconds / meter.fraction - seconds) if meter.fraction else None


def _progress_text(meter: Meter) -> str:
    seconds = perf_counter() - meter.started
    return f"{meter.rows:,.0f} rows  {meter.tokens / seconds:,.0f} tokens/s"


def _eta_text(meter: Meter) -> str:
    eta = _eta(meter)
    return "" if eta is None else f"  {eta // 3600}:{eta // 60 % 60:02}:{eta % 60:02} to go"
