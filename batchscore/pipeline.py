"""Windows of rows on their way through the model, one ahead.

While a window is in the model, the next one is read and tokenised in a thread; nothing else is buffered, so memory
does not depend on the input's size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock
from time import perf_counter
from typing import Any, TypeVar

from batchscore.api import Scorer
from batchscore.errors import RowError
from batchscore.types import CUT_NAMES, Pairs, Scores, Work

T = TypeVar("T")


@dataclass
class Meter:
    """Counts and seconds of a run; `on_change` is called after each pack, from any thread."""

    on_change: Callable[[Meter], None] = lambda meter: None
    rows: int = 0
    texts: int = 0  # distinct sequences the model read
    tokens: int = 0
    cut: dict[str, int] = field(default_factory=lambda: dict.fromkeys(CUT_NAMES[1:], 0))
    seconds: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(("read", "tokenize", "forward", "write"), 0.0)
    )
    fraction: float | None = None  # of the input, scored
    started: float = field(default_factory=perf_counter)
    _lock: Lock = field(default_factory=Lock)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the block's time to a stage."""
        start = perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] += perf_counter() - start

    def window(self, size: int, fraction: float | None) -> Callable[[int, int], None]:
        """What to call with (rows, tokens) of each pack of a window; at its end `fraction` of the input is done."""
        start, rows_before = self.fraction or 0.0, self.rows

        def add(rows: int, tokens: int) -> None:
            with self._lock:
                self.rows += rows
                self.tokens += tokens
                if fraction is not None and size:
                    self.fraction = start + (fraction - start) * (self.rows - rows_before) / size
            self.on_change(self)

        return add


@dataclass(frozen=True, slots=True)
class Window:
    """Rows on their way through the scorer."""

    pairs: Pairs
    fraction: float | None
    locate: Callable[[int], str]
    extra: Any  # what the writer needs beside the scores


def scored(scorer: Scorer, windows: Iterator[Window], meter: Meter) -> Iterator[tuple[Window, Scores]]:
    """Score windows in order, reading and tokenising one ahead."""

    def prepared() -> Iterator[tuple[Window, Work]]:
        while True:
            with meter.timed("read"):
                window = next(windows, None)
            if window is None:
                return
            with meter.timed("tokenize"), _located(window):
                work = scorer.tokenize(window.pairs)
            yield window, work

    for window, work in prefetch(prepared()):
        with meter.timed("forward"), _located(window):
            scores = scorer.score_work(work, meter.window(len(work), window.fraction))
        meter.texts += len(work.items)
        meter.fraction = window.fraction
        for code, name in enumerate(CUT_NAMES[1:], start=1):
            meter.cut[name] += int((scores.cut == code).sum())
        yield window, scores


def prefetch(values: Iterator[T]) -> Iterator[T]:
    """The same values, each made in a thread while the one before is in use."""
    end: Any = object()
    with ThreadPoolExecutor(1, "batchscore-read") as thread:
        following = thread.submit(next, values, end)
        while (value := following.result()) is not end:
            following = thread.submit(next, values, end)
            yield value


@contextmanager
def _located(window: Window) -> Iterator[None]:
    """Give a row's fault its file and row."""
    try:
        yield
    except RowError as error:
        raise error.cause(f"{window.locate(error.row)}: {error.message}", hint=error.hint) from error
