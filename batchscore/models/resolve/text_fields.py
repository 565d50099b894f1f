"""Fields on what a model reads: how texts become sequences, and how long these may be."""

from __future__ import annotations

from datetime import date
from typing import Any

from batchscore.errors import CheckpointError, UsageError
from batchscore.models.arch.entry import Json
from batchscore.models.checkpoint import STATIC
from batchscore.models.resolve import saved_files as files
from batchscore.models.resolve.chain import is_multi_vector, module_kinds
from batchscore.models.resolve.context import Context, constant
from batchscore.models.resolve.score_fields import adapters, answer_tokens
from batchscore.models.spec import COMPAT_VLLM, CONFIG_JSON, DEFAULT, SCORE_TYPE, Source, Sourced
from batchscore.models.text.templates import compiled_text, find_template, uses

_UNLIMITED = 1_000_000  # transformers writes 1e30 where a tokenizer has no limit


def prompt_fields(context: Context) -> dict[str, Sourced]:
    """How texts become sequences, lengths aside."""
    saved, saved_variables = _saved_template(context)
    template = _chat_template(context, saved) if context.is_pair else _side_template(context)
    query, document = (_side_prompt(context, side) for side in ("query", "document"))
    system: Sourced = ("", DEFAULT)
    if saved:  # sentence-transformers passes the query's prompt to its templates as a system message
        query, system = system, query
    reference = not context.vllm
    rule = COMPAT_VLLM if context.vllm else SCORE_TYPE
    marks: Sourced = (None, rule)
    if _has_marks(context):
        saved_marks, _, _, source = files.marks(context.checkpoint)
        marks = saved_marks, source
    return {
        "listwise": (context.arch.listwise, context.source),
        "chat_template": template,
        "instruction": _instruction(context, template[0]),
        "system_prompt": system,
        "template_variables": (saved_variables, template[1]),
        "template_date": _template_date(context, template[0]),
        "query_prompt": query,
        "document_prompt": document,
        "marks": marks,
        # the checkpoint's own template writes them itself
        "special_tokens": (False, template[1]) if saved else (context.arch.special_tokens, context.source),
        "restore_specials": (reference and not context.is_pair, rule),
        "pair_of_empty": (reference, rule),
        "lower_case": _lower_case(context),
    }


def _lower_case(context: Context) -> Sourced:
    """Whether texts are lower-cased before they are tokenized."""
    if context.arch.lower_case and context.checkpoint.tokenizer_config.get("do_lower_case", True):
        return True, context.source
    file, settings = context.checkpoint.sentence_config
    lower_case = bool(settings.get("do_lower_case", False)) and not (context.vllm and context.is_pair)
    return lower_case, Source("file", file) if file else DEFAULT


def _saved_template(context: Context) -> tuple[str, dict[str, Any]]:
    """(text, variables) of the checkpoint's own template where it applies, else ("", {})."""
    overruled = "chat_template" in context.options or context.arch.template or context.vllm
    return ("", {}) if overruled or not context.is_pair else files.chat_template(context.checkpoint)


def _side_template(context: Context) -> Sourced:
    """What makes a prompt of a query or document by itself."""
    if "chat_template" in context.options:
        name, source = context.options["chat_template"]
        return find_template(name, exact=not context.vllm), source
    arch = context.arch
    if arch.template and arch.score_type == context.score_type and not context.vllm:
        return find_template(arch.template, exact=True), context.source
    return "", SCORE_TYPE


def _chat_template(context: Context, saved: str) -> Sourced:
    checkpoint = context.checkpoint
    if "chat_template" in context.options:
        name, source = context.options["chat_template"]
        return find_template(name, exact=not context.vllm), source
    if context.arch.template and context.arch.score_type == context.score_type:
        return find_template(context.arch.template, exact=True), context.source
    if saved:
        source = Source("file", "chat_template of the checkpoint")
        return compiled_text(saved, f"{checkpoint.name}: {source}"), source
    by_token = bool(answer_tokens(checkpoint)[0]) or "LogitScore" in module_kinds(checkpoint)
    config = checkpoint.config
    as_pair = config.get("use_sep_token", config.get("use_pad_token", not by_token))
    if as_pair:
        return "", Source("rule", "tokenizer")
    return find_template("none", exact=True), Source("file", "config.json use_sep_token")


