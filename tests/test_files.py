"""`score_files` and `rerank_files`: what the commands do, as calls."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import fields
from datetime import date
from inspect import signature
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_type_hints

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

import jobs
from batchscore import rerank_files, score_files
from batchscore.cli import options as o
from batchscore.cli.encode import encode
from batchscore.cli.main import app
from batchscore.cli.rerank import rerank
from batchscore.cli.score import score
from batchscore.errors import InputError, OutputError, StoppedError, UsageError
from batchscore.jobs.commands import EncodeCommand, RerankCommand, ScoreCommand
from batchscore.jobs.events import Outcome, Silent
from batchscore.jobs.files import EncodeOptions, RerankOptions, ScoreOptions
from batchscore.jobs.meter import Meter
from batchscore.jobs.options import JoinOptions, RunOptions
from batchscore.jobs.run import PreparedJob, prepare
from batchscore.stop import Stop

pytestmark = pytest.mark.usefixtures("here")

Tiny = Callable[[str], str]
ROWS = jobs.random_rows(200)


def command(*arguments: str) -> None:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    ("function", "name", "flags", "options"),
    [
        (score_files, "score", ["--keep-columns", "id", "--details"], {"keep_columns": "id", "details": True}),
        (score_files, "score", ["--keep-columns", "none"], {"keep_columns": ()}),
        (rerank_files, "rerank", ["--top-n", "3", "--return-documents"], {"top_n": 3, "return_documents": True}),
    ],
    ids=["score", "scores alone", "rerank"],
)  # fmt: skip
def test_a_call_writes_what_the_command_writes(
    tiny: Tiny, function: Callable[..., Outcome], name: str, flags: list[str], options: dict[str, Any]
) -> None:
    jobs.write_rows("in.jsonl", ROWS)
    command(
        name, "--model", tiny("bert_ce"), "--in", "in.jsonl", "--out", "command.jsonl", "--window-rows", "64", *flags
    )
    outcome = function(tiny("bert_ce"), Path("in.jsonl"), "call.jsonl", unit_rows=64, **options)

    assert Path("call.jsonl").read_bytes() == Path("command.jsonl").read_bytes()
    assert (outcome.end, outcome.exit_code, outcome.output) == ("merged", 0, "call.jsonl")
    assert outcome.counts["rows"] == 200
    assert function(tiny("bert_ce"), ["in.jsonl"], "command.jsonl", unit_rows=64, **options).end == "found"


@pytest.mark.slow
def test_a_call_resumes_a_command_that_was_killed(tiny: Tiny) -> None:
    rows = jobs.random_rows(6_000)
    jobs.write_rows("in.parquet", rows)
    options = ["--in", "in.parquet", "--out", "out.parquet", "--window-rows", "200"]
    run = jobs.start("score", "--model", tiny("bert_ce"), *options)
    jobs.wait_until(lambda: len(jobs.parts(".out.parquet.parts")) > 3)
    run.kill()
    run.communicate()
    done = 200 * len(jobs.parts(".out.parquet.parts"))
    assert 0 < done < 6_000
    outcome = score_files(tiny("bert_ce"), "in.parquet", "out.parquet", window_rows=200)

    assert outcome.done["rows"] == 6_000 - done
    assert outcome.counts["rows"] == 6_000
    assert pq.read_table("out.parquet")["id"].to_pylist() == [row["id"] for row in rows]


def test_what_ends_a_command_with_an_exit_code_ends_a_call_with_its_exception(tiny: Tiny) -> None:
    jobs.write_rows("in.jsonl", ROWS)
    model = tiny("bert_ce")
    with pytest.raises(InputError, match="column 'text' not found in in.jsonl"):
        score_files(model, "in.jsonl", "out.jsonl", document_column="text")
    with pytest.raises(StoppedError, match="stopped by --max-seconds"):
        score_files(model, "in.jsonl", "out.jsonl", max_seconds=0)
    with pytest.raises(UsageError, match="unknown option 'window'"):
        score_files(model, "in.jsonl", "out.jsonl", window=7)  # type: ignore[call-arg]
    assert not Path("out.jsonl").exists()
    score_files(model, "in.jsonl", "out.jsonl")
    with pytest.raises(OutputError, match="options.score_column was"):
        score_files(model, "in.jsonl", "out.jsonl", score_column="s")


def test_bad_rows_are_in_the_outcome_and_the_limit_is_an_exception(tiny: Tiny) -> None:
    jobs.write_rows("in.jsonl", [*ROWS[:10], {**ROWS[10], "document": None}])
    outcome = score_files(tiny("bert_ce"), "in.jsonl", "out.jsonl", max_errors=1)

    assert (outcome.bad_rows, outcome.exit_code, outcome.counts["scored"]) == (1, 7, 10)
    assert outcome.errors is not None
    assert Path(outcome.errors).exists()
    again = score_files(tiny("bert_ce"), "in.jsonl", "out.jsonl")
    assert (again.end, again.bad_rows) == ("found", 1)


@pytest.mark.parametrize(
    ("run", "options"),
    [(score, ScoreOptions), (rerank, RerankOptions), (encode, EncodeOptions)],
    ids=["score", "rerank", "encode"],
)
def test_every_flag_is_an_option(run: Callable[..., None], options: type) -> None:
    of_the_command_line = {"quiet", "log_format", "as_json", "metrics_file", "job", "print_config", "report", "figure"}
    flags = set(signature(run).parameters) - {"model", "in_", "inputs", "out"} - of_the_command_line
    flags -= {"dry_run"}  # from Python that is `plan_files`

    assert flags - get_type_hints(options).keys() == set()


@pytest.mark.parametrize(
    ("flags", "kind", "differing"),
    [
        (o.Run, RunOptions, ["inputs"]),
        (o.Rows, RunOptions, []),
        (o.Join, JoinOptions, []),
        (o.Score, ScoreCommand, ["keep_columns"]),
        (o.Rerank, RerankCommand, ["keep_columns", "keep_document_fields"]),
        (o.Encode, EncodeCommand, ["keep_columns"]),
    ],
    ids=["run", "rows", "join", "score", "rerank", "encode"],
)
def test_flags_have_the_defaults_of_the_library(flags: Any, kind: Any, differing: list[str]) -> None:
    defaults = {field.name: field.default for field in fields(kind)}

    assert [
        field.name for field in fields(flags) if field.default != defaults.get(field.name, field.default)
    ] == differing


class Recorder(Silent):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def loading(self, model: str, stage: str) -> None:
        self.names.append(f"loading {stage}")

    def started(self, lines: Any, description: Any) -> None:
        self.names.append(f"started {description['command']}")

    def progress(self, meter: Meter) -> None:
        self.names.append("progress")

    def finished(self, outcome: Outcome) -> None:
        self.names.append(outcome.end)


def test_a_call_is_stopped_from_outside_and_the_next_one_resumes(tiny: Tiny) -> None:
    jobs.write_rows("in.jsonl", ROWS)
    stop = Stop()

    class Stopping(Silent):
        def progress(self, meter: Meter) -> None:
            stop.request("a test")

    with pytest.raises(StoppedError, match="^stopped by a test; 0 of 1 units are done"):
        score_files(tiny("bert_ce"), "in.jsonl", "out.jsonl", batch_tokens=256, stop=stop, events=Stopping())
    assert score_files(tiny("bert_ce"), "in.jsonl", "out.jsonl").end == "merged"


def test_events_come_in_their_order(tiny: Tiny) -> None:
    jobs.write_rows("in.jsonl", ROWS)
    events = Recorder()
    score_files(tiny("bert_ce"), "in.jsonl", "out.jsonl", events=events)

    assert list(dict.fromkeys(events.names)) == [
        "loading files", "started score", "loading weights", "progress", "merged"
    ]  # fmt: skip


def test_preparing_writes_nothing_and_a_prepared_job_can_run(tiny: Tiny) -> None:
    jobs.write_rows("in.jsonl", ROWS)
    job = prepare(ScoreCommand(), {"model": tiny("bert_ce")}, RunOptions(["in.jsonl"], "out.jsonl"))
    assert (os.listdir(), len(job.divide().units)) == (["in.jsonl"], 1)

    assert job.execute().end == "merged"
    assert len(Path("out.jsonl").read_text().splitlines()) == 200


def test_workers_open_the_commit_that_the_run_opened(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """A branch of the hub may move on while a long job starts its workers."""
    commit = "models--org--name/snapshots/0123abcd"
    shutil.copytree(tiny("bert_ce"), commit)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: os.path.abspath(commit))
    jobs.write_rows("in.jsonl", ROWS)
    options = RunOptions(["in.jsonl"], "out.jsonl")

    assert prepare(ScoreCommand(), {"model": "org/name"}, options).for_worker().scorer["revision"] == "0123abcd"
    assert "revision" not in prepare(ScoreCommand(), {"model": commit}, options).for_worker().scorer


@pytest.mark.parametrize("out", ["parts/", "out.parquet"])
def test_a_job_resumed_after_midnight_keeps_the_day_of_its_prompts(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, out: str
) -> None:
    """Only where a template tells the date; half of a job must not read another prompt than the rest."""
    jobs.write_rows("in.jsonl", ROWS)
    template = "{{ strftime_now('%d %m %Y') }} {{ query }} {{ document }}"

    def on(day: int, explicit: str | None = None, **options: Any) -> PreparedJob:
        today = SimpleNamespace(today=lambda: date(2026, 1, day))
        monkeypatch.setattr("batchscore.models.resolve.text_fields.date", today)
        scorer = {"model": tiny("bert_ce"), "chat_template": template, "window_rows": 64, "template_date": explicit}
        return prepare(ScoreCommand(), scorer, RunOptions(["in.jsonl"], out, **options))

    assert on(30).execute().end in ("merged", "parts")
    first = jobs.contents("parts") if out == "parts/" else {}
    if first:
        Path("parts/part-00001.parquet").unlink()
    resumed = on(31)

    assert resumed.plan.setup.spec.template_date == "2026-01-30"
    assert resumed.for_worker().scorer["template_date"] == "2026-01-30"
    assert resumed.execute().end == ("parts" if first else "found")
    assert not first or jobs.contents("parts") == first
    assert on(31, overwrite=True).plan.setup.spec.template_date == "2026-01-31"
    with pytest.raises(OutputError, match='template_date was "2026-01-30" and is "2026-01-29"'):
        on(31, "2026-01-29").execute()
