"""Token sequences of prompts that a template makes of a pair, or of a query and all its documents.

A prompt is tokenized whole, or in the pieces its template marks; a text inside it is found by its characters. What is
too long loses tokens of its document, then of its query, never of the template: the token a score is read at survives
every length.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from batchscore.errors import CheckpointError, UsageError, first_line
from batchscore.models.spec import ModelSpec
from batchscore.models.text.prompts import ALL, cut_bits, distinct_pairs, prefixed, sliced, slices_ids, too_long_faults
from batchscore.models.text.templates import PIECE, Template
from batchscore.models.text.tokenizer import Spans, TextTokenizer, assemble, num_specials
from batchscore.models.text.truncation import LIBRARY_LIMITS, Limits, rule_of
from batchscore.types import CUT_DOCUMENT, CUT_QUERY, Fault, Faults, Items, Pairs, Work, offsets_of

_LONG = 64  # characters a token: a text of more cannot fit, so its middle is dropped before it is rendered
_AT_ONCE = 512  # prompts whose characters are held by token
_QUERY, _DOCUMENT = "\ue000", "\ue001"  # stand for the texts where the template's own characters are looked for
_UNCUTTABLE = Fault(
    "too-long",
    "too long for max_length, and the chat template changes its texts, so that they cannot be cut inside it",
    "shorten the text, or use a template that writes query and document as they are",
)
Ids = NDArray[np.int32]


class _Prompt(NamedTuple):
    query: str
    document: str
    pieces: list[str]


def template_work(tokenizer: TextTokenizer, spec: ModelSpec, template: Template, pairs: Pairs) -> Work:
    """One sequence for each distinct pair; an empty one for a pair that the template refuses."""
    first, codes = distinct_pairs(pairs)
    queries, documents = prefixed(pairs.queries, ""), prefixed(pairs.documents, "")
    left, right = pairs.queries.codes[first], pairs.documents.codes[first]
    fitter = _Fitter(tokenizer, spec, template)
    faults: Faults = {}  # by prompt
    prompts = []
    for index, (query, document) in enumerate(zip(left, right, strict=True)):
        prompt = _rendered(template, spec, queries[query], documents[document])
        if isinstance(prompt, Fault):
            faults[index] = prompt
            prompt = _Prompt("", "", [""])
        prompts.append(fitter.bounded(prompt))
    bodies, cut = fitter.fit(prompts, faults)
    work = Work(fitter.framed(bodies), 0, codes, codes, cut[codes], group=left)
    rows = np.flatnonzero(np.isin(codes, list(faults)))
    return work.refused({int(row): faults[int(codes[row])] for row in rows})


def _rendered(template: Template, spec: ModelSpec, query: str, document: str) -> _Prompt | Fault:
    # the mark of a cut between pieces must not come from a text
    query, document = (text.replace(PIECE, "") if PIECE in text else text for text in (query, document))
    try:
        return _Prompt(query, document, template.render(spec.query_prompt + query, document))
    except Exception as error:  # a template may divide by zero, recurse, or ask for a million numbers
        return Fault("template", f"the chat template refuses it: {first_line(error)}")


@dataclass(frozen=True)
class _Fitter:
    """Tokenizes prompts and makes them fit."""

    tokenizer: TextTokenizer
    spec: ModelSpec
    template: Template

    def bounded(self, prompt: _Prompt) -> _Prompt:
        """The prompt with less of texts that do not fit, so that it is not tokenized whole."""
        whole, texts = self._limits.whole, (prompt.query, prompt.document)
        if max(map(len, texts)) <= _LONG * whole or self.spec.truncation == "longest-first":  # which compares lengths
            return prompt
        if not self._writes_texts(prompt):  # which matters only if it is too long
            return prompt
        keep_end = self.spec.truncation_side == "left"
        query, document = (
            self.tokenizer.without_middle(text, whole, keep_end=keep_end) if len(text) > _LONG * whole else text
            for text in texts
        )
        return _Prompt(query, document, self._filled(query, document))

    def fit(self, prompts: Sequence[_Prompt], faults: Faults) -> tuple[list[Ids], NDArray[np.uint8]]:
        """(ids of each prompt without special tokens, cut bits); adds to `faults`, which are by prompt."""
        pieces = list(dict.fromkeys(piece for prompt in prompts for piece in prompt.pieces))
        # pieces are texts and what stands between them, which come back; a prompt as a whole does not
        in_pieces = any(len(prompt.pieces) > 1 for prompt in prompts)
        tokens, _ = (self.tokenizer.tokenize_again if in_pieces else self.tokenizer.tokenize)(pieces, ALL)
        ids_of = {
            piece: tokens.ids[tokens.offsets[index] : tokens.offsets[index + 1]] for index, piece in enumerate(pieces)
        }
        bodies = [np.concatenate([ids_of[piece] for piece in prompt.pieces]) for prompt in prompts]
        lengths = np.array([len(body) for body in bodies])
        cut = np.zeros(len(prompts), np.uint8)
        specials = num_specials(self.tokenizer.single)
        if self.spec.truncation == "prompt-end":  # vLLM's way: the prompt loses its end, whatever stands there
            room = lengths.max(initial=0) if slices_ids(self.spec) else self.spec.max_length - specials
            cut[lengths + specials > self.spec.max_length] = CUT_DOCUMENT
            return [body[:room] for body in bodies], cut
        is_long = lengths + specials > self._limits.whole
        if self.spec.truncation in LIBRARY_LIMITS:  # a side's share may be less than what fits
            least = min(self._limits)
            is_long |= np.array([any(len(ids_of[piece]) > least for piece in prompt.pieces) for prompt in prompts])
        if too_long := too_long_faults(self.spec, np.flatnonzero(is_long)):
            faults |= too_long
            return bodies, cut
        for index, encoded in self._encoded(prompts, np.flatnonzero(is_long).tolist()):
            if self._writes_texts(prompts[index]):
                bodies[index], cut[index] = self._cut(prompts[index], encoded, self._limits.whole - specials)
            else:
                faults[index] = _UNCUTTABLE
        return bodies, cut

    def _encoded(self, prompts: Sequence[_Prompt], indices: Sequence[int]) -> Iterator[tuple[int, list[Spans]]]:
        """(index, the tokens of each piece with the characters they stand for) of some prompts, a few at a time.

        Characters take four times the memory of ids, and only a prompt that is cut needs them.
        """
        for start in range(0, len(indices), _AT_ONCE):
            some = indices[start : start + _AT_ONCE]
            pieces = list(dict.fromkeys(piece for index in some for piece in prompts[index].pieces))
            spans = dict(zip(pieces, self.tokenizer.spans(pieces), strict=True))
            yield from ((index, [spans[piece] for piece in prompts[index].pieces]) for index in some)

    def framed(self, bodies: Sequence[Ids]) -> Items:
        """Sequences with the special tokens the tokenizer puts around any text."""
        joined = np.concatenate([np.empty(0, np.int32), *bodies])
        texts = Items(offsets_of([len(body) for body in bodies]), {"ids": joined})
        items = assemble(self.tokenizer.single, [(texts, np.arange(len(texts)), texts.lengths)])
        if slices_ids(self.spec):
            items, _ = sliced(items, self.spec, 0)
        return items.with_columns(types=None)

    @cached_property
    def _layout(self) -> list[list[str]]:
        """Each piece as the template's own characters and the texts' stand-ins, in order; [] if it refuses these."""
        try:
            pieces = self.template.render(self.spec.query_prompt + _QUERY, _DOCUMENT)
        except Exception:  # as in `_rendered`
            return []
        return [re.split(f"([{_QUERY}{_DOCUMENT}])", piece) for piece in pieces]

    def _filled(self, query: str, document: str) -> list[str]:
        """The pieces of the prompt of two texts, if the template writes them as they are."""
        texts = {_QUERY: query, _DOCUMENT: document}
        return ["".join(texts.get(part, part) for part in parts) for parts in self._layout]

    def _writes_texts(self, prompt: _Prompt) -> bool:
        """Whether the template writes these texts as they are, so that they are found in the prompt."""
        return self._filled(prompt.query, prompt.document) == prompt.pieces

    @cached_property
    def _limits(self) -> Limits:
        length, rule = self.spec.max_length, LIBRARY_LIMITS.get(self.spec.truncation)
        if rule is None:
            return Limits(length, length, length)
        fixed = ["".join(parts) for parts in self._layout if len(parts) == 1]
        if len(self._layout) - len(fixed) != 2 or len(fixed) < 2:
            raise UsageError(
                f"truncation {self.spec.truncation} is a rule for templates with a piece for the query and a piece for "
                "the document",
                hint="pass --truncation document-first",
            )
        limits = rule(length, [self.tokenizer.count(piece) for piece in fixed])
        return limits._replace(whole=min(limits.whole, self.spec.position_limit))

    def _cut(self, prompt: _Prompt, encoded: Sequence[Spans], budget: int) -> tuple[Ids, int]:
        """(ids, cut bits) of a prompt that is too long; UsageError if there is no room beside the template."""
        sides = self._text_tokens(prompt, encoded)
        fixed = sum(len(ids) for ids, _ in encoded) - len(sides[0]) - len(sides[1])
        if fixed >= budget:
            raise UsageError(
                f"max_length {self.spec.max_length} leaves no room for text beside the {fixed} tokens of the prompt",
                hint="raise --max-length",
            )
        full = np.array([len(sides[0])]), np.array([len(sides[1])])
        allowed = full
        if self.spec.truncation in LIBRARY_LIMITS:
            query, document = (
                np.minimum(count, max(0, limit - self._beside(encoded, stand_in, len(side))))
                for count, limit, stand_in, side in zip(full, self._limits[1:], (_QUERY, _DOCUMENT), sides, strict=True)
            )
            allowed = query, document
        kept = rule_of(self.spec.truncation)(*allowed, budget - fixed)
        dropped = [
            side[: len(side) - int(count[0])] if self.spec.truncation_side == "left" else side[int(count[0]) :]
            for side, count in zip(sides, kept, strict=True)
        ]
        ids = np.concatenate([ids for ids, _ in encoded])
        return np.delete(ids, np.concatenate(dropped)), int(cut_bits(full, kept)[0])

    def _beside(self, encoded: Sequence[Spans], stand_in: str, text_tokens: int) -> int:
        """Tokens of the piece with a text that are not the text's."""
        pieces = zip(self._layout, encoded, strict=True)
        return sum(len(ids) for parts, (ids, _) in pieces if stand_in in parts) - text_tokens

    def _text_tokens(self, prompt: _Prompt, encoded: Sequence[Spans]) -> list[NDArray[np.int64]]:
        """For the query and for the document int64: places, in the whole prompt, of tokens that end inside the text."""
        texts = {_QUERY: prompt.query, _DOCUMENT: prompt.document}
        found: dict[str, list[NDArray[np.int64]]] = {_QUERY: [], _DOCUMENT: []}
        before = 0
        for parts, (ids, spans) in zip(self._layout, encoded, strict=True):
            start = 0
            for part in parts:
                stop = start + len(texts.get(part, part))
                if part in found:
                    inside = (spans[:, 1] > start) & (spans[:, 1] <= stop) & (spans[:, 0] < stop)
                    found[part].append(before + np.flatnonzero(inside))
                start = stop
            before += len(ids)
        return [np.concatenate([np.empty(0, np.int64), *places]) for places in found.values()]


