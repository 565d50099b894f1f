"""One forward of a pack, shared by the three runners, and the protocol the pipeline drives them by."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from threading import Barrier
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from batchscore.errors import (
    CheckpointError,
    DeviceLostError,
    DeviceMemoryError,
    InputError,
    RowError,
    RuntimeFailureError,
    first_line,
)
from batchscore.models.load import LoadedModel
from batchscore.models.readouts import States
from batchscore.models.spec import ModelSpec
from batchscore.models.text.prompts import shortened
from batchscore.models.text.templates import Template
from batchscore.models.text.tokenizer import TextTokenizer
from batchscore.runners.attention import Sequences
from batchscore.runners.cache import OutputCache
from batchscore.runners.first_token import last_layer_at_first_tokens
from batchscore.types import Batch, Items, Pairs, Work

Index = NDArray[np.integer]


class Runner(Protocol):
    """A score type at work. What `forward` gives, only `hold` and `compare` of the same runner read."""

    def start_workers(self, count: int) -> ThreadPoolExecutor:
        """Threads to call `forward` in."""

    def tokenize(self, pairs: Pairs) -> Work:
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

    def release_memory(self) -> None:
        """Give back what the device's allocator keeps for later."""


@dataclass(frozen=True)
class BaseRunner:
    """A loaded model on its device, with its tokenizer: what every runner is made of."""

    spec: ModelSpec
    template: Template | None  # of a pair; None: the tokenizer's own pair of segments
    tokenizer: TextTokenizer
    model: LoadedModel
    device: str
    cache: OutputCache
    last_layer: Any  # of the body, where it runs for first tokens alone; else None

    def recall(self, items: Items, index: Index) -> tuple[NDArray[np.bool_], Tensor | None]:
        """Sequences whose output is still in the cache."""
        return self.cache.find(items, index)

    def remember(self, items: Items, index: Index, output: Any) -> None:
        """Put a pack's output into the cache."""
        self.cache.add(items, index, output)

    def tokenize(self, pairs: Pairs) -> Work:
        """The window's token sequences, texts first cut to max_tokens_per_query and max_tokens_per_doc.

        Raises:
            RowError: a row gives the model no token to read, or is too long under truncation "error".
            CheckpointError: the model has no vector for one of the tokens.
        """
        shorter, cut = shortened(self.tokenizer, self.spec, pairs)
        work = self.sequences(shorter)
        work = replace(work, cut=work.cut | cut)
        rows = np.flatnonzero(
            (work.items.lengths[work.right] == 0) | (work.items.lengths[work.left if work.held else work.right] == 0)
        )
        if len(rows):
            raise RowError(
                rows,
                "its text gives this model no token to read",
                code="no-tokens",
                cause=InputError,
                hint="this tokenizer adds no token of its own; leave out rows with an empty query or document",
            )
        return self._checked(work)

    def sequences(self, pairs: Pairs) -> Work:
        """The window's token sequences, as this score type lays them out."""
        raise NotImplementedError

    def _checked(self, work: Work) -> Work:
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

    def release_memory(self) -> None:
        """Give back what the device's allocator keeps for later."""
        if self.device != "cpu":
            torch.cuda.empty_cache()

    def states(self, batch: Batch) -> States:
        """Last hidden states of a pack; of first tokens alone where only these are read."""
        try:
            forward = {"flat": self._flat, "padded": self._padded, "even": self._even}[self.model.layout]
            hidden = forward(batch)
        except (RuntimeError, IndexError) as error:
            if _is_out_of_memory(error):
                raise DeviceMemoryError(
                    f"{self.device} has no memory left for {len(batch.input_ids)} tokens at once",
                    hint="lower --max-length",
                ) from None  # the traceback holds what filled the memory
            if _is_lost(error):
                raise DeviceLostError(
                    f"{self.device} failed: {first_line(error)}", hint="run again to go on"
                ) from error
            raise RuntimeFailureError(
                f"the model fails on sequences of up to {batch.lengths.max()} tokens: {first_line(error)}",
                hint="lower --max-length if it has positions for fewer",
            ) from error
        if self.last_layer is not None:
            return States.of(hidden, np.ones_like(batch.lengths), None)
        return States.of(hidden, batch.lengths, batch.keep)

    def kept_states(self, batch: Batch) -> tuple[Tensor, list[int]]:
        """(float32 [kept tokens, dim], how many of each sequence)."""
        hidden, counts = self.states(batch).hidden, batch.lengths
        if batch.keep is not None:
            # positions from the host: a mask would make the host wait for the device to count
            hidden = hidden[self._tensor(np.flatnonzero(batch.keep))]
            counts = np.add.reduceat(batch.keep.astype(np.int32), batch.offsets[:-1])
        return hidden.float(), counts.tolist()

    def _body(self, batch: Batch) -> Any:
        """The body that reads this side."""
        return self.model.bodies[0 if batch.is_query else -1]

    def _flat(self, batch: Batch) -> Tensor:
        """[tokens, dim] from one (1, tokens) forward, or [n, dim] of the first tokens."""
        inputs = {"input_ids": batch.input_ids, "position_ids": batch.position_ids}
        if batch.token_type_ids is not None:
            inputs["token_type_ids"] = batch.token_type_ids
        tensors = {name: self._tensor(column)[None] for name, column in inputs.items()}
        sequences = Sequences.of(batch, self.device)
        states: Tensor = self._body(batch)(**tensors, **sequences.keywords()).last_hidden_state[0]
        if self.last_layer is not None:
            return last_layer_at_first_tokens(self.last_layer, states, sequences)
        return states

    def _padded(self, batch: Batch) -> Tensor:
        """[tokens, dim] from a right-padded (n, longest) forward, for models with an attention of their own.

        The model counts positions itself.
        """
        real = np.arange(batch.lengths.max()) < batch.lengths[:, None]

        def padded(column: NDArray[Any], filler: int) -> Tensor:
            filled = np.full(real.shape, filler, np.int64)
            filled[real] = column
            return self._tensor(filled)

        inputs = {"input_ids": padded(batch.input_ids, self.spec.pad_token_id)}
        if batch.token_type_ids is not None:
            inputs["token_type_ids"] = padded(batch.token_type_ids, 0)
        seen = np.ones(len(batch.input_ids)) if batch.seen is None else batch.seen
        states: Tensor = self._body(batch)(**inputs, attention_mask=padded(seen, 0)).last_hidden_state
        return states.flatten(0, 1)[self._tensor(np.flatnonzero(real))]

    def _even(self, batch: Batch) -> Tensor:
        """[tokens, dim] from a forward for each length, for models whose layers see padding."""
        parts = []
        for start, count, length in batch.runs():
            tokens = slice(start, start + count * length)
            run = replace(
                batch,
                input_ids=batch.input_ids[tokens],
                offsets=np.arange(count + 1, dtype=np.int32) * length,
                token_type_ids=None if batch.token_type_ids is None else batch.token_type_ids[tokens],
                seen=None if batch.seen is None else batch.seen[tokens],
            )
            parts.append(self._padded(run))
        return torch.cat(parts)

    def _tensor(self, column: NDArray[Any]) -> Tensor:
        return torch.from_numpy(column).to(self.device)


def _is_out_of_memory(error: Exception) -> bool:
    """torch has a class for it on devices, and on a CPU says so in one of two ways."""
    text = str(error)
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in text or "not enough memory" in text


def _is_lost(error: Exception) -> bool:
    """After an illegal access or a failed assertion in a kernel, each later call of this process fails too."""
    return "CUDA error" in str(error) or isinstance(error, getattr(torch, "AcceleratorError", ()))


def positions_of(packs: Sequence[Index]) -> NDArray[np.int64]:
    """int64 [items]: where item i stands when the packs are laid end to end."""
    return np.argsort(np.concatenate(list(packs)))
