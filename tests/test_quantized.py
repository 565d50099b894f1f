"""--quantize int8: how far it moves a layer, a body and a score, what it leaves alone, and what a job says about it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModel, BertConfig, ModernBertConfig, Qwen3Config
from typer.testing import CliRunner, Result

import jobs
from batchscore import Scorer
from batchscore.cli.main import app
from batchscore.engine.quantization import kendall_tau
from batchscore.errors import UsageError
from batchscore.jobs.parts import encoding_fingerprint
from batchscore.runners import native, quantized
from batchscore.runners.linears import ACTIVATIONS, NO_ACTIVATION, pack_linears
from batchscore.runners.quantized import QuantizedLinear, quantize_linears, quantize_rows, rescale_rows
from checkpoints import pairs

Tiny = Callable[[str], str]
needs_int8 = pytest.mark.skipif(not quantized._cpu_multiplies_int8(), reason="no CPU with VNNI or AMX")
needs_library = pytest.mark.skipif(not native.kernels().quantize_rows, reason=f"kernels: {native.kernels().reason}")
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
activations = pytest.mark.parametrize("activation", [NO_ACTIVATION, *ACTIVATIONS], ids=lambda value: "-".join(value))


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def linear(inputs: int = 64, outputs: int = 48, dtype: torch.dtype = torch.float32) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(inputs, outputs).to(dtype)


# ---- a layer


@dtypes
@activations
@pytest.mark.parametrize("sizes", [(64, 48), (72, 40)], ids=str)  # the second are not whole vectors
@torch.inference_mode()
def test_a_layer_gives_nearly_what_it_gives_in_its_dtype(
    sizes: tuple[int, int], activation: tuple[str, str], dtype: torch.dtype
) -> None:
    layer, states = linear(*sizes), 2 * draw(3, 7, sizes[0])
    expected = ACTIVATIONS.get(activation, lambda numbers: numbers)(layer(states))

    found = QuantizedLinear(layer.to(dtype), activation)(states.to(dtype))

    assert found.dtype == dtype
    assert (found.float() - expected).norm() < 0.02 * expected.norm()


@dtypes
@torch.inference_mode()
def test_a_token_has_the_same_bits_whatever_its_neighbours_are(dtype: torch.dtype) -> None:
    layer, states = QuantizedLinear(linear(dtype=dtype), ("gelu", "none")), draw(9, 64, dtype=dtype)
    neighbours = 1000 * draw(30, 64, seed=1, dtype=dtype)

    together = layer(torch.cat([neighbours[:11], states, neighbours[11:]]))[11:20]

    assert torch.equal(together, layer(states))
    assert torch.equal(together, torch.cat([layer(row[None]) for row in states]))


@torch.inference_mode()
def test_what_is_not_finite_stays_so_and_zeros_give_the_bias() -> None:
    states = draw(4, 64)
    states[0, 3], states[1, 5], states[2] = torch.inf, torch.nan, 0
    layer = linear()

    for activation in [NO_ACTIVATION, *ACTIVATIONS]:
        found = QuantizedLinear(layer, activation)(states)
        assert torch.isfinite(found).all(1).tolist() == [False, False, True, True]
        assert not torch.isfinite(found[:2]).any()
    assert torch.equal(QuantizedLinear(layer)(states)[2], layer.bias)


@torch.inference_mode()
def test_few_rows_are_padded_where_a_product_takes_no_fewer() -> None:
    codes, weights = quantize_rows(draw(3, 64))[0], quantize_rows(draw(48, 64, seed=1))[0]

    found = quantized.multiply(codes, weights, least=17)

    assert torch.equal(found, codes.int() @ weights.int().t())


@needs_library
@dtypes
@activations
def test_our_functions_give_what_torch_gives(
    activation: tuple[str, str], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    if dtype not in native.kernels().quantize_rows:
        pytest.skip("no AVX512-BF16")
    states, scales, bias = 3 * draw(50, 64, dtype=dtype), draw(64).abs() / 100, draw(64)

    sums = torch.randint(-5000, 5000, (50, 64), dtype=torch.int32, generator=torch.Generator().manual_seed(1))
    inputs = sums, draw(50, seed=2).abs(), scales, bias, activation, dtype

    (codes, row_scales), rows = quantize_rows(states), rescale_rows(*inputs)
    monkeypatch.setattr(quantized, "kernels", lambda: native.Kernels("none"))
    (torchs_codes, torchs_scales), torchs_rows = quantize_rows(states), rescale_rows(*inputs)

    differences = (codes.int() - torchs_codes.int()).abs()  # halves may be rounded in two ways
    assert differences.max() <= 1
    assert differences.float().mean() < 0.02
    assert torch.allclose(row_scales, torchs_scales, rtol=1e-6)
    assert torch.allclose(rows.float(), torchs_rows.float(), rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-6)


# ---- a body

SIZES: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZES |= {"vocab_size": 50, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
BODIES = [
    (BertConfig(**SIZES), 13),
    (Qwen3Config(**SIZES, num_key_value_heads=2, head_dim=16), 14),
    (ModernBertConfig(**SIZES, cls_token_id=1, sep_token_id=2), 8),
]


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "plain"])
@pytest.mark.parametrize(("config", "linears"), BODIES, ids=lambda value: type(value).__name__)
def test_all_linear_layers_of_a_body_are_quantized_and_its_states_stay_near(
    config: Any, linears: int, packed: bool
) -> None:
    torch.manual_seed(0)
    body = AutoModel.from_config(config).eval()

    @torch.inference_mode()
    def states() -> Tensor:
        found: Tensor = body(input_ids=torch.arange(3, 12)[None]).last_hidden_state
        return found

    before = states()
    if packed:
        pack_linears([body], states)
    quantize_linears([body], states)

    assert sum(isinstance(module, QuantizedLinear) for module in body.modules()) == linears
    assert 0 < (states() - before).norm() < 0.04 * before.norm()


class Various(nn.Module):
    """Layers that stay as they are, and one that does not."""

    def __init__(self) -> None:
        super().__init__()
        self.read, self.called = nn.Linear(32, 32), nn.Linear(32, 32)
        self.experts, self.odd = nn.Linear(32, 8), nn.Linear(32, 33)

    def forward(self, numbers: Tensor) -> Tensor:
        read = functional.linear(numbers, self.read.weight)
        return torch.cat([self.called(read), self.experts(read), self.odd(read)], -1)


def test_layers_that_are_small_or_read_stay_as_they_were() -> None:
    module, numbers = Various(), draw(3, 32)

    quantize_linears([module], lambda: module(numbers))

    kinds = {name: type(child) for name, child in module.named_children()}
    assert kinds == {"read": nn.Linear, "called": QuantizedLinear, "experts": nn.Linear, "odd": nn.Linear}


# ---- scores


@needs_int8
@pytest.mark.parametrize("name", ["bert_ce", "qwen3_reranker", "modernbert_pairs_cls"])
def test_scores_stay_near_and_do_not_depend_on_neighbours(tiny: Tiny, name: str) -> None:
    queries, documents = pairs(24)
    documents[12] = "no pair is empty"
    options: dict[str, Any] = {"dtype": "float32", "cache_mb": 0}
    with Scorer(tiny(name), **options) as scorer:
        exact = scorer.score(queries, documents)
    with Scorer(tiny(name), quantize="int8", **options) as scorer:
        found = scorer.score(queries, documents)
        alone = [float(scorer.score(queries[row], documents[row])[0]) for row in range(24)]
        error = scorer.quantization_error(queries, documents)

    assert 1e-4 < np.abs(found - exact).max() < 0.3 * exact.std()
    # far below what one other rounding to eight bits would give
    assert np.abs(found - alone).max() < 1e-5
    assert error is not None
    assert (error.pairs, error.queries) == (24, 8)
    assert error.largest == pytest.approx(np.abs(found - exact).max(), abs=1e-5)
    assert error.mean == pytest.approx(np.abs(found - exact).mean(), abs=1e-5)
    assert error.kendall == pytest.approx(kendall_tau(found, exact), abs=0.01)


def test_kendalls_tau_counts_pairs_in_the_same_order() -> None:
    assert kendall_tau(np.array([1.0, 2, 3, 4]), np.array([1.0, 2, 4, 3])) == pytest.approx(4 / 6)
    assert kendall_tau(np.array([1.0, 2, 2]), np.array([1.0, 2, 3])) == pytest.approx(2 / np.sqrt(2 * 3))
    assert kendall_tau(np.array([1.0, 1]), np.array([1.0, 2])) is None


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("bert_ce", {"quantize": "int4"}, "quantize 'int4' is unknown; choices: none, int8"),
        pytest.param("static", {"quantize": "int8"}, "no linear layer", marks=needs_int8),
    ],
)
def test_what_has_no_effect_or_no_meaning_is_refused(
    tiny: Tiny, name: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        Scorer(tiny(name), device="cpu", **options)


def test_a_cpu_without_fast_products_of_eight_bits_is_refused(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    for probe in ("_is_vnni_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, probe, lambda: False)
    with pytest.raises(UsageError, match="--quantize int8 needs a CPU with AVX512-VNNI"):
        Scorer(tiny("bert_ce"), device="cpu", quantize="int8")


def test_a_cpu_whose_products_are_wrong_is_refused(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """As those of oneDNN's code for AVX2 are, which adds in 16 bits."""
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: True)
    monkeypatch.setattr(torch, "_int_mm", lambda a, b: (a.int() @ b.int()).clamp(max=32767))
    with pytest.raises(UsageError, match="--quantize int8 needs a CPU with AVX512-VNNI"):
        Scorer(tiny("bert_ce"), device="cpu", quantize="int8")


