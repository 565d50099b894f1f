"""Blocks and units on their way through the model: read and tokenized one ahead, then forwarded, written one behind.

Each stage holds one piece of work and waits for the next to take it, so memory does not depend on the input's size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import groupby
from time import sleep
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from batchscore.engine.batcher import Batcher
from batchscore.engine.layouts import Layouts
from batchscore.errors import BatchscoreError, Errors, RuntimeFailureError, StoppedError
from batchscore.io.source import Source
from batchscore.io.units import Unit
from batchscore.jobs.blocks import Block, Blocks
from batchscore.jobs.commands import RequestsCommand
from batchscore.jobs.commands.base import BadRow, Command, Counts, UnitRows, input_order, media_counts
from batchscore.jobs.commands.requests import RequestScores
from batchscore.jobs.destination import Destination
from batchscore.jobs.encoding import Encoder, PreparedTexts
from batchscore.jobs.leases import Task
from batchscore.jobs.lengths import length_counts
from batchscore.jobs.meter import Meter
from batchscore.jobs.parts import total
from batchscore.jobs.passes import Pass
from batchscore.jobs.progress import Timer
from batchscore.jobs.scoring import CompareEncodings, Method, Prepared, Scored, choose_method
from batchscore.jobs.shelves import Shelves
from batchscore.stop import Stop, prefetch
from batchscore.types import CUT_NAMES, Encodings, Faults, Pairs, Scores, good_rows

T = TypeVar("T")
OnDone = Callable[[Task, Mapping[str, Any]], None]  # a block or unit that has its file, and its counts

LULL_SECONDS = 1.0  # without a further task, after which a worker settles those it has
_WAIT_SECONDS = 0.2  # between two looks for a task, when others have in work what the next one needs


@dataclass(frozen=True)
class Pipeline:
    """What turns blocks into encodings and units into parts."""

    batcher: Batcher
    command: Command
    source: Source
    parts: Destination
    blocks: Blocks | None  # of a job whose texts are encoded once
    shelves: Mapping[str, Shelves]  # of the store, by "query" and "document" or "pair"; none without a store
    errors: Errors
    meter: Meter
    stop: Stop
    load: Callable[[Batcher], None] = Batcher.load  # called in the thread that reads, before what needs the weights

    def run(self, tasks: Iterable[Task | None], on_done: OnDone) -> None:
        """Encode blocks and score units in this order; `on_done` is called, in another thread, for each that is done.

        Args:
            tasks: None among them: the next one is not ready yet.
            on_done: called for each task.

        Raises:
            StoppedError: a stop was requested; raw scores of the unit in work are saved.
            BatchscoreError: what ends a run; the files that are done stay.
        """
        with self.stop.polling():
            is_new = False  # whether something was done since the last look for a task
            for kind, some in groupby(tasks, type):
                if kind is Unit:
                    self._run_units(cast("Iterator[Unit]", some), on_done)
                elif kind is Block:
                    self._run_blocks(cast("Iterator[Block]", some), on_done)
                elif kind is Pass:
                    self._run_passes(cast("Iterator[Pass]", some), on_done)
                else:
                    for _ in some:
                        self.stop.check()
                        if not is_new:  # else this look was before the last block had its file
                            sleep(_WAIT_SECONDS)
                        is_new = False
                is_new = kind is not type(None)

    def task(self, key: tuple[str, int]) -> Task:
        """The task of the job that has this key."""
        kind, index = key
        if self.blocks is None or kind == "unit":
            return self.parts.units[index]
        if kind == "block":
            return self.blocks.blocks[index]
        group = int(kind.split()[1])
        return Pass(self.parts.units[index], group, group == len(self.blocks.groups) - 1)

    def _load(self) -> None:
        if not self.batcher.is_loaded:
            self.load(self.batcher)

    # ---- blocks

    @cached_property
    def _encoder(self) -> Encoder:
        return Encoder(self.batcher, self.shelves)

    @cached_property
    def _layouts(self) -> Layouts:
        return Layouts(self.batcher)

    def _run_blocks(self, blocks: Iterator[Block], on_done: OnDone) -> None:
        with ThreadPoolExecutor(1, "batchscore-write") as writer:
            writing: Future[None] | None = None
            for block, prepared in prefetch(self._prepared(blocks), self.stop):
                with self.meter.timed("forward"):
                    encodings = self._encode(block, prepared)
                if writing is not None:
                    writing.result()
                writing = writer.submit(self._write_block, block, prepared, encodings, on_done)
            if writing is not None:
                writing.result()

    def _encode(self, block: Block, prepared: PreparedTexts) -> Encodings:
        assert self.blocks is not None
        self.meter.add_texts(block, prepared.from_store, 0)
        on_pack = partial(self.meter.add_texts, block)
        return self._encoder.encode(prepared, on_pack, self.stop, self.blocks.progress(block))

    def _prepared(self, blocks: Iterator[Block]) -> Iterator[tuple[Block, PreparedTexts]]:
        """Blocks read and tokenized."""
        assert self.blocks is not None
        for block in blocks:
            with self.meter.timed("read"):
                texts = self.blocks.texts(block, self.source.media)
            with self.meter.timed("tokenize"):
                prepared = self._encoder.prepare(texts, block.side)
            if prepared.work is not None:
                self._load()
            yield block, prepared

    def _write_block(self, block: Block, prepared: PreparedTexts, encodings: Encodings, on_done: OnDone) -> None:
        assert self.blocks is not None
        counts: Counts = {"texts": block.texts, "tokens": prepared.tokens, **media_counts(prepared.texts)}
        if self.shelves:
            counts["from_store"] = prepared.from_store
        with self.meter.timed("write"):
            self.blocks.write(block, prepared.digests, encodings, counts)
        on_done(block, counts)

    # ---- passes

    def _run_passes(self, passes: Iterator[Pass], on_done: OnDone) -> None:
        for task in passes:
            assert self.blocks is not None
            self.stop.check()
            try:
                if not self._is_passed(task):
                    self._run_pass(task, self.blocks, on_done)
                    continue
            except RuntimeFailureError:
                if not self._is_passed(task):
                    raise
            on_done(task, {})  # another process was faster, and may have removed what this one was reading

    def _is_passed(self, task: Pass) -> bool:
        passes = None if self.blocks is None else self.blocks.passes
        return passes is not None and (passes.is_finished(task.unit) or passes.has(task.unit, task.group))

    def _run_pass(self, task: Pass, blocks: Blocks, on_done: OnDone) -> None:
        blocks.enter(task.group)
        with self.meter.timed("read"):
            rows = self.command.load(self.source, task.unit)
        self._refuse(rows.bad_rows)
        compare = CompareEncodings(self.batcher, blocks)
        prepared = compare.prepare(cast("Pairs", rows.pairs))  # encode has no blocks
        before = blocks.passes.before(task) if task.group else compare.blank(prepared)
        on_pack = partial(self.meter.add_pairs, rows.unit.rows / max(1, len(rows.pairs)))
        with self.meter.timed("forward"):
            after = compare.fill(prepared, before, task.group, on_pack, self.stop)
        self._refuse(_bad_rows(rows, 0, after.faults))
        if task.is_last:
            growing = _GrowingUnit(rows, after.values, self.meter.rows)
            whole = _Window(rows, 0, len(rows.pairs), prepared)
            growing.add(whole, compare.scored(after), _bad_rows(rows, 0, after.faults))
            growing.require_a_score()
            self._write(growing, partial(_on_unit, task, on_done))
        else:
            with self.meter.timed("write"):
                blocks.passes.save(task, after)
            on_done(task, {})

    # ---- units

    def _method(self, unit: Unit) -> Method:
        progress = self.parts.progress(unit)
        return choose_method(self.command, self._encoder, self._layouts, self.blocks, progress)

    def _run_units(self, units: Iterator[Unit], on_done: OnDone) -> None:
        with ThreadPoolExecutor(1, "batchscore-write") as writer:
            writing: Future[None] | None = None
            growing: _GrowingUnit | None = None
            try:
                for window in prefetch(self._windows(units), self.stop):
                    if growing is None:
                        growing = self._begin(window.rows)
                    self._score(window, growing)
                    if window.is_last:
                        if not isinstance(self.command, RequestsCommand):  # whose bad rows are answered
                            growing.require_a_score()
                        self.meter.rows = growing.rows_before + growing.rows.unit.rows  # bad rows too
                        if writing is not None:
                            writing.result()  # an error of the part before comes out here
                        writing = writer.submit(self._write_or_stop, growing, on_done)
                        growing = None
                if writing is not None:
                    writing.result()
            except StoppedError:
                if writing is not None and self.parts.in_order:
                    writing.result()  # its error may be what asked for the stop
                raise
            finally:
                if growing is not None:
                    with suppress(RuntimeFailureError):  # a full disk must not hide what came first
                        growing.save(self.parts)

    def _begin(self, rows: UnitRows) -> _GrowingUnit:
        raw = self.parts.saved_scores(rows.unit, len(rows.pairs), self._method(rows.unit).num_scores)
        return _GrowingUnit(rows, raw, self.meter.rows)

    def _windows(self, units: Iterator[Unit]) -> Iterator[_Window]:
        """Units read and tokenized, in windows."""
        spec, window_rows = self.batcher.spec, self.batcher.budget.window_rows
        try:
            for unit in units:
                with self.meter.timed("read"):
                    rows = self.command.load(self.source, unit)
                self._refuse(rows.bad_rows)
                size = len(rows.pairs)
                step = max(1, size if spec.listwise else window_rows)
                for start in range(0, max(1, size), step):
                    stop = min(start + step, size)
                    pairs = rows.pairs if stop - start == size else rows.pairs.rows(slice(start, stop))
                    with self.meter.timed("tokenize"):
                        prepared = self._method(unit).prepare(pairs) if size else None
                    if prepared is not None:
                        self._refuse(_bad_rows(rows, start, prepared.faults))
                        if prepared.forwards:
                            self._load()
                    yield _Window(rows, start, stop, prepared)
        finally:
            self.source.close()

    def _refuse(self, bad_rows: Sequence[BadRow]) -> None:
        if self.errors == "fail" and bad_rows and not self.parts.in_order:
            raise min(bad_rows, key=input_order).error()

    def _score(self, window: _Window, growing: _GrowingUnit) -> None:
        """Score a window; its raw scores are saved now and then."""
        if window.prepared is None:
            return
        rows = window.rows
        # a row of a list is several pairs
        on_pack = partial(self._on_pack, growing, rows.unit.rows / len(rows.pairs))
        raw = growing.raw[window.start : window.stop]  # a view: filled in place
        with self.meter.timed("forward"):
            scored = self._method(rows.unit).score(window.prepared, on_pack, raw=raw, stop=self.stop)
        bad_rows = _bad_rows(rows, window.start, scored.outcome.faults)
        self._refuse(bad_rows)
        growing.add(window, scored, bad_rows)

    def _on_pack(self, growing: _GrowingUnit, rows_a_pair: float, pairs: int, tokens: int) -> None:
        self.meter.add_pairs(rows_a_pair, pairs, tokens)
        if growing.timer.is_due():
            growing.save(self.parts)

    def _write_or_stop(self, growing: _GrowingUnit, on_done: OnDone) -> None:
        try:
            self._write(growing, on_done)
        except BatchscoreError:
            if self.parts.in_order:  # else the next unit, which may be long in coming, would be waited for
                self.stop.request("an error")
            raise

    def _write(self, growing: _GrowingUnit, on_done: OnDone) -> None:
        unit = growing.rows.unit
        with self.meter.timed("write"):
            pairs, results = growing.joined()
            joined = self._method(unit).join(results)
            table, table_counts = growing.rows.table(pairs, joined, keep_bad=self.errors == "null")
            bad_rows = growing.bad_rows
            if self.errors == "fail" and bad_rows:  # of a destination that takes rows in order
                self.parts.write(unit, growing.rows.before(table, bad_rows[0].row), {}, [])
                raise bad_rows[0].error()
            counts: Counts = {
                "rows": unit.rows,
                "scored": len(pairs),
                "faulty": len(bad_rows),
                "faulty_rows": len({bad.row for bad in bad_rows}),
                **growing.counts,
                **self._media_counts(growing.rows),
                **table_counts,
            }
            self.parts.write(unit, table, counts, [bad.record() for bad in bad_rows])
        on_done(unit, counts)

    def _media_counts(self, rows: UnitRows) -> Counts:
        """Counts of the media that the unit read; blocks count those that they read."""
        if self.blocks is not None:
            return {}
        return media_counts(cell for cells in rows.pairs.sides.values() for cell in cells.values)


@dataclass(frozen=True, slots=True)
class _Window:
    """Some pairs of a unit."""

    rows: UnitRows
    start: int  # the first pair
    stop: int
    prepared: Prepared | None  # None: the unit has no pairs

    @property
    def is_last(self) -> bool:
        """Whether the unit ends with it."""
        return self.stop == len(self.rows.pairs)


class _GrowingUnit:
    """A unit on its way to a part."""

    def __init__(self, rows: UnitRows, raw: NDArray[np.float32], rows_before: float) -> None:
        self.rows = rows
        self.rows_before = rows_before  # on the meter
        self.raw = raw  # [pairs, k], NaN: not scored yet
        self.counts: Counts = {"texts": 0, "tokens": 0, "cut": dict.fromkeys(CUT_NAMES[1:], 0)}
        self._bad_rows = list(rows.bad_rows)
        self._scored: list[tuple[NDArray[np.int64], Scores | RequestScores | Encodings]] = []
        self.timer = Timer()

    def add(self, window: _Window, scored: Scored, bad_rows: Sequence[BadRow]) -> None:
        """Take the scores of a window."""
        self._bad_rows += bad_rows
        good = good_rows(window.stop - window.start, scored.outcome.faults)
        scores = scored.scores.take(good)
        self._scored.append((window.start + good, scores))
        if scored.from_store is not None:
            self.counts["from_store"] = self.counts.get("from_store", 0) + scored.from_store
        self.counts["texts"] += scored.texts
        self.counts["tokens"] += scored.tokens
        for code, name in enumerate(CUT_NAMES[1:], start=1):
            self.counts["cut"][name] += int((scores.cut == code).sum())
        self.counts["num_tokens"] = total([self.counts.get("num_tokens", {}), length_counts(scores.num_tokens)])

    @property
    def bad_rows(self) -> list[BadRow]:
        """All bad rows, in input order."""
        return sorted(self._bad_rows, key=input_order)

    def require_a_score(self) -> None:
        """Raise the error of the first row if no row of the job's first unit has a score: the call itself is wrong."""
        if self.rows.unit.index == 0 and self._bad_rows and not any(len(pairs) for pairs, _ in self._scored):
            raise self.bad_rows[0].error("every row of the first unit is bad; the first is ")

    def save(self, parts: Destination) -> None:
        """Keep the raw scores, if there are any."""
        if np.isfinite(self.raw).any():
            parts.save_scores(self.rows.unit, self.raw)

    def joined(self) -> tuple[NDArray[np.int64], list[Scores | RequestScores | Encodings]]:
        """(pairs that have a score, their scores window by window)."""
        pairs = [pairs for pairs, _ in self._scored]
        return np.concatenate([np.empty(0, np.int64), *pairs]), [scores for _, scores in self._scored]


def _on_unit(task: Pass, on_done: OnDone, _: Task, counts: Mapping[str, Any]) -> None:
    """The unit of a last pass is done, and with it the pass."""
    on_done(task, counts)


def _bad_rows(rows: UnitRows, start: int, faults: Faults) -> list[BadRow]:
    """The faults of a window that begins at pair `start`."""
    return [rows.bad_row(start + row, fault) for row, fault in faults.items()]
