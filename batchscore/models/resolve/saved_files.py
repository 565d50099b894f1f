"""Spec fields from the files that sentence-transformers, PyLate and ColBERT save beside a checkpoint's weights."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping
from typing import Any

from batchscore.errors import CheckpointError, UsageError
from batchscore.models.arch.entry import PoolingMode
from batchscore.models.checkpoint import SAVED, Checkpoint, Module
from batchscore.models.resolve.chain import is_multi_vector
from batchscore.models.spec import (
    COMPAT_VLLM,
    CONFIG_JSON,
    DEFAULT,
    POOLING_MODES,
    Marks,
    Source,
    Sourced,
)

IDENTITY = "torch.nn.modules.linear.Identity"
SIGMOID = "torch.nn.modules.activation.Sigmoid"

_DOCUMENT_PROMPTS = ("document", "passage", "corpus")
_PYLATE_KEYS = {"query_prefix", "document_prefix", "query_length", "document_length", "do_query_expansion"}
ARTIFACT = "artifact.metadata"
SAVED_SETTINGS = Source("file", SAVED)


# ---- pooling

_FLAGS = {"cls_token": "cls", "max_tokens": "max", "mean_tokens": "mean", "mean_sqrt_len_tokens": "mean_sqrt_len"}
_FLAGS |= {"weightedmean_tokens": "weightedmean", "lasttoken": "lasttoken"}


def pooling(checkpoint: Checkpoint, module: Module) -> tuple[Sourced, Sourced]:
    """(pooling modes, include_prompt) of a Pooling module."""
    source = Source("file", f"{module.folder}/config.json")
    modes = [_FLAGS.get(flag, flag) for flag in _active_modes(module.config)]
    unknown = sorted({*modes} - {*POOLING_MODES})
    if unknown or not modes:
        raise CheckpointError(
            f"{checkpoint.name}: {source} asks for pooling {', '.join(unknown) or 'by no mode at all'}",
            hint=f"known modes: {', '.join(POOLING_MODES)}",
        )
    include_prompt = bool(module.config.get("include_prompt", True))
    if not module.config.get("pooling_mode"):
        modes.sort(key=POOLING_MODES.index)  # a list has an order of its own, flags always this one
    return (tuple(modes), source), (include_prompt, source)


def vllm_pooling(checkpoint: Checkpoint) -> Sourced | None:
    """vLLM's reading: the last of the flags it knows wins, and it knows CLS, the mean and the last token."""
    module = _module(checkpoint, "Pooling")
    known: dict[str, PoolingMode] = {"cls": "cls", "mean": "mean", "lasttoken": "lasttoken"}
    names = [] if module is None else [flag.split("_")[0] for flag in _active_modes(module.config)]
    modes = [known[name] for name in names if name in known]
    return ((modes[-1],), COMPAT_VLLM) if modes else None


def _module(checkpoint: Checkpoint, kind: str) -> Module | None:
    return next((module for module in checkpoint.modules if module.kind == kind), None)


def _active_modes(config: Mapping[str, Any]) -> list[str]:
    """Both spellings: "pooling_mode": "mean" (or a list), and the flags "pooling_mode_mean_tokens": true."""
    named = config.get("pooling_mode")
    if named:
        return [named] if isinstance(named, str) else list(named)
    prefix = "pooling_mode_"
    return [key.removeprefix(prefix) for key, value in config.items() if key.startswith(prefix) and value is True]


def check_splade(checkpoint: Checkpoint) -> None:
    """Refuse a SpladePooling other than max over log(1 + relu)."""
    module = next(module for module in checkpoint.modules if module.kind == "SpladePooling")
    strategy = module.config.get("pooling_strategy", "max")
    function = module.config.get("activation_function", "relu")
    if (strategy, function) != ("max", "relu"):
        raise CheckpointError(f"{checkpoint.name}: SpladePooling by {strategy} of {function} is not supported")
    if checkpoint.saved.get("max_active_dims"):
        raise CheckpointError(f"{checkpoint.name}: {SAVED}: max_active_dims is not supported")


# ---- the backbone

# what it is loaded and called with that changes no score, or a length that is read
_HARMLESS = {"padding", "truncation", "pad_to_multiple_of", "logits_to_keep", "return_tensors", "padding_side"}
_HARMLESS |= {"max_length", "model_max_length", "use_fast", "trust_remote_code", "revision", "code_revision", "token"}
_HARMLESS |= {"cache_dir", "local_files_only", "dtype", "torch_dtype", "attn_implementation", "add_pooling_layer"}
_HARMLESS |= {"use_cache", "use_safetensors", "low_cpu_mem_usage", "device_map", "return_token_type_ids"}
_KEYWORDS = ("config_kwargs", "config_args", "model_kwargs", "model_args", "processor_kwargs", "tokenizer_args")
_OUTPUTS = ("last_hidden_state", "logits")


