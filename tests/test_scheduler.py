"""Packs are a partition of the window, long sequences first; what crosses layers as arrays says what lists would."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from batchscore.engine.scheduler import Pack, plan_packs
from batchscore.runners.batch import Batch, collate, position_ids
from batchscore.runners.sequences import runs_of
from batchscore.types import Cells, Fault, Items, Pairs, Scores, Work, offsets_of, ranges


def lengths_of(seed: int) -> np.ndarray:
    """Few distinct lengths, so that there are ties; some above a budget of 64."""
    rng = np.random.default_rng(seed)
    return rng.choice([1, 2, 3, 17, 40, 63, 64, 65, 200], size=int(rng.integers(1, 60)))


def items_of(*sequences: list[int], typed: bool = True) -> Items:
    """Sequences of ids; an id is its token's type times ten, and even ids are kept."""
    ids = np.array(sum(sequences, []), np.int32)
    items = Items(offsets_of([len(sequence) for sequence in sequences]), {"ids": ids})
    return items.with_columns(types=ids * 10, keep=ids % 2 == 0) if typed else items


def lists_of(items: Items) -> list[list[int]]:
    return [items.ids[start:stop].tolist() for start, stop in pairwise(items.offsets)]


def texts_of(texts: Cells) -> list[str]:
    return [texts.values[code] for code in texts.codes]


def work_of(lengths: list[int], queries: int, left: list[int], right: list[int]) -> Work:
    items = Items(offsets_of(lengths), {"ids": np.zeros(sum(lengths), np.int32)})
    cut, group = np.zeros(len(right), np.uint8), np.zeros(len(lengths), np.int32)
    return Work(items, queries, np.array(left, np.int32), np.array(right, np.int32), cut, group)


def packs_of(lengths: np.ndarray, max_cost: int, min_packs: int = 1) -> list[list[int]]:
    """Packs of sequences that cost their tokens and are of one query."""
    index, group = np.arange(len(lengths)), np.zeros(len(lengths), np.int32)
    return [pack.index.tolist() for pack in plan_packs(index, lengths, lengths, group, max_cost, min_packs)]


# ---- plan_packs


def test_packs_end_before_the_sequence_that_would_pass_the_budget() -> None:
    assert packs_of(np.array([3, 9, 4, 4, 20]), 10) == [[4], [1], [2, 3], [0]]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("min_packs", [1, 2, 7])
def test_every_sequence_is_in_one_pack_longest_first_and_ties_in_order(seed: int, min_packs: int) -> None:
    lengths = lengths_of(seed)

    order = sum(packs_of(lengths, 64, min_packs), [])

    assert order == sorted(range(len(lengths)), key=lambda index: -lengths[index])


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("min_packs", [1, 2, 7])
def test_a_pack_is_within_the_budget_or_one_sequence(seed: int, min_packs: int) -> None:
    lengths = lengths_of(seed)

    assert all(lengths[pack].sum() <= 64 or len(pack) == 1 for pack in packs_of(lengths, 64, min_packs))


@pytest.mark.parametrize("seed", range(8))
def test_a_pack_ends_only_where_the_next_sequence_does_not_fit(seed: int) -> None:
    lengths = lengths_of(seed)

    assert all(lengths[a].sum() + lengths[b[0]] > 64 for a, b in pairwise(packs_of(lengths, 64)))


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
    assert [len(pack) for pack in packs_of(np.array(lengths), 1_000, min_packs)] == sizes


def makespan(costs: list[int], workers: int) -> int:
    """When the last of some workers is done, each of which takes the next pack when it is free."""
    free = [0] * workers
    for cost in costs:
        free[free.index(min(free))] += cost
    return max(free)


def documents(count: int, seed: int) -> np.ndarray:
    """Lengths of as many documents, 10 to 256 tokens with a median of some 80."""
    return np.clip(np.random.default_rng(seed).lognormal(4.4, 0.7, count), 10, 256).astype(np.int64)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("count", [64, 150, 300, 1_000, 3_000])
