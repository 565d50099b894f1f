"""A job's folder: what is finished is whole and of this job, whoever works on it, and however they were ended."""

from __future__ import annotations

import json
import os
import random
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFile

from batchscore.errors import InputError, OutputError, RuntimeFailureError, StoppedError
from batchscore.io.storage import Folder, LocalFolder, open_folder, writer_id
from batchscore.io.units import Span, Unit
from batchscore.jobs.parts import JOB, Division, Parts, first_difference, open_parts, start_parts, total

FINGERPRINT = {
    "command": "score",
    "model": {"max_length": 512, "activation": "sigmoid"},
    "options": {"keep_columns": ("id", "query")},
    "inputs": [{"name": "a.jsonl", "bytes": 10}],
}
OTHER = {**FINGERPRINT, "model": {"max_length": 256, "activation": "sigmoid"}}
UNITS = [
    Unit(0, (Span(0, 0, 7, 3, 1),)),
    Unit(1, (Span(0, 7, 9, 1, 4), Span(1, 0, 2, 2, 0))),
    Unit(2, (Span(1, 2, 3, 1, 2),)),
]
TABLE = pa.table({"id": ["a", "b", None], "score": pa.array([0.1, 0.2, 0.3], pa.float32()), "tags": [["x"], [], None]})


def start(folder: Folder | Path, fingerprint: dict[str, Any] = FINGERPRINT, *, overwrite: bool = False) -> Parts:
    place = LocalFolder(str(folder)) if isinstance(folder, Path) else folder
    return start_parts(place, fingerprint, lambda: Division(UNITS), overwrite=overwrite)


def finish(parts: Parts, *units: int, table: pa.Table = TABLE) -> None:
    for unit in units:
        faults = [{"file": "a.jsonl", "row": 10 * unit, "code": "null"}]
        counts = {"rows": parts.units[unit].rows, "faulty": 1, "cut": {"query": unit, "both": 2}}
        parts.write(parts.units[unit], table, counts, faults)


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(OutputError) as caught:
        call()
    assert caught.value.exit_code == 8
    assert caught.value.hint
    return caught.value.message


def part(folder: Path, unit: int) -> Path:
    return folder / f"part-{unit:05}.parquet"


# ---- parts


def test_that_a_part_is_there_is_the_whole_state(tmp_path: Path) -> None:
    parts = start(tmp_path / "new" / "job")
    assert (parts.finished(), parts.complete(), parts.is_bare()) == (set(), False, True)
    finish(parts, 1)
    assert (parts.finished(), parts.complete(), parts.is_bare()) == ({1}, False, False)
    assert [parts.has(unit) for unit in UNITS] == [False, True, False]
    finish(parts, 0, 2)
    assert (parts.finished(), parts.complete()) == ({0, 1, 2}, True)
    assert sorted(os.listdir(tmp_path / "new" / "job")) == [
        JOB,
        *(f"part-{unit:05}.parquet" for unit in range(3)),
    ]


def test_a_column_that_could_not_be_read_again_is_not_written(tmp_path: Path) -> None:
    parts, kind = start(tmp_path), pa.int64()
    for _ in range(130):
        kind = pa.list_(kind)
    with pytest.raises(InputError, match="cannot hold these values"):
        finish(parts, 0, table=pa.table({"deep": pa.array([None], kind)}))
    assert parts.finished() == set()


def test_a_folder_that_is_another_jobs_by_now_takes_no_part(tmp_path: Path) -> None:
    ours = start(tmp_path)
    other = start_parts(LocalFolder(str(tmp_path)), {"of": "another"}, lambda: Division(UNITS), overwrite=True)
    with pytest.raises(OutputError, match="now holds another job"):
        finish(ours, 0)
    assert other.finished() == set()
    other.folder.discard()
    with pytest.raises(OutputError, match="is gone: another run has finished the job"):
        finish(ours, 0)


def test_tidying_leaves_what_another_is_writing(tmp_path: Path) -> None:
    parts, dead = start(tmp_path), subprocess.Popen(["true"])
    dead.wait()
    machine = writer_id().rpartition("-")[0]
    for owner in (dead.pid, os.getppid()):
        (tmp_path / f"._errors.jsonl.tmp-{machine}-{owner}-77").touch()
    parts.tidy()
    assert sorted(os.listdir(tmp_path)) == [f"._errors.jsonl.tmp-{machine}-{os.getppid()}-77", JOB]


