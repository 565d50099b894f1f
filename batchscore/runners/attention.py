"""Attention over a pack without padding, registered with transformers under the name PACKED.

transformers models look their attention up by name, so one function makes all that do run on a flat (1, tokens)
batch. On CUDA in 16 bits it is torch's variable-length kernel. Elsewhere a pack, which is sorted by length, is cut
into runs of equally long sequences: each run is a dense (n, heads, length, dim) batch without a mask, for which
scaled_dot_product_attention has its fastest path. The price is one call a run.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

PACKED = "batchscore_packed"


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    *,
    sequence_runs: list[tuple[int, int, int]],
    cu_seq_lens_q: Tensor,
    max_length_q: int,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention inside each sequence of a flat batch, in the signature transformers calls.

    Args:
        module: the attention layer.
        query, key, value: [1, heads, tokens, dim].
        attention_mask: None, since sequences are told apart by the lengths below.
        scaling: factor on the products; None is dim ** -0.5.
        dropout: 0 outside training.
        sequence_runs: (first token, sequences, length) of each run of equally long sequences.
        cu_seq_lens_q: int32 [n + 1], cumulative lengths.
        max_length_q: the longest sequence.

    Returns:
        ([1, tokens, heads, dim], None): the output, and no attention weights.
    """
    flat_query, flat_key, flat_value = (states[0].transpose(0, 1) for states in (query, key, value))
    lengths = (sequence_runs, cu_seq_lens_q, max_length_q)
    return _attend(flat_query, flat_key, flat_value, scaling, *lengths, from_first=False)[None], None


def attend_from_first(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float | None,
    *,
    sequence_runs: list[tuple[int, int, int]],
    cu_seq_lens_q: Tensor,
    max_length_q: int,
) -> Tensor:
    """[n, heads, dim]: what the first token of each sequence attends to.

    Args:
        query: [n, heads, dim], of the first tokens.
        key, value: [tokens, heads, dim], of all.
        scaling, sequence_runs, cu_seq_lens_q, max_length_q: as in `packed_attention`.
    """
    return _attend(query, key, value, scaling, sequence_runs, cu_seq_lens_q, max_length_q, from_first=True)


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float | None,
    runs: list[tuple[int, int, int]],
    offsets: Tensor,
    longest: int,
    *,
    from_first: bool,
) -> Tensor:
    """Attention inside each sequence; `query` holds all tokens, or the first of each sequence if `from_first`."""
    if query.is_cuda and query.dtype != torch.float32:
        from torch.nn.attention.varlen import varlen_attn

        asked_offsets = torch.arange(len(offsets), dtype=torch.int32, device=query.device) if from_first else offsets
        # only a scale that is not the default is passed: torch 2.11 need not know the argument
        usual = scaling is None or math.isclose(scaling, query.shape[-1] ** -0.5)
        scale: dict[str, Any] = {} if usual else {"scale": scaling}
        lengths = (asked_offsets, offsets, 1 if from_first else longest, longest)
        attended = varlen_attn(query, key, value, *lengths, **scale)
        assert isinstance(attended, Tensor)
        return attended
    output = torch.empty_like(query, memory_format=torch.contiguous_format)
    done = 0
    for start, sequences, length in runs:
        queries = 1 if from_first else length
        asked, found = slice(done, done + sequences * queries), slice(start, start + sequences * length)
        attended = scaled_dot_product_attention(
            query[asked].unflatten(0, (sequences, queries)).transpose(1, 2),
            key[found].unflatten(0, (sequences, length)).transpose(1, 2),
            value[found].unflatten(0, (sequences, length)).transpose(1, 2),
            scale=scaling,
        )
        output[asked] = attended.transpose(1, 2).flatten(0, 1)
        done = asked.stop
    return output


AttentionInterface.register(PACKED, packed_attention)
AttentionMaskInterface.register(PACKED, lambda *args, **kwargs: None)
