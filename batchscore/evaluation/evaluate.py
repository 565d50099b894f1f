"""Files in, an evaluation out: what `batchscore eval` prints, and what its exit code depends on."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa

from batchscore.errors import GateError, UsageError
from batchscore.evaluation.comparison import Comparison, Failure, below, compare, dropped, parse_limits
from batchscore.evaluation.measures import (
    Evaluated,
    Measure,
    evaluate,
    parse_measure,
    parse_measures,
    require_computable,
)
from batchscore.evaluation.pairs import PairsEvaluated, evaluate_pairs
from batchscore.evaluation.rankings import Judgements, read_judgements, read_rankings, require_overlap
from batchscore.io.outputs import chosen_format
from batchscore.io.sink import open_sink

USUAL_MEASURES = "nDCG@10 RR@10 AP@100 R@100"
_TABLES = ("parquet", "jsonl", "csv", "tsv")  # formats of values


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Runs measured by the same judgements."""

    qrels: str
    runs: Sequence[Evaluated]  # in the order given; the baseline first, if there is one
    comparisons: Sequence[Comparison]  # of every other run with the first
    failures: Sequence[Failure]  # of the gate
    judged: Judgements = field(repr=False)  # query -> document -> relevance

    def describe(self) -> dict[str, Any]:
        """What `batchscore eval --json` prints: JSON-able."""
        return {
            "qrels": self.qrels,
            "queries": len(self.runs[0].queries),
            "runs": [_described(run) for run in self.runs],
            "comparisons": list(map(asdict, self.comparisons)),
            "failures": list(map(asdict, self.failures)),
        }

    def per_query(self) -> pa.Table:
        """One row a run and query: run, query_id and a column of float64 for each measure."""
        tables = []
        for run in self.runs:
            columns = {"run": [run.run] * len(run.queries), "query_id": list(run.queries)}
            tables.append(pa.table({**columns, **{measure.name: measure.values for measure in run.measures}}))
        return pa.concat_tables(tables)

    def require_pass(self) -> None:
        """Raise GateError if a measure is too low or has fallen too far."""
        _require_pass(self.failures)


@dataclass(frozen=True, slots=True)
class PairsEvaluation:
    """Scored pairs, file by file."""

    runs: Sequence[PairsEvaluated]
    failures: Sequence[Failure]

    def describe(self) -> dict[str, Any]:
        """What `batchscore eval --task pairs --json` prints: JSON-able."""
        runs = [asdict(run) for run in self.runs]
        for measure in (measure for run in runs for measure in run["measures"]):
            measure["value"], *measure["interval"] = map(_known, (measure["value"], *measure["interval"]))
        return {"runs": runs, "failures": list(map(asdict, self.failures))}

    def require_pass(self) -> None:
        """Raise GateError if a measure is too low."""
        _require_pass(self.failures)


@dataclass(frozen=True, slots=True)
class Criteria:
    """What runs are measured by, and how good they have to be."""

    qrels: str
    judged: Judgements
    measures: Sequence[Measure]
    limits: Mapping[str, float]

    @classmethod
    def read(cls, qrels: str, metrics: str, fail_under: Sequence[str] | None, split: str | None = None) -> Criteria:
        """Arguments as of `evaluate_runs`; `split` is that of judgements in a dataset. Raises as it does."""
        measures = parse_measures(metrics)
        limits = parse_limits(fail_under or (), list(map(str, measures)), lambda name: str(parse_measure(name)))
        judged = read_judgements(qrels, split)
        require_computable(measures, judged)  # before a run is read, or made
        return cls(qrels, judged, measures, limits)

    def measured(self, run: str) -> Evaluated:
        """A run by itself; InputError if it cannot be read, or has none of the judged queries."""
        rankings = read_rankings(run)
        require_overlap(rankings, self.judged, run, self.qrels)
        return evaluate(run, rankings, self.judged, self.measures)

    def evaluation(
        self,
        runs: Sequence[Evaluated],
        baseline: Evaluated | None,
        *,
        max_drop: float | None = None,
        significant: bool = False,
    ) -> Evaluation:
        """Runs compared with a baseline, or with the first of them; arguments as of `evaluate_runs`."""
        everything = [*([baseline] if baseline else []), *runs]
        comparisons = compare(everything[0], everything[1:])
        failures = [failure for run in runs for failure in below(_values(run), self.limits, run.run)]
        if max_drop is not None:
            failures += dropped(comparisons, max_drop, significant=significant)
        return Evaluation(self.qrels, everything, comparisons, failures, self.judged)


