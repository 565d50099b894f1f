"""`batchscore inspect`: what a model would do, and `batchscore models`: which architectures are supported."""

from __future__ import annotations

from typing import Any

import typer

from batchscore.cli import options as o
from batchscore.cli.text import inspection_lines, print_result, table_lines
from batchscore.errors import debug_traceback


@o.with_options(o.Settings)
def inspect(
    model: o.ModelArgument,
    query: o.SampleQuery = "What is the capital of France?",
    document: o.SampleDocument = "Paris is the capital of France.",
    image: o.SampleImage = None,
    as_json: o.AsJson = False,
    **options: Any,
) -> None:
    """Show what a model is, reads and needs without loading its weights. Fails where a run would fail.

    batchscore inspect BAAI/bge-reranker-v2-m3
    """
    from batchscore.jobs.start import lean_imports

    with lean_imports():
        from batchscore.inspection import inspect_model

    inspection = inspect_model(model, options, query=query, document=document, image=image)
    print_result(inspection.describe(), inspection_lines(inspection), as_json=as_json)
    for problem in inspection.problems:
        if details := debug_traceback(problem):
            typer.echo(details, err=True)
    if inspection.problems:
        raise typer.Exit(inspection.problems[0].exit_code)


def models(form: o.TableFormat = "text") -> None:
    """List the supported architectures."""
    from batchscore.inspection import architecture_table

    rows = architecture_table()
    print_result(rows, table_lines(rows, form), as_json=form == "json")
