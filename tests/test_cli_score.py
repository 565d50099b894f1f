"""`batchscore score` as a person runs it: files in, files out, and what is said when something is wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner, Result

import checkpoints
import jobs
from batchscore import Scorer
from batchscore.cli.main import app

pytestmark = pytest.mark.usefixtures("here")

Tiny = Callable[[str], str]
QUERIES, DOCUMENTS = checkpoints.pairs(40, seed=3)
ROWS = [{"id": f"r{i}", "query": q, "document": d} for i, (q, d) in enumerate(zip(QUERIES, DOCUMENTS, strict=True))]


def write(name: str, rows: list[dict[str, Any]]) -> str:
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(rows), name)
    else:
        Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return name


def read(name: str) -> list[dict[str, Any]]:
    if name.endswith(".parquet"):
        rows: list[dict[str, Any]] = pq.read_table(name).to_pylist()
        return rows
    return [json.loads(line) for line in Path(name).read_text("utf-8").splitlines()]


def score(model: str, *arguments: str) -> Result:
    """A run in float32, so that its numbers can be compared on every CPU; a later --dtype wins."""
    return CliRunner().invoke(app, ["score", "--model", model, "--dtype", "float32", *arguments])


@pytest.mark.parametrize("source", ["pairs.jsonl", "pairs.parquet"])
@pytest.mark.parametrize("target", ["out.jsonl", "out.parquet"])
def test_rows_come_back_in_order_with_the_scores_of_scorer(tiny: Tiny, source: str, target: str) -> None:
    result = score(tiny("bert_ce"), "--in", write(source, ROWS), "--out", target)

    assert result.exit_code == 0, result.output
    rows, expected = read(target), Scorer(tiny("bert_ce"), dtype="float32").score(QUERIES, DOCUMENTS)
    assert [{key: row[key] for key in ROWS[0]} for row in rows] == ROWS
    assert list(rows[0]) == ["id", "query", "document", "score"]
    np.testing.assert_allclose([row["score"] for row in rows], expected, atol=1e-6)


def test_score_is_float32(tiny: Tiny) -> None:
    score(tiny("bert_mean"), "--in", write("pairs.jsonl", ROWS), "--out", "out.parquet")

    assert pq.read_schema("out.parquet").field("score").type == pa.float32()


# bfloat16 keeps 8 bits, so each rounding is off by 2**-9 at most; the dozen of them that lie between a text and a score
# near 0.5 go both ways, and where another kernel adds in another order, a few fall to the other side
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("bfloat16", 8 * 2**-9)])
@pytest.mark.parametrize("options", [["--window-rows", "7"], ["--batch-tokens", "16"], ["--padded"]], ids=" ".join)
def test_how_much_is_processed_at_once_does_not_matter(
    tiny: Tiny, options: list[str], dtype: str, tolerance: float
) -> None:
    run = [tiny("roberta_ce"), "--in", write("pairs.jsonl", ROWS), "--dtype", dtype]
    score(*run, "--out", "plain.jsonl")
    score(*run, "--out", "other.jsonl", *options)

    plain, other = ([row["score"] for row in read(name)] for name in ("plain.jsonl", "other.jsonl"))
    np.testing.assert_allclose(other, plain, rtol=0, atol=tolerance)


def test_several_inputs_are_one(tiny: Tiny) -> None:
    write("a.jsonl", ROWS[:11])
    write("b.parquet", ROWS[11:])
    result = score(
        tiny("bert_mean"), "--in", "a.jsonl", "--in", "b.parquet", "--out", "out.jsonl", "--window-rows", "8"
    )

    assert result.exit_code == 0, result.output
    assert [row["id"] for row in read("out.jsonl")] == [row["id"] for row in ROWS]


@pytest.mark.parametrize(
    ("kept", "columns"),
    [
        ("all", ["id", "query", "document", "score"]),
        ("none", ["score"]),
        ("id", ["id", "score"]),
        ("document, id", ["document", "id", "score"]),
    ],
)
def test_keep_columns_chooses_what_is_carried(tiny: Tiny, kept: str, columns: list[str]) -> None:
    result = score(
        tiny("bert_mean"), "--in", write("pairs.jsonl", ROWS), "--out", "out.parquet", "--keep-columns", kept
    )

    assert result.exit_code == 0, result.output
    assert pq.read_schema("out.parquet").names == columns
    assert len(pq.read_table("out.parquet")) == len(ROWS)


@pytest.mark.parametrize("out", ["data/out.jsonl", "data/out/"])
@pytest.mark.parametrize("pattern", ["data", "data/", "data/**", "./data/*", "data/*.jsonl"])
def test_an_output_among_the_inputs_is_not_one_of_them(tiny: Tiny, pattern: str, out: str) -> None:
    os.mkdir("data")
    write("data/a.jsonl", [*ROWS, {"query": None, "document": "x"}])
    options = [tiny("bert_mean"), "--in", pattern, "--out", out, "--window-rows", "3"]
    for run in (["--shard", "0/2"], ["--shard", "1/2", "--merge"], []):
        result = score(*options, *run)
        assert result.exit_code in (0, 7), result.output
    assert result.exit_code == 7
    assert len(read("data/out.jsonl") if out.endswith("l") else pq.read_table("data/out.parquet")) == len(ROWS)


def test_columns_may_have_other_names(tiny: Tiny) -> None:
    write("pairs.jsonl", [{"q": row["query"], "text": row["document"]} for row in ROWS])
    names = ["--query-column", "q", "--document_column", "text", "--score-column", "s"]  # underscores are dashes
    result = score(tiny("bert_mean"), "--in", "pairs.jsonl", "--out", "out.jsonl", *names)

    assert result.exit_code == 0, result.output
    assert list(read("out.jsonl")[0]) == ["q", "text", "s"]


@pytest.mark.parametrize("names", [("sentence1", "sentence2"), ("text1", "text2")])
def test_pairs_of_texts_are_found_by_their_names(tiny: Tiny, names: tuple[str, str]) -> None:
    first, second = names
    write("pairs.jsonl", [{"label": 1, second: row["document"], first: row["query"]} for row in ROWS])
    result = score(tiny("bert_ce"), "--in", "pairs.jsonl", "--out", "found.jsonl", "--dtype", "float32")
    named = ["--query-column", first, "--document-column", second]
    score(tiny("bert_ce"), "--in", "pairs.jsonl", "--out", "named.jsonl", "--dtype", "float32", *named)

    assert result.exit_code == 0, result.output
    assert f"columns  queries in {first}, documents in {second}" in result.stderr
    assert read("found.jsonl") == read("named.jsonl")


@pytest.mark.parametrize("more", [{"text": "a"}, {"sentence1": "a", "sentence2": "b"}, {"document": "a"}])
def test_pairs_of_texts_beside_others_are_not_guessed(tiny: Tiny, more: dict[str, str]) -> None:
    write("pairs.jsonl", [{"text1": "a", "text2": "b", **more}])
    result = score(tiny("bert_ce"), "--in", "pairs.jsonl", "--out", "out.jsonl")

    assert result.exit_code == 5
    assert "column 'query' not found in pairs.jsonl" in result.stderr


def test_details_of_a_cross_encoder(tiny: Tiny) -> None:
    """The logit, the tokens the model read, and which side was cut."""
    long = "word " * 200
    rows = [("short", "short"), ("short", long), (long, long), (long, "")]
    write("pairs.jsonl", [{"query": q, "document": d} for q, d in rows])
    score(tiny("bert_ce_default"), "--in", "pairs.jsonl", "--out", "out.parquet", "--details")

    out = read("out.parquet")
    assert [row["truncated"] for row in out] == ["none", "document", "both", "query"]
    assert [row["num_tokens"] for row in out[1:]] == [64, 64, 64]
    np.testing.assert_allclose(
        [1 / (1 + np.exp(-row["logit"])) for row in out], [row["score"] for row in out], atol=1e-6
    )


def test_details_of_a_bi_encoder_have_no_logit(tiny: Tiny) -> None:
    score(tiny("bert_mean"), "--in", write("pairs.jsonl", ROWS), "--out", "out.parquet", "--details")

    assert pq.read_schema("out.parquet").names[-3:] == ["score", "num_tokens", "truncated"]


def test_cut_rows_are_counted(tiny: Tiny) -> None:
    write("pairs.jsonl", [{"query": "a", "document": "word " * 200}, {"query": "a", "document": "b"}])
    result = score(tiny("bert_ce"), "--in", "pairs.jsonl", "--out", "out.parquet")

    assert "cut      document 1" in result.stderr
    assert json.loads(Path("out.parquet.run.json").read_text("utf-8"))["counts"]["cut"] == {
        "query": 0,
        "document": 1,
        "both": 0,
    }


def test_limit_reads_the_first_rows(tiny: Tiny) -> None:
    score(tiny("bert_mean"), "--in", write("pairs.jsonl", ROWS), "--out", "out.jsonl", "--limit", "5")

    assert [row["id"] for row in read("out.jsonl")] == ["r0", "r1", "r2", "r3", "r4"]


def test_no_rows_give_a_valid_empty_file(tiny: Tiny) -> None:
    pq.write_table(
        pa.table({"query": pa.array([], pa.string()), "document": pa.array([], pa.string())}), "none.parquet"
    )
    for score_type in ("bi-encoder", "late-interaction"):
        out = f"{score_type}.parquet"
        result = score(tiny("bert_mean"), "--in", "none.parquet", "--out", out, "--score-type", score_type)

        assert result.exit_code == 0, result.output
        assert pq.read_table(out).column_names == ["query", "document", "score"]


def test_empty_strings_are_scored(tiny: Tiny) -> None:
    write("pairs.jsonl", [{"query": "", "document": ""}, {"query": "a", "document": ""}])
    for name in ("bert_ce", "bert_mean", "xlmr_cls"):
        assert score(tiny(name), "--in", "pairs.jsonl", "--out", f"{name}.jsonl").exit_code == 0
        assert all(np.isfinite(row["score"]) for row in read(f"{name}.jsonl"))


def test_record_says_where_each_setting_came_from(tiny: Tiny) -> None:
    score(tiny("bert_mean"), "--in", write("pairs.jsonl", ROWS), "--out", "out.jsonl", "--document-prompt", "text: ")

    record = json.loads(Path("out.jsonl.run.json").read_text("utf-8"))
    assert record["spec"]["pooling"] == {"value": ["mean"], "source": "1_Pooling/config.json"}
    assert record["spec"]["document_prompt"] == {"value": "text: ", "source": "--document-prompt"}
    assert record["inputs"][0]["name"] == "pairs.jsonl"
    assert record["counts"]["rows"] == len(ROWS)
    assert record["placement"]["dtype_reason"]
    assert {"torch", "transformers", "batchscore"} <= record["versions"].keys()


def test_quiet_prints_nothing(tiny: Tiny) -> None:
    result = score(tiny("bert_mean"), "--in", write("pairs.jsonl", ROWS), "--out", "out.jsonl", "--quiet")

    assert (result.exit_code, result.output) == (0, "")


def test_json_log_is_one_object_a_line(tiny: Tiny) -> None:
    result = score(tiny("bert_mean"), "--in", write("pairs.jsonl", ROWS), "--out", "out.jsonl", "--log-format", "json")

    events = [json.loads(line) for line in result.stderr.splitlines()]
    assert [event["event"] for event in events] == ["loading", "start", "loading", "finish"]
    assert events[-1]["rows"] == len(ROWS)


def test_the_traceback_behind_an_error_is_there_for_who_asks(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    call = [tiny("bert_mean"), "--in", write("pairs.jsonl", ROWS), "--out", "out.jsonl", "--document-column", "text"]
    assert "Traceback" not in score(*call).stderr
    monkeypatch.setenv("BATCHSCORE_DEBUG", "1")
    assert "Traceback (most recent call last)" in score(*call).stderr
    assert "Traceback" in json.loads(score(*call, "--log-format", "json").stderr.splitlines()[-1])["traceback"]


def test_tokens_a_second_are_those_that_were_forwarded(tiny: Tiny) -> None:
    """What an earlier run has scored takes no time."""
    rows = write("pairs.jsonl", ROWS[:10] * 4)
    options = ["--in", rows, "--out", "parts/", "--unit-rows", "10", "--log-format", "json"]
    score(tiny("bert_ce"), *options)
    os.remove("parts/part-00002.parquet")
    counts = json.loads(score(tiny("bert_ce"), *options).stderr.splitlines()[-1])

    assert 4 * counts["tokens_forwarded"] == counts["tokens"] > 0


def test_something_is_said_before_torch_is_loaded(tiny: Tiny) -> None:
    call = ["score", "--model", tiny("bert_mean"), "--in", "none.jsonl", "--out", "out.jsonl"]
    code = (
        "import sys\nfrom batchscore.cli.display import Display\nfrom batchscore.cli.main import app\n"
        "loading = Display.loading\n"
        "def note(*values):\n    loading(*values)\n    print('torch' in sys.modules)\n    sys.exit(4)\n"
        f"Display.loading = note\napp({call!r})"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert run.stderr.splitlines()[0] == f"loading  {tiny('bert_mean')}"
    assert run.stdout == "False\n"
    assert run.returncode == 4


def test_last_line_says_it_all(tiny: Tiny) -> None:
    result = score(tiny("bert_mean"), "--in", write("pairs.jsonl", ROWS), "--out", "out.jsonl")

    last = result.stderr.splitlines()[-1]
    assert last.startswith("40 rows in ")
    assert last.endswith(("on cpu in float32 -> out.jsonl", "on cpu in bfloat16 -> out.jsonl"))


GOOD_LINE = b'{"query": "a", "document": "b"}\n'
# what is wrong: file, content, exit code, what is said
FAULTS: dict[str, tuple[str, bytes, int, list[str]]] = {
    "missing column": (
        "in.jsonl",
        b'{"query": "a", "doc": "b"}\n',
        5,
        ["'document' not found in in.jsonl; columns: query, doc", "pass --document-column doc"],
    ),
    "null": ("in.jsonl", GOOD_LINE + b'{"query": null, "document": "b"}\n', 5, ["in.jsonl, line 2", "'query'", "null"]),
    "number": ("in.jsonl", b'{"query": "a", "document": 3}\n', 5, ["in.jsonl, line 1", "'document'", "JSON number"]),
    "malformed line": ("in.jsonl", GOOD_LINE + b'{"query": \n', 5, ["in.jsonl, line 2", "not JSON"]),
    "invalid UTF-8": ("in.jsonl", b'{"query": "a", "document": "\xff"}\n', 5, ["in.jsonl, line 1", "UTF-8"]),
    "empty file": ("in.jsonl", b"", 5, ["in.jsonl is empty"]),
    "corrupt Parquet": ("in.parquet", b"PAR1 not really", 5, ["in.parquet", "not a readable Parquet file"]),
    "unknown suffix": ("in.xls", b"query,document\n", 2, ["in.xls", ".parquet", "pass --in-format"]),
    "existing score": (
        "in.jsonl",
        b'{"query": "a", "document": "b", "score": 1}\n',
        2,
        ["'score'", "pass --score-column"],
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_bad_input_is_named_and_leaves_no_output(tiny: Tiny, fault: str) -> None:
    name, content, code, said = FAULTS[fault]
    Path(name).write_bytes(content)
    result = score(tiny("bert_mean"), "--in", name, "--out", "out.parquet", "--errors", "fail")

    assert result.exit_code == code, result.output
    assert [part for part in [*said, "hint: "] if part not in result.stderr] == []
    assert sorted(os.listdir()) == [name]


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--in", "nowhere.parquet", "--out", "o.parquet"], 4, "nowhere.parquet: no such file"),
        (["--in", "pairs.jsonl", "--out", "o.txt"], 2, "o.txt"),
        (["--in", "pairs.jsonl", "--out", "no/o.parquet"], 8, "no folder no"),
        (["--in", "pairs.jsonl", "--out", "pairs.jsonl"], 2, "is one of the inputs"),
        (["--in", "pairs.jsonl", "--out", "o.parquet", "--max-length", "65"], 2, "--max-length 65"),
        (["--in", "pairs.jsonl", "--out", "o.parquet", "--score-type", "cross-encoder"], 4, "no score head"),
        (["--in", "pairs.jsonl", "--out", "o.parquet", "--device", "tpu"], 2, "--device 'tpu'"),
        (["--in", "pairs.jsonl", "--out", "o.parquet", "--config", "nope"], 2, "multilingual-e5"),
        (
            ["--in", "pairs.jsonl", "--out", "o.parquet", "--keep-columns", "id,nope"],
            5,
            "'nope' not found in pairs.jsonl",
        ),
        (
            ["--in", "pairs.jsonl", "--out", "o.parquet", "--keep-columns", ""],
            2,
            "--keep-columns has an empty name",
        ),
        (["--in", "pairs.jsonl", "--out", "o.parquet", "--keep-columns", "id,"], 2, "an empty name"),
        (["--in", "pairs.jsonl", "--out", "o.parquet", "--scores"], 2, "No such option"),
        (["--in", "pairs.jsonl", "--out", "o.parquet", "--score-column", "logit", "--details"], 2, "'logit' too"),
        (["--in", "pairs.jsonl", "--out", "o.parquet", "--ray-address", "auto"], 2, "--ray-address needs --engine ray"),
    ],
)
def test_a_wrong_call_is_named_and_leaves_no_output(tiny: Tiny, options: list[str], code: int, said: str) -> None:
    write("pairs.jsonl", ROWS)
    result = score(tiny("bert_mean"), *options)

    assert result.exit_code == code, result.output
    assert said in result.stderr
    assert sorted(os.listdir()) == ["pairs.jsonl"]


def test_a_fault_far_into_the_input_names_its_line_and_keeps_the_older_output(tiny: Tiny) -> None:
    """What was scored before it stays as well."""
    write("pairs.jsonl", [*ROWS, {"id": "bad", "query": "x", "document": None}])
    Path("out.jsonl").write_text("older\n")
    options = ["--window-rows", "8", "--errors", "fail", "--overwrite", "--encode", "unit"]
    result = score(tiny("bert_mean"), "--in", "pairs.jsonl", "--out", "out.jsonl", *options)

    assert result.exit_code == 5
    assert "pairs.jsonl, line 41: column 'document' is null" in result.stderr
    assert sorted(os.listdir()) == [".out.jsonl.parts", "out.jsonl", "pairs.jsonl"]
    assert len([name for name in os.listdir(".out.jsonl.parts") if name.endswith(".parquet")]) == 5
    assert Path("out.jsonl").read_text() == "older\n"


def test_an_output_of_something_else_is_not_replaced_unasked(tiny: Tiny) -> None:
    write("pairs.jsonl", ROWS)
    Path("out.jsonl").write_text("older\n")
    result = score(tiny("bert_mean"), "--in", "pairs.jsonl", "--out", "out.jsonl")

    assert result.exit_code == 8
    assert "out.jsonl already exists" in result.stderr
    assert "--overwrite" in result.stderr
    assert Path("out.jsonl").read_text() == "older\n"


def test_truncation_error_names_the_row(tiny: Tiny) -> None:
    write("pairs.parquet", [{"query": "a", "document": "b"}, {"query": "a", "document": "word " * 200}])
    result = score(tiny("bert_ce"), "--in", "pairs.parquet", "--out", "out.jsonl", "--truncation", "error")

    assert result.exit_code == 7
    assert len(read("out.jsonl")) == 1
    (fault,) = read("out.jsonl.errors.jsonl")
    assert (fault["row"], fault["code"], fault["message"]) == (1, "too-long", "longer than max_length 64 tokens")


# ---- documents with a title

CORPUS = [
    {"query": "cat", "title": "Cats", "text": "sleep"},
    {"query": "cat", "title": "", "text": "dogs run"},
    {"query": "cat", "title": None, "text": "birds"},
    {"query": "cat", "title": "Fish", "text": None},
]
JOINED = ["Cats sleep", "dogs run", "birds", "Fish"]


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
@pytest.mark.parametrize(
    ("options", "documents", "line"),
    [
        (["--document-column", "text"], JOINED, True),
        (["--document-fields", "title,text"], JOINED, True),
        (["--document-fields", "text"], ["sleep", "dogs run", "birds", None], False),
        (["--document-column", "title"], ["Cats", "", None, "Fish"], False),
    ],
)
def test_a_title_beside_a_text_is_part_of_the_document(
    here: Path, tiny: Callable[[str], str], suffix: str, options: list[str], documents: list[str | None], line: bool
) -> None:
    jobs.write_rows(f"corpus.{suffix}", CORPUS)
    command = ["score", "--model", tiny("bert_ce"), "--dtype", "float32", "--in", f"corpus.{suffix}"]
    result = CliRunner().invoke(app, [*command, "--out", "out.jsonl", "--errors", "null", *options])

    assert result.exit_code == (7 if None in documents else 0), result.output
    assert ("document title and text, joined by a space" in result.stderr) == line
    scores = [json.loads(row)["score"] for row in Path("out.jsonl").read_text("utf-8").splitlines()]
    scorer = Scorer(tiny("bert_ce"), dtype="float32")
    expected = [
        None if text is None else pytest.approx(float(scorer.score("cat", text)[0]), abs=1e-6) for text in documents
    ]
    assert scores == expected
