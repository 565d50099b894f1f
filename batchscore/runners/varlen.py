"""Attention on CUDA in 16 bits: torch's variable-length kernel, which reads a pack as it lies."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from batchscore.runners.masks import Rule
from batchscore.runners.sequences import Sequences

_KERNEL_DTYPES = (torch.bfloat16, torch.float16)
_KERNEL_HEAD_SIZE = 256  # FlashAttention's largest; its sizes come in steps of 8


@lru_cache
def _has_kernel(device: torch.device) -> bool:
    """Whether the device runs torch's variable-length kernel: FlashAttention 2 needs an Ampere GPU or a later one."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def fits_kernel(query: Tensor, value: Tensor) -> bool:
    """Whether the kernel runs on the device of these [tokens, heads, dim], with their dtype and sizes."""
    size = query.shape[-1]
    known_size = size == value.shape[-1] and size % 8 == 0 and size <= _KERNEL_HEAD_SIZE
    return known_size and query.dtype in _KERNEL_DTYPES and _has_kernel(query.device)


def kernel_attention(
    query: Tensor, key: Tensor, value: Tensor, rule: Rule, sequences: Sequences, *, from_first: bool
) -> Tensor:
    """[queries, heads, dim]: attention inside each sequence of a pack, with the arguments of `run_attention`."""
    from torch.nn.attention.varlen import varlen_attn

    # the kernel's window counts how many tokens are seen on either side; -1 is no bound, and (-1, 0) causal
    reach = -1 if rule.window is None else rule.window - 1
    options: dict[str, Any] = {"scale": rule.scaling, "window_size": (reach, 0 if rule.causal else reach)}
    if _knows(varlen_attn, "enable_gqa"):  # torch 2.11 does not, and does not ask: its kernel takes grouped queries too
        options["enable_gqa"] = key.shape[1] != query.shape[1]
    offsets, longest = sequences.offsets, sequences.longest
    query_offsets = torch.arange(len(offsets), dtype=torch.int32, device=offsets.device) if from_first else offsets
    output = varlen_attn(query, key, value, query_offsets, offsets, 1 if from_first else longest, longest, **options)
    assert isinstance(output, Tensor)
    return output


@lru_cache
def _knows(function: Callable[..., Any], keyword: str) -> bool:
    return keyword in signature(function).parameters
