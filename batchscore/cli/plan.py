"""`batchscore plan`: what a job would read, take and cost, and for how long it would run."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from batchscore.cli import options as o
from batchscore.cli.run import paths_of
from batchscore.cli.text import print_result
from batchscore.stop import leave_on_signals

if TYPE_CHECKING:  # it imports torch
    from batchscore.jobs.planning.forecast import Forecast

_SHOWN = ("quiet", "log_format", "as_json", "metrics_file", "report", "figure")  # how a run is shown
_PLACES = ("out", "shard", "merge", "devices")  # what the proposed call has its own of


@o.with_options(o.Rerank, o.Score, o.Join, o.Settings, o.Execution, o.Rows, o.Run)
def plan(
    model: o.Model,
    out: o.PlannedOut = None,
    command: o.Planned = "auto",
    keep_columns: o.PlannedColumns = None,
    probe: o.Probe = False,
    probe_seconds: o.ProbeSeconds = 45.0,
    sample: o.SampleRows = 4_096,
    as_json: o.AsJson = False,
    **options: Any,
) -> None:
    """Show what a job of `score` or `rerank` would read, take and cost; nothing is written.

    A sample from all over the input is tokenized, and no weights are loaded. With --probe the model is run on it, to
    predict the time with 1, 2, 4 and 8 processes, and a line for Slurm is proposed.

    batchscore plan --model BAAI/bge-reranker-v2-m3 --in pairs.parquet --probe
    """
    seconds, options = probe_seconds if probe else 0.0, {**options, "keep_columns": keep_columns}
    show_plan(plan, command, model, out, {"sample": sample, "probe": seconds}, {**options, "as_json": as_json})


def show_plan(
    function: Callable[..., Any],
    command: str,
    model: str,
    out: str | None,
    probing: Mapping[str, Any],
    options: Mapping[str, Any],
) -> None:
    """Print a plan; `options` are those of a command, which `function` is."""
    leave_on_signals()
    from batchscore.cli.display import Display, exit_on_error

    display = Display(quiet=options["quiet"], log_format=options["log_format"])
    display.loading(model, "files")
    given = {name: value for name, value in o.given(function, options).items() if name not in _SHOWN}
    from batchscore.jobs.start import job_functions

    files = job_functions(paths_of(options))
    inputs = given.pop("inputs", [])
    with exit_on_error(display):
        forecast = files.plan_files(model, inputs, out, command=command, events=display, **probing, **given)
    rest = {name: value for name, value in given.items() if name not in _PLACES}
    words = o.words(function, {**({"inputs": inputs} if inputs else {}), **rest})
    call = ["batchscore", forecast.command, "--model", model, *words]
    sbatch = _sbatch(forecast, call, out)
    lines = [*forecast.lines(), *([f"slurm    {sbatch}"] if sbatch else [])]
    print_result({**forecast.describe(), "sbatch": sbatch}, lines, as_json=options["as_json"])


def _sbatch(forecast: Forecast, call: Sequence[str], out: str | None) -> str | None:
    """A line that submits the job as an array; the folder of its parts is named after the output."""
    asked = forecast.resources
    if asked is None:
        return None
    path = out or f"{forecast.command}.parquet"
    folder = path if path.endswith("/") else f"{path.removesuffix('.parquet')}/"
    words = shlex.join([*call, "--out", folder, "--merge"])
    gpus = f" --gpus={asked.gpus}" if asked.gpus else ""
    limits = f"--time={asked.minutes} --signal=B:USR1@60 --requeue --open-mode=append"
    threads = f"export OMP_NUM_THREADS={asked.cpus}; " if not asked.gpus else ""
    return (
        f"sbatch --array=0-{asked.tasks - 1} --cpus-per-task={asked.cpus}{gpus} --mem={asked.memory_gb}G {limits} "
        f"--wrap {shlex.quote(f'{threads}exec {words}')}"
    )
