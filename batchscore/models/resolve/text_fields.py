"""What a model reads: how texts become sequences, and how long these may be."""

from __future__ import annotations

from batchscore.errors import UsageError
from batchscore.models.resolve import saved_files as files
from batchscore.models.resolve.context import Context, constant
from batchscore.models.resolve.options import Sourced
from batchscore.models.resolve.score_fields import adapters, answer_tokens
from batchscore.models.text.templates import compiled_text, find_template, uses

_UNLIMITED = 1_000_000  # transformers writes 1e30 where a tokenizer has no limit


def prompt_fields(context: Context) -> dict[str, Sourced]:
    """How texts become sequences, lengths aside."""
    template = _chat_template(context) if context.is_pair else ("", "score type")
    query, document = (_side_prompt(context, side) for side in ("query", "document"))
    system: Sourced = ("", "default")
    saved = template[1] == _SAVED_TEMPLATE
    if saved:  # sentence-transformers hands its templates the prompt as a message
        query, system = system, query
    reference = not context.vllm
    why = "compat vllm" if context.vllm else "score type"
    marks: Sourced = (None, why)
    if context.score_type == "late-interaction" and reference and _has_marks(context):
        found, _, _, file = files.marks(context.checkpoint)
        marks = found, file
    lower_file, sentence = context.checkpoint.sentence_config
    lower_case = bool(sentence.get("do_lower_case", False)) and not (context.vllm and context.is_pair)
    return {
        "listwise": (context.arch.listwise, context.source),
        "chat_template": template,
        "instruction": _instruction(context, template[0]),
        "system_prompt": system,
        "template_variables": (files.chat_template(context.checkpoint)[1] if saved else {}, template[1]),
        "query_prompt": query,
        "document_prompt": document,
        "marks": marks,
        "restore_specials": (reference and not context.is_pair, why),
        "pair_of_empty": (reference, why),
        "lower_case": (lower_case, lower_file or "default"),
    }


_SAVED_TEMPLATE = "chat_template of the checkpoint"


def _chat_template(context: Context) -> Sourced:
    checkpoint = context.checkpoint
    if "chat_template" in context.options:
        name, source = context.options["chat_template"]
        return find_template(name, exact=not context.vllm), source
    if context.arch.template:
        return find_template(context.arch.template, exact=True), context.source
    saved, _ = ("", {}) if context.vllm else files.chat_template(checkpoint)
    if saved:
        return compiled_text(saved, f"{checkpoint.name}: {_SAVED_TEMPLATE}"), _SAVED_TEMPLATE
    by_token = bool(answer_tokens(checkpoint)[0] or files.answer_ids(checkpoint))
    config = checkpoint.config
    as_pair = config.get("use_sep_token", config.get("use_pad_token", not by_token))
    return ("", "tokenizer") if as_pair else (find_template("none", exact=True), "config.json use_sep_token")


def _side_prompt(context: Context, side: str) -> Sourced:
    """The text before each query or document: as asked for, as saved, as the architecture has it."""
    if context.vllm:  # its score API reads raw text, whatever else is asked for
        return "", "compat vllm"
    asked = [name for name in (f"{side}_prompt", f"{side}_prompt_name") if name in context.options]
    if side == "query" and "instruction" in context.options and not context.is_pair:
        asked.append("instruction")
    flags = [name for name in asked if context.options[name][1].startswith("--")]
    asked = flags or asked  # what a config file says gives way to what the user types
    if len(asked) > 1:
        names = " and ".join(context.options[name][1] for name in asked)
        raise UsageError(f"{names} are both given", hint="pass one of them")
    if asked:
        return _asked_prompt(context, asked[0])
    if context.is_pair:
        return files.default_prompt(context.checkpoint) if side == "query" else ("", "score type")
    saved = _task_prompt(context, side) or files.prompt(context.checkpoint, side)
    of_row = context.arch.query_prompt if side == "query" else context.arch.document_prompt
    return saved if saved[0] or not of_row else (of_row, context.source)


