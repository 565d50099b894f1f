"""What `batchscore eval` says of runs, and when it fails."""

from __future__ import annotations

import json
import random
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ir_measures
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from batchscore.cli.main import app
from batchscore.errors import BatchscoreError, GateError, InputError, UsageError
from batchscore.evaluation.evaluate import evaluate_runs, evaluate_scores
from batchscore.evaluation.measures import parse_measure
from batchscore.evaluation.pairs import MEASURES
from batchscore.evaluation.statistics import holm, mean_interval, paired_p_value

Results = Sequence[tuple[str, str, float]]

GOOD = [("q1", "a", 3.0), ("q1", "b", 2.0), ("q1", "c", 1.0), ("q2", "d", 2.0), ("q2", "e", 1.0)]
POOR = [("q1", "a", 1.0), ("q1", "b", 2.0), ("q1", "c", 3.0), ("q2", "d", 1.0), ("q2", "e", 2.0)]
JUDGED = {"q1": {"a": 2, "b": 0}, "q2": {"d": 1}}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_qrels("qrels.jsonl", JUDGED)
    write_run("good.jsonl", GOOD)
    write_run("poor.jsonl", POOR)
    return tmp_path


def write_lines(path: str, rows: Sequence[Mapping[str, Any]]) -> None:
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def write_run(path: str, results: Results) -> None:
    write_lines(path, [{"query_id": q, "document_id": d, "relevance_score": score} for q, d, score in results])


def write_qrels(path: str, judged: Mapping[str, Mapping[str, int]]) -> None:
    rows = [(q, d, relevance) for q, documents in judged.items() for d, relevance in documents.items()]
    write_lines(path, [{"query-id": q, "corpus-id": d, "score": relevance} for q, d, relevance in rows])


def means(run: str, metrics: str = "nDCG@10 RR@10", qrels: str = "qrels.jsonl") -> dict[str, float]:
    (found,) = evaluate_runs([run], qrels, metrics=metrics).runs
    return {measure.name: measure.value for measure in found.measures}


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["eval", *arguments])


# ---- measures


@pytest.mark.usefixtures("folder")
def test_measures_are_those_of_trec_eval() -> None:
    # q1: relevance 2 at rank 3, log2(4) = 2, so half of the ideal; q2: at rank 2, 1 / log2(3)
    assert means("good.jsonl") == {"nDCG@10": 1.0, "RR@10": 1.0}
    assert means("poor.jsonl") == pytest.approx({"nDCG@10": (0.5 + 0.6309297535714575) / 2, "RR@10": (1 / 3 + 0.5) / 2})


@pytest.mark.usefixtures("folder")
def test_the_order_of_lines_does_not_matter() -> None:
    write_run("shuffled.jsonl", [POOR[place] for place in (3, 0, 4, 2, 1)])

    assert means("shuffled.jsonl") == means("poor.jsonl")


@pytest.mark.usefixtures("folder")
def test_a_judged_query_without_results_counts_as_zero_and_is_named() -> None:
    write_run("half.jsonl", [*GOOD[:3], ("q9", "z", 1.0)])

    (found,) = evaluate_runs(["half.jsonl"], "qrels.jsonl", metrics="RR@10").runs

    assert found.measures[0].value == 0.5
    assert found.without_results == ["q2"]
    assert found.not_judged == 1


@pytest.mark.usefixtures("folder")
def test_equal_scores_are_ordered_as_by_trec_eval_and_their_best_and_worst_order_is_told() -> None:
    write_run("tied.jsonl", [("q1", "a", 1.0), ("q1", "b", 1.0), ("q2", "d", 1.0)])  # b comes before a: 1/2

    (found,) = evaluate_runs(["tied.jsonl"], "qrels.jsonl", metrics="RR@10").runs

    (measure,) = found.measures
    assert (measure.worst, measure.value, measure.best) == (0.75, 0.75, 1.0)
    assert (found.ties.results, found.ties.queries) == (2, 1)


