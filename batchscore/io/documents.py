"""Rows that carry a list of documents, turned into one row a document.

Arrow flattens the lists without copying texts. The price is that a unit has as many documents as its rows list.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from batchscore.errors import InputError
from batchscore.io.cells import Collected, column_values, readable_cell
from batchscore.io.schema import ID_FIELDS, TEXT_FIELDS, holds_media, is_nested, text_field
from batchscore.io.source import Chunk
from batchscore.io.texts import document_columns, encode_joined
from batchscore.types import Cells, Fault, Faults


@dataclass(frozen=True, slots=True)
class Documents:
    """The documents of a unit, in row order."""

    parents: NDArray[np.int64]  # [documents], row of the unit
    texts: Cells  # [documents]
    ids: pa.Array | None  # [documents]
    fields: Mapping[str, pa.Array]  # [documents], those that are kept


def explode(
    chunk: Chunk,
    column: str,
    id_field: str | None,
    row_faults: Faults,
    faults: Faults,
    fields: Sequence[str] | None = None,
    kept: Sequence[str] | None = (),
) -> Documents:
    """Documents of `column`: lists of strings, or of structs with texts and maybe media and an id; or of content parts.

    Args:
        chunk: the unit.
        column: of the lists.
        id_field: of structs; None: the first field with a usual name of an id.
        row_faults: rows without a list are added.
        faults: documents without a text are added.
        fields: of structs, whose texts are joined; None: as `document_fields` says.
        kept: of structs, those that stay beside the text; None: all but the id.
    """
    lists = chunk.table[column]
    if pa.types.is_null(lists.type):
        lists = lists.cast(pa.list_(pa.string()))
    for row in np.flatnonzero(pc.is_null(lists)).tolist():
        row_faults.setdefault(row, Fault("null", "is null", hint="an empty list means no documents", column=column))
    parents = pc.list_parent_indices(lists).to_numpy()
    documents = pc.list_flatten(lists)
    ids = _ids(documents, id_field)
    others = _kept(documents, id_field, kept)

    def name(document: int) -> str:
        return f"{column}[{document - np.searchsorted(parents, parents[document])}]"

    if holds_media(documents.type) or any(column in block.values for block in chunk.blocks):
        return Documents(parents, _cells(chunk, column, Collected(name, faults), fields), ids, others)
    texts = encode_joined(_texts(documents, fields, column), name, faults, absent="is null, or no text")
    return Documents(parents, texts, ids, others)


def _cells(chunk: Chunk, column: str, cells: Collected, fields: Sequence[str] | None) -> Cells:
    """Documents that may have media, one after the other."""
    texts = document_fields(chunk.table.schema.field(column).type, fields)
    for block, finder in zip(chunk.blocks, chunk.finders, strict=True):
        for documents in column_values(block, column):
            for document in documents or ():
                cells.add(partial(readable_cell, document, finder, texts))
    return cells.encoded()


def document_fields(kind: pa.DataType, fields: Sequence[str] | None) -> tuple[str, ...]:
    """The fields that together are the text of a document of this type, or of a list of them; () for strings.

    They are `fields`, or else the text field, to which a `title` beside `text` belongs as in BEIR's corpora.
    """
    documents = kind.value_type if is_nested(kind) else kind
    if not pa.types.is_struct(documents):
        return ()
    names = [field.name for field in documents]
    text = text_field(names)
    return () if text is None and fields is None else document_columns(str(text), names, fields)


def require_fields(
    kind: pa.DataType,
    id_field: str | None,
    location: str,
    fields: Sequence[str] | None = None,
    kept: Sequence[str] | None = (),
) -> None:
    """Raise InputError, which names the column `location`, if documents of this type lack a text or a named field."""
    documents = kind.value_type if is_nested(kind) else kind
    if pa.types.is_null(documents):
        return
    names = [field.name for field in documents] if pa.types.is_struct(documents) else []
    listing = f"; fields: {', '.join(names) or 'none'}"
    options = dict.fromkeys(kept or (), "--keep-document-fields") | dict.fromkeys(fields or (), "--document-fields")
    if id_field is not None:
        options[id_field] = "--document-id-column"
    for field, option in options.items():
        if field not in names:
            hint = f"pass {option} with one of these fields" if names else f"drop {option}: the documents are strings"
            raise InputError(f"{location}: its documents have no field {field!r}{listing}", hint=hint)
    if fields is None and names and text_field(names) is None and not holds_media(documents):
        hint = f"name the text field one of {', '.join(TEXT_FIELDS)}, or pass --document-fields"
        raise InputError(f"{location}: its documents have no text field{listing}", hint=hint)


def _texts(documents: pa.ChunkedArray, fields: Sequence[str] | None, column: str) -> list[pa.ChunkedArray]:
    """The columns whose texts are joined; in a part of a file of lines no document may have them."""
    if not pa.types.is_struct(documents.type):
        return [documents]
    columns = []
    for name in document_fields(documents.type, fields):
        if (texts := _field(documents, name)) is not None:
            if pa.types.is_nested(texts.type):
                message = f"{column}: field {name!r} of its documents is {texts.type}, not text"
                raise InputError(message, hint="choose other fields with --document-fields")
            columns.append(texts)
    return columns or [pa.chunked_array([pa.nulls(len(documents))])]


def _ids(documents: pa.ChunkedArray, id_field: str | None) -> pa.Array | None:
    ids = _field(documents, id_field_of(documents.type, id_field))
    return None if ids is None else ids.combine_chunks()


def id_field_of(kind: pa.DataType, id_field: str | None) -> str:
    """The field with the id of a document of this type; "" if it has none."""
    names = [field.name for field in kind] if pa.types.is_struct(kind) else []
    return id_field or next((name for name in ID_FIELDS if name in names), "")


def _kept(documents: pa.ChunkedArray, id_field: str | None, kept: Sequence[str] | None) -> dict[str, pa.Array]:
    """Fields of documents; nulls where no document of a part of a file of lines has one."""
    if kept is None:
        names = [field.name for field in documents.type] if pa.types.is_struct(documents.type) else []
        kept = [name for name in names if name != id_field_of(documents.type, id_field)]
    columns = {name: _field(documents, name) for name in kept}
    return {
        name: pa.nulls(len(documents)) if column is None else column.combine_chunks()
        for name, column in columns.items()
    }


def _field(documents: pa.ChunkedArray, name: str) -> pa.ChunkedArray | None:
    index = documents.type.get_field_index(name) if pa.types.is_struct(documents.type) else -1
    return None if index < 0 else pc.struct_field(documents, [index])
