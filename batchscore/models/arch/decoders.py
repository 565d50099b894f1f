"""Language models: causal ones, read at the last token, and those retrained with bidirectional attention."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from batchscore.errors import CheckpointError
from batchscore.models.arch.entry import Architecture, Entry, Json, Layer, PoolingMode, same

LAST = Architecture(pooling="lasttoken")
SCORE = replace(LAST, score_type="cross-encoder", head=(Layer("score"),))

# published models of each family: (an embedding model, a reranker)
_FAMILIES = {
    "Llama": ("samaya-ai/promptriever-llama3.1-8b-v1", "castorini/rankllama-v1-7b-lora-passage"),
    "Mistral": ("intfloat/e5-mistral-7b-instruct", ""),
    "Qwen2": ("Alibaba-NLP/gte-Qwen2-7B-instruct", "mixedbread-ai/mxbai-rerank-base-v2"),
    "Qwen3": ("Qwen/Qwen3-Embedding-0.6B", "Qwen/Qwen3-Reranker-0.6B"),
    "Gemma": ("", "BAAI/bge-reranker-v2-gemma"),
    "Gemma2": ("BAAI/bge-multilingual-gemma2", ""),
    "Granite": ("", ""),
    "Phi3": ("", ""),
}


def _both_ways(config: Json) -> Json:
    """Set `is_causal` on the config, where transformers' masks and our attention read it."""
    return {**config, "is_causal": False}


def llama_both_ways(config: Json) -> Json:
    """Translate a Llama in which each token sees all others."""
    return {**_both_ways(config), "model_type": "llama"}


def _unwindowed(config: Json) -> Json:
    return {**_both_ways(config), "sliding_window": None}


_POOLINGS: dict[str, PoolingMode] = {"avg": "mean", "cls": "cls", "last": "lasttoken"}


def llama_pooling(config: Json) -> PoolingMode:
    """How such a Llama's states are pooled."""
    name = config.get("pooling", "avg")
    if name not in _POOLINGS:
        raise CheckpointError(f"config.json asks for pooling {name!r}; known: {', '.join(_POOLINGS)}")
    return _POOLINGS[name]


def _nemotron(config: Json) -> Architecture:
    return Architecture(
        hub="nvidia/llama-nemotron-embed-1b-v2", translate=llama_both_ways, pooling=llama_pooling(config)
    )


def _nemotron_pairs(config: Json) -> Architecture:
    return replace(
        _nemotron(config),
        score_type="cross-encoder",
        hub="nvidia/llama-nemotron-rerank-1b-v2",
        head=SCORE.head,
        logit_sigma=config.get("temperature", 1.0),
    )


# ---- rerankers with a head after each of their last layers

_LAYERWISE = (("num_hidden_layers", 0), ("start_layer", 0), ("layer_sep", 1))  # with the values for an empty config


def _cutoff(config: Json) -> int:
    """How many layers to run: `cutoff_layers` from --hf-overrides, else all."""
    layers, start, step = (config.get(key, default) for key, default in _LAYERWISE)
    cutoff = config.get("cutoff_layers", layers)
    if not isinstance(cutoff, int) or not start <= cutoff <= layers or (cutoff - start) % step:
        raise CheckpointError(
            f"cutoff_layers {cutoff!r}: this model has a head after layers {start} to {layers}, every {step}"
        )
    return cutoff


def _minicpm(config: Json) -> Json:
    """Translate MiniCPM to Granite, which has the same multipliers under other names."""
    if config.get("head_type", "simple") != "simple":
        raise CheckpointError(f"head_type {config['head_type']!r} of a layerwise MiniCPM is not supported")
    head_dim = config["hidden_size"] // config["num_attention_heads"]
    return {
        **config,
        "model_type": "granite",
        "embedding_multiplier": config["scale_emb"],
        "residual_multiplier": config["scale_depth"] / config["num_hidden_layers"] ** 0.5,
        "attention_multiplier": head_dim**-0.5,
        "num_hidden_layers": _cutoff(config),
    }


def _gemma2_layers(config: Json) -> Json:
    if config.get("compress_ratio", 1) != 1:
        raise CheckpointError("compressing passage tokens is not supported; set compress_ratio to 1")
    layers = _cutoff(config)
    shortened = {key: value for key, value in config.items() if key != "layer_types"}  # one entry per layer
    return {**shortened, "model_type": "gemma2", "num_hidden_layers": layers}


