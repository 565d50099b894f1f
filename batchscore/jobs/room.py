"""How much room encodings take on the disk, and how much they may take there."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from batchscore.errors import UsageError
from batchscore.io.storage import Folder
from batchscore.jobs.blocks import Block
from batchscore.scorer import Setup, vector_width
from batchscore.types import Side

_BYTES_OF_A_TOKEN = 8  # of text, at most as a rule: what is beyond the model's limit is not read
_BYTES_OF_MOST_TOKENS = 3  # at least as a rule, so that more room is expected to be needed than is
_SHARE = 0.5  # of the free disk that encodings take unless the user says otherwise
_UNKNOWN_WIDTH = 1_024


@dataclass(frozen=True, slots=True)
class Room:
    """How much room encodings have, and how much they need."""

    limit: float  # bytes
    limits: Mapping[Side, int]  # bytes of a text of each side that the model reads at most, roughly
    of_a_text: float  # bytes of a text's encoding
    of_a_byte: float  # likewise, for each byte of the text

    @classmethod
    def of(cls, setup: Setup, limit_gb: float | None, folder: Folder) -> Room:
        """The room for encodings by this model in a job's folder; `limit_gb` is what the user says, if anything."""
        spec = setup.spec
        limits: dict[Side, int] = {side: length * _BYTES_OF_A_TOKEN for side, length in spec.lengths.items()}
        limit = math.inf if limit_gb is None else limit_gb * 1e9
        if limit_gb is None and folder.is_local:
            limit = shutil.disk_usage(folder.path).free * _SHARE
        width = vector_width(setup.checkpoint, spec) or _UNKNOWN_WIDTH
        if spec.score_type == "bi-encoder":
            return cls(limit, limits, 4.0 * width, 0.0)
        bytes_of_a_token = width * (4.0 if setup.placement.dtype == "float32" else 2.0)
        return cls(limit, limits, 0.0, bytes_of_a_token / _BYTES_OF_MOST_TOKENS)

    def needed(self, blocks: Sequence[Block]) -> float:
        """Bytes of the encodings of some blocks, roughly."""
        return sum(block.texts * self.of_a_text + block.size * self.of_a_byte for block in blocks)

    def groups(self, blocks: Sequence[Block]) -> list[list[Block]]:
        """Blocks of documents in groups that have room beside the queries; at least a block in each.

        Raises:
            UsageError: the queries leave none.
        """
        left = self.limit - self.needed([block for block in blocks if block.side == "query"])
        if left <= 0:
            raise UsageError(
                f"encodings may take {self.limit / 1e9:.3g} GB, and those of the queries alone need more",
                hint="raise --encodings-gb, or pass --encode unit",
            )
        groups, size = list[list[Block]]([[]]), 0.0
        for block in blocks:
            if block.side == "document":
                size += self.needed([block])
                if groups[-1] and size > left:
                    groups.append([])
                    size = self.needed([block])
                groups[-1].append(block)
        return groups
