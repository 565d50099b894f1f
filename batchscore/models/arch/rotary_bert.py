"""A BERT with rotary positions: nomic-embed-text-v2-moe, whose every other layer is a mixture of experts, and mGTE.

transformers has only the dense NomicBERT, and mGTE only in later releases. Modules are named after NomicBERT's tensors.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


class _Router(nn.Module):
    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__()
        self.layer = nn.Linear(config.hidden_size, config.num_experts, bias=False)


class _ExpertWeights(nn.Module):
    """The experts' two matrices, one below the other: [experts * intermediate, dim]."""

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__()
        rows = config.num_experts * config.intermediate_size
        self.w1 = nn.Parameter(torch.empty(rows, config.hidden_size))
        self.w2 = nn.Parameter(torch.empty(rows, config.hidden_size))


class _Experts(nn.Module):
    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__()
        self.mlp = _ExpertWeights(config)
        self.bias = nn.Parameter(torch.zeros(config.hidden_size))


class _Mixture(nn.Module):
    """Each token goes to its `top_k` experts, weighted by the router's probabilities, which are not renormalised."""

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__()
        self.top_k: int = config.moe_top_k
        self.count: int = config.num_experts
        self.router = _Router(config)
        self.experts = _Experts(config)

    def forward(self, states: Tensor) -> Tensor:
        """[..., dim]."""
        tokens = states.flatten(0, -2)
        weights, chosen = self.router.layer(tokens).float().softmax(-1).topk(self.top_k, -1)
        up, down = (matrix.unflatten(0, (self.count, -1)) for matrix in (self.experts.mlp.w1, self.experts.mlp.w2))
        mixed = torch.zeros_like(tokens)
        order = chosen.flatten().argsort(stable=True)
        # how many tokens an expert gets decides shapes, so the host waits for the device here, once per layer
        counts = chosen.flatten().bincount(minlength=self.count).tolist()
        for expert, index in enumerate(order.split(counts)):
            token = index // self.top_k
            output = gelu(tokens[token] @ up[expert].T) @ down[expert]
            mixed.index_add_(0, token, output * weights.flatten()[index, None].to(output.dtype))
        return (mixed + self.experts.bias).view_as(states)


class _Mlp(nn.Module):
    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_fc1_bias)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_fc2_bias)

    def forward(self, states: Tensor) -> Tensor:
        """[..., dim]."""
        result: Tensor = self.fc2(gelu(self.fc1(states)))
        return result


class _GatedMlp(nn.Module):
    """mGTE's: the first matrix holds the up projection, and below it the gate's."""

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=config.mlp_fc1_bias)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_fc2_bias)

    def forward(self, states: Tensor) -> Tensor:
        """[..., dim]."""
        up, gate = self.fc1(states).chunk(2, -1)
        result: Tensor = self.fc2(gelu(gate) * up)
        return result


class _Attention(nn.Module):
    is_causal = False

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__()
        self.config, self.heads = config, config.num_attention_heads
        self.Wqkv = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=config.qkv_proj_bias)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=config.qkv_proj_bias)

    def forward(self, states: Tensor, rotary: tuple[Tensor, Tensor], mask: Tensor | None, **keywords: Any) -> Tensor:
        """[batch, tokens, dim]."""
        query, key, value = self.Wqkv(states).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        query, key = _rotate(query, *rotary), _rotate(key, *rotary)
        implementation = self.config._attn_implementation
        if implementation in {"sdpa", "eager"}:
            attended = scaled_dot_product_attention(query, key, value, mask).transpose(1, 2)
        else:
            attended, _ = ALL_ATTENTION_FUNCTIONS[implementation](self, query, key, value, None, **keywords)
        result: Tensor = self.out_proj(attended.flatten(2))
        return result


def _rotate(states: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    first, second = states.chunk(2, -1)
    return states * cosine + torch.cat((-second, first), -1) * sine


class _Layer(nn.Module):
    def __init__(self, config: PreTrainedConfig, mlp: nn.Module) -> None:
        super().__init__()
        self.attn = _Attention(config)
        self.mlp = mlp
        self.norm1 = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.norm2 = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)

    def forward(self, states: Tensor, rotary: tuple[Tensor, Tensor], mask: Tensor | None, **keywords: Any) -> Tensor:
        """[batch, tokens, dim], normalised after each residual."""
        states = self.norm1(states + self.attn(states, rotary, mask, **keywords))
        result: Tensor = self.norm2(states + self.mlp(states))
        return result


class _Encoder(nn.Module):
    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__()
        period = getattr(config, "moe_every_n_layers", 0)
        dense = _GatedMlp if getattr(config, "gated", False) else _Mlp
        kinds = [_Mixture if period and layer % period == 1 else dense for layer in range(config.num_hidden_layers)]
        self.layers = nn.ModuleList(_Layer(config, kind(config)) for kind in kinds)


class _Embeddings(nn.Module):
    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)


class RotaryBertModel(PreTrainedModel):
    """[batch, tokens] ids to [batch, tokens, dim] states."""

    config_class = PreTrainedConfig
    _supports_attention_backend = True
    _supports_sdpa = True

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        self.embeddings = _Embeddings(config)
        self.emb_ln = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.encoder = _Encoder(config)
        self.post_init()

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        return True  # transformers would look for phrases of its own in this file

    def get_input_embeddings(self) -> nn.Module:
        """The table of token vectors."""
        return self.embeddings.word_embeddings

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        **keywords: Any,
    ) -> SimpleNamespace:
        """`last_hidden_state` [batch, tokens, dim]."""
        embedded = self.embeddings.word_embeddings(input_ids) + self.embeddings.token_type_embeddings.weight[0]
        states = self.emb_ln(embedded)
        if position_ids is None:
            position_ids = torch.arange(input_ids.shape[1], device=input_ids.device)[None]
        rotary = self._rotary(position_ids, states.dtype)
        mask = None if attention_mask is None else attention_mask.bool()[:, None, None]
        for layer in self.encoder.layers:
            states = layer(states, rotary, mask, **keywords)
        return SimpleNamespace(last_hidden_state=states)

    def _rotary(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosines and sines [batch, 1, tokens, head_dim]; the frequencies are computed, not loaded."""
        dim = self.config.hidden_size // self.config.num_attention_heads
        exponents = torch.arange(0, dim, 2, device=positions.device).float() / dim
        rope = self.config.rope_parameters
        frequencies = rope["rope_theta"] ** -exponents / rope.get("factor", 1.0)
        angles = positions[:, None, :, None].float() * frequencies
        angles = torch.cat((angles, angles), -1)
        return angles.cos().to(dtype), angles.sin().to(dtype)
