"""RMS norms of a body in few kernels, on a GPU.

transformers writes one as a cast to float32, a square, a mean, a root and two products, each of which reads the whole
pack and writes it again: some 40 bytes a number in 16 bits, where 4 are enough. By bytes, the four norms of a layer in
a decoder of 0.6B parameters take as long as its matrix products.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm

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


def fuse_norms(body: nn.Module) -> int:
    """Replace the norms that compute just this, by trial; returns how many. Gemma's, which weighs by 1 + w, stays."""
    replaced = 0
    for name, module in list(body.named_modules()):
        epsilon = _epsilon(module)
        if epsilon is None:
            continue
        fused = FusedNorm(module.weight, epsilon)
        if _agree(module, fused):
            body.set_submodule(name, fused)
            replaced += 1
    return replaced


def _epsilon(module: Any) -> float | None:
    """Of a norm with nothing but a weight; None of anything else."""
    parts = [name for name, _ in module.named_parameters()] if type(module).__name__.endswith("RMSNorm") else []
    if parts != ["weight"] or module.weight.dim() != 1:
        return None
    epsilon = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    return epsilon if isinstance(epsilon, float) else None


@torch.inference_mode()
def _agree(module: nn.Module, fused: nn.Module) -> bool:
    weight: Any = fused.weight
    x = torch.randn(4, len(weight), generator=torch.Generator().manual_seed(0)).to(weight)
    try:
        outputs = [norm(x) for norm in (module, fused)]
    except (RuntimeError, TypeError, ValueError):  # it reads something else
        return False
    if not isinstance(outputs[0], Tensor) or outputs[0].dtype != outputs[1].dtype:
        return False
    expected, found = (output.float() for output in outputs)
    # one rounding more or less
    return torch.allclose(found, expected, rtol=4 * torch.finfo(weight.dtype).eps, atol=1e-6)
