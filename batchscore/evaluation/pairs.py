"""Scores of pairs against labels: correlations for grades, and what a classifier is measured by for yes and no."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from batchscore.errors import InputError, MissingDependencyError, UsageError
from batchscore.evaluation.statistics import Values, statistic_interval
from batchscore.io.source import open_source
from batchscore.io.values import as_numbers

_ROWS = 65_536
_BINS = 10  # of calibration


@dataclass(frozen=True, slots=True)
class PairMeasure:
    """A measure over all pairs."""

    name: str
    value: float
    interval: tuple[float, float]  # 95 %, by resampling rows
    note: str = ""


@dataclass(frozen=True, slots=True)
class PairsEvaluated:
    """What is known of a file of scored pairs."""

    run: str
    pairs: int
    left_out: int  # without a score or a label
    measures: Sequence[PairMeasure]
    label_column: str
    score_column: str


def evaluate_pairs(
    path: str, label_column: str = "label", score_column: str = "score", names: Sequence[str] | None = None
) -> PairsEvaluated:
    """Measure the scores of a file against its labels.

    Args:
        path: an output of `score`, or any file with both columns.
        label_column: numbers or booleans.
        score_column: numbers.
        names: of `MEASURES`; None: all that the labels allow, which are all of them only if the labels are 0 and 1.

    Raises:
        InputError: a column is missing or does not hold finite numbers; there are fewer than two pairs.
        UsageError: an unknown measure, or one that needs labels 0 and 1.
    """
    _require_packages()
    table = read_pairs(path, label_column, score_column)
    kept = table.filter(pc.and_(pc.is_valid(table["label"]), pc.is_valid(table["score"])))
    labels, scores = kept["label"].to_numpy(), kept["score"].to_numpy()
    for values, column in ((labels, label_column), (scores, score_column)):
        if not np.isfinite(values).all():
            raise InputError(f"{path}: column {column!r} has a value that is no number", hint="leave such rows out")
    if len(kept) < 2:
        raise InputError(f"{path} has {len(kept)} pairs with a score and a label", hint="measures need two or more")
    is_binary = set(np.unique(labels)) == {0.0, 1.0}
    chosen = list(dict.fromkeys(names or ())) or [
        name for name, measure in MEASURES.items() if is_binary or not measure.is_binary
    ]
    measures = []
    for name in chosen:
        if name not in MEASURES:
            raise UsageError(f"measure {name!r} is unknown for pairs", hint=f"choices: {', '.join(MEASURES)}")
        measure = MEASURES[name]
        if measure.is_binary and not is_binary:
            raise UsageError(f"{name} needs labels 0 and 1; {label_column!r} has others", hint="choose other measures")
        if measure.is_of_chances and (scores.min() < 0 or scores.max() > 1):
            if names:
                raise UsageError(f"{name} needs scores from 0 to 1", hint="score with --use-activation")
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # equal values have no correlation: not a number
            value = measure.function(labels, scores)
        note = measure.note(labels, scores) if measure.note else ""
        measures.append(PairMeasure(name, value, statistic_interval(measure.function, (labels, scores)), note))
    return PairsEvaluated(path, len(kept), len(table) - len(kept), measures, label_column, score_column)


@dataclass(frozen=True, slots=True)
class _Measure:
    function: Callable[[Values, Values], float]  # (labels, scores)
    is_binary: bool = False  # needs labels 0 and 1
    is_of_chances: bool = False  # needs scores from 0 to 1
    note: Callable[[Values, Values], str] | None = None


def _spearman(labels: Values, scores: Values) -> float:
    from scipy.stats import spearmanr

    return float(spearmanr(labels, scores).statistic)


def _pearson(labels: Values, scores: Values) -> float:
    return float(np.corrcoef(labels, scores)[0, 1])


def _average_precision(labels: Values, scores: Values) -> float:
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(labels, scores)) if labels.any() else float("nan")


def _roc_auc(labels: Values, scores: Values) -> float:
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(labels, scores)) if len(set(labels)) == 2 else float("nan")


def _accuracy(labels: Values, scores: Values) -> float:
    return _best_threshold(labels, scores)[0]


def _best_threshold(labels: Values, scores: Values) -> tuple[float, float]:
    """(the highest accuracy, the least score that counts as yes there)."""
    order = np.argsort(-scores, kind="stable")
    found = np.concatenate([[0], np.cumsum(labels[order])])
    yes = np.arange(len(labels) + 1)
    right = found + (len(labels) - labels.sum()) - (yes - found)
    possible = np.concatenate([[True], np.diff(scores[order]) != 0, [True]])  # equal scores are on one side
    place = int(np.flatnonzero(possible)[np.argmax(right[possible])])
    threshold = scores[order][place - 1] if place else np.inf
    return float(right[place] / len(labels)), float(threshold)


def _brier(labels: Values, scores: Values) -> float:
    return float(np.mean((scores - labels) ** 2))


def _calibration_error(labels: Values, scores: Values) -> float:
    """Expected calibration error over ten bins of equal width (Naeini et al., 2015)."""
    bins = np.minimum((scores * _BINS).astype(int), _BINS - 1)
    gaps = np.bincount(bins, weights=scores - labels, minlength=_BINS)
    return float(np.abs(gaps).sum() / len(labels))


MEASURES = {
    "spearman": _Measure(_spearman),
    "pearson": _Measure(_pearson),
    "ap": _Measure(_average_precision, is_binary=True),
    "roc_auc": _Measure(_roc_auc, is_binary=True),
    "accuracy": _Measure(
        _accuracy, is_binary=True, note=lambda labels, scores: f"at score >= {_best_threshold(labels, scores)[1]:.6g}"
    ),
    "brier": _Measure(_brier, is_binary=True, is_of_chances=True),
    "ece": _Measure(_calibration_error, is_binary=True, is_of_chances=True),
}


def _require_packages() -> None:
    try:
        import scipy  # noqa: F401
        import sklearn  # noqa: F401
    except ImportError as error:
        message = "evaluation of pairs needs the packages scipy and scikit-learn"
        raise MissingDependencyError(message, hint="pip install 'batchscore[eval]'") from error


def read_pairs(path: str, label_column: str, score_column: str) -> pa.Table:
    """Columns `label` and `score`, float64 with nulls, of all rows of a file; raises as `evaluate_pairs`."""
    wanted = {"label": label_column, "score": score_column}
    tables = []
    with closing(open_source([path])) as source:
        source.require({label_column: "--label-column", score_column: "--score-column"})
        for unit in source.units(_ROWS):
            table = source.read(unit, list(wanted.values()), {}).table
            tables.append(pa.table({name: as_numbers(table[column], column, path) for name, column in wanted.items()}))
    return pa.concat_tables(tables)
