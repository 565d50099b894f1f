"""Texts encoded by themselves, and rows scored from encodings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn.functional import cosine_similarity

from batchscore.engine import scheduler
from batchscore.engine.batcher import Batcher
from batchscore.errors import DeviceMemoryError, InputError, StoppedError, UsageError
from batchscore.models.similarity import cosine
from batchscore.scorer import Scorer, set_up
from batchscore.stop import Stop
from batchscore.types import SIDES, Cells, Encodings, Fault, Pairs, Side
from checkpoints import pairs
from threads import one_thread

Tiny = Callable[[str], str]
QUERIES, DOCUMENTS = pairs(60, seed=5)
TWO_SIDED = [("bert_mean", "bi-encoder"), ("bert_tokens", "late-interaction")]
SAME = 1e-6

both_kinds = pytest.mark.parametrize(("name", "score_type"), TWO_SIDED, ids=[kind for _, kind in TWO_SIDED])


@pytest.fixture
def batchers(tiny: Tiny) -> Iterator[Callable[..., Batcher]]:
    """Makes batchers in float32 and small packs, and closes them."""
    made: list[Batcher] = []

    def make(name: str, workers: int = 1, **options: Any) -> Batcher:
        setup = set_up(tiny(name), **{"dtype": "float32", "batch_tokens": 64, **options})
        made.append(Batcher(replace(setup, budget=replace(setup.budget, workers=workers))))
        return made[-1]

    with one_thread():
        yield make
    for batcher in made:
        batcher.close()


def encode(batcher: Batcher, texts: Sequence[str], side: Side = "document") -> Encodings:
    return batcher.encode(batcher.lay_out(texts, side), side)


def vectors_of(encodings: Encodings) -> list[NDArray[Any]]:
    return np.split(encodings.values, encodings.offsets[1:-1])


# ---- a side's layout


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("bert_mean", {"max_length": 12}),
        ("bert_mean", {"max_tokens_per_query": 3, "max_tokens_per_doc": 9, "query_prompt": "the cat "}),
        ("bert_mean", {"max_length": 12, "truncation_side": "left"}),
        ("colbert", {}),
        ("bert_tokens", {"max_length": 12, "truncation": "error"}),
    ],
)
def test_a_side_is_laid_out_as_it_is_in_a_window(
    batchers: Callable[..., Batcher], name: str, options: dict[str, Any]
) -> None:
    batcher = batchers(name, **options)
    queries, documents = Cells.of(QUERIES), Cells.of(DOCUMENTS)
    window = batcher.tokenize(Pairs(queries, documents))
    work = {
        "query": batcher.lay_out(queries.values, "query"),
        "document": batcher.lay_out(documents.values, "document"),
    }

    both = work["query"].items.concat(work["document"].items)
    np.testing.assert_array_equal(both.offsets, window.items.offsets)
    for column in both.columns:
        np.testing.assert_array_equal(both.columns[column], window.items.filled(column))
    np.testing.assert_array_equal(work["query"].cut[queries.codes] | work["document"].cut[documents.codes], window.cut)
    faulty = {
        row
        for texts, side in ((queries, "query"), (documents, "document"))
        for row in range(len(texts.codes))
        if texts.codes[row] in work[side].faults
    }
    assert faulty == window.faults.keys()
    for side in work.values():
        good = side.right >= 0
        assert (len(side), side.queries) == (len(side.items), 0)
        np.testing.assert_array_equal(side.right[good], np.flatnonzero(good))
        np.testing.assert_array_equal(side.row_tokens()[good], side.items.lengths[good])


@pytest.mark.parametrize("name", ["bert_ce", "jina_listwise"])
def test_a_model_that_reads_both_texts_together_encodes_none(batchers: Callable[..., Batcher], name: str) -> None:
    with pytest.raises(UsageError, match="reads a query and a document together: no text has an encoding of its own"):
        batchers(name).lay_out(["cat"], "document")


# ---- encodings


@both_kinds
@pytest.mark.parametrize("workers", [1, 3])
def test_encodings_come_in_the_order_of_the_texts_whatever_the_packs(
    batchers: Callable[..., Batcher], name: str, score_type: str, workers: int
) -> None:
    batcher = batchers(name, workers, score_type=score_type)
    done, read = list[int](), list[int]()
    work = batcher.lay_out(DOCUMENTS, "document")
    whole = batcher.encode(work, "document", lambda texts, tokens: (done.append(texts), read.append(tokens)))  # type: ignore[func-returns-value]
    alone = [encode(batcher, [text]) for text in DOCUMENTS]

    assert whole.faults == {}
    assert (sum(done), sum(read), whole.tokens.tolist()) == (60, work.items.lengths.sum(), work.items.lengths.tolist())
    for found, one in zip(vectors_of(whole), alone, strict=True):
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, one.values, rtol=0, atol=SAME)
    assert np.diff(whole.offsets).tolist() == (whole.tokens.tolist() if score_type == "late-interaction" else [1] * 60)


@both_kinds
def test_what_ran_before_does_not_change_a_bit_of_an_encoding(
    batchers: Callable[..., Batcher], name: str, score_type: str
) -> None:
    batcher = batchers(name, score_type=score_type)
    first = encode(batcher, DOCUMENTS)
    batcher.score(batcher.tokenize(Pairs(Cells.of(QUERIES[:20]), Cells.of(DOCUMENTS[:20]))))
    encode(batcher, DOCUMENTS[::3])

    np.testing.assert_array_equal(encode(batcher, DOCUMENTS).values, first.values)


def test_a_side_is_encoded_with_its_own_prompt(batchers: Callable[..., Batcher]) -> None:
    batcher = batchers("bert_mean", query_prompt="the cat ", document_prompt="")
    query, document = (encode(batcher, ["sat on the mat"], side).values for side in SIDES)
    spelled_out = encode(batcher, ["the cat sat on the mat"], "document").values

    np.testing.assert_allclose(query, spelled_out, rtol=0, atol=SAME)
    assert np.abs(query - document).max() > 1e-3


@pytest.mark.parametrize(("dtype", "kept"), [("bfloat16", np.uint16), ("float32", np.float32)])
def test_late_interaction_keeps_its_matrices_in_the_bodys_dtype(
    batchers: Callable[..., Batcher], dtype: str, kept: Any
) -> None:
    batcher = batchers("bert_tokens", dtype=dtype, score_type="late-interaction")
    values = encode(batcher, ["the cat sat"]).values

    assert values.dtype == kept
    vectors = torch.from_numpy(values).view(getattr(torch, dtype)).float()
    np.testing.assert_allclose(vectors.norm(dim=1), 1, rtol=0, atol=1e-2)


def test_texts_with_faults_have_no_vectors_and_disturb_no_others(
    batchers: Callable[..., Batcher], monkeypatch: pytest.MonkeyPatch
) -> None:
    batcher = batchers("bert_mean", max_length=32, truncation="error")
    kind = type(batcher._runner)
    forward = kind.forward

    def small(runner: Any, batch: Any) -> Any:
        if batch.longest > 20:
            raise DeviceMemoryError("no memory", hint="lower --max-length")
        return forward(runner, batch)

    texts = ["cat", "paper " * 40, "a dog", "paper " * 25, "bird"]
    good = encode(batcher, texts[::2])
    monkeypatch.setattr(kind, "forward", small)
    found = encode(batcher, texts)

    assert {text: fault.code for text, fault in found.faults.items()} == {1: "too-long", 3: "out-of-memory"}
    assert np.diff(found.offsets).tolist() == [1, 0, 1, 0, 1]
    np.testing.assert_allclose(found.values, good.values, rtol=0, atol=SAME)
    nothing = encode(batcher, texts[1:2])
    assert (len(nothing), len(nothing.values), list(nothing.faults)) == (1, 0, [0])
    assert len(Encodings.concat([nothing, found]).values) == 3


@both_kinds
@pytest.mark.parametrize("where", ["bfloat16", "everywhere"])
def test_a_vector_with_a_bad_number_is_made_again_in_float32(
    batchers: Callable[..., Batcher], monkeypatch: pytest.MonkeyPatch, name: str, score_type: str, where: str
) -> None:
    texts = ["cat", "paper " * 30, "a dog"]
    exact = encode(batchers(name, score_type=score_type), texts[1:2])
    batcher = batchers(name, score_type=score_type, dtype="bfloat16", batch_tokens=16)
    kind, plain = type(batcher._runner), encode(batcher, texts[::2])
    vectors = kind.kept_states if score_type == "late-interaction" else kind.vectors

    def overflowing(runner: Any, batch: Any) -> Any:
        made = vectors(runner, batch)
        is_half = next(runner.model.bodies[0].parameters()).dtype == torch.bfloat16
        return made * torch.inf if batch.longest > 20 and (is_half or where == "everywhere") else made

    monkeypatch.setattr(kind, vectors.__name__, overflowing)
    found = encode(batcher, texts)

    first, retried, last = vectors_of(found)
    np.testing.assert_array_equal(np.concatenate([first, last]), plain.values)
    if where == "everywhere":
        assert [(text, fault.code, fault.hint) for text, fault in found.faults.items()] == [
            (1, "non-finite", "the checkpoint's weights overflow")
        ]
        assert len(retried) == 0
    else:
        as_float = torch.from_numpy(retried)
        as_float = as_float.view(torch.bfloat16).float() if retried.dtype == np.uint16 else as_float
        np.testing.assert_allclose(as_float, exact.values, rtol=0, atol=SAME if retried.dtype == np.float32 else 4e-3)


# ---- rows from encodings


def product(queries: int, documents: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(left, right) of every query with every document, shuffled."""
    rows = np.random.default_rng(0).permutation(queries * documents)
    return rows // documents, rows % documents


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
@pytest.mark.parametrize("workers", [1, 3])
def test_rows_from_encodings_have_the_scores_of_the_same_vectors_bit_for_bit(
    batchers: Callable[..., Batcher], monkeypatch: pytest.MonkeyPatch, similarity: str, workers: int
) -> None:
    monkeypatch.setattr(scheduler, "_CHUNK", 1_000)
    batcher = batchers("bert_mean", workers, similarity=similarity)
    queries, documents = encode(batcher, QUERIES[:9], "query"), encode(batcher, DOCUMENTS)
    left, right = product(9, 60)
    done: list[int] = []
    outcome = batcher.compare(queries, documents, left, right, done.append)

    pairs = torch.from_numpy(queries.values[left]), torch.from_numpy(documents.values[right])
    expected = cosine_similarity(*pairs, dim=1) if similarity == "cosine" else (pairs[0] * pairs[1]).sum(1)
    np.testing.assert_array_equal(outcome.raw[:, 0], expected.numpy())
    assert (sum(done), outcome.faults) == (540, {})
    assert len(done) > 10


