"""Tokens of texts that were read lately.

A document of many queries, or the query of many documents, comes back unit after unit; looking it up takes a
hundredth of the time of tokenizing it.
"""

from __future__ import annotations

from collections.abc import Sequence
from sys import getsizeof
from threading import Lock

import numpy as np
from numpy.typing import NDArray

Key = tuple[str, int, bool]  # a text, how many tokens of it are kept, whether those of its end
Tokens = tuple[NDArray[np.int32], int]  # (those that are kept, how many the text has)

_MAX_BYTES = 64 * 2**20
_ENTRY_BYTES = 300  # of a key and its tokens as Python objects


class RecentTokens:
    """Tokens by text, first in, first out. Safe in several threads."""

    def __init__(self) -> None:
        self._kept: dict[Key, Tokens] = {}
        self._bytes = 0
        self._lock = Lock()

    def find(self, keys: Sequence[Key]) -> list[Tokens | None]:
        """The tokens of each key, None where they are not here."""
        return [self._kept.get(key) for key in keys]

    def add(self, key: Key, tokens: Tokens) -> None:
        """Keep these tokens; the oldest give way."""
        with self._lock:
            if key in self._kept:
                return
            self._kept[key] = tokens
            self._bytes += _size(key, tokens)
            while self._bytes > _MAX_BYTES:
                oldest = next(iter(self._kept))
                self._bytes -= _size(oldest, self._kept.pop(oldest))


def _size(key: Key, tokens: Tokens) -> int:
    return getsizeof(key[0]) + int(tokens[0].nbytes) + _ENTRY_BYTES
