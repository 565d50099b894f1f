"""What `score` and `rerank` have in common: doors first, then the model, then the record.

Errors become one line, a hint and the exit code of errors.py.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from threading import Event
from time import perf_counter
from typing import Any, NoReturn

import typer

from batchscore.api import Scorer
from batchscore.cli.display import Display
from batchscore.cli.options import Files
from batchscore.errors import BatchscoreError, UsageError
from batchscore.io.sink import Sink, open_sink
from batchscore.io.source import Source, open_source
from batchscore.jobs import RerankJob, ScoreJob
from batchscore.pipeline import Meter
from batchscore.plan import Plan

Pipeline = Callable[[Callable[[], Scorer], Source, Sink, Any, Meter], None]


def run(command: str, pipeline: Pipeline, job: ScoreJob | RerankJob, scorer: Mapping[str, Any], files: Files) -> None:
    """Run a command; ends the program with the exit code of errors.py if it fails."""
    signal.signal(signal.SIGTERM, _terminate)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where a shell has it ignored
        signal.signal(signal.SIGINT, _interrupt)
    display = Display(quiet=files.quiet, log_format=files.log_format)
    try:
        _run(command, pipeline, job, scorer, files, display)
    except BatchscoreError as error:
        display.error(error.message, error.hint, error.exit_code)
        raise typer.Exit(error.exit_code) from error
    except KeyboardInterrupt:
        display.error("interrupted; no output was written", None, 130)
        raise typer.Exit(130) from None
    finally:
        display.stop()


def _run(
    command: str,
    pipeline: Pipeline,
    job: ScoreJob | RerankJob,
    options: Mapping[str, Any],
    files: Files,
    display: Display,
) -> None:
    source = open_source(files.inputs, split=files.split)
    _refuse_overwriting_input(source, files.out)
    plans: list[Plan] = []

    def load() -> Scorer:
        scorer = Scorer(**options)
        plans.append(
            Plan(command, scorer, source.fingerprint(), source.num_rows, files.out, {**options, **asdict(job)})
        )
        display.start(plans[0].lines(), plans[0].describe())
        meter.started = perf_counter()
        return scorer

    def update(meter: Meter) -> None:
        if _interrupted.is_set():
            raise KeyboardInterrupt
        display.update(meter)

    meter = Meter(on_change=update)
    with open_sink(files.out) as sink:
        pipeline(load, source, sink, job, meter)
    plan = plans[0]
    plan.scorer.close()
    counts = _counts(meter)
    record = plan.write_record(counts)
    display.finish(_summary(plan, counts, record), counts)


_interrupted = Event()


def _interrupt(*_: object) -> NoReturn:
    # Python drops an exception that a signal raises inside of a callback; the next pack asks again
    _interrupted.set()
    raise KeyboardInterrupt


def _terminate(*_: object) -> NoReturn:
    # as an exception, so that the temporary output is removed on the way out
    sys.exit(128 + signal.SIGTERM)


def _refuse_overwriting_input(source: Source, out: str) -> None:
    for file in source.fingerprint():
        name = str(file["name"])
        if os.path.exists(out) and os.path.exists(name) and os.path.samefile(name, out):
            raise UsageError(f"--out {out} is one of the inputs", hint="choose another output")


def _counts(meter: Meter) -> dict[str, Any]:
    seconds = perf_counter() - meter.started
    return {
        "rows": meter.rows,
        "texts": meter.texts,
        "tokens": meter.tokens,
        "cut": dict(meter.cut),
        "seconds": {"total": round(seconds, 3), **{stage: round(spent, 3) for stage, spent in meter.seconds.items()}},
        "peak_rss_mb": round(
            resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "linux" else 1024**2)
        ),
    }


def _summary(plan: Plan, counts: Mapping[str, Any], record: str) -> list[str]:
    seconds, rows, placement = counts["seconds"], counts["rows"], plan.scorer.placement
    stages = ", ".join(f"{stage} {spent:.1f}" for stage, spent in seconds.items() if stage != "total")
    cut = ", ".join(f"{name} {number:,}" for name, number in counts["cut"].items() if number) or "none"
    total = max(seconds["total"], 1e-3)
    return [
        f"texts    {counts['texts']:,} distinct, {counts['tokens']:,} tokens; peak memory {counts['peak_rss_mb']:,} MB",
        f"cut      {cut}",
        f"seconds  {stages} (reading and tokenising run beside the model)",
        f"record   {record}",
        f"{rows:,} rows in {total:,.1f} s ({rows / total:,.0f} rows/s, {counts['tokens'] / total:,.0f} tokens/s)"
        f" on {placement.device} in {placement.dtype} -> {plan.output}",
    ]
