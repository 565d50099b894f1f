"""What a user may say about a model: every value is checked, later sources win, and nothing is ignored in silence."""

from __future__ import annotations

import inspect
import json
import shutil
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from batchscore import Scorer
from batchscore.cli import options as cli_options
from batchscore.cli.main import app
from batchscore.errors import CheckpointError, UsageError
from batchscore.models.open import ModelOptions, open_model
from batchscore.models.resolve.options import RULES, merged, read_values, taken_apart, user_options
from batchscore.models.spec import ModelSpec, Source
from batchscore.models.text.sides import InputReader
from batchscore.models.text.tokenizer import load_tokenizer
from batchscore.scorer import ScorerOptions, set_up
from batchscore.types import CUT_NAMES, Cells, Pairs
from checkpoints import HIDDEN, TOKENS, pairs

Tiny = Callable[[str], str]
Opened = Callable[..., ModelSpec]

IDENTITY = "torch.nn.modules.linear.Identity"
QUERY, DOCUMENTS = "what is a cat", ["a dog", "the old cat", "a cat is a small animal", "light over water"]


def read(name: str, value: Any, source: Source | None = None) -> Any:
    return read_values({name: (value, source or Source("user", "--x"))})[name][0]


@pytest.fixture
def opened(tiny: Tiny, tmp_path: Path) -> Opened:
    """opened(row, yaml, **flags): the spec of a tiny checkpoint under a config file and flags."""

    def spec(name: str, config: str = "", **flags: Any) -> ModelSpec:
        path = tmp_path / "mine.yaml"
        path.write_text(config, "utf-8")
        return open_model(tiny(name), str(path) if config else None, flags)[1]

    return spec


# ---- values


@pytest.mark.parametrize(
    ("given", "length"),
    [
        (8, 8),
        ("8", 8),
        ("8k", 8_000),
        ("8K", 8_192),
        ("1m", 1_000_000),
        ("1M", 1_048_576),
        (" 512 ", 512),
    ],
)
@pytest.mark.parametrize("name", ["max_length", "max_model_len", "query_length", "document_length"])
def test_a_length_counts_thousands_in_k_and_1024s_in_capital_k(name: str, given: Any, length: int) -> None:
    assert read(name, given) == length


@pytest.mark.parametrize(
    "given", [0, -1, "-1", "0", "8kb", "8 k", "k", "", "1e3", "8.5k", 8.0, True, None, [8], "auto", "٣k?"]
)
def test_what_is_no_length_is_refused(given: Any) -> None:
    with pytest.raises(UsageError) as caught:
        read("max_length", given, Source("user", "--max-length"))

    read_as = 0 if given == "0" else given
    demand = "must be a number of tokens, k for thousands and K for 1024s"
    assert caught.value.message == f"--max-length {read_as!r}: {demand}"


@pytest.mark.parametrize(
    ("name", "value", "demand"),
    [
        ("score_type", "cosine", "must be one of cross-encoder, bi-encoder, late-interaction"),
        ("convert", "reward", "must be one of auto, none, embed, classify"),
        ("compat", "tei", "must be one of vllm"),
        ("pooling", "MEAN", "must be one of cls, max, mean, mean_sqrt_len, weightedmean, lasttoken"),
        ("similarity", "euclidean", "must be one of cosine, dot"),
        (
            "truncation",
            "prompt-end",  # a prompt without its end means nothing
            "must be one of document-first, longest-first, flag-embedding, mxbai-rerank, qwen3-vl, error",
        ),
        ("truncation_side", "middle", "must be one of left, right"),
        ("use_activation", 1, "must be true or false"),
        ("no_prompts", "yes", "must be true or false"),
        ("logit_mean", "2", "must be a number"),
        ("logit_mean", True, "must be a number"),
        ("logit_sigma", 0, "must be a number other than 0"),
        ("logit_sigma", 0.0, "must be a number other than 0"),
        ("dimensions", 0, "must be a number of components"),
        ("dimensions", 1.5, "must be a number of components"),
        ("instruct", "Instruct: ", "must contain {instruction}"),
        ("query_prompt", 5, "must be text"),
        ("chat_template", None, "must be text"),
        ("template_date", "31.1.2026", "must be a day like 2026-01-31"),
        ("template_date", "20260131", "must be a day like 2026-01-31"),
        ("truncate_prompt_tokens", 0, "must be a number of tokens, or -1"),
        ("truncate_prompt_tokens", -2, "must be a number of tokens, or -1"),
        ("max_tokens_per_query", -1, "must be a number of tokens, 0 for no limit"),
        ("max_tokens_per_doc", 2.0, "must be a number of tokens, 0 for no limit"),
        ("hf_overrides", [1], "must be a JSON object"),
        ("pooler_config", "[]", "must be a JSON object"),
    ],
)
def test_a_value_an_option_cannot_take_is_refused_by_the_options_name(name: str, value: Any, demand: str) -> None:
    flag = f"--{name.replace('_', '-')}"
    for source, spelled in (
        (Source("user", flag), flag),
        (Source("config", "mine.yaml"), f"mine.yaml: {name}"),
    ):
        with pytest.raises(UsageError) as caught:
            read(name, value, source)

        shown = [] if value == "[]" else value
        assert caught.value.message == f"{spelled} {shown!r}: {demand}"


