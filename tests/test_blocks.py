"""Blocks of texts are encoded by whoever is there, once, whatever ends or damages; the bytes never depend on it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import jobs
from batchscore.errors import OutputError, RuntimeFailureError, StoppedError
from batchscore.io.storage import LocalFolder, open_folder
from batchscore.jobs import survey as surveys
from batchscore.jobs.agenda import Agenda
from batchscore.jobs.blocks import Block, open_blocks
from batchscore.jobs.events import Outcome
from batchscore.jobs.files import score_files
from batchscore.jobs.meter import Amounts, Meter
from batchscore.jobs.one_model import OneModel
from batchscore.jobs.parts import open_parts
from batchscore.jobs.run import PreparedJob
from batchscore.jobs.shards import Shard
from batchscore.jobs.status import job_status
from batchscore.jobs.workers import processes
from batchscore.jobs.workers.job import WorkerJob
from batchscore.media.policy import MediaPolicy
from batchscore.stop import Stop
from batchscore.types import Cell
from forks import forking
from threads import one_thread

Tiny = Callable[[str], str]
Whole = dict[str, bytes]
QUERIES = [f"{word} {number}" for number, word in enumerate(jobs.WORDS)]
DOCUMENTS = [row["document"] for row in jobs.random_rows(50)]
ROWS = [
    {"id": f"r{place}", "query": QUERIES[place * 5 % 12], "document": DOCUMENTS[(place * 7 + place // 50) % 50]}
    for place in range(200)
]
UNITS = 10
SMALL = {"BLOCK_TEXTS": "8"}  # 12 queries and 50 documents are 2 and 7 blocks


def write_input() -> None:
    """The same file each time, as a part's footer says of which job it is."""
    jobs.write_rows("in.parquet", ROWS)
    os.utime("in.parquet", (1_700_000_000, 1_700_000_000))


@pytest.fixture(autouse=True)
def small(here: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The input in a new folder, small blocks, and waiting that takes no time."""
    monkeypatch.setattr(surveys, "_BLOCK_TEXTS", 8)
    monkeypatch.setattr("batchscore.jobs.pipeline._WAIT_SECONDS", 0.01)
    write_input()
    with one_thread():
        yield


def run(model: str, out: str = "out/", **options: Any) -> Outcome:
    return score_files(model, "in.parquet", out, **{"dtype": "float32", "unit_rows": 20, "encode": "once", **options})


def arguments(model: str, *more: str, out: str = "out/") -> list[str]:
    """The same for a process."""
    call = ["score", "--model", model, "--in", "in.parquet", "--out", out, "--dtype", "float32"]
    return [*call, "--unit-rows", "20", "--encode", "once", *more]


def outputs(folder: str) -> dict[str, bytes]:
    return {name: content for name, content in jobs.contents(folder).items() if name.startswith("part-")}


def is_tidy(folder: str) -> bool:
    """Whether nothing but parts and descriptions is left, folders included."""
    return all(name.startswith("_") or name in jobs.parts(folder) for name in os.listdir(folder))


@pytest.fixture(scope="module")
def whole(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """The parts of an undisturbed run in one process."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch, one_thread():
        patch.chdir(folder)
        patch.setattr(surveys, "_BLOCK_TEXTS", 8)
        write_input()
        run(tiny("bert_mean"))
        assert is_tidy("out")
        return outputs("out")


def counts(folder: str = "out") -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(f"{folder}/_run.json").read_text("utf-8"))["counts"]
    return found


# ---- who encodes


