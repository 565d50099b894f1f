"""From a model's name and a user's options to an open checkpoint and its spec."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Literal

from typing_extensions import TypedDict

from batchscore.models.checkpoint import Checkpoint, open_checkpoint
from batchscore.models.resolve import resolve
from batchscore.models.resolve.configs import load_config
from batchscore.models.resolve.options import Options, merged, read_values, taken_apart, user_options
from batchscore.models.spec import ModelSpec, Source
from batchscore.types import Truncation


class ModelOptions(TypedDict, total=False):
    """What a user may set about a model; None leaves the decision to its files."""

    convert: Literal["auto", "none", "embed", "classify"] | None
    compat: Literal["vllm"] | None
    task: str | None
    hf_overrides: dict[str, Any] | str | None
    pooler_config: dict[str, Any] | str | None
    use_activation: bool | None
    dimensions: int | None
    similarity: Literal["cosine", "dot"] | None
    chat_template: str | None
    template_date: str | None
    instruction: str | None
    query_prompt: str | None
    document_prompt: str | None
    query_prompt_name: str | None
    document_prompt_name: str | None
    no_prompts: bool | None
    max_length: int | str | None
    max_model_len: int | str | None
    truncate_prompt_tokens: int | None
    truncation: Truncation | None
    truncation_side: Literal["left", "right"] | None
    query_length: int | str | None
    document_length: int | str | None
    max_tokens_per_query: int | None
    max_tokens_per_doc: int | None
    image_backend: Literal["pil", "torchvision"] | None
    mm_processor_kwargs: dict[str, Any] | str | None
    max_pixels: int | None
    limit_mm_per_prompt: dict[str, int] | str | None


def open_model(
    model: str,
    config: str | None,
    options: Mapping[str, Any],
    *,
    revision: str | None = None,
    tokenizer: str | None = None,
) -> tuple[Checkpoint, ModelSpec]:
    """Open a checkpoint and decide what it means.

    Args:
        model: folder (`~` is the home folder) or hub id.
        config: file or shipped name; None takes the shipped one that lists the hub id.
        options: those of ModelOptions and `score_type`, by name.
        revision: of the hub id.
        tokenizer: folder or hub id with another tokenizer.

    Raises:
        BatchscoreError: the model cannot be found or used, or an option does not fit it.
    """
    model, tokenizer = os.path.expanduser(model), tokenizer and os.path.expanduser(tokenizer)
    decided = _decided(model, config, user_options(options))
    checkpoint = open_checkpoint(model, revision, tokenizer=tokenizer, overrides=decided.get("hf_overrides"))
    return checkpoint, resolve(checkpoint, decided)


def respecified(
    checkpoint: Checkpoint, config: str | None, options: Mapping[str, Any], of_request: Mapping[str, Any]
) -> ModelSpec:
    """What an open checkpoint means with the options of one request too, which win; errors call these by their names.

    Raises:
        BatchscoreError: as `open_model`.
    """
    further = {name: (value, Source("user", name)) for name, value in of_request.items()}
    return resolve(checkpoint, _decided(checkpoint.name, config, {**user_options(options), **further}))


def _decided(model: str, config: str | None, upper: Options) -> Options:
    return merged(taken_apart(load_config(model, config)), taken_apart(read_values(upper)))


def pinned_options(checkpoint: Checkpoint, spec: ModelSpec) -> dict[str, str]:
    """Options of Scorer with which another process, even on another day, comes to the same spec from the same files."""
    commit = checkpoint.snapshot.commit if checkpoint.snapshot else ""
    pinned = {"revision": commit, "template_date": spec.template_date}
    return {name: value for name, value in pinned.items() if value}
