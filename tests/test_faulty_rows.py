"""Rows that cannot be scored: good ones are, bad ones are listed, and nobody is told a number that is none."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from typer.testing import CliRunner, Result

import jobs
from batchscore import Scorer
from batchscore.cli.main import app
from batchscore.errors import DeviceMemoryError, RuntimeFailureError
from batchscore.jobs.parts import Parts
from batchscore.models.text.templates import Template
from batchscore.runners.batch import Batch
from batchscore.runners.cross_encoder import CrossEncoder
from batchscore.types import Cells, Pairs, Work

pytestmark = pytest.mark.usefixtures("here")

Tiny = Callable[[str], str]
LINES = [
    b'{"id": 0, "query": "a", "document": "good"}',
    b'{"id": 1, "query": null, "document": "x"}',
    b"",
    b'{"id": 3, "query": "a", "document": 7}',
    b'{"id": 4, "query": "a"',
    b'{"id": 5, "query": "a", "document": "\xff"}',
    b'["id", 6]',
    b'{"id": "seven", "query": "a", "document": "x"}',
    b'{"id": 8, "query": "a", "document": "good too"}',
    b'{"id": 9, "query": "a"}',
]
FAULTS = [  # line, column, code
    (2, "query", "null"),
    (4, "document", "not-text"),
    (5, None, "not-json"),
    (6, None, "not-json"),
    (7, None, "not-json"),
    (10, "document", "null"),
]


def score(model: str, *options: str) -> Result:
    """A run in float32, so that its numbers can be compared on every CPU; a later --dtype wins."""
    command = ["score", "--model", model, "--in", "in.jsonl", "--out", "out.jsonl", "--dtype", "float32"]
    return CliRunner().invoke(app, [*command, *options])


def read(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(name).read_text("utf-8").splitlines()]


@pytest.fixture
def bad_lines(here: Path) -> None:
    Path("in.jsonl").write_bytes(b"\n".join(LINES) + b"\n")


@pytest.mark.usefixtures("bad_lines")
@pytest.mark.parametrize("window", ["1000", "3", "1"])
def test_bad_rows_are_left_out_and_listed(tiny: Tiny, window: str) -> None:
    result = score(tiny("bert_ce"), "--window-rows", window)

    faults = read("out.jsonl.errors.jsonl")
    assert [(fault["line"], fault["column"], fault["code"]) for fault in faults] == FAULTS
    assert [str(row["id"]) for row in read("out.jsonl")] == ["0", "seven", "8"]
    assert "errors   6 bad rows (quarantine): out.jsonl.errors.jsonl" in result.stderr
    assert result.exit_code == 7
    assert all(fault["file"] == "in.jsonl" and fault["row"] == fault["line"] - 1 for fault in faults)
    assert all(set(fault) == {"file", "row", "line", "column", "code", "message"} for fault in faults)
    alone = Scorer(tiny("bert_ce"), dtype="float32").score("a", "good")
    assert read("out.jsonl")[0]["score"] == pytest.approx(float(alone[0]), abs=1e-6)
    record = json.loads(Path("out.jsonl.run.json").read_text("utf-8"))
    assert record["counts"]["faulty"] == len(faults)


@pytest.mark.usefixtures("bad_lines")
def test_scores_alone_are_those_of_the_good_rows(tiny: Tiny) -> None:
    assert score(tiny("bert_ce"), "--keep-columns", "none").exit_code == 7
    rows = read("out.jsonl")
    assert [set(row) for row in rows] == [{"score"}] * 3


def test_the_list_has_the_order_of_the_input(tiny: Tiny) -> None:
    for name in "ab":
        Path(f"{name}.jsonl").write_text('{"query": "q", "document": "x"}\n{"query": null, "document": "x"}\n')
    options = ["score", "--model", tiny("bert_ce"), "--in", "b.jsonl", "--in", "a.jsonl", "--out", "out.jsonl"]
    assert CliRunner().invoke(app, options).exit_code == 7
    assert [fault["file"] for fault in read("out.jsonl.errors.jsonl")] == ["b.jsonl", "a.jsonl"]


def test_a_column_that_changes_its_type_becomes_text(tiny: Tiny) -> None:
    """Each by itself is a number or a text; together they are texts."""
    rows = [{"id": 1, "query": "q", "document": "x"}, {"id": "two", "query": "q", "document": "y"}]
    jobs.write_rows("in.jsonl", rows)
    model = ["--model", tiny("bert_ce")]
    command = ["score", *model, "--in", "in.jsonl", "--out", "out.parquet", "--window-rows", "1"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0
    assert pq.read_table("out.parquet")["id"].to_pylist() == ["1", "two"]


@pytest.mark.usefixtures("bad_lines")
def test_null_keeps_every_row_in_its_place(tiny: Tiny) -> None:
    result = score(tiny("bert_ce"), "--errors", "null", "--details")

    assert result.exit_code == 7
    rows = read("out.jsonl")
    assert [row["id"] for row in rows] == ["0", "1", "3", None, None, None, "seven", "8", "9"]
    assert [row["score"] is not None for row in rows] == [True, *[False] * 5, True, True, False]
    assert rows[1]["logit"] is rows[1]["num_tokens"] is rows[1]["truncated"] is None
    assert [fault["line"] for fault in read("out.jsonl.errors.jsonl")] == [line for line, _, _ in FAULTS]


@pytest.mark.usefixtures("bad_lines")
def test_a_run_that_goes_on_lists_the_rows_of_those_before(tiny: Tiny) -> None:
    options = ["score", "--model", tiny("bert_ce"), "--in", "in.jsonl", "--out", "out/", "--window-rows", "3"]
    assert CliRunner().invoke(app, options).exit_code == 7
    listed = Path("out/_errors.jsonl").read_bytes()
    os.remove("out/_errors.jsonl")  # as if it had been killed before that
    os.remove(f"out/{jobs.parts('out')[-1]}")
    assert CliRunner().invoke(app, [*options, "--shard", "0/1"]).exit_code == 7
    assert Path("out/_errors.jsonl").read_bytes() == listed


@pytest.mark.usefixtures("bad_lines")
def test_fail_ends_with_the_first(tiny: Tiny) -> None:
    result = score(tiny("bert_ce"), "--errors", "fail")

    assert result.exit_code == 5
    assert "in.jsonl, line 2: column 'query' is null" in result.stderr
    assert not Path("out.jsonl").exists()


@pytest.mark.parametrize(("most", "code"), [("6", 7), ("5", 6), ("60%", 6), ("70%", 7), ("0", 6)])
@pytest.mark.usefixtures("bad_lines")
def test_more_than_max_errors_end_a_run(tiny: Tiny, most: str, code: int) -> None:
    result = score(tiny("bert_ce"), "--max-errors", most)

    assert result.exit_code == code, result.output
    if code == 6:
        assert "6 of 9 rows are bad, more than --max-errors" in result.stderr
        assert len(read("out.jsonl.errors.jsonl")) == 6


@pytest.mark.parametrize("folder", [[], ["--out", "parts/"]], ids=["file", "folder"])
@pytest.mark.usefixtures("bad_lines")
def test_max_errors_hold_for_all_runs_of_a_job(tiny: Tiny, folder: list[str]) -> None:
    options = ["--window-rows", "3", *folder]
    for _ in range(5):
        result = score(tiny("bert_ce"), *options, "--max-errors", "4")
        assert result.exit_code == 6, result.output
    assert score(tiny("bert_ce"), *options).exit_code == 7
    assert score(tiny("bert_ce"), *options, "--max-errors", "7").exit_code == 7  # it is complete
    assert score(tiny("bert_ce"), *options, "--max-errors", "4").exit_code == 6


@pytest.mark.parametrize("out", ["out.jsonl", "parts/"])
def test_rows_at_fault_of_other_shards_count_before_the_end(
    tiny: Tiny, out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = [{"query": "a", "document": None if number % 4 < 2 else "x"} for number in range(16)]
    jobs.write_rows("in.jsonl", bad)
    options = ["--window-rows", "4", "--max-errors", "5", "--out", out, "--merge"]
    assert score(tiny("bert_ce"), *options, "--shard", "0/2").exit_code == 7
    plain, calls = Parts.counts, count()
    with monkeypatch.context() as patch:  # as if both had begun at once
        patch.setattr(Parts, "counts", lambda parts: plain(parts) if next(calls) else {})
        result = score(tiny("bert_ce"), *options, "--shard", "1/2")
    assert result.exit_code == 6, result.output
    assert "8 of 16 rows are bad, more than --max-errors 5" in result.stderr
    assert not Path("out.jsonl").exists()
    assert score(tiny("bert_ce"), *options, "--shard", "0/2").exit_code == 6  # which has nothing left to score
    options[3] = "50%"
    assert score(tiny("bert_ce"), *options, "--shard", "0/2").exit_code == 7


def test_a_share_is_that_of_all_rows_of_the_job(tiny: Tiny) -> None:
    """Or a job would end with its first bad unit."""
    rows = [{"query": "a", "document": None if number < 29 else "x"} for number in range(100)]
    jobs.write_rows("in.jsonl", rows)
    for most, code in (("28.9%", 6), ("29%", 7)):
        options = ["--window-rows", "30", "--max-errors", most, "--out", f"{code}.jsonl"]
        assert score(tiny("bert_ce"), *options).exit_code == code


def test_a_limit_on_errors_counts_rows_and_not_the_documents_in_them(tiny: Tiny) -> None:
    rows = [{"query": f"q {number}", "documents": ["x", None, None, None]} for number in range(2)]
    jobs.write_rows("in.jsonl", [*rows, *({"query": f"q {number}", "documents": ["x"]} for number in range(2, 6))])
    options = ["rerank", "--model", tiny("bert_ce"), "--in", "in.jsonl", "--out", "out.jsonl"]
    refused = CliRunner().invoke(app, [*options, "--max-errors", "1"])

    assert (refused.exit_code, "2 of 6 rows are bad" in refused.stderr) == (6, True)
    assert CliRunner().invoke(app, [*options, "--max-errors", "2"]).exit_code == 7
    assert len(read("out.jsonl.errors.jsonl")) == 6


@pytest.mark.parametrize("most", ["-1", "x", "5%%", "nan", "nan%"])
def test_max_errors_is_a_number_or_a_share(tiny: Tiny, most: str) -> None:
    jobs.write_rows("in.jsonl", jobs.random_rows(3))
    assert score(tiny("bert_ce"), "--max-errors", most).exit_code == 2


def test_an_input_of_which_nothing_is_good_is_an_error(tiny: Tiny) -> None:
    """A wrong column is found in the first second, and not in the morning."""
    Path("in.jsonl").write_text('{"query": 1, "document": "a"}\n' * 5)
    result = score(tiny("bert_ce"))

    assert result.exit_code == 5
    assert "every row of the first unit is bad" in result.stderr
    assert "'query' is a JSON number" in result.stderr
    assert os.listdir() == ["in.jsonl"]


@pytest.mark.parametrize("errors", ["quarantine", "null"])
@pytest.mark.parametrize(
    "options",
    [("--chat-template", "{{ raise_exception('no') }}{{ query }}"), ("--truncation", "error", "--max-length", "4")],
)
def test_a_first_unit_that_the_model_cannot_read_a_row_of_is_an_error(
    tiny: Tiny, options: tuple[str, ...], errors: str
) -> None:
    """As where it cannot be read from the file: nothing is written, and the first row's fault is told."""
    jobs.write_rows("in.jsonl", jobs.random_rows(5))
    result = score(tiny("bert_ce"), *options, "--errors", errors)

    assert result.exit_code == 5, result.output
    assert "every row of the first unit is bad; the first is in.jsonl, line 1: " in result.stderr
    assert os.listdir() == ["in.jsonl"]