def test_a_part_reads_back_the_same_and_tells_its_counts_and_faults(tmp_path: Path) -> None:
    parts = start(tmp_path)
    finish(parts, 2, 0, table=TABLE.replace_schema_metadata({"pandas": "{}"}))
    for again in (parts, open_parts(LocalFolder(str(tmp_path)))):
        assert again is not None
        assert again.read(0).equals(TABLE)
        assert again.part(2).schema.equals(TABLE.schema)
        assert (again.read(0).schema.metadata, again.part(2).schema.metadata) == (None, None)
        assert again.part(2).counts == {"rows": 1, "faulty": 1, "cut": {"query": 2, "both": 2}}
        assert again.faults() == [{"file": "a.jsonl", "row": row, "code": "null"} for row in (0, 20)]
        assert again.counts() == {"rows": 4, "faulty": 2, "cut": {"query": 2, "both": 4}}
    assert pq.read_table(part(tmp_path, 0)).equals(TABLE)  # any reader can
    assert pq.read_metadata(part(tmp_path, 0)).row_group(0).column(0).compression == "ZSTD"


def test_a_footer_has_its_bad_rows_once(tmp_path: Path) -> None:
    parts = start(tmp_path)
    faults = [{"file": "a.jsonl", "row": row, "code": "null", "message": "is null"} for row in range(1000)]
    parts.write(UNITS[0], TABLE, {}, [])
    parts.write(UNITS[1], TABLE, {}, faults)
    assert parts.faults() == faults
    sizes = [part(tmp_path, unit).stat().st_size for unit in (0, 1)]
    assert sizes[1] - sizes[0] < 1.01 * len(json.dumps(faults))


def test_another_process_finds_the_same_job(tmp_path: Path) -> None:
    start(tmp_path)
    found = open_parts(LocalFolder(str(tmp_path)))
    assert found is not None
    assert found.units == UNITS
    assert first_difference(found.fingerprint, FINGERPRINT) is None
    assert open_parts(LocalFolder(str(tmp_path / "none"))) is None


def test_what_parquet_cannot_hold_is_named_and_leaves_no_part(tmp_path: Path) -> None:
    parts = start(tmp_path)
    with pytest.raises(InputError, match="cannot hold these values") as caught:
        finish(parts, 0, table=pa.table({"n": pa.array([{}], pa.struct([]))}))
    assert "--keep-columns" in str(caught.value)
    assert os.listdir(tmp_path) == [JOB]


def test_counts_are_summed_by_name_and_by_depth() -> None:
    assert total([]) == {}
    assert total([{"a": 1, "c": {"x": 1}}, {"b": 2}, {"a": 3, "c": {"x": 2, "y": 5}}]) == {
        "a": 4,
        "b": 2,
        "c": {"x": 3, "y": 5},
    }


def test_what_is_of_passing_use_goes_and_the_job_stays(tmp_path: Path) -> None:
    parts = start(tmp_path)
    finish(parts, 0)
    parts.save_scores(UNITS[1], np.zeros((3, 1), np.float32))
    parts.fail(2, "twice")
    kept = ["_errors.jsonl", JOB, "_run-0-of-2.json", "part-00000.parquet"]
    for name in [
        kept[0],
        kept[2],
        "worker-host-1.json",
        "part-00001.lease",
        "part-merge.lease",
    ]:
        (tmp_path / name).touch()
    parts.tidy()
    assert sorted(os.listdir(tmp_path)) == kept


# ---- damage


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 0x55
    path.write_bytes(content)


def footer_of(content: bytes) -> int:
    """Where the footer of a Parquet file begins."""
    return len(content) - 8 - int(struct.unpack("<i", content[-8:-4])[0])


