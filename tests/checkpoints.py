"""Write tiny random checkpoints in the hub's on-disk layout, one for each name in `ROWS`, the same bytes every time.

These are the variants of three families; more_checkpoints.py has one for every architecture. Nothing here imports
transformers or the package under test, so neither gets to agree with itself. The values of a tensor follow from its
name alone: `bert_mean`, `bert_bin`, `bert_legacy` and `bert_sharded` hold one encoder.
"""

from __future__ import annotations

import json
import random
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors

Json = Mapping[str, Any]
Shapes = dict[str, tuple[int, ...]]
Tensors = dict[str, NDArray[Any]]

HIDDEN, INTERMEDIATE, LAYERS, DENSE_OUT = 32, 64, 2, 16
TOKENS = 64  # the longest input of every row

# ---- words

WORDS = """the a of and to in is for with on how what which why where when cat dog bird fish house river city mountain
train model query document search vector score rank index token text number paper book music color light water stone
run read write build find learn make take give open red blue green small large old new fast slow first last not from by
about between under over after before people school bridge market garden winter summer morning night bread coffee engine
language history science doctor letter window street island forest village answer question page line word""".split()
PIECES = """s ed er es ing ly ion tion al ment ness able ful less est ize ity ive ous ance ence age ish ist ism or th en
an re un st nd ar ll ck sh ch ou ea""".split()
RARE = """Quantization overfitting? 2024: don't (Paper) READING café naïve Zürich ÅNGSTRÖM ﬁne привет
東京 你好世界 モデル 한국어 🙂 🚀🚀 👩‍🔬""".split()
LETTERS, DIGITS, MARKS = "abcdefghijklmnopqrstuvwxyz", "0123456789", "!\"#$%&'()*+,-./:;<=>?@[]_"
CJK = "東京你好世界"  # kana, Hangul, Cyrillic and emoji stay out of the word vocabularies, to give unknown tokens
MERGES = "Ġ t,h e,Ġt he,i n,e r,o n,Ġ a,r e,a t,e n,Ġ s,in g,o r"


