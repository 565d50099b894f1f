"""A pack as a body reads it: sequences end to end, and the tensors of its forwards, made ahead in another thread.

Everything that a forward needs to know about lengths is decided here from numpy arrays: asking a tensor on a GPU would
make the CPU wait for all that is queued before it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from batchscore.runners.attention import Sequences, runs_of
from batchscore.types import Items


@dataclass(frozen=True, slots=True)
class Call:
    """One forward of a body."""

    inputs: dict[str, Tensor]  # its keywords
    sequences: Sequences | None  # what attention without padding reads; None where there is padding
    tokens: Tensor | None  # int64 [tokens], where each real token stands in the padded output; None: nothing is padded


@dataclass(frozen=True, slots=True)
class Batch:
    """A pack, longest sequences first. Counts are on the host, tensors on the device."""

    sizes: list[int]  # [n], tokens of each sequence
    kept_sizes: list[int]  # [n], tokens of each that count in the readout
    lengths: Tensor  # int64 [n], `sizes` on the device
    keep: Tensor | None  # bool [tokens], the tokens that count; None: all
    kept: Tensor | None  # int64, their positions
    calls: tuple[Call, ...]
    is_query: bool  # a model with an adapter for each side needs to know

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def num_tokens(self) -> int:
        """Tokens of all sequences."""
        return sum(self.sizes)

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        return max(self.sizes, default=0)


def collate(items: Items, layout: str, device: str, *, first_position: int, padding: int, is_query: bool) -> Batch:
    """Lay sequences out as a body takes them.

    Args:
        items: the pack's sequences, longest first.
        layout: "flat" (end to end, for attention without padding), "padded" (to the longest) or "even" (a forward for
            each length).
        device: where the tensors go.
        first_position: position id of a sequence's first token: 0, or pad_token_id + 1 for RoBERTa and its like.
        padding: token id that fills padded sequences.
        is_query: the sequences are queries.
    """

    def tensor(column: NDArray[Any]) -> Tensor:
        made = torch.from_numpy(column)
        # pinned memory is copied while the GPU works on the pack before
        return made.pin_memory().to(device, non_blocking=True) if device.startswith("cuda") else made.to(device)

    keep = items.columns.get("keep")
    lengths = items.lengths
    return Batch(
        sizes=lengths.tolist(),
        kept_sizes=(lengths if keep is None else np.add.reduceat(keep.astype(np.int64), items.offsets[:-1])).tolist(),
        lengths=tensor(lengths),
        keep=None if keep is None else tensor(keep),
        kept=None if keep is None else tensor(np.flatnonzero(keep)),
        calls=_CALLS[layout](items, tensor, first_position, padding),
        is_query=is_query,
    )


_ToTensor = Callable[[NDArray[Any]], Tensor]


def _flat(items: Items, tensor: _ToTensor, first_position: int, padding: int) -> tuple[Call, ...]:
    """One (1, tokens) forward."""
    inputs = {
        "input_ids": tensor(items.ids.astype(np.int64))[None],
        "position_ids": tensor(position_ids(items, first_position))[None],
    }
    if "types" in items.columns:
        inputs["token_type_ids"] = tensor(items.columns["types"].astype(np.int64))[None]
    return (Call(inputs, Sequences.of(items.lengths, items.columns.get("seen"), tensor), None),)


def _padded(items: Items, tensor: _ToTensor, first_position: int, padding: int) -> tuple[Call, ...]:
    """One right-padded (n, longest) forward, for models with an attention of their own, which count positions."""
    shape = len(items), int(items.lengths.max(initial=0))
    tokens = np.repeat(np.arange(shape[0]) * shape[1], items.lengths) + items.positions

    def padded(column: NDArray[Any], filler: int) -> Tensor:
        filled = np.full(shape[0] * shape[1], filler, np.int64)
        filled[tokens] = column
        return tensor(filled.reshape(shape))

    inputs = {"input_ids": padded(items.ids, padding), "attention_mask": padded(items.filled("seen"), 0)}
    if "types" in items.columns:
        inputs["token_type_ids"] = padded(items.columns["types"], 0)
    return (Call(inputs, None, None if len(tokens) == shape[0] * shape[1] else tensor(tokens)),)


def _even(items: Items, tensor: _ToTensor, first_position: int, padding: int) -> tuple[Call, ...]:
    """A forward for each length, for models whose layers see padding."""
    calls: list[Call] = []
    done = 0
    for _, count, _ in runs_of(items.lengths):
        calls += _padded(items.take(np.arange(done, done + count)), tensor, first_position, padding)
        done += count
    return tuple(calls)


_CALLS: dict[str, Callable[[Items, _ToTensor, int, int], tuple[Call, ...]]] = {
    "flat": _flat,
    "padded": _padded,
    "even": _even,
}


def position_ids(items: Items, first_position: int) -> NDArray[np.int64]:
    """int64 [tokens]: positions that start again with each sequence.

    In fairseq's convention (`first_position` above 0) a padding token that a text spells out stays at the padding
    position and is not counted.
    """
    if not first_position:
        return items.positions
    padding = first_position - 1
    counted = items.ids != padding
    before = np.concatenate([[0], np.cumsum(counted)])
    return np.where(counted, before[1:] - np.repeat(before[items.offsets[:-1]], items.lengths) + padding, padding)