@pytest.mark.parametrize("name", ["hf_overrides", "pooler_config"])
def test_json_is_read_from_text(name: str) -> None:
    assert read(name, '{"a": {"b": [1, true, null]}}') == {"a": {"b": [1, True, None]}}
    assert read(name, {"a": 1}) == {"a": 1}


@pytest.mark.parametrize("name", ["hf_overrides", "pooler_config"])
@pytest.mark.parametrize("text", ["{", "{'a': 1}", "a=1", "", '{"a": 1} x'])
def test_text_that_is_not_json_is_refused(name: str, text: str) -> None:
    flag = f"--{name.replace('_', '-')}"
    with pytest.raises(UsageError, match=f"^{flag} is not valid JSON: "):
        read(name, text, Source("user", flag))


@pytest.mark.parametrize(
    ("name", "hint"),
    [("max_lenght", "did you mean max_length?"), ("chat_templat", "did you mean chat_template?"), ("zzz", "known: ")],
)
def test_an_option_that_does_not_exist_is_refused_with_the_nearest(tiny: Tiny, name: str, hint: str) -> None:
    with pytest.raises(UsageError, match=f"^unknown option '{name}'\nhint: {hint}".replace("?", r"\?")):
        Scorer(tiny("bert_mean"), **{name: 5})  # type: ignore[arg-type]


def test_a_keyword_of_scorer_is_an_option_with_a_rule_and_a_flag() -> None:
    """And the other way round: the command line has nothing that Python lacks."""
    keywords = set(ModelOptions.__annotations__)
    flags = {field.name for group in (cli_options.Settings, cli_options.Execution) for field in fields(group)}
    of_scorer = set(inspect.signature(set_up).parameters) - {"model", "options"}

    assert set(ScorerOptions.__annotations__) == keywords | of_scorer

    assert keywords <= set(RULES)
    flags |= {"max_model_len"}  # another name of --max-length
    assert flags - {"unit_rows"} | {"window_rows"} == keywords | of_scorer
    assert set(RULES) - keywords - of_scorer == {"pooling", "logit_mean", "logit_sigma", "instruct"}  # of config files


# ---- options that say the same thing


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"convert": "classify", "score_type": "bi-encoder"},
            "--convert and --score-type ask for different things: 'cross-encoder' and 'bi-encoder'",
        ),
        (
            {"score_type": "bi-encoder", "pooler_config": {"task": "token_embed"}},
            "--score-type and --pooler-config ask for different things: 'bi-encoder' and 'late-interaction'",
        ),
        (
            {"convert": "embed", "pooler_config": {"tok_pooling_type": "ALL"}},
            "--convert and --pooler-config ask for different things: 'bi-encoder' and 'late-interaction'",
        ),
        (
            {"max_length": 16, "max_model_len": 32},
            "--max-length and --max-model-len ask for different things: 16 and 32",
        ),
        (
            {"query_prompt": "q", "no_prompts": True},
            "--query-prompt and --no-prompts ask for different things: 'q' and ''",
        ),
        (
            {"dimensions": 4, "pooler_config": {"dimensions": 8}},
            "--dimensions and --pooler-config ask for different things: 4 and 8",
        ),
        (
            {"use_activation": True, "pooler_config": {"use_activation": False}},
            "--use-activation and --pooler-config ask for different things: True and False",
        ),
        (
            {"query_prompt": "q", "query_prompt_name": "query"},
            "--query-prompt and --query-prompt-name exclude each other",
        ),
        (
            {"document_prompt": "d", "document_prompt_name": "document"},
            "--document-prompt and --document-prompt-name exclude each other",
        ),
    ],
    ids=str,
)
def test_options_that_contradict_each_other_are_refused_by_both_names(
    opened: Opened, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError) as caught:
        opened("bert_mean", **options)

    assert caught.value.message == message


