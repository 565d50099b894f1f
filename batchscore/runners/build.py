"""From a checkpoint and its spec to a runner on a device."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from batchscore.models.checkpoint import Checkpoint
from batchscore.models.load import Loaded, load_model
from batchscore.models.spec import ModelSpec
from batchscore.models.tokenizer import TextTokenizer, load_tokenizer
from batchscore.runners.attention import PACKED
from batchscore.runners.base import Runner
from batchscore.runners.bi_encoder import BiEncoder
from batchscore.runners.cache import OutputCache
from batchscore.runners.cross_encoder import CrossEncoder
from batchscore.runners.device import Placement
from batchscore.runners.first_token import take_last_layer
from batchscore.runners.late_interaction import LateInteraction
from batchscore.types import ScoreType

RUNNERS: dict[ScoreType, Callable[[ModelSpec, TextTokenizer, Loaded, str, OutputCache, nn.Module | None], Runner]] = {
    "cross-encoder": CrossEncoder,
    "bi-encoder": BiEncoder,
    "late-interaction": LateInteraction,
}


def build_runner(
    checkpoint: Checkpoint,
    spec: ModelSpec,
    placement: Placement,
    *,
    cache_mb: int,
    padded: bool,
    trust_remote_code: bool,
) -> Runner:
    """Load tokenizer and weights; options are those of Scorer."""
    tokenizer = load_tokenizer(checkpoint, trust_remote_code)
    model = load_model(
        checkpoint,
        spec,
        dtype=placement.dtype,
        device=placement.device,
        attention="sdpa" if padded else PACKED,
        trust_remote_code=trust_remote_code,
    )
    cache = OutputCache(cache_mb * 2**20, placement.device)
    last_layer = take_last_layer(model.body, spec.layers) if model.flat and spec.layers else None
    return RUNNERS[spec.score_type](spec, tokenizer, model, placement.device, cache, last_layer)
