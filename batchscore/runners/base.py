"""One forward of a pack, shared by the three runners, and the protocol the pipeline drives them by."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Barrier
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from batchscore.errors import CheckpointError, RuntimeFailureError
from batchscore.models.load import Loaded
from batchscore.models.readouts import States
from batchscore.models.spec import ModelSpec
from batchscore.models.tokenizer import TextTokenizer
from batchscore.runners.cache import OutputCache
from batchscore.runners.first_token import last_layer_at_first_tokens
from batchscore.types import Batch, Items, Pairs, Truncation, Work

Index = NDArray[np.integer]


class Runner(Protocol):
    """A score type at work. What `forward` gives, only `hold` and `compare` of the same runner read."""

    def start_workers(self, count: int) -> ThreadPoolExecutor:
        """Threads to call `forward` in."""

    def tokenize(self, pairs: Pairs, truncation: Truncation) -> Work:
        """The window's token sequences."""

    def forward(self, batch: Batch) -> Any:
        """The outputs of a pack."""

    def recall(self, items: Items, index: Index) -> tuple[NDArray[np.bool_], Any]:
        """(bool [n], which sequences need no forward; their output as of one pack, None if there are none)."""

    def remember(self, items: Items, index: Index, output: Any) -> None:
        """Keep a pack's output for `recall`."""

    def hold(self, packs: Sequence[Index], outputs: Sequence[Any]) -> Any:
        """Join the outputs of several packs so that `compare` finds item i at position i."""

    def compare(self, held: Any, left: Index, output: Any, right: Index) -> NDArray[np.float32]:
        """float32 [rows]: raw scores of rows whose left side is held and whose right side is in this pack's output."""

    def activate(self, raw: NDArray[np.float32]) -> NDArray[np.float32]:
        """float32 [rows]: raw scores to scores."""


@dataclass(frozen=True)
class Engine:
    """A loaded model on its device, with its tokenizer: what every runner is made of."""

    spec: ModelSpec
    tokenizer: TextTokenizer
    model: Loaded
    device: str
    cache: OutputCache
    last_layer: Any  # of the body, where it runs for first tokens alone; else None

    def recall(self, items: Items, index: Index) -> tuple[NDArray[np.bool_], Tensor | None]:
        """Sequences whose output is still in the cache."""
        return self.cache.find(items, index)

    def remember(self, items: Items, index: Index, output: Any) -> None:
        """Put a pack's output into the cache."""
        self.cache.add(items, index, output)

    def checked(self, work: Work) -> Work:
        """The window, if the model has a vector for each of its tokens."""
        highest = int(work.items.ids.max(initial=0))
        if highest >= self.model.vocabulary:
            raise CheckpointError(
                f"its tokenizer gives token {highest}, and its embeddings end at {self.model.vocabulary - 1}",
                hint="tokenizer and weights are of different models",
            )
        return work

    def start_workers(self, count: int) -> ThreadPoolExecutor:
        """On a CPU each has one thread: packs run side by side and never wait for each other inside an operation."""
        threads = torch.get_num_threads()
        barrier = Barrier(count)

        def begin() -> None:
            if self.device == "cpu":
                torch.get_num_threads()  # a thread's first use of torch would set its number; have that done
                torch.set_num_threads(1)
            barrier.wait()

        workers = ThreadPoolExecutor(count, "batchscore")
        for started in [workers.submit(begin) for _ in range(count)]:
            started.result()
        torch.set_num_threads(threads)  # what a worker sets is also the default of threads to come, which are not ours
        return workers

    def states(self, batch: Batch) -> States:
        """Last hidden states of a pack in float32; of first tokens alone where only these are read."""
        try:
            hidden = self._flat(batch) if self.model.flat else self._padded(batch)
        except torch.OutOfMemoryError as error:
            raise RuntimeFailureError(
                f"{self.device} has no memory left for {len(batch.input_ids)} tokens at once",
                hint="lower --batch-tokens",
            ) from error
        lengths = torch.from_numpy(batch.lengths.astype(np.int64)).to(self.device)
        if self.last_layer is not None:
            return States(hidden.float(), torch.ones_like(lengths), None)
        keep = None if batch.keep is None else torch.from_numpy(batch.keep).to(self.device)
        return States(hidden.float(), lengths, keep)

    def _flat(self, batch: Batch) -> Tensor:
        """[tokens, dim] from one (1, tokens) forward, or [n, dim] of the first tokens."""
        offsets, longest = self._tensor(batch.offsets), int(batch.lengths.max())
        inputs = {name: self._tensor(column)[None] for name, column in _columns(batch).items()}
        lengths = {"cu_seq_lens_q": offsets, "max_length_q": longest, "sequence_runs": batch.runs()}
        states: Tensor = self.model.body(**inputs, **lengths).last_hidden_state[0]
        if self.last_layer is not None:
            return last_layer_at_first_tokens(self.last_layer, states, offsets[:-1].long(), lengths)
        return states

    def _padded(self, batch: Batch) -> Tensor:
        """[tokens, dim] from a right-padded (n, longest) forward, for models with an attention of their own."""
        mask = torch.arange(int(batch.lengths.max()))[None] < torch.from_numpy(batch.lengths)[:, None]
        inputs = {}
        for name, column in _columns(batch).items():
            padded = torch.full(mask.shape, self.spec.pad_token_id if name == "input_ids" else 0)
            padded[mask] = torch.from_numpy(column)
            inputs[name] = padded.to(self.device)
        mask = mask.to(self.device)
        states: Tensor = self.model.body(**inputs, attention_mask=mask.long()).last_hidden_state
        return states[mask]

    def _tensor(self, column: NDArray[Any]) -> Tensor:
        return torch.from_numpy(column).to(self.device)


def _columns(batch: Batch) -> dict[str, NDArray[np.int64]]:
    columns = {"input_ids": batch.input_ids, "position_ids": batch.position_ids}
    return columns if batch.token_type_ids is None else {**columns, "token_type_ids": batch.token_type_ids}


def positions_of(packs: Sequence[Index]) -> NDArray[np.int64]:
    """int64 [items]: where item i stands when the packs are laid end to end."""
    return np.argsort(np.concatenate(list(packs)))