def check_backbone(checkpoint: Checkpoint, *, has_template: bool) -> None:
    """Refuse what sentence_bert_config.json says about the backbone where it changes scores and is not supported.

    Args:
        checkpoint: the model's files.
        has_template: whether the model's texts go through one.

    Raises:
        CheckpointError: it names the setting.
    """
    file, settings = checkpoint.sentence_config
    parts = {f"processing_kwargs: {part}": _processing(checkpoint, part) for part in ("text", "common")}
    parts |= {name: settings.get(name) or {} for name in _KEYWORDS}
    for name, keywords in parts.items():
        for key in keywords:
            if key not in _HARMLESS:
                raise CheckpointError(f"{checkpoint.name}: {file}: {name}: {key} {keywords[key]!r} is not supported")
    modalities = settings.get("modality_config") or {}
    if "message" in modalities and not has_template:
        raise CheckpointError(
            f"{checkpoint.name}: by {file} its texts go through its chat template, which only rerankers and models of "
            "images support",
            hint="without `message` in modality_config they are read as they stand",
        )
    for name, way in modalities.items():
        output = way.get("method_output_name") if isinstance(way, dict) else way
        is_towers = isinstance(way, dict) and way.get("method") == "get_text_features" and output == "pooler_output"
        if name in ("text", "message") and output not in _OUTPUTS and not is_towers:
            raise CheckpointError(f"{checkpoint.name}: {file}: the output {output!r} of its backbone is not supported")


def saved_length(checkpoint: Checkpoint) -> int | None:
    """How many tokens sentence_bert_config.json lets a text or a pair have."""
    _, settings = checkpoint.sentence_config
    places = [(_processing(checkpoint, part), "max_length") for part in ("text", "common")]
    places += [(settings.get(name) or {}, "model_max_length") for name in ("processor_kwargs", "tokenizer_args")]
    # ColBERT files give a length for each side; their max_seq_length is one of these without its marker
    places += [] if is_colbert(checkpoint) else [(settings, "max_seq_length")]
    return next((int(content[key]) for content, key in places if content.get(key)), None)


def _processing(checkpoint: Checkpoint, part: str) -> Mapping[str, Any]:
    """What the tokenizer or its chat template is called with."""
    content = (checkpoint.sentence_config[1].get("processing_kwargs") or {}).get(part)
    return content if isinstance(content, dict) else {}


# ---- scores


def answer_ids(module: Module) -> tuple[int, ...]:
    """(false token, true token), or (true token,), of a LogitScore module."""
    ids = (module.config.get("false_token_id"), module.config.get("true_token_id"))
    return tuple(token for token in ids if token is not None)


def activation(checkpoint: Checkpoint) -> Sourced:
    """The function from logit to score: what sentence-transformers saved, else by problem_type, else the sigmoid."""
    config = checkpoint.config
    saved = (
        (checkpoint.saved.get("activation_fn"), SAVED_SETTINGS),
        ((config.get("sentence_transformers") or {}).get("activation_fn"), CONFIG_JSON),
        (config.get("sbert_ce_default_activation_function"), CONFIG_JSON),
        (IDENTITY if config.get("problem_type") == "regression" else None, Source("file", "config.json problem_type")),
        (SIGMOID, Source("rule", "default for one label")),
    )
    return next((name, source) for name, source in saved if name)


# ---- prompts


def prompt(checkpoint: Checkpoint, side: str) -> Sourced:
    """The saved prompt of a side, "query" or "document"; the default prompt if that side has none."""
    names = ("query",) if side == "query" else _DOCUMENT_PROMPTS
    prompts = _prompts(checkpoint)
    # the first that is not empty: sentence-transformers writes "document": "" beside a real "passage"
    text = next((prompts[name] for name in names if prompts.get(name)), "")
    return (text, SAVED_SETTINGS) if text else default_prompt(checkpoint)


def _prompts(checkpoint: Checkpoint) -> dict[str, str]:
    return checkpoint.saved.get("prompts") or {}


_ROLES = re.compile(r"[\"'](query|document)[\"']")


def chat_template(checkpoint: Checkpoint) -> tuple[str, dict[str, Any]]:
    """(template text, its variables) if the saved template is for the roles query and document, else ("", {})."""
    in_config = checkpoint.tokenizer_config.get("chat_template")
    text = checkpoint.read_text("chat_template.jinja") or (in_config if isinstance(in_config, str) else "")
    modalities = checkpoint.sentence_config[1].get("modality_config") or {"message": {}}
    if {match[1] for match in _ROLES.finditer(text)} != {"query", "document"} or "message" not in modalities:
        return "", {}
    saved = _processing(checkpoint, "chat_template")
    # restore_suffix is not needed: truncation never takes the end of a prompt
    return text.removesuffix("\n"), {name: value for name, value in saved.items() if name != "restore_suffix"}


