"""A published model gives the scores of transformers: the literals are one text at a time in float32, no padding."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from batchscore import Scorer

CLOSE, MAXSIM_CLOSE = 1e-5, 1e-4
QUERY = "What is the capital of France?"
DOCUMENTS = ["The capital of France is Paris.", "The capital of Brazil is Brasilia.", "Horses eat grass"]


@pytest.fixture(scope="module")
def bi_encoder(minilm: Path) -> Iterator[Scorer]:
    with Scorer(str(minilm), dtype="float32") as scorer:
        yield scorer


@pytest.fixture(scope="module")
def late_interaction(minilm: Path) -> Iterator[Scorer]:
    with Scorer(str(minilm), dtype="float32", score_type="late-interaction") as scorer:
        yield scorer


def test_cosines(bi_encoder: Scorer) -> None:
    assert bi_encoder.score(QUERY, DOCUMENTS).tolist() == pytest.approx([0.879011, 0.402365, 0.043757], abs=CLOSE)


def test_vectors(bi_encoder: Scorer) -> None:
    """Those of sentence-transformers 6.2."""
    vectors = bi_encoder.encode([QUERY, DOCUMENTS[0], DOCUMENTS[2]])
    first = [
        [0.082048, 0.036055, -0.003893, -0.004881],
        [0.103257, 0.030420, 0.029096, -0.037323],
        [-0.016865, 0.011751, 0.049171, 0.025585],
    ]
    assert isinstance(vectors, np.ndarray)
    assert (vectors.shape, vectors.dtype) == ((3, 384), np.float32)
    np.testing.assert_allclose(vectors[:, :4], first, rtol=0, atol=2e-6)


def test_matrices(late_interaction: Scorer) -> None:
    """sentence-transformers' token embeddings, divided by their lengths."""
    (matrix,) = late_interaction.encode("Horses eat grass")
    first = [
        [-0.050699, 0.007339],
        [0.009376, 0.004210],
        [-0.005192, -0.028473],
        [-0.014528, 0.063405],
        [-0.016363, -0.009897],
    ]
    assert (matrix.shape, matrix.dtype) == ((5, 384), np.float32)
    np.testing.assert_allclose(matrix[:, :2], first, rtol=0, atol=2e-6)


def test_late_interaction(late_interaction: Scorer) -> None:
    found = late_interaction.score(QUERY, DOCUMENTS).tolist()
    assert found == pytest.approx([7.551625, 4.731575, 1.142570], abs=MAXSIM_CLOSE)


def test_a_text_is_as_near_to_itself_as_can_be(bi_encoder: Scorer, late_interaction: Scorer) -> None:
    """Seven tokens, [CLS] and [SEP]: each finds itself."""
    assert bi_encoder.score(QUERY, QUERY)[0] == pytest.approx(1, abs=CLOSE)
    assert late_interaction.score(QUERY, QUERY)[0] == pytest.approx(9, abs=MAXSIM_CLOSE)


def test_the_answer_comes_first(bi_encoder: Scorer, late_interaction: Scorer) -> None:
    for scorer in (bi_encoder, late_interaction):
        assert [ranked.index for ranked in scorer.rerank(QUERY, DOCUMENTS[::-1])] == [2, 1, 0]


def test_packed_equals_padded(minilm: Path, bi_encoder: Scorer) -> None:
    with Scorer(str(minilm), dtype="float32", padded=True) as padded:
        found = padded.score(QUERY, DOCUMENTS).tolist()
    assert found == pytest.approx(bi_encoder.score(QUERY, DOCUMENTS).tolist(), abs=1e-6)
