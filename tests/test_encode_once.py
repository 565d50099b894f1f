"""A job that encodes each text once: the scores of one that reads texts in every unit, from far fewer forwards."""

from __future__ import annotations

import itertools
import json
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import jobs
from batchscore.engine.batcher import Batcher
from batchscore.engine.scheduler import Pack
from batchscore.errors import InputError, UsageError
from batchscore.jobs import pipeline
from batchscore.jobs.events import Outcome
from batchscore.jobs.files import rerank_files, score_files
from batchscore.models.text.tokenizer import TextTokenizer
from batchscore.types import SIDES, Items, Side
from threads import one_thread

Tiny = Callable[[str], str]
Options = dict[str, Any]
QUERIES = [f"{word} {number}" for number, word in enumerate(jobs.WORDS)]
DOCUMENTS = [row["document"] for row in jobs.random_rows(40)]
LONG = "the cat and the dog " * 20
ROWS = [  # each query with a third of the documents, scattered; no text comes back at an even distance
    {"id": f"r{number}", "query": query, "document": document}
    for number, (query, document) in enumerate(
        (QUERIES[place * 5 % len(QUERIES)], DOCUMENTS[(place * 7 + place // 40) % 40]) for place in range(170)
    )
]


@pytest.fixture(autouse=True)
def _here(here: Path) -> Iterator[None]:
    with one_thread():
        yield


def run(run_files: Callable[..., Outcome], model: str, out: str, encode: str, **options: Any) -> Outcome:
    """A run in float32 with small units and packs."""
    source = options.pop("source", "in.parquet")
    return run_files(model, source, out, **{"dtype": "float32", "unit_rows": 60, "encode": encode, **options})


def read(name: str) -> list[dict[str, Any]]:
    if name.endswith(".parquet"):
        rows: list[dict[str, Any]] = pq.read_table(name).to_pylist()
        return rows
    return [json.loads(line) for line in Path(name).read_text("utf-8").splitlines()]


def both(model: str, rows: Sequence[dict[str, Any]], kind: str = "parquet", **options: Any) -> tuple[Any, Any]:
    """The outputs of both ways."""
    source = jobs.write_rows(f"in.{kind}", rows)
    for encode in ("unit", "once"):
        out = f"{encode}.{kind}"
        run(score_files, model, out, encode, source=source, details=True, overwrite=True, **options)
    return read(f"unit.{kind}"), read(f"once.{kind}")


def same(unit: list[dict[str, Any]], once: list[dict[str, Any]], at_least: int = 1) -> None:
    """Equal in everything, but for the last bits of scores."""
    name = "score" if "score" in unit[0] else "relevance_score"
    scores = [np.array([row.pop(name) for row in rows], float) for rows in (unit, once)]
    np.testing.assert_allclose(scores[1], scores[0], atol=2e-5, rtol=2e-5)
    assert unit == once
    assert len(np.unique(scores[0].round(3))) > at_least  # scores that say something


KINDS: list[tuple[str, Options]] = [
    ("bert_mean", {}),
    ("bert_mean", {"max_tokens_per_query": 2, "max_tokens_per_doc": 5, "query_prompt": "the cat "}),
    ("bert_mean", {"max_length": 9, "truncation_side": "left"}),
    ("bert_mean", {"dimensions": 8}),
    ("bert_no_prompt_pooling", {}),
    ("bert_dense", {}),
    ("bert_dot", {}),
    ("bert_splade", {}),
    ("qwen3_embedding", {"query_prompt": "Instruct: find it\nQuery: "}),
    ("jina_v3", {}),
    ("static", {}),
    ("model2vec", {}),
    ("colbert", {}),
    ("colbert", {"dimensions": 4}),
    ("jina_colbert", {"max_tokens_per_doc": 6}),
    ("modern_colbert", {}),
    ("bge_m3", {"score_type": "late-interaction"}),
    ("bert_tokens", {"score_type": "late-interaction"}),
]


@pytest.mark.parametrize(("name", "options"), KINDS, ids=[f"{name}-{'-'.join(options)}" for name, options in KINDS])
def test_scores_are_those_of_texts_read_in_every_unit(tiny: Tiny, name: str, options: Options) -> None:
    rows = [*ROWS, {"id": "long", "query": LONG, "document": "cat"}, {"id": "too", "query": "cat", "document": LONG}]
    same(*both(tiny(name), rows, **options))


def test_a_process_alone_never_waits(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """The look for a task after the last block comes while that is encoded, and the next one after it was written."""
    waited: list[float] = []
    monkeypatch.setattr(pipeline, "sleep", waited.append)
    jobs.write_rows("in.parquet", ROWS)

    assert run(score_files, tiny("bert_mean"), "out.parquet", "once").counts["encode"] == "once"
    assert waited == []


def test_lines_get_the_same_scores_too(tiny: Tiny) -> None:
    same(*both(tiny("bert_mean"), ROWS, "jsonl"))


@pytest.mark.parametrize("name", ["bert_mean", "colbert"])
def test_sixteen_bits_are_the_same_sixteen_bits(tiny: Tiny, name: str) -> None:
    jobs.write_rows("in.parquet", ROWS)
    for encode in ("unit", "once"):
        run(score_files, tiny(name), f"{encode}.parquet", encode, dtype="bfloat16", batch_tokens=32)
    unit, once = ([row["score"] for row in read(f"{encode}.parquet")] for encode in ("unit", "once"))
    np.testing.assert_allclose(once, unit, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("name", ["bert_mean", "colbert"])
@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_rerank_ranks_the_same(tiny: Tiny, name: str, kind: str) -> None:
    source = jobs.write_rows(f"in.{kind}", ROWS)
    for encode in ("unit", "once"):
        run(rerank_files, tiny(name), f"{encode}.{kind}", encode, source=source, top_n=5)
    same(read(f"unit.{kind}"), read(f"once.{kind}"), 30)


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_rerank_of_lists_of_documents_ranks_the_same(tiny: Tiny, kind: str) -> None:
    rows = [
        {"query": query, "documents": [DOCUMENTS[(first * 3 + step) % 40] for step in range(first % 5)]}
        for first, query in enumerate(QUERIES * 3)
    ]
    source = jobs.write_rows(f"in.{kind}", rows)
    options = {"source": source, "document_column": "documents", "nested": True, "unit_rows": 5}
    for encode in ("unit", "once"):
        run(rerank_files, tiny("bert_mean"), f"{encode}.{kind}", encode, **options)
    unit, once = read(f"unit.{kind}"), read(f"once.{kind}")
    same(*[[result for row in rows for result in row["results"]] for rows in (unit, once)], at_least=30)
    assert unit == once


def test_shuffled_rows_get_the_same_scores(tiny: Tiny) -> None:
    shuffled = random.Random(3).sample(ROWS, len(ROWS))
    by_id = [{row["id"]: row for row in both(tiny("bert_mean"), rows)[1]} for rows in (ROWS, shuffled)]
    same(*[[rows[row["id"]] for row in ROWS] for rows in by_id], at_least=30)


def test_both_columns_may_hold_the_same_texts(tiny: Tiny) -> None:
    texts = [f"{word} {other}" for word, other in itertools.permutations(jobs.WORDS[:6], 2)]
    rows = [{"id": f"{a}/{b}", "query": a, "document": b} for a in texts[:12] for b in texts[:12]]
    same(*both(tiny("bert_mean"), rows))


def test_a_unit_may_have_no_pairs_and_a_row_two_bad_texts(tiny: Tiny) -> None:
    rows = [dict(row) for row in ROWS]
    for number in (*range(60, 120), 3, 169):
        rows[number]["document"] = None
    rows[3]["query"] = rows[130]["query"] = None
    same(*both(tiny("bert_mean"), rows, errors="null"))
    assert read_errors("unit.parquet") == read_errors("once.parquet")
    assert len(read_errors("once.parquet")) == 63


def read_errors(out: str) -> list[dict[str, Any]]:
    return read(f"{out}.errors.jsonl")


def test_a_limit_holds_for_the_texts_too(tiny: Tiny) -> None:
    unit, once = both(tiny("bert_mean"), ROWS, limit=100)
    assert len(once) == 100
    same(unit, once)
    texts = {side: {row[side] for row in ROWS[:100]} for side in SIDES}
    assert record("once.parquet")["texts"] == sum(map(len, texts.values()))


def test_listwise_models_and_cross_encoders_read_pairs(tiny: Tiny) -> None:
    jobs.write_rows("in.parquet", ROWS)
    for name in ("bert_ce", "jina_listwise"):
        with pytest.raises(UsageError, match="a cross-encoder"):
            run(score_files, tiny(name), "out.parquet", "once")
    outcome = run(score_files, tiny("bert_ce"), "out.parquet", "auto")
    assert outcome.counts["encode"] == "unit"


# ---- how much is read


class Reading:
    """What the model and the tokenizer read."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.forwarded: Counter[tuple[Side, tuple[int, ...]]] = Counter()
        self.tokenized: Counter[str] = Counter()
        attempt, tokenize = Batcher._attempt, TextTokenizer.tokenize

        def attempting(batcher: Batcher, items: Items, pack: Pack, *rest: Any, is_query: bool) -> Any:
            for item in pack.index.tolist():
                ids = items.ids[items.offsets[item] : items.offsets[item + 1]]
                self.forwarded["query" if is_query else "document", tuple(ids.tolist())] += 1
            return attempt(batcher, items, pack, *rest, is_query=is_query)

        def tokenizing(tokenizer: TextTokenizer, texts: Sequence[str], *args: Any, **options: Any) -> Any:
            self.tokenized.update(texts)
            return tokenize(tokenizer, texts, *args, **options)

        patch.setattr(Batcher, "_attempt", attempting)
        patch.setattr(TextTokenizer, "tokenize", tokenizing)

    @property
    def tokens(self) -> int:
        return sum(len(ids) * times for (_, ids), times in self.forwarded.items())

    def clear(self) -> None:
        self.forwarded.clear()
        self.tokenized.clear()


@pytest.fixture
def reading(monkeypatch: pytest.MonkeyPatch) -> Reading:
    return Reading(monkeypatch)


def record(out: str) -> dict[str, Any]:
    counts: dict[str, Any] = json.loads(Path(f"{out}.run.json").read_text("utf-8"))["counts"]
    return counts


DISTINCT = {side: {row[side] for row in ROWS} for side in SIDES}
COUNT = sum(map(len, DISTINCT.values()))


@pytest.mark.parametrize("name", ["bert_mean", "colbert"])
def test_each_text_is_tokenized_and_forwarded_once(tiny: Tiny, reading: Reading, name: str) -> None:
    jobs.write_rows("in.parquet", ROWS)
    run(score_files, tiny(name), "out.parquet", "once", unit_rows=7, batch_tokens=64)

    for side in SIDES:
        assert sum(times for (of, _), times in reading.forwarded.items() if of == side) == len(DISTINCT[side])
    assert set(reading.forwarded.values()) == {1}
    assert {reading.tokenized[text] for text in DISTINCT["document"]} == {1}
    assert {reading.tokenized[f"query: {text}" if name == "bert_mean" else text] for text in DISTINCT["query"]} == {1}
    counts = record("out.parquet")
    assert (counts["texts"], counts["tokens"], counts["tokens_forwarded"]) == (COUNT, reading.tokens, reading.tokens)
    assert counts["encode"] == "once"
    assert counts["rows"] == counts["scored"] == len(ROWS)


def test_shards_share_the_encoding(tiny: Tiny, reading: Reading) -> None:
    jobs.write_rows("in.parquet", ROWS)
    forwarded = []
    for shard in (2, 0, 1):
        before = reading.forwarded.total()
        run(score_files, tiny("bert_mean"), "out/", "once", shard=f"{shard}/3", merge=True)
        forwarded.append(reading.forwarded.total() - before)

    assert forwarded == [COUNT, 0, 0]  # the others were not there
    counts = json.loads(Path("out/_run.json").read_text("utf-8"))["counts"]
    assert (counts["texts"], counts["tokens"]) == (COUNT, reading.tokens)
    run(score_files, tiny("bert_mean"), "whole.parquet", "once")
    assert Path("out.parquet").read_bytes() == Path("whole.parquet").read_bytes()


# ---- rows that cannot be scored

BAD = {
    "null": [{"query": "cat", "document": None}, {"query": None, "document": "dog"}, {"query": None, "document": None}],
    "too long": [
        {"query": "cat", "document": LONG},
        {"query": LONG, "document": "cat"},
        {"query": LONG, "document": LONG},
    ],
}


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
@pytest.mark.parametrize("errors", ["null", "quarantine"])
def test_the_same_rows_are_bad_for_the_same_reasons(tiny: Tiny, errors: str, kind: str) -> None:
    rows = [dict(row) for row in ROWS]
    for place, bad in zip((0, 30, 31, 99, 150, 168), itertools.chain(*BAD.values()), strict=True):
        rows[place] |= bad
    source = jobs.write_rows(f"in.{kind}", rows)
    if kind == "jsonl":
        lines = Path(source).read_bytes().splitlines(keepends=True)
        lines[7] = b'{"id": "x", "query": "cat", "document": "\xff"}\n'
        lines[8] = b'{"id": "x", "query": "cat", "document": "\\ud800"}\n'
        lines[9] = b'{"id": "x", "query"\n'
        Path(source).write_bytes(b"".join(lines))
    for encode in ("unit", "once"):
        options = {"source": source, "errors": errors, "truncation": "error", "max_length": 60}
        run(score_files, tiny("bert_mean"), f"{encode}.{kind}", encode, **options)
    listed = read_errors(f"unit.{kind}")

    codes = Counter(fault["code"] for fault in listed)
    assert codes["null"] == 3
    assert codes["too-long"] > 3
    assert len(codes) == (3 if kind == "jsonl" else 2)
    assert read_errors(f"once.{kind}") == listed
    unit, once = ([row for row in read(f"{way}.{kind}") if row["score"] is not None] for way in ("unit", "once"))
    same(unit, once, 20)
    assert len(read(f"once.{kind}")) == len(ROWS) - (len(listed) if errors == "quarantine" else 0)


def test_fail_ends_both_with_the_first_row_that_is_too_long(tiny: Tiny) -> None:
    short = [row for row in ROWS if len(row["document"]) < 20]
    jobs.write_rows("in.parquet", [*short[:9], {"id": "a", "query": "cat", "document": LONG}, *short[9:]])
    said = []
    for encode in ("unit", "once"):
        with pytest.raises(InputError) as caught:
            run(score_files, tiny("bert_mean"), f"{encode}.parquet", encode, truncation="error", errors="fail")
        said.append(str(caught.value))
    assert said[0] == said[1]
    assert "row 9: longer than max_length" in said[0]
