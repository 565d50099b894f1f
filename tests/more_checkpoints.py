"""Write a tiny random checkpoint in the hub's on-disk layout for every architecture, one for each name in `ROWS`.

Names and shapes of tensors come from the class that transformers has for an architecture, and their values follow from
these names. What a published checkpoint does differently is written here: its config.json, how it names, stacks and
leaves out tensors, and the files beside. `native` gives the class itself with the same tensors, as a reference.
"""

from __future__ import annotations

import re
import string
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import AddedToken, Tokenizer, processors

from checkpoints import (
    BERT,
    FAMILIES,
    HIDDEN,
    INTERMEDIATE,
    LAYERS,
    MERGES,
    ROBERTA,
    Json,
    Shapes,
    Tensors,
    byte_level,
    save_tensors,
    special_tokens,
    write_json,
)

Renames = tuple[tuple[str, str], ...]

POSITIONS = 128  # of encoders
PROMPT_POSITIONS = 2048  # of language models: the prompts of some are long

# ---- tokenizers

SPECIAL = ["<pad>", "<s>", "</s>", "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|embed_token|>", "<|rerank_token|>"]
SPECIAL += ["[CLS]", "[SEP]", "[MASK]"]
MARKERS = ["[Q] ", "[D] "]  # PyLate adds them with their space, and not as special tokens
ANSWERS = "y e,ye s,n o,Y e,Ye s,N o,Ċ Ċ"  # yes, no, Yes, No, and an empty line, which ends some prompts


@dataclass(frozen=True)
class Words:
    """A tokenizer, and what its tokenizer_config.json says."""

    make: Callable[[], Tokenizer]
    config: Json

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return self.make()

    @property
    def count(self) -> int:
        count: int = self.tokenizer.get_vocab_size()
        return count


def _family(stem: str, *more: str) -> Words:
    """The tokenizer of a family of checkpoints.py with more tokens."""

    def make() -> Tokenizer:
        tokenizer = FAMILIES[stem].tokenizer()
        tokenizer.add_special_tokens(special_tokens(*more))
        return tokenizer

    return Words(make, {"tokenizer_class": f"{stem}Tokenizer", **FAMILIES[stem].tokenizer_config})


