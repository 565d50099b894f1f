"""From a checkpoint's files and a user's options to one ModelSpec.

Sources are applied in a fixed order and later ones win: the architecture's row, the checkpoint's own files, a config
file, options. The source of each field is kept, since a score that surprises is explained by where a setting came
from. The model's name is never looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from batchscore.errors import CheckpointError, UsageError
from batchscore.models import sentence_files as files
from batchscore.models.arch import ARCHITECTURES, row_of
from batchscore.models.arch.row import Json, Row
from batchscore.models.checkpoint import SAVED, Checkpoint
from batchscore.models.cuts import LIBRARY_LIMITS
from batchscore.models.options import Options, Sourced, nearest, read_values, spelled, taken_apart
from batchscore.models.spec import DenseSpec, Layer, ModelSpec
from batchscore.models.templates import compiled_text, find_template, uses
from batchscore.types import ScoreType

_UNLIMITED = 1_000_000  # transformers writes 1e30 where a tokenizer has no limit


@dataclass(frozen=True)
class _Door:
    """What decisions are made from."""

    checkpoint: Checkpoint
    row: Row
    config: Json  # as translated for transformers
    options: Options
    score_type: ScoreType
    vllm: bool  # reproduce vLLM's numbers instead of the reference library's

    @property
    def is_pair(self) -> bool:
        return self.score_type == "cross-encoder"

    @property
    def source(self) -> str:
        return f"row {self.checkpoint.architecture}"

    def option(self, name: str, default: Sourced) -> Sourced:
        """What the user set, else the default."""
        return self.options.get(name, default)


def resolve(checkpoint: Checkpoint, options: Options) -> ModelSpec:
    """Decide everything about a checkpoint that scoring needs to know.

    Args:
        checkpoint: the model's files.
        options: what the user set, {name: (value, source)}; the names are those of options.RULES.

    Raises:
        CheckpointError: unknown architecture or pooling mode, Dense modules that do not fit, more than one label, no
            score head.
        UsageError: an option that this checkpoint cannot take.
    """
    apart = taken_apart(read_values(options))
    row = find_row(checkpoint)
    vllm = apart.get("compat", ("", ""))[0] == "vllm"
    chosen = apart.get("score_type") or _score_type(checkpoint, row)
    door = _Door(checkpoint, row, row.translate(checkpoint.config), apart, chosen[0], vllm)
    _check_effect(door)
    fields: dict[str, Sourced] = {
        "score_type": chosen,
        "architecture": (checkpoint.architecture, "config.json"),
        **_prompt(door),
        **_lengths(door),
        **_backbone(door),
        **(_pair_readout(door) if door.is_pair else _vector_readout(door)),
    }
    return ModelSpec(
        **{name: value for name, (value, _) in fields.items()},
        sources={name: source for name, (_, source) in fields.items()},
    )


def find_row(checkpoint: Checkpoint) -> Row:
    """The registry's row for the checkpoint's architecture and layout."""
    row = row_of(checkpoint.architecture, checkpoint.config)
    if row is None:
        raise CheckpointError(
            f"{checkpoint.name}: architecture {checkpoint.architecture} is not supported",
            hint=f"batchscore models lists those that are; {nearest(checkpoint.architecture, ARCHITECTURES)}",
        )
    if "SpladePooling" in files.module_kinds(checkpoint):
        files.check_splade(checkpoint)
        if not row.mlm_head:
            raise CheckpointError(f"{checkpoint.name}: SPLADE over {checkpoint.architecture} is not supported")
        return replace(row, pooling="splade", head=row.mlm_head)
    return row


def _score_type(checkpoint: Checkpoint, row: Row) -> Sourced:
    kinds = files.module_kinds(checkpoint)
    if "LogitScore" in kinds:
        return "cross-encoder", "modules.json"
    tokens, _, source = _answer_tokens(checkpoint)
    if tokens:
        return "cross-encoder", f"{source} classifier_from_token"
    if "Dense" in kinds and "Pooling" not in kinds:
        return "late-interaction", "modules.json"  # a projection of every token, and nothing that pools them
    return row.score_type, f"row {checkpoint.architecture}"


# ---- prompt


def _prompt(door: _Door) -> dict[str, Sourced]:
    """How texts become sequences, lengths aside."""
    template = _chat_template(door) if door.is_pair else ("", "score type")
    query, document = (_side_prompt(door, side) for side in ("query", "document"))
    system: Sourced = ("", "default")
    saved = template[1] == _SAVED_TEMPLATE
    if saved:  # sentence-transformers hands its templates the prompt as a message
        query, system = system, query
    reference = not door.vllm
    why = "compat vllm" if door.vllm else "score type"
    marks: Sourced = (None, why)
    if door.score_type == "late-interaction" and reference and _has_marks(door):
        found, _, _, file = files.marks(door.checkpoint)
        marks = found, file
    lower_file, sentence = door.checkpoint.sentence_config
    lower_case = bool(sentence.get("do_lower_case", False)) and not (door.vllm and door.is_pair)
    return {
        "listwise": (door.row.listwise, door.source),
        "chat_template": template,
        "instruction": _instruction(door, template[0]),
        "system_prompt": system,
        "template_variables": (files.chat_template(door.checkpoint)[1] if saved else {}, template[1]),
        "query_prompt": query,
        "document_prompt": document,
        "marks": marks,
        "restore_specials": (reference and not door.is_pair, why),
        "pair_of_empty": (reference, why),
        "lower_case": (lower_case, lower_file or "default"),
    }


_SAVED_TEMPLATE = "chat_template of the checkpoint"


def _chat_template(door: _Door) -> Sourced:
    checkpoint = door.checkpoint
    if "chat_template" in door.options:
        name, source = door.options["chat_template"]
        return find_template(name, exact=not door.vllm), source
    if door.row.template:
        return find_template(door.row.template, exact=True), door.source
    saved, _ = ("", {}) if door.vllm else files.chat_template(checkpoint)
    if saved:
        return compiled_text(saved, f"{checkpoint.name}: {_SAVED_TEMPLATE}"), _SAVED_TEMPLATE
    by_token = bool(_answer_tokens(checkpoint)[0] or files.answer_ids(checkpoint))
    config = checkpoint.config
    as_pair = config.get("use_sep_token", config.get("use_pad_token", not by_token))
    return ("", "tokenizer") if as_pair else (find_template("none", exact=True), "config.json use_sep_token")


def _side_prompt(door: _Door, side: str) -> Sourced:
    """The text before each query or document: as given, by name, by instruction, as saved, as the row has it."""
    prompt, name = f"{side}_prompt", f"{side}_prompt_name"
    if door.vllm:  # its score API reads raw text, whatever else is asked for
        return "", "compat vllm"
    if prompt in door.options and name in door.options:
        raise UsageError(f"--{side}-prompt and --{side}-prompt-name are both given", hint="pass one of them")
    if prompt in door.options:
        return door.options[prompt]
    if name in door.options:
        value, source = door.options[name]
        return files.named_prompt(door.checkpoint, value, source), source
    if side == "query" and "instruction" in door.options and not door.is_pair:
        instruct = door.options.get("instruct", (door.row.instruct, ""))[0]
        return instruct.replace("{instruction}", door.options["instruction"][0]), door.options["instruction"][1]
    if door.is_pair:
        return files.default_prompt(door.checkpoint) if side == "query" else ("", "score type")
    saved = _task_prompt(door, side) or files.prompt(door.checkpoint, side)
    of_row = door.row.query_prompt if side == "query" else door.row.document_prompt
    return saved if saved[0] or not of_row else (of_row, door.source)


def _task_prompt(door: _Door, side: str) -> Sourced | None:
    """What a checkpoint with adapters says before the texts of a side's task."""
    instructions = door.checkpoint.config.get("task_instructions")
    adapter = _adapters(door)[0][side == "document"]
    return (instructions.get(adapter, ""), "config.json") if instructions and adapter else None


