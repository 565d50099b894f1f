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
from batchscore.media.content import IMAGE_FIELDS, MEDIA_NAMES, PART_FIELDS

TEXT_FIELDS = ("text", "content", "contents", "body", "document")  # of a document
QUERY_ID_FIELDS = ("query_id", "qid", "query-id")
DOCUMENT_ID_FIELDS = ("document_id", "doc_id", "docid", "docno", "pid", "corpus-id", "corpus_id")  # beside a query's
ID_FIELDS = ("id", "_id", *DOCUMENT_ID_FIELDS)  # of a document by itself
_DOCUMENT_COLUMNS = ("document", "documents", "passage", "text", "contents", "content", "body")  # beside a query
_PAIR_COLUMNS = (("sentence1", "sentence2"), ("text1", "text2"))  # of texts that are no query and document
_CORPUS_COLUMNS = {*TEXT_FIELDS, *ID_FIELDS, "title", "url", "metadata"}
# What a column must hold: strings; queries or documents with or without media; media; lists of documents. Of "values",
# which may be of any kind, a reader of JSON also gives those that it parsed.
Shape = Literal["text", "cell", "media", "documents", "values"]


def require_columns(names: Sequence[str], wanted: Mapping[str, str], file: str) -> None:
    """Raise InputError for the first column of `wanted` (column -> the option that names it) that `file` lacks."""
    for column, flag in wanted.items():
        if column not in names:
            if flag == "--query-column" and _is_corpus(names):
                raise InputError(
                    f"{file} has one text a row, no query and document: no column {column!r}; "
                    f"columns: {', '.join(names)}",
                    hint="pass --queries and --corpus with --run, --qrels or --all-pairs",
                )
            closest = difflib.get_close_matches(column, names, n=1, cutoff=0.5)
            hint = f"pass {flag} {closest[0]}" if closest else f"pass {flag} with one of these columns"
            raise InputError(f"column {column!r} not found in {file}; columns: {', '.join(names)}", hint=hint)


def usual(names: Sequence[str], wanted: Sequence[str]) -> str | None:
    """The first of the names that are wanted which is there."""
    return next((name for name in wanted if name in names), None)


def document_column(names: Sequence[str]) -> str:
    """The column with the documents of pairs, by its name; `document` if none has a usual one."""
    return usual(names, _DOCUMENT_COLUMNS) or "document"


def pair_columns(names: Sequence[str]) -> tuple[str, str] | None:
    """The columns with the two texts of a pair, by their names; None if there are none, or others could be meant."""
    found = [pair for pair in _PAIR_COLUMNS if {*pair} <= {*names}]
    is_clear = len(found) == 1 and usual(names, ("query", *_DOCUMENT_COLUMNS)) is None
    return found[0] if is_clear else None


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
    name, has_shape = column, is_plain
    if shape == "documents":
        kind = listed_type(kind)
        if pa.types.is_null(kind):
            return
        if not is_nested(kind):
            hint = "name a list with --document-column"
            raise InputError(f"{location}: column {column!r} is {kind}, not a list", hint=hint)
        kind, name = kind.value_type, f"{column}[]"
        if pa.types.is_struct(kind) and not is_cell(kind):
            field = text_field([part.name for part in kind])
            kind, name = pa.null() if field is None else kind.field(field).type, f"{name}.{field}"
    if shape in ("cell", "documents"):
        has_shape = is_cell
    if not (_is_medium(kind) if shape == "media" else has_shape(kind)):
        wanted = "no images or videos" if shape == "media" else "not text"
        hint = "convert it to strings, or name another column"
        raise InputError(f"{location}: column {name!r} is {kind}, {wanted}", hint=hint)


def is_plain(kind: pa.DataType) -> bool:
    """Whether values of a type are strings, or all null."""
    return is_text(kind) or bool(pa.types.is_null(kind))


def is_cell(kind: pa.DataType) -> bool:
    """Whether a value of this type can be a query or document: a text, an image, a list of content parts.

    Structs count that have a field with media, or with content parts; and `text` alone.
    """
    if pa.types.is_struct(kind):
        return holds_media(kind) or ("text" in _fields(kind) and is_plain(kind.field("text").type))
    if is_nested(kind):
        return _is_image(kind.value_type) or not _fields(kind.value_type).isdisjoint({"type", *MEDIA_NAMES})
    return is_plain(kind) or _is_bytes(kind) or _is_json(kind)


def holds_media(kind: pa.DataType) -> bool:
    """Whether values of this type, which are queries or documents, can have media."""
    if not pa.types.is_struct(kind):
        return not is_plain(kind)
    names = _fields(kind)
    has_parts = "content" in names and is_nested(kind.field("content").type)
    return has_parts or _is_image(kind) or not names.isdisjoint(MEDIA_NAMES)


def is_documents(kind: pa.DataType) -> bool:
    """Whether each row of a column of this type lists documents, and not the content parts of one."""
    kind = listed_type(kind)
    if not is_nested(kind):
        return False
    names = _fields(kind.value_type)
    return not ("type" in names and names <= PART_FIELDS)


def has_bytes(kind: pa.DataType) -> bool:
    """Whether values of this type have bytes in them, as images do: such rows are long."""
    return _is_bytes(kind) or any(has_bytes(kind.field(index).type) for index in range(kind.num_fields))


def _is_medium(kind: pa.DataType) -> bool:
    if is_nested(kind):
        kind = kind.value_type
    is_object = not _fields(kind).isdisjoint({"url", *IMAGE_FIELDS})
    return is_plain(kind) or _is_bytes(kind) or _is_json(kind) or is_object


def _is_image(kind: pa.DataType) -> bool:
    names = _fields(kind)
    return "bytes" in names and names <= IMAGE_FIELDS


def _fields(kind: pa.DataType) -> set[str]:
    """The names of a struct's fields; of other types none."""
    return {field.name for field in kind} if pa.types.is_struct(kind) else set()


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def _is_json(kind: pa.DataType) -> bool:
    return isinstance(kind, pa.BaseExtensionType) and kind.extension_name == "arrow.json"


def listed_type(kind: pa.DataType) -> pa.DataType:
    """The type of lists of documents that stands for a struct of lists; any other type unchanged.

    Older versions of `datasets` make a struct of lists of a list of structs. A struct with nothing but a list of
    content parts is one document.
    """
    if _fields(kind) == {"content"}:
        content = kind.field("content").type
        if is_nested(content) and pa.types.is_struct(content.value_type):
            return kind
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
