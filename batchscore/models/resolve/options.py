"""What a user may set: the options, their valid values, and how options that bundle several settings are split.

Options come from the command line, from Scorer's keywords and from config files, under the same names. They are checked
here and nowhere else.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from datetime import date
from typing import Any, get_args

from batchscore.errors import UsageError
from batchscore.models.checkpoint import updated
from batchscore.models.folder import parse_json
from batchscore.models.spec import POOLING_MODES, Source, Sourced
from batchscore.types import TRUNCATION_SIDES, ScoreType, Truncation

Options = Mapping[str, Sourced]

Rule = tuple[Callable[[Any], bool], str]


def _one_of(*values: Any) -> Rule:
    return (lambda value: value in values), f"must be one of {', '.join(map(str, values))}"


def _length(value: Any) -> bool:
    return type(value) is int and value > 0


def _is_date(value: Any) -> bool:
    try:
        return isinstance(value, str) and date.fromisoformat(value).isoformat() == value
    except ValueError:
        return False


_TEXT: Rule = (lambda value: isinstance(value, str)), "must be text"
_OBJECT: Rule = (lambda value: isinstance(value, dict)), "must be a JSON object"
_FLAG: Rule = (lambda value: isinstance(value, bool)), "must be true or false"
_COUNT: Rule = (lambda value: type(value) is int and value >= 0), "must be a number of tokens, 0 for no limit"
_LENGTH: Rule = _length, "must be a number of tokens, k for thousands and K for 1024s"
_NUMBER: Rule = (lambda value: isinstance(value, (int, float)) and not isinstance(value, bool)), "must be a number"

RULES: dict[str, Rule] = {
    "score_type": _one_of(*get_args(ScoreType)),
    "convert": _one_of("auto", "none", "embed", "classify"),
    "compat": _one_of("vllm"),
    "task": _TEXT,
    "hf_overrides": _OBJECT,
    "pooler_config": _OBJECT,
    "pooling": _one_of(*POOLING_MODES),
    "use_activation": _FLAG,
    "logit_mean": _NUMBER,
    "logit_sigma": ((lambda value: _NUMBER[0](value) and value != 0), "must be a number other than 0"),
    "dimensions": (_length, "must be a number of components"),
    "similarity": _one_of("cosine", "dot"),
    "chat_template": _TEXT,
    "template_date": (_is_date, "must be a day like 2026-01-31"),
    "instruction": _TEXT,
    "instruct": ((lambda value: isinstance(value, str) and "{instruction}" in value), "must contain {instruction}"),
    "query_prompt": _TEXT,
    "document_prompt": _TEXT,
    "query_prompt_name": _TEXT,
    "document_prompt_name": _TEXT,
    "no_prompts": _FLAG,
    "max_length": _LENGTH,
    "max_model_len": _LENGTH,
    "truncate_prompt_tokens": ((lambda value: value == -1 or _length(value)), "must be a number of tokens, or -1"),
    # without "prompt-end": it cuts the end of the prompt, where the score is read; only `compat` asks for that
    "truncation": _one_of(*(rule for rule in get_args(Truncation) if rule != "prompt-end")),
    "truncation_side": _one_of(*TRUNCATION_SIDES),
    "query_length": _LENGTH,
    "document_length": _LENGTH,
    "max_tokens_per_query": _COUNT,
    "max_tokens_per_doc": _COUNT,
    "image_backend": _one_of("pil", "torchvision"),
    "mm_processor_kwargs": _OBJECT,
    "max_pixels": (_length, "must be a number of pixels"),
    "limit_mm_per_prompt": (
        lambda value: (
            isinstance(value, dict)
            and all(kind in ("image", "video") and type(count) is int and count >= 0 for kind, count in value.items())
        ),
        'must be like {"image": 4, "video": 0}',
    ),
}

_FEW = 40  # an error lists at most this many names
_LENGTHS = ("max_length", "max_model_len", "query_length", "document_length")
_JSON = ("hf_overrides", "pooler_config", "mm_processor_kwargs", "limit_mm_per_prompt")
_UNITS = {"": 1, "k": 1_000, "K": 1_024, "m": 1_000_000, "M": 1_048_576}


def user_options(values: Mapping[str, Any]) -> dict[str, Sourced]:
    """What a user passed, by keyword or flag; None, and False of a flag, leave the decision to the files."""
    return {
        name: (value, Source("user", f"--{name.replace('_', '-')}"))
        for name, value in values.items()
        if value is not None and (value is not False or name == "use_activation")
    }


def read_values(options: Options) -> dict[str, Sourced]:
    """The options, with lengths like "8k" as numbers and JSON text as objects.

    Raises:
        UsageError: a value that its option cannot take.
    """
    for name in options:
        if name not in RULES:
            raise UsageError(f"unknown option {name!r}", hint=nearest(name, RULES))
    read = {name: (_read(name, *option), option[1]) for name, option in options.items()}
    for name, (value, source) in read.items():
        is_valid, demand = RULES[name]
        if not is_valid(value):
            raise UsageError(f"{source.spell(name)} {value!r}: {demand}")
    return read


def _read(name: str, value: Any, source: Source) -> Any:
    if name in _LENGTHS and isinstance(value, str) and (match := re.fullmatch(r"(\d+)([kKmM]?)", value.strip())):
        return int(match[1]) * _UNITS[match[2]]
    if name in _JSON and isinstance(value, str):
        try:
            return parse_json(value)
        except ValueError as error:
            raise UsageError(f"{source.spell(name)} is not valid JSON: {error}") from error
    return value


def merged(lower: Options, upper: Options) -> dict[str, Sourced]:
    """Both layers; the upper one wins, except that overrides of config.json are merged key by key."""
    both = {**lower, **upper}
    if "hf_overrides" in lower and "hf_overrides" in upper:
        (below, below_source), (above, above_source) = lower["hf_overrides"], upper["hf_overrides"]
        source = Source(above_source.kind, f"{below_source}, {above_source}")
        both["hf_overrides"] = (updated(below, above), source)
    return both


def taken_apart(options: Options) -> dict[str, Sourced]:
    """Options that decide one field each: bundles are split, and other engines' names translated.

    Raises:
        UsageError: two of them decide one field differently, or a bundle has an unknown key.
    """
    apart: dict[str, Sourced] = {}
    for name, (value, source) in options.items():
        parts = _EXPANSIONS[name](value, source) if name in _EXPANSIONS else {name: value}
        for key, part in parts.items():
            other, other_source = apart.setdefault(key, (part, source))
            if other != part:
                raise UsageError(f"{other_source} and {source} ask for different things: {other!r} and {part!r}")
    return apart


def _pooler(config: Mapping[str, Any], source: Source) -> dict[str, Any]:
    modes = {"CLS": "cls", "LAST": "lasttoken", "MEAN": "mean"} | {mode.upper(): mode for mode in POOLING_MODES}
    tasks = {"embed": "bi-encoder", "classify": "cross-encoder", "token_embed": "late-interaction"}
    apart: dict[str, Any] = {}
    for key, value in config.items():
        if key in ("pooling_type", "seq_pooling_type"):
            if "pooling" in apart:
                raise UsageError(f"{source}: pooling_type and seq_pooling_type are both set", hint="pass one of them")
            if str(value).upper() not in modes:
                raise UsageError(f"{source}: {key} {value!r} is unknown; known: {', '.join(modes)}")
            apart["pooling"] = modes[str(value).upper()]
        elif key == "tok_pooling_type" and str(value).upper() == "ALL":
            apart["score_type"] = "late-interaction"
        elif key == "task" and str(value) in tasks:
            apart["score_type"] = tasks[value]
        elif key in ("use_activation", "dimensions", "logit_mean", "logit_sigma"):
            apart[key] = read_values({key: (value, source)})[key][0]
        else:
            raise UsageError(
                f"{source}: {key} {value!r} would have no effect",
                hint="keys that score: pooling_type, seq_pooling_type, tok_pooling_type (ALL), task, use_activation, "
                "dimensions, logit_mean, logit_sigma",
            )
    return apart


_CONVERSIONS = {"classify": {"score_type": "cross-encoder"}, "embed": {"score_type": "bi-encoder"}}

_EXPANSIONS: dict[str, Callable[[Any, Source], dict[str, Any]]] = {
    "pooler_config": _pooler,
    "convert": lambda value, _: _CONVERSIONS.get(value, {}),
    "no_prompts": lambda value, _: {"query_prompt": "", "document_prompt": ""} if value else {},
    "max_model_len": lambda value, _: {"max_length": value},
}


def nearest(key: str, known: Mapping[str, Any]) -> str:
    """A hint for an unknown key."""
    close = difflib.get_close_matches(key, known, 1)
    if close:
        return f"did you mean {close[0]}?"
    return f"known: {', '.join(known)}" if len(known) <= _FEW else f"{len(known)} are known, none of them similar"
