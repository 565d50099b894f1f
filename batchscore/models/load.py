"""Load weights into modules, or refuse: a missing or unread weight is an error, never a random number.

A checkpoint's tensors are read by name, renamed to what transformers expects, and divided: the head's become float32
layers of our own, the others go into the body.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pickle import UnpicklingError
from typing import Any, Literal

import torch
import transformers
from torch import Tensor, nn
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    MODEL_FOR_TEXT_ENCODING_MAPPING,
    MODEL_MAPPING,
    AutoModel,
    PreTrainedConfig,
)
from transformers.initialization import no_init_weights

from batchscore.errors import CheckpointError, MissingDependencyError, UsageError, first_line, one_line
from batchscore.models.arch import ARCHITECTURES
from batchscore.models.arch.decoders import SCORE
from batchscore.models.arch.entry import Rename
from batchscore.models.checkpoint import Checkpoint
from batchscore.models.heads import load_head, load_modules, make_activation
from batchscore.models.lora import merge_adapter, merge_lora
from batchscore.models.materialize import materialize
from batchscore.models.per_sequence import PER_SEQUENCE
from batchscore.models.quiet import quiet
from batchscore.models.resolve import unsupported
from batchscore.models.resolve.options import nearest
from batchscore.models.spec import ModelSpec
from batchscore.models.text.tokenizer import TextTokenizer
from batchscore.models.vision import family
from batchscore.models.weights import empty_tensors, fetch_weights, pickle_problem, read_tensors

# buffers in old files, and heads for other tasks: a body may leave them unread
_UNREAD = r"(^|\.)(position_ids$|inv_freq$|pooler\.|lm_head\.|cls\.|classifier\.|score\.)"
# TensorFlow's, of layer norms
_OLD_NAMES = (Rename(r"(?i)(norm)\.gamma$", (r"\1.weight",)), Rename(r"(?i)(norm)\.beta$", (r"\1.bias",)))
_NOT_NEEDED = re.compile(r"(^|\.)(position_ids$|pooler\.)")
# keys of config.json that this program reads and the config classes of transformers do not have
_OUR_KEYS = {"architectures", "model_type", "auto_map", "classifier_from_token", "method", "is_original_qwen3_reranker"}
_OUR_KEYS |= {"use_sep_token", "use_pad_token", "num_labels", "is_causal", "cutoff_layers", "matryoshka_dimensions"}

Layout = Literal["flat", "padded", "even"]  # end to end; padded to the longest; only sequences of one length together


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to run: the head in float32, the body in the chosen dtype."""

    bodies: tuple[nn.Module, ...]  # one, or one for queries and one for documents
    token_head: nn.Module | None  # of every token's state, before the pooling
    head: nn.Module  # states or pooled vectors to logits or vectors
    activation: nn.Module  # logits to scores
    layout: Layout  # how the body takes several sequences
    vocabulary: int  # rows of the embedding table
    report: Mapping[str, Sequence[str]]  # tensors "used" and "unused"


def load_model(
    checkpoint: Checkpoint,
    spec: ModelSpec,
    tokenizer: TextTokenizer,
    *,
    dtype: str,
    device: str,
    packed_attention: str | None = None,
    trust_remote_code: bool = False,
    dry: bool = False,
) -> LoadedModel:
    """Load body and head; downloads the weights of a hub id.

    Args:
        tokenizer: finds the rows of answer tokens.
        dtype: of the body: "float32", "bfloat16" or "float16".
        packed_attention: name of the registered attention that needs no padding, for models that can use it; None pads.
        trust_remote_code: run the checkpoint's Python files.
        dry: load zeros that take no memory instead of the weights, to see whether these would fit.

    Raises:
        CheckpointError: no weights, missing or unread tensors, shapes that do not fit the config, no score head.
    """
    if not dry:
        fetch_weights(checkpoint)
    read = empty_tensors if dry else read_tensors
    renames = (*_OLD_NAMES, *spec.arch.renames)
    tensors = _renamed(read(checkpoint.base or checkpoint), renames)
    if checkpoint.base is not None:
        tensors = merge_lora(checkpoint, tensors, partial(_new_name, renames=renames), dry=dry)
    names = sorted(tensors)
    with _named(checkpoint.name):
        _check_listed(spec, names)
        config = _native_config(checkpoint, spec)
        layers = load_head(checkpoint, spec, tokenizer, tensors, config)
        bodies, unread = _load_bodies(checkpoint, spec, config, tensors, dtype, trust_remote_code, dry=dry)
        vocabulary = _vocabulary(bodies[0])
    token_head, head = _beside_pooling(checkpoint, spec, layers, dry=dry)
    width = getattr(bodies[0], "width", getattr(config, "hidden_size", spec.dimensions))
    _check_width(checkpoint, spec, nn.ModuleList([token_head or nn.Identity(), head]), width)
    _check_positions(checkpoint, spec, bodies[0])
    return LoadedModel(
        bodies=tuple(body.eval().to(device) for body in bodies),
        token_head=None if token_head is None else token_head.eval().requires_grad_(False).to(device),
        head=head.eval().requires_grad_(False).to(device),
        activation=make_activation(spec.activation),
        layout=_choose_layout(bodies, spec, packed_attention, config),
        vocabulary=vocabulary,
        report={"used": [name for name in names if name not in unread], "unused": sorted(unread)},
    )


