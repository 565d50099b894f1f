"""Workers that die, answer no more or take a unit with them: the parent goes on, and nothing is lost."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest

import jobs
from batchscore.errors import DeviceLostError, InputError, RuntimeFailureError
from batchscore.io.source import Source
from batchscore.io.storage import open_folder
from batchscore.io.units import Unit
from batchscore.jobs.commands import ScoreCommand, UnitRows
from batchscore.jobs.commands.score import ScoredRows
from batchscore.jobs.leases import Task
from batchscore.jobs.meter import Meter
from batchscore.jobs.options import RunOptions
from batchscore.jobs.parts import Parts, start_parts
from batchscore.jobs.pipeline import Pipeline
from batchscore.jobs.run import prepare
from batchscore.jobs.workers import processes
from batchscore.jobs.workers.job import WorkerJob, Workforce
from batchscore.jobs.workers.processes import Slot, find_slots, run_in_processes
from batchscore.stop import Stop
from batchscore.types import Scores
from forks import forking

Tiny = Callable[[str], str]
ROWS = jobs.random_rows(300)


@dataclass(frozen=True)
class DeadlyJob(ScoreCommand):
    """Kills its process, or loses its device, when it reads a unit: the first time, or each time."""

    deadly: int = -1
    always: bool = False
    loses_device: bool = False

    def load(self, source: Source, unit: Unit) -> UnitRows:
        first = not Path("died").exists()
        if unit.index == self.deadly and (first or self.always):
            Path("died").touch()
            if self.loses_device:
                raise DeviceLostError("cuda:0 failed: CUDA error: an illegal memory access was encountered")
            os._exit(9)
        return super().load(source, unit)


@dataclass(frozen=True)
class StoppedJob(DeadlyJob):
    """Stops its process, as a debugger or a driver might, when it first reads a unit."""

    def load(self, source: Source, unit: Unit) -> UnitRows:
        if unit.index == self.deadly and not Path("died").exists():
            Path("died").touch()
            os.kill(os.getpid(), signal.SIGSTOP)
        return ScoreCommand.load(self, source, unit)


class UnwritableRows(ScoredRows):
    """Rows that become no table."""

    def table(self, pairs: Any, scores: Scores, *, keep_bad: bool) -> Any:
        raise RuntimeFailureError("no space left", hint="make some")


@dataclass(frozen=True)
class UnwritableJob(ScoreCommand):
    """Fails when its last unit is written."""

    def load(self, source: Source, unit: Unit) -> UnitRows:
        rows = super().load(source, unit)
        return UnwritableRows(*(getattr(rows, f.name) for f in fields(rows))) if unit.index == 5 else rows


@dataclass(frozen=True)
class UnloadableJob(WorkerJob):
    """A job whose model cannot be loaded."""

    def pipeline(self, meter: Meter, stop: Stop, *, device: str) -> Pipeline:
        raise RuntimeFailureError("no such weights", hint="look for them")


@dataclass(frozen=True)
class DeadlyModelJob(WorkerJob):
    """A job whose model kills the process that loads it."""

    def pipeline(self, meter: Meter, stop: Stop, *, device: str) -> Pipeline:
        os._exit(9)


def hang(*values: Any) -> None:
    """What a process does that loads Python from a disk that does not answer."""
    time.sleep(600)


class HangingJob(WorkerJob):
    """Hangs the first process that it is sent to, while that unpickles it."""

    def __reduce__(self) -> Any:
        is_first = not Path("sent").exists()
        Path("sent").touch()
        return hang if is_first else WorkerJob, tuple(getattr(self, field.name) for field in fields(self))


@pytest.fixture(autouse=True)
def rows(here: Path) -> None:
    jobs.write_rows("in.parquet", ROWS)


@pytest.fixture(autouse=True)
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers that need not load Python and torch, each for seconds."""
    monkeypatch.setattr(processes, "_CONTEXT", forking())


