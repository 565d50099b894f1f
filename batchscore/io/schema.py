"""Tables that should agree on their columns: whether a column is there, and which type fits the rows of all.

The join is permissive: null joins with anything, int with float, structs gain fields, and types with nothing in common
become text. Files that were written at different times so read as one; the price is that a column's type may change
from one unit to the next.
"""

from __future__ import annotations

import base64
import difflib
import json
from collections.abc import Mapping, Sequence
from datetime import date, time
from typing import Any, Literal

import pyarrow as pa

from batchscore.errors import InputError

KEEP_HINT = "give the column another type, or leave it out (with score: --keep-columns)"
TEXT_FIELDS = ("text", "content", "contents", "body", "document")  # of a document
ID_FIELDS = ("id", "_id", "document_id", "doc_id", "docid", "docno", "pid")  # of a document
_CORPUS_COLUMNS = {*TEXT_FIELDS, *ID_FIELDS, "title", "url", "metadata"}
Shape = Literal["text", "documents"]  # what a column must hold: strings, or lists of strings or of structs with a text
_TEXTS = (pa.string(), pa.large_string(), pa.string_view(), pa.null())


def require_columns(names: Sequence[str], wanted: Mapping[str, str], file: str) -> None:
    """Raise InputError for the first column of `wanted` (column -> the option that names it) that `file` lacks."""
    for column, flag in wanted.items():
        if column not in names:
            if flag == "--query-column" and _is_corpus(names):
                raise InputError(
                    f"{file} has one text a row, no query and document: no column {column!r}; "
                    f"columns: {', '.join(names)}",
                    hint="join the queries with their candidate documents, so that each row has both texts",
                )
            closest = difflib.get_close_matches(column, names, n=1, cutoff=0.5)
            hint = f"pass {flag} {closest[0]}" if closest else f"pass {flag} with one of these columns"
            raise InputError(f"column {column!r} not found in {file}; columns: {', '.join(names)}", hint=hint)


def _is_corpus(names: Sequence[str]) -> bool:
    """Whether these columns are a text and what usually comes with it: no option could name a query among them."""
    return set(names) <= _CORPUS_COLUMNS and not {*TEXT_FIELDS}.isdisjoint(names)


def is_nested(kind: pa.DataType) -> bool:
    """Whether each row of a column of this type holds a list."""
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def text_field(names: Sequence[str]) -> str | None:
    """The field with a document's text: `text`, or else the only one with another usual name."""
    matches = [name for name in TEXT_FIELDS if name in names]
    return matches[0] if "text" in matches or len(matches) == 1 else None


def require_shape(kind: pa.DataType, shape: Shape, column: str, location: str) -> None:
    """Raise InputError, which begins with `location`, if no value of this type has the shape."""
    name = column
    if shape == "documents":
        if pa.types.is_null(kind):
            return
        if not is_nested(kind):
            hint = "name a list with --document-column"
            raise InputError(f"{location}: column {column!r} is {kind}, not a list", hint=hint)
        kind, name = kind.value_type, f"{column}[]"
        if pa.types.is_struct(kind):
            field = text_field([part.name for part in kind])
            kind, name = pa.null() if field is None else kind.field(field).type, f"{name}.{field}"
    if (kind.value_type if pa.types.is_dictionary(kind) else kind) not in _TEXTS:
        hint = "convert it to strings, or name another column"
        raise InputError(f"{location}: column {name!r} is {kind}, not text", hint=hint)


def join(tables: Sequence[pa.Table]) -> pa.Table:
    """All rows as one table, null where a column is absent; columns whose types do not go together become text."""
    if (joined := _joined(tables)) is not None:
        return joined
    tables = list(tables)
    for name in dict.fromkeys(name for table in tables for name in table.column_names):
        having = [index for index, table in enumerate(tables) if name in table.column_names]
        if _joined([tables[index].select([name]) for index in having]) is None:
            for index in having:
                table = tables[index]
                tables[index] = table.set_column(table.column_names.index(name), name, _as_text(table[name]))
    return pa.concat_tables(tables, promote_options="permissive")


def _joined(tables: Sequence[pa.Table]) -> pa.Table | None:
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException:
        return None


def _as_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if column.type in _TEXTS:
        return column
    return pa.chunked_array([pa.array(map(json_text, column.to_pylist()), pa.large_string())])


def json_text(value: Any) -> str | None:
    """A string unchanged, anything else as JSON."""
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=no_json)


def no_json(value: Any) -> str:
    """How a value is written that JSON has no form for: base64, ISO 8601, or what `str` gives."""
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return value.isoformat() if isinstance(value, (date, time)) else str(value)


def without_views(table: pa.Table) -> pa.Table:
    """The table with plain strings and bytes instead of views, of which Arrow cannot take rows."""
    schema = pa.schema([field.with_type(_plain(field.type)) for field in table.schema])
    return table if schema.equals(table.schema) else table.cast(schema)


def _plain(kind: pa.DataType) -> pa.DataType:
    if kind == pa.string_view():
        return pa.large_string()
    if kind == pa.binary_view():
        return pa.large_binary()
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_plain(field.type)) for field in kind])
    if pa.types.is_list(kind):
        return pa.list_(kind.value_field.with_type(_plain(kind.value_type)))
    if pa.types.is_large_list(kind):
        return pa.large_list(kind.value_field.with_type(_plain(kind.value_type)))
    return kind
