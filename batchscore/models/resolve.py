"""From a checkpoint's files and a user's options to one ModelSpec.

Sources are applied in a fixed order and later ones win: the architecture's row, the checkpoint's own files, a config
file, options. The source of each field is kept, since a score that surprises is explained by where a setting came
from. The model's name is never looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args

from batchscore.errors import CheckpointError, UsageError
from batchscore.models.arch import ARCHITECTURES
from batchscore.models.checkpoint import Checkpoint
from batchscore.models.spec import POOLING_MODES, DenseSpec, ModelSpec, Row
from batchscore.types import ScoreType

IDENTITY = "torch.nn.modules.linear.Identity"
SIGMOID = "torch.nn.modules.activation.Sigmoid"
_DOCUMENT_PROMPTS = ("document", "passage", "corpus")
_UNLIMITED = 1_000_000  # transformers writes 1e30 where a tokenizer has no limit

Sourced = tuple[Any, str]  # a value and the file, row or option it came from


def resolve(checkpoint: Checkpoint, options: Mapping[str, Sourced]) -> ModelSpec:
    """Decide everything about a checkpoint that scoring needs to know.

    Args:
        checkpoint: the model's files.
        options: what the user set, {field: (value, source)}; fields are score_type, max_length, query_prompt,
            document_prompt and similarity.

    Raises:
        CheckpointError: unknown architecture or pooling mode, Dense modules that do not fit, more than one label, no
            score head.
        UsageError: an option that this checkpoint cannot take.
    """
    _check_values(options)
    row = find_row(checkpoint)
    score_type, _ = chosen = options.get("score_type") or _score_type(checkpoint, row)
    limit = _position_limit(checkpoint, row)
    fields: dict[str, Sourced] = {
        "score_type": chosen,
        "architecture": (checkpoint.architecture, "config.json"),
        "lower_case": _lower_case(checkpoint),
        "position_limit": limit,
        "max_length": _max_length(checkpoint, limit),
        "first_position": (_first_position(checkpoint, row), _source(checkpoint)),
        "pad_token_id": (checkpoint.config.get("pad_token_id") or 0, "config.json"),
        "token_types": (checkpoint.config.get("type_vocab_size", 0) > 1, "config.json"),
    }
    if score_type == "cross-encoder":
        fields |= _pair_fields(checkpoint, row)
    else:
        fields |= _text_fields(checkpoint, row, score_type)
    _check_effect(options, score_type, limit[0])
    fields |= options
    return ModelSpec(
        **{name: value for name, (value, _) in fields.items()},
        sources={name: source for name, (_, source) in fields.items()},
    )


def _source(checkpoint: Checkpoint) -> str:
    return f"row {checkpoint.architecture}"


def _pair_fields(checkpoint: Checkpoint, row: Row) -> dict[str, Sourced]:
    """What a cross-encoder reads: the head and its activation; no prompts, no pooling."""
    _require_head(checkpoint, row)
    unused = {"query_prompt": "", "document_prompt": "", "pooling": (), "include_prompt": True, "dense": ()}
    unused |= {"similarity": "identity", "normalize": False}
    return {
        "head": (row.head, _source(checkpoint)),
        "layers": (row.layers, _source(checkpoint)),
        "activation": _activation(checkpoint),
        **{name: (value, "score type") for name, value in unused.items()},
    }


def _text_fields(checkpoint: Checkpoint, row: Row, score_type: ScoreType) -> dict[str, Sourced]:
    """What a bi-encoder or late interaction reads: prompts, pooling, Dense modules, a similarity; no head."""
    query_prompt, document_prompt = _prompts(checkpoint)
    dense = _dense(checkpoint)
    pooling: Sourced = ((), "score type")
    include_prompt: Sourced = (True, "score type")
    if score_type == "bi-encoder":
        pooling, include_prompt = _pooling(checkpoint, row)
        _check_widths(checkpoint, dense[0], len(pooling[0]))
    return {
        "query_prompt": query_prompt,
        "document_prompt": document_prompt,
        "pooling": pooling,
        "include_prompt": include_prompt,
        "dense": dense,
        "head": ((), _source(checkpoint)),
        "layers": (row.layers if pooling[0] == ("cls",) else "", _source(checkpoint)),
        "activation": (IDENTITY, "score type"),
        # the scoring documentation defines a bi-encoder's score as the cosine, whatever similarity_fn_name a checkpoint
        # prefers for search
        "similarity": ("cosine" if score_type == "bi-encoder" else "maxsim", "score type"),
        "normalize": (any(module.kind == "Normalize" for module in checkpoint.modules), "modules.json"),
    }


def find_row(checkpoint: Checkpoint) -> Row:
    """The registry's row for the checkpoint's architecture."""
    row = ARCHITECTURES.get(checkpoint.architecture)
    if row is None:
        raise CheckpointError(
            f"{checkpoint.name}: architecture {checkpoint.architecture} is not supported",
            hint=f"supported: {', '.join(ARCHITECTURES)}",
        )
    return row


def _score_type(checkpoint: Checkpoint, row: Row) -> Sourced:
    kinds = [module.kind for module in checkpoint.modules]
    if "Dense" in kinds and "Pooling" not in kinds:
        return "late-interaction", "modules.json"  # a projection of every token, and nothing that pools them
    return ("cross-encoder" if row.head else "bi-encoder"), "config.json"


def _require_head(checkpoint: Checkpoint, row: Row) -> None:
    if not row.head:
        raise CheckpointError(
            f"{checkpoint.name}: {checkpoint.architecture} has no score head, so it is no cross-encoder",
            hint="use --score-type bi-encoder or late-interaction, or a *ForSequenceClassification checkpoint",
        )
    config = checkpoint.config
    labels = config.get("num_labels") or len(config.get("id2label") or {}) or 2  # transformers' default is 2
    if labels != 1:
        raise CheckpointError(
            f"{checkpoint.name}: its classifier has {labels} labels; a relevance score needs num_labels == 1",
            hint="this checkpoint classifies; use a reranker trained with one label",
        )


def _position_limit(checkpoint: Checkpoint, row: Row) -> Sourced:
    positions = checkpoint.config.get("max_position_embeddings")
    if positions is None:
        raise CheckpointError(f"{checkpoint.name}: config.json has no max_position_embeddings")
    # fairseq's convention spends the first pad_token_id + 1 rows of the table
    return positions - _first_position(checkpoint, row), "config.json"


def _first_position(checkpoint: Checkpoint, row: Row) -> int:
    pad = checkpoint.config.get("pad_token_id")
    return (1 if pad is None else int(pad)) + 1 if row.positions_after_pad else 0


def _max_length(checkpoint: Checkpoint, limit: Sourced) -> Sourced:
    file, content = checkpoint.sentence_config
    if content.get("max_seq_length"):
        return min(int(content["max_seq_length"]), limit[0]), file
    tokenizer_limit = checkpoint.read_json("tokenizer_config.json").get("model_max_length") or _UNLIMITED
    return (int(tokenizer_limit), "tokenizer_config.json") if tokenizer_limit < limit[0] else limit


def _lower_case(checkpoint: Checkpoint) -> Sourced:
    file, content = checkpoint.sentence_config
    return bool(content.get("do_lower_case", False)), file or "default"


def _activation(checkpoint: Checkpoint) -> Sourced:
    """The function between logit and score: what sentence-transformers saved, else by problem_type, else sigmoid."""
    config = checkpoint.config
    saved = (
        (
            checkpoint.read_json("config_sentence_transformers.json").get("activation_fn"),
            "config_sentence_transformers.json",
        ),
        ((config.get("sentence_transformers") or {}).get("activation_fn"), "config.json"),
        (config.get("sbert_ce_default_activation_function"), "config.json"),
        (IDENTITY if config.get("problem_type") == "regression" else None, "config.json problem_type"),
        (SIGMOID, "default for one label"),
    )
    return next((name, source) for name, source in saved if name)


def _dense(checkpoint: Checkpoint) -> Sourced:
    """The Dense modules of modules.json in order."""

    def spec(folder: str, config: Mapping[str, Any]) -> DenseSpec:
        try:
            return DenseSpec(
                folder,
                config["in_features"],
                config["out_features"],
                config.get("bias", True),
                config.get("activation_function", "torch.nn.modules.activation.Tanh"),
            )
        except KeyError as error:
            raise CheckpointError(f"{checkpoint.name}: {folder}/config.json lacks {error}") from error

    dense = tuple(spec(module.folder, module.config) for module in checkpoint.modules if module.kind == "Dense")
    return dense, "modules.json" if dense else "default"


def _check_widths(checkpoint: Checkpoint, dense: Sequence[DenseSpec], modes: int) -> None:
    width = checkpoint.config.get("hidden_size", 0) * modes
    for spec in dense:
        if spec.in_features != width:
            raise CheckpointError(
                f"{checkpoint.name}: {spec.folder}/config.json has in_features {spec.in_features}, "
                f"and the vectors before it are {width} wide"
            )
        width = spec.out_features


def _pooling(checkpoint: Checkpoint, row: Row) -> tuple[Sourced, Sourced]:
    """(pooling modes, include_prompt): what the Pooling module says, else the row's mode."""
    module = next((module for module in checkpoint.modules if module.kind == "Pooling"), None)
    if module is None:
        return ((row.pooling,), f"row {checkpoint.architecture}"), (True, "default")
    file = f"{module.folder}/config.json"
    modes = _flagged_modes(module.config)
    unknown = sorted(modes - set(POOLING_MODES))
    if unknown or not modes:
        raise CheckpointError(
            f"{checkpoint.name}: {file} asks for pooling {', '.join(unknown) or 'by no mode at all'}",
            hint=f"known modes: {', '.join(POOLING_MODES)}",
        )
    return (tuple(mode for mode in POOLING_MODES if mode in modes), file), (
        bool(module.config.get("include_prompt", True)),
        file,
    )


