"""Tables that should agree on their columns: whether a column is there, and which type fits the rows of all.

The join is permissive: null joins with anything, int with float, structs gain fields, and types with nothing in common
become text. Files that were written at different times so read as one; the price is that a column's type may change
from one unit to the next.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Literal

import pyarrow as pa

from batchscore.errors import InputError
from batchscore.io.values import as_text, is_text

TEXT_FIELDS = ("text", "content", "contents", "body", "document")  # of a document
ID_FIELDS = ("id", "_id", "document_id", "doc_id", "docid", "docno", "pid")  # of a document
_CORPUS_COLUMNS = {*TEXT_FIELDS, *ID_FIELDS, "title", "url", "metadata"}
Shape = Literal["text", "documents"]  # what a column must hold: strings, or lists of strings or of structs with a text


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
        kind = listed_type(kind)
        if pa.types.is_null(kind):
            return
        if not is_nested(kind):
            hint = "name a list with --document-column"
            raise InputError(f"{location}: column {column!r} is {kind}, not a list", hint=hint)
        kind, name = kind.value_type, f"{column}[]"
        if pa.types.is_struct(kind):
            field = text_field([part.name for part in kind])
            kind, name = pa.null() if field is None else kind.field(field).type, f"{name}.{field}"
    if not (is_text(kind) or pa.types.is_null(kind)):
        hint = "convert it to strings, or name another column"
        raise InputError(f"{location}: column {name!r} is {kind}, not text", hint=hint)


def listed_type(kind: pa.DataType) -> pa.DataType:
    """The type of lists of documents that stands for a struct of lists; any other type unchanged.

    Older versions of `datasets` make a struct of lists of a list of structs.
    """
    if pa.types.is_struct(kind) and kind.num_fields and all(is_nested(field.type) for field in kind):
        return pa.large_list(pa.struct([field.with_type(field.type.value_type) for field in kind]))
    return kind


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
                tables[index] = table.set_column(table.column_names.index(name), name, as_text(table[name]))
    return pa.concat_tables(tables, promote_options="permissive")


def _joined(tables: Sequence[pa.Table]) -> pa.Table | None:
    try:
        joined = pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException:
        return None
    loses = any(_loses(field.type, joined.schema.field(field.name).type) for table in tables for field in table.schema)
    return None if loses else joined


def _loses(kind: pa.DataType, joined: pa.DataType) -> bool:
    """Whether Arrow would join what differs: texts as bytes, or decimals as floats."""
    if kind.equals(joined):
        return False
    if pa.types.is_struct(kind):
        return any(_loses(field.type, joined.field(field.name).type) for field in kind)
    if kind.num_fields:
        return any(_loses(kind.field(index).type, joined.field(index).type) for index in range(kind.num_fields))
    is_bytes = pa.types.is_binary(joined) or pa.types.is_large_binary(joined)
    return bool((is_text(kind) and is_bytes) or (pa.types.is_decimal(kind) and pa.types.is_floating(joined)))
