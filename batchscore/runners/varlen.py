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
    every = sequences.offsets, sequences.longest
    first = torch.arange(len(every[0]), dtype=torch.int32, device=every[0].device), 1
    return varlen(query, key, value, rule, first if from_first else every, every)


Sides = tuple[Tensor, int]  # (int32 [n + 1], where each sequence begins and the last ends, length of the longest)


def varlen(query: Tensor, key: Tensor, value: Tensor, rule: Rule, queries: Sides, keys: Sides) -> Tensor:
    """[queries, heads, dim]: the kernel; by a causal rule the last query of a sequence stands at its last key."""
    from torch.nn.attention.varlen import varlen_attn

    # the kernel's window counts how many tokens are seen on either side; -1 is no bound, and (-1, 0) causal
    reach = -1 if rule.window is None else rule.window - 1
    options: dict[str, Any] = {"scale": rule.scaling, "window_size": (reach, 0 if rule.causal else reach)}
    if _knows(varlen_attn, "enable_gqa"):  # torch 2.11 does not, and does not ask: its kernel takes grouped queries too
        options["enable_gqa"] = key.shape[1] != query.shape[1]
    output = varlen_attn(query, key, value, queries[0], keys[0], queries[1], keys[1], **options)
    assert isinstance(output, Tensor)
    return output


@lru_cache
def _knows(function: Callable[..., Any], keyword: str) -> bool:
    return keyword in signature(function).parameters
