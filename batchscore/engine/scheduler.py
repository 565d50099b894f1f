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

from batchscore.engine.prefixes import find_prefixes
from batchscore.types import Items, Prefixes, chunks_of

_CHUNK = 2**20  # numbers: little enough for a core's share of the caches


@dataclass(frozen=True, slots=True)
class Pack:
    """Items that are forwarded together, longest first, or, where they have prefixes, in the order of these."""

    index: NDArray[np.int64]  # [n], which of the window's items
    costs: NDArray[np.int64]  # [n], what each adds to the pack, in the unit of the budget
    prefixes: Prefixes | None = None  # which of their leading tokens are forwarded once; None: they share nothing

    def __len__(self) -> int:
        return len(self.index)

    @property
    def cost(self) -> int:
        """What the pack takes of the budget."""
        return int(self.costs.sum())

    def only(self, wanted: NDArray[np.bool_]) -> Pack:
        """The pack without the items for which `wanted`, bool [items of the window], is false."""
        return self._take(np.flatnonzero(wanted[self.index]))

    def without(self, places: Sequence[int]) -> Pack:
        """The pack without the items at these places."""
        return self._take(np.delete(np.arange(len(self)), places))

    def halves(self) -> tuple[Pack, Pack]:
        """Two packs of half as many items each."""
        middle = len(self) // 2
        return self._take(slice(0, middle)), self._take(slice(middle, None))

    def _take(self, places: NDArray[np.int64] | slice) -> Pack:
        """Its items at these places. They are cut where they were: cut elsewhere, they would round differently."""
        prefixes = None if self.prefixes is None else self.prefixes.take(places)
        return Pack(self.index[places], self.costs[places], prefixes)


def plan_window(
    items: Items,
    parts: Sequence[NDArray[np.int64]],
    costs: NDArray[np.integer],
    group: NDArray[np.integer],
    max_cost: int,
    min_packs: int,
    multiple: int,
    *,
    shares_prefixes: bool,
) -> list[Pack]:
    """Packs of parts of a window that are not to be mixed.

    Args:
        items: of the window.
        parts: each int64 [n], the items of one part.
        costs, group, max_cost, min_packs, multiple: as in `plan_packs`.
        shares_prefixes: what the items have in common may be forwarded once.
    """
    packs: list[Pack] = []
    for part in parts:
        order, prefixes = (find_prefixes(items, part) if shares_prefixes else None) or (part, None)
        packs += plan_packs(order, items.lengths, costs, group, max_cost, min_packs, multiple, prefixes)
    return packs


def plan_packs(
    index: NDArray[np.int64],
    lengths: NDArray[np.integer],
    costs: NDArray[np.integer],
    group: NDArray[np.integer],
    max_cost: int,
    min_packs: int = 1,
    multiple: int = 1,
    prefixes: Prefixes | None = None,
) -> list[Pack]:
    """Group items into packs of at most `max_cost`.

    Args:
        index: int64 [n], the items to pack.
        lengths: int [items], tokens of each item of the window.
        costs: int [items], what each adds to a pack; at least 1.
        group: int [items], whose query each is: of equally long items those of one query are neighbours.
        max_cost: what a pack may hold; an item that costs more gets a pack of its own.
        min_packs: aim for this many packs of equal cost, so that every worker has one.
        multiple: aim for packs of equal cost whose number is a multiple of it, so that so many workers end together, or
            half as many, and so on; it is halved while packs would cost less than a quarter of `max_cost`. 1: packs
            are filled.
        prefixes: what the items share, which are in its order then; made by `find_prefixes`.

    Returns:
        Packs, longest items first; every item of `index` is in exactly one of them.
    """
    order = index if prefixes is not None else index[np.lexsort((group[index], -lengths[index]))]
    alone = np.asarray(costs[order], np.int64)  # what each costs as the first of a pack
    shared = np.zeros_like(alone) if prefixes is None else prefixes.shared
    ends = np.cumsum(alone - shared)  # cost up to and with each; a pack ends before the first that would pass the limit
    again = int(shared.max(initial=0))  # each further pack reads its first prefix anew
    count = max(min_packs, _count(multiple, int(ends[-1:].sum()), max_cost))
    packs, start = list[Pack](), 0
    while start < len(order):
        left, base = max(1, count - len(packs)), int(ends[start] - alone[start])
        share = -(-(int(ends[-1]) - base + again * (left - 1)) // left)
        stop = max(start + 1, int(np.searchsorted(ends, base + min(share, max_cost), side="right")))
        # one more where that comes nearer to the share: what each pack lacks would be too much for the last
        if stop < len(ends) and ends[stop] - base <= min(max_cost, 2 * share - (ends[stop - 1] - base)):
            stop += 1
        added = np.diff(ends[start:stop], prepend=base)
        packs.append(Pack(order[start:stop], added, None if prefixes is None else prefixes.take(slice(start, stop))))
        start = stop
    return packs


def _count(multiple: int, cost: int, max_cost: int) -> int:
    """Packs of a cost, a multiple of `multiple`, with some room in each, since sequences are not divided."""
    while multiple > 1 and cost < multiple * max_cost // 4:
        multiple //= 2
    return -(-cost // (multiple * max(1, max_cost - max_cost // 16))) * multiple if multiple > 1 else 1


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
    return chunks_of(inner_sizes[inner] + is_first * outer_sizes[outer], _CHUNK)


def plan_meetings(
    codes: tuple[NDArray[np.integer], NDArray[np.integer]],
    sizes: tuple[NDArray[np.integer], NDArray[np.integer]],
    limit: int,
) -> tuple[int, list[tuple[slice, NDArray[np.int64]]]]:
    """Divide pairs whose texts are encoded group by group, so that no more than a group of each side is held.

    The groups of one side come one after the other, and each meets those of the other side: its texts are read once,
    and the other's once for each of these groups that they have a pair with.

    Args:
        codes: int [pairs] each, which text of its side each pair has.
        sizes: int [texts] each, what reading and holding a text costs.
        limit: what a group may cost.

    Returns:
        (the side that is read once, (the group of it, the pairs of a meeting) of each meeting).
    """
    groups = [chunks_of(side, limit) for side in sizes]
    read = [sizes[side].sum() + len(groups[side]) * sizes[1 - side].sum() for side in (0, 1)]
    outer = int(read[1] <= read[0])
    numbers = [np.repeat(np.arange(len(some)), [part.stop - part.start for part in some]) for some in groups]
    first, second = numbers[outer][codes[outer]], numbers[1 - outer][codes[1 - outer]]
    order = np.lexsort((second, first))
    is_new = (np.diff(first[order]) != 0) | (np.diff(second[order]) != 0)
    meetings = np.split(order, np.flatnonzero(is_new) + 1)
    return outer, [(groups[outer][first[pairs[0]]], pairs) for pairs in meetings]
