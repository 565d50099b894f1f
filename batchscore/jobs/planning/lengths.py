"""How long the sequences of a sample are, how many rows would be cut, and what padding would add.

The model's own reader makes the sequences, without its weights; so what is counted here is what a run counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from batchscore.errors import BatchscoreError
from batchscore.jobs.parts import Encode
from batchscore.jobs.planning.sample import Sample, Window
from batchscore.models.text.prompts import ALL
from batchscore.runners.base import BaseRunner
from batchscore.types import CUT_NAMES, SIDES, Cell, Side, Work

PADDED_ROWS = 32  # of a batch that is padded to its longest sequence
_LIMITS = (256, 512, 1_024)
_SMALLEST_EDGE = 16  # of the histogram, whose edges double


@dataclass(frozen=True, slots=True)
class Lengths:
    """A histogram of lengths in tokens."""

    count: int
    mean: float
    median: int
    p90: int
    p99: int
    longest: int
    shares: dict[int, float]  # at most so many tokens, and more than the edge before -> share of all

    @classmethod
    def of(cls, lengths: NDArray[np.integer]) -> Lengths:
        """Of int [n] lengths."""
        if not len(lengths):
            return cls(0, 0.0, 0, 0, 0, 0, {})
        edges = [_SMALLEST_EDGE]
        while edges[-1] < lengths.max():
            edges.append(2 * edges[-1])
        places, counts = np.unique(np.searchsorted(edges, lengths), return_counts=True)
        shares = {edges[place]: round(count / len(lengths), 4) for place, count in zip(places, counts, strict=True)}
        median, p90, p99 = (int(np.quantile(lengths, share, method="higher")) for share in (0.5, 0.9, 0.99))
        return cls(len(lengths), float(lengths.mean()), median, p90, p99, int(lengths.max()), shares)


@dataclass(frozen=True, slots=True)
class Cut:
    """What a limit cuts of the rows that were drawn."""

    limit: int
    query: int  # rows that lose tokens of the query alone
    document: int
    both: int
    share: float  # of the rows that were drawn

    @classmethod
    def of(cls, limit: int, works: Sequence[Work]) -> Cut:
        """Count what was cut in works that were laid out under this limit."""
        cut = np.concatenate([np.empty(0, np.uint8), *(work.cut[work.right >= 0] for work in works)])
        numbers = {name: int((cut == code).sum()) for code, name in enumerate(CUT_NAMES[1:], start=1)}
        return cls(limit, share=sum(numbers.values()) / max(1, len(cut)), **numbers)


@dataclass(frozen=True, slots=True)
class Padding:
    """Tokens of the rows that were drawn, without padding and with it.

    `in_order`: batches of 32 sequences in the input's order, each padded to its longest. `by_length`: the same batches,
    once all sequences of a side are sorted by length. Equal sequences of a window count once in all three.
    """

    packed: int
    in_order: int
    by_length: int


@dataclass(frozen=True, slots=True)
class Reading:
    """What the model reads of the whole job."""

    texts: float = 0.0  # or pairs, of a cross-encoder
    tokens: float = 0.0

    def __add__(self, other: Reading) -> Reading:
        return Reading(self.texts + other.texts, self.tokens + other.tokens)

    def times(self, factor: float) -> Reading:
        """Multiplied by a factor."""
        return Reading(self.texts * factor, self.tokens * factor)


def lay_out(runner: BaseRunner, sample: Sample) -> list[Work]:
    """The sequences of the rows that were drawn, window by window."""
    return [runner.tokenize(window.drawn) for window in sample.windows]


def text_lengths(runner: BaseRunner, sample: Sample, side: Side) -> Lengths:
    """Tokens of the distinct texts that were drawn: of the texts themselves, before anything is cut or added."""
    texts = [cell if isinstance(cell, str) else cell.text for window in sample.windows for cell in window.texts[side]]
    return Lengths.of(runner.reader.tokenizer.tokenize(texts, ALL)[1])


def pair_lengths(works: Sequence[Work]) -> Lengths:
    """Tokens that the model reads for a row, of both sides."""
    return Lengths.of(np.concatenate([np.empty(0, np.int32), *(work.row_tokens()[work.right >= 0] for work in works)]))


def cuts(runner: BaseRunner, sample: Sample, works: Sequence[Work]) -> list[Cut]:
    """What the usual limits would cut, and what the job's own does."""
    spec = runner.spec
    found = []
    for limit in _LIMITS:
        if limit >= spec.max_length:
            continue
        sides = {f"{side}_length": min(spec.lengths[side], limit) for side in SIDES}
        reader = replace(runner.reader, spec=replace(spec, max_length=limit, **sides))  # type: ignore[arg-type]
        try:
            found.append(Cut.of(limit, lay_out(replace(runner, reader=reader), sample)))
        except BatchscoreError:  # the prompt alone is longer
            continue
    return [*found, Cut.of(spec.max_length, works)]


