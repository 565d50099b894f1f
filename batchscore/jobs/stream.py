"""A run whose input or output is a stream: units one after the other, written as soon as they are scored.

It has no folder, so nothing of it is resumed, shared or kept: that is what jobs are for. It has the pipeline of a job,
so that the scores are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Any, ClassVar, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from batchscore.engine.batcher import Batcher
from batchscore.errors import InputError, StoppedError
from batchscore.io.collection import own_folder
from batchscore.io.sink import json_lines, open_sinks
from batchscore.io.source import Source
from batchscore.io.storage import local_path
from batchscore.io.stream import STDIN, STDOUT, STREAM, LineWriter, StreamSource, standard_output
from batchscore.io.units import Unit
from batchscore.jobs import checks
from batchscore.jobs.checks import MaxErrors
from batchscore.jobs.commands import Command, RerankCommand
from batchscore.jobs.events import Events, Outcome, Silent, bad_row_line
from batchscore.jobs.joins import open_input
from batchscore.jobs.meter import Meter, peak_rss_mb
from batchscore.jobs.options import RunOptions
from batchscore.jobs.output import Output, open_output
from batchscore.jobs.parts import total
from batchscore.jobs.pipeline import Pipeline
from batchscore.jobs.plan import Plan
from batchscore.jobs.records import write_record
from batchscore.jobs.shelves import Stores
from batchscore.scorer import set_up
from batchscore.stop import Stop

_FILE_ROWS = 1024  # of a unit of a file, which is divided beforehand
_BAD_ROWS = 1000  # at the start that end a run: more likely a wrong option than so many bad rows
_NOTHING: Mapping[str, Any] = {"rows": 0, "scored": 0, "faulty": 0, "faulty_rows": 0}


def is_stream(options: RunOptions) -> bool:
    """Whether a run reads standard input or writes standard output."""
    return options.out == STREAM or STREAM in options.inputs


@dataclass(frozen=True)
class PreparedStream:
    """A run that can begin; raises and is used as `PreparedJob`."""

    plan: Plan
    options: RunOptions
    source: Source
    output: Output | None  # None: standard output
    limits: MaxErrors
    stores: Stores

    def execute(self, stop: Stop | None = None, events: Events | None = None) -> Outcome:
        """Score what comes and write it, up to the end of the input.

        Raises:
            ClosedPipeError: nobody reads the output any more.
            StoppedError: `stop` was requested; what was written stays, and cannot be added to.
            BatchscoreError: anything else that ends a run.
        """
        stop, events = stop or Stop(), events or Silent()
        self.source.on_step = stop.check
        meter = Meter(on_change=events.progress)
        target = _Lines(standard_output(), stop) if self.output is None else _Sinks(self.output)
        destination = _Destination(self, target, events)
        try:
            with stop.interruptible(), target.opened():
                if not self.source.is_ready:
                    self.source.make_ready()
                for line in self.source.lines():
                    events.note(line)
                if not _is_empty(self.source):
                    self._run(destination, meter, stop, events)
                destination.require_a_score(1)
        except StoppedError as error:
            rows = f"{destination.counts['rows']:,} rows were written" if self.output is None else "nothing was written"
            hint = "a stream cannot be resumed: write the input to a file, and name that and an output file"
            raise StoppedError(f"{error.message}; {rows}", hint=hint) from error
        finally:
            self.source.discard()
        outcome = self._outcome(destination.counts, meter)
        events.finished(outcome)
        return outcome

    def _run(self, destination: _Destination, meter: Meter, stop: Stop, events: Events) -> None:
        plan = self.plan
        lines = [*plan.lines(), *plan.command.lines(self.source), *self._lines()]
        events.started(lines, {**plan.describe(), "stream": True})
        units = self._units()
        batcher, shelves = Batcher(plan.setup, lazy=True), self.stores.open(plan)

        def load(batcher: Batcher) -> None:
            events.loading(plan.setup.checkpoint.name, "weights")
            batcher.load()

        meter.started = perf_counter()
        Pipeline(batcher, plan.command, self.source, destination, None, shelves, plan.errors, meter, stop, load).run(
            units, lambda task, counts: None
        )
        batcher.close()

    def _units(self) -> Iterable[Unit]:
        """Small units; InputError if a query's rows are apart in a file, as its whole ranking is written at once."""
        command, setup = self.plan.command, self.plan.setup
        together = setup.spec.listwise or isinstance(command, RerankCommand)
        rows = setup.budget.window_rows
        if isinstance(self.source, StreamSource):
            self.source.is_listed = isinstance(command, RerankCommand) and command.lists_documents(self.source)
        else:
            rows = min(rows, _FILE_ROWS)
        return command.units(self.source, rows, listwise=together)

    def _lines(self) -> list[str]:
        """What a person reads about it."""
        where = STDOUT if self.output is None else self.output.path
        source = ", ".join(self.source.files)
        lines = [f"stream   {source} -> {where}: rows in order, and nothing to resume if it is interrupted"]
        if isinstance(self.plan.command, RerankCommand) and isinstance(self.source, StreamSource):
            one = "each row" if self.source.is_listed else "rows of a query that follow each other"
            lines.append(f"ranking  of {one}; the same query later on is another one")
        return lines

    def _outcome(self, counts: Mapping[str, Any], meter: Meter) -> Outcome:
        spent = {stage: round(seconds, 3) for stage, seconds in meter.seconds.items()}
        counts = {
            **counts,
            "tokens_forwarded": meter.tokens,
            "seconds": {"total": round(meter.elapsed, 3), **spent},
            "peak_rss_mb": peak_rss_mb(),
        }
        output, record = STDOUT, None
        if self.output is not None:
            output, record = self.output.path, self.output.record()
            write_record(record, self.plan.record(counts, meter.over_time()))
        return Outcome("streamed", output, counts["faulty_rows"], counts, counts, None, record, self.plan)


