"""Models of texts and images that read pages: retrievers over PaliGemma and ModernBERT, and LLaVA's embedders."""

from __future__ import annotations

from dataclasses import replace

from batchscore.models.arch.decoders import LAST
from batchscore.models.arch.entry import Architecture, Entry, Json, Layer, Rename, Vision


def _inner(config: Json) -> Json:
    """The model inside a retriever."""
    return {**config["vlm_config"], "architectures": config["architectures"]}


def _both_ways(config: Json) -> Json:
    inner = _inner(config)
    return {**inner, "text_config": {**inner["text_config"], "is_causal": False, "sliding_window": None}}


_COLPALI = Architecture(
    "late-interaction",
    hub="vidore/colpali-v1.3-hf",
    translate=_both_ways,
    renames=(
        Rename(r"^vlm\.(model\.)?", ("",)),
        Rename(r"^language_model\.model\.", ("language_model.",)),
    ),
    unread=r"(^|\.)lm_head\.",
    head=(Layer("embedding_proj_layer"),),
    template="colpali",
    special_tokens=False,
    vision=Vision("paligemma", image="<image>"),
)
_MODERNVBERT = Architecture(
    "late-interaction",
    hub="ModernVBERT/colmodernvbert-merged",
    renames=(
        Rename(r"^(vlm|model)\.", ("",)),
        Rename(r"^vision_model\.vision_model\.", ("vision_model.",)),
    ),
    head=(Layer("custom_text_proj"),),
    template="colmodernvbert",
    vision=Vision("idefics", image="<image>"),
)


def _modernvbert(config: Json) -> Architecture:
    """The layout of transformers, or with this name that of colpali-engine."""
    if "vlm_config" not in config:
        return _MODERNVBERT
    return replace(_MODERNVBERT, translate=_inner, head=(Layer("embedding_proj_layer"),))

# any class of transformers that reads images, as its own processor writes them
_ANY = replace(LAST, vision=Vision("generic", image="<image>"))
_E5V = replace(_ANY, hub="royokong/e5-v", template="e5-v")


def _llava_next(config: Json) -> Architecture:
    """e5-v has a prompt in the words of Llama 3."""
    is_llama = config.get("text_config", {}).get("model_type", "llama") == "llama"
    return _E5V if is_llama else _ANY


PAGES: dict[str, Entry] = {
    "ColPaliForRetrieval": replace(
        _COLPALI,
        in_vllm=replace(_COLPALI, translate=_inner, head=(Layer("embedding_proj_layer", bias=False),)),
    ),
    "ColModernVBert": _MODERNVBERT,
    "ColModernVBertForRetrieval": _modernvbert,
    "LlavaNextForConditionalGeneration": _llava_next,
}
