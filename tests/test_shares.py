"""One job done by many: shards, claims, devices; looked at from outside and merged."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner, Result

import jobs
from batchscore.cli.main import app
from batchscore.errors import StoppedError
from batchscore.io.storage import writer_id
from batchscore.io.units import Unit
from batchscore.jobs import merge
from batchscore.jobs.leases import Presence
from batchscore.jobs.merge import assemble
from batchscore.jobs.parts import Parts
from batchscore.jobs.status import job_status

pytestmark = pytest.mark.usefixtures("here")

Tiny = Callable[[str], str]
ROWS = jobs.random_rows(600)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def score(model: str, out: str, *options: str) -> Result:
    return run("score", "--model", model, "--in", "in.parquet", "--out", out, "--window-rows", "64", *options)


# ---- shards


@pytest.mark.parametrize("rows", [1, 65, 600], ids=["two shards of nothing", "one of nothing", "units for all"])
def test_the_union_of_shards_is_the_whole(tiny: Tiny, rows: int) -> None:
    """That any number of shards have every unit once, test_shards.py proves without scoring."""
    jobs.write_rows("in.parquet", ROWS[:rows])
    for index in range(3):
        result = score(tiny("bert_mean"), "parts/", "--shard", f"{index}/3")
        assert result.exit_code == 0, result.output
    read = [row["id"] for name in jobs.parts("parts") for row in pq.read_table(f"parts/{name}").to_pylist()]

    assert read == [row["id"] for row in ROWS[:rows]]


def test_shards_share_the_hidden_parts_of_a_file_and_the_last_merges(tiny: Tiny) -> None:
    jobs.write_rows("in.parquet", ROWS)
    score(tiny("bert_ce"), "whole.parquet")
    for index in (2, 0, 1):
        result = score(tiny("bert_ce"), "out.parquet", "--shard", f"{index}/3", "--merge")
        assert result.exit_code == 0, result.output
        assert Path("out.parquet").exists() == (index == 1)
        if index != 1:
            assert "are not done yet: others have them" in result.stderr

    assert Path("out.parquet").read_bytes() == Path("whole.parquet").read_bytes()
    assert not Path(".out.parquet.parts").exists()
    assert json.loads(Path("out.parquet.run.json").read_text("utf-8"))["counts"]["rows"] == 600


def test_a_shard_that_comes_late_finds_the_output_complete(tiny: Tiny) -> None:
    jobs.write_rows("in.parquet", ROWS)
    for index in range(2):
        score(tiny("bert_ce"), "out.parquet", "--shard", f"{index}/2", "--merge")
    result = score(tiny("bert_ce"), "out.parquet", "--shard", "0/2", "--merge")

    assert result.exit_code == 0
    assert "out.parquet is complete" in result.stderr


@pytest.mark.slow
def test_shards_that_start_at_once_agree(tiny: Tiny) -> None:
    jobs.write_rows("in.parquet", ROWS)
    options = ["score", "--model", tiny("bert_ce"), "--in", "in.parquet", "--window-rows", "64", "--merge"]
    environments = [{"RANK": str(rank), "WORLD_SIZE": "3"} for rank in range(3)]
    runs = [jobs.start(*options, "--out", "out.parquet", **environment) for environment in environments]
    said = [process.communicate(timeout=120)[1] for process in runs]

    assert [process.returncode for process in runs] == [0, 0, 0], said
    assert all("(torchrun)" in text for text in said if "share" in text)
    assert [row["id"] for row in pq.read_table("out.parquet").to_pylist()] == [row["id"] for row in ROWS]
    assert not Path(".out.parquet.parts").exists()


def test_overwrite_is_refused_in_a_shard(tiny: Tiny) -> None:
    jobs.write_rows("in.parquet", ROWS)
    assert score(tiny("bert_ce"), "parts/", "--shard", "0/2", "--overwrite").exit_code == 2


# ---- claims


def test_a_dynamic_claim_takes_what_nobody_has(tiny: Tiny) -> None:
    """Units of a process that is at work are left to it, those of one that died are taken."""
    jobs.write_rows("in.parquet", ROWS)
    score(tiny("bert_ce"), "parts/")
    before = jobs.contents("parts")
    for name in jobs.parts("parts")[4:8]:
        os.remove(f"parts/{name}")
    alive = {
        "shard": "1/2",
        "units": [4],
        "rows_in_work": 0,
        "rows_per_second": 5,
        "time": time.time(),
        "beat_seconds": 10,
    }
    neighbour = f"{writer_id().rpartition('-')[0]}-{os.getppid()}"
    Path(f"parts/worker-{neighbour}.json").write_text(json.dumps(alive))
    Path("parts/worker-gone-9.json").write_text(json.dumps({**alive, "units": [5]}))
    os.utime("parts/worker-gone-9.json", (1, 1))
    Path("parts/part-00004.lease").write_text(neighbour)
    Path("parts/part-00005.lease").write_text("gone-9")
    Path("parts/part-00006.lease").write_text("never-1")
    result = score(tiny("bert_ce"), "parts/", "--claim", "dynamic", "--shard", "0/2")

    assert result.exit_code == 0, result.output
    assert "1 of 10 units are not done yet: others have them" in result.stderr
    assert set(jobs.parts("parts")) == set(before) & set(jobs.parts("parts"))
    assert "part-00004.parquet" not in jobs.parts("parts")
    assert len(jobs.parts("parts")) == 9
    assert sorted(path.name for path in Path("parts").glob("*.lease")) == ["part-00004.lease"]


def test_the_last_unit_of_a_dead_host_is_taken_over(tiny: Tiny) -> None:
    """It died a moment ago, so that its claim holds until its third beat is missed."""
    jobs.write_rows("in.parquet", ROWS[:100])
    score(tiny("bert_ce"), "whole.parquet")
    score(tiny("bert_ce"), "out.parquet", "--shard", "0/2")
    state = {"shard": "1/2", "units": [1], "rows_in_work": 0, "rows_per_second": 5, "beat_seconds": 10}
    Path(".out.parquet.parts/worker-far-7.json").write_text(json.dumps(state))
    Path(".out.parquet.parts/part-00001.lease").write_text("far-7")
    os.utime(".out.parquet.parts/worker-far-7.json", (time.time() - 28, time.time() - 28))
    result = score(tiny("bert_ce"), "out.parquet", "--claim", "dynamic", "--merge")

    assert result.exit_code == 0, result.output
    assert Path("out.parquet").read_bytes() == Path("whole.parquet").read_bytes()


@pytest.mark.parametrize("out", ["out.parquet", "parts/"])
def test_the_list_of_errors_is_whole_whoever_writes_it_last(
    tiny: Tiny, out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here the other shard does all it has to do between the first one's look at the parts and its write."""
    rows = [{**row, "document": None if number % 50 == 0 else "x"} for number, row in enumerate(ROWS[:200])]
    jobs.write_rows("in.parquet", rows)
    plain, calls = merge.write_lines, count()

    def write(*arguments: Any) -> None:
        if next(calls) == 0:
            assert score(tiny("bert_ce"), out, "--shard", "1/2").exit_code == 7
        plain(*arguments)

    monkeypatch.setattr(merge, "write_lines", write)
    assert score(tiny("bert_ce"), out, "--shard", "0/2").exit_code == 7
    listed = Path("parts/_errors.jsonl" if out == "parts/" else "out.parquet.errors.jsonl").read_text().splitlines()
    assert [json.loads(line)["row"] for line in listed] == [0, 50, 100, 150]


