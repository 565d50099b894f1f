"""Models with a tower for texts and one for images."""

from __future__ import annotations

from dataclasses import replace

from batchscore.models.arch.entry import Architecture, Entry, Json, Vision


def _whole(config: Json, positions: int, padding: int = 1) -> Json:
    """Both towers' settings, with those that many a config.json leaves out."""
    parts = {}
    for part in ("text_config", "vision_config"):
        # old files of CLIP have a second object of that name, which counts
        parts[part] = {**(config.get(part) or {}), **(config.get(f"{part}_dict") or {})}
    own = {"max_position_embeddings": positions, "eos_token_id": 49407, "pad_token_id": padding}
    return {**config, **parts, "text_config": {**own, **parts["text_config"]}}


def _clip(config: Json) -> Json:
    return _whole(config, 77)


def _chinese_clip(config: Json) -> Json:
    return _whole(config, 512, padding=0)


def _siglip(config: Json) -> Json:
    return _whole(config, 64)


_VISION = Vision("towers", image="", alone=True)
_CLIP = Architecture(hub="openai/clip-vit-base-patch32", pooling="lasttoken", vision=_VISION, translate=_clip)
_IN_VLLM = Architecture(
    hub="google/siglip-base-patch16-224", pooling="lasttoken", vision=replace(_VISION, fills=True), translate=_siglip
)
_SIGLIP = replace(_IN_VLLM, lower_case=True, in_vllm=_IN_VLLM)

TOWERS: dict[str, Entry] = {
    "CLIPModel": _CLIP,
    "ChineseCLIPModel": replace(
        _CLIP, hub="OFA-Sys/chinese-clip-vit-base-patch16", pooling="cls", translate=_chinese_clip
    ),
    "MetaClip2Model": replace(_CLIP, hub="facebook/metaclip-2-worldwide-s16"),
    "SiglipModel": _SIGLIP,
    "Siglip2Model": replace(_SIGLIP, hub="google/siglip2-base-patch16-naflex"),
}
