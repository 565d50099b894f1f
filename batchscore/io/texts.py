"""Text columns of a unit, dictionary-encoded by Arrow: a text that repeats becomes a Python string once.

Every text is checked here (null, UTF-8), so that later stages need not. A row without a text is a fault of that row and
reads as an empty text until it is dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from batchscore.io.source import Chunk
from batchscore.types import Cells, Fault, Faults

_OFFSETS_32 = 2**31  # bytes that 32-bit offsets reach; a unit hardly ever has so many, and to copy its texts takes time


def document_columns(column: str, names: Sequence[str], fields: Sequence[str] | None) -> tuple[str, ...]:
    """The columns that together are the document of a row: `fields`, or else what the row's layout says.

    A `title` beside a document column `text` is BEIR's corpus layout and belongs to the document. Beside a column of
    any other name a title stays out, since that column was chosen, or may have the title in it already.
    """
    if fields is not None:
        return tuple(fields)
    return ("title", "text") if column == "text" and "title" in names else (column,)


def read_texts(chunk: Chunk, columns: str | Sequence[str], faults: Faults) -> Cells:
    """One text a row, of one column or joined from several; rows that have none are added to `faults`."""
    columns = [columns] if isinstance(columns, str) else columns
    return encode_joined([chunk.table[column] for column in columns], lambda row: columns[-1], faults)


def encode_joined(
    columns: Sequence[pa.ChunkedArray], name: Callable[[int], str], faults: Faults, *, absent: str = "is null"
) -> Cells:
    """Encode columns of strings as one, as BEIR joins title and text: with blanks between, and none at the ends.

    A single column is left as it is. Nulls and empty texts are skipped, and a row with nothing but nulls is a fault.
    """
    if len(columns) == 1:
        return encode_texts(columns[0], name, faults, absent=absent)
    _add_nulls(reduce(pc.and_, map(pc.is_null, columns)), name, faults, absent)
    filled = [column.cast(pa.large_string()).fill_null("") for column in columns]
    return _joined([encode_texts(column, name, faults) for column in filled])


def encode_texts(
    texts: pa.ChunkedArray, name: Callable[[int], str], faults: Faults, *, absent: str = "is null"
) -> Cells:
    """Encode a column of strings.

    Args:
        texts: the column.
        name: row -> what a fault calls the column.
        faults: rows without a text are added.
        absent: what a fault says of a null.
    """
    encoded = _encoded(texts)
    if encoded.indices.null_count:
        _add_nulls(pc.is_null(encoded.indices), name, faults, absent)
        encoded = _filled(encoded)
    try:
        encoded.dictionary.validate(full=True)
        values = encoded.dictionary.to_pylist()
    except pa.ArrowInvalid:
        values = [_decoded(text) for text in encoded.dictionary.cast(pa.large_binary()).to_pylist()]
        invalid = [code for code, text in enumerate(values) if text is None]
        for row in np.flatnonzero(np.isin(encoded.indices, invalid)).tolist():
            faults.setdefault(
                row, Fault("not-utf8", "is not UTF-8", hint="convert the text to UTF-8", column=name(row))
            )
        values = [text or "" for text in values]
    return Cells(values, encoded.indices.to_numpy())


def _encoded(texts: pa.ChunkedArray) -> pa.DictionaryArray:
    """Each distinct text once, in order of first appearance."""
    if not pa.types.is_dictionary(texts.type):
        # 64-bit, since 2 GiB of texts overflow 32-bit offsets
        is_small = pa.types.is_string(texts.type) and texts.nbytes < _OFFSETS_32
        return (texts if is_small else texts.cast(pa.large_string())).combine_chunks().dictionary_encode()
    # a slice's dictionary has texts of other rows, and any dictionary may have one twice, or null
    array = texts.unify_dictionaries().combine_chunks()
    used = array.indices.dictionary_encode()
    values = array.dictionary.take(used.dictionary).cast(pa.large_string()).dictionary_encode()
    return pa.DictionaryArray.from_arrays(values.indices.take(used.indices), values.dictionary)


def _filled(encoded: pa.DictionaryArray) -> pa.DictionaryArray:
    """The same with empty texts where there was none."""
    texts = encoded.dictionary
    if (code := pc.index(texts, "").as_py()) < 0:
        code, texts = len(texts), pa.concat_arrays([texts, pa.array([""], texts.type)])
    return pa.DictionaryArray.from_arrays(encoded.indices.fill_null(code), texts)


_NULL_HINT = "drop the row, or fill it in: an empty string is a text"


def _add_nulls(is_null: pa.ChunkedArray, name: Callable[[int], str], faults: Faults, absent: str) -> None:
    for row in np.flatnonzero(is_null).tolist():
        faults.setdefault(row, Fault("null", absent, _NULL_HINT, column=name(row)))


def _joined(columns: Sequence[Cells]) -> Cells:
    """Each distinct combination of texts is joined once."""
    codes: NDArray[np.int32] = np.stack([column.codes for column in columns])
    combinations, rows = np.unique(codes, axis=1, return_inverse=True)
    texts = Cells.of(
        [
            " ".join(filter(None, (column.values[code] for column, code in zip(columns, combination, strict=True))))
            .strip()
            for combination in combinations.T.tolist()
        ]
    )  # fmt: skip
    return Cells(texts.values, texts.codes[rows.ravel()])


def _decoded(text: bytes) -> str | None:
    try:
        return text.decode()
    except UnicodeDecodeError:
        return None
