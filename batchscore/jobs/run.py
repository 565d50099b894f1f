"""A run as a library call: `prepare` opens and decides, `execute` scores and writes.

Every error that can be known beforehand is raised by `prepare`, which writes nothing: a plan can be shown without a
trace. `execute` takes the folder of the job in any state: new, half done by an earlier run, or shared with other
processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import zip_longest
from time import perf_counter, sleep
from typing import Any

from batchscore.engine.batcher import Batcher
from batchscore.errors import BatchscoreError, OutputError, RuntimeFailureError, StoppedError
from batchscore.io.collection import own_folder
from batchscore.io.outputs import Origin
from batchscore.io.source import Source
from batchscore.io.storage import is_url, local_path, open_folder, writer_id
from batchscore.io.units import Unit
from batchscore.jobs import checks
from batchscore.jobs.agenda import Agenda
from batchscore.jobs.blocks import Block, Blocks, open_blocks, summed_counts
from batchscore.jobs.checks import MaxErrors, bad_rows, shard_of
from batchscore.jobs.commands import Command, EncodeCommand, RequestsCommand, RerankCommand
from batchscore.jobs.commands.base import UnitRows, input_order
from batchscore.jobs.events import End, Events, Outcome, Silent
from batchscore.jobs.joins import open_input
from batchscore.jobs.leases import Leases, Presence, Task, workers
from batchscore.jobs.merge import assemble, write_errors
from batchscore.jobs.meter import Meter, peak_rss_mb
from batchscore.jobs.one_model import OneModel, model_of
from batchscore.jobs.options import RunOptions
from batchscore.jobs.output import Output, open_output
from batchscore.jobs.parts import JOB, Division, Parts, first_difference, open_parts, start_parts, total
from batchscore.jobs.pipeline import OnDone, Pipeline
from batchscore.jobs.plan import Plan, share_lines, text_line
from batchscore.jobs.quantization import quantization_error
from batchscore.jobs.records import exists, read_record, write_record
from batchscore.jobs.room import Room
from batchscore.jobs.shards import Shard
from batchscore.jobs.shelves import Stores
from batchscore.jobs.survey import choose, survey
from batchscore.jobs.workers.job import WorkerJob, Workforce
from batchscore.jobs.workers.processes import Slot, find_slots, run_in_processes
from batchscore.scorer import Setup, set_up
from batchscore.stop import Stop

_POLL_SECONDS = 0.5  # between two looks at what another process is doing
_NOTHING: Mapping[str, Any] = {"rows": 0, "faulty": 0, "tokens": 0}


@dataclass(frozen=True)
class PreparedJob:
    """A run that can begin: everything is open and decided, and nothing is written."""

    plan: Plan
    options: RunOptions
    output: Output
    source: Source
    shard: Shard
    limits: MaxErrors
    slots: Sequence[Slot]  # of worker processes; none: the model runs in this process
    stores: Stores

    @property
    def is_alone(self) -> bool:
        """Whether all units are this run's, so that the job ends with it."""
        return self.shard.count == 1 and not self.options.is_dynamic

    @property
    def assembles(self) -> bool:
        """Whether this run makes one file of the parts."""
        return self.options.merge or (self.is_alone and not self.output.is_folder)

    @property
    def origin(self) -> Origin:
        """What the scores are of."""
        checkpoint = self.plan.setup.checkpoint
        commit = checkpoint.snapshot.commit if checkpoint.snapshot else None
        return Origin(checkpoint.name, commit, self.options.split or "test")

    def divide(self) -> Division:
        """Divide the input into units, for which files that do not know their number of rows are read."""
        setup, command, encode = self.plan.setup, self.plan.command, self.options.encode
        units = list(command.units(self.source, setup.budget.window_rows, listwise=setup.spec.listwise))
        if isinstance(command, RequestsCommand):
            return Division(units, "unit", "a request has options of its own")
        if setup.spec.score_type == "cross-encoder":
            return Division(units, "unit", "a cross-encoder reads pairs")
        if isinstance(command, EncodeCommand):
            return Division(units, "unit", "its encoding is what the unit is for")
        if encode == "auto" and self.options.store:
            return Division(units, "once", "encodings are kept in a store")
        if encode == "auto":
            return choose(command, self.source.outline(), units, self.source.on_step)
        return Division(units, encode, "asked for")

    def for_worker(self) -> WorkerJob:
        """What another process needs to do tasks of this job."""
        options, plan = self.options, self.plan
        addresses, folder = self.source.addresses(), self.output.parts
        return WorkerJob(
            plan.command,
            plan.pinned_scorer,
            addresses,
            folder,
            options.errors,
            options.encode,
            options.store,
            plan.pinned_others,
        )

    def execute(self, stop: Stop | None = None, events: Events | None = None) -> Outcome:
        """Do what is left to do of the job, and assemble the output if that is for this run to do.

        Raises:
            StoppedError: `stop` was requested; another run resumes.
            BatchscoreError: anything else that ends a run; finished units are kept.
        """
        return _Run(self, stop or Stop(), events or Silent()).outcome()


