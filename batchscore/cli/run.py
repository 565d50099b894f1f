"""What `score` and `rerank` have in common: doors first, then the units, then one output and the record.

Errors become one line, a hint and the exit code of errors.py.
"""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from threading import Lock
from time import perf_counter
from typing import Any

import typer

from batchscore.api import set_up
from batchscore.cli.display import Display
from batchscore.cli.options import Files, Shares
from batchscore.crew import Crew, find_places
from batchscore.errors import BatchscoreError, OutputError, RuntimeFailureError, StoppedError, UsageError
from batchscore.io.leases import Leases, Presence
from batchscore.io.output import Output, open_output
from batchscore.io.parts import JOB, Parts, first_difference, start_parts, total
from batchscore.io.records import exists, read_record, write_record
from batchscore.io.source import Source, open_source
from batchscore.io.storage import Folder, is_url, open_folder
from batchscore.jobs import Job
from batchscore.merging import assemble, write_errors
from batchscore.pipeline import Meter
from batchscore.plan import Plan
from batchscore.shards import find_shard
from batchscore.stop import Stop
from batchscore.task import Task
from batchscore.types import Shard, Unit

_PARTIAL_SUCCESS = 7


def run(command: str, job: Job, scorer: Mapping[str, Any], files: Files, shares: Shares) -> None:
    """Run a command; ends the program with the exit code of errors.py unless all rows are scored."""
    stop, display = Stop(), Display(quiet=files.quiet, log_format=files.log_format)
    stop.listen()
    if shares.max_seconds is not None:
        stop.after(shares.max_seconds)
    try:
        with explained(display, stop):
            code = _Run(command, job, scorer, files, shares, stop, display).run()
    finally:
        display.stop()
    if code:
        raise typer.Exit(code)


@contextmanager
def explained(display: Display | None = None, stop: Stop | None = None) -> Iterator[None]:
    """Say what went wrong and end with its exit code."""
    display = display or Display(quiet=False, log_format="text")
    try:
        yield
    except BatchscoreError as error:
        display.error(error.message, error.hint, error.exit_code)
        if stop is not None and stop.unsettled:  # a thread that the end would wait for
            sys.stderr.flush()
            os._exit(error.exit_code)
        raise typer.Exit(error.exit_code) from error


