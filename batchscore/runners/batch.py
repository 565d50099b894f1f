"""A pack as a body reads it: sequences end to end, and the tensors of its forwards, made ahead in another thread.

Everything that a forward needs to know about lengths is decided here from numpy arrays: asking a tensor on a GPU would
make the CPU wait for all that is queued before it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from batchscore.runners.media import Views
from batchscore.runners.prefix import Tree
from batchscore.runners.sequences import LastTokens, Sequences, runs_of
from batchscore.types import Items, Prefixes


@dataclass(frozen=True, slots=True)
class Call:
    """One forward of a body."""

    inputs: dict[str, Tensor]  # its keywords
    sequences: Sequences | None  # what attention without padding reads; None where there is padding
    tokens: Tensor | None  # int64 [tokens], where each real token stands in the padded output; None: nothing is padded
    places: Tensor | None = None  # int64, where the tokens of media stand in it; None: there are none
    media: tuple[int, int | None] = (0, None)  # from, to: which of the pack's these are


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
    views: Views | None = None  # the pack's media

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def num_tokens(self) -> int:
        """Tokens of all sequences."""
        return sum(self.sizes)

    @property
    def last(self) -> LastTokens | None:
        """The last tokens, where nothing else is read."""
        sequences = self.calls[0].sequences if self.calls else None
        return None if sequences is None else sequences.last

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        return max(self.sizes, default=0)


Positions = Callable[[Items], NDArray[np.int64] | None]  # [axes, tokens] where a model has several


def collate(
    items: Items,
    layout: str,
    device: str,
    *,
    first_position: int,
    padding: int,
    is_query: bool,
    positions: Positions = lambda items: None,
    views: Views | None = None,
    prefixes: Prefixes | None = None,
    last_only: bool = False,
) -> Batch:
    """Lay sequences out as a body takes them.

    Args:
        items: the pack's sequences, longest first.
        layout: "flat" (end to end, for attention without padding), "padded" (to the longest) or "even" (a forward for
            each length).
        device: where the tensors go.
        first_position: position id of a sequence's first token: 0, or pad_token_id + 1 for RoBERTa and its like.
        padding: token id that fills padded sequences.
        is_query: the sequences are queries.
        positions: of the model's own kind, where there are media.
        views: of the pack's media.
        prefixes: what neighbours share of a flat batch whose last tokens are read: forwarded once.
        last_only: of a flat batch nothing is read but each sequence's last token.
    """
    places = len(items.ids) if layout == "flat" else len(items) * int(items.lengths.max(initial=0))
    tensor = torch.from_numpy if device == "cpu" else Staging(device, _BYTES_A_TOKEN * places + _BYTES_A_PACK)
    keep = items.columns.get("keep")
    lengths = items.lengths
    if last_only:
        calls: tuple[Call, ...] = (_last_tokens(items, Tree.of(items, prefixes), tensor, first_position, positions),)
    else:
        calls = _CALLS[layout](items, tensor, first_position, padding, positions)
    batch = Batch(
        sizes=lengths.tolist(),
        kept_sizes=(lengths if keep is None else np.add.reduceat(keep.astype(np.int64), items.offsets[:-1])).tolist(),
        lengths=tensor(lengths),
        keep=None if keep is None else tensor(keep),
        kept=None if keep is None else tensor(np.flatnonzero(keep)),
        calls=calls,
        is_query=is_query,
        views=views,
    )
    if isinstance(tensor, Staging):
        tensor.send()
    return batch


class Staging:
    """The columns of a pack on their way to a device, in one copy.

    Calling it gives a view of the device's memory, which has the column's numbers once `send` was called; until then
    it may be sliced and reshaped, not computed with.

    Args:
        device: where they go.
        size: bytes of a buffer; columns that do not fit get another.
    """

    def __init__(self, device: str, size: int) -> None:
        self._device, self._size = device, size
        self._begin(size)

    def __call__(self, column: NDArray[Any]) -> Tensor:
        """A column, in its own dtype and shape, on the device."""
        if self._used + column.nbytes > len(self._here):
            self.send()
            self._begin(max(self._size, column.nbytes))
        span = slice(self._used, self._used + column.nbytes)
        self._here.numpy()[span] = np.ascontiguousarray(column).reshape(-1).view(np.uint8)
        self._used += -(-column.nbytes // _ALIGNMENT) * _ALIGNMENT
        dtype = torch.from_numpy(column).dtype
        return self._there[span].view(dtype).view(column.shape)

    def _begin(self, size: int) -> None:
        # the GPU copies from pinned memory while it works on the pack before
        self._here = torch.empty(size, dtype=torch.uint8, pin_memory=self._device.startswith("cuda"))
        self._there = torch.empty(size, dtype=torch.uint8, device=self._device)
        self._used = 0

    def send(self) -> None:
        """Queue the copy of what is in the buffer."""
        used = min(self._used, len(self._here))
        self._there[:used].copy_(self._here[:used], non_blocking=True)


_ALIGNMENT = 16  # of a column, in bytes
_BYTES_A_TOKEN = 64  # room for ids, types, three axes of positions, places and flags; a sequence takes less
_BYTES_A_PACK = 4_096

_ToTensor = Callable[[NDArray[Any]], Tensor]


def _flat(items: Items, tensor: _ToTensor, first_position: int, padding: int, positions: Positions) -> tuple[Call, ...]:
    """One (1, tokens) forward."""
    places = _media_places(items)
    return (
        Call(
            _flat_inputs(items, slice(None), tensor, first_position, positions),
            Sequences.of(items.lengths, items.columns.get("seen"), tensor),
            None,
            None if places is None else tensor(places),
        ),
    )


def _last_tokens(items: Items, tree: Tree, tensor: _ToTensor, first_position: int, positions: Positions) -> Call:
    """One (1, tokens) forward of a tree's parts, of which nothing but the sequences' last tokens is read."""
    inputs = _flat_inputs(items, tree.tokens, tensor, first_position, positions)
    return Call(inputs, tree.sequences(tensor), None)


def _flat_inputs(
    items: Items,
    tokens: NDArray[np.int64] | slice,
    tensor: _ToTensor,
    first_position: int,
    positions: Positions,
) -> dict[str, Tensor]:
    """A body's keywords for some of the tokens, each [1, tokens]; several axes of positions are [axes, 1, tokens]."""
    axes = positions(items)
    places = position_ids(items, first_position)[None] if axes is None else axes[:, None]
    inputs = {
        "input_ids": tensor(items.ids[tokens].astype(np.int64))[None],
        "position_ids": tensor(places[..., tokens]),
    }
    if "types" in items.columns:
        inputs["token_type_ids"] = tensor(items.columns["types"][tokens].astype(np.int64))[None]
    return inputs


