"""Attention on a GPU where its kernel for packs does not fit: padded batches of sequences of similar length.

That is float32, head sizes that FlashAttention lacks, capped products and hidden tokens. A call for each run of equal
lengths, as on a CPU, would be hundreds of launches a layer, each as long as its work. A pack is sorted by length, so
one batch for most or all of it pads little (`padding.py`).

Query heads that share a key head become further queries of that head, so no key is repeated. `enable_gqa` of
scaled_dot_product_attention would leave float32, and all that needs a mask, to the implementation that keeps every
product, because the memory-efficient one takes no grouped queries.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from batchscore.runners.dense import masked_attention
from batchscore.runners.masks import Rule
from batchscore.runners.padding import Padding
from batchscore.runners.sequences import Sequences


def padded_attention(
    query: Tensor, key: Tensor, value: Tensor, rule: Rule, sequences: Sequences, *, from_first: bool
) -> Tensor:
    """[queries, heads, dim]: attention inside each sequence of a pack, with the arguments of `run_attention`.

    Key and value may have fewer heads.
    """
    parts = [_attend(query, key, value, rule, padding, from_first=from_first) for padding in sequences.paddings]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _attend(query: Tensor, key: Tensor, value: Tensor, rule: Rule, padding: Padding, *, from_first: bool) -> Tensor:
    """[queries of a section, heads, dim]."""
    queries = query[padding.section.sequences][:, None] if from_first else padding.padded(query)
    length, groups = queries.shape[1], query.shape[1] // key.shape[1]
    grouped = queries.unflatten(2, (-1, groups)).permute(0, 2, 3, 1, 4).flatten(2, 3)  # [n, key heads, groups * L, dim]
    keys, values = (padding.padded(states).transpose(1, 2) for states in (key, value))
    if groups == 1 and not from_first and rule.softcap is None and padding.is_plainly_causal(rule):
        attended = scaled_dot_product_attention(grouped, keys, values, is_causal=True, scale=rule.scaling)
    else:
        mask = padding.mask(rule, length)
        if mask is not None and mask.shape[-2] > 1:
            mask = torch.cat([mask] * groups, -2)
        attended = masked_attention(grouped, keys, values, mask, rule)
    output = attended.unflatten(2, (groups, length)).permute(0, 3, 1, 2, 4).flatten(2, 3)  # [n, L, heads, dim]
    return output[:, 0] if from_first else padding.flat(output)
