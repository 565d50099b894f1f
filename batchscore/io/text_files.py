"""CSV and TSV as RFC 4180 has them: a header, and quotes where a value needs them.

Arrow makes the lines. Python's csv leaves a carriage return without quotes where lines end in a line feed, and Arrow's
own writer quotes every string, which `cut` and awk do not understand. A null is an empty field and an empty text is "",
for readers that know the difference. Lists and structs are written as JSON.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from batchscore.io.lines import compression
from batchscore.io.values import as_text, is_text

_ROWS = 4096  # whose lines are made at once


def _large(text: str) -> pa.Scalar:
    return pa.scalar(text, pa.large_string())


_EMPTY, _QUOTE, _LINE_FEED = _large(""), _large('"'), _large("\n")


class TextWriter:
    """A file of text, packed as its suffix says, whose end may need something more."""

    _end = ""

    def __init__(self, path: str, temporary: str) -> None:
        self._file = pa.output_stream(temporary, compression=compression(path))

    def close(self) -> None:
        """End the file; the second time does nothing."""
        if not self._file.closed:
            self._file.write(self._end.encode())
            self._file.close()


class DelimitedWriter(TextWriter):
    """One row a line, under the columns of the first table."""

    def __init__(self, path: str, temporary: str, delimiter: str) -> None:
        super().__init__(path, temporary)
        self._delimiter = delimiter
        self._columns: list[str] = []

    def write(self, table: pa.Table) -> None:
        """Append rows, and the header before the first; a column that a table lacks is null, a new one a ValueError."""
        if not self._columns:
            self._columns = table.column_names
            self._write_lines([pa.array([name], pa.large_string()) for name in self._columns])
        if new := [name for name in table.column_names if name not in self._columns]:
            raise ValueError(f"column {new[0]!r} first comes after the header is written")
        absent = pa.nulls(len(table))
        columns = [table[name] if name in table.column_names else absent for name in self._columns]
        for batch in pa.table(columns, self._columns).to_batches(max_chunksize=_ROWS):
            self._write_lines([cell_texts(column) for column in batch.columns])

    def _write_lines(self, columns: list[pa.Array]) -> None:
        # a line with nothing on it would be no row to most readers
        absent = '""' if len(columns) == 1 else ""
        quoted = [_quoted(column, self._delimiter) for column in columns]
        self._file.write(lines(quoted, self._delimiter, absent))


def cell_texts(column: pa.Array) -> pa.Array:
    """large_string [rows]: strings unchanged, numbers as the shortest text that reads back equal, all else as JSON."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        return cell_texts(column.dictionary_decode())
    if pa.types.is_floating(kind):
        return _float_texts(column.cast(pa.float32()) if pa.types.is_float16(kind) else column)
    if is_text(kind) or pa.types.is_null(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        return column.cast(pa.large_string())
    return as_text(pa.chunked_array([column])).combine_chunks().cast(pa.large_string())


def _float_texts(column: pa.Array) -> pa.Array:
    # 1.0 for Arrow's 1, so that no reader takes a column for one of integers
    return pc.replace_substring_regex(column.cast(pa.large_string()), r"^(-?\d+)$", r"\1.0")


def _quoted(texts: pa.Array, delimiter: str) -> pa.Array:
    is_special = pc.match_substring_regex(texts, f'^$|["\\r\\n{delimiter}]')
    return pc.if_else(is_special, _joined([_QUOTE, pc.replace_substring(texts, '"', '""'), _QUOTE], _EMPTY), texts)


def lines(columns: Sequence[pa.Array], delimiter: str, absent: str = "") -> memoryview:
    """The rows of large_string columns in UTF-8, a line each; `absent` stands for a null."""
    fields = [pc.fill_null(column, _large(absent)) for column in columns]
    rows = _joined([_joined(fields, _large(delimiter)), _LINE_FEED], _EMPTY)
    return memoryview(rows.buffers()[2] or b"")  # a new array: its values are its buffer, from end to end


def _joined(columns: Sequence[pa.Array | pa.Scalar], delimiter: pa.Scalar) -> pa.Array:
    return pc.binary_join_element_wise(*columns, delimiter)