def test_a_model_that_is_not_quantized_has_no_error_of_it(tiny: Tiny) -> None:
    with (
        Scorer(tiny("bert_ce"), device="cpu", dtype="float32") as scorer,
        pytest.raises(UsageError, match="the model is not quantized"),
    ):
        scorer.quantization_error("a", "b")


# ---- jobs


def run(command: str, model: str, *options: str) -> Result:
    result = CliRunner().invoke(
        app, [command, "--model", model, "--dtype", "float32", "--in", "in.jsonl", "--unit-rows", "40", *options]
    )
    assert result.exit_code in (0, 8), result.output
    return result


@needs_int8
@pytest.mark.usefixtures("here")
def test_a_job_says_what_it_does_to_scores_and_resumes_like_any_other(tiny: Tiny) -> None:
    jobs.write_rows("in.jsonl", jobs.random_rows(100))
    result = run("score", tiny("bert_ce"), "--out", "whole/", "--quantize", "int8")
    record = json.loads(Path("whole/_run.json").read_text("utf-8"))["counts"]["quantization"]

    run("score", tiny("bert_ce"), "--out", "cut/", "--quantize", "int8")
    os.remove("cut/part-00001.parquet")
    resumed = run("score", tiny("bert_ce"), "--out", "cut/", "--quantize", "int8")
    other = run("score", tiny("bert_ce"), "--out", "cut/")

    line = f"scores differ from float32 by {record['mean']:.2g} on average, {record['largest']:.2g} at most"
    assert result.stderr.count(line) == 2  # before the work, and in the summary
    assert "top documents change (40 pairs)" in result.stderr
    assert (record["quantize"], record["pairs"]) == ("int8", 40)
    assert jobs.contents("cut") == jobs.contents("whole")
    assert line in resumed.stderr
    assert 'quantize was "int8" and is null' in other.stderr


@needs_int8
@pytest.mark.usefixtures("here")
def test_a_resumed_job_measures_nothing_again(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs.write_rows("in.jsonl", jobs.random_rows(60))
    options = "--out", "out/", "--quantize", "int8", "--text-column", "document"
    first = run("encode", tiny("bert_mean"), *options)
    os.remove("out/part-00001.parquet")
    monkeypatch.setattr("batchscore.jobs.quantization.measure", None)
    second = run("encode", tiny("bert_mean"), *options)

    line = next(line for line in first.stderr.splitlines() if line.startswith("int8"))
    assert line.endswith("at most (1 - cosine; 40 texts)")
    assert second.stderr.count(line) == 2
    vectors = np.stack(pq.read_table("out")["vector"].to_pylist())
    assert vectors.shape == (60, 32)


def test_encodings_of_a_quantized_model_are_others() -> None:
    job = {"model": {}, "files": [], "dtype": "float32"}

    assert encoding_fingerprint(job, "query") == {"side": "query", "model": {}, "files": [], "dtype": "float32"}
    assert encoding_fingerprint({**job, "quantize": "int8"}, "query")["quantize"] == "int8"
