"""What commands with jobs share: flags become keywords of a call, its events a display, its outcome an exit code."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import typer

from batchscore.cli.page import require_pictures, write_pictures
from batchscore.stop import Stop, leave_on_signals


def run(
    command: Literal["score", "rerank", "encode", "run_batch"],
    model: str | Sequence[str],
    *,
    quiet: bool,
    log_format: str,
    report: str | None = None,
    figure: str | None = None,
    **options: Any,
) -> None:
    """Run a command; ends the program with the exit code of errors.py unless all rows are scored."""
    leave_on_signals()  # nothing is done while Python and the model load, so a signal may end the program at once
    from batchscore.cli.display import Display, exit_on_error

    display = Display(quiet=quiet, log_format=log_format)
    display.loading(model if isinstance(model, str) else model[0], "files")  # the imports that follow take seconds
    from batchscore.jobs.start import job_functions

    files = job_functions(_paths(options))
    if "store" in options and not options["store"] and (store := os.environ.get("BATCHSCORE_STORE")):
        options["store"] = [store]
    stop = Stop()
    stop.listen()
    run_files = getattr(files, f"{command}_files")
    try:
        with exit_on_error(display, stop), stop.interruptible():
            require_pictures(report, figure, of=options["out"])
            outcome = run_files(model, stop=stop, events=display, **options)
    finally:
        display.stop()
    if outcome.end in ("partial", "share") and (report or figure):
        display.warning(
            "report   not written: other processes have a part of the job; see `batchscore report` when all is done"
        )
    else:
        write_pictures(display, [options["out"]], report, figure)
    if outcome.exit_code:
        raise typer.Exit(outcome.exit_code)


def _paths(options: Mapping[str, Any]) -> list[str]:
    """Everything that a run reads."""
    several = [path for name in ("inputs", "queries", "corpus") for path in options.get(name) or ()]
    return several + [options[name] for name in ("run", "qrels") if options.get(name) is not None]
