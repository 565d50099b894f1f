"""What commands with jobs share: flags become keywords of a call, its events a display, its outcome an exit code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import typer

from batchscore.cli.measures import lines_of, samples_of
from batchscore.cli.report import require_pictures, write_pictures
from batchscore.errors import UsageError
from batchscore.stop import Stop, leave_on_signals

if TYPE_CHECKING:  # these import torch
    from batchscore.cli.display import Display
    from batchscore.jobs.events import Outcome


def run(
    command: Literal["score", "rerank", "encode", "run_batch"],
    model: str | Sequence[str],
    *,
    quiet: bool,
    log_format: str,
    as_json: bool,
    metrics_file: str | None,
    report: str | None = None,
    figure: str | None = None,
    **options: Any,
) -> None:
    """Run a command; ends the program with the exit code of errors.py unless all rows are scored."""
    leave_on_signals()  # nothing is done while Python and the model load, so a signal may end the program at once
    from batchscore.cli.display import Display, exit_on_error
    from batchscore.cli.result import Result

    display = Display(quiet=quiet, log_format=log_format)
    result = Result(command.replace("_", "-"), display, as_json, metrics_file)
    leave_on_signals(result.failed)
    stop = Stop()
    try:
        with exit_on_error(display, stop), result.of_errors(stop):
            result.check()
            require_pictures(report, figure, of=options["out"])
            if as_json and options["out"] == "-":
                raise UsageError("--json and --out - both write to standard output", hint="drop one of them")
            # the imports that follow take seconds
            display.loading(model if isinstance(model, str) else model[0], "files")
            from batchscore.jobs.start import job_functions

            files = job_functions(paths_of(options))
            stop.listen()
            with stop.interruptible():
                outcome = getattr(files, f"{command}_files")(model, stop=stop, events=display, **options)
            stop.polled = True  # by nobody: the run is over, and a signal must not change what is told of it
            if outcome.evaluation is not None:
                result.samples += samples_of(outcome.evaluation, has_baseline=len(outcome.evaluation.runs) > 1)
            result.finished(outcome)
    finally:
        display.stop()
    if outcome.end in ("partial", "share"):
        later = {"report": report or figure, "eval": command == "rerank" and options["qrels"]}
        for name in (name for name, wanted in later.items() if wanted):
            display.warning(
                f"{name:8} not now: other processes have a part of the job; see `batchscore {name}` when all is done"
            )
    else:
        _show_quality(outcome, display, [options["out"]], report, figure, has_table=not (as_json or quiet))
    if outcome.exit_code:
        raise typer.Exit(outcome.exit_code)


def _show_quality(
    outcome: Outcome,
    display: Display,
    outputs: Sequence[str],
    report: str | None,
    figure: str | None,
    *,
    has_table: bool,
) -> None:
    """Write the page and the picture, print the evaluation, and end the program if it is not good enough."""
    from batchscore.cli.display import exit_on_error

    evaluation = outcome.evaluation
    if evaluation is None:
        write_pictures(display, outputs, report, figure)
        return
    write_pictures(display, [run.run for run in evaluation.runs], report, figure, evaluation)
    if has_table:
        typer.echo("\n".join(lines_of(evaluation, "text")))
    with exit_on_error(display):
        evaluation.require_pass()


def paths_of(options: Mapping[str, Any]) -> list[str]:
    """Everything that a run reads."""
    several = [path for name in ("inputs", "queries", "corpus") for path in options.get(name) or ()]
    return several + [options[name] for name in ("run", "qrels") if options.get(name) is not None]
