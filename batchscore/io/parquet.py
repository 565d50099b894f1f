"""Parquet, read a few pages at a time.

Columns stream through a small buffer and are not read ahead. Memory stays flat for row groups of any size, which costs
some speed on remote disks.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from batchscore.errors import InputError
from batchscore.io.block import Block, RowCursor, Stamp
from batchscore.io.schema import Shape
from batchscore.io.storage import is_url, is_utf8, open_file, stat_file
from batchscore.io.units import Span, Steps, count_steps, table_steps
from batchscore.io.values import KEEP_HINT, empty_table
from batchscore.types import offsets_of

SUFFIXES = (".parquet", ".pq")
_BUFFER_BYTES = 1 << 20  # for each column being read; 0 would load its whole row group
# A table of the stream is at most a default unit, and small beside the 32 MiB that a unit may have: rows of it that
# belong to the next unit stay in memory until that is read.
_ROWS = 16_384
_BYTES = 8 << 20


def unpacked_size(footer: pq.FileMetaData) -> int:
    """Bytes of a file's rows, encoded but not compressed."""
    return sum(footer.row_group(group).total_byte_size for group in range(footer.num_row_groups))


class ParquetReader:
    """One Parquet file."""

    first_number = 0
    is_ragged = False

    def __init__(self, file: str) -> None:
        self.file = file
        self._cursor = RowCursor(self._group_start, self._tables)

    def stamp(self) -> Stamp:
        """Size and time of the file."""
        return stat_file(self.file)

    @cached_property
    def schema(self) -> pa.Schema:
        """From the footer."""
        with self._open() as file:
            return file.schema_arrow

    def steps(self, group: str | None, sparse: Collection[str] = ()) -> Iterator[Steps]:
        """From the footer alone or, with `group`, by reading that column."""
        starts, row_size, _ = self._layout
        if group is None:
            yield from count_steps(int(starts[-1]), row_size)
        else:
            yield from table_steps(self._tables([group], 0), row_size)

    def read(self, span: Span, columns: Sequence[str] | None, shapes: Mapping[str, Shape]) -> Block:
        """The rows of a span."""
        tables = self._cursor.read(columns, span.start, span.stop)
        if sum(map(len, tables)) < span.rows:
            raise InputError(f"{self.file} has fewer rows than when the job began", hint=_HINT)
        return Block(self._joined(tables, columns), self.file, range(span.start, span.stop), "row")

    def close(self) -> None:
        """Close the file."""
        self._cursor.close()

    def _joined(self, tables: Sequence[pa.Table], columns: Sequence[str] | None) -> pa.Table:
        if tables:
            return pa.concat_tables(tables)
        names = self.schema.names if columns is None else [name for name in self.schema.names if name in columns]
        return empty_table(self.schema).select(names)

    @cached_property
    def _layout(self) -> tuple[NDArray[np.int64], int, list[str]]:
        """What the footer says of the rows.

        Returns int64 [row groups + 1], the first row of each and the number of rows; average bytes of a row, not
        compressed; columns, or parts of them, of INT96 timestamps.
        """
        with self._open() as file:
            groups = range(file.metadata.num_row_groups)
            starts = offsets_of([file.metadata.row_group(group).num_rows for group in groups])
            leaves = [file.schema.column(index) for index in range(len(file.schema))]
            int96 = [leaf.path for leaf in leaves if leaf.physical_type == "INT96"]
            return starts, unpacked_size(file.metadata) // max(1, file.metadata.num_rows), int96

    @cached_property
    def _int96_unit(self) -> str:
        """How INT96 timestamps are read: in microseconds, or in nanoseconds if they have them and all fit.

        Arrow reads nanoseconds and lets days before 1677 and after 2262, which stand for "always", overflow unnoticed.
        """
        columns, has_nanoseconds = self._layout[2], False
        if columns:
            with suppress(pa.ArrowException, OSError), self._open("ns") as fine, self._open("us") as coarse:
                batches = (file.iter_batches(_ROWS, columns=columns) for file in (fine, coarse))
                for pair in zip(*batches, strict=True):
                    for column in range(len(columns)):
                        nanoseconds, microseconds = (_ticks(batch.column(column)) for batch in pair)
                        if (nanoseconds // 1000 != microseconds).any():
                            return "us"
                        has_nanoseconds |= bool((nanoseconds % 1000).any())
        return "ns" if has_nanoseconds else "us"  # of a damaged file too: reading its rows says where

    def _group_start(self, row: int) -> int:
        """First row of the row group that a row is in."""
        starts = self._layout[0]
        return int(starts[max(np.searchsorted(starts, row, side="right") - 1, 0)])

    def _tables(self, columns: Sequence[str] | None, start: int) -> Generator[pa.Table]:
        """The rows from `start` on, which is the first of a row group."""
        starts, row_size, _ = self._layout
        done, rows = start, max(1, min(_ROWS, _BYTES // max(1, row_size)))
        groups = np.flatnonzero(starts[:-1] >= start).tolist()
        with self._open(self._int96_unit) as file:
            try:
                for batch in file.iter_batches(rows, row_groups=groups, columns=columns):
                    yield pa.Table.from_batches([batch])
                    done += batch.num_rows
            except (pa.ArrowException, OSError) as error:
                hint = _NULL_LISTS_HINT if "all lists to be of size" in str(error) else _HINT
                raise InputError(f"{self.file}, row {done}: damaged from here on: {error}", hint=hint) from error

    @contextmanager
    def _open(self, int96_unit: str = "us") -> Iterator[pq.ParquetFile]:
        with ExitStack() as stack:
            try:
                file = pq.ParquetFile(
                    self.file
                    if is_utf8(self.file) and not is_url(self.file)
                    else stack.enter_context(open_file(self.file)),
                    pre_buffer=False,
                    buffer_size=_BUFFER_BYTES,
                    page_checksum_verification=True,
                    coerce_int96_timestamp_unit=int96_unit,
                )
            except (pa.ArrowException, OSError) as error:
                raise InputError(f"{self.file} is not a readable Parquet file: {error}", hint=_HINT) from error
            yield stack.enter_context(file)


def _ticks(column: pa.Array) -> NDArray[np.int64]:
    """The timestamps that are all there is in a column of lists or structs."""
    while pa.types.is_nested(column.type):
        column = column.flatten()[0] if pa.types.is_struct(column.type) else column.flatten()
    ticks: NDArray[np.int64] = column.view(pa.int64()).fill_null(0).to_numpy()
    return ticks


_HINT = "write or download the file again"
_NULL_LISTS_HINT = f"if the file is whole, only pyarrow 26 or later reads its null lists of a fixed size; {KEEP_HINT}"
