"""What readers hand over: rows of one file, each with its place in that file.

Places are a range where rows are consecutive and an array where lines may be blank: nothing is formatted until a row is
at fault, and a window of JSON Lines pays eight bytes a row for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import pyarrow as pa

from batchscore.errors import InputError
from batchscore.io.schema import Shape
from batchscore.io.storage import stat_file
from batchscore.io.units import Span, Steps
from batchscore.types import Fault


@dataclass(frozen=True, slots=True)
class Block:
    """Some rows of one file."""

    table: pa.Table
    file: str  # as the user named it
    positions: Sequence[int]  # [rows], place of each in its file
    unit: Literal["row", "line"]  # rows count from 0 (Parquet, datasets), lines from 1 (JSONL)
    faults: Sequence[Fault] = ()  # rows of the table that could not be read; they are null

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def locate(self, row: int) -> str:
        """Where a person finds this row: "pairs.jsonl, line 3"."""
        return f"{self.file}, {self.unit} {self.positions[row]}"


class Reader(Protocol):
    """One file or dataset. A file is open only while it is read, so that a thousand of them need one descriptor.

    Positions are row numbers where a file has row groups, and bytes (unpacked) where it has lines.
    """

    first_place: int  # what errors call the first row: row 0, or line 1

    @property
    def file(self) -> str: ...
    @property
    def size(self) -> int: ...  # bytes, 0: unknown
    @property
    def modified(self) -> str | None: ...  # ISO 8601
    def require_unchanged(self) -> None: ...  # since it was opened
    def column_names(self) -> list[str]: ...  # cheap: the schema, or the keys of the first line
    def has_column(self, column: str) -> bool: ...  # in any row
    def head(self, columns: Sequence[str]) -> pa.Table: ...  # first rows, for their types
    def steps(self, group: str | None) -> Iterator[Steps]: ...
    def read(self, span: Span, columns: Sequence[str] | None, shapes: Mapping[str, Shape]) -> Block: ...
    def close(self) -> None: ...  # what `read` keeps open to go on from


class InputFile:
    """What the readers of single files share."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.size, self.modified = stat_file(file)

    def require_unchanged(self) -> None:
        """InputError if the file was written to or replaced meanwhile."""
        if stat_file(self.file) != (self.size, self.modified):
            raise InputError(
                f"{self.file} has changed since the job began",
                hint="what is done stays: put the file back, or start anew",
            )


class RowCursor:
    """Reads ranges of rows from a stream of tables that can start at some rows only.

    Args:
        closest: row -> the last row at or before it that a stream can start at.
        stream: (columns, row) -> tables from there on.
    """

    def __init__(
        self, closest: Callable[[int], int], stream: Callable[[Sequence[str] | None, int], Iterator[pa.Table]]
    ) -> None:
        self._closest = closest
        self._stream = stream
        self._columns: Sequence[str] | None = None
        self._tables: Iterator[pa.Table] | None = None
        self._rest: pa.Table | None = None  # rows that were read and not handed out
        self._at = 0  # first row not handed out

    def read(self, columns: Sequence[str] | None, start: int, stop: int) -> list[pa.Table]:
        """Tables of the rows from `start` to `stop`; skips on in the open stream where that is nearer."""
        if self._tables is None or columns != self._columns or not self._closest(start) <= self._at <= start:
            self.close()
            self._at, self._columns = self._closest(start), columns
            self._tables = self._stream(columns, self._at)
        found = []
        while self._at < stop:
            table = self._rest if self._rest is not None else next(self._tables, None)
            if table is None:
                break
            first, last = max(start, self._at), min(stop, self._at + len(table))
            if first < last:
                found.append(table.slice(first - self._at, last - first))
            self._rest = table.slice(last - self._at) if last < self._at + len(table) else None
            self._at = last
        return found

    def close(self) -> None:
        """Leave the stream."""
        close: Any = getattr(self._tables, "close", lambda: None)
        close()
        self._tables = self._rest = None
