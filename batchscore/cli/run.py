"""What `score` and `rerank` share: flags become a prepared job, its events a display, its outcome an exit code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import typer

from batchscore.cli.display import Display, exit_on_error
from batchscore.cli.options import Files, Shares
from batchscore.jobs.commands import Command
from batchscore.jobs.options import RunOptions
from batchscore.jobs.run import prepare
from batchscore.stop import Stop


def run(command: Command, scorer: Mapping[str, Any], files: Files, shares: Shares, display: Display) -> None:
    """Run a command; ends the program with the exit code of errors.py unless all rows are scored."""
    stop = Stop()
    stop.listen()
    if shares.max_seconds is not None:
        stop.after(shares.max_seconds)
    flags = {**vars(files), **vars(shares)}
    options = RunOptions(**{name: flags[name] for name in RunOptions.__slots__})
    try:
        with exit_on_error(display, stop), stop.interruptible():
            outcome = prepare(command, scorer, options, display).execute(stop, display)
    finally:
        display.stop()
    if outcome.exit_code:
        raise typer.Exit(outcome.exit_code)
