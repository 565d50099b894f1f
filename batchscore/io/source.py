"""The input as one sequence of units, whatever it is made of.

A unit may span files. It has a fixed number of rows, or fewer where these are long, which bounds the memory; the price
is that no step of the pipeline sees more than one unit. Files without row counts are read through once for each job, to
be divided.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from typing_extensions import Self

from batchscore.errors import BatchscoreError, InputError, UsageError
from batchscore.io import irds
from batchscore.io.block import Block, Reader, listed
from batchscore.io.dialects import dialect_of, tell_apart
from batchscore.io.forms import DialectName, InFormat, Lines
from batchscore.io.hive import add_columns
from batchscore.io.inputs import Input, Skip, find_inputs
from batchscore.io.schema import Shape, is_nested, join, require_columns, require_shape
from batchscore.io.units import Span, Unit, UnitBuilder
from batchscore.io.values import empty_table, storable
from batchscore.media.find import MediaFinder
from batchscore.media.policy import MediaPolicy
from batchscore.types import Faults, offsets_of

# About three units are in memory at once, each as Arrow, as Python strings and as tokens: some ten times this in all.
UNIT_BYTES = 32 << 20
_BY_ITSELF = ("parquet", "jsonl", "dataset")  # formats that jobs were of before there were others


@dataclass(frozen=True, slots=True)
class Chunk:
    """The rows of a unit."""

    table: pa.Table
    blocks: tuple[Block, ...]  # the rows of `table`, file by file
    finders: tuple[MediaFinder, ...] = ()  # for the media of each block

    def location(self, row: int) -> tuple[str, str, int]:
        """(file, "row" or "line", number) of a row; of an empty chunk, its file."""
        for block in self.blocks:
            if row < len(block):
                return block.file, block.counts_in, int(block.numbers[row])
            row -= len(block)
        return self.blocks[-1].file, "row", 0

    def locate(self, row: int) -> str:
        """Where a person finds this row: "pairs.jsonl, line 3"."""
        file, counts_in, number = self.location(row)
        return f"{file}, {counts_in} {number}" if len(self.table) else file

    def faults(self) -> Faults:
        """Rows that could not be read, in row order."""
        starts = offsets_of([len(block) for block in self.blocks]).tolist()
        return {
            start + row: fault
            for block, start in zip(self.blocks, starts[:-1], strict=True)
            for row, fault in block.faults.items()
        }


class Addresses(Protocol):
    """A picklable value by which another process opens the same input."""

    def open(self) -> Source: ...


class Source(Protocol):
    """What is scored, as units of rows: what commands and pipelines know of the input."""

    on_step: Callable[[], None]  # called now and then while `units` and `require_runs` go through all rows

    @property
    def files(self) -> Sequence[str]: ...  # as the user named them; `Span.file` is an index
    @property
    def is_streamed(self) -> bool: ...  # a row is reached only through all rows before it
    @property
    def media(self) -> MediaPolicy: ...  # which media its rows may name
    def addresses(self) -> Addresses: ...
    def fingerprint(self) -> list[dict[str, Any]]: ...  # JSON-able; differs once the input has changed
    def column_names(self) -> list[str]: ...
    def column_type(self, column: str) -> pa.DataType: ...  # null if there is no such column
    def require(self, flags: Mapping[str, str]) -> None: ...
    def require_runs(self, column: str, limit: int | None) -> None: ...
    def units(
        self,
        rows: int,
        *,
        columns: Mapping[str, str] | None = None,
        size: int = UNIT_BYTES,
        group: str | None = None,
        stretch: float = 2,
        limit: int | None = None,
    ) -> Iterable[Unit]: ...
    def read(self, unit: Unit, columns: Sequence[str] | None, shapes: Mapping[str, Shape]) -> Chunk: ...
    def close(self) -> None: ...  # whatever `read` left open

    # of an input that is joined from several
    @property
    def looked_up(self) -> frozenset[str]: ...  # columns that are not of its rows: they are written only where named
    @property
    def is_ready(self) -> bool: ...  # whether `read` has all it needs
    def make_ready(self) -> None: ...  # writes the rest, which other processes find
    def discard(self) -> None: ...  # removes what it wrote for this process alone
    def outline(self) -> Source: ...  # can be read before; a text stands for another and is equal where that is
    def lines(self) -> list[str]: ...  # what a person should know


@dataclass(frozen=True, slots=True)
class FileAddresses:
    """Files and datasets in the order in which they are read."""

    inputs: tuple[Input, ...]
    split: str | None = None  # of datasets
    is_strict: bool = True  # whether a dataset with a single split must call it that
    # without a root, media lie below the folder of the file that names them
    media: MediaPolicy = field(default_factory=MediaPolicy)

    def open(self) -> FileSource:
        """Raises as `open_source`."""
        readers = [file.open(self.split, is_strict=self.is_strict) for file in self.inputs]
        tell_apart(readers)
        return FileSource(self, add_columns(readers, [file.partition for file in self.inputs]))


class WholeRows:
    """What a `Source` has to say of a join if its rows have their texts in them."""

    @property
    def looked_up(self) -> frozenset[str]:
        """Nothing: all columns are of its rows."""
        return frozenset()

    @property
    def is_ready(self) -> bool:
        """Always."""
        return True

    def make_ready(self) -> None:
        """There is nothing to do."""

    def discard(self) -> None:
        """There is nothing to remove."""

    def outline(self) -> Self:
        """The source itself."""
        return self

    def lines(self) -> list[str]:
        """Nothing."""
        return []


class FileSource(WholeRows):
    """Files and datasets that are read one after the other."""

    def __init__(self, addresses: FileAddresses, readers: Sequence[Reader]) -> None:
        self.on_step: Callable[[], None] = lambda: None
        self._addresses = addresses
        self._readers = readers
        self._stamps = [reader.stamp() for reader in readers]
        self._open: int | None = None  # index of the reader that is in use
        self._finders: dict[str | None, MediaFinder] = {}  # by root

    @property
    def files(self) -> list[str]:
        return [reader.file for reader in self._readers]

    @property
    def is_streamed(self) -> bool:
        """Whether a row is reached only through all rows before it, over the network."""
        return any(file.kind == "hub" for file in self._addresses.inputs)

    @property
    def media(self) -> MediaPolicy:
        return self._addresses.media

    def addresses(self) -> FileAddresses:
        return self._addresses

    def fingerprint(self) -> list[dict[str, Any]]:
        """Name, bytes and time of each file, its format unless its suffix always told, and what its folders say."""
        files = zip(self._addresses.inputs, self.files, self._stamps, strict=True)
        return [
            {"name": name, "bytes": size, "modified": modified}
            | ({} if (form := file.dialect or file.form) in _BY_ITSELF else {"format": form})
            | ({"hive": dict(file.partition)} if file.partition else {})
            for file, name, (size, modified) in files
        ]

    def dialect(self) -> DialectName | None:
        """What rows with the columns of the first file are, if another tool writes queries with documents like them."""
        with suppress(BatchscoreError):  # whoever reads the rows is told of it
            return dialect_of(self._readers[0].schema)
        return None

    def column_names(self) -> list[str]:
        """Columns of the first file, as far as its first rows tell."""
        return list(self._schema.names)

    def column_type(self, column: str) -> pa.DataType:
        """Type of a column of the first file, as far as its first rows tell."""
        return self._schema.field(column).type if column in self._schema.names else pa.null()

    @cached_property
    def _schema(self) -> pa.Schema:
        return storable(empty_table(self._readers[0].schema), self.files[0]).schema

    def require(self, flags: Mapping[str, str]) -> None:
        """Raise InputError if the first file lacks a column of `flags` (column -> the option that names it)."""
        require_columns(self.column_names(), flags, self.files[0])

    def units(
        self,
        rows: int,
        *,
        columns: Mapping[str, str] | None = None,
        size: int = UNIT_BYTES,
        group: str | None = None,
        stretch: float = 2,
        limit: int | None = None,
        keep: NDArray[np.bool_] | None = None,
    ) -> list[Unit]:
        """Divide the input into full units, of which the last may have fewer rows; an empty input is one empty unit.

        Args:
            rows: at which a unit is full.
            columns: column -> the option that names it: InputError if one is in no row of a file. Later files are
                checked only here, where all lines are read anyway.
            size: bytes at which a unit is full, where a file says how large its rows are.
            group: a column: runs of equal values in it are not divided.
            stretch: how far a unit may exceed its limits to finish such a run (2 = twice).
            limit: rows in all.
            keep: bool [rows of all files], which rows are read; None: all.
        """
        wanted = {**({} if group is None else {group: "--query-id-column"}), **(columns or {})}
        builder = UnitBuilder(rows, size, 1 if group is None else stretch, sys.maxsize if limit is None else limit)
        wants_more, at = True, 0
        for index, reader in enumerate(self._readers):
            builder.start_file(index, reader.first_number)
            names = reader.schema.names
            missing = {column for column in wanted if column not in names}
            if missing and not reader.is_ragged:
                require_columns(names, wanted, reader.file)
            for steps in reader.steps(group, missing):
                self.on_step()
                missing -= set(steps.columns)
                count = len(steps.ends)
                wants_more = wants_more and builder.add(steps, None if keep is None else keep[at : at + count])
                at += count
                if not (wants_more or missing):  # a key that is missing so far may be on any other line
                    break
            require_columns([*names, *(set(wanted) - set(names) - missing)], wanted, reader.file)
            if not wants_more:
                break
        return builder.units()

    def require_runs(self, column: str, limit: int | None) -> None:
        """Raise InputError if a value of `column` comes back after others: a query's rows must be consecutive.

        Args:
            column: the query's id.
            limit: rows that are looked at.
        """
        seen, last, left = set[int](), object(), sys.maxsize if limit is None else limit
        for reader in self._readers:
            for steps in reader.steps(column):
                self.on_step()
                for row in range(min(len(steps.ends), left)):
                    value = steps.value(row)
                    if value == last:
                        continue
                    last = value
                    # 8 bytes a query; two queries that share a hash (1 in 10^19 pairs) would be refused wrongly
                    if (number := hash(str(value))) in seen:
                        counts_in = "line" if reader.first_number else "row"
                        raise InputError(
                            f"{reader.file}, {counts_in} {steps.numbers[row] - 1}: "
                            "its query came before, among other queries",
                            hint="a listwise model, or a stream, needs a query's rows together: sort them by query",
                        )
                    seen.add(number)
                left -= min(len(steps.ends), left)

    def read(self, unit: Unit, columns: Sequence[str] | None, shapes: Mapping[str, Shape]) -> Chunk:
        """The rows of a unit.

        Args:
            unit: of `units`.
            columns: what to read, in this order; None: all. A column that no row of the unit has is null.
            shapes: what columns must hold; they are there even where all columns are read. Other values are an error
                where the file has types, and else a fault of their row.
        """
        blocks = [self._block(span, columns, shapes) for span in unit.spans]
        return chunk_of(blocks, list(map(self._finder, unit.spans)), columns, shapes)

    def close(self) -> None:
        if self._open is not None:
            self._readers[self._open].close()
        self._open = None

    def _finder(self, span: Span) -> MediaFinder:
        file, root = self._readers[span.file].file, self.media.root
        if root is None and os.path.isfile(file):
            root = os.path.dirname(file) or "."
        if root not in self._finders:
            self._finders[root] = MediaFinder(replace(self.media, root=root))
        return self._finders[root]

    def _block(self, span: Span, columns: Sequence[str] | None, shapes: Mapping[str, Shape]) -> Block:
        reader = self._readers[span.file]
        if self._open != span.file:
            self.close()
            if reader.stamp() != self._stamps[span.file]:
                raise InputError(
                    f"{reader.file} has changed since the job began",
                    hint="finished units are kept: restore the file, or start again with --overwrite",
                )
            self._open = span.file
        return reader.read(span, columns, shapes)


def chunk_of(
    blocks: Sequence[Block],
    finders: Sequence[MediaFinder],
    columns: Sequence[str] | None,
    shapes: Mapping[str, Shape],
) -> Chunk:
    """The rows of blocks as they were read, in types that can be carried; arguments as in `Source.read`.

    Raises InputError for a type that does not fit its column's shape, and for two columns of one name.
    """
    checked = [_checked(block, shapes) for block in blocks]
    return Chunk(_join(checked, columns, shapes), tuple(checked), tuple(finders))


def _checked(block: Block, shapes: Mapping[str, Shape]) -> Block:
    names = block.table.column_names
    if len(set(names)) < len(names):
        twice = max(names, key=names.count)
        leave = "" if twice in shapes else ", or leave them out with --keep-columns"
        raise InputError(f"{block.file} has several columns {twice!r}", hint=f"rename them{leave}")
    location = f"{block.file}, {block.counts_in} {block.numbers[0]}" if len(block) else block.file
    block = replace(block, table=storable(block.table, location))
    for column, shape in shapes.items():
        if column in names:
            if len(block):
                require_shape(block.table.schema.field(column).type, shape, column, location)
            if shape == "documents":
                block = listed(block, column)
    return block


def _join(blocks: Sequence[Block], columns: Sequence[str] | None, shapes: Mapping[str, Shape]) -> pa.Table:
    """The unit's table; a wanted column that none of its rows has is there, and null."""
    absent = pa.schema([(name, pa.null()) for name in dict.fromkeys([*(columns or ()), *shapes])]).empty_table()
    table = join([*(block.table for block in blocks), absent])
    for column, shape in shapes.items():
        kind = table.schema.field(column).type
        if shape == "documents" and not (is_nested(kind) or pa.types.is_null(kind)):
            message = f"{blocks[-1].file}: column {column!r} lists other kinds of documents than the files before"
            raise InputError(message, hint="write all files with strings, or all with structs")
    # files carry metadata of their writers (pandas, datasets) that is not true of the output
    return table.select(table.column_names if columns is None else columns).replace_schema_metadata(None)


