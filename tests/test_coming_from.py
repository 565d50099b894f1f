"""What docs/coming_from.md says of sentence-transformers' scores, and that its commands and calls exist.

Pairs are up to 60 words and models read 64 tokens, so that rules of cutting show. Everything is in float32.
"""

from __future__ import annotations

import ast
import json
import re
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest
import torch
from sentence_transformers import CrossEncoder, MultiVectorEncoder, SentenceTransformer, SparseEncoder
from sentence_transformers.cross_encoder.evaluation import CrossEncoderRerankingEvaluator
from typer.main import get_command

import checkpoints
from batchscore import Scorer, rerank_files
from batchscore.cli.main import app
from batchscore.engine.setup import ScorerOptions
from batchscore.evaluation.evaluate import evaluate_runs

PAGE = (Path(__file__).parents[1] / "docs" / "coming_from.md").read_text("utf-8")
QUERIES, DOCUMENTS = checkpoints.pairs(42)
Scores = Sequence[float]


def predicted(path: str, **options: Any) -> Scores:
    model = CrossEncoder(path, device="cpu")
    return model.predict(list(zip(QUERIES, DOCUMENTS, strict=True)), show_progress_bar=False, **options).tolist()


def logits(path: str) -> Scores:
    return predicted(path, activation_fn=torch.nn.Identity())


def compared(kind: type[SentenceTransformer]) -> Callable[[str], Scores]:
    def scores(path: str) -> Scores:
        model = kind(path, device="cpu")
        found: Scores = model.similarity_pairwise(
            model.encode_query(QUERIES), model.encode_document(DOCUMENTS)
        ).tolist()
        return found

    return scores


def encoded_alike(path: str) -> Scores:
    model = SentenceTransformer(path, device="cpu")
    found: Scores = model.similarity_pairwise(model.encode(QUERIES), model.encode(DOCUMENTS)).tolist()
    return found


LONGEST: dict[str, Any] = {"truncation": "longest-first"}
VECTORS, MATRICES, SPARSE = compared(SentenceTransformer), compared(MultiVectorEncoder), compared(SparseEncoder)


@pytest.mark.parametrize(
    ("name", "theirs", "options"),
    [
        ("bert_ce_default", predicted, LONGEST),
        ("bert_ce", predicted, LONGEST),  # its activation is the identity
        ("xlmr_ce", logits, LONGEST | {"use_activation": False}),
        ("bert_ce_regression", predicted, LONGEST | {"hf_overrides": {"problem_type": None}}),
        ("bert_mean", VECTORS, {}),
        ("bert_mean", encoded_alike, {"no_prompts": True}),
        ("bert_dot", VECTORS, {"similarity": "dot"}),
        ("bert_no_prompt_pooling", VECTORS, {"document_prompt": ""}),  # names a `passage`
        ("modern_colbert", MATRICES, {}),
        ("bert_splade", SPARSE, {"similarity": "dot"}),
    ],
)
def test_these_options_give_the_scores_of_sentence_transformers(
    name: str, theirs: Callable[[str], Scores], options: dict[str, Any], tiny: Callable[[str], str]
) -> None:
    with Scorer(tiny(name), dtype="float32", **options) as scorer:
        ours = scorer.score(QUERIES, DOCUMENTS).tolist()

    assert ours == pytest.approx(theirs(tiny(name)), rel=1e-5, abs=2e-5)


@pytest.mark.parametrize(
    ("name", "theirs"),
    [("bert_ce_default", predicted), ("xlmr_ce", logits), ("bert_dot", VECTORS), ("bert_no_prompt_pooling", VECTORS)],
)
def test_without_them_scores_differ(name: str, theirs: Callable[[str], Scores], tiny: Callable[[str], str]) -> None:
    with Scorer(tiny(name), dtype="float32") as scorer:
        assert np.abs(scorer.score(QUERIES, DOCUMENTS) - theirs(tiny(name))).max() > 1e-2


@pytest.mark.parametrize("listed", ["negative", "documents"])
def test_their_samples_are_candidates_and_judgements(listed: str, tiny: Callable[[str], str], here: Path) -> None:
    """Also where a positive is not among the documents."""
    texts = [text for text in dict.fromkeys(DOCUMENTS) if text]
    samples: list[dict[str, Any]] = [
        {"query": query, "positive": texts[start : start + 2], listed: texts[start + (listed == "negative") * 2 :][:6]}
        for start, query in enumerate(dict.fromkeys(QUERIES[:20]))
    ]
    if listed == "documents":
        samples[0]["positive"].append("a text that nobody retrieved")
    Path("samples.jsonl").write_text("".join(json.dumps(sample) + "\n" for sample in samples), "utf-8")
    path = tiny("bert_ce_default")

    rerank_files(path, "samples.jsonl", "ranked.parquet", dtype="float32", truncation="longest-first")
    (run,) = evaluate_runs(["ranked.parquet"], "samples.jsonl", metrics="AP RR@10 nDCG@10").runs
    model = CrossEncoder(path, device="cpu")
    theirs = CrossEncoderRerankingEvaluator(samples, always_rerank_positives=False, write_csv=False)(model)

    expected = [theirs[name] for name in ("map", "mrr@10", "ndcg@10")]
    assert [measure.value for measure in run.measures] == pytest.approx(expected, abs=1e-6)


# ---- what it names


def test_the_command_line_takes_every_command_of_the_page() -> None:
    group: Any = get_command(app)
    commands = re.findall(r"`(batchscore [^`\n]* [^`\n]*)`", PAGE)
    for command in commands:
        name, *arguments = shlex.split(command)[1:]
        group.commands[name].make_context(name, arguments, parent=group.make_context("batchscore", [name]))

    assert len(commands) > 30


def test_scorer_takes_every_call_of_the_page() -> None:
    calls = [ast.parse(call, mode="eval").body for call in re.findall(r"`(Scorer\([^`]*)`", PAGE)]
    known = {*get_type_hints(ScorerOptions)}
    for call in calls:
        called = next(node for node in ast.walk(call) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name))
        assert {keyword.arg for keyword in called.keywords} <= known
        methods = [node.attr for node in ast.walk(call) if isinstance(node, ast.Attribute)]
        assert all(hasattr(Scorer, method) for method in methods)

    assert len(calls) > 20
