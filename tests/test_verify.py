"""`batchscore verify`: the same pairs through the model's own library."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from batchscore import Scorer
from batchscore.cli.main import app
from batchscore.errors import CheckpointError, MissingDependencyError, UsageError
from batchscore.models import reference as references
from batchscore.verification.pairs import built_in_pairs
from batchscore.verification.result import Comparison, Verification
from batchscore.verification.verify import verify_model
from test_logit_score import FLAT

Tiny = Callable[[str], str]
NUMBERS: dict[str, Any] = {"dtype": "float32", "device": "cpu"}
with_library = pytest.mark.skipif(find_spec("sentence_transformers") is None, reason="needs sentence-transformers")


def verified(model: str, **options: Any) -> Verification:
    verification = verify_model(model, **NUMBERS, **options)
    assert verification.problem is None, (verification.problem, verification.notes)
    return verification


def run(*arguments: str, code: int = 0) -> tuple[str, str]:
    result = CliRunner().invoke(app, ["verify", *arguments, "--device", "cpu"])
    assert result.exit_code == code, result.output
    return result.stdout, result.stderr


def reranker_of(folder: str, target: Path, template: str = "") -> str:
    """A causal reranker as sentence-transformers 6 saves it."""
    from sentence_transformers import CrossEncoder
    from sentence_transformers.cross_encoder.modules import LogitScore, Transformer

    shutil.copytree(folder, target / "lm")
    if template:
        (target / "lm/chat_template.jinja").write_text(template, "utf-8")
    body = Transformer(str(target / "lm"), transformer_task="text-generation")
    model = CrossEncoder(modules=[body, LogitScore(true_token_id=50, false_token_id=40)], device="cpu")
    model.save_pretrained(str(target / "reranker"))
    return str(target / "reranker")


# ---- equal scores


@with_library
@pytest.mark.parametrize(
    ("name", "model_class", "count"),
    [
        ("bert_ce_tanh", "CrossEncoder", 27),
        ("xlmr_ce", "CrossEncoder", 27),
        ("distilbert_pairs", "CrossEncoder", 27),
        ("modernbert_pairs_mean", "CrossEncoder", 26),
        ("qwen3_pairs", "CrossEncoder", 29),
        ("mistral_pairs", "CrossEncoder", 28),  # its prompt is one text after the other
        ("bert_dense", "SentenceTransformer", 30),
        ("bert_no_prompt_pooling", "SentenceTransformer", 30),
        ("roberta_mean", "SentenceTransformer", 30),
        ("bert_splade", "SparseEncoder", 30),
        ("colbert", "MultiVectorEncoder", 30),
        ("lfm2_colbert", "MultiVectorEncoder", 30),
    ],
)
def test_scores_are_those_of_sentence_transformers(tiny: Tiny, name: str, model_class: str, count: int) -> None:
    verification = verified(tiny(name))

    assert verification.reference is not None
    assert (verification.reference.library, verification.reference.model_class) == (
        "sentence-transformers",
        model_class,
    )
    assert verification.to_reference is not None
    assert verification.to_reference.count == count
    assert max(comparison.worst[0] for comparison in verification.comparisons) < 1e-5


@pytest.mark.parametrize(
    ("name", "model_class", "options"),
    [
        ("bert_plain", "AutoModel", {}),
        ("bge_m3", "AutoModel", {"score_type": "late-interaction"}),
        ("gpt2_lm", "AutoModel", {"max_length": 40}),
        ("mistral_lm", "AutoModel", {"reference": "transformers"}),  # transformers 5 loses its EOS
        ("bert_dense", "AutoModel", {"reference": "transformers", "dimensions": 8, "similarity": "dot"}),
        ("xlmr_lower", "AutoModel", {"reference": "transformers"}),
        ("bert_splade_by_name", "AutoModelForMaskedLM", {}),
        ("roberta_pairs", "AutoModelForSequenceClassification", {"reference": "transformers"}),
        ("qwen3_pairs", "AutoModelForSequenceClassification", {"chat_template": "none"}),
        ("qwen3_reranker", "AutoModelForCausalLM", {"config": "qwen3-reranker"}),
    ],
)
def test_scores_are_those_of_plain_transformers(
    tiny: Tiny, name: str, model_class: str, options: dict[str, Any]
) -> None:
    verification = verified(tiny(name), **options)

    assert verification.reference is not None
    assert (verification.reference.library, verification.reference.model_class) == ("transformers", model_class)
    assert verification.to_reference is not None
    assert verification.to_reference.count >= 25
    assert max(comparison.worst[0] for comparison in verification.comparisons) < 1e-5


@with_library
@pytest.mark.parametrize("template", ["", FLAT])
def test_a_saved_reranker_with_answer_tokens_is_compared(tiny: Tiny, tmp_path: Path, template: str) -> None:
    verification = verified(reranker_of(tiny("qwen3_reranker"), tmp_path, template))

    assert verification.reference is not None
    assert verification.reference.model_class == "CrossEncoder"
    assert verification.to_reference is not None
    assert verification.to_reference.count >= 25


@with_library
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("bert_mean", {"max_length": 16}),
        ("bert_mean", {"query_prompt": "find: ", "document_prompt": "text: "}),
        ("bert_dot", {"similarity": "dot", "dimensions": 8}),
        ("bert_ce", {"max_length": 20, "truncation": "longest-first"}),
        ("bert_ce", {"query_prompt": "find: "}),
    ],
)
def test_the_reference_follows_options(tiny: Tiny, name: str, options: dict[str, Any]) -> None:
    verification = verified(tiny(name), **options)
    assert verification.reference is not None
    assert verification.reference.library == "sentence-transformers"
    assert verification.to_reference is not None
    assert verification.notes == []
    with Scorer(tiny(name), **NUMBERS) as scorer:  # without them, scores are others
        pairs = verification.pairs
        found = scorer.score([pair.query for pair in pairs], [pair.document for pair in pairs])
        assert np.abs(found - verification.to_reference.found).max() > 1e-3


# ---- other scores


@with_library
def test_a_wrong_pooling_ends_with_9_and_names_the_pair(tiny: Tiny) -> None:
    out, err = run(tiny("bert_mean"), "--pooler-config", '{"pooling_type": "CLS"}', code=9)

    assert "error: worst difference 1.4e-01 (pair 25, HTML, JSON and code) against sentence-transformers" in err
    assert "the tolerance is 0.0001" in err
    assert "note       not passed on to the reference, which reads the checkpoint's own files: --pooler-config" in out
    assert "the reference ranks the other way round: pairs" in out
    assert "verified" not in out


@with_library
def test_a_wider_tolerance_accepts_what_a_narrow_one_refuses(tiny: Tiny) -> None:
    verification = verify_model(tiny("bert_mean"), tolerance=0.0, **NUMBERS)

    assert verification.problem is not None
    assert replace(verification, tolerance=1e-5).problem is None


@with_library
def test_other_tokens_are_told_from_another_model(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"pooler_config": {"pooling_type": "CLS"}}
    same = verify_model(tiny("bert_mean"), **NUMBERS, **options)
    monkeypatch.setattr(references, "_ids_of", lambda tokenizer: lambda text: [0] if "<p>" in text else [])
    other = verify_model(tiny("bert_mean"), **NUMBERS, **options)

    assert same.notes[-1] == "the tokens of the texts are the same; what follows them differs"
    assert other.notes[-1].startswith("the reference's tokenizer makes other tokens of the texts of pair")


# ---- no reference


def test_without_sentence_transformers_the_exit_code_is_3(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    _, err = run(tiny("bert_ce"), code=3)

    assert "error: the reference for this model is sentence-transformers, which is not installed" in err
    assert "hint: pip install 'batchscore[verify]', or pass --reference transformers" in err
    with pytest.raises(MissingDependencyError):
        verify_model(tiny("bert_ce"), reference="sentence-transformers", **NUMBERS)
    assert "verified: worst difference" in run(tiny("bert_ce"), "--reference", "transformers")[0]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("xlmr_flash_pairs", "in it and would make it up"),  # the names of its tensors are not those of transformers
        ("qwen2_pairs_with_bias", "transformers drops its layer score"),
        ("jina_listwise", "it has no listwise models"),
    ],
)
def test_a_library_that_reads_another_model_is_no_reference(tiny: Tiny, name: str, reason: str) -> None:
    with pytest.raises((CheckpointError, UsageError), match=reason):
        verify_model(tiny(name), reference="transformers", **NUMBERS)


@with_library
def test_without_any_reference_the_exit_code_is_9_unless_none_is_wanted(tiny: Tiny) -> None:
    out, err = run(tiny("jina_v3"), "--task", "retrieval", code=9)

    assert "error: there is no reference to compare with: sentence-transformers: it does not choose" in err
    assert "padded vs flat" in out
    last = run(tiny("jina_v3"), "--task", "retrieval", "--reference", "none")[0].splitlines()[-1]
    assert last.startswith("verified: worst difference ")
    assert last.endswith(" between batchscore's layouts, without a reference")


def test_scores_that_differ_on_purpose_are_refused(tiny: Tiny) -> None:
    _, err = run(tiny("bert_ce"), "--compat", "vllm", code=2)

    assert "error: --compat vllm asks for other scores than those of the model's own library" in err
    with pytest.raises(UsageError, match="it has no ColBERT markers"):
        verify_model(tiny("colbert"), reference="transformers", **NUMBERS)
    with pytest.raises(UsageError, match="it cannot follow --query-length"):
        verify_model(tiny("colbert"), reference="sentence-transformers", query_length=8, **NUMBERS)


# ---- what is printed


@with_library
def test_the_last_line_stands_on_its_own_and_json_has_every_score(tiny: Tiny) -> None:
    from sentence_transformers import __version__

    lines = run(tiny("bert_ce"))[0].splitlines()
    found = json.loads(run(tiny("bert_ce"), "--json")[0])

    assert lines[-1].startswith("verified: worst difference ")
    assert lines[-1].endswith(f"against sentence-transformers {__version__}")
    assert lines[1] == f"reference  sentence-transformers {__version__} (CrossEncoder)"
    assert "left out   pairs 7, 8, 29: the reference cuts texts that are too long by another rule" in lines
    assert found["verified"] is True
    assert list(found["comparisons"]) == ["sentence-transformers vs batchscore", "padded vs flat", "single vs batch"]
    scores = found["comparisons"]["sentence-transformers vs batchscore"]["scores"]
    assert [row + 1 for row, pair in enumerate(scores) if pair is None] == [7, 8, 29]
    assert len(found["pairs"]) == 30


def test_a_text_that_has_no_score_is_left_out(tiny: Tiny) -> None:
    out, _ = run(tiny("gpt2_lm"), "--reference", "transformers")

    assert "left out   pairs 9, 10, 11: batchscore does not score it: the text has no tokens for this model" in out
    assert "order      as the reference ranks the pairs" in out


def test_there_are_thirty_pairs_and_some_are_longer_than_the_limit() -> None:
    pairs = built_in_pairs(512)

    assert len(pairs) == 30
    assert len({pair.name for pair in pairs}) == 30
    assert max(len(pair.document.split()) for pair in pairs) > 512
    assert max(len(pair.document.split()) for pair in built_in_pairs(32_768)) < 1_100


def test_a_difference_is_relative_to_scores_above_1() -> None:
    expected, found = np.array([40.0, 0.0, np.nan]), np.array([40.0, 0.004, 1.0])

    assert Comparison("", expected, found).worst == (pytest.approx(1e-4), 1)
    assert Comparison("", expected / 80, found / 80).worst == (pytest.approx(5e-5), 1)
    assert Comparison("", expected, found).count == 2
    assert Comparison("", expected[2:], found[2:]).worst == (0.0, 0)
