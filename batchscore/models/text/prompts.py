"""Build the token sequences of a window: what the model reads for each distinct pair, or for each distinct text.

Truncation happens here and in `rendered`, on the ids of the texts, so that special tokens and the order of segments
survive every length. A row that cannot have a sequence is a fault of the window, not an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from batchscore.errors import CheckpointError, UsageError
from batchscore.models.spec import Marks, ModelSpec
from batchscore.models.text.tokenizer import Pattern, Special, TextTokenizer, assemble, num_specials
from batchscore.models.text.truncation import LIBRARY_LIMITS, Lengths, rule_of
from batchscore.types import (
    CUT_DOCUMENT,
    CUT_QUERY,
    Cells,
    Fault,
    Faults,
    Items,
    Pairs,
    Side,
    Truncation,
    Work,
    offsets_of,
    ranges,
)

ALL = 2**31 - 1  # tokens, where nothing is cut while tokenizing
Bits = NDArray[np.uint8]
CUT_BITS: dict[Side, int] = {"query": CUT_QUERY, "document": CUT_DOCUMENT}


def pair_work(tokenizer: TextTokenizer, spec: ModelSpec, pairs: Pairs) -> Work:
    """One sequence for each distinct pair, in the tokenizer's own pair pattern: a cross-encoder's window."""
    if spec.truncation in LIBRARY_LIMITS:
        raise UsageError(f"truncation {spec.truncation} is a rule for prompts, and this model reads a pair of segments")
    budget, keep_end = _text_budget(spec, tokenizer.pair), spec.truncation_side == "left"
    prompt_length = _prompt_length(tokenizer, spec, spec.query_prompt, budget, spec.max_length)
    if prompt_length and keep_end:
        raise UsageError(
            f"{spec.sources['truncation_side'].spell('truncation_side')} left would cut the prompt before queries",
            hint="pass --truncation-side right",
        )
    # where finished ids are sliced, max_length of them stay, and one more tells that there were others
    limit, room = (spec.max_length + 1, ALL) if slices_ids(spec) else (budget, budget)
    strings = prefixed(pairs.queries, spec.query_prompt), prefixed(pairs.documents, "")
    (queries, query_lengths), (documents, document_lengths) = (
        tokenizer.tokenize_again(texts, limit, keep_end=keep_end) for texts in strings
    )
    if slices_ids(spec):
        query_lengths, document_lengths = queries.lengths, documents.lengths
    first, codes = distinct_pairs(pairs)
    left, right = pairs.queries.codes[first], pairs.documents.codes[first]
    full = query_lengths[left], document_lengths[right]
    too_long = too_long_faults(spec, np.flatnonzero((full[0] + full[1] > budget)[codes]))
    rule: Truncation = "longest-first" if spec.truncation == "prompt-end" else spec.truncation
    if rule == "longest-first" and (room - prompt_length) % 2:
        # the odd token goes to the longer text, and where neither fits estimates do not tell which that is
        rivals = (full[0] > room) & (full[1] > room - prompt_length)
        for texts, lengths, index in zip(strings, full, (left, right), strict=True):
            distinct, inverse = np.unique(index[rivals], return_inverse=True)
            lengths[rivals] = tokenizer.tokenize([texts[code] for code in distinct], ALL)[1][inverse]
    query_kept, document_kept = rule_of(rule)(full[0] - prompt_length, full[1], room - prompt_length)
    kept = query_kept + prompt_length, document_kept
    items = assemble(tokenizer.pair, [(queries, left, kept[0]), (documents, right, kept[1])], keep_end=keep_end)
    if not spec.pair_of_empty and (empty := kept[1] == 0).any():
        alone = assemble(tokenizer.single, [(queries, left, kept[0])], keep_end=keep_end)
        items = items.concat(alone).take(np.arange(len(items)) + len(items) * empty)
    cut = cut_bits(full, kept)
    if slices_ids(spec):
        items, cut = sliced(items, spec, CUT_QUERY | CUT_DOCUMENT)
    items = items.with_columns(keep=_kept(tokenizer, spec, items, prompt_length, is_query=True))
    if not spec.token_types:
        items = items.with_columns(types=None)
    return Work(items, 0, codes, codes, cut[codes], group=left).refused(too_long)


def plain_side_work(tokenizer: TextTokenizer, spec: ModelSpec, texts: Sequence[str], side: Side) -> Work:
    """One sequence for each text of one side, without a template; the texts are the rows."""
    items, cut = _encode_side(tokenizer, spec, texts, side)
    rows = np.arange(len(texts), dtype=np.int32)
    work = Work(items, 0, rows, rows, cut, group=np.full(len(texts), -1, np.int32))
    work = work.refused(too_long_faults(spec, np.flatnonzero(cut)))
    if spec.score_type != "late-interaction":
        return work
    kept = np.concatenate([[0], np.cumsum(items.filled("keep"))])[items.offsets]
    nothing = np.flatnonzero((np.diff(kept) == 0) & (items.lengths > 0))
    hint = f"leave out rows with such a {side}"
    fault = Fault("no-tokens", f"every token of the {side} is on the model's skip list", hint)
    return work.refused(dict.fromkeys(nothing.tolist(), fault))


def distinct_pairs(pairs: Pairs) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """(the first row of each distinct pair, int32 [rows]: which distinct pair a row is)."""
    keys = pairs.queries.codes.astype(np.int64) * len(pairs.documents.values) + pairs.documents.codes
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    return first, inverse.astype(np.int32).reshape(-1)


def cut_bits(full: tuple[Lengths, Lengths], kept: tuple[Lengths, Lengths]) -> Bits:
    """Bits of the sides that lost tokens."""
    return (CUT_QUERY * (kept[0] < full[0]) + CUT_DOCUMENT * (kept[1] < full[1])).astype(np.uint8)


def prefixed(texts: Cells, prompt: str) -> list[str]:
    """The strings to tokenize, of cells that are texts."""
    return [prompt + str(text) for text in texts.values]


def too_long_faults(spec: ModelSpec, rows: Lengths) -> Faults:
    """Under truncation "error" the fault of these rows; nothing under the other rules."""
    if spec.truncation != "error" or not len(rows):
        return {}
    sides = {spec.query_length, spec.document_length} - {0, spec.max_length}
    limits = "query_length or document_length" if sides else f"max_length {spec.max_length} tokens"
    hint = "pass --truncation document-first, or raise the limit"
    return dict.fromkeys(rows.tolist(), Fault("too-long", f"longer than {limits}", hint))


# ---- one side


def _encode_side(tokenizer: TextTokenizer, spec: ModelSpec, texts: Sequence[str], side: Side) -> tuple[Items, Bits]:
    """(sequences, cut bits) of texts of one side."""
    is_query = side == "query"
    prompt = spec.query_prompt if is_query else spec.document_prompt
    length = spec.query_length if is_query else spec.document_length
    bit = CUT_BITS[side]
    pattern = tokenizer.single
    if spec.marks is not None:
        pattern = _marked(tokenizer, pattern, spec.marks.query if is_query else spec.marks.document)
    budget = _text_budget(replace(spec, max_length=length), pattern)
    prompt_length = _prompt_length(tokenizer, spec, prompt, budget, length)
    strings, keep_end = [prompt + text for text in texts], spec.truncation_side == "left"
    tokens, lengths = (
        tokenizer.tokenize(strings, spec.max_length + 1, keep_end=keep_end)  # as in pair_work
        if slices_ids(spec)
        else _kept_ends(tokenizer, strings, prompt_length, budget)
        if keep_end
        else tokenizer.tokenize(strings, budget)
    )
    items = assemble(pattern, [(tokens, np.arange(len(tokens)), tokens.lengths)])
    cut = (bit * (lengths > budget)).astype(np.uint8)
    if slices_ids(spec):
        items, cut = sliced(items, spec, bit)
    # a single segment's types are all 0, which is what a model assumes without them
    items = items.with_columns(types=None, keep=_kept(tokenizer, spec, items, prompt_length, is_query=is_query))
    if spec.marks is not None and spec.marks.expand and is_query:
        items = _expanded(tokenizer, items, length, spec.marks)
    return items, cut


def _prompt_length(tokenizer: TextTokenizer, spec: ModelSpec, prompt: str, budget: int, max_length: int) -> int:
    """Tokens of the text before a side's texts."""
    length = int(tokenizer.tokenize(prefixed(Cells.of([""]), prompt), budget)[1][0])
    if length >= budget:
        raise UsageError(f"the prompt {prompt!r} leaves no room for text in max_length {max_length}")
    return length


