"""What the passes that put quicker layers in the place of a body's have in common: the walk, and the trial."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def children(body: nn.Module) -> list[tuple[nn.Module, str, nn.Module]]:
    """(parent, name, child) of all modules below a body, as they are before the first is replaced."""
    return [(parent, name, child) for parent in body.modules() for name, child in parent.named_children()]


def epsilon_of(norm: Any) -> float | None:
    """What a norm adds to the mean square, under either of its names; None: it has neither."""
    named = (getattr(norm, name, None) for name in ("variance_epsilon", "eps"))
    return next((epsilon for epsilon in named if isinstance(epsilon, float)), None)


def made_up(dtype: torch.dtype, *shapes: tuple[int, ...]) -> list[Tensor]:
    """Normally distributed numbers for a trial, always the same."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def output_of(module: nn.Module, *states: Tensor) -> Tensor | None:
    """What a module makes of states; None if it takes something else, or gives anything but one tensor."""
    try:
        output = module(*states)
    except Exception:  # a module that takes anything else may raise anything
        return None
    return output if isinstance(output, Tensor) else None


def are_close(found: Tensor | None, expected: Tensor | None, tolerance: float) -> bool:
    """Whether two outputs differ by no more than this share of the expected one's norm."""
    if found is None or expected is None or found.shape != expected.shape:
        return False
    error, size = (part.float().norm() for part in (found - expected, expected))
    return bool(error <= tolerance * size)