@pytest.mark.slow
@pytest.mark.parametrize(
    "shares",
    [
        [["--shard", "0/3"], ["--shard", "1/3"], ["--shard", "2/3"]],
        [["--claim", "dynamic"], ["--claim", "dynamic"]],
        [["--devices", "cpu:2"]],
        [[], []],
    ],
    ids=["shards", "dynamic", "devices", "twice"],
)
def test_processes_at_once_make_the_same_bytes_and_leave_nothing(
    tiny: Tiny, whole: Whole, shares: Sequence[Sequence[str]]
) -> None:
    runs = [jobs.start(*arguments(tiny("bert_mean"), *share), **SMALL) for share in shares]
    said = [one.communicate()[1] for one in runs]

    assert [one.returncode for one in runs] == [0] * len(runs), said
    assert outputs("out") == whole
    assert is_tidy("out"), os.listdir("out")
    done = [json.loads(path.read_text("utf-8"))["counts"] for path in Path("out").glob("_run*.json")]
    if shares != [[], []]:  # two of the same command write one record
        assert sum(one["tokens_forwarded"] for one in done) == run(tiny("bert_mean"), "again/").counts["tokens"]


def test_shards_one_after_the_other_make_the_same_bytes(tiny: Tiny, whole: Whole) -> None:
    for shard in (2, 0, 1):
        outcome = run(tiny("bert_mean"), shard=f"{shard}/3")
        assert outcome.end == ("share" if shard == 1 else "partial")
    assert outputs("out") == whole
    assert is_tidy("out")


def test_a_store_of_objects_is_shared_as_well(tiny: Tiny, whole: Whole) -> None:
    system = fsspec.filesystem("memory")
    try:
        for shard in (1, 0):
            run(tiny("bert_mean"), "memory://bucket/out/", shard=f"{shard}/2", merge=True)
        names = {Path(path).name for path in system.find("/bucket/out")}
        assert {name: system.cat(f"/bucket/out/{name}") for name in names if name.startswith("part-")} == whole
        assert all(name.startswith(("part-", "_")) for name in names)
        record = json.loads(system.cat("/bucket/out/_run.json"))["counts"]
        assert (record["texts"], record["encode"]) == (62, "once")
    finally:
        system.store.clear()


def test_without_leases_a_process_leaves_others_their_share_while_they_live(tiny: Tiny) -> None:
    run(tiny("bert_mean"), shard="0/2")
    for path in Path("out").glob("block-*.safetensors"):
        path.unlink()
    parts = open_parts(open_folder("out"))
    assert parts is not None
    blocks = open_blocks(parts.folder, parts.id)
    assert blocks is not None
    beside = {"shard": "0/2", "units": [], "blocks": [], "beat_seconds": 10}
    Path("out/worker-there-7.json").write_text(json.dumps(beside))
    meter = Meter()
    tasks = Agenda(parts, blocks, Shard(1, 2), None, False, meter).tasks(parts.units)

    own = [next(tasks) for _ in range(4)]
    assert own == blocks.blocks[1::2]
    assert meter.total_texts == 62 // 2
    assert [next(tasks) for _ in range(3)] == [None] * 3
    os.utime("out/worker-there-7.json", (0, 0))  # silent since
    others = [next(tasks) for _ in range(5)]
    assert others == blocks.blocks[::2]
    assert next(tasks) is None  # until they are written
    assert meter.total_texts == 62
    open_folder("out").discard()
    with pytest.raises(OutputError, match="another run has finished the job"):
        next(tasks)


@pytest.mark.slow
def test_a_block_is_waited_for_as_long_as_its_process_lives(tiny: Tiny, whole: Whole) -> None:
    held = jobs.start(*arguments(tiny("bert_mean"), "--shard", "0/2"), HOLD_AT="block-00004.safetensors", **SMALL)
    jobs.wait_until(Path("block-00004.safetensors").exists)
    other = jobs.start(*arguments(tiny("bert_mean"), "--shard", "1/2"), **SMALL)
    # the next block waits to be written, and the one after is read
    jobs.wait_until(lambda: job_status("out")["texts"]["blocks_done"] == 6)
    state = job_status("out")

    assert state["texts"]["total"] == 62
    assert len(state["workers"]) == 2
    assert Path("out/block-00004.lease").exists()
    assert state["rows"]["done"] == 0
    assert other.poll() is None
    assert not Path("out/block-00004.safetensors").exists()
    held.kill()
    jobs.wait_until(lambda: held.poll() is not None)
    assert other.communicate()[1] is not None
    assert other.returncode == 0
    run(tiny("bert_mean"))
    assert outputs("out") == whole
    assert is_tidy("out")


