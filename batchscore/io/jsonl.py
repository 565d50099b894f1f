"""JSON Lines, plain or compressed: one object a line, read with the standard library.

pyarrow's own JSON reader is faster, but turns strings that look like dates into timestamps and does not name the line
that is broken. A line that cannot be read is a row of nulls and a fault.
"""

from __future__ import annotations

import codecs
import io
import itertools
import json
import os
import re
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, suppress
from typing import Any

import numpy as np
import pyarrow as pa

from batchscore.errors import InputError
from batchscore.io.block import Block, InputFile
from batchscore.io.schema import TEXT_FIELDS, Shape, json_text, text_field
from batchscore.io.storage import open_file
from batchscore.io.units import Span, Steps
from batchscore.types import Fault, offsets_of

_COMPRESSIONS = {"": None, ".gz": "gzip", ".zst": "zstd"}
SUFFIXES = tuple(kind + packing for kind in (".jsonl", ".ndjson") for packing in _COMPRESSIONS)

_BUFFER_BYTES = 1 << 20
_HEAD_LINES = 1000  # looked through for a column's type
_LINES = 4096  # held at once while units are cut
_LINES_BYTES = 8 << 20  # of either
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_UNSTORABLE = (pa.ArrowException, OverflowError)


def compression(path: str) -> str | None:
    """pyarrow's name of the compression that the suffix of `path` asks for."""
    return _COMPRESSIONS.get(os.path.splitext(path.lower())[1])


class JsonlReader(InputFile):
    """One JSON Lines file. Positions are bytes of the unpacked text."""

    first_place = 1

    def __init__(self, file: str) -> None:
        super().__init__(file)
        self._stream: io.BufferedReader | None = None
        self._at = 0  # position of the open stream

    def column_names(self) -> list[str]:
        """The keys of the first object; later lines may have more."""
        return list(next(self._readable())[1])

    def has_column(self, column: str) -> bool:
        """Whether any line has this key."""
        spellings = {json.dumps(column, ensure_ascii=escape).encode(errors="replace") for escape in (True, False)}
        with closing(self._open()) as stream:
            for _, line in self._lines(stream):
                if any(spelling in line for spelling in spellings):
                    with suppress(_UnreadableError):
                        if column in _parse(line.removeprefix(codecs.BOM_UTF8)):
                            return True
        return False

    def head(self, columns: Sequence[str]) -> pa.Table:
        """The first lines, of each column the values whose kind is the most frequent."""
        lines, size = [], 0
        for line, value in itertools.islice(self._readable(), _HEAD_LINES):
            lines.append(value)
            if (size := size + len(line)) > _LINES_BYTES:
                break
        return pa.table({name: _of_one_kind([line.get(name) for line in lines]) for name in columns})

    def steps(self, group: str | None) -> Iterator[Steps]:
        """All lines that are not blank."""
        position, begun, ends, places, lines = 0, 0, array("q"), array("q"), list[bytes]()

        def taken() -> Steps:
            held = lines[:]
            sizes = np.diff(np.array(ends), prepend=begun)
            return Steps(np.array(ends), np.array(places), sizes, lambda row: self._value(held[row], group))

        with closing(self._open()) as stream:
            for number, line in self._lines(stream):
                position += len(line)
                if line.strip():
                    ends.append(position)
                    places.append(number + 1)
                    if group is not None:
                        lines.append(line)
                if len(ends) == _LINES or (lines and position - begun > _LINES_BYTES):
                    yield taken()
                    begun, ends, places, lines = position, array("q"), array("q"), []
        if ends:
            yield taken()

    def read(self, span: Span, columns: Sequence[str] | None, shapes: Mapping[str, Shape]) -> Block:
        """The lines of a span, over the keys that occur in them; a key that a line lacks is null there.

        In columns of `shapes` anything else is a fault of its row; other columns hold any values.
        """
        content = self._bytes(span)
        lines, values = array("q"), list[dict[str, Any]]()
        faults: list[Fault] = []
        for number, line in enumerate(content.split(b"\n"), start=span.place):
            if not line.strip():
                continue
            try:
                value = _parse(line.removeprefix(codecs.BOM_UTF8) if number == 1 else line)
            except _UnreadableError as error:
                faults.append(Fault(len(lines), None, "not-json", str(error), error.hint))
                value = {}
            lines.append(number)
            values.append(value)
        names = dict.fromkeys(key for value in values for key in value if columns is None or key in columns)
        read = {name: _column(name, values, shapes.get(name), faults) for name in names}
        table = pa.table(read) if read else _bare(len(lines))
        return Block(table, self.file, lines, "line", _first_of_each_row(faults))

    def close(self) -> None:
        """Close the file."""
        if self._stream is not None:
            self._stream.close()
        self._stream = None

    def _bytes(self, span: Span) -> bytes:
        """The text of a span; the stream stays open behind it."""
        if self._stream is None or self._at > span.start:
            self.close()
            self._stream, self._at = self._open(), 0
        try:
            if compression(self.file) is None:
                self._stream.seek(span.start)
            else:  # a packed file has to be unpacked up to there
                while self._at < span.start:
                    self._at += len(self._stream.read(min(_BUFFER_BYTES, span.start - self._at)) or self._cut_short())
            content = self._stream.read(span.stop - span.start)
        except (pa.ArrowException, OSError, ValueError) as error:
            self.close()
            raise _fault(self.file, span.place, f"cannot be read: {error}", _AGAIN) from error
        self._at = span.stop
        return content if len(content) == span.stop - span.start else self._cut_short()

    def _cut_short(self) -> bytes:
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
        return io.BufferedReader(pa.input_stream(raw, compression=packing), _BUFFER_BYTES)

    def _lines(self, stream: io.BufferedReader) -> Iterator[tuple[int, bytes]]:
        number = 0
        try:
            for number, line in enumerate(stream, start=1):
                yield number, line
        except (pa.ArrowException, OSError) as error:
            raise _fault(self.file, number + 1, f"cannot be read: {error}", _AGAIN) from error

    def _readable(self) -> Iterator[tuple[bytes, dict[str, Any]]]:
        """The lines that can be read, and their objects; if there is none, the fault of the first line is raised."""
        fault: InputError | None = None
        found = False
        with closing(self._open()) as stream:
            for number, line in self._lines(stream):
                if not line.strip():
                    continue
                try:
                    value = _parse(line.removeprefix(codecs.BOM_UTF8) if number == 1 else line)
                except _UnreadableError as error:
                    fault = fault or _fault(self.file, number, str(error), error.hint)
                    continue
                found = True
                yield line, value
        if not found:
            raise fault or InputError(f"{self.file} has only blank lines", hint="leave the file out, or write it again")

    def _value(self, line: bytes, key: str | None) -> Any:
        try:
            return _parse(line.removeprefix(codecs.BOM_UTF8)).get(str(key))
        except _UnreadableError:
            return object()  # equal to nothing