def pairs(n: int, seed: int = 0) -> tuple[list[str], list[str]]:
    """Queries and documents of 1 to 60 words: several scripts, repeats on both sides, one empty document if n > 1."""
    rng = random.Random(seed)
    queries: list[str] = []
    documents: list[str] = []
    for row in range(n):
        lengths = (4, 1, 8, 3, 15, 2, 60)[row % 7], (12, 1, 60, 5, 25, 2, 40, 8)[row % 8]
        query, document = (" ".join(rng.choices([*WORDS, *RARE], k=length)) for length in lengths)
        queries.append(queries[-1] if row % 3 == 2 else query)
        documents.append(documents[-4] if row % 6 == 5 else document)
    if n > 1:
        documents[n // 2] = ""
    return queries, documents


# ---- tokenizers, with fixed vocabularies because the trainers of `tokenizers` are not deterministic


def _ids(*tokens: str) -> dict[str, int]:
    return {token: number for number, token in enumerate(dict.fromkeys(tokens))}


def special_tokens(*tokens: str) -> list[AddedToken]:
    """Special tokens with the flags that transformers gives them."""
    return [AddedToken(token, special=True, normalized=False, lstrip=token == "<mask>") for token in tokens]


def _wordpiece() -> Tokenizer:
    """BERT, uncased."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces = [f"##{piece}" for piece in (*LETTERS, *DIGITS, *PIECES)]
    vocab = _ids(*special, *LETTERS, *DIGITS, *MARKS, *CJK, *WORDS, *pieces)
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", [("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.add_special_tokens(special_tokens(*special))
    return tokenizer


def _byte_bpe() -> Tokenizer:
    """RoBERTa: every byte is a token, so no text is unknown."""
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    tokenizer = byte_level(special, MERGES, "<mask>")
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    tokenizer.add_special_tokens(special_tokens(*special, "<mask>"))
    return tokenizer


def byte_level(first: Sequence[str], merges: str, *last: str) -> Tokenizer:
    """BPE over bytes, without special tokens: `first` and `last` stand around the alphabet and the merges."""
    rules = [(left, right) for left, right in map(str.split, merges.split(","))]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())  # its own order changes from run to run
    vocab = _ids(*first, *alphabet, *map("".join, rules), *last)
    tokenizer = Tokenizer(models.BPE(vocab, rules))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return tokenizer


def _unigram() -> Tokenizer:
    """XLM-R, cased. No normalizer: transformers rebuilds this tokenizer and would keep only a precompiled charsmap."""
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    words = [f"▁{word}" for word in WORDS]
    pieces = _ids(*words, *PIECES, "▁", *LETTERS, *LETTERS.upper(), *DIGITS, *MARKS, *CJK, *"éïüãÅÖ")
    scored = [(piece, -3 - number / 16) for piece, number in pieces.items()]
    vocab = [*((token, 0.0) for token in special), *scored, ("<mask>", 0.0)]
    tokenizer = Tokenizer(models.Unigram(vocab, unk_id=3, byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    tokenizer.post_processor = processors.TemplateProcessing(
        "<s> $A </s>", "<s> $A </s> </s> $B </s>", [("<s>", 0), ("</s>", 2)]
    )
    tokenizer.add_special_tokens(special_tokens(*special, "<mask>"))
    return tokenizer


# ---- families: what the rows of one model type share


@dataclass(frozen=True)
class Family:
    prefix: str  # of the encoder's tensors in a file that holds a head as well
    tokenizer: Callable[[], Tokenizer]
    config: Json
    tokenizer_config: Json


BERT = {"pad_token_id": 0, "max_position_embeddings": TOKENS, "type_vocab_size": 2, "layer_norm_eps": 1e-12}
ROBERTA = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "type_vocab_size": 1, "layer_norm_eps": 1e-5}
ROBERTA["max_position_embeddings"] = TOKENS + 2  # position ids start behind the padding id
BERT_TOKENS = {f"{kind}_token": f"[{kind.upper()}]" for kind in ("unk", "sep", "pad", "cls", "mask")}
ROBERTA_TOKENS = {f"{kind}_token": f"<{kind}>" for kind in ("unk", "pad", "mask")}
ROBERTA_TOKENS |= {"bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "sep_token": "</s>"}
FAMILIES = {
    "Bert": Family("bert.", _wordpiece, {"model_type": "bert"} | BERT, BERT_TOKENS | {"do_lower_case": True}),
    "Roberta": Family("roberta.", _byte_bpe, {"model_type": "roberta"} | ROBERTA, ROBERTA_TOKENS),
    "XLMRoberta": Family("roberta.", _unigram, {"model_type": "xlm-roberta"} | ROBERTA, ROBERTA_TOKENS),
}

# ---- tensors


def _blocks(weights: Shapes) -> Shapes:
    """Name each block's weight, and the bias that belongs to it."""
    return {f"{name}.weight": w for name, w in weights.items()} | {f"{name}.bias": w[:1] for name, w in weights.items()}


def _encoder(config: Json, *, pooler: bool) -> Shapes:
    rows = {"word": "vocab_size", "position": "max_position_embeddings", "token_type": "type_vocab_size"}
    tables: Shapes = {f"embeddings.{name}_embeddings.weight": (config[key], HIDDEN) for name, key in rows.items()}
    square = ["attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"]
    layer: Shapes = dict.fromkeys(["attention.output.LayerNorm", "output.LayerNorm"], (HIDDEN,))
    layer |= dict.fromkeys(square, (HIDDEN, HIDDEN))
    layer |= {"intermediate.dense": (INTERMEDIATE, HIDDEN), "output.dense": (HIDDEN, INTERMEDIATE)}
    weights: Shapes = {f"encoder.layer.{n}.{name}": shape for n in range(LAYERS) for name, shape in layer.items()}
    weights |= {"pooler.dense": (HIDDEN, HIDDEN)} if pooler else {}
    return tables | _blocks(weights | {"embeddings.LayerNorm": (HIDDEN,)})


def _head(architecture: str, labels: int, vocab: int) -> Shapes:
    if architecture == "BertForSequenceClassification":
        return _blocks({"classifier": (labels, HIDDEN)})
    if architecture.endswith("ForSequenceClassification"):
        return _blocks({"classifier.dense": (HIDDEN, HIDDEN), "classifier.out_proj": (labels, HIDDEN)})
    if architecture.endswith("ForMaskedLM"):  # the decoder's weight is tied to the word embeddings
        head = _blocks({"lm_head.dense": (HIDDEN, HIDDEN), "lm_head.layer_norm": (HIDDEN,)})
        return head | {"lm_head.bias": (vocab,)}
    return {}


def _draw(shapes: Shapes) -> Tensors:
    """Random values, wide enough that scores differ visibly between texts."""
    tensors: Tensors = {}
    for name, shape in shapes.items():
        noise = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape, np.float32)
        scale, shift = 1.0 if "word_embeddings" in name else 0.2, 1.0 if re.search("[Nn]orm.weight", name) else 0.0
        tensors[name] = np.float32(scale) * noise + np.float32(shift)
    return tensors


