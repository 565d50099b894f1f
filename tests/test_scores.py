"""Scores are those of plain transformers, one text or pair at a time, and nothing about a batch can be seen in them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from batchscore import Scorer
from batchscore.errors import InputError, StoppedError
from batchscore.models.checkpoint import open_checkpoint
from batchscore.models.load import load_model
from batchscore.models.text.tokenizer import load_tokenizer
from batchscore.stop import Stop
from batchscore.types import CUT_NAMES, Cells, Pairs
from checkpoints import TOKENS, WORDS, pairs
from threads import one_thread
from windows import score_work

CLOSE, MAXSIM_CLOSE = 1e-5, 1e-4  # of a logit or cosine, of a MaxSim, to a reference's
SAME = 1e-6  # of two ways through batchscore: a few of float32's roundings, of 2**-24 each
MAXSIM_SAME = TOKENS * SAME  # a MaxSim adds as many cosines

Floats = NDArray[np.floating]
Tiny = Callable[[str], str]
Scorers = Callable[..., Scorer]

# every length, repeats, several scripts, and sides without a word
QUERIES, DOCUMENTS = (
    list(side) + extra for side, extra in zip(pairs(16), (["", "", "cat"], ["", "dog", ""]), strict=True)
)


@pytest.fixture(scope="module")
def scorer(tiny: Tiny) -> Iterator[Scorers]:
    """A float32 Scorer by checkpoint name and options, loaded once; it forwards whatever it is asked."""
    loaded: dict[tuple[Any, ...], Scorer] = {}

    def load(name: str, **options: Any) -> Scorer:
        key = name, *sorted(options.items())
        if key not in loaded:
            loaded[key] = Scorer(tiny(name), dtype="float32", **{"cache_mb": 0, **options})
        return loaded[key]

    yield load
    for each in loaded.values():
        each.close()


def columns(queries: list[str], documents: list[str]) -> Pairs:
    return Pairs(Cells.of(queries), Cells.of(documents))


# ---- references: no code of batchscore's


@cache
def tokenizer_of(folder: str) -> Any:
    return AutoTokenizer.from_pretrained(folder)


@cache
def model_of(folder: str, auto: Any) -> Any:
    return auto.from_pretrained(folder, attn_implementation="eager").eval()


@one_thread()
@torch.inference_mode()
def logit_of(folder: str, **inputs: Tensor) -> float:
    logits: Tensor = model_of(folder, AutoModelForSequenceClassification)(**inputs).logits
    return logits.item()


@cache
@one_thread()
@torch.inference_mode()
def states_of(folder: str, text: str, max_length: int = TOKENS) -> Tensor:
    """float32 [tokens, dim]: one text alone, special tokens included, cut by hand."""
    tokenizer = tokenizer_of(folder)
    ids = tokenizer(text)["input_ids"]
    if len(ids) > max_length:
        ids = [*ids[: max_length - 1], tokenizer.sep_token_id]
    states: Tensor = model_of(folder, AutoModel)(input_ids=torch.tensor([ids])).last_hidden_state
    return states[0]


@cache
def dense_of(folder: str) -> dict[str, Tensor]:
    return load_file(Path(folder) / "2_Dense/model.safetensors")


def dense_tanh(folder: str, x: Tensor) -> Tensor:
    weights = dense_of(folder)
    return torch.tanh(x @ weights["linear.weight"].T + weights["linear.bias"])


def sigmoid(x: Floats) -> Floats:
    return 1 / (1 + np.exp(-x))


def identity(x: Any) -> Any:
    return x


@dataclass(frozen=True)
class Pooled:
    """How a bi-encoder's row makes a vector of one text's states."""

    pool: Callable[[Tensor], Tensor]
    prompts: tuple[str, str] = ("query: ", "")
    skip_prompt: bool = False
    dense: bool = False
    prepare: Callable[[str], str] = identity

    def vector(self, folder: str, prompt: str, text: str, max_length: int = TOKENS) -> Tensor:
        states = states_of(folder, self.prepare(prompt + text), max_length)
        if self.skip_prompt:
            states = states[len(tokenizer_of(folder)(prompt)["input_ids"]) - 1 :]  # [CLS] and the prompt's own tokens
        vector = self.pool(states)
        return (dense_tanh(folder, vector) if self.dense else vector).double()

    @one_thread()
    def vectors(self, folder: str, max_length: int = TOKENS) -> tuple[Tensor, Tensor]:
        """float64 [pairs, dim] of the queries and of the documents."""
        sides = zip(self.prompts, (QUERIES, DOCUMENTS), strict=True)
        queries, documents = (
            torch.stack([self.vector(folder, prompt, text, max_length) for text in texts]) for prompt, texts in sides
        )
        return queries, documents


def first(states: Tensor) -> Tensor:
    return states[0]


def mean(states: Tensor) -> Tensor:
    return states.mean(0)


def position_weighted_mean(states: Tensor) -> Tensor:
    weights = torch.arange(1, len(states) + 1)[:, None]
    return (states * weights).sum(0) / weights.sum()


NO_PROMPTS = ("", "")
BI_ENCODERS = {
    "bert_mean": Pooled(mean),
    "bert_cls": Pooled(first),
    "bert_max": Pooled(lambda states: states.amax(0)),
    "bert_sqrt": Pooled(lambda states: states.sum(0) / len(states) ** 0.5),
    "bert_wmean": Pooled(position_weighted_mean),
    "bert_last": Pooled(lambda states: states[-1]),
    "bert_concat": Pooled(lambda states: torch.cat([states[0], states.mean(0)])),
    "bert_modes_list": Pooled(mean),
    "bert_dense": Pooled(mean, dense=True),
    "bert_no_prompt_pooling": Pooled(mean, ("search: ", "passage: "), skip_prompt=True),
    "bert_bin": Pooled(mean),
    "bert_legacy": Pooled(mean),
    "bert_sharded": Pooled(mean),
    "bert_dot": Pooled(mean),
    "bert_plain": Pooled(first, NO_PROMPTS),
    "roberta_mean": Pooled(mean, NO_PROMPTS),
    "roberta_mlm": Pooled(first, NO_PROMPTS),
    "xlmr_cls": Pooled(first, NO_PROMPTS),
    "xlmr_lower": Pooled(mean, NO_PROMPTS, prepare=str.lower),
}
ACTIVATIONS: dict[str, Callable[[Floats], Floats]] = {
    "bert_ce": identity,
    "bert_ce_tanh": np.tanh,
    "bert_ce_default": sigmoid,
    "bert_ce_regression": identity,
    "roberta_ce": sigmoid,
    "xlmr_ce": sigmoid,
}
LATE_INTERACTION = {
    "bert_mean": ("query: ", ""),
    "bert_dense": ("query: ", ""),
    "roberta_mean": NO_PROMPTS,
    "xlmr_cls": NO_PROMPTS,
}


@one_thread()
def maxsim_of(folder: str, query: str, document: str, max_length: int = TOKENS) -> float:
    left, right = (states_of(folder, text, max_length) for text in (query, document))
    if (Path(folder) / "2_Dense").is_dir():
        left, right = dense_tanh(folder, left), dense_tanh(folder, right)
    left, right = (x.double() / x.double().norm(dim=1, keepdim=True) for x in (left, right))
    return float((left @ right.T).amax(1).sum())


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_a_cross_encoder_gives_the_logit_of_transformers_and_its_activation(
    tiny: Tiny, scorer: Scorers, name: str
) -> None:
    cross_encoder = scorer(name, truncation="longest-first")
    scores = score_work(cross_encoder, cross_encoder.batcher.tokenize(columns(QUERIES, DOCUMENTS)))
    encode = tokenizer_of(tiny(name))
    logits = np.array(
        [
            logit_of(tiny(name), **encode([q], [d], truncation=True, max_length=TOKENS, return_tensors="pt"))
            for q, d in zip(QUERIES, DOCUMENTS, strict=True)
        ]
    )
    assert np.ptp(logits) > 0.3, "texts that all score alike would prove nothing"
    assert scores.logit is not None
    np.testing.assert_allclose(scores.logit, logits, rtol=0, atol=CLOSE)
    np.testing.assert_allclose(scores.score, ACTIVATIONS[name](logits), rtol=0, atol=CLOSE)


@pytest.mark.parametrize("name", BI_ENCODERS)
def test_a_bi_encoder_gives_the_cosine_of_the_two_pooled_vectors(tiny: Tiny, scorer: Scorers, name: str) -> None:
    scores = scorer(name).score(QUERIES, DOCUMENTS)
    expected = torch.cosine_similarity(*BI_ENCODERS[name].vectors(tiny(name)), dim=1).numpy()
    assert np.ptp(expected) > 0.1
    np.testing.assert_allclose(scores, expected, rtol=0, atol=CLOSE)


@pytest.mark.parametrize("name", LATE_INTERACTION)
def test_late_interaction_sums_the_best_cosine_of_every_query_token(tiny: Tiny, scorer: Scorers, name: str) -> None:
    """All tokens take part, [CLS] and [SEP] and the prompt's too, through the Dense layer where there is one."""
    scores = scorer(name, score_type="late-interaction").score(QUERIES, DOCUMENTS)
    prompts = LATE_INTERACTION[name]
    expected = [maxsim_of(tiny(name), prompts[0] + q, prompts[1] + d) for q, d in zip(QUERIES, DOCUMENTS, strict=True)]
    assert np.ptp(expected) > 10
    np.testing.assert_allclose(scores, expected, rtol=0, atol=MAXSIM_CLOSE)