def _media_places(items: Items) -> NDArray[np.int64] | None:
    """int64: the tokens that stand for media; None if there are none."""
    return np.flatnonzero(items.filled("media")) if items.num_media else None


def _padded(
    items: Items, tensor: _ToTensor, first_position: int, padding: int, positions: Positions
) -> tuple[Call, ...]:
    """One right-padded (n, longest) forward, for models with an attention of their own, which count positions."""
    shape = len(items), int(items.lengths.max(initial=0))
    tokens = np.repeat(np.arange(shape[0]) * shape[1], items.lengths) + items.positions

    def filled(column: NDArray[Any], filler: int) -> NDArray[np.int64]:
        places = np.full(shape[0] * shape[1], filler, np.int64)
        places[tokens] = column
        return places.reshape(shape)

    def padded(column: NDArray[Any], filler: int) -> Tensor:
        return tensor(filled(column, filler))

    inputs = {"input_ids": padded(items.ids, padding), "attention_mask": padded(items.filled("seen"), 0)}
    if "types" in items.columns:
        inputs["token_type_ids"] = padded(items.columns["types"], 0)
    if (axes := positions(items)) is not None:
        inputs["position_ids"] = tensor(np.stack([filled(axis, 0) for axis in axes]))
    places = _media_places(items)
    return (
        Call(
            inputs,
            None,
            None if len(tokens) == shape[0] * shape[1] else tensor(tokens),
            None if places is None else tensor(tokens[places]),
        ),
    )


def _even(items: Items, tensor: _ToTensor, first_position: int, padding: int, positions: Positions) -> tuple[Call, ...]:
    """A forward for each length, for models whose layers see padding."""
    calls: list[Call] = []
    done = seen = 0
    for _, count, _ in runs_of(items.lengths):
        some = items.take(np.arange(done, done + count))
        (call,) = _padded(some, tensor, first_position, padding, positions)
        calls.append(replace(call, media=(seen, seen + some.num_media)))
        done, seen = done + count, seen + some.num_media
    return tuple(calls)


_CALLS: dict[str, Callable[[Items, _ToTensor, int, int, Positions], tuple[Call, ...]]] = {
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
