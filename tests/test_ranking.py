"""The order of a query's documents follows from scores and input order alone."""

from __future__ import annotations

import numpy as np
import pytest

from batchscore.engine.ranking import positions_in_groups, rank_rows


def rank(groups: list[int], index: list[int], scores: list[float], top_n: int = 0) -> list[tuple[int, int]]:
    """(row, rank) of each kept row."""
    rows, ranks = rank_rows(np.array(groups, np.int32), np.array(index, np.int32), np.array(scores, np.float32), top_n)
    return list(zip(rows.tolist(), ranks.tolist(), strict=True))


def test_documents_are_ranked_by_descending_score() -> None:
    assert rank([0, 0, 0], [0, 1, 2], [-0.5, 0.75, 0.25]) == [(1, 1), (2, 2), (0, 3)]


def test_equal_scores_keep_the_order_of_the_documents() -> None:
    assert rank([0] * 4, [3, 1, 2, 0], [0.5, 0.5, 0.9, 0.5]) == [(2, 1), (3, 2), (1, 3), (0, 4)]


def test_positive_and_negative_zero_are_equal_scores() -> None:
    assert rank([0, 0], [0, 1], [-0.0, 0.0]) == [(0, 1), (1, 2)]


def test_interleaved_groups_come_out_one_after_the_other() -> None:
    assert rank([2, 0, 2, 0], [0, 0, 1, 1], [0.1, 0.2, 0.3, 0.4]) == [(3, 1), (1, 2), (2, 1), (0, 2)]


@pytest.mark.parametrize(
    ("top_n", "kept"),
    [
        (0, [(1, 1), (0, 2), (4, 3), (3, 1), (2, 2)]),
        (1, [(1, 1), (3, 1)]),
        (2, [(1, 1), (0, 2), (3, 1), (2, 2)]),
        (9, [(1, 1), (0, 2), (4, 3), (3, 1), (2, 2)]),
    ],
)
def test_top_n_keeps_the_first_of_each_group_and_zero_keeps_all(top_n: int, kept: list[tuple[int, int]]) -> None:
    assert rank([0, 0, 1, 1, 0], [0, 1, 0, 1, 2], [2, 3, 1, 4, 1], top_n) == kept


@pytest.mark.parametrize("top_n", [0, 3])
def test_no_rows_rank_to_no_rows(top_n: int) -> None:
    rows, ranks = rank_rows(np.empty(0, np.int32), np.empty(0, np.int32), np.empty(0, np.float32), top_n)

    assert (len(rows), len(ranks), str(rows.dtype), str(ranks.dtype)) == (0, 0, "int64", "int32")


@pytest.mark.parametrize("seed", range(5))
def test_many_groups_rank_as_each_group_sorted_alone(seed: int) -> None:
    rng = np.random.default_rng(seed)
    groups, scores = rng.integers(0, 9, 200), rng.integers(0, 5, 200)
    index = rng.permutation(200)

    expected = [
        (row, place + 1)
        for group in sorted(set(groups.tolist()))
        for place, row in enumerate(
            sorted(np.flatnonzero(groups == group).tolist(), key=lambda row: (-scores[row], index[row]))
        )
    ]
    assert rank(groups.tolist(), index.tolist(), scores.tolist()) == expected
    assert rank(groups.tolist(), index.tolist(), scores.tolist(), 4) == [pair for pair in expected if pair[1] <= 4]


def test_rows_are_numbered_within_their_group_in_input_order() -> None:
    counts = np.zeros(3, np.int64)

    positions = positions_in_groups(np.array([2, 0, 2, 2, 0]), counts)

    assert (positions.tolist(), str(positions.dtype), counts.tolist()) == ([0, 0, 1, 2, 1], "int32", [2, 0, 3])


def test_numbering_goes_on_from_the_rows_seen_before() -> None:
    counts = np.array([10, 0, 5])

    assert positions_in_groups(np.array([1, 0, 2, 0]), counts).tolist() == [0, 10, 5, 11]
    assert counts.tolist() == [12, 1, 6]


@pytest.mark.parametrize("window", [1, 7, 64, 1_000])
def test_windows_number_rows_as_one_window_would(window: int) -> None:
    groups = np.random.default_rng(0).integers(0, 12, 200)
    counts, whole = np.zeros(12, np.int64), np.zeros(12, np.int64)

    parts = [positions_in_groups(groups[start : start + window], counts) for start in range(0, 200, window)]

    assert np.concatenate(parts).tolist() == positions_in_groups(groups, whole).tolist()
    assert counts.tolist() == whole.tolist() == np.bincount(groups, minlength=12).tolist()


def test_an_empty_window_numbers_nothing() -> None:
    counts = np.array([3, 4])

    assert (positions_in_groups(np.empty(0, np.int64), counts).tolist(), counts.tolist()) == ([], [3, 4])
