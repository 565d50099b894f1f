"""Lines of a few fields without header or quotes: the files of MS MARCO, and TREC's runs and judgements.

The place of a field says what it is. A line with more or fewer fields, or with a word where a number belongs, is a row
of nulls with a fault.
"""

from __future__ import annotations

import codecs
import re
from array import array
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import repeat
from math import isfinite

import pyarrow as pa

from batchscore.io.block import Block
from batchscore.io.lines import Line, LineFile, fault_at, packed, row_steps
from batchscore.io.schema import Shape
from batchscore.io.units import Span, Steps
from batchscore.io.values import bare_table
from batchscore.types import Fault, Faults

RUN_SUFFIXES, QRELS_SUFFIXES = packed(".trec", ".run"), packed(".qrels")

_WHOLE = re.compile(r"[+-]?[0-9]{1,18}")
_DECIMAL = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_NUMBERS = {"rank": _WHOLE, "relevance": _WHOLE, "score": _DECIMAL}
_IDS = ("id", "query_id", "document_id")
_KINDS = {"rank": "whole number", "relevance": "whole number", "score": "number"}
_MSMARCO = "they have 2 (id, text), 3 (query, document, rank) or 4 fields, separated by tabs; pass another --in-format"
_TYPES = {"rank": pa.int64(), "relevance": pa.int64(), "score": pa.float64()}  # of other fields: text


@dataclass(frozen=True, slots=True)
class Layout:
    """What the fields of each line are."""

    columns: tuple[str, ...]  # "": of no use
    separator: bytes | None  # None: any blanks

    def fields(self, line: bytes) -> list[bytes]:
        """The fields of a line, however many it has."""
        return line.rstrip(b"\r\n").split(self.separator)


TREC_RUN = Layout(("query_id", "", "document_id", "rank", "score", "run_tag"), None)
TREC_QRELS = Layout(("query_id", "", "document_id", "relevance"), None)
_TEXTS = Layout(("id", "text"), b"\t")
_RUN = Layout(("query_id", "document_id", "rank"), b"\t")
_SCORES = Layout(("query_id", "document_id", "score"), b"\t")
_CANDIDATES = Layout(("query_id", "document_id", "query", "document"), b"\t")


def msmarco_layout(line: bytes) -> Layout | None:
    """What kind of MS MARCO's files this is the first line of: texts, a run, candidates with texts, or judgements."""
    fields = line.rstrip(b"\r\n").split(b"\t")
    if len(fields) == 4 and not (fields[1] in (b"0", b"Q0") and _is(_WHOLE, fields[3])):
        return _CANDIDATES
    if len(fields) == 3:
        return _RUN if _is(_WHOLE, fields[2]) else _SCORES if _is(_DECIMAL, fields[2]) else None
    if len(fields) == 2:
        return _TEXTS
    return TREC_QRELS if len(line.split()) == 4 else None


def is_msmarco(file: str) -> bool:
    """Whether the first line of a .tsv is no header but one of MS MARCO's: with numbers where these have ids.

    So are judgements with any ids, which no header looks like. InputError if it is neither.
    """
    reader = LineFile(file)
    reader.stamp()
    number, line = reader.first_line()
    line = line.removeprefix(codecs.BOM_UTF8)
    if not any(field.isdigit() for field in line.rstrip(b"\r\n").split(b"\t")):
        return False
    if layout := msmarco_layout(line):
        ids = [field for name, field in zip(layout.columns, layout.fields(line), strict=True) if name in _IDS]
        if layout is TREC_QRELS or all(field.isdigit() for field in ids):
            return True
    message = "has numbers where a header has names, and is no line of MS MARCO's files"
    raise fault_at(file, number, message, "pass --in-format tsv or msmarco")


def _is(kind: re.Pattern[str], field: bytes) -> bool:
    return kind.fullmatch(field.decode(errors="replace")) is not None


def msmarco_reader(file: str) -> FieldsReader:
    """A reader of the kind that the first line tells; InputError if it is none of them."""
    number, line = LineFile(file).first_line()
    layout = msmarco_layout(line.removeprefix(codecs.BOM_UTF8))
    if layout is None:
        message = f"{len(line.split())} fields are no file of MS MARCO"
        raise fault_at(file, number, message, _MSMARCO)
    return FieldsReader(file, layout)


class FieldsReader(LineFile):
    """One file of such lines."""

    is_ragged = False

    def __init__(self, file: str, layout: Layout) -> None:
        super().__init__(file)
        self._layout = layout

    @cached_property
    def schema(self) -> pa.Schema:
        """The columns of the layout."""
        return pa.schema([(name, _TYPES.get(name, pa.string())) for name in self._layout.columns if name])

    def steps(self, group: str | None, sparse: Collection[str] = ()) -> Iterator[Steps]:
        """All lines that are not blank."""
        column = None if group is None else self._layout.columns.index(group)
        with closing(self.lines()) as lines:
            yield from row_steps(self._rows(lines), None if column is None else partial(self._value, column))

    def _rows(self, lines: Iterable[Line]) -> Iterator[tuple[int, int, bytes]]:
        position = 0
        for number, line in lines:
            position += len(line)
            if line.strip():
                yield position, number + 1, line

    def _value(self, column: int, line: bytes) -> object:
        fields = self._layout.fields(line.removeprefix(codecs.BOM_UTF8))
        return fields[column] if column < len(fields) else None

    def read(self, span: Span, columns: Sequence[str] | None, shapes: Mapping[str, Shape]) -> Block:
        """The lines of a span; a broken one is null, with a fault."""
        numbers, values = array("q"), list[Sequence[bytes | None]]()
        faults: Faults = {}
        for number, line in enumerate(self.text_of(span).split(b"\n"), start=span.first_number):
            if not line.strip():
                continue
            fields = self._layout.fields(line.removeprefix(codecs.BOM_UTF8) if number == 1 else line)
            if fault := self._fault_of(fields):
                faults[len(numbers)] = fault
            numbers.append(number)
            values.append([None] * len(self._layout.columns) if fault else fields)
        found = dict(zip(self._layout.columns, zip(*values, strict=True) if values else repeat(()), strict=False))
        arrays = {
            field.name: pa.array(found[field.name], pa.binary()).cast(pa.string()).cast(field.type)
            for field in self.schema
            if columns is None or field.name in columns
        }
        return Block(pa.table(arrays) if arrays else bare_table(len(numbers)), self.file, numbers, "line", faults)

    def _fault_of(self, fields: Sequence[bytes]) -> Fault | None:
        """What is wrong with a line of these fields."""
        names = self._layout.columns
        if len(fields) != len(names):
            message = f"has {len(fields)} field{'s' * (len(fields) != 1)}, not {len(names)}"
            return Fault("not-fields", message, f"its fields are {', '.join(name or 'one unused' for name in names)}")
        for name, field in zip(names, fields, strict=True):
            try:
                text = field.decode()
            except UnicodeDecodeError:
                return Fault("not-utf8", "is not UTF-8", "convert the file with iconv")
            if name in _NUMBERS and not (_NUMBERS[name].fullmatch(text) and isfinite(float(text))):
                return Fault("not-fields", f"{name} {text!r} is no {_KINDS[name]}", "write it in digits", name)
        return None
