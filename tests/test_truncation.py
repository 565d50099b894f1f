"""How many tokens of each side stay when both do not fit: every token of room is used, and by the right side."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from batchscore.models.text.truncation import BY_PIECES, LIBRARY_LIMITS, cut_document_first, cut_longest_first, rule_of
from batchscore.types import Truncation

LENGTHS = np.arange(10)


@pytest.mark.parametrize("budget", [1, 2, 3, 4, 5, 8, 9, 17, 18, 30])
def test_longest_first_cuts_as_the_tokenizers_library_does(budget: int) -> None:
    tokenizer = Tokenizer(models.WordLevel({"x": 0}, unk_token="x"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.enable_truncation(budget, strategy="longest_first")
    queries, documents = (side.ravel() for side in np.meshgrid(LENGTHS, LENGTHS))
    encoded = tokenizer.encode_batch([("x " * q, "x " * d) for q, d in zip(queries, documents, strict=True)])

    kept = cut_longest_first(queries, documents, budget)

    assert kept[0].tolist() == [e.sequence_ids.count(0) for e in encoded]
    assert kept[1].tolist() == [e.sequence_ids.count(1) for e in encoded]


@pytest.mark.parametrize(
    ("query", "document", "budget", "kept"),
    [
        (3, 9, 20, (3, 9)),  # both fit
        (3, 9, 8, (3, 5)),  # the document gives way
        (3, 9, 3, (3, 0)),  # to its last token
        (3, 9, 2, (2, 0)),  # then the query
        (3, 9, 0, (0, 0)),
        (0, 9, 4, (0, 4)),
        (9, 0, 4, (4, 0)),
    ],
)
def test_document_first_cuts_the_document_then_the_query(
    query: int, document: int, budget: int, kept: tuple[int, int]
) -> None:
    sides = cut_document_first(np.array([query]), np.array([document]), budget)

    assert (sides[0].item(), sides[1].item()) == kept


@pytest.mark.parametrize("cut", [cut_document_first, cut_longest_first])
@pytest.mark.parametrize("budget", [0, 1, 7, 12, 100])
def test_what_is_kept_fills_the_budget_or_is_everything(cut: Callable[..., Any], budget: int) -> None:
    queries, documents = (side.ravel() for side in np.meshgrid(LENGTHS, LENGTHS))

    kept = cut(queries, documents, budget)

    assert min(kept[0].min(), kept[1].min()) == 0
    assert (kept[0] + kept[1]).tolist() == np.minimum(queries + documents, budget).tolist()


@pytest.mark.parametrize("cut", [cut_document_first, cut_longest_first])
def test_rows_may_have_budgets_of_their_own(cut: Callable[..., Any]) -> None:
    queries, documents, budgets = (side.ravel() for side in np.meshgrid(LENGTHS, LENGTHS, np.arange(20)))

    kept = cut(queries, documents, budgets)

    one_by_one = [
        cut(*(np.array([side]) for side in row), b) for *row, b in zip(queries, documents, budgets, strict=True)
    ]
    assert kept[0].tolist() == [query.item() for query, _ in one_by_one]
    assert kept[1].tolist() == [document.item() for _, document in one_by_one]


def test_document_first_keeps_at_least_as_much_of_the_query_as_any_rule() -> None:
    queries, documents, budgets = (side.ravel() for side in np.meshgrid(LENGTHS, LENGTHS, np.arange(20)))

    kept, other = cut_document_first(queries, documents, budgets), cut_longest_first(queries, documents, budgets)

    assert (kept[0] >= other[0]).all()
    assert (kept[0] > other[0]).any()


@pytest.mark.parametrize("truncation", get_args(Truncation))
def test_only_longest_first_shares_and_every_other_rule_cuts_the_document_first(truncation: Truncation) -> None:
    """The rules of libraries differ in what they allow, not in what gives way."""
    cut = cut_longest_first if truncation == "longest-first" else cut_document_first

    assert rule_of(truncation) is cut


@pytest.mark.parametrize("rule", BY_PIECES)
@pytest.mark.parametrize(("length", "query"), [(512, 384), (8192, 6144), (10, 7), (1, 0)])
def test_a_librarys_rule_gives_three_quarters_to_the_query(rule: Truncation, length: int, query: int) -> None:
    limits = LIBRARY_LIMITS[rule](length, [5, 1, 1, 30, 4])

    assert (limits.query, limits.document) == (query, length)
    assert limits.whole > length


def test_qwen3_vls_rule_spares_the_five_tokens_that_end_its_prompt() -> None:
    limits = LIBRARY_LIMITS["qwen3-vl"](512, [5, 1])

    assert limits.whole == 512 + 5
    assert min(limits.query, limits.document) > 1_000_000
