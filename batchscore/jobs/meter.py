"""Counts and seconds of a run, added up while it goes."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock
from time import perf_counter

STAGES = ("read", "tokenize", "forward", "write")


@dataclass(frozen=True, slots=True)
class Amounts:
    """What a meter shows at one moment, or the difference between two."""

    rows: float = 0.0
    tokens: int = 0
    seconds: tuple[float, ...] = (0.0,) * len(STAGES)

    def since(self, before: Amounts) -> Amounts:
        """What was added after `before`."""
        seconds = tuple(now - then for now, then in zip(self.seconds, before.seconds, strict=True))
        return Amounts(self.rows - before.rows, self.tokens - before.tokens, seconds)


@dataclass
class Meter:
    """Counts and seconds of a run; `on_change` is called after each pack, from any thread."""

    on_change: Callable[[Meter], None] = lambda meter: None
    total: int = 0  # rows to do
    rows: float = 0.0  # rows done; the rows of a unit in work count by the share of its pairs that have a score
    tokens: int = 0  # forwarded; what a cache or an earlier run answered is not among them
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    started: float = field(default_factory=perf_counter)
    _lock: Lock = field(default_factory=Lock)

    @property
    def fraction(self) -> float | None:
        """Share of the rows to do that are done."""
        return min(1.0, self.rows / self.total) if self.total else None

    @property
    def elapsed(self) -> float:
        """Seconds since the start; never 0, so that it can divide."""
        return max(perf_counter() - self.started, 1e-3)

    def add(self, rows: float, tokens: int) -> None:
        """Count what a pack did."""
        self.merge(Amounts(rows, tokens))

    def merge(self, amounts: Amounts) -> None:
        """Count what another process did."""
        with self._lock:
            self.rows += amounts.rows
            self.tokens += amounts.tokens
            for stage, seconds in zip(STAGES, amounts.seconds, strict=True):
                self.seconds[stage] += seconds
        self.on_change(self)

    def amounts(self) -> Amounts:
        """What it shows now."""
        with self._lock:
            return Amounts(self.rows, self.tokens, tuple(self.seconds[stage] for stage in STAGES))

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the block's time to a stage."""
        start = perf_counter()
        try:
            yield
        finally:
            with self._lock:
                self.seconds[stage] += perf_counter() - start


def peak_rss_mb() -> int:
    """Peak resident memory of the largest process, workers included."""
    unit = 1024 if sys.platform == "linux" else 1024**2  # macOS counts bytes
    scopes = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return round(max(resource.getrusage(scope).ru_maxrss for scope in scopes) / unit)
