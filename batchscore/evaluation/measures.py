"""Measures of a run by ir-measures, which asks trec_eval's own code and others like it."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from batchscore.errors import MissingDependencyError, UsageError
from batchscore.evaluation.rankings import Judgements, Rankings
from batchscore.evaluation.statistics import Values, mean_interval
from batchscore.types import offsets_of

Measure = Any  # of ir_measures, which has no types
_HINT = "names are those of ir-measures: nDCG@10, RR@10, AP@100, R@100, P@5, Success@5, ..."
_NAME = r"(?:\([^)]*\)|[^\s,])+"  # blanks and commas in brackets are part of a name
_UNJUDGED = np.iinfo(np.int64).min
_AT_ONCE = 1_000_000  # results that are in memory as Python has them


@dataclass(frozen=True, slots=True)
class Measured:
    """A measure over the judged queries."""

    name: str
    values: Values  # [queries]; a query without results has 0
    interval: tuple[float, float]  # of the mean: 95 %
    worst: float  # mean if the order of equal scores were the worst one,
    best: float  # or the best

    @property
    def value(self) -> float:
        """The mean over all judged queries."""
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
    rankings: Rankings = field(repr=False)  # what was measured


def parse_measures(text: str) -> list[Measure]:
    """Measures from names with blanks or commas between; UsageError for others."""
    try:
        import ir_measures  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            "evaluation needs the package ir-measures", hint="pip install 'batchscore[eval]'"
        ) from error
    measures = list(map(parse_measure, re.findall(_NAME, text)))
    if not measures:
        raise UsageError("--metrics names no measure", hint=_HINT)
    return list(dict.fromkeys(measures))


def parse_measure(name: str) -> Measure:
    """A measure from its name; UsageError if there is none."""
    import ir_measures

    try:
        measure = _parsed(name.strip())
        measure.validate_params()
    except (LookupError, SyntaxError, TypeError, ValueError) as error:
        raise UsageError(f"measure {name!r} is unknown", hint=_HINT) from error
    except AssertionError as error:
        reason = "it needs a cutoff, as in P@10" if "cutoff=<" in str(error) else str(error)
        raise UsageError(f"measure {name!r} cannot be computed: {reason}", hint=_HINT) from error
    if measure.params.get("cutoff", 1) < 1:
        raise UsageError(f"measure {name!r} has a cutoff below 1", hint=_HINT)
    if ir_measures.pyndeval.supports(measure):
        raise UsageError(f"measure {name!r} needs subtopics, which judgements here do not have", hint=_HINT)
    return measure


def _parsed(name: str) -> Measure:
    """`nDCG(dcg='exp-log2')@10`; ir-measures' own parser needs parts of `ast` that Python 3.14 no longer has."""
    import ir_measures

    node: ast.expr = ast.parse(name, mode="eval").body
    parameters, cutoff = {}, None
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.MatMult):
        cutoff = ast.literal_eval(node.right)
        node = node.left
    if isinstance(node, ast.Call) and not node.args:
        parameters = {str(one.arg): ast.literal_eval(one.value) for one in node.keywords}
        node = node.func
    if not isinstance(node, ast.Name):
        raise ValueError("no name with parameters in brackets and a cutoff behind @")
    kind = ir_measures.measures.registry[node.id]
    return kind(**parameters, **({} if cutoff is None else {kind.AT_PARAM: cutoff}))


def require_computable(measures: Sequence[Measure], judged: Judgements) -> None:
    """Raise UsageError for a measure that no installed package computes for such relevances."""
    grades = sorted({grade for documents in judged.values() for grade in documents.values()})
    relevances = {"1": {str(number): grade for number, grade in enumerate(grades)}}
    for measure in measures:
        _compute(measure, relevances, {"1": {"0": 2.0, "-1": 1.0}})


def evaluate(path: str, run: Rankings, judged: Judgements, measures: Sequence[Measure]) -> Evaluated:
    """Measure a run; raises UsageError if a measure cannot be computed."""
    queries = sorted(judged)
    results = _Results.of(run, judged, queries)
    values = _values(results, results.judgements, measures, np.arange(len(queries)))
    depths = sorted({measure.params.get("cutoff", 0) for measure in measures} - {0}) or [10]
    tied = results.tied()
    orders = []
    for best in (False, True):
        order = results.reordered(tied, best=best)
        moved = results.grades(order[tied]) != results.grades(results.judgements[tied])
        changed = np.unique(results.queries[tied[moved]])
        whole = values.copy()
        whole[:, changed] = _values(results, order, measures, changed)
        orders.append(whole.mean(axis=1))
    return Evaluated(
        run=path,
        queries=queries,
        measures=[
            Measured(str(measure), row, mean_interval(row), float(worst), float(best))
            for measure, row, worst, best in zip(measures, values, *orders, strict=True)
        ],
        ties=Ties(len(tied), len(np.unique(results.queries[tied]))),
        results=len(results.queries),
        unjudged={f"@{depth}": results.unjudged(depth) for depth in depths},
        without_results=[query for query in queries if query not in run],
        not_judged=len(run) - sum(query in judged for query in run),
        rankings=run,
    )


