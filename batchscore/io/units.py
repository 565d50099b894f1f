"""Units: the rows that are read, scored, written and resumed together, and how the input is divided into them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from batchscore.types import offsets_of


@dataclass(frozen=True, slots=True)
class Span:
    """Consecutive rows of one input file."""

    file: int  # which of the inputs
    start: int  # position of the first row: its number, or its byte in a file of lines
    stop: int  # position behind the last row
    rows: int
    place: int  # what errors call the first row: its number, or its line


@dataclass(frozen=True, slots=True)
class Unit:
    """The rows that one part of the output holds: what is read, scored, written and resumed as a whole."""

    index: int
    spans: tuple[Span, ...]

    @property
    def rows(self) -> int:
        """Rows of all spans."""
        return sum(span.rows for span in self.spans)


@dataclass(frozen=True, slots=True)
class Steps:
    """Consecutive rows of a file as `UnitBuilder` sees them."""

    ends: NDArray[np.int64]  # [rows], position in the file behind each
    places: NDArray[np.int64]  # [rows], the number that errors give to the row behind each
    sizes: NDArray[np.int64]  # [rows], bytes of each, about; 0: unknown
    value: Callable[[int], Any]  # of the column by which rows are grouped, in row i of these


def count_steps(rows: int, size: int) -> Iterator[Steps]:
    """Steps of rows of which only their number and their bytes on average are known."""
    for start in range(0, rows, _ROWS_A_STEP):
        numbers = np.arange(start + 1, min(start + _ROWS_A_STEP, rows) + 1)
        yield Steps(numbers, numbers, np.full(len(numbers), size), lambda row: None)


def table_steps(tables: Iterator[pa.Table], size: int) -> Iterator[Steps]:
    """Steps of rows that are grouped by the first column of their tables, of so many bytes on average."""
    at = 0
    for table in tables:
        rows = np.arange(at + 1, at + len(table) + 1)
        yield Steps(rows, rows, np.full(len(rows), size), partial(_value, table.column(0)))
        at += len(table)


_ROWS_A_STEP = 1 << 18


def _value(column: pa.ChunkedArray, row: int) -> object:
    return column[row].as_py()


class UnitBuilder:
    """Cuts rows that come in steps into units that are full by their rows or bytes, `stretch` times so within a run."""

    def __init__(self, rows: int, size: int, stretch: float, limit: int) -> None:
        self._full_rows, self._full_size, self._stretch, self._left = rows, size, stretch, limit
        self._units: list[Unit] = []
        self._spans: list[Span] = []
        self._rows, self._size = 0, 0  # of the unit that is growing, and its bytes
        self._file, self._at, self._place = 0, 0, 0  # where the next row is
        self._last: Callable[[], Any] = object  # value of the row before

    def start_file(self, number: int, first_place: int) -> None:
        """The next rows are of this file."""
        self._file, self._at, self._place = number, 0, first_place

    def add(self, steps: Steps) -> bool:
        """Take rows; False once the limit is reached."""
        at, count = 0, min(len(steps.ends), self._left)
        sizes = offsets_of(steps.sizes)
        while at < count:
            if self._filled >= 1 and (self._filled >= self._stretch or steps.value(at) != self._last()):
                self._close()
            # when full, row by row to the end of the run
            room = int(np.searchsorted(sizes, sizes[at] + self._full_size - self._size)) - at
            taken = min(count - at, max(min(self._full_rows - self._rows, room), 1))
            self._extend(taken, int(steps.ends[at + taken - 1]), int(steps.places[at + taken - 1]))
            self._size += int(sizes[at + taken] - sizes[at])
            at += taken
            self._last = partial(steps.value, at - 1)
        self._left -= count
        return self._left > 0

    def units(self) -> list[Unit]:
        """All units, the growing one too."""
        if self._spans or not self._units:
            self._close()
        return self._units

    @property
    def _filled(self) -> float:
        """How full the unit is that is growing."""
        return max(self._rows / self._full_rows, self._size / self._full_size)

    def _extend(self, rows: int, stop: int, place: int) -> None:
        if self._spans and self._spans[-1].file == self._file:
            before = self._spans[-1]
            self._spans[-1] = replace(before, stop=stop, rows=before.rows + rows)
        else:
            self._spans.append(Span(self._file, self._at, stop, rows, self._place))
        self._rows += rows
        self._at, self._place = stop, place

    def _close(self) -> None:
        self._units.append(Unit(len(self._units), tuple(self._spans or [Span(0, 0, 0, 0, 0)])))
        self._spans, self._rows, self._size = [], 0, 0
