"""Attention in padded batches, for what a GPU's kernel cannot do, is attention inside each sequence."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from batchscore.runners import dense, padding
from batchscore.runners.masks import Rule
from batchscore.runners.padded import padded_attention
from batchscore.runners.padding import sections_of
from batchscore.runners.sequences import Sequences, runs_of
from test_attention import HEADS, LENGTHS, SAME, causal, one_by_one, states

FIRST = torch.tensor([0, 9, 14, 19, 24, 26])


def seen_tokens() -> torch.Tensor:
    seen = torch.arange(sum(LENGTHS)) % 3 != 1
    seen[FIRST] = True
    return seen


def of_pack(seen: torch.Tensor | None = None) -> Sequences:
    return Sequences.of(np.array(LENGTHS), None if seen is None else seen.numpy(), torch.from_numpy)


@causal
@pytest.mark.parametrize("key_heads", [1, 2, 4])
@pytest.mark.parametrize("window", [None, 1, 5, 100])
@pytest.mark.parametrize("softcap", [None, 0.5])
@pytest.mark.parametrize("seen", [None, seen_tokens()], ids=["all", "some"])
@pytest.mark.parametrize("products", [1, 2**25])
def test_a_padded_pack_is_attended_as_each_sequence_alone(
    causal: bool,
    key_heads: int,
    window: int | None,
    softcap: float | None,
    seen: torch.Tensor | None,
    products: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(padding, "_PADDED_PRODUCTS", products)
    query, key, value = states(HEADS, 0), states(key_heads, 1), states(key_heads, 2)
    flat = [part[0].transpose(0, 1) for part in (query, key, value)]

    attended = padded_attention(flat[0], *flat[1:], Rule(causal, window, softcap, 0.3), of_pack(seen), from_first=False)

    expected = one_by_one(query, key, value, causal=causal, window=window, softcap=softcap, scaling=0.3, seen=seen)
    # a token that sees nothing, not even itself, has no weights
    is_asked = expected.isfinite().all(-1).all(-1)
    assert is_asked.float().mean() > 0.6
    torch.testing.assert_close(attended[is_asked], expected[is_asked], rtol=0, atol=SAME)


@pytest.mark.parametrize("key_heads", [1, 4])
@pytest.mark.parametrize("seen", [None, seen_tokens()], ids=["all", "some"])
def test_the_first_tokens_alone_are_attended_as_among_all(key_heads: int, seen: torch.Tensor | None) -> None:
    query, key, value = states(HEADS, 0), states(key_heads, 1), states(key_heads, 2)
    flat = [part[0].transpose(0, 1) for part in (query, key, value)]

    attended = padded_attention(flat[0][FIRST], *flat[1:], Rule(), of_pack(seen), from_first=True)

    torch.testing.assert_close(attended, one_by_one(query, key, value, seen=seen)[FIRST], rtol=0, atol=SAME)


# ---- how a pack is divided


@pytest.mark.parametrize("seed", range(5))
def test_sections_are_the_pack_and_at_least_half_full(seed: int) -> None:
    lengths = sorted(np.random.default_rng(seed).integers(1, 600, 300).tolist(), reverse=True)

    sections = sections_of(runs_of(np.array(lengths)))

    ends = np.cumsum([0, *lengths])
    done = 0
    for section in sections:
        own = lengths[section.sequences]
        assert (section.first, section.start, section.size) == (done, ends[done], sum(own))
        assert (section.longest, section.count) == (own[0], len(own))
        assert 2 * own[-1] > own[0]
        assert section.count * section.longest**2 <= padding._PADDED_PRODUCTS
        done += section.count
    assert done == len(lengths)
    assert len(sections) <= np.log2(lengths[0]) + 1 + sum(length**2 for length in lengths) * 4 / 2**25


def test_a_long_sequence_is_a_section_of_its_own() -> None:
    """Thousands of short ones beside it are not padded to its length."""
    sections = sections_of(runs_of(np.array([8192, 8192, 8000, *[100] * 500])))

    assert [(section.count, section.longest) for section in sections] == [(1, 8192), (1, 8192), (1, 8000), (500, 100)]


class Launches(TorchDispatchMode):
    """Counts operations that a GPU would be asked for; views are none."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        self.count += not func.is_view
        return output


@pytest.mark.parametrize("softcap", [None, 50.0])
@pytest.mark.parametrize("key_heads", [2, 8])
def test_a_layer_of_many_lengths_is_few_launches_without_repeated_keys(
    softcap: float | None, key_heads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the meta device, at the size of a real pack: 200 lengths, which were 200 calls."""
    lengths = [length for length in range(399, 199, -1) for _ in range(2)]
    pack = Sequences.of(np.array(lengths), None, lambda column: torch.from_numpy(column).to("meta"))
    query, key = (torch.empty(sum(lengths), heads, 64, dtype=torch.float16, device="meta") for heads in (8, key_heads))
    read = list[int]()

    def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **_: Any) -> Tensor:
        read.append(key.shape[1])
        return torch.empty_like(query)

    monkeypatch.setattr(dense, "scaled_dot_product_attention", attend)
    assert len(pack.paddings) == 2  # made once, for all layers
    with Launches() as launches:
        attended = padded_attention(query, key, key, Rule(softcap=softcap), pack, from_first=False)

    assert attended.shape == query.shape
    assert launches.count <= 30 * len(pack.paddings)
    assert read == [] if softcap else read == [key_heads] * 2
