"""Pairs of ids that are joined with queries and a corpus score as the same pairs written out."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import jobs
from batchscore import rerank_files, score_files
from batchscore.errors import BatchscoreError
from batchscore.jobs.events import Outcome, Silent
from threads import one_thread

Tiny = Callable[[str], str]
Rows = list[dict[str, Any]]

QUERIES = {f"q{number:02}": f"{word} {number}" for number, word in enumerate(jobs.WORDS[:6])}
DOCUMENTS = {
    f"00{number}": (jobs.WORDS[number % 7].title() if number % 3 else "", row["document"])
    for number, row in enumerate(jobs.random_rows(40))
}
_DRAW = random.Random(3)
# each query's documents are scattered over the run, and scores repeat
RUN = [
    (query, document, number, round(_DRAW.random(), 1))
    for number, (query, document) in enumerate(
        (query, document) for document in DOCUMENTS for query in QUERIES if _DRAW.random() < 0.6
    )
]
FILES = {"queries": "queries.jsonl", "corpus": "corpus.jsonl"}


def lines(path: str, rows: Sequence[Mapping[str, Any] | str]) -> str:
    """Rows as JSON, or lines as they are."""
    Path(path).write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), "utf-8")
    return path


def text_of(document: str) -> str:
    return " ".join(DOCUMENTS[document]).strip()


def written_out(pairs: Sequence[tuple[str, str]]) -> str:
    rows = [
        {"query_id": query, "document_id": document, "query": QUERIES[query], "document": text_of(document)}
        for query, document in pairs
    ]
    return lines("pairs.jsonl", rows)


@pytest.fixture(autouse=True)
def _collection(here: Path) -> Iterator[None]:
    lines("queries.jsonl", [{"_id": name, "text": text} for name, text in QUERIES.items()])
    lines("corpus.jsonl", [{"_id": name, "title": t, "text": x} for name, (t, x) in DOCUMENTS.items()])
    lines("run.trec", [f"{query} Q0 {document} {rank} {score} bm25" for query, document, rank, score in RUN])
    with one_thread():
        yield


def read(name: str) -> Rows:
    return [json.loads(line) for line in Path(name).read_text("utf-8").splitlines()]


def run(function: Callable[..., Outcome], model: str, out: str = "out.jsonl", **options: Any) -> Rows:
    """The rows that a call writes, in float32 with small units."""
    inputs = options.pop("inputs", None)
    function(model, inputs, out, **{"dtype": "float32", "unit_rows": 50, **options})
    return read(out)


def close(found: Rows, expected: Rows) -> None:
    """Equal in everything but the last bits of scores, which may depend on what is in a unit."""
    name = "score" if "score" in found[0] else "relevance_score"
    assert [row.pop(name) for row in found] == pytest.approx([row.pop(name) for row in expected], abs=1e-5)
    assert found == expected


class Notes(Silent):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, line: str) -> None:
        self.said.append(line)


# ---- equal to pairs that are written out


@pytest.mark.parametrize(("model", "encode"), [("bert_ce", "auto"), ("bert_mean", "unit"), ("bert_mean", "once")])
def test_a_run_scores_as_its_pairs_written_out(tiny: Tiny, model: str, encode: str) -> None:
    whole = written_out([pair[:2] for pair in RUN])
    expected = run(score_files, tiny(model), "whole.jsonl", inputs=whole, encode=encode)
    found = run(score_files, tiny(model), run="run.trec", **FILES, encode=encode)

    assert [row["score"] for row in found] == [row["score"] for row in expected]  # bit for bit
    assert list(found[0]) == ["query_id", "document_id", "run_rank", "run_score", "run_tag", "score"]
    assert [tuple(row.values())[:4] for row in found] == [(q, d, rank, score) for q, d, rank, score in RUN]


@pytest.mark.parametrize("model", ["bert_ce", "bert_mean", "colbert"])
def test_a_run_is_ranked_as_its_pairs_written_out(tiny: Tiny, model: str) -> None:
    names = {"query_id_column": "query_id", "document_id_column": "document_id"}
    whole = written_out([pair[:2] for pair in RUN])
    expected = run(rerank_files, tiny(model), "whole.jsonl", inputs=whole, **names, return_documents=True)
    found = run(rerank_files, tiny(model), run="run.trec", **FILES, return_documents=True)

    assert found == expected


def test_texts_are_written_where_they_are_named(tiny: Tiny) -> None:
    columns = ["document_id", "document", "query"]
    for out in ("out.jsonl", "out.parquet"):
        score_files(tiny("bert_ce"), None, out, run="run.trec", **FILES, keep_columns=columns, unit_rows=50)
    found = read("out.jsonl")

    assert pq.read_table("out.parquet").drop_columns("score").to_pylist() == [
        {name: row[name] for name in columns} for row in found
    ]
    assert [row["document"] for row in found] == [text_of(row["document_id"]) for row in found]


def test_all_pairs_are_the_product(tiny: Tiny) -> None:
    pairs = [(query, document) for query in QUERIES for document in DOCUMENTS]
    expected = run(score_files, tiny("bert_mean"), "whole.jsonl", inputs=written_out(pairs), encode="unit")
    found = run(score_files, tiny("bert_mean"), all_pairs=True, **FILES)

    assert list(found[0]) == ["query_id", "document_id", "score"]
    scores = {(row["query_id"], row["document_id"]): row["score"] for row in found}
    assert scores == {(row["query_id"], row["document_id"]): row["score"] for row in expected}
    assert len(found) == 6 * 40


@pytest.mark.parametrize("model", ["bert_ce", "bert_mean"])
def test_all_pairs_of_judged_queries_are_ranked(tiny: Tiny, model: str) -> None:
    """Whatever tiles a query is in, its documents count in the order of the corpus."""
    lines("judged.tsv", ["query-id\tcorpus-id\tscore", "q03\t001\t1", "q01\t002\t0"])
    pairs = [(query, document) for query in ("q01", "q03") for document in DOCUMENTS]
    names = {"query_id_column": "query_id", "document_id_column": "document_id", "top_n": 7}
    expected = run(rerank_files, tiny(model), "whole.jsonl", inputs=written_out(pairs), **names)
    found = run(rerank_files, tiny(model), all_pairs=True, qrels="judged.tsv", **FILES, top_n=7, unit_rows=11)

    close(found, expected)


def test_a_limit_cuts_the_last_tile(tiny: Tiny) -> None:
    found = run(score_files, tiny("bert_ce"), all_pairs=True, **FILES, limit=97)
    whole = run(score_files, tiny("bert_ce"), "whole.jsonl", all_pairs=True, **FILES)

    close(found, whole[:97])


def test_judgements_are_pairs(tiny: Tiny) -> None:
    lines("judged.tsv", ["query-id\tcorpus-id\tscore", "q03\t001\t2", "q01\t002\t0"])
    found = run(score_files, tiny("bert_ce"), qrels="judged.tsv", **FILES)

    assert [{**row, "score": None} for row in found] == [
        {"query_id": "q03", "document_id": "001", "relevance": "2", "score": None},
        {"query_id": "q01", "document_id": "002", "relevance": "0", "score": None},
    ]


def written_as(kind: str) -> dict[str, str]:
    """Queries and corpus in a format; BEIR's rule is for its own layout, so titles are in the texts."""
    documents = [{"docid": name, "contents": text_of(name)} for name in DOCUMENTS]
    queries = [{"qid": name, "query": text} for name, text in QUERIES.items()]
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(documents), "c.parquet", row_group_size=7)
        pq.write_table(pa.Table.from_pylist(queries), "q.parquet")
    elif kind == "tsv":
        lines("c.tsv", ["docid\tcontents", *(f"{name}\t{text_of(name)}" for name in DOCUMENTS)])
        lines("q.tsv", ["qid\tquery", *(f"{name}\t{text}" for name, text in QUERIES.items())])
    else:
        for name, rows in (("c", documents), ("q", queries)):
            with gzip.open(f"{name}.jsonl.gz", "wt", encoding="utf-8") as file:
                file.writelines(json.dumps(row) + "\n" for row in rows)
    return {"queries": f"q.{kind}", "corpus": f"c.{kind}"}


