"""Queries and documents to token sequences: texts alone by the tokenizer's pattern, others through a template."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from batchscore.models.spec import ModelSpec
from batchscore.models.text.lists import list_work
from batchscore.models.text.prompts import CUT_BITS, Bits, pair_work, plain_side_work
from batchscore.models.text.rendered import side_template_work, template_work
from batchscore.models.text.templates import Template
from batchscore.models.text.tokenizer import TextTokenizer
from batchscore.models.vision.reader import TEXT_ONLY, MediaFaultError, MediaReader
from batchscore.types import (
    SIDES,
    Cell,
    Cells,
    Content,
    Faults,
    Items,
    Pairs,
    Side,
    Visual,
    Visuals,
    Work,
    offsets_of,
    row_faults,
)

_SideWork = Callable[[Sequence[Cell], Side], Work]
# for a query or document with media where texts have no template
_BARE, _APART = Template("{{ content }}"), Template("{{ media }}{{ piece }}{{ text }}")


@dataclass(frozen=True, slots=True)
class InputReader:
    """What makes token sequences of a model's inputs."""

    spec: ModelSpec
    tokenizer: TextTokenizer
    template: Template | None  # None: a text stands by itself, or beside another as the tokenizer has it
    media: MediaReader | None  # None: the model reads text only

    def pair_work(self, pairs: Pairs) -> Work:
        """A cross-encoder's window: one sequence for each distinct pair, or for each list of a listwise model."""
        if self.template is None:
            return pair_work(self.tokenizer, self.spec, pairs)
        if self.spec.listwise:
            return list_work(self.tokenizer, self.spec, self.template, pairs)
        return template_work(self.tokenizer, self.spec, self.template, self.media, pairs)

    def text_work(self, pairs: Pairs) -> Work:
        """One sequence for each distinct query, then one for each distinct document."""
        queries, documents = (self.side_work(pairs.sides[side].values, side) for side in SIDES)
        left, right, count = pairs.queries.codes, pairs.documents.codes, np.int32(len(queries))
        work = Work(
            items=queries.items.concat(documents.items),
            queries=len(queries),
            left=left,
            right=right + count,
            cut=queries.cut[left] | documents.cut[right],
            group=np.concatenate([np.arange(count, dtype=np.int32), documents.group]),
        )
        return work.refused(row_faults(queries.faults, left)).refused(row_faults(documents.faults, right))

    def side_work(self, cells: Sequence[Cell], side: Side) -> Work:
        """One sequence for each query or document of one side, which are the rows."""
        if self.media is not None and self.media.vision.alone:
            cells = [cell if isinstance(cell, str) or cell.media else cell.text for cell in cells]
            return self._apart(cells, side, [isinstance(cell, Content) for cell in cells], self._images)
        rendered = [self.template is not None or isinstance(cell, Content) for cell in cells]
        return self._apart(cells, side, rendered, self._rendered)

    def _apart(self, cells: Sequence[Cell], side: Side, chosen: Sequence[bool], work: _SideWork) -> Work:
        """`work` of the chosen cells, and plain texts' of the others."""
        if all(chosen) or not any(chosen):
            return work(cells, side) if any(chosen) else self._texts(cells, side)
        parts = np.flatnonzero(chosen), np.flatnonzero(~np.array(chosen))
        first, second = ([cells[row] for row in part.tolist()] for part in parts)
        return _interleaved(parts, work(first, side), self._texts(second, side))

    def _rendered(self, cells: Sequence[Cell], side: Side) -> Work:
        template = self.template or (_APART if self.media and self.media.vision.apart else _BARE)
        return side_template_work(self.tokenizer, self.spec, template, self.media, cells, side)

    def _images(self, cells: Sequence[Cell], side: Side) -> Work:
        assert self.media is not None
        return _image_work(self.media, [cell for cell in cells if isinstance(cell, Content)])

    def _texts(self, cells: Sequence[Cell], side: Side) -> Work:
        """Of cells that are texts."""
        if self.template is None:
            work = plain_side_work(self.tokenizer, self.spec, [str(cell) for cell in cells], side)
        else:
            work = self._rendered(cells, side)
        return (
            work if self.media is None else replace(work, items=self.media.ended(work.items, self.spec.lengths[side]))
        )

    def positions(self, items: Items) -> NDArray[np.int64] | None:
        """int64 [axes, tokens] of a model whose tokens have several positions; None: they count on."""
        return None if self.media is None else self.media.positions(items)

    def without_media(self, cells: Cells) -> tuple[Cells, Faults]:
        """(the cells, empty texts for those with media if the model reads text only; the faults of these)."""
        if self.media is not None or all(isinstance(cell, str) for cell in cells.values):
            return cells, {}
        values = [cell if isinstance(cell, str) else "" for cell in cells.values]
        faulty = {code: TEXT_ONLY for code, cell in enumerate(cells.values) if not isinstance(cell, str)}
        return Cells(values, cells.codes), faulty

    def shortened(self, pairs: Pairs) -> tuple[Pairs, Bits]:
        """(the pairs with their texts cut to max_tokens_per_query and max_tokens_per_doc, cut bits of each row)."""
        queries, query_cut = self.shortened_side(pairs.queries.values, "query")
        documents, document_cut = self.shortened_side(pairs.documents.values, "document")
        left, right = pairs.queries.codes, pairs.documents.codes
        shorter = replace(pairs, queries=Cells(queries, left), documents=Cells(documents, right))
        return shorter, query_cut[left] | document_cut[right]

    def shortened_side(self, cells: Sequence[Cell], side: Side) -> tuple[Sequence[Cell], Bits]:
        """(the cells of one side, their texts cut to its limit; cut bits of each)."""
        limit = self.spec.max_tokens_per_query if side == "query" else self.spec.max_tokens_per_doc
        if not limit:
            return cells, np.zeros(len(cells), np.uint8)
        values = list(cells)
        # in the letters that the model reads: capitals often fall into more tokens
        texts = [cell if isinstance(cell, str) else cell.text for cell in values]
        is_long: NDArray[np.bool_] = self.tokenizer.tokenize(texts, limit)[1] > limit
        # one by one, since a shortened text has to be tokenized again until it fits; few texts are that long
        for place in np.flatnonzero(is_long).tolist():
            values[place] = self._shorter(values[place], limit)
        return values, (CUT_BITS[side] * is_long).astype(np.uint8)

    def _shorter(self, cell: Cell, limit: int) -> Cell:
        if isinstance(cell, str):
            return self.tokenizer.shorten(cell, limit)
        parts, left = list(cell.parts), limit
        for place, part in enumerate(parts):
            if isinstance(part, str):
                parts[place] = shorter = self.tokenizer.shorten(part, left)
                left = max(0, left - self.tokenizer.count(shorter))
        return Content(tuple(part for part in parts if part != ""), cell.ordered)


