"""Prompts to token sequences within a model's limits.

What is too long loses tokens of its document, then of its query, never of the template and never of an image: the token
a score is read at survives every length. An image stands in the text as a placeholder, of which one token becomes as
many as the image has parts when all is cut.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from batchscore.errors import UsageError
from batchscore.models.spec import ModelSpec
from batchscore.models.text.prompts import ALL, Bits, cut_bits, sliced, slices_ids, too_long_faults
from batchscore.models.text.tokenizer import Spans, TextTokenizer, assemble, num_specials
from batchscore.models.text.truncation import BY_PIECES, LIBRARY_LIMITS, Limits, rule_of
from batchscore.models.vision.reader import MediaReader, too_large
from batchscore.types import CUT_DOCUMENT, Fault, Faults, Items, Visual, Visuals, offsets_of

_LONG = 64  # characters a token: a text of more cannot fit, so its middle is dropped before it is rendered
_AT_ONCE = 512  # prompts whose characters are held by token
_UNCUTTABLE = Fault(
    "too-long",
    "too long for max_length, and the chat template changes its texts, so that they cannot be cut inside it",
    "shorten the text, or use a template that writes query and document as they are",
)
Ids = NDArray[np.int32]
Fills = Mapping[str, str]  # by stand-in, what the template writes there


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt as a template wrote it, and how its texts are found in it."""

    fills: Fills
    pieces: list[str]
    # each piece as the template's own characters and the stand-ins, in order; [] if it refuses these
    layout: list[list[str]] = field(default_factory=list)
    visuals: tuple[Visual, ...] = ()  # in the order of their placeholders
    extra: int = 0  # tokens that these have beside the placeholders

    @property
    def writes_texts(self) -> bool:
        """Whether the template writes these texts as they are, so that they are found in the prompt."""
        return filled(self.layout, self.fills) == self.pieces


def filled(layout: list[list[str]], fills: Fills) -> list[str]:
    """The pieces of a prompt, if the template writes its texts as they are."""
    return ["".join(fills.get(part, part) for part in parts) for parts in layout]


