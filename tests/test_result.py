"""What is told of a run when it is over: --json, --metrics-file and --log-format json."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

import jobs
from batchscore.cli.main import app
from batchscore.cli.metrics import METRICS

pytestmark = pytest.mark.usefixtures("here")

Tiny = Callable[[str], str]
KEYS = ["status", "exit_code", "command", "version", "started", "finished", "end", "counts", "outputs", "error"]
ROWS = jobs.random_rows(12)
BAD = [*ROWS, {"id": "bad", "query": None, "document": "x"}]


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def envelope(*arguments: str) -> dict[str, Any]:
    """That of a run, which has said nothing else on stdout."""
    result = invoke(*arguments, "--json")
    (line,) = result.stdout.splitlines()
    told: dict[str, Any] = json.loads(line)
    assert list(told) == KEYS
    assert told["exit_code"] == result.exit_code
    return told


def call(tiny: Tiny, *options: str, rows: list[dict[str, Any]] = ROWS, name: str = "bert_mean") -> list[str]:
    jobs.write_rows("pairs.jsonl", rows)
    files = ["--in", "pairs.jsonl", "--out", "out.jsonl"]
    return ["score", "--model", tiny(name), *files, "--dtype", "float32", *options]


def samples(path: str = "night.prom") -> dict[str, float]:
    """Metrics of a file as Prometheus reads them, by the stage, or by measure and run, where they have these labels."""
    parser = pytest.importorskip("prometheus_client.parser")
    found = {}
    for family in parser.text_string_to_metric_families(Path(path).read_text("utf-8")):
        assert family.type == "gauge"
        assert family.documentation
        for sample in family.samples:
            assert sample.labels["name"] == Path(path).stem
            more = [sample.labels[label] for label in ("stage", "measure", "run") if label in sample.labels]
            found[" ".join(more) or sample.name.removeprefix("batchscore_")] = sample.value
    return found


# ---- the envelope


def test_a_run_that_scores_everything(tiny: Tiny) -> None:
    told = envelope(*call(tiny))

    assert (told["status"], told["exit_code"], told["command"], told["end"]) == ("ok", 0, "score", "merged")
    assert told["outputs"] == {"output": "out.jsonl", "errors": None, "record": "out.jsonl.run.json"}
    assert told["counts"] == json.loads(Path("out.jsonl.run.json").read_text("utf-8"))["counts"]
    assert told["counts"]["rows"] == len(ROWS)
    assert told["error"] is None
    assert told["started"] <= told["finished"]


def test_a_run_that_has_nothing_to_do(tiny: Tiny) -> None:
    again = call(tiny)
    invoke(*again)
    told = envelope(*again)

    assert (told["status"], told["end"], told["counts"]["rows"]) == ("ok", "found", len(ROWS))


def test_a_run_with_bad_rows(tiny: Tiny) -> None:
    told = envelope(*call(tiny, rows=BAD))

    assert (told["status"], told["exit_code"], told["error"]) == ("bad-rows", 7, None)
    assert told["outputs"]["errors"] == "out.jsonl.errors.jsonl"
    assert told["counts"]["faulty"] == 1


def test_a_run_that_is_stopped(tiny: Tiny) -> None:
    told = envelope(*call(tiny, "--max-seconds", "0"))

    assert (told["status"], told["exit_code"], told["end"]) == ("stopped", 75, None)
    assert told["error"]["message"].startswith("stopped by --max-seconds")
    assert told["error"]["hint"] == "run the same command again to resume"


def test_a_run_that_fails_says_how_far_it_came(tiny: Tiny) -> None:
    options = ["--max-errors", "0", "--unit-rows", "12"]
    told = envelope(*call(tiny, *options, rows=BAD))

    assert (told["status"], told["exit_code"]) == ("failed", 6)
    assert told["error"]["message"] == "1 of 13 rows are bad, more than --max-errors 0"
    assert told["counts"]["rows"] >= len(ROWS)
    assert list(told["counts"]["seconds"]) == ["total", "read", "tokenize", "forward", "write"]
    assert told["outputs"] == {"output": None, "errors": None, "record": None}


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--unit-rows", "many"], 2, "Invalid value for '--unit-rows'"),
        (["--no-such-option"], 2, "No such option"),
        (["--job", "absent.toml"], 4, "--job absent.toml: no such file"),
        (["--document-column", "text"], 5, "column 'text' not found in pairs.jsonl"),
        (["--shard", "3/2"], 2, "--shard"),
        (["--out", "-"], 2, "--json and --out - both write to standard output"),
        (["--metrics-file", "night.txt"], 2, "--metrics-file night.txt: the collector reads files that end in .prom"),
        (["--metrics-file", "absent/night.prom"], 4, "--metrics-file absent/night.prom: no such folder"),
    ],
)
def test_a_run_that_cannot_begin(tiny: Tiny, options: list[str], code: int, message: str) -> None:
    told = envelope(*call(tiny, *options))

    assert (told["status"], told["exit_code"], told["counts"]) == ("failed", code, {})
    assert message in told["error"]["message"]
    assert told["error"]["hint"]
    assert not list(Path().glob("*night*"))


def test_a_call_without_what_it_needs() -> None:
    told = envelope("rerank", "--model", "m")

    assert (told["command"], told["exit_code"]) == ("rerank", 2)
    assert "Missing options '--in', '--out'." in told["error"]["message"]


def test_a_bug_has_an_envelope_too(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: Any, **options: Any) -> None:
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr("batchscore.jobs.files.score_files", broken)
    told = envelope(*call(tiny))
    assert (told["exit_code"], told["error"]) == (1, {"message": "ZeroDivisionError: by zero", "hint": None})

    result = invoke(*call(tiny), "--log-format", "json")
    last = json.loads(result.stderr.splitlines()[-1])
    assert (result.exit_code, last["event"], last["level"]) == (1, "error", "error")
    assert "in broken" in last["traceback"]


@pytest.mark.parametrize("moment", ["while it loads", "while it scores"])
def test_a_signal_has_an_envelope_and_metrics(tiny: Tiny, moment: str) -> None:
    rows = jobs.random_rows(12 if moment == "while it loads" else 20_000)
    options = ["--json", "--metrics-file", "night.prom", "--log-format", "json", "--unit-rows", "200"]
    command = [sys.executable, "-m", "batchscore", *call(tiny, *options, rows=rows)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert run.stderr is not None
    awaited = "loading" if moment == "while it loads" else "start"
    while json.loads(run.stderr.readline())["event"] != awaited:
        pass
    if moment == "while it scores":
        jobs.wait_until(lambda: any(Path().glob(".out.jsonl*/part-*")))
    run.send_signal(signal.SIGTERM)
    told = json.loads(run.communicate()[0])

    assert run.returncode == told["exit_code"] == 75
    assert told["status"] == "stopped"
    assert told["error"]["message"].startswith("stopped by SIGTERM")
    assert samples()["run_exit_code"] == 75
    if moment == "while it scores":
        assert samples()["run_rows"] > 0


# ---- metrics


def test_metrics_of_a_run(tiny: Tiny) -> None:
    began = time.time()
    result = invoke(*call(tiny, "--metrics-file", "night.prom", rows=BAD))
    record = json.loads(Path("out.jsonl.run.json").read_text("utf-8"))["counts"]
    metrics = samples()

    assert result.exit_code == metrics["run_exit_code"] == 7
    named = {name.removeprefix("batchscore_") for name in METRICS if not name.startswith("batchscore_eval")}
    assert set(metrics) == named - {"run_from_store", "run_stage_seconds"} | {"read", "tokenize", "forward", "write"}
    assert (metrics["run_rows"], metrics["run_bad_rows"]) == (len(BAD), 1)
    assert metrics["run_tokens"] == record["tokens_forwarded"]
    assert metrics["forward"] == pytest.approx(record["seconds"]["forward"], abs=0.01)
    assert metrics["run_peak_memory_bytes"] == pytest.approx(record["peak_rss_mb"] * 2**20, rel=0.1)
    assert began <= metrics["run_start_timestamp_seconds"] <= metrics["run_end_timestamp_seconds"] <= time.time()
    assert metrics["last_success_timestamp_seconds"] == metrics["run_end_timestamp_seconds"]
    assert [path.name for path in Path().glob("*night*")] + [path.name for path in Path().glob(".*night*")] == [
        "night.prom"
    ]


def test_metrics_of_a_failure_keep_when_the_last_success_was(tiny: Tiny) -> None:
    invoke(*call(tiny, "--metrics-file", "night.prom"))
    before = samples()
    for options, code in ((["--document-column", "text"], 5), (["--unit-rows", "many"], 2)):
        assert invoke(*call(tiny, *options, "--metrics-file", "night.prom")).exit_code == code
        after = samples()
        assert after["run_exit_code"] == code
        assert after["run_end_timestamp_seconds"] > before["run_end_timestamp_seconds"]
        assert after["last_success_timestamp_seconds"] == before["last_success_timestamp_seconds"]
        assert "run_rows" not in after


def test_metrics_of_a_first_failure_know_of_no_success(tiny: Tiny) -> None:
    invoke(*call(tiny, "--max-seconds", "0", "--metrics-file", "night.prom"))

    assert samples()["run_exit_code"] == 75
    assert "last_success_timestamp_seconds" not in samples()


def test_metrics_say_what_came_from_a_store(tiny: Tiny) -> None:
    for _ in range(2):
        invoke(*call(tiny, "--store", "store", "--metrics-file", "night.prom", "--overwrite"))
    metrics = samples()

    assert metrics["run_tokens"] == 0
    assert metrics["run_from_store"] > len(ROWS)


def test_labels_may_hold_anything(tiny: Tiny) -> None:
    name = 'a "b" \\ c.prom'
    invoke(*call(tiny, "--max-seconds", "0", "--metrics-file", name))

    assert samples(name)["run_exit_code"] == 75


def test_an_evaluation_has_metrics_and_json_of_its_own() -> None:
    judged = [{"query-id": "q", "corpus-id": "a", "score": 1}, {"query-id": "q", "corpus-id": "b", "score": 0}]
    jobs.write_rows("qrels.jsonl", judged)
    for name, scores in (("good", (2.0, 1.0)), ("bad", (1.0, 2.0))):
        ids = zip("ab", scores, strict=True)
        rows = [{"query_id": "q", "document_id": document, "relevance_score": score} for document, score in ids]
        jobs.write_rows(f"{name}.jsonl", rows)
    evaluate = ["eval", "--qrels", "qrels.jsonl", "--metrics", "RR@10", "--metrics-file", "night.prom", "--json"]

    assert invoke(*evaluate, "good.jsonl", "bad.jsonl").exit_code == 0
    metrics = samples()
    assert (metrics["RR@10 1"], metrics["RR@10 2"], metrics["run_exit_code"]) == (1.0, 0.5, 0)
    assert invoke(*evaluate, "bad.jsonl", "--baseline", "good.jsonl", "--max-drop", "0.1").exit_code == 9
    after = samples()
    assert (after["RR@10 baseline"], after["RR@10 1"], after["run_exit_code"]) == (1.0, 0.5, 9)
    assert after["last_success_timestamp_seconds"] == metrics["last_success_timestamp_seconds"]
    wrong = invoke(*evaluate, "good.jsonl", "--max-drop", "much")
    assert (wrong.exit_code, wrong.stdout) == (2, "")
    assert samples()["run_exit_code"] == 2


# ---- logs


def test_each_line_of_the_log_has_a_time_a_level_and_an_event(tiny: Tiny) -> None:
    result = invoke(*call(tiny, "--log-format", "json", rows=BAD))
    events = [json.loads(line) for line in result.stderr.splitlines()]

    assert [list(event)[:3] for event in events] == [["ts", "level", "event"]] * len(events)
    assert [(event["event"], event["level"]) for event in events] == [
        ("loading", "info"),
        ("start", "info"),
        ("loading", "info"),
        ("finish", "warning"),
    ]
    assert sorted(event["ts"] for event in events) == [event["ts"] for event in events]


@pytest.mark.parametrize("options", [["--unit-rows", "many"], ["--no-such-option"], ["--job", "absent.toml"]])
def test_what_is_wrong_with_a_call_is_a_line_of_the_log(tiny: Tiny, options: list[str]) -> None:
    result = invoke(*call(tiny, "--log-format", "json", *options))
    (line,) = result.stderr.splitlines()
    event = json.loads(line)

    assert (event["event"], event["level"], event["exit_code"]) == ("error", "error", result.exit_code)


# ---- docs/cron.md


def test_the_fields_and_metrics_that_the_docs_name_are_those_there_are() -> None:
    page = (Path(__file__).parent.parent / "docs" / "cron.md").read_text("utf-8")
    (shown,) = re.findall(r"```json\n(.*?)```", page, re.DOTALL)
    cells = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", page, re.MULTILINE)

    assert list(json.loads(shown)) == KEYS
    assert [name for cell in cells for name in re.findall(r"\w+", cell) if name in KEYS] == KEYS
    assert set(re.findall(r"batchscore_\w+", page)) - {"batchscore_nights"} == set(METRICS)
