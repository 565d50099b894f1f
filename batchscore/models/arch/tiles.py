"""Models of texts and images that transformers has no class for; they cut an image into tiles."""

from __future__ import annotations

from dataclasses import replace

from batchscore.models.arch.decoders import LAST, SCORE, llama_both_ways, llama_pooling, phi3
from batchscore.models.arch.entry import Architecture, Entry, Json, Rename, Vision


def _nemotron_config(config: Json) -> Json:
    return {**config, "text_config": llama_both_ways(config["llm_config"])}


def _nemotron(config: Json) -> Architecture:
    settings = {**config.get("llm_config", {}), **config}
    return Architecture(
        hub="nvidia/llama-nemotron-embed-vl-1b-v2",
        translate=_nemotron_config,
        renames=(Rename(r"^model\.(?=language_model\.|vision_model\.|mlp1\.)", ("",)),),
        body="batchscore.models.vision.nemotron:NemotronVL",
        unread=r"^vision_model\.(vision_model\.)?head\.",
        pooling=llama_pooling(settings),
        template="llama-nemotron-embed-vl",
        query_prompt=settings.get("query_prefix", "query:") + " ",
        document_prompt=settings.get("passage_prefix", "passage:") + " ",
        vision=Vision("nemotron", image="<img><IMG_CONTEXT></img>", vllm_image="<image>", media_first=True),
    )


def _nemotron_pairs(config: Json) -> Architecture:
    settings = {**config.get("llm_config", {}), **config}
    return replace(
        _nemotron(config),
        score_type="cross-encoder",
        hub="nvidia/llama-nemotron-rerank-vl-1b-v2",
        head=SCORE.head,
        logit_sigma=settings.get("temperature", 1.0),
        template="llama-nemotron-rerank-vl",
    )


def _phi3v_config(config: Json) -> Json:
    parts = {name: config[name] for name in ("architectures", "model_type", "img_processor", "embd_layer")}
    return {**parts, "text_config": {**phi3(config), "model_type": "phi3"}}


TILES: dict[str, Entry] = {
    "LlamaNemotronVLModel": _nemotron,
    "LlamaNemotronVLForSequenceClassification": _nemotron_pairs,
    "Phi3VForCausalLM": replace(
        LAST,
        hub="TIGER-Lab/VLM2Vec-Full",
        translate=_phi3v_config,
        renames=(
            Rename(r"^model\.(?=(embed_tokens|layers|norm)\.)", ("language_model.",)),
            Rename(r"^model\.vision_embed_tokens\.", ("",)),
            Rename(r"^img_processor\.", ("vision_model.",)),
        ),
        body="batchscore.models.vision.phi3v:Phi3V",
        template="vlm2vec",
        vision=Vision("phi3v", image="<|image|>", media_first=True, apart=True),
    ),
}
