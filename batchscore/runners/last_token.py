"""The last layer of a decoder, for the last token of each sequence alone.

Where the readout is the last token, nothing reads the last layer's other outputs. Of a layer's products only those for
keys and values are needed for all tokens: in a Qwen3 of 0.6B parameters an eighth of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from batchscore.runners.gathered import attend_in_reach
from batchscore.runners.masks import Rule
from batchscore.runners.sequences import LastTokens

_PARTS = ("input_layernorm", "self_attn", "post_attention_layernorm", "mlp")
_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj", "head_dim", "scaling")


def shorten_last_layer(body: Any) -> Callable[[], None] | None:
    """Have a body's last layer run for last tokens alone wherever a batch says that only these are read.

    Whether the layer computes what its parts suggest is for the caller to try out.

    Returns:
        What undoes it; None: the body's layers have other parts than Llama's.
    """
    layers = getattr(body, "layers", None)
    if not isinstance(layers, nn.ModuleList) or not len(layers):
        return None
    layer: Any = layers[-1]
    attention = getattr(layer, "self_attn", None)
    known = all(hasattr(layer, name) for name in _PARTS) and all(hasattr(attention, name) for name in _ATTENTION)
    if not known:
        return None
    layer.forward = partial(_forward, layer, layer.forward)
    return partial(delattr, layer, "forward")


def _forward(layer: Any, whole: Callable[..., Tensor], hidden_states: Tensor, *others: Any, **keywords: Any) -> Tensor:
    """[1, n, dim] of last tokens; in a batch of which more is read, what the layer gives by itself."""
    sequences, rule = keywords.get("sequences"), keywords.get("attention_mask")
    embedding = keywords.get("position_embeddings")
    if sequences is None or sequences.last is None or not isinstance(rule, Rule) or embedding is None:
        return whole(hidden_states, *others, **keywords)
    return _at_last_tokens(layer, hidden_states, rule, embedding, sequences.last)


def _at_last_tokens(
    layer: Any, hidden: Tensor, rule: Rule, embedding: tuple[Tensor, Tensor], last: LastTokens
) -> Tensor:
    """[1, n, dim]: what the layer gives for last tokens.

    Args:
        layer: one with the parts of Llama's; queries and keys may be normed.
        hidden: [1, tokens, dim], its input.
        rule: of its mask.
        embedding: cos and sin of the tokens' positions, each [1, tokens, head dim].
        last: the last tokens.
    """
    attention = layer.self_attn
    normed = layer.input_layernorm(hidden)
    query = _heads(attention, "q", normed[:, last.places])
    key, value = (_heads(attention, name, normed) for name in ("k", "v"))
    query = _rotated(query, *(part[:, last.places] for part in embedding))
    query, key, value = (states[0].transpose(0, 1) for states in (query, _rotated(key, *embedding), value))
    attended = attend_in_reach(query, key, value, replace(rule, scaling=attention.scaling), last.reach)
    states = hidden[:, last.places] + attention.o_proj(attended.flatten(1)[None])
    output: Tensor = states + layer.mlp(layer.post_attention_layernorm(states))
    return output


def _heads(attention: Any, name: str, states: Tensor) -> Tensor:
    """[1, heads, tokens, head dim] of queries, keys or values."""
    projected = getattr(attention, f"{name}_proj")(states).unflatten(-1, (-1, attention.head_dim))
    norm = getattr(attention, f"{name}_norm", None)
    heads: Tensor = (projected if norm is None else norm(projected)).transpose(1, 2)
    return heads


def _rotated(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """[1, heads, tokens, head dim] with positions: the rotary embedding of Llama, whose pairs are half a head apart."""
    first, second = states.chunk(2, dim=-1)
    rotated = states * cos[:, None] + torch.cat((-second, first), dim=-1) * sin[:, None]
    return rotated.to(states.dtype)  # some have cos and sin in float32
