"""Bodies of the scoring API: every field and alias is read, and what is wrong is one error object that names it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from batchscore.requests import (
    BatchAnswer,
    BatchLine,
    BatchResponse,
    RequestError,
    RerankRequest,
    ScoreRequest,
    read,
)
from batchscore.types import Fault

QUERY, DOCUMENTS = "what is a cat", ["a dog", "the old cat"]


def refused(kind: type[Any], body: Any) -> dict[str, Any]:
    with pytest.raises(RequestError) as caught:
        read(kind, body)
    return caught.value.response.model_dump()["error"]


@pytest.mark.parametrize(
    ("queries", "documents"),
    [("queries", "documents"), ("queries", "items"), ("data_1", "data_2"), ("text_1", "text_2")],
)
@pytest.mark.parametrize(
    ("given", "sides"),
    [
        ((QUERY, "a dog"), ([QUERY], ["a dog"])),
        ((QUERY, DOCUMENTS), ([QUERY], DOCUMENTS)),
        (([QUERY], DOCUMENTS), ([QUERY], DOCUMENTS)),
        (([QUERY, "a"], DOCUMENTS), ([QUERY, "a"], DOCUMENTS)),
    ],
    ids=["1:1", "1:N", "[1]:N", "N:N"],
)
def test_both_sides_have_four_pairs_of_names(queries: str, documents: str, given: Any, sides: Any) -> None:
    request = read(ScoreRequest, {queries: given[0], documents: given[1]})

    assert request.sides == sides
    assert (request.place("query", 0), request.place("document", 1)) == (f"{queries}[0]", f"{documents}[1]")
    assert request.unknown == []


def test_the_first_pair_of_names_is_read_and_the_others_are_said() -> None:
    both = {
        "text_1": "a",
        "text_2": "b",
        "queries": QUERY,
        "documents": DOCUMENTS,
        "items": "c",
        "encoding_format": "float",
    }
    request = read(ScoreRequest, both)

    assert request.sides == ([QUERY], DOCUMENTS)
    assert request.unknown == ["encoding_format", "items", "text_1", "text_2"]


def test_every_field_of_the_tables_is_read() -> None:
    fields = {
        "model": "m",
        "user": "u",
        "truncate_prompt_tokens": -1,
        "padding": "do_not_pad",
        "truncation_side": "left",
        "request_id": "r",
        "priority": -(2**63),
        "mm_processor_kwargs": {"max_pixels": 4},
        "cache_salt": "s" * 128,
        "use_activation": False,
        "max_tokens_per_query": 0,
        "max_tokens_per_doc": 7,
        "instruction": "find",
        "chat_template_kwargs": {"a": [1]},
    }
    for request in (
        read(ScoreRequest, {"queries": "a", "documents": "b", **fields}),
        read(RerankRequest, {"query": "a", "documents": "b", "top_n": 3, **fields}),
    ):
        assert {name: getattr(request, name) for name in fields} == fields
        assert request.unknown == []


@pytest.mark.parametrize(
    ("change", "param", "message"),
    [
        ({"top_n": -1}, "top_n", "top_n: Input should be greater than or equal to 0"),
        ({"top_n": 1.5}, "top_n", "top_n: Input should be a valid integer, got a number with a fractional part"),
        (
            {"truncate_prompt_tokens": -2},
            "truncate_prompt_tokens",
            "truncate_prompt_tokens: Input should be greater than or equal to -1",
        ),
        ({"truncation_side": "up"}, "truncation_side", "truncation_side: Input should be 'left' or 'right'"),
        ({"padding": "longest"}, "padding", "padding: Input should be 'max_length' or 'do_not_pad'"),
        ({"cache_salt": ""}, "cache_salt", "cache_salt: String should have at least 1 character"),
        ({"cache_salt": "s" * 129}, "cache_salt", "cache_salt: String should have at most 128 characters"),
        ({"cache_salt": "a\0"}, "cache_salt", r"cache_salt: String should match pattern '^[^@/\\\x00]+$'"),
        ({"priority": 2**63}, "priority", "priority: Input should be less than 9223372036854775808"),
        (
            {"max_tokens_per_doc": -1},
            "max_tokens_per_doc",
            "max_tokens_per_doc: Input should be greater than or equal to 0",
        ),
        ({"query": [QUERY]}, "query", "query: Input should be a string, or an object with content parts"),
        ({"query": None}, "query", "query: Input should be a string, or an object with content parts"),
        (
            {"documents": ["a", 3]},
            "documents[1]",
            "documents[1]: Input should be a string, or an object with content parts",
        ),
        (
            {"documents": [{"content": []}]},
            "documents[0]",
            "documents[0]: an object needs a list of content parts in `content`",
        ),
        ({"documents": []}, None, "At least one text_pair element must be given"),
        (
            {"top_n": -1, "padding": "x"},
            "padding",
            "padding: Input should be 'max_length' or 'do_not_pad'; top_n: Input should be greater than or equal to 0",
        ),
    ],
    ids=str,
)
def test_what_a_field_cannot_hold_is_refused_by_its_name(change: Any, param: str | None, message: str) -> None:
    error = refused(RerankRequest, {"query": QUERY, "documents": DOCUMENTS, **change})

    assert error == {"message": message, "type": "BadRequestError", "param": param, "code": 400}


@pytest.mark.parametrize(
    ("queries", "documents", "message"),
    [
        (["a", "b"], "c", "Input lengths must be either 1:1, 1:N or N:N"),
        (["a", "b"], ["c", "d", "e"], "Input lengths must be either 1:1, 1:N or N:N"),
        (["a", "b"], [], "Input lengths must be either 1:1, 1:N or N:N"),
        ([], ["c"], "At least one text element must be given"),
        ([], [], "At least one text element must be given"),
        ("a", [], "At least one text_pair element must be given"),
    ],
)
def test_lengths_are_those_of_vllm(queries: Any, documents: Any, message: str) -> None:
    assert refused(ScoreRequest, {"text_1": queries, "text_2": documents})["message"] == message


def test_names_of_different_pairs_do_not_match() -> None:
    error = refused(ScoreRequest, {"queries": "a", "text_2": "b"})

    pairs = "queries and documents, or queries and items, or data_1 and data_2, or text_1 and text_2"
    assert error["message"] == f"a request has {pairs}"


@pytest.mark.parametrize(
    ("line", "param", "message"),
    [
        (b"not json", None, "Invalid JSON: expected ident at line 1 column 2"),
        (b'{"a": 1', None, "Invalid JSON: EOF while parsing an object at line 1 column 7"),
        (b"[1]", None, "Input should be an object"),
        (b'{"url": "/score", "body": {}}', "custom_id", "custom_id: Field required"),
        (b'{"custom_id": "a", "url": "/score", "body": []}', "body", "body: Input should be an object"),
    ],
)
def test_a_line_that_is_none_is_refused(line: bytes, param: str | None, message: str) -> None:
    assert refused(BatchLine, line) == {"message": message, "type": "BadRequestError", "param": param, "code": 400}


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        *((url, ScoreRequest) for url in ("/score", "/v1/score", "/x/score")),
        *((url, RerankRequest) for url in ("/rerank", "/v1/rerank", "/v2/rerank", "http://127.0.0.1:8000/v1/rerank")),
    ],
)
def test_the_end_of_the_url_says_what_is_asked_for(url: str, kind: type[Any]) -> None:
    body = {"query": "a", "queries": "a", "documents": "b"}
    line = read(BatchLine, json.dumps({"custom_id": "1", "method": "GET", "url": url, "body": body}).encode())

    assert type(line.request) is kind


def test_other_urls_are_refused() -> None:
    line = read(BatchLine, {"custom_id": "1", "url": "/v1/embeddings", "body": {"input": "a"}})

    with pytest.raises(RequestError, match="'/v1/embeddings' is no URL of the scoring API"):
        _ = line.request


@pytest.mark.parametrize(
    ("code", "status", "kind"),
    [
        ("too-long", 400, "BadRequestError"),
        ("media-missing", 422, "UnprocessableEntityError"),
        ("media-damaged", 422, "UnprocessableEntityError"),
        ("media-refused", 400, "BadRequestError"),
        ("not-supported", 501, "NotImplementedError"),
        ("non-finite", 500, "InternalServerError"),
        ("out-of-memory", 500, "InternalServerError"),
    ],
)
def test_what_is_wrong_with_a_pair_decides_the_status(code: str, status: int, kind: str) -> None:
    error = RequestError.of(Fault(code, "is bad", "do this"), "documents[2]").response.error

    assert (error.code, error.type, error.param) == (status, kind, "documents[2]")
    assert error.message.startswith("documents[2]: is bad; ")


def test_a_score_response_has_the_fields_of_the_documentation() -> None:
    request = read(ScoreRequest, {"queries": "a", "documents": ["b", "c"]})
    response = request.response([0.25, 1.0], 12, request_id="x", created=693447, model="m")

    details = {"prompt_tokens_details": None, "completion_tokens_details": None}
    assert response.model_dump() == {
        "id": "score-x",
        "object": "list",
        "created": 693447,
        "model": "m",
        "data": [{"index": 0, "object": "score", "score": 0.25}, {"index": 1, "object": "score", "score": 1.0}],
        "usage": {"prompt_tokens": 12, "total_tokens": 12, "completion_tokens": 0, **details},
    }


def test_a_rerank_response_has_the_best_documents_as_they_were_sent() -> None:
    image = [{"type": "image_url", "image_url": {"url": "a.png"}}]
    request = read(RerankRequest, {"query": "a", "documents": ["b", {"content": image}, {"text": "c"}], "top_n": 2})
    response = request.response([0.5, 0.25, 1.0], [2, 0, 1], 9, request_id="x", model="m")

    assert response.model_dump() == {
        "id": "score-x",
        "model": "m",
        "usage": {"prompt_tokens": 9, "total_tokens": 9},
        "results": [
            {"index": 2, "document": {"text": None, "multi_modal": [{"text": "c"}]}, "relevance_score": 1.0},
            {"index": 0, "document": {"text": "b", "multi_modal": None}, "relevance_score": 0.5},
        ],
    }
    whole = read(RerankRequest, {"query": "a", "documents": [{"content": image}]})
    (result,) = whole.response([0.5], [0], 9, request_id="x", model="m").results
    assert result.document.model_dump() == {"text": None, "multi_modal": image}


def test_warnings_are_there_only_where_there_are_some() -> None:
    answer = BatchAnswer(id="a", custom_id="b", response=BatchResponse(request_id="c"))

    assert "warnings" not in json.loads(answer.model_dump_json())
    answer.warnings = ["x"]
    assert json.loads(answer.model_dump_json())["warnings"] == ["x"]


def test_a_server_can_describe_them() -> None:
    schema = ScoreRequest.model_json_schema()

    assert schema["properties"]["queries"]["anyOf"][0]["items"] == {"anyOf": [{"type": "string"}, {"type": "object"}]}
