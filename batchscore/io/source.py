"""The input as one sequence of windows, whatever files it is made of.

A window spans files and holds `rows` rows. Memory is bounded by it, and the price is that no step of the pipeline sees
more than one.
"""

from __future__ import annotations

import glob
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import pyarrow as pa
import pyarrow.compute as pc

from batchscore.errors import NotFoundError, UsageError
from batchscore.io import hf, jsonl, parquet
from batchscore.io.block import Block, Reader
from batchscore.io.schema import join, require_columns

_READERS: dict[str, Callable[[str], Reader]] = {
    **dict.fromkeys(parquet.SUFFIXES, parquet.ParquetReader),
    **dict.fromkeys(jsonl.SUFFIXES, jsonl.JsonlReader),
}


@dataclass(frozen=True, slots=True)
class Chunk:
    """A bounded window of the input."""

    table: pa.Table
    blocks: tuple[Block, ...]  # the rows of `table`, file by file
    fraction: float | None  # of the whole input, read when this window is done; None: unknown

    def locate(self, row: int) -> str:
        """Where a person finds this row: "pairs.jsonl, line 3"; of an empty window, its file."""
        for block in self.blocks:
            if row < len(block):
                return block.locate(row)
            row -= len(block)
        return self.blocks[-1].file

    def joined(self, following: Chunk) -> Chunk:
        """Both windows as one."""
        table = pa.concat_tables([self.table, following.table], promote_options="permissive")
        return Chunk(table, (*self.blocks, *following.blocks), following.fraction)

    def split(self, row: int) -> tuple[Chunk, Chunk]:
        """(the rows before `row`, the others)."""
        before, after, start = [], [], 0
        for block in self.blocks:
            cut = min(max(row - start, 0), len(block))
            before.append(block.slice(0, cut))
            after.append(block.slice(cut, len(block) - cut))
            start += len(block)
        return (
            Chunk(self.table.slice(0, row), tuple(before), self.fraction),
            Chunk(self.table.slice(row), tuple(after), self.fraction),
        )


def whole_groups(chunks: Iterator[Chunk], column: str) -> Iterator[Chunk]:
    """The same rows in chunks that end where a value of the column does: none of its runs is divided."""
    held: Chunk | None = None
    for chunk in chunks:
        whole = chunk if held is None else held.joined(chunk)
        values = whole.table[column].combine_chunks()
        is_new = pc.not_equal(values[1:], values[:-1]).fill_null(True).to_pylist()
        done, held = whole.split(len(is_new) - is_new[::-1].index(True) if True in is_new else 0)
        if done.table.num_rows:
            yield done
    if held is not None:
        yield held


@dataclass(frozen=True)
class Source:
    """Files read one after the other."""

    readers: Sequence[Reader]

    def fingerprint(self) -> list[dict[str, str | int | None]]:
        """What tells that the input has changed since: name, bytes and time of each file."""
        return [{"name": file.file, "bytes": file.size, "modified": file.modified} for file in self.readers]

    @cached_property
    def num_rows(self) -> int | None:
        """Rows of all files; None where one cannot tell."""
        counts = [reader.num_rows() for reader in self.readers]
        known = [count for count in counts if count is not None]
        return sum(known) if len(known) == len(counts) else None

    def column_names(self) -> list[str]:
        """Columns of the first file."""
        return self.readers[0].column_names()

    def require(self, flags: Mapping[str, str]) -> None:
        """Raise InputError if the first file lacks a column of `flags` (column -> the option that names it)."""
        require_columns(self.column_names(), flags, self.readers[0].file)

    def chunks(
        self,
        columns: Sequence[str] | None,
        rows: int,
        limit: int | None = None,
        *,
        flags: Mapping[str, str] | None = None,
    ) -> Iterator[Chunk]:
        """Yield windows of `rows` rows, the last one shorter; an empty input is one empty window, for its columns.

        `columns`: what to read, in this order; None: all. `limit`: rows in all. `flags`: column -> the option that
        names it, for the error when a file lacks it; these are required even where all columns are read.
        """
        wanted = {**dict.fromkeys(columns or (), "--keep-columns"), **(flags or {})}
        end = sys.maxsize if limit is None else limit
        window: list[Block] = []
        done = 0
        for block, share in self._blocks(columns, min(rows, limit or rows), wanted):
            start = 0
            while start < len(block) and done < end:
                size = min(len(block) - start, rows - done % rows, end - done)
                window.append(block.slice(start, size))
                start += size
                done += size
                if done % rows == 0:
                    yield Chunk(_join(window, columns, wanted), tuple(window), self._fraction(done, limit, share))
                    window = []
            if done >= end:
                break
        if window or not done:
            window = window or [block.slice(0, 0)]
            yield Chunk(_join(window, columns, wanted), tuple(window), self._fraction(done, limit, share))

    def _blocks(
        self, columns: Sequence[str] | None, rows: int, wanted: Mapping[str, str]
    ) -> Iterator[tuple[Block, float | None]]:
        """Yield blocks of all files, each with the share of all bytes that is read by then."""
        known = all(reader.size for reader in self.readers)
        total, before = sum(reader.size for reader in self.readers), 0
        for reader in self.readers:
            for number, block in enumerate(reader.blocks(columns, rows)):
                if number == 0:
                    names = dict.fromkeys([*reader.column_names(), *block.table.column_names])
                    require_columns(list(names), wanted, reader.file)
                known = known and block.fraction is not None
                yield block, (before + reader.size * (block.fraction or 0)) / total if known else None
            before += reader.size

    def _fraction(self, done: int, limit: int | None, share: float | None) -> float | None:
        """The limit or the end, whichever is nearer; rows are exact, bytes stand in where their number is unknown."""
        if self.num_rows is not None:
            share = done / self.num_rows if self.num_rows else 1.0
        shares = [part for part in (share, done / limit if limit else None) if part is not None]
        return min(1.0, max(shares)) if shares else None


