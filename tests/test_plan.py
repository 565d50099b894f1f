"""What `plan` says of a job is what its run counts, and it needs no weights for that."""

from __future__ import annotations

import json
import os
import random
import shlex
from collections.abc import Callable, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

import checkpoints
import jobs
from batchscore.cli.main import app
from batchscore.engine.timing import Timing, spread_rows
from batchscore.io.collection import own_folder
from batchscore.jobs.files import plan_files, rerank_files, score_files
from batchscore.jobs.planning import prediction
from batchscore.jobs.planning.forecast import Forecast
from batchscore.jobs.planning.lengths import Lengths, _padded
from batchscore.jobs.planning.prediction import Phase

pytestmark = pytest.mark.usefixtures("here")

Tiny = Callable[[str], str]
EVERYTHING = 100_000  # rows to tokenize: more than there are
QUERIES, DOCUMENTS = checkpoints.pairs(90, seed=5)
PAIRS = [{"id": row, "query": q, "document": d} for row, (q, d) in enumerate(zip(QUERIES, DOCUMENTS, strict=True))]
LISTS = [{"query": QUERIES[row], "documents": DOCUMENTS[row : row + 1 + row % 7]} for row in range(0, 84, 3)]
TEXTS = ["bert_mean", "colbert", "qwen3_reranker"]  # whose sides are read by themselves


def outcome(counts: Mapping[str, Any]) -> tuple[Any, ...]:
    return counts["rows"], counts["texts"], counts["tokens"], counts["cut"]


def planned(forecast: Forecast) -> tuple[Any, ...]:
    cut = forecast.cuts[-1]
    read = forecast.reading.values()
    cuts = {"query": cut.query, "document": cut.document, "both": cut.both}
    return forecast.rows, sum(one.texts for one in read), forecast.tokens, cuts


def invoke(*words: str) -> Any:
    result = CliRunner().invoke(app, list(words))
    assert result.exit_code == 0, result.output
    return result


# ---- what is counted


@pytest.mark.parametrize(("name", "encode"), [("bert_ce", "auto"), *product(TEXTS, ["unit", "once"])])
def test_a_plan_of_all_rows_has_the_counts_of_the_run(tiny: Tiny, name: str, encode: str) -> None:
    options: dict[str, Any] = {"dtype": "float32", "unit_rows": 25, "encode": encode}
    path = jobs.write_rows("in.jsonl", PAIRS)

    forecast = plan_files(tiny(name), path, sample=EVERYTHING, **options)

    assert forecast.sampled.is_whole
    assert (forecast.units, forecast.encode) == (4, "once" if encode == "once" else "unit")
    assert planned(forecast) == outcome(score_files(tiny(name), path, "out.parquet", **options).counts)


@pytest.mark.parametrize("name", ["bert_ce", "bert_mean", "jina_listwise"])
def test_a_plan_of_lists_has_the_counts_of_the_run(tiny: Tiny, name: str) -> None:
    path = jobs.write_rows("lists.jsonl", LISTS)

    forecast = plan_files(tiny(name), path, sample=EVERYTHING, dtype="float32")

    counts = rerank_files(tiny(name), path, "out.parquet", dtype="float32").counts
    assert forecast.command == "rerank"
    assert planned(forecast) == outcome(counts)
    assert forecast.sampled.pairs == sum(len(row["documents"]) for row in LISTS)


