"""`rerank --keep-columns` and `--keep-document-fields`: what an output has besides ids, ranks and scores."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchscore import Scorer, rerank_files
from batchscore.errors import BatchscoreError, InputError, UsageError
from batchscore.jobs import rankings

Tiny = Callable[[str], str]
Rows = list[dict[str, Any]]

DOCUMENTS = [
    {"id": "d1", "title": "Cats", "text": "the old cat", "url": "u1", "year": 1999},
    {"id": "d2", "title": "", "text": "a dog", "url": "u2", "year": 2001},
    {"id": "d3", "text": "light over water", "url": None},
]
NESTED: Rows = [
    {"qid": "q1", "query": "what is a cat", "lang": "en", "meta": {"n": 1}, "documents": DOCUMENTS},
    {"qid": "q2", "query": "water", "lang": None, "meta": {"n": 2}, "documents": DOCUMENTS[1:]},
    {"qid": "q3", "query": "nothing", "lang": "de", "meta": {"n": 3}, "documents": []},
]
LONG: Rows = [
    {"qid": qid, "query": query, "document_id": one["id"], "document": one["text"], "url": one["url"], "n": number}
    for number, one in enumerate(DOCUMENTS)
    for qid, query in (("q1", "what is a cat"), ("q2", "water"))
]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(path: str, rows: Rows) -> str:
    if path.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def read(path: str) -> Rows:
    if path.endswith(".parquet"):
        return pq.read_table(path).to_pylist()
    return [json.loads(line) for line in Path(path).read_text("utf-8").splitlines()]


def rerank(model: str, rows: Rows | str, out: str = "out.jsonl", **options: Any) -> Rows:
    path = rows if isinstance(rows, str) else write("in.jsonl", rows)
    options = {"query_id_column": "qid", "dtype": "float32", "overwrite": True, **options}
    rerank_files(model, path, out, **options)
    return read(out)


def joined(plain: Rows, rows: Rows, columns: Sequence[str], *on: str) -> Rows:
    """What a person would join: rows of the output with columns of the input."""
    by = {tuple(row[name] for name in on): row for row in rows}
    return [{**one, **{name: by[tuple(one[name] for name in on)].get(name) for name in columns}} for one in plain]


def rounded(value: Any) -> Any:
    """Rows with five digits of each score: other units give other last ones."""
    if isinstance(value, list):
        return [rounded(part) for part in value]
    if isinstance(value, dict):
        return {name: rounded(part) for name, part in value.items()}
    return round(value, 5) if isinstance(value, float) else value


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_a_querys_columns_are_beside_its_id_as_if_joined_later(tiny: Tiny, suffix: str) -> None:
    path = write(f"in.{suffix}", NESTED)
    plain = rerank(tiny("bert_ce"), path)
    kept = rerank(tiny("bert_ce"), path, f"out.{suffix}", keep_columns="query,lang,meta")

    assert kept == joined(plain, NESTED, ["query", "lang", "meta"], "qid")
    assert list(kept[0])[:4] == ["qid", "query", "lang", "meta"]


def test_nested_output_has_a_querys_columns_once_and_is_the_flat_one_exploded(tiny: Tiny) -> None:
    options = {"keep_columns": "query,lang", "keep_document_fields": "url,year", "top_n": 2}
    flat = rerank(tiny("bert_ce"), NESTED, **options)
    nested = rerank(tiny("bert_ce"), NESTED, nested=True, **options)

    assert [list(row) for row in nested] == [["qid", "query", "lang", "results"]] * 3
    assert [{**row, **one} for row in nested for one in row.pop("results")] == flat
    assert nested[-1] == {"qid": "q3", "query": "nothing", "lang": "de"}


def test_each_document_of_its_own_row_has_the_columns_of_that_row(tiny: Tiny) -> None:
    plain = rerank(tiny("bert_ce"), LONG)
    flat = rerank(tiny("bert_ce"), LONG, keep_columns=["query", "url", "n"])
    nested = rerank(tiny("bert_ce"), LONG, keep_columns=["query", "url", "n"], nested=True)

    assert flat == joined(plain, LONG, ["query", "url", "n"], "qid", "document_id")
    assert list(flat[0]) == ["qid", "query", "index", "document_id", "rank", "relevance_score", "url", "n"]
    assert [list(row) for row in nested] == [["qid", "query", "results"]] * 2
    assert [{**row, **one} for row in nested for one in row.pop("results")] == flat


@pytest.mark.parametrize("fields", ["url,title", "all"])
def test_fields_of_documents_are_kept(tiny: Tiny, fields: str) -> None:
    names = ["title", "text", "url", "year"] if fields == "all" else fields.split(",")
    plain = rerank(tiny("bert_ce"), NESTED)
    kept = rerank(tiny("bert_ce"), NESTED, keep_document_fields=fields)
    documents = [{"document_id": one["id"], **one} for one in DOCUMENTS]

    assert kept == joined(plain, documents, names, "document_id")


def test_all_is_what_the_output_would_not_have_otherwise(tiny: Tiny) -> None:
    nested = rerank(tiny("bert_ce"), NESTED, keep_columns="all")
    long = rerank(tiny("bert_ce"), LONG, keep_columns="all", return_documents=True)

    assert list(nested[0]) == ["qid", "query", "lang", "meta", "index", "document_id", "rank", "relevance_score"]
    assert set(long[0]) == {*LONG[0], "index", "rank", "relevance_score"}
    assert all(row["document"] == one["text"] for row in long for one in DOCUMENTS if one["id"] == row["document_id"])


@pytest.mark.parametrize("rows", [LONG, NESTED], ids=["long", "nested"])
@pytest.mark.parametrize("nested", [False, True])
def test_shards_and_piles_give_what_one_unit_gives(
    tiny: Tiny, rows: Rows, nested: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"keep_columns": "all", "nested": nested, "return_documents": rows is LONG}
    whole = rerank(tiny("bert_ce"), rows, **options)
    monkeypatch.setitem(rankings.merge_rankings.__kwdefaults__, "documents_a_pile", 2)
    monkeypatch.setattr(rankings, "_BYTES_A_TABLE", 64)
    for shard in ("0/2", "1/2"):
        options |= {"overwrite": False, "unit_rows": 1, "shard": shard, "merge": True, "query_id_column": "qid"}
        rerank_files(tiny("bert_ce"), "in.jsonl", "parts/", dtype="float32", **options)

    assert rounded(read("parts.parquet")) == rounded(whole)


def test_types_that_differ_between_parts_become_text(tiny: Tiny) -> None:
    rows: Rows = [{**row, "n": "x" if row["n"] == 2 else row["n"], "k": row["n"]} for row in LONG]
    rows[0]["k"] = None
    kept = rerank(tiny("bert_ce"), rows, keep_columns="n,k", unit_rows=1)

    assert {(row["document_id"], row["n"]) for row in kept} == {("d1", "0"), ("d2", "1"), ("d3", "x")}
    assert [row["k"] for row in kept if row["document_id"] != "d1"] == [
        DOCUMENTS.index(one) for row in kept for one in DOCUMENTS if one["id"] == row["document_id"] != "d1"
    ]


def test_a_query_whose_rows_differ_has_the_columns_of_the_first(tiny: Tiny) -> None:
    rows = [{**NESTED[0], "lang": lang} for lang in ("first", "second")]

    assert {row["lang"] for row in rerank(tiny("bert_ce"), rows, keep_columns="lang")} == {"first"}
    assert {row["lang"] for row in rerank(tiny("bert_ce"), rows, keep_columns="lang", unit_rows=1)} == {"first"}


@pytest.mark.parametrize("nested", [False, True])
def test_bad_documents_keep_their_columns_with_errors_null(tiny: Tiny, nested: bool) -> None:
    rows: Rows = [{"qid": "a", "query": "cat", "document": text, "url": f"u{text}"} for text in ("x", None)]
    listed = [{"text": row["document"], "url": row["url"]} for row in rows]
    kept = {"keep_columns": "url"}
    if nested:
        rows, kept = [{"qid": "a", "query": "cat", "documents": listed}], {"keep_document_fields": "url"}
    out = rerank(tiny("bert_ce"), rows, errors="null", return_documents=True, **kept)

    assert [(row["document"], row["url"], row["relevance_score"] is None) for row in out] == [
        ("x", "ux", False),
        (None, "uNone", True),
    ]


def test_dictionaries_are_kept_as_their_values(tiny: Tiny) -> None:
    table = pa.Table.from_pylist(LONG)
    table = table.set_column(4, "url", table["url"].dictionary_encode())
    pq.write_table(table, "in.parquet")
    out = rerank(tiny("bert_ce"), "in.parquet", "out.parquet", keep_columns="url", unit_rows=2)

    plain = rerank(tiny("bert_ce"), LONG, unit_rows=2)
    assert out == joined(plain, LONG, ["url"], "qid", "document_id")


def test_the_querys_text_is_kept_by_naming_it(tiny: Tiny) -> None:
    [first, *_] = rerank(tiny("bert_ce"), NESTED, keep_columns="query")
    score = Scorer(tiny("bert_ce"), dtype="float32").score(first["query"], "Cats the old cat")

    assert {row["document_id"]: row for row in rerank(tiny("bert_ce"), NESTED, keep_columns="query")[:3]}["d1"][
        "relevance_score"
    ] == pytest.approx(float(score[0]), abs=1e-5)


@pytest.mark.parametrize(
    ("rows", "options", "error", "said"),
    [
        (NESTED, {"keep_columns": "langs"}, InputError, "column 'langs' not found in in.jsonl"),
        (NESTED, {"keep_document_fields": "link"}, InputError, "its documents have no field 'link'; fields: id, title"),
        (NESTED, {"keep_columns": ["query", ""]}, UsageError, "has an empty name"),
        (LONG, {"keep_document_fields": "url"}, UsageError, "is for lists of documents"),
        (LONG, {"keep_columns": "document"}, UsageError, "already has a column 'document'"),
        ([{**row, "rank": 1} for row in LONG], {"keep_columns": "all"}, UsageError, "already has a column 'rank'"),
        (
            [{**row, "url": 1} for row in NESTED],
            {"keep_columns": "url", "keep_document_fields": "url"},
            UsageError,
            "'url'",
        ),
        ([{"qid": 1, "query": "a", "documents": ["b"]}], {"keep_document_fields": "url"}, InputError, "no field"),
    ],
)
def test_what_cannot_be_kept_is_refused_at_the_door(
    tiny: Tiny, rows: Rows, options: dict[str, Any], error: type[BatchscoreError], said: str
) -> None:
    with pytest.raises(error) as caught:
        rerank(tiny("bert_ce"), rows, **options)

    assert said in str(caught.value)
    assert not Path("out.jsonl").exists()
