"""Bidirectional encoders: which layers are the head, how positions count, and the names that old files use."""

from __future__ import annotations

from dataclasses import replace

from batchscore.errors import CheckpointError
from batchscore.models.arch.entry import Architecture, Entry, Json, Layer, PoolingMode, Rename

# BERT's class keeps the first layer of its head in the body as the "pooler"; RoBERTa's classifier has both layers
_POOLER_HEAD = (Layer("pooler.dense", "tanh"), Layer("classifier"))
_BERT = Architecture(layers="encoder.layer")
_ROBERTA = Architecture(layers="encoder.layer", positions_after_pad=True)
_ROBERTA_HEAD = (Layer("classifier.dense", "tanh"), Layer("classifier.out_proj"))

_ROBERTA_MLM = (Layer("lm_head.dense", "gelu"), Layer("lm_head.layer_norm"), Layer("lm_head.decoder"))


def _bert_mlm(config: Json) -> Architecture:
    stem = "cls.predictions"
    dense = Layer(f"{stem}.transform.dense", config.get("hidden_act", "gelu"))
    head = (dense, Layer(f"{stem}.transform.LayerNorm"), Layer(f"{stem}.decoder"))
    return replace(_BERT, hub="google-bert/bert-base-uncased", mlm_head=head)


def _bert_splade(config: Json) -> Architecture:
    base = _bert_mlm(config)
    return replace(base, hub="naver/splade-v3", pooling="splade", head=base.mlm_head)


def _distil_mlm(config: Json) -> Architecture:
    dense = Layer("vocab_transform", config.get("activation", "gelu"))
    head = (dense, Layer("vocab_layer_norm"), Layer("vocab_projector"))
    return replace(_DISTIL, hub="distilbert/distilbert-base-uncased", mlm_head=head)


def _modernbert_dense(config: Json) -> tuple[Layer, Layer]:
    return Layer("head.dense", config.get("classifier_activation", "gelu")), Layer("head.norm")


def _modernbert_mlm(config: Json) -> Architecture:
    head = (*_modernbert_dense(config), Layer("decoder"))
    return replace(_MODERNBERT, hub="answerdotai/ModernBERT-base", mlm_head=head)


# from Jina's own XLM-R, with its fused projections
_FLASH = (
    Rename(r"\bemb_ln\b", ("embeddings.LayerNorm",)),
    Rename(r"\blayers\.(\d+)\.norm1\b", (r"layer.\1.attention.output.LayerNorm",)),
    Rename(r"\blayers\.(\d+)\.norm2\b", (r"layer.\1.output.LayerNorm",)),
    Rename(r"\blayers\.(\d+)\.mlp\.fc1\b", (r"layer.\1.intermediate.dense",)),
    Rename(r"\blayers\.(\d+)\.mlp\.fc2\b", (r"layer.\1.output.dense",)),
    Rename(r"\blayers\.(\d+)\.mixer\.out_proj\b", (r"layer.\1.attention.output.dense",)),
    Rename(
        r"\blayers\.(\d+)\.mixer\.Wqkv\b",
        tuple(rf"layer.\1.attention.self.{part}" for part in ("query", "key", "value")),
    ),
)


def _rotary_xlmr(config: Json) -> Json:
    """Translate Jina's XLM-R with rotary positions to what transformers calls jina_embeddings_v3."""
    theta = config.get("rotary_emb_base", 10_000.0)
    return {**config, "model_type": "jina_embeddings_v3", "rope_parameters": _rope(theta)}


def _rope(theta: float) -> Json:
    return {"rope_type": "default", "rope_theta": float(theta)}


def _is_rotary(config: Json) -> bool:
    return config.get("position_embedding_type") == "rotary"


def _xlmr(config: Json) -> Architecture:
    if _is_rotary(config):
        adapters = tuple(config.get("lora_adaptations") or ())
        return Architecture(hub="jinaai/jina-embeddings-v3", translate=_rotary_xlmr, pooling="mean", adapters=adapters)
    return replace(_ROBERTA, hub="BAAI/bge-m3", renames=_FLASH, mlm_head=_ROBERTA_MLM)


