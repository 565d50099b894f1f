"""The command line. Nothing heavy is imported here: `batchscore --help` answers before torch could be found."""

from __future__ import annotations

from typing import Annotated

import typer

from batchscore import __version__
from batchscore.cli.inspect import inspect, models
from batchscore.cli.rerank import rerank
from batchscore.cli.score import score
from batchscore.cli.status import merge, status

app = typer.Typer(
    name="batchscore",
    help="Score and rerank query/document pairs over whole corpora, offline.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    # --top_n is --top-n
    context_settings={
        "token_normalize_func": lambda name: name.replace("_", "-"),
        "help_option_names": ["--help", "-h"],
    },
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"batchscore {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Score and rerank query/document pairs over whole corpora, offline."""


app.command()(score)
app.command()(rerank)
app.command()(status)
app.command()(merge)
app.command()(inspect)
app.command()(models)
