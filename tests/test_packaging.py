"""What ships is whole, and what the README says works."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from threading import Thread
from typing import Any

import jinja2.sandbox
import pytest
from typer.main import get_command

import batchscore
import jobs
from batchscore.cli.main import app
from batchscore.errors import UsageError
from batchscore.resources import find_resource, shipped_files

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    return next(out.glob("*.whl"))


def test_wheel_holds_every_template_and_config(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    files = [path for kind in ("templates", "configs") for path in (ROOT / kind).iterdir()]

    assert files
    assert [path for path in files if f"batchscore/{path.parent.name}/{path.name}" not in names] == []


def test_wheel_finds_its_resources(wheel: Path, tmp_path: Path) -> None:
    """Unpacked elsewhere, without a checkout around it."""
    zipfile.ZipFile(wheel).extractall(tmp_path)
    code = """from batchscore.resources import shipped_files
print(shipped_files.__code__.co_filename, *shipped_files("configs"), *shipped_files("templates"))"""
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    said = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True, check=True
    )

    assert said.stdout.split() == [
        str(tmp_path / "batchscore" / "resources.py"),
        *shipped_files("configs"),
        *shipped_files("templates"),
    ]


def test_a_checkout_finds_its_resources() -> None:
    assert find_resource("configs", "multilingual-e5") == ROOT / "configs" / "multilingual-e5.yaml"
    with pytest.raises(UsageError, match="multilingual-e5"):
        find_resource("configs", "no-such")


def test_basic_template_renders_both_roles() -> None:
    source = (ROOT / "templates" / "basic.jinja").read_text("utf-8")
    messages = [{"role": "query", "content": "why?"}, {"role": "document", "content": "because"}]

    assert (
        jinja2.sandbox.SandboxedEnvironment().from_string(source).render(messages=messages)
        == "Query: why?\nDocument: because"
    )


def test_version_is_the_metadata_version() -> None:
    from importlib.metadata import version

    assert version("batchscore") == batchscore.__version__


def test_the_installed_command_runs(tmp_path: Path) -> None:
    """From a cold start, in a folder that is not the checkout's."""
    command = [str(Path(sys.executable).with_name("batchscore")), "models"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    assert run.returncode == 0, run.stderr
    assert "XLMRobertaForSequenceClassification" in run.stdout


STAND_IN = """#!/usr/bin/env bash
printf '%s\\0' "$@" >asked
read -r code <answer
exit "$code"
"""


def test_readme_commands_run(here: Path, minilm: Path) -> None:
    """Every ```bash block of the README, in one shell, beside a copy of examples/.

    Its `batchscore` is a script that has the command run by a process that has loaded everything.
    """
    shutil.copytree(ROOT / "examples", "examples")
    script = "set -e\n" + "\n".join(re.findall(r"```bash\n(.*?)```", README, re.DOTALL))
    (here / "bin").mkdir()
    (here / "bin" / "batchscore").write_text(STAND_IN)
    (here / "bin" / "batchscore").chmod(0o755)
    for name in ("asked", "answer"):
        os.mkfifo(name)
    said: list[str] = []

    def answer() -> None:
        while True:
            arguments = (here / "asked").read_text().split("\0")[:-1]
            code, errors = jobs.finish(*arguments)
            said.append(f"{arguments}: {errors}")
            (here / "answer").write_text(f"{code}\n")

    path = os.pathsep.join([str(here / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
    Thread(target=answer, daemon=True).start()  # in the end it waits for a question that never comes
    options: dict[str, Any] = {"capture_output": True, "text": True, "timeout": 300}
    run = subprocess.run(["bash", "-c", script], env={**os.environ, "PATH": path}, check=False, **options)

    assert run.returncode == 0, (run.stderr, said)
    assert len(said) == len(re.findall(r"^batchscore ", script, re.MULTILINE)) > 5
    assert {"scores.jsonl", "ranked.parquet", "nested.jsonl", "maxsim.jsonl.zst"} <= set(os.listdir())


def test_readme_python_runs(minilm: Path) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    scope: dict[str, object] = {"MODEL": str(minilm)}
    exec(block, scope)

    assert scope["scorer"]


def test_no_help_text_holds_what_the_help_page_would_take_for_markup() -> None:
    helps = [option.help or "" for command in get_command(app).commands.values() for option in command.params]  # type: ignore[attr-defined]

    assert [text for text in helps if "[" in text] == []


def test_every_option_has_a_help_text() -> None:
    options = [(command.name, option) for command in get_command(app).commands.values() for option in command.params]  # type: ignore[attr-defined]

    assert options
    assert [(name, option.name) for name, option in options if not getattr(option, "help", None)] == []


def test_options_named_in_the_readme_exist() -> None:
    commands = get_command(app).commands.values()  # type: ignore[attr-defined]
    known = {text for command in commands for option in command.params for text in option.opts}

    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", README)) - known == {"--help"} & set(
        re.findall(r"--help", README)
    )
