"""Which keys the tokens of a pack see where sequences share a beginning, or where last tokens alone ask.

A *stretch* is neighbouring tokens of a flat batch that end at the last of the keys they see: those of a shared
beginning, those that follow it in one sequence, or the last token alone. Its keys are listed, so that a beginning which
several sequences have is there once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from batchscore.runners.masks import Rule
from batchscore.types import offsets_of

ToTensor = Callable[[NDArray[Any]], Tensor]

VECTOR = 16  # keys that torch's kernel for CPUs takes at once; the rest of them it takes one by one
_BLOCK = 512  # queries of a mask; a block sees none of the keys behind it, so that a long stretch is quick too


@dataclass(frozen=True, slots=True)
class DenseCall:
    """Stretches that are attended from together."""

    rows: Tensor  # int64 [n, queries]
    keys: Tensor  # int64 [n, slots], the last ones of which may be filled up
    lengths: Tensor  # int64 [n], how many keys are real


@dataclass(frozen=True)
class Reach:
    """Stretches of queries, end to end, and the keys that each sees."""

    offsets: Tensor  # int32 [n + 1], of the queries
    key_offsets: Tensor  # int32 [n + 1], into `keys`
    keys: Tensor | None  # int64, tokens of the batch; None: all of them in their order
    longest: int  # queries of a stretch
    longest_keys: int
    on_host: tuple[NDArray[np.integer], NDArray[np.int64], NDArray[np.integer]]  # the arguments of `of`
    masks: dict[int | None, list[Tensor]] = field(
        default_factory=dict
    )  # of the calls, by window: all layers' are equal

    @classmethod
    def of(
        cls,
        lengths: NDArray[np.integer],
        keys: NDArray[np.int64],
        key_lengths: NDArray[np.integer],
        tensor: ToTensor,
    ) -> Reach:
        """The reach of stretches.

        Args:
            lengths: int [n], queries of each.
            keys: int64 [sum of key_lengths], the keys of each, end to end, in the order of their positions.
            key_lengths: int [n], at least `lengths`.
            tensor: puts an array on the device.
        """
        return cls(
            tensor(offsets_of(lengths).astype(np.int32)),
            tensor(offsets_of(key_lengths).astype(np.int32)),
            None if np.array_equal(keys, np.arange(len(keys))) else tensor(keys),
            int(lengths.max(initial=0)),
            int(key_lengths.max(initial=0)),
            (lengths, keys, key_lengths),
        )

    @cached_property
    def calls(self) -> list[DenseCall]:
        """The same for dense attention on a CPU, which most packs never ask for."""
        return _calls(*self.on_host)

    def masks_of(self, rule: Rule) -> list[Tensor]:
        """For each call bool [n, 1, queries, slots]: which keys are seen."""
        if rule.window not in self.masks:
            self.masks[rule.window] = [_mask(call, rule) for call in self.calls]
        return self.masks[rule.window]


def _calls(lengths: NDArray[np.integer], keys: NDArray[np.int64], key_lengths: NDArray[np.integer]) -> list[DenseCall]:
    """Stretches, or blocks of long ones, of as many queries and about as many keys together."""
    counts = -(-lengths // _BLOCK)
    block = np.arange(counts.sum()) - np.repeat(offsets_of(counts)[:-1], counts)
    whole, behind = (np.repeat(column, counts) for column in (lengths, key_lengths - lengths))
    rows = np.repeat(offsets_of(lengths)[:-1], counts) + block * _BLOCK
    queries = np.minimum(whole - block * _BLOCK, _BLOCK)
    seen = behind + block * _BLOCK + queries
    starts = np.repeat(offsets_of(key_lengths)[:-1], counts)
    slots = -(-seen // VECTOR) * VECTOR
    calls = []
    for size, slot in np.unique(np.stack([queries, slots], axis=1), axis=0).tolist():
        those = np.flatnonzero((queries == size) & (slots == slot))
        filled = np.minimum(np.arange(slot), seen[those, None] - 1)
        columns = rows[those, None] + np.arange(size), keys[starts[those, None] + filled], seen[those].astype(np.int64)
        calls.append(DenseCall(*map(torch.from_numpy, columns)))
    return calls


def _mask(call: DenseCall, rule: Rule) -> Tensor:
    """bool [n, 1, queries, slots]: the last query stands at the last real key."""
    device, queries = call.rows.device, call.rows.shape[1]
    query = call.lengths[:, None, None, None] - queries + torch.arange(queries, device=device)[:, None]
    return rule.allows(query, torch.arange(call.keys.shape[1], device=device))
