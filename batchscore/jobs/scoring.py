"""How a window gets its scores or encodings: by forwards of its own, or from encodings that are there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from batchscore.engine.batcher import Batcher, OnPack
from batchscore.engine.layouts import Layouts, RequestPairs
from batchscore.io.digests import Digests, digests_of
from batchscore.io.store import SAMPLES
from batchscore.jobs.blocks import Blocks
from batchscore.jobs.commands import Command, EncodeCommand
from batchscore.jobs.commands.encode import Encoded
from batchscore.jobs.commands.requests import RequestsCommand, RequestScores
from batchscore.jobs.encoding import Encoder
from batchscore.jobs.progress import Progress
from batchscore.jobs.shelves import Shelves
from batchscore.stop import Stop
from batchscore.types import Cells, Encodings, Faults, OneSide, Outcome, Pairs, Scores, Side, Work, ranges

Numbered = tuple[NDArray[np.int64], Digests]  # numbers of texts in ascending order, and their digests
_DOCUMENT_BYTES = 128 << 20  # of documents' encodings that are in memory at once


@dataclass(frozen=True, slots=True)
class Prepared:
    """A window before it is scored."""

    size: int  # pairs
    faults: Faults  # that are known already, by pair
    content: Any  # what `score` of the same method reads
    forwards: bool  # whether the model reads something for it


@dataclass(frozen=True, slots=True)
class Scored:
    """A window's scores, or its rows' encodings."""

    outcome: Outcome
    scores: Scores | RequestScores | Encodings
    texts: int  # that the model read for it
    tokens: int
    from_store: int | None = None  # pairs whose scores a store had; None: there is no store


class Method(Protocol):
    """How windows are scored."""

    @property
    def num_scores(self) -> int:
        """Raw scores of a row, which are saved now and then; 0: there are none, and encodings are saved."""

    def prepare(self, pairs: Any) -> Prepared:
        """Do what needs no scores. Called in another thread, while the window before is scored."""

    def score(self, window: Prepared, on_pack: OnPack, *, raw: NDArray[np.float32], stop: Stop) -> Scored:
        """Score a window; `raw`, float32 [pairs, k], has what is known already and is filled in pack by pack."""

    def join(self, windows: Sequence[Any]) -> Any:
        """What a unit's table is made of: the scores of all its windows."""


def choose_method(
    command: Command, encoder: Encoder, layouts: Layouts, blocks: Blocks | None, progress: Progress | None
) -> Method:
    """How a unit of a command is done.

    Args:
        command: what is made of it.
        encoder: the model and the store.
        layouts: of the model, for requests.
        blocks: of a job whose texts are encoded once.
        progress: of the unit, if it is kept.
    """
    batcher, shelves = encoder.batcher, encoder.shelves
    if isinstance(command, RequestsCommand):
        return ForwardRequests(batcher, layouts)
    if isinstance(command, EncodeCommand):
        return EncodeTexts(encoder, progress)
    if blocks:
        return CompareEncodings(batcher, blocks)
    return ForwardNewPairs(batcher, shelves["pair"]) if shelves else ForwardPairs(batcher)


@dataclass(frozen=True, slots=True)
class _ScorePairs:
    """What methods that score have in common."""

    batcher: Batcher

    @property
    def num_scores(self) -> int:
        """Raw scores of a row."""
        return self.batcher.num_scores

    def join(self, windows: Sequence[Any]) -> Any:
        """The scores of all windows."""
        return Scores.concat(windows)


@dataclass(frozen=True, slots=True)
class ForwardPairs(_ScorePairs):
    """The model reads what the window needs."""

    def prepare(self, pairs: Pairs) -> Prepared:
        """Tokenize."""
        work = self.batcher.tokenize(pairs)
        return Prepared(len(pairs), work.faults, work, forwards=True)

    def score(self, window: Prepared, on_pack: OnPack, *, raw: NDArray[np.float32], stop: Stop) -> Scored:
        """Forward."""
        work: Work = window.content
        outcome = self.batcher.score(work, on_pack, raw=raw, stop=stop)
        needed = work.needed()
        tokens = int(work.items.lengths[needed].sum())
        return Scored(outcome, self.batcher.scores(work, outcome), len(needed), tokens)


@dataclass(frozen=True, slots=True)
class ForwardRequests(_ScorePairs):
    """The model reads what the pairs of many requests need, each by the options of its request."""

    layouts: Layouts

    def prepare(self, pairs: RequestPairs) -> Prepared:
        """Tokenize."""
        work = self.layouts.tokenize(pairs)
        return Prepared(len(pairs), work.faults, (pairs, work), forwards=True)

    def score(self, window: Prepared, on_pack: OnPack, *, raw: NDArray[np.float32], stop: Stop) -> Scored:
        """Forward."""
        pairs, work = window.content
        outcome = self.batcher.score(work, on_pack, raw=raw, stop=stop)
        plain = self.batcher.scores(work, outcome)
        score = self.layouts.activate(raw, pairs)
        needed, lengths = work.needed(), work.items.lengths
        answered = RequestScores(
            replace(plain, score=score),
            # a server orders by what it answers, so that equal scores stay in the order of the documents
            score[:, 0] if self.batcher.spec.reads_like_vllm else plain.rank_by,
            lengths[work.left].astype(np.int32) if work.queries else np.zeros(len(work), np.int32),
            {code: self.layouts.warnings(pairs.sets[code]) for code in np.unique(pairs.codes).tolist()},
        )
        return Scored(outcome, answered, len(needed), int(lengths[needed].sum()))

    def join(self, windows: Sequence[RequestScores]) -> RequestScores:
        """The scores of all windows."""
        return RequestScores.concat(windows)


