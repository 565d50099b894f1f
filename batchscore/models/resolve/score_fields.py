"""What a score is made of: the backbone's settings, the readout, the head, the similarity."""

from __future__ import annotations

from collections.abc import Sequence

from batchscore.errors import CheckpointError, UsageError
from batchscore.models.arch.entry import Json
from batchscore.models.checkpoint import Checkpoint
from batchscore.models.resolve import saved_files as files
from batchscore.models.resolve.context import Context, constant
from batchscore.models.resolve.options import Sourced
from batchscore.models.spec import DenseSpec, Layer


def backbone_fields(context: Context) -> dict[str, Sourced]:
    """How tokens are numbered, and which adapters are merged."""
    return {
        "first_position": (context.first_position, context.source),
        "pad_token_id": (context.config.get("pad_token_id") or 0, "config.json"),
        "regime_length": (_regime_length(context.config), "config.json"),
        "token_types": (context.config.get("type_vocab_size", 0) > 1, "config.json"),
        "adapters": adapters(context),
    }


def _regime_length(config: Json) -> int:
    """Where longrope changes its factors."""
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if (rope.get("rope_type") or rope.get("type")) not in ("longrope", "su"):
        return 0
    return int(rope.get("original_max_position_embeddings") or config.get("original_max_position_embeddings") or 0)


def adapters(context: Context) -> Sourced:
    """(query adapter, document adapter): one of a name for both, or the pair whose names end in the sides'."""
    known, given = context.arch.adapters, context.options.get("task")
    if not known:
        if given:
            raise UsageError(f"{given[1]} {given[0]!r}: this checkpoint has no adapters to choose from")
        return ("", ""), "default"
    # the scoring documentation's rule: text matching
    task, source = given or ("text-matching" if "text-matching" in known else known[-1], context.source)
    pair = f"{task}.query", f"{task}.passage"
    if task in known:
        return (task, task), source
    if all(name in known for name in pair):
        return pair, source
    raise UsageError(
        f"{source} {task!r}: this checkpoint has no such adapter",
        hint=f"it has {', '.join(known)}; retrieval takes retrieval.query and retrieval.passage",
    )


# ---- readout and head


def pair_fields(context: Context) -> dict[str, Sourced]:
    """What a cross-encoder reads: a state, the head on it and its activation."""
    checkpoint, arch = context.checkpoint, context.arch
    if arch.listwise:
        return {
            "head": (arch.head, context.source),
            **constant("listwise", pooling=(), layers="", answer_tokens=(), method="no_post_processing"),
            **constant("listwise", include_prompt=True, drop_first=False, dense=(), dimensions=0),
            **constant("listwise", logit_mean=0.0, logit_sigma=1.0, activation=files.IDENTITY),
            **constant("listwise", similarity="cosine", normalize=False),
        }
    tokens, method, source = answer_tokens(checkpoint)
    if tokens and "--hf-overrides" not in source and checkpoint.has_tensor("score.weight"):
        tokens = ()  # a conversion that carries the head these tokens would make
    ids: tuple[str | int, ...] = files.answer_ids(checkpoint)
    if ids:
        method, source = "from_2_way_softmax" if ids[1:] else "no_post_processing", "modules.json"
    answers = ids or tokens
    head: Sourced = ((), source) if answers else (_score_head(context), context.source)
    pooling = context.option("pooling", (arch.pooling, context.source))
    of_row = 1.0 if context.vllm else arch.logit_sigma
    activation = files.activation(checkpoint)
    if context.options.get("use_activation", (True, ""))[0] is False:
        activation = files.IDENTITY, context.options["use_activation"][1]
    return {
        "head": head,
        "answer_tokens": (answers, source),
        "method": (method, source),
        "pooling": ((pooling[0],), pooling[1]),
        "layers": (arch.layers if pooling[0] == "cls" else "", context.source),
        "activation": activation,
        "logit_mean": context.option("logit_mean", (0.0, "default")),
        "logit_sigma": context.option("logit_sigma", (float(of_row), context.source)),
        **constant("score type", include_prompt=True, drop_first=False, dense=(), dimensions=0),
        **constant("score type", similarity="identity", normalize=False),
    }


def answer_tokens(checkpoint: Checkpoint) -> tuple[tuple[str, ...], str, str]:
    """(tokens, method, source) of `classifier_from_token` in config.json or its overrides."""
    config, source = checkpoint.config, checkpoint.config_source
    given = config.get("classifier_from_token") or []
    if not isinstance(given, list) or not all(isinstance(token, (str, int)) for token in given):
        raise UsageError(f'{source}: classifier_from_token {given!r} must be a list of tokens, such as ["no", "yes"]')
    tokens = tuple(given)
    original = bool(config.get("is_original_qwen3_reranker"))
    method = config.get("method") or ("from_2_way_softmax" if original else "no_post_processing")
    if method not in ("from_2_way_softmax", "no_post_processing"):
        raise UsageError(
            f"{source}: method {method!r} is unknown", hint="known: from_2_way_softmax, no_post_processing"
        )
    if original and not tokens:
        raise UsageError(f'{source}: is_original_qwen3_reranker needs classifier_from_token, such as ["no", "yes"]')
    wanted = 2 if method == "from_2_way_softmax" else 1
    if tokens and len(tokens) != wanted:
        raise UsageError(
            f"{source}: {method} makes one score of {wanted} token{'s' * (wanted > 1)}, "
            f"and classifier_from_token has {len(tokens)}"
        )
    return tokens, method, source


