"""Sequences with a common beginning as a flat batch that has it once: each part, then what follows it.

The parts of a pack are laid out in the order of a walk through their tree: a system prompt, a query that follows it,
the documents of that query, the next query, and so on. Positions count on behind a part that is shared. Attention
gathers the keys of the parts before (`reach.py`); every other layer sees each token once. Exact for any model that
reads from left to right, but for the rounding of its dtype.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from batchscore.runners.reach import Reach, ToTensor
from batchscore.runners.sequences import LastTokens, Sequences
from batchscore.types import Items, Prefixes, offsets_of, ranges


@dataclass(frozen=True, slots=True)
class Tree:
    """The parts of a pack that are forwarded, end to end, each with the keys it sees: the parts before and its own."""

    tokens: NDArray[np.int64]  # which of the pack's tokens are forwarded
    lengths: NDArray[np.int64]  # [parts], tokens of each
    keys: NDArray[np.int64]  # of each part, end to end: which of the forwarded tokens it sees
    key_lengths: NDArray[np.int64]  # [parts]
    is_last: NDArray[np.bool_]  # [parts], whether it is the end of a sequence, which nothing follows

    @classmethod
    def of(cls, items: Items, prefixes: Prefixes | None) -> Tree:
        """The tree of a pack's sequences; without prefixes each sequence is a part."""
        own = items.lengths[:, None]
        if prefixes is None:
            prefixes = Prefixes(*(np.empty((len(items), 0), np.int64),) * 2)
        if prefixes.cuts.shape[1]:
            own = own - prefixes.cuts[:, -1:]
        sizes = np.concatenate([prefixes.sizes, own], axis=1)  # [n, parts of a sequence]
        starts = items.offsets[:-1, None] + np.cumsum(sizes, axis=1) - sizes
        is_new = np.concatenate([prefixes.is_new, np.ones_like(own, dtype=bool)], axis=1) & (sizes > 0)
        forwarded = np.where(is_new, sizes, 0)
        # a part that is not new lies where the last new one of its depth does; the one before has it too
        laid = np.where(is_new, offsets_of(forwarded.ravel())[:-1].reshape(sizes.shape), 0)
        laid = np.maximum.accumulate(laid, axis=0)
        sequence, depth = np.nonzero(is_new)
        seen = np.where(np.arange(sizes.shape[1]) <= depth[:, None], sizes[sequence], 0)
        return cls(
            ranges(starts.ravel(), forwarded.ravel()),
            sizes[is_new],
            ranges(laid[sequence].ravel(), seen.ravel()),
            seen.sum(axis=1),
            depth == sizes.shape[1] - 1,
        )

    @property
    def ends(self) -> NDArray[np.int64]:
        """int64 [sequences]: where the last token of each lies."""
        return (np.cumsum(self.lengths) - 1)[self.is_last]

    def sequences(self, tensor: ToTensor) -> Sequences:
        """Where the parts and the last tokens lie, and what they see."""
        starts, lengths = offsets_of(self.key_lengths)[:-1][self.is_last], self.key_lengths[self.is_last]
        last = Reach.of(np.ones_like(lengths), self.keys[ranges(starts, lengths)], lengths, tensor)
        return replace(
            Sequences.of(self.lengths, None, tensor),
            reach=None if self.is_last.all() else Reach.of(self.lengths, self.keys, self.key_lengths, tensor),
            last=LastTokens(tensor(self.ends), last),
        )