@dataclass(frozen=True, slots=True)
class ForwardNewPairs(_ScorePairs):
    """The model reads the pairs that the store does not have, and the store gets their raw scores."""

    shelf: Shelves

    def prepare(self, pairs: Pairs) -> Prepared:
        """Look pairs up, and tokenize those that are not there."""
        digests = _pair_digests(pairs)
        is_known, stored = self.shelf.find(digests)
        new = np.flatnonzero(~is_known)
        work = self.batcher.tokenize(pairs.rows(new)).spread(new, len(pairs)) if len(new) else None
        content = pairs, digests, is_known, stored, work
        return Prepared(len(pairs), work.faults if work else {}, content, forwards=work is not None)

    def score(self, window: Prepared, on_pack: OnPack, *, raw: NDArray[np.float32], stop: Stop) -> Scored:
        """Forward those."""
        pairs, digests, is_known, stored, work = window.content
        known = np.flatnonzero(is_known)
        distinct = len(np.unique(digests[known], axis=0))
        if len(known):
            raw[known] = stored.values
            on_pack(len(known), 0)
        if work is None:
            return Scored(
                Outcome(raw, {}), self.batcher.scores_of(raw, stored.tokens, stored.cut), distinct, 0, len(known)
            )
        outcome = self.batcher.score(work, on_pack, raw=raw, stop=stop)
        tokens, cut = work.row_tokens(), work.cut.copy()
        tokens[known], cut[known] = stored.tokens, stored.cut
        self._keep(pairs, digests, np.flatnonzero(~is_known), outcome, tokens, cut)
        needed = work.needed()
        read = int(work.items.lengths[needed].sum())
        return Scored(outcome, self.batcher.scores_of(raw, tokens, cut), len(needed) + distinct, read, len(known))

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
        samples = {}
        for place, row in enumerate(new[:SAMPLES].tolist()):
            query, document = (cells.values[cells.codes[row]] for cells in (pairs.queries, pairs.documents))
            if isinstance(query, str) and isinstance(document, str):  # a store keeps no media
                samples[place] = query, document
        self.shelf.add(digests[new], encodings, samples)


def _pair_digests(pairs: Pairs) -> Digests:
    """uint64 [rows, 2]: digests of the digests of both texts."""
    sides = ((texts.codes, digests_of(texts.values)) for texts in (pairs.queries, pairs.documents))
    both = np.concatenate([digests[codes] for codes, digests in sides], axis=1)
    joined = b"".join([blake2b(row, digest_size=16).digest() for row in both])
    return np.frombuffer(joined, "<u8").reshape(-1, 2)


@dataclass(frozen=True, slots=True)
class CompareEncodings(_ScorePairs):
    """The texts of the job are encoded already, and no model runs."""

    blocks: Blocks

    def prepare(self, pairs: Pairs) -> Prepared:
        """Find the texts' numbers."""
        queries, left = self._numbered("query", pairs.queries)
        documents, right = self._numbered("document", pairs.documents)
        return Prepared(len(pairs), {}, (queries, documents, left, right), forwards=False)

    def _numbered(self, side: Side, texts: Cells) -> tuple[Numbered, NDArray[np.int64]]:
        """(the texts' numbers and digests; which of these each row has); they ascend, so blocks are read in order."""
        numbers, digests = self.blocks.find(side, texts.values)
        order = np.argsort(numbers)
        return (numbers[order], digests[order]), np.argsort(order)[texts.codes]

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
        queries_found, (numbers, digests), left, right = window.content
        queries = self.blocks.take("query", *queries_found)
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


@dataclass(frozen=True, slots=True)
class EncodeTexts:
    """The model reads each distinct text of the window, and the encodings are what is written."""

    encoder: Encoder
    progress: Progress | None

    num_scores: ClassVar[int] = 0

    def prepare(self, rows: OneSide) -> Prepared:
        """Tokenize."""
        texts = self.encoder.prepare(rows.texts.values, rows.side)
        return Prepared(len(rows), {}, (texts, rows.texts.codes), forwards=texts.work is not None)

    def score(self, window: Prepared, on_pack: OnPack, *, raw: NDArray[np.float32], stop: Stop) -> Scored:
        """Encode."""
        texts, codes = window.content
        rows = self.encoder.encode(texts, on_pack, stop, self.progress).take(codes)
        from_store = texts.from_store if self.encoder.shelves else None
        return Scored(Outcome(raw, rows.faults), rows, len(texts.new), texts.tokens, from_store)

    def join(self, windows: Sequence[Encodings]) -> Encoded:
        """The encodings of all windows."""
        return Encoded(Encodings.concat(windows), is_matrix=self.encoder.batcher.spec.score_type == "late-interaction")