@pytest.mark.slow
def test_a_survey_is_waited_for_as_long_as_its_process_lives(tiny: Tiny, whole: Whole) -> None:
    held = jobs.start(*arguments(tiny("bert_mean"), "--shard", "0/2"), HOLD_AT="texts.json", **SMALL)
    jobs.wait_until(Path("texts.json").exists)
    other = jobs.start(*arguments(tiny("bert_mean"), "--shard", "1/2"), **SMALL)
    jobs.wait_until(lambda: len(job_status("out")["workers"]) == 2)
    assert job_status("out")["texts"] is None
    held.kill()
    jobs.wait_until(lambda: held.poll() is not None)
    assert "62 distinct texts" in other.communicate()[1]
    assert other.returncode == 0
    run(tiny("bert_mean"))
    assert outputs("out") == whole
    assert is_tidy("out")


def test_the_time_to_go_is_that_of_what_is_left() -> None:
    meter = Meter(total=1000, started=perf_counter() - 100)
    assert meter.seconds_left is None
    meter.total_size = 100.0
    meter.merge(Amounts(size=25.0))
    assert meter.seconds_left == pytest.approx(300, rel=0.01)
    meter.merge(Amounts(size=75.0))
    meter._compared = perf_counter() - 2
    meter.merge(Amounts(rows=400))
    assert meter.rows_per_second == pytest.approx(200, rel=0.05)
    assert meter.seconds_left == pytest.approx(3, rel=0.05)


# ---- kills and stops

# in the survey, in a block, between blocks and units, in a unit, before the end
POINTS = ["texts-query.index", "block-00003.safetensors", "part-00000.parquet", "part-00006.parquet", "_run.json"]


@pytest.mark.slow
@pytest.mark.parametrize("point", POINTS)
def test_a_run_that_is_killed_is_resumed_to_the_same_bytes(tiny: Tiny, whole: Whole, point: str) -> None:
    killed = jobs.start(*arguments(tiny("bert_mean")), KILL_AT=point, **SMALL)
    killed.communicate()
    assert killed.returncode == -9
    outcome = run(tiny("bert_mean"))

    assert outputs("out") == whole
    assert is_tidy("out"), os.listdir("out")
    assert outcome.counts["texts"] == counts()["texts"] == 62
    assert outcome.counts["tokens"] >= outcome.counts["tokens_forwarded"]