def _xlmr_pairs(config: Json) -> Architecture:
    base = replace(_xlmr(config), hub="BAAI/bge-reranker-v2-m3", pooling="cls")
    return replace(base, score_type="cross-encoder", head=_ROBERTA_HEAD)


def _gte(config: Json) -> Json:
    """Translate Alibaba's and Snowflake's mGTE configs to transformers' gte, which has the same tensors.

    NTK scaling is linear scaling with other numbers: (theta * factor) ** (-2i / d) / factor ** (2 / d).
    """
    scaling, theta = config.get("rope_scaling") or {}, config.get("rope_theta", 10_000.0)
    native = config.get("rope_parameters")  # of a checkpoint that transformers has saved again
    rope, kind = native or _rope(theta), scaling.get("type") or scaling.get("rope_type")
    if config.get("logn_attention_scale") or "mixed_b" in scaling or kind not in (None, "ntk"):
        raise CheckpointError(
            f"mGTE with rope_scaling {scaling} and logn_attention_scale {config.get('logn_attention_scale')} "
            "is not supported"
        )
    if kind == "ntk" and config.get("hidden_size"):
        factor, dim = scaling["factor"], config["hidden_size"] // config["num_attention_heads"]
        rope = {"rope_type": "linear", "rope_theta": float(theta * factor), "factor": factor ** (2 / dim)}
    known = {key: value for key, value in config.items() if key not in {"rope_scaling", "rope_theta"}}
    biases = {"qkv_proj_bias": True, "mlp_fc1_bias": False, "mlp_fc2_bias": True}
    return {**known, **biases, "gated": True, "model_type": "gte", "rope_parameters": rope}


_ROTARY_BERT = "batchscore.models.arch.rotary_bert:RotaryBertModel"
_GTE = Architecture(
    hub="Alibaba-NLP/gte-multilingual-base",
    translate=_gte,
    body=_ROTARY_BERT,
    body_renames=(
        Rename(r"^new\.", ("",)),
        Rename(r"\bembeddings\.LayerNorm\b", ("emb_ln",)),
        Rename(r"\blayer\.(\d+)\.attention\.qkv_proj\b", (r"layers.\1.attn.Wqkv",)),
        Rename(r"\blayer\.(\d+)\.attention\.o_proj\b", (r"layers.\1.attn.out_proj",)),
        Rename(r"\blayer\.(\d+)\.attn_ln\b", (r"layers.\1.norm1",)),
        Rename(r"\blayer\.(\d+)\.mlp_ln\b", (r"layers.\1.norm2",)),
        Rename(r"\blayer\.(\d+)\.mlp\.up_gate_proj\b", (r"layers.\1.mlp.fc1",)),
        Rename(r"\blayer\.(\d+)\.mlp\.down_proj\b", (r"layers.\1.mlp.fc2",)),
    ),
)

_NOMIC_DEFAULTS = {
    "rotary_emb_fraction": 1.0,
    "rotary_emb_interleaved": False,
    "rotary_emb_scale_base": None,
    "rotary_scaling_factor": None,
    "prenorm": False,
    "use_rms_norm": False,
    "parallel_block": False,
    "moe_normalize_expert_weights": False,
    "num_shared_experts": 0,
    "expert_choice_router": False,
}


def _nomic(config: Json) -> Json:
    """nomic-bert-2048 names its sizes like GPT-2; transformers reads the tensors but not these names."""
    for key, value in _NOMIC_DEFAULTS.items():
        if config.get(key, value) not in (value, None):
            raise CheckpointError(f"NomicBert with {key}={config[key]!r} is not supported")
    if "n_embd" not in config:
        return config
    gated = config["activation_function"] == "swiglu"
    return {
        **config,
        "model_type": "nomic_bert" if gated else "nomic_bert_moe",  # a type that is ours alone
        "hidden_size": config["n_embd"],
        "num_attention_heads": config["n_head"],
        "num_hidden_layers": config["n_layer"],
        "intermediate_size": config["n_inner"],
        "max_position_embeddings": config["n_positions"],
        "layer_norm_eps": config["layer_norm_epsilon"],
        "hidden_act": "silu" if gated else config["activation_function"],
        "rope_parameters": _rope(config.get("rotary_emb_base", 10_000)),
    }


