"""Plain data that crosses layers. numpy only; nothing of the project is imported here.

Texts and token sequences travel as columns, not as one object a row: a window of 16,000 rows is a handful of arrays,
and gathering a pack of it is one numpy call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

ScoreType = Literal["cross-encoder", "bi-encoder", "late-interaction"]
Truncation = Literal[
    "document-first", "longest-first", "flag-embedding", "mxbai-rerank", "qwen3-vl", "prompt-end", "error"
]
TRUNCATION_SIDES = ("left", "right")
Side = Literal["query", "document"]
SIDES: tuple[Side, ...] = ("query", "document")

CUT_QUERY, CUT_DOCUMENT = 1, 2  # bits of `Work.cut`
CUT_NAMES = ("none", "query", "document", "both")  # indexed by those bits


class FrameSource(Protocol):
    """Where the pixels of a medium are."""

    def frames(self, index: Sequence[int], *, on_white: bool) -> list[Any]:
        """The frames at these positions as PIL images in RGB, upright; an image is its only frame.

        Args:
            index: ascending, from 0.
            on_white: lay what is transparent on white; else its colours are taken as they are stored.

        Raises:
            InputError: it is gone, is not what it was when its header was read, or cannot be decoded.
        """


@dataclass(frozen=True, slots=True)
class Media:
    """An image or a video by reference: what its header says, and where it is. No pixels.

    Media of equal content are equal, wherever they are.
    """

    kind: Literal["image", "video"]
    digest: bytes  # 16 bytes of BLAKE2b, of all that decides the pixels
    width: int  # pixels, upright
    height: int
    source: FrameSource = field(compare=False)
    count: int = 1  # frames
    fps: float = 0.0  # frames a second of a video; 0: unknown
    sampled: bool = False  # whether all frames are to be read, since someone chose them; else the model's rule chooses


@dataclass(frozen=True, slots=True)
class Content:
    """A query or document that is not a single text: texts and media."""

    parts: tuple[str | Media, ...]
    ordered: bool = True  # whether the order is the author's; if not, the model's own rule gives one

    @property
    def text(self) -> str:
        """The texts alone, a line each."""
        return "\n".join(part for part in self.parts if isinstance(part, str))

    @property
    def media(self) -> tuple[Media, ...]:
        """The media alone."""
        return tuple(part for part in self.parts if not isinstance(part, str))


Cell = str | Content  # a query or document; a string is the case with one text part


def cell_bytes(cell: Cell) -> bytes:
    """What tells a query or document from all others: of a text its UTF-8, of others bytes that no text has."""
    if isinstance(cell, str):
        return cell.encode()
    parts = [b"t" + part.encode() if isinstance(part, str) else b"m" + part.digest for part in cell.parts]
    # 0xff begins no UTF-8; lengths keep parts apart
    return b"\xff%d" % cell.ordered + b"".join(b"%d:" % len(part) + part for part in parts)


@dataclass(frozen=True, slots=True)
class Cells:
    """A column of queries or documents, dictionary-encoded: each distinct one is held, laid out and encoded once."""

    values: Sequence[Cell]
    codes: NDArray[np.int32]  # [rows], index into `values`

    @classmethod
    def of(cls, cells: Sequence[Cell]) -> Cells:
        """Encode a plain list, distinct cells in order of first appearance."""
        first = {cell: code for code, cell in enumerate(dict.fromkeys(cells))}
        return cls(list(first), np.fromiter((first[cell] for cell in cells), np.int32, len(cells)))

    def rows(self, rows: slice | NDArray[np.integer]) -> Cells:
        """Some rows; cells that none of them has are dropped."""
        codes, inverse = np.unique(self.codes[rows], return_inverse=True)
        return Cells([self.values[code] for code in codes], inverse.astype(np.int32))


@dataclass(frozen=True, slots=True)
class Pairs:
    """Rows to score: one query and one document each."""

    queries: Cells
    documents: Cells
    lists: NDArray[np.integer] | None = None  # [rows], which rows a listwise model reads together; None: each alone

    def __len__(self) -> int:
        return len(self.queries.codes)

    @property
    def sides(self) -> dict[Side, Cells]:
        """The texts of both sides."""
        return {"query": self.queries, "document": self.documents}

    def rows(self, rows: slice | NDArray[np.integer]) -> Pairs:
        """Some rows."""
        return Pairs(
            self.queries.rows(rows), self.documents.rows(rows), None if self.lists is None else self.lists[rows]
        )


@dataclass(frozen=True, slots=True)
class OneSide:
    """Rows to encode: one text each."""

    side: Side
    texts: Cells

    def __len__(self) -> int:
        return len(self.texts.codes)

    @property
    def sides(self) -> dict[Side, Cells]:
        """The texts of the only side, as `Pairs` has both."""
        return {self.side: self.texts}

    def rows(self, rows: slice | NDArray[np.integer]) -> OneSide:
        """Some rows."""
        return OneSide(self.side, self.texts.rows(rows))


@dataclass(frozen=True, slots=True)
class Visual:
    """A medium as one model reads it, decided from the medium's header and the model's own rule."""

    media: Media
    tokens: int  # of its sequence that stand for its parts; for each the model makes a vector
    patches: int  # that the vision tower reads
    grid: tuple[int, ...]  # what it is cut into; what the numbers mean is the business of the model's processor
    frames: tuple[int, ...] = (0,)  # which are read
    reader: int = 0  # whose rule that is, where requests have settings of their own


@dataclass(frozen=True, slots=True)
class Visuals:
    """The media of token sequences: those of sequence i from `offsets[i]` to `offsets[i + 1]`, as in `Items`."""

    offsets: NDArray[np.int64]  # [n + 1], first 0
    values: Sequence[Visual]

    @classmethod
    def of(cls, listed: Sequence[Sequence[Visual]]) -> Visuals:
        """The media of each sequence."""
        return cls(offsets_of([len(visuals) for visuals in listed]), [one for visuals in listed for one in visuals])

    def __getitem__(self, sequence: int) -> Sequence[Visual]:
        """Those of one sequence."""
        return self.values[self.offsets[sequence] : self.offsets[sequence + 1]]

    def take(self, index: NDArray[np.integer]) -> Visuals:
        """Those of the sequences at `index`, in that order."""
        return Visuals.of([self[sequence] for sequence in index.tolist()])

    def total(self, of: Callable[[Visual], int]) -> NDArray[np.int64]:
        """int64 [n]: the sum of a number of each medium over each sequence."""
        numbers = np.array([of(visual) for visual in self.values], np.int64)
        return np.diff(np.concatenate([[0], np.cumsum(numbers)])[self.offsets])


@dataclass(frozen=True, slots=True)
class Items:
    """Token sequences laid end to end; sequence i has the tokens from `offsets[i]` to `offsets[i + 1]`.

    `columns` hold a value for each token: "ids" (int32) always, the others where the model needs them. A column that
    is not there reads as its default for every token (`ABSENT`), so a new one costs an entry there and no edit here.
    """

    offsets: NDArray[np.int64]  # [n + 1], first 0
    columns: Mapping[str, NDArray[Any]]  # each [tokens]
    visuals: Visuals | None = None  # what stands at the tokens that column "media" marks; None: nothing does

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def ids(self) -> NDArray[np.int32]:
        """int32 [tokens]."""
        return self.columns["ids"]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """int64 [n]: tokens of each sequence."""
        return np.diff(self.offsets)

    @property
    def positions(self) -> NDArray[np.int64]:
        """int64 [tokens]: where each token stands in its sequence."""
        return np.arange(len(self.ids)) - np.repeat(self.offsets[:-1], self.lengths)

    def take(self, index: NDArray[np.integer]) -> Items:
        """The sequences at `index`, in that order."""
        taken = self.slice(self.offsets[:-1][index], self.lengths[index])
        return taken if self.visuals is None else replace(taken, visuals=self.visuals.take(index))

    def slice(self, starts: NDArray[np.integer], lengths: NDArray[np.integer]) -> Items:
        """Sequences cut out of the tokens: `lengths[i]` of them from `starts[i]` on; no media come with them."""
        tokens = ranges(starts, lengths)
        return Items(offsets_of(lengths), {name: column[tokens] for name, column in self.columns.items()})

    def concat(self, other: Items) -> Items:
        """These sequences, then the others'."""
        return Items.joined([self, other])

    @classmethod
    def joined(cls, parts: Sequence[Items]) -> Items:
        """The sequences of all parts, one after the other."""
        names = dict.fromkeys(name for part in parts for name in part.columns)
        columns = {name: np.concatenate([part.filled(name) for part in parts]) for name in names}
        visuals = None
        if any(part.visuals is not None for part in parts):
            visuals = Visuals.of([one for part in parts for one in part.media])
        return cls(offsets_of(np.concatenate([part.lengths for part in parts])), columns, visuals)

    @property
    def media(self) -> list[Sequence[Visual]]:
        """The media of each sequence."""
        return [() if self.visuals is None else self.visuals[sequence] for sequence in range(len(self))]

    @property
    def num_media(self) -> int:
        """Of all sequences."""
        return 0 if self.visuals is None else len(self.visuals.values)

    def filled(self, name: str) -> NDArray[Any]:
        """A column, full of its default where it is not there."""
        return self.columns[name] if name in self.columns else np.full(len(self.ids), ABSENT[name])

    def with_columns(self, **columns: NDArray[Any] | None) -> Items:
        """The same sequences with these columns set, or left out where None."""
        set_columns = {name: column for name, column in {**self.columns, **columns}.items() if column is not None}
        return replace(self, columns=set_columns)


