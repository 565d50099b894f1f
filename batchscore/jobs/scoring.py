"""How the rows of a window get their scores: by forwards of their own, or from encodings that are there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from batchscore.engine.batcher import Batcher, OnPack
from batchscore.jobs.blocks import Blocks
from batchscore.stop import Stop
from batchscore.types import Faults, Outcome, Pairs, Scores, Work

_DOCUMENT_BYTES = 128 << 20  # of documents' encodings that are in memory at once


@dataclass(frozen=True, slots=True)
class Prepared:
    """A window before it is scored."""

    size: int  # pairs
    faults: Faults  # that are known already, by pair
    content: Any  # what `score` of the same method reads


@dataclass(frozen=True, slots=True)
class Scored:
    """A window's scores."""

    outcome: Outcome
    scores: Scores
    texts: int  # that the model read for it
    tokens: int


class Method(Protocol):
    """How windows are scored."""

    def prepare(self, pairs: Pairs) -> Prepared:
        """Do what needs no scores. Called in another thread, while the window before is scored."""

    def score(self, window: Prepared, on_pack: OnPack, *, raw: NDArray[np.float32], stop: Stop) -> Scored:
        """Score a window; `raw`, float32 [pairs, k], has what is known already and is filled in pack by pack."""


@dataclass(frozen=True, slots=True)
class ForwardPairs:
    """The model reads what the window needs."""

    batcher: Batcher

    def prepare(self, pairs: Pairs) -> Prepared:
        """Tokenize."""
        work = self.batcher.tokenize(pairs)
        return Prepared(len(pairs), work.faults, work)

    def score(self, window: Prepared, on_pack: OnPack, *, raw: NDArray[np.float32], stop: Stop) -> Scored:
        """Forward."""
        work: Work = window.content
        outcome = self.batcher.score(work, on_pack, raw=raw, stop=stop)
        needed = work.needed()
        tokens = int(work.items.lengths[needed].sum())
        return Scored(outcome, self.batcher.scores(work, outcome), len(needed), tokens)


@dataclass(frozen=True, slots=True)
class CompareEncodings:
    """The texts of the job are encoded already, and no model runs."""

    batcher: Batcher
    blocks: Blocks

    def prepare(self, pairs: Pairs) -> Prepared:
        """Find the texts' numbers."""
        sides = pairs.queries, pairs.documents
        numbers = self.blocks.find("query", sides[0].values), self.blocks.find("document", sides[1].values)
        return Prepared(len(pairs), {}, (numbers, sides[0].codes, sides[1].codes))

    def score(self, window: Prepared, on_pack: OnPack, *, raw: NDArray[np.float32], stop: Stop) -> Scored:
        """Compare."""
        (query_numbers, document_numbers), left, right = window.content
        queries = self.blocks.take("query", query_numbers)
        tokens, cut = queries.tokens[left], queries.cut[left]
        faults: Faults = {}
        for documents, rows in self._parts(document_numbers, right):
            stop.check()
            encodings = self.blocks.take("document", document_numbers[documents])
            inside = right[rows] - documents.start
            outcome = self.batcher.compare(queries, encodings, left[rows], inside, stop=stop)
            raw[rows] = outcome.raw
            faults |= {int(rows[row]): fault for row, fault in outcome.faults.items()}
            tokens[rows] += encodings.tokens[inside]
            cut[rows] |= encodings.cut[inside]
            on_pack(len(rows), 0)
        return Scored(Outcome(raw, faults), Scores(raw, None, tokens, cut), 0, 0)

    def _parts(
        self, numbers: NDArray[np.int64], right: NDArray[np.integer]
    ) -> Iterator[tuple[slice, NDArray[np.int64]]]:
        """(documents whose encodings fit into the memory, rows that need them)."""
        order = np.argsort(right, kind="stable")
        ends = np.cumsum(self.blocks.sizes("document", numbers))
        start, before = 0, 0
        while start < len(numbers):
            stop = max(start + 1, int(np.searchsorted(ends, before + _DOCUMENT_BYTES, side="right")))
            first, last = np.searchsorted(right[order], [start, stop])
            yield slice(start, stop), order[first:last]
            start, before = stop, int(ends[stop - 1])
