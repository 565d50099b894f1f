"""From a checkpoint and its spec to a runner on a device."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from batchscore.errors import CheckpointError, RuntimeFailureError
from batchscore.models.arch import ARCHITECTURES
from batchscore.models.checkpoint import Checkpoint
from batchscore.models.heads import make_activation
from batchscore.models.load import Layout, LoadedModel, load_model
from batchscore.models.spec import ModelSpec
from batchscore.models.text.sides import InputReader
from batchscore.models.text.templates import Template
from batchscore.models.text.tokenizer import Special, TextTokenizer, load_tokenizer
from batchscore.models.vision import family
from batchscore.models.weights import UncheckedError
from batchscore.runners.attention import PACKED
from batchscore.runners.base import BaseRunner, Runner
from batchscore.runners.bi_encoder import BiEncoder
from batchscore.runners.cross_encoder import CrossEncoder
from batchscore.runners.device import Placement, one_thread_an_operation
from batchscore.runners.first_token import take_last_layer
from batchscore.runners.fused_norms import fuse_norms
from batchscore.runners.last_token import shorten_last_layer
from batchscore.runners.late_interaction import LateInteraction
from batchscore.runners.linears import pack_linears
from batchscore.runners.listwise import Listwise
from batchscore.runners.media import MediaMemory
from batchscore.runners.norms import replace_norms
from batchscore.runners.quantized import quantize_linears
from batchscore.runners.turns import Turns
from batchscore.types import Budget, Cells, Items, Pairs, Prefixes, ScoreType, offsets_of

_RUNNERS: dict[ScoreType, type[CrossEncoder | BiEncoder | LateInteraction]] = {
    "cross-encoder": CrossEncoder,
    "bi-encoder": BiEncoder,
    "late-interaction": LateInteraction,
}


def runner_kind(spec: ModelSpec) -> type[CrossEncoder | BiEncoder | LateInteraction | Listwise]:
    """The class that scores by this spec."""
    return Listwise if spec.listwise else _RUNNERS[spec.score_type]


def input_reader(checkpoint: Checkpoint, spec: ModelSpec, *, trust_remote_code: bool) -> InputReader:
    """What makes token sequences of the model's inputs; no weights are read."""
    tokenizer = load_tokenizer(
        checkpoint,
        trust_remote_code=trust_remote_code,
        restore_specials=spec.restore_specials,
        special_tokens=spec.special_tokens,
        lower_case=spec.lower_case,
    )
    if spec.arch.end_token is not None and not spec.reads_like_vllm:  # vLLM's truncation may cut it off again
        tokenizer.single = (*tokenizer.single, Special(spec.arch.end_token, 0))
    vision = spec.arch.vision
    media = None if vision is None else family(vision).Reader(checkpoint, spec, tokenizer)
    return InputReader(spec, tokenizer, _template(spec, tokenizer), media)


def _template(spec: ModelSpec, tokenizer: TextTokenizer) -> Template | None:
    if not spec.chat_template:
        return None
    variables = {**tokenizer.specials(), **spec.template_variables}
    prompts = {"instruction": spec.instruction, "system_prompt": spec.system_prompt}
    return Template(spec.chat_template, variables, date=spec.template_date, **prompts)


def respecified(runner: Runner, checkpoint: Checkpoint, spec: ModelSpec) -> Runner:
    """The same loaded model by another spec of its checkpoint, which lays inputs out and activates logits otherwise."""
    assert isinstance(runner, BaseRunner)
    old, media = runner.reader, runner.reader.media
    if media is not None and runner.media is not None and _reads_media_otherwise(spec, old.spec):
        media = runner.media.join(family(media.vision).Reader(checkpoint, spec, old.tokenizer))
    reader = InputReader(spec, old.tokenizer, _template(spec, old.tokenizer), media)
    changed = replace(runner, reader=reader, model=replace(runner.model, activation=make_activation(spec.activation)))
    return cast("Runner", changed)


def _reads_media_otherwise(spec: ModelSpec, other: ModelSpec) -> bool:
    return (spec.processor_options, spec.video_options) != (other.processor_options, other.video_options)


def unloaded_runner(checkpoint: Checkpoint, spec: ModelSpec, *, trust_remote_code: bool) -> BaseRunner:
    """A runner that lays texts out and forwards nothing. Of the weights only names and shapes are read, if at all."""
    reader = input_reader(checkpoint, spec, trust_remote_code=trust_remote_code)
    try:
        model = load_model(checkpoint, spec, reader.tokenizer, dtype="float32", device="cpu", dry=True)
    except UncheckedError:  # then nothing says which tokens the model has vectors for
        model = _without_weights(spec)
    return runner_kind(spec)(reader, model, "cpu", None)


def _without_weights(spec: ModelSpec) -> LoadedModel:
    """What is known of a model without its weights: how logits become scores."""
    return LoadedModel((), None, nn.Identity(), make_activation(spec.activation), "padded", sys.maxsize, {})


