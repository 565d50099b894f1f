"""Attention over a pack without padding is attention inside each sequence, by every rule a model may have."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from inspect import signature
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from transformers import masking_utils as masks

from batchscore.runners.attention import attend_from_first, packed_attention
from batchscore.runners.masks import Rule, UnknownAttentionError, packed_mask
from batchscore.runners.sequences import Sequences
from kernels import KERNELS, MINOR_RELEASES

LENGTHS = [9, 5, 5, 5, 2, 1]
HEADS, DIM = 4, 8
SAME = 1e-6


@pytest.fixture(autouse=True, params=["torch", "native"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU: by torch's attention, and by our own where it is."""
    if request.param == "torch":
        monkeypatch.setattr("batchscore.runners.native_attention._functions", dict)


causal = pytest.mark.parametrize("causal", [False, True], ids=["both ways", "causal"])


def states(heads: int, seed: int) -> Tensor:
    """float32 [1, heads, tokens, dim]."""
    return torch.randn(1, heads, sum(LENGTHS), DIM, generator=torch.Generator().manual_seed(seed))


def sequences(seen: Tensor | None = None) -> Sequences:
    return Sequences.of(np.array(LENGTHS), None if seen is None else seen.numpy(), torch.from_numpy)


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


def layer(*, is_causal: bool) -> nn.Module:
    """An attention layer of a model whose class is causal."""
    module: Any = nn.Module()
    module.is_causal = is_causal
    made: nn.Module = module
    return made


def mask(*, causal: bool, window: int | None) -> Rule:
    """What a model gets that makes such a mask. A window that looks both ways counts its far end in."""
    if window is None:
        return packed_mask(mask_function=masks.causal_mask_function if causal else masks.bidirectional_mask_function)
    if causal:
        return packed_mask(mask_function=masks.sliding_window_causal_mask_function(window))
    return packed_mask(mask_function=masks.sliding_window_bidirectional_mask_function(window - 1))


def packed(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Any,
    seen: Tensor | None = None,
    module: nn.Module | None = None,
    **rule: Any,
) -> Tensor:
    module = module or layer(is_causal=True)
    attended, weights = packed_attention(module, query, key, value, mask, sequences=sequences(seen), **rule)
    assert weights is None
    return attended[0]


BOTH_WAYS = Rule(causal=False)


@causal
@pytest.mark.parametrize("key_heads", [1, 2, 4])
@pytest.mark.parametrize("window", [None, 1, 2, 5, 9, 100])
@pytest.mark.parametrize("softcap", [None, 0.5])
def test_a_pack_is_attended_as_each_sequence_alone(
    causal: bool, key_heads: int, window: int | None, softcap: float | None
) -> None:
    query, key, value = states(HEADS, 0), states(key_heads, 1), states(key_heads, 2)

    attended = packed(query, key, value, mask(causal=causal, window=window), softcap=softcap, scaling=0.3)

    expected = one_by_one(query, key, value, causal=causal, window=window, softcap=softcap, scaling=0.3)
    torch.testing.assert_close(attended, expected, rtol=0, atol=SAME)


@causal
@pytest.mark.parametrize("softcap", [None, 0.5])
def test_tokens_that_are_not_seen_get_no_weight(causal: bool, softcap: float | None) -> None:
    """ColBERT's mask tokens: they attend, and nobody attends to them."""
    query, key, value = (states(HEADS, seed) for seed in range(3))
    seen = torch.arange(sum(LENGTHS)) % 3 != 1
    for start in (0, 9, 14, 19, 24, 26):
        seen[start] = True

    attended = packed(query, key, value, Rule(causal), softcap=softcap, seen=seen)

    expected = one_by_one(query, key, value, causal=causal, softcap=softcap, seen=seen)
    torch.testing.assert_close(attended, expected, rtol=0, atol=SAME)
    assert not torch.allclose(attended, packed(query, key, value, Rule(causal), softcap=softcap), atol=1e-3)


