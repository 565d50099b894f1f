"""Encodings of texts, or logits of pairs, that come back in a later window or call, within a fixed amount of memory.

They are known by their texts: what is still here costs a hash of them, no tokenizer and no model. The oldest gives
way when the memory is full. Matrices of late interaction are too large to keep.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import blake2b
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from batchscore.types import Cell, Encodings, Side, cell_bytes

_ENTRY_BYTES = 168  # what an entry costs beside its vector: its key in a dict and a list, tokens and cut


def keys_of(texts: Sequence[Cell], side: Side) -> list[bytes]:
    """128-bit digests of texts and their side, which decides how a text is read."""
    salt = side.encode()
    return [blake2b(cell_bytes(text), digest_size=16, salt=salt).digest() for text in texts]


class EncodingCache:
    """Encodings of one vector each by their keys, first in, first out.

    Args:
        max_bytes: for vectors and keys; 0 keeps nothing.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._slots: dict[bytes, int] = {}
        self._keys: list[bytes] = []  # of each slot
        self._kept: Encodings | None = None  # of each slot; pages that are never written take no memory
        self._added = 0
        self._lock = Lock()

    def complete(self, keys: Sequence[bytes], make: Callable[[NDArray[np.int64]], Encodings]) -> Encodings:
        """The encodings of these keys; `make` is asked for those at the places that are not here."""
        if not self.max_bytes:
            return make(np.arange(len(keys)))
        with self._lock:
            slots = np.array([self._slots.get(key, -1) for key in keys], np.int64)
            found = self._at(slots[slots >= 0])
        missing = np.flatnonzero(slots < 0)
        if found is not None and not len(missing):
            return found
        made = make(missing)
        self._add([keys[place] for place in missing.tolist()], made)
        if found is None:
            return made
        return Encodings.interleave([(np.flatnonzero(slots >= 0), found), (missing, made)])

    def _at(self, slots: NDArray[np.int64]) -> Encodings | None:
        """Copies of what is in these slots; None without any."""
        if self._kept is None or not len(slots):
            return None
        kept = self._kept
        return Encodings(kept.values[slots], np.arange(len(slots) + 1), kept.tokens[slots], kept.cut[slots])

    def _add(self, keys: Sequence[bytes], made: Encodings) -> None:
        """Keep the encodings that have no fault."""
        with self._lock:
            places = {key: place for place, key in enumerate(keys) if place not in made.faults}
            fresh = {key: place for key, place in places.items() if key not in self._slots}
            if not fresh:
                return
            if self._kept is None:
                self._kept = _empty(made.values, self.max_bytes)
            kept = self._kept
            newest = list(fresh)[-len(kept) :]
            slots, texts = [self._claim(key, len(kept)) for key in newest], [fresh[key] for key in newest]
            kept.values[slots] = made.values[made.offsets[texts]]
            kept.tokens[slots], kept.cut[slots] = made.tokens[texts], made.cut[texts]

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


def _empty(like: NDArray[Any], max_bytes: int) -> Encodings:
    """Room for as many vectors like these as the memory holds."""
    capacity = max(1, max_bytes // (like[:1].nbytes + _ENTRY_BYTES))
    values = np.empty((capacity, like.shape[1]), like.dtype)
    return Encodings(values, np.arange(capacity + 1), np.empty(capacity, np.int32), np.empty(capacity, np.uint8))
