"""The last layer of a BERT-like body, for the first token of each sequence alone.

Where the readout is the first token (cross-encoders, CLS pooling), nothing reads the last layer's other outputs. Of a
layer's 12 matrix products per token (hidden x hidden each), only the 2 for keys and values are needed for all tokens.
That saves a seventh of the work of a six-layer model, less of a deeper one.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from batchscore.runners.attention import attend_from_first
from batchscore.runners.sequences import Sequences


def last_layer_at_first_tokens(layer: Any, hidden: Tensor, sequences: Sequences) -> Tensor:
    """[n, dim]: what `layer` would give for the first token of each sequence.

    Args:
        layer: a BertLayer, or one whose parts have the same names.
        hidden: [tokens, dim], its input, sequences end to end.
        sequences: where they lie.
    """
    attention = layer.attention
    first = hidden[sequences.starts]
    query, key, value = (
        _heads(linear(states), attention.self.attention_head_size)
        for linear, states in (
            (attention.self.query, first),
            (attention.self.key, hidden),
            (attention.self.value, hidden),
        )
    )
    attended = attend_from_first(query, key, value, attention.self.scaling, sequences)
    states = attention.output(attended.flatten(1), first)
    result: Tensor = layer.output(layer.intermediate(states), states)
    return result


def _heads(states: Tensor, size: int) -> Tensor:
    heads: Tensor = states.unflatten(-1, (-1, size))
    return heads


def take_last_layer(body: nn.Module, layers: str) -> nn.Module:
    """Remove the last of the body's layers and return it."""
    parent, _, name = layers.rpartition(".")
    owner = body.get_submodule(parent)
    stack = owner.get_submodule(name)
    assert isinstance(stack, nn.ModuleList)
    setattr(owner, name, stack[:-1])
    return stack[-1]
