"""The text before a cross-encoder's queries is part of the prompt: no length cuts it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from batchscore import Scorer
from batchscore.errors import CheckpointError, UsageError
from batchscore.types import CUT_DOCUMENT, CUT_QUERY, Cells, Pairs

Tiny = Callable[[str], str]
PAIR = Pairs(Cells.of(["the cat " * 10]), Cells.of(["a dog " * 10]))
RERANKER = {"config": "qwen3-reranker"}


def tokens(model: str, **options: Any) -> tuple[list[str], int]:
    """(the tokens of PAIR, its cut bits)."""
    with Scorer(model, dtype="float32", **options) as scorer:
        work = scorer.batcher.tokenize(PAIR)
        return scorer.batcher._runner.reader.tokenizer.describe(work.items.ids.tolist()), int(work.cut[0])  # type: ignore[attr-defined]


@pytest.mark.parametrize("max_length", range(6, 30))
def test_a_pair_keeps_the_prompt_before_its_query(tiny: Tiny, max_length: int) -> None:
    found, cut = tokens(tiny("bert_ce"), query_prompt="find: ", max_length=max_length)

    assert found[:3] == ["[CLS]", "find", ":"]
    assert len(found) == max_length
    assert cut & CUT_DOCUMENT
    assert bool(cut & CUT_QUERY) == (max_length < 25)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_template_keeps_the_prompt_before_its_query(tiny: Tiny, side: str) -> None:
    whole, _ = tokens(tiny("qwen3_reranker"), **RERANKER, query_prompt="find: ")
    longest = len(whole)
    for max_length in range(longest - 1, longest - 60, -7):
        found, cut = tokens(
            tiny("qwen3_reranker"), **RERANKER, query_prompt="find: ", max_length=max_length, truncation_side=side
        )
        text = "".join(found)
        assert "find:" in text
        assert len(found) <= max_length
        assert cut


def test_a_prompt_that_leaves_no_room_is_refused(tiny: Tiny) -> None:
    with pytest.raises(UsageError, match="the prompt 'the cat the cat' leaves no room for text in max_length 7"):
        tokens(tiny("bert_ce"), query_prompt="the cat the cat", max_length=7)


@pytest.mark.parametrize(
    ("overrides", "kind", "message"),
    [
        ({"classifier_from_token": "No"}, UsageError, "'No' must be a list of tokens"),
        ({"classifier_from_token": 5}, UsageError, "5 must be a list of tokens"),
        ({"classifier_from_token": [-1]}, CheckpointError, "the answer token -1 is not in the vocabulary"),
    ],
)
def test_answer_tokens_that_cannot_be_meant_are_refused(
    tiny: Tiny, overrides: dict[str, Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        Scorer(tiny("qwen3_reranker"), dtype="float32", hf_overrides=overrides)


@pytest.mark.parametrize(
    "options",
    [{"chat_template": "none"}, {"score_type": "bi-encoder"}, {"convert": "embed"}, {"use_activation": False}],
)
def test_a_listwise_model_takes_no_other_prompt_or_readout(tiny: Tiny, options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="this model reads all documents|a listwise model has a prompt"):
        Scorer(tiny("jina_listwise"), dtype="float32", **options)


def test_answer_tokens_a_user_names_win_over_a_stored_head(tiny: Tiny) -> None:
    """Those of a config file give way to it."""
    query, document = "what is a bird", "the bird is small"
    swapped = {"classifier_from_token": ["yes", "no"]}
    scores = []
    for options in ({}, {"hf_overrides": swapped}):
        with Scorer(tiny("qwen3_reranker_seq_cls"), dtype="float32", **RERANKER, **options) as scorer:  # type: ignore[arg-type]
            scores.append(float(scorer.score(query, document)[0]))

    assert scores[0] != pytest.approx(scores[1], abs=1e-3)
