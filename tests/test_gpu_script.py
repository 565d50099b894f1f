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
    found = subprocess.run(
        ["bash", str(SCRIPT), *arguments], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    return found.returncode, found.stdout


@pytest.mark.slow
def test_every_part_runs_on_a_cpu() -> None:
    code, said = run("--small")
    assert code == 0, said
    for part in (
        "MaxSim",
        "one of them killed: 600 scores",
        "was halved",
        "speed   MiniLM-size",
        "profile bge-reranker",
    ):
        assert part in said
    assert said.endswith("all as on a CPU\n")


def test_what_is_missing_is_named_before_anything_runs(tmp_path: Path) -> None:
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n', "utf-8")
    bare.chmod(0o755)
    code, said = run(python=str(bare))
    assert (code, said.partition(",")[0]) == (1, "gpu.sh: this Python lacks torch")