@pytest.mark.parametrize("name", ["bert_dot", "bert_sqrt"])
def test_a_dot_product_is_of_the_vectors_as_pooled(tiny: Tiny, scorer: Scorers, name: str) -> None:
    """Two rows without a Normalize module, whose cosines are equal."""
    queries, documents = BI_ENCODERS[name].vectors(tiny(name))
    expected = (queries * documents).sum(1).numpy()
    assert expected.max() > 2, "a product of unit vectors could not be told from a cosine"
    np.testing.assert_allclose(scorer(name, similarity="dot").score(QUERIES, DOCUMENTS), expected, rtol=CLOSE)


def test_a_dot_product_of_normalized_vectors_is_their_cosine(scorer: Scorers) -> None:
    products = scorer("bert_mean", similarity="dot").score(QUERIES, DOCUMENTS)
    np.testing.assert_allclose(products, scorer("bert_mean").score(QUERIES, DOCUMENTS), rtol=0, atol=SAME)


@pytest.mark.parametrize("score_type", ["bi-encoder", "late-interaction"])
def test_prompts_given_by_hand_take_the_place_of_the_checkpoints(scorer: Scorers, score_type: str) -> None:
    given = scorer("bert_mean", score_type=score_type, query_prompt="what is ", document_prompt="the ")
    bare = scorer("bert_mean", score_type=score_type, query_prompt="", document_prompt="")
    by_hand = bare.score([f"what is {q}" for q in QUERIES], [f"the {d}" for d in DOCUMENTS])
    tolerance = MAXSIM_SAME if score_type == "late-interaction" else SAME
    np.testing.assert_allclose(given.score(QUERIES, DOCUMENTS), by_hand, rtol=0, atol=tolerance)
    assert np.abs(by_hand - bare.score(QUERIES, DOCUMENTS)).max() > 0.01


