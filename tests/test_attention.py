"""Attention over a pack without padding is attention inside each sequence, by every rule a model may have."""

from __future__ import annotations

import functools
from collections.abc import Callable
from inspect import signature
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn

from batchscore.runners.attention import Sequences, attend_from_first, packed_attention
from kernels import KERNELS, MINOR_RELEASES

LENGTHS = [9, 5, 5, 5, 2, 1]
HEADS, DIM = 4, 8
SAME = 1e-6

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
    monkeypatch.setattr("batchscore.runners.attention._has_kernel", lambda device: True)
    return calls


@causal
@pytest.mark.parametrize("key_heads", [1, 2, 4])
@pytest.mark.parametrize("window", [None, 1, 2, 5, 9, 100])
@pytest.mark.parametrize("scaling", [None, 0.3])
def test_the_kernel_is_asked_for_attention_by_the_same_rule(
    causal: bool, key_heads: int, window: int | None, scaling: float | None, kernel_calls: list[dict[str, Any]]
) -> None:
    query, key, value = (states(heads, n).half() for n, heads in enumerate((HEADS, key_heads, key_heads)))

    found = packed(query, key, value, layer(is_causal=causal), sliding_window=window, scaling=scaling)

    rule = {"causal": causal, "window": window, "scaling": scaling or DIM**-0.5}
    expected = one_by_one(query.float(), key.float(), value.float(), **rule)
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=2e-3)  # outputs below 4 are 2e-3 apart in float16
    assert len(kernel_calls) == 1


def test_the_kernel_is_asked_for_first_tokens_alone(kernel_calls: list[dict[str, Any]]) -> None:
    query, key, value = (states(HEADS, seed)[0].transpose(0, 1).half() for seed in range(3))
    first = torch.tensor([0, 9, 14, 19, 24, 26])

    found = attend_from_first(query[first], key, value, None, sequences())

    expected = one_by_one(*(part.float().transpose(0, 1)[None] for part in (query, key, value)))[first]
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=2e-3)
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

    assert packed(query, key, value, layer(is_causal=False), **rule).isfinite().all()

    assert kernel_calls == []


def test_a_pack_that_hides_no_token_is_for_the_kernel(kernel_calls: list[dict[str, Any]]) -> None:
    """ColBERT's documents share a window with queries that are filled up with hidden tokens."""
    query, key, value = (states(HEADS, seed).half() for seed in range(3))

    packed(query, key, value, layer(is_causal=False), torch.ones(sum(LENGTHS), dtype=torch.bool))

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
    monkeypatch.setattr("batchscore.runners.attention._has_kernel", lambda device: True)
    query, key, value = (states(heads, 0).half().to("meta") for heads in (HEADS, key_heads, key_heads))
    on_meta = Sequences.of(np.array(LENGTHS), None, lambda column: torch.from_numpy(column).to("meta"))

    found, _ = packed_attention(layer(is_causal=True), query, key, value, None, sequences=on_meta, sliding_window=3)

    assert (found.shape, found.dtype) == ((1, sum(LENGTHS), HEADS, DIM), torch.float16)