@pytest.mark.usefixtures("folder")
def test_ranks_of_our_own_output_decide_between_equal_scores() -> None:
    rows = [("q1", "a", 1, 1.0), ("q1", "b", 2, 1.0), ("q2", "d", 1, 1.0)]
    columns = zip(*rows, strict=True)
    pq.write_table(
        pa.table(list(map(list, columns)), ["query_id", "document_id", "rank", "relevance_score"]), "o.parquet"
    )

    assert means("o.parquet", "RR@10") == {"RR@10": 1.0}


@pytest.mark.usefixtures("folder")
def test_ranks_of_a_trec_run_do_not_decide_between_equal_scores() -> None:
    """trec_eval ignores them: the greater id comes first."""
    Path("tied.trec").write_text("q1 Q0 a 1 1.0 t\nq1 Q0 b 2 1.0 t\nq2 Q0 d 1 1.0 t\n")

    assert means("tied.trec", "RR@10") == {"RR@10": 0.75}


@pytest.mark.usefixtures("folder")
def test_scores_of_csv_may_be_empty_and_ranks_go_by_their_number() -> None:
    rows = ["q1,z,,", "q1,a,10,1.0", "q1,b,9,1.0", "q2,d,1,1.0"]
    Path("own.csv").write_text("\n".join(["query_id,document_id,rank,relevance_score", *rows]))

    assert means("own.csv", "RR@10") == {"RR@10": 0.75}  # b, the ninth, comes before a


@pytest.mark.usefixtures("folder")
def test_nested_output_is_measured_as_flat_output_is() -> None:
    results: dict[str, list[dict[str, Any]]] = {}
    for query, document, score in POOR:
        results.setdefault(query, []).append({"document_id": document, "relevance_score": score})
    write_lines("nested.jsonl", [{"query_id": query, "results": listed} for query, listed in results.items()])

    assert means("nested.jsonl") == means("poor.jsonl")


@pytest.mark.usefixtures("folder")
def test_the_share_of_results_that_nobody_judged_is_told() -> None:
    (found,) = evaluate_runs(["good.jsonl"], "qrels.jsonl", metrics="P@1 P@5").runs

    assert found.unjudged == pytest.approx({"@1": 0.0, "@5": (1 / 3 + 1 / 2) / 2})


@pytest.mark.usefixtures("folder")
def test_candidates_of_rank_llm_are_measured_as_a_run_is() -> None:
    requests: dict[str, list[dict[str, Any]]] = {}
    for query, document, score in POOR:
        requests.setdefault(query, []).append({"docid": document, "score": score, "doc": {"text": "t"}})
    rows = [{"query": {"text": "t", "qid": query}, "candidates": listed} for query, listed in requests.items()]
    write_lines("candidates.jsonl", rows)

    assert means("candidates.jsonl") == means("poor.jsonl")


@pytest.mark.usefixtures("folder")
def test_runs_and_judgements_are_read_in_the_formats_of_the_field() -> None:
    Path("results.test").write_text("".join(f"{q} Q0 {d} 1 {score} tag\n" for q, d, score in POOR))
    Path("qrels.test").write_text("q1 0 a 2\nq1 0 b 0\nq2 0 d 1\n")
    Path("beir.tsv").write_text("query-id\tcorpus-id\tscore\nq1\ta\t2\nq1\tb\t0\nq2\td\t1\n")
    Path("ranx.json").write_text(json.dumps({"q1": {"a": 1, "b": 2, "c": 3}, "q2": {"d": 1, "e": 2}}))
    Path("ranks.csv").write_text("query_id,document_id,rank\nq1,c,1\nq1,b,2\nq1,a,3\nq2,e,1\nq2,d,2\n")

    found = [
        evaluate_runs([run], qrels, metrics="nDCG@10").runs[0].measures[0].values.tolist()
        for run in ("results.test", "ranx.json", "ranks.csv")
        for qrels in ("qrels.test", "beir.tsv")
    ]

    assert found == [pytest.approx([0.5, 0.6309297535714575])] * 6


