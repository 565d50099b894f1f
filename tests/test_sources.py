"""An option's value comes from the first that has it: command line, environment, job file, default."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner, Result

import jobs
from batchscore.cli.main import app
from batchscore.cli.sources import SettledCommand, variables

pytestmark = pytest.mark.usefixtures("here")

NEEDED = ["--model", "m", "--in", "in.jsonl", "--out", "out.jsonl"]
TOML = {
    "text": 'query-prompt = "file: "',
    "switch": "no-prompts = true",
    "pair of switches": "hive = false",
    "number": "unit-rows = 3",
    "choice": 'dtype = "float16"',
    "repeatable": 'store = ["file a", "file b"]',
}
SOURCES: dict[str, tuple[str, Any, list[str], Any, str, Any, Any]] = {
    # kind: (key, default, flags, their value, variable's text, its value, the file's value)
    "text": ("query-prompt", None, ["--query-prompt", "flag: "], "flag: ", "variable: ", "variable: ", "file: "),
    "switch": ("no-prompts", False, ["--no-prompts"], True, "0", False, True),
    "pair of switches": ("hive", True, ["--no-hive"], False, "true", True, False),
    "number": ("unit-rows", 16_384, ["--unit-rows", "1"], 1, "2", 2, 3),
    "choice": ("dtype", "auto", ["--dtype", "float32"], "float32", "bfloat16", "bfloat16", "float16"),
    "repeatable": (
        "store",
        None,
        ["--store", "flag a", "--store", "b"],
        ["flag a", "b"],
        "variable a\nb",
        ["variable a", "b"],
        ["file a", "file b"],
    ),
}


def invoke(*arguments: str, **variables: str) -> Result:
    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200", **variables})


def settled(*arguments: str, command: str = "score", **variables: str) -> dict[str, Any]:
    """Each option with its value and source, as --print-config has it."""
    result = invoke(command, *arguments, "--print-config", "--json", **variables)
    assert result.exit_code == 0, result.output
    options: dict[str, Any] = json.loads(result.stdout)
    return {key: (option["value"], option["source"]) for key, option in options.items()}


def refused(text: str, suffix: str = "yaml", command: str = "score") -> str:
    """What is said of a job file."""
    Path(f"night.{suffix}").write_text(text, "utf-8")
    result = invoke(command, *NEEDED, "--job", f"night.{suffix}")
    assert result.exit_code == 2, result.output
    return " ".join(result.stderr.replace("│", " ").split())


# ---- precedence


@pytest.mark.parametrize("kind", SOURCES)
def test_the_first_of_flag_variable_file_and_default_wins(kind: str) -> None:
    key, default, flags, flag, text, variable, file = SOURCES[kind]
    Path("night.toml").write_text(TOML[kind], "utf-8")
    name = f"BATCHSCORE_{key.replace('-', '_').upper()}"
    job, environment = ["--job", "night.toml"], {name: text}

    assert settled(*NEEDED)[key] == (default, "default")
    assert settled(*NEEDED, *job)[key] == (file, "night.toml")
    assert settled(*NEEDED, **environment)[key] == (variable, name)
    assert settled(*NEEDED, *job, **environment)[key] == (variable, name)
    assert settled(*NEEDED, *flags)[key] == (flag, "flag")
    assert settled(*NEEDED, *flags, *job, **environment)[key] == (flag, "flag")


def test_what_a_command_needs_may_come_from_anywhere() -> None:
    Path("night.yaml").write_text("in: [a.jsonl, b.jsonl]\nout: out.jsonl\n", "utf-8")
    options = settled(BATCHSCORE_MODEL="m", BATCHSCORE_JOB="night.yaml")

    assert options["model"] == ("m", "BATCHSCORE_MODEL")
    assert options["in"] == (["a.jsonl", "b.jsonl"], "night.yaml")
    assert options["out"] == ("out.jsonl", "night.yaml")
    assert "Missing option '--out'" in invoke("score", "--model", "m", "--in", "a").stderr


@pytest.mark.parametrize(
    ("call", "missing"),
    [
        ("score", "options '--model', '--in', '--out'"),
        ("rerank --in a", "options '--model', '--out'"),
        ("rerank --run a --out b", "option '--model'"),
        ("encode --model m", "options '--in', '--out'"),
        ("run-batch", "options '--in', '--out', '--model'"),
    ],
)
def test_all_that_a_call_lacks_is_named_with_a_call_that_has_it(call: str, missing: str) -> None:
    command, *options = call.split()
    result = invoke(command, *options, "--json")
    message = json.loads(result.stdout)["error"]["message"]

    assert result.exit_code == 2
    assert message.startswith(f"Missing {missing}. For example: batchscore {command} --model BAAI/bge-")
    assert f"Missing {missing}. For example: batchscore {command} --model" in result.stderr


def test_a_run_takes_its_options_from_all_of_them(tiny: Callable[[str], str]) -> None:
    jobs.write_rows("pairs.jsonl", jobs.random_rows(6))
    Path("night.toml").write_text('in = "pairs.jsonl"\nlimit = 4\nkeep-columns = ["id"]\ndtype = "float32"\n', "utf-8")
    model, columns = tiny("bert_mean"), {"BATCHSCORE_SCORE_COLUMN": "s"}
    result = invoke("score", "--job", "night.toml", "--out", "out.jsonl", "--limit", "3", "--model", model, **columns)

    assert result.exit_code == 0, result.stderr
    rows = [json.loads(line) for line in Path("out.jsonl").read_text("utf-8").splitlines()]
    assert [list(row) for row in rows] == [["id", "s"]] * 3


def test_what_is_printed_is_a_job_file_of_the_same_options() -> None:
    given = [*NEEDED, "--store", "a b", "--hf-overrides", '{"a": "ü"}', "--max-errors", "1%", "--no-hive"]
    printed = invoke("score", *given, "--print-config").stdout
    Path("printed.toml").write_text(printed, "utf-8")

    again, first = settled("--job", "printed.toml"), settled(*given)
    again.pop("json")
    first.pop("json")
    assert {key: value for key, (value, _) in again.items()} == {key: value for key, (value, _) in first.items()}
    assert '\nhf-overrides = "{\\"a\\": \\"ü\\"}"' in printed
    assert printed.count("# default") + printed.count("# flag") == len(printed.splitlines())


# ---- job files


def test_a_table_is_for_the_command_of_its_name() -> None:
    Path("night.toml").write_text(
        'model = "m"\nin = "a"\n[score]\nout = "s.parquet"\n[rerank]\nout = "r.parquet"\ntop-n = 5\nmodel = "n"\n',
        "utf-8",
    )
    scored, ranked = (settled("--job", "night.toml", command=command) for command in ("score", "rerank"))

    assert (scored["out"][0], scored["model"][0]) == ("s.parquet", "m")
    assert (ranked["out"][0], ranked["model"][0], ranked["top-n"][0]) == ("r.parquet", "n", 5)


def test_values_of_a_file_are_what_the_flag_would_have_been_given() -> None:
    Path("night.yaml").write_text(
        "max_length: 512\nmax-errors: 7\ntemplate-date: 2026-01-31\nhf-overrides: {a: [1, true]}\n"
        "document-fields: [title, body]\nwindow-rows: 9\nquery-prompt: ''\nstore: one\n",
        "utf-8",
    )
    options = settled(*NEEDED, "--job", "night.yaml")
    expected = {"max-length": "512", "max-errors": "7", "template-date": "2026-01-31", "unit-rows": 9}
    expected |= {
        "hf-overrides": '{"a": [1, true]}',
        "document-fields": "title,body",
        "query-prompt": "",
        "store": ["one"],
    }

    assert {key: options[key] for key in expected} == {key: (value, "night.yaml") for key, value in expected.items()}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("unit-row: 7", "night.yaml: score has no option 'unit-row' hint: did you mean unit-rows?"),
        ("top-n: 7", "night.yaml: score has no option 'top-n'"),
        ("rernak: {top-n: 7}", "night.yaml: score has no option 'rernak' hint: did you mean rerank?"),
        ("job: other.toml", "night.yaml: score has no option 'job'"),
        ("unit-rows: many", "Invalid value for night.yaml: unit-rows: "),
        ("unit-rows: 0", "Invalid value for night.yaml: unit-rows: "),
        ("unit-rows: true", "night.yaml: unit-rows: true is neither text nor a number"),
        ("unit-rows: [1, 2]", "night.yaml: unit-rows takes one value, not several"),
        ("dtype: float8", "Invalid value for night.yaml: dtype: "),
        ("no-prompts: maybe", "Invalid value for night.yaml: no-prompts: "),
        ("instruction: yes", "night.yaml: instruction: true is neither text nor a number hint: put a word into quotes"),
        ("errors: null", "night.yaml: errors has no value hint: drop the line, or put the word null into quotes"),
        ("max-length: 8\nmax-model-len: 9", "night.yaml: max-length and max-model-len are one option"),
        ("limit: 1\nlimit: 2", "night.yaml cannot be read: line 1: limit is there twice"),
        ("a: [", "night.yaml cannot be read: "),
        ("- limit", "night.yaml holds no options"),
    ],
)
def test_a_wrong_line_of_a_file_is_named(text: str, message: str) -> None:
    assert message in refused(text)


def test_a_wrong_file_is_named() -> None:
    assert "night.toml cannot be read: " in refused("limit = ", "toml")
    assert "--job night.ini: cannot tell what it is hint: name it .toml, .yaml or .yml" in refused("", "ini")
    result = invoke("score", *NEEDED, "--job", "absent.toml")
    assert (result.exit_code, "error: --job absent.toml: no such file" in result.stderr) == (4, True)


def test_a_value_that_only_the_run_can_check_is_traced_to_its_file(tiny: Callable[[str], str]) -> None:
    jobs.write_rows("pairs.jsonl", jobs.random_rows(2))
    call = ["score", "--model", tiny("bert_mean"), "--in", "pairs.jsonl", "--out", "out.jsonl"]
    Path("night.yaml").write_text("max-length: 8x\n", "utf-8")

    result = invoke(*call, "--job", "night.yaml", "--json")
    assert "error: --max-length '8x': must be a number of tokens" in result.stderr
    assert "\nhint: --max-length is set by night.yaml: max-length\n" in result.stderr
    assert json.loads(result.stdout)["error"]["hint"] == "--max-length is set by night.yaml: max-length"
    assert "is set by BATCHSCORE_MAX_LENGTH" in invoke(*call, BATCHSCORE_MAX_LENGTH="8x").stderr
    assert "is set by" not in invoke(*call, "--max-length", "8x", BATCHSCORE_MAX_LENGTH="8").stderr


def test_the_job_file_of_the_docs_is_one() -> None:
    page = (Path(__file__).parent.parent / "docs" / "cron.md").read_text("utf-8")
    (text,) = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    Path("night.toml").write_text(text, "utf-8")

    ranked, evaluated = settled("--job", "night.toml", "--out", "o", command="rerank"), settled("r", command="eval")
    assert (ranked["in"][0], ranked["hive"][0]) == (["monday.parquet", "tuesday.parquet"], False)
    assert evaluated["fail-under"] == (None, "default")
    assert settled("r", "--job", "night.toml", command="eval")["fail-under"][0] == ["nDCG@10=0.70"]


# ---- variables


def test_a_variable_that_is_nearly_an_option_is_refused() -> None:
    result = invoke("score", *NEEDED, BATCHSCORE_UNIT_ROW="7")
    assert result.exit_code == 2
    assert result.stderr == (
        "error: BATCHSCORE_UNIT_ROW is no variable of batchscore\nhint: did you mean BATCHSCORE_UNIT_ROWS?\n"
    )
    # those of other commands, of no option, of nobody, and one that is empty
    others = {"BATCHSCORE_TOP_N": "7", "BATCHSCORE_DEBUG": "0", "BATCHSCORE_ON_CALL": "x", "BATCHSCORE_UNIT_ROWS": ""}
    assert settled(*NEEDED, **others)["unit-rows"] == (16_384, "default")


def test_a_wrong_variable_is_named() -> None:
    result = invoke("score", *NEEDED, BATCHSCORE_UNIT_ROWS="many")
    assert result.exit_code == 2
    assert "Invalid value for BATCHSCORE_UNIT_ROWS: " in result.stderr
    overridden = invoke("score", *NEEDED, "--unit-rows", "few", BATCHSCORE_UNIT_ROWS="many")
    assert "Invalid value for '--unit-rows'" in overridden.stderr


def commands() -> dict[str, Any]:
    root: Any = get_command(app)
    return dict(root.commands)


def test_every_command_with_groups_of_options_takes_them_from_all_sources() -> None:
    settled = {name for name, command in commands().items() if isinstance(command, SettledCommand)}
    grouped = {name for name, command in commands().items() if any(param.name == "job" for param in command.params)}
    assert settled == grouped >= {"score", "rerank", "encode", "eval", "inspect", "verify"}
    # a store must not be pruned of BATCHSCORE_MODEL, nor a merge overwrite BATCHSCORE_OUT
    assert settled & {"status", "merge", "store"} == set()
    for name in settled:
        command = commands()[name]
        flags = {param.name for param in command.params if param.param_type_name == "option"}
        assert flags - set(variables(command).values()) == {"print_config"}


def test_every_command_with_groups_of_options_shows_them() -> None:
    for name, command in commands().items():
        if isinstance(command, SettledCommand):
            needed = [param for param in command.params if param.required]
            words = [word for param in needed for word in (*param.opts[: param.param_type_name == "option"], "x")]
            result = invoke(name, *words, "--print-config")

            assert result.exit_code == 0, (name, result.output)
            assert re.search(r"^\S+ = .*# (flag|default)$", result.stdout, re.MULTILINE), name


def test_the_variables_of_an_evaluation_are_its_own() -> None:
    """Its --out is not the --out of the run that it measures."""
    evaluated, scored = variables(commands()["eval"]), variables(commands()["score"])
    assert evaluated.keys() & scored.keys() == set()
    assert {"BATCHSCORE_EVAL_OUT", "BATCHSCORE_EVAL_FAIL_UNDER", "BATCHSCORE_EVAL_QRELS"} <= evaluated.keys()


# ---- completion


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("batchscore rer", ["rerank"]),
        ("batchscore score --max-tok", ["--max-tokens-per-query", "--max-tokens-per-doc"]),
        ("batchscore score --in a.jsonl --dtype b", ["bfloat16"]),
        ("batchscore score --job absent.toml --claim ", ["static", "dynamic"]),
    ],
)
def test_bash_completes_commands_options_and_choices(words: str, completed: list[str]) -> None:
    environment = {"_BATCHSCORE_COMPLETE": "complete_bash", "COMP_WORDS": words}
    environment["COMP_CWORD"] = str(len(words.split(" ")) - 1)
    command = [sys.executable, "-m", "batchscore"]
    run = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=True)

    assert run.stdout.splitlines() == completed


def test_bash_completes_once_it_is_installed(here: Path) -> None:
    """zsh and fish get their scripts from the same library; they are seldom there to be tested."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    script = (
        "batchscore --install-completion >&2; source ~/.bashrc\n"
        "COMP_WORDS=(batchscore score --claim d); COMP_CWORD=3; _batchscore_completion batchscore; echo $COMPREPLY"
    )
    environment = {**os.environ, "HOME": str(here), "PATH": path}
    run = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, check=True)

    assert run.stdout == "dynamic\n", run.stderr