class _Run:
    """One run of a command."""

    def __init__(
        self,
        command: str,
        job: Job,
        scorer: Mapping[str, Any],
        files: Files,
        shares: Shares,
        stop: Stop,
        display: Display,
    ) -> None:
        self.job, self.files, self.shares, self.stop, self.display = job, files, shares, stop, display
        self.source = open_source(files.inputs, split=files.split)
        self.output = open_output(files.out)
        self.shard = _find_shard(shares)
        self.limits = _MaxErrors.parsed(files.max_errors)
        self.output.check()
        _refuse_overwriting_input(self.source, self.output)
        if files.overwrite and self.shard.count > 1:
            raise UsageError(
                "--overwrite in one of several shards would throw away what others did",
                hint=f"remove {self.output.path} before the shards start",
            )
        if shares.claim == "dynamic" and is_url(self.output.parts):
            raise UsageError(
                "--claim dynamic needs a disk: an object store cannot say who was first",
                hint="leave it out: --claim static",
            )
        job.check(self.source)
        self.places = find_places(shares.devices) if shares.devices is not None else []
        placed = {"device": self.places[0].device} if self.places else {}
        self.setup = set_up(**{**scorer, **placed})
        # the same dtype wherever a worker runs: it is part of what the parts have in common
        self.options = {**scorer, "dtype": self.setup.placement.dtype}
        self.plan = Plan(
            command, self.setup, job, files.errors, self.source.fingerprint(), self.output.path, dict(scorer)
        )
        self.fingerprint = self.plan.fingerprint()
        self.meter = Meter(on_change=display.update)
        self.done: list[Mapping[str, Any]] = []  # counts of units of this run
        self._lock = Lock()

    def run(self) -> int:
        """The exit code."""
        folder = open_folder(self.output.parts)
        if not self.output.is_folder and (counts := self._earlier_counts(folder)) is not None:
            self.display.say(f"{self.output.path} is complete: nothing to do (--overwrite starts anew)")
            return _PARTIAL_SUCCESS if counts.get("faulty") else 0
        parts = start_parts(folder, self.fingerprint, self._cut, overwrite=self.files.overwrite)
        todo = self._todo(parts)
        self.display.start([*self.plan.lines(), *self._lines(parts, todo)], self.plan.describe())
        self.meter.started, self.meter.total = perf_counter(), sum(unit.rows for unit in todo)
        try:
            given_up = self._score(parts, todo) if todo else {}
            code = self._finish(parts) if not given_up else 0
        except BatchscoreError as error:
            if self._leaves_nothing(parts):
                folder.discard()
            if not isinstance(error, StoppedError):
                raise
            done = f"{len(parts.finished()):,} of {len(parts.units):,} units are done"
            raise StoppedError(f"{error.message}; {done}", hint=error.hint) from error
        finally:
            if any(counts["faulty"] for counts in self.done):
                write_errors(parts, self.output)
        if given_up:
            unit, why = next(iter(given_up.items()))
            raise RuntimeFailureError(
                f"{len(given_up)} units were given up, such as unit {unit}: {why}",
                hint="run the same command again to try them once more",
            )
        return code

    def _leaves_nothing(self, parts: Parts) -> bool:
        """Whether a run that ends early has done nothing that is worth a folder."""
        alone = self.shard.count == 1 and self.shares.claim == "static" and not self.output.is_folder
        return alone and parts.is_bare()

    def _earlier_counts(self, folder: Folder) -> Mapping[str, Any] | None:
        """Counts of a finished run of this very job; OutputError if the output is of something else."""
        if self.files.overwrite or folder.has(JOB) or not exists(self.output.path):
            return None
        record = read_record(self.output.record()) or {}
        difference = "it has no record" if not record else None
        difference = difference or first_difference(record.get("fingerprint", {}), self.fingerprint)
        if difference is None:
            folder.discard()  # what a run left that was killed on its last step
            return dict(record["counts"])
        raise OutputError(
            f"{self.output.path} is there already, and of another job: {difference}",
            hint="pass --overwrite to replace it, or choose another output",
        )

    def _cut(self) -> list[Unit]:
        return self.job.units(self.source, self.setup.budget.window_rows, listwise=self.setup.spec.listwise)

    def _todo(self, parts: Parts) -> list[Unit]:
        """Units that are this shard's and not done; of a dynamic claim all, this shard's own first."""
        mine = self.shard.units(parts.units)
        if self.shares.claim == "dynamic":
            own = {unit.index for unit in mine}
            mine += [unit for unit in parts.units if unit.index not in own]
        done = parts.finished()
        if damaged := parts.check([unit.index for unit in mine if unit.index in done]):
            self.display.say(f"parts {', '.join(map(str, damaged))} were damaged: scored again")
        done -= set(damaged)
        return [unit for unit in mine if unit.index not in done]

    def _score(self, parts: Parts, todo: Sequence[Unit]) -> dict[int, str]:
        """Score the units; those that were given up, and why."""
        with Presence(parts, self._shard_name) as presence:
            leases = Leases(parts, presence) if self.shares.claim == "dynamic" else None

            def units() -> Iterator[Unit]:
                for unit in leases.claimed(todo) if leases else todo:
                    presence.units.add(unit.index)
                    yield unit

            def on_done(unit: Unit, counts: Mapping[str, Any]) -> None:
                presence.units.discard(unit.index)
                presence.rows_per_second = self.meter.rows / (perf_counter() - self.meter.started)
                if leases:
                    leases.release(unit)
                with self._lock:
                    self.done.append(counts)
                    self.limits.check(sum(c["faulty"] for c in self.done), sum(c["rows"] for c in self.done))

            try:
                return self._work(units(), on_done, parts)
            finally:
                if leases:
                    for index in list(presence.units):
                        leases.release(parts.units[index])

    def _work(
        self, units: Iterator[Unit], on_done: Callable[[Unit, Mapping[str, Any]], None], parts: Parts
    ) -> dict[int, str]:
        files, shares = self.files, self.shares
        task = Task(self.job, self.options, files.inputs, files.split, self.output.parts, files.errors)
        if shares.engine == "ray":
            from batchscore.ray_crew import run_on_ray

            return run_on_ray(
                task, units, self.meter, self.stop, address=shares.ray_address, on_done=on_done, say=self.display.say
            )
        if self.places:
            crew = Crew(
                task,
                self.places,
                self.meter,
                self.stop,
                max_restarts=shares.max_restarts,
                on_done=on_done,
                say=self.display.say,
            )
            given_up = crew.run(units)
            for unit, why in given_up.items():
                parts.fail(unit, why)
            return given_up
        pipeline = task.pipeline(self.meter, self.stop)
        pipeline.run(units, on_done)
        pipeline.scorer.close()
        return {}

    def _finish(self, parts: Parts) -> int:
        """Assemble the output if that is this run's to do, and write the record."""
        alone = self.shard.count == 1 and self.shares.claim == "static"
        merges = self.files.merge or (alone and not self.output.is_folder)
        gone = not parts.folder.has(JOB)  # another shard was the last, and has merged already
        missing = 0 if gone else len(parts.units) - len(parts.finished())
        result = self.output.parts
        if missing:
            self.display.say(f"{missing:,} of {len(parts.units):,} units are not done yet: others have them")
        elif merges and not gone:
            with self.meter.timed("write"), Presence(parts, self._shard_name) as presence:
                merges = not parts.folder.is_local or Leases(parts, presence).claim_merge()
                if merges:
                    assemble(parts, self.output.file, self.stop)
                    write_errors(parts, self.output)
                    result = self.output.file
        whole = not missing and not gone and (alone or merges)
        counts = {
            **(parts.counts() if whole else total(self.done)),
            "seconds": self._seconds(),
            "peak_rss_mb": _peak_rss_mb(),
        }
        record = self.output.record("" if whole else f"-{self._shard_name.replace('/', '-of-')}")
        write_record(record, self.plan.record(counts))
        if not missing and not gone:
            if self.output.is_folder:
                parts.tidy()
            elif merges:
                parts.folder.discard()
        self.display.finish(self._summary(counts, result, record), counts)
        return _PARTIAL_SUCCESS if counts.get("faulty") else 0

    @property
    def _shard_name(self) -> str:
        return f"{self.shard.index}/{self.shard.count}"

    def _lines(self, parts: Parts, todo: Sequence[Unit]) -> list[str]:
        """What is to do here, for a person."""
        files, rows = len(self.source.readers), sum(unit.rows for unit in parts.units)
        units, here = len(parts.units), sum(unit.rows for unit in todo)
        lines = [f"input    {files} file{'s' * (files != 1)}, {rows:,} rows in {units:,} unit{'s' * (units != 1)}"]
        if self.shard.count > 1 or self.shares.claim == "dynamic":
            share = f"shard {self._shard_name} ({self.shard.origin})"
            lines.append(f"share    {share}, units {'as they come' if self.shares.claim == 'dynamic' else 'by turns'}")
        if here < rows:
            lines.append(f"to do    {here:,} rows in {len(todo):,} units")
        return lines

    def _seconds(self) -> dict[str, float]:
        spent = {stage: round(seconds, 3) for stage, seconds in self.meter.seconds.items()}
        return {"total": round(perf_counter() - self.meter.started, 3), **spent}

    def _summary(self, counts: Mapping[str, Any], result: str, record: str) -> list[str]:
        seconds, placement = counts["seconds"], self.setup.placement
        stages = ", ".join(f"{stage} {spent:.1f}" for stage, spent in seconds.items() if stage != "total")
        cut = ", ".join(f"{name} {number:,}" for name, number in counts.get("cut", {}).items() if number) or "none"
        rows, tokens = sum(c["rows"] for c in self.done), sum(c["tokens"] for c in self.done)
        spent = max(seconds["total"], 1e-3)
        texts, read = counts.get("texts", 0), counts.get("tokens", 0)
        lines = [
            f"texts    {texts:,} distinct, {read:,} tokens; peak memory {counts['peak_rss_mb']:,} MB",
            f"cut      {cut}",
            f"seconds  {stages} (reading, tokenising and writing run beside the model)",
            f"record   {record}",
        ]
        if faulty := counts.get("faulty"):
            lines.append(f"errors   {faulty:,} rows at fault ({self.files.errors}): {self.output.errors}")
        speed = f"{rows / spent:,.0f} rows/s, {tokens / spent:,.0f} tokens/s"
        return [
            *lines,
            f"{rows:,} rows in {spent:,.1f} s ({speed}) on {placement.device} in {placement.dtype} -> {result}",
        ]


