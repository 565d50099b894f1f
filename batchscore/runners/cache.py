"""Outputs of token sequences that come back in a later window, within a fixed amount of memory.

Candidates of many queries overlap, and a query's rows may straddle windows: what is still here costs a hash of its
tokens instead of a forward. The oldest output gives way when the memory is full. Outputs per token (late interaction)
are too large to keep.
"""

from __future__ import annotations

from hashlib import blake2b
from threading import Lock

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from batchscore.types import Items

_KEY_BYTES = 160  # what a key costs as a Python object in a dict and a list


class OutputCache:
    """Outputs by token ids, first in, first out.

    Args:
        max_bytes: for outputs and keys; 0 keeps nothing.
        device: where outputs are wanted; they are kept in main memory.
    """

    def __init__(self, max_bytes: int, device: str) -> None:
        self._max_bytes = max_bytes
        self._device = device
        self._slots: dict[bytes, int] = {}
        self._keys: list[bytes] = []  # of each slot
        self._outputs: Tensor | None = None  # float32 [capacity, ...]; pages that are never written take no memory
        self._added = 0
        self._lock = Lock()

    def find(self, items: Items, index: NDArray[np.integer]) -> tuple[NDArray[np.bool_], Tensor | None]:
        """(bool [n], which sequences are here; float32 [hits, ...], copies of their outputs, None without a hit)."""
        if self._outputs is None:
            return np.zeros(len(index), bool), None
        keys = _keys(items, index)
        with self._lock:
            slots = np.array([self._slots.get(key, -1) for key in keys], np.int64)
            hits = slots >= 0
            return hits, self._outputs[torch.from_numpy(slots[hits])].to(self._device) if hits.any() else None

    def add(self, items: Items, index: NDArray[np.integer], outputs: Tensor) -> None:
        """Keep the outputs, float32 [n, ...], of the sequences at `index`."""
        if not self._max_bytes:
            return
        keys = _keys(items, index)  # outside of the lock, or the workers would hash one after the other
        with self._lock:
            if self._outputs is None:
                capacity = self._max_bytes // (outputs[:1].nbytes + _KEY_BYTES)
                self._outputs = torch.empty(max(1, capacity), *outputs.shape[1:])
            places = {key: place for place, key in enumerate(keys) if key not in self._slots}
            fresh = list(places)[-len(self._outputs) :]
            slots = [self._claim(key, len(self._outputs)) for key in fresh]
            self._outputs[slots] = outputs[[places[key] for key in fresh]].cpu()

    def _claim(self, key: bytes, capacity: int) -> int:
        """The next slot, taken from the oldest key if there is no free one."""
        slot = self._added % capacity
        self._added += 1
        if slot < len(self._keys):
            self._slots.pop(self._keys[slot], None)
            self._keys[slot] = key
        else:
            self._keys.append(key)
        self._slots[key] = slot
        return slot


def _keys(items: Items, index: NDArray[np.integer]) -> list[bytes]:
    """128-bit digests of everything the model reads of each sequence."""
    columns = [items.columns[name] for name in sorted(items.columns)]
    spans = [slice(items.offsets[i], items.offsets[i + 1]) for i in index]
    return [blake2b(b"".join(c[span].tobytes() for c in columns), digest_size=16).digest() for span in spans]
