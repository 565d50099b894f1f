"""Rerankers that sentence-transformers 6 saved: a LogitScore module, prompts, a template with roles of its own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

import more_checkpoints
from batchscore import Scorer
from batchscore.errors import CheckpointError

Tiny = Callable[[str], str]
Saved = Callable[..., str]
QUERIES, DOCUMENTS = ["what is a bird", "river"], ["the bird is small", ""]
FALSE, TRUE = 40, 50  # token ids
IDENTITY = "torch.nn.modules.linear.Identity"

FLAT = """{% for message in messages if message.role == "system" %}<|im_start|>system
{{ message.content }}<|im_end|>
{% endfor %}<|im_start|>user
{{ messages | selectattr("role", "eq", "query") | map(attribute="content") | first }}
{{ messages | selectattr("role", "eq", "document") | map(attribute="content") | first }}<|im_end|>
{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
PARTS = """{{ (messages | selectattr("role", "eq", "query") | first).content[0].text }}
{{ (messages | selectattr("role", "eq", "document") | first).content[0].text }}<|im_end|>
"""


@pytest.fixture
def saved(tiny: Tiny, tmp_path: Path) -> Saved:
    """A causal reranker with the files that sentence-transformers writes beside its weights."""

    def save(template: str, ids: dict[str, int | None], kwargs: dict[str, Any] | None = None, **settings: Any) -> str:
        folder = tmp_path / "reranker"
        shutil.copytree(tiny("qwen3_reranker"), folder)
        (folder / "chat_template.jinja").write_text(template, "utf-8")
        kinds = (
            ("base.modules.transformer.Transformer", ""),
            ("cross_encoder.modules.logit_score.LogitScore", "1_LogitScore"),
        )
        modules = [{"type": f"sentence_transformers.{kind}", "path": path} for kind, path in kinds]
        files: dict[str, Any] = {
            "modules.json": modules,
            "1_LogitScore/config.json": {**ids, "module_input_name": "causal_logits"},
            "sentence_bert_config.json": {"processing_kwargs": {"chat_template": kwargs or {}}},
            "config_sentence_transformers.json": {"activation_fn": IDENTITY, **settings},
        }
        for name, content in files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(json.dumps(content), "utf-8")
        return str(folder)

    return save


def logits(tiny: Tiny, prompt: str) -> torch.Tensor:
    """[vocabulary]: what plain transformers gives after a prompt."""
    tokenizer = Tokenizer.from_file(str(Path(tiny("qwen3_reranker")) / "tokenizer.json"))
    net, _ = more_checkpoints.native("qwen3_reranker")
    with torch.inference_mode():
        return net(input_ids=torch.tensor([tokenizer.encode(prompt).ids])).logits[0, -1]


def scores(folder: str, **options: Any) -> list[float]:
    with Scorer(folder, dtype="float32", **options) as scorer:
        found: list[float] = scorer.score(QUERIES, DOCUMENTS).tolist()
        return found


def test_the_score_is_the_difference_of_two_logits_at_the_end_of_the_saved_template(saved: Saved, tiny: Tiny) -> None:
    folder = saved(FLAT, {"true_token_id": TRUE, "false_token_id": FALSE})
    found = [logits(tiny, f"<|im_start|>user\n{q}\n{d}<|im_end|>\n") for q, d in zip(QUERIES, DOCUMENTS, strict=True)]

    np.testing.assert_allclose(scores(folder), [float(each[TRUE] - each[FALSE]) for each in found], atol=1e-5)


def test_one_token_gives_its_own_logit(saved: Saved, tiny: Tiny) -> None:
    folder = saved(FLAT, {"true_token_id": TRUE, "false_token_id": None})
    found = [logits(tiny, f"<|im_start|>user\n{q}\n{d}<|im_end|>\n") for q, d in zip(QUERIES, DOCUMENTS, strict=True)]

    np.testing.assert_allclose(scores(folder), [float(each[TRUE]) for each in found], atol=1e-5)


def test_the_default_prompt_is_a_system_message_and_the_saved_variables_are_given(saved: Saved, tiny: Tiny) -> None:
    settings = {"prompts": {"strict": "Be strict."}, "default_prompt_name": "strict"}
    kwargs = {"add_generation_prompt": True, "restore_suffix": True}
    folder = saved(FLAT, {"true_token_id": TRUE, "false_token_id": FALSE}, kwargs, **settings)
    before, after = (
        "<|im_start|>system\nBe strict.<|im_end|>\n<|im_start|>user\n",
        "<|im_end|>\n<|im_start|>assistant\n",
    )
    found = [logits(tiny, f"{before}{q}\n{d}{after}") for q, d in zip(QUERIES, DOCUMENTS, strict=True)]

    np.testing.assert_allclose(scores(folder), [float(each[TRUE] - each[FALSE]) for each in found], atol=1e-5)


def test_another_saved_prompt_is_taken_by_its_name(saved: Saved, tiny: Tiny) -> None:
    folder = saved(FLAT, {"true_token_id": TRUE, "false_token_id": FALSE}, prompts={"mild": "Be mild."})
    before = "<|im_start|>system\nBe mild.<|im_end|>\n<|im_start|>user\n"
    found = [logits(tiny, f"{before}{q}\n{d}<|im_end|>\n") for q, d in zip(QUERIES, DOCUMENTS, strict=True)]
    expected = [float(each[TRUE] - each[FALSE]) for each in found]

    np.testing.assert_allclose(scores(folder, query_prompt_name="mild"), expected, atol=1e-5)


def test_a_template_that_reads_messages_in_parts_gets_them_in_parts(saved: Saved, tiny: Tiny) -> None:
    """And loses one newline at its end, as everywhere else."""
    folder = saved(PARTS, {"true_token_id": TRUE, "false_token_id": FALSE})
    found = [logits(tiny, f"{q}\n{d}<|im_end|>") for q, d in zip(QUERIES, DOCUMENTS, strict=True)]

    np.testing.assert_allclose(scores(folder), [float(each[TRUE] - each[FALSE]) for each in found], atol=1e-5)


def test_the_prompt_of_a_classifier_stands_before_its_queries(tiny: Tiny, tmp_path: Path) -> None:
    folder = tmp_path / "classifier"
    shutil.copytree(tiny("bert_ce"), folder)
    saved = {"prompts": {"q": "find: "}, "default_prompt_name": "q"}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(saved), "utf-8")

    with Scorer(tiny("bert_ce"), dtype="float32") as plain:
        expected = plain.score([f"find: {query}" for query in QUERIES], DOCUMENTS)
    np.testing.assert_array_equal(scores(str(folder)), expected)


