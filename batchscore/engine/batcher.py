"""A window of pairs through a model, pack by pack.

Packs are planned for a whole window, collated in a thread ahead of the model and forwarded by the workers, each of
which has its own thread. What goes wrong with one row (too much for the memory even alone, a score that is not a
number) becomes that row's fault; the other rows keep their packs, so that nothing is laid out or forwarded twice for a
bad neighbour and scores stay the same bit for bit.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from batchscore.engine.growing import GrowingEncodings
from batchscore.engine.scheduler import Pack, plan_chunks, plan_window
from batchscore.engine.setup import Setup
from batchscore.errors import DeviceMemoryError, UsageError
from batchscore.models.load import Layout
from batchscore.models.spec import ModelSpec
from batchscore.runners.base import Match, Runner
from batchscore.runners.batch import Batch
from batchscore.runners.build import reading_runner, respecified, with_weights
from batchscore.runners.device import start_workers
from batchscore.runners.media import UnreadableMediaError
from batchscore.runners.size import Products
from batchscore.stop import Stop
from batchscore.types import (
    Cell,
    Encodings,
    Fault,
    Faults,
    Items,
    Outcome,
    Pairs,
    Scores,
    Side,
    Work,
    good_rows,
    ranges,
    row_faults,
)

_MULTIPLE = 16  # packs that 2, 4, 8 or 16 workers divide without a rest: the number of workers must not change bits
_AGAIN = 16  # the queries of a chunk come again with each of its documents, as a rule

OnPack = Callable[[int, int], None]  # (rows scored, tokens read) since the last call
OnOutput = Callable[[NDArray[np.int64], Any], None]  # (items, their output, or the Fault of the only one)

_OVERFLOW = "the checkpoint's weights overflow"
_BATCHES_AHEAD = 2  # collated for each worker before it asks: one to take, one in case a pack is done early


class Batcher:
    """A model and the threads it runs in.

    Args:
        setup: of the model.
        lazy: weights are read by `load`, or when the first text is forwarded: what needs none, such as a comparison of
            encodings that are there, does not wait for them.
    """

    def __init__(self, setup: Setup, *, lazy: bool = False) -> None:
        self.setup, self.spec, self.budget = setup, setup.spec, setup.budget
        remote = setup.trust_remote_code
        self._reader = reading_runner(
            setup.checkpoint, setup.spec, setup.placement, budget=setup.budget, trust_remote_code=remote
        )
        self._loaded: Runner | None = None
        self._loading = Lock()
        if not lazy:
            self.load()
        self._workers = start_workers(setup.placement.device, self.budget.workers)
        self._collators = ThreadPoolExecutor(1, "batchscore-collate")
        self._fitting_cost = sys.maxsize  # the largest pack that the device's memory is not known to be too small for
        self._float32: Batcher | None = None  # the same model, for rows whose score is not a number in 16 bits

    @property
    def is_loaded(self) -> bool:
        """Whether the weights are read."""
        return self._loaded is not None

    def load(self) -> None:
        """Read the weights, unless they are read. Safe to call in any thread.

        Raises:
            CheckpointError: they cannot be used.
        """
        with self._loading:
            if self._loaded is None:
                setup = self.setup
                options = {"padded": setup.padded, "trust_remote_code": setup.trust_remote_code}
                self._loaded = with_weights(self._reader, setup.checkpoint, setup.placement, **options)

    @property
    def _runner(self) -> Runner:
        """The model with its weights."""
        if self._loaded is None:
            self.load()
        assert self._loaded is not None
        return self._loaded

    @property
    def num_scores(self) -> int:
        """Raw scores of a row."""
        return self._reader.num_scores

    @property
    def layout(self) -> Layout:
        """How the model's body takes several sequences."""
        return self._runner.layout

    @property
    def products(self) -> Products:
        """The matrix products of every token of a document."""
        return self._runner.products

    def tokenize(self, pairs: Pairs) -> Work:
        """A window's token sequences. Safe to call in another thread while a window is being scored."""
        return self._reader.tokenize(pairs)

    def respecified(self, spec: ModelSpec) -> Runner:
        """What tokenizes, and activates raw scores, by another spec of this checkpoint that needs the same weights."""
        return respecified(self._reader, self.setup.checkpoint, spec)

    def lay_out(self, texts: Sequence[Cell], side: Side) -> Work:
        """The token sequences of one side's cells, which are the rows. Safe to call in any thread.

        Raises:
            UsageError: the model reads a query and a document together.
        """
        if self.spec.score_type == "cross-encoder":
            raise UsageError(
                "a cross-encoder reads a query and a document together: no text has an encoding of its own",
                hint="only bi-encoders and late interaction models encode texts",
            )
        return self._reader.lay_out(texts, side)

    def score(
        self,
        work: Work,
        on_pack: OnPack = lambda rows, tokens: None,
        *,
        raw: NDArray[np.float32] | None = None,
        stop: Stop | None = None,
    ) -> Outcome:
        """Score a window.

        Packs do not depend on what `raw` holds, so that scores are the same bit for bit whether a window is scored
        at once or resumed after an interruption.

        Args:
            work: made by `tokenize`.
            on_pack: called after each pack, in any thread.
            raw: float32 [rows, k], raw scores that are known, NaN for the others, which are filled in pack by pack.
            stop: ends the work between packs.

        Raises:
            StoppedError: `stop` was requested; what `raw` holds by then stays good.
        """
        raw = np.full((len(work), self.num_scores), np.nan, np.float32) if raw is None else raw
        window = _Window(work, raw, dict(work.faults), on_pack, stop or Stop())
        limit = self.budget.max_held_tokens if self.has_large_outputs else max(1, len(work.items.ids))
        for queries, rows in work.query_groups(limit):
            self._score_rows(window, queries, rows)
        self._retry_in_float32(window)
        return Outcome(raw, window.faults)

    def encode(
        self,
        work: Work,
        side: Side,
        on_pack: OnPack = lambda texts, tokens: None,
        *,
        stop: Stop | None = None,
        growing: GrowingEncodings | None = None,
    ) -> Encodings:
        """Encode texts. The same texts give the same numbers, whatever was encoded before.

        Packs do not depend on what is known, as in `score`.

        Args:
            work: made by `lay_out` for this side.
            side: the texts'.
            on_pack: called after each pack with its texts and tokens, in any thread.
            stop: ends the work between packs.
            growing: made by `begin`, of which another thread may take snapshots; None: nothing is known.

        Returns:
            The encodings in the texts' order.

        Raises:
            StoppedError: `stop` was requested.
        """
        stop = stop or Stop()
        growing = growing or self.begin(work)

        def take(index: NDArray[np.int64], output: Any) -> None:
            growing.take(index, output)
            on_pack(len(index), int(work.items.lengths[index].sum()))

        self._forward_texts(work, side, growing, take, stop)
        if len(growing.missing()):
            obstacle = self._repeat_in_float32(lambda other: other._forward_texts(work, side, growing, take, stop))
            suffix, hint = obstacle or ("", _OVERFLOW)
            fault = Fault("non-finite", f"its vector has a number that is not finite{suffix}", hint)
            growing.faults.update(dict.fromkeys(growing.missing().tolist(), fault))
        return growing.joined()

    def begin(self, work: Work, known: Encodings | None = None) -> GrowingEncodings:
        """Texts to encode, of which some are known already: those that have a vector in `known`, a snapshot."""
        return GrowingEncodings.of(work, self._runner.to_arrays, known)

    def compare(
        self,
        queries: Encodings,
        documents: Encodings,
        left: NDArray[np.integer],
        right: NDArray[np.integer],
        on_rows: Callable[[int], None] = lambda rows: None,
        *,
        stop: Stop | None = None,
    ) -> Outcome:
        """Score rows from encodings.

        Args:
            queries: made by `encode`, as all that follows.
            documents: likewise.
            left: int [rows], which query each row has.
            right: int [rows], which document.
            on_rows: called now and then with the number of rows scored since, in any thread.
            stop: ends the work between two chunks of rows.

        Raises:
            StoppedError: `stop` was requested.
        """
        raw = np.full((len(left), self.num_scores), np.nan, np.float32)
        faults = {**row_faults(documents.faults, right), **row_faults(queries.faults, left)}
        good = good_rows(len(left), faults)
        raw[good] = self._compare_distinct(queries, documents, left[good], right[good], on_rows, stop or Stop())
        for row in good[~np.isfinite(raw[good]).all(axis=1)].tolist():
            faults[row] = Fault("non-finite", f"its score is {_bad_number(raw[row])}", _OVERFLOW)
            raw[row] = np.nan
        return Outcome(raw, faults)

    def _compare_distinct(
        self,
        queries: Encodings,
        documents: Encodings,
        left: NDArray[np.integer],
        right: NDArray[np.integer],
        on_rows: Callable[[int], None],
        stop: Stop,
    ) -> NDArray[np.float32]:
        """float32 [rows, k]: raw scores of rows, each distinct pair of them compared once.

        Equal pairs have equal bits then, which those of a matrix product are not by themselves.
        """
        step = -1 if self._reader.document_first else 1  # of the sides: which of them chunks go by
        (first, outer), (second, inner) = [(left, queries), (right, documents)][::step]
        keys = first.astype(np.int64) * len(inner) + second
        distinct, places, counts = np.unique(keys, return_inverse=True, return_counts=True)
        by = np.divmod(distinct, max(1, len(inner)))
        pairs, found = by[::step], np.empty((len(distinct), self.num_scores), np.float32)

        def score(chunk: slice) -> None:
            found[chunk] = self._compared(queries, documents, pairs[0][chunk], pairs[1][chunk])
            on_rows(int(counts[chunk].sum()))

        sizes = [np.diff(side.offsets) * side.values.shape[1] for side in (outer, inner)]
        if self._reader.document_first:
            sizes[1] //= _AGAIN
        self._run_all([partial(score, chunk) for chunk in plan_chunks(*by, *sizes)], stop)
        return found[places]

    def _compared(
        self, queries: Encodings, documents: Encodings, left: NDArray[np.integer], right: NDArray[np.integer]
    ) -> NDArray[np.float32]:
        """float32 [pairs, k]: raw scores of a chunk of pairs."""
        with self._reader.turn():
            (held, query), (output, item) = (
                self._on_device(side, index) for side, index in ((queries, left), (documents, right))
            )
            return self._reader.compare(held, Match(query, item, None), output)

    def _on_device(self, side: Encodings, index: NDArray[np.integer]) -> tuple[Any, NDArray[np.int64]]:
        """(the encodings that some rows need, which of these each row has)."""
        distinct, places = np.unique(index, return_inverse=True)
        taken = side.take(distinct)
        return self._reader.of_arrays(taken.values, np.diff(taken.offsets)), places

    def _run_all(self, tasks: Sequence[Callable[[], None]], stop: Stop) -> None:
        """Run tasks in the workers."""
        pending = [self._workers.submit(task) for task in tasks]
        try:
            for future in pending:
                stop.result(future)
        finally:
            stop.settle(pending)

    def _forward_texts(self, work: Work, side: Side, growing: GrowingEncodings, take: OnOutput, stop: Stop) -> None:
        """Forward the texts that are missing, in packs that depend neither on what is missing nor on the workers."""
        missing = np.zeros(len(work.items), bool)
        missing[growing.missing()] = True
        packs = [pack.only(missing) for pack in self._plan(work, work.needed(), min_packs=1)]
        self._forward_all(work.items, [pack for pack in packs if len(pack)], take, stop, is_query=side == "query")

    def activate(self, raw: NDArray[np.float32]) -> NDArray[np.float32]:
        """float32, same shape: raw scores to scores."""
        return self._reader.activate(raw)

    def scores(self, work: Work, outcome: Outcome) -> Scores:
        """The final scores of a window, with the tokens and cuts of each row."""
        return self.scores_of(outcome.raw, work.row_tokens(), work.cut)

    def scores_of(self, raw: NDArray[np.float32], tokens: NDArray[np.int32], cut: NDArray[np.uint8]) -> Scores:
        """The final scores of rows with these raw scores [rows, k], tokens and cuts."""
        is_logit = self.spec.score_type == "cross-encoder" and not self.spec.listwise
        return Scores(self.activate(raw), raw if is_logit else None, tokens, cut)

    def close(self) -> None:
        """Stop the threads; packs that have not begun are dropped."""
        self._workers.shutdown(wait=True, cancel_futures=True)
        self._collators.shutdown(wait=True, cancel_futures=True)
        if self._float32 is not None:
            self._float32.close()

    @property
    def has_large_outputs(self) -> bool:
        """Whether an output is a vector for each token, or a number for each word of the vocabulary."""
        return self.spec.similarity in ("maxsim", "meanmaxsim") or self.spec.pooling == ("splade",)

    def _score_rows(self, window: _Window, queries: NDArray[np.int64], rows: NDArray[np.int64]) -> None:
        """Fill raw[rows], the rows of these query items: forward the queries, then stream the other items past them."""
        work = window.work
        missing_rows = np.asarray(np.isnan(window.raw[rows]).any(axis=1))
        if not np.any(missing_rows):
            window.on_pack(len(rows), 0)
            return
        held = None
        if len(queries):
            queries, held = self._encode(window, queries)
            has_query = np.isin(work.left[rows], queries)
            rows, missing_rows = rows[has_query], missing_rows[has_query]
            if not len(rows):
                return
        stream = _Stream.of(window, self._runner.compare, queries, held, rows)
        # packs are planned for all items and then thinned out: the same packs give the same bits
        missing = np.zeros(len(work.items), bool)
        missing[work.right[rows[missing_rows]]] = True
        window.on_pack(int((~missing[work.right[rows]]).sum()), 0)
        packs = [pack.only(missing) for pack in self._plan(work, stream.items)]
        self._forward_all(work.items, [pack for pack in packs if len(pack)], stream.take, window.stop, is_query=False)

    def _encode(self, window: _Window, queries: NDArray[np.int64]) -> tuple[NDArray[np.int64], Any]:
        """(the query items that have an output, their outputs joined in that order)."""
        items = window.work.items
        encoded: list[tuple[NDArray[np.int64], Any]] = []

        def take(index: NDArray[np.int64], output: Any) -> None:
            if isinstance(output, Fault):
                window.refuse(np.flatnonzero(np.isin(window.work.left, index)), output)
            else:
                encoded.append((index, output))
                window.on_pack(0, int(items.lengths[index].sum()))

        self._forward_all(items, self._plan(window.work, queries), take, window.stop, is_query=True)
        if not encoded:
            return np.empty(0, np.int64), None
        joined = np.concatenate([index for index, _ in encoded])
        return np.sort(joined), self._runner.hold([index for index, _ in encoded], [output for _, output in encoded])

    def _plan(self, work: Work, index: NDArray[np.int64], min_packs: int | None = None) -> list[Pack]:
        """Packs of these items; items on the two sides of the model's length limit never share one.

        Args:
            work: whose items they are.
            index: the items.
            min_packs: what to aim for; None: one for each worker.

        Raises:
            CheckpointError: the model has no vector for one of the tokens.
        """
        self._runner.require_vectors(work.items)
        costs, limit = self._runner.costs(work.items), self.spec.regime_length or sys.maxsize
        is_long = work.items.lengths[index] > limit
        parts = [part for part in (index[is_long], index[~is_long]) if len(part)]
        return plan_window(
            work.items,
            parts,
            costs,
            work.group,
            self.budget.max_tokens,
            min_packs or self.budget.workers,
            # a GPU has no workers that idle at the end
            _MULTIPLE if self.setup.placement.device == "cpu" else 1,
            shares_prefixes=self._runner.shares_prefixes(work.items),
        )

    # ---- forwards

    def _forward_all(self, items: Items, packs: list[Pack], take: OnOutput, stop: Stop, *, is_query: bool) -> None:
        """Forward packs in the workers, each of which hands its outputs to `take` in its own thread.

        When one fails or a stop is requested, those that have begun are waited for.
        """
        collate = partial(self._runner.collate, items, is_query=is_query, ahead=True)
        pending: deque[Future[None]] = deque()
        try:
            for pack in packs:
                # batches wait in memory, on a GPU in the device's: no more of them than keep the workers busy
                while len(pending) > self.budget.workers * _BATCHES_AHEAD:
                    stop.result(pending[0])
                    pending.popleft()
                stop.check()
                is_idle = len(pending) < self.budget.workers  # a worker that would only wait makes its batch itself
                batch = None if is_idle else self._collators.submit(collate, pack.index, prefixes=pack.prefixes)
                pending.append(self._workers.submit(self._forward, items, pack, batch, take, is_query=is_query))
            while pending:
                stop.result(pending[0])
                pending.popleft()
        finally:
            stop.settle(pending)

    def _forward(
        self, items: Items, pack: Pack, collated: Future[Batch] | None, take: OnOutput, *, is_query: bool
    ) -> None:
        """Forward a pack, in halves where the memory is too small for all of it.

        What did not fit is remembered, so that later packs are halved without a try.
        """
        if len(pack) == 1 or pack.cost <= self._fitting_cost:
            try:
                shortage = self._attempt(items, pack, collated, take, is_query=is_query)
            except UnreadableMediaError as error:
                for place, fault in error.faults.items():
                    take(pack.index[[place]], fault)
                if len(rest := pack.without(list(error.faults))):
                    self._forward(items, rest, None, take, is_query=is_query)
                return
            if shortage is None:
                return
            if len(pack) == 1:
                take(pack.index, Fault("out-of-memory", shortage.message, shortage.hint))
                return
            self._fitting_cost = min(self._fitting_cost, pack.cost // 2)
        for half in pack.halves():
            self._forward(items, half, None, take, is_query=is_query)

    def _attempt(
        self, items: Items, pack: Pack, collated: Future[Batch] | None, take: OnOutput, *, is_query: bool
    ) -> DeviceMemoryError | None:
        """Forward one pack and hand on its output; returns the error where there is no memory for it."""
        try:
            laid = partial(self._runner.collate, items, pack.index, is_query=is_query, prefixes=pack.prefixes)
            batch = laid() if collated is None else collated.result()
            with self._runner.turn():
                take(pack.index, self._runner.forward(batch))
        except DeviceMemoryError as error:
            shortage = DeviceMemoryError(error.message, hint=error.hint)  # without what the traceback holds on to
        else:
            return None
        self._runner.release_memory()
        return shortage

    # ---- scores that are not numbers

    def _retry_in_float32(self, window: _Window) -> None:
        """Score rows again whose number is not finite: 16 bits overflow where float32 does not."""
        raw, work = window.raw, window.work
        is_bad = (work.right >= 0) & ~np.isfinite(raw).all(axis=1)
        is_bad[list(window.faults)] = False
        rows = np.flatnonzero(is_bad)
        if not len(rows):
            return
        values = {int(row): _bad_number(raw[row]) for row in rows}
        raw[rows] = np.nan

        def repeat(other: Batcher) -> None:
            window.faults.update(other.score(work.only(rows), raw=raw, stop=window.stop).faults)

        if obstacle := self._repeat_in_float32(repeat):
            suffix, hint = obstacle
            window.faults.update(
                {row: Fault("non-finite", f"its score is {value}{suffix}", hint) for row, value in values.items()}
            )

    def _repeat_in_float32(self, repeat: Callable[[Batcher], None]) -> tuple[str, str] | None:
        """Do something again with the same model in float32; where that is no way out, (why, what to do)."""
        dtype = self.setup.placement.dtype
        if dtype == "float32":
            return "", _OVERFLOW
        try:
            if self._float32 is None:
                placement = replace(self.setup.placement, dtype="float32", dtype_reason="retry", quantize="none")
                self._float32 = Batcher(replace(self.setup, placement=placement))
            repeat(self._float32)
        except RuntimeError as error:  # two models may be more than the device has memory for
            return f" in {dtype}, and float32 cannot be tried: {error}", "pass --dtype float32"
        return None


def _bad_number(raw: NDArray[np.float32]) -> np.float32:
    """The first number that is not finite."""
    number: np.float32 = raw[~np.isfinite(raw)][0]
    return number


@dataclass(frozen=True)
class _Window:
    """A window while it is scored."""

    work: Work
    raw: NDArray[np.float32]  # [rows, k], filled in pack by pack
    faults: Faults
    on_pack: OnPack
    stop: Stop

    def refuse(self, rows: NDArray[np.int64], fault: Fault) -> None:
        """Note rows that the memory is too small for, or whose media cannot be decoded."""
        for row in rows.tolist():
            self.faults.setdefault(row, fault)


@dataclass(frozen=True)
class _Stream:
    """The items that are forwarded past the kept queries, each with the rows that it completes."""

    window: _Window
    score: Callable[[Any, Match, Any], NDArray[np.float32]]
    queries: NDArray[np.int64]  # items, ascending
    held: Any  # their outputs
    items: NDArray[np.int64]  # ascending
    rows: NDArray[np.int64]  # by their item, so that a pack finds its rows without a search over all
    starts: NDArray[np.int64]  # [items], into `rows`
    counts: NDArray[np.int64]  # [items], rows of each

    @classmethod
    def of(
        cls,
        window: _Window,
        score: Callable[[Any, Match, Any], NDArray[np.float32]],
        queries: NDArray[np.int64],
        held: Any,
        rows: NDArray[np.int64],
    ) -> _Stream:
        """The stream that completes these rows."""
        right = window.work.right[rows]
        by_item = rows[np.argsort(right, kind="stable")]
        items, starts, counts = np.unique(window.work.right[by_item], return_index=True, return_counts=True)
        return cls(window, score, queries, held, items.astype(np.int64), by_item, starts, counts)

    def take(self, index: NDArray[np.int64], output: Any) -> None:
        """Score the rows of forwarded items, or note why they have no score."""
        rows, item = self._rows_of(index)
        if isinstance(output, Fault):
            self.window.refuse(rows, output)
            return
        work = self.window.work
        slot = None if work.slot is None else work.slot[rows]
        match = Match(np.searchsorted(self.queries, work.left[rows]), item, slot)
        self.window.raw[rows] = self.score(self.held, match, output)
        self.window.on_pack(len(rows), int(work.items.lengths[index].sum()))

    def _rows_of(self, index: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(rows that need one of these items, position in `index` of the item that each needs)."""
        positions = np.searchsorted(self.items, index)
        counts = self.counts[positions]
        return self.rows[ranges(self.starts[positions], counts)], np.repeat(np.arange(len(index)), counts)