def _join(blocks: Sequence[Block], columns: Sequence[str] | None, wanted: Mapping[str, str]) -> pa.Table:
    """The window's table; a wanted column that none of its rows has is there, and null."""
    absent = pa.schema([(name, pa.null()) for name in wanted]).empty_table()
    places = [block.locate(0) if len(block) else block.file for block in blocks]
    table = join([*(block.table for block in blocks), absent], [*places, ""])
    # files carry metadata of their writers (pandas, datasets) that no longer holds for the output
    return table.select(table.column_names if columns is None else columns).replace_schema_metadata(None)


def open_source(paths: Sequence[str], *, split: str | None = None) -> Source:
    """Open files, glob patterns, folders, saved datasets and Hub datasets, in this order of `paths`.

    Raises NotFoundError (nothing there), UsageError (suffix, split), InputError (empty or unreadable file) and
    MissingDependencyError (datasets).
    """
    readers = [reader for path in paths for reader in _open(path, split)]
    if split is not None and not any(isinstance(reader, hf.DatasetReader) for reader in readers):
        raise UsageError(f"no split {split!r} in {', '.join(paths)}: only datasets have splits", hint="drop --split")
    return Source(readers)


def _open(path: str, split: str | None) -> list[Reader]:
    if path.startswith("hf:"):
        return [hf.open_hub(path.removeprefix("hf:"), split, path)]
    if os.path.isdir(path):
        if any(os.path.exists(os.path.join(path, marker)) for marker in hf.MARKERS):
            return [hf.open_folder(path, split)]
        return [_open_file(file) for file in _files_under(path)]
    if os.path.exists(path):
        return [_open_file(path)]
    if matches := sorted(filter(os.path.exists, glob.glob(path, recursive=True))):
        # `**` matches folders and the files in them: each file is read once
        return list({reader.file: reader for match in matches for reader in _open(match, split)}.values())
    if re.fullmatch(r"[\w-]+/[\w-]+", path):  # a suffix means a file; `hf:` opens a dataset with a dot in its name
        return [hf.open_hub(path, split, path)]
    raise NotFoundError(f"{path}: no such file or folder", hint="check the path; a Hub dataset is hf:org/name")


def _open_file(file: str) -> Reader:
    for suffix, reader in _READERS.items():
        if file.lower().endswith(suffix):
            return reader(file)
    raise UsageError(f"cannot read {file}: its suffix is none of {', '.join(_READERS)}", hint="convert the file")


def _files_under(folder: str) -> list[str]:
    """Supported files below `folder`, sorted; hidden names (. or _ first) are left out, as Spark and Hive do."""
    found = []
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name[0] not in "._"]
        names = [name for name in files if name[0] not in "._" and name.lower().endswith(tuple(_READERS))]
        found += [os.path.join(place, name) for name in names]
    if not found:
        raise NotFoundError(f"no input files in {folder}; suffixes: {', '.join(_READERS)}", hint="check the folder")
    return sorted(found)
