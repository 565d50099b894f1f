"""The input as one sequence of units, whatever files it is made of.

A unit spans files and holds a number of rows, fewer where these are long. Memory is bounded by it, and the price is
that no step of the pipeline sees more than one. Files that have no row counts are read through once a job to be cut.
"""

from __future__ import annotations

import glob
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import pyarrow as pa

from batchscore.errors import InputError, NotFoundError, UsageError
from batchscore.io import hf, jsonl, parquet
from batchscore.io.block import Block, Reader
from batchscore.io.schema import Shape, is_nested, join, require_columns, require_shape, without_views
from batchscore.io.storage import is_url, list_files, local_path
from batchscore.io.units import Span, Unit, UnitBuilder
from batchscore.types import Fault, offsets_of

_UNIT_BYTES = 32 << 20  # some three units are held at once, as Arrow, as Python and as tokens

_READERS: dict[str, Callable[[str], Reader]] = {
    **dict.fromkeys(parquet.SUFFIXES, parquet.ParquetReader),
    **dict.fromkeys(jsonl.SUFFIXES, jsonl.JsonlReader),
}


@dataclass(frozen=True, slots=True)
class Chunk:
    """The rows of a unit."""

    table: pa.Table
    blocks: tuple[Block, ...]  # the rows of `table`, file by file

    def place(self, row: int) -> tuple[str, str, int]:
        """(file, "row" or "line", number) of a row; of an empty chunk, its file."""
        for block in self.blocks:
            if row < len(block):
                return block.file, block.unit, int(block.positions[row])
            row -= len(block)
        return self.blocks[-1].file, "row", 0

    def locate(self, row: int) -> str:
        """Where a person finds this row: "pairs.jsonl, line 3"."""
        file, unit, number = self.place(row)
        return f"{file}, {unit} {number}" if len(self.table) else file

    def faults(self) -> list[Fault]:
        """Rows that could not be read."""
        starts = offsets_of([len(block) for block in self.blocks]).tolist()
        return [
            replace(fault, row=start + fault.row)
            for block, start in zip(self.blocks, starts[:-1], strict=True)
            for fault in block.faults
        ]


class Source:
    """Files read one after the other."""

    def __init__(self, readers: Sequence[Reader]) -> None:
        self.readers = readers
        self.on_step: Callable[[], None] = lambda: None  # called now and then while all rows are gone through
        self._open: int | None = None  # the file that is being read
        self._checked: set[tuple[int, str]] = set()  # file and column
        self._types: dict[str, pa.DataType] = {}

    def fingerprint(self) -> list[dict[str, str | int | None]]:
        """What tells that the input has changed since: name, bytes and time of each file."""
        return [{"name": file.file, "bytes": file.size, "modified": file.modified} for file in self.readers]

    def column_names(self) -> list[str]:
        """Columns of the first file."""
        return list(self._names)

    @cached_property
    def _names(self) -> Sequence[str]:
        return self.readers[0].column_names()

    def column_type(self, column: str) -> pa.DataType:
        """Type of a column of the first file, as far as its first rows tell."""
        if column not in self._types:
            self._types[column] = self.readers[0].head([column]).schema.field(column).type
        return self._types[column]

    def require(self, flags: Mapping[str, str]) -> None:
        """Raise InputError if the first file lacks a column of `flags` (column -> the option that names it)."""
        require_columns(self.column_names(), flags, self.readers[0].file)

    def units(
        self,
        rows: int,
        *,
        size: int = _UNIT_BYTES,
        group: str | None = None,
        stretch: float = 2,
        limit: int | None = None,
    ) -> list[Unit]:
        """Cut the input into units that are full, the last one less so; an empty input is one empty unit.

        Args:
            rows: at which a unit is full.
            size: bytes at which it is full, as far as files tell them.
            group: a column: runs of equal values in it are not divided.
            stretch: how much fuller than full a unit may be that ends with such a run; a longer run is divided.
            limit: rows in all.
        """
        builder = UnitBuilder(rows, size, 1 if group is None else stretch, sys.maxsize if limit is None else limit)
        for number, reader in enumerate(self.readers):
            builder.start_file(number, reader.first_place)
            if group is not None and number:
                _require(reader, {group: "--query-id-column"})
            for steps in reader.steps(group):
                self.on_step()
                if not builder.add(steps):
                    return builder.units()
        return builder.units()

    def read(
        self, unit: Unit, columns: Sequence[str] | None, flags: Mapping[str, str], shapes: Mapping[str, Shape]
    ) -> Chunk:
        """The rows of a unit.

        Args:
            unit: of `units`.
            columns: what to read, in this order; None: all.
            flags: column -> the option that names it, for the error when a file lacks it; these are required even
                where all columns are read.
            shapes: what columns must hold. Anything else is an error where the file has types, and else a fault of
                its row.
        """
        wanted = {**dict.fromkeys(columns or (), "--keep-columns"), **flags}
        blocks = [self._block(span, columns, wanted, shapes) for span in unit.spans]
        return Chunk(_join(blocks, columns, wanted, shapes), tuple(blocks))

    def close(self) -> None:
        """Close what `read` left open."""
        if self._open is not None:
            self.readers[self._open].close()
        self._open = None

    def _block(
        self,
        span: Span,
        columns: Sequence[str] | None,
        wanted: Mapping[str, str],
        shapes: Mapping[str, Shape],
    ) -> Block:
        if self._open != span.file:
            self.close()
            self.readers[span.file].require_unchanged()
            self._open = span.file
        reader = self.readers[span.file]
        unchecked = {column: flag for column, flag in wanted.items() if (span.file, column) not in self._checked}
        if unchecked:
            _require(reader, unchecked)
            self._checked |= {(span.file, column) for column in unchecked}
        block = reader.read(span, columns, shapes)
        names = block.table.column_names
        if len(set(names)) < len(names):
            twice = max(names, key=names.count)
            raise InputError(f"{reader.file} has several columns {twice!r}", hint="rename them, or pass --keep-columns")
        if len(block):
            for column, shape in shapes.items():
                if column in names:
                    require_shape(block.table.schema.field(column).type, shape, column, block.locate(0))
        return block


