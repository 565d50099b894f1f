"""Packs are a partition of the window, long sequences first; what crosses layers as arrays says what lists would."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from batchscore.engine.scheduler import collate, plan_packs
from batchscore.types import Batch, Items, Pairs, Texts, Work, offsets_of, ranges


def lengths_of(seed: int) -> np.ndarray:
    """Few distinct lengths, so that there are ties; some above a budget of 64."""
    rng = np.random.default_rng(seed)
    return rng.choice([1, 2, 3, 17, 40, 63, 64, 65, 200], size=int(rng.integers(1, 60)))


def items_of(*sequences: list[int], typed: bool = True) -> Items:
    """Sequences of ids; an id is its token's type times ten, and even ids are kept."""
    ids = np.array(sum(sequences, []), np.int32)
    offsets = offsets_of(np.array([len(sequence) for sequence in sequences]))
    return Items(ids, offsets, ids * 10, ids % 2 == 0) if typed else Items(ids, offsets)


def lists_of(items: Items) -> list[list[int]]:
    return [items.ids[start:stop].tolist() for start, stop in pairwise(items.offsets)]


def texts_of(texts: Texts) -> list[str]:
    return [texts.values[code] for code in texts.codes]


def work_of(lengths: list[int], held: int, left: list[int], right: list[int]) -> Work:
    items = Items(np.zeros(sum(lengths), np.int32), offsets_of(np.array(lengths)))
    return Work(items, held, np.array(left, np.int32), np.array(right, np.int32), np.zeros(len(right), np.uint8))


# ---- plan_packs


def test_packs_are_cut_before_the_sequence_that_would_pass_the_budget() -> None:
    packs = plan_packs(np.array([3, 9, 4, 4, 20]), max_tokens=10)

    assert [pack.tolist() for pack in packs] == [[4], [1], [2, 3], [0]]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("min_packs", [1, 2, 7])
def test_every_sequence_is_in_one_pack_longest_first_and_ties_in_order(seed: int, min_packs: int) -> None:
    lengths = lengths_of(seed)

    order = np.concatenate(plan_packs(lengths, 64, min_packs)).tolist()

    assert order == sorted(range(len(lengths)), key=lambda index: -lengths[index])


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("min_packs", [1, 2, 7])
def test_a_pack_is_within_the_budget_or_one_sequence(seed: int, min_packs: int) -> None:
    lengths = lengths_of(seed)

    packs = plan_packs(lengths, 64, min_packs)

    assert all(lengths[pack].sum() <= 64 or len(pack) == 1 for pack in packs)


@pytest.mark.parametrize("seed", range(8))
def test_a_pack_ends_only_where_the_next_sequence_does_not_fit(seed: int) -> None:
    lengths = lengths_of(seed)

    packs = plan_packs(lengths, 64)

    assert all(lengths[a].sum() + lengths[b[0]] > 64 for a, b in pairwise(packs))


@pytest.mark.parametrize(
    ("lengths", "min_packs", "sizes"),
    [
        ([5] * 8, 1, [8]),
        ([5] * 8, 4, [2, 2, 2, 2]),
        ([5] * 3, 7, [1, 1, 1]),  # more workers than sequences
        ([2] * 5, 3, [2, 2, 1]),  # 10 tokens for 3 packs: at most 4 in each
    ],
)
def test_work_is_shared_among_the_workers(lengths: list[int], min_packs: int, sizes: list[int]) -> None:
    assert [len(pack) for pack in plan_packs(np.array(lengths), 1_000, min_packs)] == sizes


def test_no_sequences_make_no_packs() -> None:
    assert plan_packs(np.empty(0, np.int64), 64, min_packs=2) == []


# ---- collate and Batch


