"""Build the token sequences of a window: what the model reads for each distinct pair, or for each distinct text.

Truncation happens here and only here, on the ids of the texts, so that special tokens and the order of segments
survive every length.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from batchscore.errors import InputError, RowError, UsageError
from batchscore.models.spec import ModelSpec
from batchscore.models.tokenizer import Pattern, Slot, TextTokenizer, assemble, num_specials
from batchscore.types import CUT_DOCUMENT, CUT_QUERY, Items, Pairs, Texts, Truncation, Work, offsets_of

Lengths = NDArray[np.integer]


def pair_work(tokenizer: TextTokenizer, spec: ModelSpec, pairs: Pairs, truncation: Truncation) -> Work:
    """One sequence for each distinct pair, in the tokenizer's own pair pattern: a cross-encoder's window."""
    budget = _text_budget(spec, tokenizer.pair)
    (queries, query_lengths), (documents, document_lengths) = (
        tokenizer.tokenize(_prepared(texts, "", spec), budget) for texts in (pairs.queries, pairs.documents)
    )
    keys = pairs.queries.codes.astype(np.int64) * len(pairs.documents.values) + pairs.documents.codes
    _, first, item = np.unique(keys, return_index=True, return_inverse=True)
    left, right = pairs.queries.codes[first], pairs.documents.codes[first]
    full = query_lengths[left], document_lengths[right]
    _refuse_long(truncation, first[full[0] + full[1] > budget], spec)
    kept = (cut_longest_first if truncation == "longest-first" else cut_document_first)(*full, budget)
    items = assemble(tokenizer.pair, [(queries, left, kept[0]), (documents, right, kept[1])])
    cut = (CUT_QUERY * (kept[0] < full[0]) + CUT_DOCUMENT * (kept[1] < full[1])).astype(np.uint8)
    codes = item.astype(np.int32).reshape(-1)
    return Work(items if spec.token_types else replace(items, types=None), 0, codes, codes, cut[codes])


def text_work(tokenizer: TextTokenizer, spec: ModelSpec, pairs: Pairs, truncation: Truncation) -> Work:
    """One sequence for each distinct query, then one for each distinct document: a window of every other score type."""
    sides = ((pairs.queries, spec.query_prompt, CUT_QUERY), (pairs.documents, spec.document_prompt, CUT_DOCUMENT))
    (queries, query_cut), (documents, document_cut) = (_encode_side(tokenizer, spec, *side) for side in sides)
    cut = query_cut[pairs.queries.codes] | document_cut[pairs.documents.codes]
    _refuse_long(truncation, np.flatnonzero(cut), spec)
    return Work(
        items=_join(queries, documents),
        held=len(queries),
        left=pairs.queries.codes,
        right=pairs.documents.codes + np.int32(len(queries)),
        cut=cut,
    )


def cut_document_first(queries: Lengths, documents: Lengths, budget: int) -> tuple[Lengths, Lengths]:
    """Tokens to keep of each side: the document gives way, then the query."""
    kept = np.minimum(queries, budget)
    return kept, np.minimum(documents, budget - kept)


def cut_longest_first(queries: Lengths, documents: Lengths, budget: int) -> tuple[Lengths, Lengths]:
    """Tokens to keep of each side, as Hugging Face tokenizers do it.

    The longer side gives way until both have half; an odd token goes to the longer.
    """
    short, long = np.minimum(queries, documents), np.maximum(queries, documents)
    kept_short = np.where(short + long <= budget, short, np.minimum(short, budget // 2))
    kept_long = np.minimum(long, budget - kept_short)
    query_is_short = queries <= documents
    return np.where(query_is_short, kept_short, kept_long), np.where(query_is_short, kept_long, kept_short)


def _encode_side(
    tokenizer: TextTokenizer, spec: ModelSpec, texts: Texts, prompt: str, bit: int
) -> tuple[Items, NDArray[np.uint8]]:
    """(sequences, cut bits) of one side's distinct texts."""
    budget = _text_budget(spec, tokenizer.single)
    prompt_length = int(tokenizer.tokenize(_prepared(Texts.of([""]), prompt, spec), budget)[1][0])
    if prompt_length >= budget:
        raise UsageError(f"the prompt {prompt!r} leaves no room for text in max_length {spec.max_length}")
    tokens, lengths = tokenizer.tokenize(_prepared(texts, prompt, spec), budget)
    items = assemble(tokenizer.single, [(tokens, np.arange(len(tokens)), tokens.lengths)])
    keep = None if spec.include_prompt else _after_prompt(tokenizer, prompt_length, items)
    # a single segment's types are all 0, which is what a model assumes without them
    return replace(items, types=None, keep=keep), (bit * (lengths > budget)).astype(np.uint8)


def _text_budget(spec: ModelSpec, pattern: Pattern) -> int:
    """Tokens left for texts beside the special tokens."""
    specials = num_specials(pattern)
    if spec.max_length <= specials:
        raise UsageError(
            f"max_length {spec.max_length} leaves no room for text beside {specials} special tokens",
            hint="raise --max-length",
        )
    return spec.max_length - specials


def _prepared(texts: Texts, prompt: str, spec: ModelSpec) -> list[str]:
    strings = [prompt + text for text in texts.values] if prompt else list(texts.values)
    return [text.lower() for text in strings] if spec.lower_case else strings


def _after_prompt(tokenizer: TextTokenizer, prompt_length: int, items: Items) -> NDArray[np.bool_]:
    """bool [tokens]: False for a prompt and the special tokens before it (sentence-transformers' rule)."""
    if not prompt_length:
        return np.ones(len(items.ids), bool)
    leading = next(place for place, part in enumerate(tokenizer.single) if isinstance(part, Slot))
    places = np.arange(len(items.ids)) - np.repeat(items.offsets[:-1], items.lengths)
    return places >= leading + prompt_length


def _refuse_long(truncation: Truncation, rows: Lengths, spec: ModelSpec) -> None:
    if truncation == "error" and len(rows):
        raise RowError(
            int(rows.min()),
            f"longer than max_length {spec.max_length} tokens",
            cause=InputError,
            hint="pass --truncation document-first, or raise --max-length",
        )


def _join(first: Items, second: Items) -> Items:
    keeps = [items.keep for items in (first, second) if items.keep is not None]
    offsets = offsets_of(np.concatenate([first.lengths, second.lengths]))
    return Items(np.concatenate([first.ids, second.ids]), offsets, None, np.concatenate(keeps) if keeps else None)
