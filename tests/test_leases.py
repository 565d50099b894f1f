"""Units are claimed by one process each, and go to another when that process is no more."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pyarrow as pa
import pytest

from batchscore.errors import RuntimeFailureError, StoppedError
from batchscore.io.storage import LocalFolder, open_folder, writer_id
from batchscore.io.units import Span, Unit
from batchscore.jobs.leases import Leases, Presence, workers
from batchscore.jobs.meter import Meter
from batchscore.jobs.parts import JOB, Division, Parts, start_parts
from batchscore.stop import Stop

UNITS = [Unit(number, (Span(0, number, number + 1, 1, number),)) for number in range(5)]


@pytest.fixture
def parts(tmp_path: Path) -> Parts:
    return start_parts(LocalFolder(str(tmp_path / "job")), {"of": "test"}, lambda: Division(UNITS), overwrite=False)


def presence_of(parts: Parts, owner: str, beat_seconds: float = 10.0) -> Presence:
    presence = Presence(parts, "0/1", beat_seconds=beat_seconds)
    presence.owner = owner
    return presence


def finish(parts: Parts, *units: int) -> None:
    for unit in units:
        parts.write(UNITS[unit], pa.table({"n": [1]}), {"rows": 1}, [])


def files(parts: Parts) -> list[str]:
    return [name for name in parts.folder.names() if name != JOB]


def set_age(parts: Parts, name: str, seconds: float) -> None:
    """Have a file last touched so many seconds ago."""
    then = time.time() - seconds
    os.utime(os.path.join(parts.folder.path, name), (then, then))


def numbers(units: Sequence[Unit]) -> list[int]:
    return [unit.index for unit in units]


# ---- presence


def test_a_process_at_work_has_a_file_that_says_so(parts: Parts) -> None:
    with Presence(parts, "1/4") as presence:
        name = f"worker-{writer_id()}.json"
        assert files(parts) == [name]
        state = json.loads(bytes(parts.folder.read(name)))
        assert (state["shard"], state["units"], state["beat_seconds"]) == ("1/4", [], 10.0)
        assert abs(state["time"] - time.time()) < 60
        assert [worker["process"] for worker in workers(parts)] == [presence.owner]
    assert files(parts) == []
    assert workers(parts) == []


def test_the_file_is_touched_with_every_beat_and_tells_the_news(parts: Parts) -> None:
    with presence_of(parts, "a-1", 0.02) as presence:
        set_age(parts, "worker-a-1.json", 1000)
        presence.units |= {3, 1}
        presence._meter = Meter(rows=120, started=time.perf_counter() - 10)
        presence.finished_rows = 50
        end = time.monotonic() + 20
        state: dict[str, object] = {}
        while state.get("units") != [1, 3] and time.monotonic() < end:
            time.sleep(0.01)
            state = json.loads(bytes(parts.folder.read("worker-a-1.json")))
        assert (state["units"], state["rows_in_work"]) == ([1, 3], 70)
        assert 2 < float(str(state["rows_per_second"])) <= 12
        assert os.stat(os.path.join(parts.folder.path, "worker-a-1.json")).st_mtime > time.time() - 500


def test_workers_are_those_that_were_heard_of_within_three_beats(parts: Parts) -> None:
    with presence_of(parts, "a-1", 1000), presence_of(parts, "b-2", 1000), presence_of(parts, "c-3", 9999):
        for name, content in (("worker-torn-4.json", "{"), ("worker-empty-5.json", ""), ("part-00000.lease", "a-1")):
            Path(parts.folder.path, name).write_text(content)
        set_age(parts, "worker-a-1.json", 2900)
        set_age(parts, "worker-b-2.json", 3100)
        set_age(parts, "worker-c-3.json", 20_000)
        assert [(worker["process"], worker["shard"]) for worker in workers(parts)] == [("a-1", "0/1"), ("c-3", "0/1")]


def test_on_a_store_a_worker_is_as_old_as_it_says(tmp_path: Path) -> None:
    parts = start_parts(
        open_folder(f"memory://{tmp_path}/job"), {"of": "test"}, lambda: Division(UNITS), overwrite=False
    )
    with presence_of(parts, "a-1"):
        parts.folder.write("worker-b-2.json", json.dumps({"time": time.time() - 3100, "beat_seconds": 1000}).encode())
        parts.folder.write("worker-c-3.json", json.dumps({"time": time.time() - 2900, "beat_seconds": 1000}).encode())
        assert [worker["process"] for worker in workers(parts)] == ["a-1", "c-3"]
    parts.folder.discard()


def test_a_folder_that_was_merged_away_does_not_disturb_the_beat(parts: Parts) -> None:
    with presence_of(parts, "a-1", 0.01) as presence:
        parts.folder.discard()
        time.sleep(0.1)
        assert presence._thread.is_alive()
    assert not os.path.exists(parts.folder.path)


# ---- leases


def test_of_two_that_claim_a_unit_the_first_has_it(parts: Parts) -> None:
    with presence_of(parts, "a-1") as one, presence_of(parts, "b-2") as other:
        first, second = Leases(parts, one), Leases(parts, other)
        ours, theirs = first.claimed(UNITS), second.claimed(UNITS)
        assert numbers([next(ours), next(theirs), next(theirs), next(ours)]) == [0, 1, 2, 3]
        assert bytes(parts.folder.read("part-00001.lease")) == b"b-2"
        assert numbers(list(ours)) == [4]
        assert list(theirs) == []
        first.release(UNITS[3])
        assert numbers(list(second.claimed(UNITS))) == [3]


def test_each_unit_goes_to_one_of_many_that_claim_at_once(tmp_path: Path) -> None:
    units = [Unit(number, (Span(0, 0, 1, 1, 0),)) for number in range(40)]
    job = start_parts(LocalFolder(str(tmp_path)), {"of": "test"}, lambda: Division(units), overwrite=False)
    barrier = Barrier(6)

    def work(number: int) -> list[int]:
        with presence_of(job, f"host-{number}") as presence:
            barrier.wait()
            found = numbers(list(Leases(job, presence).claimed(units)))
            barrier.wait()  # all are at work as long as any claims
            return found

    with ThreadPoolExecutor(6) as threads:
        found = list(threads.map(work, range(6)))
    assert sorted(unit for mine in found for unit in mine) == list(range(40))


@pytest.mark.parametrize(("age", "is_stolen"), [(2900, False), (3100, True), (None, True)])
def test_a_lease_is_void_when_its_owner_was_silent_for_three_beats(
    parts: Parts, age: float | None, is_stolen: bool
) -> None:
    with presence_of(parts, "a-1", 1000) as dead, presence_of(parts, "b-2") as presence:
        assert next(Leases(parts, dead).claimed(UNITS)) == UNITS[0]
        if age is None:
            parts.folder.remove("worker-a-1.json")
        else:
            set_age(parts, "worker-a-1.json", age)
        leases = Leases(parts, presence)
        assert numbers(list(leases.claimed(UNITS[:1]))) == [0] * is_stolen
        assert bytes(parts.folder.read("part-00000.lease")) == (b"b-2" if is_stolen else b"a-1")
        assert Leases(parts, dead).claim_merge()
        assert leases.claim_merge() is is_stolen


def test_who_is_silent_on_another_host_is_waited_for(parts: Parts) -> None:
    """Three beats show whether it is dead; a process of this host is known to live, and has its unit to itself."""
    finish(parts, 2, 3, 4)
    neighbour = f"{writer_id().rpartition('-')[0]}-{os.getppid()}"
    with (
        presence_of(parts, "far-1", 1000) as far,
        presence_of(parts, neighbour, 1000) as near,
        presence_of(parts, "b-2") as presence,
    ):
        assert next(Leases(parts, far).claimed(UNITS[:1])) == UNITS[0]
        assert next(Leases(parts, near).claimed(UNITS[1:])) == UNITS[1]
        leases = Leases(parts, presence)
        assert leases.wait_for_silent(UNITS[1:], Stop()) == []
        set_age(parts, "worker-far-1.json", 2999)
        assert list(leases.claimed(UNITS)) == []
        assert leases.wait_for_silent(UNITS, Stop()) == UNITS[:1]
        assert next(leases.claimed(UNITS)) == UNITS[0]


def test_waiting_for_another_host_ends_with_three_beats_or_a_stop(parts: Parts) -> None:
    with presence_of(parts, "far-1", 1000) as far, presence_of(parts, "b-2", 0.2) as presence:
        assert next(Leases(parts, far).claimed(UNITS[:1])) == UNITS[0]
        leases, stop = Leases(parts, presence), Stop()
        began = time.monotonic()
        assert leases.wait_for_silent(UNITS[:1], stop) == []
        assert time.monotonic() - began > 0.6
        stop.request("SIGTERM")
        with pytest.raises(StoppedError):
            leases.wait_for_silent(UNITS[:1], stop)
        parts.folder.discard()
        assert leases.wait_for_silent(UNITS[:1], stop) == []


def test_a_process_that_is_killed_loses_its_units(parts: Parts) -> None:
    code = (
        "import sys, time\n"
        "from batchscore.jobs.leases import Leases, Presence\n"
        "from batchscore.jobs.parts import open_parts\n"
        "from batchscore.io.storage import LocalFolder\n"
        "parts = open_parts(LocalFolder(sys.argv[1]))\n"
        "with Presence(parts, '0/1', beat_seconds=0.5) as presence:\n"
        "    print(next(Leases(parts, presence).claimed(parts.units)).index, flush=True)\n"
        "    time.sleep(600)\n"
    )
    command = [sys.executable, "-c", code, parts.folder.path]
    with (
        subprocess.Popen(command, cwd=Path(__file__).parents[1], stdout=subprocess.PIPE, text=True) as process,
        presence_of(parts, "b-2") as presence,
    ):
        assert process.stdout is not None
        assert process.stdout.readline() == "0\n"
        leases = Leases(parts, presence)
        assert numbers(list(leases.claimed(UNITS[:2]))) == [1]
        os.kill(process.pid, signal.SIGKILL)
        end = time.monotonic() + 20
        while not (found := list(leases.claimed(UNITS[:2]))) and time.monotonic() < end:
            time.sleep(0.05)
        assert numbers(found) == [0]


def test_a_lease_of_a_process_known_to_have_ended_is_void_at_once(parts: Parts) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    host = writer_id().rpartition("-")[0]
    for unit, (owner, is_stolen) in enumerate([(f"{host}-{ended.pid}", True), (f"elsewhere-{ended.pid}", False)]):
        with presence_of(parts, owner) as other, presence_of(parts, "b-2") as presence:
            assert next(Leases(parts, other).claimed(UNITS[unit : unit + 1])) == UNITS[unit]
            assert numbers(list(Leases(parts, presence).claimed(UNITS[unit : unit + 1]))) == [unit] * is_stolen
            assert [worker["process"] for worker in workers(parts)] == ["b-2"] + [owner] * (not is_stolen)


def test_a_name_that_comes_back_takes_its_units_again(parts: Parts) -> None:
    """A container that starts again has the same host and process number."""
    with presence_of(parts, "a-1") as before:
        assert len(list(Leases(parts, before).claimed(UNITS[:2]))) == 2
    with presence_of(parts, "a-1") as again:
        leases = Leases(parts, again)
        assert numbers(list(leases.claimed(UNITS))) == [0, 1, 2, 3, 4]
        assert list(leases.claimed(UNITS)) == []  # but each once


def test_units_that_are_done_are_not_claimed(parts: Parts) -> None:
    finish(parts, 0, 3)
    with presence_of(parts, "a-1") as presence:
        leases = Leases(parts, presence)
        found = []
        for unit in leases.claimed(UNITS):
            found.append(unit.index)
            if unit.index == 1:
                finish(parts, 2)  # by another, meanwhile
            finish(parts, unit.index)
            leases.release(unit)
        assert found == [1, 4]
        assert parts.complete()
        assert [name for name in files(parts) if name.endswith(".lease")] == []


def test_a_unit_that_was_done_just_before_its_claim_is_let_go(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[int] = []

    def has(self: Parts, unit: Unit) -> bool:
        looks.append(unit.index)
        return looks.count(unit.index) > 1

    monkeypatch.setattr(Parts, "has", has)
    with presence_of(parts, "a-1") as presence:
        assert list(Leases(parts, presence).claimed(UNITS[:2])) == []
        assert looks == [0, 0, 1, 1]
        assert files(parts) == ["worker-a-1.json"]


def test_a_unit_that_is_given_back_is_found_in_the_next_round(parts: Parts) -> None:
    with presence_of(parts, "a-1") as one, presence_of(parts, "b-2") as other:
        first = Leases(parts, one)
        assert next(first.claimed(UNITS)) == UNITS[0]
        claimed = Leases(parts, other).claimed(UNITS[:3])
        assert numbers([next(claimed), next(claimed)]) == [1, 2]
        first.release(UNITS[0])
        assert numbers(list(claimed)) == [0]


def test_a_lease_that_vanishes_while_it_is_looked_at_is_nobodys_yet(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LocalFolder, "create", lambda *_: False)
    with presence_of(parts, "a-1") as presence:
        assert list(Leases(parts, presence).claimed(UNITS)) == []


def test_what_another_has_merged_and_removed_is_not_merged_again(parts: Parts) -> None:
    with presence_of(parts, "a-1") as presence:
        parts.folder.discard()
        assert not Leases(parts, presence).claim_merge()


def test_a_merge_that_cannot_be_claimed_while_there_is_a_job_is_an_error(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with presence_of(parts, "a-1") as presence:
        monkeypatch.setattr(os, "fsync", fail)
        with pytest.raises(RuntimeFailureError, match="part-merge.lease: No space left"):
            Leases(parts, presence).claim_merge()


def test_one_of_several_merges(parts: Parts) -> None:
    with presence_of(parts, "a-1") as one, presence_of(parts, "b-2") as other:
        first, second = Leases(parts, one), Leases(parts, other)
        assert second.claim_merge()
        assert not first.claim_merge()
        assert not second.claim_merge()