EVERY_KIND = [
    *("nDCG", "nDCG@3", "nDCG(judged_only=True)@3", "RR", "RR@3", "RR(rel=2)@3", "AP", "AP@3", "R@3", "R(rel=2)@3"),
    *("P@3", "P(rel=2)@3", "P(judged_only=True)@3", "Success@1", "Bpref", "infAP", "SetF", "SetF(beta=0.5)", "SetP"),
    *("SetR", "SetAP", "Rprec", "IPrec@0.5", "NumRet", "NumRel", "Judged", "Judged@3", "Compat", "ERR@3"),
    *("nDCG(gains={1:2,2:5})@3", "nDCG(dcg='exp-log2')@3"),
]


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="ir-measures' parser asks for parts of ast that are gone")
@pytest.mark.filterwarnings("ignore::DeprecationWarning:ir_measures.*")
@pytest.mark.parametrize("name", [*EVERY_KIND, "MRR@10", "NDCG@10", "RBP(p=0.9, rel=1)@10"])
def test_names_mean_what_they_mean_to_ir_measures(name: str) -> None:
    assert parse_measure(name) == ir_measures.parse_measure(name)


def test_measures_of_every_kind_are_those_of_ir_measures_by_themselves(folder: Path) -> None:
    draw = random.Random(0)
    numbers = [(str(query), f"d{number}") for query in range(6) for number in range(12)]
    run = {pair: draw.random() for pair in numbers if draw.random() < 0.6}
    judged = {pair: draw.randint(-1, 3) for pair in numbers if draw.random() < 0.5}
    measures = list(map(parse_measure, EVERY_KIND))
    scored, grades = (
        {q: {d: value for (owner, d), value in values.items() if owner == q} for q in sorted({q for q, _ in values})}
        for values in (run, judged)
    )
    expected = [ir_measures.calc([measure], grades, scored) for measure in measures]

    # these have ids that gdeval does not take, or would cut to the same number
    write_run("any.jsonl", [(f"α-{q}", f"{d} §", score) for (q, d), score in run.items()])
    write_qrels("any.qrels.jsonl", {f"α-{q}": {f"{d} §": g for d, g in few.items()} for q, few in grades.items()})
    (found,) = evaluate_runs(["any.jsonl"], "any.qrels.jsonl", metrics=", ".join(EVERY_KIND)).runs

    assert [measure.name for measure in found.measures] == list(map(str, measures))
    for measure, (_, values) in zip(found.measures, expected, strict=True):
        by_query = {value.query_id: value.value for value in values}
        assert measure.values.tolist() == pytest.approx([by_query.get(q[2:], 0.0) for q in found.queries]), measure.name


@pytest.mark.usefixtures("folder")
def test_gains_change_the_measure_that_names_them_alone() -> None:
    write_qrels("graded.jsonl", {"q1": {"a": 2, "b": 1}, "q2": {"d": 1}})
    alone = [means("poor.jsonl", name, "graded.jsonl") for name in ("nDCG(gains={2:9})@10", "nDCG@10")]

    assert means("poor.jsonl", "nDCG(gains={2:9})@10 nDCG@10", "graded.jsonl") == {**alone[0], **alone[1]}
    assert len(set({**alone[0], **alone[1]}.values())) == 2


@pytest.mark.usefixtures("folder")
def test_infinite_scores_are_ordered_and_may_be_equal() -> None:
    write_run("infinite.jsonl", [("q1", "a", float("inf")), ("q1", "b", float("inf")), ("q1", "c", -float("inf"))])

    (found,) = evaluate_runs(["infinite.jsonl"], "qrels.jsonl", metrics="RR@10").runs

    assert found.ties.results == 2
    assert found.measures[0].values.tolist() == [0.5, 0.0]


@pytest.mark.usefixtures("folder")
def test_an_empty_score_in_csv_is_no_result() -> None:
    """As `rerank --errors null` writes the score of a bad row."""
    Path("empty.csv").write_text("query_id,document_id,score\nq1,a,2\nq1,b,\nq2,d,\n")

    (found,) = evaluate_runs(["empty.csv"], "qrels.jsonl", metrics="RR@10").runs

    assert (found.results, found.without_results) == (1, ["q2"])


@pytest.mark.usefixtures("folder")
def test_a_judgement_that_comes_twice_counts_once() -> None:
    Path("twice.qrels").write_text("q1 0 a +2\nq1 0 b 0\nq1 0 a 2\nq2 0 d 1\n")

    assert means("poor.jsonl", qrels="twice.qrels") == means("poor.jsonl")


