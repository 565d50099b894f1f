"""Rows that carry a list of documents, turned into one row a document.

The flattening is Arrow's and copies no text; what it costs is that a window holds as many documents as its rows list.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from batchscore.errors import InputError
from batchscore.io.source import Chunk
from batchscore.io.texts import Faults, encode_texts
from batchscore.types import Fault, Texts

_TEXT_FIELDS = ("text", "content", "contents", "body", "document")
_ID_FIELDS = ("id", "_id", "document_id", "doc_id", "docid", "docno", "pid")


@dataclass(frozen=True, slots=True)
class Documents:
    """The documents of a window, in row order."""

    parents: NDArray[np.int64]  # [documents], row of the window
    texts: Texts  # [documents]
    ids: pa.Array | None  # [documents]


def is_nested(kind: pa.DataType) -> bool:
    """Whether a column of this type holds a list a row."""
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def explode(chunk: Chunk, column: str, id_field: str | None, row_faults: Faults, faults: Faults) -> Documents:
    """Documents of `column`: lists of strings, or of structs with a text and maybe an id.

    The id is `id_field` or, where that is None, the first field with an id's usual name. Rows without a list are added
    to `row_faults`, documents without a text to `faults`; InputError names file, row and column of what is no list.
    """
    lists = chunk.table[column]
    if pa.types.is_null(lists.type):
        lists = lists.cast(pa.list_(pa.string()))
    place = place_in(chunk, column)
    if not is_nested(lists.type):
        raise InputError(f"{place(0)} is {lists.type}, not a list", hint="name a list with --document-column")
    for row in np.flatnonzero(pc.is_null(lists)).tolist():
        row_faults.setdefault(row, Fault(row, column, "null", "is null", "an empty list means no documents"))
    parents = pc.list_parent_indices(lists).to_numpy()
    texts, ids = _split(pc.list_flatten(lists), id_field, place)

    def name(document: int) -> str:
        return f"{column}[{document - np.searchsorted(parents, parents[document])}]"

    found = encode_texts(texts, name, lambda document: chunk.locate(int(parents[document])), faults)
    return Documents(parents, found, ids)


def place_in(chunk: Chunk, column: str) -> Callable[[int], str]:
    """How errors call a row of `column`."""
    return lambda row: f"{chunk.locate(row)}: column {column!r}"


def _split(
    documents: pa.ChunkedArray, id_field: str | None, place: Callable[[int], str]
) -> tuple[pa.ChunkedArray, pa.Array | None]:
    """Texts and ids of documents."""
    kind = documents.type
    names = [field.name for field in kind] if pa.types.is_struct(kind) else []
    if id_field is not None and id_field not in names:
        raise _no_field(f"no field {id_field!r}", names, place(0), "pass --document-id-column with one of these fields")
    if not pa.types.is_struct(kind):
        return documents, None
    text = _text_field(names)
    if text is None:
        raise _no_field("no text field", names, place(0), f"name the text field one of {', '.join(_TEXT_FIELDS)}")
    id_field = id_field or next((name for name in _ID_FIELDS if name in names), None)
    ids = None if id_field is None else pc.struct_field(documents, [names.index(id_field)]).combine_chunks()
    return pc.struct_field(documents, [names.index(text)]), ids


def _text_field(names: Sequence[str]) -> str | None:
    """`text`, or the only field with another of its names."""
    found = [name for name in _TEXT_FIELDS if name in names]
    return found[0] if "text" in found or len(found) == 1 else None


def _no_field(what: str, names: Sequence[str], place: str, hint: str) -> InputError:
    return InputError(f"{place}: its documents have {what}; fields: {', '.join(names) or 'none'}", hint=hint)
