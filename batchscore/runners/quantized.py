"""Linear layers of a body in eight bits: twice the products of bfloat16 on a CPU with VNNI or AMX, and on a GPU.

Weights have a scale for each output; states have one for each token, made when they come, so that a token's numbers do
not depend on the others of its pack. Sums of products are exact integers: they are the same on all hardware. All else
(embeddings, attention, norms, heads) stays as it is.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from batchscore.errors import UsageError
from batchscore.runners.linears import ACTIVATIONS, NO_ACTIVATION, Activation, PackedLinear
from batchscore.runners.native import VECTOR, kernels, pointer
from batchscore.runners.replacing import children

Quantize = Literal["none", "int8"]

_LARGEST = 127
_LEAST = 1e-30  # a row without a larger number is all zeros
_SMALLEST = 32  # inputs or outputs of a layer; one that has fewer takes no time, and may choose among experts
_CUDA_ROWS, _CUDA_MULTIPLE = 17, 8  # what torch's product asks for on CUDA
_NUMBERS = {activation: number for number, activation in enumerate((NO_ACTIVATION, *ACTIVATIONS))}  # in kernels.cpp


class QuantizedLinear(nn.Module):
    """A linear layer, with its activation, that multiplies in eight bits."""

    def __init__(self, linear: nn.Linear, activation: Activation = NO_ACTIVATION) -> None:
        super().__init__()
        self.in_features, self.out_features, self.bias = linear.in_features, linear.out_features, linear.bias
        self.activation, self._dtype = activation, linear.weight.dtype
        self.is_read = False  # the model looks at the weight
        self._codes, self._scales = quantize_rows(linear.weight.detach().float())
        self._addends = None if linear.bias is None else linear.bias.detach().float()

    @property
    def weight(self) -> Tensor:
        """[out_features, in_features], rounded."""
        self.is_read = True
        return (self._codes * self._scales[:, None]).to(self._dtype)

    def forward(self, states: Tensor) -> Tensor:
        """[..., out_features] of [..., in_features]."""
        codes, scales = quantize_rows(states.reshape(-1, self.in_features))
        sums = multiply(codes, self._codes, least=_CUDA_ROWS if codes.is_cuda else 0)
        rows = rescale_rows(sums, scales, self._scales, self._addends, self.activation, states.dtype)
        return rows.view(*states.shape[:-1], self.out_features)


def quantize_rows(states: Tensor) -> tuple[Tensor, Tensor]:
    """(int8 [rows, width], float32 [rows]) of [rows, width]: numbers from -127 to 127, and what multiplies them."""
    states = states.contiguous()
    function = kernels().quantize_rows.get(states.dtype)
    if function is None or states.shape[1] % VECTOR or not states.is_cpu:
        numbers = states.float()
        size = numbers.abs().amax(1, keepdim=True)
        codes = (numbers * torch.where(size > _LEAST, _LARGEST / size, 0)).round().nan_to_num(0, 0, 0)
        return codes.to(torch.int8), size[:, 0] / _LARGEST + (numbers - numbers).sum(1)  # what is not finite stays so
    codes, scales = torch.empty_like(states, dtype=torch.int8), torch.empty(len(states))
    function(*map(pointer, (states, codes, scales)), *map(ctypes.c_int64, states.shape))
    return codes, scales


def multiply(codes: Tensor, weights: Tensor, *, least: int = 0) -> Tensor:
    """int32 [rows, out], of int8 [rows, in] and int8 [out, in]; fewer rows than `least` are padded meanwhile."""
    missing = max(0, least - len(codes))
    padded = functional.pad(codes, (0, 0, 0, missing)) if missing else codes
    return torch._int_mm(padded, weights.t())[: len(codes)]


def rescale_rows(
    sums: Tensor, row_scales: Tensor, scales: Tensor, bias: Tensor | None, activation: Activation, dtype: torch.dtype
) -> Tensor:
    """[rows, width] of the dtype: activation(sums * row_scales * scales + bias).

    Args:
        sums: int32 [rows, width].
        row_scales: float32 [rows].
        scales: float32 [width].
        bias: float32 [width].
        activation: applied to float32.
        dtype: of the result.
    """
    function = kernels().rescale_rows.get(dtype)
    if function is None or sums.shape[1] % VECTOR or not sums.is_cpu:
        numbers = sums * (row_scales[:, None] * scales)
        numbers = numbers if bias is None else numbers + bias
        return (ACTIVATIONS[activation](numbers) if activation in ACTIVATIONS else numbers).to(dtype)
    out = torch.empty_like(sums, dtype=dtype)
    inputs = map(pointer, (sums.contiguous(), row_scales, scales, bias, out))
    function(*inputs, *map(ctypes.c_int64, sums.shape), ctypes.c_int32(_NUMBERS[activation]))
    return out


@torch.inference_mode()
def quantize_linears(bodies: Iterable[nn.Module], forward: Callable[[], object]) -> None:
    """Replace the linear layers of bodies, and those that `pack_linears` put in their place.

    Args:
        bodies: on a CPU or a GPU.
        forward: runs them on a few tokens; layers whose weight they read themselves stay as they were.

    Raises:
        UsageError: there is no such layer.
    """
    replaced = [
        (parent, name, child, _quantized(child))
        for body in bodies
        for parent, name, child in children(body)
        if isinstance(child, nn.Linear | PackedLinear) and _is_eligible(child)
    ]
    for parent, name, _, quantized in replaced:
        setattr(parent, name, quantized)
    forward()
    for parent, name, child, quantized in replaced:
        if quantized.is_read:
            setattr(parent, name, child)
    if all(quantized.is_read for *_, quantized in replaced):
        raise UsageError(
            f"--quantize int8 has no effect: the model has no linear layer of {_SMALLEST} inputs and outputs or more",
            hint="leave it out",
        )


def _is_eligible(layer: nn.Linear | PackedLinear) -> bool:
    """Whether a layer is of exactly these kinds and neither small nor of a size that a GPU cannot take."""
    sizes = layer.in_features, layer.out_features
    return (
        type(layer) in (nn.Linear, PackedLinear)
        and min(sizes) >= _SMALLEST
        and not any(s % _CUDA_MULTIPLE for s in sizes)
    )


def _quantized(layer: nn.Linear | PackedLinear) -> QuantizedLinear:
    if isinstance(layer, PackedLinear):
        return QuantizedLinear(layer.unpacked(), layer.activation)
    return QuantizedLinear(layer)


def require_int8(device: str) -> None:
    """Raise UsageError unless the device multiplies eight bits fast and without loss."""
    if device == "cpu":
        is_able, needed = _cpu_multiplies_int8(), "a CPU with AVX512-VNNI, AVX-VNNI or AMX"
    else:
        is_able, needed = torch.cuda.get_device_capability(device) >= (7, 5), "a GPU from sm75"
    if not is_able:
        raise UsageError(
            f"--quantize int8 needs {needed}, which this machine's {device} is not",
            hint="leave it out; --dtype auto is the fastest exact choice here",
        )


def _cpu_multiplies_int8() -> bool:
    """Whether the CPU has instructions for it, and products come out right: older ones saturate 16 bits on the way."""
    probes = (getattr(torch.cpu, name, None) for name in ("_is_vnni_supported", "_is_amx_tile_supported"))
    if not any(probe() for probe in probes if probe is not None):
        return False
    most = torch.full((32, 64), _LARGEST, dtype=torch.int8)
    return bool((torch._int_mm(most, most.t()[:, :32]) == 64 * _LARGEST**2).all())