# ---- intervals and tests


def test_an_interval_holds_the_mean_and_shrinks_with_more_queries() -> None:
    values = np.random.default_rng(0).random(400)
    few, many = mean_interval(values[:40]), mean_interval(values)

    assert few[0] < values[:40].mean() < few[1]
    # of n uniform numbers the mean has a standard deviation of 0.2887 / sqrt(n)
    assert many[1] - many[0] == pytest.approx(2 * 1.96 * 0.2887 / 20, rel=0.1)
    assert mean_interval(np.ones(5)) == (1.0, 1.0)


def test_the_paired_test_is_exact_for_few_queries() -> None:
    better, same = np.array([0.5, 0.6, 0.7, 0.8, 0.9]), np.zeros(5)

    assert paired_p_value(better, same) == 2 / 32
    assert paired_p_value(better, better) == 1.0


def test_the_paired_test_finds_what_is_there_and_not_what_is_not() -> None:
    noise, other = np.random.default_rng(0).normal(size=(2, 200))

    assert paired_p_value(noise + 0.5, noise + 0.1 * other) < 0.001
    assert paired_p_value(noise, other) > 0.05


def test_holm_adjusts_step_by_step() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.6]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.mark.usefixtures("folder")
def test_runs_are_compared_with_the_first_or_with_the_baseline() -> None:
    (one,) = evaluate_runs(["good.jsonl", "poor.jsonl"], "qrels.jsonl", metrics="RR@10").comparisons
    (two,) = evaluate_runs(["poor.jsonl"], "qrels.jsonl", metrics="RR@10", baseline="good.jsonl").comparisons

    assert one == two
    assert (one.run, one.baseline, one.worse, one.better) == ("poor.jsonl", "good.jsonl", 2, 0)
    assert one.difference == pytest.approx((1 / 3 + 0.5) / 2 - 1)


# ---- gates


@pytest.mark.usefixtures("folder")
def test_a_mean_below_its_limit_ends_with_9_and_one_line_that_says_what_fell() -> None:
    result = invoke("poor.jsonl", "--qrels", "qrels.jsonl", "--metrics", "RR@10", "--fail-under", "RR@10=0.5")

    assert result.exit_code == 9
    assert result.stderr == "error: poor.jsonl: RR@10 0.4167 is less than 0.5\n"
    assert invoke("good.jsonl", "--qrels", "qrels.jsonl", "--fail-under", "RR@10=0.5").exit_code == 0


@pytest.mark.usefixtures("folder")
def test_a_limit_may_name_its_measure_as_metrics_does() -> None:
    limits = [("MRR@10", "MRR@10 = 0.5"), ('nDCG(dcg="exp-log2")@10', 'nDCG(dcg="exp-log2")@10=.99')]

    for metrics, limit in limits:
        result = invoke("poor.jsonl", "--qrels", "qrels.jsonl", "--metrics", metrics, "--fail-under", limit)
        assert result.exit_code == 9, result.stderr


@pytest.mark.usefixtures("folder")
def test_all_that_fell_is_in_one_line_that_names_the_run_once() -> None:
    gate = ["--baseline", "good.jsonl", "--max-drop", "0.1", "--fail-under", "RR@10=0.5"]
    result = invoke("poor.jsonl", "--qrels", "qrels.jsonl", "--metrics", "RR@10", *gate)

    (line,) = result.stderr.splitlines()
    assert line.startswith("error: poor.jsonl: RR@10 0.4167 is less than 0.5, RR@10 fell by 0.5833 against good")


@pytest.mark.usefixtures("folder")
def test_a_drop_fails_unless_it_is_small_or_not_significant() -> None:
    gate = ["poor.jsonl", "--qrels", "qrels.jsonl", "--metrics", "RR@10", "--baseline", "good.jsonl", "--max-drop"]

    assert invoke(*gate, "0.1").exit_code == 9
    assert "RR@10 fell by 0.5833 against good.jsonl" in invoke(*gate, "0.1").stderr
    assert invoke(*gate, "0.6").exit_code == 0
    assert invoke(*gate, "0.1", "--significant").exit_code == 0  # two queries prove nothing


