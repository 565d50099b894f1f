"""What comes back is what was computed, within the memory given, and needs neither tokenizer nor model."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

import checkpoints
from batchscore import Scorer
from batchscore.engine.cache import _ENTRY_BYTES, EncodingCache, keys_of
from batchscore.types import Encodings, Fault

Tiny = Callable[[str], str]
DIM = 4
QUERIES, DOCUMENTS = checkpoints.pairs(60, seed=1)


class Encoder:
    """A vector for each text, from its letters; remembers what it was asked for."""

    def __init__(self, max_entries: int) -> None:
        self.cache = EncodingCache(max_entries * (DIM * 4 + _ENTRY_BYTES))
        self.asked: list[str] = []

    def encode(self, texts: Sequence[str]) -> Encodings:
        def make(places: NDArray[np.int64]) -> Encodings:
            asked = [texts[place] for place in places]
            self.asked += asked
            return made_of(asked)

        return self.cache.complete(keys_of(texts, "document"), make)


def made_of(texts: Sequence[str]) -> Encodings:
    """A text that begins with "bad" has a fault."""
    faults = {place: Fault("too-long", text) for place, text in enumerate(texts) if text.startswith("bad")}
    good = [text for text in texts if not text.startswith("bad")]
    values = np.array([[ord(text[0]), len(text), 0, 1] for text in good], np.float32).reshape(-1, DIM)
    offsets = np.cumsum([0, *(place not in faults for place in range(len(texts)))])
    tokens = np.array([len(text) for text in texts], np.int32)
    return Encodings(values, offsets, tokens, (tokens % 2).astype(np.uint8), faults)


def assert_same(found: Encodings, expected: Encodings) -> None:
    for column in ("values", "offsets", "tokens", "cut"):
        np.testing.assert_array_equal(getattr(found, column), getattr(expected, column))
    assert found.faults == expected.faults


def test_what_was_made_is_found_by_its_text_and_the_rest_is_made() -> None:
    encoder = Encoder(10)
    for texts in (["one", "three"], ["three", "two", "one", "four"], ["four", "three", "one", "two"]):
        assert_same(encoder.encode(texts), made_of(texts))

    assert encoder.asked == ["one", "three", "two", "four"]


def test_texts_with_faults_are_made_again_and_the_others_are_kept() -> None:
    encoder = Encoder(10)
    for texts in (["bad", "one"], ["two", "one", "bad"], ["bad"], ["one", "bad", "two"]):
        assert_same(encoder.encode(texts), made_of(texts))

    assert encoder.asked == ["bad", "one", "two", "bad", "bad", "bad"]


def test_a_text_of_one_side_is_another_on_the_other() -> None:
    assert keys_of(["cat", "dog", "cat"], "query")[0] not in keys_of(["cat", "dog"], "document")
    assert len(set(keys_of(["cat", "dog", "cat"], "query"))) == 2


def test_the_oldest_gives_way_when_the_memory_is_full() -> None:
    encoder = Encoder(3)
    for text in ("a", "b", "c", "d", "e"):
        encoder.encode([text])
    encoder.asked.clear()

    assert_same(encoder.encode(["e", "d", "c", "b", "a"]), made_of(["e", "d", "c", "b", "a"]))
    assert encoder.asked == ["b", "a"]


def test_more_texts_than_the_memory_holds_are_survived() -> None:
    encoder, texts = Encoder(2), ["a", "b", "c", "d", "e"]
    assert_same(encoder.encode(texts), made_of(texts))
    encoder.asked.clear()

    assert_same(encoder.encode(texts), made_of(texts))
    assert encoder.asked == ["a", "b", "c"]


def test_equal_keys_take_one_place() -> None:
    encoder = Encoder(3)
    assert_same(encoder.encode(["a", "b", "a", "a"]), made_of(["a", "b", "a", "a"]))
    encoder.encode(["c"])
    encoder.asked.clear()
    encoder.encode(["a", "b", "c"])

    assert encoder.asked == []


def test_what_was_found_outlives_its_place() -> None:
    encoder = Encoder(1)
    encoder.encode(["a"])
    found = encoder.encode(["a"])
    encoder.encode(["b"])

    assert_same(found, made_of(["a"]))


def test_no_memory_keeps_nothing() -> None:
    encoder = Encoder(0)
    encoder.encode(["a"])
    encoder.encode(["a"])

    assert encoder.asked == ["a", "a"]


@pytest.fixture
def refusing(monkeypatch: pytest.MonkeyPatch) -> Callable[[Scorer], None]:
    """Makes a scorer fail where it would tokenize or forward something."""

    def refuse(scorer: Scorer) -> None:
        for name in ("tokenize", "lay_out", "encode", "score"):
            monkeypatch.setattr(scorer.batcher, name, lambda *_, name=name: pytest.fail(f"{name} was called"))

    return refuse


@pytest.mark.parametrize("name", ["bert_ce", "bert_mean", "bert_splade"])
def test_a_second_call_needs_no_tokenizer_and_no_model_and_gives_the_same_scores(
    tiny: Tiny, refusing: Callable[[Scorer], None], name: str
) -> None:
    with Scorer(tiny(name), dtype="float32") as scorer:
        first = scorer.score(QUERIES, DOCUMENTS)
        order = np.random.default_rng(0).permutation(60)
        refusing(scorer)
        shuffled = scorer.score([QUERIES[row] for row in order], [DOCUMENTS[row] for row in order])

    np.testing.assert_array_equal(shuffled, first[order])


def test_a_further_query_tokenizes_itself_alone(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    with Scorer(tiny("bert_mean"), dtype="float32") as scorer:
        scorer.score(QUERIES[0], DOCUMENTS)
        lay_out, laid_out = scorer.batcher.lay_out, []
        monkeypatch.setattr(scorer.batcher, "lay_out", lambda *texts: laid_out.append(texts) or lay_out(*texts))
        found = scorer.score(QUERIES[1], DOCUMENTS)
    with Scorer(tiny("bert_mean"), dtype="float32", cache_mb=0) as scorer:
        expected = scorer.score(QUERIES[1], DOCUMENTS)

    assert laid_out == [([QUERIES[1]], "query")]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["roberta_ce", "xlmr_cls", "bert_no_prompt_pooling"])
@pytest.mark.parametrize("cache_mb", [0, 1])
def test_scores_do_not_depend_on_the_cache(tiny: Tiny, name: str, cache_mb: int) -> None:
    """Windows of 7 rows over texts that repeat: with a cache most are found, without one none is."""
    whole = Scorer(tiny(name), dtype="float32", cache_mb=0).score(QUERIES, DOCUMENTS)
    windows = Scorer(tiny(name), dtype="float32", cache_mb=cache_mb, window_rows=7).score(QUERIES, DOCUMENTS)

    np.testing.assert_allclose(windows, whole, atol=1e-6)
