"""Scores of two encoded sides, float32."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from batchscore.models.transfer import to_device
from batchscore.types import offsets_of

Index = NDArray[np.integer]


_BLOCK = 2**18  # numbers of a product that are made and summed while they are in a core's cache
_ROWS_BLOCK = 2**26  # on a GPU: 256 MB in float32


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
    size = max(1, (_BLOCK if queries.is_cpu else _ROWS_BLOCK) // queries.shape[1])
    scores = torch.empty(len(left), device=queries.device)
    for start in range(0, len(left), size):
        rows = slice(start, start + size)
        # not `out=`: where all rows are one pair there is one product, which is the score of each of them
        scores[rows] = torch.sum(_rows(queries, left[rows]) * _rows(documents, right[rows]), 1)
    return scores


def _needed(vectors: Tensor, index: Index) -> tuple[Tensor, Index]:
    """(vectors, index into them) of the same rows, without the vectors that none of few rows needs."""
    if len(index) >= len(vectors):
        return vectors, index
    return vectors.index_select(0, to_device(index, vectors.device)), np.arange(len(index))


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
    return vectors.index_select(0, to_device(index, vectors.device))


VECTOR_SIMILARITIES: dict[str, Callable[[Tensor, Tensor, Index, Index], Tensor]] = {"cosine": cosine, "dot": dot}


def maxsim_of_rows(
    queries: Tensor, query_lengths: Index, documents: Tensor, lengths: Index, left: Index, right: Index
) -> Tensor:
    """float32 [rows]: what `maxsim.maxsim` has for query left[i] and document right[i], on a GPU.

    A loop over queries or documents would queue several kernels for each of them. So all rows are one batch, in which
    both sides are padded: the documents of a pack are of similar length.
    """
    asked, read = _padded(queries, query_lengths), _padded(documents, lengths)
    is_token = to_device(np.arange(asked.shape[1]) < query_lengths[:, None], queries.device)
    both = [to_device(index.astype(np.int64), queries.device) for index in (left, right)]
    size = max(1, _ROWS_BLOCK // (read.shape[1] * max(asked.shape[1], read.shape[2])))
    best = [
        ((asked[query] @ read[document].mT).amax(2) * is_token[query]).sum(1)
        for query, document in zip(*(index.split(size) for index in both), strict=True)
    ]
    return torch.cat(best)


def _padded(vectors: Tensor, lengths: Index) -> Tensor:
    """[n, longest, dim] of matrices end to end, each filled up with its own last vector, which changes no maximum."""
    offsets = offsets_of(lengths)
    places = np.minimum(offsets[:-1, None] + np.arange(lengths.max()), offsets[1:, None] - 1)
    return vectors[to_device(places, vectors.device)]