# ---- relations, for every score type and family; test_rows.py has those that hold for every architecture

KINDS = [
    pytest.param(name, score_type, tolerance, id=f"{score_type}-{name}")
    for score_type, tolerance, names in (
        ("cross-encoder", SAME, ("bert_ce_default", "roberta_ce", "xlmr_ce")),
        ("bi-encoder", SAME, ("bert_mean", "roberta_mean", "xlmr_cls", "bert_no_prompt_pooling")),
        ("late-interaction", MAXSIM_SAME, ("bert_dense", "roberta_mean", "xlmr_cls")),
    )
    for name in names
]
every_kind = pytest.mark.parametrize(("name", "score_type", "tolerance"), KINDS)


@pytest.fixture
def batch(scorer: Scorers, name: str, score_type: str) -> Floats:
    """All pairs scored in one call, packed."""
    return scorer(name, score_type=score_type).score(QUERIES, DOCUMENTS)


@every_kind
@pytest.mark.parametrize(("batch_tokens", "window_rows"), [(1, 1000), (64, 7), (100_000, 1)])
def test_the_budget_does_not_matter(
    scorer: Scorers, name: str, score_type: str, tolerance: float, batch: Floats, batch_tokens: int, window_rows: int
) -> None:
    """Packs of one sequence, of a few and of all; windows of all rows, of some and of one."""
    loaded = scorer(name, score_type=score_type)
    before = loaded.budget
    loaded.budget = replace(before, max_tokens=batch_tokens, window_rows=window_rows)
    try:
        np.testing.assert_allclose(loaded.score(QUERIES, DOCUMENTS), batch, rtol=0, atol=tolerance)
    finally:
        loaded.budget = before