@pytest.mark.parametrize("kind", ["parquet", "tsv", "jsonl.gz"])
def test_texts_come_from_any_format(tiny: Tiny, kind: str) -> None:
    expected = run(score_files, tiny("bert_ce"), "whole.jsonl", run="run.trec", **FILES)

    assert run(score_files, tiny("bert_ce"), run="run.trec", **written_as(kind)) == expected


def test_a_run_is_a_table_too_and_any_suffix_is_trecs(tiny: Tiny) -> None:
    expected = run(rerank_files, tiny("bert_ce"), "whole.jsonl", run="run.trec", **FILES)
    lines("run.bm25.txt", [f"{query} Q0 {document} 1 1 x" for query, document, _, _ in RUN])
    pq.write_table(pa.table({"q": [row[0] for row in RUN], "d": [row[1] for row in RUN]}), "run.parquet")
    named = {"query_id_column": "q", "document_id_column": "d"}

    assert run(rerank_files, tiny("bert_ce"), "one.jsonl", run="run.bm25.txt", **FILES) == expected
    assert run(rerank_files, tiny("bert_ce"), "two.jsonl", run="run.parquet", **FILES, **named) == expected


def test_columns_of_texts_are_named_where_theirs_are_unusual(tiny: Tiny) -> None:
    lines("q.jsonl", [{"number": name, "words": text} for name, text in QUERIES.items()])
    lines("c.jsonl", [{"key": name, "a": t, "b": x, "text": "no"} for name, (t, x) in DOCUMENTS.items()])
    names = {"query_id_column": "number", "document_id_column": "key", "query_column": "words"}
    expected = run(score_files, tiny("bert_ce"), "whole.jsonl", run="run.trec", **FILES)
    found = run(
        score_files,
        tiny("bert_ce"),
        run="run.trec",
        queries="q.jsonl",
        corpus="c.jsonl",
        **names,
        document_fields="a,b",
    )

    assert found == expected