@pytest.mark.usefixtures("folder")
def test_a_significant_drop_fails() -> None:
    queries = [f"q{number}" for number in range(20)]
    write_qrels("many.jsonl", {query: {"a": 1} for query in queries})
    write_run("new.jsonl", [row for query in queries for row in ((query, "a", 1.0), (query, "b", 2.0))])
    write_run("old.jsonl", [row for query in queries for row in ((query, "a", 2.0), (query, "b", 1.0))])

    evaluation = evaluate_runs(
        ["new.jsonl"], "many.jsonl", metrics="RR@10", baseline="old.jsonl", max_drop=0, significant=True
    )

    with pytest.raises(GateError, match=r"new\.jsonl: RR@10 fell by 0\.5000 against old\.jsonl"):
        evaluation.require_pass()


# ---- output


@pytest.mark.usefixtures("folder")
def test_values_of_each_query_go_to_a_file() -> None:
    result = invoke("good.jsonl", "poor.jsonl", "--qrels", "qrels.jsonl", "--metrics", "RR@10", "-o", "values.parquet")

    assert result.exit_code == 0, result.stderr
    assert pq.read_table("values.parquet").to_pydict() == {
        "run": ["good.jsonl", "good.jsonl", "poor.jsonl", "poor.jsonl"],
        "query_id": ["q1", "q2", "q1", "q2"],
        "RR@10": [1.0, 1.0, 1 / 3, 0.5],
    }


@pytest.mark.usefixtures("folder")
def test_json_has_what_the_table_has() -> None:
    found = json.loads(invoke("poor.jsonl", "--qrels", "qrels.jsonl", "--metrics", "RR@10", "--json").stdout)

    (run,) = found["runs"]
    assert found["queries"] == 2
    assert run["measures"]["RR@10"]["mean"] == pytest.approx(0.41666667)
    table = invoke("poor.jsonl", "--qrels", "qrels.jsonl", "--metrics", "RR@10").stdout
    low, high = run["measures"]["RR@10"]["interval"]
    assert f"0.4167 [{low:.4f}, {high:.4f}]" in table


@pytest.mark.usefixtures("folder")
def test_tables_are_markdown_or_csv_too() -> None:
    common = ["good.jsonl", "--qrels", "qrels.jsonl", "--metrics", "RR@10", "--format"]

    assert invoke(*common, "markdown").stdout.splitlines()[:2] == ["| run | queries | RR@10 |", "| --- | --- | --- |"]
    assert invoke(*common, "csv").stdout == 'run,queries,RR@10\ngood.jsonl,2,"1.0000 [1.0000, 1.0000]"\n'


