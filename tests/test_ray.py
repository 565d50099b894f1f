"""`--engine ray`: the parts of a run without it, whoever dies on the way, and folders that go from one to the other."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from socket import socket
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

import jobs
from batchscore.cli.main import app
from batchscore.errors import (
    BatchscoreError,
    DeviceLostError,
    InputError,
    MissingDependencyError,
    OutputError,
    RuntimeFailureError,
)
from batchscore.io.source import open_source
from batchscore.io.units import Span, Unit
from batchscore.jobs.commands import ScoreCommand
from batchscore.jobs.meter import Amounts, Meter
from batchscore.jobs.workers import ray as ray_workers
from batchscore.jobs.workers.job import WorkerJob, Workforce
from batchscore.stop import Stop

pytestmark = pytest.mark.usefixtures("here")

Tiny = Callable[[str], str]
ROWS, UNITS = 8_000, 40
NO_TOKEN = {"RAY_AUTH_MODE": "disabled"}  # else Ray puts one into the home folder
CLUSTER = """
import os, sys
from batchscore.jobs.workers.ray import _cluster
from batchscore.stop import Stop
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
with _cluster(None, Stop()) as ray:
    print("what Ray prints is not for the user")
    print(ray.get_runtime_context().gcs_address, file=sys.__stdout__, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(scope="module")
def plain(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The input, and the parts of a run without Ray."""
    folder = tmp_path_factory.mktemp("plain")
    jobs.write_rows(str(folder / "in.parquet"), jobs.random_rows(ROWS))
    code, said = jobs.finish(*arguments(tiny, folder), "--out", f"{folder}/parts/", "--quiet")
    assert (code, said) == (0, "")
    return folder


@pytest.fixture(scope="module")
def cluster(request: pytest.FixtureRequest) -> Iterator[str]:
    """Address of a Ray as it is started where there is none, on two cores."""
    if find_spec("ray") is None or sys.platform != "linux":
        pytest.skip("Ray is not installed, or its processes cannot be found")
    variables = {**os.environ, **NO_TOKEN, "OMP_NUM_THREADS": "1"}
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen([sys.executable, "-c", CLUSTER], env=variables, text=True, **pipes)
    request.getfixturevalue("plain")  # meanwhile
    yield process.stdout.readline().strip()
    process.communicate()


def arguments(tiny: Tiny, folder: Path, rows: int = ROWS // UNITS) -> list[str]:
    """A run in float32, whose numbers can be compared on every CPU."""
    model = ["--model", tiny("bert_ce"), "--dtype", "float32"]
    return ["score", *model, "--in", f"{folder}/in.parquet", "--window-rows", str(rows)]


def on(cluster: str) -> list[str]:
    return ["--engine", "ray", "--ray-address", cluster]


# ---- with Ray


@pytest.mark.slow
def test_ray_finishes_what_a_plain_run_began_though_a_worker_is_killed(tiny: Tiny, plain: Path, cluster: str) -> None:
    """Its parts are those of a run without it: no unit is lost or done twice."""
    shutil.copytree(plain / "parts", "parts")
    for name in jobs.parts("parts")[1::2]:
        os.remove(f"parts/{name}")
    times = {name: os.stat(f"parts/{name}").st_mtime_ns for name in jobs.parts("parts")}
    options = [*arguments(tiny, plain), "--out", "parts/", "--engine", "ray"]
    run = jobs.start(*options, **NO_TOKEN, RAY_ADDRESS=cluster)
    jobs.wait_until(lambda: len(jobs.parts("parts")) > UNITS // 2)
    os.kill(workers()[0], signal.SIGKILL)
    said = run.communicate(timeout=60)[1]

    assert run.returncode == 0, said
    assert f"2 workers at {cluster}" in said
    assert f"to do    {ROWS // 2:,} rows in {UNITS // 2} units" in said
    assert said.count("; started again, 2 restarts left") == 1
    assert said.splitlines()[-1].startswith(f"{ROWS // 2:,} rows in")
    assert {name: os.stat(f"parts/{name}").st_mtime_ns for name in times} == times
    assert jobs.contents("parts") == jobs.contents(f"{plain}/parts")


def workers() -> list[int]:
    """Processes of the run that was started in this folder."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            if Path(f"/proc/{name}/cmdline").read_bytes().startswith(b"ray::_Actor"):
                found += [int(name)] * (os.readlink(f"/proc/{name}/cwd") == os.getcwd())
        except OSError:
            continue  # it has ended
    return found


@pytest.mark.slow
def test_a_plain_run_finishes_what_ray_began_and_saved_when_it_was_stopped(
    tiny: Tiny, plain: Path, cluster: str
) -> None:
    jobs.write_rows("in.parquet", jobs.random_rows(3 * ROWS))  # the plain run's are the first of these
    options = arguments(tiny, Path("."), rows=3 * ROWS // 4)
    slowly = ["--batch-tokens", "20000"]  # slow enough to be stopped within a unit, in packs that end within the grace
    run = jobs.start(*options, *slowly, "--out", "parts/", *on(cluster), **NO_TOKEN)
    jobs.wait_until(lambda: len(jobs.parts("parts")) > 0)
    run.send_signal(signal.SIGTERM)
    began = time.monotonic()
    said = run.communicate(timeout=60)[1]

    assert run.returncode == 75, said
    assert time.monotonic() - began < 5
    assert "stopped by SIGTERM" in said
    assert 0 < len(jobs.parts("parts")) < 4
    assert list(Path("parts").glob("*.progress"))
    assert not workers()
    code, said = jobs.finish(*options, "--out", "parts/")
    assert code == 0, said
    found, expected = (pq.read_table([f"{f}/{name}" for name in jobs.parts(f)]) for f in ("parts", f"{plain}/parts"))
    assert len(found) == 3 * ROWS
    assert found["id"][:ROWS].equals(expected["id"])
    np.testing.assert_allclose(found["score"][:ROWS], expected["score"], atol=1e-6)


# ---- without


@pytest.mark.slow  # it imports Ray
@pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed")
def test_an_address_where_nobody_listens_is_named(tiny: Tiny) -> None:
    jobs.write_rows("in.parquet", jobs.random_rows(10))
    with socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        code, said = jobs.finish(*arguments(tiny, Path(".")), "--out", "parts/", *on(address))

    assert code == 6
    assert f"no Ray cluster answers at {address}: " in said


def test_without_ray_the_extra_is_named(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    jobs.write_rows("in.parquet", jobs.random_rows(10))
    result = CliRunner().invoke(app, [*arguments(tiny, Path(".")), "--out", "parts/", "--engine", "ray"])

    assert result.exit_code == 3
    assert "pip install 'batchscore[ray]'" in result.stderr


@pytest.mark.parametrize(
    ("nodes", "device", "expected"),
    [
        ([{"CPU": 2.0}], "auto", [("cpu", 1)] * 2),
        ([{"CPU": 3.0}, {"CPU": 64.0}], "auto", [("cpu", 16)] * 4 + [("cpu", 1)] * 3),
        ([{"CPU": 8.0, "GPU": 2.0}, {"CPU": 8.0}], "auto", [("cuda", 0)] * 2),
        ([{"CPU": 4.0, "GPU": 2.0}], "cpu", [("cpu", 1)] * 4),
        ([{"CPU": 4.0}], "cuda", "has no GPU"),
        ([{}], "auto", "neither GPUs nor CPUs"),
    ],
)
def test_what_the_cluster_has_decides_the_workers(nodes: list[Any], device: str, expected: Any) -> None:
    found = [{"Alive": True, "Resources": node} for node in nodes] + [{"Alive": False, "Resources": {"GPU": 9.0}}]
    if isinstance(expected, str):
        with pytest.raises(MissingDependencyError, match=expected):
            ray_workers._find_slots(found, device)
    else:
        slots = ray_workers._find_slots(found, device)
        assert [(slot.device, slot.options["num_cpus"]) for slot in slots] == expected


# ---- an actor, as Ray would call it


@pytest.fixture
def job(tiny: Tiny) -> WorkerJob:
    """Three units, one of which is done."""
    jobs.write_rows("in.parquet", jobs.random_rows(60))
    assert CliRunner().invoke(app, [*arguments(tiny, Path("."), rows=20), "--out", "parts/"]).exit_code == 0
    for unit in (1, 2):
        os.rename(f"parts/part-0000{unit}.parquet", f"whole-{unit}")
    source = open_source(["./in.parquet"]).addresses()
    scorer = {"model": tiny("bert_ce"), "dtype": "float32", "window_rows": 20}
    return WorkerJob(ScoreCommand(), scorer, source, "parts", "fail", "auto", None)


def test_an_actor_scores_units(job: WorkerJob, here: Path) -> None:
    actor = ray_workers._Actor(quarantined(job), "cpu", str(here))

    assert "cpu of " in str(actor.load())
    for unit in (2, 1):
        answer = actor.run(("unit", unit))
        assert isinstance(answer, tuple)
        counts, amounts = answer
        assert counts["rows"] == 20
        assert (amounts.rows, amounts.tokens) == (20, counts["tokens"])
        assert min(amounts.seconds) > 0
        assert pq.read_table(f"parts/part-0000{unit}.parquet").equals(pq.read_table(f"whole-{unit}"))
    actor.leave()


def quarantined(job: WorkerJob) -> WorkerJob:
    return replace(job, errors="quarantine")


def test_an_actor_refuses_to_score_something_else(job: WorkerJob, here: Path) -> None:
    error = ray_workers._Actor(job, "cpu", str(here)).load()

    assert isinstance(error, RuntimeFailureError)
    assert 'would score something else: errors was "quarantine" and is "fail"' in error.message
    os.utime("in.parquet", (0, 0))
    assert "inputs[0].modified was" in str(ray_workers._Actor(quarantined(job), "cpu", str(here)).load())
    shutil.rmtree("parts")
    assert "does not see" in str(ray_workers._Actor(job, "cpu", str(here)).load())


def test_an_actor_returns_errors(job: WorkerJob, here: Path) -> None:
    actor = ray_workers._Actor(quarantined(job), "cpu", str(here))
    actor.load()
    shutil.rmtree("parts")  # which comes to light when the part is written, with no other unit behind it
    error = actor.run(("unit", 1))

    assert isinstance(error, OutputError)
    assert "parts is gone" in error.message


# ---- a driver, with a Ray that does what it is told


class DeathError(Exception):
    pass


Key = tuple[str, int]  # of a task


class FakeRay:
    """Calls are answered at once, the latest first; `answer(key)` is what becomes of one."""

    exceptions = SimpleNamespace(RayError=DeathError)

    def __init__(self, answer: Callable[[Key | None], Any]) -> None:
        self.answer, self.started, self.ended = answer, 0, 0

    def remote(self, kind: type) -> Any:
        self.started += 1
        call = SimpleNamespace
        actor = SimpleNamespace(
            load=call(remote=lambda: (self, self.started, None, object())),
            run=call(remote=lambda key: (self, self.started, key, object())),
            leave=call(remote=lambda: None),
        )
        return SimpleNamespace(options=lambda **_: call(remote=lambda *_: actor))

    def wait(self, calls: list[Any], **_: Any) -> tuple[list[Any], list[Any]]:
        return calls[-1:], calls[:-1]

    def get(self, call: Any) -> Any:
        answer = self.answer(call[2])
        if isinstance(answer, DeathError):
            raise answer
        return answer

    def kill(self, actor: Any) -> None:
        self.ended += 1


def drive(answer: Callable[[Key | None], Any], restarts: int = 3) -> tuple[dict[int, str], list[int], list[str]]:
    """(units given up, units done, what was said) of six units on two workers."""
    ray, meter, done, said = FakeRay(answer), Meter(), list[int](), list[str]()
    job: Any = None
    workforce = Workforce(job, meter, Stop(), restarts, lambda unit, counts: done.append(unit.index), said.append)
    pool = ray_workers._Pool(ray, workforce)
    units = iter([Unit(index, (Span(0, index, index + 1, 1, index),)) for index in range(6)])
    try:
        given_up = pool.run([ray_workers._Slot("cpu", {})] * 2, units)
    finally:
        assert ray.ended == ray.started
    assert (meter.rows, meter.tokens, meter.seconds["read"]) == (len(done), 5 * len(done), 1.0 * len(done))
    return {task.index: reason for task, reason in given_up.items()}, sorted(done), said


def counts_or(bad: Mapping[int | None, Any]) -> Callable[[Key | None], Any]:
    return lambda key: (
        bad.get(key and key[1])
        or ("cpu of here" if key is None else ({}, Amounts(0.5, 5, seconds=(1.0, 0.0, 0.0, 0.0))))
    )


def test_all_units_are_done() -> None:
    assert drive(counts_or({})) == ({}, list(range(6)), [])


@pytest.mark.parametrize("death", [DeathError("ids\nout of memory"), DeviceLostError("out of memory")])
def test_a_unit_that_two_workers_die_on_is_given_up(death: Exception) -> None:
    given_up, done, said = drive(counts_or({3: death}))

    assert given_up == {3: "2 workers died on it, the last with out of memory"}
    assert done == [0, 1, 2, 4, 5]
    assert len(said) == 2  # those who had another unit as well
    assert said[0] == "worker on cpu of here died (out of memory); started again, 2 restarts left"


def test_without_workers_the_job_ends() -> None:
    with pytest.raises(RuntimeFailureError, match="no worker is left"):
        drive(counts_or({None: DeathError("no such file")}), restarts=1)


def test_an_error_of_a_worker_arrives_as_it_is() -> None:
    with pytest.raises(InputError, match="row 7") as caught:
        drive(counts_or({2: InputError("row 7 is null", hint="fill it")}))
    assert caught.value.hint == "fill it"


def test_a_node_that_cannot_start_workers_ends_the_job() -> None:
    died = DeathError("...\nModuleNotFoundError: No module named 'batchscore'")
    died.actor_init_failed = True  # type: ignore[attr-defined]
    with pytest.raises(BatchscoreError, match="cannot start a worker: ModuleNotFoundError"):
        drive(counts_or({None: died}))
