"""Tiny random checkpoints of models that cut images into tiles, in the hub's layout.

transformers has no class for these, so their tensors are written here by the names in the files.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken, Tokenizer, processors

from checkpoints import Shapes, byte_level, save_tensors, special_tokens, write_json

DIM, WIDE, TOWER = 32, 48, 16  # of the language model, of its layers, of the tower
MERGES = "Ġ t,h e,i n,e r,o n,Ġ a,r e,Ġ i"
LLAMA3 = {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LONGROPE = {"type": "su", "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7], "long_factor": [1.0, *[9.0] * 7]}


def _tokenizer(folder: Path, specials: tuple[str, ...], *more: str) -> Tokenizer:
    """Bytes and some merges; the first special token begins every text."""
    tokenizer = byte_level(specials, MERGES)
    tokenizer.add_special_tokens(special_tokens(*specials))
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in more])
    begin = (specials[0], tokenizer.token_to_id(specials[0]))
    tokenizer.post_processor = processors.TemplateProcessing(f"{begin[0]} $A", f"{begin[0]} $A $B", [begin])
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"bos_token": specials[0], "eos_token": specials[1], "pad_token": specials[1]}
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **names})
    return tokenizer


def _draw(folder: Path, shapes: Shapes) -> None:
    tensors = {}
    for name, shape in shapes.items():
        noise = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape, np.float32)
        is_table = re.search(r"(embed_tokens|position_embedding)\.weight$|GN$", name)
        is_norm = name.endswith("weight") and len(shape) == 1
        tensors[name] = np.float32(1.0 if is_table else 0.2) * noise + np.float32(is_norm)
    save_tensors(folder, tensors)


def _linear(name: str, out: int, dim: int) -> Shapes:
    return {f"{name}.weight": (out, dim), f"{name}.bias": (out,)}


def _norm(name: str) -> Shapes:
    return {f"{name}.weight": (TOWER,), f"{name}.bias": (TOWER,)}


def _under(prefix: str, shapes: Mapping[str, tuple[int, ...]]) -> Shapes:
    return {prefix + name: shape for name, shape in shapes.items()}


def _tower(layers: int) -> Shapes:
    """The layers of CLIP and SigLIP."""
    shapes: Shapes = {}
    for layer in range(layers):
        parts = _norm("layer_norm1") | _norm("layer_norm2")
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            parts |= _linear(f"self_attn.{name}", TOWER, TOWER)
        parts |= _linear("mlp.fc1", 24, TOWER) | _linear("mlp.fc2", TOWER, 24)
        shapes |= _under(f"encoder.layers.{layer}.", parts)
    return shapes


def _decoder(vocabulary: int, layer: Shapes) -> Shapes:
    norms = {f"{name}_layernorm.weight": (DIM,) for name in ("input", "post_attention")}
    layers = [_under(f"layers.{number}.", layer | norms) for number in range(2)]
    return {"embed_tokens.weight": (vocabulary, DIM), "norm.weight": (DIM,), **layers[0], **layers[1]}


# ---- Llama Nemotron VL: tiles of 16 x 16 pixels, 4 x 4 patches and 4 tokens each

_LLAMA_LAYER: Shapes = {
    **{f"self_attn.{name}_proj.weight": (DIM, DIM) for name in "qo"},
    **{f"self_attn.{name}_proj.weight": (DIM // 2, DIM) for name in "kv"},
    **{f"mlp.{name}_proj.weight": (WIDE, DIM) for name in ("gate", "up")},
    "mlp.down_proj.weight": (DIM, WIDE),
}


def nemotron(folder: Path, *, pairs: bool = False) -> Path:
    """An embedder, or a reranker."""
    marks = ("<image>", "<img>", "</img>", "<IMG_CONTEXT>")
    tokenizer = _tokenizer(folder, ("<|begin|>", "<|end|>"), *marks)
    text: dict[str, Any] = {
        "model_type": "llama_bidirec",
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_size": DIM,
        "intermediate_size": WIDE,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e4,
        "pooling": "avg",
        "rope_scaling": {**LLAMA3, "original_max_position_embeddings": 64},
        "temperature": 0.5,
        "pad_token_id": 1,
    }
    vision = {
        "model_type": "siglip_vision_model",
        "hidden_size": TOWER,
        "intermediate_size": 24,
        "image_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "patch_size": 4,
        "vision_use_head": False,
    }
    name = "LlamaNemotronVLForSequenceClassification" if pairs else "LlamaNemotronVLModel"
    config = {
        "architectures": [name],
        "model_type": "llama_nemotron_vl",
        "llm_config": text,
        "vision_config": vision,
        "force_image_size": 16,
        "downsample_ratio": 0.5,
        "ps_version": "v2",
        "select_layer": -1,
        "pooling": "avg",
        "img_context_token_id": tokenizer.token_to_id("<IMG_CONTEXT>"),
        "max_input_tiles": 2,
    }
    write_json(folder / "config.json", config | ({"id2label": {"0": "LABEL_0"}} if pairs else {}))
    write_json(folder / "processor_config.json", {"max_input_tiles": 4, "use_thumbnail": True})
    tower = _tower(2) | _linear("embeddings.patch_embedding", TOWER, 3) | _norm("post_layernorm")
    tower |= {"embeddings.patch_embedding.weight": (TOWER, 3, 4, 4)}
    tower |= {"embeddings.position_embedding.weight": (16, TOWER), "head.probe": (1, 1, TOWER)}
    shapes = _under("language_model.", _decoder(len(tokenizer.get_vocab()), _LLAMA_LAYER))
    shapes |= _under("vision_model.vision_model.", tower)
    shapes |= {"mlp1.0.weight": (4 * TOWER,), "mlp1.0.bias": (4 * TOWER,)}
    shapes |= _linear("mlp1.1", DIM, 4 * TOWER) | _linear("mlp1.3", DIM, DIM)
    _draw(folder, {**_under("model.", shapes), "score.weight": (1, DIM)} if pairs else shapes)
    return folder


# ---- Phi-3-Vision: views of 8 x 8 pixels, 4 x 4 patches and 4 tokens each

_PHI_LAYER: Shapes = {
    "self_attn.qkv_proj.weight": (3 * DIM, DIM),
    "self_attn.o_proj.weight": (DIM, DIM),
    "mlp.gate_up_proj.weight": (2 * WIDE, DIM),
    "mlp.down_proj.weight": (DIM, WIDE),
}


def phi3v(folder: Path) -> Path:
    """An embedder that is a language model, read at the last token."""
    tokenizer = _tokenizer(folder, ("<s>", "<|endoftext|>"), "<|image|>")
    config = {
        "architectures": ["Phi3VForCausalLM"],
        "model_type": "phi3_v",
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_size": DIM,
        "intermediate_size": WIDE,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "original_max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e4,
        "rope_scaling": LONGROPE,
        "bos_token_id": 0,
        "pad_token_id": 1,
        "eos_token_id": 1,
        "tie_word_embeddings": False,
        "embd_layer": {"hd_transform_order": "sub_glb"},
        "img_processor": {"name": "clip_vision_model", "image_dim_out": TOWER, "layer_idx": -2},
    }
    write_json(folder / "config.json", config)
    write_json(folder / "preprocessor_config.json", {"num_crops": 4, "num_img_tokens": 4, "unit": 8})
    tower = _tower(3) | _norm("post_layernorm") | _norm("pre_layrnorm")
    tower |= {"embeddings.class_embedding": (TOWER,), "embeddings.patch_embedding.weight": (TOWER, 3, 2, 2)}
    tower |= {"embeddings.position_embedding.weight": (17, TOWER)}
    seeing = _under("img_processor.vision_model.", tower)
    seeing |= {"glb_GN": (1, 1, 4 * TOWER), "sub_GN": (1, 1, 1, 4 * TOWER)}
    seeing |= _linear("img_projection.0", DIM, 4 * TOWER) | _linear("img_projection.2", DIM, DIM)
    shapes = _decoder(len(tokenizer.get_vocab()), _PHI_LAYER) | _under("vision_embed_tokens.", seeing)
    _draw(folder, {**_under("model.", shapes), "lm_head.weight": (len(tokenizer.get_vocab()), DIM)})
    return folder