@dataclass(frozen=True, slots=True)
class Prefixes:
    """Leading parts that sequences share with their neighbours, each of which a causal model needs to read once.

    Sequence i has `depth` parts that end at `cuts[i]`, and behind them a last one of its own with at least one token.
    Neighbours that have the same number for a part have it in common, and all parts before it.
    """

    cuts: NDArray[np.int64]  # [n, depth], ascending; equal ones: an empty part
    parts: NDArray[np.int64]  # [n, depth], the number of each part; that of an empty one is the sequence's own

    def take(self, index: NDArray[np.integer] | slice) -> Prefixes:
        """Those of the sequences at `index`, in that order, which leaves neighbours that share a part neighbours."""
        return Prefixes(self.cuts[index], self.parts[index])

    @property
    def sizes(self) -> NDArray[np.int64]:
        """int64 [n, depth]: tokens of each part."""
        return np.diff(self.cuts, axis=1, prepend=0)

    @property
    def is_new(self) -> NDArray[np.bool_]:
        """bool [n, depth]: whether the sequence before has another part there."""
        is_new: NDArray[np.bool_] = np.diff(self.parts, axis=0, prepend=-1) != 0
        return is_new

    @property
    def shared(self) -> NDArray[np.int64]:
        """int64 [n]: leading tokens that a sequence shares with the one before it."""
        shared: NDArray[np.int64] = np.where(self.is_new, 0, self.sizes).sum(axis=1)
        return shared