# ---- listwise

LIST_MARKS = ("<|rerank_token|>", "<|embed_token|>")  # whose states stand for the query, for a document
_SLACK = 8  # tokens; texts fall into a few more or less beside others than alone


def list_work(tokenizer: TextTokenizer, spec: ModelSpec, template: Template, pairs: Pairs) -> Work:
    """One sequence for each list of documents, split where it would pass max_length; a row without a list is its own.

    `slot` holds which document of its prompt a row is.

    Raises:
        CheckpointError: the vocabulary lacks the marks.
        UsageError: max_length leaves no room for text.
    """
    marks = _mark_ids(tokenizer)
    bare, beside, most = _list_costs(tokenizer, spec, template)
    queries = _without_marks(prefixed(pairs.queries, spec.query_prompt))
    documents = _without_marks(prefixed(pairs.documents, ""))
    query_lengths, document_lengths = (tokenizer.tokenize(texts, spec.max_length)[1] for texts in (queries, documents))
    bodies: list[Ids] = []
    group: list[int] = []
    faults: Faults = {}
    slot, right, cut = np.zeros(len(pairs), np.int32), np.zeros(len(pairs), np.int32), np.zeros(len(pairs), np.uint8)
    for rows in _groups(np.arange(len(pairs)) if pairs.lists is None else pairs.lists):
        query = int(pairs.queries.codes[rows[0]])
        text, length = queries[query], int(query_lengths[query])
        if length > most:
            faults |= too_long_faults(spec, rows)
            text, length, cut[rows] = tokenizer.shorten(text, most), most, CUT_QUERY
        room = spec.max_length - bare - 2 * length
        is_long = document_lengths[pairs.documents.codes[rows]] + beside > room
        faults |= too_long_faults(spec, rows[is_long])
        rows = rows[~np.isin(rows, list(faults))]
        for block in _blocks(document_lengths[pairs.documents.codes[rows]] + beside, room):
            members = rows[block]
            codes = pairs.documents.codes[members]
            texts = [documents[code] for code in codes]
            if document_lengths[codes[0]] + beside > room:  # such a document is alone in its block
                texts = [tokenizer.shorten(texts[0], room - beside)]
                cut[members] |= CUT_DOCUMENT
            slot[members], right[members] = np.arange(len(members)), len(bodies)
            pieces = template.render_list(text, texts)
            bodies.append(np.concatenate([ids for ids, _ in tokenizer.spans(pieces)]))
            group.append(query)
    items = _Fitter(tokenizer, spec, template).framed(bodies)
    items = items.with_columns(keep=np.isin(items.ids, marks))
    return Work(items, 0, right, right, cut, np.array(group, np.int32), slot).refused(faults)


