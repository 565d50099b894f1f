"""Cut a window of token sequences into packs of similar length.

Longest first: running out of memory shows in the first second, and an ETA never turns out too short. Sequences of one
length end up side by side, which is what attention without padding wants (`Batch.runs`). Sorting happens inside a
window only, so memory stays bounded; a window of 16,384 rows already fills its packs with a handful of lengths
each.

Pure functions over arrays; numpy only.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from batchscore.types import Batch, Items


def plan_packs(lengths: NDArray[np.integer], max_tokens: int, min_packs: int = 1) -> list[NDArray[np.int64]]:
    """Group sequences into packs of at most `max_tokens` tokens.

    Args:
        lengths: int [n], tokens of each sequence.
        max_tokens: tokens a pack may hold; a longer sequence gets a pack of its own.
        min_packs: aim for this many packs of equal size, so that every worker has one.

    Returns:
        Index arrays, longest sequences first; every index in exactly one of them. Equal lengths keep their order.
    """
    total = int(lengths.sum())
    limit = min(max_tokens, max(1, -(-total // min_packs)))
    order = np.argsort(-lengths, kind="stable")
    # cumulative tokens in that order; each pack ends before the first sequence that would pass the limit
    ends = np.cumsum(lengths[order])
    packs, start, base = [], 0, 0
    while start < len(order):
        stop = max(start + 1, int(np.searchsorted(ends, base + limit, side="right")))
        packs.append(order[start:stop])
        start, base = stop, int(ends[stop - 1])
    return packs


def collate(items: Items, index: NDArray[np.integer], first_position: int, *, is_query: bool = False) -> Batch:
    """Lay the sequences at `index` end to end, as int64 arrays a model takes.

    Args:
        items: the window's sequences.
        index: int [n], the pack.
        first_position: position id of a sequence's first token: 0, or pad_token_id + 1 for RoBERTa and its like.
        is_query: the sequences are queries.
    """
    taken = items.take(index)
    ids, starts = taken.ids.astype(np.int64), taken.offsets[:-1]
    if first_position:
        positions = _fairseq_positions(ids, starts, taken.lengths, first_position)
    else:
        positions = np.arange(len(ids)) - np.repeat(starts, taken.lengths)
    return Batch(
        input_ids=ids,
        position_ids=positions,
        offsets=taken.offsets.astype(np.int32),
        token_type_ids=None if taken.types is None else taken.types.astype(np.int64),
        keep=taken.keep,
        seen=taken.seen,
        is_query=is_query,
    )


def _fairseq_positions(
    ids: NDArray[np.int64], starts: NDArray[np.int64], lengths: NDArray[np.int64], first_position: int
) -> NDArray[np.int64]:
    """int64 [tokens]: a padding token that a text spells out stays at the padding position and is not counted."""
    padding = first_position - 1
    counted = ids != padding
    before = np.concatenate([[0], np.cumsum(counted)])
    return np.where(counted, before[1:] - np.repeat(before[starts], lengths) + padding, padding)
