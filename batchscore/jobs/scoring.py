"""How a window gets its scores or encodings: by forwards of its own, or from encodings that are there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from batchscore.engine.batcher import Batcher, OnPack
from batchscore.jobs.blocks import Blocks
from batchscore.jobs.commands import Command, EncodeCommand
from batchscore.jobs.commands.encode import Encoded
from batchscore.stop import Stop
from batchscore.types import Encodings, Faults, OneSide, Outcome, Pairs, Scores, Side, Work, row_faults

_DOCUMENT_BYTES = 128 << 20  # of documents' encodings that are in memory at once


@dataclass(frozen=True, slots=True)
class Prepared:
    """A window before it is scored."""

    size: int  # pairs
    faults: Faults  # that are known already, by pair
    content: Any  # what `score` of the same method reads


@dataclass(frozen=True, slots=True)
class Scored:
    """A window's scores, or its rows' encodings."""

    outcome: Outcome
    scores: Scores | Encodings
    texts: int  # that the model read for it
    tokens: int


class Method(Protocol):
    """How windows are scored."""

    @property
    def num_scores(self) -> int:
        """Raw scores of a row, which are saved now and then; 0: a unit is done anew after an interruption."""

    def prepare(self, pairs: Any) -> Prepared:
        """Do what needs no scores. Called in another thread, while the window before is scored."""

    def score(self, window: Prepared, on_pack: OnPack, *, raw: NDArray[np.float32], stop: Stop) -> Scored:
        """Score a window; `raw`, float32 [pairs, k], has what is known already and is filled in pack by pack."""

    def join(self, windows: Sequence[Any]) -> Any:
        """What a unit's table is made of: the scores of all its windows."""


def choose_method(command: Command, batcher: Batcher, blocks: Blocks | None) -> Method:
    """How the units of a command are done; `blocks` of a job whose texts are encoded once."""
    if isinstance(command, EncodeCommand):
        return EncodeTexts(batcher, command.side) if blocks is None else TakeEncodings(batcher, command.side, blocks)
    return ForwardPairs(batcher) if blocks is None else CompareEncodings(batcher, blocks)


@dataclass(frozen=True, slots=True)
class _ScorePairs:
    """What methods that score have in common."""

    batcher: Batcher

    @property
    def num_scores(self) -> int:
        """Raw scores of a row."""
        return self.batcher.num_scores

    def join(self, windows: Sequence[Scores]) -> Scores:
        """The scores of all windows."""
        return Scores.concat(windows)


@dataclass(frozen=True, slots=True)
class ForwardPairs(_ScorePairs):
    """The model reads what the window needs."""

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
class CompareEncodings(_ScorePairs):
    """The texts of the job are encoded already, and no model runs."""

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


@dataclass(frozen=True, slots=True)
class _EncodeRows:
    """What methods that encode have in common."""

    batcher: Batcher
    side: Side

    num_scores: ClassVar[int] = 0

    def join(self, windows: Sequence[Encodings]) -> Encoded:
        """The encodings of all windows."""
        return Encoded(Encodings.concat(windows), is_matrix=self.batcher.spec.score_type == "late-interaction")


@dataclass(frozen=True, slots=True)
class EncodeTexts(_EncodeRows):
    """The model reads each distinct text of the window."""

    def prepare(self, rows: OneSide) -> Prepared:
        """Tokenize."""
        work, codes = self.batcher.lay_out(rows.texts.values, self.side), rows.texts.codes
        return Prepared(len(rows), row_faults(work.faults, codes), (work, codes))

    def score(self, window: Prepared, on_pack: OnPack, *, raw: NDArray[np.float32], stop: Stop) -> Scored:
        """Encode."""
        work, codes = window.content
        rows = self.batcher.encode(work, self.side, on_pack, stop=stop).take(codes)
        needed = work.needed()
        return Scored(Outcome(raw, rows.faults), rows, len(needed), int(work.items.lengths[needed].sum()))


@dataclass(frozen=True, slots=True)
class TakeEncodings(_EncodeRows):
    """The texts of the job are encoded already, and no model runs."""

    blocks: Blocks

    def prepare(self, rows: OneSide) -> Prepared:
        """Find the texts' numbers."""
        return Prepared(len(rows), {}, self.blocks.find(self.side, rows.texts.values)[rows.texts.codes])

    def score(self, window: Prepared, on_pack: OnPack, *, raw: NDArray[np.float32], stop: Stop) -> Scored:
        """Collect."""
        stop.check()
        rows = self.blocks.take(self.side, window.content)
        on_pack(window.size, 0)
        return Scored(Outcome(raw, rows.faults), rows, 0, 0)
