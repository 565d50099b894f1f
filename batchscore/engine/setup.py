"""What is decided about a model before its weights are read: its meaning, the device, how much runs at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from typing_extensions import Unpack

from batchscore.errors import UsageError
from batchscore.models.checkpoint import Checkpoint
from batchscore.models.open import ModelOptions, open_model
from batchscore.models.spec import ModelSpec
from batchscore.runners.device import Dtype, Placement, choose_device
from batchscore.runners.quantized import Quantize
from batchscore.types import Budget, ScoreType


class ScorerOptions(ModelOptions, total=False):
    """Options of a Scorer besides what the model reads; the class says what they mean."""

    score_type: ScoreType | Literal["auto"]
    dtype: Dtype
    quantize: Quantize
    device: str
    config: str | None
    batch_tokens: int | None
    window_rows: int
    revision: str | None
    tokenizer: str | None
    trust_remote_code: bool
    padded: bool
    media_mb: int


@dataclass(frozen=True, slots=True)
class Setup:
    """All that is decided about a model before its weights are read."""

    checkpoint: Checkpoint
    spec: ModelSpec
    placement: Placement
    budget: Budget
    padded: bool
    trust_remote_code: bool
    config: str | None = None  # as the user named it
    options: Mapping[str, Any] = field(default_factory=dict)  # of the model, as the user gave them


def set_up(
    model: str,
    *,
    score_type: ScoreType | Literal["auto"] = "auto",
    dtype: Dtype = "auto",
    quantize: Quantize = "none",
    device: str = "auto",
    config: str | None = None,
    batch_tokens: int | None = None,
    window_rows: int = 16_384,
    revision: str | None = None,
    tokenizer: str | None = None,
    trust_remote_code: bool = False,
    padded: bool = False,
    media_mb: int = 512,
    **options: Unpack[ModelOptions],
) -> Setup:
    """Decide what a model means and where it runs; arguments and errors are those of Scorer."""
    _require_choice("dtype", dtype, get_args(Dtype))
    _require_choice("quantize", quantize, get_args(Quantize))
    _require_least("batch_tokens", batch_tokens, 1)
    _require_least("window_rows", window_rows, 1)
    _require_least("media_mb", media_mb, 1)
    model_options = {"score_type": None if score_type == "auto" else score_type, **options}
    checkpoint, spec = open_model(model, config, model_options, revision=revision, tokenizer=tokenizer)
    if quantize != "none" and spec.arch.vision is not None:
        raise UsageError(
            f"--quantize {quantize} is not for models that read images, like {checkpoint.name}", hint="leave it out"
        )
    placement = choose_device(device, dtype, quantize)
    budget = Budget(
        batch_tokens or placement.max_tokens,
        window_rows,
        workers=placement.workers,
        max_media_bytes=media_mb << 20,
    )
    return Setup(checkpoint, spec, placement, budget, padded, trust_remote_code, config, model_options)


def _require_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise UsageError(f"{name} {value!r} is unknown; choices: {', '.join(choices)}")


def _require_least(name: str, number: int | None, least: int) -> None:
    if number is not None and number < least:
        raise UsageError(f"{name} {number} is less than {least}")