@pytest.mark.parametrize(
    ("options", "field", "value"),
    [
        ({"max_length": "32", "max_model_len": 32}, "max_length", 32),
        ({"convert": "embed", "score_type": "bi-encoder"}, "score_type", "bi-encoder"),
        ({"convert": "embed", "pooler_config": {"task": "embed"}}, "score_type", "bi-encoder"),
        ({"query_prompt": "", "no_prompts": True}, "query_prompt", ""),
        ({"dimensions": 8, "pooler_config": {"dimensions": 8}}, "dimensions", 8),
    ],
    ids=str,
)
def test_options_that_say_the_same_twice_are_fine(
    opened: Opened, options: dict[str, Any], field: str, value: Any
) -> None:
    assert getattr(opened("bert_mean", **options), field) == value


def test_no_prompts_leaves_both_sides_bare(opened: Opened) -> None:
    bare = opened("bert_no_prompt_pooling", no_prompts=True)

    assert (bare.query_prompt, bare.document_prompt) == ("", "")
    assert (str(bare.sources["query_prompt"]), str(bare.sources["document_prompt"])) == ("--no-prompts", "--no-prompts")
    assert opened("bert_no_prompt_pooling", no_prompts=False).query_prompt == "search: "


@pytest.mark.parametrize("convert", ["auto", "none"])
def test_converting_nothing_leaves_the_decision_to_the_files(opened: Opened, convert: str) -> None:
    assert opened("bert_mean", convert=convert) == opened("bert_mean")


@pytest.mark.parametrize(
    ("name", "convert", "score_type"), [("bert_ce", "embed", "bi-encoder"), ("bert_ce", "classify", "cross-encoder")]
)
def test_converting_chooses_the_score_type(opened: Opened, name: str, convert: str, score_type: str) -> None:
    spec = opened(name, convert=convert)

    assert (spec.score_type, str(spec.sources["score_type"])) == (score_type, "--convert")


def test_an_encoder_without_a_head_is_not_made_a_reranker(opened: Opened) -> None:
    """vLLM ignores the request."""
    with pytest.raises(CheckpointError, match="BertModel has no score head, so it cannot be a cross-encoder"):
        opened("bert_mean", convert="classify")


# ---- which source wins


def test_later_sources_win_field_by_field(opened: Opened) -> None:
    config = "query_prompt: 'c '\ndocument_prompt: 'c '\nmax_length: 32\n"

    spec = opened("bert_mean", config, document_prompt="f ", dimensions=4)

    names = ("first_position", "pooling", "query_prompt", "max_length", "document_prompt", "dimensions")
    assert [(getattr(spec, name), str(spec.sources[name])) for name in names] == [
        (0, "architecture BertModel"),
        (("mean",), "1_Pooling/config.json"),
        ("c ", "mine.yaml"),
        (32, "mine.yaml"),
        ("f ", "--document-prompt"),
        (4, "--dimensions"),
    ]


def test_overrides_of_config_json_are_merged_key_by_key(tiny: Tiny, tmp_path: Path) -> None:
    config = tmp_path / "mine.yaml"
    config.write_text("hf_overrides: {pad_token_id: 3, problem_type: regression, hidden_act: relu}\n")

    checkpoint, spec = open_model(
        tiny("bert_ce_default"), str(config), {"hf_overrides": '{"pad_token_id": 5, "hidden_act": "tanh"}'}
    )

    assert {key: checkpoint.config[key] for key in ("pad_token_id", "problem_type", "hidden_act", "vocab_size")} == {
        "pad_token_id": 5,
        "problem_type": "regression",
        "hidden_act": "tanh",
        "vocab_size": json.loads((Path(tiny("bert_ce_default")) / "config.json").read_text())["vocab_size"],
    }
    assert (spec.pad_token_id, spec.activation) == (5, IDENTITY)


def test_an_override_of_a_nested_key_leaves_its_neighbours(tiny: Tiny, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny("bert_mean"), tmp_path / "copy"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps(config | {"rope": {"theta": 5, "scaling": {"kind": "ntk", "by": 2}}})
    )

    checkpoint, _ = open_model(str(folder), None, {"hf_overrides": {"rope": {"scaling": {"by": 4}}}})

    assert checkpoint.config["rope"] == {"theta": 5, "scaling": {"kind": "ntk", "by": 4}}