def test_a_damaged_part_does_not_hide_why_a_run_ended(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs.write_rows("in.parquet", [{**ROWS[0], "document": None}, *ROWS[1:200]])
    plain = Parts.write

    def write(parts: Parts, unit: Unit, *content: Any) -> None:
        plain(parts, unit, *content)
        if unit.index == 1:
            Path("parts/part-00001.parquet").write_bytes(b"damaged")
            raise StoppedError("stopped by SIGTERM")

    monkeypatch.setattr(Parts, "write", write)
    result = score(tiny("bert_ce"), "parts/")
    assert result.exit_code == 75, result.output
    assert "stopped by SIGTERM; 2 of 4 units are done" in result.stderr


def test_status_has_a_speed_before_the_first_unit_is_done(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs.write_rows("in.parquet", ROWS)
    monkeypatch.setattr(Presence.__init__, "__kwdefaults__", {"beat_seconds": 0.01})
    states: list[dict[str, Any]] = []
    plain = Parts.write

    def write(parts: Parts, *content: Any) -> None:
        if not states:
            jobs.wait_until(lambda: any(worker["rows_in_work"] == 600 for worker in job_status("parts/")["workers"]))
            states.append(job_status("parts/"))
        plain(parts, *content)

    monkeypatch.setattr(Parts, "write", write)
    assert run("score", "--model", tiny("bert_ce"), "--in", "in.parquet", "--out", "parts/").exit_code == 0
    (state,) = states
    (worker,) = state["workers"]
    assert (state["units"]["done"], worker["units"], worker["rows_in_work"]) == (0, [0], 600)
    assert worker["rows_per_second"] > 0
    assert state["eta_seconds"] == 0


@pytest.mark.slow
def test_processes_that_claim_share_the_work(tiny: Tiny) -> None:
    jobs.write_rows("in.parquet", ROWS * 2)
    options = ["score", "--model", tiny("bert_ce"), "--in", "in.parquet", "--window-rows", "16", "--merge"]
    runs = [jobs.start(*options, "--out", "out.parquet", "--claim", "dynamic") for _ in range(2)]
    said = [process.communicate(timeout=120)[1] for process in runs]

    assert [process.returncode for process in runs] == [0, 0], said
    assert [row["id"] for row in pq.read_table("out.parquet").to_pylist()] == [row["id"] for row in ROWS * 2]
    assert not Path(".out.parquet.parts").exists()


# ---- devices


@pytest.mark.slow
def test_two_devices_do_what_one_does(tiny: Tiny) -> None:
    jobs.write_rows("in.parquet", ROWS)
    options = ["score", "--model", tiny("bert_ce"), "--in", "in.parquet", "--window-rows", "64", "--quiet"]
    assert jobs.finish(*options, "--out", "one.parquet")[0] == 0
    code, said = jobs.finish(*options, "--out", "two.parquet", "--devices", "cpu:2")

    assert (code, said) == (0, "")
    assert Path("two.parquet").read_bytes() == Path("one.parquet").read_bytes()


@pytest.mark.slow
def test_a_worker_that_is_killed_is_started_again_and_nothing_is_lost(tiny: Tiny) -> None:
    rows = jobs.random_rows(4_000)
    jobs.write_rows("in.parquet", rows)
    options = ["score", "--model", tiny("bert_ce"), "--in", "in.parquet", "--window-rows", "100", "--devices", "cpu:2"]
    run = jobs.start(*options, "--out", "out/", "--max-restarts", "1")
    jobs.wait_until(lambda: len(jobs.parts("out")) > 3)
    jobs.workers(run)[0].kill()
    said = run.communicate(timeout=120)[1]

    assert run.returncode == 0, said
    assert "worker on cpu died (exit code -9); started again, 0 restarts left" in said
    assert run.returncode == 0
    assert [row["id"] for name in jobs.parts("out") for row in pq.read_table(f"out/{name}").to_pylist()] == [
        row["id"] for row in rows
    ]


@pytest.mark.slow
def test_without_restarts_the_job_goes_on_with_the_other_and_ends_with_none(tiny: Tiny) -> None:
    rows = jobs.random_rows(4_000)
    jobs.write_rows("in.parquet", rows)
    options = ["score", "--model", tiny("bert_ce"), "--in", "in.parquet", "--window-rows", "100", "--devices", "cpu:2"]
    run = jobs.start(*options, "--out", "out/", "--max-restarts", "0")
    jobs.wait_until(lambda: len(jobs.parts("out")) > 3)
    first, second = jobs.workers(run)
    first.kill()
    done = len(jobs.parts("out"))
    jobs.wait_until(lambda: len(jobs.parts("out")) > done + 2)
    second.kill()
    said = run.communicate(timeout=60)[1]

    assert run.returncode == 6, said
    assert said.count("going on without it") == 2
    assert "no worker is left" in said
    assert not is_alive(first, second)
    code, said = jobs.finish(*options, "--out", "out/", "--quiet")
    assert code == 0, said
    assert sum(pq.read_metadata(f"out/{name}").num_rows for name in jobs.parts("out")) == 4_000


def is_alive(*processes: psutil.Process) -> bool:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            if process.status() != psutil.STATUS_ZOMBIE:
                return True
    return False


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGKILL], ids=lambda sent: sent.name)
def test_workers_end_with_their_parent(tiny: Tiny, sent: signal.Signals) -> None:
    jobs.write_rows("in.parquet", jobs.random_rows(4_000))
    options = ["score", "--model", tiny("bert_ce"), "--in", "in.parquet", "--window-rows", "100", "--devices", "cpu:2"]
    run = jobs.start(*options, "--out", "out/")
    jobs.wait_until(lambda: len(jobs.parts("out")) > 3)
    workers = jobs.workers(run)
    run.send_signal(sent)
    run.communicate(timeout=10)

    assert run.returncode == (75 if sent == signal.SIGTERM else -9)
    jobs.wait_until(lambda: not is_alive(*workers), seconds=6)