def test_collate_lays_sequences_end_to_end_with_restarting_positions() -> None:
    items = items_of([1, 2, 3], [4], [5, 6])

    batch = collate(items, np.array([2, 0]), first_position=0)

    assert batch.input_ids.tolist() == [5, 6, 1, 2, 3]
    assert batch.position_ids.tolist() == [0, 1, 0, 1, 2]
    assert batch.offsets.tolist() == [0, 2, 5]
    assert batch.token_type_ids is not None
    assert batch.token_type_ids.tolist() == [50, 60, 10, 20, 30]
    assert batch.keep is not None
    assert batch.keep.tolist() == [False, True, False, True, False]


def test_the_arrays_of_a_batch_have_the_dtypes_a_model_takes() -> None:
    batch = collate(items_of([1, 2], [3]), np.array([0, 1]), first_position=2)

    columns = (batch.input_ids, batch.position_ids, batch.token_type_ids, batch.offsets, batch.keep)
    assert [str(column.dtype) for column in columns if column is not None] == [*["int64"] * 3, "int32", "bool"]


@pytest.mark.parametrize("first_position", [0, 2])
def test_positions_count_from_first_position(first_position: int) -> None:
    batch = collate(items_of([7, 8, 9], [6]), np.array([0, 1]), first_position)

    assert batch.position_ids.tolist() == [first_position + place for place in (0, 1, 2, 0)]


def test_padding_tokens_in_a_text_are_not_counted_where_positions_begin_after_the_padding() -> None:
    batch = collate(items_of([7, 1, 8, 1, 1, 9], [1, 6]), np.array([0, 1]), first_position=2)

    assert batch.position_ids.tolist() == [2, 1, 3, 1, 1, 4, 1, 2]


def test_a_batch_has_types_and_keep_only_where_the_items_have() -> None:
    batch = collate(items_of([1, 2], [3], typed=False), np.array([1]), first_position=0)

    assert (batch.token_type_ids, batch.keep, len(batch)) == (None, None, 1)


def batch_of(lengths: list[int]) -> Batch:
    items = Items(np.zeros(sum(lengths), np.int32), offsets_of(np.array(lengths, np.int64)))
    return collate(items, np.arange(len(lengths)), first_position=0)


def test_runs_are_the_stretches_of_equal_length() -> None:
    assert batch_of([5, 5, 3, 1, 1, 1]).runs() == [(0, 2, 5), (10, 1, 3), (13, 3, 1)]


@pytest.mark.parametrize(
    "lengths", [[], [7], [2, 2], [0, 0], [3, 1, 3], lengths_of(1).tolist(), sorted(lengths_of(2))[::-1]]
)
def test_runs_spell_out_every_sequence_of_the_batch(lengths: list[int]) -> None:
    spelled = [(start + n * length, length) for start, count, length in batch_of(lengths).runs() for n in range(count)]

    assert spelled == list(zip(offsets_of(np.array(lengths, np.int64)).tolist(), lengths, strict=False))


# ---- Items


def test_offsets_are_where_each_run_starts_and_the_last_ends() -> None:
    assert offsets_of(np.array([2, 0, 3], np.int32)).tolist() == [0, 2, 2, 5]
    assert offsets_of(np.empty(0, np.int64)).tolist() == [0]


def test_ranges_are_counted_from_each_start() -> None:
    assert ranges(np.array([5, 7, 0]), np.array([2, 0, 3])).tolist() == [5, 6, 0, 1, 2]


@pytest.mark.parametrize("index", [[], [1], [2, 0, 2], [3, 2, 1, 0]], ids=str)
def test_take_gathers_ids_types_and_keep_of_the_same_sequences(index: list[int]) -> None:
    sequences = [[1, 2, 3], [], [4], [5, 6]]

    taken = items_of(*sequences).take(np.array(index, np.int64))

    assert lists_of(taken) == [sequences[i] for i in index]
    assert taken.lengths.tolist() == [len(sequences[i]) for i in index]
    assert taken.types is not None
    assert taken.types.tolist() == (taken.ids * 10).tolist()
    assert taken.keep is not None
    assert taken.keep.tolist() == (taken.ids % 2 == 0).tolist()


def test_take_makes_no_types_and_keep_where_there_are_none() -> None:
    taken = items_of([1], [2, 3], typed=False).take(np.array([1]))

    assert (taken.types, taken.keep, len(taken)) == (None, None, 1)


