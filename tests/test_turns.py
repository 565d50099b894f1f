"""What keeps a GPU busy, without one: turns at its queue, one copy for a pack, nothing fetched before it is needed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from threading import Event, Thread, get_ident
from typing import Any

import numpy as np
import pytest
import torch

import checkpoints
from batchscore import Scorer
from batchscore.engine.batcher import Batcher
from batchscore.errors import DeviceLostError
from batchscore.models.maxsim import maxsim
from batchscore.models.similarity import maxsim_of_rows
from batchscore.runners.batch import Staging, collate
from batchscore.runners.turns import Turns
from batchscore.scorer import set_up
from batchscore.types import Cells, Items, Pairs, offsets_of

Tiny = Callable[[str], str]
LENGTHS = [9, 5, 5, 2, 1]


# ---- turns


def test_while_one_waits_for_its_numbers_another_has_its_turn() -> None:
    turns, queued, order = Turns(are_taken=True), Event(), list[str]()

    def other() -> None:
        with turns.turn():
            order.append("other")
        queued.set()

    with turns.turn():
        thread = Thread(target=other)
        thread.start()
        assert not queued.wait(0.05)
        order.append("first")
        assert turns.fetch(torch.ones(2))[0].tolist() == [1, 1]
        assert queued.wait(10)
    thread.join()
    assert order == ["first", "other"]


def test_a_failure_gives_the_turn_back() -> None:
    turns = Turns(are_taken=True)
    with pytest.raises(ValueError, match="a bug"), turns.turn():
        raise ValueError("a bug")
    with turns.turn(), pytest.raises(RuntimeError):
        turns.fetch(torch.ones(2, device="meta"))
    with turns.turn():
        pass


def test_what_went_wrong_on_the_device_shows_where_its_numbers_are_awaited(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mark(device: torch.device) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr("batchscore.runners.turns._mark", mark)
    with (
        Scorer(tiny("bert_ce"), dtype="float32", cache_mb=0) as scorer,
        pytest.raises(DeviceLostError, match="illegal"),
    ):
        scorer.score("a cat", ["a dog", "a bird"])


@pytest.mark.parametrize(
    ("name", "score_type"), [("bert_ce", "cross-encoder"), ("bert_mean", "bi-encoder"), ("colbert", "late-interaction")]
)
def test_workers_in_turns_score_as_one(tiny: Tiny, monkeypatch: pytest.MonkeyPatch, name: str, score_type: Any) -> None:
    """And no pack is queued in the middle of another."""
    queries, documents = checkpoints.pairs(60, seed=3)
    setup = set_up(tiny(name), dtype="float32", score_type=score_type, batch_tokens=64)
    raw, threads = [], list[int]()
    for workers in (1, 3):
        batcher = Batcher(replace(setup, budget=replace(setup.budget, workers=workers)))
        runner: Any = batcher._runner
        object.__setattr__(runner, "turns", Turns(are_taken=workers > 1))
        kind = type(runner)
        forward, states = kind.forward, kind.states

        def entered(runner: Any, batch: Any, states: Any = states) -> Any:
            threads.append(get_ident())
            made = states(runner, batch)
            threads.append(get_ident())
            return made

        monkeypatch.setattr(kind, "states", entered)
        raw.append(batcher.score(batcher.tokenize(Pairs(Cells.of(queries), Cells.of(documents)))).raw)
        monkeypatch.setattr(kind, "states", states)
        assert kind.forward is forward
        batcher.close()

    assert len(set(threads)) > 2
    assert threads[::2] == threads[1::2]
    np.testing.assert_allclose(raw[1], raw[0], rtol=0, atol=1e-5)


# ---- one copy for a pack


def items(**more: Any) -> Items:
    rng = np.random.default_rng(0)
    ids = rng.integers(3, 50, sum(LENGTHS)).astype(np.int32)
    return Items(offsets_of(LENGTHS), {"ids": ids, **more})


FLAGS = np.arange(sum(LENGTHS)) % 3 != 1


@pytest.mark.parametrize("layout", ["flat", "padded", "even"])
@pytest.mark.parametrize(
    "columns", [{}, {"types": FLAGS.astype(np.int8), "keep": FLAGS}, {"seen": FLAGS}], ids=["ids", "types", "seen"]
)
@pytest.mark.parametrize("axes", [None, 3])
def test_a_pack_in_one_copy_is_the_pack(
    monkeypatch: pytest.MonkeyPatch, layout: str, columns: dict[str, Any], axes: int | None
) -> None:
    """Each column lies in the buffer as it was, which is sent when all are there."""
    pack = items(**columns)
    options: dict[str, Any] = {"first_position": 2, "padding": 1, "is_query": False}
    if axes:
        options["positions"] = lambda items: np.stack([items.positions + axis for axis in range(axes)])
    expected = collate(pack, layout, "cpu", **options)
    sent = list[int]()
    send = Staging.send
    monkeypatch.setattr(Staging, "send", lambda staging: (sent.append(staging._used), send(staging)))
    staged = collate(pack, layout, "cpu:0", **options)  # another name of it, by which it counts as another device

    assert sum(size > 0 for size in sent) == 1
    assert tensors_of(staged) == tensors_of(expected)


def tensors_of(part: Any) -> Any:
    """The numbers, dtypes and shapes in it."""
    if isinstance(part, torch.Tensor):
        return str(part.dtype), tuple(part.shape), part.tolist()
    if hasattr(part, "__dataclass_fields__"):
        return {name: tensors_of(getattr(part, name)) for name in part.__dataclass_fields__}
    if isinstance(part, dict):
        return {name: tensors_of(value) for name, value in part.items()}
    return [tensors_of(value) for value in part] if isinstance(part, (list, tuple)) else part


def test_columns_that_do_not_fit_get_a_buffer_of_their_own() -> None:
    staging = Staging("cpu", 500)
    columns = [np.arange(size, dtype=np.int64).reshape(-1, 2) for size in (10, 4_000, 2, 0, 6_000, 8)]
    made = [staging(column) for column in columns]
    staging.send()

    assert [tensor.tolist() for tensor in made] == [column.tolist() for column in columns]


# ---- MaxSim


@pytest.mark.parametrize("block", [1, 600, 2**26])
def test_maxsim_of_rows_in_one_batch_is_that_of_each_pair(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr("batchscore.models.similarity._ROWS_BLOCK", block)
    rng = np.random.default_rng(0)
    query_lengths, lengths = rng.integers(1, 6, 4), rng.integers(1, 12, 7)
    # all negative: a zero of padding would win
    queries = torch.from_numpy(rng.random((query_lengths.sum(), 8), np.float32))
    documents = -torch.from_numpy(rng.random((lengths.sum(), 8), np.float32))
    left, right = rng.integers(0, 4, 20), rng.integers(0, 7, 20)

    found = maxsim_of_rows(queries, query_lengths, documents, lengths, left, right)

    expected = maxsim(queries, query_lengths, documents, lengths, left, right)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5)


def test_numbers_that_are_not_finite_stay_in_their_rows() -> None:
    queries, documents = torch.ones(5, 2), torch.ones(5, 2)
    queries[0] = documents[0] = torch.nan
    lengths = np.array([2, 3])

    found = maxsim_of_rows(queries, lengths, documents, lengths, np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1]))

    assert found.isfinite().tolist() == [False, False, False, True]