@pytest.mark.slow
def test_an_error_of_a_worker_is_that_of_the_run(tiny: Tiny) -> None:
    jobs.write_rows("in.parquet", [*ROWS, {"id": "bad", "query": None, "document": "x"}])
    options = ["--window-rows", "64", "--devices", "cpu:2", "--errors", "fail"]
    code, said = jobs.finish(
        "score", "--model", tiny("bert_ce"), "--in", "in.parquet", "--out", "out.parquet", *options
    )

    assert code == 5
    assert "in.parquet, row 600: column 'query' is null" in said


@pytest.mark.parametrize("devices", ["tpu", "cpu:0", "cuda", "cuda:x", ""])
def test_devices_that_are_none_are_refused(tiny: Tiny, devices: str) -> None:
    jobs.write_rows("in.parquet", ROWS)
    result = score(tiny("bert_ce"), "parts/", "--devices", devices)

    assert result.exit_code == 2
    assert "unknown device" in result.stderr


# ---- status and merge


def test_status_and_merge_of_a_half_done_folder(tiny: Tiny) -> None:
    jobs.write_rows("in.parquet", ROWS)
    score(tiny("bert_ce"), "whole.parquet")
    score(tiny("bert_ce"), "parts/", "--shard", "1/2")
    Path("parts/part-00002.failed").write_text('{"why": "2 workers died on it"}')
    alive = {
        "shard": "0/2",
        "units": [0],
        "rows_in_work": 20,
        "blocks": [],
        "seconds_left": None,
        "rows_per_second": 50.0,
        "time": time.time(),
        "beat_seconds": 10,
    }
    Path("parts/worker-there-7.json").write_text(json.dumps(alive))
    status = run("status", "parts", "--json")

    assert status.exit_code == 0, status.output
    found = json.loads(status.stdout)
    assert found["units"] == {"total": 10, "done": 5, "running": 1, "missing": 3, "failed": 1}
    assert found["rows"] == {"total": 600, "done": 64 * 4 + 24, "faulty": 0}
    assert found["eta_seconds"] == round((600 - 280 - 20) / 50)
    assert found["failed"] == {"2": "2 workers died on it"}
    told = run("status", "parts").stdout
    assert "5 of 10 done, 1 running, 3 missing, 1 failed" in told
    assert told.splitlines()[-1] == "47% of the rows, 6 s to go"

    refused = run("merge", "parts", "--out", "merged.parquet")
    assert refused.exit_code == 8
    assert "5 of 10 units of parts are not done" in refused.stderr
    assert run("merge", "parts", "--out", "half.parquet", "--partial").exit_code == 0
    assert pq.read_table("half.parquet")["id"].to_pylist() == [
        row["id"] for unit in range(1, 10, 2) for row in ROWS[unit * 64 : unit * 64 + 64]
    ]
    score(tiny("bert_ce"), "parts/", "--shard", "0/2")
    assert run("status", "parts").stdout.splitlines()[-1] == "complete"
    assert run("merge", "parts", "--out", "merged.parquet").exit_code == 0
    assert Path("merged.parquet").read_bytes() == Path("whole.parquet").read_bytes()


