"""Models of texts and images that read pages: retrievers over PaliGemma and ModernBERT, and LLaVA's embedders."""

from __future__ import annotations

from dataclasses import replace

from batchscore.models.arch.decoders import LAST
from batchscore.models.arch.entry import Architecture, Entry, Json, Layer, Rename, Vision
from batchscore.models.arch.vision import QWEN, inner

_FAR = 1 << 30  # tokens: PaliGemma 2's windows do not bound what is read in both directions


def _both_ways(config: Json) -> Json:
    text = {"is_causal": False, "use_bidirectional_attention": True, "sliding_window": _FAR}
    return {**config, "text_config": {**config["text_config"], **text}}


def _causal(config: Json) -> Json:
    """transformers' default for PaliGemma is causal only where there is padding."""
    return {**config, "text_config": {**config["text_config"], "use_bidirectional_attention": False}}


_COLPALI = Architecture(
    "late-interaction",
    hub="vidore/colpali-v1.3-hf",
    translate=lambda config: _both_ways(inner(config)),
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
    return replace(_MODERNVBERT, translate=inner, head=(Layer("embedding_proj_layer"),))


_IN_VLLM = replace(LAST, translate=_causal, special_tokens=False, vision=Vision("paligemma", image="<image>"))
_PALIGEMMA = replace(_IN_VLLM, hub="google/paligemma2-3b-pt-224", translate=_both_ways, in_vllm=_IN_VLLM)
_ANY = replace(LAST, vision=Vision("generic", image="<image>"))
_E5V = replace(_ANY, hub="royokong/e5-v", template="e5-v")


def _llava_next(config: Json) -> Architecture:
    """e5-v has a prompt in the words of Llama 3."""
    is_llama = config.get("text_config", {}).get("model_type", "llama") == "llama"
    return _E5V if is_llama else _ANY


def any_images(config: Json) -> Architecture:
    """A class of transformers that reads images: raw texts, and images as its own processor writes them."""
    return {**QWEN, "paligemma": _PALIGEMMA}.get(config.get("model_type", ""), _ANY)


PAGES: dict[str, Entry] = {
    "ColPaliForRetrieval": replace(
        _COLPALI,
        in_vllm=replace(
            _COLPALI,
            translate=lambda config: _causal(inner(config)),
            head=(Layer("embedding_proj_layer", bias=False),),
        ),
    ),
    "ColModernVBert": _MODERNVBERT,
    "ColModernVBertForRetrieval": _modernvbert,
    "LlavaNextForConditionalGeneration": _llava_next,
}
