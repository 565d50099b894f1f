"""Digests of texts, and which number each has: how a text is known that came before, in 24 bytes.

A digest is 128 bits of BLAKE2b. That two texts of a trillion share one has a chance of 1 in 10^15, and nobody can make
two that do, so that no document gets another's score on purpose either.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

Digests = NDArray[np.uint64]  # [n, 2]


def digests_of(texts: Sequence[str]) -> Digests:
    """uint64 [n, 2]: the digest of each text."""
    joined = b"".join([blake2b(text.encode(), digest_size=16).digest() for text in texts])
    return np.frombuffer(joined, "<u8").reshape(-1, 2)


class DigestIndex:
    """Digest -> number, in sorted arrays: a few of them, each at least twice as long as the next."""

    def __init__(self) -> None:
        self._runs: list[tuple[Digests, NDArray[np.int64]]] = []

    def __len__(self) -> int:
        return sum(len(numbers) for _, numbers in self._runs)

    def find(self, digests: Digests) -> NDArray[np.int64]:
        """int64 [n]: the number of each digest; -1 where it has none."""
        raise NotImplementedError

    def add(self, digests: Digests, numbers: NDArray[np.int64]) -> None:
        """Give numbers to digests that have none so far and are all different."""
        raise NotImplementedError