def test_the_list_of_a_folder_is_in_it(tiny: Tiny) -> None:
    table = pa.table({"query": ["a", None, "b", "c"], "document": ["x", "y", None, "z"]})
    pq.write_table(table, "in.parquet")
    options = ["score", "--model", tiny("bert_ce"), "--in", "in.parquet", "--out", "parts/", "--window-rows", "2"]
    assert CliRunner().invoke(app, options).exit_code == 7
    again = CliRunner().invoke(app, options)

    assert again.exit_code == 7  # nothing to do, and still not all rows are scored
    faults = read("parts/_errors.jsonl")
    assert [(fault["row"], fault["column"]) for fault in faults] == [(1, "query"), (2, "document")]


def test_rerank_leaves_out_documents_and_queries_at_fault(tiny: Tiny) -> None:
    rows = [
        {"qid": "one", "query": "a", "documents": ["x", None, "y"]},
        {"qid": None, "query": "a", "documents": ["z"]},
        {"qid": "two", "query": None, "documents": ["z"]},
        {"qid": "three", "query": "a", "documents": None},
        {"qid": "four", "query": "a", "documents": ["w"]},
    ]
    jobs.write_rows("in.jsonl", rows)
    options = ["rerank", "--model", tiny("bert_ce"), "--in", "in.jsonl", "--query-id-column", "qid"]
    assert CliRunner().invoke(app, [*options, "--out", "out.jsonl"]).exit_code == 7
    out = read("out.jsonl")
    assert {(row["qid"], row["index"]) for row in out} == {("one", 0), ("one", 2), ("four", 0)}
    faults = read("out.jsonl.errors.jsonl")
    found = [(fault["line"], fault["column"]) for fault in faults]
    assert found == [(1, "documents[1]"), (2, "qid"), (3, "query"), (4, "documents")]

    assert CliRunner().invoke(app, [*options, "--out", "null.jsonl", "--errors", "null"]).exit_code == 7
    kept = read("null.jsonl")
    assert [row["index"] for row in kept if row["qid"] == "one"][-1] == 1  # without a score, last
    assert [row["relevance_score"] for row in kept if row["qid"] in {"one", "two"}].count(None) == 2


