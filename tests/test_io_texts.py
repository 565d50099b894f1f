"""A text column is encoded once a distinct text, and anything that is no text is named with its file and row."""

from __future__ import annotations

import pyarrow as pa
import pytest

from batchscore.errors import InputError
from batchscore.io.block import Block
from batchscore.io.source import Chunk
from batchscore.io.texts import read_texts
from batchscore.types import Texts

TEXTS = ["b", "", "a", "b", "東京", "", "b"]


def chunk_of(*columns: pa.Array) -> Chunk:
    """A window over one file a column part, whose rows count from 10."""
    tables = [pa.table({"document": column}) for column in columns]
    blocks = [
        Block(table, f"{number}.parquet", range(10, 10 + len(table)), "row", None)
        for number, table in enumerate(tables)
    ]
    return Chunk(pa.concat_tables(tables), tuple(blocks), None)


def invalid(*texts: bytes) -> pa.Array:
    """A string array that holds these bytes, UTF-8 or not."""
    raw = pa.array(texts, pa.binary())
    return pa.Array.from_buffers(pa.string(), len(raw), raw.buffers())


@pytest.mark.parametrize(
    "kind",
    [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())],
    ids=str,
)
def test_every_text_type_is_encoded_in_order_of_first_appearance(kind: pa.DataType) -> None:
    texts = read_texts(chunk_of(pa.array(TEXTS[:4], kind), pa.array(TEXTS[4:], kind)), "document")
    assert texts.values == ["b", "", "a", "東京"]
    assert texts.codes.dtype == "int32"
    assert texts.codes.tolist() == Texts.of(TEXTS).codes.tolist() == [0, 1, 2, 0, 3, 1, 0]


def test_a_slice_of_a_dictionary_brings_only_its_own_texts() -> None:
    column = pa.array(["a", "b", "c", "b"]).dictionary_encode().slice(2)
    assert read_texts(chunk_of(column), "document").values == ["c", "b"]


@pytest.mark.parametrize("kind", [pa.string(), pa.null(), pa.int64()], ids=str)
def test_no_rows_are_no_texts(kind: pa.DataType) -> None:
    texts = read_texts(chunk_of(pa.array([], kind)), "document")
    assert (list(texts.values), texts.codes.tolist()) == ([], [])


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (pa.array([1, 2]), "0.parquet, row 10: column 'document' is int64, not text"),
        (pa.array([["a"], ["b"]]), "0.parquet, row 10: column 'document' is list<item: string>, not text"),
        (pa.array([b"a", b"b"]), "0.parquet, row 10: column 'document' is binary, not text"),
        (pa.array(["a", None, None]), "0.parquet, row 11: column 'document' is null"),
        (pa.array(["a", None]).dictionary_encode(), "0.parquet, row 11: column 'document' is null"),
        (pa.DictionaryArray.from_arrays([0, 1, 1], ["a", None]), "0.parquet, row 11: column 'document' is null"),
        (pa.nulls(3), "0.parquet, row 10: column 'document' is null"),
        (invalid(b"ok", "\ufffd".encode(), b"\xff\xfe"), "0.parquet, row 12: column 'document' is not UTF-8"),
        (invalid(b"ok", b"\xed\xa0\x80", b"\xff"), "0.parquet, row 11: column 'document' is not UTF-8"),
    ],
)
def test_what_is_no_text_is_named(column: pa.Array, message: str) -> None:
    with pytest.raises(InputError) as caught:
        read_texts(chunk_of(column), "document")
    assert caught.value.message == message
    assert caught.value.hint


def test_a_null_in_a_later_file_is_located_there() -> None:
    with pytest.raises(InputError, match=r"^1\.parquet, row 11: column 'document' is null"):
        read_texts(chunk_of(pa.array(["a", "b", "c"]), pa.array(["d", None])), "document")