def _instruction(door: _Door, template: str) -> Sourced:
    given = door.options.get("instruction")
    if given is None:
        return "", "default"
    if door.is_pair and not (template and uses(template, "instruction")):
        raise UsageError(
            f"{given[1]}: this model's prompt has no place for an instruction", hint="see batchscore inspect"
        )
    return given


def _has_marks(door: _Door) -> bool:
    return files.is_colbert(door.checkpoint) or door.checkpoint.architecture == "HF_ColBERT"


# ---- lengths


def _lengths(door: _Door) -> dict[str, Sourced]:
    limit = _position_limit(door)
    length = _max_length(door, limit)
    marked = door.score_type == "late-interaction" and not door.vllm and _has_marks(door)
    _, query, document, file = files.marks(door.checkpoint) if marked else (None, length[0], length[0], length[1])
    sides = {
        "query_length": door.option("query_length", (query, file)),
        "document_length": door.option("document_length", (document, file)),
    }
    sides = {name: (min(value, length[0]), source) for name, (value, source) in sides.items()}
    if door.is_pair:
        sides = _constant("score type", query_length=0, document_length=0)
    return {
        "position_limit": limit,
        "max_length": length,
        **sides,
        "max_tokens_per_query": door.option("max_tokens_per_query", (0, "default")),
        "max_tokens_per_doc": door.option("max_tokens_per_doc", (0, "default")),
        "truncation": _truncation(door),
        "truncation_side": door.option("truncation_side", (None, "default")),
    }


