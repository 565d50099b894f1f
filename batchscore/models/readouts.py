"""From token states to one vector a sequence. Everything is float32: sums over tokens lose digits in 16 bits.

Formulas are those of sentence-transformers' Pooling module, over the kept tokens of each sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from batchscore.models.spec import PoolingMode


@dataclass(frozen=True, slots=True)
class States:
    """The last hidden states of a pack, sequences end to end."""

    hidden: Tensor  # float32 [tokens, dim]
    lengths: Tensor  # int64 [n]
    keep: Tensor | None  # bool [tokens]; None: every token counts

    @property
    def starts(self) -> Tensor:
        """int64 [n]: first token of each sequence."""
        return self.lengths.cumsum(0) - self.lengths

    def __iter__(self) -> Iterator[States]:
        """Each sequence by itself."""
        lengths = self.lengths.tolist()
        keeps = [None] * len(lengths) if self.keep is None else self.keep.split(lengths)
        for hidden, length, keep in zip(self.hidden.split(lengths), self.lengths, keeps, strict=True):
            yield States(hidden, length[None], keep)

    def weights(self) -> Tensor:
        """float32 [tokens, 1]: 1 for tokens that count."""
        keep = torch.ones(len(self.hidden), device=self.hidden.device) if self.keep is None else self.keep.float()
        return keep[:, None]

    def total(self, values: Tensor) -> Tensor:
        """float32 [n, dim]: sum of `values` [tokens, dim] over each sequence."""
        return torch.segment_reduce(values, "sum", lengths=self.lengths, axis=0, unsafe=True)


def first_token(states: States) -> Tensor:
    """float32 [n, dim]: the state of each sequence's first token."""
    return states.hidden[states.starts]


def _last_token(states: States) -> Tensor:
    return states.hidden[states.starts + states.lengths - 1]


def _splade(states: States) -> Tensor:
    """SPLADE's max over tokens of log(1 + relu(logit)); log and relu keep order, so they come after the maximum."""
    return _max(states).relu().log1p()


def _max(states: States) -> Tensor:
    hidden = states.hidden if states.keep is None else states.hidden.masked_fill(~states.keep[:, None], -torch.inf)
    return torch.segment_reduce(hidden, "max", lengths=states.lengths, axis=0, unsafe=True)


def _weighted_mean(states: States, weights: Tensor) -> Tensor:
    return states.total(states.hidden * weights) / states.total(weights).clamp(min=1e-9)


def _mean(states: States) -> Tensor:
    return _weighted_mean(states, states.weights())


def _mean_sqrt_len(states: States) -> Tensor:
    weights = states.weights()
    return states.total(states.hidden * weights) / states.total(weights).clamp(min=1e-9).sqrt()


def _position_weighted_mean(states: States) -> Tensor:
    """Token i of a sequence, from 0, weighs i + 1."""
    places = torch.arange(len(states.hidden), device=states.hidden.device) - states.starts.repeat_interleave(
        states.lengths
    )
    return _weighted_mean(states, states.weights() * (places + 1)[:, None])


_POOL: dict[PoolingMode, Callable[[States], Tensor]] = {
    "cls": first_token,
    "max": _max,
    "mean": _mean,
    "mean_sqrt_len": _mean_sqrt_len,
    "weightedmean": _position_weighted_mean,
    "lasttoken": _last_token,
    "splade": _splade,
}


def pool(states: States, modes: tuple[PoolingMode, ...]) -> Tensor:
    """float32 [n, dim * len(modes)]: one vector a sequence, the modes side by side."""
    return torch.cat([_POOL[mode](states) for mode in modes], dim=1)