def _template_date(context: Context, template: str) -> Sourced:
    """The day for the template's `strftime_now`: decided once, so that all prompts of a job have the same date."""
    reads_it, option = template and uses(template, "strftime_now"), context.options.get("template_date")
    if option and not reads_it:
        raise UsageError(f"{option[1].spell('template_date')} {option[0]!r}: the template does not ask for the date")
    return option or ((date.today().isoformat(), Source("rule", "today")) if reads_it else ("", DEFAULT))


def _side_prompt(context: Context, side: str) -> Sourced:
    """The text before each query or document: as the user set it, as saved, or as the architecture has it."""
    if context.vllm:  # its score API reads raw text, whatever else is set
        return "", COMPAT_VLLM
    names = [name for name in (f"{side}_prompt", f"{side}_prompt_name") if name in context.options]
    if side == "query" and "instruction" in context.options and not context.is_pair:
        names.append("instruction")
    # what the user types beats a config file
    names = [name for name in names if context.options[name][1].kind == "user"] or names
    if len(names) > 1:
        options = " and ".join(str(context.options[name][1]) for name in names)
        raise UsageError(f"{options} exclude each other", hint="pass one of them")
    if names:
        return _prompt_option(context, names[0])
    if context.is_pair:
        return files.default_prompt(context.checkpoint) if side == "query" else ("", SCORE_TYPE)
    saved = _task_prompt(context, side) or files.prompt(context.checkpoint, side)
    default = context.arch.query_prompt if side == "query" else context.arch.document_prompt
    return saved if saved[0] or not default else (default, context.source)


def _prompt_option(context: Context, name: str) -> Sourced:
    value, source = context.options[name]
    if name == "instruction":
        instruct, _ = context.option("instruct", (context.arch.instruct, context.source))
        return instruct.replace("{instruction}", value), source
    return (files.named_prompt(context.checkpoint, value, source) if name.endswith("_name") else value), source


def _task_prompt(context: Context, side: str) -> Sourced | None:
    """What a checkpoint with adapters puts before the texts of a side for its task."""
    instructions = context.checkpoint.config.get("task_instructions")
    adapter = adapters(context)[0][side == "document"]
    return (instructions.get(adapter, ""), CONFIG_JSON) if instructions and adapter else None


def _instruction(context: Context, template: str) -> Sourced:
    option = context.options.get("instruction")
    if option is None:
        return "", DEFAULT
    if context.is_pair and not (template and uses(template, "instruction")):
        raise UsageError(
            f"{option[1]}: this model's prompt has no place for an instruction", hint="see batchscore inspect"
        )
    return option


def _has_marks(context: Context) -> bool:
    checkpoint = context.checkpoint
    is_colbert = files.is_colbert(checkpoint) or checkpoint.architecture == "HF_ColBERT" or is_multi_vector(checkpoint)
    return context.score_type == "late-interaction" and not context.vllm and is_colbert


# ---- lengths

_LENGTH_OPTIONS = {"max_length", "truncate_prompt_tokens"}


def length_fields(context: Context) -> dict[str, Sourced]:
    """How long sequences may be, and what is cut."""
    limit = position_limit(context)
    length = _max_length(context, limit)
    sides = constant(SCORE_TYPE, query_length=0, document_length=0)
    if not context.is_pair:
        sides = _side_lengths(context, length)
    return {
        "position_limit": limit,
        "max_length": length,
        "regime_length": _regime(context, limit),
        **sides,
        "max_tokens_per_query": context.option("max_tokens_per_query", (0, DEFAULT)),
        "max_tokens_per_doc": context.option("max_tokens_per_doc", (0, DEFAULT)),
        "truncation": _truncation(context),
        "truncation_side": context.option("truncation_side", _saved_side(context)),
    }


