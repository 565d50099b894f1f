"""Merge LoRA adapters that are stacked in a checkpoint's own tensors, as in jina-embeddings-v3, into its weights."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from batchscore.errors import CheckpointError
from batchscore.models.checkpoint import Checkpoint

_ORIGINAL = ".parametrizations.weight.original"


def merge_adapter(
    checkpoint: Checkpoint, tensors: Mapping[str, Tensor], adapter: str, *, dry: bool = False
) -> dict[str, Tensor]:
    """Merge adapter i: each weight W with A and B becomes W + scale * B[i] @ A[i], embeddings W + scale * A[i] @ B[i].

    The order follows from the shapes: both are [rows, rank] @ [rank, columns]. scale is lora_alpha / lora_rank.

    Args:
        checkpoint: its config names the adapters and their scale.
        tensors: name -> tensor.
        adapter: one of `lora_adaptations`.
        dry: leave the weights unchanged; only the names matter.

    Raises:
        CheckpointError: the weights have no adapters.
    """
    config = checkpoint.config
    index, scale = config["lora_adaptations"].index(adapter), config["lora_alpha"] / config["lora_rank"]
    merged = {name: tensor for name, tensor in tensors.items() if ".parametrizations." not in name}
    for name, original in tensors.items():
        if not name.endswith(_ORIGINAL):
            continue
        stem = name.removesuffix(_ORIGINAL)
        first, second = (tensors[f"{stem}.parametrizations.weight.0.lora_{part}"][index] for part in "BA")
        if "embeddings" in stem:
            first, second = second, first
        # in float32, so that the sum is rounded only once, to the body's dtype
        merged[f"{stem}.weight"] = original if dry else original.float() + scale * (first.float() @ second.float())
    if len(merged) == len(tensors):
        raise CheckpointError(f"config.json names the adapter {adapter!r}, but the weights have no adapters")
    return merged
