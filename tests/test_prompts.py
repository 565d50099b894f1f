"""What the model reads: specials survive every length, texts give way as the truncation says, equal rows share work."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

import checkpoints
from batchscore.errors import BatchscoreError, UsageError
from batchscore.models.checkpoint import Checkpoint, open_checkpoint
from batchscore.models.resolve import resolve
from batchscore.models.spec import ModelSpec
from batchscore.models.text.prompts import pair_work
from batchscore.models.text.sides import InputReader
from batchscore.models.text.tokenizer import TextTokenizer, load_tokenizer, num_specials
from batchscore.scorer import Scorer
from batchscore.types import CUT_NAMES, Cells, Items, Pairs, Work

Tiny = Callable[[str], str]

CROSS_ENCODERS = ["bert_ce", "roberta_ce", "xlmr_ce"]
BI_ENCODERS = ["bert_mean", "roberta_mean", "xlmr_cls"]
QUERIES, DOCUMENTS = checkpoints.pairs(20)


def opened(tiny: Tiny, name: str, **changes: Any) -> tuple[TextTokenizer, ModelSpec]:
    checkpoint: Checkpoint = open_checkpoint(tiny(name))
    spec = replace(resolve(checkpoint, {}), **changes)
    if "max_length" in changes:  # what --max-length does
        spec = replace(spec, query_length=spec.max_length, document_length=spec.max_length)
    settings = {"restore_specials": spec.restore_specials, "lower_case": spec.lower_case}
    return load_tokenizer(checkpoint, trust_remote_code=False, **settings), spec


def text_work(tokenizer: TextTokenizer, spec: ModelSpec, pairs: Pairs) -> Work:
    return InputReader(spec, tokenizer, None, None).text_work(pairs)


def own(tiny: Tiny, name: str) -> Tokenizer:
    """The checkpoint's tokenizer as the `tokenizers` library loads it."""
    return Tokenizer.from_file(f"{tiny(name)}/tokenizer.json")


def pairs(queries: list[str], documents: list[str]) -> Pairs:
    return Pairs(Cells.of(queries), Cells.of(documents))


def lists(items: Items) -> list[list[int]]:
    return [items.ids[start:stop].tolist() for start, stop in pairwise(items.offsets)]


def cuts(work: Work) -> list[str]:
    return [CUT_NAMES[bits] for bits in work.cut]


def cats(words: int) -> str:
    """A text of so many tokens in the BERT rows."""
    return " ".join(["cat"] * words)


# ---- pairs


@pytest.mark.parametrize("name", CROSS_ENCODERS)
@pytest.mark.parametrize(("truncation", "strategy"), [("document-first", "only_second"), ("longest-first", None)])
def test_a_pair_is_truncated_as_the_tokenizers_library_does(
    tiny: Tiny, name: str, truncation: Any, strategy: str | None
) -> None:
    """With an even number of tokens to share: see the next test for the odd one."""
    tokenizer, spec = opened(tiny, name)
    spec = replace(spec, max_length=40 + num_specials(tokenizer.pair), truncation=truncation)
    short = [query for query in QUERIES if len(tokenizer.tokenize([query], 999)[0].ids) < 40]
    queries = short if strategy else QUERIES  # only_second fails where the query alone is too long
    rows = [(query, document) for query in queries for document in DOCUMENTS[:9]]
    reference = own(tiny, name)
    reference.enable_truncation(spec.max_length, strategy=strategy or "longest_first")

    work = pair_work(tokenizer, spec, pairs([q for q, _ in rows], [d for _, d in rows]))

    sequences = lists(work.items)
    assert [sequences[item] for item in work.right] == [e.ids for e in reference.encode_batch(rows)]
    assert {"none", "document"} <= set(cuts(work))