@pytest.mark.parametrize("dim", [1, 7, 384, 2**18 + 1])
def test_a_cosine_has_the_bits_of_torchs_whatever_the_dimensions(dim: int) -> None:
    random = np.random.default_rng(dim)
    queries, documents = (torch.from_numpy(random.standard_normal((n, dim), np.float32)) for n in (3, 5))
    queries[0] = 0
    for left, right in (product(3, 5), (np.repeat([0, 1, 2], 5), np.tile(np.arange(5), 3)), ([1], [2])):
        left, right = np.asarray(left), np.asarray(right)
        with one_thread():  # several add the numbers of long vectors in another order
            expected = cosine_similarity(queries[left], documents[right], dim=1)
            assert torch.equal(cosine(queries, documents, left, right), expected)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("bert_mean", {"similarity": "dot"}),
        ("bert_mean", {"dimensions": 8}),
        ("bert_tokens", {}),
        ("bert_tokens", {"dtype": "bfloat16"}),
        ("colbert", {}),
    ],
)
def test_encodings_give_the_scores_of_a_window(
    batchers: Callable[..., Batcher], monkeypatch: pytest.MonkeyPatch, name: str, options: dict[str, Any]
) -> None:
    monkeypatch.setattr(scheduler, "_CHUNK", 3_000)
    if name == "bert_tokens":
        options |= {"score_type": "late-interaction"}
    batcher = batchers(name, **options)
    window = batcher.score(batcher.tokenize(Pairs(Cells.of(QUERIES), Cells.of(DOCUMENTS)))).raw
    queries, documents = encode(batcher, QUERIES, "query"), encode(batcher, DOCUMENTS)
    for side in (queries, documents):
        side.values.setflags(write=False)  # as those of a file are
    rows = np.arange(60)

    tolerance = 2e-5 if options.get("dtype") != "bfloat16" else 0.05  # other packs, other sums
    np.testing.assert_allclose(batcher.compare(queries, documents, rows, rows).raw, window, rtol=0, atol=tolerance)


