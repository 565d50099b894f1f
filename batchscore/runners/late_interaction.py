"""A vector for every token of both sides, and MaxSim between them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from batchscore.models.similarity import maxsim
from batchscore.runners.base import Arrays, BaseRunner, Index, Match, positions_of
from batchscore.runners.batch import Batch
from batchscore.types import Pairs, Work, offsets_of, ranges


@dataclass(frozen=True, slots=True)
class Matrices:
    """A matrix for each of some sequences, end to end."""

    vectors: Tensor  # [sum(sizes), dim], in the body's dtype: stored or just made, a matrix gives the same scores
    sizes: NDArray[np.int64]  # [n]

    def __len__(self) -> int:
        return len(self.sizes)

    def __iter__(self) -> Iterator[Tensor]:
        """Each matrix by itself."""
        return iter(self.vectors.split(self.sizes.tolist()))

    def take(self, index: NDArray[np.integer]) -> Matrices:
        """The matrices at `index`, in that order; not copied if they are neighbours."""
        sizes, starts = self.sizes[index], offsets_of(self.sizes)
        if (np.diff(index) == 1).all():
            return Matrices(self.vectors[starts[index[0]] : starts[index[-1] + 1]], sizes)
        rows = torch.from_numpy(ranges(starts[index], sizes)).to(self.vectors.device)
        return Matrices(self.vectors.index_select(0, rows), sizes)

    def distinct(self, index: NDArray[np.integer]) -> tuple[Matrices, NDArray[np.int64]]:
        """(the matrices at `index`, each of them once, in ascending order; which of these each of `index` is)."""
        distinct, places = np.unique(index, return_inverse=True)
        return self.take(distinct), places


class LateInteraction(BaseRunner):
    """Distinct queries and distinct documents are the items. Document matrices live no longer than their pack."""

    def sequences(self, pairs: Pairs) -> Work:
        """One sequence for each distinct text."""
        return self.reader.text_work(pairs)

    def outputs(self, batch: Batch) -> Matrices:
        """Unit vectors of the tokens that count, special ones included, through head and Dense chain."""
        vectors: Tensor = self.model.head(self.kept_states(batch))[:, : self.spec.dimensions or None]
        vectors = normalize(vectors, dim=1) if self.spec.normalize else vectors
        return Matrices(vectors.to(self._dtype), np.array(batch.kept_sizes, np.int64))

    def hold(self, packs: Sequence[Index], outputs: Sequence[Matrices]) -> Matrices:
        """Matrices in item order."""
        joined = torch.cat([output.vectors for output in outputs])
        return Matrices(joined, np.concatenate([output.sizes for output in outputs])).take(positions_of(packs))

    @property
    def document_first(self) -> bool:
        """On a CPU, where a document stays in the core's cache while it is multiplied with its queries."""
        return self.device == "cpu"

    @torch.inference_mode()
    def compare(self, held: Matrices, match: Match, output: Matrices) -> NDArray[np.float32]:
        """float32 [rows, 1]: MaxSim, one product for each document, or for each query."""
        queries, left = held.distinct(match.query)
        queries = Matrices(queries.vectors.float(), queries.sizes)
        scores = np.empty(len(left), np.float32)
        # by the side of which there are fewer: each turn of the loop holds Python's lock for a while
        shared = match.item if len(np.unique(match.item)) < len(queries) else left
        order = np.argsort(shared, kind="stable")
        for rows in np.split(order, np.flatnonzero(np.diff(shared[order])) + 1):
            some, above = queries.distinct(left[rows])
            documents, beside = output.distinct(match.item[rows])
            found = maxsim(some.vectors, some.sizes, documents.vectors.float(), documents.sizes)
            scores[rows] = found[above, beside]
        if self.spec.similarity == "meanmaxsim":
            scores /= queries.sizes[left]
        return scores[:, None]

    def to_arrays(self, output: Matrices) -> Arrays:
        """The vectors in main memory and in the body's dtype."""
        vectors = output.vectors.to(self._dtype)
        is_bad = ~vectors.isfinite().all(1).cpu().numpy()
        is_finite = ~np.isin(
            np.arange(len(output.sizes)), np.repeat(np.arange(len(output.sizes)), output.sizes)[is_bad]
        )
        vectors = vectors.view(torch.uint16) if vectors.dtype == torch.bfloat16 else vectors  # numpy has no bfloat16
        return Arrays(vectors.cpu().numpy(), output.sizes, is_finite)

    def of_arrays(self, values: NDArray[Any], counts: NDArray[np.int64]) -> Matrices:
        """The vectors on the device."""
        vectors = torch.from_numpy(np.require(values, requirements="W"))
        return Matrices(
            (vectors.view(torch.bfloat16) if values.dtype == np.uint16 else vectors).to(self.device), counts
        )

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.model.bodies[-1].parameters()).dtype

    def activate(self, raw: NDArray[np.float32]) -> NDArray[np.float32]:
        """A similarity is the score."""
        return raw
