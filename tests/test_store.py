"""Encodings that are kept: the same bits come out, whoever adds, removes, merges or damages files meanwhile."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from batchscore.errors import NotFoundError, RuntimeFailureError, UsageError
from batchscore.io import upkeep
from batchscore.io.digests import digests_of
from batchscore.io.store import Shelf, open_shelf
from batchscore.io.upkeep import prune, shelves
from batchscore.types import Encodings, Fault, offsets_of

MODEL = {"weights": "sha256:1", "side": "document"}
DAY = 24 * 3600
TEXTS = [f"text {number}" for number in range(40)]


def encodings(texts: Sequence[str], *, dim: int = 4, dtype: Any = np.float32, each: int | None = 1) -> Encodings:
    """Made of the text alone: `each` vectors, or as many as the number of the text modulo 3."""
    counts = [int(text.split()[-1]) % 3 if each is None else each for text in texts]
    bits = [np.resize(digests_of([text]).view(dtype), (count, dim)) for text, count in zip(texts, counts, strict=True)]
    tokens = np.array([len(text) for text in texts], np.int32)
    return Encodings(np.concatenate(bits), offsets_of(counts), tokens, (tokens % 4).astype(np.uint8))


def opened(store: Path, fingerprint: Any = MODEL, model: str = "org/name", **options: Any) -> Shelf:
    return open_shelf(str(store), fingerprint, {"model": model, "side": "document", "scorer": {}}, **options)


def filled(store: Path, texts: Sequence[str] = TEXTS, *, size: int = 10) -> Shelf:
    """A shelf with these texts in segments of `size`."""
    shelf = opened(store)
    for start in range(0, len(texts), size):
        shelf.add(digests_of(texts[start : start + size]), encodings(texts[start : start + size]))
    return shelf


def found(shelf: Shelf, texts: Sequence[str] = TEXTS, **kind: Any) -> list[str]:
    """The texts that are there, once their encodings are known to be theirs bit for bit."""
    is_there, got = shelf.find(digests_of(texts))
    there = [text for text, one in zip(texts, is_there.tolist(), strict=True) if one]
    if there:
        expected = encodings(there, **kind)
        assert got.values.dtype == expected.values.dtype
        for name in ("offsets", "tokens", "cut"):
            np.testing.assert_array_equal(getattr(got, name), getattr(expected, name))
        assert got.values.shape == expected.values.shape
        assert got.values.tobytes() == expected.values.tobytes()
    assert len(got) == len(there)
    assert got.faults == {}
    return there


def segments(store: Path) -> list[Path]:
    """The files of segments, the oldest first."""
    return sorted(store.glob("*/*.safetensors"), key=lambda path: path.stat().st_mtime_ns)


@pytest.fixture
def merging(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four small segments are many."""
    monkeypatch.setattr(upkeep, "_MANY", 4)


# ---- what is kept


@pytest.mark.parametrize(
    "kind",
    [
        {},
        {"dtype": np.uint16, "dim": 3},
        {"dtype": np.float16, "each": 5},
        {"each": None},
        {"each": 0},
        {"dim": 1},
    ],
    ids=str,
)
def test_the_same_bits_come_out_in_the_order_asked(tmp_path: Path, kind: Any) -> None:
    shelf = opened(tmp_path)
    for texts in (TEXTS[:7], TEXTS[7:8], TEXTS[8:30]):
        shelf.add(digests_of(texts), encodings(texts, **kind))

    for one in (shelf, opened(tmp_path)):
        assert found(one, TEXTS, **kind) == TEXTS[:30]
        assert found(one, TEXTS[::-1], **kind) == TEXTS[29::-1]
        assert found(one, [TEXTS[3], TEXTS[3], TEXTS[12], TEXTS[3]], **kind) == [
            TEXTS[3], TEXTS[3], TEXTS[12], TEXTS[3]
        ]  # fmt: skip
        assert found(one, TEXTS[35:], **kind) == []
        assert found(one, [], **kind) == []


def test_rows_far_apart_are_read_alone(tmp_path: Path) -> None:
    texts = [f"text {number}" for number in range(3000)]
    filled(tmp_path, texts, size=3000)

    some = [texts[number] for number in (2999, 0, 1, 1500, 1502, 7)]
    assert found(opened(tmp_path), some) == some


def test_nothing_is_written_before_something_is_added(tmp_path: Path) -> None:
    shelf = opened(tmp_path / "store")
    is_there, got = shelf.find(digests_of(TEXTS))

    assert is_there.tolist() == [False] * len(TEXTS)
    assert len(got) == 0
    assert not (tmp_path / "store").exists()


