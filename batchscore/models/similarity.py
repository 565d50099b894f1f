"""Scores of two encoded sides, float32."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from batchscore.types import offsets_of

Index = NDArray[np.integer]


_BLOCK = 2**18  # numbers of a product that are made and summed while they are in a core's cache


def cosine(queries: Tensor, documents: Tensor, left: Index, right: Index) -> Tensor:
    """float32 [n]: cosines of the vectors queries[left] and documents[right] of two float32 [..., dim].

    The same numbers as `torch.nn.functional.cosine_similarity` gives, which would divide each vector by its length
    once a row.
    """
    queries, left = _needed(queries, left)
    documents, right = _needed(documents, right)
    return dot(_unit(queries), _unit(documents), left, right)


def dot(queries: Tensor, documents: Tensor, left: Index, right: Index) -> Tensor:
    """float32 [n]: dot products of the vectors queries[left] and documents[right] of two float32 [..., dim]."""
    size = max(1, _BLOCK // queries.shape[1])
    scores = torch.empty(len(left), device=queries.device)
    for start in range(0, len(left), size):
        rows = slice(start, start + size)
        torch.sum(_rows(queries, left[rows]) * _rows(documents, right[rows]), 1, out=scores[rows])
    return scores


def _needed(vectors: Tensor, index: Index) -> tuple[Tensor, Index]:
    """(vectors, index into them) of the same rows, without the vectors that none of few rows needs."""
    if len(index) >= len(vectors):
        return vectors, index
    return vectors.index_select(0, torch.from_numpy(index).to(vectors.device)), np.arange(len(index))


def _unit(vectors: Tensor) -> Tensor:
    lengths: Tensor = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    return vectors / lengths.clamp_min(1e-8)


def _rows(vectors: Tensor, index: Index) -> Tensor:
    """The vectors at `index`, or the only one; not copied if they are neighbours."""
    steps = np.diff(index)
    if (steps == 0).all():
        return vectors[index[0] : index[0] + 1]
    if (steps == 1).all():
        return vectors[index[0] : index[-1] + 1]
    return vectors.index_select(0, torch.from_numpy(index).to(vectors.device))


VECTOR_SIMILARITIES: dict[str, Callable[[Tensor, Tensor, Index, Index], Tensor]] = {"cosine": cosine, "dot": dot}


def maxsim(
    queries: Tensor, query_lengths: Sequence[int] | Index, documents: Tensor, lengths: Sequence[int] | Index
) -> NDArray[np.float32]:
    """Sum over the tokens of each query of the best-matching token of each document.

    One product for all of them, then a maximum over each document's own tokens: padding could win where every true
    similarity is negative.

    Args:
        queries: float32 [sum(query_lengths), dim], rows of unit length, queries end to end.
        query_lengths: tokens of each query, at least 1.
        documents: float32 [sum(lengths), dim], likewise.
        lengths: tokens of each document, at least 1.

    Returns:
        float32 [queries, documents]; each at most the number of the query's tokens.

    Source: the MaxSim operator of ColBERT (Khattab & Zaharia 2020).
    """
    similarities = queries @ documents.T
    if similarities.is_cpu:  # several times faster here than torch's
        best = np.maximum.reduceat(similarities.numpy(), offsets_of(lengths)[:-1], axis=1)
    else:
        there = torch.as_tensor(lengths, device=similarities.device)
        found = torch.segment_reduce(similarities.T.contiguous(), "max", lengths=there, axis=0, unsafe=True)
        best = found.T.cpu().numpy()
    return np.add.reduceat(best, offsets_of(query_lengths)[:-1], axis=0)
