"""Plain data that crosses layers. numpy only; nothing of the project is imported here.

Texts and token sequences travel as columns, not as one object a row: a window of 16,000 rows is a handful of arrays,
and gathering a pack of it is one numpy call.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

ScoreType = Literal["cross-encoder", "bi-encoder", "late-interaction"]
Truncation = Literal["document-first", "longest-first", "flag-embedding", "mxbai-rerank", "prompt-end", "error"]
TRUNCATION_SIDES = ("left", "right")

CUT_QUERY, CUT_DOCUMENT = 1, 2  # bits of `Work.cut`
CUT_NAMES = ("none", "query", "document", "both")  # indexed by those bits


@dataclass(frozen=True, slots=True)
class Texts:
    """A text column, dictionary-encoded: each distinct text is held, tokenised and encoded once."""

    values: Sequence[str]
    codes: NDArray[np.int32]  # [rows], index into `values`

    @classmethod
    def of(cls, texts: Sequence[str]) -> Texts:
        """Encode a plain list, distinct texts in order of first appearance."""
        first = {text: code for code, text in enumerate(dict.fromkeys(texts))}
        return cls(list(first), np.fromiter((first[text] for text in texts), np.int32, len(texts)))

    def rows(self, rows: slice | NDArray[np.integer]) -> Texts:
        """Some rows; texts that none of them has are dropped."""
        codes, inverse = np.unique(self.codes[rows], return_inverse=True)
        return Texts([self.values[code] for code in codes], inverse.astype(np.int32))


@dataclass(frozen=True, slots=True)
class Pairs:
    """Rows to score: one query and one document each."""

    queries: Texts
    documents: Texts
    lists: NDArray[np.integer] | None = None  # [rows], which rows a listwise model reads together; None: each alone

    def __len__(self) -> int:
        return len(self.queries.codes)

    def rows(self, rows: slice | NDArray[np.integer]) -> Pairs:
        """Some rows."""
        return Pairs(
            self.queries.rows(rows), self.documents.rows(rows), None if self.lists is None else self.lists[rows]
        )


@dataclass(frozen=True, slots=True)
class Items:
    """Token sequences laid end to end; sequence i is `ids[offsets[i]:offsets[i + 1]]`."""

    ids: NDArray[np.int32]  # [tokens]
    offsets: NDArray[np.int64]  # [n + 1], first 0
    types: NDArray[np.int32] | None = None  # [tokens], token type ids where the model has them
    keep: NDArray[np.bool_] | None = None  # [tokens], the tokens that count in the readout; None: all
    seen: NDArray[np.bool_] | None = None  # [tokens], the tokens that others attend to; None: all

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """int64 [n]: tokens of each sequence."""
        return np.diff(self.offsets)

    def take(self, index: NDArray[np.integer]) -> Items:
        """The sequences at `index`, in that order."""
        lengths = self.lengths[index]
        offsets = offsets_of(lengths)
        where = ranges(self.offsets[:-1][index], lengths)
        types = None if self.types is None else self.types[where]
        keep = None if self.keep is None else self.keep[where]
        seen = None if self.seen is None else self.seen[where]
        return Items(self.ids[where], offsets, types, keep, seen)


def offsets_of(lengths: NDArray[np.integer] | Sequence[int]) -> NDArray[np.int64]:
    """int64 [n + 1]: where each of n runs of these lengths starts, and the end of the last."""
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


def ranges(starts: NDArray[np.integer], lengths: NDArray[np.integer]) -> NDArray[np.int64]:
    """int64: range(start, start + length) of each pair, end to end."""
    offsets = offsets_of(lengths)
    return np.repeat(starts - offsets[:-1], lengths) + np.arange(offsets[-1])


@dataclass(frozen=True, slots=True)
class Work:
    """A window ready for the model: what to forward, and which items each row needs.

    Items before `held` are forwarded first and their outputs kept (the queries of a bi-encoder); the others stream
    through in packs and each pack is scored as soon as it is done, so that document outputs never pile up. A cross-
    encoder holds nothing: its item is the pair.
    """

    items: Items
    held: int
    # [rows], item of the row's query; equal to `right` for a cross-encoder, the document's place in a listwise prompt
    left: NDArray[np.int32]
    right: NDArray[np.int32]  # [rows], item of the row's document
    cut: NDArray[np.uint8]  # [rows], bits CUT_QUERY and CUT_DOCUMENT

    def __len__(self) -> int:
        return len(self.right)

    def row_tokens(self) -> NDArray[np.int32]:
        """int32 [rows]: tokens the model reads for each row, both sides."""
        lengths = self.items.lengths
        tokens = lengths[self.right] + (lengths[self.left] if self.held else 0)
        return tokens.astype(np.int32)

    def split(self, max_held_tokens: int) -> Iterator[tuple[range, NDArray[np.int64]]]:
        """Yield (held items, rows that need one of them), held items within `max_held_tokens` or a single one."""
        if not self.held:
            yield range(0), np.arange(len(self))
            return
        start = 0
        while start < self.held:
            limit = self.items.offsets[start] + max_held_tokens
            stop = max(start + 1, int(np.searchsorted(self.items.offsets[: self.held + 1], limit, side="right")) - 1)
            yield range(start, stop), np.flatnonzero((self.left >= start) & (self.left < stop))
            start = stop


@dataclass(frozen=True, slots=True)
class Batch:
    """A pack as the model reads it: sequences end to end, longest first, no padding."""

    input_ids: NDArray[np.int64]  # [tokens]
    position_ids: NDArray[np.int64]  # [tokens], restarting with each sequence
    offsets: NDArray[np.int32]  # [n + 1], the "cu_seqlens" of variable-length attention
    token_type_ids: NDArray[np.int64] | None
    keep: NDArray[np.bool_] | None
    seen: NDArray[np.bool_] | None = None  # where some tokens are not attended to
    is_query: bool = False  # a model with an adapter for each side needs to know

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> NDArray[np.int32]:
        """int32 [n]: tokens of each sequence."""
        return np.diff(self.offsets)

    def runs(self) -> list[tuple[int, int, int]]:
        """(first token, sequences, length) of each run of equally long sequences."""
        lengths = self.lengths
        starts = np.flatnonzero(np.diff(lengths, prepend=-1))
        counts = np.diff(starts, append=len(lengths))
        return [(int(self.offsets[s]), int(c), int(lengths[s])) for s, c in zip(starts, counts, strict=True)]


@dataclass(frozen=True, slots=True)
class Budget:
    """How much is in flight at once."""

    max_tokens: int = 16_384  # of a pack
    window_rows: int = 16_384  # read, tokenised and length-sorted together
    max_held_tokens: int = 65_536  # whose per-token outputs are kept while documents stream by
    workers: int = 1  # packs in the model at the same time


@dataclass(frozen=True, slots=True)
class Scores:
    """What a window gives back, in row order."""

    score: NDArray[np.float32]  # [rows]
    logit: NDArray[np.float32] | None  # [rows], cross-encoders: before the activation
    num_tokens: NDArray[np.int32]  # [rows]
    cut: NDArray[np.uint8]  # [rows], index into CUT_NAMES

    @property
    def rank_by(self) -> NDArray[np.float32]:
        """float32 [rows]: the logit if there is one: a saturated sigmoid ties what the model tells apart."""
        return self.score if self.logit is None else self.logit


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with one row."""

    code: str  # a word for programs, for example "null"
    message: str
    hint: str | None = None
    column: str | None = None


Faults = dict[int, Fault]  # row of a table or window -> its first fault
