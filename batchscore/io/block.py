"""What readers hand over: rows of one file, each with its place in that file.

Places are a range where rows are consecutive and an array where lines may be blank: nothing is formatted until a row is
at fault, and a window of JSON Lines pays eight bytes a row for it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import Literal, Protocol

import pyarrow as pa

from batchscore.errors import InputError


@dataclass(frozen=True, slots=True)
class Block:
    """Some rows of one file."""

    table: pa.Table
    file: str  # as the user named it
    positions: Sequence[int]  # [rows], place of each in its file
    unit: Literal["row", "line"]  # rows count from 0 (Parquet, datasets), lines from 1 (JSONL)
    fraction: float | None  # of this file, read when this block is done

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def slice(self, start: int, size: int) -> Block:
        """`size` rows from `start` on; nothing is copied."""
        return replace(self, table=self.table.slice(start, size), positions=self.positions[start : start + size])

    def locate(self, row: int) -> str:
        """Where a person finds this row: "pairs.jsonl, line 3"."""
        return f"{self.file}, {self.unit} {self.positions[row]}"


class Reader(Protocol):
    """One file or dataset; a file is opened anew by each method, so that a thousand of them need one descriptor."""

    @property
    def file(self) -> str: ...
    @property
    def size(self) -> int: ...  # bytes, 0: unknown
    @property
    def modified(self) -> str | None: ...  # ISO 8601
    def column_names(self) -> list[str]: ...  # cheap: the schema, or the keys of the first line
    def num_rows(self) -> int | None: ...
    def blocks(self, columns: Sequence[str] | None, rows: int) -> Iterator[Block]: ...  # at least one, maybe empty


class LocalFile:
    """What the readers of single files share."""

    def __init__(self, file: str) -> None:
        stat = os.stat(file)
        if not stat.st_size:
            raise InputError(f"{file} is empty", hint="leave the file out, or write it again")
        if not os.access(file, os.R_OK):
            raise InputError(f"{file} cannot be read: permission denied")
        self.file = file
        self.size = stat.st_size
        self.modified = iso_time(stat.st_mtime)


def iso_time(seconds: float) -> str:
    """Seconds since the epoch, as ISO 8601 in UTC."""
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat()
