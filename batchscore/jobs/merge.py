"""The last step of a job: its parts become one output, and its bad rows one list."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack, closing

from batchscore.errors import OutputError
from batchscore.io.sink import open_sinks
from batchscore.jobs.commands import COMMANDS
from batchscore.jobs.output import Output
from batchscore.jobs.parts import JOB, Parts
from batchscore.jobs.records import write_lines
from batchscore.stop import Stop, prefetch


def assemble(parts: Parts, file: str, stop: Stop, *, partial: bool = False) -> None:
    """Write the parts to one file, which appears when it is whole.

    Raises:
        OutputError: units are missing and `partial` is false.
        InputError: the format cannot hold what the parts hold.
        RuntimeFailureError: a part is damaged.
        StoppedError: a stop was requested.
    """
    units: Sequence[int] = sorted(parts.finished())
    missing = len(parts.units) - len(units)
    if missing and not (partial and units):
        raise OutputError(
            f"{missing:,} of {len(parts.units):,} units of {parts.folder.path} are not done",
            hint="run the job again to resume it"
            + (", or pass --partial to merge the finished units" if units else ""),
        )
    command = COMMANDS[parts.fingerprint["command"]](**parts.fingerprint["options"])
    scratch = parts.folder.path if parts.folder.is_local else tempfile.gettempdir()
    with ExitStack() as stack:
        merged = stack.enter_context(closing(command.merged(parts, units, scratch)))
        tables = stack.enter_context(closing(prefetch(merged, stop)))
        sinks = open_sinks(file, parts.part(units[0]).schema.names)
        for sink in sinks:
            stack.enter_context(sink)
        for table in tables:
            stop.check()
            for sink in sinks:
                sink.write(table)


def write_errors(parts: Parts, output: Output) -> None:
    """Bring the list of bad rows up to date.

    Several processes may write it at once, in any order. Each looks again after its write and repeats it if more units
    are finished by then, so that the last one to write has listed them all.
    """
    listed: set[int] | None = None
    while parts.folder.has(JOB) and (finished := parts.finished()) != listed:
        write_lines(output.errors, parts.faults())
        listed = finished
