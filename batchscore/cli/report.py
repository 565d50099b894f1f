"""`batchscore report`: a page about outputs; and the pages and pictures that other commands write on the side."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import typer

from batchscore.cli import options as o

if TYPE_CHECKING:
    from batchscore.cli.display import Display
    from batchscore.evaluation.evaluate import Evaluation, PairsEvaluation


@o.with_options(o.Report)
def report(outputs: o.OutputArguments, out: o.PageFile = "report.html", **options: Any) -> None:
    """Write an HTML page about outputs, which is complete in itself.

    An output is a file that `score` or `rerank` has written, or a run of another program. With --qrels the outputs are
    evaluated and compared with the first.

    batchscore report bm25.trec reranked.parquet --qrels qrels.tsv --out report.html
    """
    from batchscore.cli.display import exit_on_error

    with exit_on_error():
        from batchscore.errors import UsageError
        from batchscore.evaluation.evaluate import USUAL_MEASURES, evaluate_runs
        from batchscore.jobs.output import require_finished
        from batchscore.report.page import require_destinations, write_report

        require_destinations(out, options["figure"])
        evaluation = None
        if options["qrels"] is not None:
            for output in outputs:
                require_finished(output)
            evaluation = evaluate_runs(outputs, options["qrels"], metrics=options["metrics"] or USUAL_MEASURES)
        elif options["metrics"] is not None:
            raise UsageError("--metrics needs judgements", hint="pass --qrels FILE")
        write_report(outputs, out, evaluation=evaluation, figure=options["figure"])
        size = "" if "://" in out else f", {os.path.getsize(os.path.expanduser(out)) / 1e3:,.0f} kB"
        typer.echo(f"report   {out}{size}", err=True)


def require_pictures(report: str | None, figure: str | None, of: str = "") -> None:
    """Raise the error that the page or the picture would end with, before what it is of has begun."""
    if report is not None or figure is not None:
        from batchscore.errors import UsageError
        from batchscore.report.page import require_destinations

        if of == "-":
            raise UsageError("--report and --figure need an output that stays", hint="write it to a file with --out")
        require_destinations(report, figure)


def write_pictures(
    display: Display,
    outputs: Sequence[str],
    report: str | None,
    figure: str | None,
    evaluation: Evaluation | PairsEvaluation | None = None,
) -> None:
    """Write the page and the picture that were asked for; what prevents that is told, and changes no exit code."""
    if report is None and figure is None:
        return
    from batchscore.errors import debug_traceback, one_line
    from batchscore.report.page import write_report

    try:
        write_report(outputs, report, evaluation=evaluation, figure=figure)
    except Exception as error:  # the scores are there, whatever is wrong with the page
        again = f"batchscore report {' '.join(map(shlex.quote, outputs))}"
        display.warning(f"{debug_traceback(error)}report   not written: {one_line(error)}; to try again: {again}")