def test_what_is_there_or_has_a_fault_is_not_added(tmp_path: Path) -> None:
    shelf = filled(tmp_path, TEXTS[:10])
    faulty = encodings(TEXTS[:5])
    before = segments(tmp_path)
    shelf.add(digests_of(TEXTS[:5]), faulty)
    assert segments(tmp_path) == before

    texts = [TEXTS[3], TEXTS[20], TEXTS[20], TEXTS[21]]
    faults = {3: Fault("non-finite", "it has a score of nan")}
    made = encodings(texts)
    shelf.add(digests_of(texts), Encodings(made.values, made.offsets, made.tokens, made.cut, faults))
    assert found(opened(tmp_path)) == [*TEXTS[:10], TEXTS[20]]


def test_another_fingerprint_sees_nothing(tmp_path: Path) -> None:
    filled(tmp_path)

    for other in ({**MODEL, "side": "query"}, {**MODEL, "dtype": None}, {}):
        assert found(opened(tmp_path, other)) == []
    assert found(opened(tmp_path, dict(reversed(MODEL.items())))) == TEXTS


def test_another_width_or_type_is_refused(tmp_path: Path) -> None:
    shelf = filled(tmp_path, TEXTS[:10])

    for kind in ({"dim": 8}, {"dtype": np.uint16}):
        with pytest.raises(ValueError, match="holds"):
            shelf.add(digests_of(TEXTS[10:]), encodings(TEXTS[10:], **kind))
    assert found(opened(tmp_path)) == TEXTS[:10]


def test_two_that_add_the_same_write_one_file(tmp_path: Path) -> None:
    shelves_ = [opened(tmp_path), opened(tmp_path)]
    for shelf in shelves_:
        assert found(shelf) == []
    for shelf in shelves_:
        shelf.add(digests_of(TEXTS), encodings(TEXTS))

    assert len(segments(tmp_path)) == 1


def test_what_others_add_is_found_after_a_refresh(tmp_path: Path) -> None:
    shelf = filled(tmp_path, TEXTS[:10])
    filled(tmp_path, TEXTS[10:])
    assert found(shelf) == TEXTS[:10]

    shelf.refresh()
    assert found(shelf) == TEXTS


@pytest.mark.parametrize("store", ["s3://bucket/store", "memory://store"])
def test_a_store_on_an_object_store_is_refused(store: str) -> None:
    with pytest.raises(UsageError, match="cannot be a store: it is not on a disk") as caught:
        open_shelf(store, MODEL, {})
    assert "network disk that is mounted" in str(caught.value.hint)


def test_a_full_disk_is_an_error_and_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shelf = filled(tmp_path, TEXTS[:10])

    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(RuntimeFailureError, match="cannot write .*No space left"):
            shelf.add(digests_of(TEXTS), encodings(TEXTS))
    assert found(shelf) == TEXTS[:10]
    assert sorted(path.suffix for path in tmp_path.glob("*/*")) == [".json", ".safetensors"]
    shelf.add(digests_of(TEXTS), encodings(TEXTS))
    assert found(shelf) == TEXTS


# ---- files that go or break


def test_a_segment_that_is_gone_counts_as_not_there(tmp_path: Path) -> None:
    shelf = filled(tmp_path)
    assert found(shelf) == TEXTS
    segments(tmp_path)[1].unlink()

    assert found(shelf) == TEXTS[:10] + TEXTS[20:]
    assert shelf.damaged == {}
    shelf.add(digests_of(TEXTS), encodings(TEXTS))
    assert found(shelf) == TEXTS
    assert found(opened(tmp_path)) == TEXTS


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "short": lambda content: content[:-1],
    "header only": lambda content: content[:300],
    "no header": lambda content: bytes(len(content)),
    "another file": lambda content: b'{"not": "ours"}' * 100,
    "zeros at the end": lambda content: content[:-64] + bytes(64),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("is_open", [False, True])
def test_a_damaged_segment_is_named_and_not_used(tmp_path: Path, damage: str, is_open: bool) -> None:
    shelf = filled(tmp_path)
    broken = segments(tmp_path)[2]
    whole = broken.read_bytes()
    broken.write_bytes(DAMAGES[damage](whole))

    shelf = shelf if is_open else opened(tmp_path)
    assert found(shelf) == TEXTS[:20] + TEXTS[30:]
    assert list(shelf.damaged) == [str(broken)]
    shelf.add(digests_of(TEXTS[20:30]), encodings(TEXTS[20:30]))
    assert broken.read_bytes() == whole
    assert (found(shelf), shelf.damaged) == (TEXTS, {})