def _layerwise(config: Json, hub: str, translate: Callable[[Json], Json]) -> Architecture:
    _, start, step = (config.get(key, default) for key, default in _LAYERWISE)
    head = Layer(f"lm_head.{(_cutoff(config) - start) // step}.linear_head")
    return replace(
        SCORE,
        hub=hub,
        translate=translate,
        head=(head,),
        unread=r"\blayers\.\d+\.|^lm_head\.",  # layers after the last one run, and the other heads
    )


def _gemma(config: Json) -> Json:
    """Set the tanh form of GELU: the first Gemma's files say "gelu" but mean it, and transformers' releases differ."""
    if config.get("hidden_activation"):
        return config
    return {**config, "hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh"}


def phi3(config: Json) -> Json:
    """Translate a Phi-3: its first files call longrope by another name, with which transformers misses a length."""
    rope = config.get("rope_scaling") or {}
    if rope.get("type", rope.get("rope_type")) != "su":
        return config
    return {**config, "rope_scaling": {**rope, "type": "longrope", "rope_type": "longrope"}}


_TRANSLATIONS = {"Gemma": _gemma, "Phi3": phi3}


def _modernbert_layers(config: Json, stem: str, last: str) -> tuple[Layer, ...]:
    """What stands between the states of ModernBERT's decoder and its output."""
    return Layer(f"{stem}.dense", config.get("classifier_activation", "gelu")), Layer(f"{stem}.norm"), Layer(last)


DECODERS: dict[str, Entry] = {
    **{
        f"{family}{kind}": replace(
            base, hub=hubs[base.score_type == "cross-encoder"], translate=_TRANSLATIONS.get(family, same)
        )
        for family, hubs in _FAMILIES.items()
        for kind, base in (("Model", LAST), ("ForCausalLM", LAST), ("ForSequenceClassification", SCORE))
    },
    "GPT2Model": LAST,
    "GPT2LMHeadModel": LAST,
    "GPT2ForSequenceClassification": SCORE,
    "Gemma3TextModel": replace(LAST, hub="google/embeddinggemma-300m"),
    "Gemma3ForCausalLM": LAST,
    "Lfm2Model": replace(LAST, flat=False),  # its convolution would cross from one sequence to the next
    "Lfm2ForCausalLM": replace(LAST, flat=False),
    "ModernBertDecoderModel": replace(LAST, hub="jhu-clsp/ettin-decoder-150m"),
    "ModernBertDecoderForCausalLM": lambda config: replace(
        LAST, hub="jhu-clsp/ettin-decoder-150m", mlm_head=_modernbert_layers(config, "lm_head", "decoder")
    ),
    "ModernBertDecoderForSequenceClassification": lambda config: replace(
        SCORE, head=_modernbert_layers(config, "head", "classifier")
    ),
    "GritLM": Architecture(
        hub="parasail-ai/GritLM-7B-vllm",
        translate=_unwindowed,
        pooling="mean",
        include_prompt=False,
        query_prompt="<|embed|>\n",
        document_prompt="<|embed|>\n",
        instruct="<|user|>\n{instruction}\n<|embed|>\n",
    ),
    "LlamaBidirectionalModel": _nemotron,
    "LlamaBidirectionalForSequenceClassification": _nemotron_pairs,
    "VoyageQwen3BidirectionalEmbedModel": Architecture(
        hub="voyageai/voyage-4-nano", translate=_both_ways, pooling="mean", head=(Layer("linear"),)
    ),
    "LayerWiseMiniCPMForCausalLM": lambda config: _layerwise(
        config, "BAAI/bge-reranker-v2-minicpm-layerwise", _minicpm
    ),
    "CostWiseGemmaForCausalLM": lambda config: _layerwise(
        config, "BAAI/bge-reranker-v2.5-gemma2-lightweight", _gemma2_layers
    ),
    "JinaForRanking": Architecture(
        score_type="cross-encoder",
        hub="jinaai/jina-reranker-v3",
        listwise=True,
        template="jina-reranker-v3",
        head=(Layer("projector.0", "relu"), Layer("projector.2")),
    ),
}