def prepare_stream(
    command: Command, scorer: Mapping[str, Any], options: RunOptions, events: Events | None = None
) -> PreparedStream:
    """Look at options, input and model; arguments and errors as those of `prepare`.

    The first line of standard input is waited for.
    """
    events = events or Silent()
    checks.refuse_jobs_options(options)
    if options.media_root is not None:
        options = replace(options, media_root=local_path(options.media_root))
    checks.refuse_media(options)
    limits = MaxErrors.parsed(options.max_errors)
    checks.refuse_share_of_errors(limits)
    output = None if options.out == STREAM else open_output(options.out, options.out_format)
    if output is not None:
        output.check()
        checks.refuse_run_of_a_stream(output)
        checks.require_fit(command, options.errors, output.format, output.path)
        checks.refuse_replacing(output, options)
    command, source = open_input(command, options, skip=lambda file: False, folder=own_folder())
    if isinstance(source, StreamSource) and source.is_terminal:
        events.note(f"{STDIN} is a terminal: one JSON object a line, and Ctrl-D after the last")
    if not _is_empty(source):
        command.check(source)
        if isinstance(command, RerankCommand):
            checks.require_judged(options, command.run_columns(source))
    elif output is not None:
        raise InputError(
            f"{STDIN} is empty, so that {output.path} would have no columns", hint="check what writes to it"
        )
    events.loading(scorer["model"], "files")
    setup = set_up(**scorer)
    checks.refuse_store(options, setup.spec)
    checks.refuse_encodings_of_a_stream(command, options, setup.spec)
    checks.refuse_encoding(command, options, output, setup.spec)
    where = STDOUT if output is None else output.path
    plan = Plan(setup, command, options.errors, options.encode, source.fingerprint(), where, dict(scorer), source.media)
    return PreparedStream(plan, options, source, output, limits, Stores.of(plan, options.store or ()))


def _is_empty(source: Source) -> bool:
    """Whether nothing comes from standard input; files are not empty."""
    return isinstance(source, StreamSource) and source.is_empty


@dataclass
class _Destination:
    """Finished units as they come, in order: what takes the place of a job's parts."""

    stream: PreparedStream
    target: _Target
    events: Events
    counts: Mapping[str, Any] = field(default_factory=lambda: _NOTHING)
    units: Sequence[Unit] = ()
    _first: Mapping[str, Any] | None = None  # of the bad rows

    in_order: ClassVar[bool] = True

    def progress(self, unit: Unit) -> None:
        """Nothing is kept of a unit in work."""

    def saved_scores(self, unit: Unit, rows: int, k: int) -> NDArray[np.float32]:
        """float32 [rows, k], NaN: nothing was kept."""
        return np.full((rows, k), np.nan, np.float32)

    def save_scores(self, unit: Unit, raw: NDArray[np.float32]) -> None:
        """Nothing is kept."""

    def write(
        self, unit: Unit, table: pa.Table, counts: Mapping[str, Any], faults: Sequence[Mapping[str, Any]]
    ) -> None:
        """Write a unit's rows and tell its bad ones; RuntimeFailureError or InputError if these are too many."""
        for fault in faults:
            self.events.bad_row(fault)
            self._first = self._first or fault
        for part in self.stream.plan.command.finished(table, self.stream.plan.fingerprint):
            self.target.write(part)
        self.counts = total([self.counts, counts])
        self.require_a_score(_BAD_ROWS)
        self.stream.limits.check(self.counts["faulty_rows"], self.counts["rows"])

    def require_a_score(self, least: int) -> None:
        """Raise InputError if so many rows came, and all of them are bad."""
        if self._first and self.counts["rows"] >= least and not self.counts["scored"]:
            raise InputError(f"every row is bad; the first is {bad_row_line(self._first)}")


# ---- where tables go


class _Target(Protocol):
    """Takes tables while it is opened."""

    def opened(self) -> AbstractContextManager[Any]: ...
    def write(self, table: pa.Table) -> None: ...


class _Lines:
    """JSON Lines on standard output."""

    def __init__(self, writer: LineWriter, stop: Stop) -> None:
        self._writer = writer
        writer.on_wait = stop.check

    def opened(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def write(self, table: pa.Table) -> None:
        """Write the rows now."""
        for lines in json_lines(table):
            self._writer.write(lines)


class _Sinks:
    """A file, which appears when the input has ended."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._stack = ExitStack()
        self._write: list[Callable[[pa.Table], None]] = []

    def opened(self) -> AbstractContextManager[Any]:
        return self._stack

    def write(self, table: pa.Table) -> None:
        """Append the rows; the first table says which columns there are."""
        if not self._write:
            sinks = open_sinks(self._output.path, table.schema.names, self._output.format)
            self._write = [self._stack.enter_context(sink).write for sink in sinks]
        for write in self._write:
            write(table)
