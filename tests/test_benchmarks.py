"""The scripts of benchmarks/: what they time is what they say, and their tables say what was timed."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(autouse=True)
def scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    """They find each other as they do when one of them is run."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def script(name: str) -> ModuleType:
    return __import__(name)


def lengths(workload: str) -> list[int]:
    """In tokens, with the three special ones of a pair."""
    pairs = script("workloads").WORKLOADS[workload].pairs()
    return [len(query.split()) + len(document.split()) + 3 for query, document in pairs]


def test_the_mixed_pairs_have_the_lengths_that_the_goals_name() -> None:
    found = lengths("W1")
    assert len(found) == 4000
    assert 12 <= min(found) <= 16
    assert 340 <= max(found) <= 370
    assert 68 < sum(found) / len(found) < 71


def test_encoded_workloads_have_each_text_many_times() -> None:
    pairs = script("workloads").WORKLOADS["W4"].pairs()
    assert len(pairs) == len(set(pairs)) == 20_000
    assert [len(set(side)) for side in zip(*pairs, strict=True)] == [200, 2_000]


@pytest.mark.parametrize("share", [0.01, 0.3, 1.0])
def test_a_share_of_distinct_texts_is_exact(share: float) -> None:
    pairs = script("growth").repeated(300, share)
    assert [len(set(side)) for side in zip(*pairs, strict=True)] == [300 * share] * 2


def test_every_workload_names_systems_that_are_there() -> None:
    workloads, peers = script("workloads").WORKLOADS, script("peers").SYSTEMS
    for workload in workloads.values():
        named = {name.removesuffix("-file").removesuffix("-cli") for name in workload.systems}
        assert named <= {*peers, "import-torch"}


def test_a_variant_is_a_checkout_variables_and_options() -> None:
    name, variant = script("turns").Variant.read("plain:checkout=/tmp,FAST=0,batch_tokens=512,padded=true")
    assert (name, str(variant.checkout), variant.environment) == ("plain", "/tmp", {"FAST": "0"})
    assert variant.options == {"batch_tokens": 512, "padded": True}


def test_a_table_has_ratios_to_the_first_system_and_what_reaches_its_goal(tmp_path: Path) -> None:
    turns, run = script("turns"), script("run")
    task = turns.Task("cross-encoder", tmp_path, tmp_path, "float32", 1, tmp_path, tmp_path)
    ours, theirs = turns.Entrant("batchscore", task, "1"), turns.Entrant("st", task, "6")
    ours.rounds = [turns.Round(seconds, 2.0) for seconds in (1.0, 3.0, 2.0)]
    theirs.rounds = [turns.Round(seconds, 8.0) for seconds in (6.0, 5.0, 4.0)]
    ours.scores, theirs.scores = [0.5, 0.25], [0.5, 0.375]
    assert run.table([ours, theirs], 100, {"st": 2.5})[2:] == [
        "| batchscore 1 | 50.0 | 2.00 [1.00-3.00] | 1.00 | 1.00 | 1.00 |  |  |",
        "| st 6 | 20.0 | 5.00 [4.00-6.00] | 2.50 | 4.00 | 4.00 | 2.50 reached | 1.2e-01 |",
    ]
    assert "2.60 missed" in run.table([ours, theirs], 100, {"st": 2.6})[3]


def test_a_round_without_a_tick_of_processor_time_has_no_ratio_of_it(tmp_path: Path) -> None:
    turns, run = script("turns"), script("run")
    toy = turns.Entrant("batchscore", turns.Task("cross-encoder", tmp_path, tmp_path, "float32", 1, tmp_path, tmp_path))
    toy.rounds = [turns.Round(0.004, 0.0)]
    assert run.table([toy], 1, {})[2].split("|")[4:7] == [" 1.00 ", " 1.00 ", " nan "]


def test_a_command_line_is_timed_without_its_median_start_up(tmp_path: Path) -> None:
    turns = script("turns")
    task = turns.Task("bi-encoder", tmp_path, tmp_path, "float32", 1, tmp_path, tmp_path)
    command = turns.CommandLineAlone("batchscore-cli", task)
    command.rounds = [turns.Round(9.0, 7.0), turns.Round(8.0, 6.0)]
    command.start_up = [turns.Round(5.0, 4.0), turns.Round(4.0, 3.0), turns.Round(1.0, 1.0)]
    assert (command.seconds, command.cpu_seconds) == ([5.0, 4.0], [4.0, 3.0])


def test_growth_is_told_as_a_power_of_the_axis() -> None:
    growth = script("growth")
    points = [growth.Point(x, seconds=x * x, peak_mb=500, tokens=int(x)) for x in (1.0, 10.0, 100.0)]
    assert [round(growth.exponent(points, name), 9) for name in growth.READINGS] == [2, 0, 1]


def test_a_system_in_its_own_process_is_timed_and_gives_its_scores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    folders = ["--models", str(tmp_path / "models"), "--peers", str(tmp_path / "none")]
    options = ["--toy", "--rounds", "2", "--threads", "1", "--dtype", "float32", "--only", "batchscore,vllm"]
    monkeypatch.setattr(sys, "argv", ["run.py", "W1", *folders, *options])
    script("run").main()
    out, progress = capfd.readouterr()
    assert "24 pairs, float32, 1 threads, 2 rounds" in out
    row = next(line for line in out.splitlines() if line.startswith("| batchscore"))
    assert row.split("|")[4].strip() == "1.00"
    assert "vllm is left out: not installed" in progress
    assert progress.count("round ") == 2
