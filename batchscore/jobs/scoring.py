"""How the rows of a window get their scores: by forwards of their own, or from encodings that are there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from batchscore.engine.batcher import Batcher, OnPack
from batchscore.io.digests import Digests, digests_of
from batchscore.io.store import Shelf
from batchscore.jobs.blocks import Blocks
from batchscore.stop import Stop
from batchscore.types import Encodings, Faults, Outcome, Pairs, Scores, Work, ranges

_SAMPLED = 4  # pairs of each addition that the store keeps, to be scored again by `batchscore store verify`
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
    from_store: int | None = None  # pairs whose scores a store had; None: there is no store


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
class ForwardNewPairs:
    """The model reads the pairs that the store does not have, and the store gets their raw scores."""

    batcher: Batcher
    shelf: Shelf

    def prepare(self, pairs: Pairs) -> Prepared:
        """Look pairs up, and tokenize those that are not there."""
        digests = _pair_digests(pairs)
        is_known, stored = self.shelf.find(digests)
        new = np.flatnonzero(~is_known)
        work = self.batcher.tokenize(pairs.rows(new)).spread(new, len(pairs)) if len(new) else None
        return Prepared(len(pairs), work.faults if work else {}, (pairs, digests, is_known, stored, work))

    def score(self, window: Prepared, on_pack: OnPack, *, raw: NDArray[np.float32], stop: Stop) -> Scored:
        """Forward those."""
        pairs, digests, is_known, stored, work = window.content
        known = np.flatnonzero(is_known)
        if len(known):
            raw[known] = stored.values
            on_pack(len(known), 0)
        if work is None:
            return Scored(Outcome(raw, {}), self.batcher.scores_of(raw, stored.tokens, stored.cut), 0, 0, len(known))
        outcome = self.batcher.score(work, on_pack, raw=raw, stop=stop)
        tokens, cut = work.row_tokens(), work.cut.copy()
        tokens[known], cut[known] = stored.tokens, stored.cut
        self._keep(pairs, digests, np.flatnonzero(~is_known), outcome, tokens, cut)
        needed = work.needed()
        read = int(work.items.lengths[needed].sum())
        return Scored(outcome, self.batcher.scores_of(raw, tokens, cut), len(needed), read, len(known))

    def _keep(
        self,
        pairs: Pairs,
        digests: Digests,
        new: NDArray[np.int64],
        outcome: Outcome,
        tokens: NDArray[np.int32],
        cut: NDArray[np.uint8],
    ) -> None:
        places = {int(row): place for place, row in enumerate(new)}
        faults = {places[row]: fault for row, fault in outcome.faults.items()}
        encodings = Encodings(outcome.raw[new], np.arange(len(new) + 1), tokens[new], cut[new], faults)
        sides = pairs.queries, pairs.documents
        samples = {
            place: (sides[0].values[sides[0].codes[row]], sides[1].values[sides[1].codes[row]])
            for place, row in enumerate(new[:_SAMPLED].tolist())
        }
        self.shelf.add(digests[new], encodings, samples)


def _pair_digests(pairs: Pairs) -> Digests:
    """uint64 [rows, 2]: digests of the digests of both texts."""
    sides = ((texts.codes, digests_of(texts.values)) for texts in (pairs.queries, pairs.documents))
    both = np.concatenate([digests[codes] for codes, digests in sides], axis=1)
    joined = b"".join([blake2b(row, digest_size=16).digest() for row in both])
    return np.frombuffer(joined, "<u8").reshape(-1, 2)


@dataclass(frozen=True, slots=True)
class CompareEncodings:
    """The texts of the job are encoded already, and no model runs."""

    batcher: Batcher
    blocks: Blocks

    def prepare(self, pairs: Pairs) -> Prepared:
        """Find the texts' numbers."""
        sides = pairs.queries, pairs.documents
        found = self.blocks.find("query", sides[0].values), self.blocks.find("document", sides[1].values)
        return Prepared(len(pairs), {}, (found, sides[0].codes, sides[1].codes))

    def score(self, window: Prepared, on_pack: OnPack, *, raw: NDArray[np.float32], stop: Stop) -> Scored:
        """Compare."""
        rows = self.fill(window, self.blank(window), 0, on_pack, stop)
        raw[:] = rows.values
        return self.scored(rows)

    def blank(self, window: Prepared) -> Encodings:
        """Rows without scores: as if encoded, with the raw score for a vector."""
        values = np.full((window.size, self.batcher.num_scores), np.nan, np.float32)
        counts = np.zeros(window.size, np.int32)
        return Encodings(values, np.arange(window.size + 1), counts, counts.astype(np.uint8))

    def fill(self, window: Prepared, rows: Encodings, group: int, on_pack: OnPack, stop: Stop) -> Encodings:
        """The same rows, those whose documents are in this group with their scores."""
        if not window.size:
            return rows
        (of_queries, (numbers, digests)), left, right = window.content
        queries = self.blocks.take("query", *of_queries)
        values, tokens, cut, faults = rows.values.copy(), rows.tokens.copy(), rows.cut.copy(), dict(rows.faults)
        for documents, some in self._parts(numbers, right, group):
            encodings = self.blocks.take("document", numbers[documents], digests[documents])
            inside = np.searchsorted(documents, right[some])
            outcome = self.batcher.compare(queries, encodings, left[some], inside, stop=stop)
            values[some] = outcome.raw
            faults |= {int(some[row]): fault for row, fault in outcome.faults.items()}
            tokens[some] = queries.tokens[left[some]] + encodings.tokens[inside]
            cut[some] = queries.cut[left[some]] | encodings.cut[inside]
            on_pack(len(some), 0)
        return Encodings(values, rows.offsets, tokens, cut, faults)

    def scored(self, rows: Encodings) -> Scored:
        """Rows that have all their scores."""
        return Scored(
            Outcome(rows.values, rows.faults), self.batcher.scores_of(rows.values, rows.tokens, rows.cut), 0, 0
        )

    def _parts(
        self, numbers: NDArray[np.int64], right: NDArray[np.integer], group: int
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """(documents of a group whose encodings fit into the memory, rows that need them)."""
        documents = np.flatnonzero(self.blocks.group_of(numbers) == group)
        order = np.argsort(right, kind="stable")
        starts = np.searchsorted(right[order], np.arange(len(numbers) + 1))
        ends = np.cumsum(self.blocks.sizes("document", numbers[documents]))
        start, before = 0, 0
        while start < len(documents):
            stop = max(start + 1, int(np.searchsorted(ends, before + _DOCUMENT_BYTES, side="right")))
            some = documents[start:stop]
            yield some, order[ranges(starts[some], starts[some + 1] - starts[some])]
            start, before = stop, int(ends[stop - 1])
