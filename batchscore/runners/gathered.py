"""Attention to listed keys (`reach.py`): they are gathered for each stretch.

That copies keys and values, a few percent of what attention costs. Merging the attention to what is shared and that to
what is not by their log-sum-exps, which copies nothing, was no faster on a CPU, and takes no window.
"""

from __future__ import annotations

import torch
from torch import Tensor

from batchscore.runners.dense import masked_attention
from batchscore.runners.masks import Rule, UnknownAttentionError
from batchscore.runners.native_attention import native, takes
from batchscore.runners.reach import Reach
from batchscore.runners.varlen import fits_kernel, varlen


def attend_in_reach(query: Tensor, key: Tensor, value: Tensor, rule: Rule, reach: Reach) -> Tensor:
    """[queries, heads, dim]: causal attention of each stretch to its keys.

    Args:
        query: [queries, heads, dim], stretches end to end.
        key, value: [tokens, key heads, dim], of the batch.
        rule: which keys a query sees.
        reach: of the pack.

    Raises:
        UnknownAttentionError: the rule is not causal, so that what comes before depends on what follows; or a GPU
            has no kernel for it.
    """
    if not rule.causal:
        raise UnknownAttentionError("attention to later tokens from a beginning that sequences share")
    if fits_kernel(query, value) and rule.softcap is None:
        sides = (reach.offsets, reach.longest), (reach.key_offsets, reach.longest_keys)
        return varlen(query, *_gathered(key, value, reach), rule, *sides)
    if takes(query, key, value, rule, reach.longest_keys):
        return native(query, *_gathered(key, value, reach), rule, reach.offsets, reach.key_offsets)
    if not query.is_cpu:
        raise UnknownAttentionError("attention to listed keys without a kernel for it")
    output = torch.empty(*query.shape[:-1], value.shape[-1], dtype=query.dtype, device=query.device)
    for call, mask in zip(reach.calls, reach.masks_of(rule), strict=True):
        asking, asked, read = (part.transpose(1, 2) for part in (query[call.rows], key[call.keys], value[call.keys]))
        output[call.rows] = masked_attention(asking, asked, read, mask, rule).transpose(1, 2)
    return output


def _gathered(key: Tensor, value: Tensor, reach: Reach) -> tuple[Tensor, Tensor]:
    """The keys and values of each stretch, end to end."""
    return (key, value) if reach.keys is None else (key[reach.keys], value[reach.keys])
