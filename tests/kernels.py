"""torch's variable-length kernel as two releases have it, for machines without a GPU.

Each stand-in has the signature of its release, refuses what FlashAttention refuses, and gives what the documentation
says in plain torch on a CPU, or on the meta device the shape alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

MINOR_RELEASES = {(2, 11): "2.11", (2, 12): "2.13", (2, 13): "2.13"}  # torch's -> the signature that it has


def varlen_attn_2_11(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    return_aux: Any = None,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
) -> Tensor:
    """torch/nn/attention/varlen.py of torch 2.11.0."""
    # it does not ask, and hands grouped queries on to a kernel that takes them
    return attend(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, scale, window_size)


def varlen_attn_2_13(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor | None,
    max_q: int,
    max_k: int,
    *,
    return_aux: Any = None,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
    seqused_k: Tensor | None = None,
    block_table: Tensor | None = None,
    num_splits: int | None = None,
) -> Tensor:
    """torch/nn/attention/varlen.py of torch 2.13.0; 2.12 has the same signature."""
    assert enable_gqa or query.shape[1] == key.shape[1]
    return attend(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, scale, window_size)


KERNELS: dict[str, Callable[..., Tensor]] = {"2.11": varlen_attn_2_11, "2.13": varlen_attn_2_13}


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_offsets: Tensor,
    key_offsets: Tensor | None,
    longest_query: int,
    longest_key: int,
    scale: float | None,
    window: tuple[int, int],
) -> Tensor:
    """[queries, heads, dim] of [queries, heads, dim], and [tokens, key heads, dim] twice."""
    assert key_offsets is not None
    check(query, key, value, query_offsets, key_offsets)
    assert type(longest_query) is type(longest_key) is int
    assert [type(bound) for bound in window] == [int, int]
    if query.is_meta:
        return torch.empty_like(query)
    assert int(query_offsets.diff().max()) == longest_query
    assert int(key_offsets.diff().max()) == longest_key
    assert (int(query_offsets[-1]), int(key_offsets[-1])) == (len(query), len(key))
    groups = query.shape[1] // key.shape[1]
    lengths = query_offsets.diff().tolist(), key_offsets.diff().tolist()
    parts = zip(query.split(lengths[0]), key.split(lengths[1]), value.split(lengths[1]), strict=True)
    outputs = []
    for q, k, v in parts:
        q, k, v = (states.float().transpose(0, 1) for states in (q, k, v))
        k, v = k.repeat_interleave(groups, 0), v.repeat_interleave(groups, 0)
        products = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
        products = products.masked_fill(~visible(q.shape[1], k.shape[1], *window), -torch.inf)
        outputs.append((products.softmax(-1) @ v).transpose(0, 1))
    return torch.cat(outputs).to(query.dtype)


def check(query: Tensor, key: Tensor, value: Tensor, query_offsets: Tensor, key_offsets: Tensor) -> None:
    """What FlashAttention asks of its tensors."""
    assert query.dtype in (torch.float16, torch.bfloat16)
    assert {key.dtype, value.dtype} == {query.dtype}
    assert key.shape == value.shape
    assert query.shape[1] % key.shape[1] == 0
    assert query.shape[-1] == key.shape[-1] <= 256
    assert query.shape[-1] % 8 == 0
    assert {states.stride(-1) for states in (query, key, value)} == {1}
    assert {query_offsets.dtype, key_offsets.dtype} == {torch.int32}
    assert query_offsets.is_contiguous()
    assert len(query_offsets) == len(key_offsets)
    assert {tensor.device for tensor in (query, key, value, query_offsets, key_offsets)} == {query.device}


def visible(queries: int, keys: int, left: int, right: int) -> Tensor:
    """bool [queries, keys]: what a window lets through; the last query stands at the last key, and -1 is no bound."""
    offset = torch.arange(keys) - (torch.arange(queries)[:, None] + keys - queries)
    return (offset >= (-left if left >= 0 else -keys)) & (offset <= (right if right >= 0 else keys))
