"""The examples for cron and pipelines do what they say, by a real model on the example questions."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from typer.testing import CliRunner

from batchscore.cli.main import app
from test_result import samples

ROOT = Path(__file__).parent.parent
SCRIPTS = [*sorted((ROOT / "examples").glob("*.sh")), *sorted((ROOT / "examples").glob("*.sbatch"))]
STAND_IN = """#!/usr/bin/env bash
printf '%s\\0' "$@" >asked.part
mv asked.part asked
until [[ -e code ]]; do sleep 0.01; done
cat stdout
cat stderr >&2
read -r code <code
rm code
exit "$code"
"""


@pytest.fixture
def folder(here: Path, minilm: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the examples, where `batchscore` is answered by this process."""
    shutil.copytree(ROOT / "examples", "examples")
    Path("bin").mkdir()
    Path("bin/batchscore").write_text(STAND_IN)
    Path("bin/batchscore").chmod(0o755)
    monkeypatch.setenv("PATH", os.pathsep.join([str(here / "bin"), os.environ["PATH"]]))
    monkeypatch.setenv("BATCHSCORE_DTYPE", "float32")
    return here


def answered(*command: str, **environment: str) -> tuple[int, str]:
    """(exit code, stdout) of a script, each of whose calls of batchscore this process runs."""
    variables = {**os.environ, **environment}
    with subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, text=True) as run:
        while run.poll() is None:
            if Path("asked").exists():
                answer(environment)
            time.sleep(0.01)
        assert run.stdout is not None
        return run.returncode, run.stdout.read()


def answer(environment: dict[str, str]) -> None:
    """Run what was asked for, and hand back what it said."""
    arguments = Path("asked").read_text("utf-8").split("\0")[:-1]
    Path("asked").unlink()
    result = CliRunner().invoke(app, arguments, env=environment)
    Path("stdout").write_text(result.stdout, "utf-8")
    Path("stderr").write_text(result.stderr, "utf-8")
    Path("code.part").write_text(f"{result.exit_code}\n")
    Path("code.part").rename("code")


def night(day: str, model: str | Path, **environment: str) -> tuple[int, str]:
    variables = {"DAY": day, "JOB": "examples/night.toml", "METRICS": ".", "BATCHSCORE_MODEL": str(model)}
    return answered("examples/cron_eval.sh", **variables, **environment)


def counts(day: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(f"nights/{day}/rerank.json").read_text("utf-8"))["counts"]
    return found


@pytest.mark.usefixtures("folder")
def test_nights_in_a_row(minilm: Path, tiny: Any) -> None:
    assert night("2026-11-01", minilm) == (0, "")
    assert counts("2026-11-01")["tokens"] > 0
    assert counts("2026-11-01")["from_store"] == 0

    # the second reads no text, and equals the first
    assert night("2026-11-02", minilm) == (0, "")
    assert (counts("2026-11-02")["tokens"], counts("2026-11-02")["from_store"]) == (0, counts("2026-11-02")["texts"])
    assert samples("night_rerank.prom")["run_from_store"] == counts("2026-11-02")["texts"] == 192
    (first, second) = (Path(f"nights/2026-11-0{day}/ranked.parquet").read_bytes() for day in (1, 2))
    assert first == second

    # a broken model: the mail has a line, and the third night is no baseline for the fourth
    code, mail = night("2026-11-03", tiny("bert_mean"))
    assert code == 9
    (line,) = mail.splitlines()
    assert line.startswith("batchscore 2026-11-03: exit code 9: nights/2026-11-03/ranked.parquet: nDCG@10 fell by 0.2")
    assert "against nights/2026-11-02/ranked.parquet (at most 0.01" in line
    assert not Path("nights/2026-11-03/passed").exists()
    assert samples("night_rerank.prom")["run_exit_code"] == 0
    evaluated = samples("night_eval.prom")
    assert evaluated["run_exit_code"] == 9
    assert evaluated["last_success_timestamp_seconds"] < evaluated["run_start_timestamp_seconds"]
    assert evaluated["nDCG@10 1"] < evaluated["nDCG@10 baseline"] - 0.2
    assert night("2026-11-04", minilm) == (0, "")
    compared = json.loads(Path("nights/2026-11-04/eval.json").read_text("utf-8"))["comparisons"]
    assert {one["baseline"] for one in compared} == {"nights/2026-11-02/ranked.parquet"}

    # the same night again finds what is there
    assert night("2026-11-04", minilm) == (0, "")
    assert json.loads(Path("nights/2026-11-04/rerank.json").read_text("utf-8"))["end"] == "found"


