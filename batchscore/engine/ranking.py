"""Order the documents of each query. Pure numpy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def rank_rows(
    groups: NDArray[np.integer], index: NDArray[np.integer], scores: NDArray[np.floating], top_n: int = 0
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Rank rows inside their groups: score descending, equal scores by `index`.

    Args:
        groups: int [rows], which query a row belongs to.
        index: int [rows], the row's position among that query's documents, from 0.
        scores: float [rows], finite.
        top_n: rows to keep of each group; 0 keeps all.

    Returns:
        (rows, ranks): int64 and int32 [kept], row numbers group by group in rank order, and their 1-based ranks.
    """
    order = np.lexsort((index, -scores, groups))
    ranks = _positions(groups[order])[0] + 1
    kept = ranks <= top_n if top_n else np.ones(len(order), bool)
    return order[kept], ranks[kept].astype(np.int32)


def positions_in_groups(groups: NDArray[np.integer], counts: NDArray[np.int64]) -> NDArray[np.int32]:
    """Number each row within its group, starting from `counts`, which is advanced in place.

    Args:
        groups: int [rows], in input order.
        counts: int64 [at least max(groups) + 1], rows of each group seen before.
    """
    order = np.argsort(groups, kind="stable")
    sorted_groups = groups[order]
    inside, starts, sizes = _positions(sorted_groups)
    positions = np.empty(len(order), np.int32)
    positions[order] = inside + counts[sorted_groups]
    counts[sorted_groups[starts]] += sizes
    return positions


def _positions(
    sorted_groups: NDArray[np.integer],
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """(int64 [rows], where each row stands in its group; the first row and the size of each group)."""
    starts = np.flatnonzero(np.diff(sorted_groups, prepend=-1))
    sizes = np.diff(starts, append=len(sorted_groups))
    return np.arange(len(sorted_groups)) - np.repeat(starts, sizes), starts, sizes