def _mark_ids(tokenizer: TextTokenizer) -> list[int]:
    ids = [token for mark in LIST_MARKS if (token := tokenizer.token_id(mark)) is not None]
    if len(ids) < len(LIST_MARKS):
        raise CheckpointError(f"its vocabulary lacks {' or '.join(LIST_MARKS)}, which its prompt is read at")
    return ids


def _list_costs(tokenizer: TextTokenizer, spec: ModelSpec, template: Template) -> tuple[int, int, int]:
    """Tokens (of a prompt without texts, of each document beside its text, that a query may have at most)."""
    none, one, two = (tokenizer.count("".join(template.render_list("", [""] * number))) for number in range(3))
    bare, beside = none + _SLACK, two - one + _SLACK
    most = (spec.max_length - bare - beside) // 4  # it stands in the prompt twice, and as much stays for documents
    if most < 1:
        raise UsageError(
            f"max_length {spec.max_length} leaves no room for text in the prompt", hint="raise --max-length"
        )
    return bare, beside, most


def _without_marks(texts: Sequence[str]) -> list[str]:
    """Texts that cannot pass for several, or for none."""

    def cleaned(text: str) -> str:
        # taking one out may put another together
        while any(mark in text for mark in LIST_MARKS):
            text = text.replace(LIST_MARKS[0], "").replace(LIST_MARKS[1], "")
        return text

    return [cleaned(text) for text in texts]


def _groups(lists: NDArray[Any]) -> list[NDArray[np.int64]]:
    """The rows of each list, in order."""
    order = np.argsort(lists, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(lists[order])) + 1) if len(order) else []


def _blocks(lengths: NDArray[np.int64], room: int) -> list[slice]:
    """Consecutive documents that fit together; one that does not fit alone has a block of its own."""
    blocks, start, total = [], 0, 0
    for index, length in enumerate(lengths):
        if index > start and total + length > room:
            blocks.append(slice(start, index))
            start, total = index, 0
        total += int(length)
    return [*blocks, slice(start, len(lengths))] if len(lengths) else []
