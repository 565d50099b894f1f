"""How long a job will take, from its parts measured on the sample: start-up, reading, tokenizing, the model, writing.

A process reads and tokenizes a unit while the model has the one before and a thread writes the one before that. So a
phase takes as long as its longest stage, unless the processor has too few cores for all of them: then as long as all of
their processor time takes on the cores, which are as quick as they were for the model while it was measured, whatever
else ran on the machine. Only the first unit is not read meanwhile, and only the last one is written afterwards.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np

from batchscore.engine.batcher import Batcher
from batchscore.engine.timing import Timing, joined, time_encoding, time_scoring, timed
from batchscore.io.digests import digests_of
from batchscore.jobs.meter import peak_rss_mb
from batchscore.jobs.parts import Division
from batchscore.jobs.planning.costs import UnitCost
from batchscore.jobs.planning.lengths import Reading
from batchscore.jobs.planning.sample import Sample
from batchscore.jobs.run import PreparedJob
from batchscore.jobs.survey import count_blocks, text_cost
from batchscore.runners.device import count_cuda_devices, peak_device_bytes, usable_cores
from batchscore.scorer import Setup, set_up
from batchscore.types import SIDES, Pairs, Side

PROCESSES = (1, 2, 4, 8)
_COMPARED = 1_024  # pairs whose comparison is timed
_MERGE = 2.0  # times what writing the parts took: they are read, and written again
_IMPORT = "from batchscore.jobs.start import job_functions; job_functions([])"


@dataclass(frozen=True, slots=True)
class Phase:
    """Something that is done for many units or blocks: read ahead, the model's work, written behind."""

    ahead: Timing
    model: Timing
    behind: Timing
    pieces: float  # units or blocks

    @property
    def busy(self) -> float:
        """Seconds of processor time."""
        return self.ahead.busy + self.model.busy + self.behind.busy

    def seconds(self, cores: float, *, has_own_device: bool = True) -> float:
        """How long one process takes.

        Args:
            cores: that it has; it may be a share of one.
            has_own_device: the model has what it had when it was measured; else it shares the cores.
        """
        alone = 1 / max(1.0, self.pieces)  # of the pieces, that nothing else is done beside
        beside = self.ahead + self.behind
        work = self.model.busy + beside.busy * (1 - alone)
        model = self.model.wall if has_own_device else 0.0
        return max(self.ahead.wall, model, self.behind.wall, work / cores) + beside.wall * alone

    def share(self, count: int) -> Phase:
        """What is left for the process that has most to do, of `count` processes."""
        most = np.ceil(self.pieces / count) / max(1.0, self.pieces)
        return Phase(self.ahead.times(most), self.model.times(most), self.behind.times(most), self.pieces * most)


@dataclass(frozen=True, slots=True)
class Prediction:
    """Seconds of the job, by processes."""

    startup: float  # of each process: Python, the libraries and the model
    once: float  # that one process does for all: dividing the input, and collecting texts that are encoded once
    merging: float  # assembling the output
    tasks: Mapping[int, float]  # array tasks, each with what this process has -> seconds until the job is done
    local: Mapping[int, float]  # processes on this machine (--devices) -> likewise
    busy: float  # seconds of processor time of one process that does it all
    model_tokens_per_second: float
    stages: Mapping[str, float]  # seconds of each by itself, one process
    peak_rss_mb: int
    peak_device_bytes: int  # 0 on a CPU


def predict(
    job: PreparedJob,
    division: Division,
    divided: Timing,
    sample: Sample,
    read: Mapping[str, Reading],
    unit: UnitCost,
    seconds: float,
) -> Prediction:
    """Load the model, run it on the sample, and add up.

    Args:
        job: what is planned.
        division: of its input.
        divided: what dividing it took.
        sample: of its rows.
        read: what the model reads of the whole job.
        unit: what a unit takes besides the model.
        seconds: for which the model runs, roughly.
    """
    setup, rows = job.plan.setup, sum(each.rows for each in division.units)
    imports = _importing()
    opened = timed(lambda: set_up(**job.plan.scorer))[1]
    batcher, loaded = timed(lambda: Batcher(setup))
    with closing(batcher):
        probe = _Probe(batcher, division, sample, read, seconds)
        read_units, write_units = (timing.times(rows / max(1, unit.rows)) for timing in (unit.read, unit.write))
        phases = probe.phases(read_units, write_units)
    surveys = rows / max(1, sample.rows) if division.encode == "once" else 0.0
    course = _Course(
        setup=setup,
        parent=imports + opened,
        startup=imports + opened + loaded,
        before=divided + sample.reading.times(surveys),
        merging=write_units.times(_MERGE if job.assembles else 0.0),
        phases=phases,
    )
    slots = usable_cores() if setup.placement.device == "cpu" else count_cuda_devices()
    return Prediction(
        startup=course.startup.wall,
        once=course.before.wall,
        merging=course.merging.wall,
        tasks={count: course.of_tasks(count) for count in PROCESSES},
        local={count: course.of_local(count) for count in PROCESSES if count <= slots},
        busy=sum((phase.busy for phase in phases), course.alone.busy),
        model_tokens_per_second=probe.tokens_per_second,
        stages={
            "read": read_units.wall,
            "tokenize": phases[0].ahead.wall - (0.0 if len(phases) > 1 else read_units.wall),
            "model": sum(phase.model.wall for phase in phases),
            "write": write_units.wall,
        },
        peak_rss_mb=peak_rss_mb(),
        peak_device_bytes=peak_device_bytes(setup.placement.device),
    )


