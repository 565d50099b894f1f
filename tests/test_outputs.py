"""What a job can be written as: tables with a header, and rankings for the tools that evaluate them."""

from __future__ import annotations

import csv
import gzip
import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest
from typer.testing import CliRunner, Result

import checkpoints
from batchscore import read_run, rerank_files, score_files
from batchscore.cli.main import app
from batchscore.engine.ranking import rank_rows
from batchscore.errors import InputError, UsageError
from batchscore.io.outputs import UnfitError, chosen_format
from batchscore.io.sink import open_sink
from batchscore.jobs.rankings import merge_rankings
from test_cli_score import read, write
from test_rankings import make_parts, part_of
from test_stream import lines, stream

pytestmark = pytest.mark.usefixtures("here")

Tiny = Callable[[str], str]
Rows = list[dict[str, Any]]
_, TEXTS = checkpoints.pairs(12, seed=7)
# twelve documents a query of six texts, so that many scores are equal
PAIRS: Rows = [
    {"query_id": f"q{query}", "query": f"question {query}", "document_id": f"d{place}", "document": TEXTS[place % 6]}
    for query in range(3)
    for place in range(12)
]


def run(command: str, *arguments: str) -> Result:
    """A run in float32, so that its numbers can be compared on every CPU."""
    return CliRunner().invoke(app, [command, *arguments])


def rerank(model: str, *arguments: str, rows: Rows = PAIRS) -> Result:
    if not os.path.exists("in.jsonl"):  # a file that is written again is another input
        write("in.jsonl", rows)
    return run("rerank", "--model", model, "--dtype", "float32", "--in", "in.jsonl", *arguments)


def lines_of(path: str) -> list[list[str]]:
    return [line.split(" ") for line in Path(path).read_text("utf-8").splitlines()]


# ---- tables

CELLS = ["x,y", 'q"u', "line\nbreak", "\ttab", "", None, " lead", "\rreturn", "東京 🎉", "#c"]
COLUMNS = {
    "a,b": CELLS,
    "score": pa.array([0.1, 1e-8, 1, -2.5, 3, None, float("nan"), float("inf"), 2**24, 1e20], pa.float32()),
    "tags": [*[[]] * 9, ["é"]],
}
EXPECTED = """\
"a,b",score,tags
"x,y",0.1,[]
"q""u",1e-8,[]
"line
break",1.0,[]
\ttab,-2.5,[]
"",3.0,[]
,,[]
 lead,nan,[]
"\rreturn",inf,[]
東京 🎉,16777216.0,[]
#c,1e+20,"[""é""]"
"""


