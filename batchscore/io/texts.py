"""A text column of a window, dictionary-encoded by Arrow: no Python object is made for a text that was seen before.

Every text is checked here (type, null, UTF-8), so that nothing behind this door has to.
"""

from __future__ import annotations

from collections.abc import Callable

import pyarrow as pa
import pyarrow.compute as pc

from batchscore.errors import InputError
from batchscore.io.source import Chunk
from batchscore.types import Texts

_TEXT_TYPES = (pa.string(), pa.large_string(), pa.string_view(), pa.null())


def read_texts(chunk: Chunk, column: str) -> Texts:
    """Texts of `column`, one a row; InputError names file, row and column of what is no text."""
    return encode_texts(chunk.table[column], place_in(chunk, column))


def place_in(chunk: Chunk, column: str) -> Callable[[int], str]:
    """How errors call a row of `column`."""
    return lambda row: f"{chunk.locate(row)}: column {column!r}"


def encode_texts(texts: pa.ChunkedArray, place: Callable[[int], str]) -> Texts:
    """Encode an Arrow column; `place` says where a row of it is from."""
    kind = texts.type.value_type if pa.types.is_dictionary(texts.type) else texts.type
    if kind not in _TEXT_TYPES and len(texts):
        raise InputError(f"{place(0)} is {texts.type}, not text", hint="convert it to strings, or name another column")
    # decoded and 64-bit: a slice's dictionary holds texts of other rows, and 2 GiB of texts overflow 32-bit offsets
    texts = texts.cast(pa.large_string())
    if texts.null_count:
        null = pc.index(pc.is_null(texts), True).as_py()
        raise InputError(f"{place(null)} is null", hint="drop the row, or fill it in: an empty string is a text")
    encoded = texts.combine_chunks().dictionary_encode()
    return Texts(_strings(encoded, place), encoded.indices.to_numpy())


def _strings(encoded: pa.DictionaryArray, place: Callable[[int], str]) -> list[str]:
    try:
        encoded.dictionary.validate(full=True)
        return encoded.dictionary.to_pylist()  # type: ignore[no-any-return]
    except pa.ArrowInvalid as error:
        raise InputError(f"{place(_first_invalid(encoded))} is not UTF-8", hint="convert the text to UTF-8") from error


def _first_invalid(encoded: pa.DictionaryArray) -> int:
    """First row whose text is not UTF-8."""
    for code, text in enumerate(encoded.dictionary.cast(pa.large_binary()).to_pylist()):
        if text.decode(errors="ignore").encode() != text:
            return int(pc.index(encoded.indices, code).as_py())
    raise AssertionError("Arrow and Python disagree on what is UTF-8")
