"""Attention where there is no kernel for a pack: each run of equally long sequences is a dense batch without a mask."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from batchscore.runners.masks import Rule
from batchscore.runners.reach import VECTOR
from batchscore.runners.sequences import Sequences

_LEAST_PADDED = 32  # tokens; what is shorter costs less than the mask that padding needs


def run_attention(
    query: Tensor, key: Tensor, value: Tensor, rule: Rule, sequences: Sequences, *, from_first: bool
) -> Tensor:
    """[queries, heads, dim]: attention inside each sequence of a pack, as one call per run.

    Args:
        query: [queries, heads, dim], of all tokens, or of the first of each sequence if `from_first`.
        key, value: [tokens, heads, dim].
        rule: which keys a query sees.
        sequences: of the pack.
        from_first: only first tokens ask.
    """
    output = torch.empty(*query.shape[:-1], value.shape[-1], dtype=query.dtype, device=query.device)
    seen_of_runs = sequences.seen or [None] * len(sequences.runs)
    done = 0
    for (start, count, length), seen in zip(sequences.runs, seen_of_runs, strict=True):
        queries = 1 if from_first else length
        query_span, key_span = slice(done, done + count * queries), slice(start, start + count * length)
        mask = rule.mask(length, query.device, causality=seen is not None)
        if seen is not None:
            mask = seen if mask is None else seen & mask
        attended = _dense_attention(
            query[query_span].unflatten(0, (count, queries)).transpose(1, 2),
            key[key_span].unflatten(0, (count, length)).transpose(1, 2),
            value[key_span].unflatten(0, (count, length)).transpose(1, 2),
            mask,
            rule,
        )
        output[query_span] = attended.transpose(1, 2).flatten(0, 1)
        done = query_span.stop
    return output


def _dense_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, rule: Rule) -> Tensor:
    """[n, heads, queries, dim] of equally long sequences."""
    is_causal = rule.causal and mask is None and query.shape[2] > 1
    length, rest = key.shape[2], -key.shape[2] % VECTOR
    is_padded = rest and length > _LEAST_PADDED and query.is_cpu and query.dtype == torch.bfloat16
    if is_causal and rule.softcap is None and not is_padded:
        return scaled_dot_product_attention(query, key, value, is_causal=True, scale=rule.scaling)
    if is_causal:
        mask = torch.ones(query.shape[2], length, dtype=torch.bool, device=query.device).tril()
    if is_padded and rule.softcap is None:
        mask = pad(torch.ones(1, length, dtype=torch.bool) if mask is None else mask, (0, rest))
        key, value = (pad(states, (0, 0, 0, rest)) for states in (key, value))
    return masked_attention(query, key, value, mask, rule)


def masked_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, rule: Rule) -> Tensor:
    """[n, heads, queries, dim], where query heads may share a key head. Which keys are seen the mask says alone."""
    if rule.softcap is None:
        grouped = query.shape[1] != key.shape[1]
        return scaled_dot_product_attention(query, key, value, mask, scale=rule.scaling, enable_gqa=grouped)
    # no fused kernel caps products; in place, since they are the largest tensors of a layer
    key, value = shared_heads(query, key, value)
    scale = query.shape[-1] ** -0.5 if rule.scaling is None else rule.scaling
    products = (query @ key.mT).mul_(scale).div_(rule.softcap).tanh_().mul_(rule.softcap)
    if mask is not None:
        products.masked_fill_(~mask, -torch.inf)
    return products.softmax(-1, dtype=torch.float32).to(query.dtype) @ value  # float32 as in the model's own code


def shared_heads(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values [tokens or n, heads, ...] once for each query head, where groups of queries share a key head."""
    groups = query.shape[1] // key.shape[1]
    return (key, value) if groups == 1 else (key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1))
