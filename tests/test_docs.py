"""What the README and docs/ say is true: commands run, tables are current, options and links exist."""

from __future__ import annotations

import csv
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

import batchscore
import jobs
from batchscore import errors, run_batch_files
from batchscore.cli.main import app
from batchscore.jobs.files import EncodeOptions, RerankOptions, ScoreOptions

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
API, CLI, CRON, MODELS = (ROOT / "docs" / name for name in ("api.md", "cli.md", "cron.md", "models.md"))
SCORES = {"score", "relevance_score"}
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
GENERATE = runpy.run_path(str(ROOT / "docs" / "generate.py"))


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text("utf-8"), re.DOTALL)


def pages_with(language: str) -> Any:
    return pytest.mark.parametrize(
        "page", [page for page in PAGES if blocks(page, language)], ids=lambda page: page.name
    )


@pytest.fixture
def examples(here: Path) -> Path:
    shutil.copytree(ROOT / "examples", here / "examples")
    return here


STAND_IN = """#!/usr/bin/env bash
printf '%s\\0' "$@" >asked
read -r code <answer
exit "$code"
"""


def shell(page: Path) -> str:
    """Standard output of every ```bash block of a page, in one shell.

    Its `batchscore` is a script that has the command run by a process that has loaded everything, for the seconds that
    each cold start would take.
    """
    script = "set -e\n" + "\n".join(blocks(page, "bash"))
    Path("bin").mkdir()
    Path("bin/batchscore").write_text(STAND_IN)
    Path("bin/batchscore").chmod(0o755)
    asked, answered = Path("asked").absolute(), Path("answer").absolute()
    for pipe in (asked, answered):
        os.mkfifo(pipe)
    said: list[str] = []

    def answer() -> None:
        while True:
            arguments = asked.read_text().split("\0")[:-1]
            code, errors = jobs.finish(*arguments)
            said.append(f"{arguments}: {errors}")
            answered.write_text(f"{code}\n")

    Thread(target=answer, daemon=True).start()  # in the end it waits for a question that never comes
    path = os.pathsep.join([str(Path("bin").absolute()), str(Path(sys.executable).parent), os.environ["PATH"]])
    options: dict[str, Any] = {"capture_output": True, "text": True, "timeout": 300}
    run = subprocess.run(["bash", "-c", script], env={**os.environ, "PATH": path}, check=False, **options)
    assert run.returncode == 0, (run.stderr, said)
    assert len(said) == len(re.findall(r"^batchscore ", script, re.MULTILINE)) > 0
    return run.stdout


