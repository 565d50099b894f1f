"""Attention over a pack without padding, registered with transformers under the name PACKED.

transformers models look their attention up by name, so registering one function makes all models that do run on a flat
(1, tokens) batch. Which tokens see each other a model says in its mask: in place of one, it gets the rule that the
mask follows. Whatever else it asks for, in its mask or in a keyword, is an `UnknownAttentionError`, never
left out. On CUDA in 16 bits it is torch's variable-length kernel. Elsewhere the pack, which is sorted by
length, is divided into runs of equally long sequences: each run is a dense (n, heads, length, dim) batch without a
mask, which is scaled_dot_product_attention's fastest path. The price is one call per run.

Nothing here waits for the device: whatever depends on values (which runs hide tokens) is decided on the host, once per
pack, by `Sequences.of`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from inspect import signature
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from batchscore.runners.masks import Rule, UnknownAttentionError, packed_mask
from batchscore.types import offsets_of

PACKED = "batchscore_packed"
_KERNEL_DTYPES = (torch.bfloat16, torch.float16)
_KERNEL_HEAD_SIZE = 256  # FlashAttention's largest; its sizes come in steps of 8

Run = tuple[int, int, int]  # (first token, sequences, length) of equally long sequences


# keywords of an attention function that change nothing here: what is known of the pack already, and what is returned
_WITHOUT_EFFECT = {
    "position_ids",
    "cu_seq_lens_q",
    "cu_seq_lens_k",
    "max_length_q",
    "max_length_k",
    "use_cache",
    "cache",
}
_WITHOUT_EFFECT |= {"past_key_values", "cache_position", "output_attentions", "output_hidden_states", "return_dict"}


@dataclass(frozen=True, slots=True)
class Sequences:
    """Where the sequences of a flat batch lie, and which of their tokens are attended to."""

    runs: list[Run]
    offsets: Tensor  # int32 [n + 1]
    longest: int
    seen: list[Tensor | None] | None  # of each run bool [sequences, 1, 1, length], None: all; None: all of all runs

    @classmethod
    def of(
        cls, lengths: NDArray[np.integer], seen: NDArray[np.bool_] | None, tensor: Callable[[NDArray[Any]], Tensor]
    ) -> Sequences:
        """A pack's.

        Args:
            lengths: int [n].
            seen: bool [tokens], the tokens that are attended to; None: all.
            tensor: puts an array on the device.
        """
        runs, offsets = runs_of(lengths), tensor(offsets_of(lengths).astype(np.int32))
        return cls(runs, offsets, int(lengths.max(initial=0)), _seen_of_runs(seen, runs, tensor))

    @property
    def tokens(self) -> int:
        """Of all sequences."""
        start, count, length = self.runs[-1]
        return start + count * length

    @property
    def starts(self) -> Tensor:
        """int64 [n]: first token of each sequence."""
        return self.offsets[:-1].long()

    def keywords(self) -> dict[str, Any]:
        """For a model's forward: ours, and the names by which some models look for joints themselves."""
        return {"sequences": self, "cu_seq_lens_q": self.offsets, "max_length_q": self.longest}


def runs_of(lengths: NDArray[np.integer]) -> list[Run]:
    """The stretches of equal length."""
    offsets = offsets_of(lengths)
    starts = np.flatnonzero(np.diff(lengths, prepend=-1))
    counts = np.diff(starts, append=len(lengths))
    return [(int(offsets[s]), int(c), int(lengths[s])) for s, c in zip(starts, counts, strict=True)]


