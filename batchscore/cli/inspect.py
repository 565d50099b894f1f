"""`batchscore inspect`: what a model would do, and `batchscore models`: what there is."""

from __future__ import annotations

import json
from typing import Any

import typer

from batchscore.cli import options as o
from batchscore.errors import debug_traceback


@o.takes(o.settings)
def inspect(
    model: o.ModelArgument,
    settings: dict[str, Any],
    query: o.SampleQuery = "What is the capital of France?",
    document: o.SampleDocument = "Paris is the capital of France.",
    as_json: o.AsJson = False,
) -> None:
    """Show what a model is, reads and needs, without loading its weights; fails where a run would.

    batchscore inspect BAAI/bge-reranker-v2-m3
    """
    from batchscore.cli.report import print_inspection
    from batchscore.inspection import inspect_model

    trust_remote_code = settings.pop("trust_remote_code")
    if settings["score_type"] == "auto":
        settings["score_type"] = None
    found = inspect_model(model, settings, query=query, document=document, trust_remote_code=trust_remote_code)
    if as_json:
        typer.echo(json.dumps(found.describe(), ensure_ascii=False, indent=2))
    else:
        print_inspection(found)
    for problem in found.problems:
        if details := debug_traceback(problem):
            typer.echo(details, err=True)
    if found.problems:
        raise typer.Exit(found.problems[0].exit_code)


def models(form: o.TableFormat = "text") -> None:
    """List the architectures that are supported."""
    from batchscore.cli.report import table_lines
    from batchscore.inspection import architecture_table

    rows = architecture_table()
    typer.echo(json.dumps(rows, indent=2) if form == "json" else "\n".join(table_lines(rows, form)))
