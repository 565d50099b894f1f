"""A query and all its documents read together, each document's vector compared with the query's."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cosine_similarity

from batchscore.runners.base import BaseRunner, Index, Match
from batchscore.runners.batch import Batch
from batchscore.types import Pairs, Work, offsets_of


class Listwise(BaseRunner):
    """The prompts are the items. A score depends on the other documents of its prompt, by design of the model."""

    def sequences(self, pairs: Pairs) -> Work:
        """One sequence for each list; `slot` says which of its documents a row is."""
        return self.reader.pair_work(pairs)

    def outputs(self, batch: Batch) -> list[Tensor]:
        """For each prompt float32 [documents]: cosines. Kept are the documents' tokens and, last, the query's."""
        vectors: Tensor = self.model.head(self.kept_states(batch))
        return [cosine_similarity(part[-1:], part[:-1], dim=1) for part in vectors.split(batch.kept_sizes)]

    def hold(self, packs: Sequence[Index], outputs: Sequence[object]) -> None:
        """Nothing: a prompt has no other side."""

    def compare(self, held: None, match: Match, output: Sequence[Tensor]) -> NDArray[np.float32]:
        """float32 [rows, 1]: the cosine at each row's slot of its prompt."""
        assert match.slot is not None
        cosines: NDArray[np.float32] = self.fetch(torch.cat(list(output)))[0]
        starts = offsets_of([len(prompt) for prompt in output])
        return cosines[starts[match.item] + match.slot, None]

    def activate(self, raw: NDArray[np.float32]) -> NDArray[np.float32]:
        """A cosine is the score."""
        return raw
