"""How sure a mean is, and whether two runs differ: resampling over queries, with a seed, so that nights agree."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]

_SEED = 20_251
_RESAMPLES = 9_999
_NUMBERS = 20_000_000  # that all resamples of a statistic over pairs of rows may read: some seconds
_AT_ONCE = 2**22  # numbers in memory
LEVEL = 0.95


def mean_interval(values: Values) -> tuple[float, float]:
    """The 95 % bootstrap interval of a mean over queries (percentiles of 9,999 resamples; Efron, 1979).

    A single value, or values that are all equal, have no spread: both ends are the mean.
    """
    from scipy.stats import bootstrap

    if len(values) < 2 or np.ptp(values) == 0:
        return float(values.mean()), float(values.mean())
    found = bootstrap(
        (values,),
        np.mean,
        n_resamples=_RESAMPLES,
        confidence_level=LEVEL,
        method="percentile",
        batch=max(1, _AT_ONCE // len(values)),
        rng=np.random.default_rng(_SEED),
    ).confidence_interval
    return float(found.low), float(found.high)


def statistic_interval(statistic: Callable[..., float], columns: Sequence[Values]) -> tuple[float, float]:
    """The 95 % percentile interval of a statistic over rows, which are drawn together from all columns."""
    generator, size = np.random.default_rng(_SEED), len(columns[0])
    count = int(np.clip(_NUMBERS // max(1, size), 100, 2_000))
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a draw of equal values has no correlation, and is left out
        for _ in range(count):
            rows = generator.integers(0, size, size)
            found.append(statistic(*(column[rows] for column in columns)))
        low, high = np.nanpercentile(found, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return float(low), float(high)


def paired_p_value(values: Values, baseline: Values) -> float:
    """Two-sided p of a paired randomisation test (Fisher): how often random signs make as large a mean difference.

    Exact for up to 13 queries that differ, else over 9,999 draws, so that no p is less than 1 in 10,000.
    """
    from scipy.stats import permutation_test

    differences = values - baseline
    differences = differences[differences != 0]
    if len(differences) < 2:
        return 1.0
    found = permutation_test(
        (differences,),
        np.mean,
        permutation_type="samples",
        vectorized=True,
        n_resamples=_RESAMPLES,
        batch=max(1, _AT_ONCE // len(differences)),
        rng=np.random.default_rng(_SEED),
    )
    return float(found.pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjustment of the p-values of several comparisons (1979), in the same order."""
    order = np.argsort(p_values, kind="stable")
    steps = np.asarray(p_values, float)[order] * np.arange(len(order), 0, -1)
    adjusted: NDArray[Any] = np.empty(len(order))
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return [float(value) for value in adjusted]