def reading_runner(
    checkpoint: Checkpoint, spec: ModelSpec, placement: Placement, *, budget: Budget, trust_remote_code: bool
) -> Runner:
    """A runner without weights: it lays texts out, compares what is encoded and activates logits."""
    reader = input_reader(checkpoint, spec, trust_remote_code=trust_remote_code)
    media = (
        None
        if reader.media is None
        else MediaMemory(reader.media, budget.max_media_bytes, budget.workers, placement.device)
    )
    turns = Turns(are_taken=placement.device != "cpu")
    runner = runner_kind(spec)(reader, _without_weights(spec), placement.device, None, media, turns)
    runner.sequences(Pairs(Cells.of(["a"]), Cells.of(["a"])))  # raises where no text could be laid out as asked for
    return runner


@one_thread_an_operation()
def with_weights(
    runner: Runner, checkpoint: Checkpoint, placement: Placement, *, padded: bool, trust_remote_code: bool
) -> Runner:
    """The same runner with the checkpoint's weights, which are read; options are those of Scorer."""
    assert isinstance(runner, BaseRunner)
    reader, spec = runner.reader, runner.spec
    model = load_model(
        checkpoint,
        spec,
        reader.tokenizer,
        dtype=placement.dtype,
        device=placement.device,
        packed_attention=None if padded else PACKED,
        trust_remote_code=trust_remote_code,
    )
    if placement.device != "cpu":
        for body in model.bodies:
            fuse_norms(body)
    known = spec.architecture in ARCHITECTURES
    if spec.per_sequence and not known:
        model = replace(model, layout="even")  # right whatever its layers do with padding
    else:
        probe = _Probe(BaseRunner(reader, model, placement.device, None))
        model = replace(model, layout=probe.layout(known=known))
    last_layer = _separate_last_layer(checkpoint, spec, model)
    _replace_layers(BaseRunner(reader, model, placement.device, last_layer), placement)
    last_only = model.layout == "flat" and runner.media is None and _reads_last_only(spec)
    shares = last_only and _Probe(BaseRunner(reader, model, placement.device, None)).last_tokens()
    return cast("Runner", replace(runner, model=model, last_layer=last_layer, last_only=last_only, shares=shares))


def _separate_last_layer(checkpoint: Checkpoint, spec: ModelSpec, model: LoadedModel) -> nn.Module | None:
    """The body's last layer, taken off it, where it is to run for first tokens alone."""
    # `is_decoder` makes an encoder causal, and a first token sees itself alone
    if model.layout != "flat" or not spec.layers or getattr(model.bodies[0].config, "is_decoder", False):
        return None
    try:
        return take_last_layer(model.bodies[0], spec.layers)
    except AttributeError as error:
        raise CheckpointError(
            f"{checkpoint.name}: its weights and model_type are not those of {checkpoint.architecture}: {error}"
        ) from error


def _replace_layers(runner: BaseRunner, placement: Placement) -> None:
    """Put quicker layers, or less exact ones, in the place of those of the bodies."""
    bodies = [*runner.model.bodies, *([] if runner.last_layer is None else [runner.last_layer])]
    run = partial(_Probe(runner).run, runner.layout, [7, 4])
    if placement.device == "cpu" and runner.reader.media is None:
        replace_norms(bodies)
        pack_linears(bodies, run)
    if placement.quantize == "int8":
        quantize_linears(bodies, run)


def _reads_last_only(spec: ModelSpec) -> bool:
    """Whether of each sequence nothing but its last token's state is read."""
    pooled = spec.score_type == "bi-encoder" or (spec.score_type == "cross-encoder" and not spec.listwise)
    return pooled and not spec.per_sequence and spec.pooling == ("lasttoken",)


def vector_width(checkpoint: Checkpoint, spec: ModelSpec) -> int | None:
    """Components of an encoding's vectors, found out without weights; None if their shapes are not known."""
    reader = input_reader(checkpoint, spec, trust_remote_code=False)
    try:
        model = load_model(checkpoint, spec, reader.tokenizer, dtype="float32", device="cpu", dry=True)
    except UncheckedError:
        return None
    body: Any = model.bodies[0]
    width = getattr(body.config, "hidden_size", body.get_input_embeddings().embedding_dim)
    state = torch.zeros(1, getattr(body, "width", width))
    with torch.inference_mode():
        vectors: Tensor = model.head(state if model.token_head is None else model.token_head(state))
    return min(vectors.shape[1], spec.dimensions or vectors.shape[1])


# names of settings, in any model's config.json, that may be a number of tokens at which its attention changes
_LIMITS = re.compile("window|chunk|top_?k|local|keep|block|sparse|stride")
# names of those by which tokens read the best-scored tokens alone; which of equals these are depends on the padding
_BY_RANK = re.compile("index_top_?k|keep_window")
_FAR = 512  # tokens; a limit beyond is not tried out
_BEGINNING = 5  # tokens that the sequences of a trial have in common