# ---- depth


def first(depth: int, key: Callable[[tuple[str, str, int, float]], float]) -> list[tuple[str, str]]:
    """The pairs of the first documents of each query, in file order."""
    kept = set()
    for query in QUERIES:
        kept |= set(sorted((row for row in RUN if row[0] == query), key=key)[:depth])
    return [row[:2] for row in RUN if row in kept]


@pytest.mark.parametrize(
    ("kind", "key"),
    [
        ("trec", lambda row: -row[3]),  # by score, and not by the ranks beside it; equal ones in file order
        ("tsv", lambda row: row[2]),
        ("jsonl", lambda row: 0),
        ("parquet", lambda row: -row[3]),
    ],
)
def test_depth_takes_the_first_of_each_query(tiny: Tiny, kind: str, key: Callable[[Any], float]) -> None:
    if kind == "tsv":
        shuffled = random.Random(1).sample(range(1000), len(RUN))
        ranked = [(q, d, rank, s) for (q, d, _, s), rank in zip(RUN, shuffled, strict=True)]
        lines("run.tsv", ["query_id\tdocument_id\trank", *(f"{q}\t{d}\t{rank}" for q, d, rank, _ in ranked)])
        kept = {row[:2] for query in QUERIES for row in sorted((r for r in ranked if r[0] == query), key=key)[:5]}
        expected = [row[:2] for row in RUN if row[:2] in kept]
    else:
        expected = first(5, key)
    if kind == "jsonl":
        lines("run.jsonl", [{"qid": q, "docid": d} for q, d, _, _ in RUN])
    if kind == "parquet":
        columns = {"qid": [row[0] for row in RUN], "docno": [row[1] for row in RUN], "score": [row[3] for row in RUN]}
        pq.write_table(pa.table(columns), "run.parquet", row_group_size=13)
    found = run(score_files, tiny("bert_ce"), run=f"run.{kind}", **FILES, depth=5, unit_rows=7)

    assert [(row["query_id"], row["document_id"]) for row in found] == expected
    assert len(found) == 5 * len(QUERIES)


# ---- a job like any other


