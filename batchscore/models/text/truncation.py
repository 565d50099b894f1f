"""How much of a query and of a document to keep if they do not fit. Pure functions over arrays of lengths."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from batchscore.types import Truncation

Lengths = NDArray[np.integer]
_NO_LIMIT = 2**31 - 1
Cut = tuple[Lengths, Lengths]  # tokens to keep of each query, of each document


def cut_document_first(queries: Lengths, documents: Lengths, budget: Lengths | int) -> Cut:
    """Cut the document first, then the query."""
    kept = np.minimum(queries, budget)
    return kept, np.minimum(documents, budget - kept)


def cut_longest_first(queries: Lengths, documents: Lengths, budget: Lengths | int) -> Cut:
    """Cut like Hugging Face tokenizers: the longer one, until both have half; an odd token goes to the longer."""
    short, long = np.minimum(queries, documents), np.maximum(queries, documents)
    kept_short = np.where(short + long <= budget, short, np.minimum(short, np.asarray(budget) // 2))
    kept_long = np.minimum(long, budget - kept_short)
    query_is_short = queries <= documents
    return np.where(query_is_short, kept_short, kept_long), np.where(query_is_short, kept_long, kept_short)


def rule_of(truncation: Truncation) -> Callable[[Lengths, Lengths, Lengths | int], Cut]:
    """The function that applies a rule."""
    return cut_longest_first if truncation == "longest-first" else cut_document_first


class Limits(NamedTuple):
    """How many tokens a prompt may have."""

    whole: int
    query: int  # the piece with the query
    document: int  # the piece with the document


# The limits in the libraries of some rerankers, from max_length and the lengths of the template's own pieces.
LIBRARY_LIMITS: dict[Truncation, Callable[[int, Sequence[int]], Limits]] = {
    # FlagEmbedding's decoder rerankers: [bos] + query + separator + passage within max_length + separator +
    # instruction, to which separator and instruction are added once more
    "flag-embedding": lambda length, fixed: Limits(length + sum(fixed) + fixed[-1], length * 3 // 4, length),
    # mxbai-rerank: query + separator + document within max_length; the rest of the prompt is extra
    "mxbai-rerank": lambda length, fixed: Limits(length + sum(fixed) - fixed[1], length * 3 // 4, length),
    # Qwen3-VL's reranker: the last five tokens, which end its prompt, are added once all others are within max_length
    "qwen3-vl": lambda length, fixed: Limits(length + 5, _NO_LIMIT, _NO_LIMIT),
}
BY_PIECES: tuple[Truncation, ...] = ("flag-embedding", "mxbai-rerank")  # rules that speak of a template's pieces