def _find_shard(shares: Shares) -> Shard:
    if shares.claim == "dynamic" and shares.shard is None:
        with suppress(UsageError):  # an array with gaps: only where each begins is read off it
            return find_shard(None, os.environ)
        return Shard()
    return find_shard(shares.shard, os.environ)


@dataclass(frozen=True, slots=True)
class _MaxErrors:
    """How many rows may be at fault."""

    number: float
    is_share: bool  # of the rows so far

    @classmethod
    def parsed(cls, text: str | None) -> _MaxErrors:
        """From N or P%."""
        if text is None:
            return cls(float("inf"), is_share=False)
        try:
            number = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
        except ValueError:
            number = -1.0
        if number < 0:
            raise UsageError(f"--max-errors {text!r} is not a number of rows or a percentage", hint="such as 100 or 1%")
        return cls(number, text.endswith("%"))

    def check(self, faulty: int, rows: int) -> None:
        """Raise RuntimeFailureError if these are too many."""
        if faulty > self.number * (rows if self.is_share else 1):
            limit = f"{self.number:.6g}" if not self.is_share else f"{100 * self.number:.6g}%"
            raise RuntimeFailureError(
                f"{faulty:,} of {rows:,} rows are at fault, more than --max-errors {limit}",
                hint="see the list of errors; what is done stays",
            )


def _refuse_overwriting_input(source: Source, output: Output) -> None:
    for file in source.fingerprint():
        name = str(file["name"])
        for out in (output.path, output.file):
            if os.path.exists(out) and os.path.exists(name) and os.path.samefile(name, out):
                raise UsageError(f"--out {out} is one of the inputs", hint="choose another output")


def _peak_rss_mb() -> int:
    """Of the largest process, workers included."""
    unit = 1024 if sys.platform == "linux" else 1024**2
    whose = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return round(max(resource.getrusage(who).ru_maxrss for who in whose) / unit)
