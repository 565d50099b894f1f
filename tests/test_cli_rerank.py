"""`batchscore rerank` as a person runs it."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner, Result

import checkpoints
from batchscore import Scorer
from batchscore.cli.main import app
from test_cli_score import read, write

pytestmark = pytest.mark.usefixtures("here")

Tiny = Callable[[str], str]
Rows = list[dict[str, Any]]
_, TEXTS = checkpoints.pairs(60, seed=5)


def documents_of(query: int) -> Rows:
    return [{"id": f"q{query}-d{place}", "text": TEXTS[10 * query + place]} for place in range(10)]


NESTED: Rows = [{"qid": f"q{i}", "query": f"question {i}", "documents": documents_of(i)} for i in range(6)]
LONG = [
    {"qid": row["qid"], "query": row["query"], "document_id": document["id"], "document": document["text"]}
    for row in NESTED
    for document in row["documents"]
]


def rerank(model: str, *arguments: str) -> Result:
    """A run in float32, so that its numbers can be compared on every CPU."""
    return CliRunner().invoke(app, ["rerank", "--model", model, "--dtype", "float32", *arguments])


def expected(model: str, top_n: int = 0) -> Rows:
    """What `rerank` should write for NESTED, query by query through Scorer."""
    scorer, rows = Scorer(model, dtype="float32"), []
    for row in NESTED:
        found = scorer.rerank(row["query"], [document["text"] for document in row["documents"]], top_n)
        for rank, document in enumerate(found, start=1):
            identity = {"qid": row["qid"], "index": document.index, "document_id": f"{row['qid']}-d{document.index}"}
            rows.append(
                {**identity, "rank": rank, "relevance_score": pytest.approx(document.relevance_score, abs=1e-6)}
            )
    return rows


@pytest.mark.parametrize("name", ["bert_ce", "bert_mean"])
@pytest.mark.parametrize("rows", [NESTED, LONG], ids=["nested", "long"])
@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_lists_and_long_rows_rank_like_scorer(tiny: Tiny, name: str, rows: Rows, suffix: str) -> None:
    write(f"in.{suffix}", rows)
    result = rerank(tiny(name), "--in", f"in.{suffix}", "--out", f"out.{suffix}", "--query-id-column", "qid")

    assert result.exit_code == 0, result.output
    assert read(f"out.{suffix}") == expected(tiny(name))


@pytest.mark.parametrize("top_n", [1, 3, 100])
def test_top_n_keeps_the_best(tiny: Tiny, top_n: int) -> None:
    options = ["--query-id-column", "qid", "--top-n", str(top_n)]
    rerank(tiny("bert_mean"), "--in", write("in.jsonl", LONG), "--out", "out.jsonl", *options)

    assert read("out.jsonl") == expected(tiny("bert_mean"), top_n)


def test_rows_of_a_query_need_not_be_neighbours(tiny: Tiny) -> None:
    """Scattered over units and pruned in each, a query has the same best; index counts in input order."""
    scattered = random.Random(0).sample(LONG, len(LONG))
    write("in.jsonl", scattered)
    options = ["--query-id-column", "qid", "--top-n", "2", "--window-rows", "7"]
    result = rerank(tiny("bert_mean"), "--in", "in.jsonl", "--out", "out.jsonl", *options)

    assert result.exit_code == 0, result.output
    found = {(row["qid"], row["rank"]): row["document_id"] for row in read("out.jsonl")}
    assert found == {(row["qid"], row["rank"]): row["document_id"] for row in expected(tiny("bert_mean"), 2)}
    for row in read("out.jsonl"):
        of_query = [source["document_id"] for source in scattered if source["qid"] == row["qid"]]
        assert of_query[row["index"]] == row["document_id"]


def test_equal_scores_keep_the_documents_order(tiny: Tiny) -> None:
    write("in.jsonl", [{"query": "a", "documents": ["same", "same", "same"]}])
    rerank(tiny("bert_ce"), "--in", "in.jsonl", "--out", "out.jsonl")

    assert [(row["rank"], row["index"]) for row in read("out.jsonl")] == [(1, 0), (2, 1), (3, 2)]


def test_without_an_id_column_the_query_text_tells_queries_apart(tiny: Tiny) -> None:
    rows = [{"query": q, "document": d} for q, d in [("a", "x"), ("b", "y"), ("a", "z")]]
    rerank(tiny("bert_mean"), "--in", write("in.jsonl", rows), "--out", "out.jsonl")

    out = read("out.jsonl")
    assert list(out[0]) == ["query", "index", "rank", "relevance_score"]
    assert [(row["query"], row["rank"]) for row in out] == [("a", 1), ("a", 2), ("b", 1)]


def test_return_documents_writes_their_text(tiny: Tiny) -> None:
    options = ["--query-id-column", "qid", "--return-documents"]
    rerank(tiny("bert_mean"), "--in", write("in.jsonl", NESTED), "--out", "out.jsonl", *options)

    texts = {row["document_id"]: row["document"] for row in LONG}
    assert all(row["document"] == texts[row["document_id"]] for row in read("out.jsonl"))


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_nested_writes_one_row_a_query(tiny: Tiny, suffix: str) -> None:
    """A query without documents is there too, with an empty list."""
    rows: Rows = [*NESTED, {"qid": "none", "query": "nothing to rank", "documents": []}]
    options = ["--query-id-column", "qid", "--top-n", "3", "--nested"]
    result = rerank(tiny("bert_mean"), "--in", write("in.jsonl", rows), "--out", f"out.{suffix}", *options)

    assert result.exit_code == 0, result.output
    out = read(f"out.{suffix}")
    flat = [{"qid": row["qid"], **found} for row in out for found in row["results"]]
    assert flat == expected(tiny("bert_mean"), 3)
    assert out[-1] == {"qid": "none", "results": []}


@pytest.mark.parametrize("nested", [False, True])
def test_a_document_that_is_null_is_returned_as_null(tiny: Tiny, nested: bool) -> None:
    rows: Rows = [{"query": "a", "document": text} for text in ("x", None, "")]
    write("in.jsonl", [{"query": "a", "documents": [row["document"] for row in rows]}] if nested else rows)
    result = rerank(
        tiny("bert_mean"), "--in", "in.jsonl", "--out", "out.jsonl", "--return-documents", "--errors", "null"
    )

    assert result.exit_code == 7, result.output
    documents = [(row["index"], row["document"], row["relevance_score"] is None) for row in read("out.jsonl")]
    assert sorted(documents) == [(0, "x", False), (1, None, True), (2, "", False)]
    assert len(read("out.jsonl.errors.jsonl")) == 1


def test_number_ids_stay_numbers(tiny: Tiny) -> None:
    write("in.parquet", [{"qid": 7, "query": "a", "document_id": 1, "document": "x"}])
    rerank(tiny("bert_mean"), "--in", "in.parquet", "--out", "out.parquet", "--query-id-column", "qid")

    row = pq.read_table("out.parquet").to_pylist()[0]
    assert (row["qid"], row["document_id"]) == (7, 1)


@pytest.mark.parametrize(
    ("rows", "options", "code", "said"),
    [
        (LONG, ["--query-id-column", "query_id"], 5, "column 'query_id' not found in in.jsonl"),
        (LONG, ["--document-id-column", "docid"], 5, "hint: pass --document-id-column"),
        ([{"query": "a"}], [], 5, "column 'document' not found in in.jsonl; columns: query"),
        ([{"query": "a", "documents": ["x", None]}], [], 5, "in.jsonl, line 1: column 'documents[1]' is null"),
        ([{"query": "a", "documents": [{"body": "x", "text": None}]}], [], 5, "in.jsonl, line 1"),
        (
            [{"query": "a", "documents": [{"title": "x"}]}],
            [],
            5,
            "have no text field; fields: title\nhint: name the text",
        ),
        ([{"query": "a", "documents": [1, 2]}], [], 5, "column 'documents[0]' is null, or no text"),
        ([{"qid": None, "query": "a", "document": "b"}], ["--query-id-column", "qid"], 5, "column 'qid' is null"),
        ([{"query": "a", "document": "b", "rank": 3}], ["--query-id-column", "rank"], 2, "'rank'"),
    ],
)
def test_bad_input_is_named(tiny: Tiny, rows: Rows, options: list[str], code: int, said: str) -> None:
    write("in.jsonl", rows)
    result = rerank(tiny("bert_mean"), "--in", "in.jsonl", "--out", "out.jsonl", "--errors", "fail", *options)

    assert result.exit_code == code, result.output
    assert said in result.stderr
    assert not Path("out.jsonl").exists()


# ---- models that read all documents of a query together


@pytest.mark.parametrize("rows", [LONG, NESTED], ids=["long", "nested"])
@pytest.mark.parametrize("window", [1, 7, 1000])
def test_a_listwise_model_is_shown_each_querys_documents_together(tiny: Tiny, rows: Rows, window: int) -> None:
    """Whatever is read at once: a query's rows are never divided."""
    model = tiny("jina_listwise")
    source = write("rows.jsonl", rows)
    result = rerank(
        model, "--in", source, "--out", "out.jsonl", "--query-id-column", "qid", "--window-rows", str(window)
    )

    assert result.exit_code == 0, result.output
    assert read("out.jsonl") == expected(model)