@every_kind
def test_a_window_that_was_stopped_goes_on_to_the_same_scores(
    tiny: Tiny, name: str, score_type: Any, tolerance: float
) -> None:
    """A stop is noticed between two packs, however fast they are; what was scored by then is not scored again."""
    with Scorer(tiny(name), dtype="float32", score_type=score_type, batch_tokens=1, cache_mb=0) as loaded, one_thread():
        work = loaded.batcher.tokenize(columns(QUERIES, DOCUMENTS))
        whole = score_work(loaded, work).score
        raw, stop, rows = np.full((len(work), 1), np.nan, np.float32), Stop(), list[int]()

        def ask(count: int, tokens: int) -> None:
            rows.append(count)
            if sum(rows) > 3:
                stop.request("SIGTERM")

        with pytest.raises(StoppedError):
            score_work(loaded, work, ask, raw=raw, stop=stop)
        known = np.isfinite(raw)
        assert 3 < known.sum() < len(work)
        np.testing.assert_array_equal(score_work(loaded, work, raw=raw).score, whole)


@every_kind
def test_repeated_pairs_get_identical_scores(
    scorer: Scorers, name: str, score_type: str, tolerance: float, batch: Floats
) -> None:
    """A distinct pair is forwarded once, so its scores agree to the last bit and its repeats cost nothing."""
    repeated = scorer(name, score_type=score_type).score(QUERIES * 3, DOCUMENTS * 3).reshape(3, -1)
    assert (repeated == repeated[0]).all()
    np.testing.assert_allclose(repeated[0], batch, rtol=0, atol=tolerance)


@every_kind
def test_what_the_cache_remembers_is_what_a_forward_gives(
    tiny: Tiny, name: str, score_type: Any, tolerance: float, batch: Floats
) -> None:
    """A second call finds some of its sequences in the cache and forwards the others."""
    with Scorer(tiny(name), dtype="float32", score_type=score_type, cache_mb=1) as cached:
        cached.score(QUERIES[::3], DOCUMENTS[::3])
        for _ in range(2):
            np.testing.assert_allclose(cached.score(QUERIES, DOCUMENTS), batch, rtol=0, atol=tolerance)


def test_the_cache_tells_a_prompt_from_the_same_words_in_a_text(scorer: Scorers, tiny: Tiny) -> None:
    """Both sides read "the cat sat"; only the query leaves "the cat" out of its mean."""
    prompts: dict[str, Any] = {"query_prompt": "the cat ", "document_prompt": ""}
    forwarded = scorer("bert_no_prompt_pooling", **prompts).score("sat", "the cat sat")[0]
    assert forwarded < 0.99
    with Scorer(tiny("bert_no_prompt_pooling"), dtype="float32", **prompts) as cached:
        found = [cached.score("sat", "the cat sat")[0] for _ in range(2)]
    assert found == pytest.approx([forwarded] * 2, abs=SAME)


@every_kind
def test_one_query_stands_for_as_many_as_there_are_documents(
    scorer: Scorers, name: str, score_type: str, tolerance: float
) -> None:
    loaded = scorer(name, score_type=score_type)
    one, many = loaded.score(QUERIES[0], DOCUMENTS), loaded.score([QUERIES[0]] * len(DOCUMENTS), DOCUMENTS)
    np.testing.assert_allclose(one, many, rtol=0, atol=tolerance)