def test_no_byte_can_change_unnoticed(tmp_path: Path) -> None:
    """A flipped bit in what is read of a text costs the text, and nowhere gives another encoding."""
    filled(tmp_path, TEXTS[:2])
    (path,) = segments(tmp_path)
    content, lost = path.read_bytes(), 0
    values = len(content) - content.index(b'{"')
    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1 << place % 8]) + content[place + 1 :])
        lost += len(found(opened(tmp_path), TEXTS[:3])) < 2

    assert lost > values / 3


# ---- merging


@pytest.mark.usefixtures("merging")
def test_many_small_segments_become_one_with_the_same_bits(tmp_path: Path) -> None:
    shelf = filled(tmp_path, size=5)
    (files,) = shelves(str(tmp_path))

    assert files.describe()["segments"] <= 4
    assert files.describe()["texts"] == len(TEXTS)
    assert (found(shelf), found(opened(tmp_path))) == (TEXTS, TEXTS)


@pytest.mark.usefixtures("merging")
def test_who_reads_goes_on_while_segments_are_merged_and_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = filled(tmp_path, TEXTS[:20], size=5)
    assert found(reader) == TEXTS[:20]
    before = segments(tmp_path)
    filled(tmp_path, TEXTS[20:], size=5)
    assert set(before) <= set(segments(tmp_path))  # they stay for a day

    monkeypatch.setattr(upkeep, "_GRACE", -1.0)
    prune(str(tmp_path))
    assert not set(before) & set(segments(tmp_path))
    assert found(reader) == TEXTS
    assert reader.damaged == {}


@pytest.mark.usefixtures("merging")
def test_what_was_merged_a_day_ago_goes_when_merging_again(tmp_path: Path) -> None:
    filled(tmp_path, TEXTS[:25], size=5)
    old = segments(tmp_path)
    for path in old:
        os.utime(path, (time.time() - 2 * DAY,) * 2)
    filled(tmp_path, TEXTS[25:], size=5)

    assert len(set(old) & set(segments(tmp_path))) == 2  # the merged one, and one that was merged now
    assert found(opened(tmp_path)) == TEXTS


@pytest.mark.usefixtures("merging")
def test_two_that_merge_at_once_write_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(tmp_path, TEXTS[:20], size=5)
    parts = [open_files(tmp_path), open_files(tmp_path)]
    monkeypatch.setattr(upkeep, "_MANY", 3)
    for files in parts:
        upkeep.merge_small(files.folder, files.segments)

    assert len(segments(tmp_path)) == 5
    assert found(opened(tmp_path)) == TEXTS[:20]


def open_files(store: Path) -> upkeep.ShelfFiles:
    (files,) = shelves(str(store))
    return files


