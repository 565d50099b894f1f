"""Standard input as a source of units, and standard output for their tables: JSON Lines through a pipe.

A unit is whatever has come by the time somebody is ready for it, so that no answer waits for lines that are not there
yet. The price is that nothing is read twice: the first lines decide what the columns are, and a query whose rows are
apart is taken for two queries.
"""

from __future__ import annotations

import os
import select
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from math import inf
from time import monotonic
from typing import Any, NoReturn, TextIO

import pyarrow as pa

from batchscore.errors import ClosedPipeError, InputError, RuntimeFailureError, UsageError
from batchscore.io.jsonl import block_of, parsed
from batchscore.io.lines import Line
from batchscore.io.objects import UnreadableError, object_schema
from batchscore.io.schema import Shape, require_columns
from batchscore.io.source import UNIT_BYTES, Chunk, WholeRows, chunk_of
from batchscore.io.storage import write_hint
from batchscore.io.units import Span, Unit
from batchscore.io.values import empty_table, storable
from batchscore.media.find import MediaFinder
from batchscore.media.policy import MediaPolicy

STREAM = "-"  # as a path: standard input or output
STDIN, STDOUT = "standard input", "standard output"

_HEAD_LINES = 1000  # in which a column has to turn up
_CHUNK_BYTES = 1 << 18  # read at once; a pipe holds 64 KiB
_ATOMIC_BYTES = select.PIPE_BUF  # written to a pipe as a whole or not at all, even by a process that is killed
_POLL_SECONDS = 0.1  # between two looks whether to stop
_UNIT_SECONDS = 0.1  # for which the first row of a unit waits for further ones
_FIRST_ROWS = 32  # of a unit, until it is known how fast rows are scored
# Units grow by doubling while one takes less than the first, and shrink while one takes more than the second: the one
# bounds what is lost between units, the other how long a row waits for its score. Powers of two make it likely that the
# same lines are divided in the same way the next time, which shows in the last digits of scores.
_SHORT_SECONDS, _LONG_SECONDS = 0.5, 2.0


def descriptor(stream: TextIO | None, name: str) -> int:
    """The descriptor of a standard stream; UsageError if it has none."""
    try:
        if stream is None:
            raise ValueError("it is closed")
        return stream.fileno()
    except (ValueError, OSError) as error:  # io.UnsupportedOperation is both
        raise UsageError(f"{name} cannot be used: {error}", hint="name a file") from error


def standard_input(media: MediaPolicy) -> StreamSource:
    """Standard input as a source; UsageError if it is closed."""
    return StreamSource(descriptor(sys.stdin, STDIN), media)


def standard_output() -> LineWriter:
    """A writer of lines to standard output; UsageError if it is closed."""
    return LineWriter(descriptor(sys.stdout, STDOUT))


# ---- in