def _image_work(media: MediaReader, cells: Sequence[Content]) -> Work:
    """A single token for each image, of a model with a tower of its own for them."""
    visuals: list[tuple[Visual, ...]] = []
    faults: Faults = {}
    for row, cell in enumerate(cells):
        try:
            visuals.append(media.planned(cell))
        except MediaFaultError as error:
            faults[row] = error.fault
            visuals.append(())
    lengths = np.array([len(planned) for planned in visuals], np.int64)
    columns = {"ids": np.zeros(lengths.sum(), np.int32), "media": np.ones(lengths.sum(), np.int8)}
    rows = np.arange(len(cells), dtype=np.int32)
    items = Items(offsets_of(lengths), columns, Visuals.of(visuals))
    group = np.full(len(cells), -1, np.int32)
    return Work(items, 0, rows, rows, np.zeros(len(cells), np.uint8), group).refused(faults)


def _interleaved(parts: tuple[NDArray[np.int64], NDArray[np.int64]], first: Work, second: Work) -> Work:
    """The work of some rows and of all the others, in the order of the rows."""
    order = np.argsort(np.concatenate(parts))
    faults = {
        int(part[row]): fault
        for part, work in zip(parts, (first, second), strict=True)
        for row, fault in work.faults.items()
    }
    rows = np.arange(len(order), dtype=np.int32)
    work = Work(
        items=first.items.concat(second.items).take(order),
        queries=0,
        left=rows,
        right=rows,
        cut=np.concatenate([first.cut, second.cut])[order],
        group=np.full(len(order), -1, np.int32),
    )
    return work.refused(faults)