# ---- how much work bad rows make


@pytest.mark.parametrize("kind", ["too long", "uncuttable", "refused"])
def test_thousands_of_bad_rows_cost_no_layout_and_no_forward_more_than_none(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """A unit is laid out once and each of its good pairs forwarded once, however many of its rows are bad."""
    work = Counter[str]()
    laid_out, forward, render = CrossEncoder.sequences, CrossEncoder.forward, Template.render

    def counted(runner: CrossEncoder, pairs: Pairs) -> Work:
        work["layouts"] += len(pairs) > 1
        return laid_out(runner, pairs)

    def forwarded(runner: CrossEncoder, batch: Batch) -> torch.Tensor:
        work["forwards"] += 1
        work["pairs"] += len(batch)
        return forward(runner, batch)

    def rendered(template: Template, *texts: str) -> list[str]:
        work["prompts"] += 1
        return render(template, *texts)

    monkeypatch.setattr(CrossEncoder, "sequences", counted)
    monkeypatch.setattr(CrossEncoder, "forward", forwarded)
    monkeypatch.setattr(Template, "render", rendered)
    size, bad = 16_384, 3_000
    long = "paper " * 70 + "\n"  # the template trims its texts, so that they are not found in the prompt
    refusing = "{% if 'paper' in document %}{{ raise_exception('no') }}{% endif %}{{ query }} {{ document }}"
    options: dict[str, Any] = {
        "too long": {"truncation": "error"},
        "uncuttable": {"chat_template": "{{ query }} {{ document | trim }} end"},
        "refused": {"chat_template": refusing},
    }[kind]
    chosen = np.random.default_rng(0).choice(size, bad, replace=False).tolist()
    done = []
    with Scorer(tiny("bert_ce"), dtype="float32", cache_mb=0, **options) as scorer:
        for texts in ({}, {row: f"{row} {long}" for row in chosen}):
            work.clear()
            documents = [texts.get(row, f"cat {row}") for row in range(size)]
            window = scorer.batcher.tokenize(Pairs(Cells.of(["a"] * size), Cells.of(documents)))
            outcome = scorer.batcher.score(window)
            assert sorted(outcome.faults) == sorted(texts)
            assert np.isfinite(np.delete(outcome.raw, list(texts), axis=0)).all()
            done.append(Counter(work))
    none, some = done
    assert some["layouts"] == none["layouts"] == 1
    assert some["forwards"] <= none["forwards"]
    assert (none["pairs"], some["pairs"]) == (size, size - bad)
    assert some["prompts"] <= none["prompts"] + 1  # one more shows where the template writes its texts


# ---- the model's faults


def short_rows(count: int) -> list[dict[str, Any]]:
    return [{"id": number, "query": "a", "document": f"cat {number}"} for number in range(count)]


class _Failing:
    """Makes a cross-encoder fail on packs that hold some token, as a device does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fails: Callable[[Batch], Any]) -> None:
        self.packs: list[int] = []
        plain = CrossEncoder.forward

        def forward(runner: CrossEncoder, batch: Batch) -> torch.Tensor:
            self.packs.append(batch.num_tokens)
            answer = fails(batch)
            return plain(runner, batch) if answer is None else answer

        monkeypatch.setattr(CrossEncoder, "forward", forward)


def test_a_pack_that_does_not_fit_is_halved_and_the_size_remembered(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    queries, documents = zip(*[(row["query"], row["document"]) for row in jobs.random_rows(200)], strict=True)
    plain = Scorer(tiny("bert_ce"), dtype="float32", batch_tokens=1024).score(list(queries), list(documents))

    def fails(batch: Batch) -> None:
        if batch.num_tokens > 300:
            raise DeviceMemoryError("cpu has no memory left")

    failing = _Failing(monkeypatch, fails)
    scorer = Scorer(tiny("bert_ce"), dtype="float32", batch_tokens=1024, cache_mb=0)
    np.testing.assert_allclose(scorer.score(list(queries), list(documents)), plain, atol=1e-6)
    assert sum(size > 300 for size in failing.packs) <= 4  # a worker that was at it already may try once more
    failing.packs.clear()
    scorer.score(list(queries), list(documents))
    assert max(failing.packs) <= 300


@pytest.mark.parametrize("name", ["bert_ce", "bert_mean", "colbert"])
def test_torch_running_out_of_memory_is_told_from_other_failures(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    scorer = Scorer(tiny(name))
    body = type(scorer.batcher._runner.model.bodies[0])
    for message in ("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes", "not enough memory"):
        monkeypatch.setattr(body, "forward", lambda *_, m=message, **__: (_ for _ in ()).throw(RuntimeError(m)))
        with pytest.raises(RuntimeFailureError, match="cpu has no memory left"):
            scorer.score("a", "b")


def test_running_out_of_memory_behind_the_body_is_told_too(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """SPLADE's head gives a number for each word of the vocabulary, which is more than the body ever holds."""
    scorer = Scorer(tiny("bert_ce"), batch_tokens=1024, cache_mb=0, dtype="float32")
    head = scorer.batcher._runner.model.head
    plain, sizes = head.forward, list[int]()

    def forward(pooled: torch.Tensor) -> torch.Tensor:
        sizes.append(len(pooled))
        if len(pooled) > 2:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
        return plain(pooled)

    expected = scorer.score("a", ["b", "c", "d", "e f"])
    monkeypatch.setattr(head, "forward", forward)
    np.testing.assert_allclose(scorer.score("a", ["b", "c", "d", "e f"]), expected, atol=1e-6)
    assert max(sizes) > 2 >= sizes[-1]


def test_a_row_that_alone_does_not_fit_is_at_fault(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = short_rows(40)
    rows[17]["document"] = rows[23]["document"] = "paper " * 60
    jobs.write_rows("in.jsonl", rows)

    def fails(batch: Batch) -> None:
        if batch.longest > 60:
            raise DeviceMemoryError("cpu has no memory left for 64 tokens at once", hint="lower --max-length")

    _Failing(monkeypatch, fails)
    result = score(tiny("bert_ce"))

    assert result.exit_code == 7, result.output
    assert [(fault["line"], fault["code"]) for fault in read("out.jsonl.errors.jsonl")] == [
        (18, "out-of-memory"),
        (24, "out-of-memory"),
    ]
    assert len(read("out.jsonl")) == 38
    assert score(tiny("bert_ce"), "--errors", "fail", "--overwrite").exit_code == 6


def test_what_ends_a_run_in_the_middle_of_a_unit_loses_no_scores(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs.write_rows("in.jsonl", short_rows(40))
    packs: list[int] = []
    broken = [True]

    def fails(batch: Batch) -> None:
        packs.append(len(batch))
        if broken and len(packs) > 4:
            raise RuntimeFailureError("the model fails on something")

    _Failing(monkeypatch, fails)
    assert score(tiny("bert_ce"), "--batch-tokens", "32").exit_code == 6
    done = sum(packs[:4])
    raw = np.frombuffer(Path(".out.jsonl.parts/part-00000.progress").read_bytes()[-160:], np.float32)
    assert 0 < np.isfinite(raw).sum() <= done

    broken.clear()
    result = score(tiny("bert_ce"), "--batch-tokens", "32")
    assert result.exit_code == 0, result.output
    assert len(read("out.jsonl")) == 40


def _without(batch: Batch, length: int, value: float) -> torch.Tensor | None:
    """Logits with `value` for sequences longer than `length`."""
    if batch.longest <= length:
        return None
    return torch.where(batch.lengths > length, value, 0.5)


def test_a_score_that_is_no_number_in_float32_is_a_fault(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = short_rows(20)
    rows[3]["document"] = "paper " * 60
    jobs.write_rows("in.jsonl", rows)
    for value in (float("nan"), float("inf")):
        _Failing(monkeypatch, lambda batch, value=value: _without(batch, 60, value))
        result = score(tiny("bert_ce"), "--overwrite", "--dtype", "float32")

        assert result.exit_code == 7
        (fault,) = read("out.jsonl.errors.jsonl")
        assert (fault["line"], fault["code"]) == (4, "non-finite")
        assert len(read("out.jsonl")) == 19


def test_a_score_that_is_no_number_in_bfloat16_is_computed_again_in_float32(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = short_rows(20)
    rows[3]["document"] = "paper " * 60
    jobs.write_rows("in.jsonl", rows)
    exact = Scorer(tiny("bert_ce"), dtype="float32").score(rows[3]["query"], rows[3]["document"])
    plain = CrossEncoder.forward

    def forward(runner: CrossEncoder, batch: Batch) -> torch.Tensor:
        logits = plain(runner, batch)
        half = next(runner.model.bodies[0].parameters()).dtype == torch.bfloat16
        return torch.where(batch.lengths > 60, torch.nan, logits) if half else logits

    monkeypatch.setattr(CrossEncoder, "forward", forward)
    result = score(tiny("bert_ce"), "--dtype", "bfloat16")

    assert result.exit_code == 0, result.output
    assert read("out.jsonl")[3]["score"] == pytest.approx(float(exact[0]), abs=1e-6)
