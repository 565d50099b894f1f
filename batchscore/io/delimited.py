"""CSV and TSV with a header, quoted as in RFC 4180, read with the standard library. All columns are texts.

pyarrow's own reader is faster, but it says neither where a row begins nor which one is broken. A row that cannot be
read is one of nulls with a fault. A quote that is never closed ends the run, since it hides all rows after it.
"""

from __future__ import annotations

import codecs
import csv
import io
from array import array
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import cached_property
from itertools import repeat
from typing import NamedTuple

import pyarrow as pa

from batchscore.errors import InputError
from batchscore.io.block import Block
from batchscore.io.lines import Line, LineFile, fault_at, packed, row_steps
from batchscore.io.schema import Shape
from batchscore.io.units import Span, Steps
from batchscore.io.values import bare_table
from batchscore.types import Fault, Faults

CSV_SUFFIXES, TSV_SUFFIXES = packed(".csv"), packed(".tsv")

_FIELD_LIMIT = 64 << 20  # characters: a longer field is more likely a quote that is open
_OPEN_QUOTE = "close it, and write a quote within a quoted field twice"

csv.field_size_limit(max(csv.field_size_limit(), _FIELD_LIMIT))  # of the whole process: csv has no other


class _Row(NamedTuple):
    line: int  # its first
    position: int  # after it
    next_line: int
    fields: list[str]
    fault: Fault | None  # if csv cannot read it