class _UnreadableError(Exception):
    """Why a line is no object."""

    def __init__(self, what: str, hint: str | None = None) -> None:
        super().__init__(what)
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
    except (ValueError, RecursionError) as error:  # more digits or more brackets than Python reads
        raise _UnreadableError(f"not readable: {error}") from error
    if not isinstance(value, dict):
        raise _UnreadableError(f"holds a JSON {_NAMES[type(value)]}, not an object", _ONE_A_LINE)
    return value


def _fault(file: str, line: int, what: str, hint: str | None = None) -> InputError:
    return InputError(f"{file}, line {line}: {what}", hint=hint)


_AGAIN = "write or download the file again"
_ONE_A_LINE = "JSON Lines holds one object a line"
_NAMES = {
    dict: "object", list: "array", str: "string", int: "number", float: "number", bool: "boolean", type(None): "null"
}  # fmt: skip


def _bare(rows: int) -> pa.Table:
    """So many rows without a column, from lines none of which has a wanted key."""
    return pa.Table.from_batches([pa.RecordBatch.from_struct_array(pa.array([{}] * rows, pa.struct([])))])


def _of_one_kind(values: Sequence[Any]) -> pa.Array:
    """The values of the kind that is the most frequent, null for others."""
    kinds = Counter(type(value) for value in values if value is not None)
    kind = max(kinds, key=kinds.__getitem__, default=None)
    same = [value if type(value) is kind else None for value in values]
    return _documents(same) if kind is list else _carried(same)


def _column(name: str, rows: list[dict[str, Any]], shape: Shape | None, faults: list[Fault]) -> pa.Array:
    """A column of the rows; where it has a shape, a value of another becomes null and a fault of its row."""
    values = [row.get(name) for row in rows]
    if shape is None:
        return _carried(values)
    kind, code, what, hint = _SHAPES[shape]
    for row, value in enumerate(values):
        if value is not None and not isinstance(value, kind):
            faults.append(Fault(row, name, code, f"is a JSON {_NAMES[type(value)]}, not {what}", hint))
            values[row] = None
    return pa.array(values, pa.string()) if shape == "text" else _documents(values)


_SHAPES: dict[Shape, tuple[type, str, str, str]] = {
    "text": (str, "not-text", "text", "convert it to a string, or name another column"),
    "documents": (list, "not-list", "a list", "an empty list means no documents"),
}


def _carried(values: Sequence[Any]) -> pa.Array:
    """Values in the type that Arrow finds for them all; what has none, or what Parquet does not hold, becomes text."""
    try:
        found = pa.array(values)
    except _UNSTORABLE:
        return pa.array(map(json_text, values), pa.string())
    if found.type == pa.struct([]):  # null goes with the fields that objects may have elsewhere
        return pa.nulls(len(values))
    return pa.array(map(json_text, values), pa.string()) if _has_bare_struct(found.type) else found


def _has_bare_struct(kind: pa.DataType) -> bool:
    fields = [kind.field(place) for place in range(kind.num_fields)]
    return kind == pa.struct([]) or any(_has_bare_struct(field.type) for field in fields)


def _documents(lists: Sequence[list[Any] | None]) -> pa.Array:
    """Lists of structs with a text; strings among them are texts, and what else is none has a null there."""
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


def _first_of_each_row(faults: Sequence[Fault]) -> list[Fault]:
    """At most one fault a row, in row order."""
    first: dict[int, Fault] = {}
    for fault in faults:
        first.setdefault(fault.row, fault)
    return [first[row] for row in sorted(first)]
