"""A job before it runs: all findings of the sample, for people and as JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from batchscore.engine.timing import timed
from batchscore.errors import InputError
from batchscore.jobs.events import Events, Silent
from batchscore.jobs.options import SAMPLE_ROWS
from batchscore.jobs.parts import Encode
from batchscore.jobs.planning import lengths
from batchscore.jobs.planning.costs import Disk, Memory, cost_of, disk_of, memory_of
from batchscore.jobs.planning.lengths import PADDED_ROWS, Cut, Lengths, Padding, Reading
from batchscore.jobs.planning.prediction import Prediction, predict
from batchscore.jobs.planning.sample import Sample, take_sample
from batchscore.jobs.run import PreparedJob
from batchscore.runners.base import BaseRunner
from batchscore.runners.build import unloaded_runner
from batchscore.runners.size import ModelSize
from batchscore.types import SIDES, Work

_LONGEST_TASK = 3_600.0  # seconds, for which more array tasks are proposed
_SPARE_TIME, _LEAST_TIME = 1.5, 600.0  # of a time limit: nodes differ, and a limit of a minute helps nobody
_UNITS_A_TASK = 4  # at least: with one each, the last to start decides
_GPU_TASK_CORES = 4


@dataclass(frozen=True, slots=True)
class Sampled:
    """What was looked at."""

    units: int  # read whole
    rows: int  # in these
    pairs: int  # in these; a row that lists documents has several
    drawn: int  # of the pairs, that were tokenized
    bad_rows: int  # in these units
    is_whole: bool  # whether this is all of the input, and nothing is estimated


@dataclass(frozen=True, slots=True)
class Texts:
    """How often the queries or the documents of a job come back."""

    read: float  # distinct ones of each unit, added up
    distinct: float  # of the job
    at_least: int  # those that were seen
    at_most: float  # if no text of a unit that was not read had come before


@dataclass(frozen=True, slots=True)
class Resources:
    """What to ask Slurm for."""

    tasks: int
    cpus: int
    gpus: int
    memory_gb: int
    minutes: int


@dataclass(frozen=True)
class Forecast:
    """What a job would read, take and cost."""

    command: str
    model: str
    score_type: str
    rows: int
    units: int
    encode: Encode
    encode_reason: str
    sampled: Sampled
    lengths: Mapping[str, Lengths]  # of "query" and "document" by themselves, and of what is read for a "pair"
    cuts: Sequence[Cut]
    padding: Padding
    texts: Mapping[str, Texts]
    distinct_pairs: float  # share, in each unit
    reading: Mapping[str, Reading]
    once_saves: float | None  # share of the tokens that encoding each text once a job spares; None: it cannot
    memory: Memory
    disk: Disk
    prediction: Prediction | None  # None: the model was not run
    resources: Resources | None  # likewise

    @property
    def tokens(self) -> float:
        """What the model reads for the job."""
        return sum(read.tokens for read in self.reading.values())

    def describe(self) -> dict[str, Any]:
        """What `batchscore plan --json` prints: JSON-able, in bytes and seconds."""
        found = asdict(self)
        found["memory"]["total"], found["disk"]["most"] = self.memory.total, self.disk.most
        return found | {"tokens": self.tokens}

    def lines(self) -> list[str]:
        """What `batchscore plan` prints for people."""
        return [
            *self._input_lines(),
            *self._length_lines(),
            *self._cost_lines(),
            *(self._prediction_lines(self.prediction) if self.prediction else []),
        ]

    # ---- lines

    def _input_lines(self) -> list[str]:
        sampled = self.sampled
        seen = "all of them read" if sampled.is_whole else f"{sampled.units:,} of them read"
        tokenized = "" if sampled.is_whole else f", and {sampled.drawn:,} of their {sampled.pairs:,} pairs tokenized"
        units = f"{self.units:,} unit{'s' * (self.units != 1)}"
        lines = [f"input    {self.rows:,} rows in {units}, {seen}{tokenized}"]
        if sampled.bad_rows:
            lines.append(f"bad      {sampled.bad_rows:,} of {sampled.rows:,} rows have no text to score")
        return [*lines, f"encode   each text once a {'job' if self.encode == 'once' else 'unit'}: {self.encode_reason}"]

    def _length_lines(self) -> list[str]:
        lines = ["tokens   " + "".join(f"{head:>9}" for head in ("mean", "median", "90 %", "99 %", "longest"))]
        for name, one in self.lengths.items():
            numbers = f"{one.mean:9.1f}" + "".join(f"{n:9,}" for n in (one.median, one.p90, one.p99, one.longest))
            lines.append(f"{name:9}{numbers}   {_histogram(one)}")
        in_order, by_length = (
            f"{padded / self.padding.packed - 1 if padded else 0.0:.0%}"
            for padded in (self.padding.in_order, self.padding.by_length)
        )
        lines.append(
            f"padding  none here; batches of {PADDED_ROWS} in the input's order would add {in_order}, "
            f"sorted by length {by_length}"
        )
        for cut in self.cuts:
            own = " (this job's limit)" if cut is self.cuts[-1] else ""
            lines.append(
                f"cut      at {cut.limit:,} tokens {cut.share:.1%} of rows: query {cut.query:,}, document "
                f"{cut.document:,}, both {cut.both:,} of those tokenized{own}"
            )
        return lines

    def _cost_lines(self) -> list[str]:
        lines = []
        for side, texts in self.texts.items():
            seen = (
                ""
                if self.sampled.units == self.units
                else f" (at least {texts.at_least:,}, at most {texts.at_most:,.0f})"
            )
            name = "queries" if side == "query" else "docs"
            lines.append(f"{name:9}{texts.distinct:,.0f} distinct in the job{seen}, {texts.read:,.0f} unit by unit")
        lines.append(f"pairs    {self.distinct_pairs:.1%} of a unit's are distinct")
        if self.once_saves is not None:
            lines.append(f"once     reading each text once a job saves {self.once_saves:.0%} of the tokens")
        count = sum(read.texts for read in self.reading.values())
        what = "pairs" if "pair" in self.reading else "texts"
        lines.append(f"reads    {count:,.0f} {what} of {self.tokens:,.0f} tokens in all")
        memory, disk = self.memory, self.disk
        probed = f"; the probe took {_size(self.prediction.peak_rss_mb << 20)}" if self.prediction else ""
        lines.append(
            f"memory   {_size(memory.total)} a process: weights {_size(memory.weights)}, packs {_size(memory.packs)}, "
            f"units on their way {_size(memory.units)}, the program {_size(memory.program)}{probed}"
        )
        once = f", texts {_size(disk.texts)}, encodings {_size(disk.encodings)}" if self.encode == "once" else ""
        output = f", output {_size(disk.output)}" if disk.output else ""
        free = "" if disk.free is None else f"; {_size(disk.free)} are free"
        lines.append(f"disk     {_size(disk.most)} at most: parts {_size(disk.parts)}{output}{once}{free}")
        return lines

    def _prediction_lines(self, prediction: Prediction) -> list[str]:
        stages = ", ".join(f"{name} {_clock(seconds)}" for name, seconds in prediction.stages.items())
        lines = [
            f"speed    {prediction.model_tokens_per_second:,.0f} tokens/s in the model; by themselves {stages}",
            f"busy     {_clock(prediction.busy)} of processor time",
            f"start-up {prediction.startup:.1f} s of each process; {prediction.once:.1f} s before the first unit, "
            f"{prediction.merging:.1f} s after the last",
            "time     processes   array tasks   on this machine",
        ]
        for count, seconds in prediction.tasks.items():
            here = _clock(prediction.local[count]) if count in prediction.local else "-"
            lines.append(f"{'':9}{count:9}{_clock(seconds):>14}{here:>18}")
        return lines


def plan_job(
    job: PreparedJob, *, sample: int = SAMPLE_ROWS, seconds: float = 0.0, events: Events | None = None
) -> Forecast:
    """Look at a sample of a job's input; nothing of the job is written.

    Args:
        job: prepared, of a command that scores.
        sample: rows to tokenize, roughly.
        seconds: for which the model is run on them; 0: no weights are loaded, and no time is predicted.
        events: gets `note` and `loading`.

    Raises:
        BatchscoreError: as a run would, where it reads the input.
    """
    try:
        return _forecast(job, sample, seconds, events or Silent())
    finally:
        job.source.discard()


def _forecast(job: PreparedJob, sample: int, seconds: float, events: Events) -> Forecast:
    plan, setup = job.plan, job.plan.setup
    runner = unloaded_runner(setup.checkpoint, setup.spec, trust_remote_code=setup.trust_remote_code)
    size = ModelSize.of(runner.model)
    division, divided = timed(job.divide)
    if not job.source.is_ready:  # the index of a corpus
        divided += timed(job.source.make_ready)[1]
    rows, units = sum(unit.rows for unit in division.units), len(division.units)
    found = take_sample(plan.command, job.source, setup, division.units, sample)
    if found.bad_rows and not found.pairs:
        raise InputError(
            "no row that was read has a text to score", hint="a wrong option is likely: look at the columns"
        )
    works = lengths.lay_out(runner, found)
    cuts = lengths.cuts(runner, found, works)
    reading = lengths.reading(runner, found, works, division.encode, rows, units)
    unit = cost_of(job, division.units[units // 2])
    prediction = None
    memory = memory_of(setup, size, unit)
    if seconds and found.drawn:
        events.loading(setup.checkpoint.name, "weights")
        prediction = predict(job, division, divided, found, reading, unit, seconds)
    return Forecast(
        command=plan.command.name,
        model=setup.checkpoint.name,
        score_type=setup.spec.score_type,
        rows=rows,
        units=units,
        encode=division.encode,
        encode_reason=division.reason,
        sampled=Sampled(found.units, found.rows, found.pairs, found.drawn, found.bad_rows, found.is_whole),
        lengths={
            **{side: lengths.text_lengths(runner, found, side) for side in SIDES},
            "pair": lengths.pair_lengths(works),
        },
        cuts=cuts,
        padding=lengths.padding(works),
        texts=_texts(found, units),
        distinct_pairs=sum(window.distinct_pairs for window in found.windows) / max(1, found.pairs),
        reading=reading,
        once_saves=None if "pair" in reading else _saved(runner, found, works, rows, units),
        memory=memory,
        disk=disk_of(job, division, found, reading, unit, rows),
        prediction=prediction,
        resources=_resources(job, prediction, memory, units) if prediction else None,
    )


def _texts(sample: Sample, units: int) -> dict[str, Texts]:
    repetition = sample.repetition
    found = {}
    for side in SIDES:
        read, seen = repetition.read(side, units), repetition.seen(side)
        unseen = read * (1 - repetition.units / max(1, units))
        found[str(side)] = Texts(read, repetition.distinct(side, units), seen, seen + unseen)
    return found


def _saved(runner: BaseRunner, sample: Sample, works: Sequence[Work], rows: int, units: int) -> float:
    """Share of the tokens that units read of their own which are not read if each text is read once."""
    both: tuple[Encode, Encode] = ("unit", "once")
    unit, once = (
        sum(read.tokens for read in lengths.reading(runner, sample, works, encode, rows, units).values())
        for encode in both
    )
    return max(0.0, 1 - once / unit) if unit else 0.0


def _resources(job: PreparedJob, prediction: Prediction, memory: Memory, units: int) -> Resources:
    """The fewest tasks that are done in an hour, with some time and memory to spare."""
    able = [count for count in prediction.tasks if count == 1 or count * _UNITS_A_TASK <= units]
    tasks = next((count for count in able if prediction.tasks[count] <= _LONGEST_TASK), able[-1])
    placement = job.plan.setup.placement
    is_cpu = placement.device == "cpu"
    needed = max(memory.total, prediction.peak_rss_mb << 20) * 1.25
    seconds = max(_LEAST_TIME, _SPARE_TIME * prediction.tasks[tasks])
    return Resources(
        tasks,
        placement.workers if is_cpu else _GPU_TASK_CORES,
        0 if is_cpu else 1,
        math.ceil(needed / 1e9),
        math.ceil(seconds / 600) * 10,
    )


def _histogram(lengths: Lengths) -> str:
    """Shares by length, the longest last."""
    return "  ".join(f"≤{edge:,} {share:.0%}" for edge, share in lengths.shares.items())


def _size(number: float) -> str:
    """Bytes for people."""
    return f"{number / 1e9:.1f} GB" if number >= 1e9 else f"{number / 1e6:.0f} MB"


def _clock(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"
