"""What every decision about a checkpoint is made from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from batchscore.models.arch.entry import Architecture, Json
from batchscore.models.checkpoint import Checkpoint
from batchscore.models.resolve.options import Options, Sourced
from batchscore.types import ScoreType


@dataclass(frozen=True)
class Context:
    """A checkpoint, its architecture, and what the user said."""

    checkpoint: Checkpoint
    arch: Architecture
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
        """Where what its architecture says is from."""
        return f"row {self.checkpoint.architecture}"

    @property
    def first_position(self) -> int:
        """Position id of a sequence's first token."""
        pad = self.config.get("pad_token_id")
        return (1 if pad is None else int(pad)) + 1 if self.arch.positions_after_pad else 0

    def option(self, name: str, default: Sourced) -> Sourced:
        """What the user set, else the default."""
        return self.options.get(name, default)


def constant(source: str, **values: Any) -> dict[str, Sourced]:
    """Fields that one source decides."""
    return {name: (value, source) for name, value in values.items()}