class StreamSource(WholeRows):
    """The lines of a descriptor, as a `Source` whose units are made when they are asked for and read once."""

    is_streamed = True

    def __init__(self, descriptor: int, media: MediaPolicy) -> None:
        self.on_step: Callable[[], None] = lambda: None
        self.media = media
        self.is_listed = False  # whether each row has all documents of a query, so that no other row belongs to it
        self._feed = _Feed(descriptor, lambda: self.on_step())
        self._finder = MediaFinder(media)
        self._head: list[dict[str, Any]] = []  # objects of the first lines, by which columns are known
        self._pending: deque[Line] = deque()  # that were read and are in no unit yet
        self._units: dict[int, Sequence[Line]] = {}  # that were made and not read yet
        self._units_began = False

    @property
    def files(self) -> Sequence[str]:
        """Its name."""
        return [STDIN]

    def addresses(self) -> NoReturn:
        """A stream can be read by one process only."""
        raise UsageError(f"{STDIN} cannot be shared between processes", hint="write its lines to a file")

    def fingerprint(self) -> list[dict[str, Any]]:
        """Its name: it cannot be told whether this is the same input as before."""
        return [{"name": STDIN, "bytes": 0, "modified": None}]

    @property
    def is_terminal(self) -> bool:
        """Whether a person types the lines."""
        return self._feed.is_terminal

    @property
    def is_empty(self) -> bool:
        """Whether there is no line in it. Waits for the first one that can be read."""
        self._look(lambda: bool(self._head))
        return not (self._head or self._pending)

    def column_names(self) -> list[str]:
        """Keys of the first line, and of those that had to be looked at to find a column."""
        return list(self._schema.names)

    def column_type(self, column: str) -> pa.DataType:
        """Type of a column, by its first value."""
        self._look(lambda: any(line.get(column) is not None for line in self._head))
        return self._schema.field(column).type if column in self._schema.names else pa.null()

    @property
    def _schema(self) -> pa.Schema:
        if not (self.is_empty or self._head):
            number, line = self._pending[0]
            try:
                parsed(number, line)
            except UnreadableError as error:
                raise InputError(f"{STDIN}, line {number}: {error}", hint=error.hint) from error
        return storable(empty_table(object_schema(self._head)), STDIN).schema

    def require(self, flags: Mapping[str, str]) -> None:
        """Raise InputError if the first lines lack a column of `flags` (column -> the option that names it)."""
        names = set(self.column_names())
        self._look(lambda: flags.keys() <= names.union(*self._head))
        require_columns(self.column_names(), flags, STDIN)

    def require_runs(self, column: str, limit: int | None) -> None:
        """Nothing: what comes after a query's rows is another query, whatever its id."""

    def _look(self, is_enough: Callable[[], bool]) -> None:
        """Read lines until it is enough, but no more than the first thousand; the units begin with them."""
        while not self._units_began and len(self._pending) < _HEAD_LINES and not is_enough():
            if (line := self._feed.next(inf)) is None:
                break
            self._pending.append(line)
            with suppress(UnreadableError):
                self._head.append(parsed(*line))

    def units(
        self,
        rows: int,
        *,
        columns: Mapping[str, str] | None = None,
        size: int = UNIT_BYTES,
        group: str | None = None,
        stretch: float = 2,
        limit: int | None = None,
    ) -> Iterator[Unit]:
        """Units of what comes, each made when it is asked for; numbered from 1, as a first one may be a single bad row.

        Args:
            rows: at which a unit is full. Fewer fill it where they are scored slowly.
            columns: as in `require`.
            size: bytes at which a unit is full.
            group: a column: rows that follow each other with equal values in it are in one unit, however many they are,
                and no other rows of this unit have that value.
            stretch: not used.
            limit: rows in all.
        """
        self.require(columns or {})
        self._units_began = True
        return self._made(rows, size, group, sys.maxsize if limit is None else limit)

    def _made(self, most: int, size: int, group: str | None, left: int) -> Iterator[Unit]:
        number, rows = 0, min(most, _FIRST_ROWS)
        while left and (lines := self._take(_Growing(min(rows, left), size, group, self.is_listed), left)):
            number, left = number + 1, left - len(lines)
            self._units[number] = lines
            asked = monotonic()
            yield Unit(number, (Span(0, number - 1, number, len(lines), lines[0][0]),))
            # a unit is read while the one before is scored: that is what takes the time until the next is asked for
            seconds = monotonic() - asked
            if seconds > _LONG_SECONDS:
                rows = max(1, rows // 2)
            elif seconds < _SHORT_SECONDS and len(lines) >= rows:
                rows = min(most, 2 * rows)

    def _take(self, growing: _Growing, left: int) -> Sequence[Line]:
        """The lines of the next unit, none at the end; at most `left` rows."""
        deadline = inf
        while len(growing.lines) < left and not growing.is_full:
            line = self._pending.popleft() if self._pending else self._feed.next(deadline)
            if line is None:
                if self._feed.ended:
                    break
                return self._whole(growing)
            if not growing.add(line):
                self._pending.appendleft(line)
                break
            if deadline == inf and growing.whole:
                deadline = monotonic() + _UNIT_SECONDS
        return growing.lines

    def _whole(self, growing: _Growing) -> Sequence[Line]:
        """The lines that need no others; the rest begins the next unit."""
        self._pending.extendleft(reversed(growing.lines[growing.whole :]))
        return growing.lines[: growing.whole]

    def read(self, unit: Unit, columns: Sequence[str] | None, shapes: Mapping[str, Shape]) -> Chunk:
        """The rows of the unit that was made last, once; arguments as in `Source`."""
        lines = self._units.pop(unit.index)
        return chunk_of([block_of(STDIN, lines, columns, shapes)], [self._finder], columns, shapes)

    def close(self) -> None:
        """Nothing: the descriptor is not ours."""


@dataclass(slots=True)
class _Growing:
    """Lines on their way to a unit."""

    rows: int  # at which it is full
    size: int  # bytes, likewise
    group: str | None  # the key whose equal values are not divided
    is_listed: bool  # whether a row is all there is with its value
    lines: list[Line] = field(default_factory=list)
    whole: int = 0  # lines that do not need the next one
    _bytes: int = 0
    _last: str | None = None  # value of the line before
    _seen: set[str] = field(default_factory=set)

    @property
    def _is_filled(self) -> bool:
        return len(self.lines) >= self.rows or self._bytes >= self.size

    @property
    def _is_open(self) -> bool:
        """Whether the next line may belong to the one before."""
        return self.group is not None and not self.is_listed

    @property
    def is_full(self) -> bool:
        return self._is_filled and not self._is_open

    def add(self, line: Line) -> bool:
        """Take a line; False if the unit has to end before it."""
        value = None if self.group is None else _value(line, self.group)
        if not (self._is_open and self.lines and value is not None and value == self._last):
            if self.lines and (self._is_filled or value in self._seen):
                return False
            self.whole = len(self.lines)
        if value is not None:
            self._seen.add(value)
        self.lines.append(line)
        self._bytes += len(line[1])
        self._last = value
        if not self._is_open:
            self.whole = len(self.lines)
        return True


def _value(line: Line, key: str) -> str | None:
    """What a line has under a key, as text; None if it has nothing there."""
    with suppress(UnreadableError):
        value = parsed(*line).get(key)
        return None if value is None else str(value)
    return None


class _Feed:
    """Lines of a descriptor, as they come."""

    def __init__(self, descriptor: int, on_wait: Callable[[], None]) -> None:
        self.ended = False
        self._descriptor, self._on_wait = descriptor, on_wait
        self._lines: deque[bytes] = deque()
        self._begun: list[bytes] = []  # pieces of a line whose end has not come
        self._number = 0

    @property
    def is_terminal(self) -> bool:
        """Whether a person types the lines."""
        return os.isatty(self._descriptor)

    def next(self, deadline: float) -> Line | None:
        """The next line that is not blank; None at the end, or if none has come by `deadline` of `monotonic`."""
        while True:
            while self._lines:
                line = self._lines.popleft()
                self._number += 1
                if line.strip():
                    return self._number, line
            if self.ended or not self._is_ready(deadline):
                return None
            self._fill()

    def _is_ready(self, deadline: float) -> bool:
        """Wait for bytes."""
        while True:
            self._on_wait()
            left = max(0.0, deadline - monotonic())
            if select.select([self._descriptor], [], [], min(_POLL_SECONDS, left))[0]:
                return True
            if not left:
                return False

    def _fill(self) -> None:
        try:
            chunk = os.read(self._descriptor, _CHUNK_BYTES)
        except BlockingIOError:  # another process shares it and was faster
            return
        except OSError as error:
            raise InputError(f"{STDIN} cannot be read: {error.strerror}", hint="check what leads to it") from error
        if not chunk:
            self.ended = True
            self._lines.append(b"".join(self._begun))
            return
        first, *others = chunk.split(b"\n")
        self._begun.append(first)
        if others:
            self._lines.append(b"".join(self._begun))
            *whole, last = others
            self._lines.extend(whole)
            self._begun = [last]


# ---- out


class LineWriter:
    """Writes whole lines to a descriptor, which nobody need read at once."""

    def __init__(self, descriptor: int) -> None:
        self.on_wait: Callable[[], None] = lambda: None  # called now and then while the reader is slow
        self._descriptor = descriptor

    def write(self, lines: bytes) -> None:
        """Write lines, as far as `on_wait` does not raise: never a part of one.

        Raises:
            ClosedPipeError: nobody reads them any more.
            RuntimeFailureError: the disk behind it is full.
        """
        start = 0
        try:
            while start < len(lines):
                stop = _end_of_lines(lines, start)
                while not select.select([], [self._descriptor], [], _POLL_SECONDS)[1]:
                    self.on_wait()
                while start < stop:
                    with suppress(BlockingIOError):
                        start += os.write(self._descriptor, memoryview(lines)[start:stop])
        except BrokenPipeError as error:
            raise ClosedPipeError(f"{STDOUT} is closed") from error
        except OSError as error:
            raise RuntimeFailureError(f"cannot write {STDOUT}: {error.strerror}", hint=write_hint(error)) from error


def _end_of_lines(lines: bytes, start: int) -> int:
    """Where to end a piece: as many lines as a pipe takes at once, or else one."""
    limit = start + _ATOMIC_BYTES
    return (
        len(lines) if len(lines) <= limit else (lines.rfind(b"\n", start, limit) + 1) or lines.index(b"\n", start) + 1
    )
