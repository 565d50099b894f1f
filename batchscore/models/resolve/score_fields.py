"""Fields on how a score is made: the backbone's settings, the readout, the head, the similarity."""

from __future__ import annotations

from batchscore.errors import CheckpointError, UsageError
from batchscore.models.arch.entry import Layer
from batchscore.models.checkpoint import Checkpoint
from batchscore.models.resolve import saved_files as files
from batchscore.models.resolve.chain import Value, check_widths, follow, is_multi_vector, module_kinds
from batchscore.models.resolve.context import Context, constant
from batchscore.models.spec import (
    COMPAT_VLLM,
    CONFIG_JSON,
    DEFAULT,
    MODULES_JSON,
    SCORE_TYPE,
    DenseSpec,
    NormalizeSpec,
    Source,
    Sourced,
)
from batchscore.models.weights import BGE_M3_HEAD, has_tensor

_LISTWISE = Source("rule", "listwise")
_BGE_M3 = Source("file", BGE_M3_HEAD)
_WIDTHS = ("hidden_size", "n_embd", "dim", "d_model")  # what config.json calls the width of a token's state


def backbone_fields(context: Context) -> dict[str, Sourced]:
    """How tokens are numbered, and which adapters are merged."""
    return {
        "first_position": (context.first_position, context.source),
        "pad_token_id": (context.config.get("pad_token_id") or 0, CONFIG_JSON),
        "token_types": _token_types(context),
        "adapters": adapters(context),
    }


def _token_types(context: Context) -> Sourced:
    """Whether the model has several, unless the tokenizer's files say that it is not given them."""
    config = context.checkpoint.tokenizer_config
    names = config.get("model_input_names")
    # transformers 5 saves this class, which by itself gives none
    is_without = not names and config.get("tokenizer_class") == "TokenizersBackend"
    if is_without or (names and "token_type_ids" not in names):
        return False, Source("file", "tokenizer_config.json")
    return (context.config.get("type_vocab_size") or 0) > 1, CONFIG_JSON


def adapters(context: Context) -> Sourced:
    """(query adapter, document adapter): one for both, or the pair "TASK.query" and "TASK.passage"."""
    known, option = context.arch.adapters, context.options.get("task")
    if not known:
        if option:
            raise UsageError(f"{option[1]} {option[0]!r}: this checkpoint has no adapters to choose from")
        return ("", ""), DEFAULT
    # the scoring documentation's rule: text matching
    task, source = option or ("text-matching" if "text-matching" in known else known[-1], context.source)
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
            **constant(_LISTWISE, pooling=(), layers="", answer_tokens=(), method="no_post_processing"),
            **constant(_LISTWISE, include_prompt=True, drop_first=False, dimensions=0),
            **constant(_LISTWISE, token_modules=(), modules=()),
            **constant(_LISTWISE, logit_mean=0.0, logit_sigma=1.0, activation=files.IDENTITY),
            **constant(_LISTWISE, similarity="cosine", normalize=False),
        }
    chain = follow(checkpoint, "cross-encoder")
    answers, method, source = _answers(context, chain)
    head: Sourced = ((), source)
    if not answers:
        head = (_score_head(context), context.source) if chain is None else ((), MODULES_JSON)
    pooling, include_prompt = _pooling(context, chain)
    sigma = 1.0 if context.vllm else float(arch.logit_sigma)
    activation = files.activation(checkpoint)
    uses_it, option_source = context.option("use_activation", (True, DEFAULT))
    if not uses_it:
        activation = files.IDENTITY, option_source
    return {
        "head": head,
        "answer_tokens": (answers, source),
        "method": (method, source),
        "pooling": pooling,
        "include_prompt": include_prompt,
        "layers": _first_token_layers(context, pooling, include_prompt),
        **_modules(context, chain, len(pooling[0]), by_width=not answers),
        "activation": activation,
        "logit_mean": context.option("logit_mean", (float(arch.logit_mean), context.source)),
        "logit_sigma": context.option("logit_sigma", (sigma, context.source)),
        **constant(SCORE_TYPE, drop_first=False, dimensions=0, similarity="identity", normalize=False),
    }