def test_status_of_a_file_is_that_of_its_hidden_parts(tiny: Tiny) -> None:
    jobs.write_rows("in.parquet", ROWS)
    score(tiny("bert_ce"), "out.parquet", "--shard", "0/2")

    assert "5 of 10 done, 0 running, 5 missing" in run("status", "out.parquet").stdout
    assert run("status", "out.parquet").stdout.splitlines()[-1] == "53% of the rows, no process is running"


def test_a_file_that_is_finished_is_complete_by_its_record(tiny: Tiny) -> None:
    jobs.write_rows("in.parquet", [*ROWS[:100], {**ROWS[100], "document": None}])
    score(tiny("bert_ce"), "parts/")
    score(tiny("bert_ce"), "out.parquet")
    merged = run("merge", "out.parquet", "--out", "x.parquet")
    assert (merged.exit_code, Path("x.parquet").exists()) == (8, False)
    assert "out.parquet is complete: nothing to merge" in merged.stderr

    assert run("status", "out.parquet").stdout.splitlines() == [
        "job      score of in.parquet",
        "rows     101 of 101 done, 1 bad",
        "complete",
    ]
    found, of_parts = (json.loads(run("status", path, "--json").stdout) for path in ("out.parquet", "parts"))
    assert of_parts == {**found, "folder": "parts", "units": of_parts["units"]}
    os.remove("out.parquet")
    assert run("status", "out.parquet").exit_code == 8