# ---- Texts and Pairs


def test_distinct_texts_are_numbered_by_first_appearance() -> None:
    texts = Texts.of(["b", "", "a", "b"])

    assert (texts.values, texts.codes.tolist(), str(texts.codes.dtype)) == (["b", "", "a"], [0, 1, 2, 0], "int32")


def test_no_texts_are_an_empty_column() -> None:
    assert (Texts.of([]).values, Texts.of([]).codes.tolist()) == ([], [])


@pytest.mark.parametrize("rows", [slice(0, 5), slice(1, 3), slice(4, 9), slice(2, 2)], ids=str)
def test_some_rows_hold_their_own_texts_and_no_others(rows: slice) -> None:
    column = ["b", "c", "a", "b", "a"]

    texts = Texts.of(column).rows(rows)

    assert texts_of(texts) == column[rows]
    assert sorted(texts.values) == sorted(set(column[rows]))


def test_some_rows_of_pairs_keep_query_and_document_together() -> None:
    pairs = Pairs(Texts.of(["q", "q", "r", "q"]), Texts.of(["a", "b", "a", "c"]))

    some = pairs.rows(slice(1, 3))

    assert len(some) == 2
    assert (texts_of(some.queries), texts_of(some.documents)) == (["q", "r"], ["b", "a"])


# ---- Work


def test_a_cross_encoder_is_one_group_of_all_rows() -> None:
    groups = list(work_of([4, 5], held=0, left=[0, 1, 1], right=[0, 1, 1]).split(1))

    assert [(held, rows.tolist()) for held, rows in groups] == [(range(0), [0, 1, 2])]


@pytest.mark.parametrize(
    ("limit", "groups"),
    [
        (9, [(range(3), [0, 1, 2, 3])]),
        (6, [(range(2), [0, 2, 3]), (range(2, 3), [1])]),
        (3, [(range(1), [0, 3]), (range(1, 2), [2]), (range(2, 3), [1])]),
        (2, [(range(1), [0, 3]), (range(1, 2), [2]), (range(2, 3), [1])]),  # each of them alone is above the limit
    ],
)
def test_held_items_are_grouped_within_the_limit(limit: int, groups: list[tuple[range, list[int]]]) -> None:
    work = work_of([3, 3, 3, 8, 8], held=3, left=[0, 2, 1, 0], right=[3, 3, 4, 4])

    assert [(held, rows.tolist()) for held, rows in work.split(limit)] == groups


def test_a_group_that_begins_in_the_middle_of_a_multiple_is_within_the_limit() -> None:
    lengths = [3, 3, 1, 1]
    work = work_of(lengths, held=4, left=[0, 1, 2, 3], right=[0, 0, 0, 0])

    assert all(sum(lengths[item] for item in held) <= 4 for held, _ in work.split(4))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("limit", [1, 64, 300, 10_000])
def test_every_row_is_in_the_group_that_holds_its_query(seed: int, limit: int) -> None:
    held = lengths_of(seed)
    left = np.random.default_rng(seed).integers(0, len(held), 50)
    work = work_of([*held, 9], len(held), left.tolist(), [len(held)] * 50)

    groups = list(work.split(limit))

    assert [item for held_items, _ in groups for item in held_items] == list(range(len(held)))
    assert sorted(row for _, rows in groups for row in rows) == list(range(50))
    assert all(left[row] in held_items for held_items, rows in groups for row in rows)


def test_a_row_counts_the_tokens_of_both_sides() -> None:
    assert work_of([3, 5, 7], held=1, left=[0, 0, 0], right=[1, 2, 1]).row_tokens().tolist() == [8, 10, 8]


def test_a_cross_encoders_row_counts_its_pair_once() -> None:
    work = work_of([3, 5], held=0, left=[1, 0, 1], right=[1, 0, 1])

    assert (work.row_tokens().tolist(), len(work)) == ([5, 3, 5], 3)
