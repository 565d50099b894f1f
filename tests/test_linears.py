"""Linear layers in oneDNN's order, with activations in them, change no more than the last bits of a body's states."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    AutoModel,
    BertConfig,
    DistilBertConfig,
    GemmaConfig,
    LlamaConfig,
    ModernBertConfig,
    MPNetConfig,
    Phi3Config,
)

from batchscore.runners.linears import PackedLinear, pack_linears

CAPABILITY = torch.backends.cpu.get_cpu_capability()
pytestmark = pytest.mark.skipif(CAPABILITY not in ("AVX2", "AVX512"), reason="no x86 CPU with AVX2")
FUSES = CAPABILITY == "AVX512"

SIZES: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZES |= {"vocab_size": 50, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SHARED = {**SIZES, "num_key_value_heads": 2, "head_dim": 16}
# config, linear layers, how many of these get an activation
BODIES = [
    (BertConfig(**SIZES), 13, 2),  # one of them the pooler's, whose tanh oneDNN would not have here
    (MPNetConfig(**SIZES), 13, 2),
    (DistilBertConfig(dim=64, hidden_dim=96, n_layers=2, n_heads=4, vocab_size=50), 12, 2),
    (LlamaConfig(**SHARED), 14, 2),  # the gate's
    (GemmaConfig(**SHARED), 14, 2),
    (ModernBertConfig(**SIZES, cls_token_id=1, sep_token_id=2), 8, 0),  # gate and values are one layer
    (Phi3Config(**SIZES), 8, 0),
]


def body_of(config: Any, dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(0)
    return AutoModel.from_config(config).eval().to(dtype)


@torch.inference_mode()
def states(body: Any) -> Tensor:
    found: Tensor = body(input_ids=torch.arange(3, 12)[None]).last_hidden_state
    return found


@pytest.mark.parametrize(("config", "linears", "activated"), BODIES, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 0.02)], ids=str)
def test_all_linear_layers_are_packed_and_the_states_stay(
    config: Any, linears: int, activated: int, dtype: torch.dtype, bound: float
) -> None:
    body = body_of(config, dtype)
    before = states(body).float()

    pack_linears([body], lambda: states(body))

    packed = [module for module in body.modules() if isinstance(module, PackedLinear)]
    assert len(packed) == linears
    assert not [module for module in body.modules() if type(module) is nn.Linear]
    assert sum(module.activation[0] != "none" for module in packed) == (activated if FUSES else 0)
    assert (states(body).float() - before).norm() < bound * before.norm()


class Reads(nn.Module):
    """A layer of the kind that multiplies by a weight itself."""

    def __init__(self) -> None:
        super().__init__()
        self.read, self.called = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, numbers: Tensor) -> Tensor:
        result: Tensor = self.called(functional.linear(numbers, self.read.weight, self.read.bias))
        return result


@torch.inference_mode()
def test_a_layer_whose_weight_is_read_stays_as_it_was() -> None:
    module, numbers = Reads(), torch.randn(3, 8)
    before, weight = module(numbers), module.read.weight.clone()

    pack_linears([module], lambda: module(numbers))

    assert type(module.read) is nn.Linear
    assert torch.equal(module.read.weight, weight)
    assert isinstance(module.called, PackedLinear)
    assert torch.allclose(module(numbers), before, atol=1e-6)


class TwoUses(nn.Module):
    """What the linear layer gives is used with and without the activation."""

    def __init__(self) -> None:
        super().__init__()
        self.dense, self.act = nn.Linear(8, 8), nn.GELU()

    def forward(self, numbers: Tensor) -> Tensor:
        made = self.dense(numbers)
        result: Tensor = made + self.act(made)
        return result


class Elsewhere(TwoUses):
    """The activation is of what comes in."""

    def forward(self, numbers: Tensor) -> Tensor:
        result: Tensor = self.dense(self.act(numbers))
        return result


@torch.inference_mode()
@pytest.mark.parametrize("kind", [TwoUses, Elsewhere])
def test_an_activation_stays_where_it_is_not_of_a_linear_layer_alone(kind: type[TwoUses]) -> None:
    body, numbers = nn.Sequential(kind()), torch.randn(3, 8)
    before = body(numbers)

    pack_linears([body], lambda: body(numbers))

    assert isinstance(body[0].act, nn.GELU)
    assert torch.allclose(body(numbers), before, atol=1e-6)


def test_the_switch_leaves_a_body_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATCHSCORE_KERNELS", "off")
    body = nn.Sequential(nn.Linear(4, 4))

    pack_linears([body], lambda: body(torch.zeros(1, 4)))

    assert type(body[0]) is nn.Linear