def test_nested_overrides_of_a_config_file_and_a_flag_are_merged_too(tiny: Tiny, tmp_path: Path) -> None:
    config = tmp_path / "mine.yaml"
    config.write_text("hf_overrides: {rope: {theta: 5, by: 2}}\n")

    checkpoint, _ = open_model(tiny("bert_mean"), str(config), {"hf_overrides": {"rope": {"by": 4}}})

    assert checkpoint.config["rope"] == {"theta": 5, "by": 4}


def test_merged_options_name_both_sources_of_overrides() -> None:
    lower = {"hf_overrides": ({"a": 1, "b": 1}, Source("config", "x.yaml"))}
    upper = user_options({"hf_overrides": {"b": 2}})

    values, source = merged(lower, upper)["hf_overrides"]
    assert (values, str(source)) == ({"a": 1, "b": 2}, "x.yaml, --hf-overrides")
    assert merged(lower, {}) == lower
    assert merged({}, upper) == upper


@pytest.mark.parametrize(
    ("config", "flags", "field", "value"),
    [
        ("max_length: 32", {"max_model_len": 16}, "max_length", 16),
        ("max_model_len: 32", {"max_length": 16}, "max_length", 16),
        ("query_prompt: 'q '", {"no_prompts": True}, "query_prompt", ""),
        ("no_prompts: true", {"query_prompt": "q "}, "query_prompt", "q "),
        ("query_prompt: 'q '", {"query_prompt_name": "query"}, "query_prompt", "query: "),
        ("query_prompt_name: query", {"query_prompt": "q "}, "query_prompt", "q "),
        ("convert: embed", {"score_type": "late-interaction"}, "score_type", "late-interaction"),
        ("score_type: late-interaction", {"convert": "embed"}, "score_type", "bi-encoder"),
        ("pooler_config: {dimensions: 8}", {"dimensions": 4}, "dimensions", 4),
        ("pooling: cls", {"pooler_config": {"pooling_type": "MEAN"}}, "pooling", ("mean",)),
        ("pooler_config: {pooling_type: CLS}", {"pooler_config": {"dimensions": 8}}, "pooling", ("cls",)),
        ("instruct: 'I: {instruction} Q: '\nquery_prompt: 'q '", {"instruction": "x"}, "query_prompt", "I: x Q: "),
    ],
)
def test_a_flag_wins_over_a_config_file_that_says_it_in_other_words(
    opened: Opened, config: str, flags: dict[str, Any], field: str, value: Any
) -> None:
    """Every shipped config of a reranker has a max_length, and those of E5 have prompts."""
    assert getattr(opened("bert_mean", config, **flags), field) == value


def test_an_instruction_takes_its_place_in_the_query_prompt(opened: Opened) -> None:
    spec = opened("bert_mean", "instruct: 'I: {instruction} Q: '", instruction="find {it}")

    assert (spec.query_prompt, spec.document_prompt) == ("I: find {it} Q: ", "")
    assert str(spec.sources["query_prompt"]) == "--instruction"
    assert opened("bert_mean", "instruct: 'I: {instruction} Q: '").query_prompt == "query: "  # nothing to put there


# ---- pooler_config


@pytest.mark.parametrize(
    ("name", "config", "field", "value"),
    [
        ("bert_mean", {"pooling_type": "CLS"}, "pooling", ("cls",)),
        ("bert_mean", {"pooling_type": "last"}, "pooling", ("lasttoken",)),
        ("bert_cls", {"seq_pooling_type": "MEAN"}, "pooling", ("mean",)),
        ("bert_cls", {"pooling_type": "WEIGHTEDMEAN"}, "pooling", ("weightedmean",)),
        ("bert_ce", {"pooling_type": "MEAN"}, "pooling", ("mean",)),
        ("bert_mean", {"tok_pooling_type": "ALL"}, "score_type", "late-interaction"),
        ("bert_mean", {"task": "token_embed"}, "score_type", "late-interaction"),
        ("bert_ce", {"task": "embed"}, "score_type", "bi-encoder"),
        ("bert_ce", {"task": "classify"}, "score_type", "cross-encoder"),
        ("bert_mean", {"dimensions": 8}, "dimensions", 8),
        ("bert_ce_default", {"use_activation": False}, "activation", IDENTITY),
        ("bert_ce", {"logit_mean": 2.65}, "logit_mean", 2.65),
        ("bert_ce", {"logit_sigma": 2}, "logit_sigma", 2),
    ],
    ids=str,
)
def test_a_key_of_pooler_config_decides_its_field(
    opened: Opened, name: str, config: dict[str, Any], field: str, value: Any
) -> None:
    spec = opened(name, pooler_config=config)

    assert (getattr(spec, field), str(spec.sources[field])) == (value, "--pooler-config")
    assert opened(name, pooler_config=json.dumps(config)) == spec


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"pooling_type": "MAXIMUM"}, "--pooler-config: pooling_type 'MAXIMUM' is unknown; known: CLS, LAST, MEAN, "),
        ({"softmax": True}, "--pooler-config: softmax True would have no effect"),
        ({"normalize": False}, "--pooler-config: normalize False would have no effect"),
        ({"step_tag_id": 5}, "--pooler-config: step_tag_id 5 would have no effect"),
        ({"tok_pooling_type": "STEP"}, "--pooler-config: tok_pooling_type 'STEP' would have no effect"),
        ({"task": "plugin"}, "--pooler-config: task 'plugin' would have no effect"),
        ({"logit_sigma": 0}, "--pooler-config 0: must be a number other than 0"),
        ({"dimensions": -1}, "--pooler-config -1: must be a number of components"),
        ({"use_activation": "no"}, "--pooler-config 'no': must be true or false"),
    ],
    ids=str,
)
def test_a_key_of_pooler_config_that_scores_nothing_is_refused(
    opened: Opened, config: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError) as caught:
        opened("bert_mean", pooler_config=config)

    assert caught.value.message.startswith(message)


