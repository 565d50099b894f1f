"""What ships for published models is well-formed, and a user's own file is found, read and checked."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from batchscore.errors import UsageError
from batchscore.models.resolve.configs import load_config
from batchscore.models.resolve.options import RULES
from batchscore.models.spec import Source
from batchscore.resources import find_resource, shipped_files

SHIPPED = shipped_files("configs")
CONTENTS = {name: yaml.safe_load(path.read_text("utf-8")) for name, path in SHIPPED.items()}
MODELS = [(model, name) for name, content in CONTENTS.items() for model in content["models"]]
MINE = Source("config", "mine.yaml")


def write(path: Path, text: str) -> str:
    path.write_text(text, "utf-8")
    return str(path)


# ---- shipped


def test_configs_and_templates_ship() -> None:
    assert {"e5", "multilingual-e5", "bge-en-v1.5", "bge-zh-v1.5"} <= set(SHIPPED)
    assert "basic" in shipped_files("templates")


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_config_says_something_about_some_models(name: str) -> None:
    settings = load_config("none", name)

    assert any(shipped == name for _, shipped in MODELS)
    assert settings
    assert set(settings) <= set(RULES)
    assert {source for _, source in settings.values()} == {Source("config", f"{name}.yaml")}


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_prompt_ends_where_the_text_can_follow(name: str) -> None:
    """Models were trained on "query: " with its space; only a Chinese colon and a tag of Gemma's need none."""
    prompts = [value for key, (value, _) in load_config("none", name).items() if key.endswith("_prompt")]

    assert [prompt for prompt in prompts if not prompt.endswith((" ", "：", "<query>"))] == []


@pytest.mark.parametrize("name", SHIPPED)
def test_a_template_that_a_shipped_config_names_ships_too(name: str) -> None:
    templates = [value for key, (value, _) in load_config("none", name).items() if key == "chat_template"]

    assert set(templates) <= set(shipped_files("templates"))


def test_a_template_is_named_by_the_configs_of_the_models_that_need_one() -> None:
    named = {name: content["chat_template"] for name, content in CONTENTS.items() if "chat_template" in content}

    assert named.items() >= {
        ("qwen3-reranker", "qwen3-reranker"),
        ("mxbai-rerank-v2", "mxbai-rerank-v2"),
        ("bge-reranker-v2-gemma", "bge-reranker-v2-gemma"),
        ("bge-reranker-v2-minicpm-layerwise", "bge-reranker-v2-gemma"),
        ("llama-nemotron-rerank", "llama-nemotron-rerank"),
        ("zerank-2", "zerank-2"),
    }


def test_no_model_is_in_two_files() -> None:
    models = [model for model, _ in MODELS]

    assert sorted(models) == sorted(set(models))


@pytest.mark.parametrize(("model", "name"), MODELS)
def test_a_hub_id_finds_the_config_that_lists_it(model: str, name: str) -> None:
    assert load_config(model, None) == load_config("none", name)


@pytest.mark.parametrize("model", ["intfloat/e5-base-v3", "e5-base-v2", "intfloat/E5-base-v2", "./e5", "e5", ""])
def test_any_other_name_finds_none(model: str) -> None:
    """A folder or a fine-tune whose name resembles a published model's must not get its prompts."""
    assert load_config(model, None) == {}


def test_e5_reads_both_its_prompts() -> None:
    assert load_config("intfloat/e5-base-v2", None) == {
        "query_prompt": ("query: ", Source("config", "e5.yaml")),
        "document_prompt": ("passage: ", Source("config", "e5.yaml")),
    }


# ---- the user's own


def test_every_field_is_taken_from_a_file_with_the_files_name(tmp_path: Path) -> None:
    values = {
        "score_type": "bi-encoder",
        "convert": "embed",
        "compat": "vllm",
        "task": "retrieval",
        "hf_overrides": {"architectures": ["GteNewModel"], "rope_parameters": {"rope_theta": 5}},
        "pooler_config": {"pooling_type": "MEAN"},
        "pooling": "mean_sqrt_len",
        "use_activation": False,
        "logit_mean": -2.65,
        "logit_sigma": 2,
        "dimensions": 8,
        "similarity": "dot",
        "chat_template": "basic",
        "template_date": "2026-01-31",
        "instruction": "Find it.",
        "instruct": "Instruct: {instruction}\n",
        "query_prompt": "q: ",
        "document_prompt": "",
        "query_prompt_name": "query",
        "document_prompt_name": "passage",
        "no_prompts": True,
        "max_length": 32,
        "max_model_len": 32,
        "truncate_prompt_tokens": -1,
        "truncation": "longest-first",
        "truncation_side": "left",
        "query_length": 8,
        "document_length": 16,
        "max_tokens_per_query": 0,
        "max_tokens_per_doc": 5,
        "image_backend": "torchvision",
        "mm_processor_kwargs": {"min_pixels": 9},
        "max_pixels": 99,
        "limit_mm_per_prompt": {"image": 2},
    }
    path = write(tmp_path / "mine.yaml", yaml.safe_dump(values | {"models": ["a/b"]}))

    assert set(values) == set(RULES)
    assert load_config("c/d", path) == {key: (value, MINE) for key, value in values.items()}


def test_a_config_the_user_names_replaces_the_one_of_the_hub_id(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.yaml", "max_length: 32\n")

    assert load_config("intfloat/e5-base-v2", path) == {"max_length": (32, MINE)}


def test_a_file_of_that_name_wins_over_a_shipped_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "e5", "query_prompt: 'mine: '\n")

    assert load_config("none", "e5")["query_prompt"] == ("query: ", Source("config", "e5.yaml"))
    monkeypatch.chdir(tmp_path)
    assert load_config("none", "e5") == {"query_prompt": ("mine: ", Source("config", "e5"))}


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("query_promt", "did you mean query_prompt?"),
        ("max_lenght", "did you mean max_length?"),
        ("Similarity", "did you mean similarity?"),
        ("zzz", f"known: {', '.join(RULES)}"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_name(tmp_path: Path, key: str, hint: str) -> None:
    path = write(tmp_path / "mine.yaml", f"query_prompt: a\n{key}: b\n")

    with pytest.raises(UsageError) as caught:
        load_config("none", path)

    assert (caught.value.message, caught.value.hint) == (f"{path}: unknown key {key!r}", hint)


@pytest.mark.parametrize("key", ["5", "on", "null"])
def test_a_key_that_is_no_text_is_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(UsageError, match="unknown key"):
        load_config("none", write(tmp_path / "mine.yaml", f"{key}: b\n"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [b", "is not valid YAML"),
        ("query_prompt: query: ", "is not valid YAML"),  # a colon needs quotes
        ("!!python/object/apply:os.getcwd []", "is not valid YAML"),
        ("", "holds no settings"),
        ("- a", "holds no settings"),
        ("text", "holds no settings"),
    ],
)
def test_a_file_that_holds_no_settings_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path / "mine.yaml", text)

    with pytest.raises(UsageError, match=f"^{path} {message}"):
        load_config("none", path)


@pytest.mark.parametrize("kind", ["configs", "templates"])
def test_a_name_that_is_nowhere_is_refused_with_the_shipped_names(kind: str) -> None:
    with pytest.raises(UsageError) as caught:
        find_resource(kind, "nosuch")

    names = ", ".join(shipped_files(kind))
    assert caught.value.message == f"no file and no shipped name 'nosuch' in {kind}; shipped: {names}"


def test_a_folder_is_no_config(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no file and no shipped name"):
        find_resource("configs", str(tmp_path))
