"""Divide a window of token sequences into packs of similar length.

Longest first: running out of memory shows in the first second, and an ETA never turns out too short. Sequences of one
length end up side by side, which is what attention without padding wants (`Batch.runs`). Sorting happens inside a
window only, so memory stays bounded; a window of 16,384 rows already fills its packs with a handful of lengths
each.

Pure functions over arrays; numpy only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_CHUNK = 2**20  # numbers: little enough for a core's share of the caches


@dataclass(frozen=True, slots=True)
class Pack:
    """Items that are forwarded together, longest first."""

    index: NDArray[np.int64]  # [n], which of the window's items
    costs: NDArray[np.int64]  # [n], what each adds to the pack, in the unit of the budget

    def __len__(self) -> int:
        return len(self.index)

    @property
    def cost(self) -> int:
        """What the pack takes of the budget."""
        return int(self.costs.sum())

    def only(self, wanted: NDArray[np.bool_]) -> Pack:
        """The pack without the items for which `wanted`, bool [items of the window], is false."""
        kept = wanted[self.index]
        return Pack(self.index[kept], self.costs[kept])

    def without(self, places: Sequence[int]) -> Pack:
        """The pack without the items at these places."""
        return Pack(np.delete(self.index, places), np.delete(self.costs, places))

    def halves(self) -> tuple[Pack, Pack]:
        """Two packs of half as many items each."""
        middle = len(self) // 2
        return Pack(self.index[:middle], self.costs[:middle]), Pack(self.index[middle:], self.costs[middle:])


def plan_packs(
    index: NDArray[np.int64],
    lengths: NDArray[np.integer],
    costs: NDArray[np.integer],
    group: NDArray[np.integer],
    max_cost: int,
    min_packs: int = 1,
) -> list[Pack]:
    """Group items into packs of at most `max_cost`.

    Args:
        index: int64 [n], the items to pack.
        lengths: int [items], tokens of each item of the window.
        costs: int [items], what each adds to a pack; at least 1.
        group: int [items], whose query each is: of equally long items those of one query are neighbours.
        max_cost: what a pack may hold; an item that costs more gets a pack of its own.
        min_packs: aim for this many packs of equal cost, so that every worker has one.

    Returns:
        Packs, longest items first; every item of `index` is in exactly one of them.
    """
    order = index[np.lexsort((group[index], -lengths[index]))]
    sorted_costs = np.asarray(costs[order], np.int64)
    ends = np.cumsum(sorted_costs)  # cost up to and with each; a pack ends before the first that would pass the limit
    limit = min(max_cost, max(1, -(-int(sorted_costs.sum()) // min_packs)))
    packs, start, base = [], 0, 0
    while start < len(order):
        stop = max(start + 1, int(np.searchsorted(ends, base + limit, side="right")))
        packs.append(Pack(order[start:stop], sorted_costs[start:stop]))
        start, base = stop, int(ends[stop - 1])
    return packs


def plan_chunks(
    outer: NDArray[np.integer],
    inner: NDArray[np.integer],
    outer_sizes: NDArray[np.integer],
    inner_sizes: NDArray[np.integer],
) -> list[slice]:
    """Divide pairs that are scored from encodings into chunks, which depend on nothing else than the pairs.

    Args:
        outer: int [pairs], the query of each, or the document, ascending.
        inner: int [pairs], what the pair has of the other side.
        outer_sizes: int [n], numbers of each; a chunk has `_CHUNK` of both sides, or a single pair.
        inner_sizes: int [n], likewise.
    """
    is_first = np.diff(outer, prepend=-1) > 0
    ends = np.cumsum(inner_sizes[inner] + is_first * outer_sizes[outer], dtype=np.int64)
    chunks, start, base = [], 0, 0
    while start < len(ends):
        stop = max(start + 1, int(np.searchsorted(ends, base + _CHUNK, side="right")))
        chunks.append(slice(start, stop))
        start, base = stop, int(ends[stop - 1])
    return chunks