@pytest.mark.parametrize("workers", [1, 2, 4, 8, 16])
def test_workers_end_together(count: int, workers: int, seed: int) -> None:
    """Within a tenth of what packs that could be divided would take; where there is little, each has one at most."""
    lengths = documents(count, seed)
    packs = plan_packs(np.arange(count), lengths, lengths, np.zeros(count, np.int32), 2_048, multiple=16)

    assert makespan([pack.cost for pack in packs], workers) <= max(1.1 * lengths.sum() / workers, 1_024)
    filled = plan_packs(np.arange(count), lengths, lengths, np.zeros(count, np.int32), 2_048)
    assert len(packs) <= max(1.4 * len(filled), lengths.sum() / 512 + 1, 16)


def test_images_are_shared_by_two_workers() -> None:
    """64 images of 50 tokens filled a pack with 40 of them, and the other worker had 24."""
    costs = np.full(64, 50)

    packs = plan_packs(np.arange(64), costs, costs, np.zeros(64, np.int32), 2_048, multiple=16)
    assert [len(pack) for pack in packs] == [16, 16, 16, 16]


@pytest.mark.parametrize("seed", range(4))
def test_a_shared_pack_is_within_the_budget_or_one_sequence(seed: int) -> None:
    lengths = np.random.default_rng(seed).integers(1, 300, 200)
    packs = plan_packs(np.arange(200), lengths, lengths, np.zeros(200, np.int32), 256, multiple=16)

    assert sorted(np.concatenate([pack.index for pack in packs]).tolist()) == list(range(200))
    assert all(pack.cost <= 256 or len(pack) == 1 for pack in packs)


def test_no_sequences_make_no_packs() -> None:
    assert packs_of(np.empty(0, np.int64), 64, min_packs=2) == []


def test_packs_are_full_by_what_their_items_cost() -> None:
    """A sequence with an image costs more than its tokens; the order is still that of lengths."""
    lengths, costs = np.array([9, 8, 8, 7, 6]), np.array([9, 80, 8, 7, 60])

    packs = plan_packs(np.arange(5), lengths, costs, np.zeros(5, np.int32), 100)

    assert [(pack.index.tolist(), pack.cost) for pack in packs] == [([0, 1, 2], 97), ([3, 4], 67)]


def test_equally_long_items_of_one_query_are_neighbours() -> None:
    lengths, group = np.array([4, 5, 4, 4, 5, 4]), np.array([7, 2, -1, 3, 2, 7])

    (pack,) = plan_packs(np.arange(6), lengths, lengths, group, 100)

    assert pack.index.tolist() == [1, 4, 2, 3, 0, 5]


def test_only_the_items_that_are_asked_for_are_packed() -> None:
    packs = plan_packs(np.array([3, 1]), np.array([9, 2, 9, 4]), np.array([9, 2, 9, 4]), np.zeros(4, np.int32), 100)

    assert [pack.index.tolist() for pack in packs] == [[3, 1]]


def test_a_pack_without_some_of_its_items_keeps_the_order_and_the_costs_of_the_others() -> None:
    pack = Pack(np.array([4, 0, 2, 3]), np.array([40, 10, 20, 30]))

    some = pack.only(np.array([True, True, False, True, False]))

    assert (some.index.tolist(), some.costs.tolist(), some.cost, len(some)) == ([0, 3], [10, 30], 40, 2)


@pytest.mark.parametrize("size", [2, 3, 8])
def test_two_halves_are_the_pack(size: int) -> None:
    pack = Pack(np.arange(size), np.arange(size) * 10)

    first, second = pack.halves()

    assert [*first.index, *second.index] == list(range(size))
    assert first.cost + second.cost == pack.cost
    assert abs(len(first) - len(second)) <= 1


# ---- collate


def batch_of(items: Items, index: list[int], layout: str = "flat", first_position: int = 0) -> Batch:
    pack = items.take(np.array(index))
    return collate(pack, layout, "cpu", first_position=first_position, padding=99, is_query=False)