# ---- what cannot take effect


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("bert_ce", {"dimensions": 4}, "--dimensions 4: a cross-encoder reads both sides at once"),
        ("bert_ce", {"query_length": 8}, "--query-length 8: a cross-encoder reads both sides at once"),
        ("bert_ce", {"document_length": 8}, "--document-length 8: a cross-encoder reads both sides at once"),
        ("bert_ce", {"document_prompt_name": "x"}, "--document-prompt-name 'x': a cross-encoder reads both sides at"),
        ("bert_ce", {"instruction": "x"}, "--instruction: this model's prompt has no place for an instruction"),
        ("bert_ce", {"task": "retrieval"}, "--task 'retrieval': this checkpoint has no adapters to choose from"),
        ("bert_mean", {"task": "retrieval"}, "--task 'retrieval': this checkpoint has no adapters to choose from"),
        (
            "bert_mean",
            {"instruction": "x"},
            "--instruction 'x': this model's query prompt has no place for an instruct",
        ),
        ("bert_mean", {"chat_template": "basic"}, "--chat-template 'basic': a bi-encoder of texts has none"),
        ("bert_mean", {"pooler_config": {"logit_mean": 1}}, "--pooler-config 1: a bi-encoder has none"),
        ("bert_mean", {"use_activation": False}, "--use-activation False: a cosine does not depend on it"),
        ("bert_mean", {"use_activation": True}, "--use-activation True: a cosine does not depend on it"),
        (
            "bert_mean",
            {"score_type": "late-interaction", "pooler_config": {"pooling_type": "CLS"}},
            "--pooler-config 'cls': late interaction does not pool the states of tokens",
        ),
        (
            "bert_mean",
            {"truncation": "flag-embedding"},
            "--truncation 'flag-embedding': that is a rule for prompts of cross-encoders",
        ),
        (
            "bert_ce",
            {"truncation": "longest-first", "compat": "vllm"},
            "--truncation 'longest-first': compat vllm has a rule of its own",
        ),
    ],
    ids=str,
)
def test_an_option_that_would_be_ignored_is_refused(
    opened: Opened, name: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError) as caught:
        opened(name, **options)

    assert caught.value.message.startswith(message)


def test_an_override_that_nothing_reads_is_refused_with_the_nearest(tiny: Tiny) -> None:
    with pytest.raises(UsageError, match="^--hf-overrides: nothing reads 'hiden_size'\nhint: did you mean hidden_size"):
        Scorer(tiny("bert_mean"), hf_overrides={"hiden_size": 8})


# ---- prompts by name


def test_a_saved_prompt_is_found_by_its_name(opened: Opened) -> None:
    spec = opened("bert_no_prompt_pooling", query_prompt_name="passage", document_prompt_name="query")

    assert (spec.query_prompt, spec.document_prompt) == ("passage: ", "search: ")
    assert str(spec.sources["query_prompt"]) == "--query-prompt-name"


