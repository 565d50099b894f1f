"""A run that was interrupted, whatever by, and the same command again: the output of an undisturbed run."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner, Result

import jobs
from batchscore.cli.main import app

pytestmark = pytest.mark.usefixtures("here")

Tiny = Callable[[str], str]
ROWS = jobs.random_rows(600)


def run(command: str, model: str, *options: str) -> Result:
    """A run in float32, so that its numbers can be compared on every CPU."""
    return CliRunner().invoke(app, [command, "--model", model, "--dtype", "float32", *options])


def score(model: str, out: str, *options: str, source: str = "in.parquet") -> Result:
    return run("score", model, "--in", source, "--out", out, "--window-rows", "64", *options)


# ---- parts


@pytest.mark.parametrize("source", ["in.parquet", "in.jsonl"])
def test_a_folder_gets_a_part_for_each_unit(tiny: Tiny, source: str) -> None:
    jobs.write_rows(source, ROWS)
    result = score(tiny("bert_ce"), "parts/", source=source)

    assert result.exit_code == 0, result.output
    assert jobs.parts("parts") == [f"part-{unit:05}.parquet" for unit in range(10)]
    assert set(os.listdir("parts")) == {*jobs.parts("parts"), "_job.json", "_run.json"}
    read = [row for name in jobs.parts("parts") for row in pq.read_table(f"parts/{name}").to_pylist()]
    assert [row["id"] for row in read] == [row["id"] for row in ROWS]


def test_what_is_done_is_not_done_again(tiny: Tiny) -> None:
    jobs.write_rows("in.parquet", ROWS)
    score(tiny("bert_ce"), "parts/")
    before = jobs.contents("parts")
    times = {name: os.stat(f"parts/{name}").st_mtime_ns for name in jobs.parts("parts")}
    for name in jobs.parts("parts")[::3]:
        os.remove(f"parts/{name}")
    result = score(tiny("bert_ce"), "parts/")

    assert result.exit_code == 0, result.output
    assert "to do    216 rows in 4 units" in result.stderr
    assert jobs.contents("parts") == before
    redone = [name for name in jobs.parts("parts") if os.stat(f"parts/{name}").st_mtime_ns != times[name]]
    assert redone == jobs.parts("parts")[::3]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--max-length", "32"], "model.max_length was 64 and is 32"),
        (["--details"], "options.details was false and is true"),
        (["--window-rows", "32"], "unit_rows was 64 and is 32"),
        (["--errors", "null"], 'errors was "quarantine" and is "null"'),
        (["--limit", "7"], "options.limit was null and is 7"),
    ],
)
@pytest.mark.parametrize("out", ["parts/", "out.parquet"])
def test_another_job_is_refused_with_the_field_that_differs(
    tiny: Tiny, options: list[str], said: str, out: str
) -> None:
    jobs.write_rows("in.parquet", ROWS[:100])
    score(tiny("bert_ce"), out)
    result = score(tiny("bert_ce"), out, *options)

    assert result.exit_code == 8
    assert said in result.stderr
    assert "--overwrite" in result.stderr


def test_a_changed_input_and_changed_weights_are_other_jobs(tiny: Tiny, tmp_path: Path) -> None:
    jobs.write_rows("in.parquet", ROWS[:100])
    model = shutil.copytree(tiny("bert_ce"), tmp_path / "model")
    score(str(model), "parts/")
    weights = model / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert "files.model.safetensors was" in score(str(model), "parts/").stderr

    os.utime("in.parquet", (0, 0))
    assert "inputs[0].modified was" in score(tiny("bert_ce"), "parts/").stderr


def test_overwrite_starts_anew(tiny: Tiny) -> None:
    jobs.write_rows("in.parquet", ROWS[:100])
    score(tiny("bert_ce"), "parts/")
    result = score(tiny("bert_ce"), "parts/", "--window-rows", "32", "--overwrite")

    assert result.exit_code == 0, result.output
    assert len(jobs.parts("parts")) == 4
    assert score(tiny("bert_ce"), "parts/", "--window-rows", "32").exit_code == 0


def test_overwrite_goes_on_with_an_unfinished_run_of_the_same(tiny: Tiny) -> None:
    """Or a job that is started over and over by a scheduler would never end."""
    jobs.write_rows("in.parquet", ROWS[:200])
    score(tiny("bert_ce"), "parts/")
    os.remove("parts/part-00001.parquet")
    result = score(tiny("bert_ce"), "parts/", "--overwrite")

    assert "to do    64 rows in 1 units" in result.stderr


def test_a_complete_output_is_left_alone(tiny: Tiny) -> None:
    jobs.write_rows("in.parquet", ROWS[:100])
    score(tiny("bert_ce"), "out.parquet")
    before = os.stat("out.parquet").st_mtime_ns
    result = score(tiny("bert_ce"), "out.parquet")

    assert (result.exit_code, os.stat("out.parquet").st_mtime_ns) == (0, before)
    assert "out.parquet is complete" in result.stderr
    assert sorted(os.listdir()) == ["in.parquet", "out.parquet", "out.parquet.run.json"]


def test_a_folder_of_other_things_is_refused(tiny: Tiny) -> None:
    jobs.write_rows("in.parquet", ROWS[:100])
    os.mkdir("mine")
    Path("mine/notes.txt").write_text("keep me")
    result = score(tiny("bert_ce"), "mine/", "--overwrite")

    assert result.exit_code == 8
    assert "notes.txt" in result.stderr
    assert os.listdir("mine") == ["notes.txt"]


# ---- kills


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "source", "out"),
    [
        ("score", "in.parquet", "out.parquet"),
        ("score", "in.jsonl", "out.jsonl"),
        ("rerank", "in.parquet", "ranked.jsonl"),
    ],
)
def test_killed_at_random_moments_the_output_is_the_same(tiny: Tiny, command: str, source: str, out: str) -> None:
    """A handful here; benchmarks/kills.py does a hundred."""
    jobs.write_rows(source, ROWS * 2)
    options = [command, "--model", tiny("bert_ce"), "--in", source, "--window-rows", "50", "--quiet"]
    assert jobs.finish(*options, "--out", f"whole-{out}")[0] == 0
    kills = 0
    while kills < 3:
        run = jobs.start(*options, "--out", out)
        jobs.wait_until(
            lambda run=run, most=6 * kills + 1: run.poll() is not None or len(jobs.parts(f".{out}.parts")) > most
        )
        kills += run.poll() is None
        run.kill()
        run.communicate()
    code, said = jobs.finish(*options, "--out", out)

    assert (code, said) == (0, "")
    assert Path(out).read_bytes() == Path(f"whole-{out}").read_bytes()
    assert not Path(f".{out}.parts").exists()


@pytest.mark.slow
def test_vectors_are_the_same_after_a_kill(tiny: Tiny) -> None:
    jobs.write_rows("in.parquet", jobs.random_rows(1_500))
    options = ["encode", "--model", tiny("bert_mean"), "--dtype", "float32", "--in", "in.parquet", "--unit-rows", "50"]
    run = jobs.start(*options, "--out", "out.npy")
    jobs.wait_until(lambda: len(jobs.parts(".out.npy.parts")) > 3)
    run.kill()
    run.communicate()
    assert 0 < len(jobs.parts(".out.npy.parts")) < 30
    for out in ("out.npy", "whole.npy"):
        code, said = jobs.finish(*options, "--out", out)
        assert code == 0, said

    for suffix in ("", ".ids.txt"):
        assert Path(f"out.npy{suffix}").read_bytes() == Path(f"whole.npy{suffix}").read_bytes()


def test_raw_scores_of_an_unfinished_unit_are_resumed(tiny: Tiny) -> None:
    """What a unit's progress holds is believed, and packs are those of an undisturbed run."""
    jobs.write_rows("in.parquet", ROWS)
    model = tiny("bert_ce")
    assert score(model, "whole/", "--batch-tokens", "256").exit_code == 0
    shutil.copytree("whole", "half")
    reader = pq.read_table("half/part-00003.parquet")
    from batchscore.io.storage import open_folder
    from batchscore.jobs.parts import open_parts

    half = open_parts(open_folder("half"))
    assert half is not None
    os.remove("half/part-00003.parquet")
    raw = half.saved_scores(half.units[3], 64, 1)
    logits = [row["score"] for row in reader.to_pylist()]
    raw[:64:2] = 20.0  # no model says that: what is known is not scored again
    half.save_scores(half.units[3], raw)
    result = score(model, "half/", "--batch-tokens", "256")

    assert result.exit_code == 0, result.output
    again = [row["score"] for row in pq.read_table("half/part-00003.parquet").to_pylist()]
    assert all(value > 0.999 for value in again[::2])
    assert again[1::2] == pytest.approx(logits[1::2], abs=1e-6)
    assert not Path("half/part-00003.progress").exists()