@dataclass(frozen=True, slots=True)
class _Results:
    """The results of judged queries as measures see them: which documents they are does not matter.

    Providers of ir-measures get numbers for ids: some take no others, or cut them.
    """

    queries: NDArray[np.int64]  # [results], ascending: the number of the query
    bounds: NDArray[np.int64]  # [queries + 1], where the results of each begin
    scores: NDArray[np.float64]  # [results], descending within a query
    judgements: NDArray[np.int64]  # [results], the number of the result's judgement, or -1
    names: Sequence[str]  # [judgements], of documents
    relevances: NDArray[np.int64]  # [judgements]
    limits: NDArray[np.int64]  # [queries + 1], where the judgements of each query begin

    @classmethod
    def of(cls, run: Rankings, judged: Judgements, queries: Sequence[str]) -> _Results:
        """The run's results of queries, in this order."""
        limits = offsets_of([len(judged[query]) for query in queries])
        relevances = np.array([relevance for query in queries for relevance in judged[query].values()], np.int64)
        kind = run.documents.type
        known = pa.array([name for query in queries for name in judged[query]], kind).dictionary_encode()
        numbers = {query: number for number, query in enumerate(queries)}
        of_run = np.array([numbers.get(query, -1) for query in run], np.int64)  # of judged queries ascending, as there
        owners = np.repeat(of_run, np.diff(run.bounds))
        kept = np.flatnonzero(owners >= 0)
        documents = pc.index_in(run.documents, known.dictionary).fill_null(-1).to_numpy()[kept].astype(np.int64)
        owners = owners[kept]
        # a judgement and a result are of the same document and query if these numbers are equal
        size = len(known.dictionary)
        pairs = np.repeat(np.arange(len(queries)), np.diff(limits)) * size + known.indices.to_numpy()
        order = np.argsort(pairs)
        wanted = owners * size + documents
        places = np.minimum(np.searchsorted(pairs[order], wanted), len(pairs) - 1)
        judgements = np.where((documents >= 0) & (pairs[order][places] == wanted), order[places], -1)
        bounds = np.searchsorted(owners, np.arange(len(queries) + 1))
        return cls(owners, bounds, run.scores[kept], judgements, list(map(str, range(len(pairs)))), relevances, limits)

    def grades(self, judgements: NDArray[np.int64], unjudged: int = _UNJUDGED) -> NDArray[np.int64]:
        """int64 [judgements], the relevance of each."""
        found: NDArray[np.int64] = np.where(judgements >= 0, self.relevances[judgements], unjudged)
        return found

    def tied(self) -> NDArray[np.int64]:
        """int64, the results that share their score with another one of the query."""
        same = (np.diff(self.queries) == 0) & (self.scores[1:] == self.scores[:-1])
        return np.flatnonzero(np.append(same, False) | np.append(False, same))

    def reordered(self, tied: NDArray[np.int64], *, best: bool) -> NDArray[np.int64]:
        """`judgements`, the tied ones in the order that is best, or worst, for what is judged."""
        relevances = self.grades(self.judgements[tied], unjudged=0)
        order = np.lexsort((-relevances if best else relevances, -self.scores[tied], self.queries[tied]))
        judgements: NDArray[np.int64] = self.judgements.copy()
        judgements[tied] = judgements[tied[order]]
        return judgements

    def unjudged(self, depth: int) -> float:
        """The share of the first results that nobody judged, on average over queries."""
        first = np.arange(len(self.queries)) - self.bounds[self.queries] < depth
        of_queries = self.queries[first]
        counts, judged = np.bincount(of_queries), np.bincount(of_queries, weights=self.judgements[first] >= 0)
        return 1 - float(np.mean(judged[counts > 0] / counts[counts > 0])) if len(counts) else 0.0


def _values(
    results: _Results, judgements: NDArray[np.int64], measures: Sequence[Measure], queries: NDArray[np.int64]
) -> NDArray[np.float64]:
    """float64 [measures, queries], 0 for a query without results; `judgements` are those of the results, best first."""
    values = np.zeros((len(measures), len(queries)))
    longest = int(np.diff(results.bounds).max(initial=0))
    others = [f"-{rank}" for rank in range(longest)]  # names of documents that nobody judged
    # numbers that fall from rank to rank stand for scores: no other rule for equal scores then has a say
    falling = list(map(float, range(longest, 0, -1)))
    for measure, row in zip(measures, values, strict=True):  # one by one: ir-measures mixes some up that are alike
        depth = longest if measure.params.get("judged_only") else measure.params.get("cutoff", longest)
        at_once = max(1, _AT_ONCE // max(1, depth))
        for start in range(0, len(queries), at_once):
            relevances, ranks = {}, {}
            for place, query in enumerate(queries[start : start + at_once].tolist(), start):
                few = slice(*results.limits[query : query + 2].tolist())
                relevances[str(place)] = dict(zip(results.names[few], results.relevances[few].tolist(), strict=True))
                begin, end = results.bounds[query : query + 2].tolist()
                if begin < end:
                    found = judgements[begin : min(end, begin + depth)]
                    documents = others[: len(found)]
                    for rank in np.flatnonzero(found >= 0).tolist():
                        documents[rank] = results.names[found[rank]]
                    ranks[str(place)] = dict(zip(documents, falling, strict=False))
            for query, value in _compute(measure, relevances, ranks):
                row[int(query)] = value
    return values


def _compute(
    measure: Measure, relevances: Mapping[str, Mapping[str, int]], ranks: Mapping[str, Mapping[str, float]]
) -> list[tuple[str, float]]:
    """(query, value) for all queries; UsageError if it cannot be computed."""
    import ir_measures

    try:
        return [(found.query_id, found.value) for found in ir_measures.iter_calc([measure], relevances, ranks)]
    except subprocess.CalledProcessError as error:  # gdeval
        raise UsageError(f"cannot compute {measure}: gdeval takes relevance up to 4", hint=_HINT) from error
    except Exception as error:  # of any of the packages that ir-measures calls
        reason, *packages = re.split(r"\n| The following", str(error) or repr(error))
        installed = "; ".join(re.findall(r"\((.+)\)$", "\n".join(packages), re.MULTILINE))
        raise UsageError(f"cannot compute {measure}: {reason}", hint=installed or _HINT) from error
