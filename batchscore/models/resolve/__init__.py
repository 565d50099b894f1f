"""From a checkpoint's files and a user's options to one ModelSpec.

Sources are applied in a fixed order and later ones win: the architecture, the checkpoint's own files, a config
file, options. The source of each field is kept, since a score that surprises is explained by where a setting came
from. The model's name is never looked at.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from batchscore.errors import CheckpointError, UsageError
from batchscore.models.arch import ARCHITECTURES, architecture_of
from batchscore.models.arch.entry import Architecture
from batchscore.models.checkpoint import SAVED, Checkpoint
from batchscore.models.resolve import saved_files as files
from batchscore.models.resolve.context import Context
from batchscore.models.resolve.options import Options, Sourced, nearest, read_values, spelled, taken_apart
from batchscore.models.resolve.score_fields import answer_tokens, backbone_fields, pair_fields, vector_fields
from batchscore.models.resolve.text_fields import length_fields, position_limit, prompt_fields
from batchscore.models.spec import ModelSpec
from batchscore.models.text.truncation import LIBRARY_LIMITS


def resolve(checkpoint: Checkpoint, options: Options) -> ModelSpec:
    """Decide everything about a checkpoint that scoring needs to know.

    Args:
        checkpoint: the model's files.
        options: what the user set, {name: (value, source)}; the names are those of options.RULES.

    Raises:
        CheckpointError: unknown architecture or pooling mode, Dense modules that do not fit, more than one label, no
            score head.
        UsageError: an option that this checkpoint cannot take.
    """
    apart = taken_apart(read_values(options))
    arch = find_architecture(checkpoint)
    vllm = apart.get("compat", ("", ""))[0] == "vllm"
    chosen = apart.get("score_type") or _score_type(checkpoint, arch)
    if arch.listwise and chosen[0] != "cross-encoder":
        raise UsageError(f"{spelled('score_type', chosen[1])} {chosen[0]!r}: this model reads lists of documents")
    context = Context(checkpoint, arch, arch.translate(checkpoint.config), apart, chosen[0], vllm)
    _check_effect(context, position_limit(context)[0])
    fields: dict[str, Sourced] = {
        "score_type": chosen,
        "architecture": (checkpoint.architecture, "config.json"),
        **prompt_fields(context),
        **length_fields(context),
        **backbone_fields(context),
        **(pair_fields(context) if context.is_pair else vector_fields(context)),
    }
    return ModelSpec(
        **{name: value for name, (value, _) in fields.items()},
        sources={name: source for name, (_, source) in fields.items()},
    )


def find_architecture(checkpoint: Checkpoint) -> Architecture:
    """The registry's entry for the checkpoint's architecture and layout."""
    arch = architecture_of(checkpoint.architecture, checkpoint.config)
    if arch is None:
        raise CheckpointError(
            f"{checkpoint.name}: architecture {checkpoint.architecture} is not supported",
            hint=f"batchscore models lists those that are; {nearest(checkpoint.architecture, ARCHITECTURES)}",
        )
    if "vision_config" in checkpoint.config:
        raise CheckpointError(f"{checkpoint.name}: {checkpoint.architecture} reads images, which is not supported")
    if "SpladePooling" in files.module_kinds(checkpoint):
        files.check_splade(checkpoint)
        if not arch.mlm_head:
            raise CheckpointError(f"{checkpoint.name}: SPLADE over {checkpoint.architecture} is not supported")
        return replace(arch, pooling="splade", head=arch.mlm_head)
    return arch


def _score_type(checkpoint: Checkpoint, arch: Architecture) -> Sourced:
    kinds = files.module_kinds(checkpoint)
    if "LogitScore" in kinds:
        return "cross-encoder", "modules.json"
    tokens, _, source = answer_tokens(checkpoint)
    if tokens:
        return "cross-encoder", f"{source} classifier_from_token"
    if "Dense" in kinds and "Pooling" not in kinds:
        return "late-interaction", "modules.json"  # a projection of every token, and nothing that pools them
    return arch.score_type, f"row {checkpoint.architecture}"


# ---- options that could not take effect

_PAIR_ONLY = {"chat_template", "logit_mean", "logit_sigma"}
_SIDES_ONLY = {"document_prompt", "document_prompt_name", "query_length", "document_length", "dimensions", "similarity"}
_NOT_LISTWISE = {"chat_template", "pooling", "use_activation", "logit_mean", "logit_sigma", "truncation_side"}


def _check_effect(context: Context, limit: int) -> None:
    """Refuse what could not take effect on this checkpoint, whose sequences have at most `limit` tokens."""
    for name, (value, source) in context.options.items():
        problem = _problem(context, limit, name, value, source)
        if problem:
            raise UsageError(f"{spelled(name, source)} {value!r}: {problem}")
    if "document_prompt_name" in context.options and "prompts" not in context.checkpoint.saved:
        raise UsageError(f"{context.checkpoint.name} has no saved prompts", hint=f"{SAVED} would hold them")


def _problem(context: Context, limit: int, name: str, value: Any, source: str) -> str | None:
    """Why an option could not take effect."""
    options, arch, kind = context.options, context.arch, context.score_type
    is_dot = options.get("similarity", ("cosine", ""))[0] == "dot"
    has_place = bool(options.get("instruct") or arch.instruct)
    rules = (
        (name in _SIDES_ONLY and context.is_pair and value != "", "a cross-encoder reads both sides at once"),
        (name in _PAIR_ONLY and not context.is_pair, f"a {kind} has none"),
        (name in _NOT_LISTWISE and arch.listwise, "a listwise model has a prompt and a readout of its own"),
        (name == "similarity" and kind != "bi-encoder", f"a {kind} has a similarity of its own"),
        (name == "pooling" and kind == "late-interaction", "the states of tokens are not pooled"),
        (name == "use_activation" and kind == "bi-encoder" and not is_dot, "a cosine does not depend on it"),
        (name == "instruction" and not context.is_pair and not has_place, _NO_PLACE),
        (name in ("query_length", "document_length") and value > limit, f"the model has {limit} positions"),
        (name == "truncation" and value in LIBRARY_LIMITS and not context.is_pair, _RULE_OF_PROMPTS),
        (
            name == "truncation" and context.vllm and value != "error" and source.startswith("--"),
            "compat vllm has a rule of its own",
        ),
    )
    return next((why for wrong, why in rules if wrong), None)


_NO_PLACE = "this model's query prompt has no place for an instruction; pass --query-prompt"
_RULE_OF_PROMPTS = "that is a rule for prompts of cross-encoders"
