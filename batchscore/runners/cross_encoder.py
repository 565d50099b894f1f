"""A query and a document read together give one logit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from batchscore.models.heads import activate
from batchscore.runners.base import BaseRunner, Index, Match
from batchscore.runners.batch import Batch
from batchscore.types import Pairs, Work


class CrossEncoder(BaseRunner):
    """Distinct pairs are the items; the raw score is the logit."""

    def sequences(self, pairs: Pairs) -> Work:
        """One sequence for each distinct pair."""
        return self.reader.pair_work(pairs)

    def outputs(self, batch: Batch) -> Tensor:
        """float32 [n]: logits."""
        return (self.vectors(batch)[:, 0] - self.spec.logit_mean) / self.spec.logit_sigma

    def hold(self, packs: Sequence[Index], outputs: Sequence[Tensor]) -> None:
        """Nothing: a pair has no other side."""

    def compare(self, held: None, match: Match, output: Tensor) -> NDArray[np.float32]:
        """float32 [rows, 1]: the logit of each row's pair."""
        logits: NDArray[np.float32] = self.fetch(output)[0][match.item, None]
        return logits

    def activate(self, raw: NDArray[np.float32]) -> NDArray[np.float32]:
        """float32, same shape: the checkpoint's activation of the logits."""
        scores: NDArray[np.float32] = activate(self.model.activation, torch.from_numpy(raw)).numpy()
        return scores