@pytest.mark.usefixtures("merging")
@pytest.mark.parametrize("damage", ["empty", "zeros at the end"])
def test_if_a_merged_segment_is_damaged_those_before_it_are_used_and_stay(
    tmp_path: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(tmp_path, TEXTS[:25], size=5)
    merged = max(segments(tmp_path), key=lambda path: path.stat().st_size)
    merged.write_bytes(DAMAGES[damage](merged.read_bytes()))
    before = set(segments(tmp_path)) - {merged}
    assert found(opened(tmp_path)) == TEXTS[:25]

    monkeypatch.setattr(upkeep, "_GRACE", -1.0)
    prune(str(tmp_path))
    assert before <= set(segments(tmp_path))
    assert found(opened(tmp_path)) == TEXTS[:25]


@pytest.mark.usefixtures("merging")
def test_a_damaged_segment_does_not_keep_the_others_from_being_merged(tmp_path: Path) -> None:
    filled(tmp_path, TEXTS[:20], size=5)
    broken = segments(tmp_path)[1]
    broken.write_bytes(DAMAGES["zeros at the end"](broken.read_bytes()))
    shelf = filled(tmp_path, TEXTS[20:], size=4)

    assert found(shelf) == TEXTS[:5] + TEXTS[10:]
    assert open_files(tmp_path).describe()["segments"] <= 6


# ---- processes

WRITER = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
import test_store
test_store.upkeep._MANY = 4
shelf = test_store.opened(Path(sys.argv[2]))
for start in range(int(sys.argv[3]), int(sys.argv[4]), 5):
    texts = [f"text {number}" for number in range(start, start + 5)]
    shelf.add(test_store.digests_of(texts), test_store.encodings(texts))
    assert test_store.found(shelf, texts) == texts
    print(start, flush=True)
"""


def test_two_processes_add_at_once_and_a_kill_loses_only_what_was_being_added(tmp_path: Path) -> None:
    def start(first: int, last: int) -> subprocess.Popen[str]:
        arguments = [str(Path(__file__).parent), str(tmp_path), str(first), str(last)]
        return subprocess.Popen([sys.executable, "-c", WRITER, *arguments], stdout=subprocess.PIPE, text=True)

    with start(0, 300) as ended, start(200, 100_000) as killed:
        assert killed.stdout is not None
        said = [int(killed.stdout.readline()) for _ in range(30)]
        killed.send_signal(signal.SIGKILL)
        said += [int(line) for line in killed.stdout.read().split()]
        ended.communicate(timeout=60)
    assert (ended.returncode, killed.returncode) == (0, -signal.SIGKILL)

    shelf, last = opened(tmp_path), max(300, said[-1] + 5)
    there = found(shelf, [f"text {number}" for number in range(last + 10)])
    assert there[:last] == [f"text {number}" for number in range(last)]
    assert shelf.damaged == {}
    assert open_files(tmp_path).describe()["segments"] < 12
    prune(str(tmp_path))
    assert not list(tmp_path.glob("*/.*"))  # what the killed one was writing


# ---- pruning


def dated(store: Path) -> list[Path]:
    """Segments that are 40, 30, 20 and 10 days old."""
    filled(store)
    files = segments(store)
    for path, days in zip(files, (40, 30, 20, 10), strict=True):
        os.utime(path, (time.time() - days * DAY,) * 2)
    return files


def test_pruning_by_age_and_size_removes_the_oldest(tmp_path: Path) -> None:
    files, shelf = dated(tmp_path), opened(tmp_path)
    size = files[0].stat().st_size
    assert found(shelf) == TEXTS

    (would,) = prune(str(tmp_path), older_than=25 * DAY, dry_run=True)
    assert segments(tmp_path) == files
    (done,) = prune(str(tmp_path), older_than=25 * DAY)
    assert would.describe() == done.describe()
    assert {**done.describe(), "shelf": ""} == {
        "shelf": "", "model": "org/name", "side": "document", "texts": 20, "bytes": 2 * size, "segments": 2
    }  # fmt: skip
    assert found(shelf) == TEXTS[20:]

    assert prune(str(tmp_path), max_bytes=2 * size) == []
    prune(str(tmp_path), max_bytes=2 * size - 1)
    assert found(shelf) == TEXTS[30:]
    prune(str(tmp_path), max_bytes=0)
    assert found(shelf) == []
    shelf.add(digests_of(TEXTS), encodings(TEXTS))
    assert found(opened(tmp_path)) == TEXTS


def test_pruning_a_model_leaves_the_others(tmp_path: Path) -> None:
    filled(tmp_path)
    other = opened(tmp_path, {"weights": "sha256:2"}, "org/other")
    other.add(digests_of(TEXTS), encodings(TEXTS))

    with pytest.raises(NotFoundError, match="nothing of the model 'org/nam'") as caught:
        prune(str(tmp_path), model="org/nam")
    assert caught.value.hint == "it has org/name, org/other"
    prune(str(tmp_path), model="org/name")
    assert (found(opened(tmp_path)), found(other)) == ([], TEXTS)
    assert [shelf.model for shelf in shelves(str(tmp_path)) if shelf.segments] == ["org/other"]


@pytest.mark.usefixtures("merging")
def test_what_is_pruned_does_not_come_back_from_what_was_merged_into_it(tmp_path: Path) -> None:
    filled(tmp_path, size=8)
    prune(str(tmp_path), max_bytes=0)

    assert segments(tmp_path) == []
    assert found(opened(tmp_path)) == []


def test_pruning_removes_damaged_files_and_old_empty_shelves_and_nothing_else(tmp_path: Path) -> None:
    files = dated(tmp_path)
    files[0].write_bytes(b"")
    (tmp_path / "notes.txt").write_text("mine")
    (files[0].parent / "notes.txt").write_text("mine")
    prune(str(tmp_path))
    assert segments(tmp_path) == files[1:]

    description = files[0].parent / upkeep.DESCRIPTION
    prune(str(tmp_path), max_bytes=0)
    assert description.exists()  # someone may be about to add
    os.utime(description, (time.time() - 2 * DAY,) * 2)
    prune(str(tmp_path), max_bytes=0)
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["notes.txt", "notes.txt"]


def test_a_store_that_is_not_there_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="No such file"):
        shelves(str(tmp_path / "no"))
    assert shelves(str(tmp_path)) == []
