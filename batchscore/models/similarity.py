"""Scores of two encoded sides, float32."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity


def cosine(queries: Tensor, documents: Tensor) -> Tensor:
    """float32 [n]: cosine of the rows of two float32 [n, dim]."""
    return cosine_similarity(queries, documents, dim=1)


def dot(queries: Tensor, documents: Tensor) -> Tensor:
    """float32 [n]: dot product of the rows of two float32 [n, dim]."""
    return (queries * documents).sum(1)


VECTOR_SIMILARITIES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"cosine": cosine, "dot": dot}


def maxsim(query: Tensor, documents: Tensor, lengths: Sequence[int]) -> Tensor:
    """Sum over query tokens of the best-matching token of each document.

    One product for all documents, then a maximum over each document's own tokens: padding could win where every true
    similarity is negative.

    Args:
        query: float32 [query tokens, dim], rows of unit length.
        documents: float32 [sum(lengths), dim], rows of unit length, documents end to end.
        lengths: tokens of each document, at least 1.

    Returns:
        float32 [documents]; each at most the number of query tokens.

    Source: the MaxSim operator of ColBERT (Khattab & Zaharia 2020).
    """
    similarities = documents @ query.T
    return torch.stack([part.amax(0).sum() for part in similarities.split(list(lengths))])