def other_job(path: Path) -> None:
    """A part of a job in another folder."""
    elsewhere = path.parent.parent / "elsewhere"
    finish(start(elsewhere, OTHER), 0)
    shutil.copy(part(elsewhere, 0), path)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-20]),
    "empty": lambda path: path.write_bytes(b""),
    "not parquet": lambda path: path.write_bytes(b"PAR1 and then words"),
    "of no job": lambda path: pq.write_table(TABLE, path),
    "of another job": other_job,
    "of another unit": lambda path: shutil.copy(part(path.parent, 1), path),
    "footer": lambda path: flip(path, footer_of(path.read_bytes())),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_part_is_found_by_its_footer_and_removed(tmp_path: Path, damage: str) -> None:
    parts = start(tmp_path / "job")
    finish(parts, 0, 1)
    DAMAGES[damage](part(tmp_path / "job", 0))
    with pytest.raises(InputError, match=r"part-00000.parquet (is damaged: |belongs to another job)"):
        parts.part(0)
    assert parts.finished() == {0, 1}
    assert parts.check([0, 1]) == [0]
    assert parts.finished() == {1}
    assert parts.check([1]) == []


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_part_is_not_read_and_removed(tmp_path: Path, damage: str) -> None:
    parts = start(tmp_path / "job")
    finish(parts, 0, 1)
    DAMAGES[damage](part(tmp_path / "job", 0))
    with pytest.raises(RuntimeFailureError, match=r"part-00000.parquet was damaged and has been removed") as caught:
        parts.read(0)
    assert caught.value.exit_code == 6
    assert "only this unit's rows" in (caught.value.hint or "")
    assert parts.finished() == {1}


def test_a_damaged_page_is_found_where_it_is_read(tmp_path: Path) -> None:
    parts = start(tmp_path)
    finish(parts, 0, table=pa.table({"score": np.random.default_rng(0).random(1000, np.float32)}))
    flip(part(tmp_path, 0), 2000)
    assert parts.check([0]) == []  # which looks at footers only
    with pytest.raises(RuntimeFailureError, match="was damaged and has been removed"):
        parts.read(0)
    assert parts.finished() == set()


def test_no_flipped_byte_of_a_part_gives_other_rows_or_an_unexplained_error(tmp_path: Path) -> None:
    parts = start(tmp_path)
    table = pa.table({"id": [f"é{n % 7}" for n in range(60)], "score": np.random.default_rng(0).random(60, np.float32)})
    finish(parts, 0, table=table)
    whole = part(tmp_path, 0).read_bytes()
    footer = footer_of(whole)
    found = {"same": 0, "damaged": 0}
    for place in range(0, len(whole), 5):
        part(tmp_path, 0).write_bytes(whole)
        flip(part(tmp_path, 0), place)
        damaged = parts.check([0])
        part(tmp_path, 0).write_bytes(whole)
        flip(part(tmp_path, 0), place)
        try:
            rows = parts.read(0)
        except RuntimeFailureError:
            found["damaged"] += 1
        else:
            assert damaged == []
            found["same"] += 1
            assert place >= footer or rows.equals(table)
    assert found["damaged"] > 2 * found["same"]


# ---- which job


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"command": "rerank"}, 'command was "score" and is "rerank"'),
        ({"model": {"max_length": 256, "activation": "tanh"}}, "model.max_length was 512 and is 256"),
        ({"model": {"max_length": 512}}, 'model.activation was "sigmoid" and is null'),
        ({"new": 1, "command": "x"}, 'command was "score" and is "x"'),
        ({"new": [1]}, "new was null and is [1]"),
        ({"inputs": [{"name": "a.jsonl", "bytes": 11}]}, "inputs[0].bytes was 10 and is 11"),
        ({"inputs": []}, 'inputs was [{"name": "a.jsonl", "bytes": 10}] and is []'),
        ({"options": {"keep_columns": None}}, 'options.keep_columns was ["id", "query"] and is null'),
        ({"options": {"keep_columns": ["id", "n"]}}, 'options.keep_columns[1] was "query" and is "n"'),
        ({"command": "é" * 70}, f'command was "score" and is "{"é" * 56}...'),
    ],
)
def test_the_first_field_in_which_jobs_differ_is_named(change: dict[str, Any], told: str) -> None:
    assert first_difference(FINGERPRINT, {**FINGERPRINT, **change}) == told


def test_equal_jobs_do_not_differ_in_how_their_lists_are_held() -> None:
    assert first_difference(FINGERPRINT, {**FINGERPRINT, "options": {"keep_columns": ["id", "query"]}}) is None
    assert first_difference({}, {}) is None