@dataclass(frozen=True)
class _Probe:
    """Finds out how a model's bodies take several sequences so that each gets the states it has alone.

    What attention may ask for without padding is listed, and anything else is an error (`UnknownAttentionError`).
    Trying it out also finds tokens that meet outside of attention.
    """

    runner: BaseRunner

    def layout(self, *, known: bool) -> Layout:
        """The layout that is right.

        Args:
            known: the architecture is in the registry, so that its attention is all that is in doubt.
        """
        model = self.runner.model
        if known and (model.layout != "flat" or self._states("flat", [2, 1]) is not None):
            return model.layout
        packed = [body for body in model.bodies if model.layout == "flat"]
        config: Any = model.bodies[0].config
        settings = _settings(config.to_dict())
        lengths = _telling_lengths(settings, self.runner.spec.max_length)
        _set_attention(packed, None)
        if self.runner.reader.media is not None:
            self.runner.reader.media.check(model.bodies[0])
        alone = torch.cat([self.run("padded", [length]) for length in lengths])
        ranked = any(_BY_RANK.search(name) for name, _ in settings)
        padded: Layout = "padded" if not ranked and self._agrees("padded", lengths, alone) else "even"
        _set_attention(packed, PACKED)
        if packed and self._agrees("flat", lengths, alone):
            return "flat"
        _set_attention(packed, None)
        return padded

    def last_tokens(self) -> bool:
        """Whether what sequences share may be forwarded once; and the last layer is shortened where that is right."""
        bodies = self.runner.model.bodies
        lengths = [max(length, _BEGINNING + 2) for length in self._lengths()]
        prefixes = Prefixes(np.full((len(lengths), 1), _BEGINNING), np.zeros((len(lengths), 1), np.int64))
        expected = self._states("flat", lengths, last_only=True)
        undo = [shorten_last_layer(body) for body in bodies]
        if expected is None or not self._agree(self._states("flat", lengths, last_only=True), expected):
            for restore in filter(None, undo):
                restore()
        return expected is not None and self._agree(
            self._states("flat", lengths, last_only=True, prefixes=prefixes), expected
        )

    def _lengths(self) -> list[int]:
        config: Any = self.runner.model.bodies[0].config
        return _telling_lengths(_settings(config.to_dict()), self.runner.spec.max_length)

    def _agrees(self, layout: Layout, lengths: list[int], alone: Tensor) -> bool:
        return self._agree(self._states(layout, lengths), alone)

    def _agree(self, states: Tensor | None, alone: Tensor) -> bool:
        """Whether states are those of sequences alone."""
        if states is None:
            return False
        errors, sizes = (part.float().norm(dim=1) for part in (states - alone, alone))
        # 16 bits give up to 0.05 in a deep model
        return bool((errors <= (1e-3 if alone.dtype == torch.float32 else 0.1) * sizes).all())

    def _states(self, layout: Layout, lengths: list[int], **reading: Any) -> Tensor | None:
        """[tokens, dim], or what is read of them; None if the bodies do not take the layout."""
        try:
            return self.run(layout, lengths, **reading)
        except (AssertionError, AttributeError, LookupError, TypeError, ValueError, RuntimeFailureError):
            return None

    def run(
        self, layout: Layout, lengths: list[int], *, last_only: bool = False, prefixes: Prefixes | None = None
    ) -> Tensor:
        """[tokens, dim]: last hidden states of made-up sequences of these lengths."""
        items = Items(offsets_of(lengths), {"ids": np.zeros(sum(lengths), np.int32)})
        # every length has ids of its own, behind a beginning that all have where last tokens are read
        own = np.repeat(lengths, lengths) * ((items.positions >= _BEGINNING) | (not last_only))
        ids = ((own + items.positions) % self.runner.model.vocabulary).astype(np.int32)
        runner = replace(self.runner, model=replace(self.runner.model, layout=layout), last_only=last_only)
        index = np.arange(len(lengths))
        batch = runner.collate(items.with_columns(ids=ids), index, is_query=False, prefixes=prefixes)
        with torch.inference_mode(), runner.device_errors(batch.num_tokens, batch.longest):
            return runner.states(batch).hidden


def _settings(config: Mapping[Any, Any]) -> list[tuple[str, Any]]:
    """Names and values of a config and of those in it."""
    inner = [setting for part in config.values() if isinstance(part, dict) for setting in _settings(part)]
    return [*((str(name), value) for name, value in config.items()), *inner]


def _telling_lengths(settings: Sequence[tuple[str, Any]], longest: int) -> list[int]:
    """Lengths, longest first, on both sides of what may limit attention."""
    limits = {value for name, value in settings if _LIMITS.search(name) and type(value) is int and 0 < value <= _FAR}
    return sorted({7, 4, *(min(limit + 8, longest) for limit in limits)}, reverse=True)


def _set_attention(bodies: Sequence[Any], name: str | None) -> None:
    """Give the bodies the attention of that name; None: what transformers has for padded batches."""
    for body in bodies:
        # some releases' sdpa ignores Gemma 2's soft-capping
        softcap = getattr(body.config, "attn_logit_softcapping", None)
        for choice in [name] if name else ["eager"] if softcap else ["sdpa", "eager"]:
            try:
                body.set_attn_implementation(choice)
            except ValueError:
                continue
            break