@dataclass(frozen=True)
class _Course:
    """A job from its start to its output."""

    setup: Setup
    parent: Timing  # start-up of the process that starts others, which loads no weights
    startup: Timing  # of each process that has the model
    before: Timing  # until the first unit
    merging: Timing
    phases: Sequence[Phase]

    @property
    def alone(self) -> Timing:
        """What one process does, however many there are."""
        return self.startup + self.before + self.merging

    @property
    def cores(self) -> float:
        """Cores of a process, as quick as those that the model had while others ran on the machine too."""
        cores, model = usable_cores(), self.phases[0].model
        if self.setup.placement.device != "cpu":
            return float(cores)
        return model.busy / max(model.wall, 1e-9) * max(1.0, cores / self.setup.budget.workers)

    def of_tasks(self, count: int) -> float:
        """Seconds with so many array tasks, each on a node of its own."""
        return self.alone.wall + sum(phase.share(count).seconds(self.cores) for phase in self.phases)

    def of_local(self, count: int) -> float:
        """Seconds with so many processes on this machine."""
        if count == 1:
            return self.of_tasks(1)
        crowd = max(1.0, count / usable_cores())  # processes that start on one core
        own = self.setup.placement.device != "cpu"  # a GPU each
        shares = [phase.share(count).seconds(self.cores / count, has_own_device=own) for phase in self.phases]
        return self.parent.wall + self.startup.wall * (crowd - 1) + self.alone.wall + sum(shares)


@dataclass
class _Probe:
    """A loaded model at work on a sample."""

    batcher: Batcher
    division: Division
    sample: Sample
    read: Mapping[str, Reading]  # of the whole job
    seconds: float
    tokens_per_second: float = 0.0

    def phases(self, read: Timing, write: Timing) -> list[Phase]:
        """The phases of the whole job; `read` and `write` are what reading and writing all of its rows take."""
        pairs = joined([window.drawn for window in self.sample.windows])
        units = len(self.division.units)
        if self.division.encode == "unit":
            return [Phase(read + self._tokenizing(pairs), self._scoring(pairs), write, units)]
        sides = [self._encoding(side, self.seconds / 2) for side in SIDES]
        texts = sum(self.read[side].texts for side in SIDES)
        ahead, model = (sum((one[place] for one in sides), Timing()) for place in (0, 1))
        self.tokens_per_second = sum(self.read[side].tokens for side in SIDES) / max(model.wall, 1e-9)
        return [Phase(ahead, model, Timing(), count_blocks(texts)), Phase(read, self._comparing(pairs), write, units)]

    def _tokenizing(self, pairs: Pairs) -> Timing:
        """Tokenizing all windows of the job.

        A prompt is tokenized for each pair, and texts by themselves once a window.
        """
        timing = timed(lambda: self.batcher.tokenize(pairs))[1]
        if self.batcher.spec.chat_template:
            wanted, drawn = self._job_pairs, float(len(pairs))
        else:
            wanted = sum(self.sample.repetition.letters.values()) * self._scale
            drawn = float(sum(sum(map(text_cost, side.values)) for side in pairs.sides.values()))
        return timing.times(wanted / max(1.0, drawn))

    @property
    def _scale(self) -> float:
        return sum(unit.rows for unit in self.division.units) / max(1, self.sample.rows)

    @property
    def _job_pairs(self) -> float:
        return self.sample.pairs * self._scale

    def _scoring(self, pairs: Pairs) -> Timing:
        """The forwards of the job."""
        found = time_scoring(self.batcher, pairs, self.seconds)
        self.tokens_per_second = found.tokens_per_second
        return found.timing.times(sum(one.tokens for one in self.read.values()) / max(1, found.tokens))

    def _encoding(self, side: Side, seconds: float) -> tuple[Timing, Timing]:
        """(tokenizing the job's texts of one side, the forwards of these)."""
        texts = list(dict.fromkeys(cell for window in self.sample.windows for cell in window.texts[side]))
        read = self.read[side]
        ahead = timed(lambda: self.batcher.lay_out(texts, side))[1].times(read.texts / max(1, len(texts)))
        found = time_encoding(self.batcher, texts, side, seconds)
        return ahead, found.timing.times(read.tokens / max(1, found.tokens))

    def _comparing(self, pairs: Pairs) -> Timing:
        """Finding texts, and the scores of all pairs from encodings."""
        some = pairs.rows(slice(0, _COMPARED))
        sides = {side: (cells, self.batcher.lay_out(cells.values, side)) for side, cells in some.sides.items()}
        queries, documents = (self.batcher.encode(work, side) for side, (_, work) in sides.items())

        def compare() -> None:
            for cells, _ in sides.values():
                digests_of(cells.values)
            self.batcher.compare(queries, documents, some.queries.codes, some.documents.codes)

        compare()
        return timed(compare)[1].times(self._job_pairs / max(1, len(some)))


def _importing() -> Timing:
    """What a process takes to load Python and the libraries."""
    before = os.times()
    wall = timed(lambda: subprocess.run([sys.executable, "-c", _IMPORT], check=True))[1].wall
    after = os.times()
    busy = after.children_user + after.children_system - before.children_user - before.children_system
    return Timing(wall, busy)