def _flagged_modes(config: Mapping[str, Any]) -> set[str]:
    """Both spellings: "pooling_mode": "mean" (or a list), and the flags "pooling_mode_mean_tokens": true."""
    named = config.get("pooling_mode")
    if named:
        return {named} if isinstance(named, str) else set(named)
    flags = {
        key.removeprefix("pooling_mode_")
        for key, value in config.items()
        if key.startswith("pooling_mode_") and value is True
    }
    short = {"cls_token": "cls", "max_tokens": "max", "mean_tokens": "mean", "mean_sqrt_len_tokens": "mean_sqrt_len"}
    short |= {"weightedmean_tokens": "weightedmean", "lasttoken": "lasttoken"}
    return {short.get(flag, flag) for flag in flags}


def _prompts(checkpoint: Checkpoint) -> tuple[Sourced, Sourced]:
    """(query prompt, document prompt) as saved by sentence-transformers; a side without its own gets the default."""
    file = "config_sentence_transformers.json"
    saved = checkpoint.read_json(file)
    prompts: dict[str, str] = saved.get("prompts") or {}
    default = prompts.get(saved.get("default_prompt_name") or "", "")

    def first(names: tuple[str, ...]) -> Sourced:
        # the first that is not empty: sentence-transformers writes "document": "" beside a real "passage"
        text = next((prompts[name] for name in names if prompts.get(name)), default)
        return text, file if text else "default"

    return first(("query",)), first(_DOCUMENT_PROMPTS)


