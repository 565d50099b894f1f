"""Scores of the reference libraries, stored beside tiny checkpoints of each architecture in a folder of fixtures.

The folder is no part of the repository; the environment variable BATCHSCORE_PARITY names it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from batchscore import Scorer
from batchscore.types import Pairs, Texts

pytestmark = pytest.mark.skipif(
    "BATCHSCORE_PARITY" not in os.environ, reason="BATCHSCORE_PARITY does not name a folder of parity fixtures"
)

CLOSE = 1e-5

CROSS_ENCODERS = ["bert_default", "bert_minilm", "bert_st4", "roberta_quora", "xlmr_bge_m3"]
CASES = """short_pos short_neg long_doc long_query unicode empty_doc empty_query newlines special_text trunc""".split()
BI_ENCODERS = ["bert", "roberta", "roberta_mlm", "xlmr_bge_m3", "xlmr_me5", "xlmr_me5_prompts"]
EXTRAS = [  # checkpoint and the name of its scores in extras.json, of raw texts
    ("x_bin", "bin"),
    ("x_dense", "dense_tanh"),
    ("x_wmean", "weightedmean"),
    ("x_max", "max"),
    ("x_sqrt", "mean_sqrt_len"),
    ("x_legacy", "legacy_names"),
    ("x_lower", "do_lower_case"),
]
RAW = {"query_prompt": "", "document_prompt": ""}

Scorers = Callable[..., Scorer]


@pytest.fixture(scope="module")
def scorer() -> Iterator[Scorers]:
    """A float32 Scorer by family, row and options, loaded once; it forwards whatever it is asked."""
    loaded: dict[tuple[Any, ...], Scorer] = {}

    def load(family: str, row: str, **options: Any) -> Scorer:
        key = family, row, *sorted(options.items())
        if key not in loaded:
            model = str(parity() / family / "ckpt" / row)
            loaded[key] = Scorer(model, dtype="float32", cache_mb=0, **saved_options(family, row), **options)
        return loaded[key]

    yield load
    for each in loaded.values():
        each.close()


def parity() -> Path:
    return Path(os.environ["BATCHSCORE_PARITY"])


def read(file: str) -> Any:
    return json.loads((parity() / file).read_text("utf-8"))


def saved_options(family: str, row: str) -> dict[str, Any]:
    """What a user passes for the row's faithful score."""
    options: dict[str, Any] = read("options.json")[family].get(row, {})
    return options


def matrix(scorer: Scorer, queries: list[str], documents: list[str]) -> np.ndarray:
    """float32 [queries, documents]."""
    scores = scorer.score([q for q in queries for _ in documents], documents * len(queries))
    return scores.reshape(len(queries), len(documents))


flat_and_padded = pytest.mark.parametrize("padded", [False, True], ids=["flat", "padded"])


@pytest.mark.parametrize("row", CROSS_ENCODERS)
def test_every_case_of_a_cross_encoder_is_tried(row: str) -> None:
    assert [case["id"] for case in read(f"ce/expected/{row}.json")["cases"]] == CASES


@flat_and_padded
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("row", CROSS_ENCODERS)
def test_a_cross_encoder_reads_the_same_tokens_and_gives_the_same_logit_and_score(
    scorer: Scorers, row: str, case: str, padded: bool
) -> None:
    expected = next(each for each in read(f"ce/expected/{row}.json")["cases"] if each["id"] == case)
    loaded = scorer("ce", row, padded=padded, max_length=expected.get("max_length"), truncation="longest-first")
    work = loaded.tokenize(Pairs(Texts.of([expected["query"]]), Texts.of([expected["document"]])))
    scores = loaded.score_work(work)
    assert work.items.ids.tolist() == expected["input_ids"]
    assert scores.logit is not None
    assert scores.logit[0] == pytest.approx(expected["logit"], abs=CLOSE)
    assert scores.score[0] == pytest.approx(expected["score"], abs=CLOSE)


@flat_and_padded
@pytest.mark.parametrize("row", BI_ENCODERS)
def test_a_bi_encoder_gives_the_cosines_of_its_faithful_engine(scorer: Scorers, row: str, padded: bool) -> None:
    expected = read(f"bi/expected/{row}.json")
    cosines = expected["engines"][read("bi/expected/index.json")[row]["faithful"]]
    found = matrix(scorer("bi", row, padded=padded), expected["queries"], expected["documents"])
    np.testing.assert_allclose(found, cosines, rtol=0, atol=CLOSE)


@flat_and_padded
@pytest.mark.parametrize(("row", "name"), EXTRAS)
def test_a_variant_of_files_or_modules_gives_the_cosines_of_sentence_transformers(
    scorer: Scorers, row: str, name: str, padded: bool
) -> None:
    texts = read("bi/expected/bert.json")
    cosines = read("bi/expected/extras.json")[name]["st"]
    found = matrix(scorer("bi", row, padded=padded, **RAW), texts["queries"], texts["documents"])
    np.testing.assert_allclose(found, cosines, rtol=0, atol=CLOSE)


def test_a_document_past_the_limit_is_cut_as_sentence_transformers_cuts_it(scorer: Scorers) -> None:
    texts, expected = read("bi/expected/bert.json"), read("bi/expected/extras.json")["trunc"]
    long = " ".join([texts["documents"][3]] * 4)
    loaded = scorer("bi", "x_trunc", **RAW)
    assert loaded.tokenize(Pairs(Texts.of(["a"]), Texts.of([long]))).items.lengths[1] == expected["n_ids"] == 512
    found = matrix(loaded, texts["queries"], [long, texts["documents"][0]])
    np.testing.assert_allclose(found, expected["st.no_prompts"], rtol=0, atol=CLOSE)


def test_a_dot_product_is_that_of_sentence_transformers(scorer: Scorers) -> None:
    texts, expected = read("bi/expected/bert.json"), read("bi/expected/extras.json")["dot"]
    found = matrix(scorer("bi", "x_dot", similarity="dot", **RAW), texts["queries"], texts["documents"])
    np.testing.assert_allclose(found, expected["st.similarity"], rtol=CLOSE)  # products of 10 to 100
    # the default is the cosine, whatever the checkpoint prefers
    cosines = matrix(scorer("bi", "x_dot", **RAW), texts["queries"], texts["documents"])
    np.testing.assert_allclose(cosines, expected["st.cosine"], rtol=0, atol=CLOSE)
