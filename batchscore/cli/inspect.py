"""`batchscore inspect`: what a model would do, and `batchscore models`: which architectures are supported."""

from __future__ import annotations

import json
from typing import Any

import typer

from batchscore.cli import options as o
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
        from batchscore.cli.report import print_inspection
        from batchscore.inspection import inspect_model

    trust_remote_code = options.pop("trust_remote_code")
    if options["score_type"] == "auto":
        options["score_type"] = None
    inspection = inspect_model(
        model, options, query=query, document=document, image=image, trust_remote_code=trust_remote_code
    )
    if as_json:
        typer.echo(json.dumps(inspection.describe(), ensure_ascii=False, indent=2))
    else:
        print_inspection(inspection)
    for problem in inspection.problems:
        if details := debug_traceback(problem):
            typer.echo(details, err=True)
    if inspection.problems:
        raise typer.Exit(inspection.problems[0].exit_code)


def models(form: o.TableFormat = "text") -> None:
    """List the supported architectures."""
    from batchscore.cli.report import table_lines
    from batchscore.inspection import architecture_table

    rows = architecture_table()
    typer.echo(json.dumps(rows, indent=2) if form == "json" else "\n".join(table_lines(rows, form)))