@pytest.mark.parametrize("pairs", [{"run": "run.trec", "depth": 9}, {"all_pairs": True}], ids=["run", "all pairs"])
def test_shards_and_a_resumed_run_give_what_one_run_gives(tiny: Tiny, pairs: dict[str, Any]) -> None:
    options = {**pairs, **FILES, "dtype": "float32", "unit_rows": 20}
    expected = run(rerank_files, tiny("bert_mean"), "whole.jsonl", **options)
    for shard in ("0/2", "1/2"):
        rerank_files(tiny("bert_mean"), None, "shards.jsonl", **options, shard=shard, merge=shard == "1/2")
    rerank_files(tiny("bert_mean"), None, "parts/", **options)
    for part in jobs.parts("parts")[::2]:
        Path("parts", part).unlink()
    again = rerank_files(tiny("bert_mean"), None, "parts/", **options, merge=True)

    assert read("shards.jsonl") == expected
    assert 0 < again.done["rows"] < again.counts["rows"]
    assert pq.read_table("parts.parquet").to_pylist() == expected
    assert [path.name for path in Path.cwd().rglob("*corpus-*")] == []  # the index went with what it was for


def test_worker_processes_read_the_same_index(tiny: Tiny) -> None:
    expected = run(rerank_files, tiny("bert_mean"), "whole.jsonl", run="run.trec", **FILES, unit_rows=20)
    code, said = jobs.finish(
        *("rerank", "--model", tiny("bert_mean"), "--run", "run.trec", "--queries", "queries.jsonl"),
        *("--corpus", "corpus.jsonl", "--out", "out.jsonl", "--dtype", "float32", "--unit-rows", "20"),
        *("--devices", "cpu:2"),
    )

    assert code == 0, said
    close(read("out.jsonl"), expected)


def test_a_changed_corpus_is_another_job(tiny: Tiny) -> None:
    run(score_files, tiny("bert_ce"), run="run.trec", **FILES)
    with open("corpus.jsonl", "a", encoding="utf-8") as file:
        file.write('{"_id": "new", "text": "x"}\n')

    with pytest.raises(
        BatchscoreError, match=r"out\.jsonl already exists and is another job's: inputs\[2\]\.bytes was"
    ):
        run(score_files, tiny("bert_ce"), run="run.trec", **FILES)


# ---- what cannot be joined


def faults(tiny: Tiny, **options: Any) -> list[str]:
    """The bad rows of a run, as the list of errors has them."""
    outcome = score_files(
        tiny("bert_ce"), None, "out.jsonl", **{"run": "run.trec", **FILES, "overwrite": True, **options}
    )
    bad = [] if outcome.errors is None else read(outcome.errors)
    assert outcome.bad_rows == len(bad)
    return [f"{row['file']}, {row.get('line', row['row'])}: {row['column']} {row['message']}" for row in bad]


def test_an_id_that_nobody_has_is_a_fault_of_its_row(tiny: Tiny) -> None:
    lines("run.trec", ["q00 Q0 001 1 2 x", "q00 Q0 1 2 1 x", "q77 Q0 001 1 1 x", "q00 Q0 002 3 0 x"])

    assert faults(tiny) == [
        "run.trec, 2: document_id is '1', which corpus.jsonl does not have",
        "run.trec, 3: query_id is 'q77', which queries.jsonl does not have",
    ]
    assert [row["document_id"] for row in read("out.jsonl")] == ["001", "002"]
    with pytest.raises(BatchscoreError) as caught:
        faults(tiny, errors="fail")
    assert str(caught.value) == (
        "run.trec, line 2: column 'document_id' is '1', which corpus.jsonl does not have\n"
        "hint: see that the files belong together"
    )


def test_a_document_without_a_text_is_a_fault_of_the_pairs_that_need_it(tiny: Tiny) -> None:
    lines("corpus.jsonl", ['{"_id": "a", "text": "x"}', '{"_id": "b", "text": null}', "{", '{"_id": "c", "text": 5}'])
    lines("run.trec", ["q00 Q0 a 1 2 x", "q00 Q0 b 2 1 x", "q01 Q0 b 1 1 x", "q01 Q0 c 2 1 x"])

    assert faults(tiny) == [
        "run.trec, 2: document_id is 'b', which has no text (corpus.jsonl, line 2: column 'text' is null)",
        "run.trec, 3: document_id is 'b', which has no text (corpus.jsonl, line 2: column 'text' is null)",
        "run.trec, 4: document_id is 'c', which has no text (corpus.jsonl, line 4: column 'text' is a JSON number, "
        "not text)",
    ]