@both_kinds
def test_the_scores_of_encodings_depend_on_neither_workers_nor_the_other_rows(
    batchers: Callable[..., Batcher], monkeypatch: pytest.MonkeyPatch, name: str, score_type: str
) -> None:
    monkeypatch.setattr(scheduler, "_CHUNK", 3_000)
    one, three = (batchers(name, workers, score_type=score_type) for workers in (1, 3))
    queries, documents = encode(one, QUERIES, "query"), encode(one, DOCUMENTS)
    left, right = product(60, 60)
    raw = one.compare(queries, documents, left, right).raw
    np.testing.assert_array_equal(three.compare(queries, documents, left, right).raw, raw)
    some = three.compare(queries.take(left[:50]), documents.take(right[:50]), np.arange(50), np.arange(50)).raw
    np.testing.assert_allclose(some, raw[:50], rtol=0, atol=1e-5)


def test_a_row_has_the_fault_of_its_query_or_else_of_its_document(batchers: Callable[..., Batcher]) -> None:
    batcher = batchers("bert_mean", similarity="dot")
    queries, documents = encode(batcher, ["cat", "dog"], "query"), encode(batcher, ["cat", "dog", "bird"])
    bad = replace(queries, faults={1: Fault("too-long", "query")}), replace(documents, faults={2: Fault("null", "doc")})
    left, right = np.array([0, 0, 1, 1, 0]), np.array([0, 2, 2, 0, 1])
    outcome = batcher.compare(*bad, left, right)

    assert {row: fault.message for row, fault in outcome.faults.items()} == {1: "doc", 2: "query", 3: "query"}
    assert np.isfinite(outcome.raw[:, 0]).tolist() == [True, False, False, False, True]

    huge = replace(documents, values=np.where(np.arange(3)[:, None] == 1, np.float32(3e38), documents.values))
    outcome = batcher.compare(replace(queries, values=np.abs(queries.values) * 1e9), huge, left, right)
    assert [(row, fault.code, fault.message) for row, fault in outcome.faults.items()] == [
        (4, "non-finite", "its score is inf")
    ]
    assert np.isnan(outcome.raw[4]).all()


