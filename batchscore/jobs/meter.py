"""Counts and seconds of a run, added up while it goes."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock
from time import perf_counter

from batchscore.jobs.blocks import Block

STAGES = ("read", "tokenize", "forward", "write")
_MOMENTS = 120  # of a run's course that are kept
_COMPARE_SECONDS = 2e-6  # a row, when it is scored from encodings: a guess until the first ones are


@dataclass(frozen=True, slots=True)
class Amounts:
    """What a meter shows at one moment, or the difference between two."""

    rows: float = 0.0
    tokens: int = 0
    texts: float = 0.0
    size: float = 0.0
    seconds: tuple[float, ...] = (0.0,) * len(STAGES)

    def since(self, before: Amounts) -> Amounts:
        """What was added after `before`."""
        seconds = tuple(now - then for now, then in zip(self.seconds, before.seconds, strict=True))
        return Amounts(
            self.rows - before.rows,
            self.tokens - before.tokens,
            self.texts - before.texts,
            self.size - before.size,
            seconds,
        )


class Course:
    """What a run had done at some moments, which are never too many: of those that are, every other one is dropped."""

    def __init__(self) -> None:
        self._moments: list[tuple[float, float, int]] = [(0.0, 0.0, 0)]  # seconds, rows, tokens
        self._step = 0.2  # seconds between two of them

    def add(self, seconds: float, rows: float, tokens: int) -> None:
        """Note a moment, unless the last one was just before."""
        if seconds - self._moments[-1][0] < self._step:
            return
        self._moments.append((seconds, rows, tokens))
        if len(self._moments) > _MOMENTS:
            self._moments, self._step = self._moments[::2], self._step * 2

    def describe(self, seconds: float, rows: float, tokens: int) -> dict[str, list[float]]:
        """JSON-able, with the end of the run: seconds since its start, rows and tokens until then."""
        moments = zip(*self._moments, (seconds, rows, tokens), strict=True)
        return {
            name: [round(value, 2) for value in values]
            for name, values in zip(("seconds", "rows", "tokens"), moments, strict=True)
        }


@dataclass
class Meter:
    """Counts and seconds of a run; `on_change` is called after each pack, from any thread."""

    on_change: Callable[[Meter], None] = lambda meter: None
    total: int = 0  # rows to do
    rows: float = 0.0  # rows done; the rows of a unit in work count by the share of its pairs that have a score
    tokens: int = 0  # forwarded; what a cache or an earlier run answered is not among them
    surveyed: int = 0  # rows whose texts were collected
    total_texts: int = 0  # texts to encode before the rows
    texts: float = 0.0
    total_size: float = 0.0  # what encoding them costs, in bytes of text
    size: float = 0.0
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    started: float = field(default_factory=perf_counter)
    course: Course = field(default_factory=Course)
    _compared: float | None = None  # when the texts were encoded and the first row was next
    _lock: Lock = field(default_factory=Lock)

    @property
    def fraction(self) -> float | None:
        """Share of the work that is done, in time as far as one can tell."""
        left = self.seconds_left
        return None if left is None else self.elapsed / (self.elapsed + left)

    @property
    def seconds_left(self) -> float | None:
        """Seconds to go at the speed so far; None before there is one."""
        if self.is_surveying:
            return None
        if not self.total_size:
            return self.elapsed * (self.total / self.rows - 1) if self.rows and self.total else None
        if self.is_encoding:
            rows = self.total * _COMPARE_SECONDS
            return rows + self.elapsed * (self.total_size / self.size - 1) if self.size else None
        each = 1 / self.rows_per_second if self.rows else _COMPARE_SECONDS
        return max(0.0, self.total - self.rows) * each

    @property
    def rows_per_second(self) -> float:
        """Speed of scoring, without the time in which texts were encoded before."""
        since = self.started if self._compared is None else self._compared
        return self.rows / max(perf_counter() - since, 1e-3)

    @property
    def is_surveying(self) -> bool:
        """Whether texts are being collected."""
        return bool(self.surveyed) and not self.total_size and not self.rows

    @property
    def is_encoding(self) -> bool:
        """Whether texts are left to encode."""
        return self.size < self.total_size * (1 - 1e-9) and not self.rows

    @property
    def elapsed(self) -> float:
        """Seconds since the start; never 0, so that it can divide."""
        return max(perf_counter() - self.started, 1e-3)

    def add(self, rows: float, tokens: int) -> None:
        """Count what a pack did for rows."""
        self.merge(Amounts(rows, tokens))

    def add_pairs(self, rows_a_pair: float, pairs: int, tokens: int) -> None:
        """Count what a pack did for pairs, of which a row may have several."""
        self.add(pairs * rows_a_pair, tokens)

    def add_surveyed(self, rows: int) -> None:
        """Count rows whose texts were collected."""
        self.surveyed += rows
        self.on_change(self)

    def add_texts(self, block: Block, texts: int, tokens: int) -> None:
        """Count texts of a block that are encoded; those of one block are of similar length."""
        self.merge(Amounts(0.0, tokens, texts, block.size * texts / block.texts))

    def merge(self, amounts: Amounts) -> None:
        """Count what another process did."""
        with self._lock:
            self.rows += amounts.rows
            self.tokens += amounts.tokens
            self.texts += amounts.texts
            self.size += amounts.size
            for stage, seconds in zip(STAGES, amounts.seconds, strict=True):
                self.seconds[stage] += seconds
            if self._compared is None and self.total_size and not self.is_encoding:
                self._compared = perf_counter()
            self.course.add(self.elapsed, self.rows, self.tokens)
        self.on_change(self)

    def over_time(self) -> dict[str, list[float]]:
        """JSON-able: rows and tokens at moments from the start until now."""
        with self._lock:
            return self.course.describe(self.elapsed, self.rows, self.tokens)

    def amounts(self) -> Amounts:
        """What it shows now."""
        with self._lock:
            seconds = tuple(self.seconds[stage] for stage in STAGES)
            return Amounts(self.rows, self.tokens, self.texts, self.size, seconds)

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
