"""Weights into modules, or a clear refusal: a missing or unread weight is an error, never a random number."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from transformers import AutoModel, AutoModelForSequenceClassification
from transformers.utils import logging

from batchscore.errors import CheckpointError
from batchscore.models.checkpoint import Checkpoint, first_line
from batchscore.models.heads import ScoreHead, load_dense
from batchscore.models.spec import ModelSpec

# buffers old files carry, and heads for other tasks that a body does not read
_UNREAD = re.compile(r"(^|\.)(position_ids$|pooler\.|lm_head\.|cls\.|classifier\.)")
_NOT_NEEDED = re.compile(r"(^|\.)(position_ids$|pooler\.)")


@dataclass(frozen=True)
class Loaded:
    """A model ready to run: float32 head, body in the chosen dtype."""

    body: nn.Module
    head: nn.Module  # ScoreHead for a cross-encoder, else the Dense chain
    flat: bool  # the body runs without padding
    vocabulary: int  # rows of the embedding table


def load_model(
    checkpoint: Checkpoint, spec: ModelSpec, *, dtype: str, device: str, attention: str, trust_remote_code: bool = False
) -> Loaded:
    """Load body and head.

    Args:
        checkpoint: the model's folder.
        spec: what `resolve` made of it.
        dtype: of the body: "float32", "bfloat16" or "float16".
        device: torch device.
        attention: name of the registered attention that needs no padding, used where the model can; "sdpa" asks for
            padding.
        trust_remote_code: run Python files of the checkpoint.

    Raises:
        CheckpointError: no weights, missing or unread tensors, shapes that do not fit the config.
    """
    auto = AutoModelForSequenceClassification if spec.head else AutoModel
    try:
        with _quiet():
            model, report = auto.from_pretrained(
                checkpoint.folder,
                # a 16-bit body must not round the head: load what the file has, and cast the body alone
                dtype=torch.float32 if "float32" in (dtype, checkpoint.stored_dtype()) else "auto",
                trust_remote_code=trust_remote_code,
                output_loading_info=True,
            )
    except Exception as error:  # transformers, safetensors and pickle each have their own for a damaged file
        raise CheckpointError(f"{checkpoint.name} cannot be loaded: {first_line(error)}") from error
    _check_report(checkpoint.name, report["missing_keys"], report["unexpected_keys"], spec)
    # a model that looks attention up by name takes ours; others (remote code, own attention) run padded
    flat = attention != "sdpa" and bool(getattr(model, "_supports_attention_backend", False))
    if flat:
        model.set_attn_implementation(attention)
    model.eval()
    head = (
        ScoreHead([model.get_submodule(name) for name in spec.head])
        if spec.head
        else load_dense(checkpoint, spec.dense)
    )
    body = model.base_model
    body.pooler = None  # the head has its copy; on a flat batch it would read one sequence only
    vocabulary = body.get_input_embeddings().num_embeddings
    return Loaded(body.to(device, getattr(torch, dtype)), head.to(device), flat, vocabulary)


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


def _check_report(name: str, missing: Iterable[str], unexpected: Iterable[str], spec: ModelSpec) -> None:
    needed = missing if spec.head else [key for key in missing if not _NOT_NEEDED.search(key)]
    unread = [key for key in unexpected if not _UNREAD.search(key)]
    for what, keys in (("lacks", sorted(needed)), ("has, unread by the architecture,", sorted(unread))):
        if keys:
            shown = ", ".join(keys[:5]) + (f" and {len(keys) - 5} more" if len(keys) > 5 else "")
            raise CheckpointError(
                f"{name} {what} {shown}",
                hint="these weights are not those of the architecture in config.json; scores would be random",
            )
