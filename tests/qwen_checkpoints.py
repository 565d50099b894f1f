"""Tiny random checkpoints of Qwen's vision families, one for each published layout, in the hub's files.

Unlike in checkpoints.py, names and shapes of tensors come from transformers' own classes, which the tests then run.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModel

from checkpoints import MERGES, byte_level, special_tokens

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"]
SPECIAL += ["<|image_pad|>", "<|video_pad|>"]
HIDDEN = 32
ROPE = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 3, 3]}
TEXT: dict[str, Any] = {
    "hidden_size": HIDDEN,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 2048,
    "rope_parameters": ROPE,
    "tie_word_embeddings": True,
}
TOWER: dict[str, Any] = {
    "depth": 2,
    "num_heads": 2,
    "in_channels": 3,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}
QWEN2 = {**TOWER, "embed_dim": 16, "hidden_size": HIDDEN, "mlp_ratio": 2, "patch_size": 14}
QWEN25 = {**TOWER, "hidden_size": 16, "out_hidden_size": HIDDEN, "intermediate_size": 24, "patch_size": 14}
QWEN25 |= {"window_size": 56, "fullatt_block_indexes": [1]}
QWEN3 = {**TOWER, "hidden_size": 16, "out_hidden_size": HIDDEN, "intermediate_size": 24, "patch_size": 16}
QWEN3 |= {"num_position_embeddings": 16, "deepstack_visual_indexes": [0]}
LINEAR = {"layer_types": ["linear_attention", "full_attention"], "linear_num_key_heads": 1, "linear_num_value_heads": 1}
LINEAR |= {"linear_key_head_dim": 16, "linear_value_head_dim": 16, "linear_conv_kernel_dim": 2}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}


@dataclass(frozen=True)
class Row:
    """One published layout."""

    architecture: str
    model_type: str  # of the class in transformers
    tower: dict[str, Any]
    prefix: str = ""  # before the names of tensors
    head: tuple[tuple[str, int], ...] = ()  # linear layers with a bias: (name, outputs)
    config: dict[str, Any] = field(default_factory=dict)
    text: dict[str, Any] = field(default_factory=dict)


PROJECTION = (("custom_text_proj", 8),)
ROWS = {
    "qwen3_embedding": Row("Qwen3VLForConditionalGeneration", "qwen3_vl", QWEN3, "model."),
    "qwen3_moe": Row("Qwen3VLMoeForConditionalGeneration", "qwen3_vl_moe", QWEN3, "model.", text=EXPERTS),
    "qwen3_reranker": Row("Qwen3VLForSequenceClassification", "qwen3_vl", QWEN3, "model."),
    "jina": Row("JinaVLForRanking", "qwen2_vl", QWEN2, "model.", (("score.0", 8), ("score.2", 1))),
    "colqwen2": Row("ColQwen2", "qwen2_vl", QWEN2, "", PROJECTION),
    "colqwen2_5": Row("ColQwen2_5", "qwen2_5_vl", QWEN25, "", PROJECTION),
    "colqwen2_hf": Row("ColQwen2ForRetrieval", "qwen2_vl", QWEN2, "vlm.", (("embedding_proj_layer", 8),)),
    "colqwen3": Row("ColQwen3", "qwen3_vl", QWEN3, "vlm.model.", (("embedding_proj_layer", 8),)),
    "colqwen3_5": Row("ColQwen3_5", "qwen3_5", {**QWEN3, "deepstack_visual_indexes": []}, "", PROJECTION, text=LINEAR),
    "ops": Row("OpsColQwen3Model", "qwen3_vl", QWEN3, "", (("custom_text_proj", HIDDEN),), {"dims": 8}),
    "nemotron": Row("Qwen3VLNemotronEmbedModel", "qwen3_vl", QWEN3, "model."),
}
# what config.json calls types that transformers lacks
OWN_TYPES = {"colqwen3": "colqwen3", "ops": "ops_colqwen3", "nemotron": "qwen3_vl_nemotron_embed"}


def write(name: str, folder: Path) -> Any:
    """Write a row's files; returns the model in float32, and its head as a list of linear layers."""
    row = ROWS[name]
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = byte_level([], MERGES, *SPECIAL, "yes", "no")
    tokenizer.add_special_tokens(special_tokens(*SPECIAL))
    tokenizer.save(str(folder / "tokenizer.json"))
    put = _writer(folder)
    put(
        "tokenizer_config.json", {"tokenizer_class": "Qwen2Tokenizer", "pad_token": SPECIAL[0], "eos_token": SPECIAL[2]}
    )
    ids = {key: tokenizer.token_to_id(token) for key, token in _IDS.items()}
    text = {**TEXT, **row.text, "vocab_size": tokenizer.get_vocab_size(), "pad_token_id": ids["pad_token_id"]}
    config = AutoConfig.for_model(row.model_type, text_config=text, vision_config=row.tower, **ids)
    torch.manual_seed(len(name))
    model = AutoModel.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    head = []
    tensors = {f"{row.prefix}{key}": tensor.contiguous().clone() for key, tensor in model.state_dict().items()}
    width = HIDDEN
    for layer, outputs in row.head:
        linear = torch.nn.Linear(width, outputs)
        head.append(linear)
        tensors |= {f"{layer}.weight": linear.weight.detach(), f"{layer}.bias": linear.bias.detach()}
        width = outputs
    save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})
    saved = {**config.to_dict(), **row.config, "architectures": [row.architecture]}
    saved["model_type"] = OWN_TYPES.get(name, row.model_type)
    if name == "colqwen2_hf":
        saved = {"architectures": [row.architecture], "model_type": "colqwen2", "vlm_config": saved}
    put("config.json", saved)
    patch = row.tower["patch_size"]
    processor = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "size": {"shortest_edge": (2 * patch) ** 2, "longest_edge": 12 * (2 * patch) ** 2},
        "patch_size": patch,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    put("preprocessor_config.json", processor)
    video = {**processor, "video_processor_type": "Qwen3VLVideoProcessor", "fps": 2, "min_frames": 2, "max_frames": 4}
    del video["image_processor_type"]
    put("video_preprocessor_config.json", video)
    return model, head


_IDS = {
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
    "pad_token_id": "<|endoftext|>",
}


def _writer(folder: Path) -> Callable[[str, dict[str, Any]], object]:
    return lambda name, content: (folder / name).write_text(json.dumps(content))