def _beside_pooling(
    checkpoint: Checkpoint, spec: ModelSpec, layers: nn.Module, *, dry: bool
) -> tuple[nn.Module | None, nn.Module]:
    """(what stands before the pooling, None if nothing does; what stands behind it), with the head's layers."""
    modules = load_modules(checkpoint, spec.modules, dry=dry)
    if spec.pooling == ("splade",):
        return layers, modules
    before = load_modules(checkpoint, spec.token_modules, dry=dry) if spec.token_modules else None
    return before, nn.Sequential(layers, modules)


def _check_listed(spec: ModelSpec, names: Sequence[str]) -> None:
    """A classifier without an entry is read like a language model's, whose head is named `score`."""
    needs_score = spec.architecture not in ARCHITECTURES and spec.head == SCORE.head
    if needs_score and not any(re.search(r"(^|\.)score\.weight$", name) for name in names):
        raise unsupported(spec.architecture, ": by the end of its name it needs score.weight, which its weights lack")


def _renamed(tensors: Mapping[str, Tensor], renames: Sequence[Rename]) -> dict[str, Tensor]:
    """The tensors under the names transformers expects; a fused tensor is divided into its parts."""
    renamed = dict(tensors)
    for pattern, names in renames:
        for name in [name for name in renamed if re.search(pattern, name)]:
            tensor = renamed.pop(name)
            parts = tensor.chunk(len(names))
            renamed |= {re.sub(pattern, new, name): part for new, part in zip(names, parts, strict=True)}
    return renamed


def _new_name(name: str, renames: Sequence[Rename]) -> str:
    (new,) = _renamed({name: torch.empty(0)}, renames)
    return new


# ---- body


def _native_config(checkpoint: Checkpoint, spec: ModelSpec) -> PreTrainedConfig | None:
    """The config object of the body's class; None for a model type that neither transformers nor this program has.

    Raises:
        UsageError: an override of config.json that nothing reads.
    """
    content = dict(spec.config)
    kind = CONFIG_MAPPING[content["model_type"]] if content.get("model_type") in CONFIG_MAPPING else None
    if kind is None:
        return PreTrainedConfig.from_dict(content) if spec.arch.body else None
    _check_overrides(checkpoint, kind)
    with _transformers_errors():
        config: PreTrainedConfig = kind.from_dict(content)
    return config


def _check_overrides(checkpoint: Checkpoint, kind: type[PreTrainedConfig]) -> None:
    original, source = checkpoint.own_config, checkpoint.config_source
    if "cutoff_layers" in checkpoint.overrides and "start_layer" not in original:
        raise UsageError(f"{source}: this model has no heads for layers, so nothing reads 'cutoff_layers'")
    for key in checkpoint.overrides:
        if key not in original and key not in _OUR_KEYS and not hasattr(kind(), key):
            known = {**original, **kind().to_dict(), **dict.fromkeys(_OUR_KEYS)}
            raise UsageError(f"{source}: nothing reads {key!r}", hint=nearest(key, known))


def _load_bodies(
    checkpoint: Checkpoint,
    spec: ModelSpec,
    config: PreTrainedConfig | None,
    tensors: Mapping[str, Tensor],
    dtype: str,
    trust_remote_code: bool,
    *,
    dry: bool,
) -> tuple[list[Any], set[str]]:
    """A body for each adapter, or the only one, and the tensors that they do not read."""
    # `_choose_layout` drops a body's pooler; a head that is made of it has taken its tensors already
    unread = {name for name in tensors if "pooler." in name and not spec.per_sequence}
    if config is None:
        return [_load_remote_code(checkpoint, dtype, trust_remote_code)], unread
    bodies = []
    for adapter in dict.fromkeys(spec.adapters):
        merged = merge_adapter(checkpoint, tensors, adapter, dry=dry) if adapter else tensors
        body, unexpected = _load_body(spec, config, merged, dtype)
        bodies.append(body)
        unread.update(unexpected)
    return bodies, unread