def _truncation(door: _Door) -> Sourced:
    given = door.option("truncation", ("document-first", "default"))
    return ("prompt-end", "compat vllm") if door.vllm and given[0] != "error" else given


def _position_limit(door: _Door) -> Sourced:
    keys = ("max_position_embeddings", "n_positions", "max_seq_len")
    positions = next((door.config[key] for key in keys if door.config.get(key)), _UNLIMITED)
    # fairseq's convention spends the first pad_token_id + 1 rows of the table
    return positions - _first_position(door), "config.json"


def _first_position(door: _Door) -> int:
    pad = door.config.get("pad_token_id")
    return (1 if pad is None else int(pad)) + 1 if door.row.positions_after_pad else 0


def _max_length(door: _Door, limit: Sourced) -> Sourced:
    given, cut = door.options.get("max_length"), door.options.get("truncate_prompt_tokens")
    own = _own_max_length(door, limit)
    if given and given[1].startswith("--") and given[0] > limit[0]:
        raise UsageError(f"{given[1]} {given[0]}: must be between 1 and the model's {limit[0]} positions")
    chosen = (min(given[0], limit[0]), given[1]) if given else own
    if cut and cut[0] > chosen[0]:
        raise UsageError(f"{cut[1]} {cut[0]} is more than the model's {chosen[0]} tokens")
    return cut if cut and cut[0] > 0 else chosen


def _own_max_length(door: _Door, limit: Sourced) -> Sourced:
    file, content = door.checkpoint.sentence_config
    # ColBERT files say the lengths of their sides; max_seq_length is one of these less its marker
    if content.get("max_seq_length") and not files.is_colbert(door.checkpoint):
        return min(int(content["max_seq_length"]), limit[0]), file
    of_tokenizer = door.checkpoint.tokenizer_config.get("model_max_length") or _UNLIMITED
    return (int(of_tokenizer), "tokenizer_config.json") if of_tokenizer < limit[0] else limit


# ---- backbone


def _backbone(door: _Door) -> dict[str, Sourced]:
    return {
        "first_position": (_first_position(door), door.source),
        "pad_token_id": (door.config.get("pad_token_id") or 0, "config.json"),
        "token_types": (door.config.get("type_vocab_size", 0) > 1, "config.json"),
        "adapters": _adapters(door),
    }


def _adapters(door: _Door) -> Sourced:
    """(query adapter, document adapter): one of a name for both, or the pair whose names end in the sides'."""
    known, given = door.row.adapters, door.options.get("task")
    if not known:
        if given:
            raise UsageError(f"{given[1]} {given[0]!r}: this checkpoint has no adapters to choose from")
        return ("", ""), "default"
    # the scoring documentation's rule: text matching
    task, source = given or ("text-matching" if "text-matching" in known else known[-1], door.source)
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


