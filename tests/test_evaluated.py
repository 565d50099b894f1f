"""`rerank --qrels`: the ranking is measured right after it is made, as `eval` would measure it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import jobs
from batchscore import Outcome, evaluate_runs, read_run, rerank_files, score_files
from batchscore.cli.main import app
from batchscore.errors import BatchscoreError
from batchscore.jobs.events import Silent
from threads import one_thread

Tiny = Callable[[str], str]

PAIRS = [(f"q{number % 4}", f"d{number:02}") for number in range(24)]
TEXTS = jobs.random_rows(len(PAIRS))
JOIN = {"run": "run.trec", "queries": "queries.jsonl", "corpus": "corpus.jsonl"}
MEASURE = {"qrels": "judged.tsv", "metrics": "nDCG@3 RR"}


@pytest.fixture(autouse=True)
def _collection(here: Path) -> Iterator[None]:
    rows = list(zip(PAIRS, TEXTS, strict=True))
    jobs.write_rows("queries.jsonl", [{"_id": f"q{number}", "text": jobs.WORDS[number]} for number in range(4)])
    jobs.write_rows("corpus.jsonl", [{"_id": pair[1], "text": row["document"]} for pair, row in rows])
    jobs.write_rows(
        "pairs.jsonl",
        [
            {"query_id": q, "document_id": d, "query": jobs.WORDS[int(q[1])], "document": row["document"]}
            for (q, d), row in rows
        ],
    )
    Path("run.trec").write_text("".join(f"{q} Q0 {d} {int(d[1:]) // 4 + 1} {-int(d[1:])} x\n" for q, d in PAIRS))
    Path("judged.tsv").write_text("".join(f"{q}\t0\t{d}\t{int(d[1:]) % 3}\n" for q, d in PAIRS[:20]))
    with one_thread():
        yield


def rerank(model: str, out: str = "out.jsonl", **options: Any) -> Outcome:
    inputs = options.pop("inputs", None)
    return rerank_files(model, inputs, out, **{"dtype": "float32", **options})


def described(outcome: Outcome) -> Any:
    assert outcome.evaluation is not None
    return outcome.evaluation.describe()


def test_candidates_and_output_are_measured_and_compared(tiny: Tiny) -> None:
    outcome = rerank(tiny("bert_ce"), **JOIN, **MEASURE)

    known = evaluate_runs(["out.jsonl"], "judged.tsv", metrics="nDCG@3 RR", baseline="run.trec")
    assert described(outcome) == known.describe()
    assert [run.run for run in known.runs] == ["run.trec", "out.jsonl"]
    assert outcome.exit_code == 0


@pytest.mark.parametrize("out", ["out.trec", "out.parquet", "out.csv.gz", "out.json", "out/"])
def test_an_output_of_any_format_is_measured(tiny: Tiny, out: str) -> None:
    form = "mteb" if out.endswith(".json") else "auto"
    rows = rerank(tiny("bert_ce"), out, inputs="pairs.jsonl", out_format=form, unit_rows=9, **MEASURE)

    joined = described(rerank(tiny("bert_ce"), "joined.jsonl", **JOIN, **MEASURE))["runs"][1]
    (found,) = described(rows)["runs"]
    for name, measure in joined["measures"].items():
        assert found["measures"][name]["mean"] == pytest.approx(measure["mean"])
    assert found["unjudged"] == joined["unjudged"]


def test_judgements_do_not_choose_pairs_that_something_else_chooses(tiny: Tiny) -> None:
    counts = [
        rerank(tiny("bert_ce"), f"{number}.jsonl", qrels="judged.tsv", **options).counts["scored"]
        for number, options in enumerate(
            [{"inputs": "pairs.jsonl"}, JOIN, {**JOIN, "run": None}, {**JOIN, "run": None, "all_pairs": True}]
        )
    ]

    assert counts == [24, 24, 20, 4 * 24]


def test_a_job_is_the_same_with_and_without_judgements(tiny: Tiny) -> None:
    first = rerank(tiny("bert_ce"), **JOIN)
    again = rerank(tiny("bert_ce"), **JOIN, **MEASURE)

    assert (first.end, first.evaluation) == ("merged", None)
    assert (again.end, again.done["rows"]) == ("found", 0)
    assert [run.run for run in again.evaluation.runs] == ["run.trec", "out.jsonl"]  # type: ignore[union-attr]


@pytest.mark.parametrize(("out", "nested"), [("out.csv", False), ("out.parquet", False), ("out.jsonl", True)])
def test_ids_may_have_any_names(tiny: Tiny, out: str, nested: bool) -> None:
    """Of what `rerank` writes the first column is the query's, even beside one that is called as ids usually are."""
    rows = [json.loads(line) for line in Path("pairs.jsonl").read_text("utf-8").splitlines()]
    renamed = [
        {
            "topic": row["query_id"],
            "key": row["document_id"],
            "qid": "x",
            "query": row["query"],
            "text": row["document"],
        }
        for row in rows
    ]
    jobs.write_rows("renamed.jsonl", renamed)
    names = {"query_id_column": "topic", "document_id_column": "key", "keep_columns": "qid"}
    found = described(rerank(tiny("bert_ce"), out, inputs="renamed.jsonl", nested=nested, **names, **MEASURE))

    plain = described(rerank(tiny("bert_ce"), "plain.jsonl", inputs="pairs.jsonl", **MEASURE))
    assert found["runs"][0]["measures"] == plain["runs"][0]["measures"]
    assert {query: list(results) for query, results in read_run(out).items()} == {
        query: list(results) for query, results in read_run("plain.jsonl").items()
    }