def test_the_same_job_goes_on_with_the_units_it_was_cut_into(tmp_path: Path) -> None:
    finish(start(tmp_path), 1)
    listed = FINGERPRINT | {"options": {"keep_columns": ["id", "query"]}}
    again = start_parts(LocalFolder(str(tmp_path)), listed, pytest.fail, overwrite=False)
    assert again.units == UNITS
    assert again.finished() == {1}
    assert again.check([1]) == []


@pytest.mark.parametrize("done", [(0,), (0, 1, 2)])
def test_another_job_in_the_folder_is_refused_and_left_alone(tmp_path: Path, done: Sequence[int]) -> None:
    finish(start(tmp_path), *done)
    before = sorted(os.listdir(tmp_path))
    message = refused(lambda: start(tmp_path, OTHER))
    assert message == f"{tmp_path} holds the parts of another job: model.max_length was 512 and is 256"
    assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.parametrize("done", [(0,), (0, 1, 2)])
def test_overwriting_throws_away_all_of_another_job(tmp_path: Path, done: Sequence[int]) -> None:
    earlier = start(tmp_path)
    finish(earlier, *done)
    earlier.save_scores(UNITS[1], np.zeros((3, 1), np.float32))
    ours = [
        "_run.json",
        "_run-1-of-2.json",
        "_errors.jsonl",
        "part-merge.lease",
        "part-00002.failed",
        "worker-a-1.json",
    ]
    for name in ours:
        (tmp_path / name).write_text("{}")
    parts = start(tmp_path, OTHER, overwrite=True)
    assert os.listdir(tmp_path) == [JOB]
    assert parts.fingerprint["model"]["max_length"] == 256


def test_a_job_is_overwritten_only_once_the_input_is_divided(tmp_path: Path) -> None:
    """Which can fail, or be stopped."""
    finish(start(tmp_path), 0, 1)

    def divide() -> Division:
        raise StoppedError("stopped by SIGTERM")

    with pytest.raises(StoppedError):
        start_parts(LocalFolder(str(tmp_path)), OTHER, divide, overwrite=True)
    assert start(tmp_path).finished() == {0, 1}


def test_overwriting_goes_on_with_this_job_unless_it_is_complete(tmp_path: Path) -> None:
    finish(start(tmp_path), 0, 1)
    parts = start(tmp_path, overwrite=True)
    assert parts.finished() == {0, 1}
    finish(parts, 2)
    assert start(tmp_path).finished() == {0, 1, 2}
    assert start(tmp_path, overwrite=True).finished() == set()


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", ["notes.txt", "data.parquet", "_SUCCESS", "_metadata.json", "part-0.snappy.parquet"])
def test_a_folder_with_other_files_is_refused_and_left_alone(tmp_path: Path, name: str, overwrite: bool) -> None:
    (tmp_path / name).write_text("words")
    message = refused(lambda: start(tmp_path, overwrite=overwrite))
    assert message == f"{tmp_path} has other files in it, for example {name}"
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize("overwrite", [False, True])
def test_parts_that_no_job_has_written_are_refused_and_left_alone(tmp_path: Path, overwrite: bool) -> None:
    pq.write_table(TABLE, tmp_path / "part-0.parquet")
    assert refused(lambda: start(tmp_path, overwrite=overwrite)).endswith(
        "has other files in it, for example part-0.parquet"
    )
    assert pq.read_table(tmp_path / "part-0.parquet").equals(TABLE)
    (tmp_path / "part-0.parquet").write_text("words")
    assert refused(lambda: start(tmp_path, overwrite=overwrite)).endswith(
        "has other files in it, for example part-0.parquet"
    )


def test_a_job_is_not_lost_where_it_cannot_be_overwritten(tmp_path: Path) -> None:
    finish(start(tmp_path), 0)
    (tmp_path / "notes.txt").touch()
    assert "for example notes.txt" in refused(lambda: start(tmp_path, OTHER, overwrite=True))
    assert start(tmp_path).finished() == {0}


