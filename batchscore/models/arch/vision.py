"""Models of texts and images whose transformers class is complete: rerankers, embedders, page retrievers."""

from __future__ import annotations

from dataclasses import replace

from batchscore.models.arch.decoders import LAST
from batchscore.models.arch.entry import Architecture, Entry, Json, Layer, Rename, Vision

_QWEN2 = Vision("qwen", image="<|vision_start|><|image_pad|><|vision_end|>")
_QWEN3 = replace(_QWEN2, video="<|video_pad|>", vllm_video="<|vision_start|><|video_pad|><|vision_end|>")

# ---- Qwen's families

# old files keep the language model where a text model has it
_OLD_QWEN = (Rename(r"^model\.(embed_tokens|layers|norm)\.", (r"language_model.\1.",)),)
# what stands around the model in files of retrievers
_BARE = (Rename(r"^(base_model\.model\.)?(vlm\.)?(model\.)?(?=language_model\.|visual\.)", ("",)), *_OLD_QWEN)
_UNREAD = r"^(vlm\.)?(model\.)?lm_head\."

_JINA = Architecture(
    "cross-encoder",
    hub="jinaai/jina-reranker-m0",
    pooling="lasttoken",
    renames=_BARE,
    head=(Layer("score.0", "relu"), Layer("score.2")),
    logit_mean=2.65,
    template="jina-reranker-m0",
    end_token=100,
    vision=_QWEN2,
)
_QWEN3_EMBEDDING = replace(
    LAST, hub="Qwen/Qwen3-VL-Embedding-2B", renames=_BARE, unread=_UNREAD, template="qwen3-vl-embedding", vision=_QWEN3
)
_QWEN3_RERANKER = replace(
    _QWEN3_EMBEDDING, score_type="cross-encoder", hub="Qwen/Qwen3-VL-Reranker-2B", template="qwen3-vl-reranker"
)


def _retriever(hub: str, template: str, head: str, vision: Vision = _QWEN2) -> Architecture:
    return Architecture(
        "late-interaction",
        hub=hub,
        renames=_BARE,
        unread=_UNREAD,
        head=(Layer(head),) if head else (),
        template=template,
        vision=vision,
    )


def _without_bias(arch: Architecture) -> Architecture:
    """As vLLM reads it, which leaves the bias of its projection out."""
    return replace(arch, head=tuple(layer._replace(bias=False) for layer in arch.head))


def _qwen3_vl(config: Json) -> Json:
    return {**config, "model_type": "qwen3_vl"}


def _both_ways(config: Json) -> Json:
    return {**_qwen3_vl(config), "text_config": {**config["text_config"], "is_causal": False}}


def inner(config: Json) -> Json:
    """The model inside a retriever; transformers' class around ColQwen2 loses the rows and columns of images."""
    return {**config["vlm_config"], "architectures": config["architectures"]}


def _ops(config: Json) -> Architecture:
    arch = _retriever("OpenSearch-AI/Ops-Colqwen3-4B", "ops-colqwen3", "custom_text_proj", _QWEN3)
    arch = replace(arch, translate=_qwen3_vl, dimensions=int(config.get("dims") or 0))
    return replace(arch, in_vllm=_without_bias(arch))


_COLQWEN2 = _retriever("vidore/colqwen2-v1.0-merged", "colqwen2", "custom_text_proj")
_COLQWEN3 = replace(
    _retriever(
        "TomoroAI/tomoro-colqwen3-embed-4b", "colqwen3", "embedding_proj_layer", replace(_QWEN3, max_tokens=1280)
    ),
    translate=_qwen3_vl,
)
_NEMOTRON = replace(
    _retriever("nvidia/nemotron-colembed-vl-4b-v2", "nemotron-colembed", "", _QWEN3),
    translate=_both_ways,
    final_norm=False,
)

_ANY_QWEN = replace(LAST, renames=_BARE, unread=_UNREAD)
# by model type: models that no entry names
QWEN = {
    **dict.fromkeys(("qwen2_vl", "qwen2_5_vl"), replace(_ANY_QWEN, vision=_QWEN2)),
    **dict.fromkeys(("qwen3_vl", "qwen3_vl_moe"), replace(_ANY_QWEN, vision=_QWEN3)),
}

VISION: dict[str, Entry] = {
    **dict.fromkeys(("JinaVLForRanking", "JinaVLForSequenceClassification"), _JINA),
    "Qwen3VLForConditionalGeneration": _QWEN3_EMBEDDING,
    "Qwen3VLForSequenceClassification": _QWEN3_RERANKER,
    "ColQwen2": _COLQWEN2,
    "ColQwen2_5": replace(_COLQWEN2, hub="vidore/colqwen2.5-v0.2"),
    "ColQwen2ForRetrieval": replace(
        _retriever("vidore/colqwen2-v1.0-hf", "colqwen2-hf", "embedding_proj_layer"), translate=inner
    ),
    "ColQwen3": replace(_COLQWEN3, in_vllm=replace(_without_bias(_COLQWEN3), vision=_QWEN3)),
    # gated delta layers see what stands before a sequence
    "ColQwen3_5": replace(_COLQWEN2, hub="athrael-soju/colqwen3.5-4.5B-v3", vision=_QWEN3, flat=False),
    "OpsColQwen3Model": _ops,
    "Qwen3VLNemotronEmbedModel": replace(_NEMOTRON, in_vllm=replace(_NEMOTRON, translate=_qwen3_vl, final_norm=True)),
}