def default_prompt(checkpoint: Checkpoint) -> Sourced:
    """The saved prompt that `default_prompt_name` names."""
    text = _prompts(checkpoint).get(checkpoint.saved.get("default_prompt_name") or "", "")
    return text, SAVED_SETTINGS if text else DEFAULT


def named_prompt(checkpoint: Checkpoint, name: str, option: Source) -> str:
    """The saved prompt with this name.

    Raises:
        UsageError: there is none.
    """
    prompts = _prompts(checkpoint)
    if name not in prompts:
        known = ", ".join(prompts) or "none at all"
        raise UsageError(f"{option} {name!r}: {checkpoint.name} has no such prompt", hint=f"it has {known}")
    return prompts[name]


# ---- ColBERT


def is_colbert(checkpoint: Checkpoint) -> bool:
    """Whether the checkpoint has PyLate's or Stanford's settings."""
    return bool(_PYLATE_KEYS & set(checkpoint.saved)) or bool(checkpoint.read_json(ARTIFACT))


def marks(checkpoint: Checkpoint) -> tuple[Marks, int | None, int | None, Source]:
    """(marks, query length, document length, source) as the library that saved the checkpoint reads them.

    A length is None where only the model's own limits it.
    """
    if is_multi_vector(checkpoint):
        return _multi_vector_marks(checkpoint)
    saved = checkpoint.saved
    if _PYLATE_KEYS & set(saved):
        query, document, words = (saved.get(key) for key in ("query_prefix", "document_prefix", "skiplist_words"))
        pylate = Marks(
            query="[Q] " if query is None else query,
            document="[D] " if document is None else document,
            expand=saved.get("do_query_expansion", True),
            attend=saved.get("attend_to_expansion_tokens", False),
            skip=tuple(string.punctuation if words is None else words),
        )
        return pylate, saved.get("query_length") or 32, saved.get("document_length") or 180, SAVED_SETTINGS
    return _stanford_marks(checkpoint)


def _multi_vector_marks(checkpoint: Checkpoint) -> tuple[Marks, int | None, int | None, Source]:
    """What sentence-transformers saves of a MultiVectorEncoder: its markers are prompts, the rest is in two files."""
    file, settings = checkpoint.sentence_config
    expansion = settings.get("query_expansion") or {}
    found = _module(checkpoint, "MultiVectorMask")
    mask = found.config if found else {}
    if mask.get("keep_only_token_ids"):
        raise CheckpointError(f"{checkpoint.name}: MultiVectorMask with keep_only_token_ids is not supported")
    if expansion and (expansion.get("strategy") not in ("fixed", "min") or not expansion.get("length")):
        raise CheckpointError(f"{checkpoint.name}: {file}: query_expansion {expansion} is not supported")
    tasks = mask.get("skiplist_tasks") or ["document"]
    shortest = expansion.get("length") or 0
    marks = Marks(
        query="",
        document="",
        expand=bool(expansion) and bool(found or expansion.get("attend")),  # only the mask counts what is not seen
        attend=bool(expansion.get("attend")),
        skip=tuple(mask.get("skiplist_words") or ()),
        skip_sides=(tasks,) if isinstance(tasks, str) else tuple(tasks),
        filler=expansion.get("token") or "",
        shortest=shortest,
    )
    fixed = shortest if expansion.get("strategy") == "fixed" else None
    return marks, fixed or settings.get("query_length"), settings.get("document_length"), Source("file", file)


def _stanford_marks(checkpoint: Checkpoint) -> tuple[Marks, int, int, Source]:
    artifact = checkpoint.read_json(ARTIFACT)
    stanford = Marks(
        query=artifact.get("query_token_id", "[unused0]"),
        document=artifact.get("doc_token_id", "[unused1]"),
        expand=True,
        attend=artifact.get("attend_to_mask_tokens", False),
        skip=tuple(string.punctuation) if artifact.get("mask_punctuation", True) else (),
    )
    if artifact.get("similarity", "cosine") != "cosine":
        raise CheckpointError(f"{checkpoint.name}: {ARTIFACT} asks for similarity {artifact['similarity']!r}")
    # without the file PyLate's defaults, with it Stanford's
    document_length = artifact.get("doc_maxlen", 220) if artifact else 180
    source = Source("file", ARTIFACT) if artifact else DEFAULT
    return stanford, artifact.get("query_maxlen", 32), document_length, source
