"""The queries of an evaluation that a page shows, with the first results of each run and their texts.

A page shows hundreds of queries, not thousands: two thirds are those that change most, one third those that the last
run does worst. Fewer of several runs, so that the page does not grow with them. A few dozen of them have their results.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from batchscore.evaluation.evaluate import Evaluation
from batchscore.evaluation.rankings import Ranking

_ROWS = 800  # of queries and runs
_WITH_RESULTS = 120  # of queries and runs that are shown with results
_RESULTS = 5  # of a run that are shown for a query


@dataclass(frozen=True, slots=True)
class Result:
    """A result of a query."""

    rank: int
    document: str
    score: float
    relevance: int | None  # None: nobody judged it


@dataclass(frozen=True, slots=True)
class Missed:
    """A relevant document that no run has among its first results."""

    document: str
    relevance: int
    ranks: Sequence[int | None]  # in each run


@dataclass(frozen=True, slots=True)
class ShownQuery:
    """A query in the table."""

    number: int  # in the evaluation's order
    query: str
    values: Sequence[Sequence[float]]  # [runs][measures]
    changes: Sequence[float]  # of the first measure, of each run but the first
    results: Sequence[Sequence[Result]]  # [runs]; empty: without results, or the query is shown without them
    missed: Sequence[Missed]
    is_open: bool  # whether its results are shown


def shown_queries(evaluation: Evaluation) -> list[ShownQuery]:
    """The queries of the table: those that change most first, or those with the least value of a single run."""
    values = np.array(
        [[measure.values for measure in run.measures] for run in evaluation.runs]
    )  # runs, measures, queries
    changes = values[1:, 0] - values[0, 0]
    order = _order(values[:, 0], changes)
    names = evaluation.runs[0].queries
    runs = max(2, len(evaluation.runs))
    chosen = {names[place] for place in _picked(order, values[-1, 0], _WITH_RESULTS // runs)}
    order = order[np.isin(order, _picked(order, values[-1, 0], _ROWS // runs))]
    judged = evaluation.judged
    shown = []
    for place in order.tolist():
        query = names[place]
        is_open = query in chosen
        found = [run.rankings.get(query) if is_open else None for run in evaluation.runs]
        shown.append(
            ShownQuery(
                place,
                query,
                values[:, :, place].tolist(),
                changes[:, place].tolist(),
                [_results(ranking, judged[query]) for ranking in found],
                _missed(found, judged[query]) if is_open else [],
                is_open,
            )
        )
    return shown


def _order(values: NDArray[np.float64], changes: NDArray[np.float64]) -> NDArray[np.int64]:
    """int64 [queries]: the greatest changes by any run first; of a single run, or of equal ones, the least values."""
    greatest = np.abs(changes).max(axis=0, initial=0.0)
    return np.lexsort((values[-1], -greatest))


def _picked(order: NDArray[np.int64], values: NDArray[np.float64], most: int) -> NDArray[np.int64]:
    """The first queries in this order, and for a third of `most` those with the least values."""
    worst = np.argsort(values, kind="stable")[: most // 3]
    return np.union1d(worst, order[~np.isin(order, worst)][: most - len(worst)])


def _results(ranking: Ranking | None, judged: Mapping[str, int]) -> list[Result]:
    if ranking is None:
        return []
    first = zip(ranking.documents[:_RESULTS], ranking.scores[:_RESULTS].tolist(), strict=True)
    return [Result(rank, document, score, judged.get(document)) for rank, (document, score) in enumerate(first, 1)]


def _missed(rankings: Sequence[Ranking | None], judged: Mapping[str, int]) -> list[Missed]:
    """The most relevant documents that are among no run's first results."""
    seen = {document for ranking in rankings if ranking for document in ranking.documents[:_RESULTS]}
    left = sorted((item for item in judged.items() if item[0] not in seen and item[1] > 0), key=lambda item: -item[1])
    places = [
        {document: rank for rank, document in enumerate(ranking.documents, 1)} if ranking else {}
        for ranking in rankings
    ]
    return [Missed(document, relevance, [ranks.get(document) for ranks in places]) for document, relevance in left[:3]]
