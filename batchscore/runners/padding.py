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
_PADDED_PRODUCTS = 2**25  # of tokens in a section that is padded: 2 GB in float32 of 16 heads


@dataclass(frozen=True, slots=True)
class Section:
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


def sections_of(runs: list[Run]) -> list[Section]:
    """All sequences of these runs."""
    sections: list[Section] = []
    first = 0
    for start, count, length in runs:
        last = sections[-1] if sections else None
        if last and 2 * length > last.longest and (last.count + count) * last.longest**2 <= _PADDED_PRODUCTS:
            sections[-1] = replace(last, count=last.count + count, size=last.size + count * length)
            first += count
            continue
        step = max(1, _PADDED_PRODUCTS // length**2)
        for done in range(0, count, step):
            some = min(step, count - done)
            sections.append(Section(first, some, length, start + done * length, some * length))
            first += some
    return sections


@dataclass(frozen=True, slots=True)
class Padding:
    """A section of a pack laid out as [n, longest]; made on the device, for which nothing waits."""

    section: Section
    tokens: Tensor | None  # int64 [n, longest], which stands at each place, as padding the last one; None: no padding
    places: Tensor | None  # int64 [tokens of the section], the place of each
    keys: Tensor | None  # bool [n, 1, 1, longest], whether a key is seen by anyone; None: all are
    hides: bool  # whether some that are not padding are hidden
    device: torch.device

    @classmethod
    def of(cls, section: Section, offsets: Tensor, seen: Tensor | None) -> Padding:
        """Of some sequences of a pack, with that pack's offsets and hidden tokens as `Sequences` has them."""
        shape, device = (section.count, section.longest), offsets.device
        if section.count * section.longest == section.size:
            keys = None if seen is None else seen[section.tokens].view(section.count, 1, 1, section.longest)
            return cls(section, None, None, keys, seen is not None, device)
        offsets = offsets[section.first : section.first + section.count + 1].long()
        starts, ends = offsets[:-1, None], offsets[1:, None]
        tokens = starts + torch.arange(section.longest, device=device)
        keys = tokens < ends
        tokens = torch.minimum(tokens, ends - 1)
        keys = keys if seen is None else keys & seen[tokens]
        rows = torch.arange(section.count, device=device) * section.longest - starts[:, 0]
        shifts = rows.repeat_interleave(offsets.diff(), output_size=section.size)  # else it waits for the sum
        places = shifts + torch.arange(section.start, section.start + section.size, device=device)
        return cls(section, tokens, places, keys.view(shape[0], 1, 1, shape[1]), seen is not None, device)

    def padded(self, states: Tensor) -> Tensor:
        """[n, longest, ...] from the [tokens, ...] of the whole pack."""
        shape = (self.section.count, self.section.longest)
        return states[self.section.tokens].unflatten(0, shape) if self.tokens is None else states[self.tokens]

    def flat(self, states: Tensor) -> Tensor:
        """[tokens of the section, ...] from [n, longest, ...]."""
        return states.flatten(0, 1) if self.places is None else states.flatten(0, 1)[self.places]

    def is_plainly_causal(self, rule: Rule) -> bool:
        """Whether all earlier tokens are seen; those see no padding, which stands last."""
        return rule.causal and not self.hides and (rule.window is None or rule.window >= self.section.longest)

    def mask(self, rule: Rule, queries: int) -> Tensor | None:
        """bool, broadcasts to [n, 1, queries, longest]: which keys the first `queries` tokens see; None: all."""
        allowed = rule.mask(self.section.longest, self.device, causality=True)
        if allowed is None:
            return self.keys
        return allowed[:queries] if self.keys is None else allowed[:queries] & self.keys
