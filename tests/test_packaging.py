"""What ships is whole, and every option says what it does."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import jinja2.sandbox
import pytest
from typer.main import get_command

import batchscore
from batchscore.cli.main import app
from batchscore.errors import UsageError
from batchscore.resources import find_resource, shipped_files

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    return next(out.glob("*.whl"))


def test_wheel_holds_every_template_and_config(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    files = [path for kind in ("templates", "configs") for path in (ROOT / kind).iterdir()]
    files += [path for path in (ROOT / "batchscore" / "report").iterdir() if path.suffix in {".css", ".jinja", ".js"}]

    assert len(files) > 3
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


def test_no_help_text_holds_what_the_help_page_would_take_for_markup() -> None:
    helps = [option.help or "" for command in get_command(app).commands.values() for option in command.params]  # type: ignore[attr-defined]

    assert [text for text in helps if "[" in text] == []


def test_every_option_has_a_help_text() -> None:
    options = [(command.name, option) for command in get_command(app).commands.values() for option in command.params]  # type: ignore[attr-defined]

    assert options
    assert [(name, option.name) for name, option in options if not getattr(option, "help", None)] == []
