"""How long what the model read was: a histogram that adds up over units, processes and nights.

A bin is exact below 64 tokens and at most 1/32 of its length wide above, so that some hundred numbers a unit say
what a histogram can show.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

_BITS = 6  # of a length that decide its bin: the leading ones


def length_counts(tokens: NDArray[np.integer]) -> dict[str, int]:
    """Least length of each bin, as a key of JSON -> how many of these lengths are in it."""
    spare = np.maximum(np.frexp(tokens)[1] - _BITS, 0)
    least, counts = np.unique(np.left_shift(np.right_shift(tokens, spare), spare), return_counts=True)
    return dict(zip(map(str, least.tolist()), counts.tolist(), strict=True))


def length_bins(counts: Mapping[str, int]) -> list[tuple[int, int, int]]:
    """(least length, first length beyond, count) of each bin that is not empty, ascending."""
    least = sorted(map(int, counts))
    return [(edge, edge + (1 << max(edge.bit_length() - _BITS, 0)), counts[str(edge)]) for edge in least]