def test_the_base_models_own_template_is_not_taken_for_a_rerankers(tiny: Tiny, tmp_path: Path) -> None:
    """It knows no roles query and document; without one of its own the tokenizer's pair is read."""
    folder = tmp_path / "chat"
    shutil.copytree(tiny("llama_pairs"), folder)
    template = "{% for message in messages %}{{ message.role }}: {{ message.content }}{% endfor %} answers the query"
    (folder / "chat_template.jinja").write_text(template, "utf-8")

    with Scorer(tiny("llama_pairs"), dtype="float32") as plain:
        expected = plain.score(QUERIES, DOCUMENTS)
    np.testing.assert_array_equal(scores(str(folder)), expected)


def test_untied_output_embeddings_that_are_not_there_are_missed(saved: Saved) -> None:
    """The rows of the input's table would give scores that look like any others."""
    folder = Path(saved(FLAT, {"true_token_id": TRUE, "false_token_id": FALSE}))
    config = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}), "utf-8")
    tensors = load_file(folder / "model.safetensors")
    save_file(
        {name: tensor for name, tensor in tensors.items() if name != "lm_head.weight"}, folder / "model.safetensors"
    )

    with pytest.raises(CheckpointError, match=r"lacks lm_head\.weight"):
        Scorer(str(folder), dtype="float32")