# ---- what cannot be evaluated


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"metrics": "nDCG@ten"}, UsageError, "measure 'nDCG@ten' is unknown"),
        ({"metrics": " "}, UsageError, "--metrics names no measure"),
        ({"metrics": "nDCG@0"}, UsageError, "measure 'nDCG@0' has a cutoff below 1"),
        ({"metrics": "nDCG@2.5"}, UsageError, "measure 'nDCG@2.5' cannot be computed: invalid param cutoff=2.5"),
        ({"metrics": "P"}, UsageError, "measure 'P' cannot be computed: it needs a cutoff"),
        ({"metrics": "P(rel=0)@5"}, UsageError, "cannot compute P(rel=0)@5: "),
        ({"metrics": "nDCG(gains={1:2"}, UsageError, "measure 'nDCG(gains={1:2' is unknown"),
        ({"metrics": "RR(judged_only=True)@3"}, UsageError, "cannot compute RR(judged_only=True)@3: Unsupported"),
        ({"metrics": "alpha_nDCG@10"}, UsageError, "measure 'alpha_nDCG@10' needs subtopics"),
        ({"metrics": "ERR@10", "qrels": "five.jsonl"}, UsageError, "cannot compute ERR@10: gdeval takes"),
        ({"fail_under": ["RR@10=0.7.1"]}, UsageError, "--fail-under 'RR@10=0.7.1' is not a measure and a number"),
        ({"out": "values.trec"}, UsageError, "cannot write values of queries to values.trec"),
        ({"qrels": "differ.jsonl"}, InputError, "differ.jsonl: document 'a' of query 'q1' is judged 2 and 0"),
        ({"qrels": "null.jsonl"}, InputError, "null.jsonl: a relevance is missing"),
        ({"qrels": "huge.jsonl"}, InputError, "huge.jsonl: a relevance is beyond 1,000,000"),
        ({"runs": ["nan.jsonl"]}, InputError, "nan.jsonl: a score of query 'q1' is not a number"),
        ({"fail_under": ["RR@5=1"]}, UsageError, "--fail-under names RR@5, which is not measured; measures: RR@10"),
        ({"fail_under": ["RR@10>1"]}, UsageError, "--fail-under 'RR@10>1' is not a measure and a number"),
        ({"max_drop": 0.1}, UsageError, "--max-drop needs a --baseline"),
        ({"significant": True}, UsageError, "--significant is about --max-drop"),
        ({"runs": ["twice.jsonl"]}, InputError, "twice.jsonl: document 'a' comes twice for query 'q1'"),
        ({"runs": ["words.jsonl"]}, InputError, "words.jsonl: column 'score' does not hold numbers"),
        ({"runs": ["lists.jsonl"]}, InputError, "lists.jsonl: column 'score' does not hold numbers"),
        ({"runs": ["other.jsonl"]}, UsageError, "no query of other.jsonl (such as 'x') is judged in qrels.jsonl"),
        ({"runs": ["bare.jsonl"]}, InputError, "bare.jsonl has no column for the document"),
        ({"qrels": "halves.jsonl"}, InputError, "halves.jsonl: a relevance is not a whole number"),
        ({"qrels": "short.qrels"}, InputError, "short.qrels, line 2: has 3 fields, not 4"),
    ],
)
@pytest.mark.usefixtures("folder")
def test_what_cannot_be_evaluated_is_said(arguments: dict[str, Any], kind: type[BatchscoreError], message: str) -> None:
    write_run("twice.jsonl", [("q1", "a", 1.0), ("q1", "a", 2.0)])
    write_lines("words.jsonl", [{"query_id": "q1", "document_id": "a", "score": "high"}])
    write_lines("lists.jsonl", [{"query_id": "q1", "document_id": "a", "score": [1.0]}])
    write_run("other.jsonl", [("x", "a", 1.0)])
    write_lines("bare.jsonl", [{"query_id": "q1", "score": 1.0}])
    Path("short.qrels").write_text("q1 0 a 2\nq1 0 b\n")
    write_qrels("five.jsonl", {"q1": {"a": 5}})
    write_lines("differ.jsonl", [{"query_id": "q1", "document_id": "a", "relevance": number} for number in (2, 0)])
    write_lines("null.jsonl", [{"query_id": "q1", "document_id": "a", "relevance": None}])
    write_qrels("huge.jsonl", {"q1": {"a": 10**10}})
    write_run("nan.jsonl", [("q1", "a", float("nan"))])
    write_lines("halves.jsonl", [{"query_id": "q1", "document_id": "a", "relevance": 0.5}])

    with pytest.raises(kind) as caught:
        evaluate_runs(**{"runs": ["good.jsonl"], "qrels": "qrels.jsonl", "metrics": "RR@10", **arguments})

    assert caught.value.message.startswith(message)


# ---- pairs


@pytest.fixture
def pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    scores = [0.9, 0.8, 0.7, 0.3, 0.2, 0.1]
    grades = [5, 4, 3, 2.5, 0, 1]
    write_lines(
        "graded.jsonl",
        [{"label": g, "score": s, "broken": float("nan")} for g, s in zip(grades, scores, strict=True)],
    )
    write_lines("binary.jsonl", [{"label": g, "score": s} for g, s in zip([1, 1, 0, 1, 0, 0], scores, strict=True)])
    return tmp_path


def values_of(run: str, **options: Any) -> dict[str, float]:
    (found,) = evaluate_scores([run], **options).runs
    return {measure.name: measure.value for measure in found.measures}


