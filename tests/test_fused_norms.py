"""A norm as one kernel gives the numbers of the model's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from batchscore import Scorer
from batchscore.runners import fused_norms
from test_rows import DOCUMENTS, QUERIES
from threads import one_thread, plain_bodies

Tiny = Callable[[str], str]


@pytest.mark.parametrize("size", [1, 1_000], ids=["one kernel", "three"])
@pytest.mark.parametrize(("name", "in_a_layer"), [("llama_pairs", 2), ("qwen3_reranker", 4), ("gemma2_pairs", 0)])
def test_fused_norms_leave_the_scores(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, name: str, in_a_layer: int, size: int
) -> None:
    """Gemma's weighs by 1 + w, and stays as it is."""
    monkeypatch.setattr(fused_norms, "_FUSED_SIZE", size)
    options: dict[str, Any] = {"chat_template": "basic"} if name == "gemma2_pairs" else {}
    options |= {"config": "qwen3-reranker"} if name == "qwen3_reranker" else {}
    with (
        one_thread(),
        plain_bodies(),
        Scorer(tiny(name), dtype="float32", cache_mb=0, use_activation=False, **options) as scorer,
    ):
        expected = scorer.score(QUERIES, DOCUMENTS)
        body: Any = scorer.batcher._runner.model.bodies[0]  # type: ignore[attr-defined]
        perturb(body)
        scores = scorer.score(QUERIES, DOCUMENTS)
        replaced = fused_norms.fuse_norms(body)
        fused = scorer.score(QUERIES, DOCUMENTS)

    assert replaced == (in_a_layer and in_a_layer * body.config.num_hidden_layers + 1)
    np.testing.assert_allclose(fused, scores, rtol=1e-4, atol=1e-5)
    assert np.abs(scores - expected).max() > 1e-3


def perturb(body: nn.Module) -> None:
    """Weights that are not all one, as they are before a training."""
    with torch.no_grad():
        for name, weight in body.named_parameters():
            if weight.dim() == 1 and "norm" in name:
                weight.add_(torch.linspace(-0.5, 0.5, len(weight)))


class PlainRMSNorm(nn.Module):
    def __init__(self, size: int = 600) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(size)), 1e-6

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * x / (x.square().mean(-1, keepdim=True) + self.eps).sqrt()


class OddRMSNorm(PlainRMSNorm):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight


def test_norms_that_compute_something_else_stay() -> None:
    body = nn.ModuleList([OddRMSNorm(), PlainRMSNorm(), nn.LayerNorm(600)])

    assert fused_norms.fuse_norms(body) == 1
    assert [type(module).__name__ for module in body] == ["OddRMSNorm", "FusedNorm", "LayerNorm"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_norm_of_heads_has_the_roundings_of_the_model(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(500, 4, 24, generator=generator).to(dtype)
    module = Qwen3RMSNorm(24).to(dtype)
    module.weight.data = torch.rand(24, generator=generator).to(dtype)
    with torch.inference_mode():
        expected, found = module(x), fused_norms.short_norm(x, module.weight, module.variance_epsilon)

    assert found.dtype == dtype
    assert (found != expected).float().mean() < 0.01  # where float32's last bit decides
    torch.testing.assert_close(found, expected, rtol=2 * torch.finfo(dtype).eps, atol=0)