def _side_lengths(context: Context, length: Sourced) -> dict[str, Sourced]:
    """The lengths of queries and of documents, where they are read separately."""
    file, settings = context.checkpoint.sentence_config
    query, document, source = settings.get("query_length"), settings.get("document_length"), Source("file", file)
    if _has_marks(context):
        _, query, document, source = files.marks(context.checkpoint)
    elif context.vllm:
        query = document = None
    sides = {
        "query_length": context.option("query_length", (query, source) if query else length),
        "document_length": context.option("document_length", (document, source) if document else length),
    }
    # a side's own length may be more than that of any text, unless the user set that
    most = length[0] if _LENGTH_OPTIONS & context.options.keys() else position_limit(context)[0]
    return {name: (min(int(value), most), source) for name, (value, source) in sides.items()}


def _truncation(context: Context) -> Sourced:
    rule, source = context.option("truncation", ("document-first", DEFAULT))
    return ("prompt-end", COMPAT_VLLM) if context.vllm and rule != "error" else (rule, source)


def _saved_side(context: Context) -> Sourced:
    is_left = context.checkpoint.tokenizer_config.get("truncation_side") == "left"
    reads_it = not (context.vllm or context.arch.listwise)
    return ("left", Source("file", "tokenizer_config.json")) if is_left and reads_it else (None, DEFAULT)


def position_limit(context: Context) -> Sourced:
    """How many tokens the model has positions for."""
    keys = ("max_position_embeddings", "n_positions", "max_seq_len")
    positions = next((context.config[key] for key in keys if context.config.get(key)), _UNLIMITED)
    # fairseq's convention leaves the first pad_token_id + 1 rows of the table unused
    return positions - context.first_position, CONFIG_JSON


def _max_length(context: Context, limit: Sourced) -> Sourced:
    length, cut = _longest(context, limit), context.options.get("truncate_prompt_tokens")
    if cut and cut[0] > length[0]:
        raise UsageError(f"{cut[1]} {cut[0]} is more than the model's {length[0]} tokens")
    return cut if cut and cut[0] > 0 else length


def _longest(context: Context, limit: Sourced) -> Sourced:
    """How long a sequence may be before it is cut to `truncate_prompt_tokens`."""
    option, length = context.options.get("max_length"), _own_max_length(context, limit)
    if option:
        value, source = option
        if source.kind == "user" and value > limit[0]:
            raise UsageError(f"{source} {value}: must be between 1 and the model's {limit[0]} positions")
        length = min(value, limit[0]), source
    return length


def _regime(context: Context, limit: Sourced) -> Sourced:
    """Where longrope changes its factors; vLLM takes those for long sequences for all, if it takes long ones at all."""
    length = _regime_length(context.config)
    is_long = context.vllm and 0 < length < _longest(context, limit)[0]
    return (0, COMPAT_VLLM) if is_long else (length, CONFIG_JSON)


def _regime_length(config: Json) -> int:
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if (rope.get("rope_type") or rope.get("type")) not in ("longrope", "su"):
        return 0
    return int(rope.get("original_max_position_embeddings") or config.get("original_max_position_embeddings") or 0)


def with_long_factors(config: Json) -> Json:
    """The config, in which longrope's factors are those for long sequences."""
    inner = config.get("text_config")
    changed = {"text_config": with_long_factors(inner)} if inner else {}
    for key in ("rope_scaling", "rope_parameters"):
        if "long_factor" in (rope := config.get(key) or {}):
            changed[key] = {**rope, "short_factor": rope["long_factor"]}
    return {**config, **changed}


def _own_max_length(context: Context, limit: Sourced) -> Sourced:
    checkpoint = context.checkpoint
    if own := files.saved_length(checkpoint):
        return min(own, limit[0]), Source("file", checkpoint.sentence_config[0])
    if checkpoint.architecture == STATIC and (cut := checkpoint.read_backbone_json("tokenizer.json").get("truncation")):
        if cut.get("direction") == "Left":
            raise CheckpointError(f"{checkpoint.name}: its tokenizer keeps the end of a text, which is not supported")
        return min(int(cut["max_length"]), limit[0]), Source("file", "tokenizer.json")
    saved = checkpoint.tokenizer_config.get("model_max_length") or _UNLIMITED
    return (int(saved), Source("file", "tokenizer_config.json")) if saved < limit[0] else limit
