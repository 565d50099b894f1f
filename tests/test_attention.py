"""Attention over a pack without padding is attention inside each sequence, by every rule a model may have."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from batchscore.runners.attention import Sequences, attend_from_first, packed_attention
from batchscore.types import Batch

LENGTHS = [9, 5, 5, 5, 2, 1]
HEADS, DIM = 4, 8
SAME = 1e-6

causal = pytest.mark.parametrize("causal", [False, True], ids=["both ways", "causal"])


def states(heads: int, seed: int) -> Tensor:
    """float32 [1, heads, tokens, dim]."""
    return torch.randn(1, heads, sum(LENGTHS), DIM, generator=torch.Generator().manual_seed(seed))


def sequences(seen: Tensor | None = None) -> Sequences:
    offsets = np.concatenate([[0], np.cumsum(LENGTHS)]).astype(np.int32)
    none = np.empty(0, np.int64)
    return Sequences.of(Batch(none, none, offsets, None, None, None if seen is None else seen.numpy()), "cpu")


def one_by_one(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    causal: bool = False,
    window: int | None = None,
    softcap: float | None = None,
    scaling: float = DIM**-0.5,
    seen: Tensor | None = None,
) -> Tensor:
    """[tokens, heads, dim]: the formula, one sequence and one pair of tokens at a time."""
    key, value = (part.repeat_interleave(query.shape[1] // key.shape[1], 1) for part in (key, value))
    outputs, start = [], 0
    for length in LENGTHS:
        span = slice(start, start + length)
        q, k, v = (part[0, :, span] for part in (query, key, value))
        products = q @ k.transpose(1, 2) * scaling
        products = products if softcap is None else softcap * torch.tanh(products / softcap)
        for i, j in product(range(length), range(length)):
            hidden = (causal and j > i) or (window is not None and abs(i - j) >= window)
            if hidden or (seen is not None and not seen[start + j]):
                products[:, i, j] = -torch.inf
        outputs.append((products.softmax(-1) @ v).transpose(0, 1))
        start += length
    return torch.cat(outputs)


def layer(*, is_causal: bool, config: bool | None = None) -> nn.Module:
    """An attention layer of a model whose class, and whose config if it says so, is causal."""
    module: Any = nn.Module()
    module.is_causal = is_causal
    if config is not None:
        module.config = type("Config", (), {"is_causal": config})()
    made: nn.Module = module
    return made


def packed(
    query: Tensor, key: Tensor, value: Tensor, module: nn.Module, seen: Tensor | None = None, **rule: Any
) -> Tensor:
    attended, weights = packed_attention(module, query, key, value, None, sequences=sequences(seen), **rule)
    assert weights is None
    return attended[0]


@causal
@pytest.mark.parametrize("key_heads", [1, 2, 4])
@pytest.mark.parametrize("window", [None, 1, 2, 5, 9, 100])
@pytest.mark.parametrize("softcap", [None, 0.5])
def test_a_pack_is_attended_as_each_sequence_alone(
    causal: bool, key_heads: int, window: int | None, softcap: float | None
) -> None:
    query, key, value = states(HEADS, 0), states(key_heads, 1), states(key_heads, 2)

    found = packed(query, key, value, layer(is_causal=causal), sliding_window=window, softcap=softcap, scaling=0.3)

    expected = one_by_one(query, key, value, causal=causal, window=window, softcap=softcap, scaling=0.3)
    torch.testing.assert_close(found, expected, rtol=0, atol=SAME)


@causal
@pytest.mark.parametrize("softcap", [None, 0.5])
def test_tokens_that_are_not_seen_get_no_weight(causal: bool, softcap: float | None) -> None:
    """ColBERT's mask tokens: they attend, and nobody attends to them."""
    query, key, value = (states(HEADS, seed) for seed in range(3))
    seen = torch.arange(sum(LENGTHS)) % 3 != 1
    for start in (0, 9, 14, 19, 24, 26):
        seen[start] = True

    found = packed(query, key, value, layer(is_causal=causal), softcap=softcap, seen=seen)

    expected = one_by_one(query, key, value, causal=causal, softcap=softcap, seen=seen)
    torch.testing.assert_close(found, expected, rtol=0, atol=SAME)
    assert not torch.allclose(found, packed(query, key, value, layer(is_causal=causal), softcap=softcap), atol=1e-3)


@pytest.mark.parametrize(
    ("made", "config", "causal"),
    [(True, None, True), (False, None, False), (True, True, True), (True, False, False), (False, True, False)],
)
def test_a_layer_and_its_config_must_both_be_causal(made: bool, config: bool | None, causal: bool) -> None:
    """A language model that was retrained to look both ways says so on its config alone."""
    query, key, value = (states(HEADS, seed) for seed in range(3))

    found = packed(query, key, value, layer(is_causal=made, config=config))

    torch.testing.assert_close(found, one_by_one(query, key, value, causal=causal), rtol=0, atol=SAME)


@pytest.mark.parametrize("window", [1, 2, 5])
def test_the_window_of_a_causal_class_that_looks_both_ways_counts_its_far_end_in(window: int) -> None:
    """As transformers' mask does."""
    query, key, value = (states(HEADS, seed) for seed in range(3))

    found = packed(query, key, value, layer(is_causal=True, config=False), sliding_window=window)

    torch.testing.assert_close(found, one_by_one(query, key, value, window=window + 1), rtol=0, atol=SAME)


@pytest.mark.parametrize("seen", [None, torch.arange(sum(LENGTHS)) % 3 != 1], ids=["all", "some"])
def test_the_first_tokens_alone_are_attended_as_among_all(seen: Tensor | None) -> None:
    query, key, value = (states(HEADS, seed) for seed in range(3))
    first = torch.tensor([0, 9, 14, 19, 24, 26])
    if seen is not None:
        seen = seen.clone()
        seen[first] = True
    flat = [part[0].transpose(0, 1) for part in (query, key, value)]

    found = attend_from_first(flat[0][first], flat[1], flat[2], None, sequences(seen))

    torch.testing.assert_close(found, one_by_one(query, key, value, seen=seen)[first], rtol=0, atol=SAME)
