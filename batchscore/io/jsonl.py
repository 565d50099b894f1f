"""JSON Lines, plain or compressed: one object a line, read with the standard library.

pyarrow's own JSON reader is faster, but it turns strings that look like dates into timestamps and does not say which
line is broken. A line that cannot be read is a row of nulls with a fault.
"""

from __future__ import annotations

import codecs
import gzip
import io
import itertools
import json
import os
import re
import zlib
from array import array
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from batchscore.errors import InputError
from batchscore.io.block import Block, Stamp, unequal_lists
from batchscore.io.schema import TEXT_FIELDS, Shape, text_field
from batchscore.io.storage import open_file, stat_file
from batchscore.io.units import Span, Steps
from batchscore.io.values import json_text
from batchscore.media.content import MEDIA_NAMES
from batchscore.types import Fault, Faults, offsets_of

_COMPRESSIONS = {"": None, ".gz": "gzip", ".zst": "zstd"}
SUFFIXES = tuple(kind + packing for kind in (".jsonl", ".ndjson") for packing in _COMPRESSIONS)

_BUFFER_BYTES = 1 << 20  # unpacked at once on the way to a unit
_HEAD_LINES = 1000  # read for the schema: enough to outvote a few odd rows, and a few milliseconds to parse
_LINES = 4096  # in memory at once while units are divided, with `group`; a stop request is checked that often
_LINES_BYTES = 8 << 20  # a limit on both, so that long lines do not fill the memory
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_UNREADABLE = (pa.ArrowException, OSError, EOFError, zlib.error)  # from files and from what unpacks them
_UNSTORABLE = (pa.ArrowException, OverflowError)


def compression(path: str) -> str | None:
    """pyarrow's name of the compression that the suffix of `path` asks for."""
    return _COMPRESSIONS.get(os.path.splitext(path.lower())[1])


class JsonlReader:
    """One JSON Lines file. Positions are bytes of the unpacked text."""

    first_number = 1
    is_ragged = True

    def __init__(self, file: str) -> None:
        self.file = file
        self._stream: io.BufferedReader | None = None
        self._at = 0  # position of the open stream

    def stamp(self) -> Stamp:
        """Size and time of the file."""
        return stat_file(self.file)

    @cached_property
    def schema(self) -> pa.Schema:
        """The keys of the first lines, each with the type that most of its values have."""
        lines, size = [], 0
        for line, value in itertools.islice(self._readable(), _HEAD_LINES):
            lines.append(value)
            if (size := size + len(line)) > _LINES_BYTES:
                break
        names = dict.fromkeys(name for value in lines for name in value)
        return pa.schema([(name, _of_one_kind([value.get(name) for value in lines]).type) for name in names])

    def steps(self, group: str | None, sparse: Collection[str] = ()) -> Iterator[Steps]:
        """All lines that are not blank."""
        position, start, ends, numbers, lines = 0, 0, array("q"), array("q"), list[bytes]()
        keys = _Keys(sparse)
        with closing(self._open()) as stream:
            for number, line in self._lines(stream):
                position += len(line)
                if line.strip():
                    ends.append(position)
                    numbers.append(number + 1)
                    keys.look_in(line)
                    if group is not None:
                        lines.append(line)
                if len(ends) == _LINES or (lines and position - start > _LINES_BYTES):
                    yield _steps(start, ends, numbers, lines, group, keys.present)
                    start, ends, numbers, lines = position, array("q"), array("q"), []
        if ends:
            yield _steps(start, ends, numbers, lines, group, keys.present)

    def read(self, span: Span, columns: Sequence[str] | None, shapes: Mapping[str, Shape]) -> Block:
        """The lines of a span, over the keys that occur in them; a key that a line lacks is null there.

        In columns of `shapes` any other value is a fault of its row; other columns hold any values.
        """
        content = self._bytes(span)
        lines, values = array("q"), list[dict[str, Any]]()
        faults: Faults = {}
        for number, line in enumerate(content.split(b"\n"), start=span.first_number):
            if not line.strip():
                continue
            try:
                value = _parse(line.removeprefix(codecs.BOM_UTF8) if number == 1 else line)
            except _UnreadableError as error:
                faults[len(lines)] = Fault("not-json", str(error), error.hint)
                value = {}
            lines.append(number)
            values.append(value)
        names = dict.fromkeys(key for value in values for key in value if columns is None or key in columns)
        kept: dict[str, Sequence[Any]] = {}
        arrays = {name: _column(name, values, shapes.get(name), faults, kept) for name in names}
        table = pa.table(arrays) if arrays else _bare(len(lines))
        return Block(table, self.file, lines, "line", dict(sorted(faults.items())), kept)

    def close(self) -> None:
        """Close the file."""
        if self._stream is not None:
            self._stream.close()
        self._stream = None

    def _bytes(self, span: Span) -> bytes:
        """The text of a span; the stream stays open after it."""
        if self._stream is None or self._at > span.start:
            self.close()
            self._stream, self._at = self._open(), 0
        try:
            if compression(self.file) is None:
                self._stream.seek(span.start)
            else:  # a packed file has to be unpacked up to there
                while self._at < span.start:
                    self._at += len(self._stream.read(min(_BUFFER_BYTES, span.start - self._at)) or self._too_short())
            content = self._stream.read(span.stop - span.start)
        except (*_UNREADABLE, ValueError) as error:
            self.close()
            raise _fault(self.file, span.first_number, f"cannot be read: {error}", _AGAIN) from error
        self._at = span.stop
        return content if len(content) == span.stop - span.start else self._too_short()

    def _too_short(self) -> bytes:
        raise InputError(f"{self.file} is shorter than when the job began", hint=_AGAIN)

    def _open(self) -> io.BufferedReader:
        try:
            raw = open_file(self.file)
        except OSError as error:
            hint = "check that it is still there"
            raise InputError(f"{self.file} cannot be read: {error.strerror}", hint=hint) from error
        packing = compression(self.file)
        if packing is None:
            return raw if isinstance(raw, io.BufferedReader) else io.BufferedReader(raw, _BUFFER_BYTES)
        if packing == "gzip":
            # not Arrow's, which refuses the zero bytes with which tapes and block devices fill up the last block
            unpacked = gzip.GzipFile(fileobj=raw)
            unpacked.myfileobj = raw  # is closed with it
            return io.BufferedReader(unpacked, _BUFFER_BYTES)
        return io.BufferedReader(pa.input_stream(raw, compression=packing), _BUFFER_BYTES)

    def _lines(self, stream: io.BufferedReader) -> Iterator[tuple[int, bytes]]:
        number = 0
        try:
            for number, line in enumerate(stream, start=1):
                yield number, line
        except _UNREADABLE as error:
            raise _fault(self.file, number + 1, f"cannot be read: {error}", _AGAIN) from error

    def _readable(self) -> Iterator[tuple[bytes, dict[str, Any]]]:
        """Lines that can be read, and their objects. If there are none, raises what is wrong with the first line."""
        fault: InputError | None = None
        is_readable = False
        with closing(self._open()) as stream:
            for number, line in self._lines(stream):
                if not line.strip():
                    continue
                try:
                    value = _parse(line.removeprefix(codecs.BOM_UTF8) if number == 1 else line)
                except _UnreadableError as error:
                    fault = fault or _fault(self.file, number, str(error), error.hint)
                    continue
                is_readable = True
                yield line, value
        if not is_readable:
            raise fault or InputError(f"{self.file} has only blank lines", hint="leave the file out, or write it again")