def _pair_readout(door: _Door) -> dict[str, Sourced]:
    """What a cross-encoder reads: a state, the head on it and its activation."""
    checkpoint, row = door.checkpoint, door.row
    if row.listwise:
        unused: Sourced = ("cosine", door.source)
        return {
            **_constant("listwise", pooling=(), layers="", head=row.head, answer_tokens=(), activation=files.IDENTITY),
            **_constant("listwise", logit_mean=0.0, logit_sigma=1.0, normalize=False, method="no_post_processing"),
            **_constant("listwise", include_prompt=True, drop_first=False, dense=(), dimensions=0),
            "similarity": unused,
        }
    tokens, method, source = _answer_tokens(checkpoint)
    if tokens and checkpoint.has_tensor("score.weight"):
        tokens = ()  # a conversion that carries the head these tokens would make
    ids: tuple[str | int, ...] = files.answer_ids(checkpoint)
    if ids:
        method, source = "from_2_way_softmax" if ids[1:] else "no_post_processing", "modules.json"
    answers = ids or tokens
    head: Sourced = ((), source) if answers else (_score_head(door), door.source)
    pooling = door.option("pooling", (row.pooling, door.source))
    of_row = 1.0 if door.vllm else row.logit_sigma
    activation = files.activation(checkpoint)
    if door.options.get("use_activation", (True, ""))[0] is False:
        activation = files.IDENTITY, door.options["use_activation"][1]
    return {
        "head": head,
        "answer_tokens": (answers, source),
        "method": (method, source),
        "pooling": ((pooling[0],), pooling[1]),
        "layers": (row.layers if pooling[0] == "cls" else "", door.source),
        "activation": activation,
        "logit_mean": door.option("logit_mean", (0.0, "default")),
        "logit_sigma": door.option("logit_sigma", (float(of_row), door.source)),
        **_constant("score type", include_prompt=True, drop_first=False, dense=(), dimensions=0),
        **_constant("score type", similarity="identity", normalize=False),
    }


def _constant(source: str, **values: Any) -> dict[str, Sourced]:
    return {name: (value, source) for name, value in values.items()}


def _answer_tokens(checkpoint: Checkpoint) -> tuple[tuple[str, ...], str, str]:
    """(tokens, method, source) of `classifier_from_token` in config.json or its overrides."""
    config, source = checkpoint.config, checkpoint.config_source
    tokens = tuple(config.get("classifier_from_token") or ())
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


def _score_head(door: _Door) -> tuple[Layer, ...]:
    """The row's layers; a language model that is made a classifier has one named `score`."""
    checkpoint, row = door.checkpoint, door.row
    converted = not row.head and row.pooling == "lasttoken"
    if not row.head and not converted:
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
    return row.head or (Layer("score"),)


def _vector_readout(door: _Door) -> dict[str, Sourced]:
    """What a bi-encoder or late interaction reads: pooling or every token, Dense modules, a similarity."""
    checkpoint, row = door.checkpoint, door.row
    is_bi = door.score_type == "bi-encoder"
    multi_vector = not is_bi and (checkpoint.folder / _BGE_M3_HEAD).is_file()
    pooling: Sourced = ((), "score type")
    include_prompt: Sourced = (True, "score type")
    if is_bi:
        pooling, include_prompt = _pooling(door)
    dense = _bge_m3_head(door) if multi_vector else files.dense(checkpoint)
    # a classifier's head, or SPLADE's where another pooling is asked for, makes no vectors
    made_for_it = row.score_type != "cross-encoder" and (row.pooling != "splade" or pooling[0] == ("splade",))
    head = row.head if made_for_it else ()
    if is_bi and not head:
        _check_widths(door, dense[0], len(pooling[0]))
    return {
        "pooling": pooling,
        "include_prompt": include_prompt,
        "drop_first": (multi_vector, _BGE_M3_HEAD if multi_vector else "default"),
        "layers": (row.layers if pooling[0] == ("cls",) else "", door.source),
        "head": (head, door.source),
        "dense": dense,
        "dimensions": door.option("dimensions", (0, "default")),
        "similarity": _similarity(door, multi_vector),
        "normalize": _normalize(door),
        **_constant("score type", answer_tokens=(), method="no_post_processing", logit_mean=0.0, logit_sigma=1.0),
        **_constant("score type", activation=files.IDENTITY),
    }


_BGE_M3_HEAD = "colbert_linear.pt"


def _bge_m3_head(door: _Door) -> Sourced:
    width = door.config["hidden_size"]
    return (DenseSpec(_BGE_M3_HEAD, width, width, files.IDENTITY),), _BGE_M3_HEAD


