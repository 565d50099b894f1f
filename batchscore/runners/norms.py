"""Norms of a body on a CPU by our own kernel, which reads their input once, and adds the residual where a module does.

A pass over a loaded body, by structure, like `linears.py`: what a module gives is compared before it is replaced.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from batchscore.runners.native import VECTOR, Function, kernels, pointer
from batchscore.runners.replacing import are_close, children, epsilon_of, made_up, output_of


class NativeNorm(nn.Module):
    """A LayerNorm, or an RMSNorm, whose mean stays."""

    def __init__(self, norm: nn.Module, scale: Tensor, epsilon: float, function: Function) -> None:
        super().__init__()
        bias = getattr(norm, "bias", None)
        self.weight: Any = norm.weight  # some models ask for its dtype
        self.is_centered = isinstance(norm, nn.LayerNorm)
        self._scale, self._bias = scale.float().contiguous(), None if bias is None else bias.detach().float()
        self._epsilon, self._function = epsilon, function

    def forward(self, states: Tensor, residual: Tensor | None = None) -> Tensor:
        """[..., dim] of states [..., dim], to which a residual of the same shape is added first."""
        states = states.contiguous()
        output, width = torch.empty_like(states), states.shape[-1]
        inputs = map(
            pointer, (states, None if residual is None else residual.contiguous(), self._scale, self._bias, output)
        )
        rows = ctypes.c_int64(states.numel() // width)
        epsilon = ctypes.c_float(self._epsilon)
        self._function(*inputs, rows, ctypes.c_int64(width), ctypes.c_int32(self.is_centered), epsilon)
        return output


class AddNorm(nn.Module):
    """What ends a BERT layer's attention and its feed-forward part: a linear layer, the residual, a norm."""

    def __init__(self, dense: nn.Module, norm: NativeNorm) -> None:
        super().__init__()
        self.dense, self.LayerNorm = dense, norm

    def forward(self, hidden_states: Tensor, input_tensor: Tensor) -> Tensor:
        """[..., dim], of what the linear layer reads and of the residual."""
        result: Tensor = self.LayerNorm(self.dense(hidden_states), input_tensor)
        return result


@torch.inference_mode()
def replace_norms(bodies: Iterable[nn.Module]) -> None:
    """Replace the norms of bodies on a CPU by our own where the library is."""
    for body in bodies:
        for parent, name, child in children(body):
            if type(child) is nn.LayerNorm or type(child).__name__.endswith("RMSNorm"):
                setattr(parent, name, _native(child) or child)
        for parent, name, child in children(body):
            if {part for part, _ in child.named_children()} == {"dense", "LayerNorm", "dropout"}:
                setattr(parent, name, _joined(child))


def _native(norm: Any) -> NativeNorm | None:
    """The same norm by our own function; None if it has other numbers, or there is no function for it."""
    weight, epsilon = getattr(norm, "weight", None), epsilon_of(norm)
    if not isinstance(weight, Tensor) or weight.dim() != 1 or len(weight) % VECTOR or epsilon is None:
        return None
    function = kernels().normalize.get(weight.dtype)
    if function is None:
        return None
    (states,) = made_up(weight.dtype, (3, len(weight)))
    for scale in (weight.detach(), 1 + weight.detach().float()):  # Gemma's are stored as what they are above 1
        native = NativeNorm(norm, scale, epsilon, function)
        if are_close(native(states), output_of(norm, states), _tolerance(weight.dtype)):
            return native
    return None


def _joined(child: Any) -> nn.Module:
    """A module with its residual added in its norm; or as it is, if that gives other numbers."""
    norm = child.LayerNorm
    if not isinstance(norm, NativeNorm):
        return child  # type: ignore[no-any-return]
    dtype, joined = norm.weight.dtype, AddNorm(child.dense, norm)
    states = made_up(dtype, (3, child.dense.in_features), (3, len(norm.weight)))
    return joined if are_close(joined(*states), output_of(child, *states), _tolerance(dtype)) else child


def _tolerance(dtype: torch.dtype) -> float:
    return 1e-5 if dtype == torch.float32 else 0.02