def open_source(
    paths: Sequence[str],
    *,
    split: str | None = None,
    is_strict: bool = True,
    hive: bool = True,
    form: InFormat | Lines = "auto",
    part: irds.Kind = "docs",
    skip: Skip = lambda file: False,
    media: MediaPolicy | None = None,
) -> FileSource:
    """Open files, glob patterns, folders, saved datasets and Hub datasets, in this order of `paths`.

    Files for which `skip` is true are left out of folders and of the matches of a pattern. With `hive`, folders below
    those of `paths` that are named `key=value` are columns. `form` is the format of all files; with "auto", suffix and
    content tell that of each. `part` is what is read of a dataset of ir_datasets. Unless `is_strict`, files have no
    `split`, and the only one of a dataset may have any name. `media` says which media rows may name; without a root,
    they lie below the folder of the file that names them.

    Raises NotFoundError (nothing there), UsageError (suffix, split), InputError (empty or unreadable file) and
    MissingDependencyError (datasets).
    """
    inputs = tuple(replace(file, part=part) for path in paths for file in find_inputs(path, skip, hive=hive, form=form))
    if is_strict and split is not None and all(file.kind == "file" for file in inputs):
        raise UsageError(f"no split {split!r} in {', '.join(paths)}: only datasets have splits", hint="drop --split")
    addresses = FileAddresses(inputs, split, is_strict, media=media or MediaPolicy())
    source = addresses.open()
    if form == "auto" and (dialect := source.dialect()):
        return replace(addresses, inputs=tuple(file.in_dialect(dialect) for file in inputs)).open()
    return source