# ---- signals


@pytest.mark.slow
def test_each_signal_ends_a_run_with_75_and_the_next_goes_on(tiny: Tiny) -> None:
    jobs.write_rows("in.parquet", ROWS * 20)
    options = ["score", "--model", tiny("bert_ce"), "--in", "in.parquet", "--window-rows", "600"]
    done = 0
    for sent in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        run = jobs.start(*options, "--out", "out.parquet")
        jobs.wait_until(lambda done=done: len(jobs.parts(".out.parquet.parts")) > done)  # type: ignore[misc]
        run.send_signal(sent)
        began = time.monotonic()
        said = run.communicate(timeout=60)[1]

        assert run.returncode == 75, said
        assert time.monotonic() - began < 5
        assert f"stopped by {sent.name}" in said
        assert "run the same command again" in said
        assert not Path("out.parquet").exists()
        left = {path.suffix for path in Path(".out.parquet.parts").iterdir()}
        assert left <= {".parquet", ".json", ".progress"}
        done = len(jobs.parts(".out.parquet.parts"))
    assert done < 20
    code, said = jobs.finish(*options, "--out", "out.parquet")
    assert code == 0, said
    assert jobs.finish(*options, "--out", "whole.parquet", "--quiet")[0] == 0
    assert Path("out.parquet").read_bytes() == Path("whole.parquet").read_bytes()