def _score_head(context: Context) -> tuple[Layer, ...]:
    """The architecture's layers; a language model that is made a classifier has one named `score`."""
    checkpoint, arch = context.checkpoint, context.arch
    converted = not arch.head and arch.pooling == "lasttoken"
    if not arch.head and not converted:
        raise CheckpointError(
            f"{checkpoint.name}: {checkpoint.architecture} has no score head, so it is no cross-encoder",
            hint="use --score-type bi-encoder or late-interaction, or a *ForSequenceClassification checkpoint",
        )
    config = checkpoint.config
    labels = config.get("num_labels") or len(config.get("id2label") or {}) or 2  # transformers' default is 2
    if labels != 1 and (converted or checkpoint.architecture.endswith("ForSequenceClassification")):
        hint = "this checkpoint classifies; use a reranker trained with one label"
        if converted:
            hint = 'name the tokens of the answer: --hf-overrides \'{"classifier_from_token": ["no", "yes"], '
            hint += '"method": "from_2_way_softmax"}\''
        raise CheckpointError(
            f"{checkpoint.name}: its classifier has {labels} labels; a relevance score needs num_labels == 1", hint=hint
        )
    return arch.head or (Layer("score"),)


def vector_fields(context: Context) -> dict[str, Sourced]:
    """What a bi-encoder or late interaction reads: pooling or every token, Dense modules, a similarity."""
    checkpoint, arch = context.checkpoint, context.arch
    is_bi = context.score_type == "bi-encoder"
    multi_vector = not is_bi and (checkpoint.folder / _BGE_M3_HEAD).is_file()
    pooling: Sourced = ((), "score type")
    include_prompt: Sourced = (True, "score type")
    if is_bi:
        pooling, include_prompt = _pooling(context)
    dense = _bge_m3_head(context) if multi_vector else files.dense(checkpoint)
    # a classifier's head, or SPLADE's where another pooling is asked for, makes no vectors
    made_for_it = arch.score_type != "cross-encoder" and (arch.pooling != "splade" or pooling[0] == ("splade",))
    head = arch.head if made_for_it else ()
    if is_bi and not head:
        _check_widths(context, dense[0], len(pooling[0]))
    return {
        "pooling": pooling,
        "include_prompt": include_prompt,
        "drop_first": (multi_vector, _BGE_M3_HEAD if multi_vector else "default"),
        "layers": (arch.layers if pooling[0] == ("cls",) else "", context.source),
        "head": (head, context.source),
        "dense": dense,
        "dimensions": context.option("dimensions", (0, "default")),
        "similarity": _similarity(context, multi_vector),
        "normalize": _normalize(context),
        **constant("score type", answer_tokens=(), method="no_post_processing", logit_mean=0.0, logit_sigma=1.0),
        **constant("score type", activation=files.IDENTITY),
    }


_BGE_M3_HEAD = "colbert_linear.pt"


def _bge_m3_head(context: Context) -> Sourced:
    width = context.config["hidden_size"]
    return (DenseSpec(_BGE_M3_HEAD, width, width, True, files.IDENTITY),), _BGE_M3_HEAD


def _pooling(context: Context) -> tuple[Sourced, Sourced]:
    arch, checkpoint = context.arch, context.checkpoint
    modes, include_prompt = files.pooling(checkpoint, arch.pooling, context.source)
    if context.vllm:
        modes, include_prompt = files.vllm_pooling(checkpoint, arch.pooling, context.source), (True, "compat vllm")
    elif modes[1] == context.source:
        include_prompt = arch.include_prompt, context.source
    if "pooling" in context.options:
        mode, source = context.options["pooling"]
        modes = (mode,), source
    return modes, include_prompt


def _similarity(context: Context, multi_vector: bool) -> Sourced:
    if context.score_type == "bi-encoder":
        # the scoring documentation defines a bi-encoder's score as the cosine, whatever similarity_fn_name a checkpoint
        # prefers for search
        return context.option("similarity", ("cosine", "score type"))
    if multi_vector and not context.vllm:
        return "meanmaxsim", _BGE_M3_HEAD
    return "maxsim", "score type"


def _normalize(context: Context) -> Sourced:
    """Late interaction always works on unit vectors, unless told otherwise; a dot product follows modules.json."""
    kinds = files.module_kinds(context.checkpoint)
    if "use_activation" in context.options:
        return context.options["use_activation"]
    if context.score_type == "late-interaction":
        bare = context.vllm and "Pooling" in kinds and "Normalize" not in kinds
        return not bare, "compat vllm" if bare else "score type"
    return "Normalize" in kinds, "modules.json"


def _check_widths(context: Context, dense: Sequence[DenseSpec], modes: int) -> None:
    keys = ("hidden_size", "n_embd", "dim", "d_model")
    width = next((context.config[key] for key in keys if context.config.get(key)), 0) * modes
    for spec in dense:
        if spec.in_features != width:
            raise CheckpointError(
                f"{context.checkpoint.name}: {spec.source}/config.json has in_features {spec.in_features}, "
                f"and the vectors before it are {width} wide"
            )
        width = spec.out_features
