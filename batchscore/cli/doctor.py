"""`batchscore doctor`: what this machine has for scoring, and what will go wrong."""

from __future__ import annotations

from typing import Any

import typer

from batchscore.cli import options as o
from batchscore.cli.text import print_result
from batchscore.errors import MissingDependencyError
from batchscore.stop import leave_on_signals


@o.with_options(o.Machine, o.Settings)
def doctor(model: o.OptionalModel = None, as_json: o.AsJson = False, **options: Any) -> None:
    """Look at packages, devices, attention, threads, memory, folders and the hub's flags, and compute a known score.

    With a model, show what `inspect` says of it, and the score of a fixed pair. The exit code is 3 if there is a
    problem.

    batchscore doctor
    """
    leave_on_signals()
    from batchscore.jobs.start import lean_imports

    with lean_imports():
        from batchscore.diagnosis import diagnose

    device, dtype = options.pop("device"), options.pop("dtype")
    found = diagnose(model, options, device, dtype)
    print_result(found.describe(), found.lines(), as_json=as_json)
    if not found.is_well:
        raise typer.Exit(MissingDependencyError.exit_code)