def _modernbert_pairs(config: Json) -> Architecture:
    head = (*_modernbert_dense(config), Layer("classifier"))
    base = replace(_MODERNBERT, pooling=config.get("classifier_pooling", "cls"))
    return _cross_encoder(base, head, "Alibaba-NLP/gte-reranker-modernbert-base")


def _deberta_pairs(config: Json) -> Architecture:
    dense = Layer("pooler.dense", config.get("pooler_hidden_act", "gelu"))
    return _cross_encoder(Architecture(flat=False), (dense, Layer("classifier")), "mixedbread-ai/mxbai-rerank-base-v1")


def _eurobert_pairs(config: Json) -> Architecture:
    pooling = _EUROBERT_POOLINGS.get(config.get("classifier_pooling", "late"))
    if pooling is None:  # the mean of all tokens' logits
        return replace(_EUROBERT, score_type="cross-encoder", flat=False, per_sequence="logit")
    return _cross_encoder(replace(_EUROBERT, pooling=pooling), (Layer("dense", "gelu"), Layer("classifier")), "")


def _cross_encoder(base: Architecture, head: tuple[Layer, ...], hub: str) -> Architecture:
    return replace(base, score_type="cross-encoder", head=head, hub=hub)


_MODERNBERT = Architecture(hub="Alibaba-NLP/gte-modernbert-base")
_MPNET = replace(_ROBERTA, hub="sentence-transformers/all-mpnet-base-v2", layers="", flat=False)
_DISTIL = Architecture(hub="sentence-transformers/msmarco-distilbert-base-v4")
_OTHER_ROBERTA = replace(_ROBERTA, layers="")  # whose layers are not quite BERT's
_EUROBERT = Architecture(hub="EuroBERT/EuroBERT-210m", pooling="mean")
_EUROBERT_POOLINGS: dict[str, PoolingMode] = {"bos": "cls", "mean": "mean"}

_STATIC = Architecture(
    hub="sentence-transformers/static-retrieval-mrl-en-v1",
    body="batchscore.models.arch.static:StaticEmbedding",
    pooling="mean",
    special_tokens=False,
)