def test_encoding_and_comparing_stop_when_asked(batchers: Callable[..., Batcher]) -> None:
    batcher, stop = batchers("bert_mean"), Stop()
    work = batcher.lay_out(DOCUMENTS, "document")
    with pytest.raises(StoppedError):
        batcher.encode(work, "document", lambda texts, tokens: stop.request("SIGTERM"), stop=stop)
    encodings = encode(batcher, DOCUMENTS)
    with pytest.raises(StoppedError):
        batcher.compare(encodings, encodings, *product(60, 60), stop=stop)


def test_chunks_hold_every_pair_once_and_no_more_than_they_may(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "_CHUNK", 100)
    left, right = np.repeat(np.arange(7), 40), np.tile(np.arange(40), 7)
    query_sizes, document_sizes = np.full(7, 30), np.arange(40) * 4
    chunks = scheduler.plan_chunks(left, right, query_sizes, document_sizes)

    assert [place for chunk in chunks for place in range(chunk.start, chunk.stop)] == list(range(280))
    for chunk in chunks:
        taken = query_sizes[np.unique(left[chunk])].sum() + document_sizes[right[chunk]].sum()
        assert taken <= 130 or chunk.stop - chunk.start == 1
    assert scheduler.plan_chunks(left[:0], right[:0], query_sizes, document_sizes) == []


@both_kinds
def test_equal_rows_have_equal_bits(batchers: Callable[..., Batcher], name: str, score_type: str) -> None:
    batcher = batchers(name, score_type=score_type)
    queries, documents = encode(batcher, QUERIES[:5], "query"), encode(batcher, DOCUMENTS)
    left, right = product(5, 60)
    once = batcher.compare(queries, documents, left, right).raw
    thrice = batcher.compare(queries, documents, np.tile(left, 3), np.repeat(right.reshape(1, -1), 3, 0).ravel()).raw

    np.testing.assert_array_equal(thrice, np.tile(once, (3, 1)))


# ---- from Python


@pytest.fixture
def scorers(tiny: Tiny) -> Iterator[Callable[..., Scorer]]:
    """Makes scorers in float32, and closes them."""
    made: list[Scorer] = []

    def make(name: str, **options: Any) -> Scorer:
        made.append(Scorer(tiny(name), **{"dtype": "float32", **options}))
        return made[-1]

    with one_thread():
        yield make
    for scorer in made:
        scorer.close()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("bert_mean", {}),
        ("bert_mean", {"similarity": "dot", "query_prompt": "the cat ", "window_rows": 7}),
        ("bert_mean", {"dimensions": 8, "max_length": 12}),
        ("bert_splade", {}),
        ("bert_dense", {"score_type": "late-interaction", "window_rows": 7}),
        ("colbert", {"cache_mb": 0}),
    ],
)
def test_scores_are_the_similarities_of_what_encode_gives(
    scorers: Callable[..., Scorer], name: str, options: dict[str, Any]
) -> None:
    scorer = scorers(name, **options)
    queries, documents = scorer.encode(QUERIES, "query"), scorer.encode(DOCUMENTS)
    scores = scorer.score(QUERIES, DOCUMENTS)

    assert len(queries) == len(documents) == len(scores)
    for query, document, score in zip(queries, documents, scores, strict=True):
        if query.ndim == 2:
            expected = (query @ document.T).max(1).sum()
        else:
            lengths = 1 if scorer.spec.similarity == "dot" else np.linalg.norm(query) * np.linalg.norm(document)
            expected = query @ document / lengths
        assert score == pytest.approx(expected, rel=1e-5, abs=SAME)


