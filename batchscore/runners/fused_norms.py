"""RMS norms of a body in few kernels, on a GPU.

transformers writes one as a cast to float32, a square, a mean, a root and two products, each of which reads the whole
pack and writes it again: some 40 bytes a number in 16 bits, where 4 are enough. By bytes, the four norms of a layer in
a decoder of 0.6B parameters take as long as its matrix products.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm

from batchscore.runners.replacing import children, epsilon_of, made_up, output_of

# numbers of a row from which torch's kernel pays: it has a block of threads for each row, which idle in a short one
_FUSED_SIZE = 512


class FusedNorm(nn.Module):
    """weight * x / root mean square of x."""

    def __init__(self, weight: nn.Parameter, epsilon: float) -> None:
        super().__init__()
        self.weight, self.variance_epsilon = weight, epsilon

    def forward(self, x: Tensor) -> Tensor:
        """Same shape and dtype."""
        if len(self.weight) >= _FUSED_SIZE:
            return rms_norm(x, self.weight.shape, self.weight, self.variance_epsilon)
        return short_norm(x, self.weight, self.variance_epsilon)


def short_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """The same for short rows, such as heads, with the model's roundings; 10 bytes a number, as nothing is cast."""
    size = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
    scale = (size.square() / x.shape[-1] + epsilon).rsqrt()
    return torch.mul(x, scale, out=torch.empty_like(x)).mul_(weight)


@torch.inference_mode()
def fuse_norms(body: nn.Module) -> int:
    """Replace the norms that compute just this, by trial; returns how many. Gemma's, which weighs by 1 + w, stays."""
    replaced = 0
    for parent, name, module in children(body):
        epsilon = epsilon_of(module) if _has_only_a_weight(module) else None
        if epsilon is None:
            continue
        fused = FusedNorm(cast("nn.Parameter", module.weight), epsilon)
        if _agree(module, fused):
            setattr(parent, name, fused)
            replaced += 1
    return replaced


def _has_only_a_weight(module: Any) -> bool:
    is_norm = type(module).__name__.endswith("RMSNorm")
    return is_norm and [name for name, _ in module.named_parameters()] == ["weight"] and module.weight.dim() == 1


def _agree(module: nn.Module, fused: FusedNorm) -> bool:
    weight = fused.weight
    (numbers,) = made_up(weight.dtype, (4, len(weight)))
    expected, found = (output_of(norm, numbers.to(weight.device)) for norm in (module, fused))
    if expected is None or found is None or expected.dtype != found.dtype:
        return False
    # one rounding more or less
    return torch.allclose(found.float(), expected.float(), rtol=4 * torch.finfo(weight.dtype).eps, atol=1e-6)
