"""The last step of a job: its parts become one output, and its bad rows one list."""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager

import pyarrow as pa

from batchscore.errors import InputError, OutputError
from batchscore.io.outputs import Format, RunColumns, UnfitError, chosen_format
from batchscore.io.sink import open_sinks
from batchscore.jobs.checks import require_fit, require_run
from batchscore.jobs.commands import COMMANDS, RequestsCommand, RerankCommand
from batchscore.jobs.output import Output
from batchscore.jobs.parts import JOB, Parts
from batchscore.jobs.records import write_lines
from batchscore.stop import Stop, prefetch


def assemble(parts: Parts, file: str, stop: Stop, *, form: Format | None = None, partial: bool = False) -> None:
    """Write the parts to one file, which appears when it is whole.

    Args:
        parts: of any job.
        file: where to write.
        stop: by which a signal ends it.
        form: None: that of the file's suffix.
        partial: write what there is.

    Raises:
        OutputError: units are missing and `partial` is false.
        UsageError: the format has no place for tables of this job.
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
    form = Format("lines") if isinstance(command, RequestsCommand) else form or chosen_format(file)
    schema = parts.part(units[0]).schema
    require_fit(command, parts.fingerprint.get("errors", "quarantine"), form, file)
    if isinstance(command, RerankCommand):
        require_run(form, _run_columns(command, schema))
    scratch = parts.folder.path if parts.folder.is_local else tempfile.gettempdir()
    with ExitStack() as stack:
        stack.enter_context(_naming_what_holds_them(parts, file, form))
        merged = stack.enter_context(closing(command.merged(parts, units, scratch, form.kind.layout)))
        tables = stack.enter_context(closing(prefetch(merged, stop)))
        sinks = open_sinks(file, schema.names, form, parts.origin)
        for sink in sinks:
            stack.enter_context(sink)
        for table in tables:
            stop.check()
            for sink in sinks:
                sink.write(table)


def _run_columns(command: RerankCommand, schema: pa.Schema) -> RunColumns:
    """What parts of this schema have of what a run may need."""
    texts, fields = command.query_column, [field.name for field in schema.field("results").type.value_type]
    return RunColumns(schema.names[0] != texts, texts in schema.names, "document_id" in fields, "document" in fields)


@contextmanager
def _naming_what_holds_them(parts: Parts, file: str, form: Format) -> Iterator[None]:
    """Tell of ids that do not fit into this format where the scores can still go."""
    try:
        yield
    except UnfitError as error:
        raise InputError(
            f"cannot write {file} as {form.kind.noun}: {error.message}",
            hint=f"the scores are kept: batchscore merge {shlex.quote(parts.folder.path)} --out FILE.jsonl has them, "
            "and any id",
        ) from error


def write_errors(parts: Parts, output: Output) -> None:
    """Bring the list of bad rows up to date.

    Several processes may write it at once, in any order. Each looks again after its write and repeats it if more units
    are finished by then, so that the last one to write has listed them all.
    """
    listed: set[int] | None = None
    while parts.folder.has(JOB) and (finished := parts.finished()) != listed:
        write_lines(output.errors, parts.faults())
        listed = finished
