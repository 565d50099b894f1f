"""Prompts that a template makes of a pair, or of a query or document by itself, and their token sequences.

A prompt is tokenized whole, or in the pieces its template marks; a text inside it is found by its characters, where
`fitting` cuts what is too long.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from batchscore.errors import first_line
from batchscore.models.spec import ModelSpec
from batchscore.models.text.fitting import Fills, Fitter, Prompt
from batchscore.models.text.prompts import CUT_BITS, distinct_pairs
from batchscore.models.text.templates import PIECE, Template
from batchscore.models.text.tokenizer import TextTokenizer
from batchscore.models.vision.reader import TEXT_ONLY, MediaFaultError, MediaReader
from batchscore.types import Cell, Content, Fault, Faults, Pairs, Side, Visual, Work

# stand for what is cut, where the template's own characters are looked for; a side by itself is written in two ways
_QUERY, _DOCUMENT, _TEXT = "\ue000", "\ue001", "\ue002"
Render = Callable[[Fills, str], list[str]]  # texts, and the placeholders of media apart -> the pieces of a prompt
_EMPTY = Prompt({}, [""])


def template_work(
    tokenizer: TextTokenizer, spec: ModelSpec, template: Template, media: MediaReader | None, pairs: Pairs
) -> Work:
    """One sequence for each distinct pair; an empty one for a pair that the template refuses."""
    first, codes = distinct_pairs(pairs)
    left, right = pairs.queries.codes[first], pairs.documents.codes[first]
    write = _plain_text if template.reads_media else partial(_written, media)
    queries, documents = ([write(cell) for cell in cells.values] for cells in (pairs.queries, pairs.documents))

    def render(fills: Fills, placeholders: str) -> list[str]:
        return template.render(spec.query_prompt + fills[_QUERY], fills[_DOCUMENT], placeholders)

    prompter = _Prompter(media, render)
    faults: Faults = {}  # by prompt
    prompts = []
    for index, (query, document) in enumerate(zip(left.tolist(), right.tolist(), strict=True)):
        cells = {_QUERY: pairs.queries.values[query], _DOCUMENT: pairs.documents.values[document]}
        fills = {_QUERY: queries[query], _DOCUMENT: documents[document]}
        placeholders = "".join(_placeholders(media, cell) for cell in cells.values()) if template.reads_media else ""
        prompts.append(prompter.prompt(fills, placeholders, cells, index, faults))
    fitter = Fitter(tokenizer, spec, media, (_QUERY, _DOCUMENT))
    items, cut = fitter.fit([fitter.bounded(prompt) for prompt in prompts], faults)
    work = Work(items, 0, codes, codes, cut[codes], group=left)
    rows = np.flatnonzero(np.isin(codes, list(faults)))
    return work.refused({int(row): faults[int(codes[row])] for row in rows})


def side_template_work(
    tokenizer: TextTokenizer,
    spec: ModelSpec,
    template: Template,
    media: MediaReader | None,
    cells: Sequence[Cell],
    side: Side,
) -> Work:
    """One sequence for each query or document of one side, which are the rows."""
    prompt_text = spec.query_prompt if side == "query" else spec.document_prompt
    instruction, before = (prompt_text, "") if template.reads_instruction else ("", prompt_text)

    def render(fills: Fills, placeholders: str) -> list[str]:
        return template.render_side(side, fills[_DOCUMENT], fills[_TEXT], placeholders, instruction)

    prompter, faults, prompts = _Prompter(media, render), Faults(), []
    for index, cell in enumerate(cells):
        fills = {_DOCUMENT: before + _written(media, cell), _TEXT: before + _plain_text(cell)}
        prompts.append(prompter.prompt(fills, _placeholders(media, cell), {_DOCUMENT: cell}, index, faults))
    sides = (_DOCUMENT + _TEXT, "") if side == "query" else ("", _DOCUMENT + _TEXT)
    fitter = Fitter(tokenizer, replace(spec, max_length=spec.lengths[side]), media, sides)
    items, cut = fitter.fit([fitter.bounded(prompt) for prompt in prompts], faults)
    rows = np.arange(len(cells), dtype=np.int32)
    bits = (CUT_BITS[side] * (cut > 0)).astype(np.uint8)
    return Work(items, 0, rows, rows, bits, group=np.full(len(cells), -1, np.int32)).refused(faults)


def _written(media: MediaReader | None, cell: Cell) -> str:
    return _plain(cell) if isinstance(cell, str) else "" if media is None else _plain(media.written(cell))


def _plain_text(cell: Cell) -> str:
    return _plain(cell if isinstance(cell, str) else cell.text)


def _placeholders(media: MediaReader | None, cell: Cell) -> str:
    return "" if media is None or isinstance(cell, str) else media.media_text(cell)


def _plain(text: str) -> str:
    """Without the mark of a cut between pieces, which must not come from a text."""
    return text.replace(PIECE, "") if PIECE in text else text


@dataclass(frozen=True)
class _Prompter:
    """Renders prompts, and plans their media."""

    media: MediaReader | None
    render: Render
    _layouts: dict[tuple[str, ...], list[list[str]]] = field(default_factory=dict)
    _planned: dict[Content, tuple[Visual, ...]] = field(default_factory=dict)

    def prompt(self, fills: Fills, placeholders: str, cells: Mapping[str, Cell], index: int, faults: Faults) -> Prompt:
        """The prompt of some texts; an empty one, and a fault at `index`, if it is refused."""
        try:
            pieces = self.render(fills, placeholders)
        except Exception as error:  # a template may divide by zero, recurse, or ask for a million numbers
            faults[index] = Fault("template", f"the chat template refuses it: {first_line(error)}")
            return _EMPTY
        layout = self._layout(fills, placeholders)
        if all(isinstance(cell, str) for cell in cells.values()):
            return Prompt(fills, pieces, layout)
        try:
            by_stand_in = {stand_in: self._visuals(cell) for stand_in, cell in cells.items()}
        except MediaFaultError as error:
            faults[index] = error.fault
            return _EMPTY
        # in the order in which the template writes them
        order = [part for parts in layout for part in parts if part in by_stand_in]
        order += [stand_in for stand_in in by_stand_in if stand_in not in order]
        visuals = tuple(visual for stand_in in order for visual in by_stand_in[stand_in])
        assert self.media is not None
        extra = sum(len(self.media.expansion(visual)) - 1 for visual in visuals)
        pieces = [self.media.spelled(piece, len(visuals)) for piece in pieces]
        return Prompt(fills, pieces, layout, visuals, extra)

    def _visuals(self, cell: Cell) -> tuple[Visual, ...]:
        if isinstance(cell, str):
            return ()
        if self.media is None:
            raise MediaFaultError(TEXT_ONLY)
        if cell not in self._planned:
            self._planned[cell] = self.media.planned(cell)
        return self._planned[cell]

    def _layout(self, fills: Fills, placeholders: str) -> list[list[str]]:
        # beside media, whether there is a text may decide what a template writes
        stand_ins = {stand_in: stand_in if text or not placeholders else "" for stand_in, text in fills.items()}
        place = (placeholders, *stand_ins.values())
        if place not in self._layouts:
            try:
                pieces = self.render(stand_ins, placeholders)
            except Exception:  # as in `prompt`
                pieces = []
            self._layouts[place] = [re.split(f"([{_QUERY}{_DOCUMENT}{_TEXT}])", piece) for piece in pieces]
        return self._layouts[place]
