"""Weights into modules, or a clear refusal: a missing or unread weight is an error, never a random number.

A checkpoint's tensors are read by name, brought into the layout transformers knows, and divided: the head's become
float32 layers of ours, the others go into the body.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
import transformers
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, MODEL_MAPPING, AutoModel, PreTrainedConfig
from transformers.utils import logging

from batchscore.errors import CheckpointError, UsageError, first_line
from batchscore.models.arch.entry import Architecture, Rename
from batchscore.models.checkpoint import Checkpoint
from batchscore.models.heads import Head, answer_head, load_dense, make_activation, take_head
from batchscore.models.lora import merge_adapter
from batchscore.models.resolve import find_architecture
from batchscore.models.resolve.options import nearest
from batchscore.models.spec import ModelSpec
from batchscore.models.text.tokenizer import TextTokenizer

# buffers old files carry, and heads for other tasks that a body does not read
_UNREAD = re.compile(r"(^|\.)(position_ids$|inv_freq$|pooler\.|lm_head\.|cls\.|classifier\.|score\.)")
_OLD_NAMES = (Rename(r"\.gamma$", (".weight",)), Rename(r"\.beta$", (".bias",)))  # TensorFlow's, of layer norms
_NOT_NEEDED = re.compile(r"(^|\.)(position_ids$|pooler\.)")
_OURS = {"architectures", "model_type", "auto_map", "classifier_from_token", "method", "is_original_qwen3_reranker"}
_OURS |= {"use_sep_token", "use_pad_token", "num_labels", "is_causal", "cutoff_layers", "matryoshka_dimensions"}
_EMBEDDINGS = ("word_embeddings.weight", "embed_tokens.weight", "tok_embeddings.weight", "wte.weight")


Layout = Literal["flat", "padded", "even"]  # end to end; padded to the longest; only sequences of one length together


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to run: float32 head, body in the chosen dtype."""

    bodies: tuple[nn.Module, ...]  # one, or one for queries and one for documents
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
    attention: str,
    trust_remote_code: bool = False,
    dry: bool = False,
) -> LoadedModel:
    """Load body and head.

    Args:
        checkpoint: the model's folder.
        spec: what `resolve` made of it.
        tokenizer: finds the rows of answer tokens.
        dtype: of the body: "float32", "bfloat16" or "float16".
        device: torch device.
        attention: name of the registered attention that needs no padding, used where the model can; "sdpa" asks for
            padding.
        trust_remote_code: run Python files of the checkpoint.
        dry: put zeros that take no memory in the place of the weights, to see what would fit where.

    Raises:
        CheckpointError: no weights, missing or unread tensors, shapes that do not fit the config, no score head.
    """
    arch = find_architecture(checkpoint)
    tensors = _renamed(checkpoint.empty_tensors() if dry else checkpoint.read_tensors(), (*_OLD_NAMES, *arch.renames))
    names = sorted(tensors)
    head = nn.Sequential(_take_head(checkpoint, spec, tokenizer, tensors), load_dense(checkpoint, spec.dense))
    with _named(checkpoint.name):
        config = _native_config(checkpoint, arch)

    def body(adapter: str) -> tuple[Any, list[str]]:
        merged = merge_adapter(checkpoint, tensors, adapter, dry=dry) if adapter else tensors
        return _load_body(checkpoint, spec, arch, config, merged, dtype, trust_remote_code)

    with _named(checkpoint.name), _quiet():
        loaded = [body(adapter) for adapter in dict.fromkeys(spec.adapters)]
        bodies = [body for body, _ in loaded]
        vocabulary = bodies[0].get_input_embeddings().num_embeddings
    _check_width(checkpoint, spec, head, config)
    _check_positions(checkpoint, spec, bodies[0])
    is_flat = _set_attention(bodies, arch, attention, config)
    # the body's pooler is dropped; a head that is made of it has taken its tensors
    unread = {name for _, names in loaded for name in names} | {name for name in tensors if "pooler." in name}
    return LoadedModel(
        bodies=tuple(body.eval().to(device) for body in bodies),
        head=head.eval().requires_grad_(False).to(device),
        activation=make_activation(spec.activation),
        layout="flat" if is_flat else "padded",
        vocabulary=vocabulary,
        report={"used": [name for name in names if name not in unread], "unused": sorted(unread)},
    )