@dataclass(frozen=True)
class Fitter:
    """Tokenizes prompts and makes them fit."""

    tokenizer: TextTokenizer
    spec: ModelSpec
    media: MediaReader | None
    sides: tuple[str, str]  # the stand-ins for queries, and those for documents
    _known_limits: dict[tuple[str, ...], Limits] = field(default_factory=dict)  # by the template's own pieces

    def bounded(self, prompt: Prompt) -> Prompt:
        """The prompt with less of texts that do not fit, so that it is not tokenized whole."""
        longest, least = max(map(len, prompt.fills.values()), default=0), _LONG * self.spec.max_length
        if longest <= least or prompt.visuals or longest <= _LONG * (whole := self._limits(prompt).whole):
            return prompt
        # the longest is found by comparing lengths; and it only matters if it is too long
        if self.spec.truncation == "longest-first" or not prompt.writes_texts:
            return prompt
        keep_end = self.spec.truncation_side == "left"
        fills = {
            stand_in: self.tokenizer.without_middle(text, whole, keep_end=keep_end)
            if len(text) > _LONG * whole
            else text
            for stand_in, text in prompt.fills.items()
        }
        return replace(prompt, fills=fills, pieces=filled(prompt.layout, fills))

    def fit(self, prompts: Sequence[Prompt], faults: Faults) -> tuple[Items, NDArray[np.uint8]]:
        """(the sequences, cut bits); adds to `faults`, which are by prompt."""
        pieces = list(dict.fromkeys(piece for prompt in prompts for piece in prompt.pieces))
        # pieces are texts and what stands between them, which come back; a prompt as a whole does not
        in_pieces = any(len(prompt.pieces) > 1 for prompt in prompts)
        tokens, _ = (self.tokenizer.tokenize_again if in_pieces else self.tokenizer.tokenize)(pieces, ALL)
        ids_of = {
            piece: tokens.ids[tokens.offsets[index] : tokens.offsets[index + 1]] for index, piece in enumerate(pieces)
        }
        end = [self.spec.arch.end_token] if self.spec.arch.end_token is not None and self.spec.reads_like_vllm else []
        bodies = [
            np.concatenate([*(ids_of[piece] for piece in prompt.pieces), np.array(end, np.int32)]) for prompt in prompts
        ]
        cut = np.zeros(len(prompts), np.uint8)
        self._check_placeholders(prompts, bodies, faults)
        if self.spec.truncation == "prompt-end":  # vLLM's way: the prompt loses its end, whatever stands there
            self._cut_ends(prompts, bodies, cut, faults)
        else:
            self._cut_texts(prompts, bodies, ids_of, cut, faults)
        return self._expanded(prompts, bodies, faults), cut

    def _check_placeholders(self, prompts: Sequence[Prompt], bodies: list[Ids], faults: Faults) -> None:
        """A text that spells a placeholder out would shift the images behind it."""
        if self.media is None:
            return
        for index, (prompt, body) in enumerate(zip(prompts, bodies, strict=True)):
            found = np.isin(body, self.media.placeholder_ids)
            if found.sum() != len(prompt.visuals) or np.isin(body[~found], self.media.feature_ids).any():
                message = "its text has a token that stands for an image, or the chat template leaves an image out"
                faults.setdefault(index, Fault("media", message, "leave such tokens out of texts"))

    def _cut_ends(self, prompts: Sequence[Prompt], bodies: list[Ids], cut: Bits, faults: Faults) -> None:
        specials = num_specials(self.tokenizer.single)
        slices = slices_ids(self.spec)
        for index, (prompt, body) in enumerate(zip(prompts, bodies, strict=True)):
            room = self.spec.max_length - specials - prompt.extra
            if len(body) <= room:
                continue
            cut[index] = CUT_DOCUMENT
            if prompt.visuals and (slices or np.isin(body[max(room, 0) :], self.media.placeholder_ids).any()):  # type: ignore[union-attr]
                faults.setdefault(index, too_large(len(body) + specials + prompt.extra, self.spec.max_length))
            bodies[index] = body if slices else body[: max(room, 0)]

    def _cut_texts(
        self, prompts: Sequence[Prompt], bodies: list[Ids], ids_of: Mapping[str, Ids], cut: Bits, faults: Faults
    ) -> None:
        specials = num_specials(self.tokenizer.single)
        limits = next((self._limits(prompt) for prompt in prompts if prompt.layout), Limits(ALL, ALL, ALL))
        lengths = np.array([len(body) + prompt.extra for prompt, body in zip(prompts, bodies, strict=True)], np.int64)
        is_long = lengths + specials > limits.whole
        if self.spec.truncation in LIBRARY_LIMITS:  # a side's share may be less than what fits
            least = min(limits)
            is_long |= np.array([any(len(ids_of[piece]) > least for piece in prompt.pieces) for prompt in prompts])
        is_long[list(faults)] = False
        if too_long := too_long_faults(self.spec, np.flatnonzero(is_long)):
            faults |= too_long
            return
        for index, encoded in self._encoded(prompts, np.flatnonzero(is_long).tolist()):
            prompt = prompts[index]
            if not prompt.writes_texts:
                faults[index] = _UNCUTTABLE
            elif isinstance(made := self._cut(prompt, encoded, limits.whole - specials), Fault):
                faults[index] = made
            else:
                bodies[index], cut[index] = made

    def _encoded(self, prompts: Sequence[Prompt], indices: Sequence[int]) -> Iterator[tuple[int, list[Spans]]]:
        """(index, the tokens of each piece with the characters they stand for) of some prompts, a few at a time.

        Characters take four times the memory of ids, and only a prompt that is cut needs them.
        """
        for start in range(0, len(indices), _AT_ONCE):
            some = indices[start : start + _AT_ONCE]
            pieces = list(dict.fromkeys(piece for index in some for piece in prompts[index].pieces))
            spans = dict(zip(pieces, self.tokenizer.spans(pieces), strict=True))
            yield from ((index, [spans[piece] for piece in prompts[index].pieces]) for index in some)

    def _expanded(self, prompts: Sequence[Prompt], bodies: list[Ids], faults: Faults) -> Items:
        """The sequences, in which each placeholder has become the tokens of its image."""
        # a row with a fault needs no sequence
        kept = [prompt.visuals if index not in faults else () for index, prompt in enumerate(prompts)]
        for index, visuals in enumerate(kept):
            if visuals and self.media is not None:
                places = np.flatnonzero(np.isin(bodies[index], self.media.placeholder_ids))
                parts = np.split(bodies[index], places)
                expansions = [self.media.expansion(visual) for visual in visuals]
                joined = [
                    part
                    for expansion, rest in zip(expansions, parts[1:], strict=True)
                    for part in (expansion, rest[1:])
                ]
                bodies[index] = np.concatenate([parts[0], *joined])
            elif index in faults:
                bodies[index] = bodies[index][:0]
        items = framed(self.tokenizer, self.spec, bodies)
        if self.media is None or not any(kept):
            return items
        items = replace(items.with_columns(media=self.media.kinds(items.ids)), visuals=Visuals.of(kept))
        return _media_first(items) if self.media.before_specials else items

    def _limits(self, prompt: Prompt) -> Limits:
        length, rule = self.spec.max_length, LIBRARY_LIMITS.get(self.spec.truncation)
        if rule is None:
            return Limits(length, length, length)
        fixed = tuple("".join(parts) for parts in prompt.layout if len(parts) == 1)
        if self.spec.truncation in BY_PIECES and (len(prompt.layout) - len(fixed) != 2 or len(fixed) < 2):
            raise UsageError(
                f"truncation {self.spec.truncation} is a rule for templates with a piece for the query and a piece for "
                "the document",
                hint="pass --truncation document-first",
            )
        if fixed not in self._known_limits:
            limits = rule(length, [len(self.tokenizer.tokenize_again([piece], ALL)[0].ids) for piece in fixed])
            self._known_limits[fixed] = limits._replace(whole=min(limits.whole, self.spec.position_limit))
        return self._known_limits[fixed]

    def _cut(self, prompt: Prompt, encoded: Sequence[Spans], budget: int) -> tuple[Ids, int] | Fault:
        """(ids, cut bits) of a prompt that is too long, or why it cannot fit.

        Raises:
            UsageError: there is no room beside the template.
        """
        sides = self._text_tokens(prompt, encoded)
        fixed = sum(len(ids) for ids, _ in encoded) - len(sides[0]) - len(sides[1]) + prompt.extra
        if fixed >= budget:
            if prompt.visuals:
                return too_large(fixed + self.spec.max_length - budget, self.spec.max_length)
            raise UsageError(
                f"max_length {self.spec.max_length} leaves no room for text beside the {fixed} tokens of the prompt",
                hint="raise --max-length",
            )
        full = np.array([len(sides[0])]), np.array([len(sides[1])])
        allowed = full
        if self.spec.truncation in LIBRARY_LIMITS:
            query, document = (
                np.minimum(count, max(0, limit - self._beside(prompt, encoded, stand_ins, len(side))))
                for count, limit, stand_ins, side in zip(full, self._limits(prompt)[1:], self.sides, sides, strict=True)
            )
            allowed = query, document
        kept = rule_of(self.spec.truncation)(*allowed, budget - fixed)
        dropped = [
            side[: len(side) - int(count[0])] if self.spec.truncation_side == "left" else side[int(count[0]) :]
            for side, count in zip(sides, kept, strict=True)
        ]
        ids = np.concatenate([ids for ids, _ in encoded])
        return np.delete(ids, np.concatenate(dropped)), int(cut_bits(full, kept)[0])

    def _beside(self, prompt: Prompt, encoded: Sequence[Spans], stand_ins: str, text_tokens: int) -> int:
        """Tokens of the piece with a text that are not the text's."""
        pieces = zip(prompt.layout, encoded, strict=True)
        return sum(len(ids) for parts, (ids, _) in pieces if stand_ins in parts) - text_tokens

    def _text_tokens(self, prompt: Prompt, encoded: Sequence[Spans]) -> list[NDArray[np.int64]]:
        """For each side int64: places, in the whole prompt, of tokens that end inside its text; none of an image's."""
        found: list[list[NDArray[np.int64]]] = [[], []]
        before = 0
        for parts, (ids, spans) in zip(prompt.layout, encoded, strict=True):
            start = 0
            for part in parts:
                stop = start + len(prompt.fills.get(part, part))
                if part in prompt.fills:
                    inside = (spans[:, 1] > start) & (spans[:, 1] <= stop) & (spans[:, 0] < stop)
                    if prompt.visuals and self.media is not None:
                        inside &= ~np.isin(ids, self.media.uncut_ids)
                    found[part not in self.sides[0]].append(before + np.flatnonzero(inside))
                start = stop
            before += len(ids)
        return [np.concatenate([np.empty(0, np.int64), *places]) for places in found]


def _media_first(items: Items) -> Items:
    """The tokens of media in front of all others of their sequence."""
    sequences = np.repeat(np.arange(len(items)), items.lengths)
    order = np.lexsort((items.columns["media"] == 0, sequences))
    return replace(items, columns={name: column[order] for name, column in items.columns.items()})


def framed(tokenizer: TextTokenizer, spec: ModelSpec, bodies: Sequence[Ids]) -> Items:
    """Sequences with the special tokens the tokenizer puts around any text."""
    joined = np.concatenate([np.empty(0, np.int32), *bodies])
    texts = Items(offsets_of([len(body) for body in bodies]), {"ids": joined})
    items = assemble(tokenizer.single, [(texts, np.arange(len(texts)), texts.lengths)])
    if slices_ids(spec):
        items, _ = sliced(items, spec, 0)
    return items.with_columns(types=None)
