"""Attention over a pack without padding, registered with transformers under the name PACKED.

transformers models look their attention up by name, so one function makes all that do run on a flat (1, tokens)
batch. On CUDA in 16 bits it is torch's variable-length kernel. Elsewhere a pack, which is sorted by length, is cut
into runs of equally long sequences: each run is a dense (n, heads, length, dim) batch without a mask, for which
scaled_dot_product_attention has its fastest path. The price is one call a run.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

PACKED = "batchscore_packed"


@dataclass(frozen=True)
class _Rule:
    """Which keys a query sees inside its own sequence, and what happens to the products."""

    causal: bool = False
    window: int | None = None  # sees keys less than this far away
    softcap: float | None = None  # products p become softcap * tanh(p / softcap)
    scaling: float | None = None  # factor on the products; None is dim ** -0.5

    def mask(self, length: int, device: torch.device, *, causality: bool) -> Tensor | None:
        """bool [length, length], the allowed pairs; None if these are all, or, unless `causality`, all earlier ones."""
        windowed = self.window is not None and self.window < length
        if not windowed and not (self.causal and causality):
            return None
        places = torch.arange(length, device=device)
        behind = places[:, None] - places
        allowed = behind.abs() < (self.window if windowed and self.window else length)
        return allowed & (behind >= 0) if self.causal else allowed


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
    sequence_seen: Tensor | None = None,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention inside each sequence of a flat batch, in the signature transformers calls.

    Args:
        module: the attention layer; its `is_causal`, and that of its config, decide unless they are passed.
        query: [1, heads, tokens, dim].
        key, value: [1, key heads, tokens, dim]; heads is a multiple of key heads.
        attention_mask: None, since sequences are told apart by the lengths below.
        scaling: factor on the products; None is dim ** -0.5.
        dropout: 0 outside training.
        sequence_runs: (first token, sequences, length) of each run of equally long sequences.
        cu_seq_lens_q: int32 [n + 1], cumulative lengths.
        max_length_q: the longest sequence.
        sequence_seen: bool [tokens], the tokens that are attended to; None: all.
        is_causal: whether a token sees none behind it.
        sliding_window: a token sees those less than this far away.
        softcap: Gemma 2's bound on the products.

    Returns:
        ([1, tokens, heads, dim], None): the output, and no attention weights.
    """
    flat_query, flat_key, flat_value = (states[0].transpose(0, 1) for states in (query, key, value))
    made_causal = getattr(module, "is_causal", True)
    if is_causal is None:
        is_causal = made_causal and getattr(getattr(module, "config", None), "is_causal", True) is not False
    if made_causal and not is_causal and sliding_window is not None:
        sliding_window += 1  # transformers' mask counts the far end in where a causal class looks both ways
    rule = _Rule(is_causal, sliding_window, softcap, scaling)
    lengths = (sequence_runs, cu_seq_lens_q, max_length_q)
    return _attend(flat_query, flat_key, flat_value, rule, *lengths, sequence_seen, from_first=False)[None], None


def attend_from_first(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float | None,
    *,
    sequence_runs: list[tuple[int, int, int]],
    cu_seq_lens_q: Tensor,
    max_length_q: int,
    sequence_seen: Tensor | None = None,
) -> Tensor:
    """[n, heads, dim]: what the first token of each sequence attends to.

    Args:
        query: [n, heads, dim], of the first tokens.
        key, value: [tokens, heads, dim], of all.
        scaling, sequence_runs, cu_seq_lens_q, max_length_q, sequence_seen: as in `packed_attention`.
    """
    rule = _Rule(scaling=scaling)
    return _attend(query, key, value, rule, sequence_runs, cu_seq_lens_q, max_length_q, sequence_seen, from_first=True)


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rule: _Rule,
    runs: list[tuple[int, int, int]],
    offsets: Tensor,
    longest: int,
    seen: Tensor | None,
    *,
    from_first: bool,
) -> Tensor:
    """Attention inside each sequence; `query` holds all tokens, or the first of each sequence if `from_first`."""
    if key.shape[1] != query.shape[1]:  # grouped queries share a key head
        key, value = (states.repeat_interleave(query.shape[1] // key.shape[1], 1) for states in (key, value))
    options = _varlen_options(rule, query.shape[-1]) if query.is_cuda and query.dtype != torch.float32 else None
    if options is not None and seen is None:
        from torch.nn.attention.varlen import varlen_attn

        asked_offsets = torch.arange(len(offsets), dtype=torch.int32, device=query.device) if from_first else offsets
        lengths = (asked_offsets, offsets, 1 if from_first else longest, longest)
        attended = varlen_attn(query, key, value, *lengths, **options)
        assert isinstance(attended, Tensor)
        return attended
    output = torch.empty(*query.shape[:-1], value.shape[-1], dtype=query.dtype, device=query.device)
    done = 0
    for start, sequences, length in runs:
        queries = 1 if from_first else length
        asked, found = slice(done, done + sequences * queries), slice(start, start + sequences * length)
        hidden = seen is not None and not bool(seen[found].all())
        mask = rule.mask(length, query.device, causality=hidden)
        if seen is not None and hidden:
            visible = seen[found].view(sequences, 1, 1, length)
            mask = visible if mask is None else visible & mask
        attended = _dense_attention(
            query[asked].unflatten(0, (sequences, queries)).transpose(1, 2),
            key[found].unflatten(0, (sequences, length)).transpose(1, 2),
            value[found].unflatten(0, (sequences, length)).transpose(1, 2),
            mask,
            rule,
        )
        output[asked] = attended.transpose(1, 2).flatten(0, 1)
        done = asked.stop
    return output


def _dense_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, rule: _Rule) -> Tensor:
    """[n, heads, queries, dim] of equally long sequences."""
    causal = rule.causal and mask is None and query.shape[2] > 1
    if rule.softcap is None:
        return scaled_dot_product_attention(query, key, value, mask, is_causal=causal, scale=rule.scaling)
    # no fused kernel caps the products; float32 as in the model's own code
    scale = query.shape[-1] ** -0.5 if rule.scaling is None else rule.scaling
    products = (query @ key.transpose(2, 3) * scale / rule.softcap).tanh() * rule.softcap
    if causal:
        mask = torch.ones(products.shape[2:], dtype=torch.bool, device=query.device).tril()
    if mask is not None:
        products = products.masked_fill(~mask, -torch.inf)
    return products.float().softmax(-1).to(query.dtype) @ value


def _varlen_options(rule: _Rule, dim: int) -> dict[str, Any] | None:
    """The keywords torch's kernel takes for a rule; None if it cannot follow it."""
    from torch.nn.attention.varlen import varlen_attn

    known = signature(varlen_attn).parameters
    options: dict[str, Any] = {}
    # only what is not the default is passed: older releases know fewer of them
    if rule.scaling is not None and not math.isclose(rule.scaling, dim**-0.5):
        options["scale"] = rule.scaling
    if rule.window is not None or (rule.causal and "is_causal" not in known):
        reach = -1 if rule.window is None else rule.window - 1
        options["window_size"] = (reach, 0 if rule.causal else reach)
    elif rule.causal:
        options["is_causal"] = True
    return options if rule.softcap is None and options.keys() <= known.keys() else None


AttentionInterface.register(PACKED, packed_attention)
AttentionMaskInterface.register(PACKED, lambda *args, **kwargs: None)
