"""Where the sequences of a pack lie, decided on the host, once per pack."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from batchscore.runners.padding import Padding, Run, sections_of
from batchscore.runners.reach import Reach
from batchscore.types import offsets_of


@dataclass(frozen=True)
class Sequences:
    """Where the sequences of a flat batch lie, and which of their tokens are attended to."""

    runs: list[Run]
    offsets: Tensor  # int32 [n + 1]
    longest: int
    seen: list[Tensor | None] | None  # of each run bool [sequences, 1, 1, length], None: all; None: all of all runs
    seen_tokens: Tensor | None  # bool [tokens], None: all
    reach: Reach | None = None  # where sequences share a beginning: what its tokens and those that follow it see
    last: LastTokens | None = None  # where nothing else is read

    @classmethod
    def of(
        cls, lengths: NDArray[np.integer], seen: NDArray[np.bool_] | None, tensor: Callable[[NDArray[Any]], Tensor]
    ) -> Sequences:
        """A pack's.

        Args:
            lengths: int [n].
            seen: bool [tokens], the tokens that are attended to; None: all.
            tensor: puts an array on the device.
        """
        runs, offsets = runs_of(lengths), tensor(offsets_of(lengths).astype(np.int32))
        tokens = None if seen is None or seen.all() else tensor(seen)
        of_runs = None if seen is None or tokens is None else _seen_of_runs(seen, tokens, runs)
        return cls(runs, offsets, int(lengths.max(initial=0)), of_runs, tokens)

    @property
    def tokens(self) -> int:
        """Of all sequences."""
        start, count, length = self.runs[-1]
        return start + count * length

    @cached_property
    def paddings(self) -> list[Padding]:
        """All sequences in padded batches, for the layers of a body that need them so."""
        return [Padding.of(section, self.offsets, self.seen_tokens) for section in sections_of(self.runs)]

    @property
    def starts(self) -> Tensor:
        """int64 [n]: first token of each sequence."""
        return self.offsets[:-1].long()

    def keywords(self) -> dict[str, Any]:
        """For a model's forward: ours, and the names by which some models look for joints themselves."""
        return {"sequences": self, "cu_seq_lens_q": self.offsets, "max_length_q": self.longest}


@dataclass(frozen=True, slots=True)
class LastTokens:
    """The last token of each sequence of a flat batch."""

    places: Tensor  # int64 [n]
    reach: Reach  # of these n queries


def runs_of(lengths: NDArray[np.integer]) -> list[Run]:
    """The runs of equal lengths."""
    offsets = offsets_of(lengths)
    starts = np.flatnonzero(np.diff(lengths, prepend=-1))
    counts = np.diff(starts, append=len(lengths))
    return [(int(offsets[s]), int(c), int(lengths[s])) for s, c in zip(starts, counts, strict=True)]


def _seen_of_runs(seen: NDArray[np.bool_], tokens: Tensor, runs: list[Run]) -> list[Tensor | None]:
    """Decided on the host: asking a tensor on the device would wait for it, for each run of each layer."""
    spans = [(slice(start, start + count * length), count, length) for start, count, length in runs]
    return [None if seen[span].all() else tokens[span].view(count, 1, 1, length) for span, count, length in spans]
