"""Rows that carry a list of documents, turned into one row a document.

The flattening is Arrow's and copies no text; what it costs is that a window holds as many documents as its rows list.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from batchscore.errors import InputError
from batchscore.io.schema import TEXT_FIELDS, is_nested, text_field
from batchscore.io.source import Chunk
from batchscore.io.texts import Faults, encode_texts
from batchscore.types import Fault, Texts

_ID_FIELDS = ("id", "_id", "document_id", "doc_id", "docid", "docno", "pid")


@dataclass(frozen=True, slots=True)
class Documents:
    """The documents of a window, in row order."""

    parents: NDArray[np.int64]  # [documents], row of the window
    texts: Texts  # [documents]
    ids: pa.Array | None  # [documents]


def explode(chunk: Chunk, column: str, id_field: str | None, row_faults: Faults, faults: Faults) -> Documents:
    """Documents of `column`: lists of strings, or of structs with a text and maybe an id.

    The id is `id_field` or, where that is None, the first field with an id's usual name. Rows without a list are added
    to `row_faults`, documents without a text to `faults`.
    """
    lists = chunk.table[column]
    if pa.types.is_null(lists.type):
        lists = lists.cast(pa.list_(pa.string()))
    for row in np.flatnonzero(pc.is_null(lists)).tolist():
        row_faults.setdefault(row, Fault(row, column, "null", "is null", "an empty list means no documents"))
    parents = pc.list_parent_indices(lists).to_numpy()
    texts, ids = _split(pc.list_flatten(lists), id_field)

    def name(document: int) -> str:
        return f"{column}[{document - np.searchsorted(parents, parents[document])}]"

    found = encode_texts(texts, name, faults, absent="is null, or no text")
    return Documents(parents, found, ids)


def require_fields(kind: pa.DataType, id_field: str | None, place: str) -> None:
    """Raise InputError, which calls the column `place`, if documents of this type have no text or no `id_field`."""
    documents = kind.value_type if is_nested(kind) else kind
    if pa.types.is_null(documents):
        return
    names = [field.name for field in documents] if pa.types.is_struct(documents) else []
    fields = f"; fields: {', '.join(names) or 'none'}"
    if id_field is not None and id_field not in names:
        hint = "pass --document-id-column with one of these fields"
        raise InputError(f"{place}: its documents have no field {id_field!r}{fields}", hint=hint)
    if names and text_field(names) is None:
        hint = f"name the text field one of {', '.join(TEXT_FIELDS)}"
        raise InputError(f"{place}: its documents have no text field{fields}", hint=hint)


def _split(documents: pa.ChunkedArray, id_field: str | None) -> tuple[pa.ChunkedArray, pa.Array | None]:
    """Texts and ids of documents."""
    if not pa.types.is_struct(documents.type):
        return documents, None
    names = [field.name for field in documents.type]
    text = text_field(names)
    id_field = id_field or next((name for name in _ID_FIELDS if name in names), None)
    texts = (
        pa.chunked_array([pa.nulls(len(documents))])
        if text is None
        else pc.struct_field(documents, [names.index(text)])
    )
    has_ids = id_field in names
    return texts, pc.struct_field(documents, [names.index(id_field)]).combine_chunks() if has_ids else None
