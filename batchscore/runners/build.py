"""From a checkpoint and its spec to a runner on a device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from batchscore.errors import CheckpointError, RuntimeFailureError
from batchscore.models.arch import ARCHITECTURES
from batchscore.models.checkpoint import Checkpoint
from batchscore.models.load import Layout, load_model
from batchscore.models.spec import ModelSpec
from batchscore.models.text.templates import Template
from batchscore.models.text.tokenizer import TextTokenizer, load_tokenizer
from batchscore.runners.attention import PACKED
from batchscore.runners.base import BaseRunner, Runner
from batchscore.runners.bi_encoder import BiEncoder
from batchscore.runners.cache import OutputCache
from batchscore.runners.cross_encoder import CrossEncoder
from batchscore.runners.device import Placement
from batchscore.runners.first_token import take_last_layer
from batchscore.runners.late_interaction import LateInteraction
from batchscore.runners.listwise import Listwise
from batchscore.types import Items, Pairs, ScoreType, Texts, offsets_of

_RUNNERS: dict[ScoreType, type[CrossEncoder | BiEncoder | LateInteraction]] = {
    "cross-encoder": CrossEncoder,
    "bi-encoder": BiEncoder,
    "late-interaction": LateInteraction,
}


def runner_kind(spec: ModelSpec) -> type[CrossEncoder | BiEncoder | LateInteraction | Listwise]:
    """The class that scores by this spec."""
    return Listwise if spec.listwise else _RUNNERS[spec.score_type]


def read_texts_of(
    checkpoint: Checkpoint, spec: ModelSpec, *, trust_remote_code: bool
) -> tuple[TextTokenizer, Template | None]:
    """The tokenizer, and the template if pairs go through one."""
    tokenizer = load_tokenizer(
        checkpoint,
        trust_remote_code=trust_remote_code,
        restore_specials=spec.restore_specials,
        special_tokens=spec.special_tokens,
    )
    if not spec.chat_template:
        return tokenizer, None
    variables = {**tokenizer.specials(), **spec.template_variables}
    prompts = {"instruction": spec.instruction, "system_prompt": spec.system_prompt}
    return tokenizer, Template(spec.chat_template, variables, date=spec.template_date, **prompts)


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
    tokenizer, template = read_texts_of(checkpoint, spec, trust_remote_code=trust_remote_code)
    model = load_model(
        checkpoint,
        spec,
        tokenizer,
        dtype=placement.dtype,
        device=placement.device,
        packed_attention=None if padded else PACKED,
        trust_remote_code=trust_remote_code,
    )
    # two bodies give one text two outputs, which the cache could not tell apart
    cache = OutputCache(cache_mb * 2**20 if len(model.bodies) == 1 else 0, placement.device)
    if spec.per_sequence and spec.architecture not in ARCHITECTURES:
        model = replace(model, layout="even")  # right whatever its layers do with padding
    elif spec.architecture not in ARCHITECTURES:
        probe = BaseRunner(spec, template, tokenizer, model, placement.device, cache, None)
        model = replace(model, layout=_probed_layout(probe))
    try:
        last_layer = take_last_layer(model.bodies[0], spec.layers) if model.layout == "flat" and spec.layers else None
    except AttributeError as error:
        raise CheckpointError(
            f"{checkpoint.name}: its weights and model_type are not those of {checkpoint.architecture}: {error}"
        ) from error
    runner = runner_kind(spec)(spec, template, tokenizer, model, placement.device, cache, last_layer)
    runner.sequences(Pairs(Texts.of(["a"]), Texts.of(["a"])))  # raises where no text could be laid out as asked for
    return runner


def _probed_layout(probe: BaseRunner) -> Layout:
    """How a body of unknown build takes two sequences so that each gets the states it has alone.

    What it gives alone comes from transformers' own attention.
    """

    def states(layout: Layout, lengths: list[int]) -> Tensor:
        items = Items(offsets_of(lengths), {"ids": np.zeros(sum(lengths), np.int32)})
        # every length has ids of its own
        ids = (np.repeat(lengths, lengths) + items.positions) % probe.model.vocabulary
        runner = replace(probe, model=replace(probe.model, layout=layout))
        batch = runner.collate(items.with_columns(ids=ids.astype(np.int32)), np.arange(len(lengths)), is_query=False)
        with torch.inference_mode(), runner.device_errors(batch.num_tokens, batch.longest):
            return runner.states(batch).hidden

    def equal(layout: Layout, alone: Tensor) -> bool:
        try:
            return bool(torch.allclose(states(layout, [7, 4]), alone, rtol=1e-2, atol=1e-3))
        except (TypeError, ValueError, RuntimeFailureError):
            return False  # it does not take the lengths

    packed = [body for body in probe.model.bodies if probe.model.layout == "flat"]
    _set_attention(packed, "sdpa", "eager")
    alone = torch.cat([states("padded", [7]), states("padded", [4])])
    padded: Layout = "padded" if equal("padded", alone) else "even"
    _set_attention(packed, PACKED)
    if packed and equal("flat", alone):
        return "flat"
    _set_attention(packed, "sdpa", "eager")
    return padded


def _set_attention(bodies: Sequence[Any], *names: str) -> None:
    """The first of these implementations that each body takes."""
    for body in bodies:
        for name in names:
            try:
                body.set_attn_implementation(name)
            except ValueError:
                continue
            break
