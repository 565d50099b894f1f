"""Columns of queries and documents of any kind -> cells: texts, images, videos, and lists of content parts.

Text columns take the fast road of `io/texts.py`, and what is written in them is never looked at for paths. All others
become Python values row by row, since a medium costs far more than that: its header is read here. A row whose medium
cannot be used has a fault; its neighbours do not notice.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pyarrow as pa

from batchscore.io.block import Block
from batchscore.io.schema import Shape, is_plain
from batchscore.io.source import Chunk
from batchscore.io.texts import read_texts
from batchscore.media.content import find_images, find_video, joined, read_cell
from batchscore.media.faults import MediaError
from batchscore.media.find import MediaFinder
from batchscore.types import Cell, Cells, Faults


@dataclass(frozen=True, slots=True)
class CellColumns:
    """The columns of one side that together are its cell."""

    texts: tuple[str, ...]  # joined; a single one may hold cells of any kind
    image: str | None = None
    video: str | None = None

    @property
    def has_media(self) -> bool:
        """Whether a column is there for media alone."""
        return self.image is not None or self.video is not None

    @classmethod
    def chosen(
        cls, texts: Sequence[str], image: str | None, video: str | None, names: Sequence[str], *, is_usual: bool
    ) -> CellColumns:
        """Columns as options name them; beside media, texts that nobody named (`is_usual`) need not be there."""
        is_absent = is_usual and (image or video) and not set(texts) <= set(names)
        return cls(() if is_absent else tuple(texts), image, video)

    def flags(self, side: str = "") -> dict[str, str]:
        """The columns for media, and the option that names each; `side` is "query-", "document-" or nothing."""
        named = {self.image: f"--{side}image-column", self.video: f"--{side}video-column"}
        return {column: flag for column, flag in named.items() if column is not None}

    def lines(self, side: str) -> list[str]:
        """What a person should know of how these columns are read; nothing of a single one."""
        if not self.has_media and len(self.texts) < 2:
            return []
        texts = " and ".join(self.texts) + (", joined by a space" if len(self.texts) > 1 else "")
        media = [f"{kind}s in {column}" for kind, column in (("image", self.image), ("video", self.video)) if column]
        return [f"{side:8} {'; '.join(filter(None, [texts, *media]))}"]

    @property
    def shapes(self) -> dict[str, Shape]:
        """What each column must hold."""
        text: Shape = "text" if self.has_media or len(self.texts) > 1 else "cell"
        media = [column for column in (self.image, self.video) if column is not None]
        return {**dict.fromkeys(self.texts, text), **dict.fromkeys(media, "media")}


def read_cells(chunk: Chunk, columns: CellColumns, faults: Faults) -> Cells:
    """One cell a row; rows that have none are added to `faults`."""
    if not columns.has_media and all(_is_plain(block, columns.texts) for block in chunk.blocks):
        return read_texts(chunk, columns.texts, faults)
    named = columns.texts[-1] if columns.texts else next(iter(columns.shapes))
    cells = Collected(lambda row: named, faults)
    for block, finder in zip(chunk.blocks, chunk.finders, strict=True):
        for values in zip(*(column_values(block, column) for column in columns.shapes), strict=True):
            cells.add(partial(_cell, dict(zip(columns.shapes, values, strict=True)), columns, finder))
    return cells.encoded()


class Collected:
    """Cells of rows one after the other; they are read in threads, since servers and disks take their time.

    Args:
        name: row -> what a fault calls the column.
        faults: rows without a cell are added.
    """

    def __init__(self, name: Callable[[int], str], faults: Faults) -> None:
        self._name, self._faults = name, faults
        self._reads = list[Callable[[], Cell]]()

    def add(self, read: Callable[[], Cell]) -> None:
        """The next row's cell, which `read` returns, or raises MediaError instead."""
        self._reads.append(read)

    def encoded(self) -> Cells:
        """All rows; those with a fault have an empty text."""
        with ThreadPoolExecutor(_THREADS, "batchscore-media") as threads:
            shares = threads.map(self._share, range(_THREADS))
        cells: list[Cell] = [""] * len(self._reads)
        for first, share in enumerate(shares):
            cells[first::_THREADS] = share
        return Cells.of(cells)

    def _share(self, first: int) -> list[Cell]:
        """The cells of every so many rows."""
        return [self._read(row) for row in range(first, len(self._reads), _THREADS)]

    def _read(self, row: int) -> Cell:
        if row not in self._faults:
            try:
                return self._reads[row]()
            except MediaError as error:
                self._faults[row] = replace(error.fault, column=error.fault.column or self._name(row))
        return ""


_THREADS = 8


def _is_plain(block: Block, columns: Sequence[str]) -> bool:
    """Whether columns hold nothing but texts."""
    kinds = [block.table.schema.field(name).type for name in columns if name in block.table.column_names]
    return block.values.keys().isdisjoint(columns) and all(map(is_plain, kinds))


def _cell(values: Mapping[str, Any], columns: CellColumns, finder: MediaFinder) -> Cell:
    """The cell of a row with these values."""
    if not columns.has_media and len(columns.texts) == 1:
        return readable_cell(values[columns.texts[0]], finder)
    media = []
    for column, find in ((columns.image, find_images), (columns.video, find_video)):
        try:
            media += find(_readable(values.get(str(column))), finder)
        except MediaError as error:
            error.fault = replace(error.fault, column=column)
            raise
    return joined([_readable(values[column]) for column in columns.texts], media)


def readable_cell(value: Any, finder: MediaFinder, fields: Sequence[str] = ("text",)) -> Cell:
    """As `read_cell`, of a value of `column_values`."""
    return read_cell(_readable(value), finder, fields)


@dataclass(frozen=True, slots=True)
class _Unreadable:
    """What stands for a value that Python does not take."""

    code: str
    message: str
    hint: str


_NOT_UTF8 = _Unreadable("not-utf8", "is not UTF-8", "convert the text to UTF-8")
_NOT_JSON = _Unreadable("not-json", "is not JSON", "write it again, or give it the type of a string")


def _readable(value: Any) -> Any:
    if isinstance(value, _Unreadable):
        raise MediaError(value.code, value.message, value.hint)
    return value


def column_values(block: Block, column: str) -> Sequence[Any]:
    """[rows], a column as Python values, null where it is not there; bytes stay bytes, and JSON is parsed."""
    if column in block.values:
        return block.values[column]
    if column not in block.table.column_names:
        return [None] * len(block)
    return _python_values(block.table[column])


def _python_values(column: pa.ChunkedArray) -> list[Any]:
    if isinstance(column.type, pa.BaseExtensionType):
        stored = pa.chunked_array([chunk.storage for chunk in column.chunks], column.type.storage_type)
        values = _python_values(stored)
        return list(map(_parsed, values)) if column.type.extension_name == "arrow.json" else values
    try:
        values = column.to_pylist()
    except UnicodeDecodeError:
        values = list(map(_one_value, column))
    return values


def _parsed(value: Any) -> Any:
    try:
        return json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        return _NOT_JSON


def _one_value(value: pa.Scalar) -> Any:
    try:
        return value.as_py()
    except UnicodeDecodeError:
        return _NOT_UTF8
