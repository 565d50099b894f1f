"""Tiny random checkpoints of models with a tower for texts and one for images, in the hub's files.

Names and shapes of tensors come from transformers' own classes, which the tests then run.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoConfig, AutoModel

from checkpoints import LETTERS, MERGES, WORDS, byte_level, special_tokens

SIDE, PATCH = 32, 8  # pixels
TEXT: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
IMAGES: dict[str, Any] = {**TEXT, "hidden_size": 48, "image_size": SIDE, "patch_size": PATCH}
CLIP_IMAGES = {
    "image_processor_type": "CLIPImageProcessor",
    "size": {"shortest_edge": SIDE},
    "crop_size": {"height": SIDE, "width": SIDE},
}
SIGLIP_IMAGES: dict[str, Any] = {
    "image_processor_type": "SiglipImageProcessor",
    "size": {"height": SIDE, "width": SIDE},
}
NAFLEX_IMAGES: dict[str, Any] = {"image_processor_type": "Siglip2ImageProcessor", "patch_size": PATCH}
NAFLEX_IMAGES |= {"max_num_patches": 20}


@dataclass(frozen=True)
class Row:
    """One published layout."""

    architecture: str
    model_type: str
    tokenizer: str
    images: dict[str, Any]  # preprocessor_config.json
    text: dict[str, Any] = field(default_factory=dict)  # of text_config
    tower: dict[str, Any] = field(default_factory=dict)  # of vision_config
    whole: dict[str, Any] = field(default_factory=dict)


CLIP = Row("CLIPModel", "clip", "clip", CLIP_IMAGES, whole={"projection_dim": 24})
SIGLIP_TOWER = {"hidden_size": 32}  # its vectors are not projected
ROWS = {
    "clip": CLIP,
    "clip_2021": Row("CLIPModel", "clip", "clip", CLIP_IMAGES, {"eos_token_id": 2}, whole={"projection_dim": 24}),
    "metaclip": Row("MetaClip2Model", "metaclip_2", "xlmr", CLIP_IMAGES, whole={"projection_dim": 24}),
    "chinese_clip": Row(
        "ChineseCLIPModel",
        "chinese_clip",
        "bert",
        {**CLIP_IMAGES, "image_processor_type": "ChineseCLIPImageProcessor"},
        {"max_position_embeddings": 64},
        whole={"projection_dim": 24},
    ),
    "siglip": Row("SiglipModel", "siglip", "spiece", {**SIGLIP_IMAGES, "resample": 3}, tower=SIGLIP_TOWER),
    "siglip2": Row("SiglipModel", "siglip", "gemma", {**SIGLIP_IMAGES, "resample": 2}, tower=SIGLIP_TOWER),
    "naflex": Row("Siglip2Model", "siglip2", "gemma", NAFLEX_IMAGES, tower={**SIGLIP_TOWER, "num_patches": 16}),
}


def write(name: str, folder: Path) -> Any:
    """Write a row's files; returns transformers' model in float32."""
    row = ROWS[name]
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary, ids = TOKENIZERS[row.tokenizer](folder)
    text = {**TEXT, "vocab_size": vocabulary, **ids, **row.text}
    config = AutoConfig.for_model(row.model_type, text_config=text, vision_config={**IMAGES, **row.tower}, **row.whole)
    torch.manual_seed(len(name))
    model = AutoModel.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    tensors = {key: tensor.contiguous().clone() for key, tensor in model.state_dict().items()}
    save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})
    _put(folder, "config.json", {**config.to_dict(), "architectures": [row.architecture]})
    _put(folder, "preprocessor_config.json", row.images)
    return model


def _put(folder: Path, name: str, content: dict[str, Any]) -> None:
    (folder / name).write_text(json.dumps(content))


# ---- tokenizers: each writes its files, and returns its size and what text_config says of it

Ids = tuple[int, dict[str, int]]


def _saved(tokenizer: Tokenizer, folder: Path, begin: str, end: str, padding: str, **config: Any) -> Ids:
    numbers = {token: tokenizer.token_to_id(token) for token in (begin, end, padding) if token}
    pattern = f"{begin} $A {end}".strip()
    tokenizer.post_processor = processors.TemplateProcessing(pattern, f"{pattern} $B {end}", list(numbers.items()))
    tokenizer.save(str(folder / "tokenizer.json"))
    _put(
        folder,
        "tokenizer_config.json",
        {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": end, "pad_token": padding, **config},
    )
    ids = {"bos_token_id": numbers.get(begin, 0), "eos_token_id": numbers[end], "pad_token_id": numbers[padding]}
    return tokenizer.get_vocab_size(), ids


def _clip(folder: Path) -> Ids:
    # the end token has the highest id, as in the published vocabulary
    tokenizer = byte_level([], MERGES, "<|startoftext|>", "<|endoftext|>")
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.add_special_tokens(special_tokens("<|startoftext|>", "<|endoftext|>"))
    marks = ("<|startoftext|>", "<|endoftext|>", "<|endoftext|>")
    return _saved(tokenizer, folder, *marks, model_max_length=77)


def _xlmr(folder: Path) -> Ids:
    """The end token is the second, where CLIP's first configs have a mistake of the same number."""
    tokenizer = byte_level(["<s>", "<pad>", "</s>"], MERGES)
    tokenizer.add_special_tokens(special_tokens("<s>", "<pad>", "</s>"))
    return _saved(tokenizer, folder, "<s>", "</s>", "<pad>", model_max_length=77)


def _bert(folder: Path) -> Ids:
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    vocabulary = dict.fromkeys([*names, *LETTERS, *(f"##{letter}" for letter in LETTERS), *WORDS])
    tokenizer = Tokenizer(models.WordPiece({word: n for n, word in enumerate(vocabulary)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(special_tokens(*names))
    return _saved(tokenizer, folder, "[CLS]", "[SEP]", "[PAD]")


def _gemma(folder: Path) -> Ids:
    """Upper and lower case have tokens of their own, so that lower-casing shows."""
    tokenizer = byte_level(["<pad>", "<eos>", "<bos>"], MERGES)
    tokenizer.add_special_tokens(special_tokens("<pad>", "<eos>", "<bos>"))
    size, ids = _saved(tokenizer, folder, "", "<eos>", "<pad>", model_max_length=64)
    return size, {**ids, "pad_token_id": 1}  # as published: config.json keeps SigLIP's default


def _spiece(folder: Path) -> Ids:
    """SigLIP's first: a SentencePiece model alone."""
    from sentencepiece.sentencepiece_model_pb2 import ModelProto

    proto = ModelProto()
    kinds = {"<pad>": 3, "</s>": 3, "<unk>": 2}
    pieces = [*kinds, "▁", *(f"▁{word}" for word in WORDS), *LETTERS, "é"]
    for number, piece in enumerate(dict.fromkeys(pieces)):
        proto.pieces.add(piece=piece, score=-float(number) / 50, type=kinds.get(piece, 1))
    proto.trainer_spec.model_type = proto.trainer_spec.UNIGRAM
    proto.trainer_spec.unk_id, proto.trainer_spec.pad_id = 2, 0
    proto.trainer_spec.eos_id, proto.trainer_spec.bos_id = 1, -1
    proto.normalizer_spec.name = "identity"
    (folder / "spiece.model").write_bytes(proto.SerializeToString())
    _put(folder, "tokenizer_config.json", {"tokenizer_class": "SiglipTokenizer", "model_max_length": 64})
    return len(proto.pieces), {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}


TOKENIZERS = {"clip": _clip, "xlmr": _xlmr, "bert": _bert, "gemma": _gemma, "spiece": _spiece}
