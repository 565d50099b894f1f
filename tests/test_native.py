"""Our own functions for CPUs give what torch's give, and are left out where they cannot be built."""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers.models.bert.modeling_bert import BertConfig, BertOutput
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from batchscore import Scorer
from batchscore.runners import dense, native, native_attention
from batchscore.runners.masks import Rule
from batchscore.runners.norms import AddNorm, NativeNorm, replace_norms
from batchscore.runners.sequences import Sequences
from checkpoints import build, pairs

FUNCTIONS = native.kernels().attend
needs_library = pytest.mark.skipif(not FUNCTIONS, reason=f"kernels: {native.kernels().reason}")
BOUNDS = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
dtypes = pytest.mark.parametrize("dtype", list(FUNCTIONS), ids=str)


@pytest.fixture
def unknown() -> Iterator[None]:
    """As in a new process."""
    native.kernels.cache_clear()
    native_attention._functions.cache_clear()
    yield
    native.kernels.cache_clear()
    native_attention._functions.cache_clear()


def draw(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def sequences(lengths: list[int]) -> Sequences:
    return Sequences.of(np.array(lengths), None, torch.from_numpy)


def attended(states: tuple[Tensor, ...], lengths: list[int], rule: Rule) -> Tensor:
    query, key, value = states
    placed = sequences(lengths)
    assert native_attention.fits_native(query, key, value, rule, placed)
    return native_attention.native_attention(query, key, value, rule, placed, from_first=False)


def by_torch(states: tuple[Tensor, ...], lengths: list[int], rule: Rule) -> Tensor:
    """[tokens, heads, dim] in float32, one sequence at a time."""
    heads, outputs = states[0].shape[1], []
    for parts in zip(*(part.float().split(lengths) for part in states), strict=True):
        query, key, value = (part.repeat_interleave(heads // part.shape[1], 1).transpose(0, 1) for part in parts)
        mask = rule.mask(query.shape[1], query.device, causality=True)
        output = scaled_dot_product_attention(query, key, value, mask, scale=rule.scaling)
        outputs.append(output.transpose(0, 1))
    return torch.cat(outputs)


@needs_library
@dtypes
@pytest.mark.parametrize("dim", [2, 24, 32, 80, 128])
@pytest.mark.parametrize("rule", [Rule(), Rule(causal=True), Rule(window=5), Rule(True, 7), Rule(scaling=0.1)], ids=str)
def test_kernel_gives_what_torch_gives_at_every_length_around_a_vector(
    dim: int, rule: Rule, dtype: torch.dtype
) -> None:
    lengths = [130, 65, 33, 32, 31, 18, 17, 16, 15, 7, 6, 5, 1]
    states = tuple(draw(sum(lengths), heads, dim, seed=seed, dtype=dtype) for seed, heads in enumerate((4, 2, 2)))

    found = attended(states, lengths, rule)

    assert (found.float() - by_torch(states, lengths, rule)).abs().max() < BOUNDS[dtype]


@needs_library
@dtypes
def test_kernel_reads_slices_of_one_product(dtype: torch.dtype) -> None:
    """Queries, keys and values of one linear layer lie side by side."""
    lengths = [20, 20, 3]
    query, key, value = draw(sum(lengths), 3, 2, 32, seed=0, dtype=dtype).unbind(1)

    found = attended((query, key, value), lengths, Rule())

    assert torch.equal(found, attended((query.clone(), key.clone(), value.clone()), lengths, Rule()))


@needs_library
@dtypes
def test_a_sequence_has_the_same_bits_alone_and_in_a_pack(dtype: torch.dtype) -> None:
    lengths = [40, 23, 23, 9]
    states = tuple(draw(sum(lengths), 2, 32, seed=seed, dtype=dtype) for seed in range(3))

    together = attended(states, lengths, Rule()).split(lengths)
    alone = [attended(part, [len(part[0])], Rule()) for part in zip(*(s.split(lengths) for s in states), strict=True)]

    assert all(torch.equal(one, other) for one, other in zip(together, alone, strict=True))


@needs_library
@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (lambda states: states.double(), Rule()),
        (lambda states: states, Rule(softcap=30.0)),
        (lambda states: states.transpose(1, 2).contiguous().transpose(1, 2), Rule()),
        (lambda states: states[:, :, :7], Rule()),
    ],
    ids=["float64", "softcap", "components apart", "odd size"],
)
def test_torch_does_what_the_kernel_cannot(change: Any, rule: Rule) -> None:
    states = change(draw(10, 2, 8, seed=0))

    assert not native_attention.fits_native(states, states, states, rule, sequences([10]))


@needs_library
@pytest.mark.parametrize(
    ("dtype", "tiles", "fits"), [("bfloat16", True, False), ("bfloat16", False, True), ("float32", True, True)]
)
def test_long_sequences_stay_with_torch_where_it_has_tiles(
    dtype: str, tiles: bool, fits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native_attention, "_has_tiles", lambda: tiles)
    monkeypatch.setattr(native_attention, "_functions", lambda: dict.fromkeys([torch.float32, torch.bfloat16]))
    states = draw(1, 1, 64, seed=0, dtype=getattr(torch, dtype)).expand(600, 1, 64)

    assert native_attention.fits_native(states, states, states, Rule(), sequences([600])) is fits


@pytest.mark.parametrize("rule", [Rule(), Rule(causal=True), Rule(window=5), Rule(True, 7)], ids=str)
@pytest.mark.parametrize("hides", [False, True])
def test_torch_gets_whole_vectors_of_keys_in_bfloat16(rule: Rule, hides: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def recorded(query: Tensor, key: Tensor, value: Tensor, *others: Any, **keywords: Any) -> Tensor:
        asked.append(key.shape[2])
        return scaled_dot_product_attention(query, key, value, *others, **keywords)

    monkeypatch.setattr(dense, "scaled_dot_product_attention", recorded)
    lengths = [48, 47, 47, 33, 20]
    seen = np.arange(sum(lengths)) % 3 > 0 if hides else None
    placed = Sequences.of(np.array(lengths), seen, torch.from_numpy)
    states = [draw(sum(lengths), 2, 16, seed=seed, dtype=torch.bfloat16) for seed in range(3)]

    found = dense.run_attention(*states, rule, placed, from_first=False)
    padded = asked.copy()
    expected = dense.run_attention(*(part.float() for part in states), rule, placed, from_first=False)

    assert padded == [48, 48, 48, 20]
    defined = ~expected.isnan()  # a token that sees none but hidden ones
    assert (found.float() - expected)[defined].abs().max() < BOUNDS[torch.bfloat16]


# ---- norms


@needs_library
@dtypes
@pytest.mark.parametrize("kind", [nn.LayerNorm, LlamaRMSNorm, GemmaRMSNorm])
def test_norms_are_replaced_and_stay_what_they_were(kind: Any, dtype: torch.dtype) -> None:
    body = nn.ModuleDict({"norm": kind(48).to(dtype)})
    nn.init.normal_(body["norm"].weight)
    before, states = body["norm"], draw(2, 5, 48, seed=0, dtype=dtype)

    replace_norms([body])

    assert isinstance(body["norm"], NativeNorm)
    assert (body["norm"](states).float() - before(states).float()).abs().max() < 4 * BOUNDS[dtype]


@needs_library
def test_a_norm_of_another_kind_stays() -> None:
    class HalfRMSNorm(LlamaRMSNorm):
        def forward(self, hidden_states: Tensor) -> Tensor:
            return super().forward(hidden_states) / 2

    body = nn.ModuleDict(
        {"halved": HalfRMSNorm(32), "narrow": nn.LayerNorm(20), "plain": nn.LayerNorm(32, elementwise_affine=False)}
    )

    replace_norms([body])

    assert [type(module) for module in body.values()] == [HalfRMSNorm, nn.LayerNorm, nn.LayerNorm]


@needs_library
def test_the_residual_is_added_in_the_norm() -> None:
    config = BertConfig(hidden_size=32, intermediate_size=64)
    body = nn.ModuleDict({"output": BertOutput(config).eval()})
    before, states = body["output"], (draw(1, 7, 64, seed=0), draw(1, 7, 32, seed=1))
    expected = before(*states)

    replace_norms([body])

    assert isinstance(body["output"], AddNorm)
    assert torch.allclose(body["output"](*states), expected, atol=2e-6)


# ---- how the library comes about


@needs_library
def test_the_library_is_built_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compiler = native._compiler()

    first = native._built(compiler)
    made = first.stat().st_mtime_ns

    assert native._built(compiler) == first
    assert first.stat().st_mtime_ns == made
    assert os.listdir(tmp_path / "batchscore") == [first.name]
    ctypes.CDLL(str(first))


@pytest.mark.usefixtures("unknown")
@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"PATH": "nowhere", "CXX": ""}, "none: there is no C.. compiler"),
        ({"CXX": "false"}, "none: .*non-zero exit status"),
        ({"BATCHSCORE_KERNELS": "off"}, "BATCHSCORE_KERNELS=off"),
    ],
)
def test_without_the_library_torch_runs_and_the_scores_are_the_same(
    environment: dict[str, str], reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = build("bert_pairs", tmp_path)
    with Scorer(str(folder), dtype="float32") as scorer:
        expected = scorer.score(*pairs(12))
    native.kernels.cache_clear()
    native_attention._functions.cache_clear()
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    with Scorer(str(folder), dtype="float32") as scorer:
        found = scorer.score(*pairs(12))

    assert not native.kernels().attend
    assert re.search(reason, native.kernels().reason)
    assert np.abs(found - expected).max() < 1e-6


@pytest.mark.usefixtures("unknown")
@needs_library
def test_a_library_that_gives_other_numbers_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def zeros(_query: Any, _key: Any, _value: Any, out: ctypes.c_void_p, _shape: Any) -> None:
        ctypes.memset(out, 0, 2 * 48 * 54)  # bytes; what lies there before may be the answer itself

    wrong = dict.fromkeys(FUNCTIONS, zeros)
    monkeypatch.setattr(native_attention, "kernels", lambda: native.Kernels("", wrong))

    assert native_attention._functions() == {}