def test_of_all_pairs_each_that_lacks_a_text_is_a_fault(tiny: Tiny) -> None:
    lines("corpus.jsonl", ['{"_id": "a", "text": "x"}', '{"_id": null, "text": "y"}', '{"_id": "a", "text": "z"}', "{"])
    lines("queries.jsonl", [{"_id": "q1", "text": "one"}, {"_id": "q2", "text": None}])

    assert faults(tiny, run=None, all_pairs=True) == [
        "corpus.jsonl, 2: None column '_id' is null",
        "corpus.jsonl, 3: None has the id 'a' of corpus.jsonl, line 1",
        "corpus.jsonl, 4: None not JSON: Expecting property name enclosed in double quotes (column 2)",
        *(f"corpus.jsonl, {line}: query_id is 'q2', which has no text (queries.jsonl, line 2: column 'text' is null)"
          for line in (1, 2, 3, 4)),
    ]  # fmt: skip
    assert [(row["query_id"], row["document_id"]) for row in read("out.jsonl")] == [("q1", "a")]


def test_of_texts_with_one_id_the_first_is_used_and_said(tiny: Tiny) -> None:
    expected = run(score_files, tiny("bert_ce"), "whole.jsonl", run="run.trec", **FILES)
    for file in FILES.values():
        name = json.loads(Path(file).read_text("utf-8").splitlines()[1])["_id"]
        with open(file, "a", encoding="utf-8") as more:
            more.write(json.dumps({"_id": name, "text": "another"}) + "\n\n" + json.dumps({"_id": "new", "text": "x"}))
    notes = Notes()

    assert run(score_files, tiny("bert_ce"), run="run.trec", **FILES, events=notes) == expected
    assert notes.said == [
        "queries  7 in queries.jsonl; 1 more have an id that came before, the first 'q01' in queries.jsonl, line 7; "
        "1 of them have no documents in run.trec",
        "corpus   42 in corpus.jsonl, indexed in 0 MB; 1 have an id that came before, the first corpus.jsonl, line 41: "
        "has the id '001' of corpus.jsonl, line 2",
    ]


@pytest.mark.parametrize(
    ("run_lines", "message"),
    [
        (
            ["q00 Q0 D1 1 1 x", "q01 Q0 D2 1 1 x"],
            "no document of run.trec is in corpus.jsonl: the first are 'D1' and '000'\n"
            "hint: name the corpus of this run with --corpus",
        ),
        (
            ["1 Q0 001 1 1 x"],
            "no query of run.trec is in queries.jsonl: the first are '1' and 'q00'\n"
            "hint: name the queries of this run with --queries",
        ),
    ],
)
@pytest.mark.parametrize("encode", ["unit", "once"])
def test_files_that_do_not_belong_together_end_the_run(
    tiny: Tiny, run_lines: list[str], message: str, encode: str
) -> None:
    lines("run.trec", run_lines)
    with pytest.raises(BatchscoreError) as caught:
        score_files(tiny("bert_mean"), None, "out.jsonl", run="run.trec", **FILES, encode=encode)

    assert str(caught.value).partition(" (in Python")[0] == message