@pytest.mark.parametrize(
    ("query", "document"),
    [
        (20, 100),
        (100, 20),
        (70, 100),
        (80, 80),
        (100, 70),
    ],
)
def test_the_odd_token_goes_to_the_longer_side(tiny: Tiny, query: int, document: int) -> None:
    """61 tokens to share; the tokenizers library gives the 61st to the side that was longer before the cut."""
    tokenizer, spec = opened(tiny, "bert_ce", truncation="longest-first")
    reference = own(tiny, "bert_ce")
    reference.enable_truncation(spec.max_length)

    work = pair_work(tokenizer, spec, pairs([cats(query)], [cats(document)]))

    encoding = reference.encode(cats(query), cats(document))
    assert work.items.columns.get("types") is not None
    assert (work.items.ids.tolist(), work.items.columns.get("types").tolist()) == (encoding.ids, encoding.type_ids)


@pytest.mark.parametrize(
    ("max_length", "ids", "cut"),
    [
        (9, "[CLS] cat dog [SEP] red green blue [SEP]", "none"),
        (8, "[CLS] cat dog [SEP] red green blue [SEP]", "none"),
        (7, "[CLS] cat dog [SEP] red green [SEP]", "document"),
        (5, "[CLS] cat dog [SEP] [SEP]", "document"),
        (4, "[CLS] cat [SEP] [SEP]", "both"),
    ],
)
def test_specials_survive_at_every_length(tiny: Tiny, max_length: int, ids: str, cut: str) -> None:
    tokenizer, spec = opened(tiny, "bert_ce", max_length=max_length)

    work = pair_work(tokenizer, spec, pairs(["cat dog"], ["red green blue"]))

    vocab = own(tiny, "bert_ce").get_vocab()
    assert lists(work.items) == [[vocab[token] for token in ids.split()]]
    assert cuts(work) == [cut]


@pytest.mark.parametrize(
    ("name", "max_length"), [("bert_ce", 3), ("roberta_ce", 4), ("bert_mean", 2), ("bert_mean", 1)]
)
def test_a_max_length_without_room_for_text_is_refused_with_a_message(tiny: Tiny, name: str, max_length: int) -> None:
    with (
        pytest.raises(BatchscoreError, match="max.length"),
        Scorer(tiny(name), max_length=max_length, device="cpu", dtype="float32") as scorer,
    ):
        scorer.score("cat", "dog")


def test_longest_first_says_which_sides_were_cut(tiny: Tiny) -> None:
    tokenizer, spec = opened(tiny, "bert_ce", max_length=13, truncation="longest-first")  # 10 tokens of text
    rows = [(5, 5), (9, 2), (2, 9), (9, 9), (5, 6)]

    work = pair_work(tokenizer, spec, pairs([cats(q) for q, _ in rows], [cats(d) for _, d in rows]))

    assert cuts(work) == ["none", "query", "document", "both", "document"]


def test_equal_pairs_are_one_sequence(tiny: Tiny) -> None:
    tokenizer, spec = opened(tiny, "bert_ce")
    rows = [("cat", "dog"), ("cat", "bird"), ("dog", "cat"), ("cat", "dog"), ("dog", "cat")]

    work = pair_work(tokenizer, spec, pairs([q for q, _ in rows], [d for _, d in rows]))

    assert len(work.items) == 3
    assert (work.queries, work.left.tolist()) == (0, work.right.tolist())
    sequences = lists(work.items)
    assert [sequences[item] for item in work.right] == [own(tiny, "bert_ce").encode(*row).ids for row in rows]


@pytest.mark.parametrize(("name", "typed"), [("bert_ce", True), ("roberta_ce", False), ("xlmr_ce", False)])
def test_only_a_model_with_two_segments_reads_token_types(tiny: Tiny, name: str, typed: bool) -> None:
    work = pair_work(*opened(tiny, name), pairs(["cat"], ["dog"]))

    assert (work.items.columns.get("types") is not None) == typed


def test_a_cross_encoder_lowers_the_case_where_the_checkpoint_says_so(tiny: Tiny) -> None:
    tokenizer, spec = opened(tiny, "xlmr_ce", lower_case=True)

    work = pair_work(tokenizer, spec, pairs(["CAT"], ["The Dog"]))

    assert lists(work.items) == [own(tiny, "xlmr_ce").encode("cat", "the dog").ids]


# ---- texts


