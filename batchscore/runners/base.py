"""One forward of a pack, shared by the runners of all score types, and the protocol by which they are driven."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from batchscore.errors import CheckpointError, DeviceLostError, DeviceMemoryError, RuntimeFailureError, first_line
from batchscore.models.load import Layout, LoadedModel
from batchscore.models.readouts import States, pool
from batchscore.models.spec import ModelSpec
from batchscore.models.text.sides import InputReader
from batchscore.models.vision.body import Seen
from batchscore.runners.batch import Batch, Call, collate
from batchscore.runners.first_token import last_layer_at_first_tokens
from batchscore.runners.media import MediaMemory
from batchscore.runners.size import Products, products_of
from batchscore.runners.turns import Turns
from batchscore.types import Cell, Cells, Fault, Items, Pairs, Prefixes, Side, Work, row_faults

Index = NDArray[np.integer]

# Tokens that a head of every token's state reads at once. A CPU takes a sequence, which its caches hold; a GPU, which
# needs a few microseconds to begin anything, so many that their logits over 250,000 words are 2 GB.
_HEAD_TOKENS_CPU, _HEAD_TOKENS_GPU = 1, 2_048


class Match(NamedTuple):
    """What each of some rows is scored from, int [rows]."""

    query: Index  # which of the kept queries, where there are any
    item: Index  # which of the pack's items
    slot: Index | None  # which document of a listwise prompt


class Arrays(NamedTuple):
    """Outputs as `Encodings` keep them."""

    values: NDArray[Any]  # [vectors, dim], bfloat16 as its bits
    counts: NDArray[np.int64]  # [n], vectors of each sequence
    is_finite: NDArray[np.bool_]  # [n], whether all numbers of a sequence are


class Runner(Protocol):
    """A score type at work. Only methods of the same runner read what its `forward` returns."""

    num_scores: int  # raw scores of a row

    @property
    def layout(self) -> Layout:
        """How the body takes several sequences."""

    @property
    def document_first(self) -> bool:
        """Whether `compare` is quicker with all queries of a document than with all documents of a query."""

    @property
    def products(self) -> Products:
        """The matrix products of every token of a document."""

    def turn(self) -> AbstractContextManager[None]:
        """A block that queues work on the device: a forward and what is made of its output."""

    def tokenize(self, pairs: Pairs) -> Work:
        """The window's token sequences; rows that cannot have one are its faults."""

    def lay_out(self, cells: Sequence[Cell], side: Side) -> Work:
        """The token sequences of one side's cells, which are its rows, of a model that reads the sides separately."""

    def require_vectors(self, items: Items) -> None:
        """Raise CheckpointError if the model has no vector for one of the tokens."""

    def costs(self, items: Items) -> NDArray[np.int64]:
        """int64 [n]: what each sequence adds to a pack."""

    def shares_prefixes(self, items: Items) -> bool:
        """Whether `collate` can take what these sequences have in common."""

    def collate(
        self,
        items: Items,
        index: Index,
        *,
        is_query: bool,
        prefixes: Prefixes | None = None,
        ahead: bool = False,
    ) -> Batch:
        """The pack of the items at `index`, ready for `forward`.

        Args:
            items: of the window.
            index: int [n], the pack's.
            prefixes: what they share with their neighbours, which is forwarded once.
            is_query: they are queries.
            ahead: called in a thread of its own, ahead of the forward, which may wait for the packs before.

        Raises:
            UnreadableMediaError: some of them have media that cannot be decoded.
        """

    def forward(self, batch: Batch) -> Any:
        """The outputs of a pack."""

    def hold(self, packs: Sequence[Index], outputs: Sequence[Any]) -> Any:
        """Join the outputs of several packs in the order of their items."""

    def compare(self, held: Any, match: Match, output: Any) -> NDArray[np.float32]:
        """float32 [rows, num_scores]: raw scores of rows whose query is held and whose item is in this pack."""

    def to_arrays(self, output: Any) -> Arrays:
        """A pack's output in main memory, of a model that reads texts by themselves."""

    def of_arrays(self, values: NDArray[Any], counts: NDArray[np.int64]) -> Any:
        """The output that these arrays were made of, on the device."""

    def activate(self, raw: NDArray[np.float32]) -> NDArray[np.float32]:
        """float32, same shape: raw scores to scores."""

    def release_memory(self) -> None:
        """Give back what the device's allocator keeps for later."""