@pytest.mark.parametrize(
    ("name", "options", "message", "hint"),
    [
        ("bert_mean", {"query_prompt_name": "web"}, "--query-prompt-name 'web': ", "it has query, document"),
        ("bert_mean", {"document_prompt_name": "web"}, "--document-prompt-name 'web': ", "it has query, document"),
        ("bert_ce", {"query_prompt_name": "web"}, "--query-prompt-name 'web': ", "it has none at all"),
        ("bert_plain", {"query_prompt_name": "query"}, "--query-prompt-name 'query': ", "it has none at all"),
    ],
)
def test_a_prompt_name_that_is_not_saved_is_refused_with_those_that_are(
    tiny: Tiny, opened: Opened, name: str, options: dict[str, Any], message: str, hint: str
) -> None:
    with pytest.raises(UsageError) as caught:
        opened(name, **options)

    assert (caught.value.message, caught.value.hint) == (f"{message}{tiny(name)} has no such prompt", hint)


# ---- lengths


@pytest.mark.parametrize(
    ("options", "length"),
    [
        ({"truncate_prompt_tokens": 16}, 16),
        ({"truncate_prompt_tokens": -1}, TOKENS),
        ({"truncate_prompt_tokens": -1, "max_length": 32}, 32),
        ({"truncate_prompt_tokens": 16, "max_model_len": 32}, 16),
    ],
    ids=str,
)
def test_truncate_prompt_tokens_is_a_length_within_the_models(
    opened: Opened, options: dict[str, Any], length: int
) -> None:
    assert opened("bert_ce", **options).max_length == length


@pytest.mark.parametrize(
    "options", [{"truncate_prompt_tokens": 65}, {"truncate_prompt_tokens": 33, "max_length": 32}], ids=str
)
def test_truncate_prompt_tokens_beyond_the_models_length_is_refused(opened: Opened, options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"^--truncate-prompt-tokens \d\d is more than the model's \d\d tokens$"):
        opened("bert_ce", **options)


def test_a_config_files_length_is_bounded_by_the_models_positions(opened: Opened) -> None:
    """It is written for a published model; a user's own number beyond them is a mistake."""
    assert opened("bert_ce", "max_length: 8192").max_length == TOKENS
    with pytest.raises(UsageError, match="^--max-length 8192: must be between 1 and the model's 64 positions$"):
        opened("bert_ce", max_length="8K")


def test_the_sides_of_late_interaction_have_lengths_of_their_own(opened: Opened) -> None:
    spec = opened("bert_mean", score_type="late-interaction", query_length=8, document_length="32", max_length=20)

    assert (spec.query_length, spec.document_length, spec.max_length) == (8, 20, 20)  # within the whole


@pytest.mark.parametrize(
    ("limits", "kept", "cut"),
    [
        ({}, ("the cat, dog", "a small old bird"), "none"),
        ({"max_tokens_per_query": 2}, ("the cat", "a small old bird"), "query"),
        ({"max_tokens_per_doc": 3}, ("the cat, dog", "a small old"), "document"),
        ({"max_tokens_per_query": 3, "max_tokens_per_doc": 1}, ("the cat,", "a"), "both"),
        ({"max_tokens_per_query": 4, "max_tokens_per_doc": 4}, ("the cat, dog", "a small old bird"), "none"),
    ],
    ids=str,
)
def test_texts_are_cut_to_their_own_limits_before_anything_else(
    tiny: Tiny, limits: dict[str, Any], kept: tuple[str, str], cut: str
) -> None:
    checkpoint, spec = open_model(tiny("bert_ce"), None, limits)
    tokenizer = load_tokenizer(checkpoint, trust_remote_code=False, restore_specials=False)
    rows = Pairs(Cells.of(["cat", "the cat, dog"]), Cells.of(["", "a small old bird"]))

    shorter, bits = InputReader(spec, tokenizer, None, None).shortened(rows)

    assert (list(shorter.queries.values), list(shorter.documents.values)) == (["cat", kept[0]], ["", kept[1]])
    assert [CUT_NAMES[bit] for bit in bits] == ["none", cut]


@pytest.mark.parametrize(
    "options", [{}, {"chat_template": "Q {{ query }} D {{ document }} ?"}], ids=["pair", "template"]
)
def test_a_limit_for_documents_counts_neither_specials_nor_prompts(tiny: Tiny, options: dict[str, Any]) -> None:
    rows = Pairs(Cells.of(["cat"]), Cells.of(["dog bird fish river"]))
    with Scorer(tiny("bert_ce"), dtype="float32", **options) as whole:
        lengths = whole.batcher.tokenize(rows).items.lengths
    with Scorer(tiny("bert_ce"), dtype="float32", max_tokens_per_doc=3, query_prompt="find : ", **options) as limited:
        work = limited.batcher.tokenize(rows)

    assert work.items.lengths.tolist() == [lengths[0] - 1 + 2]
    assert [CUT_NAMES[bit] for bit in work.cut] == ["document"]


