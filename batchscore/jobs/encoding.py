"""Texts of one side to encodings: from the store what it has, from the model the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from batchscore.engine.batcher import Batcher, OnPack
from batchscore.errors import RuntimeFailureError
from batchscore.io.digests import Digests, digests_of
from batchscore.io.store import SAMPLES
from batchscore.jobs.progress import Progress, Timer
from batchscore.jobs.shelves import Shelves
from batchscore.stop import Stop
from batchscore.types import Cell, Encodings, Side, Work


@dataclass(frozen=True, slots=True)
class PreparedTexts:
    """Texts before they are encoded."""

    side: Side
    texts: Sequence[Cell]
    digests: Digests
    stored: Encodings | None  # of the texts that the store has; None: there is no store
    new: NDArray[np.int64]  # the other texts
    work: Work | None  # of those; None: there are none

    @property
    def from_store(self) -> int:
        """How many of them the store has."""
        return len(self.texts) - len(self.new)

    @property
    def tokens(self) -> int:
        """Tokens that the model is going to read."""
        return int(self.work.items.offsets[-1]) if self.work else 0


@dataclass(frozen=True, slots=True)
class Encoder:
    """A model, and where its encodings are kept for later jobs."""

    batcher: Batcher
    shelves: Mapping[str, Shelves]  # by side; empty: they are not kept

    def prepare(self, texts: Sequence[Cell], side: Side) -> PreparedTexts:
        """Look texts up, and tokenize those that are not there. Called in another thread than `encode`."""
        digests, stored, new = digests_of(texts), None, np.arange(len(texts))
        if side in self.shelves:
            is_known, stored = self.shelves[side].find(digests)
            new = np.flatnonzero(~is_known)
        work = self.batcher.lay_out([texts[text] for text in new.tolist()], side) if len(new) else None
        return PreparedTexts(side, texts, digests, stored, new, work)

    def encode(
        self, prepared: PreparedTexts, on_pack: OnPack, stop: Stop, progress: Progress | None = None
    ) -> Encodings:
        """The encodings in the texts' order; those that are new go to the store.

        Args:
            prepared: the texts.
            on_pack: called after each pack with its texts and tokens, in any thread.
            stop: ends the work between packs.
            progress: where what there is of the new texts is saved now and then, and if this ends early.

        Raises:
            StoppedError: `stop` was requested.
        """
        parts = []
        if prepared.from_store and prepared.stored is not None:
            parts.append((np.setdiff1d(np.arange(len(prepared.texts)), prepared.new), prepared.stored))
        if prepared.work is not None:
            encodings = self._forward(prepared, prepared.work, on_pack, stop, progress)
            self._keep(prepared, encodings)
            parts.append((prepared.new, encodings))
        return Encodings.interleave(parts)

    def _forward(
        self, prepared: PreparedTexts, work: Work, on_pack: OnPack, stop: Stop, progress: Progress | None
    ) -> Encodings:
        """The encodings of the new texts."""
        if progress is None:
            return self.batcher.encode(work, prepared.side, on_pack, stop=stop)
        digests, timer = prepared.digests[prepared.new], Timer()
        growing = self.batcher.begin(work, progress.saved(digests))
        on_pack(int(growing.is_done.sum()), 0)

        def on_saved_pack(texts: int, tokens: int) -> None:
            on_pack(texts, tokens)
            if timer.is_due():
                progress.save(digests, growing.snapshot())

        try:
            return self.batcher.encode(work, prepared.side, on_saved_pack, stop=stop, growing=growing)
        except BaseException:
            with suppress(RuntimeFailureError):  # a full disk must not hide what came first
                if growing.is_done.any():
                    progress.save(digests, growing.snapshot())
            raise

    def _keep(self, prepared: PreparedTexts, encodings: Encodings) -> None:
        if (shelf := self.shelves.get(prepared.side)) is not None:
            new = prepared.new
            first = {row: prepared.texts[text] for row, text in enumerate(new[:SAMPLES].tolist())}
            samples = {row: text for row, text in first.items() if isinstance(text, str)}  # a store keeps no media
            shelf.add(prepared.digests[new], encodings, samples)