ENCODERS: dict[str, Entry] = {
    "BertForSequenceClassification": _cross_encoder(_BERT, _POOLER_HEAD, "cross-encoder/ms-marco-MiniLM-L6-v2"),
    "RobertaForSequenceClassification": _cross_encoder(_ROBERTA, _ROBERTA_HEAD, "cross-encoder/quora-roberta-base"),
    "XLMRobertaForSequenceClassification": _xlmr_pairs,
    "CamembertForSequenceClassification": _cross_encoder(
        _ROBERTA, _ROBERTA_HEAD, "antoinelouis/crossencoder-camembert-base-mmarcoFR"
    ),
    **dict.fromkeys(
        ("NewForSequenceClassification", "GteNewForSequenceClassification", "GteForSequenceClassification"),
        _cross_encoder(_GTE, _POOLER_HEAD, "Alibaba-NLP/gte-multilingual-reranker-base"),
    ),
    "ModernBertForSequenceClassification": _modernbert_pairs,
    "DebertaV2ForSequenceClassification": _deberta_pairs,
    "ElectraForSequenceClassification": _cross_encoder(
        _BERT,
        (Layer("classifier.dense", "gelu"), Layer("classifier.out_proj")),
        "cross-encoder/ms-marco-electra-base",
    ),
    "ErnieForSequenceClassification": _cross_encoder(_BERT, _POOLER_HEAD, "nghuyong/ernie-3.0-base-zh (fine-tuned)"),
    **dict.fromkeys(
        (f"{name}ForSequenceClassification" for name in ("Data2VecText", "RobertaPreLayerNorm", "XLMRobertaXL")),
        _cross_encoder(_OTHER_ROBERTA, _ROBERTA_HEAD, ""),
    ),
    "LongformerForSequenceClassification": replace(
        _OTHER_ROBERTA, score_type="cross-encoder", flat=False, per_sequence="logit"
    ),
    "MPNetForSequenceClassification": _cross_encoder(_MPNET, _ROBERTA_HEAD, ""),
    "AlbertForSequenceClassification": _cross_encoder(
        Architecture(), (Layer("pooler", "tanh"), Layer("classifier")), ""
    ),
    "MegatronBertForSequenceClassification": _cross_encoder(Architecture(flat=False), _POOLER_HEAD, ""),
    "DebertaForSequenceClassification": lambda config: replace(_deberta_pairs(config), hub=""),
    "EuroBertForSequenceClassification": _eurobert_pairs,
    "DistilBertForSequenceClassification": _cross_encoder(
        _DISTIL,
        (Layer("pre_classifier", "relu"), Layer("classifier")),
        "ml6team/cross-encoder-mmarco-german-distilbert-base",
    ),
    "BertModel": replace(_BERT, hub="BAAI/bge-base-en-v1.5"),
    "BertForMaskedLM": _bert_mlm,
    "BertSpladeSparseEmbeddingModel": _bert_splade,
    "RobertaModel": replace(_ROBERTA, hub="sentence-transformers/nli-roberta-base-v2"),
    "RobertaForMaskedLM": replace(_ROBERTA, hub="sentence-transformers/all-roberta-large-v1", mlm_head=_ROBERTA_MLM),
    "XLMRobertaModel": _xlmr,
    "XLMRobertaForMaskedLM": _xlmr,
    **dict.fromkeys(("Data2VecTextModel", "RobertaPreLayerNormModel"), _OTHER_ROBERTA),
    **dict.fromkeys(
        ("XLMRobertaXLModel", "XLMRobertaXLForMaskedLM"),
        replace(_OTHER_ROBERTA, hub="facebook/xlm-roberta-xl", mlm_head=_ROBERTA_MLM),
    ),
    "CamembertModel": replace(_ROBERTA, hub="dangvantuan/sentence-camembert-base"),
    "MPNetModel": _MPNET,
    "MPNetForMaskedLM": _MPNET,
    "BgeM3EmbeddingModel": _xlmr,
    "ErnieModel": replace(_BERT, hub="shibing624/text2vec-base-chinese-sentence"),
    "ElectraModel": replace(_BERT, hub="google/electra-base-discriminator", unread=r"^(discriminator|generator)_"),
    "AlbertModel": Architecture(hub="sentence-transformers/paraphrase-albert-small-v2"),
    **dict.fromkeys(("MegatronBertModel", "DebertaModel", "DebertaV2Model"), Architecture(flat=False)),
    **dict.fromkeys(("EuroBertModel", "EuroBertForMaskedLM"), _EUROBERT),
    "DistilBertModel": _DISTIL,
    "DistilBertForMaskedLM": _distil_mlm,
    "ModernBertModel": _MODERNBERT,
    "ModernBertForMaskedLM": _modernbert_mlm,
    # the names of sentence-transformers, which saves no config.json, and of model2vec
    "StaticEmbedding": _STATIC,
    "StaticModel": replace(_STATIC, hub="minishlab/potion-base-8M"),
    "NewModel": _GTE,
    "GteNewModel": _GTE,
    "GteModel": replace(_GTE, hub="Snowflake/snowflake-arctic-embed-m-v2.0"),
    "NomicBertModel": Architecture(
        hub="nomic-ai/nomic-embed-text-v1.5", translate=_nomic, pooling="mean", body=_ROTARY_BERT
    ),
}


def _colbert(config: Json) -> Architecture:
    """Stanford's layout: a BERT or Jina's XLM-R, and one projection."""
    if _is_rotary(config):
        return Architecture(
            "late-interaction", "jinaai/jina-colbert-v2", translate=_rotary_xlmr, head=(Layer("linear"),)
        )
    return Architecture("late-interaction", "colbert-ir/colbertv2.0", head=(Layer("linear"),))


COLBERTS: dict[str, Entry] = {
    "HF_ColBERT": _colbert,
    "ColBERTJinaRobertaModel": lambda config: _colbert({**config, "position_embedding_type": "rotary"}),
    "ColBERTModernBertModel": Architecture("late-interaction", "lightonai/GTE-ModernColBERT-v1"),
    "ColBERTLfm2Model": Architecture("late-interaction", "LiquidAI/LFM2-ColBERT-350M", flat=False, pooling="lasttoken"),
}
