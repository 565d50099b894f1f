"""The rows of scored pairs on which score and label are furthest apart.

Both have scales of their own, so that places are compared, from 0 for the lowest label or score to 1 for the highest.
Rows with equal labels have a range of places in common, and one whose score is within it is where it should be. A page
shows some dozens of rows, half of them scored too high and half too low: of rare labels one kind would come first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace

import numpy as np
from markupsafe import escape
from numpy.typing import NDArray

from batchscore.evaluation.evaluate import PairsEvaluation
from batchscore.evaluation.pairs import PairsEvaluated, read_pairs
from batchscore.io.source import open_source
from batchscore.report.outputs import cut, rows_at

_ROWS = 120  # of all runs
_MOST_ROWS = 40  # of a run
_UNIT = 65_536
_TEXT_BYTES = 400_000  # of all columns of all rows
_PREVIEW = 80  # characters of a text
_PREVIEWS = 2


@dataclass(frozen=True, slots=True)
class ShownPair:
    """A row in the table."""

    row: int  # of the output, from 0
    label: float
    score: float
    label_places: tuple[float, float]  # the first and last that rows with this label have among all labels
    score_place: float
    gap: float  # how far the score's place is above those of the label, or below: from -1 to 1
    preview: Sequence[str]  # the beginnings of its texts
    columns: Mapping[str, str]  # all others than label and score; empty where there is no more room


def shown_pairs(evaluation: PairsEvaluation) -> list[list[ShownPair]]:
    """The rows of each run, those that are furthest apart first."""
    most, left, shown = min(_MOST_ROWS, _ROWS // len(evaluation.runs)), _TEXT_BYTES, list[list[ShownPair]]()
    for run in evaluation.runs:
        pairs = []
        for pair in _furthest(run, most):
            left -= sum(len(str(escape(text)).encode()) for text in (*pair.columns, *pair.columns.values()))
            pairs.append(pair if left >= 0 else replace(pair, columns={}))
        shown.append(pairs)
    return shown


def _furthest(run: PairsEvaluated, most: int) -> list[ShownPair]:
    table = read_pairs(run.run, run.label_column, run.score_column)
    labels, scores = (np.asarray(table[name].to_numpy(), np.float64) for name in ("label", "score"))  # null is NaN
    known = np.flatnonzero(np.isfinite(labels) & np.isfinite(scores))
    (first, last), score_places = _places(labels[known]), np.mean(_places(scores[known]), axis=0)
    gaps = score_places - np.clip(score_places, first, last)
    order = np.argsort(-gaps, kind="stable")
    chosen = np.concatenate([order[: most // 2], order[::-1][: most // 2]])
    chosen = np.unique(chosen[gaps[chosen] != 0])
    chosen = chosen[np.argsort(-np.abs(gaps[chosen]), kind="stable")]
    rows = known[chosen].tolist()
    with closing(open_source([run.run])) as source:
        found = rows_at(source, list(source.units(_UNIT)), rows, [run.label_column, run.score_column])
    texts = _longest([found[row] for row in rows])
    return [
        ShownPair(
            row=row,
            label=float(labels[row]),
            score=float(scores[row]),
            label_places=(float(first[place]), float(last[place])),
            score_place=float(score_places[place]),
            gap=float(gaps[place]),
            preview=[cut(found[row][name], _PREVIEW) for name in texts],
            columns={name: cut(text) for name, text in found[row].items()},
        )
        for row, place in zip(rows, chosen.tolist(), strict=True)
    ]


def _places(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """float64 [2, n]: the first and last place of equal values, from 0 for the lowest to 1 for the highest."""
    ordered = np.sort(values)
    ends = [np.searchsorted(ordered, values), np.searchsorted(ordered, values, side="right") - 1]
    return np.array(ends) / max(1, len(values) - 1)


def _longest(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """The columns that have most to read, in their order."""
    if not rows:
        return []
    sizes = {name: sum(len(row[name]) for row in rows) for name in rows[0]}
    longest = sorted(sizes, key=lambda name: -sizes[name])[:_PREVIEWS]
    return [name for name in sizes if name in longest]