def test_flat_sequences_are_end_to_end_with_restarting_positions() -> None:
    batch = batch_of(items_of([1, 2, 3], [4], [5, 6]), [0, 2])

    (call,) = batch.calls
    assert {name: tensor.tolist() for name, tensor in call.inputs.items()} == {
        "input_ids": [[1, 2, 3, 5, 6]],
        "position_ids": [[0, 1, 2, 0, 1]],
        "token_type_ids": [[10, 20, 30, 50, 60]],
    }
    assert call.sequences is not None
    assert call.sequences.offsets.tolist() == [0, 3, 5]
    assert (call.sequences.longest, call.sequences.seen, call.tokens) == (3, None, None)
    assert (len(batch), batch.num_tokens, batch.longest, batch.lengths.tolist()) == (2, 5, 3, [3, 2])


def test_padded_sequences_are_rows_and_their_tokens_are_found_again() -> None:
    items = items_of([1, 2, 3], [4], [5, 6])

    (call,) = batch_of(items, [0, 2, 1], "padded").calls

    assert {name: tensor.tolist() for name, tensor in call.inputs.items()} == {
        "input_ids": [[1, 2, 3], [5, 6, 99], [4, 99, 99]],
        "attention_mask": [[1, 1, 1], [1, 1, 0], [1, 0, 0]],
        "token_type_ids": [[10, 20, 30], [50, 60, 0], [40, 0, 0]],
    }
    assert call.tokens is not None
    assert call.inputs["input_ids"].flatten()[call.tokens].tolist() == [1, 2, 3, 5, 6, 4]
    assert call.sequences is None


def test_even_sequences_are_a_forward_for_each_length_and_have_no_padding() -> None:
    calls = batch_of(items_of([1, 2], [3, 4], [5]), [0, 1, 2], "even").calls

    assert [call.inputs["input_ids"].tolist() for call in calls] == [[[1, 2], [3, 4]], [[5]]]
    assert [call.tokens for call in calls] == [None, None]


def test_tokens_that_nobody_attends_to_are_masked_in_every_layout() -> None:
    items = items_of([1, 2], [3], typed=False).with_columns(seen=np.array([True, False, True]))

    assert batch_of(items, [0, 1], "padded").calls[0].inputs["attention_mask"].tolist() == [[1, 0], [1, 0]]
    sequences = batch_of(items, [0, 1]).calls[0].sequences
    assert sequences is not None
    first, second = sequences.seen or ()
    assert (first.flatten().tolist(), second) == ([True, False], None)  # the second run hides nothing


def test_the_tokens_that_count_are_told_by_mask_index_and_number() -> None:
    batch = batch_of(items_of([1, 2, 4], [6]), [0, 1])

    assert batch.keep is not None
    assert batch.kept is not None
    assert batch.keep.tolist() == [False, True, True, True]
    assert (batch.kept.tolist(), batch.kept_sizes) == ([1, 2, 3], [2, 1])


def test_where_every_token_counts_nothing_is_kept_apart() -> None:
    batch = batch_of(items_of([1, 2], [3], typed=False), [0, 1])

    assert (batch.keep, batch.kept, batch.kept_sizes) == (None, None, [2, 1])
    assert "token_type_ids" not in batch.calls[0].inputs


def test_the_tensors_of_a_batch_have_the_dtypes_a_model_takes() -> None:
    (call,) = batch_of(items_of([1, 2], [3]), [0, 1], first_position=2).calls

    assert {str(tensor.dtype) for tensor in call.inputs.values()} == {"torch.int64"}
    assert call.sequences is not None
    assert str(call.sequences.offsets.dtype) == "torch.int32"


@pytest.mark.parametrize("first_position", [0, 2])
def test_positions_count_from_first_position(first_position: int) -> None:
    positions = position_ids(items_of([7, 8, 9], [6]), first_position)

    assert positions.tolist() == [first_position + position for position in (0, 1, 2, 0)]


def test_padding_tokens_in_a_text_are_not_counted_where_positions_begin_after_the_padding() -> None:
    positions = position_ids(items_of([7, 1, 8, 1, 1, 9], [1, 6]), first_position=2)

    assert positions.tolist() == [2, 1, 3, 1, 1, 4, 1, 2]


def test_runs_are_the_stretches_of_equal_length() -> None:
    assert runs_of(np.array([5, 5, 3, 1, 1, 1])) == [(0, 2, 5), (10, 1, 3), (13, 3, 1)]


