"""Parquet, read a few pages at a time.

Columns stream through a small buffer and are not read ahead: memory stays flat on a row group of any size, for some
speed on remote disks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from batchscore.errors import InputError
from batchscore.io.block import Block, InputFile, RowCursor, Steps, count_steps
from batchscore.io.storage import is_url, open_file
from batchscore.types import Span

SUFFIXES = (".parquet", ".pq")
_BUFFER_BYTES = 1 << 20  # of each column being read; 0 would load its whole row group
_ROWS = 16_384  # a table of the stream


class ParquetReader(InputFile):
    """One Parquet file."""

    first_place = 0
    _cursor: RowCursor | None = None

    def column_names(self) -> list[str]:
        """From the footer."""
        with self._open() as file:
            return list(file.schema_arrow.names)

    def has_column(self, column: str) -> bool:
        """As the footer says."""
        return column in self.column_names()

    def head(self, columns: Sequence[str]) -> pa.Table:
        """No row: the footer has the types."""
        with self._open() as file:
            return file.schema_arrow.empty_table().select(list(columns))

    def steps(self, group: str | None) -> Iterator[Steps]:
        """From the footer, or else the column `group` from beginning to end."""
        if group is None:
            with self._open() as file:
                rows = file.metadata.num_rows
            yield from count_steps(rows)
            return
        at = 0
        for table in self._tables([group], 0):
            rows = np.arange(at + 1, at + len(table) + 1)
            yield Steps(rows, rows, partial(_value, table[group]))
            at += len(table)

    def read(self, span: Span, columns: Sequence[str] | None, texts: Sequence[str] = ()) -> Block:
        """The rows of a span."""
        if self._cursor is None:
            with self._open() as file:
                metadata = file.metadata
            starts = np.cumsum([0, *(metadata.row_group(i).num_rows for i in range(metadata.num_row_groups))])
            self._cursor = RowCursor(
                lambda row: int(starts[max(np.searchsorted(starts, row, side="right") - 1, 0)]), self._tables
            )
        tables = self._cursor.read(columns, span.start, span.stop)
        if sum(map(len, tables)) < span.rows:
            raise InputError(f"{self.file} has fewer rows than when the job began", hint=_HINT)
        return Block(self._joined(tables, columns), self.file, range(span.start, span.stop), "row")

    def close(self) -> None:
        """Close the file."""
        if self._cursor is not None:
            self._cursor.close()
        self._cursor = None

    def _joined(self, tables: Sequence[pa.Table], columns: Sequence[str] | None) -> pa.Table:
        if tables:
            return pa.concat_tables(tables)
        with self._open() as file:
            schema = file.schema_arrow
        names = schema.names if columns is None else [name for name in schema.names if name in columns]
        return schema.empty_table().select(names)

    def _tables(self, columns: Sequence[str] | None, start: int) -> Iterator[pa.Table]:
        """The rows from the row group on that begins at `start`."""
        done = start
        with self._open() as file:
            metadata = file.metadata
            starts = np.cumsum([0, *(metadata.row_group(i).num_rows for i in range(metadata.num_row_groups))])
            groups = [group for group in range(metadata.num_row_groups) if starts[group] >= start]
            try:
                for batch in file.iter_batches(_ROWS, row_groups=groups, columns=columns):
                    yield pa.Table.from_batches([batch])
                    done += batch.num_rows
            except (pa.ArrowException, OSError) as error:
                raise InputError(f"{self.file}, row {done}: damaged from here on: {error}", hint=_HINT) from error

    def _open(self) -> pq.ParquetFile:
        try:
            return pq.ParquetFile(
                open_file(self.file) if is_url(self.file) else self.file,
                pre_buffer=False,
                buffer_size=_BUFFER_BYTES,
                page_checksum_verification=True,
            )
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{self.file} is not a readable Parquet file: {error}", hint=_HINT) from error


_HINT = "write or download the file again"


def _value(column: pa.ChunkedArray, row: int) -> object:
    return column[row].as_py()