class _Keys:
    """Which of some keys turn up in lines, without parsing lines that cannot have them."""

    def __init__(self, keys: Collection[str]) -> None:
        self.present: set[str] = set()
        self._spellings = {  # a key may be written as it is or with escapes
            key: {json.dumps(key, ensure_ascii=escape).encode(errors="replace") for escape in (True, False)}
            for key in keys
        }

    def look_in(self, line: bytes) -> None:
        candidates = [key for key, spellings in self._spellings.items() if any(text in line for text in spellings)]
        if candidates:
            with suppress(_UnreadableError):
                value = _parse(line.removeprefix(codecs.BOM_UTF8))
                for key in filter(value.__contains__, candidates):
                    self.present.add(key)
                    del self._spellings[key]


def _steps(
    start: int, ends: array[int], numbers: array[int], lines: Sequence[bytes], group: str | None, keys: set[str]
) -> Steps:
    sizes = np.diff(np.array(ends), prepend=start)
    return Steps(np.array(ends), np.array(numbers), sizes, lambda row: _value(lines[row], group), frozenset(keys))


def _value(line: bytes, key: str | None) -> object:
    try:
        return _parse(line.removeprefix(codecs.BOM_UTF8)).get(str(key))
    except _UnreadableError:
        return object()  # equal to nothing


class _UnreadableError(Exception):
    """Why a line is not an object."""

    def __init__(self, reason: str, hint: str | None = None) -> None:
        super().__init__(reason)
        self.hint = hint


def _parse(line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line.decode())  # json.loads of bytes would guess UTF-16 and let surrogates pass
        if _SURROGATE.search(line):
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeDecodeError as error:
        raise _UnreadableError(f"not UTF-8 (byte {error.start + 1})", "convert the file with iconv") from error
    except UnicodeEncodeError as error:
        raise _UnreadableError("half of a surrogate pair cannot be stored", "write both halves") from error
    except json.JSONDecodeError as error:
        raise _UnreadableError(f"not JSON: {error.msg} (column {error.colno})", _ONE_A_LINE) from error
    except (ValueError, RecursionError) as error:  # more digits or deeper brackets than Python reads
        raise _UnreadableError(f"not readable: {error}") from error
    if not isinstance(value, dict):
        raise _UnreadableError(f"holds a JSON {_NAMES[type(value)]}, not an object", _ONE_A_LINE)
    return value


def _fault(file: str, line: int, reason: str, hint: str | None = None) -> InputError:
    return InputError(f"{file}, line {line}: {reason}", hint=hint)