def _text_budget(spec: ModelSpec, pattern: Pattern) -> int:
    """Tokens left for texts beside the special tokens."""
    specials = num_specials(pattern)
    if spec.max_length <= specials:
        raise UsageError(
            f"max_length {spec.max_length} leaves no room for text beside {specials} special tokens",
            hint="raise --max-length",
        )
    return spec.max_length - specials


def _kept_ends(
    tokenizer: TextTokenizer, strings: list[str], prompt_length: int, budget: int
) -> tuple[Items, NDArray[np.int64]]:
    """As `tokenize`, but a text that is too long keeps its prompt and its end."""
    ends, lengths = tokenizer.tokenize(strings, budget, keep_end=True)
    is_long = np.flatnonzero(lengths > (budget if prompt_length else ALL))
    starts, _ = tokenizer.tokenize([strings[index] for index in is_long], prompt_length)
    ends.ids[ranges(ends.offsets[is_long], starts.lengths)] = starts.ids
    return ends, lengths


def _kept(
    tokenizer: TextTokenizer, spec: ModelSpec, items: Items, prompt_length: int, *, is_query: bool
) -> NDArray[np.bool_] | None:
    """bool [tokens]: the tokens that count in the readout; None if all of them do."""
    if spec.drop_first:
        return items.positions > 0
    if spec.marks is not None:
        return ~np.isin(items.ids, _skipped(tokenizer, spec.marks, "query" if is_query else "document"))
    if spec.include_prompt:
        return None
    if not (spec.query_prompt if is_query else spec.document_prompt):
        return items.positions >= 0
    # sentence-transformers' rule: all that the prompt alone is read as, but for one special token at its end
    specials = num_specials(tokenizer.single)
    return items.positions >= prompt_length + specials - isinstance(tokenizer.single[-1], Special)


