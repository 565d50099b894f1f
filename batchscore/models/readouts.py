"""From token states to one vector per sequence, in float32: sums over tokens lose digits in 16 bits.

Formulas are those of sentence-transformers' Pooling module, over the kept tokens of each sequence. Lengths are held on
the host beside the device, so that nothing waits for the device to hand back numbers the host had all along.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from batchscore.models.arch.entry import PoolingMode
from batchscore.types import chunks_of, offsets_of

_TOKENS_AT_ONCE = 8_192  # that a sum or a maximum has in float32 beside the pack in 16 bits


@dataclass(frozen=True, slots=True)
class States:
    """The last hidden states of a pack, sequences end to end."""

    hidden: Tensor  # [tokens, dim] in the body's dtype: float32 only of what a readout selects, not of the whole pack
    sizes: list[int]  # [n], tokens of each sequence
    lengths: Tensor  # int64 [n], the same on the device
    keep: Tensor | None  # bool [tokens]; None: every token counts

    @classmethod
    def of(cls, hidden: Tensor, lengths: NDArray[np.integer], keep: NDArray[np.bool_] | None) -> States:
        """States of sequences of these lengths, of whose tokens these count."""
        on_device = torch.from_numpy(lengths.astype(np.int64)).to(hidden.device)
        return cls(
            hidden, lengths.tolist(), on_device, None if keep is None else torch.from_numpy(keep).to(hidden.device)
        )

    @property
    def starts(self) -> Tensor:
        """int64 [n]: first token of each sequence."""
        return self.lengths.cumsum(0) - self.lengths

    def chunks(self, tokens: int) -> Iterator[States]:
        """The sequences, as many together as have no more tokens than that; a longer one by itself."""
        offsets = offsets_of(self.sizes)
        for some in chunks_of(self.sizes, tokens):
            span = slice(int(offsets[some.start]), int(offsets[some.stop]))
            keep = None if self.keep is None else self.keep[span]
            yield States(self.hidden[span], self.sizes[some], self.lengths[some], keep)

    def weights(self) -> Tensor:
        """float32 [tokens, 1]: 1 for tokens that count."""
        keep = torch.ones(len(self.hidden), device=self.hidden.device) if self.keep is None else self.keep.float()
        return keep[:, None]

    def total(self, values: Tensor) -> Tensor:
        """float32 [n, dim]: sum of float32 `values` [tokens, dim] over each sequence."""
        return self._reduced(values, "sum")

    def largest(self, values: Tensor) -> Tensor:
        """float32 [n, dim]: maximum of float32 `values` [tokens, dim] over each sequence."""
        return self._reduced(values, "max")

    def smallest(self, values: Tensor) -> Tensor:
        """float32 [n, dim]: minimum of float32 `values` [tokens, dim] over each sequence."""
        return self._reduced(values, "min")

    def _reduced(self, values: Tensor, operation: str) -> Tensor:
        # `unsafe` leaves out the check of the lengths, which would wait for the device
        return torch.segment_reduce(values, operation, lengths=self.lengths, axis=0, unsafe=True)


def first_token(states: States) -> Tensor:
    """float32 [n, dim]: the state of each sequence's first token that counts; of its first one if none does."""
    first = states.starts
    if states.keep is not None:
        places = torch.arange(len(states.hidden), device=states.hidden.device).float()
        kept = states.smallest(places.masked_fill(~states.keep, torch.inf)[:, None])[:, 0]
        first = torch.where(kept.isfinite(), kept, first).long()
    return states.hidden[first].float()


def _last_token(states: States) -> Tensor:
    last = states.starts + states.lengths - 1
    state = states.hidden[last].float()
    return state if states.keep is None else state * states.keep[last, None]


def _splade(states: States) -> Tensor:
    """SPLADE's max over tokens of log(1 + relu(logit)); log and relu keep order, so they come after the maximum."""
    return _max(states).relu().log1p()


def _max(states: States) -> Tensor:
    hidden = states.hidden.float()
    return states.largest(hidden if states.keep is None else hidden.masked_fill(~states.keep[:, None], -torch.inf))


def _weighted_mean(states: States, weights: Tensor) -> Tensor:
    return states.total(states.hidden.float() * weights) / states.total(weights).clamp(min=1e-9)


def _sum_and_count(states: States) -> tuple[Tensor, Tensor]:
    """(float32 [n, dim], float32 [n, 1]): the sum over the tokens that count, and how many these are."""
    if states.keep is None:
        return states.total(states.hidden.float()), states.lengths[:, None].float()
    weights = states.weights()
    return states.total(states.hidden.float() * weights), states.total(weights).clamp(min=1e-9)


def _mean(states: States) -> Tensor:
    total, count = _sum_and_count(states)
    return total / count


def _mean_sqrt_len(states: States) -> Tensor:
    total, count = _sum_and_count(states)
    return total / count.sqrt()


def _position_weighted_mean(states: States) -> Tensor:
    """Token i of a sequence, from 0, weighs i + 1."""
    tokens = len(states.hidden)
    starts = states.starts.repeat_interleave(states.lengths, output_size=tokens)  # else it waits for the sum
    positions = torch.arange(tokens, device=states.hidden.device) - starts
    return _weighted_mean(states, states.weights() * (positions + 1)[:, None])


_POOL: dict[PoolingMode, Callable[[States], Tensor]] = {
    "cls": first_token,
    "max": _max,
    "mean": _mean,
    "mean_sqrt_len": _mean_sqrt_len,
    "weightedmean": _position_weighted_mean,
    "lasttoken": _last_token,
    "splade": _splade,
}


_OF_ONE_TOKEN = ("cls", "lasttoken")  # these select before they convert


def pool(states: States, modes: tuple[PoolingMode, ...]) -> Tensor:
    """float32 [n, dim * len(modes)]: one vector per sequence, the modes side by side."""
    return torch.cat([_pooled(states, mode) for mode in modes], dim=1)


def _pooled(states: States, mode: PoolingMode) -> Tensor:
    """A sequence's vector comes from its own tokens, so chunks change none."""
    if mode in _OF_ONE_TOKEN or len(states.hidden) <= _TOKENS_AT_ONCE:
        return _POOL[mode](states)
    return torch.cat([_POOL[mode](chunk) for chunk in states.chunks(_TOKENS_AT_ONCE)])