@dataclass(frozen=True)
class BaseRunner:
    """A loaded model on its device, with its tokenizer: what every runner is made of."""

    reader: InputReader
    model: LoadedModel
    device: str
    last_layer: Any  # of the body, where it runs for first tokens alone; else None
    media: MediaMemory | None = None  # of a model that reads media
    turns: Turns = field(default_factory=lambda: Turns(are_taken=False))
    last_only: bool = False  # nothing but last tokens' states is read of a flat batch
    shares: bool = False  # such a batch may have what sequences share once

    num_scores = 1

    @property
    def spec(self) -> ModelSpec:
        """What the checkpoint means."""
        return self.reader.spec

    @property
    def layout(self) -> Layout:
        """How the body takes several sequences."""
        return self.model.layout

    @property
    def document_first(self) -> bool:
        """Whether `compare` is quicker with all queries of a document than with all documents of a query."""
        return False

    @property
    def products(self) -> Products:
        """The matrix products of every token of a document."""
        return products_of(self.model.bodies[-1])

    # ---- texts to sequences

    def tokenize(self, pairs: Pairs) -> Work:
        """The window's token sequences, texts first cut to max_tokens_per_query and max_tokens_per_doc."""
        (queries, left), (documents, right) = map(self.reader.without_media, pairs.sides.values())
        shorter, cut = self.reader.shortened(replace(pairs, queries=queries, documents=documents))
        work = self._checked(self.sequences(shorter), cut)
        return work.refused(row_faults(left, queries.codes)).refused(row_faults(right, documents.codes))

    def lay_out(self, cells: Sequence[Cell], side: Side) -> Work:
        """The token sequences of one side's cells, which are its rows."""
        readable, faults = self.reader.without_media(Cells(cells, np.arange(len(cells), dtype=np.int32)))
        shorter, cut = self.reader.shortened_side(readable.values, side)
        return self._checked(self.reader.side_work(shorter, side), cut).refused(faults)

    def require_vectors(self, items: Items) -> None:
        """Raise CheckpointError if the model, as far as it is loaded, has no vector for one of the tokens."""
        highest = int(items.ids.max(initial=0))
        if highest >= self.model.vocabulary:
            raise CheckpointError(
                f"its tokenizer gives token {highest}, and its embeddings end at {self.model.vocabulary - 1}",
                hint="tokenizer and weights are of different models",
            )

    def _checked(self, work: Work, cut: NDArray[np.uint8]) -> Work:
        self.require_vectors(work.items)
        return replace(work, cut=work.cut | cut).refused(dict.fromkeys(_rows_without_tokens(work), _NO_TOKENS))

    def sequences(self, pairs: Pairs) -> Work:
        """The window's token sequences, as this score type lays them out."""
        raise NotImplementedError

    # ---- sequences to outputs

    def turn(self) -> AbstractContextManager[None]:
        """A block that queues work on the device: a forward and what is made of its output."""
        return self.turns.turn()

    def fetch(self, *tensors: Tensor) -> list[NDArray[Any]]:
        """Tensors in main memory; it ends the turn. What has gone wrong on the device by then shows here."""
        try:
            return self.turns.fetch(*tensors)
        except RuntimeError as error:
            if _is_lost(error):
                raise self._lost(error) from error
            raise

    def costs(self, items: Items) -> NDArray[np.int64]:
        """A sequence costs its tokens, and its media's patches. Packs are sorted, so padding adds next to nothing."""
        if items.visuals is None:
            return items.lengths
        return items.lengths + items.visuals.total(lambda visual: visual.patches)

    def shares_prefixes(self, items: Items) -> bool:
        """Whether `collate` can take what these sequences have in common: tokens that differ in their ids alone."""
        return self.shares and not items.columns.keys() - {"ids", "keep"}

    def collate(
        self,
        items: Items,
        index: Index,
        *,
        is_query: bool,
        prefixes: Prefixes | None = None,
        ahead: bool = False,
    ) -> Batch:
        """The pack of the items at `index`, ready for `forward`."""
        pack = items.take(index)
        views = self.media.views(pack, ahead=ahead) if self.media is not None and pack.num_media else None
        with self.device_errors(len(pack.ids), int(pack.lengths.max(initial=0))):
            return collate(
                pack,
                self.model.layout,
                self.device,
                first_position=self.spec.first_position,
                padding=self.spec.pad_token_id,
                is_query=is_query,
                positions=self.reader.positions,
                views=views,
                prefixes=prefixes,
                last_only=self.last_only and "seen" not in pack.columns,
            )

    def forward(self, batch: Batch) -> Any:
        """The outputs of a pack; a failing device and unreadable input raise different errors."""
        with torch.inference_mode(), self.device_errors(batch.num_tokens, batch.longest):
            return self.outputs(batch)

    def outputs(self, batch: Batch) -> Any:
        """The outputs of a pack, as this score type makes them."""
        raise NotImplementedError

    def states(self, batch: Batch) -> States:
        """Last hidden states of a pack; of first or last tokens alone where only these are read."""
        body = self.model.bodies[0 if batch.is_query else -1]  # the one that reads this side
        seen = [] if batch.views is None or self.media is None else self.media.look(body, batch.views)
        parts = [self._run(body, call, seen[slice(*call.media)]) for call in batch.calls]
        hidden = parts[0] if len(parts) == 1 else torch.cat(parts)  # which copies even a single one
        last = batch.last
        if self.last_layer is not None or last is not None:
            keep = None if last is None or batch.keep is None else batch.keep[batch.lengths.cumsum(0) - 1]
            return States(hidden, [1] * len(batch), torch.ones_like(batch.lengths), keep)
        return States(hidden, batch.sizes, batch.lengths, batch.keep)

    def vectors(self, batch: Batch) -> Tensor:
        """float32 [n, dim]: of each sequence its pooled states behind the head."""
        states, modes = self.states(batch), self.spec.pooling
        if self.model.token_head is None:
            pooled: Tensor = self.model.head(pool(states, modes))
            return pooled
        # SPLADE's has a number for each word of the vocabulary, which would fill the memory
        chunks = states.chunks(_HEAD_TOKENS_CPU if self.device == "cpu" else _HEAD_TOKENS_GPU)
        read = (replace(chunk, hidden=self.model.token_head(chunk.hidden.float())) for chunk in chunks)
        vectors: Tensor = self.model.head(torch.cat([pool(chunk, modes) for chunk in read]))
        return vectors

    def kept_states(self, batch: Batch) -> Tensor:
        """float32 [kept tokens, dim]: the states that count in the readout, `batch.kept_sizes` of each sequence."""
        hidden = self.states(batch).hidden
        return (hidden if batch.kept is None else hidden[batch.kept]).float()

    def _run(self, body: Any, call: Call, seen: Sequence[Seen]) -> Tensor:
        """[tokens, dim] of the real tokens, or [n, dim] of first or last tokens."""
        keywords: dict[str, Any] = {} if call.sequences is None else call.sequences.keywords()
        if call.places is not None:
            keywords |= {"seen": seen, "places": call.places}
        states: Tensor = body(**call.inputs, **keywords).last_hidden_state.flatten(0, 1)
        if call.sequences is not None and self.last_layer is not None:
            return last_layer_at_first_tokens(self.last_layer, states, call.sequences)
        if call.sequences is not None and call.sequences.last is not None:
            last = call.sequences.last.places
            return states if len(states) == len(last) else states[last]  # a last layer may give nothing else already
        return states if call.tokens is None else states[call.tokens]

    @contextmanager
    def device_errors(self, tokens: int, longest: int) -> Iterator[None]:
        """Tell a full memory, a lost device and a model that cannot read its input from each other."""
        try:
            yield
        except (RuntimeError, IndexError) as error:
            if _is_out_of_memory(error):
                raise DeviceMemoryError(
                    f"{self.device} has no memory left for {tokens} tokens at once", hint="lower --max-length"
                ) from None  # the traceback holds what filled the memory
            if _is_lost(error):
                raise self._lost(error) from error
            raise RuntimeFailureError(
                f"the model fails on sequences of up to {longest} tokens: {first_line(error)}",
                hint="lower --max-length if it has positions for fewer",
            ) from error

    def _lost(self, error: Exception) -> DeviceLostError:
        return DeviceLostError(
            f"{self.device} failed: {first_line(error)}", hint="run the same command again to resume"
        )

    def to_arrays(self, output: Any) -> Arrays:
        """A pack's output in main memory, of a model that reads texts by themselves."""
        raise NotImplementedError

    def of_arrays(self, values: NDArray[Any], counts: NDArray[np.int64]) -> Any:
        """The output that these arrays were made of, on the device."""
        raise NotImplementedError

    def release_memory(self) -> None:
        """Give back what the device's allocator keeps for later."""
        if self.device.startswith("cuda"):
            torch.cuda.empty_cache()


_NO_TOKENS = Fault(
    "no-tokens",
    "the text has no tokens for this model",
    "this tokenizer adds no token of its own; leave out rows with an empty query or document",
)


def _rows_without_tokens(work: Work) -> list[int]:
    """Rows one of whose sequences is empty."""
    if not len(work.items):
        return []
    is_empty = work.items.lengths == 0
    rows = is_empty[work.right] | is_empty[work.left] if work.queries else is_empty[work.right]
    return [int(row) for row in np.flatnonzero(rows & (work.right >= 0))]


def _is_out_of_memory(error: Exception) -> bool:
    """torch has a class for it on devices, and on a CPU says so in one of two ways."""
    text = str(error)
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in text or "not enough memory" in text


def _is_lost(error: Exception) -> bool:
    """After an illegal access or a failed assertion in a kernel, each later call of this process fails too."""
    return "CUDA error" in str(error) or isinstance(error, getattr(torch, "AcceleratorError", ()))


def positions_of(packs: Sequence[Index]) -> NDArray[np.int64]:
    """int64 [items]: where the items, in ascending order, stand when the packs are laid end to end."""
    return np.argsort(np.concatenate(list(packs)))