def rows(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


# ---- what a reader copies


def test_readme_commands_give_the_output_it_shows(examples: Path, minilm: Path) -> None:
    """To 5e-3, because the dtype is what suits the machine, and the README shows float32."""
    scores, ranked = map(rows, blocks(README, "json"))
    shown = rows(shell(README))

    close = [pytest.approx(row, abs=5e-3) for row in scores]
    assert rows((examples / "scores.jsonl").read_text("utf-8")) == close
    assert [row.pop("relevance_score") for row in shown] == pytest.approx(
        [row.pop("relevance_score") for row in ranked], abs=5e-3
    )
    assert shown == ranked


def test_the_quick_start_gives_the_scores_that_it_shows(examples: Path, minilm: Path) -> None:
    """To 5e-3, because the dtype is what suits the machine, and the page shows float32."""
    page = ROOT / "docs" / "quickstart.md"
    shell(page)

    found, shown = (
        list(csv.DictReader(text.splitlines()))
        for text in (Path("scored.csv").read_text("utf-8"), blocks(page, "csv")[0])
    )
    scores = [float(row.pop("score")) for row in found]
    assert scores == pytest.approx([float(row.pop("score")) for row in shown], abs=5e-3)
    assert found == shown
    assert {"ranked.csv", "report.html"} <= set(os.listdir())


def test_the_commands_for_those_who_know_other_tools_run(
    examples: Path, minilm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODEL", str(minilm))
    shell(ROOT / "docs" / "coming_from.md")

    assert {"ranked.parquet", "run.reranked.trec"} <= set(os.listdir())


@pytest.mark.parametrize(
    "page", ["cron.md", "evaluation.md", "jobs.md", "plan.md", "report.md", "requests.md", "scores.md"]
)
def test_commands_of_docs_run(page: str, examples: Path, minilm: Path) -> None:
    """In this process, which saves the seconds that each would take to load torch."""
    for line in "".join(blocks(ROOT / "docs" / page, "bash")).splitlines():
        program, *arguments = shlex.split(line.replace("$MODEL", str(minilm)))
        result = CliRunner().invoke(app, arguments)

        assert program == "batchscore"
        assert result.exit_code == 0, result.output

    last = {
        "cron.md": "ranked.parquet",
        "evaluation.md": "scored.parquet",
        "jobs.md": "merged.parquet",
        "plan.md": "examples",
        "report.md": "both.html",
        "requests.md": "responses.jsonl",
        "scores.md": "maxsim.jsonl.zst",
    }
    assert last[page] in os.listdir()


def test_the_answers_to_requests_are_those_that_the_page_shows(examples: Path, minilm: Path) -> None:
    page = ROOT / "docs" / "requests.md"
    run_batch_files({"minilm": str(minilm)}, "examples/requests.jsonl", "out.jsonl", dtype="float32")

    found, shown = rows(Path("out.jsonl").read_text("utf-8")), rows(blocks(page, "json")[0])
    assert [blocks(page, "text")[0]] == [(examples / "examples" / "requests.jsonl").read_text("utf-8")]
    for answer, expected in zip(found, shown, strict=True):
        bodies = answer["response"]["body"], expected["response"]["body"]
        values = [
            [one.pop(name) for one in body.get("data", body.get("results")) for name in one.keys() & SCORES]
            for body in bodies
        ]
        times = [body.pop("created", None) for body in bodies]
        assert values[0] == pytest.approx(values[1], abs=1e-5)
        assert list(map(type, times)) in ([int, int], [type(None)] * 2)
        assert answer == expected


def test_no_page_has_commands_that_are_not_run() -> None:
    assert [page.name for page in PAGES if blocks(page, "bash")] == [
        "README.md",
        "coming_from.md",
        "cron.md",
        "evaluation.md",
        "jobs.md",
        "plan.md",
        "quickstart.md",
        "report.md",
        "requests.md",
        "scores.md",
    ]


@pages_with("python")
def test_python_runs(page: Path, examples: Path, minilm: Path) -> None:
    scope: dict[str, object] = {"MODEL": str(minilm)}
    exec("\n".join(blocks(page, "python")), scope)

    assert scope.keys() & {"read", "read_run", "scorer", "score_files"}


# ---- what it repeats


def test_the_option_tables_are_those_of_the_program() -> None:
    assert CLI.read_text("utf-8") == GENERATE["cli_page"](), "run `make docs`"


def test_the_option_tables_name_every_option() -> None:
    commands = GENERATE["commands"]().values()
    names = {name for command in commands for option in command.params for name in option.opts if name[0] == "-"}

    assert names - set(re.findall(r"(?<=[`, ])--?\w[\w-]*", CLI.read_text("utf-8"))) == set()


def test_the_python_api_is_that_of_the_docstrings() -> None:
    page = API.read_text("utf-8")

    assert page == GENERATE["api_page"](), "run `make docs`"
    assert set(batchscore.__all__) - set(re.findall(r"^## (\w+)$", page, re.MULTILINE)) == {"__version__"}


def test_the_python_api_explains_every_keyword() -> None:
    rows = re.findall(r"^\| `(\w+)` \| `.*` \| (.*) \|$", API.read_text("utf-8"), re.MULTILINE)
    known = {*ScoreOptions.__annotations__, *RerankOptions.__annotations__, *EncodeOptions.__annotations__}

    assert known - {name for name, meaning in rows if meaning} == set()


def test_the_table_of_architectures_is_that_of_the_program() -> None:
    page = MODELS.read_text("utf-8")

    assert page == GENERATE["models_page"](page), "run `make docs`"
    assert GENERATE["models_page"](page.replace("| `BertModel` |", "| `Other` |")) == page


def test_the_table_of_exit_codes_is_complete() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    codes = {kind.exit_code for kind in kinds if hasattr(kind, "exit_code")} - {1}

    readme, cron = (re.findall(r"^\| \d+[ ,].*$", page.read_text("utf-8"), re.M) for page in (README, CRON))
    assert readme == cron
    assert codes | {0, 7, 130} == {int(re.split("[ ,]", row)[1]) for row in cron}


# ---- what it names


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_options_exist(page: Path) -> None:
    commands = GENERATE["commands"]().values()
    known = {name for command in commands for option in command.params for name in option.opts + option.secondary_opts}
    known |= {"--help", "--install-completion"}
    text = page.read_text("utf-8")
    if page.name == "coming_from.md":
        text = re.sub(r"^\|.*?\|", "", text, flags=re.MULTILINE)  # what other tools have is in first columns

    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text)) - known == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for path, anchor in re.findall(r"\]\(([\w./-]*)(?:#([\w-]+))?\)", page.read_text("utf-8")):
        target = page.parent / path if path else page
        headings = re.findall(r"^#+ (.*)$", target.read_text("utf-8"), re.MULTILINE)
        anchors = {re.sub(r"[^\w-]", "", heading.lower().replace(" ", "-")) for heading in headings}

        assert not anchor or anchor in anchors


def test_the_readme_can_be_read_in_five_minutes() -> None:
    assert len(README.read_text("utf-8").splitlines()) <= 160


# ---- names of before


def parsed(*options: str) -> dict[str, Any]:
    group: Any = get_command(app)
    arguments = ["score", "--model", "m", "--in", "in.jsonl", "--out", "out.jsonl", *options]
    context = group.make_context("batchscore", list(arguments))
    values: dict[str, Any] = group.commands["score"].make_context("score", arguments[1:], parent=context).params
    return values


@pytest.mark.parametrize("name", ["--unit-rows", "--window-rows", "--window_rows"])
def test_window_rows_is_another_name_of_unit_rows(name: str) -> None:
    assert parsed(name, "7")["unit_rows"] == 7
    assert parsed()["unit_rows"] == 16_384


def test_window_rows_is_not_shown() -> None:
    command = [sys.executable, "-m", "batchscore", "score", "--help"]
    environment = {**os.environ, "COLUMNS": "200"}
    text = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout

    assert "--unit-rows" in text
    assert not re.search("window.rows", text + "".join(page.read_text("utf-8") for page in PAGES if page != API))
