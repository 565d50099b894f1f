"""Paths at the door: home folders, pipes, links, names that are not UTF-8 and names that look like markup."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner, Result

import jobs
from batchscore import Scorer, rerank_files, score_files
from batchscore.cli.main import app
from batchscore.errors import InputError, OutputError, RuntimeFailureError, UsageError
from batchscore.inspection import inspect_model
from batchscore.io.sink import open_sink
from batchscore.io.source import open_source
from batchscore.io.storage import local_path, target_path

pytestmark = pytest.mark.usefixtures("here")

Tiny = Callable[[str], str]
ROWS = jobs.random_rows(6)
NOT_UTF8 = os.fsdecode(b"caf\xe9")


def run(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == code, result.output
    return result


def score(tiny: Tiny, *arguments: str, code: int = 0) -> Result:
    return run("score", "--model", tiny("bert_ce"), "--dtype", "float32", *arguments, code=code)


def ids(path: str) -> list[str]:
    return [json.loads(line)["id"] for line in Path(path).read_text("utf-8").splitlines()]


EXPECTED = [row["id"] for row in ROWS]


# ---- the home folder


@pytest.fixture
def home(here: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder beside the working directory's files, with an input."""
    (here / "home").mkdir()
    monkeypatch.setenv("HOME", str(here / "home"))
    jobs.write_rows("home/in.jsonl", ROWS)
    return here / "home"


def test_every_path_of_the_command_line_may_begin_with_a_tilde(tiny: Tiny, home: Path) -> None:
    shutil.copytree(tiny("bert_ce"), home / "model")
    (home / "c.yaml").write_text("max_length: 24\n", "utf-8")
    model = ["--model", "~/model", "--tokenizer", "~/model", "--config", "~/c.yaml", "--dtype", "float32"]
    said = run("score", *model, "--in=~/in.jsonl", "--out=~/out.jsonl").stderr
    assert ("loading  ~/model\n" in said, "length   24 tokens (c.yaml)" in said) == (True, True)
    assert "score of" in run("status", "~/out.jsonl").stdout
    run("score", *model, "--in", "~/i*.jsonl", "--out", "~/parts/")
    run("merge", "~/parts", "--out", "~/merged.jsonl")
    assert ids("home/merged.jsonl") == ids("home/out.jsonl") == EXPECTED
    assert os.listdir() == ["home"]


def test_paths_in_python_may_begin_with_a_tilde(tiny: Tiny, home: Path) -> None:
    os.symlink(tiny("bert_ce"), home / "model")
    (home / "t.jinja").write_text("{{ query }} and {{ document }}", "utf-8")
    Scorer("~/model", tokenizer="~/model", chat_template="~/t.jinja").close()
    assert inspect_model("~/model", {"chat_template": "~/t.jinja"}, query="a", document="b").problems == []
    score_files("~/model", Path("~/in.jsonl"), Path("~/out.jsonl"), dtype="float32")
    assert ids("home/out.jsonl") == EXPECTED


def test_only_the_beginning_of_a_path_is_a_home_folder(home: Path) -> None:
    assert local_path("~/a") == f"{home}/a"
    assert [local_path(path) for path in ("./~/a", "a/~", "s3://~/a")] == ["./~/a", "a/~", "s3://~/a"]


# ---- what is no file


@pytest.fixture
def special(here: Path) -> dict[str, str]:
    """Paths by what they are."""
    os.mkfifo("pipe.jsonl")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket.jsonl")
    return {"pipe.jsonl": "a named pipe", "socket.jsonl": "a socket", "/dev/null": "a device"}


def test_a_pipe_a_socket_or_a_device_is_called_so(special: dict[str, str]) -> None:
    for path, kind in special.items():
        with pytest.raises(InputError) as caught:
            open_source([path])
        assert caught.value.message == f"{path} is {kind}, not a file: an input is read more than once"
        with pytest.raises(OutputError, match=f"^cannot write {path}: it is {kind}\nhint: "):
            open_sink(path)


def test_standard_input_and_process_substitution_are_called_so() -> None:
    with pytest.raises(InputError, match="^- is standard input, not a file"):
        open_source(["-"])
    reading, writing = os.pipe()
    try:
        with pytest.raises(InputError, match=f"^/dev/fd/{reading} is a named pipe"):
            open_source([f"/dev/fd/{reading}"])
    finally:
        os.close(reading)
        os.close(writing)