@pytest.mark.parametrize("name", BI_ENCODERS)
def test_a_text_is_its_prompt_and_itself_truncated_as_the_tokenizers_library_does(tiny: Tiny, name: str) -> None:
    tokenizer, spec = opened(tiny, name, max_length=20, query_prompt="find: ", document_prompt="page: ")
    reference = own(tiny, name)
    reference.enable_truncation(20)

    work = text_work(tokenizer, spec, pairs(QUERIES, DOCUMENTS))

    sequences = lists(work.items)
    assert [sequences[i] for i in work.left] == [e.ids for e in reference.encode_batch([f"find: {q}" for q in QUERIES])]
    assert [sequences[i] for i in work.right] == [
        e.ids for e in reference.encode_batch([f"page: {d}" for d in DOCUMENTS])
    ]


def test_distinct_queries_come_first_and_are_held(tiny: Tiny) -> None:
    tokenizer, spec = opened(tiny, "bert_mean", query_prompt="")

    work = text_work(tokenizer, spec, pairs(["cat", "cat", "dog", "cat"], ["a", "b", "a", "cat"]))

    assert (len(work.items), work.queries) == (2 + 3, 2)
    assert (work.left.tolist(), work.right.tolist()) == ([0, 0, 1, 0], [2, 3, 2, 4])
    assert lists(work.items)[0] == lists(work.items)[4]  # equal texts on both sides are two items
    assert work.items.columns.get("types") is None


def test_a_row_is_cut_where_its_own_texts_are(tiny: Tiny) -> None:
    tokenizer, spec = opened(tiny, "bert_mean", max_length=6, query_prompt="")
    long, fits = cats(5), cats(4)

    work = text_work(tokenizer, spec, pairs([fits, long, fits, long], [fits, fits, long, long]))

    assert cuts(work) == ["none", "query", "document", "both"]
    assert work.items.lengths.max() == 6


def test_a_single_sequence_keeps_its_specials_when_little_else_fits(tiny: Tiny) -> None:
    work = text_work(*opened(tiny, "bert_plain", max_length=3), pairs(["cat dog"], [""]))

    cls, sep, cat = 2, 3, own(tiny, "bert_plain").get_vocab()["cat"]
    assert lists(work.items) == [[cls, cat, sep], [cls, sep]]


def test_case_is_lowered_prompt_and_all(tiny: Tiny) -> None:
    tokenizer, spec = opened(tiny, "xlmr_lower", query_prompt="QUERY: ")

    work = text_work(tokenizer, spec, pairs(["The Cat"], ["DOG"]))

    reference = own(tiny, "xlmr_lower")
    assert lists(work.items) == [reference.encode("query: the cat").ids, reference.encode("dog").ids]
    assert lists(work.items)[1] != reference.encode("DOG").ids


# ---- keep: the tokens that count in the pooling


def test_every_token_counts_where_the_checkpoint_includes_prompts(tiny: Tiny) -> None:
    assert text_work(*opened(tiny, "bert_mean"), pairs(["cat"], ["dog"])).items.columns.get("keep") is None


def test_a_prompt_left_out_takes_the_first_special_with_it(tiny: Tiny) -> None:
    """As sentence-transformers counts it: the length of the encoded prompt without its last special token."""
    tokenizer, spec = opened(tiny, "bert_no_prompt_pooling", document_prompt="")

    work = text_work(tokenizer, spec, pairs(["cat dog", ""], ["bird", "bird"]))

    assert spec.query_prompt == "search: "  # 2 tokens
    assert work.items.columns.get("keep") is not None
    assert work.items.lengths.tolist() == [6, 4, 3]
    assert work.items.columns.get("keep").astype(int).tolist() == [*(0, 0, 0, 1, 1, 1), *(0, 0, 0, 1), *(1, 1, 1)]


