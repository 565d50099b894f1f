"""Attention over a pack without padding, registered with transformers under the name PACKED.

transformers models look their attention up by name, so registering one function makes all models that do run on a flat
(1, tokens) batch. Which tokens see each other a model says in its mask: in place of one, it gets the rule that the
mask follows. Whatever else it asks for, in its mask or in a keyword, is an `UnknownAttentionError`, never
left out. On CUDA in 16 bits it is torch's variable-length kernel, and where that does not fit, a padded batch
(`padded.py`). On a CPU it is a kernel of our own where that could be built (`native_attention.py`). Elsewhere the pack,
which is sorted by length, is divided into runs of equally long sequences: each run is a dense (n, heads, length, dim)
batch without a mask, which is scaled_dot_product_attention's fastest path. The price is one call per run.

Nothing here waits for the device: whatever depends on values is decided on the host, once per pack (`sequences.py`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from batchscore.models.load import Layout
from batchscore.models.transfer import to_device
from batchscore.runners.dense import run_attention, shared_heads
from batchscore.runners.gathered import attend_in_reach
from batchscore.runners.masks import Rule, UnknownAttentionError, packed_mask
from batchscore.runners.native import kernels
from batchscore.runners.native_attention import fits_native, has_native, native_attention
from batchscore.runners.padded import padded_attention
from batchscore.runners.sequences import Sequences
from batchscore.runners.varlen import fits_kernel, kernel_attention

PACKED = "batchscore_packed"

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
    if sequences.reach is not None:
        return attend_in_reach(query, key, value, rule, sequences.reach)
    if sequences.seen is None and rule.softcap is None and fits_kernel(query, value):
        return kernel_attention(query, key, value, rule, sequences, from_first=from_first)
    if not query.is_cpu:
        return padded_attention(query, key, value, rule, sequences, from_first=from_first)
    if fits_native(query, key, value, rule, sequences):
        return native_attention(query, key, value, rule, sequences, from_first=from_first)
    return run_attention(query, *shared_heads(query, key, value), rule, sequences, from_first=from_first)


def attention_path(device: str, dtype: str, layout: Layout = "flat") -> tuple[str, str]:
    """(which attention runs, why), of a model of this layout; what single layers ask for can change it."""
    if layout != "flat":
        how = "padded batches" if layout == "padded" else "batches of one length"
        return how, "the model's own attention: without padding it would not give each sequence what it gets alone"
    if device != "cpu":
        if fits_kernel(*torch.empty(2, 1, 1, 64, device=device, dtype=getattr(torch, dtype))):
            return "varlen", "torch's kernel for sequences of different lengths, which reads a pack without padding"
        why = "it takes 16 bits, and float32 was chosen" if dtype == "float32" else "this GPU is older than Ampere"
        return "padded", f"torch's kernel for sequences of different lengths cannot run: {why}"
    if has_native(dtype):
        return "native", f"our own kernel, {kernels().reason}; it reads a pack without padding"
    return "torch", f"a call for each length of a pack; of our own kernels {kernels().reason}"


@torch.inference_mode()
def attention_error(device: str, dtype: str) -> float:
    """How far attention over a pack is from its definition, at most, on a few numbers: what a self-test looks at."""
    lengths, generator = [35, 18, 18, 1], torch.Generator().manual_seed(0)
    numbers = torch.randn(3, sum(lengths), 2, 64, generator=generator).to(device, getattr(torch, dtype))
    sequences = Sequences.of(np.array(lengths), None, lambda array: to_device(array, device))
    query, key, value = numbers
    ours = _attend(query, key, value, Rule(), sequences, from_first=False)
    parts = zip(*(states.float().transpose(0, 1).split(lengths, 1) for states in numbers), strict=True)
    theirs = [((one @ keys.mT) * 64**-0.5).softmax(-1) @ values for one, keys, values in parts]
    return float((ours.float() - torch.cat(theirs, 1).transpose(0, 1)).abs().max())


AttentionInterface.register(PACKED, packed_attention)
AttentionMaskInterface.register(PACKED, packed_mask)