@pytest.mark.parametrize("path", ["in", "in/*", "in/*.jsonl"])
def test_a_pipe_among_the_files_of_a_folder_is_named_unless_nothing_would_read_it(path: str) -> None:
    os.mkdir("in")
    jobs.write_rows("in/a.jsonl", ROWS)
    os.mkfifo("in/b.jsonl")
    with pytest.raises(InputError, match="in/b.jsonl is a named pipe"):
        open_source([path])
    os.rename("in/b.jsonl", "in/b")
    assert open_source(["in"]).files == ["in/a.jsonl"]


# ---- names that look like markup


@pytest.mark.parametrize("name", [":100:", "[red]x[/red]", ":smile: [bold]", "[/]", "https:x [link=y]"])
def test_a_path_is_printed_as_it_is(tiny: Tiny, name: str) -> None:
    source, out = jobs.write_rows("in.jsonl", ROWS), f"{name.replace('/', '-')}.jsonl"
    said = score(tiny, "--in", source, "--out", out).stderr
    assert f"record   {out}.run.json\n" in said
    assert said.endswith(f"-> {out}\n")
    assert f"job      score of {source}" in run("status", out).stdout
    missing = score(tiny, "--in", f"{name}.nothing", "--out", "b.jsonl", code=4).stderr
    assert f"error: {name}.nothing: no such file or folder\n" in missing
    folder = score(tiny, "--in", source, "--out", f"no {name}/b.jsonl", code=8).stderr
    assert f"error: cannot write no {name}/b.jsonl: no folder no {name}" in folder
    assert f"job {name}" in run("status", f"job {name}", code=8).stderr
    assert name in run("inspect", f"no {name} model", code=4).stdout


def test_a_folder_to_make_is_quoted_for_the_shell() -> None:
    with pytest.raises(OutputError, match=r"hint: mkdir -p 'my folder'"):
        open_sink("my folder/out.jsonl")


# ---- names that are not UTF-8


def test_inputs_with_names_that_are_not_utf_8_are_read(tiny: Tiny) -> None:
    os.mkdir(NOT_UTF8)
    os.rename(jobs.write_rows("a.parquet", ROWS[:3]), f"{NOT_UTF8}/a.parquet")
    Path(f"{NOT_UTF8}/{NOT_UTF8}.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in ROWS[3:]) + '{"id": "bad"}\n', "utf-8"
    )
    said = score(tiny, "--in", NOT_UTF8, "--out", "parts/", "--unit-rows", "2", "--keep-columns", "id", code=7).stderr
    assert "2 files, 7 rows" in said
    run("merge", "parts", "--out", "out.jsonl")
    assert ids("out.jsonl") == EXPECTED
    (fault,) = map(json.loads, Path("parts/_errors.jsonl").read_text("utf-8").splitlines())
    assert (fault["file"], fault["line"]) == (f"{NOT_UTF8}/{NOT_UTF8}.jsonl", 4)
    state = json.loads(run("status", "parts", "--json").stdout)
    assert state["inputs"] == [f"{NOT_UTF8}/a.parquet", f"{NOT_UTF8}/{NOT_UTF8}.jsonl"]
    assert "caf\\udce9/a.parquet" in run("status", "parts").stdout
    again = score(tiny, "--in", NOT_UTF8, "--out", "parts/", "--unit-rows", "2", "--keep-columns", "id", code=7)
    assert "0 rows in " in again.stderr
    missing = score(tiny, "--in", f"{NOT_UTF8}.jsonl", "--out", "b.jsonl", code=4).stderr
    assert "error: caf\\udce9.jsonl: no such file" in missing


@pytest.mark.parametrize("out", [f"{NOT_UTF8}.jsonl", f"{NOT_UTF8}/", f"{NOT_UTF8}/a.parquet", "link.jsonl"])
def test_outputs_with_names_that_are_not_utf_8_are_refused_at_the_door(tiny: Tiny, out: str) -> None:
    os.symlink(f"{NOT_UTF8}.jsonl", "link.jsonl")
    said = score(tiny, "--in", jobs.write_rows("in.jsonl", ROWS), "--out", out, code=8).stderr
    assert "cannot be an output: its name is not UTF-8\nhint: choose another name" in said
    assert sorted(os.listdir()) == ["in.jsonl", "link.jsonl"]