def test_each_side_leaves_out_its_own_prompt(tiny: Tiny) -> None:
    tokenizer, spec = opened(tiny, "bert_no_prompt_pooling")

    work = text_work(tokenizer, spec, pairs(["cat"], ["dog"]))

    prompts = [len(tokenizer.tokenize([prompt], 99)[0].ids) for prompt in (spec.query_prompt, spec.document_prompt)]
    assert prompts[0] != prompts[1]
    assert work.items.columns.get("keep") is not None
    kept = np.add.reduceat(work.items.columns.get("keep").astype(int), work.items.offsets[:-1])
    assert (work.items.lengths - kept).tolist() == [1 + prompt for prompt in prompts]


def test_a_prompt_is_measured_in_the_case_it_is_read_in(tiny: Tiny) -> None:
    """xlmr_lower has words in lower case only: in capitals the same prompt would be more tokens."""
    tokenizer, spec = opened(tiny, "xlmr_lower", include_prompt=False, query_prompt="THE QUERY ")

    work = text_work(tokenizer, spec, pairs(["cat"], ["dog"]))

    assert work.items.columns.get("keep") is not None
    assert work.items.columns.get("keep")[: work.items.lengths[0]].tolist() == [False, False, False, True, True]


def test_a_prompt_that_fills_max_length_is_refused(tiny: Tiny) -> None:
    tokenizer, spec = opened(tiny, "bert_no_prompt_pooling", max_length=3, document_prompt="")

    with pytest.raises(UsageError, match="leaves no room for text in max_length 3"):
        text_work(tokenizer, spec, pairs(["cat"], ["dog"]))


# ---- truncation "error"


@pytest.mark.parametrize(
    ("name", "query", "document"),
    [("bert_ce", 30, 31), ("bert_mean", 60, 62)],  # 3 specials; 2 specials and, on the query's side, 2 of its prompt
)
def test_what_fits_exactly_is_not_refused(tiny: Tiny, name: str, query: int, document: int) -> None:
    make = pair_work if name == "bert_ce" else text_work

    work = make(*opened(tiny, name, truncation="error"), pairs([cats(query)], [cats(document)]))

    assert (set(work.items.lengths.tolist()), cuts(work)) == ({64}, ["none"])


LONG = cats(100)


@pytest.mark.parametrize(
    ("name", "queries", "documents", "row"),
    [
        ("bert_ce", ["a", "b", "a", "b"], ["c", "c", LONG, LONG], 2),
        ("bert_ce", ["b", "a", "b"], ["c", LONG, LONG], 1),  # rows, not distinct pairs, which go by query
        ("bert_ce", [cats(40), cats(40)], [cats(21), cats(22)], 1),  # neither side alone is too long
        ("bert_mean", ["a", "b", "a", LONG], ["c", LONG, "c", "d"], 1),
        ("bert_mean", ["a", LONG, "a", LONG], ["c", "c", "c", "d"], 1),
    ],
)
def test_error_names_the_first_row_that_is_too_long(
    tiny: Tiny, name: str, queries: list[str], documents: list[str], row: int
) -> None:
    tokenizer, spec = opened(tiny, name, truncation="error")
    make = pair_work if name == "bert_ce" else text_work

    work = make(tokenizer, spec, pairs(queries, documents))

    fault = work.faults[min(work.faults)]
    assert (min(work.faults), fault.code, fault.is_models) == (row, "too-long", False)
    assert (fault.message, str(fault.hint)[:18]) == ("longer than max_length 64 tokens", "pass --truncation ")
    assert [number for number in range(len(work)) if work.right[number] < 0] == sorted(work.faults)


# ---- max_tokens_per_doc


def test_max_tokens_count_the_letters_that_the_model_reads(tiny: Tiny) -> None:
    """Capitals fall into more tokens; where the model lower-cases its texts, the limit is of what it reads."""
    as_written, _ = opened(tiny, "xlmr_ce")
    tokenizer, spec = opened(tiny, "xlmr_ce", max_tokens_per_doc=4, lower_case=True)
    document = "the cat sat on the mat".upper()
    assert as_written.count(document) > tokenizer.count(document) > 4

    shorter, _ = InputReader(spec, tokenizer, None, None).shortened(pairs(["cat"], [document]))

    assert tokenizer.count(shorter.documents.values[0]) == 4
    assert document.startswith(shorter.documents.values[0])