@pytest.mark.parametrize("name", ["bert_ce", "roberta_mean"])
def test_texts_cut_to_their_limits_score_as_texts_of_that_length(tiny: Tiny, name: str) -> None:
    queries, documents = pairs(12)
    with Scorer(tiny(name), dtype="float32", max_tokens_per_query=4, max_tokens_per_doc=7) as limited:
        found = limited.score(queries, documents)
        tokenizer = load_tokenizer(limited.checkpoint, trust_remote_code=False, restore_specials=False)
    short = [tokenizer.shorten(text, 4) for text in queries], [tokenizer.shorten(text, 7) for text in documents]
    with Scorer(tiny(name), dtype="float32") as plain:
        expected, whole = plain.score(*short), plain.score(queries, documents)

    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    assert np.abs(found - whole).max() > 1e-3


# ---- activation, affine, dimensions


def test_without_the_activation_the_score_is_the_logit(tiny: Tiny) -> None:
    with Scorer(tiny("bert_ce_default"), dtype="float32") as scorer:
        scores = scorer.score(QUERY, DOCUMENTS)
    with Scorer(tiny("bert_ce_default"), dtype="float32", use_activation=False) as bare:
        logits = bare.score(QUERY, DOCUMENTS)

    np.testing.assert_allclose(1 / (1 + np.exp(-logits.astype(float))), scores, atol=1e-6)
    assert np.abs(logits - scores).max() > 0.1


def test_a_logit_is_shifted_and_scaled_before_its_activation(tiny: Tiny) -> None:
    with Scorer(tiny("bert_ce"), dtype="float32") as scorer:
        logits = scorer.score(QUERY, DOCUMENTS)
    with Scorer(
        tiny("bert_ce_default"), pooler_config={"logit_mean": 2.65, "logit_sigma": 2}, dtype="float32"
    ) as moved:
        scores = moved.score(QUERY, DOCUMENTS)

    np.testing.assert_allclose(scores, 1 / (1 + np.exp(-(logits - 2.65) / 2)), atol=1e-6)


@pytest.mark.parametrize(
    ("name", "options", "normalize"),
    [
        ("bert_mean", {"similarity": "dot"}, True),  # modules.json has Normalize
        ("bert_dot", {"similarity": "dot"}, False),
        ("bert_mean", {"similarity": "dot", "use_activation": False}, False),
        ("bert_dot", {"similarity": "dot", "use_activation": True}, True),
        ("bert_mean", {"score_type": "late-interaction"}, True),
        ("bert_dot", {"score_type": "late-interaction"}, True),
        ("bert_mean", {"score_type": "late-interaction", "use_activation": False}, False),
    ],
    ids=str,
)
def test_use_activation_is_about_unit_length_where_there_is_no_logit(
    opened: Opened, name: str, options: dict[str, Any], normalize: bool
) -> None:
    assert opened(name, **options).normalize == normalize


def test_a_dot_product_of_unit_vectors_is_the_cosine_and_of_others_is_not(tiny: Tiny) -> None:
    def scores(**options: Any) -> np.ndarray:
        with Scorer(tiny("bert_mean"), dtype="float32", **options) as scorer:
            return scorer.score(QUERY, DOCUMENTS)

    cosines = scores()
    np.testing.assert_allclose(scores(similarity="dot"), cosines, atol=1e-6)
    assert np.abs(scores(similarity="dot", use_activation=False) - cosines).min() > 0.1


@pytest.mark.parametrize("score_type", ["bi-encoder", "late-interaction"])
def test_all_dimensions_are_what_none_is_and_fewer_are_not(tiny: Tiny, score_type: Any) -> None:
    def scores(dimensions: int | None) -> np.ndarray:
        with Scorer(tiny("bert_mean"), dtype="float32", score_type=score_type, dimensions=dimensions) as scorer:
            return scorer.score(QUERY, DOCUMENTS)

    np.testing.assert_allclose(scores(HIDDEN), scores(None), atol=1e-6)
    assert np.abs(scores(4) - scores(None)).max() > 1e-3
    if score_type == "bi-encoder":
        np.testing.assert_allclose(np.abs(scores(1)), 1, atol=1e-6)  # numbers have a sign and no angle


