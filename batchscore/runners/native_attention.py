"""Attention on a CPU by our own kernel, which reads a pack as it lies."""

from __future__ import annotations

import ctypes
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from batchscore.runners.masks import Rule
from batchscore.runners.native import Function, kernels, pointer
from batchscore.runners.sequences import Sequences

_MOST_NUMBERS = 2**21  # of a head's keys in a sequence; bounds the kernel's memory
_WITH_TILES = 512  # tokens; for longer sequences torch's bfloat16 attention has AMX, and odd ends matter less
_LARGEST_HEAD = 1024  # components; the kernel's buffer of a row


class _Shape(ctypes.Structure):
    """`Shape` of kernels.cpp."""

    _fields_ = (
        ("query_offsets", ctypes.c_void_p),
        ("key_offsets", ctypes.c_void_p),
        ("seen", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("sequences", "heads", "key_heads", "dim", "value_dim", "window")),
        *((f"{name}_strides", ctypes.c_int64 * 2) for name in ("query", "key", "value", "out")),
        ("causal", ctypes.c_int32),
        ("scale", ctypes.c_float),
    )


def fits_native(query: Tensor, key: Tensor, value: Tensor, rule: Rule, sequences: Sequences) -> bool:
    """Whether the kernel takes these [tokens, heads, dim] and this rule."""
    # a token that sees none but hidden ones has no output, and torch's is not a number
    may_be_blind = sequences.seen is not None and (rule.causal or rule.window is not None)
    return not may_be_blind and takes(query, key, value, rule, sequences.longest)


def has_native(dtype: str) -> bool:
    """Whether the kernel was built for these numbers, and gives what torch gives."""
    return getattr(torch, dtype) in _functions()


def takes(query: Tensor, key: Tensor, value: Tensor, rule: Rule, longest: int) -> bool:
    """Whether the kernel takes these [tokens, heads, dim] and this rule, where up to `longest` keys are seen."""
    if query.device.type != "cpu" or query.dtype not in _functions() or rule.softcap is not None:
        return False
    sizes, tensors = (query.shape[-1], value.shape[-1]), (query, key, value)
    strides = [tensor.stride(axis) for tensor in tensors for axis in (0, 1)]
    return (
        max(sizes) <= _LARGEST_HEAD
        and longest * max(sizes) <= _MOST_NUMBERS
        and (longest <= _WITH_TILES or not (query.dtype == torch.bfloat16 and _has_tiles()))
        and all(tensor.stride(2) == 1 for tensor in tensors)
        and all(number % 2 == 0 for number in (*sizes, *strides))  # bfloat16 is read in pairs
    )


def _has_tiles() -> bool:
    probe = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return probe is not None and bool(probe())


def native_attention(
    query: Tensor, key: Tensor, value: Tensor, rule: Rule, sequences: Sequences, *, from_first: bool
) -> Tensor:
    """[queries, heads, dim]: attention inside each sequence of a pack, with the arguments of `run_attention`."""
    offsets = sequences.offsets
    query_offsets = torch.arange(len(offsets), dtype=torch.int32) if from_first else offsets
    return native(query, key, value, rule, query_offsets, offsets, sequences.seen_tokens)


def native(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rule: Rule,
    query_offsets: Tensor,
    key_offsets: Tensor,
    seen: Tensor | None = None,
) -> Tensor:
    """[queries, heads, dim]: the kernel; the last query of a sequence stands at its last key.

    Args:
        query: [queries, heads, dim].
        key, value: [tokens, key heads, dim].
        rule: which keys a query sees.
        query_offsets, key_offsets: int32 [n + 1], where each sequence begins and the last ends.
        seen: bool [tokens], the keys that are attended to; None: all.
    """
    return _call(_functions()[query.dtype], (query, key, value), query_offsets, key_offsets, seen, rule)


def _call(
    function: Function,
    states: tuple[Tensor, Tensor, Tensor],
    query_offsets: Tensor,
    key_offsets: Tensor,
    seen: Tensor | None,
    rule: Rule,
) -> Tensor:
    query, key, value = states
    output = torch.empty(*query.shape[:2], value.shape[2], dtype=query.dtype)
    scale = query.shape[2] ** -0.5 if rule.scaling is None else rule.scaling
    shape = _Shape(
        query_offsets.data_ptr(),
        key_offsets.data_ptr(),
        None if seen is None else seen.data_ptr(),
        len(key_offsets) - 1,
        query.shape[1],
        key.shape[1],
        query.shape[2],
        value.shape[2],
        rule.window or 0,
        *((ctypes.c_int64 * 2)(*tensor.stride()[:2]) for tensor in (*states, output)),
        rule.causal,
        scale,
    )
    function(*map(pointer, (*states, output)), ctypes.byref(shape))
    return output


@lru_cache(1)
def _functions() -> dict[torch.dtype, Function]:
    """Those that give what torch gives."""
    return {dtype: function for dtype, function in kernels().attend.items() if _agrees(function, dtype)}


def _agrees(function: Function, dtype: torch.dtype) -> bool:
    """Whether the kernel gives what torch gives, on a few numbers."""
    lengths, generator = (1, 18, 35), torch.Generator().manual_seed(0)
    query, key, value = torch.randn(3, sum(lengths), 2, 24, generator=generator).to(dtype)
    offsets = torch.tensor((0, *lengths)).cumsum(0).int()
    ours = _call(function, (query, key, value), offsets, offsets, None, Rule())
    parts = zip(*(states.float().split(lengths) for states in (query, key, value)), strict=True)
    theirs = [scaled_dot_product_attention(*(part.transpose(0, 1) for part in some)).transpose(0, 1) for some in parts]
    return torch.allclose(ours.float(), torch.cat(theirs), atol=1e-5 if dtype == torch.float32 else 2e-2)
