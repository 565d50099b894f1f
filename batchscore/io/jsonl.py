"""JSON Lines, plain or compressed: one object a line, read with the standard library.

pyarrow's own JSON reader is faster, but turns strings that look like dates into timestamps and does not name the line
that is broken.
"""

from __future__ import annotations

import bisect
import codecs
import io
import itertools
import json
import os
import re
from array import array
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import pyarrow as pa

from batchscore.errors import InputError
from batchscore.io.block import Block, LocalFile
from batchscore.io.schema import KEEP_HINT

_COMPRESSIONS = {"": None, ".gz": "gzip", ".zst": "zstd"}
SUFFIXES = tuple(kind + packing for kind in (".jsonl", ".ndjson") for packing in _COMPRESSIONS)

_BUFFER_BYTES = 1 << 20
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_UNSTORABLE = (pa.ArrowException, OverflowError)


def compression(path: str) -> str | None:
    """pyarrow's name of the compression that the suffix of `path` asks for."""
    return _COMPRESSIONS.get(os.path.splitext(path.lower())[1])


class JsonlReader(LocalFile):
    """One JSON Lines file."""

    def column_names(self) -> list[str]:
        """The keys of the first object; later lines may have more."""
        with open(self.file, "rb") as raw, self._unpacked(raw) as stream:
            _, first = next(self._objects(stream))
            return list(first)

    def num_rows(self) -> None:
        """Unknown before the file is read."""

    def blocks(self, columns: Sequence[str] | None, rows: int) -> Iterator[Block]:
        """Tables of at most `rows` rows over the keys that occur in them; a key that a line lacks is null there."""
        with open(self.file, "rb") as raw, self._unpacked(raw) as stream:
            objects = self._objects(stream)
            while window := list(itertools.islice(objects, rows)):
                lines = array("q", [line for line, _ in window])
                table = self._table([value for _, value in window], lines, columns)
                # the position before decompression: all that is known of how much is left
                yield Block(table, self.file, lines, "line", raw.tell() / self.size)

    def _unpacked(self, raw: BinaryIO) -> io.BufferedReader:
        return io.BufferedReader(pa.input_stream(raw, compression=compression(self.file)), _BUFFER_BYTES)

    def _objects(self, stream: io.BufferedReader) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield (line number, object), blank lines left out."""
        blank = True
        for number, line in self._lines(stream):
            if line.strip():
                blank = False
                yield number, self._parse(number, line)
        if blank:
            raise InputError(f"{self.file} has only blank lines", hint="leave the file out, or write it again")

    def _lines(self, stream: io.BufferedReader) -> Iterator[tuple[int, bytes]]:
        number = 0
        try:
            for number, line in enumerate(stream, start=1):
                yield number, line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
        except (pa.ArrowException, OSError) as error:
            raise self._fault(number + 1, f"cannot be read: {error}", "write or download the file again") from error

    def _parse(self, number: int, line: bytes) -> dict[str, Any]:
        try:
            value = json.loads(line.decode())  # json.loads of bytes would guess UTF-16 and let surrogates pass
            if _SURROGATE.search(line):
                json.dumps(value, ensure_ascii=False).encode()
        except UnicodeDecodeError as error:
            raise self._fault(number, f"not UTF-8 (byte {error.start + 1})", "convert the file with iconv") from error
        except UnicodeEncodeError as error:
            raise self._fault(number, "half of a surrogate pair cannot be stored", "write both halves") from error
        except json.JSONDecodeError as error:
            raise self._fault(number, f"not JSON: {error.msg} (column {error.colno})", _ONE_A_LINE) from error
        except (ValueError, RecursionError) as error:  # more digits or more brackets than Python reads
            raise self._fault(number, f"not readable: {error}") from error
        if not isinstance(value, dict):
            raise self._fault(number, f"holds a JSON {_NAMES[type(value)]}, not an object", _ONE_A_LINE)
        return value

    def _table(self, values: list[dict[str, Any]], lines: Sequence[int], columns: Sequence[str] | None) -> pa.Table:
        names = dict.fromkeys(key for value in values for key in value if columns is None or key in columns)
        return pa.table({name: self._column(name, [value.get(name) for value in values], lines) for name in names})

    def _column(self, name: str, values: list[Any], lines: Sequence[int]) -> pa.Array:
        try:
            return pa.array(values)
        except _UNSTORABLE as error:
            first = _first_misfit(values)
            raise self._fault(lines[first], f"column {name!r} {_misfit(values, first)}", KEEP_HINT) from error

    def _fault(self, line: int, what: str, hint: str | None = None) -> InputError:
        return InputError(f"{self.file}, line {line}: {what}", hint=hint)


_ONE_A_LINE = "JSON Lines holds one object a line"
_NAMES = {list: "array", str: "string", int: "number", float: "number", bool: "boolean", type(None): "null"}


def _first_misfit(values: list[Any]) -> int:
    """Index of the first value with no type in common with those before; bisected, as every longer prefix fails too."""
    return bisect.bisect_left(range(len(values)), True, key=lambda last: not _fits(values[: last + 1]))


def _fits(values: list[Any]) -> bool:
    try:
        pa.array(values)
    except _UNSTORABLE:
        return False
    return True


def _misfit(values: list[Any], first: int) -> str:
    try:
        return f"is {pa.array(values[first : first + 1]).type}, and {pa.array(values[:first]).type} on the lines before"
    except _UNSTORABLE as error:
        return f"cannot be stored: {error}"
