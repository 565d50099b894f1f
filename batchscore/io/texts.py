"""A text column of a unit, dictionary-encoded by Arrow: no Python object is made for a text that was seen before.

Every text is checked here (null, UTF-8), so that nothing behind this door has to. A row without a text is a fault of
that row, and reads as an empty text until it is taken out; a column without texts is an error.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from batchscore.io.source import Chunk
from batchscore.types import Fault, Texts

Faults = dict[int, Fault]  # the first of each row


def read_texts(chunk: Chunk, column: str, faults: Faults) -> Texts:
    """Texts of `column`, one a row; rows that have none are added to `faults`."""
    return encode_texts(chunk.table[column], lambda row: column, faults)


def encode_texts(
    texts: pa.ChunkedArray, name: Callable[[int], str], faults: Faults, *, absent: str = "is null"
) -> Texts:
    """Encode a column of strings; `name` says what a fault calls the column in a row, `absent` what a null is."""
    # decoded and 64-bit: a slice's dictionary holds texts of other rows, and 2 GiB of texts overflow 32-bit offsets
    texts = texts.cast(pa.large_string())
    if texts.null_count:
        for row in np.flatnonzero(pc.is_null(texts)).tolist():
            faults.setdefault(row, Fault(row, name(row), "null", absent, _NULL_HINT))
        texts = texts.fill_null("")
    encoded = texts.combine_chunks().dictionary_encode()
    try:
        encoded.dictionary.validate(full=True)
        values = encoded.dictionary.to_pylist()
    except pa.ArrowInvalid:
        values = [_decoded(text) for text in encoded.dictionary.cast(pa.large_binary()).to_pylist()]
        invalid = [code for code, text in enumerate(values) if text is None]
        for row in np.flatnonzero(np.isin(encoded.indices, invalid)).tolist():
            faults.setdefault(row, Fault(row, name(row), "not-utf8", "is not UTF-8", "convert the text to UTF-8"))
        values = [text or "" for text in values]
    return Texts(values, encoded.indices.to_numpy())


_NULL_HINT = "drop the row, or fill it in: an empty string is a text"


def _decoded(text: bytes) -> str | None:
    try:
        return text.decode()
    except UnicodeDecodeError:
        return None