def test_parts_without_a_job_go_only_where_they_may_be_overwritten(tmp_path: Path) -> None:
    finish(start(tmp_path, OTHER), 0, 1)
    (tmp_path / JOB).unlink()
    (tmp_path / "part-00002.progress").touch()
    before = sorted(os.listdir(tmp_path))
    assert "has parts but no _job.json" in refused(lambda: start(tmp_path))
    assert sorted(os.listdir(tmp_path)) == before
    parts = start(tmp_path, overwrite=True)
    assert parts.finished() == set()
    assert os.listdir(tmp_path) == [JOB]


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"fingerprint": {}, "units": [[[1]]]}'])
def test_a_description_that_cannot_be_read_is_named_and_overwritten(tmp_path: Path, content: str) -> None:
    finish(start(tmp_path), 0)
    (tmp_path / JOB).write_text(content)
    assert refused(lambda: start(tmp_path)).startswith(f"{tmp_path}/{JOB} cannot be read: ")
    assert start(tmp_path, overwrite=True).finished() == set()
    assert start(tmp_path).units == UNITS


# ---- progress


@pytest.mark.parametrize("k", [1, 2])
def test_saved_scores_read_back_bit_for_bit(tmp_path: Path, k: int) -> None:
    """Also several numbers a row, as of several heads."""
    parts = start(tmp_path)
    raw = np.array([1.5, np.nan, -0.0] * k, np.float32).reshape(3, k)
    raw.reshape(-1)[1:2].view(np.uint32)[:] = 0x7FC00123
    parts.save_scores(UNITS[0], raw)
    found = start(tmp_path).saved_scores(UNITS[0], 3, k)
    assert (found.tobytes(), found.shape) == (raw.tobytes(), (3, k))
    found[0] = 2.0  # it is this process's own
    assert parts.saved_scores(UNITS[0], 3, k)[0, 0] == 1.5
    assert np.isnan(parts.saved_scores(UNITS[0], 3, 3 - k)).all()
    assert np.isnan(parts.saved_scores(UNITS[1], 2, k)).all()
    assert parts.saved_scores(UNITS[1], 2, k).dtype == np.float32
    parts.save_scores(UNITS[0], raw[:0])
    assert parts.saved_scores(UNITS[0], 0, k).tolist() == []


def test_torn_scores_and_those_of_other_rows_or_another_job_are_none(tmp_path: Path) -> None:
    parts = start(tmp_path)
    path = tmp_path / "part-00000.progress"
    parts.save_scores(UNITS[0], np.ones((3, 1), np.float32))
    whole = path.read_bytes()
    for content in [whole[:size] for size in range(len(whole))] + [whole + b"\0", whole[:3] + b"?" + whole[4:]]:
        path.write_bytes(content)
        assert np.isnan(parts.saved_scores(UNITS[0], 3, 1)).all()
    path.write_bytes(whole)
    assert np.isnan(parts.saved_scores(UNITS[0], 2, 1)).all()
    assert np.isnan(parts.saved_scores(UNITS[0], 4, 1)).all()
    assert parts.saved_scores(UNITS[0], 3, 1).tolist() == [[1], [1], [1]]
    other = start(tmp_path / "other", OTHER)
    shutil.copy(path, tmp_path / "other")
    assert np.isnan(other.saved_scores(UNITS[0], 3, 1)).all()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"7", b"{}", b"\xff"])
def test_a_damaged_note_of_failure_is_one_of_an_unknown_reason(tmp_path: Path, content: bytes) -> None:
    parts = start(tmp_path)
    parts.fail(0, "2 workers died on it")
    (tmp_path / "part-00001.failed").write_bytes(content)
    assert parts.failed() == {0: "2 workers died on it", 1: "unknown: its file is damaged"}


def test_a_note_of_failure_that_goes_meanwhile_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = start(tmp_path)
    monkeypatch.setattr(LocalFolder, "names", lambda *_: ["part-00001.failed"])
    assert parts.failed() == {}


def test_a_part_takes_the_place_of_progress_and_failure(tmp_path: Path) -> None:
    parts = start(tmp_path)
    parts.save_scores(UNITS[0], np.ones((3, 1), np.float32))
    parts.save_scores(UNITS[1], np.ones((3, 1), np.float32))
    parts.fail(0, "two workers died")
    parts.fail(2, "é")
    assert parts.failed() == {0: "two workers died", 2: "é"}
    finish(parts, 0)
    assert parts.failed() == {2: "é"}
    assert sorted(os.listdir(tmp_path)) == [JOB, "part-00000.parquet", "part-00001.progress", "part-00002.failed"]


# ---- several at once