BROKEN: list[tuple[dict[str, list[str]], dict[str, Any], str]] = [
    (
        {"corpus.jsonl": ['{"title": "x", "text": "y"}']},
        {},
        "corpus.jsonl has no column with an id, such as id, _id, document_id, doc_id, docid, docno, pid, corpus-id, "
        "corpus_id; columns: title, text\nhint: pass --document-id-column",
    ),
    (
        {"corpus.jsonl": ['{"_id": "a", "passage": "y"}']},
        {},
        "corpus.jsonl has no column with a text, such as text, content, contents, body, document; columns: _id, passage"
        "\nhint: pass --document-column",
    ),
    (
        {"queries.jsonl": ['{"_id": "a", "words": "y"}']},
        {},
        "queries.jsonl has no column with a text, such as query, text, content, contents, body, document; columns: "
        "_id, words\nhint: pass --query-column",
    ),
    (
        {"queries.jsonl": ['{"_id": "q1", "text": "y"}', '{"text": "z"}']},
        {},
        "queries.jsonl, line 2: column '_id' is null\nhint: give each query an id",
    ),
    (
        {"run.jsonl": ['{"query": "a", "docid": "b"}']},
        {"run": "run.jsonl"},
        "run.jsonl has no column with the id of a query; columns: query, docid\nhint: pass --query-id-column",
    ),
    (
        {"run.jsonl": ['{"qid": "a", "passage": "b"}']},
        {"run": "run.jsonl"},
        "run.jsonl has no column with the id of a document; columns: qid, passage\nhint: pass --document-id-column",
    ),
    (
        {"run.jsonl": ['{"qid": "q00", "docid": "001", "score": "high"}']},
        {"run": "run.jsonl", "depth": 3},
        "run.jsonl, line 1: column 'score' is 'high', not a number\nhint: --depth needs it to know what comes first",
    ),
    (
        {"judged.tsv": ["query-id\tcorpus-id\tscore", "x\ty\t1"]},
        {"run": None, "all_pairs": True, "qrels": "judged.tsv"},
        "no query that is judged is in queries.jsonl\nhint: see that --qrels and --queries belong together",
    ),
    (
        {},
        {"document_id_column": "key"},
        "no file has a column 'key': run.trec has query_id, document_id, rank, score, run_tag; queries.jsonl has _id, "
        "text; corpus.jsonl has _id, title, text\nhint: pass --document-id-column with one of these",
    ),
    (
        {},
        {"document_fields": "title,abstract"},
        "column 'abstract' not found in corpus.jsonl; columns: _id, title, text\n"
        "hint: pass --document-fields with one of these columns",
    ),
    (
        {},
        {"query_column": "question"},
        "column 'question' not found in queries.jsonl; columns: _id, text\nhint: pass --query-column with one of these",
    ),
    (
        {},
        {"keep_columns": "rank"},
        "column 'rank' not found in run.trec; columns: query_id, document_id, run_rank, run_score, run_tag, query, "
        "document\nhint: pass --keep-columns run_rank",
    ),
    ({"corpus.jsonl": []}, {}, "corpus.jsonl is empty"),
    ({}, {"corpus": "gone.jsonl"}, "gone.jsonl: no such file or folder\nhint: check the path"),
]


@pytest.mark.parametrize(("files", "options", "message"), BROKEN, ids=[case[2].split("\n")[0][:50] for case in BROKEN])
def test_what_cannot_be_joined_is_refused(
    tiny: Tiny, files: dict[str, list[str]], options: dict[str, Any], message: str
) -> None:
    for name, content in files.items():
        lines(name, content)
    with pytest.raises(BatchscoreError) as caught:
        score_files(tiny("bert_ce"), None, "out.jsonl", **{"run": "run.trec", **FILES, **options})

    assert str(caught.value).partition(" (in Python")[0].startswith(message)
    assert not Path(".out.jsonl.parts").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {},
            "nothing to read: no --in\nhint: pass --in, or --queries and --corpus with --run, --qrels or --all-pairs",
        ),
        (
            {"run": "run.trec", "corpus": "corpus.jsonl"},
            "--run has ids: their texts are needed too\nhint: add --queries",
        ),
        (
            {"all_pairs": True, "queries": "queries.jsonl"},
            "--all-pairs has ids: their texts are needed too\nhint: add --corpus",
        ),
        (FILES, "--queries alone does not say which pairs are scored\nhint: add --run, --qrels or --all-pairs"),
        (
            {**FILES, "run": "run.trec", "all_pairs": True},
            "--run and --all-pairs both say which pairs are scored\nhint: drop one",
        ),
        (
            {**FILES, "run": "run.trec", "inputs": "queries.jsonl"},
            "--in has whole pairs, and --run names ids or texts that are joined\nhint: drop one of them",
        ),
        (
            {**FILES, "all_pairs": True, "depth": 2},
            "--depth takes the first documents of a --run, and there is none\nhint: drop it",
        ),
        (
            {**FILES, "run": "run.trec", "document_image_column": "x"},
            "--document-image-column: only texts are joined by id\n"
            "hint: write each pair into one row, and name the file with --in",
        ),
    ],
)
def test_options_that_do_not_go_together_are_refused(tiny: Tiny, options: dict[str, Any], message: str) -> None:
    with pytest.raises(BatchscoreError) as caught:
        run(rerank_files, tiny("bert_ce"), **options)

    assert str(caught.value).partition(" (in Python")[0] == message