def _pooling(door: _Door) -> tuple[Sourced, Sourced]:
    row, checkpoint = door.row, door.checkpoint
    modes, include_prompt = files.pooling(checkpoint, row.pooling, door.source)
    if door.vllm:
        modes, include_prompt = files.vllm_pooling(checkpoint, row.pooling, door.source), (True, "compat vllm")
    elif modes[1] == door.source:
        include_prompt = row.include_prompt, door.source
    if "pooling" in door.options:
        mode, source = door.options["pooling"]
        modes = (mode,), source
    return modes, include_prompt


def _similarity(door: _Door, multi_vector: bool) -> Sourced:
    if door.score_type == "bi-encoder":
        # the scoring documentation defines a bi-encoder's score as the cosine, whatever similarity_fn_name a checkpoint
        # prefers for search
        return door.option("similarity", ("cosine", "score type"))
    if multi_vector and not door.vllm:
        return "meanmaxsim", _BGE_M3_HEAD
    return "maxsim", "score type"


def _normalize(door: _Door) -> Sourced:
    """Late interaction always works on unit vectors, unless told otherwise; a dot product follows modules.json."""
    kinds = files.module_kinds(door.checkpoint)
    if "use_activation" in door.options:
        return door.options["use_activation"]
    if door.score_type == "late-interaction":
        bare = door.vllm and "Pooling" in kinds and "Normalize" not in kinds
        return not bare, "compat vllm" if bare else "score type"
    return "Normalize" in kinds, "modules.json"


def _check_widths(door: _Door, dense: Sequence[DenseSpec], modes: int) -> None:
    keys = ("hidden_size", "n_embd", "dim", "d_model")
    width = next((door.config[key] for key in keys if door.config.get(key)), 0) * modes
    for spec in dense:
        if spec.in_features != width:
            raise CheckpointError(
                f"{door.checkpoint.name}: {spec.source}/config.json has in_features {spec.in_features}, "
                f"and the vectors before it are {width} wide"
            )
        width = spec.out_features


# ---- options that could not take effect

_PAIR_ONLY = ("chat_template", "logit_mean", "logit_sigma")
_SIDES_ONLY = ("document_prompt", "document_prompt_name", "query_length", "document_length", "dimensions", "similarity")


def _check_effect(door: _Door) -> None:
    """Refuse what could not take effect on this checkpoint."""
    options, is_pair = door.options, door.is_pair
    bare = {name for name in ("query_prompt", "document_prompt") if options.get(name, ("x", ""))[0] == ""}
    for name, (value, source) in options.items():
        problem = None
        if is_pair and name in _SIDES_ONLY and name not in bare:
            problem = "a cross-encoder reads both sides at once"
        elif not is_pair and name in _PAIR_ONLY:
            problem = f"a {door.score_type} has none"
        elif name == "similarity" and door.score_type != "bi-encoder":
            problem = f"a {door.score_type} has a similarity of its own"
        elif name == "pooling" and (door.score_type == "late-interaction" or door.row.listwise):
            problem = "the states of tokens are not pooled"
        elif name == "use_activation" and options.get("similarity", ("cosine",))[0] == "cosine" and _is_cosine(door):
            problem = "a cosine does not depend on it"
        elif name == "instruction" and not is_pair and not (options.get("instruct") or door.row.instruct):
            problem = "this model's query prompt has no place for an instruction; pass --query-prompt"
        elif name == "truncation_side" and value == "left" and door.row.listwise:
            problem = "a listwise prompt is cut at the end of its documents"
        elif name == "truncation" and value in LIBRARY_LIMITS and not is_pair:
            problem = "that is a rule for prompts of cross-encoders"
        elif name == "truncation" and door.vllm and value != "error" and source.startswith("--"):
            problem = "compat vllm has a rule of its own"
        if problem:
            raise UsageError(f"{spelled(name, source)} {value!r}: {problem}")
    if "document_prompt_name" in options and "prompts" not in door.checkpoint.saved:
        raise UsageError(f"{door.checkpoint.name} has no saved prompts", hint=f"{SAVED} would hold them")


def _is_cosine(door: _Door) -> bool:
    return door.score_type == "bi-encoder"