def _load_remote_code(checkpoint: Checkpoint, dtype: str, trust_remote_code: bool) -> Any:
    if not trust_remote_code:
        raise CheckpointError(
            f"transformers {transformers.__version__} has no model of type {checkpoint.config.get('model_type')!r}",
            hint="a later release may; --trust-remote-code runs the checkpoint's own Python files",
        )
    with _transformers_errors(), quiet():
        return AutoModel.from_pretrained(
            checkpoint.backbone_folder, dtype=getattr(torch, dtype), trust_remote_code=True
        )


def _load_body(
    spec: ModelSpec, config: PreTrainedConfig, tensors: Mapping[str, Tensor], dtype: str
) -> tuple[Any, Collection[str]]:
    """(model, tensors it does not read)."""
    if type(config) is PreTrainedConfig:
        module, _, name = spec.arch.body.partition(":")
        kind, tensors = getattr(importlib.import_module(module), name), _renamed(tensors, spec.arch.body_renames)
    else:
        kind = _native_class(spec, config)
    allowed = _may_be_unread(spec)
    with _transformers_errors(), quiet():
        made = materialize(kind, config, tensors, getattr(torch, dtype), unread=allowed, pooler=bool(spec.per_sequence))
    model, unexpected = made or _from_pretrained(kind, config, tensors, dtype, spec)
    if spec.arch.vision is not None:
        model = family(spec.arch.vision).Body(model)
        if not spec.arch.final_norm:
            model.language_model.norm = nn.Identity()
    return PER_SEQUENCE[spec.per_sequence](model) if spec.per_sequence else model, unexpected


def _from_pretrained(
    kind: Any, config: PreTrainedConfig, tensors: Mapping[str, Tensor], dtype: str, spec: ModelSpec
) -> tuple[Any, Collection[str]]:
    """`_load_body` by transformers, which converts tensors, and reports those that do not fit."""
    with _transformers_errors(), quiet(), no_init_weights():  # what it has no tensor for, it fills all the same
        # without a folder, transformers neither looks for files nor asks the hub
        model, report = kind.from_pretrained(
            None,
            config=config,
            state_dict=dict(tensors),
            dtype=getattr(torch, dtype),
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported below, by name
        )
    for name, stored, expected in sorted(report["mismatched_keys"]):
        raise CheckpointError(f"{name} is {list(stored)}, and by config.json it should be {list(expected)}")
    _check_report(report["missing_keys"], report["unexpected_keys"], spec)
    return model, report["unexpected_keys"]


def _native_class(spec: ModelSpec, config: PreTrainedConfig) -> Any:
    """transformers' class for what is read."""
    mapping: Any = MODEL_MAPPING
    if spec.per_sequence == "logit":
        mapping = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
    elif not spec.per_sequence and type(config) in MODEL_FOR_TEXT_ENCODING_MAPPING:
        mapping = MODEL_FOR_TEXT_ENCODING_MAPPING  # of a T5 the encoder alone
    if config.is_encoder_decoder and mapping is not MODEL_FOR_TEXT_ENCODING_MAPPING and spec.per_sequence != "decoder":
        raise CheckpointError(f"encoder-decoder models of type {config.model_type!r} are not supported")
    if type(config) not in mapping:
        raise CheckpointError(f"transformers has no body for model type {config.model_type!r}")
    return mapping[type(config)]


def _may_be_unread(spec: ModelSpec) -> re.Pattern[str]:
    """Names of tensors that a body may leave."""
    # the architecture's own heads stay in the file where another readout is chosen
    heads = () if spec.head else (*spec.arch.head, *spec.arch.mlm_head)
    patterns = [_UNREAD, spec.arch.unread, *(re.escape(layer.name) for layer in heads)]
    return re.compile("|".join(pattern for pattern in patterns if pattern))


