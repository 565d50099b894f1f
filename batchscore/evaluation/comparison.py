"""Runs against a baseline, and the gate that a nightly job ends at."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from batchscore.errors import UsageError
from batchscore.evaluation.measures import Evaluated
from batchscore.evaluation.statistics import holm, paired_p_value

SIGNIFICANT = 0.05


@dataclass(frozen=True, slots=True)
class Comparison:
    """A measure of a run, less that of the baseline."""

    run: str
    baseline: str
    measure: str
    difference: float  # of the means
    better: int  # queries
    worse: int
    p_value: float  # of the paired randomisation test, by itself
    adjusted: float  # the same by Holm, over all comparisons of this call


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a gate stays shut."""

    run: str
    measure: str
    message: str


def compare(baseline: Evaluated, others: Sequence[Evaluated]) -> list[Comparison]:
    """Each of the other runs against the baseline, measure by measure."""
    pairs = [
        (other, ours, theirs)
        for other in others
        for ours, theirs in zip(other.measures, baseline.measures, strict=True)
    ]
    p_values = [paired_p_value(ours.values, theirs.values) for _, ours, theirs in pairs]
    return [
        Comparison(
            run=other.run,
            baseline=baseline.run,
            measure=ours.name,
            difference=float((ours.values - theirs.values).mean()),
            better=int((ours.values > theirs.values).sum()),
            worse=int((ours.values < theirs.values).sum()),
            p_value=p_value,
            adjusted=adjusted,
        )
        for (other, ours, theirs), p_value, adjusted in zip(pairs, p_values, holm(p_values), strict=True)
    ]


def parse_limits(texts: Sequence[str], names: Sequence[str], named: Callable[[str], str] = str) -> dict[str, float]:
    """Measure -> least mean, from "nDCG@10=0.70"; UsageError for others, and for measures that are not computed.

    `named` gives a measure the name that it has in `names`.
    """
    limits = {}
    for text in texts:
        match = re.fullmatch(r"(.+?)\s*=\s*(-?(?:\d+\.?\d*|\.\d+))", text.strip())
        if match is None:
            raise UsageError(f"--fail-under {text!r} is not a measure and a number", hint="--fail-under nDCG@10=0.70")
        name = named(match[1])
        if name not in names:
            raise UsageError(
                f"--fail-under names {match[1]}, which is not measured; measures: {', '.join(names)}",
                hint="add it to --metrics",
            )
        limits[name] = float(match[2])
    return limits


def below(means: Mapping[str, float], limits: Mapping[str, float], run: str) -> list[Failure]:
    """The measures of a run that are less than their limits."""
    return [
        Failure(run, name, f"{name} {means[name]:.4f} is less than {least:g}")
        for name, least in limits.items()
        if not means[name] >= least  # as for a value that is not a number
    ]


def dropped(comparisons: Sequence[Comparison], max_drop: float, *, significant: bool) -> list[Failure]:
    """The measures that fell by more than `max_drop`; with `significant`, only where the paired test confirms it."""
    return [
        Failure(
            comparison.run,
            comparison.measure,
            f"{comparison.measure} fell by {-comparison.difference:.4f} against {comparison.baseline} "
            f"(at most {max_drop:g}; p {comparison.adjusted:.2g})",
        )
        for comparison in comparisons
        # likewise for a difference that is not a number
        if not -comparison.difference <= max_drop and (not significant or comparison.adjusted < SIGNIFICANT)
    ]