@pytest.mark.usefixtures("pairs")
def test_grades_have_correlations() -> None:
    found = values_of("graded.jsonl")

    assert found == pytest.approx(
        {
            "spearman": 1 - 6 * 2 / (6 * 35),
            "pearson": 0.917941,
        },
        abs=1e-4,
    )


@pytest.mark.usefixtures("pairs")
def test_yes_and_no_have_what_classifiers_are_measured_by() -> None:
    (found,) = evaluate_scores(["binary.jsonl"]).runs
    measures = {measure.name: measure for measure in found.measures}

    assert list(measures) == list(MEASURES)
    assert measures["ap"].value == pytest.approx((1 + 1 + 3 / 4) / 3)
    assert measures["roc_auc"].value == pytest.approx(8 / 9)
    assert measures["accuracy"].value == pytest.approx(5 / 6)
    assert measures["accuracy"].note == "at score >= 0.8"
    assert measures["brier"].value == pytest.approx((0.01 + 0.04 + 0.49 + 0.49 + 0.04 + 0.01) / 6)
    assert measures["ece"].value == pytest.approx((0.1 + 0.2 + 0.7 + 0.7 + 0.2 + 0.1) / 6)
    assert all(low <= measure.value <= high for measure in measures.values() for low, high in [measure.interval])


@pytest.mark.usefixtures("pairs")
def test_draws_without_a_positive_do_not_count_as_an_average_precision_of_0() -> None:
    write_lines("perfect.jsonl", [{"label": g, "score": s} for g, s in ((1, 0.9), (0, 0.5), (0, 0.2))])

    (found,) = evaluate_scores(["perfect.jsonl"], metrics="ap").runs

    assert (found.measures[0].value, found.measures[0].interval) == (1.0, (1.0, 1.0))


@pytest.mark.usefixtures("pairs")
def test_rows_without_a_label_or_a_score_are_left_out_and_counted() -> None:
    with Path("graded.jsonl").open("a") as file:
        file.write('{"label": null, "score": 0.5}\n{"label": 1.0, "score": null}\n')

    (found,) = evaluate_scores(["graded.jsonl"]).runs

    assert (found.pairs, found.left_out) == (6, 2)


@pytest.mark.usefixtures("pairs")
def test_the_gate_of_pairs_ends_with_9_too() -> None:
    gate = ["graded.jsonl", "--task", "pairs", "--fail-under"]

    assert invoke(*gate, "spearman=0.9").exit_code == 0
    assert invoke(*gate, "spearman=0.99").exit_code == 9


@pytest.mark.usefixtures("pairs")
def test_scores_that_are_all_equal_have_no_correlation_and_fail() -> None:
    write_lines("equal.jsonl", [{"label": label, "score": 0.5} for label in (1, 2, 3)])
    pairs = ["equal.jsonl", "--task", "pairs", "--metrics", "spearman pearson"]

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        failed, described = invoke(*pairs, "--fail-under", "spearman=0.1"), invoke(*pairs, "--json")

    assert (failed.exit_code, failed.stderr) == (9, "error: equal.jsonl: spearman nan is less than 0.1\n")
    assert [measure["value"] for measure in json.loads(described.stdout)["runs"][0]["measures"]] == [None, None]


@pytest.mark.usefixtures("pairs")
def test_an_option_of_rankings_is_refused_for_pairs_whatever_its_value() -> None:
    result = invoke("graded.jsonl", "--task", "pairs", "--max-drop", "0")

    assert result.exit_code == 2
    assert "--max-drop is for rankings" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"score_column": "broken"}, "graded.jsonl: column 'broken' has a value that is no number"),
        ({"metrics": "ap"}, "ap needs labels 0 and 1; 'label' has others"),
        ({"metrics": "f1"}, "measure 'f1' is unknown for pairs"),
        ({"label_column": "gold"}, "column 'gold' not found in graded.jsonl; columns: label, score, broken"),
    ],
)
@pytest.mark.usefixtures("pairs")
def test_measures_that_do_not_fit_the_labels_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(BatchscoreError) as caught:
        evaluate_scores(["graded.jsonl"], **arguments)

    assert caught.value.message == message