def test_csv_quotes_what_needs_it_and_nothing_else() -> None:
    with open_sink("a.csv") as sink:
        sink.write(pa.table(COLUMNS))
        sink.write(pa.table({"score": [0.5]}))

    assert Path("a.csv").read_bytes().decode() == EXPECTED + ",0.5,\n"
    with open("a.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert [row[0] for row in rows[1:-1]] == [cell or "" for cell in CELLS]
    options = pa.csv.ConvertOptions(strings_can_be_null=True, quoted_strings_can_be_null=False)
    parsed = pa.csv.ParseOptions(newlines_in_values=True)
    table = pa.csv.read_csv("a.csv", parse_options=parsed, convert_options=options)
    assert table["a,b"].to_pylist() == [*CELLS, None]
    np.testing.assert_array_equal(table["score"].to_numpy()[:-1].astype(np.float32), COLUMNS["score"])


def test_tsv_is_the_same_between_tabs() -> None:
    with open_sink("a.tsv.gz") as sink:
        sink.write(pa.table({"id": ["a\tb", "a,b"], "n": [1, None]}))

    assert gzip.decompress(Path("a.tsv.gz").read_bytes()) == b'id\tn\n"a\tb"\t1\na,b\t\n'


def test_a_null_by_itself_is_a_line_that_no_reader_skips() -> None:
    with open_sink("a.csv") as sink:
        sink.write(pa.table({"score": pa.array([0.5, None], pa.float32())}))

    assert Path("a.csv").read_text() == 'score\n0.5\n""\n'


@pytest.mark.parametrize("kind", ["float32", "float64"])
def test_numbers_read_back_to_the_last_bit(kind: str) -> None:
    bits = np.random.default_rng(0).integers(0, 2**63, 20_000).view(np.float64 if kind == "float64" else np.float32)
    numbers = bits[np.isfinite(bits)]
    with open_sink("a.csv") as sink:
        sink.write(pa.table({"n": numbers}))

    np.testing.assert_array_equal(np.array(Path("a.csv").read_text().split()[1:], float).astype(kind), numbers)


def test_the_header_has_the_columns_of_all_units(tiny: Tiny) -> None:
    rows: Rows = [{"query": "a", "document": text} for text in TEXTS[:4]]
    rows[3]["lang"], rows[2]["meta"] = "en", {"year": 1}
    arguments = ["--in", write("in.jsonl", rows), "--model", tiny("bert_mean"), "--unit-rows", "1"]
    result = run("score", *arguments, "--out", "out.csv")

    assert result.exit_code == 0, result.output
    with open("out.csv", encoding="utf-8", newline="") as file:
        found = list(csv.DictReader(file))
    assert list(found[0]) == ["query", "document", "score", "meta", "lang"]
    assert [(row["document"], row["meta"], row["lang"]) for row in found] == [
        (TEXTS[0], "", ""),
        (TEXTS[1], "", ""),
        (TEXTS[2], '{"year": 1}', ""),
        (TEXTS[3], "", "en"),
    ]


# ---- rankings


def test_one_job_is_written_in_every_format_with_the_same_ranking(tiny: Tiny) -> None:
    model = tiny("bert_ce")
    options = ["--out", "job/", "--unit-rows", "7", "--top-n", "9"]
    assert rerank(model, *options).exit_code == 0
    for file, name in {
        "a.jsonl": "auto",
        "a.csv": "auto",
        "a.trec": "auto",
        "b.tsv": "msmarco",
        "c.json": "mteb",
    }.items():
        result = run("merge", "job", "--out", file, "--out-format", name)
        assert result.exit_code == 0, result.output
    own = read("a.jsonl")

    trec = lines_of("a.trec")
    # equal logits by id, descending: the order of nine of twelve documents whose texts come twice
    by_score: dict[str, list[tuple[float, str]]] = {}
    for query, _, document, _, score, _ in trec:
        by_score.setdefault(query, []).append((float(score), document))
    assert list(by_score) == ["q0", "q1", "q2"]
    assert all(pairs == sorted(pairs, reverse=True) for pairs in by_score.values())
    assert any(len({score for score, _ in pairs}) < len(pairs) for pairs in by_score.values())
    ranks = [(line[0], line[2], int(line[3])) for line in trec]
    assert [rank for *_, rank in ranks] == [*range(1, 10)] * 3
    # the same documents as in other formats, where equal scores stay in the order of the input
    assert {(row["query_id"], row["document_id"]) for row in own} == {(query, document) for query, document, _ in ranks}

    expected = {query: [document for _, document in pairs] for query, pairs in by_score.items()}
    assert {query: list(documents) for query, documents in read_run("b.tsv", in_format="msmarco").items()} == expected
    assert {query: list(documents) for query, documents in read_run("c.json").items()} == expected
    assert read_run("a.trec") == read_run("c.json")
    of_csv, of_jsonl = read_run("a.csv"), read_run("a.jsonl")
    assert [list(documents) for documents in of_csv.values()] == [list(documents) for documents in of_jsonl.values()]


def test_distinct_logits_stay_distinct_where_the_sigmoid_saturates(tmp_path: Path) -> None:
    logits = [np.float32(17.5)]
    for _ in range(5):
        logits.append(np.nextafter(logits[-1], np.float32(100)))
    rows = [
        {"query": "q", "score": 1.0, "rank_by": float(logit), "id": f"d{place}", "text": "x"}
        for place, logit in enumerate(logits)
    ]
    parts = make_parts(tmp_path / "job", [part_of(rows)])
    rank = partial(rank_rows, top_n=0)
    with open_sink("a.trec") as sink:
        for table in merge_rankings(parts, [0], rank, nested=False, is_run=True, scratch="."):
            sink.write(table)

    lines = lines_of("a.trec")
    assert [line[2] for line in lines] == ["d5", "d4", "d3", "d2", "d1", "d0"]
    assert [np.float32(line[4]) for line in lines] == logits[::-1]
    assert len({float(line[4]) for line in lines}) == 6


@pytest.mark.parametrize("pile", [3, 1000])
def test_equal_scores_are_in_the_order_of_trec_eval_after_the_cut(tmp_path: Path, pile: int) -> None:
    """Which of equal documents are kept is by the order of the input, as in all formats; their ranks are by id."""
    rows = [
        {"query": query, "score": 0.5, "rank_by": 0.5, "id": identity, "text": "x"}
        for identity in ["10", "9", "é", "a", "Z", "z"]
        for query in ("p", "q")
    ]
    parts = make_parts(tmp_path / "job", [part_of(rows[:5], top_n=4), part_of(rows[5:], top_n=4)])
    rank = partial(rank_rows, top_n=4)
    tables = merge_rankings(parts, [0, 1], rank, nested=False, is_run=True, scratch=".", documents_a_pile=pile)
    found = pa.concat_tables(tables)

    assert found["query"].to_pylist() == ["p"] * 4 + ["q"] * 4
    assert found["document_id"].to_pylist() == ["é", "a", "9", "10"] * 2
    assert found["rank"].to_pylist() == [1, 2, 3, 4] * 2
    assert found["rank_by"].to_pylist() == [0.5] * 8


@pytest.mark.parametrize(
    ("ids", "message"),
    [(["a", "b", "a"], "query 'q' has document 'a' twice"), (["a", None], "a document of query 'q' has no id")],
)
def test_documents_that_cannot_be_told_apart_are_no_run(tmp_path: Path, ids: list[str | None], message: str) -> None:
    rows = [{"query": "q", "score": 0.5, "rank_by": 0.5, "id": identity, "text": "x"} for identity in ids]
    parts = make_parts(tmp_path / "job", [part_of(rows)])

    with pytest.raises(UnfitError) as caught:
        list(merge_rankings(parts, [0], partial(rank_rows, top_n=0), nested=False, is_run=True, scratch="."))
    assert caught.value.message == message


def test_a_tag_is_the_models_name_or_what_is_asked_for(tiny: Tiny) -> None:
    model = tiny("bert_mean")
    assert rerank(model, "--out", "a.trec").exit_code == 0
    assert rerank(model, "--out", "b.run", "--run-tag", "mine").exit_code == 0
    rerank_files(model, "in.jsonl", "c.txt", dtype="float32", out_format="trec", run_tag="théirs")

    tags = [{line[5] for line in lines_of(name)} for name in ("a.trec", "b.run", "c.txt")]
    assert tags == [{"bert_mean"}, {"mine"}, {"théirs"}]


def test_mteb_gets_predictions_that_it_can_rerank(tiny: Tiny) -> None:
    rerank(tiny("bert_mean"), "--out", "Task_predictions.json", "--out-format", "mteb")

    # as `convert_to_reranking` of mteb 2 reads them
    found = json.loads(Path("Task_predictions.json").read_text("utf-8"))
    assert found["mteb_model_meta"] == {"model_name": tiny("bert_mean"), "revision": None}
    ranked = found["default"]["test"]
    assert all(isinstance(score, float) for documents in ranked.values() for score in documents.values())
    best = {query: max(documents, key=documents.__getitem__) for query, documents in ranked.items()}
    assert best == {query: next(iter(documents)) for query, documents in ranked.items()}


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_rank_llm_gets_requests_with_new_scores(tiny: Tiny, name: str) -> None:
    query = 'a "quoted"\nquery'
    rows = [{"query": query, "document_id": f"d\t{place}", "document": TEXTS[place]} for place in range(3)]
    result = rerank(tiny("bert_mean"), "--out", name, "--out-format", "rank-llm", "--return-documents", rows=rows)

    assert result.exit_code == 0, result.output
    content = Path(name).read_text("utf-8")
    [request] = json.loads(content) if name == "a.json" else map(json.loads, content.splitlines())
    assert request["query"] == {"text": query, "qid": query}
    texts = {candidate["docid"]: candidate["doc"] for candidate in request["candidates"]}
    assert texts == {row["document_id"]: {"text": row["document"]} for row in rows}
    scores = [candidate["score"] for candidate in request["candidates"]]
    assert scores == sorted(scores, reverse=True)


def test_rank_llm_gets_the_text_of_queries_that_have_ids_too(tiny: Tiny) -> None:
    """It could not read its own format without one."""
    options = ["--return-documents", "--keep-columns", "query"]
    result = rerank(tiny("bert_mean"), "--out", "a.jsonl", "--out-format", "rank-llm", *options)

    assert result.exit_code == 0, result.output
    queries = [request["query"] for request in read("a.jsonl")]
    assert queries == [{"text": f"question {query}", "qid": f"q{query}"} for query in range(3)]
    assert list(read_run("a.jsonl")) == ["q0", "q1", "q2"]


# ---- streams


@pytest.mark.parametrize(
    ("out", "options", "message"),
    [
        ("-", {"out_format": "csv"}, "--out-format csv has no meaning for a stream (-)"),
        ("-", {"run_tag": "x"}, "--run-tag has no meaning for a stream (-)"),
        ("a.trec", {}, "cannot write a.trec: a TREC run has each query once, and a stream may have it again"),
        ("a.csv", {"nested": True}, "cannot write a.csv: CSV has no lists, which --nested asks for"),
    ],
)
def test_a_stream_is_no_run(tiny: Tiny, out: str, options: Any, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        stream(rerank_files, tiny("bert_mean"), lines(PAIRS[:1]), out, **options)
    assert caught.value.message == message


def test_a_stream_is_written_as_csv(tiny: Tiny) -> None:
    rows: Rows = [{"query": "a", "document": text} for text in TEXTS[:3]]
    stream(score_files, tiny("bert_mean"), lines(rows), "a.csv")

    with open("a.csv", encoding="utf-8", newline="") as file:
        assert [row["document"] for row in csv.DictReader(file)] == TEXTS[:3]


def test_a_column_that_comes_after_the_header_is_named() -> None:
    message = "^a.csv cannot hold these values: column 'lang' first comes after the header is written"
    with pytest.raises(InputError, match=message), open_sink("a.csv") as sink:  # noqa: PT012
        sink.write(pa.table({"score": [0.5]}))
        sink.write(pa.table({"score": [0.5], "lang": ["en"]}))
    assert os.listdir() == []


# ---- jobs


def test_a_folder_is_merged_into_the_format_that_is_asked_for(tiny: Tiny) -> None:
    model = tiny("bert_mean")
    suffixes = {"trec": "trec", "csv": "csv", "msmarco": "tsv", "mteb": "json", "auto": "parquet"}
    for name, suffix in suffixes.items():
        result = rerank(model, "--out", "f/", "--merge", "--out-format", name)
        assert result.exit_code == 0, result.output
        assert os.path.exists(f"f.{suffix}")
    assert "0 rows in" in result.output.replace("\n", " ")  # nothing was scored again


def test_a_job_that_was_stopped_goes_on_into_another_format(tiny: Tiny) -> None:
    model = tiny("bert_mean")
    assert rerank(model, "--out", "a.txt", "--out-format", "trec", "--unit-rows", "6", "--shard", "0/2").exit_code == 0
    arguments = ["--out", "a.txt", "--unit-rows", "6", "--shard", "1/2", "--merge", "--out-format", "csv"]
    assert rerank(model, *arguments).exit_code == 0

    assert Path("a.txt").read_text("utf-8").startswith("query_id,index,document_id,rank,relevance_score\n")
    again = rerank(model, *arguments)
    assert (again.exit_code, "complete" in again.output) == (0, True)
    for options, difference in ((["jsonl"], 'out_format was "csv" and is "jsonl"'), (["trec"], 'out_format was "csv"')):
        refused = rerank(model, *arguments[:-1], *options)
        assert refused.exit_code == 8
        assert f"a.txt is already complete: {difference}" in " ".join(refused.output.split())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"query_id": "my query"}, "query id 'my query' has whitespace, which ends a field"),
        ({"document_id": None}, "a document of query 'q0' has no id"),
        ({"document_id": "d1"}, "query 'q0' has document 'd1' twice"),
    ],
)
def test_scores_stay_where_an_id_does_not_fit_into_a_run(tiny: Tiny, changes: Any, message: str) -> None:
    rows = [PAIRS[0] | changes, *PAIRS[1:]]
    result = rerank(tiny("bert_mean"), "--out", "a.trec", rows=rows)

    said = " ".join(result.output.split())
    assert result.exit_code == 5
    assert f"cannot write a.trec as a TREC run: {message}" in said
    assert "hint: the scores are kept: batchscore merge .a.trec.parts --out FILE.jsonl has them, and any id" in said
    assert not os.path.exists("a.trec")
    assert run("merge", ".a.trec.parts", "--out", "FILE.jsonl").exit_code == 0
    assert len(read("FILE.jsonl")) == len(rows)
    again = rerank(tiny("bert_mean"), "--out", "a.trec", "--out-format", "jsonl", rows=rows)
    assert (again.exit_code, "0 rows in 0 units" in again.output) == (0, True)
    assert read("a.trec") == read("FILE.jsonl")