def test_a_url_and_an_option_that_are_not_utf_8_are_refused(tiny: Tiny) -> None:
    with pytest.raises(UsageError, match="is not UTF-8"):
        open_source([f"memory://{NOT_UTF8}/a.jsonl"])
    source = jobs.write_rows("in.jsonl", ROWS)
    said = score(tiny, "--in", source, "--out", "o.jsonl", "--score-column", NOT_UTF8, code=2).stderr
    assert "score_column 'caf\\udce9' is not UTF-8" in said


# ---- outputs that are links


@pytest.mark.parametrize("exists", [True, False])
def test_a_linked_output_is_written_where_the_link_leads(tiny: Tiny, exists: bool) -> None:
    source = jobs.write_rows("in.jsonl", ROWS)
    os.mkdir("real")
    os.symlink("real/scores.jsonl", "near.jsonl")
    os.symlink("near.jsonl", "out.jsonl")  # a link to a link
    if exists:
        Path("real/scores.jsonl").write_text("old", "utf-8")
    said = score(tiny, "--in", source, "--out", "out.jsonl", "--overwrite").stderr
    assert said.endswith("/real/scores.jsonl\n")
    assert (os.readlink("out.jsonl"), os.readlink("near.jsonl")) == ("near.jsonl", "real/scores.jsonl")
    assert ids("out.jsonl") == EXPECTED
    assert sorted(os.listdir()) == ["in.jsonl", "near.jsonl", "out.jsonl", "real"]
    assert sorted(os.listdir("real")) == ["scores.jsonl", "scores.jsonl.run.json"]
    for path in ("out.jsonl", "real/scores.jsonl"):  # one job, by whichever name
        assert "complete" in run("status", path).stdout
        assert "is complete: nothing to do" in score(tiny, "--in", source, "--out", path).stderr


def test_an_interrupted_run_resumes_through_its_link(tiny: Tiny) -> None:
    source = jobs.write_rows("in.jsonl", ROWS)
    os.mkdir("real")
    os.symlink("real/scores.jsonl", "out.jsonl")
    half = ["--in", source, "--unit-rows", "1", "--shard"]
    score(tiny, *half, "0/2", "--out", "out.jsonl")
    assert os.listdir("real") != []
    assert "3 of 6 done" in run("status", "out.jsonl").stdout
    score(tiny, *half, "1/2", "--out", "real/scores.jsonl")
    run("merge", "out.jsonl", "--out", "out.jsonl")
    assert (ids("real/scores.jsonl"), os.path.islink("out.jsonl")) == (EXPECTED, True)


def test_a_linked_folder_of_parts_stays_a_link(tiny: Tiny) -> None:
    source = jobs.write_rows("in.jsonl", ROWS)
    os.mkdir("big")
    os.symlink("big", "parts")
    os.symlink("big/all.parquet", "parts.parquet")
    score(tiny, "--in", source, "--out", "parts/")
    score(tiny, "--in", source, "--out", "parts", "--overwrite", "--limit", "4", "--merge")
    assert (os.path.islink("parts"), os.path.islink("parts.parquet")) == (True, True)
    assert pq.read_table("big/all.parquet")["id"].to_pylist() == EXPECTED[:4]


@pytest.mark.parametrize(
    ("out", "said"),
    [
        ("circle.jsonl", "circle.jsonl cannot be an output: its symbolic links lead in a circle"),
        ("circle.jsonl/", "cannot write into circle.jsonl: it is a link that leads to no folder"),
        ("gone/", "cannot write into gone: it is a link that leads to no folder"),
        ("far.jsonl", "no folder "),
        ("input.jsonl", "is one of the inputs"),
    ],
)
def test_a_link_that_leads_to_no_output_is_refused(tiny: Tiny, out: str, said: str) -> None:
    source = jobs.write_rows("in.jsonl", ROWS)
    links = {"a": "circle.jsonl", "circle.jsonl": "a", "gone": "nowhere", "far.jsonl": "nowhere/x.jsonl"}
    for link, target in {**links, "input.jsonl": source}.items():
        os.symlink(target, link)
    code = 2 if out == "input.jsonl" else 8
    assert said in score(tiny, "--in", source, "--out", out, "--overwrite", code=code).stderr
    assert ids(source) == EXPECTED


def test_a_link_to_the_output_is_no_input(tiny: Tiny) -> None:
    for folder in ("in", "out"):
        os.mkdir(folder)
    jobs.write_rows("in/a.jsonl", ROWS)
    os.symlink("../out/scores.jsonl", "in/scores.jsonl")
    for _ in range(2):
        score(tiny, "--in", "in", "--out", "in/scores.jsonl")
    assert ids("out/scores.jsonl") == EXPECTED


