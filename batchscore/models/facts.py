"""What every decision about a checkpoint is made from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from batchscore.models.arch.row import Json, Row
from batchscore.models.checkpoint import Checkpoint
from batchscore.models.options import Options, Sourced
from batchscore.types import ScoreType


@dataclass(frozen=True)
class Facts:
    """A checkpoint, its row, and what the user said."""

    checkpoint: Checkpoint
    row: Row
    config: Json  # as translated for transformers
    options: Options
    score_type: ScoreType
    vllm: bool  # reproduce vLLM's numbers instead of the reference library's

    @property
    def is_pair(self) -> bool:
        """Both sides are read at once."""
        return self.score_type == "cross-encoder"

    @property
    def source(self) -> str:
        """Where what the row says is from."""
        return f"row {self.checkpoint.architecture}"

    @property
    def first_position(self) -> int:
        """Position id of a sequence's first token."""
        pad = self.config.get("pad_token_id")
        return (1 if pad is None else int(pad)) + 1 if self.row.positions_after_pad else 0

    def option(self, name: str, default: Sourced) -> Sourced:
        """What the user set, else the default."""
        return self.options.get(name, default)


def constant(source: str, **values: Any) -> dict[str, Sourced]:
    """Fields that one source decides."""
    return {name: (value, source) for name, value in values.items()}