@pytest.mark.parametrize("command", [["status"], ["merge", "--out", "x.parquet"]])
def test_a_folder_without_a_job_is_named(command: list[str]) -> None:
    os.mkdir("empty")
    for path in ("empty", "nowhere", "nowhere.parquet"):
        result = run(*command, path)
        assert result.exit_code == 8
        assert f"{path} has no parts of a job" in result.stderr


@pytest.mark.parametrize("nested", [[], ["--nested"]], ids=["flat", "nested"])
def test_a_rankings_shards_merge_to_the_whole(tiny: Tiny, nested: list[str]) -> None:
    """With the top_n of each query over all shards."""
    jobs.write_rows("in.parquet", ROWS)
    options = ["--model", tiny("bert_ce"), "--in", "in.parquet", "--window-rows", "64", "--top-n", "5", *nested]
    assert run("rerank", *options, "--out", "whole.jsonl").exit_code == 0
    for index in range(3):
        run("rerank", *options, "--out", "parts/", "--shard", f"{index}/3")
    assert run("merge", "parts", "--out", "merged.jsonl").exit_code == 0

    assert Path("merged.jsonl").read_bytes() == Path("whole.jsonl").read_bytes()


def test_a_folder_that_is_merged_stands_beside_its_file(tiny: Tiny) -> None:
    jobs.write_rows("in.parquet", ROWS)
    score(tiny("bert_ce"), "whole.parquet")
    result = score(tiny("bert_ce"), "parts/", "--merge")

    assert result.exit_code == 0
    assert result.stderr.splitlines()[-1].endswith("-> parts.parquet")
    assert Path("parts.parquet").read_bytes() == Path("whole.parquet").read_bytes()
    assert len(jobs.parts("parts")) == 10


def test_a_merge_overwrites_no_input_and_no_part(tiny: Tiny) -> None:
    jobs.write_rows("in.parquet", ROWS)
    score(tiny("bert_ce"), "parts/")
    before = jobs.contents("parts"), Path("in.parquet").read_bytes()
    for out in ("in.parquet", "./in.parquet", "parts/part-00000.parquet"):
        assert run("merge", "parts/", "--out", out).exit_code == 2
    assert (jobs.contents("parts"), Path("in.parquet").read_bytes()) == before


def test_a_file_that_merge_would_write_is_not_replaced_unasked(tiny: Tiny) -> None:
    jobs.write_rows("in.parquet", ROWS)
    Path("parts.parquet").write_text("somebody's")
    result = score(tiny("bert_ce"), "parts/", "--merge")
    assert result.exit_code == 8
    assert "parts.parquet, which --merge writes, already exists" in result.stderr
    assert Path("parts.parquet").read_text() == "somebody's"
    for _ in range(2):
        assert score(tiny("bert_ce"), "parts/", "--merge", "--overwrite").exit_code == 0
    assert score(tiny("bert_ce"), "parts/", "--merge").exit_code == 0


