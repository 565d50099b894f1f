"""Counts and seconds of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock
from time import perf_counter


@dataclass
class Meter:
    """Counts and seconds of a run; `on_change` is called after each pack, from any thread."""

    on_change: Callable[[Meter], None] = lambda meter: None
    total: int = 0  # rows to do
    rows: float = 0.0  # rows done, of those in work a share
    tokens: int = 0
    seconds: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(("read", "tokenize", "forward", "write"), 0.0)
    )
    started: float = field(default_factory=perf_counter)
    _lock: Lock = field(default_factory=Lock)

    @property
    def fraction(self) -> float | None:
        """Of the rows to do, done."""
        return min(1.0, self.rows / self.total) if self.total else None

    def add(self, rows: float, tokens: int) -> None:
        """Count what a pack did."""
        with self._lock:
            self.rows += rows
            self.tokens += tokens
        self.on_change(self)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the block's time to a stage."""
        start = perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] += perf_counter() - start