def started(
    model: str, command: ScoreCommand, kind: type[WorkerJob] = WorkerJob, **changes: Any
) -> tuple[WorkerJob, Parts]:
    """A job of six units, with a folder; `changes` is what workers are told otherwise."""
    options = RunOptions(["in.parquet"], "parts/")
    prepared = prepare(command, {"model": model, "window_rows": 50}, options)
    parts = start_parts(open_folder("parts"), prepared.plan.fingerprint, prepared.divide, overwrite=False)
    job = prepared.for_worker()
    return kind(**{**vars(job), **changes}), parts


class Run:
    """A run in processes, and what came of it."""

    def __init__(
        self, job: WorkerJob, parts: Parts, *, workers: int = 1, restarts: int = 3, on_news: Any = None
    ) -> None:
        self.done: list[int] = []
        self.said: list[str] = []
        self.meter = Meter(total=300)
        stop = Stop()
        stop.after(120)  # a parent that hangs is to fail the test
        workforce = Workforce(job, self.meter, stop, restarts, self._note, self._say)
        self._on_news = on_news
        self.given_up = run_in_processes(workforce, [Slot("cpu", 1)] * workers, iter(parts.units))

    def _say(self, line: str) -> None:
        self.said.append(line)
        if self._on_news:
            self._on_news()

    def _note(self, unit: Task, counts: Mapping[str, Any]) -> None:
        self.done.append(unit.index)
        assert isinstance(unit, Unit)
        assert counts["rows"] == unit.rows


def ids(parts: Parts) -> list[str]:
    names = (f"parts/part-{unit:05}.parquet" for unit in sorted(parts.finished()))
    return [row["id"] for name in names for row in pq.read_table(name).to_pylist()]


@pytest.mark.slow
@pytest.mark.parametrize("loses_device", [False, True], ids=["dies", "loses its device"])
def test_a_worker_that_fails_is_replaced_and_its_units_are_done_once(tiny: Tiny, loses_device: bool) -> None:
    job, parts = started(tiny("bert_ce"), DeadlyJob(deadly=2, loses_device=loses_device))
    run = Run(job, parts)

    assert run.given_up == {}
    assert sorted(run.done) == list(range(6))
    assert ids(parts) == [row["id"] for row in ROWS]
    (said,) = run.said
    assert ("illegal memory access" if loses_device else "exit code 9") in said
    assert "started again, 2 restarts left" in said


@pytest.mark.slow
def test_a_unit_that_kills_two_workers_is_given_up_and_the_others_are_done(tiny: Tiny) -> None:
    """Also the one before it, which is in the model when it is read."""
    job, parts = started(tiny("bert_ce"), DeadlyJob(deadly=2, always=True))
    run = Run(job, parts)

    assert run.given_up == {parts.units[2]: "2 workers died on it, the last with exit code 9"}
    assert ids(parts) == [row["id"] for row in ROWS[:100] + ROWS[150:]]


@pytest.mark.slow
@pytest.mark.parametrize("kind", [WorkerJob, DeadlyModelJob], ids=["in a unit", "while loading"])
def test_with_no_worker_left_the_job_ends_with_an_error(tiny: Tiny, kind: type[WorkerJob]) -> None:
    job, parts = started(tiny("bert_ce"), DeadlyJob(deadly=0, always=True), kind)
    with pytest.raises(RuntimeFailureError, match="no worker is left"):
        Run(job, parts, restarts=0)


@pytest.mark.slow
def test_a_worker_that_gives_no_sign_of_life_is_taken_for_dead(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "SILENCE_SECONDS", 5.0)
    job, parts = started(tiny("bert_ce"), StoppedJob(deadly=3))
    run = Run(job, parts)

    assert run.given_up == {}
    assert ids(parts) == [row["id"] for row in ROWS]
    assert run.said == ["worker on cpu died (no sign of life for 5 s); started again, 2 restarts left"]


