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
    if query.is_cuda and query.dtype != torch.float32:
        from torch.nn.attention.varlen import varlen_attn

        lengths = (cu_seq_lens_q, cu_seq_lens_q, max_length_q, max_length_q)
        # only a scale that is not the default is passed: torch 2.11 need not know the argument
        usual = scaling is None or math.isclose(scaling, query.shape[-1] ** -0.5)
        scale: dict[str, Any] = {} if usual else {"scale": scaling}
        output = varlen_attn(flat_query, flat_key, flat_value, *lengths, **scale)
        assert isinstance(output, Tensor)
        return output[None], None
    output = torch.empty_like(flat_query, memory_format=torch.contiguous_format)
    for start, sequences, length in sequence_runs:
        span = slice(start, start + sequences * length)
        run_query, run_key, run_value = (
            states[span].unflatten(0, (sequences, length)).transpose(1, 2)
            for states in (flat_query, flat_key, flat_value)
        )
        attended = scaled_dot_product_attention(run_query, run_key, run_value, scale=scaling)
        output[span] = attended.transpose(1, 2).flatten(0, 1)
    return output[None], None


AttentionInterface.register(PACKED, packed_attention)
AttentionMaskInterface.register(PACKED, lambda *args, **kwargs: None)
