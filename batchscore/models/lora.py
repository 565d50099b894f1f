"""Merge LoRA adapters into weights: those stacked in a checkpoint's own tensors, as in jina-embeddings-v3, and PEFT's.

PEFT's are folders of their own, as of ColQwen2: adapter_config.json names the base.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from batchscore.errors import CheckpointError
from batchscore.models.checkpoint import ADAPTER, Checkpoint
from batchscore.models.weights import read_adapter

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


_LORA = re.compile(r"(.*)\.lora_(A|B)(?:\.default)?\.weight$")
_BEFORE = "base_model.model."  # what PEFT puts before a module's name


def merge_lora(
    checkpoint: Checkpoint, tensors: Mapping[str, Tensor], rename: Callable[[str], str], *, dry: bool = False
) -> dict[str, Tensor]:
    """Add a PEFT adapter: each weight W with A and B becomes W + scale * B @ A; modules saved whole are replaced.

    scale is lora_alpha / r, or lora_alpha / sqrt(r) with rsLoRA, where patterns may give a module its own r and alpha.

    Args:
        checkpoint: the adapter.
        tensors: of its base, by the names that loading uses.
        rename: from a name in a file to such a name.
        dry: leave the weights unchanged; only the names matter.

    Raises:
        CheckpointError: it changes a weight that its base does not have, or in a way that is not supported.
    """
    settings, merged = checkpoint.read_backbone_json(ADAPTER), dict(tensors)
    pairs: dict[str, dict[str, Tensor]] = {}
    for name, tensor in read_adapter(checkpoint, dry=dry).items():
        if match := _LORA.match(name):
            pairs.setdefault(match[1], {})[match[2]] = tensor
            continue
        if ".lora_" in name:
            raise CheckpointError(f"{checkpoint.name}: {name} is a kind of LoRA that is not supported")
        whole = re.sub(r"\.modules_to_save(\.default)?", "", name).removeprefix(_BEFORE)
        merged[rename(whole)] = tensor
    for module, pair in pairs.items():
        name = rename(f"{module.removeprefix(_BEFORE)}.weight")
        if name not in merged or pair.keys() != {"A", "B"}:
            raise CheckpointError(
                f"{checkpoint.name}: its adapter changes {name}, which its base lacks",
                hint="base_model_name_or_path in adapter_config.json is of another model, or of another layout",
            )
        if not dry:
            scale = _scale(settings, module, rank=len(pair["A"]))
            # in float32, so that the sum is rounded only once, to the body's dtype
            merged[name] = merged[name].float() + scale * (pair["B"].float() @ pair["A"].float())
    return merged


def _scale(settings: Mapping[str, Any], module: str, *, rank: int) -> float:
    patterns = (settings.get("alpha_pattern") or {}).items()
    alpha = next((value for pattern, value in patterns if re.search(rf"(^|\.){pattern}$", module)), None)
    alpha = settings.get("lora_alpha", rank) if alpha is None else alpha
    return float(alpha) / (rank**0.5 if settings.get("use_rslora") else rank)
