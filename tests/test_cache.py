"""Outputs that come back are the outputs that were computed, within the memory given."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

import checkpoints
from batchscore import Scorer
from batchscore.runners.cache import _KEY_BYTES, OutputCache
from batchscore.types import Items, Pairs, Texts, offsets_of
from windows import score_work

Tiny = Callable[[str], str]
DIM = 4
QUERIES, DOCUMENTS = checkpoints.pairs(60, seed=1)


def items(*sequences: list[int]) -> Items:
    ids = np.concatenate([np.array(s, np.int32) for s in sequences])
    return Items(offsets_of([*map(len, sequences)]), {"ids": ids})


def vectors(count: int) -> torch.Tensor:
    return torch.arange(count * DIM, dtype=torch.float32).reshape(count, DIM)


def cache_of(entries: int) -> OutputCache:
    return OutputCache(entries * (DIM * 4 + _KEY_BYTES), "cpu")


def test_what_was_added_is_found_by_its_tokens() -> None:
    cache, sequences = cache_of(10), items([1, 2], [3], [1, 2, 3])
    cache.add(sequences, np.array([2, 0]), vectors(2))

    hits, found = cache.find(items([3], [1, 2, 3], [1, 2]), np.arange(3))

    assert hits.tolist() == [False, True, True]
    assert found is not None
    assert torch.equal(found, vectors(2))


def test_token_types_and_kept_tokens_are_part_of_the_key() -> None:
    ids, offsets = np.array([1, 2], np.int32), offsets_of(np.array([2]))
    plain = Items(offsets, {"ids": ids})
    typed, kept = plain.with_columns(types=np.array([0, 1], np.int32)), plain.with_columns(keep=np.array([False, True]))
    cache = cache_of(10)
    cache.add(plain, np.arange(1), vectors(1))

    assert [cache.find(other, np.arange(1))[0].tolist() for other in (plain, typed, kept)] == [[True], [False], [False]]


def test_the_oldest_gives_way_when_the_memory_is_full() -> None:
    cache, sequences = cache_of(3), items([1], [2], [3], [4], [5])
    for place in range(5):
        cache.add(sequences, np.array([place]), vectors(5)[[place]])

    hits, found = cache.find(sequences, np.arange(5))

    assert hits.tolist() == [False, False, True, True, True]
    assert found is not None
    assert torch.equal(found, vectors(5)[2:])


def test_a_pack_larger_than_the_memory_is_survived() -> None:
    cache, sequences = cache_of(2), items([1], [2], [3], [4], [5])
    cache.add(sequences, np.arange(5), vectors(5))

    hits, found = cache.find(sequences, np.arange(5))

    assert hits.sum() == 2
    assert found is not None
    assert torch.equal(found, vectors(5)[torch.from_numpy(hits)])


def test_found_outputs_outlive_their_slot() -> None:
    cache, sequences = cache_of(1), items([1], [2])
    cache.add(sequences, np.array([0]), vectors(1))
    _, found = cache.find(sequences, np.array([0]))
    cache.add(sequences, np.array([1]), vectors(1) + 100)

    assert found is not None
    assert torch.equal(found, vectors(1))


def test_no_memory_keeps_nothing() -> None:
    cache, sequences = OutputCache(0, "cpu"), items([1])
    cache.add(sequences, np.arange(1), vectors(1))

    assert cache.find(sequences, np.arange(1))[0].tolist() == [False]


@pytest.mark.parametrize("name", ["bert_ce", "bert_mean"])
def test_a_second_call_needs_no_forward_and_gives_the_same_scores(tiny: Tiny, name: str) -> None:
    scorer = Scorer(tiny(name), dtype="float32")
    first = scorer.score(QUERIES, DOCUMENTS)
    tokens: list[int] = []
    columns = scorer.batcher.tokenize(Pairs(Texts.of(QUERIES), Texts.of(DOCUMENTS)))
    second = score_work(scorer, columns, lambda _, count: tokens.append(count))

    np.testing.assert_array_equal(second.score, first)
    assert sum(tokens) == 0


@pytest.mark.parametrize("name", ["roberta_ce", "xlmr_cls", "bert_no_prompt_pooling"])
@pytest.mark.parametrize("cache_mb", [0, 1])
def test_scores_do_not_depend_on_the_cache(tiny: Tiny, name: str, cache_mb: int) -> None:
    """Windows of 7 rows over texts that repeat: with a cache most are found, without one none is."""
    whole = Scorer(tiny(name), dtype="float32", cache_mb=0).score(QUERIES, DOCUMENTS)
    windows = Scorer(tiny(name), dtype="float32", cache_mb=cache_mb, window_rows=7).score(QUERIES, DOCUMENTS)

    np.testing.assert_allclose(windows, whole, atol=1e-6)
