"""A model with a checkpoint's tensors put in their places, without the machinery of transformers' `from_pretrained`.

The class builds itself with parameters that have no memory and with real buffers, which its `__init__` fills; then each
tensor takes the place of its name. That is all there is to loading where names and shapes fit as they stand. Where they
do not, or where transformers knows of a conversion, a tensor kept in float32 or a buffer that it would compute
otherwise, nothing is loaded and `from_pretrained` is the judge: it converts, or its report becomes the error message.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Lock, get_ident
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.initialization import no_init_weights

# model types for which transformers has no conversions: it would compile a thousand patterns to say so
UNCONVERTED = {"bert", "camembert", "deberta-v2", "distilbert", "electra", "eurobert", "gemma", "llama", "mistral"}
UNCONVERTED |= {"modernbert", "mpnet", "qwen2", "qwen3", "roberta", "t5", "xlm-roberta"}
_OLD_BUFFERS = (r"rotary_emb\.inv_freq", r"(^|\.)position_ids$")
_CONVERTING = 4  # threads
_LOADING = Lock()  # `no_init_weights` changes torch's modules for all threads


def materialize(
    kind: type[PreTrainedModel],
    config: PreTrainedConfig,
    tensors: Mapping[str, Tensor],
    dtype: torch.dtype,
    *,
    unread: re.Pattern[str],
    pooler: bool,
) -> tuple[PreTrainedModel, set[str]] | None:
    """Build a model and give it the tensors, the floating ones in `dtype`.

    Args:
        kind: the class.
        config: its config, which stays as it is.
        tensors: by the names of the checkpoint; with the prefix of the base model or without it.
        dtype: of the parameters.
        unread: names in the checkpoint that may have no place.
        pooler: whether the model keeps its pooler, so that its tensors are needed.

    Returns:
        (the model, the tensors that have no place in it); None: this is for `from_pretrained`.
    """
    if not _is_plain(kind, config):
        return None
    model = _build(kind, copy.deepcopy(config), dtype)
    if not pooler and isinstance(getattr(model, "pooler", None), nn.Module):
        model.pooler = nn.Identity()
    places, tied = model.state_dict(), model.all_tied_weights_keys.keys()
    if _converts(model, dtype):
        return None
    placed = {name: _place(name, places, model.base_model_prefix) for name in tensors}
    given = {place: tensors[name] for name, place in placed.items() if place is not None}
    left = {name for name, place in placed.items() if place is None}
    missing = {name for name in places.keys() - given.keys() - tied if not name.endswith("position_ids")}
    fits = all(places[name].shape == tensor.shape for name, tensor in given.items())
    is_clear = len(given) + len(left) == len(tensors) and not tied & given.keys()
    if missing or not fits or not is_clear or not all(map(unread.search, left)):
        return None
    dtypes = [places[name].dtype for name in given]
    with ThreadPoolExecutor(_CONVERTING) as pool:
        ready = dict(zip(given, pool.map(Tensor.to, given.values(), dtypes), strict=True))
    model.load_state_dict(ready, strict=False, assign=True)
    model.tie_weights()
    return model.eval(), {name for name in left if not _is_ignored(name, kind)}


def _is_plain(kind: Any, config: PreTrainedConfig) -> bool:
    """Whether the class loads as most do, from tensors that are not quantized."""
    usual: Any = PreTrainedModel.from_pretrained
    is_usual = getattr(kind.from_pretrained, "__func__", None) is usual.__func__
    return is_usual and not any(getattr(config, f"{name}_config", None) for name in ("quantization", "fusion"))


def _converts(model: Any, dtype: torch.dtype) -> bool:
    """Whether a tensor may be more than renamed, or a buffer not what `__init__` has made it."""
    kept = model._keep_in_fp32_modules_strict or (dtype == torch.float16 and model._keep_in_fp32_modules)
    # a buffer in 16 bits was computed in them, and from_pretrained may do that in 32
    computed = any(buffer.dtype == dtype for buffer in model.buffers())
    if dtype != torch.float32 and (kept or computed):
        return True
    return model.config.model_type not in UNCONVERTED and bool(get_model_conversion_mapping(model, add_legacy=False))


def _place(name: str, places: Mapping[str, Tensor], prefix: str) -> str | None:
    """The name in the model of a tensor of the checkpoint; None: it has no place there."""
    choices = (name, name.removeprefix(f"{prefix}."), f"{prefix}.{name}")
    return next((choice for choice in choices if choice in places), None)


def _is_ignored(name: str, kind: type[PreTrainedModel]) -> bool:
    """Whether transformers leaves a tensor without a word, even if it has no place for it."""
    patterns = (*_OLD_BUFFERS, *(kind._keys_to_ignore_on_load_unexpected or ()))
    return any(re.search(pattern, name) for pattern in patterns)


def _build(kind: type[PreTrainedModel], config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    with _LOADING, no_init_weights(), _parameters_on_meta():
        model: PreTrainedModel = kind._from_config(config, dtype=dtype)
    return model


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Modules that this thread builds have parameters without memory; buffers stay."""
    module_class: Any = nn.Module
    register, builder = module_class.register_parameter, get_ident()

    def register_on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and get_ident() == builder:
            parameter = nn.Parameter(parameter.to("meta"), requires_grad=False)
        register(module, name, parameter)

    module_class.register_parameter = register_on_meta
    try:
        yield
    finally:
        module_class.register_parameter = register