_AGAIN = "write or download the file again"
_ONE_A_LINE = "JSON Lines holds one object a line"
_NAMES = {
    dict: "object", list: "array", str: "string", int: "number", float: "number", bool: "boolean", type(None): "null"
}  # fmt: skip


def _bare(rows: int) -> pa.Table:
    """Rows without a column, from lines none of which has a wanted key."""
    return pa.Table.from_batches([pa.RecordBatch.from_struct_array(pa.array([{}] * rows, pa.struct([])))])


def _of_one_kind(values: Sequence[Any]) -> pa.Array:
    """The values of the most frequent kind, null for others."""
    kinds = Counter(type(value) for value in values if value is not None)
    kind = max(kinds, key=kinds.__getitem__, default=None)
    same = [value if type(value) is kind else None for value in values]
    return _documents(same) if kind is list else _carried(same)


def _column(
    name: str, rows: list[dict[str, Any]], shape: Shape | None, faults: Faults, kept: dict[str, Sequence[Any]]
) -> pa.Array:
    """A column of the rows; a value that is not of `shape` becomes null and a fault of its row.

    Values that may have media are added to `kept` as they are: JSON has more kinds of them in a column than Arrow.
    """
    values = [row.get(name) for row in rows]
    if shape is None:
        return _carried(values)
    if shape == "documents":
        values = [_listed(name, row, value, faults) for row, value in enumerate(values)]
    kind, code, wanted, hint = _SHAPES[shape]
    for row, value in enumerate(values):
        if value is not None and not isinstance(value, kind):
            message = f"is a JSON {_NAMES[type(value)]}, not {wanted}"
            faults.setdefault(row, Fault(code, message, hint, column=name))
            values[row] = None
    if shape == "documents":
        if any(_may_hold_media(document) for documents in values for document in documents or ()):
            kept[name] = values
        return _documents(values)
    if all(value is None or isinstance(value, str) for value in values):
        return pa.array(values, pa.string())
    kept[name] = values
    return _carried(values)


def _may_hold_media(document: Any) -> bool:
    if isinstance(document, dict):
        return isinstance(document.get("content"), list) or not document.keys().isdisjoint(MEDIA_NAMES)
    return isinstance(document, list)


def _listed(name: str, row: int, value: Any, faults: Faults) -> Any:
    """An object of arrays as an array of objects; null and a fault of its row where these differ in length."""
    if not (value and isinstance(value, dict) and all(isinstance(part, list) for part in value.values())):
        return value
    if value.keys() == {"content"} and any(isinstance(part, dict) for part in value["content"]):
        return [value]  # one document, in parts
    if len({len(part) for part in value.values()}) > 1:
        faults.setdefault(row, unequal_lists(name))
        return None
    return [dict(zip(value, parts, strict=True)) for parts in zip(*value.values(), strict=True)]


_TEXT_HINT = "convert it to a string, or name another column"
_SHAPES: dict[Shape, tuple[type | tuple[type, ...], str, str, str]] = {
    "text": (str, "not-text", "text", _TEXT_HINT),
    "cell": ((str, list, dict), "not-text", "text", _TEXT_HINT),
    "media": ((str, list, dict), "not-media", "the path or URL of an image or video", "name another column"),
    "documents": (list, "not-list", "a list", "an empty list means no documents"),
}


def _carried(values: Sequence[Any]) -> pa.Array:
    """Values in the type that Arrow finds for all of them; where there is none that Parquet can hold, as JSON text."""
    try:
        column = pa.array(values)
    except _UNSTORABLE:
        return pa.array(map(json_text, values), pa.string())
    if column.type == pa.struct([]):  # null joins with the fields that objects may have elsewhere
        return pa.nulls(len(values))
    return pa.array(map(json_text, values), pa.string()) if _has_bare_struct(column.type) else column


def _has_bare_struct(kind: pa.DataType) -> bool:
    fields = [kind.field(index) for index in range(kind.num_fields)]
    return kind == pa.struct([]) or any(_has_bare_struct(field.type) for field in fields)


def _documents(lists: Sequence[list[Any] | None]) -> pa.Array:
    """Lists of structs with a text. Strings become structs with that text; anything else has a null for it."""
    flat = [document for documents in lists for document in documents or ()]
    fields = dict.fromkeys(name for document in flat if isinstance(document, dict) for name in document)
    text = text_field(list(fields)) or "text"
    if not fields or any(isinstance(document, str) for document in flat):
        fields.setdefault(text)
    columns = {}
    for name in fields:
        values = [
            document.get(name) if isinstance(document, dict) else document if name == text else None
            for document in flat
        ]
        if name in TEXT_FIELDS:
            columns[name] = pa.array([value if isinstance(value, str) else None for value in values], pa.string())
        else:
            columns[name] = _carried(values)
    offsets = pa.array(offsets_of([len(documents or ()) for documents in lists]))
    missing = pa.array([documents is None for documents in lists])
    structs = pa.StructArray.from_arrays(list(columns.values()), list(columns))
    return pa.LargeListArray.from_arrays(offsets, structs, mask=missing)