def _check_report(missing: Collection[str], unexpected: Collection[str], spec: ModelSpec) -> None:
    needed = [key for key in missing if spec.per_sequence or not _NOT_NEEDED.search(key)]
    allowed = _may_be_unread(spec)
    unread = [key for key in unexpected if not allowed.search(key)]
    for problem, keys in (("lacks", sorted(needed)), ("has, unread by the architecture,", sorted(unread))):
        if keys:
            shown = ", ".join(keys[:5]) + (f" and {len(keys) - 5} more" if len(keys) > 5 else "")
            raise CheckpointError(
                f"{problem} {shown}",
                hint="these weights are not those of the architecture in config.json; scores would be random",
            )


def _vocabulary(body: Any) -> int:
    with _transformers_errors():
        return len(body.get_input_embeddings().weight)


# ---- checks and layout


def _check_width(checkpoint: Checkpoint, spec: ModelSpec, head: nn.Module, hidden: int) -> None:
    """A pair must get one logit, and vectors must have the dimensions to keep."""
    widths = [layer.out_features for layer in head.modules() if isinstance(layer, nn.Linear)]
    makes_logits = spec.per_sequence != "logit" and not spec.listwise
    if spec.score_type == "cross-encoder" and makes_logits and widths[-1:] != [1]:
        raise CheckpointError(f"{checkpoint.name}: its head gives {widths[-1]} numbers, and a score needs one")
    if spec.score_type == "bi-encoder" and widths[-1:] == [1]:
        raise CheckpointError(
            f"{checkpoint.name}: its modules make vectors of one number, and the cosine of such is 1 or -1",
            hint="it may be a cross-encoder that has lost its config_sentence_transformers.json",
        )
    if spec.dimensions:
        width = widths[-1] if widths else hidden * max(1, len(spec.pooling))
        listed = checkpoint.config.get("matryoshka_dimensions")
        if spec.dimensions > width or (listed and spec.dimensions not in listed):
            choices = ", ".join(map(str, listed)) if listed else f"1 to {width}"
            option = spec.sources["dimensions"].spell("dimensions")
            raise UsageError(f"{option} {spec.dimensions}: this model's vectors can be cut to {choices}")


def _check_positions(checkpoint: Checkpoint, spec: ModelSpec, body: nn.Module) -> None:
    """The table of positions must cover the longest sequence."""
    for name, module in body.named_modules():
        if isinstance(module, nn.Embedding) and re.search(r"(^|\.)(position_embeddings|wpe)$", name):
            # a padding index says, where the registry does not, that positions begin behind it
            padding = -1 if module.padding_idx is None else module.padding_idx
            rows = module.num_embeddings - max(spec.first_position, padding + 1)
            if max(spec.max_length, spec.query_length, spec.document_length) > rows:
                raise CheckpointError(
                    f"{checkpoint.name} has a table of {rows} positions, and max_length is {spec.max_length}",
                    hint=f"pass --max-length {rows}",
                )


def _choose_layout(
    bodies: Sequence[Any], spec: ModelSpec, packed_attention: str | None, config: PreTrainedConfig | None
) -> Layout:
    """How the bodies take several sequences, once they have the attention for it."""
    able = spec.arch.flat and all(getattr(body, "_supports_attention_backend", False) for body in bodies)
    # some releases' sdpa ignores Gemma 2's soft-capping
    padded_attention = "eager" if getattr(config, "attn_logit_softcapping", None) else None
    attention = packed_attention if able and packed_attention else padded_attention
    for body in bodies:
        if attention:
            body.set_attn_implementation(attention)
        if getattr(body, "pooler", None) is not None:
            # its layer is in the head, and it would read one sequence of a flat batch only; not every class asks
            # whether it has one, and some call a function on what it gives
            body.pooler = nn.Identity()
    return "flat" if able and packed_attention else "padded"


# ---- contexts


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Put the checkpoint's name before a message."""
    try:
        yield
    except (CheckpointError, MissingDependencyError) as error:
        raise type(error)(f"{name}: {error.message}", hint=error.hint) from error


@contextmanager
def _transformers_errors() -> Iterator[None]:
    """Turn whatever transformers, or code of the checkpoint, raises into a CheckpointError, or a package that it lacks.

    Only their code may run inside: a class that cannot use a value in config.json raises almost anything.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, ImportError) and error.name is None:  # written by transformers, which looks for packages
            raise MissingDependencyError(f"transformers cannot load it: {one_line(error)}") from error
        if isinstance(error, UnpicklingError) or "weights_only" in str(error):
            raise CheckpointError(f"a file of its weights {pickle_problem(error)}") from None
        raise CheckpointError(f"transformers cannot load it: {first_line(error)}") from error