@pytest.mark.parametrize(
    "lengths", [[], [7], [2, 2], [0, 0], [3, 1, 3], lengths_of(1).tolist(), sorted(lengths_of(2))[::-1]]
)
def test_runs_spell_out_every_sequence_of_the_batch(lengths: list[int]) -> None:
    runs = runs_of(np.array(lengths, np.int64))
    spelled = [(start + n * length, length) for start, count, length in runs for n in range(count)]

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
    assert taken.columns.get("types") is not None
    assert taken.columns.get("types").tolist() == (taken.ids * 10).tolist()
    assert taken.columns.get("keep") is not None
    assert taken.columns.get("keep").tolist() == (taken.ids % 2 == 0).tolist()


def test_sequences_are_joined_and_a_column_that_one_side_lacks_has_its_default_there() -> None:
    typed, plain = items_of([1, 2], [3]), items_of([4], [5, 6], typed=False)

    joined = plain.concat(typed)

    assert lists_of(joined) == [[4], [5, 6], [1, 2], [3]]
    assert {name: column.tolist() for name, column in joined.columns.items()} == {
        "ids": [4, 5, 6, 1, 2, 3],
        "types": [0, 0, 0, 10, 20, 30],
        "keep": [True, True, True, False, True, False],
    }
    assert [str(joined.columns[name].dtype) for name in ("types", "keep")] == ["int32", "bool"]


def test_a_part_of_each_sequence_has_that_part_of_every_column() -> None:
    some = items_of([1, 2, 3], [4, 5, 6, 7]).slice(np.array([1, 3]), np.array([2, 1]))

    assert lists_of(some) == [[2, 3], [4]]
    assert some.columns["types"].tolist() == [20, 30, 40]
    assert some.columns["keep"].tolist() == [True, False, True]


def test_a_column_that_is_set_to_none_is_left_out() -> None:
    assert list(items_of([1, 2]).with_columns(types=None, seen=np.array([True, False])).columns) == [
        "ids",
        "keep",
        "seen",
    ]


def test_take_makes_no_types_and_keep_where_there_are_none() -> None:
    taken = items_of([1], [2, 3], typed=False).take(np.array([1]))

    assert (taken.columns.get("types"), taken.columns.get("keep"), len(taken)) == (None, None, 1)


# ---- Cells and Pairs


def test_distinct_texts_are_numbered_by_first_appearance() -> None:
    texts = Cells.of(["b", "", "a", "b"])

    assert (texts.values, texts.codes.tolist(), str(texts.codes.dtype)) == (["b", "", "a"], [0, 1, 2, 0], "int32")


def test_no_texts_are_an_empty_column() -> None:
    assert (Cells.of([]).values, Cells.of([]).codes.tolist()) == ([], [])


@pytest.mark.parametrize("rows", [slice(0, 5), slice(1, 3), slice(4, 9), slice(2, 2)], ids=str)
def test_some_rows_hold_their_own_texts_and_no_others(rows: slice) -> None:
    column = ["b", "c", "a", "b", "a"]

    texts = Cells.of(column).rows(rows)

    assert texts_of(texts) == column[rows]
    assert sorted(texts.values) == sorted(set(column[rows]))


def test_some_rows_of_pairs_keep_query_and_document_together() -> None:
    pairs = Pairs(Cells.of(["q", "q", "r", "q"]), Cells.of(["a", "b", "a", "c"]))

    some = pairs.rows(slice(1, 3))

    assert len(some) == 2
    assert (texts_of(some.queries), texts_of(some.documents)) == (["q", "r"], ["b", "a"])


# ---- Work


def test_a_cross_encoder_is_one_group_of_all_rows() -> None:
    groups = list(work_of([4, 5], 0, left=[0, 1, 1], right=[0, 1, 1]).query_groups(1))

    assert [(queries.tolist(), rows.tolist()) for queries, rows in groups] == [([], [0, 1, 2])]