def test_rows_of_one_query_that_are_no_neighbours_are_refused_by_a_listwise_model(tiny: Tiny) -> None:
    source = write("rows.jsonl", [*LONG[:3], *LONG[10:12], LONG[3]])
    result = rerank(tiny("jina_listwise"), "--in", source, "--out", "out.jsonl", "--query-id-column", "qid")

    assert result.exit_code == 5
    assert "rows.jsonl, line 6: its query came before, among other queries" in result.output
    assert "sort them by query" in result.output
    assert not Path("out.jsonl").exists()


def test_lists_are_seen_behind_a_first_row_without_one(tiny: Tiny) -> None:
    rows: Rows = [{"qid": "none", "query": "a", "documents": None}, *NESTED]
    write("in.jsonl", rows)
    result = rerank(tiny("bert_mean"), "--in", "in.jsonl", "--out", "out.jsonl", "--query-id-column", "qid")

    assert result.exit_code == 7, result.output
    assert read("out.jsonl") == expected(tiny("bert_mean"))


@pytest.mark.parametrize("bad", [[1], {"a": 1}], ids=["list", "struct"])
def test_an_id_that_cannot_tell_queries_apart_is_refused(tiny: Tiny, bad: Any) -> None:
    write("in.jsonl", [{"qid": bad, "query": "q", "document": "d"}])
    result = rerank(tiny("bert_ce"), "--in", "in.jsonl", "--query-id-column", "qid", "--out", "out.jsonl")
    assert result.exit_code == 5
    assert "in.jsonl, line 1: column 'qid' is " in result.stderr