@pytest.mark.parametrize("name", ["bert_mean", "colbert"])
def test_encoding_many_texts_is_encoding_each(scorers: Callable[..., Scorer], name: str) -> None:
    scorer = scorers(name, window_rows=7, cache_mb=0)
    for found, text in zip(scorer.encode(DOCUMENTS), DOCUMENTS, strict=True):
        np.testing.assert_allclose(found, scorer.encode(text)[0], rtol=0, atol=SAME)


def test_equal_texts_are_encoded_once(scorers: Callable[..., Scorer], monkeypatch: pytest.MonkeyPatch) -> None:
    scorer, laid_out = scorers("bert_mean", cache_mb=0), list[str]()
    lay_out = scorer.batcher.lay_out
    monkeypatch.setattr(scorer.batcher, "lay_out", lambda texts, side: laid_out.extend(texts) or lay_out(texts, side))
    vectors = scorer.encode(["dog", "cat", "dog", "dog"])

    assert laid_out == ["dog", "cat"]
    np.testing.assert_array_equal(vectors[0], vectors[3])
    assert np.abs(vectors[0] - vectors[1]).max() > 1e-3


def crossed(queries: int, documents: int) -> tuple[list[str], list[str]]:
    """Every distinct query with every distinct document, in no order."""
    asked, read = list(dict.fromkeys(QUERIES))[:queries], list(dict.fromkeys(DOCUMENTS))[:documents]
    rows = np.random.default_rng(3).permutation(len(asked) * len(read))
    return [asked[row // len(read)] for row in rows], [read[row % len(read)] for row in rows]


@pytest.mark.parametrize(("window_rows", "read"), [(50, 10 + 30), (10, 10 + 30), (5, 10 + 2 * 30)])
def test_late_interaction_reads_a_text_once_in_a_call_as_long_as_its_side_fits_into_a_group(
    scorers: Callable[..., Scorer], monkeypatch: pytest.MonkeyPatch, window_rows: int, read: int
) -> None:
    """In windows of rows, each window would read nearly all documents again. A group has `window_rows` texts at
    most: of five, the ten queries make two, each of which reads all documents."""
    queries, documents = crossed(10, 30)
    whole = scorers("bert_tokens", score_type="late-interaction", cache_mb=0).score(queries, documents)
    scorer, laid_out = scorers("bert_tokens", score_type="late-interaction", window_rows=window_rows), list[str]()
    lay_out = scorer.batcher.lay_out
    monkeypatch.setattr(scorer.batcher, "lay_out", lambda texts, side: laid_out.extend(texts) or lay_out(texts, side))

    np.testing.assert_allclose(scorer.score(queries, documents), whole, rtol=2e-6, atol=SAME)
    assert len(laid_out) == read


def test_bfloat16_matrices_come_as_float32_and_give_the_score(scorers: Callable[..., Scorer]) -> None:
    scorer = scorers("bert_tokens", dtype="bfloat16", score_type="late-interaction")
    (query,), (document,) = scorer.encode("the cat", "query"), scorer.encode("the dog sat")

    assert query.dtype == document.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(document, axis=1), 1, rtol=0, atol=1e-2)
    assert scorer.score("the cat", "the dog sat")[0] == pytest.approx((query @ document.T).max(1).sum(), abs=1e-4)


@pytest.mark.parametrize(
    ("name", "texts", "side", "error", "message"),
    [
        ("bert_ce", ["a"], "document", UsageError, "a cross-encoder reads a query and a document together"),
        ("bert_mean", ["a"], "documents", UsageError, "side 'documents' is unknown; choices: query, document"),
        ("bert_mean", [], "query", UsageError, "texts is empty; at least one text must be given"),
        ("bert_mean", ["a", 1], "query", UsageError, r"texts\[1\] is int, not a string"),
        (
            "bert_mean",
            ["a", "b", "cat " * 40, "cat " * 50],
            "query",
            InputError,
            r"texts\[2\]: longer than max_length 32",
        ),
        ("bert_mean", ["a"] * 9 + ["cat " * 40], "query", InputError, r"texts\[9\]: longer than max_length 32"),
    ],
)
def test_what_cannot_be_encoded_is_an_error_that_names_the_text(
    scorers: Callable[..., Scorer], name: str, texts: Any, side: Any, error: type[Exception], message: str
) -> None:
    scorer = scorers(name, max_length=32, truncation="error", window_rows=2)
    with pytest.raises(error, match=message):
        scorer.encode(texts, side)