@pytest.mark.slow
def test_a_pack_that_takes_too_long_is_left_behind(tiny: Tiny) -> None:
    jobs.write_rows("in.parquet", ROWS)
    options = ["score", "--model", tiny("bert_ce"), "--in", "in.parquet", "--out", "out.parquet"]
    run = jobs.start(*options, BLOCK_ON="pack")
    jobs.wait_until(Path("pack").exists)
    run.send_signal(signal.SIGTERM)
    began = time.monotonic()
    said = run.communicate(timeout=10)[1]

    assert run.returncode == 75, said
    assert time.monotonic() - began < 5


@pytest.mark.slow
def test_a_second_signal_ends_a_run_at_once(tiny: Tiny) -> None:
    jobs.write_rows("in.parquet", ROWS)
    options = ["score", "--model", tiny("bert_ce"), "--in", "in.parquet", "--out", "out.parquet"]
    run = jobs.start(*options, BLOCK_ON="pack")
    jobs.wait_until(Path("pack").exists)
    run.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    run.send_signal(signal.SIGTERM)
    run.communicate(timeout=10)

    assert run.returncode == 143


def test_a_signal_while_the_weights_are_loaded_is_no_fault_of_theirs(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which takes minutes for a large model."""
    jobs.write_rows("in.parquet", jobs.random_rows(10))
    monkeypatch.setattr("batchscore.models.load._check_listed", lambda *_: os.kill(os.getpid(), signal.SIGUSR1))
    result = run("score", tiny("bert_ce"), "--in", "in.parquet", "--out", "out/")

    assert result.exit_code == 75, result.stderr
    assert "stopped by SIGUSR1; 0 of 1 units are done" in result.stderr


def test_max_seconds_is_a_signal_by_the_clock(tiny: Tiny) -> None:
    jobs.write_rows("in.parquet", ROWS)
    code, said = jobs.finish(
        "score", "--model", tiny("bert_ce"), "--in", "in.parquet", "--out", "out.parquet", "--max-seconds", "0"
    )

    assert code == 75
    assert "stopped by --max-seconds" in said


# ---- what else can break


def test_a_corrupt_part_is_scored_again(tiny: Tiny) -> None:
    jobs.write_rows("in.parquet", ROWS)
    score(tiny("bert_ce"), "parts/")
    before = jobs.contents("parts")
    Path("parts/part-00004.parquet").write_bytes(before["part-00004.parquet"][:-40])
    Path("parts/part-00006.parquet").write_bytes(b"")
    result = score(tiny("bert_ce"), "parts/")

    assert result.exit_code == 0, result.output
    assert "parts 4, 6 were damaged" in result.stderr
    assert jobs.contents("parts") == before


def test_a_part_damaged_inside_is_found_when_it_is_merged(tiny: Tiny) -> None:
    jobs.write_rows("in.parquet", ROWS)
    score(tiny("bert_ce"), "parts/")
    before = jobs.contents("parts")
    content = bytearray(before["part-00004.parquet"])
    column = pq.read_metadata("parts/part-00004.parquet").row_group(0).column(2)
    end = column.dictionary_page_offset + column.total_compressed_size
    content[end - 20 : end - 10] = b"\xff" * 10
    Path("parts/part-00004.parquet").write_bytes(content)
    merged = CliRunner().invoke(app, ["merge", "parts", "--out", "out.parquet"])

    assert merged.exit_code == 6
    assert "part-00004.parquet was damaged and has been removed" in merged.stderr
    assert not Path("out.parquet").exists()
    assert score(tiny("bert_ce"), "parts/").exit_code == 0
    assert jobs.contents("parts") == before


def test_an_input_that_vanishes_leaves_what_is_done(tiny: Tiny) -> None:
    jobs.write_rows("a.jsonl", ROWS[:300])
    jobs.write_rows("b.jsonl", ROWS[300:])
    options = ["--in", "a.jsonl", "--in", "b.jsonl", "--out", "parts/", "--window-rows", "64"]
    run("score", tiny("bert_ce"), *options)
    before = jobs.contents("parts")
    for name in jobs.parts("parts")[3:]:
        os.remove(f"parts/{name}")
    os.rename("b.jsonl", "elsewhere")
    result = run("score", tiny("bert_ce"), *options)
    assert result.exit_code == 4
    assert "b.jsonl: no such file" in result.stderr
    assert jobs.parts("parts") == [f"part-0000{unit}.parquet" for unit in range(3)]

    os.rename("elsewhere", "b.jsonl")
    assert run("score", tiny("bert_ce"), *options).exit_code == 0
    assert jobs.contents("parts") == before


@pytest.fixture
def small_disk(tmp_path: Path) -> str:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount")
    yield str(folder)
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_ends_a_run_that_goes_on_when_there_is_room(tiny: Tiny, small_disk: str) -> None:
    jobs.write_rows("in.parquet", ROWS)
    score(tiny("bert_ce"), "whole.parquet")
    filler = Path(small_disk) / "filler"
    filler.write_bytes(b"x" * (256 - 48) * 1024)
    out = f"{small_disk}/out.parquet"
    full = score(tiny("bert_ce"), out)

    assert full.exit_code == 6, full.output
    assert "cannot write" in full.stderr
    assert "No space left" in full.stderr
    assert not Path(out).exists()
    assert jobs.parts(f"{small_disk}/.out.parquet.parts")
    assert not list(Path(f"{small_disk}/.out.parquet.parts").glob(".*"))
    filler.unlink()
    result = score(tiny("bert_ce"), out)
    assert result.exit_code == 0, result.output
    assert "to do" in result.stderr
    assert Path(out).read_bytes() == Path("whole.parquet").read_bytes()


def test_the_record_counts_all_runs(tiny: Tiny) -> None:
    jobs.write_rows("in.parquet", ROWS)
    score(tiny("bert_ce"), "parts/")
    os.remove("parts/part-00002.parquet")
    score(tiny("bert_ce"), "parts/")

    counts = json.loads(Path("parts/_run.json").read_text("utf-8"))["counts"]
    assert (counts["rows"], counts["scored"], counts["faulty"]) == (600, 600, 0)