@pytest.mark.parametrize(
    ("limit", "groups"),
    [
        (9, [([0, 1, 2], [0, 1, 2, 3])]),
        (6, [([0, 1], [0, 2, 3]), ([2], [1])]),
        (3, [([0], [0, 3]), ([1], [2]), ([2], [1])]),
        (2, [([0], [0, 3]), ([1], [2]), ([2], [1])]),  # each of them alone is above the limit
    ],
)
def test_queries_are_grouped_within_the_limit(limit: int, groups: list[tuple[list[int], list[int]]]) -> None:
    work = work_of([3, 3, 3, 8, 8], 3, left=[0, 2, 1, 0], right=[3, 3, 4, 4])

    assert [(queries.tolist(), rows.tolist()) for queries, rows in work.query_groups(limit)] == groups


def test_a_group_that_begins_in_the_middle_of_a_multiple_is_within_the_limit() -> None:
    lengths = [3, 3, 1, 1, 9]
    work = work_of(lengths, 4, left=[0, 1, 2, 3], right=[4, 4, 4, 4])

    groups = [queries.tolist() for queries, _ in work.query_groups(4)]

    assert groups == [[0], [1, 2], [3]]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("limit", [1, 64, 300, 10_000])
def test_every_row_is_in_the_group_that_has_its_query(seed: int, limit: int) -> None:
    queries = lengths_of(seed)
    left = np.random.default_rng(seed).integers(0, len(queries), 50)
    work = work_of([*queries, 9], len(queries), left.tolist(), [len(queries)] * 50)

    groups = list(work.query_groups(limit))

    assert [item for some, _ in groups for item in some] == sorted(set(left.tolist()))
    assert sorted(row for _, rows in groups for row in rows) == list(range(50))
    assert all(left[row] in some for some, rows in groups for row in rows)


def test_a_row_counts_the_tokens_of_both_sides() -> None:
    assert work_of([3, 5, 7], 1, left=[0, 0, 0], right=[1, 2, 1]).row_tokens().tolist() == [8, 10, 8]


def test_a_cross_encoders_row_counts_its_pair_once() -> None:
    work = work_of([3, 5], 0, left=[1, 0, 1], right=[1, 0, 1])

    assert (work.row_tokens().tolist(), len(work)) == ([5, 3, 5], 3)


def test_a_row_with_a_fault_needs_nothing_and_keeps_its_first_fault() -> None:
    fault, other = Fault("null", "is null"), Fault("too-long", "is long")
    work = work_of([3, 4, 5, 6], 2, left=[0, 1, 0], right=[2, 3, 3]).refused({1: fault}).refused({1: other})

    assert work.faults == {1: fault}
    assert work.right.tolist() == [2, -1, 3]
    assert (work.needed().tolist(), work.row_tokens().tolist()) == ([0, 2, 3], [8, 0, 9])
    assert [(queries.tolist(), rows.tolist()) for queries, rows in work.query_groups(99)] == [([0], [0, 2])]


def test_a_work_for_some_of_its_rows_needs_only_theirs() -> None:
    work = work_of([3, 4, 5, 6], 2, left=[0, 1, 0], right=[2, 3, 3]).refused({1: Fault("null", "is null")})

    some = work.only(np.array([2]))

    assert (some.faults, some.right.tolist(), some.needed().tolist()) == ({}, [-1, -1, 3], [0, 3])


# ---- Scores


def test_scores_of_windows_are_joined_and_rows_taken_of_them() -> None:
    first = Scores(np.array([[1.0], [2.0]], np.float32), np.array([[3.0], [4.0]], np.float32), *counts(5, 6))
    second = Scores(np.array([[7.0]], np.float32), np.array([[8.0]], np.float32), *counts(9))

    some = Scores.concat([first, second]).take(np.array([2, 0]))

    assert (some.score.tolist(), some.rank_by.tolist(), some.num_tokens.tolist()) == (
        [[7.0], [1.0]],
        [8.0, 3.0],
        [9, 5],
    )
    assert len(Scores.concat([]).score) == 0


def counts(*tokens: int) -> tuple[np.ndarray, np.ndarray]:
    return np.array(tokens, np.int32), np.zeros(len(tokens), np.uint8)