_SCORE_TYPES, _SIMILARITIES = get_args(ScoreType), ("cosine", "dot")


def _check_values(options: Mapping[str, Sourced]) -> None:
    """Refuse what no checkpoint could take; a config file may hold anything."""
    rules: dict[str, tuple[Callable[[Any], bool], str]] = {
        "score_type": (lambda value: value in _SCORE_TYPES, f"must be one of {', '.join(_SCORE_TYPES)}"),
        "similarity": (lambda value: value in _SIMILARITIES, f"must be one of {', '.join(_SIMILARITIES)}"),
        "max_length": (lambda value: type(value) is int, "must be a number of tokens"),
        "query_prompt": (lambda value: isinstance(value, str), "must be text"),
        "document_prompt": (lambda value: isinstance(value, str), "must be text"),
    }
    for name, (value, source) in options.items():
        is_valid, demand = rules[name]
        if not is_valid(value):
            raise UsageError(f"{_spelled(name, source)} {value!r}: {demand}")


def _check_effect(options: Mapping[str, Sourced], score_type: ScoreType, position_limit: int) -> None:
    """Refuse what could not take effect on this checkpoint."""
    for name, (value, source) in options.items():
        problem = None
        if name == "max_length" and not 0 < value <= position_limit:
            problem = f"must be between 1 and the model's {position_limit} positions"
        elif name.endswith("_prompt") and score_type == "cross-encoder":
            problem = "a cross-encoder reads no prompts"
        elif name == "similarity" and score_type != "bi-encoder":
            problem = f"a {score_type} has a similarity of its own"
        if problem:
            raise UsageError(f"{_spelled(name, source)} {value!r}: {problem}")


def _spelled(name: str, source: str) -> str:
    return source if source.startswith("--") else f"{source}: {name}"
