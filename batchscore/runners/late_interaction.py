"""A vector for every token of both sides, and MaxSim between them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from batchscore.models.similarity import maxsim
from batchscore.models.text.prompts import text_work
from batchscore.runners.base import BaseRunner, Index, Match, positions_of
from batchscore.runners.batch import Batch
from batchscore.types import Fault, Items, Pairs, Work

Matrices = list[Tensor]  # float32 [tokens, dim] of each item


_NOTHING_COUNTS = Fault(
    "no-tokens",
    "every token of the document is on the model's skip list",
    "leave out rows with such a document",
)


class LateInteraction(BaseRunner):
    """Distinct queries and distinct documents are the items. Document matrices live no longer than their pack."""

    def sequences(self, pairs: Pairs) -> Work:
        """One sequence for each distinct text; a row whose document has no token that counts has no score."""
        work = text_work(self.tokenizer, self.spec, pairs)
        kept = np.concatenate([[0], np.cumsum(work.items.filled("keep"))])[work.items.offsets]
        is_skipped = (np.diff(kept) == 0) & (work.items.lengths > 0)
        nothing = np.flatnonzero(is_skipped[work.right])
        return work.refused(dict.fromkeys(nothing.tolist(), _NOTHING_COUNTS))

    def outputs(self, batch: Batch) -> Matrices:
        """Unit vectors of the tokens that count, special ones included, through head and Dense chain."""
        vectors: Tensor = self.model.head(self.kept_states(batch))[:, : self.spec.dimensions or None]
        return list((normalize(vectors, dim=1) if self.spec.normalize else vectors).split(batch.kept_sizes))

    def remember(self, items: Items, index: Index, output: Matrices) -> None:
        """Nothing: a vector a token would fill the memory at once."""

    def hold(self, packs: Sequence[Index], outputs: Sequence[Matrices]) -> Matrices:
        """Matrices in item order."""
        matrices = [matrix for output in outputs for matrix in output]
        return [matrices[position] for position in positions_of(packs)]

    @torch.inference_mode()
    def compare(self, held: Matrices, match: Match, output: Matrices) -> NDArray[np.float32]:
        """float32 [rows, 1]: MaxSim, one product for all documents of a query."""
        left, right = match.query, match.item
        scores = np.empty(len(left), np.float32)
        order = np.argsort(left, kind="stable")
        for rows in np.split(order, np.flatnonzero(np.diff(left[order])) + 1):
            documents = [output[position] for position in right[rows]]
            found = maxsim(held[left[rows[0]]], torch.cat(documents), [len(document) for document in documents])
            scores[rows] = found.cpu().numpy()
            if self.spec.similarity == "meanmaxsim":
                scores[rows] /= len(held[left[rows[0]]])
        return scores[:, None]

    def activate(self, raw: NDArray[np.float32]) -> NDArray[np.float32]:
        """A similarity is the score."""
        return raw