def _seen_of_runs(
    seen: NDArray[np.bool_] | None, runs: list[Run], tensor: Callable[[NDArray[Any]], Tensor]
) -> list[Tensor | None] | None:
    """Decided on the host: asking a tensor on the device would wait for it, for each run of each layer."""
    if seen is None or seen.all():
        return None
    on_device = tensor(seen)
    spans = [(slice(start, start + count * length), count, length) for start, count, length in runs]
    return [None if seen[span].all() else on_device[span].view(count, 1, 1, length) for span, count, length in spans]


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Rule | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    *,
    sequences: Sequences,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention inside each sequence of a flat batch, in the signature transformers calls.

    Args:
        module: the attention layer.
        query: [1, heads, tokens, dim].
        key, value: [1, key heads, tokens, dim]; heads is a multiple of key heads.
        attention_mask: what `packed_mask` gave the model.
        scaling: factor on the products; None is dim ** -0.5.
        dropout: 0 outside training.
        sequences: of the pack.
        is_causal: of a model that makes no mask: whether a token sees only those before it; None: `module.is_causal`.
        sliding_window: for kernels without a mask; the mask has it too.
        softcap: Gemma 2's bound on the products.
        others: keywords that change nothing.

    Returns:
        ([1, tokens, heads, dim], None): the output, and no attention weights.

    Raises:
        UnknownAttentionError: the model asks for something else, or for attention to other tokens.
    """
    rule = attention_mask
    if rule is None and sliding_window is None:  # as scaled_dot_product_attention is called without a mask
        rule = Rule(getattr(module, "is_causal", True) if is_causal is None else is_causal)
    if not isinstance(rule, Rule):
        raise UnknownAttentionError("a mask of the model's own")
    _require_no_effect(others)
    if not query.shape[0] == key.shape[0] == 1 or not query.shape[2] == key.shape[2] == sequences.tokens:
        raise UnknownAttentionError("attention to other tokens than those of the batch")
    rule = replace(rule, softcap=softcap, scaling=scaling)
    flat_query, flat_key, flat_value = (states[0].transpose(0, 1) for states in (query, key, value))
    return _attend(flat_query, flat_key, flat_value, rule, sequences, from_first=False)[None], None


def _require_no_effect(keywords: dict[str, Any]) -> None:
    """Raise UnknownAttentionError for a keyword that may change what is attended to."""
    for name, option in keywords.items():
        if option is not None and option is not False and name not in _WITHOUT_EFFECT:
            raise UnknownAttentionError(f"attention with {name}")


def attend_from_first(query: Tensor, key: Tensor, value: Tensor, scaling: float | None, sequences: Sequences) -> Tensor:
    """[n, heads, dim]: what the first token of each sequence attends to, in both directions.

    Args:
        query: [n, heads, dim], of the first tokens.
        key, value: [tokens, heads, dim], of all tokens.
        scaling, sequences: as in `packed_attention`.
    """
    return _attend(query, key, value, Rule(scaling=scaling), sequences, from_first=True)


def _attend(query: Tensor, key: Tensor, value: Tensor, rule: Rule, sequences: Sequences, *, from_first: bool) -> Tensor:
    """Attention inside each sequence; `query` holds all tokens, or the first of each sequence if `from_first`."""
    if sequences.seen is None and rule.softcap is None and _fits_kernel(query, value):
        return _kernel_attention(query, key, value, rule, sequences, from_first=from_first)
    return _run_attention(query, *_shared(query, key, value), rule, sequences, from_first=from_first)


def _shared(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values once for each query head, where groups of queries share a key head."""
    groups = query.shape[1] // key.shape[1]
    return (key, value) if groups == 1 else (key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1))


# ---- torch's variable-length kernel


@lru_cache
def _has_kernel(device: torch.device) -> bool:
    """Whether the device runs torch's variable-length kernel: FlashAttention 2 needs an Ampere GPU or a later one."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def _fits_kernel(query: Tensor, value: Tensor) -> bool:
    size = query.shape[-1]
    known_size = size == value.shape[-1] and size % 8 == 0 and size <= _KERNEL_HEAD_SIZE
    return known_size and query.dtype in _KERNEL_DTYPES and _has_kernel(query.device)


def _kernel_attention(
    query: Tensor, key: Tensor, value: Tensor, rule: Rule, sequences: Sequences, *, from_first: bool
) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    # the kernel's window counts how many tokens are seen on either side; -1 is no bound, and (-1, 0) causal
    reach = -1 if rule.window is None else rule.window - 1
    options: dict[str, Any] = {"scale": rule.scaling, "window_size": (reach, 0 if rule.causal else reach)}
    if _knows(varlen_attn, "enable_gqa"):  # torch 2.11 does not
        options["enable_gqa"] = key.shape[1] != query.shape[1]
    else:
        key, value = _shared(query, key, value)
    offsets, longest = sequences.offsets, sequences.longest
    query_offsets = torch.arange(len(offsets), dtype=torch.int32, device=offsets.device) if from_first else offsets
    output = varlen_attn(query, key, value, query_offsets, offsets, 1 if from_first else longest, longest, **options)
    assert isinstance(output, Tensor)
    return output


@lru_cache
def _knows(function: Callable[..., Any], keyword: str) -> bool:
    return keyword in signature(function).parameters


# ---- dense batches of equally long sequences


def _run_attention(
    query: Tensor, key: Tensor, value: Tensor, rule: Rule, sequences: Sequences, *, from_first: bool
) -> Tensor:
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
        return scaled_dot_product_attention(query, key, value, mask, is_causal=causal, scale=rule.scaling)
    # no fused kernel caps the products; float32 as in the model's own code
    scale = query.shape[-1] ** -0.5 if rule.scaling is None else rule.scaling
    products = (query @ key.transpose(2, 3) * scale / rule.softcap).tanh() * rule.softcap
    if causal:
        mask = torch.ones(products.shape[2:], dtype=torch.bool, device=query.device).tril()
    if mask is not None:
        products = products.masked_fill(~mask, -torch.inf)
    return products.float().softmax(-1).to(query.dtype) @ value


AttentionInterface.register(PACKED, packed_attention)
AttentionMaskInterface.register(PACKED, packed_mask)