def prepare(
    command: Command,
    scorer: Mapping[str, Any],
    options: RunOptions,
    events: Events | None = None,
    *,
    others: Sequence[str] = (),
    is_plan: bool = False,
) -> PreparedJob:
    """Open input, output and model, and decide everything; writes nothing.

    Args:
        command: what is made of the rows.
        scorer: keywords of Scorer, `model` among them.
        options: what is read and written, and which part of it.
        events: gets `loading`, since fetching a model can take a while.
        others: further models, which some requests are for.
        is_plan: the job is not executed: the index of a corpus is kept for this process, and not beside the job.

    Raises:
        BatchscoreError: an option, a file or the model that cannot be used.
    """
    output = open_output(options.out, options.out_format, options.run_tag)
    if options.media_root is not None:
        options = replace(options, media_root=local_path(options.media_root))
    checks.refuse_media(options)
    folder = own_folder() if is_plan or is_url(output.parts) else output.parts
    command, source = open_input(command, options, skip=output.owns, folder=folder)
    shard, limits = shard_of(options), MaxErrors.parsed(options.max_errors)
    output.check()
    checks.require_fit(command, options.errors, output.format, output.file)
    checks.refuse_overwriting_input(source, output)
    checks.refuse_together(options, shard, output)
    command.check(source)
    if isinstance(command, RerankCommand):
        columns = command.run_columns(source)
        checks.require_run(output.format, columns)
        checks.require_judged(options, columns)
    slots = find_slots(options.devices) if options.devices is not None else []
    (events or Silent()).loading(scorer["model"], "files")
    keywords = {**scorer, **({"device": slots[0].device} if slots else {})}
    setup, *further = [set_up(**{**keywords, "model": model}) for model in (scorer["model"], *others)]
    checks.refuse_encoding_pairs(options, setup.spec)
    checks.refuse_store(options, setup.spec)
    checks.refuse_encoding(command, options, output, setup.spec)
    if not scorer.get("template_date") and not options.overwrite:
        setup, *further = _on_the_jobs_date([setup, *further], output)
    plan = Plan(
        setup,
        command,
        options.errors,
        options.encode,
        source.fingerprint(),
        output.path,
        dict(scorer),
        source.media,
        further,
    )
    stores = Stores.of(plan, options.store or ())
    return PreparedJob(plan, options, output, source, shard, limits, slots, stores)


def _on_the_jobs_date(setups: Sequence[Setup], output: Output) -> list[Setup]:
    """The setups with the dates of the job in this output, if there is one, for their templates to print."""
    if not any(setup.spec.template_date for setup in setups):
        return list(setups)
    parts = open_parts(open_folder(output.parts))
    fingerprint = parts.fingerprint if parts else (read_record(output.record()) or {}).get("fingerprint", {})
    models = [one.get("model", {}) for one in (fingerprint, *fingerprint.get("others", ()))]
    days = [model.get("template_date") for model in models][: len(setups)]
    return [
        replace(setup, spec=replace(setup.spec, template_date=day)) if day and setup.spec.template_date else setup
        for setup, day in zip_longest(setups, days)
    ]


