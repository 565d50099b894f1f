"""What a model reads: how texts become sequences, and how long these may be."""

from __future__ import annotations

from batchscore.errors import UsageError
from batchscore.models import sentence_files as files
from batchscore.models.facts import Facts, constant
from batchscore.models.options import Sourced
from batchscore.models.scoring import adapters, answer_tokens
from batchscore.models.templates import compiled_text, find_template, uses

_UNLIMITED = 1_000_000  # transformers writes 1e30 where a tokenizer has no limit


def prompt_fields(facts: Facts) -> dict[str, Sourced]:
    """How texts become sequences, lengths aside."""
    template = _chat_template(facts) if facts.is_pair else ("", "score type")
    query, document = (_side_prompt(facts, side) for side in ("query", "document"))
    system: Sourced = ("", "default")
    saved = template[1] == _SAVED_TEMPLATE
    if saved:  # sentence-transformers hands its templates the prompt as a message
        query, system = system, query
    reference = not facts.vllm
    why = "compat vllm" if facts.vllm else "score type"
    marks: Sourced = (None, why)
    if facts.score_type == "late-interaction" and reference and _has_marks(facts):
        found, _, _, file = files.marks(facts.checkpoint)
        marks = found, file
    lower_file, sentence = facts.checkpoint.sentence_config
    lower_case = bool(sentence.get("do_lower_case", False)) and not (facts.vllm and facts.is_pair)
    return {
        "listwise": (facts.row.listwise, facts.source),
        "chat_template": template,
        "instruction": _instruction(facts, template[0]),
        "system_prompt": system,
        "template_variables": (files.chat_template(facts.checkpoint)[1] if saved else {}, template[1]),
        "query_prompt": query,
        "document_prompt": document,
        "marks": marks,
        "restore_specials": (reference and not facts.is_pair, why),
        "pair_of_empty": (reference, why),
        "lower_case": (lower_case, lower_file or "default"),
    }


_SAVED_TEMPLATE = "chat_template of the checkpoint"


def _chat_template(facts: Facts) -> Sourced:
    checkpoint = facts.checkpoint
    if "chat_template" in facts.options:
        name, source = facts.options["chat_template"]
        return find_template(name, exact=not facts.vllm), source
    if facts.row.template:
        return find_template(facts.row.template, exact=True), facts.source
    saved, _ = ("", {}) if facts.vllm else files.chat_template(checkpoint)
    if saved:
        return compiled_text(saved, f"{checkpoint.name}: {_SAVED_TEMPLATE}"), _SAVED_TEMPLATE
    by_token = bool(answer_tokens(checkpoint)[0] or files.answer_ids(checkpoint))
    config = checkpoint.config
    as_pair = config.get("use_sep_token", config.get("use_pad_token", not by_token))
    return ("", "tokenizer") if as_pair else (find_template("none", exact=True), "config.json use_sep_token")


def _side_prompt(facts: Facts, side: str) -> Sourced:
    """The text before each query or document: as asked for, as saved, as the row has it."""
    if facts.vllm:  # its score API reads raw text, whatever else is asked for
        return "", "compat vllm"
    asked = [name for name in (f"{side}_prompt", f"{side}_prompt_name") if name in facts.options]
    if side == "query" and "instruction" in facts.options and not facts.is_pair:
        asked.append("instruction")
    flags = [name for name in asked if facts.options[name][1].startswith("--")]
    asked = flags or asked  # what a config file says gives way to what the user types
    if len(asked) > 1:
        names = " and ".join(facts.options[name][1] for name in asked)
        raise UsageError(f"{names} are both given", hint="pass one of them")
    if asked:
        return _asked_prompt(facts, asked[0])
    if facts.is_pair:
        return files.default_prompt(facts.checkpoint) if side == "query" else ("", "score type")
    saved = _task_prompt(facts, side) or files.prompt(facts.checkpoint, side)
    of_row = facts.row.query_prompt if side == "query" else facts.row.document_prompt
    return saved if saved[0] or not of_row else (of_row, facts.source)