def _answers(context: Context, chain: Value | None) -> tuple[tuple[str | int, ...], str, Source]:
    """(answer tokens, method, source): a LogitScore's, else those that config.json, the user or the registry names."""
    if chain:
        if chain.answer is None:
            return (), "no_post_processing", MODULES_JSON
        ids = files.answer_ids(chain.answer)
        return ids, "from_2_way_softmax" if ids[1:] else "no_post_processing", MODULES_JSON
    checkpoint, arch = context.checkpoint, context.arch
    tokens, method, source = answer_tokens(checkpoint)
    if tokens and source.kind != "user" and has_tensor(checkpoint, "score.weight"):
        tokens = ()  # a conversion to a classifier: it has the head that these tokens would make, unless a user insists
    if arch.answers and not tokens:
        tokens, method, source = arch.answers, "from_2_way_softmax", context.source
    if tokens and arch.mlm_head:
        raise CheckpointError(
            f"{checkpoint.name}: {checkpoint.architecture} has layers between its states and its vocabulary, so answer "
            "tokens are not supported"
        )
    return tokens, method, source


def answer_tokens(checkpoint: Checkpoint) -> tuple[tuple[str, ...], str, Source]:
    """(tokens, method, source) of `classifier_from_token` in config.json or its overrides."""
    config, source = checkpoint.config, checkpoint.config_source
    listed = config.get("classifier_from_token") or []
    if not isinstance(listed, list) or not all(isinstance(token, (str, int)) for token in listed):
        raise UsageError(f'{source}: classifier_from_token {listed!r} must be a list of tokens, like ["no", "yes"]')
    tokens = tuple(listed)
    original = bool(config.get("is_original_qwen3_reranker"))
    method = config.get("method") or ("from_2_way_softmax" if original else "no_post_processing")
    if method not in ("from_2_way_softmax", "no_post_processing"):
        raise UsageError(
            f"{source}: method {method!r} is unknown", hint="known: from_2_way_softmax, no_post_processing"
        )
    if original and not tokens:
        raise UsageError(f'{source}: is_original_qwen3_reranker needs classifier_from_token, like ["no", "yes"]')
    wanted = 2 if method == "from_2_way_softmax" else 1
    if tokens and len(tokens) != wanted:
        raise UsageError(
            f"{source}: {method} makes one score of {wanted} token{'s' * (wanted > 1)}, "
            f"and classifier_from_token has {len(tokens)}"
        )
    return tokens, method, source