class _Run:
    """One run of a prepared job."""

    def __init__(self, job: PreparedJob, stop: Stop, events: Events) -> None:
        self.job, self.stop, self.events = job, stop, events
        self.folder = open_folder(job.output.parts)
        self.meter = Meter(on_change=events.progress)
        self.done = _NOTHING  # counts of the units that this run finished
        self.bad_before = 0  # bad rows of this process's units that an earlier run finished
        job.source.on_step = stop.check  # dividing a large file of lines takes minutes

    def outcome(self) -> Outcome:
        """The whole run."""
        if (outcome := self._finished("nothing to do (--overwrite starts anew)")) is not None:
            return outcome
        checks.refuse_replacing_merged(self.folder, self.job.output, self.job.options)
        fingerprint, overwrite = self.job.plan.fingerprint, self.job.options.overwrite
        parts = start_parts(self.folder, fingerprint, self.job.divide, overwrite=overwrite, origin=self.job.origin)
        todo = self._todo(parts)
        self._start(parts, todo)
        try:
            with self.stop.interruptible():
                bad = self._bad_elsewhere(parts)
                if todo:
                    self._work(parts, todo, bad)
                outcome = self._close(parts, *self._settle(parts))
        except BatchscoreError as error:
            return self._leave(parts, error)
        self._list_errors(parts)
        self.events.finished(outcome)
        return outcome

    def _finished(self, reason: str) -> Outcome | None:
        """The outcome if this very job is finished; OutputError if the output is another job's."""
        output = self.job.output
        if output.is_folder or self.job.options.overwrite or self.folder.has(JOB) or not exists(output.path):
            return None
        record = read_record(output.record()) or {}
        difference = "it has no record" if not record else None
        difference = difference or first_difference(record.get("fingerprint", {}), self.job.plan.fingerprint)
        if difference is not None:
            raise OutputError(
                f"{output.path} already exists and is another job's: {difference}",
                hint="pass --overwrite to replace it, or choose another output",
            )
        written = output.written
        before = {name: record.get(name, now) for name, now in written.items()}  # older records have neither
        if (difference := first_difference(before, written)) is not None:
            raise OutputError(
                f"{output.path} is already complete: {difference}",
                hint="pass --overwrite to score again, or choose another output",
            )
        self.folder.discard()  # left by a run that was killed on its last step
        counts = record["counts"]
        self.job.limits.check(bad_rows(counts), counts["rows"])
        self.events.note(f"{output.path} is complete: {reason}")
        return self._outcome("found", counts, output.record(), bad_rows(counts))

    def _todo(self, parts: Parts) -> list[Unit]:
        """Units of this shard that are not done; in a dynamic claim all units, this shard's first."""
        mine = self.job.shard.share(parts.units)
        if self.job.options.is_dynamic:
            own = {unit.index for unit in mine}
            mine += [unit for unit in parts.units if unit.index not in own]
        done = parts.finished()
        if damaged := parts.check([unit.index for unit in mine if unit.index in done]):
            self.events.note(f"parts {', '.join(map(str, damaged))} were damaged: scored again")
        done -= set(damaged)
        self.bad_before = sum(bad_rows(parts.part(unit.index).counts) for unit in mine if unit.index in done)
        todo = [unit for unit in mine if unit.index not in done]
        return sorted(todo, key=partial(model_of, self.job.plan.command))  # each model is loaded once

    def _start(self, parts: Parts, todo: Sequence[Unit]) -> None:
        job = self.job
        share = share_lines(job.plan.inputs, parts, todo, job.shard, is_dynamic=job.options.is_dynamic)
        lines = [*job.plan.lines(), *job.plan.command.lines(job.source), *share]
        self.events.started(lines, job.plan.describe())
        self.meter.started, self.meter.total = perf_counter(), sum(unit.rows for unit in todo)

    def _bad_elsewhere(self, parts: Parts) -> int:
        """Bad rows of finished units, by any process; RuntimeFailureError if they are too many."""
        if not self.job.limits.is_set:  # reading other shards' parts for nothing
            return 0
        bad = bad_rows(parts.counts())
        self.job.limits.check(bad, parts.rows)
        return bad

    # ---- work

    def _work(self, parts: Parts, todo: Sequence[Unit], bad: int) -> None:
        """Do the tasks that this process gets; RuntimeFailureError if some are given up or too many rows are bad."""
        given_up: dict[Task, str] = {}
        is_dynamic = self.job.options.is_dynamic
        with Presence(parts, str(self.job.shard), self.meter) as presence:
            leases = Leases(parts, presence) if parts.folder.is_local else None
            done = parts.finished()  # another run that ended by now has removed the texts, if it did not see this one
            todo = [unit for unit in todo if unit.index not in done]

            def finish(task: Task, counts: Mapping[str, Any]) -> None:
                presence.finish(task)
                if leases:
                    leases.release(task)
                self.done = total([self.done, counts])
                self.job.limits.check(bad + bad_rows(self.done), parts.rows)

            try:
                if todo:
                    self._make_ready(parts, leases)
                    blocks = self._texts(parts, leases)
                    agenda = Agenda(parts, blocks, self.job.shard, leases, is_dynamic, self.meter)
                    with self._doing(parts, blocks, finish) as do:
                        while todo and not given_up:
                            given_up = do(presence.shown(agenda.tasks(todo)))
                            todo = leases.wait_for_silent(todo, self.stop) if leases and is_dynamic else []
            finally:
                if leases:
                    leases.release_all()
                self.job.source.discard()
        for task, reason in given_up.items():
            if not isinstance(task, Block):
                parts.fail(task.index, reason)
        if given_up:
            task, reason = next(iter(given_up.items()))
            kind, index = task.key
            raise RuntimeFailureError(
                f"{len(given_up)} {kind}s were given up, the first of them {kind} {index}: {reason}",
                hint="run the same command again to try them once more",
            )

    def _make_ready(self, parts: Parts, leases: Leases | None) -> None:
        """Have all that the input needs before it can be read, such as the index of a corpus."""
        source = self.job.source
        while not source.is_ready:
            if leases is None or leases.claim_index():
                with self.meter.timed("read"):
                    source.make_ready()
            else:
                self._wait(parts)
        for line in source.lines():
            self.events.note(line)

    def _wait(self, parts: Parts) -> None:
        """Let another process go on with what this one needs."""
        self.stop.check()
        parts.require_ours()  # else this would wait in a folder that another run has merged
        sleep(_POLL_SECONDS)

    def _texts(self, parts: Parts, leases: Leases | None) -> Blocks | None:
        """The distinct texts of the job, collected first if nobody has done that; None if units read texts."""
        if parts.encode == "unit":
            return None
        job = self.job
        room = Room.of(job.plan.setup, job.options.encodings_gb, parts.folder)
        while (blocks := open_blocks(parts.folder, parts.id)) is None:
            if leases is None or leases.claim_survey():
                survey(parts, job.plan.command, job.source, room, self._on_surveyed, self.stop)
            else:
                self._wait(parts)
        self.events.note(text_line(blocks, parts.rows, room))
        return blocks

    def _on_surveyed(self, rows: UnitRows) -> None:
        """Count a unit whose texts were read; an error of its rows that would end the job does so before the rest."""
        self.meter.add_surveyed(rows.unit.rows)
        if rows.bad_rows and self.job.options.errors == "fail":
            raise min(rows.bad_rows, key=input_order).error()

    @contextmanager
    def _doing(
        self, parts: Parts, blocks: Blocks | None, finish: OnDone
    ) -> Iterator[Callable[[Iterator[Task | None]], dict[Task, str]]]:
        """A function that does tasks where the options say, and returns those it gave up, with the reason."""
        job, options = self.job, self.job.options
        setup = job.plan.setup
        if not job.slots and options.engine == "local":
            command, shelves = job.plan.command, job.stores.open(job.plan)

            def load(batcher: Batcher) -> None:
                self.events.loading(batcher.setup.checkpoint.name, "weights")
                batcher.load()
                if batcher.setup is setup:
                    self._measure(parts, batcher)

            models = OneModel(
                job.plan.setups,
                lambda batcher: Pipeline(
                    batcher, command, job.source, parts, blocks, shelves, options.errors, self.meter, self.stop, load
                ),
            )

            def do(tasks: Iterator[Task | None]) -> dict[Task, str]:
                models.run(tasks, finish)
                return {}

            yield do
            models.close()  # not after an error, which must not wait for what is in the model
            return
        if not options.store:  # else the workers may not need them
            self.events.loading(setup.checkpoint.name, "weights")
        with self.stop.polling():
            self._measure(parts, None)
        workforce = Workforce(job.for_worker(), self.meter, self.stop, options.max_restarts, finish, self.events.note)
        if options.engine == "ray":
            from batchscore.jobs.workers.ray import run_on_ray

            yield partial(run_on_ray, workforce, options.ray_address)
        else:
            yield partial(run_in_processes, workforce, job.slots)

    def _measure(self, parts: Parts, batcher: Batcher | None) -> None:
        """Tell what quantization does to scores; without a batcher the model is loaded for that."""
        if error := quantization_error(self.job.plan, self.job.source, parts, batcher, self.stop):
            self.events.note(error.line)

    # ---- the end

    def _settle(self, parts: Parts) -> tuple[End, Mapping[str, Any]]:
        """Decide how the run ends, and assemble the output if that is its end; counts of the whole job if it is whole.

        Counts are read before the assembly: another run that assembles the same output may remove the parts.
        """
        job = self.job
        if job.is_alone:
            parts.require_ours()
        missing = len(parts.units) - len(parts.finished())
        if not self.folder.has(JOB):  # looked at last: another shard may have been the last one and have merged
            return "merged-elsewhere", {}
        if missing:
            self.events.note(f"{missing:,} of {len(parts.units):,} units are not done yet: others have them")
            return "partial", {}
        # a limit also counts bad rows that other processes have found since
        is_wanted = job.is_alone or job.assembles or job.limits.is_set
        counts = total([parts.counts(), summed_counts(parts.folder, parts.id)]) if is_wanted else {}
        job.limits.check(bad_rows(counts), parts.rows)
        if not job.assembles:
            return ("parts", counts) if job.is_alone else ("share", {})
        with self.meter.timed("write"):
            merged = self._merge(parts)
        return ("merged", counts) if merged else ("merged-elsewhere", {})

    def _merge(self, parts: Parts) -> bool:
        """Assemble the output, or wait for the process that does. Returns whether this process did it."""
        output = self.job.output
        with Presence(parts, str(self.job.shard)) as presence:
            shared = not self.job.is_alone and parts.folder.is_local
            leases = Leases(parts, presence) if shared else None
            while leases is not None and not leases.claim_merge():
                # the other process may have died in the middle, which three silent beats will show
                if not self.folder.has(JOB) or (output.is_folder and exists(output.file)):
                    return False
                self.stop.check()
                sleep(_POLL_SECONDS)
            assemble(parts, output.file, self.stop, form=output.format)
            write_errors(parts, output)
        return True

    def _close(self, parts: Parts, end: End, counts: Mapping[str, Any]) -> Outcome:
        """Write the record and remove what is no longer needed."""
        output, whole = self.job.output, end in ("parts", "merged")
        spent = {stage: round(seconds, 3) for stage, seconds in self.meter.seconds.items()}
        counts = {
            **(counts if whole else self.done),
            "encode": parts.encode,
            **({"quantization": measured} if (measured := parts.quantization) else {}),
            "tokens_forwarded": self.meter.tokens,
            "seconds": {"total": round(self.meter.elapsed, 3), **spent},
            "peak_rss_mb": peak_rss_mb(),
        }
        process = writer_id() if self.job.options.is_dynamic else str(self.job.shard).replace("/", "-of-")
        record = output.record("" if whole else f"-{process}")
        write_record(record, {**self.job.plan.record(counts, self.meter.over_time()), **output.written})
        if end == "merged" and not output.is_folder:
            self.folder.discard()
        elif end != "partial" and output.is_folder and self.folder.has(JOB):
            keep_texts = any(worker["process"] != writer_id() for worker in workers(parts))
            if not keep_texts and (blocks := open_blocks(parts.folder, parts.id)) is not None:
                blocks.sum_up()
            parts.tidy(keep_texts=keep_texts)
        return self._outcome(end, counts, record, bad_rows(counts) + (0 if whole else self.bad_before))

    def _outcome(self, end: End, counts: Mapping[str, Any], record: str, bad: int) -> Outcome:
        output = self.job.output
        result = output.file if end in ("found", "merged", "merged-elsewhere") else output.parts
        errors = output.errors if bad else None
        return Outcome(end, result, bad, counts, self.done, errors, record, self.job.plan)

    def _leave(self, parts: Parts, error: BatchscoreError) -> Outcome:
        """Leave the folder to the next run and raise the error, unless another run has finished the job."""
        is_stop = isinstance(error, StoppedError)
        if not is_stop and (outcome := self._finished("another run has finished it")) is not None:
            return outcome
        with suppress(BatchscoreError):  # a damaged part must not hide why the run ended
            self._list_errors(parts)
        alone = self.job.is_alone and not self.job.output.is_folder
        if alone and parts.is_bare() and all(worker["process"] == writer_id() for worker in workers(parts)):
            self.folder.discard()  # nothing was done that is worth a folder
        if not is_stop:
            raise error
        done = f"{len(parts.finished()):,} of {len(parts.units):,} units are done"
        if blocks := open_blocks(parts.folder, parts.id):
            left = sum(block.texts for block in blocks.missing(blocks.blocks))
            done = f"{blocks.num_texts - left:,} of {blocks.num_texts:,} texts are encoded, {done}"
        raise StoppedError(f"{error.message}; {done}", hint=error.hint) from error

    def _list_errors(self, parts: Parts) -> None:
        if self.done["faulty"] or self.bad_before:
            write_errors(parts, self.job.output)
