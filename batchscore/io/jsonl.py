"""JSON Lines: one object a line, read with the standard library.

pyarrow's own JSON reader is faster, but it turns strings that look like dates into timestamps and does not say which
line is broken. A line that cannot be read is a row of nulls with a fault.
"""

from __future__ import annotations

import codecs
import itertools
import json
import re
from array import array
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from functools import cached_property, partial
from typing import Any

import pyarrow as pa

from batchscore.errors import InputError
from batchscore.io.block import Block
from batchscore.io.lines import ROWS_BYTES, Line, LineFile, fault_at, packed, row_steps
from batchscore.io.objects import UnreadableError, as_object, object_columns, object_schema
from batchscore.io.schema import Shape
from batchscore.io.units import Span, Steps
from batchscore.types import Fault, Faults

SUFFIXES = packed(".jsonl", ".ndjson")

_HEAD_LINES = 1000  # read for the schema: enough to outvote a few odd rows, and a few milliseconds to parse
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_ONE_A_LINE = "JSON Lines holds one object a line"


class JsonlReader(LineFile):
    """One JSON Lines file."""

    is_ragged = True

    @cached_property
    def schema(self) -> pa.Schema:
        """The keys of the first lines, each with the type that most of its values have."""
        values, size = [], 0
        for line, value in itertools.islice(self._readable(), _HEAD_LINES):
            values.append(value)
            if (size := size + len(line)) > ROWS_BYTES:
                break
        return object_schema(values)

    def steps(self, group: str | None, sparse: Collection[str] = ()) -> Iterator[Steps]:
        """All lines that are not blank."""
        keys = _Keys(sparse)
        yield from row_steps(self._rows(keys), None if group is None else partial(_value, key=group), keys.present)

    def _rows(self, keys: _Keys) -> Iterator[tuple[int, int, bytes]]:
        position = 0
        with closing(self.lines()) as lines:
            for number, line in lines:
                position += len(line)
                if line.strip():
                    keys.look_in(line)
                    yield position, number + 1, line

    def read(self, span: Span, columns: Sequence[str] | None, shapes: Mapping[str, Shape]) -> Block:
        """The lines of a span, over the keys that occur in them; a key that a line lacks is null there.

        In columns of `shapes` any other value is a fault of its row; other columns hold any values.
        """
        lines = enumerate(self.text_of(span).split(b"\n"), start=span.first_number)
        return block_of(self.file, lines, columns, shapes)

    def _readable(self) -> Iterator[tuple[bytes, dict[str, Any]]]:
        """Lines that can be read, and their objects. If there are none, raises what is wrong with the first line."""
        fault: InputError | None = None
        is_readable = False
        with closing(self.lines()) as lines:
            for number, line in lines:
                if not line.strip():
                    continue
                try:
                    value = parsed(number, line)
                except UnreadableError as error:
                    fault = fault or fault_at(self.file, number, str(error), error.hint)
                    continue
                is_readable = True
                yield line, value
        if not is_readable:
            raise fault or InputError(f"{self.file} has only blank lines", hint="leave the file out, or write it again")


def block_of(file: str, numbered: Iterable[Line], columns: Sequence[str] | None, shapes: Mapping[str, Shape]) -> Block:
    """Lines with their numbers as rows; as `JsonlReader.read`."""
    lines, values = array("q"), list[dict[str, Any]]()
    faults: Faults = {}
    for number, line in numbered:
        if not line.strip():
            continue
        try:
            value = parsed(number, line)
        except UnreadableError as error:
            faults[len(lines)] = Fault("not-json", str(error), error.hint)
            value = {}
        lines.append(number)
        values.append(value)
    table, kept = object_columns(values, columns, shapes, faults)
    return Block(table, file, lines, "line", dict(sorted(faults.items())), kept)


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
            with suppress(UnreadableError):
                value = _parse(line.removeprefix(codecs.BOM_UTF8))
                for key in filter(value.__contains__, candidates):
                    self.present.add(key)
                    del self._spellings[key]


def _value(line: bytes, key: str) -> object:
    try:
        return _parse(line.removeprefix(codecs.BOM_UTF8)).get(key)
    except UnreadableError:
        return object()  # equal to nothing


def parsed(number: int, line: bytes) -> dict[str, Any]:
    """The object of a line, which may follow a byte order mark if it is the first; UnreadableError if it is none."""
    return _parse(line.removeprefix(codecs.BOM_UTF8) if number == 1 else line)


def _parse(line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line.decode())  # json.loads of bytes would guess UTF-16 and let surrogates pass
    except UnicodeDecodeError as error:
        raise UnreadableError(f"not UTF-8 (byte {error.start + 1})", "convert the file with iconv") from error
    except json.JSONDecodeError as error:
        raise UnreadableError(f"not JSON: {error.msg} (column {error.colno})", _ONE_A_LINE) from error
    except (ValueError, RecursionError) as error:  # more digits or deeper brackets than Python reads
        raise UnreadableError(f"not readable: {error}") from error
    return as_object(value, may_have_surrogates=bool(_SURROGATE.search(line)), hint=_ONE_A_LINE)
