"""Rows with lists of documents become one row a document, and what is no document is named with its row and place."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from batchscore.errors import InputError
from batchscore.io.block import Block
from batchscore.io.documents import Documents, document_fields, explode, require_fields
from batchscore.io.schema import is_nested
from batchscore.io.source import Chunk
from batchscore.types import Fault

STRINGS = [["a", "b"], [], ["c"], ["a", "d", "a"]]
STRUCTS = [[{"id": "1", "text": "a"}, {"id": "2", "text": "b"}], [], [{"id": "3", "text": "a"}]]


def chunk_of(column: Any) -> Chunk:
    table = pa.table({"documents": column})
    return Chunk(table, (Block(table, "pairs.jsonl", range(1, 1 + len(table)), "line"),))


def documents_of(column: Any, id_field: str | None = None) -> Documents:
    """Documents of a column without a fault."""
    row_faults: dict[int, Fault] = {}
    faults: dict[int, Fault] = {}
    documents = explode(chunk_of(column), "documents", id_field, row_faults, faults)
    assert (row_faults, faults) == ({}, {})
    return documents


def texts_of(documents: Documents) -> list[str]:
    return [documents.texts.values[code] for code in documents.texts.codes]


@pytest.mark.parametrize(
    "kind", [pa.list_(pa.string()), pa.large_list(pa.string()), pa.list_(pa.large_string())], ids=str
)
def test_lists_of_strings_become_one_row_a_document(kind: pa.DataType) -> None:
    documents = documents_of(pa.array(STRINGS, kind))
    assert texts_of(documents) == ["a", "b", "c", "a", "d", "a"]
    assert documents.parents.tolist() == [0, 0, 2, 3, 3, 3]
    assert documents.texts.values == ["a", "b", "c", "d"]
    assert documents.ids is None


def test_fixed_size_lists_are_lists() -> None:
    documents = documents_of(pa.array([["a", "b"], ["c", "d"]], pa.list_(pa.string(), 2)))
    assert (texts_of(documents), documents.parents.tolist()) == (["a", "b", "c", "d"], [0, 0, 1, 1])


@pytest.mark.parametrize("rows", [STRINGS, STRUCTS])
def test_sliced_and_chunked_columns_read_as_their_rows(rows: list[Any]) -> None:
    whole = pa.array(rows)
    column = pa.chunked_array([whole.slice(2), whole.slice(0, 0), whole.slice(0, 1), whole.slice(1, 2)])
    documents = documents_of(column)
    reference = documents_of(column.to_pylist())
    assert texts_of(documents) == texts_of(reference)
    assert documents.parents.tolist() == reference.parents.tolist()
    assert str(documents.ids) == str(reference.ids)


def test_structs_give_texts_and_ids() -> None:
    documents = documents_of(STRUCTS)
    assert texts_of(documents) == ["a", "b", "a"]
    assert documents.parents.tolist() == [0, 0, 2]
    assert documents.ids is not None
    assert documents.ids.to_pylist() == ["1", "2", "3"]


@pytest.mark.parametrize(
    ("document", "id_field", "expected"),
    [
        ({"text": "t", "body": "x"}, None, ("t", None)),
        ({"contents": "t", "title": "x"}, None, ("t", None)),
        ({"docno": 1, "content": "t", "_id": 2}, None, ("t", 2)),
        ({"docno": 1, "document": "t", "_id": 2}, "docno", ("t", 1)),
        ({"url": "u", "text": "t"}, "url", ("t", "u")),
    ],
)
def test_fields_are_found_by_their_usual_names(document: Any, id_field: str | None, expected: tuple[str, Any]) -> None:
    documents = documents_of([[document]], id_field)
    assert (texts_of(documents)[0], documents.ids[0].as_py() if documents.ids else None) == expected


@pytest.mark.parametrize("column", [pa.array([[], []]), pa.array([], pa.list_(pa.string())), [[], []]])
def test_empty_lists_are_no_documents(column: Any) -> None:
    documents = documents_of(column)
    assert (documents.parents.tolist(), texts_of(documents)) == ([], [])


@pytest.mark.parametrize(
    ("column", "id_field", "message"),
    [
        ([[{"title": "a"}]], None, "no text field; fields: title"),
        ([[{"body": "a", "content": "b"}]], None, "no text field; fields: body, content"),
        ([[{"text": "a"}]], "url", "no field 'url'; fields: text"),
        ([["a"]], "url", "no field 'url'; fields: none"),
    ],
)
def test_a_column_whose_documents_lack_a_field_is_an_error(column: Any, id_field: str | None, message: str) -> None:
    with pytest.raises(InputError) as caught:
        require_fields(pa.array(column).type, id_field, "here")
    assert caught.value.message == f"here: its documents have {message}"
    assert caught.value.hint


@pytest.mark.parametrize("column", [[[]], [None], [[None]], STRINGS, STRUCTS])
def test_a_column_that_may_hold_documents_is_none(column: Any) -> None:
    require_fields(pa.array(column).type, None, "here")


def test_rows_none_of_whose_documents_has_the_fields_are_at_fault() -> None:
    """As a part of a file of lines may be."""
    faults: dict[int, Fault] = {}
    documents = explode(chunk_of([[{"title": "a"}], [{"title": "b"}]]), "documents", "url", {}, faults)
    assert (sorted(faults), documents.ids) == ([0, 1], None)


@pytest.mark.parametrize(
    ("column", "nulls", "texts"),
    [
        ([["a", "b"], ["c", None]], {3: "documents[1]"}, ["a", "b", "c", ""]),
        ([[], [None], [None, "a"]], {0: "documents[0]", 1: "documents[0]"}, ["", "", "a"]),
        ([[{"text": "a"}], [{"text": "b"}, None]], {2: "documents[1]"}, ["a", "b", ""]),
        ([[{"text": "a"}, {"text": None}]], {1: "documents[1]"}, ["a", ""]),
    ],
)
def test_a_document_without_a_text_is_a_fault_of_that_document(
    column: Any, nulls: dict[int, str], texts: list[str]
) -> None:
    row_faults: dict[int, Fault] = {}
    faults: dict[int, Fault] = {}
    documents = explode(chunk_of(column), "documents", None, row_faults, faults)
    assert row_faults == {}
    assert {document: fault.column for document, fault in faults.items()} == nulls
    assert {(fault.code, fault.message) for fault in faults.values()} == {("null", "is null, or no text")}
    assert texts_of(documents) == texts


@pytest.mark.parametrize("column", [[["a"], None, [], ["b"]], pa.array([["a"], None, [], ["b"]]).slice(0)])
def test_a_row_without_a_list_is_a_fault_of_that_row_and_has_no_documents(column: Any) -> None:
    row_faults: dict[int, Fault] = {}
    documents = explode(chunk_of(column), "documents", None, row_faults, {})
    assert row_faults == {1: Fault("null", "is null", "an empty list means no documents", "documents")}
    assert (texts_of(documents), documents.parents.tolist()) == (["a", "b"], [0, 3])


def test_rows_that_are_all_null_have_a_fault_each() -> None:
    earlier = Fault("null", "is null", column="query")
    row_faults = {1: earlier}
    documents = explode(chunk_of(pa.nulls(3)), "documents", None, row_faults, {})
    assert (sorted(row_faults), row_faults[1]) == ([0, 1, 2], earlier)
    assert texts_of(documents) == []


def test_a_null_of_a_fixed_size_is_a_fault_and_no_documents() -> None:
    column = pa.array([["a", "b"], None, ["c", "d"]], pa.list_(pa.string(), 2))
    row_faults: dict[int, Fault] = {}
    faults: dict[int, Fault] = {}
    documents = explode(chunk_of(column), "documents", None, row_faults, faults)
    assert (list(row_faults), faults) == ([1], {})
    assert (texts_of(documents), documents.parents.tolist()) == (["a", "b", "c", "d"], [0, 0, 2, 2])


def test_nested_types_are_told_from_flat_ones() -> None:
    nested = [pa.list_(pa.string()), pa.large_list(pa.string()), pa.list_(pa.string(), 3)]
    assert [is_nested(kind) for kind in nested] == [True] * 3
    assert not is_nested(pa.string())
    assert not is_nested(pa.struct([("text", pa.string())]))


# ---- titles


@pytest.mark.parametrize(
    ("document", "fields", "expected"),
    [
        ({"title": "T", "text": "x "}, None, "T x"),
        ({"title": None, "text": " x"}, None, "x"),
        ({"title": "", "text": "x"}, None, "x"),
        ({"title": "T", "contents": "x"}, None, "x"),
        ({"title": "T", "text": "x"}, ("text",), "x"),
        ({"title": "T", "text": "x"}, ("text", "title"), "x T"),
        ({"title": "T", "abstract": "A", "body": "x"}, ("title", "abstract", "body"), "T A x"),
        ({"title": "T", "year": 2001}, ("title", "year"), "T 2001"),
    ],
)
def test_a_title_beside_text_is_part_of_the_document(
    document: dict[str, Any], fields: tuple[str, ...] | None, expected: str
) -> None:
    column, faults = pa.array([[document]]), dict[int, Fault]()
    require_fields(column.type, None, "here", fields)
    documents = explode(chunk_of(column), "documents", None, {}, faults, fields)
    assert (texts_of(documents), faults) == ([expected], {})


def test_which_fields_are_joined_can_be_told() -> None:
    kind = pa.list_(pa.struct([("title", pa.string()), ("text", pa.string())]))
    assert document_fields(kind, None) == document_fields(kind.value_type, None) == ("title", "text")
    assert document_fields(kind, ("text",)) == ("text",)
    assert document_fields(pa.list_(pa.string()), None) == ()


def test_fields_that_are_not_there_are_named() -> None:
    with pytest.raises(InputError, match="here: its documents have no field 'titel'; fields: text") as caught:
        require_fields(pa.array([[{"text": "a"}]]).type, None, "here", ("titel", "text"))
    assert caught.value.hint == "pass --document-fields with one of these fields"
    with pytest.raises(InputError, match="documents: field 'tags' of its documents is list.*, not text"):
        explode(chunk_of([[{"text": "a", "tags": ["b"]}]]), "documents", None, {}, {}, ("text", "tags"))


def test_a_unit_none_of_whose_documents_has_a_title_has_their_texts() -> None:
    documents = explode(chunk_of([[{"text": "a"}]]), "documents", None, {}, {}, ("title", "text"))
    assert texts_of(documents) == ["a"]