@pytest.mark.parametrize(
    ("made", "keyword", "causal"), [(True, None, True), (False, None, False), (True, False, False), (False, True, True)]
)
def test_where_a_model_makes_no_mask_the_layer_is_causal_or_the_call_says_so(
    made: bool, keyword: bool | None, causal: bool
) -> None:
    """As transformers calls scaled_dot_product_attention."""
    query, key, value = (states(HEADS, seed) for seed in range(3))

    attended = packed(query, key, value, None, module=layer(is_causal=made), is_causal=keyword)

    torch.testing.assert_close(attended, one_by_one(query, key, value, causal=causal), rtol=0, atol=SAME)


# ---- what a model says in its mask


def all_of(*positions: object) -> Tensor:
    """Gemma 3's overlay where it looks both ways."""
    return torch.tensor(True)


def nearer(distance: int) -> Callable[..., Tensor]:
    def near(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return operator.lt(abs(query - key), distance)

    return near


PREFIX = 300


def before_a_constant(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
    return key < PREFIX


IN_A_PACK = masks.packed_sequence_mask_function(torch.tensor([[0, 0, 1]]))
WINDOW = masks.sliding_window_causal_mask_function


@pytest.mark.parametrize(
    ("mask_function", "causal", "window"),
    [
        (masks.causal_mask_function, True, None),
        (masks.bidirectional_mask_function, False, None),
        (WINDOW(16), True, 16),
        (WINDOW(4096), True, 4096),
        (masks.sliding_window_bidirectional_mask_function(64), False, 65),
        (masks.or_masks(masks.causal_mask_function, all_of), False, None),
        (masks.or_masks(WINDOW(512), nearer(512)), False, 512),
        (masks.and_masks(masks.causal_mask_function, nearer(7)), True, 7),
        (masks.and_masks(masks.causal_mask_function, IN_A_PACK), True, None),
        (masks.and_masks(WINDOW(16), IN_A_PACK), True, 16),
    ],
)
def test_a_mask_is_known_by_what_it_allows(mask_function: Any, causal: bool, window: int | None) -> None:
    assert packed_mask(mask_function=mask_function, batch_size=1, q_length=3) == Rule(causal, window)


def test_a_pack_that_transformers_notices_has_the_mask_of_its_sequences() -> None:
    remapped = getattr(masks, "remap_positions_for_packed_sequence", lambda function, position_ids: function)
    inside = remapped(WINDOW(16), torch.tensor([[0, 1, 0]]))

    assert packed_mask(mask_function=masks.and_masks(inside, IN_A_PACK)) == Rule(causal=True, window=16)


def test_a_mask_can_be_taken_as_a_whole_alone() -> None:
    """Gemma 4 takes the last 0 queries of it, which are all."""
    rule = Rule(causal=True, window=4)

    assert rule[:, :, slice(-0, None), :] == rule
    for part in (slice(1, None), slice(None, 5), slice(None, None, 2), 0):
        with pytest.raises(UnknownAttentionError, match="a part of a mask"):
            rule[:, :, part, :]  # type: ignore[index]


NOBODY = torch.zeros(1, dtype=torch.int64)


@pytest.mark.parametrize(
    ("mask_function", "shown"),
    [
        (masks.chunked_causal_mask_function(8, NOBODY), "depends on a Tensor"),
        (masks.or_masks(masks.causal_mask_function, masks.blockwise_overlay(NOBODY[None])), "depends on a Tensor"),
        (masks.and_masks(masks.causal_mask_function, masks.padding_mask_function(NOBODY[None])), "depends on a Tensor"),
        (masks.and_masks(masks.causal_mask_function, lambda b, h, q, k: q // 8 == k // 8), "neither causal nor"),
        (masks.or_masks(masks.causal_mask_function, lambda b, h, q, k: k < 300), "neither causal nor"),
        (masks.and_masks(WINDOW(8), lambda b, h, q, k: k > 40), "neither causal nor"),
        (masks.and_masks(masks.causal_mask_function, before_a_constant), "neither causal nor"),
        (lambda b, h, q, k: bool(k < 3), "cannot be read"),
        (functools.partial(nearer(3)), "depends on a partial"),
    ],
    ids=["chunks", "blocks", "padding", "own chunks", "prefix", "late", "constant", "numbers alone", "object"],
)
def test_a_mask_that_says_more_is_refused(mask_function: Any, shown: str) -> None:
    with pytest.raises(UnknownAttentionError, match=shown):
        packed_mask(mask_function=mask_function)


@pytest.mark.parametrize(
    ("mask", "keywords", "shown"),
    [
        (torch.zeros(1, 1, 27, 27), {}, "a mask of the model's own"),
        (None, {"sliding_window": 4}, "a mask of the model's own"),
        (BOTH_WAYS, {"s_aux": torch.zeros(4)}, "attention with s_aux"),
        (BOTH_WAYS, {"indices": torch.zeros(4)}, "attention with indices"),
        (BOTH_WAYS, {"position_bias": torch.zeros(4)}, "attention with position_bias"),
    ],
)
def test_attention_that_asks_for_more_is_refused(mask: Any, keywords: dict[str, Any], shown: str) -> None:
    query, key, value = (states(HEADS, seed) for seed in range(3))

    with pytest.raises(UnknownAttentionError, match=shown):
        packed(query, key, value, mask, **keywords)


def test_keywords_that_change_nothing_are_taken() -> None:
    query, key, value = (states(HEADS, seed) for seed in range(3))
    keywords = {"s_aux": None, "output_attentions": False, "position_ids": torch.zeros(1, 27), "sliding_window": 4}

    attended = packed(query, key, value, BOTH_WAYS, **keywords)

    torch.testing.assert_close(attended, packed(query, key, value, BOTH_WAYS), rtol=0, atol=0)


def test_other_keys_than_those_of_the_batch_are_refused() -> None:
    """Of a memory before the text, say."""
    query, longer = states(HEADS, 0), torch.zeros(1, HEADS, 30, DIM)

    with pytest.raises(UnknownAttentionError, match="to other tokens"):
        packed(query, longer, longer, BOTH_WAYS)


@pytest.mark.parametrize("seen", [None, torch.arange(sum(LENGTHS)) % 3 != 1], ids=["all", "some"])
def test_the_first_tokens_alone_are_attended_as_among_all(seen: Tensor | None) -> None:
    query, key, value = (states(HEADS, seed) for seed in range(3))
    first = torch.tensor([0, 9, 14, 19, 24, 26])
    if seen is not None:
        seen = seen.clone()
        seen[first] = True
    flat = [part[0].transpose(0, 1) for part in (query, key, value)]

    attended = attend_from_first(flat[0][first], flat[1], flat[2], None, sequences(seen))

    torch.testing.assert_close(attended, one_by_one(query, key, value, seen=seen)[first], rtol=0, atol=SAME)


# ---- what is asked of the kernel that GPUs have


@pytest.fixture(params=KERNELS)
def kernel_calls(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Keywords of each call of torch's kernel, which a stand-in of one release takes on this CPU."""
    calls: list[dict[str, Any]] = []
    kernel = KERNELS[request.param]

    @functools.wraps(kernel)
    def recorded(*tensors: Any, **keywords: Any) -> Tensor:
        calls.append(keywords)
        return kernel(*tensors, **keywords)

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", recorded)
    monkeypatch.setattr("batchscore.runners.varlen._has_kernel", lambda device: True)
    return calls


@causal
@pytest.mark.parametrize("key_heads", [1, 2, 4])
@pytest.mark.parametrize("window", [None, 1, 2, 5, 9, 100])
@pytest.mark.parametrize("scaling", [None, 0.3])
def test_the_kernel_is_asked_for_attention_by_the_same_rule(
    causal: bool, key_heads: int, window: int | None, scaling: float | None, kernel_calls: list[dict[str, Any]]
) -> None:
    query, key, value = (states(heads, n).half() for n, heads in enumerate((HEADS, key_heads, key_heads)))

    attended = packed(query, key, value, mask(causal=causal, window=window), scaling=scaling)

    rule = {"causal": causal, "window": window, "scaling": scaling or DIM**-0.5}
    expected = one_by_one(query.float(), key.float(), value.float(), **rule)
    torch.testing.assert_close(
        attended.float(), expected, rtol=0, atol=2e-3
    )  # outputs below 4 are 2e-3 apart in float16
    assert len(kernel_calls) == 1


def test_the_kernel_is_asked_for_first_tokens_alone(kernel_calls: list[dict[str, Any]]) -> None:
    query, key, value = (states(HEADS, seed)[0].transpose(0, 1).half() for seed in range(3))
    first = torch.tensor([0, 9, 14, 19, 24, 26])

    attended = attend_from_first(query[first], key, value, None, sequences())

    expected = one_by_one(*(part.float().transpose(0, 1)[None] for part in (query, key, value)))[first]
    torch.testing.assert_close(attended.float(), expected, rtol=0, atol=2e-3)
    assert len(kernel_calls) == 1


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (lambda states: states.float(), {}),
        (lambda states: states, {"softcap": 0.5}),
        (lambda states: states, {"seen": torch.arange(sum(LENGTHS)) != 8}),
        (lambda states: states[..., :7], {}),
        (lambda states: torch.cat([states] * 33, -1), {}),
    ],
    ids=["float32", "softcap", "hidden tokens", "heads of 7", "heads of 264"],
)
def test_the_kernel_is_not_asked_for_what_it_cannot_do(
    change: Callable[[Tensor], Tensor], rule: dict[str, Any], kernel_calls: list[dict[str, Any]]
) -> None:
    query, key, value = (change(states(HEADS, seed).half()) for seed in range(3))

    assert packed(query, key, value, BOTH_WAYS, **rule).isfinite().all()

    assert kernel_calls == []


def test_a_pack_that_hides_no_token_is_for_the_kernel(kernel_calls: list[dict[str, Any]]) -> None:
    """ColBERT's documents share a window with queries that are filled up with hidden tokens."""
    query, key, value = (states(HEADS, seed).half() for seed in range(3))

    packed(query, key, value, BOTH_WAYS, torch.ones(sum(LENGTHS), dtype=torch.bool))

    assert len(kernel_calls) == 1


def test_the_releases_of_torch_are_known_by_their_signature() -> None:
    release = tuple(int(number) for number in torch.__version__.split(".")[:2])
    if release not in MINOR_RELEASES:
        pytest.skip(f"torch {torch.__version__} is not among those written down")
    ours, torchs = (signature(kernel).parameters for kernel in (KERNELS[MINOR_RELEASES[release]], varlen_attn))
    assert [(p.name, p.kind, p.default) for p in ours.values()] == [
        (p.name, p.kind, p.default) for p in torchs.values()
    ]


@pytest.mark.parametrize("key_heads", [1, 4])
def test_torchs_own_kernel_takes_what_it_is_asked(key_heads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the meta device, where it gives shapes alone."""
    monkeypatch.setattr("batchscore.runners.varlen._has_kernel", lambda device: True)
    query, key, value = (states(heads, 0).half().to("meta") for heads in (HEADS, key_heads, key_heads))
    on_meta = Sequences.of(np.array(LENGTHS), None, lambda column: torch.from_numpy(column).to("meta"))

    attended, _ = packed_attention(layer(is_causal=True), query, key, value, Rule(True, 3), sequences=on_meta)

    assert (attended.shape, attended.dtype) == ((1, sum(LENGTHS), HEADS, DIM), torch.float16)
