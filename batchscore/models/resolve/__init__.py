"""From a checkpoint's files and a user's options to one ModelSpec.

Sources apply in a fixed order and later ones win: the architecture, the checkpoint's own files, a config file, options.
Each field keeps its source: the first question about a surprising score is where a setting came from. The model's name
plays no part.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from batchscore.errors import CheckpointError, UsageError
from batchscore.models.arch import ARCHITECTURES, architecture_of
from batchscore.models.arch.entry import Architecture
from batchscore.models.checkpoint import SAVED, Checkpoint
from batchscore.models.resolve import saved_files as files
from batchscore.models.resolve.chain import module_kinds, saved_score_type
from batchscore.models.resolve.context import Context
from batchscore.models.resolve.media_fields import media_fields
from batchscore.models.resolve.options import Options, nearest
from batchscore.models.resolve.score_fields import answer_tokens, backbone_fields, pair_fields, vector_fields
from batchscore.models.resolve.text_fields import length_fields, position_limit, prompt_fields, with_long_factors
from batchscore.models.spec import COMPAT_VLLM, CONFIG_JSON, DEFAULT, MODULES_JSON, ModelSpec, Source, Sourced
from batchscore.models.text.truncation import LIBRARY_LIMITS


def resolve(checkpoint: Checkpoint, options: Options) -> ModelSpec:
    """Decide everything about a checkpoint that scoring needs to know.

    Args:
        checkpoint: the model's files.
        options: what the user set, checked and taken apart: {name: (value, source)}.

    Raises:
        CheckpointError: unknown architecture or pooling mode, Dense modules that do not fit, more than one label, no
            score head.
        UsageError: an option that has no effect on this checkpoint.
    """
    module_kinds(checkpoint)  # an unknown one is refused by its name, before anything is asked of its files
    arch = _architecture(checkpoint, is_vllm="compat" in options)
    with _reading_config(checkpoint):
        config = arch.translate(checkpoint.config)
    score_type = options.get("score_type") or _score_type(checkpoint, arch)
    if arch.listwise and score_type[0] != "cross-encoder":
        raise UsageError(
            f"{score_type[1].spell('score_type')} {score_type[0]!r}: this model reads all documents of a query at once"
        )
    if arch.vision is not None and arch.vision.alone and score_type[0] != "bi-encoder":
        raise UsageError(
            f"{score_type[1].spell('score_type')} {score_type[0]!r}: this model gives a text or an image one vector",
            hint="its score type is bi-encoder",
        )
    context = Context(checkpoint, arch, {**config, **config.get("text_config", {})}, options, score_type[0])
    _check_effect(context)
    if not context.vllm:
        has_template = context.is_pair or (arch.vision is not None and arch.template != "")
        files.check_backbone(checkpoint, has_template=has_template)
    sourced: dict[str, Sourced] = {
        "score_type": score_type,
        "architecture": (checkpoint.architecture, CONFIG_JSON),
        **prompt_fields(context),
        **length_fields(context),
        **media_fields(context),
        **backbone_fields(context),
        **(pair_fields(context) if context.is_pair else vector_fields(context)),
    }
    fields = {name: value for name, (value, _) in sourced.items()}
    sources = {name: source for name, (_, source) in sourced.items()}
    if sources["regime_length"] == COMPAT_VLLM:
        config = with_long_factors(config)
    return ModelSpec(**fields, sources=sources, arch=arch, config=config)


@contextmanager
def _reading_config(checkpoint: Checkpoint) -> Iterator[None]:
    """Turn what a registry entry raises into an error about config.json: a key is missing or has an unusable value.

    Only functions of the registry may run inside.
    """
    try:
        yield
    except KeyError as error:
        raise CheckpointError(f"{checkpoint.name}: config.json lacks {error}") from error
    except (TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{checkpoint.name}: {checkpoint.config_source} has a value that {checkpoint.architecture} cannot use: "
            f"{error}"
        ) from error


def _architecture(checkpoint: Checkpoint, *, is_vllm: bool) -> Architecture:
    """The registry's entry for the checkpoint's architecture and layout."""
    with _reading_config(checkpoint):
        arch = architecture_of(checkpoint.architecture, checkpoint.config)
    if arch is not None and arch.in_vllm is not None and is_vllm:
        arch = arch.in_vllm
    if arch is None:
        error = unsupported(checkpoint.architecture)
        raise CheckpointError(f"{checkpoint.name}: {error.message}", hint=error.hint)
    if "vision_config" in checkpoint.config and arch.vision is None:
        raise CheckpointError(f"{checkpoint.name}: {checkpoint.architecture} reads images, which is not supported")
    if "SpladePooling" in module_kinds(checkpoint):
        files.check_splade(checkpoint)
        if not arch.mlm_head:
            raise CheckpointError(f"{checkpoint.name}: SPLADE over {checkpoint.architecture} is not supported")
        return replace(arch, pooling="splade", head=arch.mlm_head)
    return arch


def unsupported(architecture: str, reason: str = "") -> CheckpointError:
    """The error about an architecture that no entry of the registry fits."""
    import transformers

    theirs = f"transformers {transformers.__version__}"
    known = f"{theirs} has this one, but nothing here says how a score is read from it"
    if not hasattr(transformers, architecture):
        known = f"{theirs} does not know this one either; {nearest(architecture, ARCHITECTURES)}"
    return CheckpointError(
        f"architecture {architecture} is not supported{reason}",
        hint=f"batchscore models lists the supported ones; {known}",
    )


def _score_type(checkpoint: Checkpoint, arch: Architecture) -> Sourced:
    saved = saved_score_type(checkpoint)
    if saved:
        return saved
    if arch.answers and "Pooling" in module_kinds(checkpoint):
        return "bi-encoder", MODULES_JSON  # of a whole T5 it reads the encoder
    tokens, _, source = answer_tokens(checkpoint)
    if tokens:
        return "cross-encoder", Source(source.kind, f"{source} classifier_from_token")
    return arch.score_type, Source("architecture", checkpoint.architecture)


# ---- options without effect

_PAIR_ONLY = {"template_date", "logit_mean", "logit_sigma"}
_MEDIA_ONLY = {"image_backend", "mm_processor_kwargs", "max_pixels", "limit_mm_per_prompt"}
_SIDES_ONLY = {"document_prompt", "document_prompt_name", "query_length", "document_length", "dimensions", "similarity"}
_NOT_LISTWISE = {"chat_template", "pooling", "use_activation", "logit_mean", "logit_sigma", "truncation_side"}


def _check_effect(context: Context) -> None:
    """Refuse options that would have no effect on this checkpoint."""
    for name, (value, source) in context.options.items():
        problem = next(_problems(context, name, value, source), None)
        if problem:
            raise UsageError(f"{source.spell(name)} {value!r}: {problem}")
    if "document_prompt_name" in context.options and "prompts" not in context.checkpoint.saved:
        raise UsageError(f"{context.checkpoint.name} has no saved prompts", hint=f"they would be in {SAVED}")


def _problems(context: Context, name: str, value: Any, source: Source) -> Iterator[str]:
    """The reasons why an option would have no effect."""
    options, arch, kind = context.options, context.arch, context.score_type
    similarity, _ = context.option("similarity", ("cosine", DEFAULT))
    if name in _SIDES_ONLY and context.is_pair and value != "":
        yield "a cross-encoder reads both sides at once"
    if name in _PAIR_ONLY and not context.is_pair:
        yield f"a {kind} has none"
    if name == "chat_template" and not context.is_pair and arch.vision is None:
        yield f"a {kind} of texts has none"
    if name in _MEDIA_ONLY and arch.vision is None:
        yield "this model reads text only"
    if name in _NOT_LISTWISE and arch.listwise:
        yield "a listwise model has a prompt and a readout of its own"
    if name == "pooling" and context.is_pair and arch.per_sequence:
        yield "this architecture has a readout of its own"
    if name == "similarity" and kind != "bi-encoder":
        yield f"a {kind} has a similarity of its own"
    if name == "pooling" and kind == "late-interaction":
        yield "late interaction does not pool the states of tokens"
    if name == "pooling" and arch.vision is not None and arch.vision.alone:
        yield "this architecture has a readout of its own"
    if name == "use_activation" and kind == "bi-encoder" and similarity == "cosine":
        yield "a cosine does not depend on it"
    if name == "instruction" and not context.is_pair and not (options.get("instruct") or arch.instruct):
        yield "this model's query prompt has no place for an instruction; pass --query-prompt"
    if name in ("query_length", "document_length") and value > position_limit(context)[0]:
        yield f"the model has {position_limit(context)[0]} positions"
    if name == "truncation" and value in LIBRARY_LIMITS and not context.is_pair:
        yield "that is a rule for prompts of cross-encoders"
    if name == "truncation" and context.vllm and value != "error" and source.kind == "user":
        yield "compat vllm has a rule of its own"
