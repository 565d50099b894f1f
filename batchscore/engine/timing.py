"""How long a loaded model takes for rows, measured on rows like those of a job: what `plan --probe` and `bench` share.

A window is scored as a job scores it, by the workers, in packs. Rows are taken from all over the sample, so that few of
them have the lengths of all; the price is that its packs mix lengths a little more than those of a full window.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter, process_time
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from batchscore.engine.batcher import Batcher
from batchscore.types import Cell, Cells, Pairs, Side, Work

T = TypeVar("T")
_GOLDEN = 0.6180339887498949  # multiples of it, modulo 1, fill an interval evenly, wherever they end
_NEIGHBOURS = 64  # rows without lists that are drawn together
_FIRST_SHARE = 16  # one in so many groups warms the model up, and tells how many rows fill the time


@dataclass(frozen=True, slots=True)
class Timing:
    """What some work took, or would take."""

    wall: float = 0.0  # seconds
    busy: float = 0.0  # seconds of processor time, of all threads

    def __add__(self, other: Timing) -> Timing:
        return Timing(self.wall + other.wall, self.busy + other.busy)

    def times(self, factor: float) -> Timing:
        """So many times the work."""
        return Timing(self.wall * factor, self.busy * factor)


@dataclass(frozen=True, slots=True)
class Measured:
    """What was forwarded, and what that took."""

    timing: Timing
    rows: int  # or texts
    tokens: int

    def __add__(self, other: Measured) -> Measured:
        return Measured(self.timing + other.timing, self.rows + other.rows, self.tokens + other.tokens)

    @property
    def tokens_per_second(self) -> float:
        """Without what is done before and after a forward."""
        return self.tokens / max(self.timing.wall, 1e-9)


def timed(task: Callable[[], T]) -> tuple[T, Timing]:
    """(what a call returns, what it took)."""
    wall, busy = perf_counter(), process_time()
    result = task()
    return result, Timing(perf_counter() - wall, process_time() - busy)


def spread_rows(groups: NDArray[np.integer], wanted: int) -> NDArray[np.int64]:
    """int64, ascending: rows of groups from all over, as many groups as it takes to have `wanted` rows, at least one.

    Args:
        groups: int [rows], which rows are taken together.
        wanted: rows; all are taken where there are no more.
    """
    if wanted >= len(groups):
        return np.arange(len(groups))
    _, numbers, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    order = np.argsort(np.arange(len(sizes)) * _GOLDEN % 1)
    count = int(np.searchsorted(np.cumsum(sizes[order]), wanted)) + 1
    return np.flatnonzero(np.isin(numbers, order[:count]))


def groups_of(pairs: Pairs) -> NDArray[np.integer]:
    """int [pairs]: which pairs are drawn together: lists, or neighbours, since either may share a beginning."""
    return np.arange(len(pairs)) // _NEIGHBOURS if pairs.lists is None else pairs.lists


def joined(parts: Sequence[Pairs]) -> Pairs:
    """The rows of several windows as those of one; lists stay apart."""
    queries, documents, lists = [], [], [np.empty(0, np.int64)]
    for part in parts:
        queries += [part.queries.values[code] for code in part.queries.codes.tolist()]
        documents += [part.documents.values[code] for code in part.documents.codes.tolist()]
        if part.lists is not None:
            first = int(lists[-1].max(initial=-1)) + 1
            lists.append(first + np.unique(part.lists, return_inverse=True)[1].reshape(-1))
    return Pairs(Cells.of(queries), Cells.of(documents), lists=np.concatenate(lists) if len(lists) > 1 else None)


def time_scoring(batcher: Batcher, pairs: Pairs, seconds: float) -> Measured:
    """Score some of these pairs again and again, for about so many seconds."""
    return _time(groups_of(pairs), seconds, lambda rows: batcher.tokenize(pairs.rows(rows)), batcher.score)


def time_encoding(batcher: Batcher, texts: Sequence[Cell], side: Side, seconds: float) -> Measured:
    """Encode some of these distinct texts again and again, for about so many seconds."""

    def lay_out(rows: NDArray[np.int64]) -> Work:
        return batcher.lay_out([texts[row] for row in rows.tolist()], side)

    return _time(np.arange(len(texts)), seconds, lay_out, lambda work: batcher.encode(work, side))


def _time(
    groups: NDArray[np.integer],
    seconds: float,
    lay_out: Callable[[NDArray[np.int64]], Work],
    forward: Callable[[Work], object],
) -> Measured:
    def run(wanted: float) -> Measured:
        work = lay_out(spread_rows(groups, max(1, int(wanted))))
        timing = timed(lambda: forward(work))[1]
        return Measured(timing, len(work), int(work.items.lengths[work.needed()].sum()))

    run(1)  # what is built and allocated on first use
    share = len(groups) / _FIRST_SHARE
    wanted = share * max(1.0, seconds / max(run(share).timing.wall, 1e-6))
    total = run(wanted)
    while total.timing.wall < seconds / 2:
        total += run(wanted)
    return total