# ---- ColBERT


def _marked(tokenizer: TextTokenizer, pattern: Pattern, marker: str) -> Pattern:
    """The pattern with a marker behind its first token."""
    if not marker:
        return pattern
    token = tokenizer.token_id(marker)
    if token is None:
        raise CheckpointError(
            f"the marker {marker!r} is not in the vocabulary",
            hint="the tokenizer is not the one this model was trained with",
        )
    if not isinstance(pattern[0], Special):
        raise CheckpointError("its tokenizer puts no token before a text, and the marker's place is behind that token")
    return (pattern[0], Special(token, 0), *pattern[1:])


def _skipped(tokenizer: TextTokenizer, marks: Marks, side: str) -> list[int]:
    """Ids of the tokens that do not count on a side."""
    ids = (tokenizer.token_id(token) for token in (marks.skip if side in marks.skip_sides else ()))
    return [token for token in ids if token is not None]


def _expanded(tokenizer: TextTokenizer, items: Items, longest: int, marks: Marks) -> Items:
    """Sequences filled up with a token whose state counts, whether or not others attend to it."""
    filler = (
        tokenizer.token_id(marks.filler) if marks.filler else tokenizer.named("mask_token", "eos_token", "pad_token")
    )
    if filler is None:
        raise CheckpointError(
            f"its tokenizer has no {marks.filler or 'mask, EOS or padding token'} to expand queries with"
        )
    lengths = np.maximum(items.lengths, min(marks.shortest or longest, longest))
    offsets = offsets_of(lengths)
    text = ranges(offsets[:-1], items.lengths)
    ids = np.full(offsets[-1], filler, np.int32)
    ids[text] = items.ids
    keep = np.full(len(ids), filler not in _skipped(tokenizer, marks, "query"))
    keep[text] = items.columns["keep"]
    seen = np.full(len(ids), marks.attend)
    seen[text] = True
    filled = Items(offsets, {"ids": ids, "keep": keep})
    return filled if marks.attend else filled.with_columns(seen=seen)


# ---- vLLM's ways


def slices_ids(spec: ModelSpec) -> bool:
    """Whether finished ids are cut, special tokens and all: what a truncation side makes vLLM do."""
    return spec.truncation == "prompt-end" and spec.truncation_side is not None


def sliced(items: Items, spec: ModelSpec, bits: int) -> tuple[Items, Bits]:
    """(sequences cut at one end to max_length, bits of the cut ones)."""
    kept = np.minimum(items.lengths, spec.max_length)
    starts = items.offsets[1:] - kept if spec.truncation_side == "left" else items.offsets[:-1]
    return items.slice(starts, kept), (bits * (kept < items.lengths)).astype(np.uint8)
