"""What readers hand over: rows of one file, each with its number in that file.

Numbers are a range where rows are consecutive and an array where lines may be blank. Nothing is formatted until a row
turns out bad, so a unit of JSON Lines pays eight bytes a row for it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import numpy as np
import pyarrow as pa

from batchscore.io.schema import Shape, listed_type
from batchscore.io.units import Span, Steps
from batchscore.io.values import elements
from batchscore.types import Fault, Faults

Stamp = tuple[int, str | None]  # (bytes, 0: unknown; time of the last change in ISO 8601)


@dataclass(frozen=True, slots=True)
class Block:
    """Some rows of one file."""

    table: pa.Table
    file: str  # as the user named it
    numbers: Sequence[int]  # [rows], number of each in its file
    counts_in: Literal["row", "line"]  # rows count from 0 (Parquet, datasets), lines from 1 (JSONL)
    faults: Faults = field(default_factory=dict)  # rows of the table that could not be read; they are null
    values: Mapping[str, Sequence[Any]] = field(default_factory=dict)  # columns as Python values: JSON that has no type

    def __len__(self) -> int:
        return int(self.table.num_rows)


def listed(block: Block, column: str) -> Block:
    """The block with lists of structs where the column has structs of lists; a fault where these differ in length."""
    structs = block.table[column].combine_chunks()
    kind = listed_type(structs.type)
    if kind == structs.type:
        return block
    lengths = [np.diff(elements(part)[1]) for part in structs.flatten()]
    differ = np.any([length != lengths[0] for length in lengths], axis=0)
    # rows that are null have no elements, which have to go with them
    structs = structs.take(pa.array(np.arange(len(structs)), mask=differ))
    parts, offsets = zip(*map(elements, structs.flatten()), strict=True)
    documents = pa.StructArray.from_arrays(list(parts), fields=list(kind.value_type))
    lists = pa.LargeListArray.from_arrays(pa.array(offsets[0]), documents, mask=structs.is_null())
    faults = dict.fromkeys(np.flatnonzero(differ).tolist(), unequal_lists(column)) | block.faults
    table = block.table.set_column(block.table.column_names.index(column), column, lists)
    return replace(block, table=table, faults=dict(sorted(faults.items())))


def unequal_lists(column: str) -> Fault:
    """The fault of a row with a struct of lists that are no documents."""
    return Fault("not-list", "holds lists of different lengths", "write a list of structs", column)


class Reader(Protocol):
    """One file or dataset: what a format has to implement.

    A file is open only while it is read, so that a thousand of them need one descriptor. Positions (`Span.start`,
    `Steps.ends`) are the reader's own business: row numbers where a file has row groups, bytes of the unpacked text
    where it has lines.
    """

    file: str  # as the user named it
    first_number: int  # what errors call the first row: row 0, or line 1
    is_ragged: bool  # whether later rows may have columns that `schema` lacks

    @property
    def schema(self) -> pa.Schema: ...  # from the file's metadata, or else from its first rows
    def stamp(self) -> Stamp: ...  # as it is now; InputError if the file is empty or cannot be read
    def steps(self, group: str | None, sparse: Collection[str] = ()) -> Iterator[Steps]:
        """All rows with the values of the column `group`, and which columns of `sparse` turn up in them."""
        ...

    def read(self, span: Span, columns: Sequence[str] | None, shapes: Mapping[str, Shape]) -> Block: ...
    def close(self) -> None: ...  # whatever `read` keeps open for the next span


class RowCursor:
    """Reads ranges of rows from a stream of tables that can start at some rows only.

    Args:
        closest: row -> the last row at or before it at which a stream can start.
        stream: (columns, row) -> tables from there on.
    """

    def __init__(
        self, closest: Callable[[int], int], stream: Callable[[Sequence[str] | None, int], Generator[pa.Table]]
    ) -> None:
        self._closest = closest
        self._stream = stream
        self._columns: Sequence[str] | None = None
        self._tables: Generator[pa.Table] | None = None
        self._left_over: pa.Table | None = None  # rows that were read but not handed out
        self._at = 0  # first row not handed out

    def read(self, columns: Sequence[str] | None, start: int, stop: int) -> list[pa.Table]:
        """Tables of the rows from `start` to `stop`; skips ahead in the open stream where that is nearer."""
        if self._tables is None or columns != self._columns or not self._closest(start) <= self._at <= start:
            self.close()
            self._at, self._columns = self._closest(start), columns
            self._tables = self._stream(columns, self._at)
        slices = []
        while self._at < stop:
            table = self._left_over if self._left_over is not None else next(self._tables, None)
            if table is None:
                break
            first, last = max(start, self._at), min(stop, self._at + len(table))
            if first < last:
                slices.append(table.slice(first - self._at, last - first))
            self._left_over = table.slice(last - self._at) if last < self._at + len(table) else None
            self._at = last
        return slices

    def close(self) -> None:
        """Leave the stream."""
        if self._tables is not None:
            self._tables.close()
        self._tables = self._left_over = None
