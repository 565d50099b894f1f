"""Columns from the names of folders: of `lang=en/part.parquet`, every row has `en` in its column `lang`.

Hive, Spark, pyarrow and polars name the folders of a dataset so, and do not repeat the column in the files. A file that
has such a column itself keeps its own values. Those libraries would take the folder's, and a row could lose what its
file says of it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from urllib.parse import unquote

import pyarrow as pa

from batchscore.errors import InputError
from batchscore.io.block import Block, Reader, Stamp
from batchscore.io.schema import Shape
from batchscore.io.units import Span, Steps

Partition = tuple[tuple[str, str | None], ...]  # column and value of each folder, the outermost first

_NULL = "__HIVE_DEFAULT_PARTITION__"


def partition_of(folders: str) -> Partition:
    """The columns that folders name, `a=1/b=2`; of the same column twice, the outer one. InputError: not UTF-8."""
    values: dict[str, str | None] = {}
    for folder in folders.split("/"):
        name, equals, value = folder.partition("=")
        if name and equals:
            values.setdefault(_text(name, folders), None if value == _NULL else _text(value, folders))
    return tuple(values.items())


def _text(escaped: str, folders: str) -> str:
    try:
        text = unquote(escaped, errors="strict")
        text.encode()
    except UnicodeError as error:
        hint = "rename the folder, or leave the columns of folders out with --no-hive"
        raise InputError(f"{folders.strip('/')}: a folder's name is not UTF-8", hint=hint) from error
    return text


def add_columns(readers: Sequence[Reader], partitions: Sequence[Partition]) -> list[Reader]:
    """The readers with the columns of their folders: whole numbers where all files have such, else text.

    A file outside of all folders of a column has null there.
    """
    rows = [dict(partition) for partition in partitions]
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {name: _typed([row.get(name) for row in rows]) for name in names}
    if not columns:
        return list(readers)
    return [
        HiveReader(reader, {name: column[row] for name, column in columns.items()})
        for row, reader in enumerate(readers)
    ]


def _typed(values: list[str | None]) -> pa.Array:
    texts = pa.array(values, pa.string())
    try:
        return texts.cast(pa.int64()) if texts.null_count < len(texts) else texts
    except pa.ArrowInvalid:
        return texts


class HiveReader:
    """A file with the columns of its folders, all after its own."""

    def __init__(self, reader: Reader, values: Mapping[str, pa.Scalar]) -> None:
        self.file, self.first_number, self.is_ragged = reader.file, reader.first_number, reader.is_ragged
        self._reader = reader
        self._values = values

    @cached_property
    def _added(self) -> dict[str, pa.Scalar]:
        own = self._reader.schema.names
        return {name: value for name, value in self._values.items() if name not in own}

    @cached_property
    def schema(self) -> pa.Schema:
        """That of the file, and the columns of its folders."""
        return pa.schema([*self._reader.schema, *((name, value.type) for name, value in self._added.items())])

    def stamp(self) -> Stamp:
        """That of the file."""
        return self._reader.stamp()

    def steps(self, group: str | None, sparse: Collection[str] = ()) -> Iterator[Steps]:
        """Those of the file, which has one value in a column of its folders."""
        if group not in self._added:
            yield from self._reader.steps(group, sparse)
            return
        value = self._added[group].as_py()
        for steps in self._reader.steps(None, sparse):
            yield replace(steps, value=lambda row: value)

    def read(self, span: Span, columns: Sequence[str] | None, shapes: Mapping[str, Shape]) -> Block:
        """The rows of the file, and the values of its folders."""
        added = self._added
        own = None if columns is None else [name for name in columns if name not in added]
        block = self._reader.read(span, own, {name: shape for name, shape in shapes.items() if name not in added})
        # a later line may have a key that the first ones lack: the column is that of the folder all the same
        table = block.table.drop_columns([name for name in block.table.column_names if name in added])
        for name, value in added.items():
            if columns is None or name in columns:
                column = pa.repeat(value, span.rows)
                # Arrow may have lost the length of a table without columns
                table = table.append_column(name, column) if table.num_columns else pa.table({name: column})
        return replace(block, table=table)

    def close(self) -> None:
        """Close the file."""
        self._reader.close()
