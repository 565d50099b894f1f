"""`read_run` and `write_run`: what is written reads back, and a file that is no run says where."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from batchscore import read_run, write_run
from batchscore.errors import BatchscoreError, InputError, NotFoundError, UsageError

pytestmark = pytest.mark.usefixtures("here")

Run = dict[str, dict[str, float]]
PLAIN: Run = {
    "264014": {"007": 0.1, "7": 1e-45, "東京-1": -2.5e300, "é#'\"": 16777216.0},
    "q2": {"a": 0.5},
}
NASTY: Run = {
    "": {"": 1.0, " ": 0.5},
    '"q"\t1,\r\n': {"a\nb": 0.25, "\r": 2.0, "\u2028": -0.0, "NULL": 3.0, "#": 1 / 3},
    "#": {"nan": 0.1 + 0.2},
}
FILES = ["a.parquet", "a.jsonl", "a.jsonl.gz", "a.csv", "a.tsv.zst"]


@pytest.mark.parametrize("name", [*FILES, "a.trec", "a.run.gz"])
def test_a_run_reads_back_to_the_last_bit(name: str) -> None:
    write_run(PLAIN, name)

    assert read_run(name) == PLAIN


@pytest.mark.parametrize("name", FILES)
def test_ids_of_any_text_read_back(name: str) -> None:
    write_run(NASTY, name)

    assert read_run(name) == NASTY


@pytest.mark.parametrize("name", ["a.json", "a.json.gz"])
def test_predictions_of_mteb_hold_ids_of_any_text_and_queries_without_documents(name: str) -> None:
    run = {**NASTY, "none": {}}
    write_run(run, name, out_format="mteb", run_tag="org/model")

    assert read_run(name) == run
    content = Path(name).read_bytes()
    written = json.loads(gzip.decompress(content) if name.endswith(".gz") else content)
    meta = {"model_name": "org/model", "revision": None}
    assert written == {"mteb_model_meta": meta, "default": {"test": run}}


def test_a_trec_run_is_in_the_order_of_trec_eval_with_true_ranks() -> None:
    """By score, then by id as C compares strings, both descending: as trec_eval 10.0 gave these."""
    tied = ["9", "10", "é", "Z", "a", "z", "doc-2", "doc_2", "doc2", "東京", "😀", "\uffee"]
    write_run({"q": {**dict.fromkeys(tied, 0.5), "best": 0.75, "worst": -1}}, "a.trec", run_tag="mine")

    lines = [line.split(" ") for line in Path("a.trec").read_text("utf-8").splitlines()]
    order = ["best", "😀", "\uffee", "東京", "é", "z", "doc_2", "doc2", "doc-2", "a", "Z", "9", "10", "worst"]
    assert [line[2] for line in lines] == order
    assert [line[3] for line in lines] == [str(rank) for rank in range(1, 15)]
    assert lines[0] == ["q", "Q0", "best", "1", "0.75", "mine"]
    assert lines[-1] == ["q", "Q0", "worst", "14", "-1.0", "mine"]


def test_an_ms_marco_run_has_ranks_alone_which_read_as_their_inverse() -> None:
    write_run({"1": {"10": 0.5, "11": 0.75}, "2": {"10": 0.1}}, "a.tsv", out_format="msmarco")

    assert Path("a.tsv").read_text() == "1\t11\t1\n1\t10\t2\n2\t10\t1\n"
    assert read_run("a.tsv") == {"1": {"11": 1.0, "10": 0.5}, "2": {"10": 1.0}}


def test_a_run_of_ranx_is_read() -> None:
    Path("a.json").write_text(json.dumps(PLAIN))

    assert read_run("a.json") == PLAIN


def test_the_usual_names_of_ids_and_scores_are_known() -> None:
    Path("a.jsonl").write_text('{"qid": 7, "docno": "d", "score": 2}\n{"qid": 7, "docno": "e", "score": 1.5}\n')
    assert read_run("a.jsonl") == {"7": {"d": 2.0, "e": 1.5}}

    Path("a.csv").write_text("topic,docid,rank\n007,d,4\n".replace("topic", "query-id"))
    assert read_run("a.csv") == {"007": {"d": 0.25}}


def test_results_of_rank_llm_are_read() -> None:
    candidates = [{"docid": "d", "score": 0.5, "doc": {"text": "x"}}, {"docid": 7, "score": 1, "doc": {"text": "y"}}]
    Path("a.json").write_text(json.dumps([{"query": {"text": "a", "qid": "q"}, "candidates": candidates}]))

    assert read_run("a.json") == {"q": {"d": 0.5, "7": 1.0}}


@pytest.mark.parametrize("name", [*FILES, "a.trec"])
def test_an_empty_run_is_a_file_without_rows(name: str) -> None:
    write_run({}, name)

    assert Path(name).exists()
    if name in ("a.parquet", "a.csv", "a.tsv.zst"):  # the others are empty files, which are not read
        assert read_run(name) == {}


TREC = "q Q0 d 1 0.5 t\n"
ROW = '{"query_id": "q", "document_id": "d", "score": 0.5}\n'
NO_RUN = "a run has the ids of queries and documents, and a score or rank of each"


@pytest.mark.parametrize(
    ("name", "content", "message", "hint"),
    [
        (
            "a.trec",
            TREC + "q Q0 d2 2 0.25\n",
            "a.trec, line 2: has 5 fields, not 6",
            "its fields are query_id, one unused, document_id, rank, score, run_tag",
        ),
        (
            "a.trec",
            TREC + "q Q0 d2 2 high t\n",
            "a.trec, line 2: column 'score' ",
            "write it in digits",
        ),
        ("a.trec", TREC + TREC, "a.trec, line 2: query 'q' has document 'd' twice", "leave one of them out"),
        ("a.jsonl", ROW + "{\n", "a.jsonl, line 2: not JSON: ", None),
        (
            "a.jsonl",
            ROW + ROW.replace("0.5", "null"),
            "a.jsonl, line 2: document 'd' of query 'q' has no score",
            "scores are finite numbers",
        ),
        ("a.jsonl", ROW.replace('"d"', "null"), "a.jsonl, line 1: the id of a document is null", NO_RUN),
        (
            "a.csv",
            "query_id,document_id,score\nq,d,\n",
            "a.csv, line 2: document 'd' of query 'q' has the score ''",
            "scores are finite numbers",
        ),
        (
            "a.csv",
            "qid,text\nq,x\n",
            "a.csv has no column for the document: none of document_id, ",
            "rename the column",
        ),
        ("a.json", '{"q": {"d": 1, "d": 2}}', "a.json is no run: it has 'd' twice in one object", NO_RUN),
        ("a.json", '{"q": [1]}', "a.json is no run: 'q' has no object of documents and scores", NO_RUN),
        ("a.json", '{"q": {"d": "x"}}', "a.json: document 'd' of query 'q' has the score 'x'", None),
        ("a.json", '{"q": {"d": 1}', "a.json is no run: Expecting ',' delimiter: line 1 column 15 (char 14)", NO_RUN),
        (
            "a.json",
            '{"mteb_model_meta": {}, "en": {"dev": {}, "test": {}}}',
            "a.json has predictions of en/dev, en/test, not of one subset and split",
            "write what is to be read to a file of its own",
        ),
    ],
)
def test_a_file_that_is_no_run_is_named_with_the_line(name: str, content: str, message: str, hint: str | None) -> None:
    Path(name).write_text(content)

    with pytest.raises(InputError) as caught:
        read_run(name)
    assert caught.value.message.startswith(message)
    assert hint is None or caught.value.hint == hint


def test_a_missing_file_is_named() -> None:
    for name in ("none.trec", "none.json"):
        with pytest.raises(NotFoundError, match=f"^{name}: no such file or folder"):
            read_run(name)


@pytest.mark.parametrize(
    ("run", "name", "options", "kind", "message"),
    [
        ({1: {"d": 1}}, "a.trec", {}, UsageError, "id 1 is no text"),
        ({"q": {1: 1}}, "a.trec", {}, UsageError, "id 1 is no text"),
        ({"q": {"d": float("nan")}}, "a.trec", {}, UsageError, "document 'd' of query 'q' has the score nan"),
        ({"q": {"d": "1"}}, "a.trec", {}, UsageError, "document 'd' of query 'q' has the score '1'"),
        (PLAIN, "a.trec", {"run_tag": "my run"}, UsageError, "--run-tag 'my run' is not one word"),
        (PLAIN, "a.npy", {}, UsageError, "cannot write a.npy: NPY has more than a run"),
        (PLAIN, "a.txt", {}, UsageError, "cannot write a.txt: its suffix is none of .parquet, "),
        ({"q": {"d": 1, "": 1}}, "a.trec", {}, InputError, "a document id is empty"),
        ({"": {"d": 1}}, "a.tsv", {"out_format": "msmarco"}, InputError, "a query id is empty"),
        ({"q": {"a b": 1}}, "a.trec", {}, InputError, "document id 'a b' has whitespace, which ends a field"),
        ({"q\t1": {"d": 1}}, "a.trec", {}, InputError, r"query id 'q\t1' has whitespace, which ends a field"),
        ({"q": {"a\xa0b": 1}}, "a.trec", {}, InputError, r"document id 'a\xa0b' has whitespace, which ends a field"),
        ({"q": {"a\0b": 1}}, "a.trec", {}, InputError, r"document id 'a\x00b' has whitespace, which ends a field"),
        ({"#q": {"d": 1}}, "a.trec", {}, InputError, "query id '#q' begins with #, which trec_eval skips"),
    ],
)
def test_what_a_format_cannot_hold_is_named_and_leaves_no_file(
    run: Any, name: str, options: Any, kind: type[BatchscoreError], message: str
) -> None:
    with pytest.raises(kind) as caught:
        write_run(run, name, **options)

    noun = "an MS MARCO run" if options else "a TREC run"
    expected = message if kind is UsageError else f"cannot write {name} as {noun}: {message}"
    assert caught.value.message.startswith(expected)
    assert kind is UsageError or caught.value.hint == "write .jsonl, which has any id"
    assert list(Path().iterdir()) == []