def evaluate_runs(
    runs: Sequence[str | os.PathLike[str]],
    qrels: str | os.PathLike[str],
    *,
    metrics: str = USUAL_MEASURES,
    baseline: str | os.PathLike[str] | None = None,
    max_drop: float | None = None,
    significant: bool = False,
    fail_under: Sequence[str] | None = None,
    out: str | os.PathLike[str] | None = None,
) -> Evaluation:
    """Evaluate runs, as `batchscore eval` does.

    Args:
        runs: outputs of `rerank`, or runs in another format that is read.
        qrels: judgements.
        metrics: names of ir-measures.
        baseline: a run to compare the others with; None: the first of several.
        max_drop: how far a mean may fall below the baseline's; None: any distance.
        significant: of such a drop only count what the paired test confirms (p < 0.05 after Holm).
        fail_under: like "nDCG@10=0.70", of all runs but the baseline.
        out: file for the values of each query.

    Raises:
        InputError, UsageError: a file or an option that cannot be used.
        MissingDependencyError: the packages of `batchscore[eval]`.
    """
    if max_drop is not None and baseline is None:
        raise UsageError("--max-drop needs a --baseline", hint="name the run of yesterday")
    if significant and max_drop is None:
        raise UsageError("--significant is about --max-drop", hint="pass --max-drop 0, for any drop")
    if out is not None and chosen_format(os.fspath(out)).name not in _TABLES:
        raise UsageError(
            f"cannot write values of queries to {os.fspath(out)}", hint="name a .parquet, .jsonl, .csv or .tsv"
        )
    criteria = Criteria.read(os.fspath(qrels), metrics, fail_under)
    known = [criteria.measured(os.fspath(run)) for run in runs]
    against = None if baseline is None else criteria.measured(os.fspath(baseline))
    evaluation = criteria.evaluation(known, against, max_drop=max_drop, significant=significant)
    if out is not None:
        with open_sink(os.fspath(out)) as sink:
            sink.write(evaluation.per_query())
    return evaluation


def evaluate_scores(
    runs: Sequence[str | os.PathLike[str]],
    *,
    metrics: str | None = None,
    label_column: str = "label",
    score_column: str = "score",
    fail_under: Sequence[str] | None = None,
) -> PairsEvaluation:
    """Evaluate scores of pairs against a column of labels, as `batchscore eval --task pairs` does.

    Args:
        runs: outputs of `score`, or any files with both columns.
        metrics: names of measures, with spaces or commas between them; None: all that the labels allow.
        label_column: numbers or booleans.
        score_column: numbers.
        fail_under: like "spearman=0.80", of all runs.

    Raises:
        InputError, UsageError, MissingDependencyError: as `evaluate_runs`.
    """
    names = metrics.replace(",", " ").split() if metrics else None
    found = [evaluate_pairs(os.fspath(run), label_column, score_column, names) for run in runs]
    limits = parse_limits(fail_under or (), [measure.name for measure in found[0].measures])
    return PairsEvaluation(found, [failure for run in found for failure in below(_values(run), limits, run.run)])


def _values(run: Evaluated | PairsEvaluated) -> Mapping[str, float]:
    return {measure.name: measure.value for measure in run.measures}


def _known(value: float) -> float | None:
    """What JSON has for a number that may be none."""
    return None if math.isnan(value) else value


def _described(run: Evaluated) -> dict[str, Any]:
    measures = {
        measure.name: {
            "mean": measure.value,
            "interval": list(measure.interval),
            "worst_ties": measure.worst,
            "best_ties": measure.best,
        }
        for measure in run.measures
    }
    return {
        "run": run.run,
        "measures": measures,
        "results": run.results,
        "ties": asdict(run.ties),
        "unjudged": run.unjudged,
        "queries_without_results": list(run.without_results),
        "queries_not_judged": run.not_judged,
    }


def _require_pass(failures: Sequence[Failure]) -> None:
    if failures:
        said: dict[str, list[str]] = {}
        for failure in failures:
            said.setdefault(failure.run, []).append(failure.message)
        raise GateError("; ".join(f"{run}: {', '.join(messages)}" for run, messages in said.items()))
