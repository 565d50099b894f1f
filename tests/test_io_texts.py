"""A text column is encoded once a distinct text, and a row that has none is a fault of that row."""

from __future__ import annotations

import pyarrow as pa
import pytest

from batchscore.io.block import Block
from batchscore.io.source import Chunk
from batchscore.io.texts import document_columns, read_texts
from batchscore.types import Cells, Fault, Faults

TEXTS = ["b", "", "a", "b", "東京", "", "b"]


def chunk_of(*columns: pa.Array) -> Chunk:
    """A window over one file a column part, whose rows count from 10."""
    tables = [pa.table({"document": column}) for column in columns]
    blocks = [
        Block(table, f"{number}.parquet", range(10, 10 + len(table)), "row") for number, table in enumerate(tables)
    ]
    return Chunk(pa.concat_tables(tables), tuple(blocks))


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
    faults: dict[int, Fault] = {}
    texts = read_texts(chunk_of(pa.array(TEXTS[:4], kind), pa.array(TEXTS[4:], kind)), "document", faults)
    assert faults == {}
    assert texts.values == ["b", "", "a", "東京"]
    assert texts.codes.dtype == "int32"
    assert texts.codes.tolist() == Cells.of(TEXTS).codes.tolist() == [0, 1, 2, 0, 3, 1, 0]


def test_a_slice_of_a_dictionary_brings_only_its_own_texts() -> None:
    column = pa.array(["a", "b", "c", "b"]).dictionary_encode().slice(2)
    assert read_texts(chunk_of(column), "document", {}).values == ["c", "b"]


@pytest.mark.parametrize("kind", [pa.string(), pa.null(), pa.int64()], ids=str)
def test_no_rows_are_no_texts(kind: pa.DataType) -> None:
    faults: dict[int, Fault] = {}
    texts = read_texts(chunk_of(pa.array([], kind)), "document", faults)
    assert (list(texts.values), texts.codes.tolist(), faults) == ([], [], {})


@pytest.mark.parametrize(
    ("column", "rows", "code", "message", "texts"),
    [
        (pa.array(["a", None, None]), [1, 2], "null", "is null", ["a", "", ""]),
        (pa.array(["a", None]).dictionary_encode(), [1], "null", "is null", ["a", ""]),
        (pa.DictionaryArray.from_arrays([0, 1, 1], ["a", None]), [1, 2], "null", "is null", ["a", "", ""]),
        (pa.nulls(3), [0, 1, 2], "null", "is null", ["", "", ""]),
        (invalid(b"ok", "\ufffd".encode(), b"\xff\xfe"), [2], "not-utf8", "is not UTF-8", ["ok", "\ufffd", ""]),
        (invalid(b"ok", b"\xed\xa0\x80", b"\xff", b"ok"), [1, 2], "not-utf8", "is not UTF-8", ["ok", "", "", "ok"]),
        (invalid(b"\xff", b"", b"\xff"), [0, 2], "not-utf8", "is not UTF-8", ["", "", ""]),
    ],
)
def test_a_row_without_a_text_is_a_fault_and_reads_as_an_empty_text(
    column: pa.Array, rows: list[int], code: str, message: str, texts: list[str]
) -> None:
    faults: dict[int, Fault] = {}
    found = read_texts(chunk_of(column), "document", faults)
    assert list(faults) == rows
    assert {fault.column for fault in faults.values()} == {"document"}
    assert {(fault.code, fault.message) for fault in faults.values()} == {(code, message)}
    assert all(fault.hint for fault in faults.values())
    assert [found.values[text] for text in found.codes] == texts


def test_nulls_and_bytes_in_one_column_are_told_apart() -> None:
    column = pa.concat_arrays([invalid(b"a", b"\xff"), pa.array([None, "b"], pa.string())])
    faults: dict[int, Fault] = {}
    assert [read_texts(chunk_of(column), "document", faults).values[0], *sorted(faults)] == ["a", 1, 2]
    assert [faults[row].code for row in (1, 2)] == ["not-utf8", "null"]


def test_the_first_fault_of_a_row_stays() -> None:
    first = Fault("null", "is null", column="query")
    faults = {1: first}
    read_texts(chunk_of(pa.array([None, None, "a"], pa.string())), "document", faults)
    assert sorted(faults) == [0, 1]
    assert faults[1] is first


def test_a_null_in_a_later_file_is_located_there() -> None:
    chunk = chunk_of(pa.array(["a", "b", "c"]), pa.array(["d", None]))
    faults: dict[int, Fault] = {}
    read_texts(chunk, "document", faults)
    assert [chunk.locate(row) for row in faults] == ["1.parquet, row 11"]


# ---- documents in several columns


def titled(**columns: object) -> Chunk:
    table = pa.table(columns)
    return Chunk(table, (Block(table, "corpus.jsonl", range(1, 1 + len(table)), "line"),))


def joined(chunk: Chunk, columns: tuple[str, ...], faults: Faults) -> list[str]:
    texts = read_texts(chunk, columns, faults)
    assert sorted(set(texts.values)) == sorted(texts.values)
    return [texts.values[code] for code in texts.codes]


@pytest.mark.parametrize(
    ("column", "names", "fields", "expected"),
    [
        ("text", ["_id", "title", "text"], None, ("title", "text")),
        ("text", ["_id", "text"], None, ("text",)),
        ("document", ["title", "document"], None, ("document",)),
        ("contents", ["title", "contents"], None, ("contents",)),
        ("text", ["title", "text"], ("text",), ("text",)),
        ("document", ["title", "body"], ("title", "body"), ("title", "body")),
    ],
)
def test_a_title_belongs_to_a_column_called_text_and_to_those_asked_for(
    column: str, names: list[str], fields: tuple[str, ...] | None, expected: tuple[str, ...]
) -> None:
    assert document_columns(column, names, fields) == expected


def test_title_and_text_are_joined_as_beir_joins_them() -> None:
    titles = ["T", "", None, " ", "T", "a b", "a", "T"]
    texts = ["x ", " y", "z", "w", "", "c", "b c", "x "]
    faults: Faults = {}
    found = joined(titled(title=titles, text=texts), ("title", "text"), faults)
    assert found == [f"{title or ''} {text}".strip() for title, text in zip(titles, texts, strict=True)]
    assert found == ["T x", "y", "z", "w", "T", "a b c", "a b c", "T x"]
    assert faults == {}


def test_a_single_column_is_not_stripped() -> None:
    assert joined(titled(title=["T"], text=[" x "]), ("text",), {}) == [" x "]


def test_a_document_of_nulls_alone_is_a_fault_and_bytes_are_told_of_either_column() -> None:
    bad = invalid(b"ok", b"\xff", b"ok", b"ok").take(pa.array([0, 1, None, 3]))
    faults: Faults = {}
    found = joined(titled(title=bad, text=pa.array(["a", "b", None, None])), ("title", "text"), faults)
    assert found == ["ok a", "b", "", "ok"]
    assert {row: (fault.code, fault.column) for row, fault in sorted(faults.items())} == {
        1: ("not-utf8", "text"),
        2: ("null", "text"),
    }


def test_three_columns_are_joined_in_their_order_and_empty_ones_leave_no_blank() -> None:
    chunk = titled(a=["1", "1"], b=[None, "2"], c=pa.array(["3", "3"]).dictionary_encode())
    assert joined(chunk, ("c", "b", "a"), {}) == ["3 1", "3 2 1"]