def _require(reader: Reader, wanted: Mapping[str, str]) -> None:
    """Raise InputError if a file lacks a column; a key that the first line lacks may be on any other."""
    names = reader.column_names()
    later = [column for column in wanted if column not in names and reader.has_column(column)]
    require_columns([*names, *later], wanted, reader.file)


def _join(
    blocks: Sequence[Block], columns: Sequence[str] | None, wanted: Mapping[str, str], shapes: Mapping[str, Shape]
) -> pa.Table:
    """The window's table; a wanted column that none of its rows has is there, and null."""
    absent = pa.schema([(name, pa.null()) for name in wanted]).empty_table()
    table = join([*(without_views(block.table) for block in blocks), absent])
    for column, shape in shapes.items():
        kind = table.schema.field(column).type
        if shape == "documents" and not (is_nested(kind) or pa.types.is_null(kind)):
            message = f"{blocks[-1].file}: column {column!r} lists other kinds of documents than the files before"
            raise InputError(message, hint="write all files with strings, or all with structs")
    # files carry metadata of their writers (pandas, datasets) that no longer holds for the output
    return table.select(table.column_names if columns is None else columns).replace_schema_metadata(None)


def open_source(
    paths: Sequence[str], *, split: str | None = None, skip: Callable[[str], bool] = lambda file: False
) -> Source:
    """Open files, glob patterns, folders, saved datasets and Hub datasets, in this order of `paths`.

    Files for which `skip` holds are left out of folders and of what a pattern matches.

    Raises NotFoundError (nothing there), UsageError (suffix, split), InputError (empty or unreadable file) and
    MissingDependencyError (datasets).
    """
    readers = [reader for path in paths for reader in _open(path, split, skip)]
    if split is not None and not any(isinstance(reader, hf.DatasetReader) for reader in readers):
        raise UsageError(f"no split {split!r} in {', '.join(paths)}: only datasets have splits", hint="drop --split")
    return Source(readers)


def _open(path: str, split: str | None, skip: Callable[[str], bool]) -> list[Reader]:
    path = local_path(path)
    if is_url(path):
        return [_open_file(file) for file in _supported(list_files(path), path, skip)]
    if path.startswith("hf:"):
        return [hf.open_hub(path.removeprefix("hf:"), split, path)]
    if os.path.isdir(path):
        if any(os.path.exists(os.path.join(path, marker)) for marker in hf.MARKERS):
            return [hf.open_folder(path, split)]
        return [_open_file(file) for file in _files_under(path, skip)]
    if os.path.exists(path):
        return [_open_file(path)]
    if matches := sorted(
        match for match in glob.glob(path, recursive=True) if os.path.exists(match) and not skip(match)
    ):
        # `**` matches folders and the files in them: each file is read once
        return list({reader.file: reader for match in matches for reader in _open(match, split, skip)}.values())
    if re.fullmatch(r"[\w-]+/[\w-]+", path):  # a suffix means a file; `hf:` opens a dataset with a dot in its name
        return [hf.open_hub(path, split, path)]
    raise NotFoundError(f"{path}: no such file or folder", hint="check the path; a Hub dataset is hf:org/name")


def _open_file(file: str) -> Reader:
    for suffix, reader in _READERS.items():
        if file.lower().endswith(suffix):
            return reader(file)
    raise UsageError(f"cannot read {file}: its suffix is none of {', '.join(_READERS)}", hint="convert the file")


def _files_under(folder: str, skip: Callable[[str], bool]) -> list[str]:
    """Supported files below `folder`, sorted; hidden names (. or _ first) are left out, as Spark and Hive do."""
    found = []
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name[0] not in "._"]
        names = [name for name in files if name[0] not in "._" and name.lower().endswith(tuple(_READERS))]
        found += [os.path.join(place, name) for name in names]
    return sorted(_supported(found, folder, skip))


def _supported(files: Sequence[str], folder: str, skip: Callable[[str], bool]) -> list[str]:
    """Those with a suffix that can be read and not to be skipped; NotFoundError if there are none."""
    if files == [folder]:
        return [folder]  # named outright: its suffix is refused by name
    found = [file for file in files if file.lower().endswith(tuple(_READERS)) and not skip(file)]
    if not found:
        raise NotFoundError(f"no input files in {folder}; suffixes: {', '.join(_READERS)}", hint="check the folder")
    return found