def padding(works: Sequence[Work]) -> Padding:
    """What padding would add."""
    sides = [list(side) for side in zip(*map(_in_order, works), strict=True)]
    packed = sum(int(column.sum()) for side in sides for column in side)
    in_order = sum(_padded(column) for side in sides for column in side)
    return Padding(packed, in_order, sum(_padded(np.sort(np.concatenate(side))) for side in sides))


def _in_order(work: Work) -> list[NDArray[np.int64]]:
    """Lengths of the sequences of each side, or of the pairs, in the order of the rows that first need them."""
    rows = work.right >= 0
    sides = [work.left[rows], work.right[rows]] if work.queries else [work.right[rows]]
    items = [side[np.sort(np.unique(side, return_index=True)[1])] for side in sides]
    return [work.items.lengths[index] for index in items]


def _padded(lengths: NDArray[np.int64]) -> int:
    batches = [lengths[start : start + PADDED_ROWS] for start in range(0, len(lengths), PADDED_ROWS)]
    return sum(len(batch) * int(batch.max()) for batch in batches)


def reading(
    runner: BaseRunner, sample: Sample, works: Sequence[Work], encode: Encode, rows: int, units: int
) -> dict[str, Reading]:
    """What the model reads of the whole job, by "pair", or by "query" and "document".

    Args:
        runner: makes the sequences.
        sample: of the job.
        works: its sequences.
        encode: whether a text is read once a job.
        rows: of the job.
        units: likewise.
    """
    scale, each = rows / max(1, sample.rows), list(zip(sample.windows, works, strict=True))
    if runner.spec.score_type == "cross-encoder":
        return {"pair": sum((_pairs_read(*one) for one in each), Reading()).times(scale)}
    if encode == "unit":
        return {
            side: sum((_texts_of_window(runner, *one, side) for one in each), Reading()).times(scale) for side in SIDES
        }
    found: dict[str, Reading] = {}
    for side in SIDES:
        distinct = list(dict.fromkeys(cell for window in sample.windows for cell in window.texts[side]))
        total = sample.repetition.distinct(side, units)
        found[side] = _texts_read(runner, distinct, side).times(total / max(1, len(distinct)))
    return found


def _pairs_read(window: Window, work: Work) -> Reading:
    """What the model reads for the pairs of a window, extrapolated from those that were drawn."""
    needed = work.needed()
    if work.slot is None:
        share = window.distinct_pairs / max(1, len(np.unique(work.left)))
    else:  # a sequence is a list
        share = window.pairs / max(1, len(window.drawn))
    return Reading(len(needed), int(work.items.lengths[needed].sum())).times(share)


def _texts_of_window(runner: BaseRunner, window: Window, work: Work, side: Side) -> Reading:
    """What the model reads for one side of a window, extrapolated from the drawn texts unless all pairs were drawn."""
    if len(window.drawn) < window.pairs:
        texts = window.texts[side]
        return _texts_read(runner, texts, side).times(window.distinct[side] / max(1, len(texts)))
    needed = work.needed()
    needed = needed[(needed < work.queries) == (side == "query")]
    return Reading(len(needed), int(work.items.lengths[needed].sum()))


def _texts_read(runner: BaseRunner, texts: Sequence[Cell], side: Side) -> Reading:
    """What the model reads for these texts."""
    return Reading(len(texts), int(runner.lay_out(texts, side).items.offsets[-1]) if texts else 0)