class DelimitedReader(LineFile):
    """One CSV or TSV file with a header."""

    is_ragged = False

    def __init__(self, file: str, delimiter: str) -> None:
        super().__init__(file)
        self._delimiter = delimiter

    @cached_property
    def schema(self) -> pa.Schema:
        """The names of the header; InputError if they cannot be read, or do not tell the columns apart."""
        with closing(self.lines()) as lines:
            header = next(self._rows(lines), None)
        if header is None:
            raise InputError(f"{self.file} has only blank lines", hint="leave the file out, or write it again")
        if fault := self._fault_of(header, len(header.fields)):
            raise fault_at(self.file, header.line, f"the header {fault.message}", fault.hint)
        self._refuse_names(header.fields, header.line)
        return pa.schema([(name, pa.string()) for name in header.fields])

    def steps(self, group: str | None, sparse: Collection[str] = ()) -> Iterator[Steps]:
        """All rows after the header."""
        names = self.schema.names
        index = 0 if group is None else names.index(group)

        def value(row: _Row) -> object:
            return object() if self._fault_of(row, len(names)) else row.fields[index]

        with closing(self.lines()) as lines:
            rows = self._rows(lines)
            next(rows)
            found = ((row.position, row.next_line, row) for row in rows)
            yield from row_steps(found, None if group is None else value)

    def read(self, span: Span, columns: Sequence[str] | None, shapes: Mapping[str, Shape]) -> Block:
        """The rows of a span; a broken one is null, with a fault."""
        names, numbers, values = self.schema.names, array("q"), list[Sequence[str | None]]()
        faults: Faults = {}
        nothing = [None] * len(names)
        lines = enumerate(io.BytesIO(self.text_of(span)), start=span.first_number)
        rows = self._rows(lines, span.first_number)
        if span.start == 0:
            next(rows, None)  # the header
        for row in rows:
            if fault := self._fault_of(row, len(names)):
                faults[len(numbers)] = fault
            numbers.append(row.line)
            values.append(nothing if fault else row.fields)
        found = dict(zip(names, zip(*values, strict=True) if values else repeat(()), strict=False))
        arrays = {name: pa.array(found[name], pa.string()) for name in names if columns is None or name in columns}
        return Block(pa.table(arrays) if arrays else bare_table(len(numbers)), self.file, numbers, "line", faults)

    def _rows(self, lines: Iterable[Line], first_line: int = 1) -> Iterator[_Row]:
        """Rows that are not blank; positions count from the first of the lines.

        InputError for a quote that is not closed.
        """
        text = _Text(first_line)
        parsed = csv.reader(text.decoded(lines), delimiter=self._delimiter, strict=True)
        while True:
            first, fields, fault = text.next_line, list[str](), None
            try:
                fields = next(parsed)
            except StopIteration:
                return
            except csv.Error as error:
                fault = self._broken(str(error), first)
            if fields or fault:
                yield _Row(first, text.position, text.next_line, fields, fault)

    def _fault_of(self, row: _Row, width: int) -> Fault | None:
        """What is wrong with a row, which is to have so many fields."""
        if row.fault is not None:
            return row.fault
        text, count = "".join(row.fields), len(row.fields)
        if "\0" in text:
            return _NUL
        try:
            text.encode()
        except UnicodeEncodeError:
            return Fault("not-utf8", "is not UTF-8", "convert the file with iconv")
        if count != width:
            message = f"has {count} field{'s' * (count != 1)} where the header has {width}"
            return Fault("not-csv", message, _QUOTES)
        # texts that are not quoted, as in many TSVs, may begin with a quote
        if self._delimiter == "\t" and any("\n" in field and _holds_rows(field, width) for field in row.fields):
            return Fault("not-csv", "has whole rows within quotes", _NO_QUOTES)
        return None

    def _broken(self, reason: str, line: int) -> Fault:
        """What csv says of a row, in words; InputError if all rows after it may be hidden in it."""
        if reason == "unexpected end of data":
            raise fault_at(self.file, line, "a quote that opens in this row is never closed", _OPEN_QUOTE)
        if reason.startswith("field larger"):
            message = f"a field of more than {_FIELD_LIMIT >> 20} MB: a quote that opens in this row may not be closed"
            raise fault_at(self.file, line, message, _OPEN_QUOTE)
        if "NUL" in reason:  # Python 3.10
            return _NUL
        if "new-line" in reason:
            return Fault("not-csv", "has a carriage return within a field that is not quoted", "quote the field")
        return Fault("not-csv", "has text between a closing quote and the end of its field", _QUOTES)

    def _refuse_names(self, names: Sequence[str], line: int) -> None:
        """Raise InputError for names that are empty, or of two columns, or not separated."""
        twice = next((name for name in names if names.count(name) > 1), None)
        if "" in names:
            message = f"column {names.index('') + 1} has no name"
            raise fault_at(self.file, line, message, "name it; pandas writes its index so, unless index=False")
        if twice is not None:
            raise fault_at(self.file, line, f"two columns are called {twice!r}", "rename one of them")
        other = next(
            (mark for mark in "\t;," if len(names) == 1 and mark in names[0] and mark != self._delimiter), None
        )
        if other is not None:
            message = f"the header is a single column, {names[0]!r}, with {other!r} in it"
            hint = {"\t": "pass --in-format tsv", ",": "pass --in-format csv"}.get(other, "write it with commas")
            raise fault_at(self.file, line, message, hint)


class _Text:
    """Lines as csv asks for them, and how far it has got."""

    def __init__(self, first_line: int) -> None:
        self.position, self.next_line = 0, first_line

    def decoded(self, lines: Iterable[Line]) -> Iterator[str]:
        """Bytes that are not UTF-8 stay, as surrogates."""
        for number, line in lines:
            self.position += len(line)
            self.next_line = number + 1
            yield (line.removeprefix(codecs.BOM_UTF8) if number == 1 else line).decode(errors="surrogateescape")


def _holds_rows(field: str, width: int) -> bool:
    """Whether a field has the tabs of rows, from its place in one to the same place in a later one."""
    first, *middle, last = field.split("\n")
    whole = [line.count("\t") for line in middle] + [first.count("\t") + last.count("\t")]
    return set(whole) == {width - 1} != {0} and not any(line.startswith("\t") for line in (*middle, last))


_NO_QUOTES = (
    "quote the field and double its quotes, write JSON Lines, or pass --in-format msmarco if there is no header"
)
_QUOTES = "quote a field with separators, line ends or quotes in it, and write a quote within it twice"
_NUL = Fault("not-csv", "has a NUL byte: damaged, or not UTF-8", "convert the file with iconv, or write it again")
