"""benchmarks/gpu.sh runs without a GPU, at small sizes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "gpu.sh"


def run(*arguments: str, python: str = sys.executable) -> tuple[int, str]:
    """(exit code, what it printed)."""
    environment = {**os.environ, "PYTHON": python, "OMP_NUM_THREADS": "1"}
    process = subprocess.run(
        ["bash", str(SCRIPT), *arguments], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    return process.returncode, process.stdout


@pytest.mark.slow
def test_every_part_runs_on_a_cpu() -> None:
    code, output = run("--small")
    assert code == 0, output
    for part in (
        "MaxSim",
        "one of them killed: 600 scores",
        "was halved",
        "peak ",
        "RMS norm of 1024 fused",
        "speed   MiniLM-size",
        "share   Scorer.score",
        "share   file to file",
        "times tokenization alone",
        "profile 3 pairs",
    ):
        assert part in output
    assert output.endswith("all as on a CPU\n")


def test_what_is_missing_is_named_before_anything_runs(tmp_path: Path) -> None:
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n', "utf-8")
    bare.chmod(0o755)
    code, output = run(python=str(bare))
    assert (code, output.partition(",")[0]) == (1, "gpu.sh: this Python lacks torch")