@pytest.mark.parametrize("max_held_tokens", [1, 50])
@pytest.mark.parametrize("name", LATE_INTERACTION)
def test_queries_held_a_few_at_a_time_give_the_same_scores(
    tiny: Tiny, scorer: Scorers, name: str, max_held_tokens: int
) -> None:
    """Late interaction keeps a vector for each query token, so memory bounds the queries held at once."""
    whole = scorer(name, score_type="late-interaction").score(QUERIES, DOCUMENTS)
    with Scorer(tiny(name), dtype="float32", score_type="late-interaction") as grouped:
        grouped.batcher.budget = replace(grouped.budget, max_held_tokens=max_held_tokens)
        assert len(list(grouped.batcher.tokenize(columns(QUERIES, DOCUMENTS)).query_groups(max_held_tokens))) > 2
        np.testing.assert_allclose(grouped.score(QUERIES, DOCUMENTS), whole, rtol=0, atol=MAXSIM_SAME)


# ---- 16 bits


@every_kind
def test_a_bfloat16_body_stays_near_float32(
    tiny: Tiny, name: str, score_type: Any, tolerance: float, batch: Floats
) -> None:
    with Scorer(tiny(name), dtype="bfloat16", score_type=score_type) as short:
        work = short.batcher.tokenize(columns(QUERIES, DOCUMENTS))
        scores = score_work(short, work).score
    # bfloat16 keeps 8 bits: 2**-9 for each of the ten roundings or so of two layers
    scale = work.items.lengths[work.left] if score_type == "late-interaction" else 1  # a MaxSim is a sum of cosines
    assert 0 < np.abs((scores - batch) / scale).max() < 2e-2


@pytest.mark.parametrize("saved", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["bert_ce", "roberta_ce", "bert_dense"])
def test_the_head_stays_float32_and_as_saved_over_a_bfloat16_body(
    tiny: Tiny, scorer: Scorers, tmp_path: Path, name: str, saved: torch.dtype
) -> None:
    """A logit rounded to bfloat16 has three digits, and near documents would tie."""
    folder = Path(shutil.copytree(tiny(name), tmp_path / name))
    tensors = {key: tensor.to(saved) for key, tensor in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"torch_dtype": str(saved).removeprefix("torch.")}))

    checkpoint = open_checkpoint(str(folder))
    tokenizer = load_tokenizer(checkpoint, trust_remote_code=False, restore_specials=False)
    model = load_model(checkpoint, scorer(name).spec, tokenizer, dtype="bfloat16", device="cpu")
    dtypes = [{parameter.dtype for parameter in module.parameters()} for module in (*model.bodies, model.head)]
    assert dtypes == [{torch.bfloat16}, {torch.float32}]
    on_disk = [*tensors.values(), *(dense_of(str(folder)).values() if name == "bert_dense" else ())]
    for parameter in model.head.parameters():
        assert any(torch.equal(parameter, tensor.float()) for tensor in on_disk)


def test_ranking_goes_by_logit_where_the_sigmoid_saturates(tiny: Tiny, scorer: Scorers, tmp_path: Path) -> None:
    """Sigmoid is 1.0 in float32 from a logit of 17 on: documents that the model tells apart would tie."""
    folder = tmp_path / "steep"
    shutil.copytree(tiny("bert_ce_default"), folder)
    weights = load_file(folder / "model.safetensors")
    weights |= {name: tensor * 1e4 for name, tensor in weights.items() if name.startswith("classifier.")}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    documents = list(dict.fromkeys(DOCUMENTS))
    with Scorer(str(folder), dtype="float32") as steep:
        ranked = steep.rerank("what is a cat", documents)
    logits = scorer("bert_ce").score("what is a cat", documents)  # the same weights, unscaled
    assert [document.relevance_score for document in ranked].count(1.0) > 5
    assert [document.index for document in ranked] == np.argsort(-logits, kind="stable").tolist()


# ---- long texts


def text_of(name: str, tokens: int) -> str:
    """A text of that many tokens, neighbours different: words are one token each, in RoBERTa these letters."""
    source, joint = (["x", "y", "z", "q"], "") if name.startswith("roberta") else (WORDS, " ")
    return joint.join(source[i % len(source)] for i in range(tokens))