def marked_units(mark: int) -> list[Unit]:
    """Units that tell who cut them."""
    return [Unit(0, (Span(0, 0, mark, mark, 0),))]


def test_threads_that_begin_at_once_agree_on_one_job(tmp_path: Path) -> None:
    draw, count = random.Random(0), 6
    with ThreadPoolExecutor(count) as threads:
        for number in range(25):
            folder, barrier = tmp_path / str(number), Barrier(count)
            if number % 2:
                finish(start(folder, OTHER), 0)
                (folder / JOB).unlink()

            def begin(
                mark: int, folder: Path = folder, barrier: Barrier = barrier, overwrite: bool = number % 2 > 0
            ) -> list[Unit]:
                barrier.wait()
                return start_parts(
                    LocalFolder(str(folder)), FINGERPRINT, lambda: Division(marked_units(mark)), overwrite=overwrite
                ).units

            marks = draw.sample(range(1, 100), count)
            found = list(threads.map(begin, marks))
            job = open_parts(LocalFolder(str(folder)))
            assert job is not None
            assert found == [job.units] * count
            assert job.units[0].rows in marks
            assert os.listdir(folder) == [JOB]


BEGIN = """
import sys
from batchscore.jobs.parts import Division, start_parts
from batchscore.io.storage import LocalFolder
from batchscore.io.units import Span, Unit

mark = int(sys.argv[1])
for line in sys.stdin:
    try:
        cut = lambda: Division([Unit(0, (Span(0, 0, mark, mark, 0),))])
        print(start_parts(LocalFolder(line.strip()), {"a": 1}, cut, overwrite=False).units[0].rows, flush=True)
    except Exception as error:
        print(repr(error), flush=True)
"""


def test_processes_that_begin_at_once_agree_on_one_job(tmp_path: Path) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", BEGIN, str(mark)],
            cwd=Path(__file__).parents[1],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for mark in (3, 5, 7)
    ]
    pipes = [(process.stdin, process.stdout) for process in processes]
    try:
        for number in range(-1, 40):  # before the first, each imports
            for ours, _ in pipes:
                assert ours is not None
                print(tmp_path / str(number), file=ours, flush=True)
            said = [theirs.readline().strip() for _, theirs in pipes if theirs is not None]
            assert said in (["3"] * 3, ["5"] * 3, ["7"] * 3)
            assert os.listdir(tmp_path / str(number)) == [JOB]
    finally:
        for process in processes:
            process.communicate()
    assert [process.returncode for process in processes] == [0] * 3


class SlowFolder(LocalFolder):
    """A folder of a process that is late before or after it lists the files, while another starts the job."""

    def __init__(self, path: str, late: int, *, before: bool) -> None:
        super().__init__(path)
        self.late, self.before = late, before  # late: which listing

    def names(self) -> list[str]:
        self.late -= 1
        if self.late:
            return super().names()
        found = [] if self.before else super().names()
        finish(start_parts(LocalFolder(self.path), FINGERPRINT, lambda: Division(UNITS), overwrite=False), 1)
        return super().names() if self.before else found


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("late", [1, 2, 3])
def test_a_process_that_comes_late_removes_nothing_of_what_the_others_have_done(
    tmp_path: Path, late: int, before: bool
) -> None:
    folder = SlowFolder(str(tmp_path), late, before=before)
    parts = start_parts(folder, FINGERPRINT, lambda: Division(marked_units(9)), overwrite=False)
    assert folder.late <= 0
    assert parts.units == UNITS
    assert parts.finished() == {1}
    assert parts.check([1]) == []


def test_a_folder_taken_by_another_job_meanwhile_is_refused(tmp_path: Path) -> None:
    def cut() -> Division:
        start(tmp_path, OTHER)
        return Division(UNITS)

    message = refused(lambda: start_parts(LocalFolder(str(tmp_path)), FINGERPRINT, cut, overwrite=False))
    assert message == f"{tmp_path} holds the parts of another job: model.max_length was 256 and is 512"


