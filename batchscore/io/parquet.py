"""Parquet, read a few pages at a time.

Columns stream through a small buffer and are not read ahead: memory stays flat on a row group of any size, for some
speed on remote disks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from batchscore.errors import InputError
from batchscore.io.block import Block, LocalFile

SUFFIXES = (".parquet", ".pq")
_BUFFER_BYTES = 1 << 20  # of each column being read; 0 would load its whole row group


class ParquetReader(LocalFile):
    """One Parquet file."""

    def column_names(self) -> list[str]:
        """From the footer."""
        with self._open() as file:
            return list(file.schema_arrow.names)

    def num_rows(self) -> int:
        """From the footer."""
        with self._open() as file:
            return int(file.metadata.num_rows)

    def blocks(self, columns: Sequence[str] | None, rows: int) -> Iterator[Block]:
        """Tables of at most `rows` rows; a file of zero rows gives one empty table."""
        done = 0
        with self._open() as file:
            total = file.metadata.num_rows
            try:
                for batch in file.iter_batches(rows, columns=columns):
                    places = range(done, done + batch.num_rows)
                    yield Block(pa.Table.from_batches([batch]), self.file, places, "row", places.stop / total)
                    done = places.stop
            except (pa.ArrowException, OSError) as error:
                raise InputError(f"{self.file}, row {done}: damaged from here on: {error}", hint=_HINT) from error
            if not total:
                yield Block(file.schema_arrow.empty_table(), self.file, range(0), "row", 1.0)

    def _open(self) -> pq.ParquetFile:
        try:
            return pq.ParquetFile(
                self.file, pre_buffer=False, buffer_size=_BUFFER_BYTES, page_checksum_verification=True
            )
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{self.file} is not a readable Parquet file: {error}", hint=_HINT) from error


_HINT = "write or download the file again"