def _score_head(context: Context) -> tuple[Layer, ...]:
    """The architecture's layers; a language model converted to a classifier has one layer named `score`."""
    checkpoint, arch = context.checkpoint, context.arch
    has_head = arch.head or arch.per_sequence
    converted = not has_head and arch.pooling == "lasttoken"
    if not has_head and not converted:
        raise CheckpointError(
            f"{checkpoint.name}: {checkpoint.architecture} has no score head, so it cannot be a cross-encoder",
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
    return (Layer("score"),) if converted else arch.head


def vector_fields(context: Context) -> dict[str, Sourced]:
    """What a bi-encoder or late interaction reads: pooling or every token, the modules on it, a similarity."""
    checkpoint, arch = context.checkpoint, context.arch
    chain = follow(checkpoint, context.score_type)
    is_bi = context.score_type == "bi-encoder"
    multi_vector = not is_bi and (checkpoint.folder / BGE_M3_HEAD).is_file()
    pooling, include_prompt = _pooling(context, chain) if is_bi else (((), SCORE_TYPE), (True, SCORE_TYPE))
    # neither a classifier's head makes vectors, nor SPLADE's with another pooling
    makes_vectors = arch.score_type != "cross-encoder" and (arch.pooling != "splade" or pooling[0] == ("splade",))
    head = arch.head if makes_vectors else ()
    is_alone = arch.vision is not None and arch.vision.alone  # then projections stand between the states and vectors
    return {
        "pooling": pooling,
        "include_prompt": include_prompt,
        "drop_first": (multi_vector, _BGE_M3 if multi_vector else DEFAULT),
        "layers": _first_token_layers(context, pooling, include_prompt),
        "head": (head, context.source),
        **_modules(context, chain, len(pooling[0]), by_width=not head and not is_alone),
        **({"modules": _bge_m3_head(context)} if multi_vector else {}),
        "dimensions": context.option("dimensions", _dimensions(context)),
        "similarity": _similarity(context, multi_vector),
        "normalize": _normalize(context, chain),
        **constant(SCORE_TYPE, answer_tokens=(), method="no_post_processing", logit_mean=0.0, logit_sigma=1.0),
        **constant(SCORE_TYPE, activation=files.IDENTITY),
    }


def _modules(context: Context, chain: Value | None, modes: int, *, by_width: bool) -> dict[str, Sourced]:
    """The modules before and behind the pooling, without a Normalize at the end.

    Args:
        context: of the checkpoint.
        chain: None without a chain.
        modes: how many poolings stand side by side; 0 where nothing is pooled.
        by_width: check that each takes what comes before it, which is known where there is no head in between.
    """
    if chain is None:
        return constant(DEFAULT, token_modules=(), modules=())
    on_tokens, behind = chain.token_modules if chain.pooled else (), chain.last_modules
    if context.vllm:  # it reads no other kinds
        on_tokens, behind = (), tuple(module for module in (*on_tokens, *behind) if isinstance(module, DenseSpec))
    if behind and isinstance(behind[-1], NormalizeSpec):
        behind = behind[:-1]
    width = next((context.config[key] for key in _WIDTHS if context.config.get(key)), 0)
    if by_width and width:
        width = check_widths(context.checkpoint, on_tokens, width)
        check_widths(context.checkpoint, behind, width * max(1, modes))
    return constant(MODULES_JSON if on_tokens or behind else DEFAULT, token_modules=on_tokens, modules=behind)


def _bge_m3_head(context: Context) -> Sourced:
    width = context.config["hidden_size"]
    return (DenseSpec(BGE_M3_HEAD, width, width, True, files.IDENTITY),), _BGE_M3


def _pooling(context: Context, chain: Value | None) -> tuple[Sourced, Sourced]:
    arch, source = context.arch, context.source
    modes: Sourced = (("cls" if context.is_pair and arch.per_sequence else arch.pooling,), source)
    include_prompt: Sourced = (arch.include_prompt or context.is_pair, source)
    if context.vllm:
        modes = modes if context.is_pair else files.vllm_pooling(context.checkpoint) or modes
        include_prompt = (True, COMPAT_VLLM)
    elif chain and chain.pooling and chain.pooling.kind == "Pooling":
        modes, include_prompt = files.pooling(context.checkpoint, chain.pooling)
    if "pooling" in context.options:
        mode, source = context.options["pooling"]
        modes = (mode,), source
    return modes, include_prompt


def _dimensions(context: Context) -> Sourced:
    if context.arch.dimensions:
        return context.arch.dimensions, CONFIG_JSON
    is_saved = context.score_type == "bi-encoder" and not context.vllm
    saved = int(context.checkpoint.saved.get("truncate_dim") or 0) if is_saved else 0
    return saved, files.SAVED_SETTINGS if saved else DEFAULT


def _first_token_layers(context: Context, pooling: Sourced, include_prompt: Sourced) -> Sourced:
    return context.arch.layers if pooling[0] == ("cls",) and include_prompt[0] else "", context.source


def _similarity(context: Context, multi_vector: bool) -> Sourced:
    if context.score_type == "bi-encoder":
        # the scoring documentation defines a bi-encoder's score as the cosine, whatever similarity_fn_name a checkpoint
        # prefers for search
        return context.option("similarity", ("cosine", SCORE_TYPE))
    if multi_vector and not context.vllm:
        return "meanmaxsim", _BGE_M3
    if is_multi_vector(context.checkpoint) and not context.vllm:
        name = context.checkpoint.saved.get("similarity_fn_name")
        return "meanmaxsim" if name == "meanmaxsim" else "maxsim", files.SAVED_SETTINGS
    return "maxsim", SCORE_TYPE


def _normalize(context: Context, chain: Value | None) -> Sourced:
    """Late interaction compares unit vectors unless an option or its modules say otherwise."""
    if "use_activation" in context.options:
        return context.options["use_activation"]
    is_last = bool(chain and isinstance(next(reversed(chain.last_modules), None), NormalizeSpec))
    if context.score_type == "bi-encoder" or (is_multi_vector(context.checkpoint) and not context.vllm):
        return is_last, MODULES_JSON
    kinds = module_kinds(context.checkpoint)
    bare = context.vllm and "Pooling" in kinds and "Normalize" not in kinds
    return not bare, COMPAT_VLLM if bare else SCORE_TYPE
