"""What every decision about a checkpoint is based on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from batchscore.models.arch.entry import Architecture, Json
from batchscore.models.checkpoint import Checkpoint
from batchscore.models.resolve.options import Options
from batchscore.models.spec import Source, Sourced
from batchscore.types import ScoreType


@dataclass(frozen=True)
class Context:
    """A checkpoint, its architecture, and what the user set."""

    checkpoint: Checkpoint
    arch: Architecture
    config: Json  # translated for transformers
    options: Options
    score_type: ScoreType

    @property
    def vllm(self) -> bool:
        """Whether to reproduce vLLM's numbers instead of the reference library's."""
        return "compat" in self.options

    @property
    def is_pair(self) -> bool:
        """Whether both sides are read at once."""
        return self.score_type == "cross-encoder"

    @property
    def source(self) -> Source:
        """The source of what the architecture decides."""
        return Source("architecture", self.checkpoint.architecture)

    @property
    def first_position(self) -> int:
        """Position id of a sequence's first token."""
        pad = self.config.get("pad_token_id")
        return (1 if pad is None else int(pad)) + 1 if self.arch.positions_after_pad else 0

    def option(self, name: str, default: Sourced) -> Sourced:
        """What the user set, else the default."""
        return self.options.get(name, default)


def constant(source: Source, **values: Any) -> dict[str, Sourced]:
    """Fields that are all decided by one source."""
    return {name: (value, source) for name, value in values.items()}