def _asked_prompt(facts: Facts, name: str) -> Sourced:
    value, source = facts.options[name]
    if name == "instruction":
        instruct = facts.options.get("instruct", (facts.row.instruct, ""))[0]
        return instruct.replace("{instruction}", value), source
    return (files.named_prompt(facts.checkpoint, value, source) if name.endswith("_name") else value), source


def _task_prompt(facts: Facts, side: str) -> Sourced | None:
    """What a checkpoint with adapters says before the texts of a side's task."""
    instructions = facts.checkpoint.config.get("task_instructions")
    adapter = adapters(facts)[0][side == "document"]
    return (instructions.get(adapter, ""), "config.json") if instructions and adapter else None


def _instruction(facts: Facts, template: str) -> Sourced:
    given = facts.options.get("instruction")
    if given is None:
        return "", "default"
    if facts.is_pair and not (template and uses(template, "instruction")):
        raise UsageError(
            f"{given[1]}: this model's prompt has no place for an instruction", hint="see batchscore inspect"
        )
    return given


def _has_marks(facts: Facts) -> bool:
    return files.is_colbert(facts.checkpoint) or facts.checkpoint.architecture == "HF_ColBERT"


# ---- lengths


def length_fields(facts: Facts) -> dict[str, Sourced]:
    """How long sequences may be, and what gives way."""
    limit = position_limit(facts)
    length = _max_length(facts, limit)
    marked = facts.score_type == "late-interaction" and not facts.vllm and _has_marks(facts)
    _, query, document, file = files.marks(facts.checkpoint) if marked else (None, length[0], length[0], length[1])
    sides = {
        "query_length": facts.option("query_length", (query, file)),
        "document_length": facts.option("document_length", (document, file)),
    }
    sides = {name: (min(value, length[0]), source) for name, (value, source) in sides.items()}
    if facts.is_pair:
        sides = constant("score type", query_length=0, document_length=0)
    return {
        "position_limit": limit,
        "max_length": length,
        **sides,
        "max_tokens_per_query": facts.option("max_tokens_per_query", (0, "default")),
        "max_tokens_per_doc": facts.option("max_tokens_per_doc", (0, "default")),
        "truncation": _truncation(facts),
        "truncation_side": facts.option("truncation_side", (None, "default")),
    }


def _truncation(facts: Facts) -> Sourced:
    given = facts.option("truncation", ("document-first", "default"))
    return ("prompt-end", "compat vllm") if facts.vllm and given[0] != "error" else given


def position_limit(facts: Facts) -> Sourced:
    """Tokens the model has positions for."""
    keys = ("max_position_embeddings", "n_positions", "max_seq_len")
    positions = next((facts.config[key] for key in keys if facts.config.get(key)), _UNLIMITED)
    # fairseq's convention spends the first pad_token_id + 1 rows of the table
    return positions - facts.first_position, "config.json"


def _max_length(facts: Facts, limit: Sourced) -> Sourced:
    given, cut = facts.options.get("max_length"), facts.options.get("truncate_prompt_tokens")
    own = _own_max_length(facts, limit)
    if given and given[1].startswith("--") and given[0] > limit[0]:
        raise UsageError(f"{given[1]} {given[0]}: must be between 1 and the model's {limit[0]} positions")
    chosen = (min(given[0], limit[0]), given[1]) if given else own
    if cut and cut[0] > chosen[0]:
        raise UsageError(f"{cut[1]} {cut[0]} is more than the model's {chosen[0]} tokens")
    return cut if cut and cut[0] > 0 else chosen


def _own_max_length(facts: Facts, limit: Sourced) -> Sourced:
    file, content = facts.checkpoint.sentence_config
    # ColBERT files say the lengths of their sides; max_seq_length is one of these less its marker
    if content.get("max_seq_length") and not files.is_colbert(facts.checkpoint):
        return min(int(content["max_seq_length"]), limit[0]), file
    of_tokenizer = facts.checkpoint.tokenizer_config.get("model_max_length") or _UNLIMITED
    return (int(of_tokenizer), "tokenizer_config.json") if of_tokenizer < limit[0] else limit