def _set_attention(bodies: Sequence[Any], arch: Architecture, attention: str, config: PreTrainedConfig | None) -> bool:
    """Whether the bodies run without padding; they take the attention for it, or the one for padding."""
    able = arch.flat and all(getattr(body, "_supports_attention_backend", False) for body in bodies)
    is_flat = able and attention != "sdpa"
    # some releases' sdpa loses the bound on products that Gemma 2 has
    padded = "eager" if getattr(config, "attn_logit_softcapping", None) else None
    for body in bodies:
        if chosen := attention if is_flat else padded:
            body.set_attn_implementation(chosen)
        body.pooler = None  # the head has its layer; on a flat batch it would read one sequence only
    return is_flat


# ---- tensors


def _renamed(tensors: Mapping[str, Tensor], renames: Sequence[Rename]) -> dict[str, Tensor]:
    """The tensors under the names transformers knows; one that stands for several is divided."""
    renamed = dict(tensors)
    for pattern, names in renames:
        for name in [name for name in renamed if re.search(pattern, name)]:
            tensor = renamed.pop(name)
            parts = tensor.chunk(len(names))
            renamed |= {re.sub(pattern, new, name): part for new, part in zip(names, parts, strict=True)}
    return renamed


def _take_head(
    checkpoint: Checkpoint, spec: ModelSpec, tokenizer: TextTokenizer, tensors: dict[str, Tensor]
) -> nn.Module:
    config = checkpoint.config
    with _named(checkpoint.name):
        if spec.answer_tokens:
            return answer_head(_answer_rows(spec, tokenizer, tensors), spec.method)
        epsilon = next((config[key] for key in ("norm_eps", "layer_norm_eps") if key in config), 1e-12)
        found = take_head(spec.head, tensors, _EMBEDDINGS)
        return Head(spec.head, found, epsilon) if spec.head else nn.Identity()


def _answer_rows(spec: ModelSpec, tokenizer: TextTokenizer, tensors: Mapping[str, Tensor]) -> Tensor:
    """Rows of the output embeddings; of the input's where both are one table."""
    table = tensors.get("lm_head.weight")
    if table is None:
        table = next(tensor for name, tensor in tensors.items() if name.endswith(_EMBEDDINGS))
    ids = [token if isinstance(token, int) else tokenizer.token_id(token) for token in spec.answer_tokens]
    for token, number in zip(spec.answer_tokens, ids, strict=True):
        if number is None or not 0 <= number < len(table):
            raise CheckpointError(
                f"the answer token {token!r} is not in the vocabulary",
                hint="classifier_from_token names tokens exactly as the tokenizer writes them",
            )
    return table[[number for number in ids if number is not None]]


# ---- body


def _native_config(checkpoint: Checkpoint, arch: Architecture) -> PreTrainedConfig | None:
    """The config object of the body's class; None for a kind that neither transformers nor this program has.

    Raises:
        UsageError: an override of config.json that nothing reads.
    """
    content = arch.translate(checkpoint.config)
    kind = CONFIG_MAPPING[content["model_type"]] if content.get("model_type") in CONFIG_MAPPING else None
    if kind is None:
        return PreTrainedConfig.from_dict(content) if arch.body else None
    original = checkpoint.read_json("config.json")
    if "cutoff_layers" in checkpoint.overrides and "start_layer" not in original:
        raise UsageError("--hf-overrides: this model has no heads for layers, so nothing reads 'cutoff_layers'")
    for key in checkpoint.overrides:
        if key not in original and key not in _OURS and not hasattr(kind(), key):
            known = {**original, **kind().to_dict(), **dict.fromkeys(_OURS)}
            raise UsageError(f"--hf-overrides: nothing reads {key!r}", hint=nearest(key, known))
    config: PreTrainedConfig = kind.from_dict(content)
    return config


