"""Leading tokens that sequences have in common, found from the token ids alone.

A model that reads from left to right makes the same of equal beginnings: a system prompt that all pairs have, a query
that is asked of many documents, a document about which there are many queries. Sequences in the order of their token
ids have such beginnings side by side, as a tree; what a template looks like need not be known.

Sorting a window costs some 7 us a sequence.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from batchscore.types import Items, Prefixes

_DEPTH = 4  # parts that a sequence may share: a system prompt, an instruction, a query, what comes by chance
_LEAST_PART = 8  # tokens; each part is a call of its own in attention, which costs as much as a few tokens
_LEAST_SAVED = 32  # tokens of all sequences that have a part
_LEAST_SHARE = 16  # of 1: a window with less to save stays in the order of lengths, which has longer runs
_BLOCK = 32  # tokens compared at once


def find_prefixes(items: Items, index: NDArray[np.int64]) -> tuple[NDArray[np.int64], Prefixes] | None:
    """(the items in an order in which those with a common beginning are neighbours, what they have in common).

    The order is that of `plan_packs` as far as it can be: those with the longest sequences first, and of sequences that
    have all in common but their last part the longest. None: too little is shared.

    Args:
        items: of a window.
        index: int64 [n], the items to order.
    """
    ordered = _by_tokens(items, index)
    lengths = items.lengths[ordered]
    # a sequence keeps its last token, whose state is read
    common = np.minimum(_common(items, ordered), np.minimum(lengths[:-1], lengths[1:]) - 1)
    prefixes = _cut(common, len(ordered))
    if int(prefixes.shared.sum()) * _LEAST_SHARE < int(lengths.sum()):
        return None
    order = _longest_first(prefixes, lengths)
    return ordered[order], prefixes.take(order)


def _by_tokens(items: Items, index: NDArray[np.int64]) -> NDArray[np.int64]:
    """The items in the order of their token ids."""
    tokens = items.ids.astype(">u4").tobytes()  # bytes are compared as these numbers would be, and far quicker
    bounds = zip((items.offsets[index] * 4).tolist(), (items.offsets[index + 1] * 4).tolist(), strict=True)
    keys = [tokens[start:stop] for start, stop in bounds]
    return index[sorted(range(len(index)), key=keys.__getitem__)]


def _common(items: Items, ordered: NDArray[np.int64]) -> NDArray[np.int64]:
    """int64 [n - 1]: leading tokens that neighbours have in common."""
    starts, lengths = items.offsets[:-1][ordered], items.lengths[ordered]
    most = np.minimum(lengths[:-1], lengths[1:])
    common = np.zeros(len(most), np.int64)
    pairs = np.flatnonzero(most)
    while len(pairs):
        places = common[pairs, None] + np.arange(_BLOCK)
        inside = places < most[pairs, None]
        first, second = (items.ids[np.where(inside, starts[pairs + step, None] + places, 0)] for step in (0, 1))
        equal = np.logical_and.accumulate(inside & (first == second), axis=1).sum(axis=1)
        common[pairs] += equal
        pairs = pairs[equal == _BLOCK]
    return common


def _cut(common: NDArray[np.int64], size: int) -> Prefixes:
    """Where to cut `size` sequences, neighbours of which have so many leading tokens in common."""
    cuts = np.zeros((size, _DEPTH), np.int64)
    parts = np.arange(size)[:, None].repeat(_DEPTH, axis=1)
    number = size
    # (first sequence, behind the last, where they were cut, into how many parts, where the next part ends at the least)
    open_ranges = [(0, size, 0, 0, _LEAST_PART)]
    while open_ranges:
        first, last, cut, depth, least = open_ranges.pop()
        for start, stop in _runs(common[first : last - 1] >= least):
            start, stop = first + start, first + stop + 1
            shared = int(common[start : stop - 1].min())
            if (shared - cut) * (stop - start - 1) < _LEAST_SAVED:
                open_ranges.append((start, stop, cut, depth, shared + 1))
                continue
            cuts[start:stop, depth:] = shared
            parts[start:stop, depth] = number
            number += 1
            if depth + 1 < _DEPTH:
                open_ranges.append((start, stop, shared, depth + 1, shared + _LEAST_PART))
    return Prefixes(cuts, parts)


def _runs(marked: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """(first, behind the last) of each run of marks."""
    edges = np.flatnonzero(np.diff(marked.astype(np.int8), prepend=0, append=0))
    return [(int(start), int(stop)) for start, stop in edges.reshape(-1, 2)]


def _longest_first(prefixes: Prefixes, lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """The order in which what shares a part stays together, at each depth the part with the longest sequence first."""
    keys = [-lengths]
    for numbers in prefixes.parts.T[::-1]:
        starts = np.flatnonzero(np.diff(numbers, prepend=-1))
        longest = np.repeat(np.maximum.reduceat(lengths, starts), np.diff(starts, append=len(numbers)))
        keys += [numbers, -longest]
    return np.lexsort(keys)
