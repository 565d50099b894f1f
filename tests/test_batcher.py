"""A window through a model: several workers, batches made ahead, several scores a row."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from threading import Lock, current_thread
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from batchscore.engine.batcher import _BATCHES_AHEAD, Batcher
from batchscore.errors import DeviceMemoryError
from batchscore.runners.base import Match
from batchscore.scorer import set_up
from batchscore.types import Cells, Items, Pairs
from checkpoints import pairs

Tiny = Callable[[str], str]
QUERIES, DOCUMENTS = pairs(60, seed=3)
KINDS = [("bert_ce", "cross-encoder"), ("bert_mean", "bi-encoder"), ("bert_tokens", "late-interaction")]

every_kind = pytest.mark.parametrize(("name", "score_type"), KINDS, ids=[kind for _, kind in KINDS])


@contextmanager
def batcher_of(model: str, score_type: Any, workers: int, **options: Any) -> Iterator[Batcher]:
    setup = set_up(model, dtype="float32", score_type=score_type, batch_tokens=64, **options)
    batcher = Batcher(replace(setup, budget=replace(setup.budget, workers=workers)))
    try:
        yield batcher
    finally:
        batcher.close()


def window() -> Pairs:
    return Pairs(Cells.of(QUERIES), Cells.of(DOCUMENTS))


@every_kind
def test_several_workers_score_as_one(tiny: Tiny, name: str, score_type: str) -> None:
    raw = []
    for workers in (1, 4):
        with batcher_of(tiny(name), score_type, workers) as batcher:
            outcome = batcher.score(batcher.tokenize(window()))
            assert outcome.faults == {}
            raw.append(outcome.raw)

    np.testing.assert_allclose(raw[1], raw[0], rtol=0, atol=1e-5)
    assert np.ptp(raw[0]) > 1e-3


@every_kind
@pytest.mark.parametrize("workers", [1, 3])
def test_batches_are_made_ahead_but_only_so_many(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, name: str, score_type: str, workers: int
) -> None:
    """They lie in the device's memory, so their number does not grow with the window."""
    with batcher_of(tiny(name), score_type, workers) as batcher:
        kind, lock = type(batcher._runner), Lock()
        collate, forward = kind.collate, kind.forward
        waiting, most, threads = [0], [0], set[str]()

        def collated(runner: Any, items: Items, index: Any, **options: bool) -> Any:
            threads.add(current_thread().name.rpartition("_")[0])
            batch = collate(runner, items, index, **options)
            with lock:
                waiting[0] += 1
                most[0] = max(most[0], waiting[0])
            return batch

        def forwarded(runner: Any, batch: Any) -> Any:
            with lock:
                waiting[0] -= 1
            return forward(runner, batch)

        monkeypatch.setattr(kind, "collate", collated)
        monkeypatch.setattr(kind, "forward", forwarded)
        work = batcher.tokenize(window())
        batcher.score(work)

    # each worker makes its first batch itself, since there is nothing to be ahead of
    assert threads == {"batchscore", "batchscore-collate"}
    assert 1 <= most[0] <= workers * _BATCHES_AHEAD + 1
    assert waiting == [0]


def test_a_row_may_have_several_scores(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of several heads: a row is done when it has all of them, and a pack gives them together."""
    with batcher_of(tiny("bert_ce"), "cross-encoder", 1) as batcher:
        kind = type(batcher._runner)
        compare, compared = kind.compare, list[int]()

        def two(runner: Any, held: None, match: Match, output: Any) -> NDArray[np.float32]:
            compared.append(len(match.item))
            one = compare(runner, held, match, output)
            return np.concatenate([one, -2 * one], axis=1)

        work = batcher.tokenize(window())
        single = batcher.score(work).raw
        monkeypatch.setattr(kind, "num_scores", 2)
        monkeypatch.setattr(kind, "compare", two)
        outcome = batcher.score(work)
        assert outcome.raw.shape == (len(work), 2)
        np.testing.assert_array_equal(outcome.raw, np.concatenate([single, -2 * single], axis=1))

        half = outcome.raw.copy()
        half[::2, 1] = np.nan  # saved by a run that was killed between two scores, were that possible
        compared.clear()
        np.testing.assert_allclose(batcher.score(work, raw=half).raw, outcome.raw, rtol=0, atol=1e-5)
        assert 0 < sum(compared) < len(work)


def test_one_bad_number_of_several_is_a_fault_of_its_row(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    with batcher_of(tiny("bert_ce"), "cross-encoder", 1) as batcher:
        kind = type(batcher._runner)
        compare = kind.compare

        def two(runner: Any, held: None, match: Match, output: Any) -> NDArray[np.float32]:
            one = compare(runner, held, match, output)
            return np.concatenate([one, np.where(one > np.median(one), np.inf, one)], axis=1)

        monkeypatch.setattr(kind, "num_scores", 2)
        monkeypatch.setattr(kind, "compare", two)
        outcome = batcher.score(batcher.tokenize(window()))

    assert 0 < len(outcome.faults) < len(QUERIES)
    assert {fault.message for fault in outcome.faults.values()} == {"its score is inf"}
    assert np.isnan(outcome.raw[list(outcome.faults)]).all()
    assert np.isfinite(np.delete(outcome.raw, list(outcome.faults), axis=0)).all()


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize(("name", "score_type"), KINDS[1:], ids=["bi-encoder", "late-interaction"])
def test_a_query_that_does_not_fit_is_a_fault_of_its_rows_alone(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, name: str, score_type: str, workers: int
) -> None:
    short = [" ".join(query.split()[:5]) for query in QUERIES]
    queries = [*short[:20], "paper " * 60, *short[20:]]
    documents = [*DOCUMENTS[:20], "cat", *DOCUMENTS[20:]]
    with batcher_of(tiny(name), score_type, workers) as batcher:
        kind = type(batcher._runner)
        forward = kind.forward
        work = batcher.tokenize(Pairs(Cells.of(queries), Cells.of(documents)))
        whole = batcher.score(work).raw

        def small(runner: Any, batch: Any) -> Any:
            if batch.is_query and batch.longest > 50:
                raise DeviceMemoryError("no memory", hint="lower --max-length")
            return forward(runner, batch)

        monkeypatch.setattr(kind, "forward", small)
        outcome = batcher.score(work)

    assert {row: fault.code for row, fault in outcome.faults.items()} == {20: "out-of-memory"}
    np.testing.assert_allclose(np.delete(outcome.raw, 20, axis=0), np.delete(whole, 20, axis=0), rtol=0, atol=1e-5)


def test_what_one_worker_raises_ends_the_window_and_no_thread_is_left_at_it(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    with batcher_of(tiny("bert_ce"), "cross-encoder", 3) as batcher:
        kind = type(batcher._runner)
        forward, calls, running = kind.forward, list[int](), list[int]()

        def failing(runner: Any, batch: Any) -> Any:
            calls.append(1)
            if len(calls) == 3:
                raise ValueError("a bug of ours")
            running.append(1)
            try:
                return forward(runner, batch)
            finally:
                running.pop()

        monkeypatch.setattr(kind, "forward", failing)
        with pytest.raises(ValueError, match="a bug of ours"):
            batcher.score(batcher.tokenize(window()))

        assert running == []
        assert len(calls) < 10
