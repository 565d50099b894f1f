"""Tiny random checkpoints of models that read pages, and of any class of transformers that reads images.

As in qwen_checkpoints.py, names and shapes of tensors come from transformers' own classes, which the tests then run.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModel

from checkpoints import MERGES, byte_level, special_tokens

HIDDEN, WIDTH = 32, 8
SPECIAL = ["<pad>", "<eos>", "<bos>", "<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>"]
SPECIAL += [f"<row_{row}_col_{column}>" for row in (1, 2, 3) for column in (1, 2, 3)]
SPECIAL += ["<start_of_image>", "<end_of_image>", "[IMG]", "[IMG_BREAK]", "[IMG_END]", "<img>", "</img>", "<video>"]
SPECIAL += ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|vision_start|>", "<|vision_end|>"]
SPECIAL += ["<|image_pad|>", "<|video_pad|>"]
NAMES = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<image>"}
NAMES |= {"video_token": "<video>"}
GEMMA_NAMES = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image>"}
LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": HIDDEN,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 2048,
}
MROPE = {**LLAMA, "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 3, 3]}}
MODERNBERT = {**LLAMA, "model_type": "modernbert", "num_hidden_layers": 4, "local_attention": 16}
TOWER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
SIGLIP = {**TOWER, "model_type": "siglip_vision_model", "image_size": 28, "patch_size": 7, "vision_use_head": False}
CLIP = {**TOWER, "model_type": "clip_vision_model", "image_size": 28, "patch_size": 7, "num_hidden_layers": 3}
QWEN = {"depth": 2, "num_heads": 2, "embed_dim": 16, "hidden_size": HIDDEN, "mlp_ratio": 2}
QWEN25 = {"depth": 2, "num_heads": 2, "hidden_size": 16, "out_hidden_size": HIDDEN, "intermediate_size": 24}
QWEN25 |= {"window_size": 56, "fullatt_block_indexes": [1]}
QWEN3 = {**QWEN25, "num_position_embeddings": 16, "deepstack_visual_indexes": [0], "patch_size": 14}
SQUARE = {"size": {"height": 28, "width": 28}}
# transformers 5.20 reads ModernVBert's images in groups of as many tokens as a patch has rows
SMALL, SMALL_SQUARES = {"image_size": 16, "patch_size": 4}, {"size": {"longest_edge": 32}}
SMALL_SQUARES |= {"max_image_size": {"longest_edge": 16}}
SQUARES = {"size": {"longest_edge": 56}, "max_image_size": {"longest_edge": 28}}
PINPOINTS = {"image_grid_pinpoints": [[28, 56], [56, 28], [56, 56]]}
PATCHES = {"size": {"shortest_edge": 784, "longest_edge": 12 * 784}, "patch_size": 14, "merge_size": 2}


@dataclass(frozen=True)
class Row:
    """One published layout."""

    architecture: str
    model_type: str  # of the class in transformers
    text: dict[str, Any]
    tower: dict[str, Any]
    images: tuple[str, dict[str, Any]]  # the image processor and its settings
    config: dict[str, Any] = field(default_factory=dict)
    processor: dict[str, Any] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)  # of the tokenizer's tokens
    renames: tuple[tuple[str, str], ...] = ((r"^", "model."),)  # from transformers' class to the published file
    projection: str = ""
    image: str = "<image>"
    bos: bool = False


_CLIP = {"crop_size": SQUARE["size"], "size": {"shortest_edge": 28}}
_COL = ((r"^", "vlm."), (r"^vlm\.language_model\.", "vlm.language_model.model."))
_MERGED = ((r"^", "model."), (r"^model\.vision_model\.", "model.vision_model.vision_model."))
_OLD = (
    (r"^language_model\.", "language_model.model."),
    (r"^vision_tower\.(?!vision_model)", "vision_tower.vision_model."),
)
_PALIGEMMA = {"projection_dim": HIDDEN, "hidden_size": HIDDEN}
_GEMMA = {**LLAMA, "model_type": "gemma"}
_PALI_TOWER = {**SIGLIP, "projection_dim": HIDDEN}
_IDEFICS = {"scale_factor": 2}
_QWEN_IMAGES = ("Qwen2VLImageProcessor", PATCHES)
ROWS = {
    "colpali": Row(
        *("ColPaliForRetrieval", "paligemma", _GEMMA, _PALI_TOWER),
        ("SiglipImageProcessor", {**SQUARE, "image_seq_length": 16}),
        *(_PALIGEMMA, {}, {}, _COL, "embedding_proj_layer"),
    ),
    "paligemma": Row(
        *("PaliGemmaForConditionalGeneration", "paligemma", _GEMMA, _PALI_TOWER),
        ("SiglipImageProcessor", {**SQUARE, "image_seq_length": 16}),
        *(_PALIGEMMA,),
    ),
    "paligemma2": Row(
        *("PaliGemmaForConditionalGeneration", "paligemma", {**LLAMA, "model_type": "gemma2", "sliding_window": 8}),
        *(_PALI_TOWER, ("SiglipImageProcessor", {**SQUARE, "image_seq_length": 16}), _PALIGEMMA),
    ),
    "colmodernvbert_hf": Row(
        *("ColModernVBertForRetrieval", "modernvbert", MODERNBERT, {**SIGLIP, **SMALL}),
        *(("Idefics3ImageProcessor", SMALL_SQUARES),),
        *({"pixel_shuffle_factor": 2}, {}, {}, ((r"^", "vlm."),), "embedding_proj_layer"),
    ),
    "colmodernvbert": Row(
        *("ColModernVBert", "modernvbert", MODERNBERT, {**SIGLIP, **SMALL}),
        *(("Idefics3ImageProcessor", SMALL_SQUARES),),
        *({"pixel_shuffle_factor": 2}, {}, {}, _MERGED, "custom_text_proj"),
    ),
    "e5v": Row(
        *("LlavaNextForConditionalGeneration", "llava_next", LLAMA, CLIP),
        ("LlavaNextImageProcessor", {**_CLIP, **PINPOINTS}),
        *(PINPOINTS, {}, {}, _OLD),
        bos=True,
    ),
    "llava": Row(
        *("LlavaForConditionalGeneration", "llava", LLAMA, CLIP, ("CLIPImageProcessor", _CLIP)),
        *({}, {"patch_size": 7, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}),
        renames=_OLD,
        bos=True,
    ),
    "gemma3": Row(
        *("Gemma3ForConditionalGeneration", "gemma3", {**LLAMA, "model_type": "gemma3_text", "sliding_window": 8}),
        *(SIGLIP, ("Gemma3ImageProcessor", SQUARE), {"mm_tokens_per_image": 4}, {"image_seq_length": 4}, GEMMA_NAMES),
        image="<start_of_image>",
        bos=True,
    ),
    "idefics3": Row(
        *("Idefics3ForConditionalGeneration", "idefics3", LLAMA, {**SIGLIP, "model_type": "idefics3_vision"}),
        *(("Idefics3ImageProcessor", SQUARES), _IDEFICS, {"image_seq_len": 4}),
    ),
    "internvl": Row(
        *("InternVLForConditionalGeneration", "internvl", LLAMA),
        {**TOWER, "model_type": "internvl_vision", "image_size": [28, 28], "patch_size": [7, 7]},
        *(("GotOcr2ImageProcessor", {**SQUARE, "crop_to_patches": True, "max_patches": 4}), {"downsample_ratio": 0.5}),
        *({"image_seq_length": 4}, NAMES),
    ),
    "mistral3": Row(
        *("Mistral3ForConditionalGeneration", "mistral3", {**LLAMA, "model_type": "mistral"}),
        {**TOWER, "model_type": "pixtral", "image_size": 56, "patch_size": 7, "head_dim": 16},
        ("PixtralImageProcessor", {"size": {"longest_edge": 56}, "patch_size": 7}),
        *({"spatial_merge_size": 2, "vision_feature_layer": -1}, {"patch_size": 7, "spatial_merge_size": 2}),
        image="[IMG]",
    ),
    "qwen2_vl": Row(
        *("Qwen2VLForConditionalGeneration", "qwen2_vl", {**MROPE, "model_type": "qwen2_vl_text"}, QWEN, _QWEN_IMAGES),
        image="<|image_pad|>",
    ),
    "qwen2_5_vl": Row(
        *("Qwen2_5_VLForConditionalGeneration", "qwen2_5_vl", {**MROPE, "model_type": "qwen2_5_vl_text"}, QWEN25),
        *(_QWEN_IMAGES,),
        image="<|image_pad|>",
    ),
    "qwen3_vl": Row(
        *("Qwen3VLModel", "qwen3_vl", {**MROPE, "model_type": "qwen3_vl_text"}, QWEN3, _QWEN_IMAGES),
        renames=(),
        image="<|image_pad|>",
    ),
}


def write(name: str, folder: Path) -> tuple[Any, torch.nn.Linear | None]:
    """Write a row's files; returns transformers' model in float32, and the projection behind it."""
    row = ROWS[name]
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = _write_tokenizer(row, folder)
    text = {**row.text, "vocab_size": len(vocabulary), "pad_token_id": vocabulary["<pad>"]}
    ids = {"image_token_id": vocabulary["<image>" if row.image == "<start_of_image>" else row.image]}
    ids |= {"vision_start_token_id": vocabulary["<|vision_start|>"], "video_token_id": vocabulary["<|video_pad|>"]}
    config = AutoConfig.for_model(row.model_type, text_config=text, vision_config=row.tower, **ids, **row.config)
    torch.manual_seed(len(name))
    model = AutoModel.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    tensors = {_renamed(key, row.renames): tensor.contiguous().clone() for key, tensor in model.state_dict().items()}
    projection = torch.nn.Linear(HIDDEN, WIDTH) if row.projection else None
    if projection is not None:
        tensors |= {f"{row.projection}.{key}": tensor.detach() for key, tensor in projection.named_parameters()}
    save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})
    saved = {**config.to_dict(), "architectures": [row.architecture]}
    if row.renames in (_COL, ((r"^", "vlm."),)):
        saved = {"architectures": [row.architecture], "vlm_config": saved}
        saved["model_type"] = "colpali" if name == "colpali" else "colmodernvbert"
    _put(folder, "config.json", saved)
    kind, settings = row.images
    means = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    _put(folder, "preprocessor_config.json", {"image_processor_type": kind, **means, **settings})
    if row.processor:
        _put(folder, "processor_config.json", row.processor)
    return model, projection


def _renamed(name: str, renames: tuple[tuple[str, str], ...]) -> str:
    for pattern, new in renames:
        name = re.sub(pattern, new, name)
    return name


def _write_tokenizer(row: Row, folder: Path) -> dict[str, int]:
    tokenizer = byte_level([], MERGES, *SPECIAL)
    tokenizer.add_special_tokens(special_tokens(*SPECIAL))
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    around = {"modernvbert": "<bos> $A <eos>"}.get(row.model_type, "<bos> $A" if row.bos else "")
    if around:
        from tokenizers import processors

        pieces = [(token, vocabulary[token]) for token in ("<bos>", "<eos>")]
        tokenizer.post_processor = processors.TemplateProcessing(around, special_tokens=pieces)
    tokenizer.save(str(folder / "tokenizer.json"))
    tokens = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>"}
    names = {"model_input_names": ["input_ids", "attention_mask"], "extra_special_tokens": row.names}
    _put(folder, "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **tokens, **names})
    return vocabulary


def _put(folder: Path, name: str, content: dict[str, Any]) -> None:
    (folder / name).write_text(json.dumps(content))