NO_IDS = [{"query": "a", "document": "x"}]
SUFFIXES = "its suffix is none of .parquet, .pq, .jsonl, "


@pytest.mark.parametrize(
    ("command", "arguments", "rows", "message", "hint"),
    [
        ("rerank", ["--out", "a.trec"], NO_IDS, "a TREC run needs the ids of queries", "--query-id-column"),
        (
            "rerank",
            ["--out", "a.run.gz"],
            [{"qid": "q", **NO_IDS[0]}],
            "a TREC run needs the ids of documents",
            "--document-id-column",
        ),
        (
            "rerank",
            ["--out", "a.trec"],
            [{"qid": "q", "query": "a", "documents": ["x"]}],
            "a TREC run needs the ids of documents",
            "--document-id-column",
        ),
        (
            "rerank",
            ["--out", "a.json", "--out-format", "rank-llm"],
            PAIRS,
            "a file of rank_llm's results needs the texts of documents",
            "add --return-documents",
        ),
        (
            "rerank",
            ["--out", "a.json", "--out-format", "rank-llm", "--return-documents"],
            PAIRS,
            "a file of rank_llm's results needs the texts of queries",
            "add --keep-columns query",
        ),
        (
            "rerank",
            ["--out", "a.trec", "--errors", "null"],
            PAIRS,
            "cannot write a.trec with --errors null: a TREC run has no document without a score",
            "drop --errors null",
        ),
        (
            "rerank",
            ["--out", "a.csv", "--nested"],
            PAIRS,
            "cannot write a.csv: CSV has no lists, which --nested asks for",
            "drop --nested",
        ),
        ("rerank", ["--out", "a.npy"], PAIRS, "cannot write a.npy: a score is no vector", "write .parquet or .jsonl"),
        ("rerank", ["--out", "a.json"], PAIRS, f"cannot write a.json: {SUFFIXES}", "or pass --out-format"),
        (
            "rerank",
            ["--out", "a.pq.gz", "--out-format", "parquet"],
            PAIRS,
            "cannot write a.pq.gz: Parquet is not packed",
            "drop .gz",
        ),
        (
            "rerank",
            ["--out", "a.csv", "--run-tag", "x"],
            PAIRS,
            "--run-tag has no effect: CSV has no tag",
            "pass --out-format trec",
        ),
        ("rerank", ["--out", "a.trec", "--run-tag", "a b"], PAIRS, "--run-tag 'a b' is not one word", "between spaces"),
        (
            "score",
            ["--out", "a.trec"],
            PAIRS,
            "cannot write a.trec: a TREC run has documents in rank order, and score ranks none",
            "use rerank",
        ),
        (
            "encode",
            ["--out", "a.tsv"],
            PAIRS,
            "cannot write a.tsv: TSV has no vectors",
            "write .parquet, .jsonl or .npy",
        ),
    ],
)
def test_what_cannot_be_written_is_refused_before_anything_is_read(
    tiny: Tiny, command: str, arguments: list[str], rows: Rows, message: str, hint: str
) -> None:
    write("in.jsonl", rows)
    result = run(command, "--model", tiny("bert_mean"), "--in", "in.jsonl", *arguments)

    error, _, advice = result.output.partition("error: ")[2].partition("hint: ")
    assert result.exit_code == 2, result.output
    assert " ".join(error.split()).startswith(message)
    assert hint in " ".join(advice.split())
    assert os.listdir() == ["in.jsonl"]


def test_a_merge_refuses_what_the_parts_do_not_have(tiny: Tiny) -> None:
    rerank(tiny("bert_mean"), "--out", "f/", rows=NO_IDS)

    result = run("merge", "f", "--out", "a.trec")
    assert (result.exit_code, "a TREC run needs the ids of queries" in result.output) == (2, True)
    assert not os.path.exists("a.trec")


def test_a_suffix_means_a_format_in_any_case() -> None:
    names = {"a.CSV": "csv", "a.Trec.GZ": "trec", "b.run": "trec", "a.tsv.zst": "tsv", "a.pq": "parquet"}

    assert {path: chosen_format(path).name for path in names} == names
    assert chosen_format(None).name == "parquet"
