"""Encodings of texts that come pack by pack, in the order of the packs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from batchscore.runners.base import Arrays
from batchscore.types import Encodings, Fault, Faults, Work, offsets_of, ranges


@dataclass(frozen=True, slots=True)
class GrowingEncodings:
    """Texts while they are encoded."""

    work: Work
    to_arrays: Callable[[Any], Arrays]
    faults: Faults
    is_done: NDArray[np.bool_]  # [texts]
    parts: list[tuple[NDArray[np.int64], Arrays]]  # (texts, their vectors) of each pack

    @classmethod
    def of(cls, work: Work, to_arrays: Callable[[Any], Arrays], known: Encodings | None) -> GrowingEncodings:
        """The texts of this work, encoded as far as they have vectors in `known`."""
        growing = cls(work, to_arrays, dict(work.faults), np.zeros(len(work), bool), [])
        if known is not None:
            counts = np.diff(known.offsets)
            index = np.flatnonzero(counts)
            growing.parts.append((index, Arrays(known.values, counts[index], np.ones(len(index), bool))))
            growing.is_done[index] = True
        return growing

    def take(self, index: NDArray[np.int64], output: Any) -> None:
        """Keep what was made of a pack's texts, but for those with a number that is not finite."""
        if isinstance(output, Fault):
            self.faults.update(dict.fromkeys(index.tolist(), output))
            return
        values, counts, is_finite = self.to_arrays(output)
        if not is_finite.all():
            values, counts, index = values[np.repeat(is_finite, counts)], counts[is_finite], index[is_finite]
        self.parts.append((index, Arrays(values, counts, is_finite)))
        self.is_done[index] = True

    def missing(self) -> NDArray[np.int64]:
        """int64: texts that have neither vectors nor a fault."""
        is_missing = ~self.is_done
        is_missing[list(self.faults)] = False
        return np.flatnonzero(is_missing)

    def snapshot(self) -> Encodings:
        """What there is so far; the other texts have no vectors."""
        return self._joined(list(self.parts))

    def joined(self) -> Encodings:
        """The encodings in the texts' order; the parts are given up one by one, so that there is little of both."""
        return self._joined(self.parts)

    def _joined(self, parts: list[tuple[NDArray[np.int64], Arrays]]) -> Encodings:
        counts = np.zeros(len(self.work), np.int64)
        for index, part in parts:
            counts[index] = part.counts
        offsets = offsets_of(counts)
        like = parts[0][1].values if parts else np.empty((0, 0), np.float32)
        values = np.empty((offsets[-1], like.shape[1]), like.dtype)
        while parts:
            index, part = parts.pop()
            values[ranges(offsets[index], part.counts)] = part.values
        return Encodings(values, offsets, self.work.row_tokens(), self.work.cut, dict(self.faults))
