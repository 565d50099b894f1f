"""What a model says in its mask, as a rule by which attention without padding can run; or it is refused.

transformers describes a mask by a function of positions, made anew for each forward. Such a function gives the same
answers whenever its code and the numbers it holds are the same, so each is compared with the known rules once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import CodeType, FunctionType
from typing import Any

import torch
from torch import Tensor
from transformers import masking_utils


class UnknownAttentionError(RuntimeError):
    """A model asks for attention that a pack cannot have."""


@dataclass(frozen=True)
class Rule:
    """Which keys a query sees inside its own sequence, and what happens to the products."""

    causal: bool = False
    window: int | None = None  # sees keys less than this far away
    softcap: float | None = None  # products p become softcap * tanh(p / softcap)
    scaling: float | None = None  # factor on the products; None is dim ** -0.5

    def __getitem__(self, index: tuple[slice, ...]) -> Rule:
        """All of it, which Gemma 4 asks for as of a tensor; any other part is an UnknownAttentionError."""
        if any(part not in (slice(None), slice(0, None)) for part in index):
            raise UnknownAttentionError("a part of a mask")
        return self

    def mask(self, length: int, device: torch.device, *, causality: bool) -> Tensor | None:
        """bool [length, length], the allowed pairs; None if all are, or, without `causality`, all earlier ones."""
        windowed = self.window is not None and self.window < length
        if not windowed and not (self.causal and causality):
            return None
        positions = torch.arange(length, device=device)
        return self.allows(positions[:, None], positions)

    def allows(self, query: Tensor, key: Tensor) -> Tensor:
        """bool, whether a query at these positions sees a key at those, int tensors that broadcast."""
        behind = query - key
        near = torch.ones_like(behind, dtype=torch.bool) if self.window is None else behind.abs() < self.window
        return near & (behind >= 0) if self.causal else near


def packed_mask(*, mask_function: Callable[..., Tensor], attention_mask: Tensor | None = None, **_: Any) -> Rule:
    """What a model gets as its mask on a flat batch, in the signature transformers calls.

    Args:
        mask_function: whether a query sees a key, by batch, head and both positions.
        attention_mask: None; a flat batch has no padding.

    Raises:
        UnknownAttentionError: the mask function reads more than positions, or follows no rule known here.
    """
    if attention_mask is not None:
        raise UnknownAttentionError("a mask of tokens")
    function = _inside_sequence(mask_function)
    recipe = _recipe(function)
    if recipe not in _RULES:
        _RULES[recipe] = _rule_of(function, recipe)
    return _RULES[recipe]


_Recipe = tuple[Any, ...]
_RULES: dict[_Recipe, Rule] = {}


# ---- the mask inside a sequence


def _is_made_by(factory: str, example: Any, function: Any) -> bool:
    """Whether transformers' function of this name made the mask function; releases differ in which they have."""
    make = getattr(masking_utils, factory, None)
    return make is not None and getattr(function, "__code__", None) is make(*example).__code__


def _inside_sequence(function: Any) -> Any:
    """The mask function without "and in the same sequence", which transformers adds where it notices a pack."""
    if not _is_made_by("and_masks", (len,), function):
        return function
    first, *others = _closed_over(function)["mask_functions"]
    if len(others) != 1 or not _is_made_by("packed_sequence_mask_function", (None,), others[0]):
        return function
    if _is_made_by("remap_positions_for_packed_sequence", (len, None), first):
        return _closed_over(first)["mask_function"]
    return first


# ---- what it is made of


def _closed_over(function: FunctionType) -> dict[str, Any]:
    cells = [cell.cell_contents for cell in function.__closure__ or ()]
    return dict(zip(function.__code__.co_freevars, cells, strict=True))


def _recipe(part: Any) -> _Recipe:
    """All that a mask function's answers follow from: its code, and the numbers and functions that this reads."""
    if isinstance(part, FunctionType):
        names = [name for name in part.__code__.co_names if name in part.__globals__]
        read = [part.__globals__[name] for name in names]
        held = (*(part.__defaults__ or ()), *_closed_over(part).values())
        held += tuple(value for value in read if isinstance(value, (int, float, Tensor, FunctionType)))
        return (part.__code__, *map(_recipe, held))
    if isinstance(part, tuple):
        return tuple(map(_recipe, part))
    if part is None or isinstance(part, (bool, int, float)):
        return (part,)
    raise UnknownAttentionError(f"a mask that depends on a {type(part).__name__}")


def _numbers(recipe: _Recipe) -> Iterator[int]:
    """The integers in it that may be distances."""
    for part in recipe:
        inner = part.co_consts if isinstance(part, CodeType) else part
        if isinstance(inner, tuple):
            yield from _numbers(inner)
        elif type(inner) is int and inner >= 0:
            yield inner


# ---- the rule it follows


def _rule_of(function: Callable[..., Tensor], recipe: _Recipe) -> Rule:
    numbers = sorted(set(_numbers(recipe)))
    edges = [0, 1_000, 10_000, *(times * number for number in numbers for times in (1, 2, 3))]
    near = {edge + step for edge in edges for step in range(-2, 3)} | set(range(32))
    key = torch.tensor(sorted(position for position in near if position >= 0), device="cpu")
    query, zero = key[:, None], torch.tensor(0, device="cpu")
    try:
        allowed = torch.as_tensor(function(zero, zero, query, key)).bool().expand(len(key), len(key))
    except Exception as error:  # it is code of the model
        raise UnknownAttentionError(f"a mask that cannot be read: {error}") from error
    windows = [None, *(number + end for number in numbers for end in (0, 1) if number + end)]  # its far end in or out
    for rule in (Rule(causal, window) for window in windows for causal in (True, False)):
        if torch.equal(rule.allows(query, key), allowed):
            return rule
    raise UnknownAttentionError("a mask that is neither causal nor a window")
