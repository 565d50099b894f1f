"""Late interaction on a CPU: pairs of token matrices in few products, whose maxima are taken while they are cached."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from batchscore.types import offsets_of, ranges

Index = NDArray[np.integer]

_BLOCK = 2**18  # numbers of a product


def maxsim(
    queries: Tensor, query_lengths: Index, documents: Tensor, lengths: Index, left: Index, right: Index
) -> NDArray[np.float32]:
    """Sum over the tokens of each pair's query of the best-matching token of its document.

    One product for each document with all its queries or the other way round, whichever are fewer, since each turn of
    the loop costs some 20 us. Maxima are over a document's own tokens: padding could win where every true similarity
    is negative.

    Args:
        queries: float [sum(query_lengths), dim], rows of unit length, queries end to end.
        query_lengths: int [n], tokens of each query, at least 1.
        documents: float [sum(lengths), dim], likewise; products are in float32 whatever the dtype is.
        lengths: int [m], tokens of each document, at least 1.
        left: int [pairs], which query each pair has.
        right: int [pairs], which document.

    Returns:
        float32 [pairs]; each at most the number of the query's tokens. Equal pairs are equal but for rounding.

    Source: the MaxSim operator of ColBERT (Khattab & Zaharia 2020).
    """
    by_document = len(np.unique(right)) <= len(np.unique(left))
    outer, compare = (right, _by_document) if by_document else (left, _by_query)
    order, scores = np.argsort(outer, kind="stable"), np.empty(len(left), np.float32)
    scores[order] = compare(queries.float(), query_lengths, documents, lengths, left[order], right[order])
    return scores


def _by_document(
    queries: Tensor, query_lengths: Index, documents: Tensor, lengths: Index, left: Index, right: Index
) -> NDArray[np.float32]:
    """float32 [pairs], which are in the documents' order."""
    ends, starts = offsets_of(query_lengths[left]), offsets_of(lengths)
    rows = _Rows(queries, ranges(offsets_of(query_lengths)[left], query_lengths[left]))
    best = np.empty(ends[-1], np.float32)  # of each token of each pair's query
    for document, first, stop in _runs(right):
        tokens = documents[starts[document] : starts[document + 1]].float()
        for some in _pieces(int(ends[first]), int(ends[stop]), max(1, _BLOCK // len(tokens))):
            np.maximum.reduce((tokens @ rows.at(some).T).numpy(), axis=0, out=best[some])
    return np.add.reduceat(best, ends[:-1])


def _by_query(
    queries: Tensor, query_lengths: Index, documents: Tensor, lengths: Index, left: Index, right: Index
) -> NDArray[np.float32]:
    """float32 [pairs], which are in the queries' order."""
    ends, starts = offsets_of(lengths[right]), offsets_of(query_lengths)
    rows = _Rows(documents.float(), ranges(offsets_of(lengths)[right], lengths[right]))
    scores = np.empty(len(left), np.float32)
    for query, first, stop in _runs(left):
        tokens = queries[starts[query] : starts[query + 1]]
        while first < stop:
            limit = ends[first] + _BLOCK // len(tokens)
            last = min(stop, max(first + 1, int(np.searchsorted(ends, limit, side="right")) - 1))
            products = (tokens @ rows.at(slice(int(ends[first]), int(ends[last]))).T).numpy()
            scores[first:last] = np.maximum.reduceat(products, ends[first:last] - ends[first], axis=1).sum(0)
            first = last
    return scores


class _Rows:
    """Some rows of a matrix, in any order."""

    def __init__(self, matrix: Tensor, index: NDArray[np.int64]) -> None:
        self._matrix, self._index = matrix, index
        self._there = torch.from_numpy(index)
        self._jumps = np.cumsum(np.diff(index, prepend=-1) != 1)

    def at(self, some: slice) -> Tensor:
        """The rows at these places of the index; not copied if they are neighbours."""
        first, last = some.start, some.stop - 1
        if self._jumps[first] == self._jumps[last]:
            return self._matrix[self._index[first] : self._index[last] + 1]
        return self._matrix.index_select(0, self._there[some])


def _runs(values: Index) -> Iterator[tuple[int, int, int]]:
    """(value, first, stop) of each stretch of equal values."""
    starts = np.flatnonzero(np.diff(values, prepend=-1))
    yield from zip(values[starts].tolist(), starts.tolist(), [*starts[1:].tolist(), len(values)], strict=True)


def _pieces(start: int, stop: int, size: int) -> Iterator[slice]:
    for first in range(start, stop, size):
        yield slice(first, min(first + size, stop))
