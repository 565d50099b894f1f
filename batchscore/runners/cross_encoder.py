"""A query and a document read together give one logit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from batchscore.models.heads import activate, make_activation
from batchscore.models.prompts import pair_work
from batchscore.models.readouts import first_token
from batchscore.runners.base import Engine, Index
from batchscore.types import Batch, Pairs, Truncation, Work


@dataclass(frozen=True)
class CrossEncoder(Engine):
    """Distinct pairs are the items; the raw score is the logit."""

    activation: nn.Module = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "activation", make_activation(self.spec.activation))

    def tokenize(self, pairs: Pairs, truncation: Truncation) -> Work:
        """One sequence for each distinct pair."""
        return self.checked(pair_work(self.tokenizer, self.spec, pairs, truncation))

    @torch.inference_mode()
    def forward(self, batch: Batch) -> Tensor:
        """float32 [n]: logits."""
        logits: Tensor = self.model.head(first_token(self.states(batch)))
        return logits

    def hold(self, packs: Sequence[Index], outputs: Sequence[Tensor]) -> None:
        """Nothing: a pair has no other side."""

    def compare(self, held: None, left: Index, output: Tensor, right: Index) -> NDArray[np.float32]:
        """float32 [rows]: the logit of each row's pair."""
        logits: NDArray[np.float32] = output.cpu().numpy()[right]
        return logits

    def activate(self, raw: NDArray[np.float32]) -> NDArray[np.float32]:
        """float32 [rows]: the checkpoint's activation of the logits."""
        scores: NDArray[np.float32] = activate(self.activation, torch.from_numpy(raw)).numpy()
        return scores