# ---- files


def write_json(path: Path, content: Json | Sequence[Json]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def save_tensors(folder: Path, tensors: Tensors, name: str = "model.safetensors") -> None:
    save_file(tensors, folder / name, metadata={"format": "pt"})


def _save_bin(folder: Path, tensors: Tensors) -> None:
    import torch  # slow to import, and no other row needs it

    torch.save({name: torch.from_numpy(tensor) for name, tensor in tensors.items()}, folder / "pytorch_model.bin")


def _save_legacy(folder: Path, tensors: Tensors) -> None:
    """The tensor names that came from TensorFlow, and the buffer that old versions saved."""
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    renamed = {"bert." + re.sub(r"LayerNorm\.\w+", lambda m: old[m[0]], name): t for name, t in tensors.items()}
    save_tensors(folder, renamed | {"bert.embeddings.position_ids": np.arange(TOKENS)[None]})


def _save_sharded(folder: Path, tensors: Tensors) -> None:
    shards = {f"model-0000{n + 1}-of-00002.safetensors": sorted(tensors)[n::2] for n in range(2)}
    for shard, names in shards.items():
        save_tensors(folder, {name: tensors[name] for name in names}, shard)
    weight_map = {name: shard for shard, names in shards.items() for name in names}
    size = {"total_size": sum(tensor.nbytes for tensor in tensors.values())}
    write_json(folder / "model.safetensors.index.json", {"metadata": size, "weight_map": weight_map})


# ---- rows


@dataclass(frozen=True)
class Row:
    """What sets a checkpoint apart from a plain BertModel. Those with `pooling` get sentence-transformers files."""

    architecture: str = "BertModel"
    config: Json = field(default_factory=dict)
    labels: int = 1
    pooling: Json | None = None
    dense: bool | None = None  # a 2_Dense folder with its weights, or without
    normalize: bool = True
    prompts: Json = field(default_factory=lambda: {"query": "query: ", "document": ""})
    similarity: str = "cosine"
    lower: bool = False
    missing: str | None = None  # the start of the names of the tensors to leave out
    save: Callable[[Path, Tensors], None] = save_tensors


def _modes(*active: str, include_prompt: bool = True) -> Json:
    """1_Pooling/config.json with a flag for each mode, as sentence-transformers long wrote it."""
    modes = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")
    flags = {f"pooling_mode_{mode}": mode in active for mode in modes}
    return {"word_embedding_dimension": HIDDEN, **flags, "include_prompt": include_prompt}


def _mode(name: str) -> Json:
    """1_Pooling/config.json as it is written today."""
    return {"embedding_dimension": HIDDEN, "pooling_mode": name, "include_prompt": True}


BERT_CE, CLS, MEAN = "BertForSequenceClassification", _modes("cls_token"), _modes("mean_tokens")
CROSS_ENCODERS = {
    "bert_ce": Row(BERT_CE, {"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"}),
    "bert_ce_tanh": Row(BERT_CE, {"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Tanh"}}),
    "bert_ce_default": Row(BERT_CE),
    "roberta_ce": Row("RobertaForSequenceClassification"),
    "xlmr_ce": Row("XLMRobertaForSequenceClassification"),
    "bert_ce_two_labels": Row(BERT_CE, labels=2),
    "bert_ce_headless": Row(BERT_CE, missing="classifier."),
    "bert_ce_regression": Row(BERT_CE, {"problem_type": "regression"}),
}
BI_ENCODERS = {
    "bert_mean": Row(pooling=MEAN),
    "bert_cls": Row(pooling=CLS),
    "bert_max": Row(pooling=_modes("max_tokens")),
    "bert_sqrt": Row(pooling=_modes("mean_sqrt_len_tokens"), normalize=False),  # normalized, it would be bert_mean
    "bert_wmean": Row(pooling=_modes("weightedmean_tokens")),
    "bert_last": Row(pooling=_modes("lasttoken")),
    "bert_concat": Row(pooling=_modes("cls_token", "mean_tokens")),
    "bert_modes_list": Row(pooling=_mode("mean")),
    "bert_dense": Row(pooling=MEAN, dense=True),
    "bert_no_prompt_pooling": Row(
        pooling=_modes("mean_tokens", include_prompt=False), prompts={"query": "search: ", "passage": "passage: "}
    ),
    "bert_bin": Row(pooling=MEAN, save=_save_bin),
    "bert_legacy": Row(pooling=MEAN, save=_save_legacy),
    "bert_sharded": Row(pooling=MEAN, save=_save_sharded),
    "roberta_mean": Row("RobertaModel", pooling=MEAN, prompts={}),
    "roberta_mlm": Row("RobertaForMaskedLM"),
    "xlmr_cls": Row("XLMRobertaModel", pooling=CLS, prompts={}),
    "xlmr_lower": Row("XLMRobertaModel", pooling=MEAN, prompts={}, lower=True),
    "bert_plain": Row(),
    "bert_bad_pooling": Row(pooling=_mode("attention")),
    "bert_missing_weight": Row(pooling=MEAN, missing="encoder.layer.1.output.dense.weight"),
    "bert_missing_dense": Row(pooling=MEAN, dense=False),
    "bert_dot": Row(pooling=MEAN, normalize=False, similarity="dot"),
}
ROWS = CROSS_ENCODERS | BI_ENCODERS