@pytest.mark.parametrize(
    ("name", "options", "width"),
    [
        ("bert_mean", {}, HIDDEN),
        ("bert_concat", {}, 2 * HIDDEN),
        ("bert_dense", {}, 16),
        ("bert_mean", {"score_type": "late-interaction"}, HIDDEN),
    ],
    ids=str,
)
def test_more_dimensions_than_a_vector_has_are_refused(
    tiny: Tiny, name: str, options: dict[str, Any], width: int
) -> None:
    with Scorer(tiny(name), dimensions=width, **options) as scorer:
        assert scorer.spec.dimensions == width
    message = f"^--dimensions {width + 1}: this model's vectors can be cut to 1 to {width}$"
    with pytest.raises(UsageError, match=message):
        Scorer(tiny(name), dimensions=width + 1, **options)


def test_dimensions_are_those_a_checkpoint_lists(tiny: Tiny) -> None:
    listed = {"matryoshka_dimensions": [8, 16]}
    with Scorer(tiny("bert_mean"), dimensions=8, hf_overrides=listed) as scorer:
        assert scorer.spec.dimensions == 8
    with pytest.raises(UsageError, match="^--dimensions 4: this model's vectors can be cut to 8, 16$"):
        Scorer(tiny("bert_mean"), dimensions=4, hf_overrides=listed)


# ---- on the command line


def run(tiny: Tiny, tmp_path: Path, *options: str, model: str = "bert_ce") -> tuple[int, str]:
    rows = tmp_path / "pairs.jsonl"
    rows.write_text('{"query": "a cat", "document": "dog bird fish"}\n')
    arguments = ["score", "--model", tiny(model), "--in", str(rows), "--out", str(tmp_path / "out.jsonl"), *options]
    result = CliRunner().invoke(app, arguments)
    return result.exit_code, result.output


@pytest.mark.parametrize(
    ("options", "field", "value"),
    [
        (["--max-length", "32"], "max_length", 32),
        (["--max-model-len", "0k"], None, None),
        (["--max-model-len", "16"], "max_length", 16),
        (["--max_tokens_per_doc", "2"], "max_tokens_per_doc", 2),
        (["--no-use-activation"], "activation", IDENTITY),
        (["--chat-template", "none"], "chat_template", "{{ query }}{{ document }}"),
        (["--hf-overrides", '{"problem_type": "regression"}'], "activation", IDENTITY),
        (["--pooler-config", '{"logit_mean": 1.5}'], "logit_mean", 1.5),
        (["--truncation", "longest-first"], "truncation", "longest-first"),
        (["--query-prompt", "find "], "query_prompt", "find "),
    ],
    ids=str,
)
def test_an_option_of_the_command_line_is_in_the_record(
    tiny: Tiny, tmp_path: Path, options: list[str], field: str | None, value: Any
) -> None:
    code, output = run(tiny, tmp_path, *options, model="bert_ce_default")

    if field is None:
        assert (code, "must be a number of tokens" in output) == (2, True)
        return
    assert code == 0, output
    record = json.loads((tmp_path / "out.jsonl.run.json").read_text("utf-8"))
    assert record["spec"][field]["value"] == value


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--max-length", "8 kilo"], "--max-length '8 kilo': must be a number of tokens"),
        (["--max-length", "8k"], "--max-length 8000: must be between 1 and the model's 64 positions"),
        (["--hf-overrides", "{"], "--hf-overrides is not valid JSON"),
        (["--pooler-config", '{"softmax": true}'], "--pooler-config: softmax True would have no effect"),
        (["--chat-template", "{{ query"], "chat_template, line 1: "),
        (["--chat-template", "nosuch"], "no file and no shipped name 'nosuch' in templates"),
        (["--truncation", "both"], "Invalid value for '--truncation'"),
        (["--truncation", "prompt-end"], "Invalid value for '--truncation'"),
        (["--query-prompt", "a", "--no-prompts"], "ask for different things"),
    ],
    ids=str,
)
def test_an_option_that_cannot_be_meant_ends_the_program_with_code_2(
    tiny: Tiny, tmp_path: Path, options: list[str], message: str
) -> None:
    code, output = run(tiny, tmp_path, *options)

    assert code == 2
    assert message in " ".join(output.replace("│", " ").split())
    assert not (tmp_path / "out.jsonl").exists()


def test_one_option_taken_apart_keeps_the_name_the_user_knows() -> None:
    source = Source("user", "--pooler-config")
    apart = taken_apart({"pooler_config": ({"dimensions": 8, "pooling_type": "CLS"}, source)})

    assert apart == {"dimensions": (8, source), "pooling": ("cls", source)}
