"""What `score` and `rerank` have in common: doors first, then the units, then one output and the record.

Errors become one line, a hint and the exit code of errors.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from threading import Lock
from time import perf_counter, sleep
from typing import Any

import typer

from batchscore.cli.display import Display, explained
from batchscore.cli.options import Files, Shares
from batchscore.cli.summary import peak_rss_mb, summary_lines, work_lines
from batchscore.errors import BatchscoreError, OutputError, RuntimeFailureError, StoppedError
from batchscore.io.source import open_source
from batchscore.io.storage import Folder, open_folder, writer_id
from batchscore.io.units import Unit
from batchscore.jobs.checks import MaxErrors, refuse_overwriting_input, refuse_together, shard_of
from batchscore.jobs.commands import Command
from batchscore.jobs.leases import Leases, Presence, workers
from batchscore.jobs.merge import assemble, write_errors
from batchscore.jobs.meter import Meter
from batchscore.jobs.output import open_output
from batchscore.jobs.parts import JOB, Parts, first_difference, start_parts, total
from batchscore.jobs.pipeline import Pipeline
from batchscore.jobs.plan import Plan
from batchscore.jobs.records import exists, read_record, write_record
from batchscore.jobs.workers.job import WorkerJob
from batchscore.jobs.workers.processes import Crew, find_slots
from batchscore.scorer import Scorer, set_up
from batchscore.stop import Stop

_PARTIAL_SUCCESS = 7
_MERGE_POLL_SECONDS = 0.5


def run(command: str, job: Command, scorer: Mapping[str, Any], files: Files, shares: Shares) -> None:
    """Run a command; ends the program with the exit code of errors.py unless all rows are scored."""
    stop, display = Stop(), Display(quiet=files.quiet, log_format=files.log_format)
    stop.listen()
    if shares.max_seconds is not None:
        stop.after(shares.max_seconds)
    try:
        with explained(display, stop), stop.interruptible():
            code = _Run(command, job, scorer, files, shares, stop, display).run()
    finally:
        display.stop()
    if code:
        raise typer.Exit(code)


class _Run:
    """One run of a command."""

    def __init__(
        self,
        command: str,
        job: Command,
        scorer: Mapping[str, Any],
        files: Files,
        shares: Shares,
        stop: Stop,
        display: Display,
    ) -> None:
        self.job, self.options, self.files, self.shares = job, scorer, files, shares
        self.stop, self.display = stop, display
        self.output = open_output(files.out)
        self.source = open_source(files.inputs, split=files.split, skip=self.output.owns)
        self.source.on_step = stop.check  # cutting a large file of lines takes minutes
        self.shard = shard_of(shares)
        self.limits = MaxErrors.parsed(files.max_errors)
        self.output.check()
        refuse_overwriting_input(self.source, self.output)
        refuse_together(files, shares, self.shard, self.output)
        job.check(self.source)
        self.places = find_slots(shares.devices) if shares.devices is not None else []
        placed = {"device": self.places[0].device} if self.places else {}
        self.setup = set_up(**{**scorer, **placed})
        self.plan = Plan(
            command, self.setup, job, files.errors, self.source.fingerprint(), self.output.path, dict(scorer)
        )
        self.meter = Meter(on_change=display.update)
        self.done: Mapping[str, Any] = {"rows": 0, "faulty": 0, "tokens": 0}  # counts of this run
        self.faulty_before = False  # whether units that an earlier run did have rows at fault
        self._lock = Lock()

    def run(self) -> int:
        """The exit code."""
        folder = open_folder(self.output.parts)
        if (code := self._code_of_complete(folder, "nothing to do (--overwrite starts anew)")) is not None:
            return code
        new = not folder.has(JOB)
        if new and self.output.is_folder and self.files.merge and not self.files.overwrite and exists(self.output.file):
            raise OutputError(
                f"{self.output.file}, which --merge writes, is there already, and not of this job",
                hint="pass --overwrite to replace it, or choose another output",
            )
        parts = start_parts(folder, self.plan.fingerprint, self._cut, overwrite=self.files.overwrite)
        todo = self._todo(parts)
        self.display.start(
            [*self.plan.lines(), *work_lines(self.source, self.shard, self.shares, parts, todo)], self.plan.describe()
        )
        self.meter.started, self.meter.total = perf_counter(), sum(unit.rows for unit in todo)
        try:
            with self.stop.interruptible():
                faulty = self._require_few_errors(parts)
                given_up = self._score(parts, todo, faulty) if todo else {}
                for unit, why in given_up.items():
                    parts.fail(unit, why)
                code = self._finish(parts) if not given_up else 0
        except BatchscoreError as error:
            stopped = isinstance(error, StoppedError)
            why = "another run has finished it meanwhile"
            if not stopped and (code := self._code_of_complete(folder, why)) is not None:
                return code
            if self._leaves_nothing(parts):
                folder.discard()
            if not stopped:
                raise
            done = f"{len(parts.finished()):,} of {len(parts.units):,} units are done"
            raise StoppedError(f"{error.message}; {done}", hint=error.hint) from error
        finally:
            if self.done["faulty"] or self.faulty_before:
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
        return alone and parts.is_bare() and all(worker["process"] == writer_id() for worker in workers(parts))

    def _code_of_complete(self, folder: Folder, why: str) -> int | None:
        """The exit code if this very job is finished, which it says; OutputError if the output is of something else."""
        if self.output.is_folder or self.files.overwrite or folder.has(JOB) or not exists(self.output.path):
            return None
        record = read_record(self.output.record()) or {}
        difference = "it has no record" if not record else None
        difference = difference or first_difference(record.get("fingerprint", {}), self.plan.fingerprint)
        if difference is None:
            folder.discard()  # what a run left that was killed on its last step
            counts = record["counts"]
            self.limits.check(counts.get("faulty", 0), counts["rows"])
            self.display.say(f"{self.output.path} is complete: {why}")
            return _PARTIAL_SUCCESS if counts.get("faulty") else 0
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
        self.faulty_before = any(parts.part(unit.index).faults for unit in mine if unit.index in done)
        return [unit for unit in mine if unit.index not in done]

    def _require_few_errors(self, parts: Parts) -> int:
        """Rows at fault in units that are done, whoever did them; RuntimeFailureError if they are too many."""
        if self.files.max_errors is None:  # reading other shards' parts for nothing
            return 0
        faulty: int = parts.counts().get("faulty", 0)
        self.limits.check(faulty, parts.rows)
        return faulty

    def _score(self, parts: Parts, todo: Sequence[Unit], faulty: int) -> dict[int, str]:
        """Score the units, `faulty` rows being at fault elsewhere; those that were given up, and why."""
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
                    self.done = total([self.done, counts])
                    self.limits.check(faulty + self.done["faulty"], parts.rows)

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
        if not self.places and shares.engine == "local":
            scorer = Scorer(self.setup)
            Pipeline(scorer, self.job, self.source, parts, files.errors, self.meter, self.stop).run(units, on_done)
            scorer.close()  # not on an error, which must not wait for what is in the model
            return {}
        # the same dtype wherever a worker runs: it is part of what the parts have in common
        options = {**self.options, "dtype": self.setup.placement.dtype}
        task = WorkerJob(
            self.job,
            options,
            self.source.addresses(),
            self.output.parts,
            files.errors,
        )
        if shares.engine == "ray":
            from batchscore.jobs.workers.ray import run_on_ray

            return run_on_ray(
                task,
                units,
                self.meter,
                self.stop,
                address=shares.ray_address,
                max_restarts=shares.max_restarts,
                on_done=on_done,
                say=self.display.say,
            )
        crew = Crew(
            task,
            self.places,
            self.meter,
            self.stop,
            max_restarts=shares.max_restarts,
            on_done=on_done,
            say=self.display.say,
        )
        return crew.run(units)

    def _finish(self, parts: Parts) -> int:
        """Assemble the output if that is this run's to do, and write the record."""
        alone = self.shard.count == 1 and self.shares.claim == "static"
        merges = self.files.merge or (alone and not self.output.is_folder)
        if alone:
            parts.require_ours()
        missing = len(parts.units) - len(parts.finished())
        gone = not parts.folder.has(JOB)  # asked last: another shard was the last, and has merged meanwhile
        missing = 0 if gone else missing
        complete = not missing and not gone
        whole = complete and (alone or merges)
        # now: whoever else assembles the same may remove the parts
        counts = parts.counts() if whole or (complete and self.files.max_errors is not None) else {}
        result = self.output.parts
        if missing:
            self.display.say(f"{missing:,} of {len(parts.units):,} units are not done yet: others have them")
        elif complete:
            self.limits.check(counts.get("faulty", 0), parts.rows)  # those of others who were at work meanwhile too
            if merges:
                with self.meter.timed("write"):
                    merges = self._merge(parts, alone=alone)
                result = self.output.file
        whole = whole and (alone or merges)
        counts = {**(counts if whole else self.done), "seconds": self._seconds(), "peak_rss_mb": peak_rss_mb()}
        record = self.output.record("" if whole else f"-{self._process_name}")
        write_record(record, self.plan.record(counts))
        if complete:
            if not self.output.is_folder:
                if merges:
                    parts.folder.discard()
            elif merges or not self.files.merge:  # else another is at the merge, and its files are not in the way
                parts.tidy()
        self.display.finish(summary_lines(self.plan, self.output, self.done, counts, result, record), counts)
        return _PARTIAL_SUCCESS if counts.get("faulty") or self.faulty_before else 0

    def _merge(self, parts: Parts, *, alone: bool) -> bool:
        """Assemble the output, or wait until another shard has; whether it was this one."""
        with Presence(parts, self._shard_name) as presence:
            leases = None if alone or not parts.folder.is_local else Leases(parts, presence)
            while leases is not None and not leases.claim_merge():
                # the other may have died on it, which its silence will tell
                if not parts.folder.has(JOB) or (self.output.is_folder and exists(self.output.file)):
                    return False
                self.stop.check()
                sleep(_MERGE_POLL_SECONDS)
            assemble(parts, self.output.file, self.stop)
            write_errors(parts, self.output)
        return True

    @property
    def _shard_name(self) -> str:
        return f"{self.shard.index}/{self.shard.count}"

    @property
    def _process_name(self) -> str:
        """What tells the records of a job's processes apart."""
        return writer_id() if self.shares.claim == "dynamic" else self._shard_name.replace("/", "-of-")

    def _seconds(self) -> dict[str, float]:
        spent = {stage: round(seconds, 3) for stage, seconds in self.meter.seconds.items()}
        return {"total": round(perf_counter() - self.meter.started, 3), **spent}
