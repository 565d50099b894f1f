"""Lines of a few fields without header or quotes: the files of MS MARCO, and TREC's runs and judgements.

The place of a field says what it is. A line with more or fewer fields, or with a word where a number belongs, is a row
of nulls with a fault. Lines in which nothing is odd are read by Arrow, several times as fast.
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

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

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
_BLANKS = np.frombuffer(b" \t\n\r\v\f", np.uint8)  # of which one begins a blank line
_IDS = ("id", "query_id", "document_id")
_KINDS = {"rank": "whole number", "relevance": "whole number", "score": "number"}
_MSMARCO = "they have 2 (id, text), 3 (query, document, rank) or 4 fields, separated by tabs; pass another --in-format"
_TYPES = {"rank": pa.int64(), "relevance": pa.int64(), "score": pa.float64()}  # of other fields: text


def _typed(texts: pa.Array | pa.ChunkedArray, field: pa.Field) -> pa.Array | pa.ChunkedArray:
    """Fields as their column has them."""
    return texts if field.type == pa.string() else pc.utf8_ltrim(texts, "+").cast(field.type)


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

    A judgement may have any ids, since no header looks like one. InputError if it is neither.
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
        if group is None:
            yield from self._counted()
            return
        column = self._layout.columns.index(group)
        with closing(self.lines()) as lines:
            yield from row_steps(self._rows(lines), partial(self._value, column))

    def _counted(self) -> Iterator[Steps]:
        """The steps of all rows, from where their lines end."""
        position, last = 0, 0  # the end of the block before, and of the last row
        with closing(self.blocks()) as blocks:
            for number, content in blocks:
                ends = np.flatnonzero(np.frombuffer(content, np.uint8) == ord("\n")) + 1
                ends = ends if content.endswith(b"\n") else np.append(ends, len(content))
                starts = np.append(0, ends[:-1])
                spaced = np.flatnonzero(np.isin(np.frombuffer(content, np.uint8)[starts], _BLANKS))
                blank = [line for line in spaced.tolist() if not content[starts[line] : ends[line]].strip()]
                rows = np.delete(np.arange(len(ends)), blank)
                if len(rows):
                    ends = position + ends[rows]
                    yield Steps(ends, number + rows + 1, np.diff(ends, prepend=last), lambda row: None)
                    last = int(ends[-1])
                position += len(content)

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
        content = self.text_of(span)
        wanted = [field for field in self.schema if columns is None or field.name in columns]
        if (found := self._plain(content)) is not None:
            arrays = {field.name: _typed(found[field.name], field) for field in wanted}
            rows = range(span.first_number, span.first_number + len(found))
            return Block(pa.table(arrays) if arrays else bare_table(len(found)), self.file, rows, "line")
        numbers, values = array("q"), list[Sequence[bytes | None]]()
        faults: Faults = {}
        for number, line in enumerate(content.split(b"\n"), start=span.first_number):
            if not line.strip():
                continue
            fields = self._layout.fields(line.removeprefix(codecs.BOM_UTF8) if number == 1 else line)
            if fault := self._fault_of(fields):
                faults[len(numbers)] = fault
            numbers.append(number)
            values.append([None] * len(self._layout.columns) if fault else fields)
        of_rows = dict(zip(self._layout.columns, zip(*values, strict=True) if values else repeat(()), strict=False))
        arrays = {
            field.name: _typed(pa.array(of_rows[field.name], pa.binary()).cast(pa.string()), field) for field in wanted
        }
        return Block(pa.table(arrays) if arrays else bare_table(len(numbers)), self.file, numbers, "line", faults)

    def _plain(self, content: bytes) -> pa.Table | None:
        """Lines as a table of texts, if one separator is between all fields, and no line is blank or has a fault."""
        separator = self._layout.separator or (b" " if b" " in content else b"\t")
        odd = [b"\r", b"\n\n", b"\n" + separator]
        if self._layout.separator is None:
            odd += [separator * 2, separator + b"\n", b"\v", b"\f", *([b"\t"] if separator == b" " else [])]
        if content.startswith((codecs.BOM_UTF8, b"\n", separator)) or any(mark in content for mark in odd):
            return None
        names = [name or f"field {place}" for place, name in enumerate(self._layout.columns)]
        try:
            table = csv.read_csv(
                pa.BufferReader(content),
                csv.ReadOptions(use_threads=False, block_size=len(content) + 1, column_names=names),
                csv.ParseOptions(delimiter=separator.decode(), quote_char=False),
                csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), null_values=[]),
            )
        except pa.ArrowInvalid:
            return None
        is_plain = len(table) == content.count(b"\n") + (not content.endswith(b"\n")) and all(
            pc.all(pc.match_substring_regex(table[name], f"^(?:{kind.pattern})$")).as_py()
            and np.isfinite(_typed(table[name], pa.field(name, _TYPES[name])).to_numpy()).all()
            for name, kind in _NUMBERS.items()
            if name in names
        )
        return table if is_plain else None

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
