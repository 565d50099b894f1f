"""`inspect` and `models` on the command line."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from batchscore import Scorer
from batchscore.cli.main import app
from batchscore.models.arch import ARCHITECTURES
from batchscore.types import Cells, Pairs

Tiny = Callable[[str], str]
QUERY, DOCUMENT = "what is a bird", "the bird is small, (Paper)"


def run(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == code, result.output
    return result.stdout


def inspected(model: str, *options: str, code: int = 0) -> dict[str, Any]:
    """What --json prints about a sample pair."""
    found: dict[str, Any] = json.loads(
        run("inspect", model, "--json", "--query", QUERY, "--document", DOCUMENT, *options, code=code)
    )
    return found


ROWS: list[tuple[str, dict[str, Any]]] = [
    ("bert_pairs", {}),
    ("qwen3_reranker", {"config": "qwen3-reranker"}),
    ("jina_listwise", {}),
    ("colbert", {}),
    ("bert_splade", {}),
    ("jina_v3", {"task": "retrieval"}),
    ("gritlm", {"config": "gritlm"}),
    ("bert_mean", {"compat": "vllm"}),
]


def flags(options: dict[str, Any]) -> list[str]:
    return [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", str(value))]


@pytest.mark.parametrize(("name", "options"), ROWS)
def test_the_sample_pair_has_the_tokens_that_a_run_reads(tiny: Tiny, name: str, options: dict[str, Any]) -> None:
    found = inspected(tiny(name), *flags(options))
    with Scorer(tiny(name), dtype="float32", **options) as scorer:
        items = scorer.batcher.tokenize(Pairs(Cells.of([QUERY]), Cells.of([DOCUMENT]))).items

    assert [token for sequence in found["sample"] for token in sequence["ids"]] == items.ids.tolist()
    assert all(len(sequence["ids"]) == len(sequence["tokens"]) for sequence in found["sample"])
    counted = [kept for sequence in found["sample"] for kept in sequence.get("counted", [])]
    assert counted == ([] if items.columns.get("keep") is None else items.columns.get("keep").tolist())


@pytest.mark.parametrize(("name", "options"), ROWS)
def test_the_spec_is_that_of_a_run_and_every_field_has_a_source(tiny: Tiny, name: str, options: dict[str, Any]) -> None:
    found = inspected(tiny(name), *flags(options))
    with Scorer(tiny(name), dtype="float32", **options) as scorer:
        assert found["spec"] == json.loads(json.dumps(scorer.spec.describe()))

    assert all(entry["source"] for entry in found["spec"].values())
    assert found["problems"] == []


@pytest.mark.parametrize(("name", "options"), ROWS)
def test_every_tensor_is_used_or_unused(tiny: Tiny, name: str, options: dict[str, Any]) -> None:
    tensors = inspected(tiny(name), *flags(options))["tensors"]

    assert tensors["used"]
    assert not set(tensors["used"]) & set(tensors["unused"])


def test_a_template_shows_its_exact_prompt(tiny: Tiny) -> None:
    prompt = inspected(tiny("qwen3_reranker"), "--config", "qwen3-reranker")["prompt"]["pair"]

    assert f"<Query>: {QUERY}\n<Document>: {DOCUMENT}<|im_end|>\n" in prompt
    assert prompt.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")


def test_a_person_sees_sources_special_tokens_and_what_does_not_count(tiny: Tiny) -> None:
    text = run("inspect", tiny("colbert"), "--query", QUERY, "--document", DOCUMENT)

    assert re.search(r"similarity +!?= 'maxsim'  \(score type\)", text)
    assert "[CLS]:2 [unused0]:" in text
    assert re.search(r"\(,:\d+\) \(\(:\d+\) paper:\d+ \(\):\d+\)", text)  # the skip list
    assert "tokens in brackets are read but not compared" in text
    assert text.endswith("ready: a run would start\n")


@pytest.mark.parametrize(
    ("name", "message", "code"),
    [
        ("bert_missing_weight", "lacks encoder.layer.1.output.dense.weight", 4),
        ("bert_ce_headless", "has no score head: classifier.weight is not among its weights", 4),
        ("bert_ce_two_labels", "its classifier has 2 labels", 4),
        ("bert_bad_pooling", "asks for pooling attention", 4),
        ("bert_missing_dense", "module '2_Dense' has no weights", 4),
    ],
)
def test_what_would_fail_is_told_with_the_exit_code_of_a_run(tiny: Tiny, name: str, message: str, code: int) -> None:
    problems = inspected(tiny(name), code=code)["problems"]

    assert len(problems) == 1
    assert message in problems[0]["message"]
    assert f"a run would fail\n  {problems[0]['message']}" in run("inspect", tiny(name), code=code)


def test_a_traceback_is_shown_only_on_request(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(shutil.copytree(tiny("bert_mean"), tmp_path / "copy"))
    (folder / "model.safetensors").write_bytes(b"damaged")
    quiet = CliRunner().invoke(app, ["inspect", str(folder)])
    monkeypatch.setenv("BATCHSCORE_DEBUG", "1")
    verbose = CliRunner().invoke(app, ["inspect", str(folder)])

    assert "model.safetensors is damaged" in quiet.stdout
    assert quiet.stderr == ""
    assert verbose.stdout == quiet.stdout
    assert "Traceback" in verbose.stderr
    assert "SafetensorError" in verbose.stderr  # the cause, not the message alone


def test_an_option_without_effect_would_fail_too(tiny: Tiny) -> None:
    (problem,) = inspected(tiny("bert_ce"), "--similarity", "dot", code=2)["problems"]

    assert "--similarity 'dot'" in problem["message"]


def test_weights_are_not_read(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("weights are read")

    monkeypatch.setattr("safetensors.torch.load_file", refuse)
    assert inspected(tiny("qwen3_reranker"), "--config", "qwen3-reranker")["problems"] == []


# ---- models


def test_every_row_of_the_registry_is_in_the_table() -> None:
    rows = json.loads(run("models", "--format", "json"))

    assert [row["architecture"] for row in rows][: len(ARCHITECTURES)] == list(ARCHITECTURES)
    assert {row["score type"] for row in rows} == {"cross-encoder", "bi-encoder", "late-interaction"}
    assert len(run("models").splitlines()) == len(rows) + 1


def test_a_tokenizer_of_another_model_would_fail(tiny: Tiny) -> None:
    (problem,) = inspected(tiny("bert_mean"), "--tokenizer", tiny("gritlm"), code=4)["problems"]

    assert "its embeddings end at" in problem["message"]


def test_a_text_without_tokens_would_fail(tiny: Tiny) -> None:
    text = run("inspect", tiny("gpt2_lm"), "--document", "", code=5)

    assert "the sample pair: the text has no tokens for this model" in text