# ---- one checkpoint


def build(name: str, folder: Path) -> Path:
    """Write a row's checkpoint into `folder`, which is made if need be and should hold no other row. Returns it."""
    if name not in ROWS:
        import more_checkpoints  # imports transformers and this module

        return more_checkpoints.build(name, folder)
    row = ROWS[name]
    stem = re.split("Model|For", row.architecture)[0]
    family = FAMILIES[stem]
    tokenizer = family.tokenizer()
    config = _config(row, family, tokenizer.get_vocab_size())
    write_json(folder / "config.json", config)
    tokenizer_config = {"tokenizer_class": f"{stem}Tokenizer", "model_max_length": TOKENS, **family.tokenizer_config}
    write_json(folder / "tokenizer_config.json", tokenizer_config)
    tokenizer.save(str(folder / "tokenizer.json"))
    row.save(folder, _tensors(row, family.prefix, config))
    if row.pooling is not None:
        _write_modules(row, row.pooling, folder)
    return folder


def _config(row: Row, family: Family, vocab: int) -> Json:
    names = [f"LABEL_{n}" for n in range(row.labels)]
    labels = {"id2label": dict(enumerate(names)), "label2id": _ids(*names)}
    dropout = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}  # shows a model left in training mode
    return {
        "architectures": [row.architecture],
        "vocab_size": vocab,
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 2,
        "intermediate_size": INTERMEDIATE,
        "hidden_act": "gelu",
        "torch_dtype": "float32",
        **(labels if row.architecture.endswith("ForSequenceClassification") else {}),
        **dropout,
        **family.config,
        **row.config,
    }


def _tensors(row: Row, prefix: str, config: Json) -> Tensors:
    head = _head(row.architecture, row.labels, config["vocab_size"])
    encoder = _draw(_encoder(config, pooler=row.architecture.startswith("Bert") or not head))
    tensors = {(prefix if head else "") + name: tensor for name, tensor in encoder.items()} | _draw(head)
    return {name: tensor for name, tensor in tensors.items() if not (row.missing and name.startswith(row.missing))}


def _write_modules(row: Row, pooling: Json, folder: Path) -> None:
    steps = ["Transformer", "Pooling", *["Dense"] * (row.dense is not None), *["Normalize"] * row.normalize]
    paths = ["", *(f"{n}_{step}" for n, step in enumerate(steps[1:], 1))]
    modules = [
        {"idx": n, "name": str(n), "path": path, "type": f"sentence_transformers.models.{step}"}
        for n, (step, path) in enumerate(zip(steps, paths, strict=True))
    ]
    extras = {"prompts": row.prompts, "default_prompt_name": None, "similarity_fn_name": row.similarity}
    write_json(folder / "modules.json", modules)
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": TOKENS, "do_lower_case": row.lower})
    write_json(
        folder / "config_sentence_transformers.json", {"__version__": {"sentence_transformers": "3.0.0"}, **extras}
    )
    write_json(folder / "1_Pooling/config.json", pooling)
    if row.dense is not None:
        sizes = {"in_features": HIDDEN, "out_features": DENSE_OUT, "bias": True}
        activation = {"activation_function": "torch.nn.modules.activation.Tanh"}
        write_json(folder / "2_Dense/config.json", {**sizes, **activation})
    if row.dense:
        save_tensors(folder / "2_Dense", _draw(_blocks({"linear": (DENSE_OUT, HIDDEN)})))
