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

from batchscore.models.maxsim import maxsim
from batchscore.models.similarity import maxsim_of_rows
from batchscore.models.transfer import to_device
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
        rows = to_device(ranges(starts[index], sizes), self.vectors.device)
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
        """float32 [rows, 1]: MaxSim, on a CPU one product for each document, or for each query."""
        # equal rows once: where a row stands in a product can change its last bit
        keys, places = np.unique(match.query.astype(np.int64) * len(output) + match.item, return_inverse=True)
        left, right = np.divmod(keys, len(output))
        queries, left = held.distinct(left)
        if self.device == "cpu":
            scores = maxsim(queries.vectors, queries.sizes, output.vectors, output.sizes, left, right)
        else:
            sides = queries.vectors.float(), queries.sizes, output.vectors.float(), output.sizes
            (scores,) = self.fetch(maxsim_of_rows(*sides, left, right))
        if self.spec.similarity == "meanmaxsim":
            scores /= queries.sizes[left]
        return scores[places, None]

    def to_arrays(self, output: Matrices) -> Arrays:
        """The vectors in main memory and in the body's dtype."""
        vectors = output.vectors.to(self._dtype)
        finite = ~(vectors * 0).sum(1).isnan()  # many times as fast as isfinite of 16 bits
        vectors = vectors.view(torch.uint16) if vectors.dtype == torch.bfloat16 else vectors  # numpy has no bfloat16
        values, is_good = self.fetch(vectors, finite)
        is_finite = ~np.isin(
            np.arange(len(output.sizes)), np.repeat(np.arange(len(output.sizes)), output.sizes)[~is_good]
        )
        return Arrays(values, output.sizes, is_finite)

    def of_arrays(self, values: NDArray[Any], counts: NDArray[np.int64]) -> Matrices:
        """The vectors on the device."""
        vectors = to_device(np.require(values, requirements="W"), self.device)
        return Matrices(vectors.view(torch.bfloat16) if values.dtype == np.uint16 else vectors, counts)

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.model.bodies[-1].parameters()).dtype

    def activate(self, raw: NDArray[np.float32]) -> NDArray[np.float32]:
        """A similarity is the score."""
        return raw
