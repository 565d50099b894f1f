"""What was compared, and how it came out."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from batchscore.engine.setup import Setup
from batchscore.errors import VerificationError
from batchscore.models.reference import Library, Reference
from batchscore.verification.pairs import NamedPair

Wanted = Literal["auto", "sentence-transformers", "transformers", "none"]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Comparison:
    """Two ways to score the same pairs."""

    name: str
    expected: Floats  # [pairs], NaN where a pair is not compared
    found: Floats

    @property
    def differences(self) -> Floats:
        """[pairs], of the largest expected score or of 1; NaN where a pair is not compared."""
        scale = max(1.0, float(np.nanmax(np.abs(self.expected), initial=0.0)))
        differences: Floats = np.abs(self.expected - self.found) / scale
        return differences

    @property
    def worst(self) -> tuple[float, int]:
        """(the largest difference, its pair)."""
        differences = np.nan_to_num(self.differences, nan=-1.0)
        row = int(differences.argmax())
        return max(0.0, float(differences[row])), row

    @property
    def count(self) -> int:
        """Pairs that are compared."""
        return int(np.isfinite(self.differences).sum())


@dataclass
class Verification:
    """What was compared, and how it came out."""

    model: str
    setup: Setup
    wanted: Wanted
    tolerance: float
    pairs: list[NamedPair]
    reference: Reference | None = None
    to_reference: Comparison | None = None
    layouts: list[Comparison] = field(default_factory=list)  # batchscore with batchscore
    left_out: dict[int, str] = field(default_factory=dict)  # pairs without a comparison to the reference, and why
    refused: dict[Library, str] = field(default_factory=dict)  # libraries that cannot be the reference, and why
    notes: list[str] = field(default_factory=list)

    @property
    def comparisons(self) -> list[Comparison]:
        """The one with the reference first."""
        return [*([self.to_reference] if self.to_reference else []), *self.layouts]

    @property
    def beyond(self) -> list[int]:
        """Pairs with a difference that exceeds the tolerance, in any comparison."""
        rows = [np.flatnonzero(comparison.differences > self.tolerance) for comparison in self.comparisons]
        return sorted({int(row) for some in rows for row in some})

    def named(self, row: int) -> str:
        """A pair as people see it, counted from 1."""
        return f"pair {row + 1}, {self.pairs[row].name}"

    @property
    def summary(self) -> str:
        """One line that stands on its own."""
        difference, row = max(comparison.worst for comparison in self.comparisons)
        against = f"against {self.reference}" if self.reference else "between batchscore's layouts, without a reference"
        return f"worst difference {difference:.1e} ({self.named(row)}) {against}"

    @property
    def problem(self) -> VerificationError | None:
        """Why the scores are not confirmed."""
        if max(comparison.worst for comparison in self.comparisons)[0] > self.tolerance:
            hint = "batchscore inspect shows what each setting was taken from"
            return VerificationError(f"{self.summary}; the tolerance is {self.tolerance:g}", hint=hint)
        if self.wanted != "none" and (self.to_reference is None or not self.to_reference.count):
            reasons = [f"{library}: {reason}" for library, reason in self.refused.items()]
            return VerificationError(
                f"there is no reference to compare with: {'; '.join(reasons) or 'all pairs are left out'}",
                hint="--reference none compares batchscore's own layouts only",
            )
        return None

    def order_differences(self) -> list[tuple[int, int]]:
        """Pairs of pairs that the reference has in the other order, the most distant first."""
        if self.to_reference is None:
            return []
        expected, found = self.to_reference.expected, self.to_reference.found
        rows = np.flatnonzero(np.isfinite(self.to_reference.differences)).tolist()
        swapped = [
            (one, other)
            for one, other in combinations(rows, 2)
            if (expected[one] - expected[other]) * (found[one] - found[other]) < 0
        ]
        return sorted(swapped, key=lambda rows: -abs(expected[rows[0]] - expected[rows[1]]))

    def describe(self) -> dict[str, Any]:
        """JSON-able."""
        reference, problem, order = self.reference, self.problem, self.order_differences()
        return {
            "model": self.model,
            "score_type": self.setup.spec.score_type,
            "max_length": self.setup.spec.max_length,
            "dtype": self.setup.placement.dtype,
            "device": self.setup.placement.device,
            "reference": str(reference) if reference else None,
            "reference_class": reference.model_class if reference else None,
            "tolerance": self.tolerance,
            "verified": problem is None,
            "summary": self.summary if problem is None else problem.message,
            "comparisons": {comparison.name: self._described(comparison) for comparison in self.comparisons},
            "other_order": [[one + 1, other + 1] for one, other in order],
            "refused": self.refused,
            "left_out": {row + 1: reason for row, reason in self.left_out.items()},
            "notes": self.notes,
            "pairs": [{"pair": row + 1, **pair._asdict()} for row, pair in enumerate(self.pairs)],
        }

    def _described(self, comparison: Comparison) -> dict[str, Any]:
        difference, row = comparison.worst
        scores = zip(comparison.expected.tolist(), comparison.found.tolist(), strict=True)
        return {
            "worst": difference,
            "pair": row + 1,
            "name": self.pairs[row].name,
            "scores": [None if np.isnan(pair).any() else list(pair) for pair in scores],
        }
