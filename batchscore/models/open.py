"""From what a user names to an open checkpoint and its spec: config file, overrides and options in their order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from typing_extensions import TypedDict

from batchscore.errors import BatchscoreError, CheckpointError, first_line
from batchscore.models.checkpoint import Checkpoint, open_checkpoint
from batchscore.models.resolve import resolve
from batchscore.models.resolve.configs import load_config
from batchscore.models.resolve.options import merged, read_values, taken_apart
from batchscore.models.spec import ModelSpec
from batchscore.types import Truncation


class ModelOptions(TypedDict, total=False):
    """What a user may say about a model beside where it is; None leaves the decision to its files."""

    convert: Literal["auto", "none", "embed", "classify"] | None
    compat: Literal["vllm"] | None
    task: str | None
    hf_overrides: dict[str, Any] | str | None
    pooler_config: dict[str, Any] | str | None
    use_activation: bool | None
    dimensions: int | None
    similarity: Literal["cosine", "dot"] | None
    chat_template: str | None
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


def open_model(
    model: str,
    config: str | None,
    given: Mapping[str, Any],
    *,
    revision: str | None = None,
    tokenizer: str | None = None,
) -> tuple[Checkpoint, ModelSpec]:
    """Open a checkpoint and decide what it means.

    Args:
        model: folder or hub id.
        config: file or shipped name; None takes the shipped one that lists the hub id.
        given: options by name; None and False leave the decision to the files.
        revision: of the hub id.
        tokenizer: folder or hub id with another tokenizer.

    Raises:
        BatchscoreError: the model cannot be found or used, or an option does not fit it.
    """
    flags = {
        name: (value, f"--{name.replace('_', '-')}")
        for name, value in given.items()
        if value is not None and (value is not False or name == "use_activation")
    }
    options = merged(taken_apart(load_config(str(model), config)), taken_apart(read_values(flags)))
    checkpoint = open_checkpoint(str(model), revision, tokenizer=tokenizer, overrides=options.get("hf_overrides"))
    try:
        return checkpoint, resolve(checkpoint, options)
    except BatchscoreError:
        raise
    except (TypeError, ValueError, KeyError, AttributeError) as error:  # a value of another kind than its key wants
        raise CheckpointError(
            f"{checkpoint.name}: its files or overrides hold a value that makes no sense: {first_line(error)}"
        ) from error