@pytest.mark.parametrize("name", ["bert_ce", "roberta_ce", "xlmr_ce"])
@pytest.mark.parametrize(
    ("truncation", "full", "kept", "cut"),
    [  # tokens of query and document, where 17 of both fit
        ("document-first", (5, 12), (5, 12), "none"),
        ("document-first", (5, 13), (5, 12), "document"),
        ("document-first", (16, 90), (16, 1), "document"),
        ("document-first", (17, 5), (17, 0), "document"),
        ("document-first", (18, 0), (17, 0), "query"),
        ("document-first", (90, 80), (17, 0), "both"),
        ("longest-first", (5, 12), (5, 12), "none"),
        ("longest-first", (5, 90), (5, 12), "document"),
        ("longest-first", (90, 5), (12, 5), "query"),
        ("longest-first", (9, 90), (8, 9), "both"),
        ("longest-first", (80, 90), (8, 9), "both"),
        ("longest-first", (90, 80), (9, 8), "both"),
        ("longest-first", (90, 90), (8, 9), "both"),
    ],
)
def test_a_long_pair_scores_as_one_cut_by_hand(
    tiny: Tiny, scorer: Scorers, name: str, truncation: str, full: tuple[int, int], kept: tuple[int, int], cut: str
) -> None:
    tokenizer = tokenizer_of(tiny(name))
    query, document = (text_of(name, tokens) for tokens in full)
    sides = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in (query, document)]
    assert tuple(map(len, sides)) == full
    q, d = (ids[:tokens] for ids, tokens in zip(sides, kept, strict=True))
    start, sep, gap = tokenizer.cls_token_id, tokenizer.sep_token_id, 1 if name == "bert_ce" else 2
    ids = [start, *q, *[sep] * gap, *d, sep]
    inputs = {"input_ids": torch.tensor([ids])}
    if name == "bert_ce":
        inputs["token_type_ids"] = torch.tensor([[0] * (len(q) + 2) + [1] * (len(d) + 1)])

    short = scorer(name, truncation=truncation, max_length=17 + 2 + gap)
    work = short.batcher.tokenize(columns([query], [document]))
    assert work.items.ids.tolist() == ids
    assert CUT_NAMES[work.cut[0]] == cut
    logit = score_work(short, work).logit
    assert logit is not None
    assert logit[0] == pytest.approx(logit_of(tiny(name), **inputs), abs=CLOSE)


@pytest.mark.parametrize("max_length", [6, 10])
@pytest.mark.parametrize("name", ["bert_dense", "roberta_mean"])
def test_max_length_cuts_each_side_and_counts_special_tokens_and_prompt(
    tiny: Tiny, scorer: Scorers, name: str, max_length: int
) -> None:
    vectors = scorer(name, max_length=max_length).score(QUERIES, DOCUMENTS)
    expected = torch.cosine_similarity(*BI_ENCODERS[name].vectors(tiny(name), max_length), dim=1).numpy()
    np.testing.assert_allclose(vectors, expected, rtol=0, atol=CLOSE)
    matrices = scorer(name, max_length=max_length, score_type="late-interaction").score(QUERIES, DOCUMENTS)
    prompts = LATE_INTERACTION[name]
    sums = [
        maxsim_of(tiny(name), prompts[0] + q, prompts[1] + d, max_length)
        for q, d in zip(QUERIES, DOCUMENTS, strict=True)
    ]
    np.testing.assert_allclose(matrices, sums, rtol=0, atol=MAXSIM_CLOSE)


@pytest.mark.parametrize("window_rows", [1, 1000])
@pytest.mark.parametrize(
    ("name", "score_type"),
    [("bert_ce", "cross-encoder"), ("roberta_mean", "bi-encoder"), ("bert_mean", "late-interaction")],
)
@pytest.mark.parametrize("long_side", [0, 1])
def test_truncation_error_refuses_a_long_pair_by_its_number(
    scorer: Scorers, name: str, score_type: str, window_rows: int, long_side: int
) -> None:
    strict = scorer(name, score_type=score_type, truncation="error", window_rows=window_rows)
    sides = [["cat", "dog", "house", "cat"], ["a", "b", "c", "d"]]
    assert np.isfinite(strict.score(*sides)).all()
    sides[long_side][2] = "stone " * 100
    with pytest.raises(InputError, match=r"^pair 2: longer than max_length 64 tokens\nhint: .*--truncation"):
        strict.score(*sides)
