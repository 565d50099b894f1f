"""Which number a text has, known by its digest."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from batchscore.errors import InputError
from batchscore.io import digests as module
from batchscore.io.digests import DigestIndex, digests_of

Digests = module.Digests


@pytest.fixture(params=["memory", "disk"])
def empty(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], DigestIndex]:
    """empty(): an index in memory, or one whose runs of more than 100 digests are on the disk; merged by fifties."""
    monkeypatch.setattr(module, "_PIECE", 50)
    monkeypatch.setattr(module, "_HELD", 100)
    return lambda: DigestIndex(str(tmp_path) if request.param == "disk" else None)


def made_up(count: int, *, firsts: int = 1 << 62) -> Digests:
    """uint64 [count, 2]: digests that are all different, with first halves below `firsts`."""
    drawn = np.random.default_rng(7).integers(0, [firsts, 1 << 62], (count, 2), dtype=np.uint64)
    assert len(np.unique(drawn, axis=0)) == count
    return drawn


def filled(index: DigestIndex, digests: Digests, step: int) -> DigestIndex:
    numbers = np.arange(len(digests)) * 3
    for start in range(0, len(digests), step):
        index.add(digests[start : start + step], numbers[start : start + step])
    return index


def test_a_digest_is_the_first_16_bytes_of_blake2b() -> None:
    # b2sum -l 128, of "a cat" and of nothing
    assert (
        digests_of(["a cat", ""]).astype("<u8").tobytes().hex()
        == "6eda1d6f0337894464a66e34f5d33507cae66941d9efbd404e4d88758ea67670"
    )
    assert digests_of([]).shape == (0, 2)


@pytest.mark.parametrize("step", [1, 7, 1000])
@pytest.mark.parametrize("firsts", [1 << 62, 40, 1])
def test_each_digest_is_found_with_its_number_also_where_first_halves_are_equal(
    empty: Callable[[], DigestIndex], step: int, firsts: int
) -> None:
    digests = made_up(1000, firsts=firsts)
    there, others = digests[:600], digests[600:]
    index = filled(empty(), there, step)

    assert len(index) == 600
    assert index.find(digests[::-1]).tolist() == [-1] * 400 + [3 * number for number in reversed(range(600))]
    assert index.find(others[:0]).tolist() == []


def test_an_empty_index_finds_nothing() -> None:
    index = DigestIndex()
    index.add(made_up(0), np.empty(0, np.int64))

    assert index.find(made_up(2)).tolist() == [-1, -1]
    assert [len(part) for part in index.items()] == [0, 0]


def test_there_are_few_runs_after_many_additions(empty: Callable[[], DigestIndex]) -> None:
    assert len(filled(empty(), made_up(1000), 1)._runs) <= 10  # log2(1000)


@pytest.mark.parametrize("firsts", [1 << 62, 40])
def test_items_are_all_digests_in_order(empty: Callable[[], DigestIndex], firsts: int) -> None:
    digests = made_up(500, firsts=firsts)
    kept, numbers = filled(empty(), digests, 30).items()

    assert (np.diff(kept[:, 0].astype(np.int64)) >= 0).all()
    assert sorted(numbers.tolist()) == [3 * number for number in range(500)]
    np.testing.assert_array_equal(kept, digests[numbers // 3])


def test_a_written_index_is_opened_as_it_was_and_grows(empty: Callable[[], DigestIndex], tmp_path: Path) -> None:
    digests = made_up(900)
    filled(empty(), digests[:600], 70).write(str(tmp_path / "index.npy"))
    opened = DigestIndex.open(pa.memory_map(str(tmp_path / "index.npy")).read_buffer(), "index.npy")

    assert opened.find(digests).tolist() == [*range(0, 1800, 3), *[-1] * 300]
    opened.add(digests[600:], np.arange(600, 900) * 3)
    assert opened.find(digests).tolist() == [*range(0, 2700, 3)]


@pytest.mark.parametrize("damage", [lambda content: content[:-24], lambda content: content[:40], lambda content: b""])
def test_a_short_file_is_no_index(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "index.npy"
    filled(DigestIndex(), made_up(10), 10).write(str(path))

    with pytest.raises(InputError, match=r"index\.npy is damaged") as caught:
        DigestIndex.open(pa.py_buffer(damage(path.read_bytes())), "index.npy")
    assert caught.value.hint == "remove it, and run the same command again"


def test_long_runs_leave_no_files_behind(empty: Callable[[], DigestIndex], tmp_path: Path) -> None:
    filled(empty(), made_up(1000), 90)

    assert list(tmp_path.iterdir()) == []
