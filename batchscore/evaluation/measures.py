"""Measures of a run by ir-measures, which asks trec_eval's own code and others like it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from batchscore.errors import MissingDependencyError, UsageError
from batchscore.evaluation.rankings import Judgements, Ranking, Run, reordered
from batchscore.evaluation.statistics import Values, mean_interval

Measure = Any  # of ir_measures, which has no types
_HINT = "names are those of ir-measures: nDCG@10, RR@10, AP@100, R@100, P@5, Success@5, ..."


@dataclass(frozen=True, slots=True)
class Measured:
    """A measure over the judged queries."""

    name: str
    values: Values  # [queries]; a query without results has 0
    interval: tuple[float, float]  # of the mean: 95 %
    worst: float  # mean if the order of equal scores were the worst one,
    best: float  # or the best

    @property
    def mean(self) -> float:
        """Over all judged queries."""
        return float(self.values.mean())


@dataclass(frozen=True, slots=True)
class Ties:
    """Equal scores of a run, within the judged queries."""

    results: int  # that share their score with another result of the query
    queries: int  # that have such results


@dataclass(frozen=True, slots=True)
class Evaluated:
    """What is known of a run."""

    run: str  # its path
    queries: Sequence[str]  # judged ones, in the order of all values
    measures: Sequence[Measured]
    ties: Ties
    results: int  # of judged queries
    unjudged: dict[str, float]  # "@10" -> share of the first ten results that nobody judged
    without_results: Sequence[str]  # judged queries that the run lacks
    not_judged: int  # queries of the run that have no judgements, and are left out


def parse_measures(text: str) -> list[Measure]:
    """Measures from names with blanks or commas between; UsageError for others."""
    try:
        import ir_measures
    except ImportError as error:
        raise MissingDependencyError(
            "evaluation needs the package ir-measures", hint="pip install 'batchscore[eval]'"
        ) from error
    measures = []
    for name in text.replace(",", " ").split():
        try:
            measures.append(ir_measures.parse_measure(name))
        except (NameError, ValueError) as error:
            raise UsageError(f"measure {name!r} is unknown", hint=_HINT) from error
    if not measures:
        raise UsageError("--metrics names no measure", hint=_HINT)
    return list(dict.fromkeys(measures))


def evaluate(path: str, run: Run, judged: Judgements, measures: Sequence[Measure]) -> Evaluated:
    """Measure a run; raises UsageError for a measure that no installed package computes."""
    import ir_measures

    queries = sorted(judged)
    kept = {query: run[query] for query in queries if query in run}
    tied = {query: ranking for query, ranking in kept.items() if len(set(ranking.scores)) < len(ranking.scores)}
    values = _values(kept, judged, measures, queries)
    orders = []
    for best in (False, True):
        others = {query: reordered(ranking, judged[query], best=best) for query, ranking in tied.items()}
        changed = _values(others, judged, measures, list(tied)) if tied else np.empty((len(measures), 0))
        whole = values.copy()
        whole[:, np.searchsorted(queries, list(tied))] = changed
        orders.append(whole.mean(axis=1))
    depths = sorted({measure.params.get("cutoff") or 0 for measure in measures} - {0}) or [10]
    judged_at = [ir_measures.Judged @ depth for depth in depths]
    shares = _values(kept, judged, judged_at, list(kept)).mean(axis=1) if kept else np.ones(len(depths))
    return Evaluated(
        path,
        queries,
        [
            Measured(str(measure), row, mean_interval(row), float(worst), float(best))
            for measure, row, worst, best in zip(measures, values, *orders, strict=True)
        ],
        Ties(sum(map(_num_tied, tied.values())), len(tied)),
        sum(len(ranking.documents) for ranking in kept.values()),
        {f"@{depth}": 1 - float(share) for depth, share in zip(depths, shares, strict=True)},
        [query for query in queries if query not in kept],
        len(run) - len(kept),
    )


def _values(run: Run, judged: Judgements, measures: Sequence[Measure], queries: Sequence[str]) -> NDArray[np.float64]:
    """float64 [measures, queries], 0 for a query without results."""
    import ir_measures

    places = {query: place for place, query in enumerate(queries)}
    rows = {measure: row for row, measure in enumerate(measures)}
    values = np.zeros((len(measures), len(queries)))
    # numbers that fall from rank to rank stand for scores: no other rule for equal scores then has a say
    ranks = {query: _descending(ranking) for query, ranking in run.items()}
    relevance = {query: dict(judged[query]) for query in queries}
    try:
        for found in ir_measures.iter_calc(measures, relevance, ranks):
            values[rows[found.measure], places[found.query_id]] = found.value
    except (ValueError, RuntimeError) as error:
        names = ", ".join(map(str, measures))
        raise UsageError(f"cannot compute {names}: {error}", hint=_HINT) from error
    return values


def _descending(ranking: Ranking) -> dict[str, float]:
    return dict(zip(ranking.documents, map(float, range(len(ranking.documents), 0, -1)), strict=True))


def _num_tied(ranking: Ranking) -> int:
    _, counts = np.unique(ranking.ties(), return_counts=True)
    return int(counts[counts > 1].sum())