def test_urls_and_plain_paths_are_their_own_targets() -> None:
    Path("a.jsonl").touch()
    assert [target_path(path) for path in ("a.jsonl", "b.jsonl", "c/", "s3://b/a")] == [
        "a.jsonl", "b.jsonl", "c/", "s3://b/a"
    ]  # fmt: skip


# ---- folders that are columns, in a job


def hive_input() -> str:
    for lang, rows in (("en", ROWS[:3]), ("fr", ROWS[3:])):
        os.makedirs(f"in/lang={lang}")
        jobs.write_rows(f"in/lang={lang}/a.parquet", rows)
    return "in"


def test_columns_of_folders_are_carried_and_part_of_the_job(tiny: Tiny) -> None:
    source = hive_input()
    score(tiny, "--in", source, "--out", "parts/", "--keep-columns", "id,lang")
    table = pq.read_table("parts/part-00000.parquet")
    assert table["lang"].to_pylist() == ["en"] * 3 + ["fr"] * 3
    said = score(tiny, "--in", source, "--out", "parts/", "--keep-columns", "id,lang", "--no-hive", code=8).stderr
    assert 'inputs[0].hive was {"lang": "en"} and is null' in said
    said = score(tiny, "--in", source, "--out", "more/", "--keep-columns", "id,lang", "--no-hive", code=5).stderr
    assert "column 'lang' not found" in said


def test_a_column_of_folders_identifies_queries(tiny: Tiny) -> None:
    rerank_files(
        tiny("bert_ce"), hive_input(), "out.jsonl", query_id_column="lang", document_id_column="id", top_n=1,
        dtype="float32",
    )  # fmt: skip
    ranked = [json.loads(line) for line in Path("out.jsonl").read_text("utf-8").splitlines()]
    assert [row["lang"] for row in ranked] == ["en", "fr"]


# ---- hints


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"query_column": "querie"}, "hint: pass --query-column query (in Python: query_column)"),
        ({"score_column": "id"}, "leave the column out with --keep-columns (in Python: score_column, keep_columns)"),
        ({"max_errors": "x"}, "--max-errors 'x' is not a number of rows or a percentage\nhint: for example 100 or 1%"),
        ({"document_colum": "x"}, "options are the flags of the command line; did you mean document_column?"),
        ({"out": "out.txt"}, "with / at its end (in Python: out_format, out)"),
    ],
)
def test_in_python_a_hint_names_the_keywords(tiny: Tiny, options: dict[str, Any], text: str) -> None:
    source = jobs.write_rows("in.jsonl", ROWS)
    with pytest.raises((InputError, UsageError)) as caught:
        score_files(tiny("bert_ce"), source, **{"out": "out.jsonl", **options})
    assert str(caught.value).endswith(text)
    assert "in Python" not in f"{caught.value.message}{caught.value.hint}"  # as the command line shows them


def test_a_hint_of_a_scorer_names_the_keywords(tiny: Tiny) -> None:
    options: Any = {"max_length": 12, "truncation": "error", "dtype": "float32"}
    said = r"hint: pass --truncation document-first, or raise the limit \(in Python: truncation\)$"
    with Scorer(tiny("bert_ce"), **options) as scorer, pytest.raises(InputError, match=said):
        scorer.score("a", "word " * 40)


def test_a_clash_with_a_column_of_the_details_is_not_blamed_on_the_score(tiny: Tiny) -> None:
    source = jobs.write_rows("in.jsonl", [{**row, "truncated": 1} for row in ROWS])
    said = score(tiny, "--in", source, "--out", "o.jsonl", "--details", code=2).stderr
    assert "hint: drop --details, or leave the column out with --keep-columns" in said


def test_a_shard_that_may_not_overwrite_is_told_all_that_is_in_the_way(tiny: Tiny) -> None:
    source = jobs.write_rows("in.jsonl", ROWS)
    said = score(tiny, "--in", source, "--out", "o.jsonl", "--overwrite", "--shard", "0/2", code=2).stderr
    assert "hint: drop it, and remove .o.jsonl.parts and o.jsonl before the shards start" in said


def test_a_folder_without_permission_is_not_a_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(RuntimeFailureError, match="get the permission to write there"), open_sink("o.jsonl") as sink:
        sink.write(pa.table({"a": [1]}))