def killed_while_merging(folder: str, owner: str) -> None:
    """What a process leaves that was killed in the assembly a moment ago."""
    state = {
        "shard": "0/1",
        "units": [],
        "rows_in_work": 0,
        "rows_per_second": 5,
        "time": time.time(),
        "beat_seconds": 10,
    }
    Path(f"{folder}/worker-{owner}.json").write_text(json.dumps(state))
    Path(f"{folder}/part-merge.lease").write_text(owner)


@pytest.mark.parametrize("shares", [[], ["--shard", "1/2", "--merge"]], ids=["alone", "shard"])
def test_a_merge_that_was_killed_a_moment_ago_is_done_again(tiny: Tiny, shares: list[str]) -> None:
    jobs.write_rows("in.parquet", ROWS)
    score(tiny("bert_ce"), "whole.parquet")
    for index in range(2):
        score(tiny("bert_ce"), "out.parquet", "--shard", f"{index}/2")
    dead = jobs.start("--version")
    dead.communicate()
    machine = writer_id().rpartition("-")[0]
    killed_while_merging(".out.parquet.parts", f"{machine}-{dead.pid}")
    result = score(tiny("bert_ce"), "out.parquet", *shares)

    assert result.exit_code == 0, result.output
    assert Path("out.parquet").read_bytes() == Path("whole.parquet").read_bytes()
    assert not Path(".out.parquet.parts").exists()


@pytest.mark.parametrize("written", [False, True], ids=["before its last part", "after it"])
@pytest.mark.parametrize(
    ("bad", "left", "code", "said"),
    [
        (0, "out.parquet*", 0, "out.parquet is complete: another run has finished it"),
        (1, "out.parquet*", 7, "out.parquet is complete: another run has finished it"),
        (0, "out.parquet", 8, "out.parquet already exists and is another job's: it has no record"),
        (0, "none", 8, "is gone: another run has finished the job, or it was removed"),
    ],
)
def test_a_run_whose_job_another_finishes_finds_it_complete(
    tiny: Tiny, bad: int, left: str, code: int, said: str, written: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs.write_rows("in.parquet", [*[{**ROWS[100], "document": None}] * bad, *ROWS[:100]])
    score(tiny("bert_ce"), "out.parquet")
    found = {path: path.read_bytes() for path in Path().glob(left)}
    for path in Path().glob("out.parquet*"):
        path.unlink()
    plain = Parts.write

    def write(parts: Parts, unit: Unit, *content: Any) -> None:
        if written or unit.index == 0:
            plain(parts, unit, *content)
        if unit.index == 1:
            for path, made in found.items():
                path.write_bytes(made)
            parts.folder.discard()
            if not written:
                plain(parts, unit, *content)

    monkeypatch.setattr(Parts, "write", write)
    result = score(tiny("bert_ce"), "out.parquet")

    assert result.exit_code == code, result.output
    assert said in result.stderr
    assert {path: path.read_bytes() for path in Path().glob("*out.parquet*")} == found


def test_what_two_runs_assemble_at_once_has_its_counts(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs.write_rows("in.parquet", ROWS[:100])

    def both(parts: Parts, *arguments: Any, **options: Any) -> None:
        assemble(parts, *arguments, **options)
        parts.folder.discard()  # by the other

    monkeypatch.setattr("batchscore.jobs.run.assemble", both)
    assert score(tiny("bert_ce"), "out.parquet").exit_code == 0
    assert json.loads(Path("out.parquet.run.json").read_text("utf-8"))["counts"]["rows"] == 100


def test_a_merge_waits_for_another_until_it_is_silent(tiny: Tiny) -> None:
    jobs.write_rows("in.parquet", ROWS)
    for index in range(2):
        score(tiny("bert_ce"), "out.parquet", "--shard", f"{index}/2")
    killed_while_merging(".out.parquet.parts", "there-7")
    stopped = score(tiny("bert_ce"), "out.parquet", "--shard", "0/2", "--merge", "--max-seconds", "3")
    assert stopped.exit_code == 75
    assert not Path("out.parquet").exists()

    os.utime(".out.parquet.parts/worker-there-7.json", (1, 1))
    assert score(tiny("bert_ce"), "out.parquet", "--shard", "0/2", "--merge").exit_code == 0
    assert Path("out.parquet").exists()