def test_candidates_without_scores_are_no_baseline(tiny: Tiny) -> None:
    jobs.write_rows("run.jsonl", [{"query_id": q, "document_id": d} for q, d in PAIRS])
    notes = []

    class Notes(Silent):
        def note(self, line: str) -> None:
            notes.append(line)

    outcome = rerank(tiny("bert_ce"), **{**JOIN, "run": "run.jsonl"}, **MEASURE, events=Notes())

    assert [run["run"] for run in described(outcome)["runs"]] == ["out.jsonl"]
    assert notes[-1].startswith("eval     without the candidates: run.jsonl has no column for the score")


def test_only_who_finishes_a_job_measures_it(tiny: Tiny) -> None:
    ends = [
        rerank(tiny("bert_ce"), "out/", inputs="pairs.jsonl", unit_rows=6, shard=shard, merge=True, **MEASURE)
        for shard in ("0/2", "1/2")
    ]

    assert [(one.end, one.evaluation is not None) for one in ends] == [("partial", False), ("merged", True)]


def test_a_job_that_is_not_finished_is_not_measured(tiny: Tiny) -> None:
    rerank(tiny("bert_ce"), "out/", inputs="pairs.jsonl", unit_rows=6, shard="0/2")
    calls = (["eval", "out/"], ["eval", "run.trec", "--baseline", "out"], ["report", "out/"])
    results = [CliRunner().invoke(app, [*call, "--qrels", "judged.tsv"]) for call in calls]

    assert [result.exit_code for result in results] == [5, 5, 5]
    assert all(" is not finished: 2 of 4 units\n" in result.stderr for result in results)

    rerank(tiny("bert_ce"), "out/", inputs="pairs.jsonl", unit_rows=6, shard="1/2")
    assert CliRunner().invoke(app, [*calls[0], "--qrels", "judged.tsv"]).exit_code == 0


def invoke(model: str, *options: str) -> Any:
    call = ["rerank", "--model", model, "--in", "pairs.jsonl", "--out", "out.jsonl", "--dtype", "float32"]
    return CliRunner().invoke(app, [*call, "--qrels", "judged.tsv", "--metrics", "RR", *options])


def test_a_ranking_that_is_not_good_enough_ends_with_nine(tiny: Tiny) -> None:
    result = invoke(tiny("bert_ce"), "--fail-under", "RR=1.01", "--json", "--metrics-file", "night.prom")

    envelope = json.loads(result.stdout)
    reason = envelope["error"]["message"]
    assert result.exit_code == envelope["exit_code"] == 9
    assert f"error: {reason}\n" in result.stderr
    assert reason.startswith("out.jsonl: RR ")
    assert reason.endswith(" is less than 1.01")
    assert envelope["outputs"]["output"] == "out.jsonl"  # which is there
    assert envelope["counts"]["scored"] == 24
    mean = envelope["evaluation"]["runs"][0]["measures"]["RR"]["mean"]
    assert f'batchscore_eval_measure{{command="rerank",name="night",run="1",measure="RR"}} {mean}' in Path(
        "night.prom"
    ).read_text("utf-8")


def test_the_command_line_prints_the_table_that_eval_prints(tiny: Tiny) -> None:
    printed = invoke(tiny("bert_ce"), "--report", "page.html")
    silent = invoke(tiny("bert_ce"), "--quiet")

    evaluated = CliRunner().invoke(app, ["eval", "out.jsonl", "--qrels", "judged.tsv", "--metrics", "RR"])
    assert (printed.stdout, silent.stdout, silent.stderr) == (evaluated.stdout, "", "")
    assert "RR" in Path("page.html").read_text("utf-8")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metrics": "RR", "qrels": None}, "--metrics is for rankings that are evaluated\nhint: pass --qrels"),
        (
            {"metrics": None, "fail_under": ["RR=1"], "qrels": None},
            "--fail-under is for rankings that are evaluated\nhint: pass",
        ),
        ({"metrics": "nDGC@3"}, "measure 'nDGC@3' is unknown"),
        ({"metrics": "NumRel(rel=2)"}, "cannot compute NumRel(rel=2): Unsupported measures"),
        ({"fail_under": ["P@1=1"]}, "--fail-under names P@1, which is not measured"),
        ({"qrels": "none.tsv"}, "none.tsv: no such file or folder"),
        (
            {"document_id_column": "none", "inputs": "texts.jsonl"},
            "column 'none' not found in texts.jsonl",
        ),
        (
            {"inputs": "texts.jsonl"},
            "--qrels judges documents by their ids, and these have none\nhint: name their column or field with",
        ),
        ({"out": "-"}, "--qrels has the output evaluated, which --out - does not keep\nhint: write it to a file"),
    ],
)
def test_what_cannot_be_measured_is_told_before_anything_is_scored(
    tiny: Tiny, options: dict[str, Any], message: str
) -> None:
    jobs.write_rows("texts.jsonl", [{"query_id": "q1", "query": "river", "document": "horse"}])
    with pytest.raises(BatchscoreError) as caught:
        rerank(tiny("bert_ce"), **{"inputs": "pairs.jsonl", **MEASURE, **options})

    assert message in str(caught.value)
    assert not list(Path().glob("*out.jsonl*"))


def test_score_has_no_ranking_to_measure(tiny: Tiny) -> None:
    with pytest.raises(BatchscoreError, match="--run and --qrels both say which pairs are scored"):
        score_files(tiny("bert_ce"), None, "out.jsonl", **JOIN, qrels="judged.tsv")  # type: ignore[arg-type]