def test_views_are_read_as_plain_strings(tiny: Tiny) -> None:
    """polars and DuckDB may leave them in a file's schema."""
    plain = pa.Table.from_pylist(LONG)
    views = plain.cast(pa.schema([(name, pa.string_view()) for name in plain.column_names]))
    for name, table in (("plain", plain), ("views", views)):
        pq.write_table(table, f"{name}.parquet")
        options = ["--query-id-column", "qid", "--return-documents", "--out", f"{name}.jsonl", "--window-rows", "7"]
        assert rerank(tiny("bert_ce"), "--in", f"{name}.parquet", *options).exit_code == 0
    assert pq.read_schema("views.parquet").field("qid").type == pa.string_view()
    assert Path("views.jsonl").read_bytes() == Path("plain.jsonl").read_bytes()


# ---- documents with a title


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], ["Cats sleep", "dogs run"]),
        (["--document-fields", "text"], ["sleep", "dogs run"]),
        (["--document-fields", "text,title,year"], ["sleep Cats 1999", "dogs run"]),
    ],
)
def test_fields_of_listed_documents_are_joined_and_returned_joined(
    here: Path, tiny: Callable[[str], str], options: list[str], expected: list[str]
) -> None:
    documents = [
        {"id": "a", "title": "Cats", "text": "sleep", "year": "1999"},
        {"id": "b", "title": "", "text": "dogs run"},
    ]
    Path("in.jsonl").write_text(json.dumps({"query": "cat", "documents": documents}) + "\n", "utf-8")
    command = ["rerank", "--model", tiny("bert_ce"), "--dtype", "float32", "--in", "in.jsonl", "--return-documents"]
    result = CliRunner().invoke(app, [*command, "--out", "out.jsonl", *options])

    assert result.exit_code == 0, result.output
    rows = [json.loads(row) for row in Path("out.jsonl").read_text("utf-8").splitlines()]
    assert {row["document_id"]: row["document"] for row in rows} == dict(zip("ab", expected, strict=True))
    scorer = Scorer(tiny("bert_ce"), dtype="float32")
    assert {row["document_id"]: row["relevance_score"] for row in rows} == {
        name: pytest.approx(float(scorer.score("cat", text)[0]), abs=1e-6)
        for name, text in zip("ab", expected, strict=True)
    }


def test_columns_that_are_joined_need_no_document_column(here: Path, tiny: Callable[[str], str]) -> None:
    Path("in.jsonl").write_text('{"query": "cat", "heading": "Cats", "body": "sleep"}\n', "utf-8")
    command = ["rerank", "--model", tiny("bert_ce"), "--in", "in.jsonl", "--out", "out.jsonl", "--return-documents"]
    result = CliRunner().invoke(app, [*command, "--document-fields", "heading,body"])

    assert result.exit_code == 0, result.output
    assert json.loads(Path("out.jsonl").read_text("utf-8"))["document"] == "Cats sleep"