def test_one_unit_written_by_several_at_once_is_whole(tmp_path: Path) -> None:
    parts = start(tmp_path)
    tables = [pa.table({"n": np.full(20_000, mark)}) for mark in range(6)]

    def work(table: pa.Table) -> None:
        parts.save_scores(UNITS[0], np.full((3, 1), table["n"][0].as_py(), np.float32))
        finish(parts, 0, table=table)

    with ThreadPoolExecutor(len(tables)) as threads:
        list(threads.map(work, tables * 3))
    assert parts.read(0)["n"].to_pylist() in [table["n"].to_pylist() for table in tables]
    assert [name for name in os.listdir(tmp_path) if ".tmp-" in name] == []


# ---- stores


def test_a_job_on_a_store_is_as_on_a_disk(tmp_path: Path) -> None:
    folder = open_folder(f"memory://{tmp_path}/job")
    parts = start(folder)
    finish(parts, 0, 1)
    parts.save_scores(UNITS[2], np.ones((1, 1), np.float32))
    again = start(folder)
    assert (again.units, again.finished(), again.complete()) == (UNITS, {0, 1}, False)
    assert again.read(1).equals(TABLE)
    assert again.saved_scores(UNITS[2], 1, 1).tolist() == [[1]]
    assert "model.max_length was 512 and is 256" in refused(lambda: start(folder, OTHER))
    fsspec.filesystem("memory").pipe(f"{tmp_path}/job/part-00000.parquet", b"words")
    assert again.check([0, 1]) == [0]
    assert start(folder, OTHER, overwrite=True).finished() == set()
    assert folder.names() == [JOB]
    folder.discard()
    assert open_parts(folder) is None


@pytest.fixture
def bytes_read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of what is read of files in memory://."""
    sizes: list[int] = []
    read = MemoryFile.read

    def counted(self: MemoryFile, size: int = -1) -> bytes:
        content = read(self, size)
        sizes.append(len(content))
        return content

    monkeypatch.setattr(MemoryFile, "read", counted)
    return sizes


def test_of_a_part_on_a_store_only_the_footer_is_read_and_only_once(tmp_path: Path, bytes_read: list[int]) -> None:
    folder = open_folder(f"memory://{tmp_path}/job")
    finish(start(folder), 0, 1, 2, table=pa.table({"text": [os.urandom(1000).hex() for _ in range(3000)]}))
    parts = start(folder)
    bytes_read.clear()
    assert parts.check([0, 1, 2]) == []
    assert 0 < sum(bytes_read) <= 3 << 16 < sum(len(folder.read(f"part-{unit:05}.parquet")) for unit in range(3)) / 30
    bytes_read.clear()
    assert (parts.counts()["rows"], len(parts.faults()), parts.part(1).counts["rows"]) == (7, 3, 3)
    assert bytes_read == []


def test_a_footer_of_any_length_is_read_whole(tmp_path: Path, bytes_read: list[int]) -> None:
    for folder in (LocalFolder(str(tmp_path)), open_folder(f"memory://{tmp_path}/job")):
        parts = start(folder)
        faults = [{"file": "a.jsonl", "row": row, "message": os.urandom(20).hex()} for row in range(5000)]
        parts.write(UNITS[0], pa.table({"text": [os.urandom(1000).hex() for _ in range(3000)]}), {"rows": 3}, faults)
        bytes_read.clear()
        assert parts.faults() == faults
    assert sum(bytes_read) < 600_000 < folder.read("part-00000.parquet").size / 5


def test_a_part_that_a_store_does_not_give_is_not_taken_for_a_damaged_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = open_folder(f"memory://{tmp_path}/job")
    parts = start(folder)
    finish(parts, 0)

    def unreachable(self: MemoryFile, size: int = -1) -> bytes:
        raise OSError("connection reset")

    with monkeypatch.context() as patched:
        patched.setattr(MemoryFile, "read", unreachable)
        with pytest.raises(RuntimeFailureError, match="cannot read .*connection reset"):
            parts.check([0])
    assert parts.check([0]) == []


def test_a_part_is_looked_at_again_where_damage_matters(tmp_path: Path) -> None:
    parts = start(tmp_path)
    finish(parts, 0, 1)
    assert parts.counts()["rows"] == 6
    for unit in (0, 1):
        part(tmp_path, unit).write_bytes(b"words")
    assert parts.check([0]) == [0]
    with pytest.raises(RuntimeFailureError, match="was damaged and has been removed"):
        parts.read(1)
    with pytest.raises(InputError, match="part-00001.parquet is damaged"):
        parts.part(1)
    assert parts.finished() == set()
