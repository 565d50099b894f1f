"""Attention where there is no kernel for a pack: each run of equally long sequences is a dense batch without a mask."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from batchscore.runners.masks import Rule
from batchscore.runners.sequences import Sequences

_VECTOR = 16  # keys that torch's kernel for CPUs takes at once; the rest of them it takes one by one
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
    causal = rule.causal and mask is None and query.shape[2] > 1
    if rule.softcap is None:
        rest = -key.shape[2] % _VECTOR
        if rest and query.is_cpu and query.dtype == torch.bfloat16 and key.shape[2] > _LEAST_PADDED:
            mask = _causal_mask(query, key) if causal else mask
            mask = torch.ones(1, key.shape[2], dtype=torch.bool) if mask is None else mask
            key, value, mask = (*(pad(states, (0, 0, 0, rest)) for states in (key, value)), pad(mask, (0, rest)))
            causal = False
        return scaled_dot_product_attention(query, key, value, mask, is_causal=causal, scale=rule.scaling)
    if causal:
        mask = _causal_mask(query, key)
    return capped_attention(query, key, value, mask, rule)


def _causal_mask(query: Tensor, key: Tensor) -> Tensor:
    """bool [queries, keys]."""
    return torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device).tril()


def capped_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, rule: Rule) -> Tensor:
    """[n, heads, queries, dim] with products that the rule's softcap bounds, which no fused kernel does."""
    assert rule.softcap is not None
    scale = query.shape[-1] ** -0.5 if rule.scaling is None else rule.scaling
    products = (query @ key.transpose(2, 3) * scale / rule.softcap).tanh() * rule.softcap
    if mask is not None:
        products = products.masked_fill(~mask, -torch.inf)
    return products.float().softmax(-1).to(query.dtype) @ value  # float32 as in the model's own code


def shared_heads(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values once for each query head, where groups of queries share a key head."""
    groups = query.shape[1] // key.shape[1]
    return (key, value) if groups == 1 else (key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1))
