"""A query and all its documents read together, each document's vector compared with the query's."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cosine_similarity

from batchscore.models.text.rendered import list_work
from batchscore.runners.base import BaseRunner, Index, Match
from batchscore.runners.batch import Batch
from batchscore.types import Items, Pairs, Work


class Listwise(BaseRunner):
    """The prompts are the items. A score depends on the other documents of its prompt, by design of the model."""

    def sequences(self, pairs: Pairs) -> Work:
        """One sequence for each list; `slot` says which of its documents a row is."""
        assert self.template is not None
        return list_work(self.tokenizer, self.spec, self.template, pairs)

    @torch.inference_mode()
    def forward(self, batch: Batch) -> list[NDArray[np.float32]]:
        """For each prompt float32 [documents]: cosines. Kept are the documents' tokens and, last, the query's."""
        kept: Tensor = self.model.head(self.states(batch).hidden[batch.kept])
        parts = kept.split(batch.kept_counts.tolist())
        return [cosine_similarity(part[-1:], part[:-1], dim=1).cpu().numpy() for part in parts]

    def remember(self, items: Items, index: Index, output: Sequence[NDArray[np.float32]]) -> None:
        """Nothing: a list rarely comes back."""

    def hold(self, packs: Sequence[Index], outputs: Sequence[object]) -> None:
        """Nothing: a prompt has no other side."""

    def compare(self, held: None, match: Match, output: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        """float32 [rows, 1]: the cosine at each row's slot of its prompt."""
        assert match.slot is not None
        scores = [output[prompt][slot] for prompt, slot in zip(match.item, match.slot, strict=True)]
        return np.array(scores, np.float32)[:, None]

    def activate(self, raw: NDArray[np.float32]) -> NDArray[np.float32]:
        """A cosine is the score."""
        return raw
