"""Units: the rows that are read, scored, written and resumed together, and how the input is divided into them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from batchscore.io.values import json_values
from batchscore.types import offsets_of


@dataclass(frozen=True, slots=True)
class Span:
    """Consecutive rows of one input file."""

    file: int  # index of the input
    start: int  # position of the first row: its number, or its byte in a file of lines
    stop: int  # position after the last row
    rows: int
    first_number: int  # what errors call the first row: its number, or its line


@dataclass(frozen=True, slots=True)
class Unit:
    """The rows of one part of the output: read, scored, written and resumed as a whole."""

    index: int
    spans: tuple[Span, ...]

    @property
    def key(self) -> tuple[str, int]:
        """By which processes name it to each other."""
        return "unit", self.index

    @property
    def rows(self) -> int:
        """Rows of all spans."""
        return sum(span.rows for span in self.spans)


@dataclass(frozen=True, slots=True)
class Steps:
    """Consecutive rows of a file as `UnitBuilder` sees them."""

    ends: NDArray[np.int64]  # [rows], position in the file after each
    numbers: NDArray[np.int64]  # [rows], the number that errors give to the row after each
    sizes: NDArray[np.int64]  # [rows], approximate bytes of each; 0: unknown
    value: Callable[[int], object]  # row of these -> its value in the column by which rows are grouped
    columns: Collection[str] = ()  # those of the `sparse` columns that these rows have


def count_steps(rows: int, size: int) -> Iterator[Steps]:
    """Steps of rows of which only the number and the average bytes are known."""
    for start in range(0, rows, _ROWS_A_STEP):
        numbers = np.arange(start + 1, min(start + _ROWS_A_STEP, rows) + 1)
        yield Steps(numbers, numbers, np.full(len(numbers), size), _no_value)


def table_steps(tables: Iterator[pa.Table], size: int) -> Iterator[Steps]:
    """Steps of rows that are grouped by the first column of their tables and have `size` bytes on average."""
    at = 0
    for table in tables:
        rows = np.arange(at + 1, at + len(table) + 1)
        values = cache(partial(json_values, table.column(0)))  # most tables are never asked for one
        yield Steps(rows, rows, np.full(len(rows), size), partial(_value, values))
        at += len(table)


_ROWS_A_STEP = 1 << 18  # three int64 arrays of this length are 6 MiB, however many rows a file has


def _no_value(row: int) -> object:
    return None


def _value(values: Callable[[], list[Any]], row: int) -> object:
    return values()[row]


class UnitBuilder:
    """Divides rows that come in steps into units.

    A unit is full at `rows` rows or `size` bytes. It is then extended to the end of a run of equal values, but to no
    more than `stretch` times that.
    """

    def __init__(self, rows: int, size: int, stretch: float, limit: int) -> None:
        self._full_rows, self._full_size, self._stretch, self._left = rows, size, stretch, limit
        self._units: list[Unit] = []
        self._spans: list[Span] = []
        self._rows, self._size = 0, 0  # rows and bytes of the growing unit
        self._file, self._at, self._number = 0, 0, 0  # where the next row is
        # the row before, and how to get its value, which is needed only once a unit is full
        self._before: tuple[Callable[[int], object], int] | None = None

    def start_file(self, index: int, first_number: int) -> None:
        """The next rows are from this file."""
        self._file, self._at, self._number = index, 0, first_number

    def add(self, steps: Steps, keep: NDArray[np.bool_] | None = None) -> bool:
        """Take rows, or those of them that are kept; False once the limit is reached."""
        if keep is None or keep.all():
            return self._add(steps, 0, len(steps.ends))
        bounds = np.flatnonzero(np.diff(keep, prepend=not keep[0], append=not keep[-1])).tolist()
        for start, stop in pairwise(bounds):
            if not keep[start]:
                self._at, self._number = int(steps.ends[stop - 1]), int(steps.numbers[stop - 1])
            elif not self._add(steps, start, stop):
                return False
        return True

    def _add(self, steps: Steps, at: int, stop: int) -> bool:
        """Take the rows from `at` to `stop`."""
        count = min(stop - at, self._left)
        stop = at + count
        sizes = offsets_of(steps.sizes)
        while at < stop:
            if self._filled >= self._stretch or (self._filled >= 1 and not self._continues(steps, at)):
                self._close()
            # a unit that is full grows row by row, to the end of the run
            room = int(np.searchsorted(sizes, sizes[at] + self._full_size - self._size)) - at
            taken = min(stop - at, max(min(self._full_rows - self._rows, room), 1))
            self._extend(taken, int(steps.ends[at + taken - 1]), int(steps.numbers[at + taken - 1]))
            self._size += int(sizes[at + taken] - sizes[at])
            at += taken
            self._before = steps.value, at - 1
        self._left -= count
        return self._left > 0

    def units(self) -> list[Unit]:
        """All units, including the growing one; an empty input is one empty unit."""
        if self._spans or not self._units:
            self._close()
        return self._units

    @property
    def _filled(self) -> float:
        """How full the growing unit is; 1 = full."""
        return max(self._rows / self._full_rows, self._size / self._full_size)

    def _continues(self, steps: Steps, row: int) -> bool:
        """Whether this row has the value of the row before."""
        if self._before is None:
            return False
        value, last = self._before
        return steps.value(row) == value(last)

    def _extend(self, rows: int, stop: int, number: int) -> None:
        if self._spans and (self._spans[-1].file, self._spans[-1].stop) == (self._file, self._at):
            before = self._spans[-1]
            self._spans[-1] = replace(before, stop=stop, rows=before.rows + rows)
        else:
            self._spans.append(Span(self._file, self._at, stop, rows, self._number))
        self._rows += rows
        self._at, self._number = stop, number

    def _close(self) -> None:
        self._units.append(Unit(len(self._units), tuple(self._spans or [Span(0, 0, 0, 0, 0)])))
        self._spans, self._rows, self._size = [], 0, 0