def test_a_plan_of_a_join_has_the_counts_of_the_run_and_leaves_no_index(tiny: Tiny, here: Path) -> None:
    jobs.write_rows("queries.jsonl", [{"_id": f"q{row}", "text": QUERIES[row]} for row in range(6)])
    jobs.write_rows("corpus.jsonl", [{"_id": f"d{row}", "text": DOCUMENTS[row]} for row in range(40)])
    lines = [f"q{row % 6} Q0 d{row} {1 + row // 6} {40 - row} first\n" for row in range(40)]
    Path("first.trec").write_text("".join(sorted(lines)), "utf-8")
    asked: dict[str, Any] = {"run": "first.trec", "queries": "queries.jsonl", "corpus": "corpus.jsonl", "depth": 4}

    forecast = plan_files(tiny("bert_mean"), None, dtype="float32", **asked)

    left = {*os.listdir(here), *map(str, Path(own_folder()).glob("*"))}
    assert left == {"queries.jsonl", "corpus.jsonl", "first.trec"}
    counts = rerank_files(tiny("bert_mean"), None, "out.trec", dtype="float32", **asked).counts
    assert (forecast.command, forecast.rows) == ("rerank", 24)
    assert planned(forecast) == outcome(counts)


@pytest.mark.parametrize("name", ["bert_ce", "bert_mean"])
def test_a_limit_cuts_as_many_rows_as_a_run_with_it(tiny: Tiny, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("batchscore.jobs.planning.lengths._LIMITS", (16, 40, 1_024))
    path = jobs.write_rows("in.jsonl", PAIRS)

    cuts = {cut.limit: cut for cut in plan_files(tiny(name), path, sample=EVERYTHING, dtype="float32").cuts}

    assert list(cuts) == [16, 40, checkpoints.TOKENS]
    for limit in (16, 40):
        run = score_files(tiny(name), path, f"{limit}.parquet", dtype="float32", max_length=limit).counts["cut"]
        assert {"query": cuts[limit].query, "document": cuts[limit].document, "both": cuts[limit].both} == run
        assert sum(run.values())


def test_bad_rows_are_counted_and_no_other_row_is_lost(tiny: Tiny) -> None:
    rows = [*PAIRS[:30], {"id": 30, "query": None, "document": "a"}, {"id": 31, "query": "a", "document": 7}]
    path = jobs.write_rows("in.jsonl", rows)

    forecast = plan_files(tiny("bert_ce"), path, dtype="float32")

    run = score_files(tiny("bert_ce"), path, "out.parquet", dtype="float32")
    assert forecast.sampled.bad_rows == run.bad_rows == 2
    assert planned(forecast) == outcome(run.counts)


def test_texts_that_come_back_are_those_that_the_run_encodes_once(tiny: Tiny) -> None:
    draw = random.Random(1)
    rows = [{"query": f"cat {draw.randrange(9)}", "document": f"dog {draw.randrange(40)}"} for _ in range(400)]
    path = jobs.write_rows("in.jsonl", rows)

    forecast = plan_files(tiny("bert_mean"), path, sample=EVERYTHING, dtype="float32", unit_rows=50)

    run = score_files(tiny("bert_mean"), path, "out.parquet", dtype="float32", unit_rows=50)
    assert forecast.encode == run.counts["encode"] == "once"
    assert {side: texts.distinct for side, texts in forecast.texts.items()} == {"query": 9, "document": 40}
    once = score_files(tiny("bert_mean"), path, "unit.parquet", dtype="float32", unit_rows=50, encode="unit").counts
    assert forecast.once_saves == pytest.approx(1 - run.counts["tokens"] / once["tokens"])


def test_a_sample_of_many_units_comes_near_to_what_the_run_counts(tiny: Tiny) -> None:
    """Documents get longer and longer, so the first units alone would tell something else."""
    draw = random.Random(2)
    rows = [
        {"query": f"cat {draw.randrange(500)}", "document": " ".join(draw.choices(checkpoints.WORDS, k=1 + row // 100))}
        for row in range(4_000)
    ]
    path = jobs.write_rows("in.parquet", rows)

    forecast = plan_files(tiny("bert_mean"), path, sample=400, dtype="float32", unit_rows=100)

    assert (forecast.units, forecast.sampled.units) == (40, 8)
    assert 380 <= forecast.sampled.drawn <= 900
    counts = score_files(tiny("bert_mean"), path, "out.parquet", dtype="float32", unit_rows=100, encode="unit").counts
    read = sum(texts.read for texts in forecast.texts.values())
    assert read == pytest.approx(counts["texts"], rel=0.05)
    queries = forecast.texts["query"]
    assert queries.at_least < 500 < queries.at_most
    assert queries.distinct == pytest.approx(500, rel=0.15)
    unit = plan_files(tiny("bert_mean"), path, sample=400, dtype="float32", unit_rows=100, encode="unit")
    assert unit.tokens == pytest.approx(counts["tokens"], rel=0.08)


def test_the_part_that_is_weighed_is_that_of_the_run(tiny: Tiny) -> None:
    path = jobs.write_rows("in.jsonl", PAIRS)

    forecast = plan_files(tiny("bert_ce"), path, "out/", dtype="float32")

    score_files(tiny("bert_ce"), path, "out/", dtype="float32")
    assert forecast.disk.parts == pytest.approx(os.path.getsize("out/part-00000.parquet"), rel=0.15)
    assert forecast.disk.output == 0


# ---- padding and lengths


def test_batches_of_32_are_padded_to_their_longest() -> None:
    lengths = np.array([10] * 31 + [20] + [5, 7])

    assert _padded(lengths) == 32 * 20 + 2 * 7


@pytest.mark.parametrize("name", ["bert_ce", "bert_mean"])
def test_sorting_changes_nothing_where_each_side_is_one_batch(tiny: Tiny, name: str, here: Path) -> None:
    padding = plan_files(tiny(name), jobs.write_rows("in.jsonl", jobs.random_rows(9))).padding

    assert padding.packed < padding.by_length == padding.in_order


def test_a_histogram_says_what_lies_between_its_edges() -> None:
    lengths = Lengths.of(np.array([1, 16, 17, 32, 33, 100]))

    assert (lengths.count, lengths.median, lengths.longest, lengths.mean) == (6, 32, 100, pytest.approx(199 / 6))
    assert lengths.shares == {16: 0.3333, 32: 0.3333, 64: 0.1667, 128: 0.1667}


def test_rows_are_drawn_from_all_over_and_groups_stay_whole() -> None:
    groups = np.repeat(np.arange(100), 7)

    drawn = spread_rows(groups, 70)

    assert np.bincount(groups[drawn], minlength=100).max() == 7
    assert len(drawn) == 70
    assert np.diff(np.unique(groups[drawn])).max() <= 20
    assert spread_rows(groups, 700).tolist() == list(range(700))


# ---- what a plan leaves alone


@pytest.mark.parametrize("name", ["bert_ce", "bert_mean", "bert_bin"])
def test_no_weights_are_loaded_and_nothing_is_written(
    tiny: Tiny, name: str, monkeypatch: pytest.MonkeyPatch, here: Path
) -> None:
    def refuse(*arguments: Any, **keywords: Any) -> None:
        raise AssertionError("weights were read")

    monkeypatch.setattr("batchscore.models.load.read_tensors", refuse)
    monkeypatch.setattr("batchscore.models.load.fetch_weights", refuse)
    path = jobs.write_rows("in.jsonl", PAIRS)

    found = json.loads(invoke("plan", "-m", tiny(name), "-i", path, "--json").stdout)

    assert found["prediction"] is found["resources"] is found["sbatch"] is None
    assert found["memory"]["weights"] > 0
    assert os.listdir(here) == ["in.jsonl"]


def test_a_dry_run_says_what_plan_says_and_scores_nothing(tiny: Tiny, here: Path) -> None:
    path, options = (
        jobs.write_rows("in.jsonl", PAIRS),
        ("--dtype", "float32", "--unit-rows", "20", "--out", "out.jsonl"),
    )

    found = json.loads(invoke("score", "-m", tiny("bert_ce"), "-i", path, *options, "--dry-run", "--json").stdout)

    plan = json.loads(invoke("plan", "-m", tiny("bert_ce"), "-i", path, *options, "--json").stdout)
    for measured in ("program", "total"):
        del found["memory"][measured], plan["memory"][measured]
    del found["disk"]["free"], plan["disk"]["free"]
    assert found == plan
    assert os.listdir(here) == ["in.jsonl"]
    assert "distinct in the job" in invoke("rerank", "-m", tiny("bert_ce"), "-i", path, *options, "--dry-run").stdout


def test_an_input_that_a_run_refuses_is_refused(tiny: Tiny) -> None:
    path = jobs.write_rows("in.jsonl", [{"question": "a", "document": "b"}])

    result = CliRunner().invoke(app, ["plan", "-m", tiny("bert_ce"), "-i", path])

    assert result.exit_code == 5
    assert "column 'query' not found" in result.stderr


def test_rows_none_of_which_has_a_text_are_an_error_and_no_rows_are_a_plan_of_nothing(tiny: Tiny) -> None:
    bad = jobs.write_rows("bad.jsonl", [{"query": None, "document": "a"}])
    result = CliRunner().invoke(app, ["plan", "-m", tiny("bert_mean"), "-i", bad])
    assert (result.exit_code, "no row that was read has a text to score" in result.stderr) == (5, True)

    pq.write_table(
        pa.table({"query": pa.array([], pa.string()), "document": pa.array([], pa.string())}), "none.parquet"
    )
    forecast = plan_files(tiny("bert_mean"), "none.parquet", dtype="float32", probe=0.1)
    assert planned(forecast) == (0, 0, 0, {"query": 0, "document": 0, "both": 0})
    assert forecast.prediction is None
    assert any("would add 0%" in line for line in forecast.lines())


# ---- time


@pytest.mark.parametrize("name", ["bert_ce", "bert_mean", "colbert"])
def test_a_probe_predicts_a_time_for_each_number_of_tasks(
    tiny: Tiny, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prediction, "_importing", lambda: Timing(3.0, 2.0))
    draw = random.Random(3)
    rows = [{"query": f"cat {draw.randrange(9)}", "document": f"dog {draw.randrange(90)}"} for _ in range(300)]
    path = jobs.write_rows("in.jsonl", rows)

    words = ["plan", "-m", tiny(name), "-i", path, "--unit-rows", "20", "--top-n", "3", "--out", "all.parquet"]
    found = json.loads(invoke(*words, "--dtype", "float32", "--probe", "--probe-seconds", "0.2", "--json").stdout)

    tasks = found["prediction"]["tasks"]
    assert list(tasks) == ["1", "2", "4", "8"]
    assert 3.0 < found["prediction"]["startup"] < tasks["8"] <= tasks["4"] <= tasks["2"] <= tasks["1"] < 60
    assert found["resources"]["tasks"] == 1
    line = shlex.split(found["sbatch"])
    assert line[:2] == ["sbatch", "--array=0-0"]
    call = shlex.split(line[-1].partition("exec ")[2])
    run = ["batchscore", "rerank", "--model", tiny(name), "--in", path]
    assert call == [*run, "--top-n", "3", "--dtype", "float32", "--unit-rows", "20", "--out", "all/", "--merge"]
    invoke(*call[1:])  # it can be run as it is
    assert Path("all.parquet").exists()


def test_stages_overlap_where_cores_are_free_and_add_up_where_not() -> None:
    phase = Phase(Timing(10, 10), Timing(60, 60), Timing(2, 2), 1e9)

    assert phase.seconds(4.0) == pytest.approx(60)
    assert phase.seconds(1.0) == pytest.approx(72)
    alone = Phase(Timing(10, 10), Timing(60, 60), Timing(2, 2), 1)
    assert alone.seconds(1.0) == alone.seconds(4.0) == pytest.approx(72)


def test_the_largest_share_decides() -> None:
    phase = Phase(Timing(0, 0), Timing(50, 50), Timing(0, 0), 5)

    assert [phase.share(count).seconds(8.0) for count in (1, 2, 5, 8)] == pytest.approx([50, 30, 10, 10])
