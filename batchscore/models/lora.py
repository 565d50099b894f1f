"""Adapters stacked in a checkpoint's own tensors, as jina-embeddings-v3 has them, merged into its weights."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from batchscore.errors import CheckpointError
from batchscore.models.checkpoint import Checkpoint

_ORIGINAL = ".parametrizations.weight.original"


def merge_adapter(
    checkpoint: Checkpoint, tensors: Mapping[str, Tensor], adapter: str, *, dry: bool = False
) -> dict[str, Tensor]:
    """Every weight W with adapters A, B as W + scale * B[i] @ A[i], embedding tables as W + scale * A[i] @ B[i].

    The order follows from the shapes: both are [rows, rank] times [rank, columns]. scale is lora_alpha / lora_rank.

    Args:
        checkpoint: its config names the adapters and their scale.
        tensors: name -> tensor.
        adapter: one of `lora_adaptations`.
        dry: leave the weights as they are; only the names matter.

    Raises:
        CheckpointError: there are no adapters in the file.
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
        # float32: the sum is rounded once, to the body's dtype
        merged[f"{stem}.weight"] = original if dry else original.float() + scale * (first.float() @ second.float())
    if len(merged) == len(tensors):
        raise CheckpointError(f"config.json names the adapter {adapter!r}, and the weights have none")
    return merged
