"""The last step of a job: its parts become one output, and the rows at fault one list."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import closing

from batchscore.errors import OutputError
from batchscore.io.sink import open_sink
from batchscore.jobs.commands import Command, RerankCommand, ScoreCommand
from batchscore.jobs.output import Output
from batchscore.jobs.parts import JOB, Parts
from batchscore.jobs.records import write_lines
from batchscore.stop import Stop

_JOBS: dict[str, type[ScoreCommand | RerankCommand]] = {"score": ScoreCommand, "rerank": RerankCommand}


def job_of(parts: Parts) -> Command:
    """The job whose parts these are."""
    return _JOBS[parts.fingerprint["command"]](**parts.fingerprint["options"])


def assemble(parts: Parts, file: str, stop: Stop, *, partial: bool = False) -> None:
    """Write the parts to one file, which appears when it is whole.

    Raises:
        OutputError: units are missing and `partial` is not asked for.
        InputError: the format cannot hold what the parts hold.
        RuntimeFailureError: a part is damaged.
        StoppedError: the end was asked for.
    """
    units: Sequence[int] = sorted(parts.finished())
    missing = len(parts.units) - len(units)
    if missing and not (partial and units):
        raise OutputError(
            f"{missing:,} of {len(parts.units):,} units of {parts.folder.path} are not done",
            hint="run the job again to go on with it" + (", or pass --partial to merge what there is" if units else ""),
        )
    scratch = parts.folder.path if parts.folder.is_local else tempfile.gettempdir()
    with closing(job_of(parts).merged(parts, units, scratch)) as tables, open_sink(file) as sink:
        for table in tables:
            stop.check()
            sink.write(table)


def write_errors(parts: Parts, output: Output) -> None:
    """Bring the list of rows at fault up to date."""
    if parts.folder.has(JOB):
        write_lines(output.errors, parts.faults())