def _bytes(single: str, pair: str, **config: Any) -> Words:
    """Byte-level BPE with the special tokens of every language model; `single` and `pair` say where they stand."""

    def make() -> Tokenizer:
        tokenizer = byte_level(SPECIAL, f"{MERGES},{ANSWERS}")
        tokenizer.add_special_tokens(special_tokens(*SPECIAL))
        tokenizer.add_tokens([AddedToken(marker, normalized=False) for marker in MARKERS])
        used = [(token, tokenizer.token_to_id(token)) for token in SPECIAL if token in pair]
        tokenizer.post_processor = processors.TemplateProcessing(single, pair, used)
        return tokenizer

    return Words(make, {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<pad>", **config})


def _t5() -> Tokenizer:
    """XLM-R's words with an end and no beginning."""
    tokenizer = FAMILIES["XLMRoberta"].tokenizer()
    tokenizer.post_processor = processors.TemplateProcessing("$A </s>", "$A </s> $B </s>", [("</s>", 2)])
    tokenizer.add_tokens(["▁false", "▁true", "▁no", "▁yes"])
    return tokenizer


T5_WORDS = Words(_t5, {"tokenizer_class": "T5Tokenizer", "eos_token": "</s>", "pad_token": "<pad>"})
BARE = _bytes("$A", "$A $B", eos_token="<|im_end|>")
BEGUN = _bytes("<s> $A", "<s> $A <s> $B", bos_token="<s>", eos_token="</s>")
ENDED = _bytes("$A <|endoftext|>", "$A $B <|endoftext|>", eos_token="<|im_end|>")
BOTH = _bytes("<s> $A </s>", "<s> $A </s> $B </s>", bos_token="<s>", eos_token="</s>")
CLS_SEP = _bytes("[CLS] $A [SEP]", "[CLS] $A [SEP] $B [SEP]", cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]")
# tokenizer_config.json asks for a token that tokenizer.json does not add
LOST_END = replace(BEGUN, config={**BEGUN.config, "add_bos_token": True, "add_eos_token": True})
LOST_BOTH = replace(BARE, config={**BARE.config, "add_eos_token": True, "eos_token": "<|endoftext|>"})

# ---- rows


@dataclass(frozen=True)
class Row:
    """A published layout."""

    architecture: str
    model: str  # class of transformers with the same tensors; "" where there is none, and all of them are `extra`
    config: Json  # config.json
    words: Words
    native: Json = field(default_factory=dict)  # what the config of that class says otherwise
    renames: Renames = ()  # from the class to the file, in order; tensors that get one name are stacked
    extra: Shapes = field(default_factory=dict)  # tensors that the class does not have
    adapters: Sequence[str] = ()  # of LoRA, stacked beside the weights
    files: Mapping[str, Json | list[Json]] = field(default_factory=dict)
    weights: Mapping[str, Shapes] = field(default_factory=dict)  # of modules: a folder, or a pickle

    @property
    def sized(self) -> Json:
        return {**self.config, "vocab_size": self.words.count}


def _stack(new: str, *parts: str) -> Renames:
    """Parts of one tensor of the file, in order."""
    return tuple((rf"\b{part}\b", new) for part in parts)


def _under(prefix: str) -> Renames:
    return ((r"^", prefix),)


_ONE_LABEL: Json = {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}


def _sentence_files(
    pooling: str, *, prompts: Json | None = None, dense: Sequence[tuple[int, int]] = ()
) -> Mapping[str, Json | list[Json]]:
    """What sentence-transformers saves for a bi-encoder: prompts, a pooling, Dense layers, unit vectors."""
    steps = ["Transformer", "Pooling", *["Dense"] * len(dense), "Normalize"]
    paths = ["", *(f"{n}_{step}" for n, step in enumerate(steps[1:], 1))]
    kinds = zip(steps, paths, strict=True)
    identity = {"bias": False, "activation_function": "torch.nn.modules.linear.Identity"}
    return {
        "modules.json": [
            {"name": path or "0", "path": path, "type": f"sentence_transformers.models.{step}"} for step, path in kinds
        ],
        "config_sentence_transformers.json": {"prompts": prompts or {}, "default_prompt_name": None},
        "1_Pooling/config.json": {"word_embedding_dimension": HIDDEN, f"pooling_mode_{pooling}": True},
        **{
            f"{n}_Dense/config.json": {"in_features": wide, "out_features": out, **identity}
            for n, (wide, out) in enumerate(dense, 2)
        },
    }


# ---- encoders

SIZES: Json = {"hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": 2}
SIZES = {**SIZES, "intermediate_size": INTERMEDIATE, "hidden_act": "gelu"}
DROPOUT = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}  # shows a model left in training mode
BERT_LIKE = {**SIZES, **DROPOUT, **BERT, "max_position_embeddings": POSITIONS}
ROBERTA_LIKE = {**SIZES, **DROPOUT, **ROBERTA, "max_position_embeddings": POSITIONS + 2}
MODERNBERT = {
    **SIZES,
    "model_type": "modernbert",
    "num_hidden_layers": 4,
    "hidden_activation": "gelu",
    "max_position_embeddings": POSITIONS,
    "norm_eps": 1e-5,
    "global_attn_every_n_layers": 3,
    "local_attention": 8,
    "global_rope_theta": 160_000.0,
    "local_rope_theta": 10_000.0,
    "pad_token_id": 0,
    "cls_token_id": SPECIAL.index("[CLS]"),
    "sep_token_id": SPECIAL.index("[SEP]"),
    "bos_token_id": SPECIAL.index("[CLS]"),
    "eos_token_id": SPECIAL.index("[SEP]"),
}
ELECTRA = {**BERT_LIKE, "model_type": "electra", "embedding_size": 16}
ERNIE = {**BERT_LIKE, "model_type": "ernie", "type_vocab_size": 4, "task_type_vocab_size": 3, "use_task_id": True}
DISTILBERT = {"model_type": "distilbert", "dim": HIDDEN, "n_layers": LAYERS, "n_heads": 2, "hidden_dim": INTERMEDIATE}
DISTILBERT |= {"activation": "gelu", "dropout": 0.1, "max_position_embeddings": POSITIONS, "pad_token_id": 0}
DEBERTA = {
    **BERT_LIKE,
    "model_type": "deberta-v2",
    "relative_attention": True,
    "position_buckets": 8,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_biased_input": False,
    "type_vocab_size": 0,
    "pooler_hidden_act": "gelu",
    "layer_norm_eps": 1e-7,
}
MPNET = {**ROBERTA_LIKE, "model_type": "mpnet", "relative_attention_num_buckets": 32}
ALBERT = {**BERT_LIKE, "model_type": "albert", "embedding_size": 16}
DEBERTA_1 = {**DEBERTA, "model_type": "deberta", "share_att_key": False}
MEGATRON = {**BERT_LIKE, "model_type": "megatron-bert"}
XLMR_XL, DATA2VEC, PRE_NORM, LONGFORMER = (
    {**ROBERTA_LIKE, "model_type": kind}
    for kind in ("xlm-roberta-xl", "data2vec-text", "roberta-prelayernorm", "longformer")
)
EUROBERT = {**SIZES, "hidden_act": "silu", "model_type": "eurobert", "num_key_value_heads": 1, "pad_token_id": 0}
EUROBERT |= {"bos_token_id": 1, "eos_token_id": 2, "max_position_embeddings": POSITIONS, "tie_word_embeddings": False}
CONVBERT = {**BERT_LIKE, "model_type": "convbert", "embedding_size": 32, "head_ratio": 1}
T5: dict[str, Any] = {"model_type": "t5", "d_model": HIDDEN, "d_kv": 16, "d_ff": INTERMEDIATE, "num_layers": LAYERS}
T5 |= {"num_heads": 2, "relative_attention_num_buckets": 8, "relative_attention_max_distance": 20, "n_positions": 128}
T5 |= {"pad_token_id": 1, "decoder_start_token_id": 1, "eos_token_id": 2, "is_encoder_decoder": True}
MT5 = {**T5, "model_type": "mt5", "tie_word_embeddings": False, "feed_forward_proj": "gated-gelu"}

# the code that some repositories carry must not be needed, nor asked for
_REMOTE = {"auto_map": {"AutoConfig": "configuration.Config", "AutoModel": "modeling.Model"}}

FLASH: Renames = (  # Jina's own XLM-R
    (r"\bembeddings\.LayerNorm\b", "emb_ln"),
    (r"\bencoder\.layer\.(\d+)\.", r"encoder.layers.\1."),
    *_stack("mixer.Wqkv", "attention.self.query", "attention.self.key", "attention.self.value"),
    (r"\battention\.output\.dense\b", "mixer.out_proj"),
    (r"\battention\.output\.LayerNorm\b", "norm1"),
    (r"\bintermediate\.dense\b", "mlp.fc1"),
    (r"\boutput\.dense\b", "mlp.fc2"),
    (r"\boutput\.LayerNorm\b", "norm2"),
)
ROTARY: Renames = (  # the same with rotary positions
    (r"\bembeddings\.LayerNorm\b", "emb_ln"),
    *_stack("mixer.Wqkv", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    (r"\bself_attn\.o_proj\b", "mixer.out_proj"),
    (r"\bpost_attention_layernorm\b", "norm1"),
    (r"\bpost_mlp_layernorm\b", "norm2"),
    (r"^layers\.", "encoder.layers."),
    *_under("roberta."),
)
NEW: Renames = (  # Alibaba's mGTE; of the two halves of up_gate_proj the second goes through the activation
    *_stack("attention.qkv_proj", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    (r"\bself_attn\.o_proj\b", "attention.o_proj"),
    *_stack("mlp.up_gate_proj", "mlp.up_proj", "mlp.gate_proj"),
    (r"\bpost_attention_layernorm\b", "attn_ln"),
    (r"\bpost_mlp_layernorm\b", "mlp_ln"),
    (r"\blayers\.", "encoder.layer."),
)
NOMIC: Renames = (  # here the activation is on the other one, fc12
    (r"\bembeddings\.LayerNorm\b", "emb_ln"),
    *_stack("attn.Wqkv", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    (r"\bself_attn\.o_proj\b", "attn.out_proj"),
    (r"\bmlp\.up_proj\b", "mlp.fc11"),
    (r"\bmlp\.gate_proj\b", "mlp.fc12"),
    (r"\bmlp\.down_proj\b", "mlp.fc2"),
    (r"\bpost_attention_layernorm\b", "norm1"),
    (r"\bpost_mlp_layernorm\b", "norm2"),
    (r"^layers\.", "encoder.layers."),
)


def _rope(theta: float, **more: Any) -> Json:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": theta, **more}}


ROTARY_XLMR = {**ROBERTA_LIKE, **_REMOTE, "model_type": "xlm-roberta", "position_embedding_type": "rotary"}
ROTARY_XLMR |= {"rotary_emb_base": 20_000.0}
ROTARY_NATIVE = {"model_type": "jina_embeddings_v3", **_rope(20_000.0)}
MGTE = {**SIZES, **_REMOTE, "model_type": "new", "max_position_embeddings": POSITIONS, "type_vocab_size": 1}
MGTE |= {"layer_norm_eps": 1e-12, "pad_token_id": 1, "rope_theta": 20_000, "position_embedding_type": "rope"}
MGTE |= {"rope_scaling": {"type": "ntk", "factor": 8.0}, "logn_attention_scale": False, "pack_qkv": True}
_DIM = HIDDEN // 2  # of a head
# NTK scaling, (theta * factor) ** (-2i / d) / factor ** (2 / d), in the words of the linear kind
NTK = _rope(160_000.0, rope_type="linear", factor=8.0 ** (2 / _DIM))
ARCTIC = {**MGTE, "model_type": "gte", "rope_scaling": None, "rope_theta": 50_000}
NOMIC_CONFIG = {
    **_REMOTE,
    "model_type": "nomic_bert",
    "n_embd": HIDDEN,
    "n_head": 2,
    "n_inner": INTERMEDIATE,
    "n_layer": LAYERS,
    "n_positions": POSITIONS,
    "activation_function": "swiglu",
    "layer_norm_epsilon": 1e-6,
    "rotary_emb_base": 500,
    "rotary_emb_fraction": 1.0,
    "rotary_emb_interleaved": False,
    "prenorm": False,
    "qkv_proj_bias": False,
    "mlp_fc1_bias": False,
    "mlp_fc2_bias": False,
    "type_vocab_size": 2,
    "pad_token_id": 0,
}
NOMIC_NATIVE = {**SIZES, "hidden_act": "silu", "max_position_embeddings": POSITIONS, "layer_norm_eps": 1e-6}
NOMIC_NATIVE |= _rope(500.0)
MOE: dict[str, Any] = {"moe_every_n_layers": 2, "num_experts": 4, "moe_top_k": 2, "activation_function": "gelu"}
MOE |= {"rotary_emb_base": 700, "type_vocab_size": 1, "pad_token_id": 1, "layer_norm_epsilon": 1e-5}
MOE |= dict.fromkeys(("qkv_proj_bias", "mlp_fc1_bias", "mlp_fc2_bias"), True)


def _moe_shapes(vocab: int) -> Shapes:
    """nomic-embed-text-v2-moe: the second of two layers has experts."""
    vector, rows = (HIDDEN,), MOE["num_experts"] * INTERMEDIATE
    shapes: Shapes = {"embeddings.word_embeddings.weight": (vocab, HIDDEN)}
    shapes |= {"embeddings.token_type_embeddings.weight": (1, HIDDEN)}
    linear = {"attn.Wqkv": 3 * HIDDEN, "attn.out_proj": HIDDEN}
    for layer in ("encoder.layers.0", "encoder.layers.1"):
        shapes |= {f"{layer}.{name}.weight": (out, HIDDEN) for name, out in linear.items()}
        shapes |= {f"{layer}.{name}.bias": (out,) for name, out in linear.items()}
        shapes |= {f"{layer}.{norm}.{part}": vector for norm in ("norm1", "norm2") for part in ("weight", "bias")}
    shapes |= {"emb_ln.weight": vector, "emb_ln.bias": vector}
    dense, mixture = "encoder.layers.0.mlp", "encoder.layers.1.mlp"
    shapes |= {f"{dense}.fc1.weight": (INTERMEDIATE, HIDDEN), f"{dense}.fc1.bias": (INTERMEDIATE,)}
    shapes |= {f"{dense}.fc2.weight": (HIDDEN, INTERMEDIATE), f"{dense}.fc2.bias": vector}
    shapes |= {f"{mixture}.router.layer.weight": (MOE["num_experts"], HIDDEN), f"{mixture}.experts.bias": vector}
    return shapes | {f"{mixture}.experts.mlp.{name}": (rows, HIDDEN) for name in ("w1", "w2")}


def _row(architecture: str, config: Json, words: Words, **more: Any) -> Row:
    """A row whose class and tensor names are those of transformers."""
    labels = _ONE_LABEL if architecture.endswith("ForSequenceClassification") else {}
    return Row(architecture, more.pop("model", architecture), {**config, **labels}, words, **more)


BERT_WORDS, ROBERTA_WORDS, XLMR_WORDS = _family("Bert"), _family("Roberta"), _family("XLMRoberta")
_XLMR = {**ROBERTA_LIKE, "model_type": "xlm-roberta"}
_GTE_NATIVE = {"model_type": "gte", "rope_scaling": None}

ENCODER_PAIRS = {
    "bert_pairs": _row("BertForSequenceClassification", {**BERT_LIKE, "model_type": "bert"}, BERT_WORDS),
    "roberta_pairs": _row("RobertaForSequenceClassification", {**ROBERTA_LIKE, "model_type": "roberta"}, ROBERTA_WORDS),
    "xlmr_pairs": _row("XLMRobertaForSequenceClassification", _XLMR, XLMR_WORDS),
    "xlmr_flash_pairs": _row("XLMRobertaForSequenceClassification", {**_XLMR, **_REMOTE}, XLMR_WORDS, renames=FLASH),
    "camembert_pairs": _row(
        "CamembertForSequenceClassification", {**ROBERTA_LIKE, "model_type": "camembert"}, XLMR_WORDS
    ),
    "new_pairs": _row(
        "NewForSequenceClassification",
        MGTE,
        XLMR_WORDS,
        model="GteForSequenceClassification",
        native={**_GTE_NATIVE, **NTK},
        renames=(*NEW, (r"^gte\.", "new.")),
    ),
    "gte_pairs": _row(
        "GteForSequenceClassification",
        ARCTIC,
        XLMR_WORDS,
        native=_rope(50_000.0),
        renames=(*NEW, (r"^gte\.", "new.")),
    ),
    "modernbert_pairs_cls": _row(
        "ModernBertForSequenceClassification", {**MODERNBERT, "classifier_pooling": "cls"}, CLS_SEP
    ),
    "modernbert_pairs_mean": _row(
        "ModernBertForSequenceClassification", {**MODERNBERT, "classifier_pooling": "mean"}, CLS_SEP
    ),
    "deberta_pairs": _row("DebertaV2ForSequenceClassification", DEBERTA, BERT_WORDS),
    "electra_pairs": _row("ElectraForSequenceClassification", ELECTRA, BERT_WORDS),
    "ernie_pairs": _row("ErnieForSequenceClassification", ERNIE, BERT_WORDS),
    "distilbert_pairs": _row("DistilBertForSequenceClassification", DISTILBERT, BERT_WORDS),
    "mpnet_pairs": _row("MPNetForSequenceClassification", MPNET, ROBERTA_WORDS),
    "albert_pairs": _row("AlbertForSequenceClassification", ALBERT, BERT_WORDS),
    "deberta_1_pairs": _row("DebertaForSequenceClassification", DEBERTA_1, BERT_WORDS),
    "megatron_pairs": _row("MegatronBertForSequenceClassification", MEGATRON, BERT_WORDS),
    "xlmr_xl_pairs": _row("XLMRobertaXLForSequenceClassification", XLMR_XL, XLMR_WORDS),
    "data2vec_pairs": _row("Data2VecTextForSequenceClassification", DATA2VEC, ROBERTA_WORDS),
    "prelayernorm_pairs": _row("RobertaPreLayerNormForSequenceClassification", PRE_NORM, ROBERTA_WORDS),
    "longformer_pairs": _row(
        "LongformerForSequenceClassification", {**LONGFORMER, "attention_window": 16}, ROBERTA_WORDS
    ),
    "eurobert_pairs_late": _row("EuroBertForSequenceClassification", EUROBERT, BOTH),
    "eurobert_pairs_mean": _row("EuroBertForSequenceClassification", {**EUROBERT, "classifier_pooling": "mean"}, BOTH),
    "monot5": _row("T5ForConditionalGeneration", T5, T5_WORDS),
    "mono_mt5": _row("MT5ForConditionalGeneration", MT5, T5_WORDS),
}

_MEAN, _CLS = _sentence_files("mean_tokens"), _sentence_files("cls_token")
SPLADE: Mapping[str, Json | list[Json]] = {
    "modules.json": [
        {"name": path or "0", "path": path, "type": f"sentence_transformers.sparse_encoder.models.{kind}"}
        for path, kind in (("", "MLMTransformer"), ("1_SpladePooling", "SpladePooling"))
    ],
    "1_SpladePooling/config.json": {"pooling_strategy": "max", "activation_function": "relu"},
    "config_sentence_transformers.json": {"model_type": "SparseEncoder", "similarity_fn_name": "dot"},
}
JINA_TASKS = ["retrieval.query", "retrieval.passage", "separation", "classification", "text-matching"]
JINA_PROMPTS = {"retrieval.query": "Represent the query: ", "retrieval.passage": "Represent the document: "}
JINA_MODULES: list[Json] = [
    {"path": "", "type": "custom_st.Transformer", "kwargs": ["task"]},
    {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
]
LORA: dict[str, Any] = {"lora_adaptations": JINA_TASKS, "lora_rank": 4, "lora_alpha": 2}
LORA |= {"task_instructions": {**dict.fromkeys(JINA_TASKS, ""), **JINA_PROMPTS}}
_BERT, _ROBERTA = {**BERT_LIKE, "model_type": "bert"}, {**ROBERTA_LIKE, "model_type": "roberta"}
E5 = {"query": "query: ", "passage": "passage: "}

ENCODER_VECTORS = {
    "bert": _row("BertModel", _BERT, BERT_WORDS, files=_CLS),
    "bert_mlm": _row("BertForMaskedLM", _BERT, BERT_WORDS),
    "bert_splade": _row("BertForMaskedLM", _BERT, BERT_WORDS, files=SPLADE),
    "bert_splade_by_name": _row("BertSpladeSparseEmbeddingModel", _BERT, BERT_WORDS, model="BertForMaskedLM"),
    "roberta": _row("RobertaModel", _ROBERTA, ROBERTA_WORDS, files=_MEAN),
    "roberta_for_mlm": _row("RobertaForMaskedLM", _ROBERTA, ROBERTA_WORDS),
    "roberta_splade": _row("RobertaForMaskedLM", _ROBERTA, ROBERTA_WORDS, files=SPLADE),
    "xlmr": _row("XLMRobertaModel", _XLMR, XLMR_WORDS, files=_sentence_files("mean_tokens", prompts=E5)),
    "xlmr_flash": _row("XLMRobertaModel", {**_XLMR, **_REMOTE}, XLMR_WORDS, renames=FLASH),
    "xlmr_mlm": _row("XLMRobertaForMaskedLM", _XLMR, XLMR_WORDS),
    "camembert": _row("CamembertModel", {**_ROBERTA, "model_type": "camembert"}, XLMR_WORDS, files=_MEAN),
    "mpnet": _row("MPNetModel", MPNET, ROBERTA_WORDS, files=_MEAN),
    "mpnet_mlm": _row("MPNetForMaskedLM", MPNET, ROBERTA_WORDS),
    "ernie": _row("ErnieModel", ERNIE, BERT_WORDS, files=_MEAN),
    "electra": _row("ElectraModel", ELECTRA, BERT_WORDS),
    "distilbert": _row("DistilBertModel", DISTILBERT, BERT_WORDS, files=_MEAN),
    "albert": _row("AlbertModel", ALBERT, BERT_WORDS, files=_MEAN),
    "deberta_1": _row("DebertaModel", DEBERTA_1, BERT_WORDS, files=_MEAN),
    "deberta": _row("DebertaV2Model", DEBERTA, BERT_WORDS),
    "megatron": _row("MegatronBertModel", MEGATRON, BERT_WORDS),
    "xlmr_xl": _row("XLMRobertaXLForMaskedLM", XLMR_XL, XLMR_WORDS),
    "data2vec": _row("Data2VecTextModel", DATA2VEC, ROBERTA_WORDS),
    "eurobert": _row("EuroBertForMaskedLM", EUROBERT, BOTH),
    "t5": _row(  # as sentence-t5 is saved
        "T5EncoderModel",
        T5,
        T5_WORDS,
        files=_sentence_files("mean_tokens", dense=((HIDDEN, 48),)),
        weights={"2_Dense": {"linear.weight": (48, HIDDEN)}},
    ),
    "t5_whole": _row("T5ForConditionalGeneration", T5, T5_WORDS, files=_MEAN),
    "mt5": _row("MT5EncoderModel", MT5, T5_WORDS),
    "umt5": _row("UMT5EncoderModel", {**T5, "model_type": "umt5"}, T5_WORDS),
    "distilbert_mlm": _row("DistilBertForMaskedLM", DISTILBERT, BERT_WORDS),
    "distilbert_splade": _row("DistilBertForMaskedLM", DISTILBERT, BERT_WORDS, files=SPLADE),
    "jina_v3": Row(
        "XLMRobertaModel",
        "JinaEmbeddingsV3Model",
        {**ROTARY_XLMR, **LORA},
        XLMR_WORDS,
        native=ROTARY_NATIVE,
        renames=ROTARY,
        adapters=JINA_TASKS,
        files={**_MEAN, "modules.json": JINA_MODULES},
    ),
    "modernbert": _row("ModernBertModel", MODERNBERT, CLS_SEP, files=_CLS),
    "modernbert_mlm": _row("ModernBertForMaskedLM", MODERNBERT, CLS_SEP),
    "modernbert_splade": _row("ModernBertForMaskedLM", MODERNBERT, CLS_SEP, files=SPLADE),
    "new": _row(
        "NewModel",
        MGTE,
        XLMR_WORDS,
        model="GteModel",
        native={**_GTE_NATIVE, **NTK},
        renames=(*NEW, *_under("new.")),
        extra={"classifier.weight": (1, HIDDEN), "classifier.bias": (1,)},  # weighs words; nothing here reads it
        files=_CLS,
    ),
    "gte": _row(
        "GteModel",
        ARCTIC,
        XLMR_WORDS,
        native=_rope(50_000.0),
        renames=NEW,
        files=_sentence_files("cls_token", prompts={"query": "query: "}),
    ),
    "nomic": _row("NomicBertModel", NOMIC_CONFIG, BERT_WORDS, native=NOMIC_NATIVE, renames=NOMIC, files=_MEAN),
    "static": Row(
        "StaticEmbedding",
        "",
        {"max_position_embeddings": 64},
        BERT_WORDS,
        extra={"embedding.weight": (BERT_WORDS.count, 16)},
    ),
    "model2vec": Row(
        "StaticModel",
        "",
        {"model_type": "model2vec", "hidden_dim": 16, "max_position_embeddings": 64},
        BERT_WORDS,
        extra={"embeddings": (BERT_WORDS.count, 16), "weights": (BERT_WORDS.count,)},
    ),
    "nomic_moe": Row("NomicBertModel", "", {**NOMIC_CONFIG, **MOE}, XLMR_WORDS, extra=_moe_shapes(XLMR_WORDS.count)),
}

# ---- language models

DECODER = {
    **SIZES,
    "hidden_act": "silu",
    "num_key_value_heads": 1,
    "max_position_embeddings": PROMPT_POSITIONS,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10_000.0,
    "attention_dropout": 0.1,
    "tie_word_embeddings": False,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GEMMA = {"head_dim": 24, "hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh"}
_GEMMA |= {"tie_word_embeddings": True}
# what sets a family apart; heads wider than hidden_size / heads, and windows shorter than the texts, where they exist
FAMILY: dict[str, Json] = {
    "Llama": {},
    "Mistral": {"sliding_window": 8},
    "Qwen2": {"use_sliding_window": False, "sliding_window": 8, "max_window_layers": 2},
    "Qwen3": {"head_dim": 24, "use_sliding_window": False, "tie_word_embeddings": True},
    "Gemma": _GEMMA,
    "Gemma2": {**_GEMMA, "query_pre_attn_scalar": 20, "sliding_window": 8, "attn_logit_softcapping": 2.0},
    "Granite": {"embedding_multiplier": 3.0, "residual_multiplier": 0.5, "attention_multiplier": 0.1},
    "Phi3": {"sliding_window": 8, "original_max_position_embeddings": PROMPT_POSITIONS},
}
FAMILY = {family: {**DECODER, "model_type": family.lower(), **config} for family, config in FAMILY.items()}
GPT2 = {"model_type": "gpt2", "n_embd": HIDDEN, "n_layer": LAYERS, "n_head": 2, "n_positions": 512}
GPT2 |= {"activation_function": "gelu_new", "bos_token_id": 3, "eos_token_id": 3, "pad_token_id": 0}
LFM2 = {
    **DECODER,
    "model_type": "lfm2",
    "num_hidden_layers": 3,
    "full_attn_idxs": [1],
    "block_auto_adjust_ff_dim": False,
    "block_ff_dim": INTERMEDIATE,
    "conv_L_cache": 3,
    "conv_bias": False,
    "norm_eps": 1e-5,
    "tie_word_embeddings": True,
}
GEMMA3 = {
    **DECODER,
    **_GEMMA,
    "model_type": "gemma3_text",
    "num_hidden_layers": 3,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
    "sliding_window": 12,
    "rope_theta": 1_000_000.0,
    "rope_local_base_freq": 10_000.0,
    "query_pre_attn_scalar": 20,
}
MODERNBERT_DECODER = {**MODERNBERT, "model_type": "modernbert-decoder", "cls_token_id": 1, "sep_token_id": 2}
MODERNBERT_DECODER |= {"bos_token_id": 1, "eos_token_id": 2}
NEMOTRON = {**FAMILY["Llama"], **_REMOTE, "model_type": "llama_bidirec", "pooling": "avg", "temperature": 0.2}
_LLAMA3 = {"rope_type": "llama3", "factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0}
NEMOTRON |= {"rope_theta": 500_000.0, "rope_scaling": {**_LLAMA3, "original_max_position_embeddings": POSITIONS}}
LAYERWISE = {"start_layer": 2, "head_multi": True, "head_type": "simple"}
MINICPM = {**DECODER, **_REMOTE, **LAYERWISE, "model_type": "minicpm", "num_hidden_layers": 4, "scale_emb": 3}
MINICPM |= {"scale_depth": 1.4, "dim_model_base": 256}
MINICPM_NATIVE = {"model_type": "granite", "embedding_multiplier": 3, "residual_multiplier": 0.7}
MINICPM_NATIVE |= {"attention_multiplier": _DIM**-0.5}
COST_WISE = {**FAMILY["Gemma2"], **_REMOTE, **LAYERWISE, "model_type": "cost_wise_gemma", "layer_sep": 2}
COST_WISE |= {"num_hidden_layers": 4, "layer_wise": True}


def _heads(*numbers: int) -> Shapes:
    return {f"lm_head.{number}.linear_head.weight": (1, HIDDEN) for number in numbers}


_QWEN3 = FAMILY["Qwen3"]
_SCORE: Shapes = {"score.weight": (1, HIDDEN)}
DECODER_PAIRS = {
    **{
        f"{family.lower()}_pairs": _row(f"{family}ForSequenceClassification", FAMILY[family], BEGUN)
        for family in ("Llama", "Qwen2", "Qwen3", "Gemma", "Gemma2", "Phi3")
    },
    "mistral_pairs": _row("MistralForSequenceClassification", {**FAMILY["Mistral"], "use_sep_token": False}, BARE),
    "granite_pairs": _row(  # transformers has no class of this name
        "GraniteForSequenceClassification",
        FAMILY["Granite"],
        BEGUN,
        model="GraniteModel",
        renames=_under("model."),
        extra=_SCORE,
    ),
    "modernbert_decoder_pairs": _row("ModernBertDecoderForSequenceClassification", MODERNBERT_DECODER, BOTH),
    "gpt2_pairs": _row("GPT2ForSequenceClassification", GPT2, BARE),
    "qwen2_pairs_with_bias": _row("Qwen2ForSequenceClassification", FAMILY["Qwen2"], BEGUN, extra={"score.bias": (1,)}),
    "qwen3_reranker": _row("Qwen3ForCausalLM", _QWEN3, BARE),
    "qwen3_reranker_untied": _row("Qwen3ForCausalLM", {**_QWEN3, "tie_word_embeddings": False}, BARE),
    "qwen3_reranker_seq_cls": _row("Qwen3ForSequenceClassification", {**_QWEN3, "use_sep_token": False}, BARE),
    "mxbai_reranker": _row("Qwen2ForCausalLM", {**FAMILY["Qwen2"], "tie_word_embeddings": True}, BARE),
    "bge_gemma": _row("GemmaForCausalLM", FAMILY["Gemma"], BEGUN),
    "zerank": _row("Qwen3ForCausalLM", _QWEN3, BARE),
    "llama_converted": _row("LlamaForCausalLM", FAMILY["Llama"], BEGUN),
    "qwen2_model_with_score": _row("Qwen2Model", {**FAMILY["Qwen2"], **_ONE_LABEL}, BARE, extra=_SCORE),
    "nemotron_reranker": _row(
        "LlamaBidirectionalForSequenceClassification",
        NEMOTRON,
        BEGUN,
        model="LlamaForSequenceClassification",
        native={"model_type": "llama"},
    ),
    "minicpm_layerwise": _row(
        "LayerWiseMiniCPMForCausalLM",
        MINICPM,
        BEGUN,
        model="GraniteModel",
        native=MINICPM_NATIVE,
        renames=_under("model."),
        extra=_heads(0, 1, 2),
    ),
    "gemma2_lightweight": _row(
        "CostWiseGemmaForCausalLM",
        COST_WISE,
        BEGUN,
        model="Gemma2Model",
        native={"model_type": "gemma2"},
        renames=_under("model."),
        extra=_heads(0, 1),
    ),
    "jina_listwise": _row(
        "JinaForRanking",
        {**_QWEN3, **_REMOTE},
        BARE,
        model="Qwen3Model",
        renames=_under("model."),
        extra={"projector.0.weight": (HIDDEN // 2, HIDDEN), "projector.2.weight": (24, HIDDEN // 2)},
    ),
}
# where a family's tokenizer ends a text, or is asked to
_MODEL_WORDS = {"Mistral": LOST_END, "Qwen2": LOST_BOTH, "Qwen3": ENDED, "Gemma": BOTH, "Gemma2": BOTH}
_LAST = _sentence_files("lasttoken")
DECODER_VECTORS = {
    **{
        f"{family.lower()}_model": _row(f"{family}Model", FAMILY[family], _MODEL_WORDS.get(family, BEGUN))
        for family in FAMILY
    },
    **{
        f"{family.lower()}_lm": _row(
            f"{family}ForCausalLM", FAMILY[family], _MODEL_WORDS.get(family, BARE), files=_LAST
        )
        for family in FAMILY
    },
    "qwen2_both_ways": _row("Qwen2ForCausalLM", {**FAMILY["Qwen2"], "is_causal": False}, LOST_BOTH),
    "qwen3_embedding": _row(  # a language model by name, saved without its head and without a prefix
        "Qwen3ForCausalLM",
        _QWEN3,
        ENDED,
        model="Qwen3Model",
        files=_sentence_files("lasttoken", prompts={"query": "Instruct: find\nQuery:", "document": ""}),
    ),
    "gpt2_model": _row("GPT2Model", GPT2, BARE),
    "gpt2_lm": _row("GPT2LMHeadModel", GPT2, BARE),
    "lfm2_model": _row("Lfm2Model", LFM2, BEGUN),
    "lfm2_lm": _row("Lfm2ForCausalLM", LFM2, BEGUN),
    "gemma3_model": _row(
        "Gemma3TextModel",
        {**GEMMA3, "use_bidirectional_attention": True},
        BOTH,
        files=_sentence_files(
            "mean_tokens",
            prompts={"query": "task: search result | query: ", "document": "title: none | text: "},
            dense=((HIDDEN, 48), (48, HIDDEN)),
        ),
        weights={"2_Dense": {"linear.weight": (48, HIDDEN)}, "3_Dense": {"linear.weight": (HIDDEN, 48)}},
    ),
    "gemma3_lm": _row("Gemma3ForCausalLM", GEMMA3, BOTH),
    "modernbert_decoder": _row("ModernBertDecoderModel", MODERNBERT_DECODER, BOTH),
    "modernbert_decoder_lm": _row("ModernBertDecoderForCausalLM", MODERNBERT_DECODER, BOTH),
    "gritlm": _row("GritLM", FAMILY["Mistral"], BEGUN, model="MistralForCausalLM", native={"sliding_window": None}),
    "nemotron": _row("LlamaBidirectionalModel", NEMOTRON, BEGUN, model="LlamaModel", native={"model_type": "llama"}),
    "voyage": _row(
        "VoyageQwen3BidirectionalEmbedModel",
        {**_QWEN3, "use_bidirectional_attention": True, "num_labels": 48},
        BARE,
        model="Qwen3Model",
        renames=_under("model."),
        extra={"linear.weight": (48, HIDDEN)},
        files=_sentence_files("mean_tokens", prompts={"query": "the query: ", "document": "the document: "}),
    ),
}

# ---- what the registry does not list

_SMALL = {**DECODER, "max_position_embeddings": 512}
_MAMBA = {"state_size": 4, "conv_kernel": 4, "expand": 2}
_JAMBA = {"num_hidden_layers": 3, "attn_layer_period": 3, "attn_layer_offset": 1, "use_mamba_kernels": False}
_JAMBA |= {"mamba_d_state": 4, "mamba_d_conv": 4, "mamba_expand": 2, "mamba_dt_rank": 4}
_JAMBA |= {"expert_layer_period": 2, "expert_layer_offset": 1, "num_experts": 2, "num_experts_per_tok": 1}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 24}
UNLISTED = {
    "olmo": _row("OlmoModel", {**_SMALL, "model_type": "olmo"}, BEGUN),
    "stablelm": _row("StableLmForCausalLM", {**_SMALL, "model_type": "stablelm"}, BARE),
    # learned positions that begin behind two rows
    "opt": _row("OPTForCausalLM", {**_SMALL, "model_type": "opt", "ffn_dim": 64, "word_embed_proj_dim": HIDDEN}, BEGUN),
    # positions in the attention itself
    "bloom_pairs": _row("BloomForSequenceClassification", {**_SMALL, "model_type": "bloom", "n_head": 2}, BEGUN),
    "qwen3_moe": _row("Qwen3MoeForCausalLM", {**_SMALL, **_EXPERTS, "model_type": "qwen3_moe"}, BARE),
    # no attention, and some
    "mamba": _row("MambaForCausalLM", {**_SMALL, **_MAMBA, "model_type": "mamba"}, BARE),
    "jamba": _row("JambaForCausalLM", {**_SMALL, **_JAMBA, "model_type": "jamba"}, BEGUN),
    # encoders: one whose convolution sees padding, with a head of its own, and one with a head for masked words
    "convbert_pairs": _row("ConvBertForSequenceClassification", CONVBERT, BERT_WORDS),
    "albert_mlm": _row("AlbertForMaskedLM", ALBERT, BERT_WORDS),
}

# ---- late interaction

PYLATE = {"query_prefix": "[Q] ", "document_prefix": "[D] ", "query_length": 16, "document_length": 48}
PYLATE |= {"do_query_expansion": True, "attend_to_expansion_tokens": False, "skiplist_words": [*string.punctuation]}
STANFORD = {"query_token_id": "[unused0]", "doc_token_id": "[unused1]", "query_maxlen": 16, "doc_maxlen": 48}
STANFORD |= {"mask_punctuation": True, "attend_to_mask_tokens": False, "similarity": "cosine", "dim": 16}
JINA_COLBERT = {**STANFORD, "query_token_id": "[QueryMarker]", "doc_token_id": "[DocumentMarker]"}
JINA_COLBERT |= {"attend_to_mask_tokens": True}
_PYLATE_FILES: Mapping[str, Json | list[Json]] = {
    "modules.json": [
        {"name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"name": "1", "path": "1_Dense", "type": "pylate.models.Dense.Dense"},
    ],
    "config_sentence_transformers.json": {**PYLATE, "similarity_fn_name": "MaxSim", "prompts": {}},
    "sentence_bert_config.json": {"max_seq_length": 47, "do_lower_case": False},
    "1_Dense/config.json": {
        "in_features": HIDDEN,
        "out_features": 16,
        "bias": False,
        "activation_function": "torch.nn.modules.linear.Identity",
    },
}
_PYLATE_WEIGHTS: Mapping[str, Shapes] = {"1_Dense": {"linear.weight": (16, HIDDEN)}}
_PROJECTION: Shapes = {"linear.weight": (16, HIDDEN)}

LATE_INTERACTION = {
    "colbert": Row(
        "HF_ColBERT",
        "BertModel",
        _BERT,
        _family("Bert", "[unused0]", "[unused1]"),
        renames=_under("bert."),
        extra=_PROJECTION,
        files={"artifact.metadata": STANFORD},
    ),
    "jina_colbert": Row(
        "HF_ColBERT",
        "JinaEmbeddingsV3Model",
        ROTARY_XLMR,
        _family("XLMRoberta", "[QueryMarker]", "[DocumentMarker]"),
        native=ROTARY_NATIVE,
        renames=ROTARY,
        extra=_PROJECTION,
        files={"artifact.metadata": JINA_COLBERT},
    ),
    "modern_colbert": _row(  # an unattended token must have an attended one in its window, as in published models
        "ModernBertModel",
        {**MODERNBERT, "local_attention": 28},
        CLS_SEP,
        files=_PYLATE_FILES,
        weights=_PYLATE_WEIGHTS,
    ),
    "lfm2_colbert": _row("Lfm2Model", LFM2, BEGUN, files=_PYLATE_FILES, weights=_PYLATE_WEIGHTS),
    "bge_m3": _row(
        "XLMRobertaModel",
        _XLMR,
        XLMR_WORDS,
        files=_CLS,
        weights={"colbert_linear.pt": {"weight": (HIDDEN, HIDDEN), "bias": (HIDDEN,)}},
    ),
    "qwen3_tokens": _row("Qwen3ForCausalLM", _QWEN3, BARE),
    "bert_tokens": _row("BertModel", _BERT, BERT_WORDS),
}

# ---- what a config says and is easily passed over

_LONGROPE: Json = {"rope_type": "longrope", "short_factor": [1 + n / 10 for n in range(8)]}
_LONGROPE = {**_LONGROPE, "long_factor": [4.0 + n for n in range(8)]}
_FEW_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
_DSA = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8}
_DSA |= {"num_key_value_heads": 2, "head_dim": 8, "index_n_heads": 2, "index_head_dim": 16, "index_topk": 8}
_DSA |= {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "n_group": 1, "topk_group": 1}
_GPT_OSS = {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 16, "sliding_window": 8}
EDGES = {
    "rotary_xlmr_pairs": _row(
        "XLMRobertaForSequenceClassification",
        ROTARY_XLMR,
        XLMR_WORDS,
        model="JinaEmbeddingsV3ForSequenceClassification",
        native=ROTARY_NATIVE,
        renames=(*ROTARY[:-2], (r"^roberta\.layers\.", "roberta.encoder.layers.")),
    ),
    "modernbert_epsilon_pairs": _row(
        "ModernBertForSequenceClassification", {**MODERNBERT, "norm_eps": 1e-3, "layer_norm_eps": 1e-12}, CLS_SEP
    ),
    "splade_relu": _row("BertForMaskedLM", {**_BERT, "hidden_act": "relu"}, BERT_WORDS, files=SPLADE),
    # other rotary frequencies for all of a batch that has one long sequence
    "phi3_longrope": _row(
        "Phi3ForCausalLM",
        {**FAMILY["Phi3"], "rope_scaling": _LONGROPE, "original_max_position_embeddings": 24},
        BEGUN,
    ),
    "mistral_both_ways": _row("MistralModel", {**FAMILY["Mistral"], "is_causal": False}, BEGUN),
    # attention sinks, which the packed attention does not have
    "gpt_oss": _row("GptOssForCausalLM", {**_SMALL, **_GPT_OSS, "model_type": "gpt_oss"}, BEGUN),
    # a window, chunks and a choice of keys, each of them in the mask alone
    "phimoe": _row("PhimoeForCausalLM", {**_SMALL, **_FEW_EXPERTS, "model_type": "phimoe", "sliding_window": 8}, BEGUN),
    "llama4": _row(
        "Llama4TextModel",
        {**_SMALL, **_FEW_EXPERTS, "model_type": "llama4_text", "attention_chunk_size": 8, "head_dim": 16},
        BEGUN,
    ),
    "deepseek_v32": _row("DeepseekV32ForCausalLM", {**_SMALL, **_DSA, "model_type": "deepseek_v32"}, BEGUN),
    # positions after the padding id
    "roberta_prelayernorm": _row("RobertaPreLayerNormModel", PRE_NORM, ROBERTA_WORDS),
    # a convolution that sees padding
    "convbert": _row(
        "ConvBertModel", {**_SMALL, "model_type": "convbert", "embedding_size": 32, "head_ratio": 1}, BEGUN
    ),
}

ROWS = {**ENCODER_PAIRS, **EDGES, **ENCODER_VECTORS, **DECODER_PAIRS, **DECODER_VECTORS, **UNLISTED, **LATE_INTERACTION}

# ---- one checkpoint


def build(name: str, folder: Path) -> Path:
    """Write a row's checkpoint into `folder`, which is made if need be. Returns it."""
    row = ROWS[name]
    write_json(folder / "config.json", {"architectures": [row.architecture], "torch_dtype": "float32", **row.sized})
    write_json(folder / "tokenizer_config.json", row.words.config)
    row.words.tokenizer.save(str(folder / "tokenizer.json"))
    for file, content in row.files.items():
        write_json(folder / file, content)
    save_tensors(folder, _of_the_file(row) | _draw(row.extra))
    for module, shapes in row.weights.items():
        tensors = _draw(shapes, f"{module}.")
        if module.endswith(".pt"):
            torch.save({key: torch.from_numpy(tensor) for key, tensor in tensors.items()}, folder / module)
        else:
            save_tensors(folder / module, tensors)
    return folder


def native(name: str, adapter: str = "") -> tuple[Any, dict[str, torch.Tensor]]:
    """(transformers' own class with the row's tensors, None if there is none; the tensors it does not have)."""
    row = ROWS[name]
    extra = _draw(row.extra)
    for module, shapes in row.weights.items():
        extra |= {f"{module}.{key}": tensor for key, tensor in _draw(shapes, f"{module}.").items()}
    net = _instance(row)
    if net is not None:
        tensors = _merged(row, adapter) if adapter else _of_the_class(row)
        tensors |= {copy: tensors[source] for copy, source in _tied(net).items()}
        net.load_state_dict({key: torch.from_numpy(tensor) for key, tensor in tensors.items()})
        net.set_attn_implementation("eager")
    return net, {key: torch.from_numpy(tensor) for key, tensor in extra.items()}


def _instance(row: Row) -> Any:
    if not row.model:
        return None
    config = {**row.sized, **row.native}
    kind = transformers.CONFIG_MAPPING[config["model_type"]]
    return getattr(transformers, row.model)(kind.from_dict(config)).eval()


def _tied(net: Any) -> Mapping[str, str]:
    """{tensor: the one it shares}: a file holds the second alone."""
    ties: Mapping[str, str] = net._tied_weights_keys or {} if net.config.tie_word_embeddings else {}
    return ties


def _draw(shapes: Mapping[str, tuple[int, ...]], of: str = "") -> Tensors:
    """Random values by name, wide enough that scores differ visibly between texts."""
    tensors: Tensors = {}
    for name, shape in shapes.items():
        noise = np.random.default_rng(zlib.crc32((of + name).encode())).standard_normal(shape, np.float32)
        is_table = re.search(r"(word_embeddings|tok_embeddings|embed_tokens|wte|embeddings)\.weight$", name)
        is_norm = name.endswith("weight") and len(shape) == 1  # no other vector is called so
        tensors[name] = np.float32(1.0 if is_table else 0.2) * noise + np.float32(is_norm)
    return tensors


def _of_the_class(row: Row) -> Tensors:
    net = _instance(row)
    if net is None:
        return {}
    copies = _tied(net)
    return _draw({name: tuple(tensor.shape) for name, tensor in net.state_dict().items() if name not in copies})


def _parts(names: Iterable[str], renames: Renames) -> dict[str, list[str]]:
    """{name in the file: names in the class, stacked in this order}."""
    parts = {name: [name] for name in names}
    for pattern, new in renames:
        for name in [name for name in parts if re.search(pattern, name)]:
            moved = parts.pop(name)
            parts.setdefault(re.sub(pattern, new, name), []).extend(moved)
    return parts


def _of_the_file(row: Row) -> Tensors:
    tensors = _of_the_class(row)
    stacked = {
        name: np.concatenate([tensors[part] for part in parts]) for name, parts in _parts(tensors, row.renames).items()
    }
    if not row.adapters:
        return stacked
    adapted: Tensors = {}
    for name, tensor in stacked.items():
        if tensor.ndim < 2:
            adapted[name] = tensor
        else:
            stem = name.removesuffix("weight") + "parametrizations.weight"
            adapted |= {f"{stem}.original": tensor, **_adapters(row, name, tensor.shape)}
    return adapted


# ---- LoRA adapters, one behind the other


def _adapters(row: Row, name: str, shape: tuple[int, ...]) -> Tensors:
    """Of a weight W: B @ A is added to those of layers, A @ B to those of tables."""
    rank, count = row.config["lora_rank"], len(row.adapters)
    outer, inner = ("A", "B") if "embeddings" in name else ("B", "A")
    stem = name.removesuffix("weight") + "parametrizations.weight.0.lora_"
    return _draw({f"{stem}{outer}": (count, shape[0], rank), f"{stem}{inner}": (count, rank, shape[1])})


def _merged(row: Row, adapter: str) -> Tensors:
    """The tensors of the class with an adapter in them."""
    tensors, number = _of_the_class(row), row.adapters.index(adapter)
    scale = row.config["lora_alpha"] / row.config["lora_rank"]
    for name, parts in _parts(tensors, row.renames).items():
        rows = np.cumsum([len(tensors[part]) for part in parts])
        if tensors[parts[0]].ndim == 2:
            first, second = _adapters(row, name, (int(rows[-1]), tensors[parts[0]].shape[1])).values()
            change = np.split(scale * (first[number] @ second[number]), rows[:-1])
            tensors |= {
                part: tensors[part] + added.astype(np.float32) for part, added in zip(parts, change, strict=True)
            }
    return tensors