ABSENT: Mapping[str, Any] = {
    "types": np.int32(0),  # token type ids: one segment
    "keep": np.True_,  # tokens that count in the readout: all
    "seen": np.True_,  # tokens that others attend to: all
    "media": np.int8(0),  # tokens that stand for a part of an image (1) or a video (2): none
}


def offsets_of(lengths: NDArray[np.integer] | Sequence[int]) -> NDArray[np.int64]:
    """int64 [n + 1]: where each of n runs of these lengths starts, and the end of the last."""
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


def ranges(starts: NDArray[np.integer], lengths: NDArray[np.integer]) -> NDArray[np.int64]:
    """int64: range(start, start + length) of each pair, end to end."""
    offsets = offsets_of(lengths)
    return np.repeat(starts - offsets[:-1], lengths) + np.arange(offsets[-1])


def chunks_of(sizes: NDArray[np.integer] | Sequence[int], limit: int) -> list[slice]:
    """Things in a row as chunks whose sizes add up to `limit` at most; what is larger is a chunk by itself."""
    ends = np.cumsum(sizes, dtype=np.int64)
    chunks, start, base = [], 0, 0
    while start < len(ends):
        stop = max(start + 1, int(np.searchsorted(ends, base + limit, side="right")))
        chunks.append(slice(start, stop))
        start, base = stop, int(ends[stop - 1])
    return chunks


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a row has no score."""

    code: str  # a word for programs, for example "null"
    message: str  # what follows "row 3: "
    hint: str | None = None  # the next step
    column: str | None = None

    @property
    def said(self) -> str:
        """The message with the column."""
        return f"column {self.column!r} {self.message}" if self.column else self.message

    @property
    def is_models(self) -> bool:
        """Whether the model or the machine failed: no change to the row would help."""
        return self.code in ("non-finite", "out-of-memory")


Faults = dict[int, Fault]  # by row


def row_faults(faults: Faults, texts: NDArray[np.integer]) -> Faults:
    """The faults of rows by those of their texts; `texts`, int [rows], says which text each row needs."""
    rows = np.flatnonzero(np.isin(texts, list(faults))) if faults else texts[:0]
    return {int(row): faults[int(texts[row])] for row in rows}


def good_rows(size: int, faults: Faults) -> NDArray[np.int64]:
    """int64: the rows without a fault."""
    good = np.ones(size, bool)
    good[list(faults)] = False
    return np.flatnonzero(good)


@dataclass(frozen=True, slots=True)
class Work:
    """A window laid out for the model: the sequences to forward, and which of them each row needs.

    The first `queries` items are read by themselves and their outputs kept (the queries of a bi-encoder); the others
    stream through in packs and each pack is scored as soon as it is done, so that document outputs never pile up. A
    cross-encoder keeps nothing: its item is the pair.

    A row with a fault needs no item. The items that only such rows would need are never forwarded.
    """

    items: Items
    queries: int
    left: NDArray[np.int32]  # [rows], item of the row's query; where `queries` is 0, equal to `right`
    right: NDArray[np.int32]  # [rows], item of the row's document or pair; -1: the row has a fault
    cut: NDArray[np.uint8]  # [rows], bits CUT_QUERY and CUT_DOCUMENT
    group: NDArray[np.int32]  # [items], the query whose prompt an item begins with; -1: it belongs to no one query
    slot: NDArray[np.int32] | None = None  # [rows], which document of a listwise prompt a row is
    faults: Faults = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.right)

    def refused(self, faults: Faults) -> Work:
        """The same work with faults of further rows; a row keeps its first fault."""
        if not faults:
            return self
        right = self.right.copy()
        right[list(faults)] = -1
        return replace(self, right=right, faults={**faults, **self.faults})

    def only(self, rows: NDArray[np.integer]) -> Work:
        """The same work for some of its rows; the others need nothing and have no fault."""
        right = np.full_like(self.right, -1)
        right[rows] = self.right[rows]
        return replace(self, right=right, faults={})

    def spread(self, rows: NDArray[np.integer], size: int) -> Work:
        """The same work, its rows being these of `size`; the others need nothing and have no fault."""

        def column(values: NDArray[Any], other: int) -> NDArray[Any]:
            spread = np.full(size, other, values.dtype)
            spread[rows] = values
            return spread

        return replace(
            self,
            left=column(self.left, -1),
            right=column(self.right, -1),
            cut=column(self.cut, 0),
            slot=None if self.slot is None else column(self.slot, -1),
            faults={int(rows[row]): fault for row, fault in self.faults.items()},
        )

    def row_tokens(self) -> NDArray[np.int32]:
        """int32 [rows]: tokens the model reads for each row, both sides."""
        lengths = self.items.lengths if len(self.items) else np.zeros(1, np.int64)
        tokens = lengths[self.right] + (lengths[self.left] if self.queries else 0)
        return np.where(self.right < 0, 0, tokens).astype(np.int32)

    def needed(self) -> NDArray[np.int64]:
        """int64: the items that a row needs, in order."""
        rows = self.right >= 0
        return self._distinct(self.left[rows], self.right[rows])

    def _distinct(self, *items: NDArray[np.integer]) -> NDArray[np.int64]:
        """int64: each of these items once, ascending; marking them is several times faster than sorting."""
        is_marked = np.zeros(len(self.items), bool)
        for some in items:
            is_marked[some] = True
        return np.flatnonzero(is_marked)

    def query_groups(self, max_tokens: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Yield (query items, rows that need one of them), query items within `max_tokens` or a single one."""
        rows = np.flatnonzero(self.right >= 0)
        if not self.queries:
            yield np.empty(0, np.int64), rows
            return
        queries = self._distinct(self.left[rows])
        ends = np.cumsum(self.items.lengths[queries])
        start, before = 0, 0
        while start < len(queries):
            stop = max(start + 1, int(np.searchsorted(ends, before + max_tokens, side="right")))
            first, last = queries[start], queries[stop - 1]
            yield queries[start:stop], rows[(self.left[rows] >= first) & (self.left[rows] <= last)]
            start, before = stop, int(ends[stop - 1])


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the model made of a window."""

    raw: NDArray[np.float32]  # [rows, k], a number for each head or adapter; NaN in rows with a fault
    faults: Faults  # of the layout and of the model


@dataclass(frozen=True, slots=True)
class Encodings:
    """What the model made of texts by themselves, with what a score's record says of each.

    Of a text a bi-encoder makes one vector, late interaction one for each token that counts. A text with a fault has
    none.
    """

    values: NDArray[Any]  # [vectors, dim], float32 or float16; bfloat16, which numpy lacks, as its bits in uint16
    offsets: NDArray[np.int64]  # [n + 1], the vectors of each text, as in `Items`
    tokens: NDArray[np.int32]  # [n], that the model read
    cut: NDArray[np.uint8]  # [n], bits as in `Work.cut`
    faults: Faults = field(default_factory=dict)  # by text

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def num_tokens(self) -> NDArray[np.int32]:
        """As `Scores` calls them."""
        return self.tokens

    @property
    def nbytes(self) -> int:
        """Bytes of the vectors."""
        return int(self.values.nbytes)

    @property
    def float32(self) -> NDArray[np.float32]:
        """float32 [vectors, dim]: the values as numbers."""
        if self.values.dtype == np.uint16:
            numbers: NDArray[np.float32] = np.left_shift(self.values, 16, dtype=np.uint32).view(np.float32)
            return numbers
        return self.values.astype(np.float32, copy=False)

    def take(self, index: NDArray[np.integer]) -> Encodings:
        """The texts at `index`, in that order; the values are a view if these are neighbours."""
        counts = np.diff(self.offsets)[index]
        if len(index) and (np.diff(index) == 1).all():
            values = self.values[self.offsets[index[0]] : self.offsets[index[-1] + 1]]
        else:
            values = self.values[ranges(self.offsets[:-1][index], counts)]
        faults = row_faults(self.faults, index)
        return Encodings(values, offsets_of(counts), self.tokens[index], self.cut[index], faults)

    @classmethod
    def interleave(cls, parts: Sequence[tuple[NDArray[np.int64], Encodings]]) -> Encodings:
        """The texts of all parts, each at the place that its part says; together these are 0, 1, 2 and so on."""
        if len(parts) == 1:
            return parts[0][1]
        places = np.concatenate([places for places, _ in parts])
        return cls.concat([part for _, part in parts]).take(np.argsort(places))

    @classmethod
    def concat(cls, parts: Sequence[Encodings]) -> Encodings:
        """The texts of all parts, one after the other; a single part is not copied."""
        if len(parts) == 1:
            return parts[0]
        nothing = np.empty(0, np.int32), np.empty(0, np.uint8)
        parts = parts or [cls(np.empty((0, 0), np.float32), np.zeros(1, np.int64), *nothing)]
        starts = offsets_of([len(part) for part in parts]).tolist()
        # texts that all have faults have values of no dimension
        values = [part.values for part in parts if len(part.values)] or [parts[0].values]
        return cls(
            np.concatenate(values),
            offsets_of(np.concatenate([np.diff(part.offsets) for part in parts])),
            np.concatenate([part.tokens for part in parts]),
            np.concatenate([part.cut for part in parts]),
            {
                start + text: fault
                for start, part in zip(starts[:-1], parts, strict=True)
                for text, fault in part.faults.items()
            },
        )


@dataclass(frozen=True, slots=True)
class Budget:
    """How much is in flight at once."""

    max_tokens: int = 16_384  # of a pack
    window_rows: int = 16_384  # read, tokenized and length-sorted together
    max_held_tokens: int = 65_536  # whose per-token outputs are kept while documents stream by
    workers: int = 1  # packs in the model at the same time
    max_media_bytes: int = 512 << 20  # of pixels that wait for the model, and of what it saw and may see again


@dataclass(frozen=True, slots=True)
class Scores:
    """What a window gives back, in row order; a row with a fault has NaN."""

    score: NDArray[np.float32]  # [rows, k]
    logit: NDArray[np.float32] | None  # [rows, k], cross-encoders: before the activation
    num_tokens: NDArray[np.int32]  # [rows]
    cut: NDArray[np.uint8]  # [rows], index into CUT_NAMES

    @property
    def rank_by(self) -> NDArray[np.float32]:
        """float32 [rows]: the logit if there is one: a saturated sigmoid ties what the model tells apart."""
        return (self.score if self.logit is None else self.logit)[:, 0]

    def take(self, rows: NDArray[np.integer]) -> Scores:
        """Some rows."""
        logit = None if self.logit is None else self.logit[rows]
        return Scores(self.score[rows], logit, self.num_tokens[rows], self.cut[rows])

    @classmethod
    def concat(cls, parts: Sequence[Scores]) -> Scores:
        """The rows of all parts, one after the other."""
        none = cls(np.empty((0, 1), np.float32), None, np.empty(0, np.int32), np.empty(0, np.uint8))
        parts = parts or [none]
        logits = [part.logit for part in parts if part.logit is not None]
        return cls(
            np.concatenate([part.score for part in parts]),
            np.concatenate(logits) if logits else None,
            np.concatenate([part.num_tokens for part in parts]),
            np.concatenate([part.cut for part in parts]),
        )
