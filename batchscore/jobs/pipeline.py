"""Units on their way through the model: read and tokenised one ahead, scored, written one behind.

Each stage holds one piece of work and waits for the next to take it, so memory does not depend on the input's size.
Rows at fault leave at the stage that finds them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from threading import Lock
from time import monotonic
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from batchscore.errors import BatchscoreError, Errors, InputError, RowError, RuntimeFailureError
from batchscore.io.source import Source
from batchscore.io.units import Unit
from batchscore.jobs.commands import Job, Loaded
from batchscore.jobs.meter import Meter
from batchscore.jobs.parts import Parts
from batchscore.scorer import Scorer
from batchscore.stop import Stop
from batchscore.types import CUT_NAMES, Fault, Scores, Work

T = TypeVar("T")

LULL_SECONDS = 1.0  # without a further unit, after which a worker settles those it has
_SAVE_SECONDS = 10.0  # between two savings of a unit that is not finished
_MODELS_FAULT = {"non-finite", "out-of-memory"}  # codes that no change of the row mends


@dataclass(frozen=True)
class Pipeline:
    """What turns units into parts."""

    scorer: Scorer
    job: Job
    source: Source
    parts: Parts
    errors: Errors
    meter: Meter
    stop: Stop

    def run(self, units: Iterable[Unit], on_done: Callable[[Unit, Mapping[str, Any]], None]) -> None:
        """Score units in order; `on_done` is called with the counts of each that has its part.

        Raises:
            StoppedError: the end was asked for; raw scores of the unit in work are saved.
            BatchscoreError: what ends a run; the parts that are done stay.
        """
        with self.stop.polling(), ThreadPoolExecutor(1, "batchscore-write") as writer:
            writing: Future[None] | None = None
            growing: _Growing | None = None
            try:
                for window in prefetch(self._windows(units), self.stop):
                    growing = growing or self._begun(window.loaded)
                    self._score(window, growing)
                    if window.is_last:
                        self.meter.rows = growing.rows_before + growing.loaded.unit.rows  # those at fault too
                        if writing is not None:
                            writing.result()
                        writing = writer.submit(self._write, growing, on_done)
                        growing = None
                if writing is not None:
                    writing.result()
            finally:
                if growing is not None:
                    with suppress(RuntimeFailureError):  # a full disk must not hide what came first
                        growing.save(self.parts)

    def _begun(self, loaded: Loaded) -> _Growing:
        return _Growing(loaded, self.parts.progress(loaded.unit, len(loaded.pairs)), self.meter.rows)

    def _windows(self, units: Iterable[Unit]) -> Iterator[_Window]:
        """Units read and tokenised, in windows."""
        try:
            for unit in units:
                with self.meter.timed("read"):
                    loaded = self.job.load(self.source, unit)
                self._refuse(loaded.faults)
                if unit.index == 0 and not len(loaded.pairs) and loaded.faults:
                    raise _as_error(*loaded.faults[0], "every row of the first unit is at fault, such as ")
                size = self.scorer.budget.window_rows
                if self.scorer.spec.listwise:
                    size = max(1, len(loaded.pairs))  # a unit ends where a query does
                stops = range(size, len(loaded.pairs), size)
                for start, stop in zip([0, *stops], [*stops, len(loaded.pairs)], strict=True):
                    window = _Window(loaded, np.arange(start, stop), stop == len(loaded.pairs))
                    with self.meter.timed("tokenize"):
                        self._tokenize(window)
                    yield window
        finally:
            self.source.close()

    def _tokenize(self, window: _Window) -> None:
        """Give the window its work; rows that have none leave it."""
        pairs = window.loaded.pairs
        while len(window.pairs):
            some = pairs if len(window.pairs) == len(pairs) else pairs.rows(window.pairs)
            try:
                window.work = self.scorer.tokenize(some)
                return
            except RowError as error:
                self._drop(window, error)
        window.work = None

    def _drop(self, window: _Window, error: RowError) -> None:
        """Take rows out of a window, and those with the same texts."""
        pairs = window.loaded.pairs
        queries, documents = (side.codes[window.pairs].astype(np.int64) for side in (pairs.queries, pairs.documents))
        keys = queries * len(pairs.documents.values) + documents
        bad = np.isin(keys, keys[error.rows])
        found = []
        for pair in window.pairs[bad].tolist():
            fault = Fault(int(window.loaded.rows[pair]), None, error.code, error.message, error.hint)
            found.append((window.loaded.report(fault), fault))
        self._refuse(found)
        window.faults += found
        window.pairs = window.pairs[~bad]

    def _refuse(self, faults: Sequence[tuple[Mapping[str, Any], Fault]]) -> None:
        if self.errors == "fail" and faults:
            raise _as_error(*faults[0])

    def _score(self, window: _Window, growing: _Growing) -> None:
        """Score a window; its raw scores are saved now and then."""
        loaded, meter = window.loaded, self.meter
        share = loaded.unit.rows / max(1, len(loaded.pairs))
        before = meter.rows
        while window.work is not None:
            raw, pairs = growing.raw[window.pairs], window.pairs

            def on_pack(
                rows: int, tokens: int, raw: NDArray[np.float32] = raw, pairs: NDArray[np.int64] = pairs
            ) -> None:
                meter.add(rows * share, tokens)
                if growing.save_due():
                    growing.raw[pairs] = raw
                    growing.save(self.parts)

            try:
                with meter.timed("forward"):
                    scores = self.scorer.score_work(window.work, on_pack, raw=raw, stop=self.stop)
                growing.add(window, scores, window.work)
                break
            except RowError as error:
                meter.rows = before  # the rest of the window is gone through once more
                self._drop(window, error)
                self._tokenize(window)
            finally:
                growing.raw[pairs] = raw
        growing.faults += window.faults

    def _write(self, growing: _Growing, on_done: Callable[[Unit, Mapping[str, Any]], None]) -> None:
        loaded = growing.loaded
        with self.meter.timed("write"):
            pairs, scores = growing.joined()
            table = self.job.table(loaded, pairs, scores, keep_faulty=self.errors == "null")
            faults = [record for record, _ in (*loaded.faults, *growing.faults)]
            order = {self.source.readers[span.file].file: span.file for span in loaded.unit.spans}
            faults.sort(key=lambda record: (order[record["file"]], record["row"]))
            bad = len({(record["file"], record["row"]) for record in faults})
            counts = {"rows": loaded.unit.rows, "scored": len(pairs), "faulty": len(faults), "faulty_rows": bad}
            counts |= growing.counts
            if "num_documents" in table.column_names:
                counts["ranked"] = len(table["results"].combine_chunks().flatten())
            self.parts.write(loaded.unit, table, counts, faults)
        on_done(loaded.unit, counts)


@dataclass
class _Window:
    """Some pairs of a unit."""

    loaded: Loaded
    pairs: NDArray[np.int64]  # which of the unit's pairs
    is_last: bool
    work: Work | None = None  # of the pairs, if there are any
    faults: list[tuple[Mapping[str, Any], Fault]] = field(default_factory=list)


class _Growing:
    """A unit on its way to a part."""

    def __init__(self, loaded: Loaded, raw: NDArray[np.float32], rows_before: float) -> None:
        self.loaded = loaded
        self.rows_before = rows_before  # of the meter
        self.raw = raw  # [pairs], NaN: not scored yet
        self.faults: list[tuple[Mapping[str, Any], Fault]] = []
        self.counts: dict[str, Any] = {"texts": 0, "tokens": 0, "cut": dict.fromkeys(CUT_NAMES[1:], 0)}
        self._scored: list[tuple[NDArray[np.int64], Scores]] = []
        self._saved = monotonic()
        self._lock = Lock()

    def add(self, window: _Window, scores: Scores, work: Work) -> None:
        """Take the scores of a window."""
        self._scored.append((window.pairs, scores))
        self.counts["texts"] += len(work.items)
        self.counts["tokens"] += int(work.items.offsets[-1])
        for code, name in enumerate(CUT_NAMES[1:], start=1):
            self.counts["cut"][name] += int((scores.cut == code).sum())

    def save(self, parts: Parts) -> None:
        """Keep the raw scores, if there are any."""
        if np.isfinite(self.raw).any():
            parts.save_progress(self.loaded.unit, self.raw)

    def save_due(self) -> bool:
        """Whether it is time to save; True in one thread."""
        with self._lock:
            if monotonic() - self._saved < _SAVE_SECONDS:
                return False
            self._saved = monotonic()
            return True

    def joined(self) -> tuple[NDArray[np.int64], Scores]:
        """(pairs that have a score, their scores)."""
        none = Scores(np.empty(0, np.float32), None, np.empty(0, np.int32), np.empty(0, np.uint8))
        pairs = [pairs for pairs, _ in self._scored]
        scores = [scores for _, scores in self._scored] or [none]
        logits = [part.logit for part in scores if part.logit is not None]
        return np.concatenate([np.empty(0, np.int64), *pairs]), Scores(
            np.concatenate([part.score for part in scores]),
            np.concatenate(logits) if logits else None,
            np.concatenate([part.num_tokens for part in scores]),
            np.concatenate([part.cut for part in scores]),
        )


def prefetch(values: Iterator[T], stop: Stop) -> Iterator[T]:
    """The same values, each made in a thread while the one before is in use; StoppedError when the end is asked for."""
    end: Any = object()
    thread = ThreadPoolExecutor(1, "batchscore-read")
    try:
        following = thread.submit(next, values, end)
        while (value := stop.result(following)) is not end:
            following = thread.submit(next, values, end)
            yield value
            stop.check()
    finally:
        stop.settle([following])
        thread.shutdown(wait=not stop.unsettled, cancel_futures=True)


def _as_error(record: Mapping[str, Any], fault: Fault, before: str = "") -> BatchscoreError:
    """A fault of a row as what ends a run."""
    place = f"line {record['line']}" if "line" in record else f"row {record['row']}"
    column = f"column {record['column']!r} " if record["column"] else ""
    kind = RuntimeFailureError if fault.code in _MODELS_FAULT else InputError
    return kind(f"{before}{record['file']}, {place}: {column}{fault.message}", hint=fault.hint)
