"""A vector for the query, a vector for the document, and their cosine."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from batchscore.models.similarity import VECTOR_SIMILARITIES
from batchscore.models.transfer import to_device
from batchscore.runners.base import Arrays, BaseRunner, Index, Match, positions_of
from batchscore.runners.batch import Batch
from batchscore.types import Pairs, Work


class BiEncoder(BaseRunner):
    """Distinct queries and distinct documents are the items; query vectors are held while documents stream by."""

    def sequences(self, pairs: Pairs) -> Work:
        """One sequence for each distinct text."""
        return self.reader.text_work(pairs)

    def outputs(self, batch: Batch) -> Tensor:
        """float32 [n, dim]: sentence vectors."""
        vectors, spec = self.vectors(batch), self.spec
        # the order of sentence-transformers; a cosine does not depend on it
        return (normalize(vectors, dim=1) if spec.normalize else vectors)[:, : spec.dimensions or None]

    def hold(self, packs: Sequence[Index], outputs: Sequence[Tensor]) -> Tensor:
        """float32 [items, dim]: vectors in item order."""
        return torch.cat(list(outputs))[to_device(positions_of(packs), self.device)]

    @torch.inference_mode()
    def compare(self, held: Tensor, match: Match, output: Tensor) -> NDArray[np.float32]:
        """float32 [rows, 1]: similarities."""
        similarity = VECTOR_SIMILARITIES[self.spec.similarity]
        scores: NDArray[np.float32] = self.fetch(similarity(held, output, match.query, match.item))[0]
        return scores[:, None]

    def to_arrays(self, output: Tensor) -> Arrays:
        """float32 [n, dim] in main memory, a vector for each sequence."""
        (values,) = self.fetch(output)
        return Arrays(values, np.ones(len(values), np.int64), np.isfinite(values).all(1))

    def of_arrays(self, values: NDArray[np.float32], counts: NDArray[np.int64]) -> Tensor:
        """float32 [n, dim] on the device."""
        return to_device(np.require(values, requirements="W"), self.device)

    def activate(self, raw: NDArray[np.float32]) -> NDArray[np.float32]:
        """A similarity is the score."""
        return raw