@pytest.mark.slow
def test_a_worker_that_hangs_before_its_first_message_is_replaced(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    def be_patient() -> None:  # a busy machine may take longer to load a worker than this test wants to wait
        monkeypatch.setattr(processes, "START_SECONDS", 600.0)

    monkeypatch.setattr(processes, "START_SECONDS", 5.0)
    job, parts = started(tiny("bert_ce"), ScoreCommand(), HangingJob)
    run = Run(job, parts, on_news=be_patient)

    assert ids(parts) == [row["id"] for row in ROWS]
    assert run.said == ["worker on cpu died (no sign of life for 5 s); started again, 2 restarts left"]


@pytest.mark.slow
def test_workers_tell_how_long_each_stage_took(tiny: Tiny) -> None:
    job, parts = started(tiny("bert_ce"), ScoreCommand())
    run = Run(job, parts)

    assert min(run.meter.seconds.values()) > 0, run.meter.seconds
    assert round(run.meter.rows) == 300
    assert run.meter.tokens == parts.counts()["tokens"]


@pytest.mark.slow
def test_a_worker_that_would_score_something_else_ends_the_job(tiny: Tiny) -> None:
    """Such as one that finds other weights under the model's name."""
    job, parts = started(tiny("bert_ce"), ScoreCommand(), scorer={"model": tiny("bert_ce"), "max_length": 9})
    with pytest.raises(RuntimeFailureError, match="would score something else: model.max_length was 64 and is 9"):
        Run(job, parts)


@pytest.mark.slow
def test_signals_to_all_leave_workers_alone_from_their_first_moment(
    tiny: Tiny, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They take seconds to load Python, in which a terminal's Ctrl-C would have each print where it was."""
    monkeypatch.setattr(processes, "_CONTEXT", get_context("spawn"))
    told: list[int] = []

    def tell() -> None:
        while len(told) < 2:
            for child in psutil.Process().children():
                if child.pid not in told and "spawn_main" in " ".join(child.cmdline()):
                    child.send_signal(signal.SIGINT)
                    child.send_signal(signal.SIGUSR1)
                    told.append(child.pid)

    job, parts = started(tiny("bert_ce"), ScoreCommand())
    with ThreadPoolExecutor(1) as thread:
        thread.submit(tell)
        run = Run(job, parts, workers=2)

    assert (run.said, capfd.readouterr().err) == ([], "")
    assert ids(parts) == [row["id"] for row in ROWS]
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ())


@pytest.mark.slow
def test_a_worker_that_finds_another_input_ends_the_job(tiny: Tiny) -> None:
    job, parts = started(tiny("bert_ce"), ScoreCommand())
    jobs.write_rows("in.parquet", ROWS[:299])
    with pytest.raises(InputError, match=r"not what it was when the job began: inputs\[0\]"):
        Run(job, parts)


@pytest.mark.slow
def test_a_last_part_that_cannot_be_written_ends_the_job(tiny: Tiny) -> None:
    job, parts = started(tiny("bert_ce"), UnwritableJob())
    with pytest.raises(RuntimeFailureError, match="^no space left\nhint: make some$"):
        Run(job, parts)
    assert parts.finished() == set(range(5))


@pytest.mark.slow
def test_an_error_in_a_worker_is_raised_in_the_parent(tiny: Tiny) -> None:
    job, parts = started(tiny("bert_ce"), ScoreCommand(), UnloadableJob)
    with pytest.raises(RuntimeFailureError, match="^no such weights\nhint: look for them$"):
        Run(job, parts, workers=2)


def test_slots_are_named_by_devices() -> None:
    assert [slot.device for slot in find_slots("cuda:0, cuda:3")] == ["cuda:0", "cuda:3"]
    assert [slot.device for slot in find_slots("cpu:3")] == ["cpu"] * 3
    cores = len(os.sched_getaffinity(0))
    assert {slot.threads for slot in find_slots("cpu:2")} == {max(1, cores // 2)}
    assert {slot.threads for slot in find_slots(f"cpu:{8 * cores}")} == {1}