def _asked_prompt(context: Context, name: str) -> Sourced:
    value, source = context.options[name]
    if name == "instruction":
        instruct = context.options.get("instruct", (context.arch.instruct, ""))[0]
        return instruct.replace("{instruction}", value), source
    return (files.named_prompt(context.checkpoint, value, source) if name.endswith("_name") else value), source


def _task_prompt(context: Context, side: str) -> Sourced | None:
    """What a checkpoint with adapters says before the texts of a side's task."""
    instructions = context.checkpoint.config.get("task_instructions")
    adapter = adapters(context)[0][side == "document"]
    return (instructions.get(adapter, ""), "config.json") if instructions and adapter else None


def _instruction(context: Context, template: str) -> Sourced:
    given = context.options.get("instruction")
    if given is None:
        return "", "default"
    if context.is_pair and not (template and uses(template, "instruction")):
        raise UsageError(
            f"{given[1]}: this model's prompt has no place for an instruction", hint="see batchscore inspect"
        )
    return given


def _has_marks(context: Context) -> bool:
    return files.is_colbert(context.checkpoint) or context.checkpoint.architecture == "HF_ColBERT"


# ---- lengths


def length_fields(context: Context) -> dict[str, Sourced]:
    """How long sequences may be, and what gives way."""
    limit = position_limit(context)
    length = _max_length(context, limit)
    marked = context.score_type == "late-interaction" and not context.vllm and _has_marks(context)
    _, query, document, file = files.marks(context.checkpoint) if marked else (None, length[0], length[0], length[1])
    sides = {
        "query_length": context.option("query_length", (query, file)),
        "document_length": context.option("document_length", (document, file)),
    }
    sides = {name: (min(value, length[0]), source) for name, (value, source) in sides.items()}
    if context.is_pair:
        sides = constant("score type", query_length=0, document_length=0)
    return {
        "position_limit": limit,
        "max_length": length,
        **sides,
        "max_tokens_per_query": context.option("max_tokens_per_query", (0, "default")),
        "max_tokens_per_doc": context.option("max_tokens_per_doc", (0, "default")),
        "truncation": _truncation(context),
        "truncation_side": context.option("truncation_side", (None, "default")),
    }


def _truncation(context: Context) -> Sourced:
    given = context.option("truncation", ("document-first", "default"))
    return ("prompt-end", "compat vllm") if context.vllm and given[0] != "error" else given


def position_limit(context: Context) -> Sourced:
    """Tokens the model has positions for."""
    keys = ("max_position_embeddings", "n_positions", "max_seq_len")
    positions = next((context.config[key] for key in keys if context.config.get(key)), _UNLIMITED)
    # fairseq's convention spends the first pad_token_id + 1 rows of the table
    return positions - context.first_position, "config.json"


def _max_length(context: Context, limit: Sourced) -> Sourced:
    given, cut = context.options.get("max_length"), context.options.get("truncate_prompt_tokens")
    own = _own_max_length(context, limit)
    if given and given[1].startswith("--") and given[0] > limit[0]:
        raise UsageError(f"{given[1]} {given[0]}: must be between 1 and the model's {limit[0]} positions")
    chosen = (min(given[0], limit[0]), given[1]) if given else own
    if cut and cut[0] > chosen[0]:
        raise UsageError(f"{cut[1]} {cut[0]} is more than the model's {chosen[0]} tokens")
    return cut if cut and cut[0] > 0 else chosen


def _own_max_length(context: Context, limit: Sourced) -> Sourced:
    file, content = context.checkpoint.sentence_config
    # ColBERT files say the lengths of their sides; max_seq_length is one of these less its marker
    if content.get("max_seq_length") and not files.is_colbert(context.checkpoint):
        return min(int(content["max_seq_length"]), limit[0]), file
    of_tokenizer = context.checkpoint.tokenizer_config.get("model_max_length") or _UNLIMITED
    return (int(of_tokenizer), "tokenizer_config.json") if of_tokenizer < limit[0] else limit
