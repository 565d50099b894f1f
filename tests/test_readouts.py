"""One vector a sequence, by the formulas of sentence-transformers' Pooling module, whatever else is in the pack."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from batchscore.models import readouts
from batchscore.models.arch.entry import PoolingMode
from batchscore.models.readouts import States, first_token, pool
from batchscore.models.spec import POOLING_MODES

# a prompt of one token and two tokens that count; a sequence of one token
HIDDEN = [[1.0, 8.0], [3.0, -4.0], [5.0, 2.0], [-2.0, -6.0]]
LENGTHS = [3, 1]
KEEP = [False, True, True, True]
ROOT = 2**0.5


def states(hidden: list[list[float]] | np.ndarray, lengths: list[int], keep: list[bool] | None = None) -> States:
    kept = None if keep is None else np.array(keep)
    return States.of(torch.tensor(hidden, dtype=torch.float32), np.array(lengths), kept)


def ragged(seed: int) -> tuple[np.ndarray, list[int], list[bool]]:
    """Random states of sequences of 1 to 9 tokens, the last of which always counts."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 10, 12)
    keep = rng.random(lengths.sum()) < 0.6
    keep[lengths.cumsum() - 1] = True
    return rng.standard_normal((lengths.sum(), 5)), lengths.tolist(), keep.tolist()


# one sequence at a time: states [tokens, dim], whether each token counts [tokens] -> [dim]
FORMULAS: dict[PoolingMode, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "cls": lambda x, keep: x[keep][0],
    "lasttoken": lambda x, keep: x[-1],
    "max": lambda x, keep: x[keep].max(0),
    "mean": lambda x, keep: x[keep].mean(0),
    "mean_sqrt_len": lambda x, keep: x[keep].sum(0) / np.sqrt(keep.sum()),
    "weightedmean": lambda x, keep: np.average(x[keep], axis=0, weights=np.flatnonzero(keep) + 1),
}


@pytest.mark.parametrize(
    ("mode", "vector"),
    [
        ("cls", [3, -4]),
        ("lasttoken", [5, 2]),
        ("max", [5, 2]),
        ("mean", [4, -1]),
        ("mean_sqrt_len", [8 / ROOT, -2 / ROOT]),
        ("weightedmean", [(2 * 3 + 3 * 5) / 5, (2 * -4 + 3 * 2) / 5]),  # places are counted from the sequence's start
    ],
)
def test_tokens_that_do_not_count_are_left_out(mode: PoolingMode, vector: list[float]) -> None:
    pooled = pool(states(HIDDEN, LENGTHS, KEEP), (mode,))

    assert pooled.tolist() == [pytest.approx(vector), [-2, -6]]


@pytest.mark.parametrize(
    ("mode", "vector"),
    [
        ("cls", [1, 8]),
        ("lasttoken", [5, 2]),
        ("max", [5, 8]),
        ("mean", [3, 2]),
        ("mean_sqrt_len", [9 / 3**0.5, 6 / 3**0.5]),
        ("weightedmean", [(1 + 2 * 3 + 3 * 5) / 6, (8 - 2 * 4 + 3 * 2) / 6]),
    ],
)
def test_without_a_mask_every_token_counts(mode: PoolingMode, vector: list[float]) -> None:
    pooled = pool(states(HIDDEN, LENGTHS), (mode,))

    assert pooled.tolist() == [pytest.approx(vector), [-2, -6]]
    assert pooled.tolist() == pool(states(HIDDEN, LENGTHS, [True] * 4), (mode,)).tolist()


@pytest.mark.parametrize("mode", POOLING_MODES)
@pytest.mark.parametrize("seed", range(3))
def test_a_pack_is_pooled_as_each_sequence_by_the_formula(mode: PoolingMode, seed: int) -> None:
    hidden, lengths, keep = ragged(seed)
    parts = (np.split(column, np.cumsum(lengths)[:-1]) for column in (hidden, np.array(keep)))

    expected = np.stack([FORMULAS[mode](x, counts) for x, counts in zip(*parts, strict=True)])

    np.testing.assert_allclose(pool(states(hidden, lengths, keep), (mode,)), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mode", POOLING_MODES)
@pytest.mark.parametrize("kept", [False, True])
def test_chunks_of_a_pack_give_the_same_bits(mode: PoolingMode, kept: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that no pack is in memory in float32 as a whole."""
    hidden, lengths, keep = ragged(4)
    pack = states(hidden, lengths, keep if kept else None)
    whole = pool(pack, (mode,))
    monkeypatch.setattr(readouts, "_TOKENS_AT_ONCE", 12)

    chunks = list(pack.chunks(12))
    assert [size for chunk in chunks for size in chunk.sizes] == lengths
    assert len(chunks) > 3
    assert all(sum(chunk.sizes) == len(chunk.hidden) <= 12 for chunk in chunks)
    assert pool(pack, (mode,)).tolist() == whole.tolist()


def test_several_modes_stand_side_by_side() -> None:
    pack = states(HIDDEN, LENGTHS)

    assert pool(pack, ("cls", "max", "lasttoken")).tolist() == [[1, 8, 5, 8, 5, 2], [-2, -6, -2, -6, -2, -6]]


@pytest.mark.parametrize("mode", ["mean", "mean_sqrt_len", "weightedmean", "lasttoken"])
def test_a_sequence_of_which_nothing_counts_has_the_zero_vector(mode: PoolingMode) -> None:
    """A prompt that fills max_length leaves no token; the cosine of that is 0 and not nan."""
    assert pool(states(HIDDEN, LENGTHS, [False, False, False, True]), (mode,)).tolist() == [[0, 0], [-2, -6]]


def test_vectors_are_float32() -> None:
    assert {pool(states(HIDDEN, LENGTHS, KEEP), (mode,)).dtype for mode in POOLING_MODES} == {torch.float32}


def test_the_first_tokens_are_where_the_sequences_start() -> None:
    hidden, lengths, _ = ragged(0)
    pack = states(hidden, lengths)

    starts = np.cumsum([0, *lengths])[:-1]
    assert pack.starts.tolist() == starts.tolist()
    assert first_token(pack).tolist() == pack.hidden[starts].tolist()