@pytest.mark.usefixtures("folder")
def test_a_night_that_was_stopped_is_resumed_and_is_no_baseline(minilm: Path) -> None:
    code, mail = night("2026-11-01", minilm, BATCHSCORE_MAX_SECONDS="0")
    first, second = mail.splitlines()
    assert (code, first.startswith("batchscore 2026-11-01: exit code 75: stopped by")) == (75, True)
    assert second.startswith("hint: run the same command again to resume")
    assert night("2026-11-02", minilm) == (0, "")
    assert json.loads(Path("nights/2026-11-02/eval.json").read_text("utf-8"))["comparisons"] == []
    assert night("2026-11-01", minilm) == (0, "")


@pytest.mark.usefixtures("folder")
def test_a_night_waits_for_no_other(minilm: Path) -> None:
    Path("nights").mkdir()
    with subprocess.Popen(["flock", "nights/lock", "cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        holder.stdin.write(b"held\n")
        holder.stdin.flush()
        assert holder.stdout.readline() == b"held\n"  # cat runs, so the lock is taken
        assert night("2026-11-01", minilm) == (75, "batchscore 2026-11-01: another night is still running in nights\n")


@pytest.mark.usefixtures("folder")
def test_a_night_whose_call_is_wrong_says_so(minilm: Path) -> None:
    code, mail = night("2026-11-01", minilm, BATCHSCORE_TOP="5", BATCHSCORE_TOP_M="5")
    assert code == 2
    assert mail.splitlines() == [
        "batchscore 2026-11-01: exit code 2: BATCHSCORE_TOP_M is no variable of batchscore",
        "hint: did you mean BATCHSCORE_TOP_N?",
    ]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_have_nothing_that_shellcheck_finds(script: Path) -> None:
    shellcheck = shutil.which(
        "shellcheck", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    )
    if shellcheck is None:
        pytest.skip("shellcheck is not installed")
    subprocess.run([shellcheck, str(script)], check=True)


# ---- Snakemake and Airflow


@pytest.mark.usefixtures("folder")
def test_the_snakefile_reranks_in_shards_and_evaluates(minilm: Path) -> None:
    snakemake = shutil.which("snakemake")
    if snakemake is None:
        pytest.skip("Snakemake is not installed")
    config = ["--config", f"model={minilm}", "shards=2"]
    code, _ = answered(
        snakemake, "--snakefile", "examples/snakemake/Snakefile", "--cores", "1", "--quiet", "all", *config
    )

    assert code == 0
    (run,) = json.loads(Path("night/eval.json").read_text("utf-8"))["runs"]
    assert run["results"] == 160
    assert run["measures"]["nDCG@10"]["mean"] > 0.9
    assert sorted(path.name for path in Path("night").glob("*.done")) == ["shard-0.done", "shard-1.done"]


class Task:
    """A stand-in for Airflow's BashOperator, which is half a gigabyte to install."""

    made: list[Task]

    def __init__(self, **settings: Any) -> None:
        self.settings = settings
        Task.made.append(self)

    def __rshift__(self, other: Task) -> Task:
        return other


@pytest.mark.usefixtures("folder")
def test_the_commands_of_the_dag_run(minilm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One after the other, as Airflow would have them for a day."""
    monkeypatch.setattr(Task, "made", [], raising=False)
    names = "airflow airflow.providers airflow.providers.standard airflow.providers.standard.operators".split()
    for name in [*names, "airflow.providers.standard.operators.bash"]:
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules["airflow"].DAG = Dag  # type: ignore[attr-defined]
    sys.modules["airflow.providers.standard.operators.bash"].BashOperator = Task  # type: ignore[attr-defined]
    runpy.run_path("examples/airflow/batchscore_nights.py")
    shutil.copy("examples/night.toml", "night.toml")
    tasks = {
        task.settings["task_id"]: task.settings["bash_command"].replace("{{ ds }}", "2026-11-01") for task in Task.made
    }
    variables = {"BATCHSCORE_MODEL": str(minilm)}

    assert list(tasks) == ["rerank", "evaluate"]
    assert [answered("bash", "-c", command, **variables)[0] for command in tasks.values()] == [0, 0]
    assert Path("nights/2026-11-01/queries.parquet").exists()


class Dag:
    """A stand-in for Airflow's DAG."""

    def __init__(self, name: str, **settings: Any) -> None:
        self.name = name

    def __enter__(self) -> Dag:
        return self

    def __exit__(self, *_: object) -> None: ...
