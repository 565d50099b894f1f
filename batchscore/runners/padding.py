"""Sequences of a pack as padded batches, and back.

A batch has neighbours of a pack, which is sorted by length. It ends where a sequence is half as long as its first, so
that a long one does not pad thousands of short ones, and where its products would fill the memory.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from batchscore.runners.masks import Rule

Run = tuple[int, int, int]  # (first token, sequences, length) of equally long sequences
_PADDED_PRODUCTS = 2**25  # of tokens in a stretch that is padded: 2 GB in float32 of 16 heads


@dataclass(frozen=True, slots=True)
class Stretch:
    """Neighbouring sequences of similar length, longest first."""

    first: int  # sequence
    count: int  # sequences
    longest: int
    start: int  # first token
    size: int  # tokens

    @property
    def sequences(self) -> slice:
        """Which of the pack's."""
        return slice(self.first, self.first + self.count)

    @property
    def tokens(self) -> slice:
        """Which of the pack's."""
        return slice(self.start, self.start + self.size)


def stretches_of(runs: list[Run]) -> list[Stretch]:
    """All sequences of these runs."""
    stretches: list[Stretch] = []
    first = 0
    for start, count, length in runs:
        last = stretches[-1] if stretches else None
        if last and 2 * length > last.longest and (last.count + count) * last.longest**2 <= _PADDED_PRODUCTS:
            stretches[-1] = replace(last, count=last.count + count, size=last.size + count * length)
            first += count
            continue
        step = max(1, _PADDED_PRODUCTS // length**2)
        for done in range(0, count, step):
            some = min(step, count - done)
            stretches.append(Stretch(first, some, length, start + done * length, some * length))
            first += some
    return stretches


@dataclass(frozen=True, slots=True)
class Padding:
    """A stretch of a pack laid out as [n, longest]; made on the device, for which nothing waits."""

    stretch: Stretch
    tokens: Tensor | None  # int64 [n, longest], which stands at each place, as padding the last one; None: no padding
    places: Tensor | None  # int64 [tokens of the stretch], the place of each
    keys: Tensor | None  # bool [n, 1, 1, longest], whether a key is seen by anyone; None: all are
    hides: bool  # whether some that are not padding are hidden
    device: torch.device

    @classmethod
    def of(cls, stretch: Stretch, offsets: Tensor, seen: Tensor | None) -> Padding:
        """Of some sequences of a pack, with that pack's offsets and hidden tokens as `Sequences` has them."""
        shape, device = (stretch.count, stretch.longest), offsets.device
        if stretch.count * stretch.longest == stretch.size:
            keys = None if seen is None else seen[stretch.tokens].view(stretch.count, 1, 1, stretch.longest)
            return cls(stretch, None, None, keys, seen is not None, device)
        offsets = offsets[stretch.first : stretch.first + stretch.count + 1].long()
        starts, ends = offsets[:-1, None], offsets[1:, None]
        tokens = starts + torch.arange(stretch.longest, device=device)
        keys = tokens < ends
        tokens = torch.minimum(tokens, ends - 1)
        keys = keys if seen is None else keys & seen[tokens]
        rows = torch.arange(stretch.count, device=device) * stretch.longest - starts[:, 0]
        shifts = rows.repeat_interleave(offsets.diff(), output_size=stretch.size)  # else it waits for the sum
        places = shifts + torch.arange(stretch.start, stretch.start + stretch.size, device=device)
        return cls(stretch, tokens, places, keys.view(shape[0], 1, 1, shape[1]), seen is not None, device)

    def padded(self, states: Tensor) -> Tensor:
        """[n, longest, ...] from the [tokens, ...] of the whole pack."""
        shape = (self.stretch.count, self.stretch.longest)
        return states[self.stretch.tokens].unflatten(0, shape) if self.tokens is None else states[self.tokens]

    def flat(self, states: Tensor) -> Tensor:
        """[tokens of the stretch, ...] from [n, longest, ...]."""
        return states.flatten(0, 1) if self.places is None else states.flatten(0, 1)[self.places]

    def is_plainly_causal(self, rule: Rule) -> bool:
        """Whether all earlier tokens are seen; those see no padding, which stands last."""
        return rule.causal and not self.hides and (rule.window is None or rule.window >= self.stretch.longest)

    def mask(self, rule: Rule, queries: int) -> Tensor | None:
        """bool, broadcasts to [n, 1, queries, longest]: which keys the first `queries` tokens see; None: all."""
        allowed = rule.mask(self.stretch.longest, self.device, causality=True)
        if allowed is None:
            return self.keys
        return allowed[:queries] if self.keys is None else allowed[:queries] & self.keys