@pytest.mark.parametrize("point", ["texts.json", *POINTS[1:-1]])
def test_a_run_that_is_stopped_is_resumed_to_the_same_bytes(
    tiny: Tiny, whole: Whole, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    stop, filled = Stop(), LocalFolder._filled

    def filling(folder: LocalFolder, name: str, content: Any) -> Any:
        if name == point:
            stop.request("a test")
        return filled(folder, name, content)

    with monkeypatch.context() as patch:
        patch.setattr(LocalFolder, "_filled", filling)
        with pytest.raises(StoppedError, match="of 10 units are done"):
            run(tiny("bert_mean"), stop=stop)
    assert not [name for name in os.listdir("out") if name.endswith(".lease") or name.startswith(("worker", "."))]
    run(tiny("bert_mean"))

    assert outputs("out") == whole
    assert is_tidy("out")
    assert counts()["texts"] == 62


def test_a_second_run_of_a_finished_job_keeps_its_counts(tiny: Tiny) -> None:
    run(tiny("bert_mean"))
    before = counts()
    run(tiny("bert_mean"), merge=True)
    assert counts()["texts"] == before["texts"] == 62
    assert counts()["tokens"] == before["tokens"] > 0


# ---- workers that die


@dataclass(frozen=True)
class DeadlyJob(WorkerJob):
    """Kills the process that reads the texts of block 3."""

    def pipeline(self, meter: Meter, stop: Stop, *, device: str) -> OneModel:
        model = super().pipeline(meter, stop, device=device)
        blocks = model.pipeline.blocks
        assert blocks is not None
        texts = blocks.texts

        def deadly(block: Block, media: MediaPolicy) -> list[Cell]:
            if block.index == 3 and (Path("always").exists() or not Path("died").exists()):
                Path("died").touch()
                os._exit(9)
            return texts(block, media)

        blocks.texts = deadly  # type: ignore[method-assign]
        return model


@pytest.fixture
def deadly(monkeypatch: pytest.MonkeyPatch) -> None:
    for_worker = PreparedJob.for_worker
    monkeypatch.setattr(processes, "_CONTEXT", forking())
    monkeypatch.setattr(PreparedJob, "for_worker", lambda job: DeadlyJob(**vars(for_worker(job))))


@pytest.mark.slow
@pytest.mark.usefixtures("deadly")
def test_a_worker_that_dies_in_a_block_is_replaced(tiny: Tiny, whole: Whole) -> None:
    run(tiny("bert_mean"), devices="cpu:1")
    assert Path("died").exists()
    assert outputs("out") == whole
    assert is_tidy("out")


@pytest.mark.slow
@pytest.mark.usefixtures("deadly")
def test_a_block_that_kills_two_workers_ends_the_job_by_name(
    tiny: Tiny, whole: Whole, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("always").touch()
    stop = Stop()
    stop.after(120)  # a parent that hangs is to fail the test
    with pytest.raises(RuntimeFailureError, match="first of them block 3: 2 workers died on it"):
        run(tiny("bert_mean"), devices="cpu:2", stop=stop)
    assert jobs.parts("out") == []
    os.remove("always")
    run(tiny("bert_mean"))
    assert outputs("out") == whole


# ---- damage


def flip(place: float) -> Callable[[Path], object]:
    """Flips bits at this share of a file."""

    def damage(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[int(len(content) * place)] ^= 0xFF
        path.write_bytes(content)

    return damage


DAMAGES: dict[str, Callable[[Path], object]] = {
    "start": flip(0.0),
    "header": flip(0.1),
    "middle": flip(0.5),
    "end": flip(0.99),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-20]),
    "empty": lambda path: path.write_bytes(b""),
    "gone": lambda path: path.unlink(),
}


@pytest.fixture(scope="module")
def half(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job whose texts are all encoded, and whose units are half done."""
    folder = tmp_path_factory.mktemp("half")
    with pytest.MonkeyPatch.context() as patch, one_thread():
        patch.chdir(folder)
        patch.setattr(surveys, "_BLOCK_TEXTS", 8)
        write_input()
        run(tiny("bert_mean"), shard="0/2")
    return folder


def errors_until_done(model: str) -> list[RuntimeFailureError]:
    """What runs end with before one does not; four of them are enough."""
    errors: list[RuntimeFailureError] = []
    while len(errors) < 4:
        try:
            run(model)
            break
        except RuntimeFailureError as error:
            errors.append(error)
    return errors


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        *(("block-00003.safetensors", damage) for damage in DAMAGES),
        *(("block-00003.texts", damage) for damage in ("middle", "cut", "gone")),
        *(("texts-document.index", damage) for damage in ("header", "middle", "end", "cut", "gone")),
        *(("texts.json", damage) for damage in ("middle", "empty", "gone")),
    ],
)
def test_damage_is_found_and_healed_by_the_next_run(
    tiny: Tiny, whole: Whole, half: Path, name: str, damage: str
) -> None:
    os.system(f"cp -r {half}/out . && cp -p {half}/in.parquet .")
    DAMAGES[damage](Path("out") / name)
    if name.endswith(".texts"):
        (Path("out") / name).with_suffix(".safetensors").unlink()  # else nobody reads them
    errors = errors_until_done(tiny("bert_mean"))

    assert len(errors) <= 1
    assert all(name in error.message or "is not among the texts" in error.message for error in errors)
    assert all("run the same command again" in str(error.hint) for error in errors)
    assert outputs("out") == whole
    assert is_tidy("out")


# ---- groups: where the encodings of all documents have no room at once


def room_for(documents: int) -> float:
    """--encodings-gb for 12 queries and so many documents of 32 numbers."""
    return (12 + documents) * 32 * 4 / 1e9


@pytest.mark.parametrize("name", ["bert_mean", "colbert"])
def test_groups_give_the_same_scores(tiny: Tiny, name: str) -> None:
    run(tiny(name))
    outcome = run(tiny(name), "groups/", encodings_gb=room_for(20) if name == "bert_mean" else 1e-5)
    scores = [
        [row["score"] for part in jobs.parts(folder) for row in pq.read_table(f"{folder}/{part}").to_pylist()]
        for folder in ("out", "groups")
    ]
    np.testing.assert_allclose(scores[1], scores[0], atol=1e-6)
    assert outcome.counts["texts"] == 62
    assert counts("groups")["tokens"] == counts("out")["tokens"] == outcome.counts["tokens_forwarded"]
    assert is_tidy("groups")


@pytest.mark.slow
@pytest.mark.parametrize(
    "shares",
    [
        [["--shard", "0/3"], ["--shard", "1/3"]],  # the third begins when they have ended
        [["--claim", "dynamic"], ["--claim", "dynamic"]],
        [["--devices", "cpu:2"]],
        [[], []],
    ],
    ids=["shards", "dynamic", "devices", "twice"],
)
def test_processes_at_once_go_through_the_groups_together(
    tiny: Tiny, whole: Whole, shares: Sequence[Sequence[str]]
) -> None:
    room = ["--encodings-gb", str(room_for(20))]
    runs = [jobs.start(*arguments(tiny("bert_mean"), *share, *room), **SMALL) for share in shares]
    said = [one.communicate(timeout=90)[1] for one in runs]

    assert [one.returncode for one in runs] == [0] * len(runs), said
    run(tiny("bert_mean"), encodings_gb=room_for(20))
    assert scores_of(outputs("out")) == pytest.approx(scores_of(whole), abs=1e-6)
    assert is_tidy("out"), os.listdir("out")


def scores_of(parts: Whole) -> list[float]:
    """Of all rows."""
    tables = [pq.read_table(pa.BufferReader(parts[name])) for name in sorted(parts)]
    scores: list[float] = pa.concat_tables(tables)["score"].to_pylist()
    return scores


@pytest.mark.slow
@pytest.mark.parametrize("point", ["block-00003.counts", "part-00003.pass-1"])
def test_groups_are_resumed_where_a_kill_left_them(tiny: Tiny, whole: Whole, point: str) -> None:
    room = ["--encodings-gb", str(room_for(20))]
    killed = jobs.start(*arguments(tiny("bert_mean"), *room), KILL_AT=point, **SMALL)
    killed.communicate()
    assert killed.returncode == -9
    run(tiny("bert_mean"))

    assert scores_of(outputs("out")) == pytest.approx(scores_of(whole), abs=1e-6)
    assert counts()["texts"] == 62
    assert is_tidy("out")


def test_groups_hold_for_units_without_pairs_and_for_bad_rows(tiny: Tiny) -> None:
    rows = [{**row, "document": None} if 20 <= place < 40 or place == 3 else row for place, row in enumerate(ROWS)]
    jobs.write_rows("in.parquet", rows)
    for folder, options in (("once", {}), ("groups", {"encodings_gb": room_for(20)}), ("unit", {"encode": "unit"})):
        run(tiny("bert_mean"), f"{folder}/", errors="null", max_length=12, truncation="error", **options)
    listed = [Path(f"{folder}/_errors.jsonl").read_text("utf-8") for folder in ("unit", "once", "groups")]
    assert listed[0] == listed[1] == listed[2]
    assert len(listed[0].splitlines()) > 21
    assert counts("groups")["scored"] == counts("unit")["scored"] > 0
