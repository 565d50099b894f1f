"""A JSON array of objects, which is held in memory as a whole, as the text that it is.

Rows are parsed again when they are read: parsed they would take some ten times as much. The price is a walk through the
array in each process that reads it. JSON Lines needs neither.
"""

from __future__ import annotations

import codecs
import json
import re
import shlex
from array import array
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from batchscore.errors import InputError
from batchscore.io.block import Block, Stamp
from batchscore.io.lines import AGAIN, LineFile, fault_at, packed
from batchscore.io.objects import UnreadableError, as_object, kind_name, object_columns, object_schema
from batchscore.io.schema import Shape
from batchscore.io.units import Span, Steps
from batchscore.types import Fault, Faults

SUFFIXES = packed(".json")

_HEAD_ROWS = 1000  # read for the schema
_BLANKS = re.compile(r"[ \t\r\n]*")
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_WANTED = "what is read is an array of objects, [{...}, {...}], or JSON Lines"
_DECODER = json.JSONDecoder()


def is_array(file: str) -> bool:
    """Whether a .json is no JSON Lines, whose first line is a whole object: an array, or what is neither.

    An object by itself counts as neither if it has lists and no query: it is wrapped around the rows.
    """
    reader = LineFile(file)
    reader.stamp()
    with closing(reader.lines()) as numbered:
        lines = (line for _, line in numbered if line.strip())
        first, more = next(lines, b"").removeprefix(codecs.BOM_UTF8), next(lines, None)
    if first.lstrip().startswith(b"["):  # may be all there is: it is read once
        return True
    try:
        value = json.loads(first)
    except (ValueError, RecursionError):
        return True
    is_wrapper = more is None and isinstance(value, dict) and "query" not in value
    return not isinstance(value, dict) or (is_wrapper and any(isinstance(part, list) for part in value.values()))


@dataclass(frozen=True, slots=True)
class _Elements:
    text: str
    starts: array[int]  # [rows], where each begins in the text
    ends: array[int]


class JsonArrayReader:
    """One file with a JSON array. Positions are numbers of rows."""

    first_number = 0
    is_ragged = False

    def __init__(self, file: str) -> None:
        self.file = file
        self._content = LineFile(file)
        self._held: _Elements | None = None

    def stamp(self) -> Stamp:
        """Size and time of the file."""
        return self._content.stamp()

    @cached_property
    def schema(self) -> pa.Schema:
        """The keys of all rows, each with the type that most of its values in the first rows have."""
        rows, names, fault = list[dict[str, Any]](), dict[str, None](), None
        for number in range(len(self._elements().starts)):
            try:
                row = self._row(number)
            except UnreadableError as error:
                fault = fault or InputError(f"{self.file}, row {number}: {error}", hint=error.hint)
                continue
            names.update(dict.fromkeys(row))
            if len(rows) < _HEAD_ROWS:
                rows.append(row)
        if fault is not None and not rows:
            raise fault
        return object_schema(rows, list(names))

    def steps(self, group: str | None, sparse: Collection[str] = ()) -> Iterator[Steps]:
        """All rows at once."""
        elements = self._elements()
        numbers = np.arange(1, len(elements.starts) + 1)
        sizes = np.subtract(elements.ends, elements.starts)
        yield Steps(numbers, numbers, sizes, lambda row: self._value(row, group))

    def read(self, span: Span, columns: Sequence[str] | None, shapes: Mapping[str, Shape]) -> Block:
        """The rows of a span, over the keys that occur in them, as of JSON Lines."""
        values, faults = list[dict[str, Any]](), Faults()
        for number in range(span.start, span.stop):
            try:
                value = self._row(number)
            except UnreadableError as error:
                faults[len(values)] = Fault("not-json", str(error), error.hint)
                value = {}
            values.append(value)
        table, kept = object_columns(values, columns, shapes, faults)
        return Block(table, self.file, range(span.start, span.stop), "row", dict(sorted(faults.items())), kept)

    def close(self) -> None:
        """Let go of the text."""
        self._held = None

    def _elements(self) -> _Elements:
        self._held = self._held or _walked(self._text(), self.file)
        return self._held

    def _text(self) -> str:
        content = b"".join(line for _, line in self._content.lines())
        try:
            return content.removeprefix(codecs.BOM_UTF8).decode()
        except UnicodeDecodeError as error:
            line = content.count(b"\n", 0, error.start) + 1
            raise fault_at(self.file, line, f"not UTF-8 (byte {error.start + 1})", "convert it with iconv") from error

    def _row(self, number: int) -> dict[str, Any]:
        elements = self._elements()
        start, end = elements.starts[number], elements.ends[number]
        value = _DECODER.raw_decode(elements.text, start)[0]
        may_have_surrogates = _SURROGATE.search(elements.text, start, end) is not None
        return as_object(value, may_have_surrogates=may_have_surrogates, hint=_WANTED)

    def _value(self, number: int, key: str | None) -> object:
        try:
            return self._row(number).get(str(key))
        except UnreadableError:
            return object()  # equal to nothing


def _walked(text: str, file: str) -> _Elements:
    """Where the elements are; InputError with line and column for what is no array."""
    starts, ends = array("q"), array("q")
    at = _skip(text, 0)
    if text[at : at + 1] != "[":
        raise _no_array(text, file)
    at = _skip(text, at + 1)
    is_over = text[at : at + 1] == "]"
    while not is_over:
        try:
            end = _DECODER.raw_decode(text, at)[1]
        except json.JSONDecodeError as error:
            raise _broken(file, error) from error
        except (ValueError, RecursionError) as error:  # more digits or deeper brackets than Python reads
            raise InputError(f"{file}, row {len(starts)}: not readable: {error}", hint=_WANTED) from error
        starts.append(at)
        ends.append(end)
        at = _skip(text, end)
        if text[at : at + 1] not in ("]", ","):
            raise _broken(file, json.JSONDecodeError("Expecting ',' or ']'", text, at))
        is_over = text[at] == "]"
        at = _skip(text, at + 1)
    if at < len(text) and starts:
        raise _broken(file, json.JSONDecodeError("Extra data after the array", text, at))
    return _Elements(text, starts, ends)


def _skip(text: str, at: int) -> int:
    """Where the next thing begins that is no blank."""
    return _BLANKS.match(text, at).end()  # type: ignore[union-attr]  # it matches nothing too


def _broken(file: str, error: json.JSONDecodeError) -> InputError:
    return fault_at(file, error.lineno, f"not JSON: {error.msg} (column {error.colno})", AGAIN)


def _no_array(text: str, file: str) -> InputError:
    """What is wrong with a file that does not begin as an array."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        return _broken(file, error)
    except (ValueError, RecursionError) as error:
        return InputError(f"{file}: not readable: {error}", hint=_WANTED)
    lists = [key for key, part in value.items() if isinstance(part, list)] if isinstance(value, dict) else []
    hint = f"take its list out: jq .{lists[0]} {shlex.quote(file)} > rows.json" if len(lists) == 1 else _WANTED
    return InputError(f"{file} holds a JSON {kind_name(value)}, not an array of objects", hint=hint)