def _load_body(
    checkpoint: Checkpoint,
    spec: ModelSpec,
    arch: Architecture,
    config: PreTrainedConfig | None,
    tensors: Mapping[str, Tensor],
    dtype: str,
    trust_remote_code: bool,
) -> tuple[Any, list[str]]:
    """(model, tensors it does not read)."""
    chosen = getattr(torch, dtype)
    if config is None:
        if not trust_remote_code:
            raise CheckpointError(
                f"transformers {transformers.__version__} has no model of type {checkpoint.config.get('model_type')!r}",
                hint="a later release may; --trust-remote-code runs the checkpoint's own Python files",
            )
        model = AutoModel.from_pretrained(checkpoint.folder, dtype=chosen, trust_remote_code=True)
        return model, []
    if config.is_encoder_decoder:
        raise CheckpointError("encoder-decoder models are not supported")
    if type(config) is PreTrainedConfig:
        module, _, name = arch.body.partition(":")
        kind, tensors = getattr(importlib.import_module(module), name), _renamed(tensors, arch.body_renames)
    elif type(config) in MODEL_MAPPING:
        kind = MODEL_MAPPING[type(config)]
    else:
        raise CheckpointError(f"transformers has no body for model type {config.model_type!r}")
    # without a folder transformers neither looks for files nor asks the hub
    model, report = kind.from_pretrained(
        None,
        config=config,
        state_dict=dict(tensors),
        dtype=chosen,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # to name them below
    )
    for name, found, wanted in sorted(report["mismatched_keys"]):
        raise CheckpointError(f"{name} is {list(found)}, and by config.json it should be {list(wanted)}")
    _check_report(report["missing_keys"], report["unexpected_keys"], spec, arch)
    return model, sorted(report["unexpected_keys"])


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Put the checkpoint's name before what goes wrong."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{name}: {error.message}", hint=error.hint) from error
    except UsageError:
        raise
    except Exception as error:  # transformers, safetensors and pickle each have their own for a damaged file
        raise CheckpointError(f"{name} cannot be loaded: {first_line(error)}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' own loading report and progress bar: `_check_report` acts on the same facts."""
    verbosity, progress = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if progress:
            logging.enable_progress_bar()


def _check_report(missing: Sequence[str], unexpected: Sequence[str], spec: ModelSpec, arch: Architecture) -> None:
    needed = [key for key in missing if not _NOT_NEEDED.search(key)]
    others = [] if spec.head else [re.escape(layer.name) for layer in (*arch.head, *arch.mlm_head)]
    allowed = re.compile("|".join([_UNREAD.pattern, *others, *([arch.unread] if arch.unread else [])]))
    unread = [key for key in unexpected if not allowed.search(key)]
    for what, keys in (("lacks", sorted(needed)), ("has, unread by the architecture,", sorted(unread))):
        if keys:
            shown = ", ".join(keys[:5]) + (f" and {len(keys) - 5} more" if len(keys) > 5 else "")
            raise CheckpointError(
                f"{what} {shown}",
                hint="these weights are not those of the architecture in config.json; scores would be random",
            )


def _check_width(checkpoint: Checkpoint, spec: ModelSpec, head: nn.Module, config: PreTrainedConfig | None) -> None:
    """One logit for a pair; and no more dimensions asked for than a vector has."""
    widths = [layer.out_features for layer in head.modules() if isinstance(layer, nn.Linear)]
    if spec.score_type == "cross-encoder" and not spec.listwise and widths[-1:] != [1]:
        raise CheckpointError(f"{checkpoint.name}: its head gives {widths[-1]} numbers, and a score is one")
    if spec.dimensions:
        hidden = getattr(config, "hidden_size", spec.dimensions) * max(1, len(spec.pooling))
        width = widths[-1] if widths else hidden
        listed = checkpoint.config.get("matryoshka_dimensions")
        if spec.dimensions > width or (listed and spec.dimensions not in listed):
            choices = ", ".join(map(str, listed)) if listed else f"1 to {width}"
            raise UsageError(f"--dimensions {spec.dimensions}: this model's vectors can be cut to {choices}")


def _check_positions(checkpoint: Checkpoint, spec: ModelSpec, body: nn.Module) -> None:
    """A table of positions must reach as far as sequences may be long."""
    for name, module in body.named_modules():
        if isinstance(module, nn.Embedding) and re.search(r"(^|\.)(position_embeddings|wpe)$", name):
            rows = module.num_embeddings - spec.first_position
            if max(spec.max_length, spec.query_length, spec.document_length) > rows:
                raise CheckpointError(
                    f"{checkpoint.name} has a table of {rows} positions, and max_length is {spec.max_length}",
                    hint=f"pass --max-length {rows}",
                )
