"""The command line. Nothing heavy is imported here, so `batchscore --help` answers at once."""

from __future__ import annotations

import sys
from io import TextIOWrapper
from typing import Annotated

import typer

from batchscore import __version__
from batchscore.cli.bench import bench
from batchscore.cli.doctor import doctor
from batchscore.cli.encode import encode
from batchscore.cli.evaluate import evaluate
from batchscore.cli.inspect import inspect, models
from batchscore.cli.plan import plan
from batchscore.cli.report import report
from batchscore.cli.requests import run_batch
from batchscore.cli.rerank import rerank
from batchscore.cli.score import score
from batchscore.cli.sources import SettledCommand
from batchscore.cli.status import merge, status
from batchscore.cli.store import app as store
from batchscore.cli.verify import verify

_FORMER_NAMES = {"window-rows": "unit-rows"}  # still accepted, but no longer shown


def _option_name(name: str) -> str:
    """The name of an option as it is declared: --top_n is --top-n."""
    name = name.replace("_", "-")
    return _FORMER_NAMES.get(name, name)


app = typer.Typer(
    name="batchscore",
    help="Score and rerank query/document pairs over whole corpora, offline.",
    epilog="Exit codes: 0 done; 7 done, but for bad rows; 9 not good enough; 75 stopped, the same command resumes; "
    "others failed. docs/cron.md has the table.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"token_normalize_func": _option_name, "help_option_names": ["--help", "-h"]},
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
    if isinstance(sys.stdout, TextIOWrapper):  # as stderr does: a file name may have no form in its encoding
        sys.stdout.reconfigure(errors="backslashreplace")


app.command(cls=SettledCommand)(score)
app.command(cls=SettledCommand)(rerank)
app.command(cls=SettledCommand)(encode)
app.command("run-batch", cls=SettledCommand)(run_batch)
# eval's --out and --task are not those of a job, so its variables begin with BATCHSCORE_EVAL_
app.command("eval", cls=SettledCommand, context_settings={"auto_envvar_prefix": "BATCHSCORE_EVAL"})(evaluate)
app.command(cls=SettledCommand)(report)
app.command(cls=SettledCommand)(plan)
app.command()(status)
app.command()(merge)
app.command(cls=SettledCommand)(inspect)
app.command(cls=SettledCommand)(verify)
app.command()(models)
app.command(cls=SettledCommand)(bench)
app.command(cls=SettledCommand)(doctor)
app.add_typer(store, name="store")
