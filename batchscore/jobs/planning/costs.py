"""What a job takes besides the model's time: memory, disk, and for each unit reading it and writing its part.

One unit is read as the job reads it, and its part is made with scores that are made up, so that bytes and seconds are
measured. What a pack takes in the model, and what a unit takes on its way, are estimates.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from batchscore.engine.timing import Timing, timed
from batchscore.io.storage import is_url, open_folder
from batchscore.io.units import Unit
from batchscore.jobs.commands.base import UnitRows
from batchscore.jobs.meter import peak_rss_mb
from batchscore.jobs.parts import Division, packed
from batchscore.jobs.planning.lengths import Reading
from batchscore.jobs.planning.sample import Sample
from batchscore.jobs.room import Room
from batchscore.jobs.run import PreparedJob
from batchscore.runners.size import ModelSize
from batchscore.scorer import Setup
from batchscore.types import SIDES, Scores, Side

_UNIT_COPIES = 10  # times its bytes that a unit takes: three are on their way, as Arrow, as texts and as tokens
_TEXT_BYTES = 24 + 16  # of a distinct text in the index, and beside it in a block


@dataclass(frozen=True, slots=True)
class UnitCost:
    """What one unit takes."""

    rows: int
    unpacked: int  # bytes of its output in memory
    part: int  # bytes of its part file
    read: Timing
    write: Timing


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of one process of the job."""

    weights: int
    packs: int  # of all workers, roughly
    units: int  # on their way through the pipeline, roughly
    program: int  # Python and the libraries, as measured in this process

    @property
    def total(self) -> int:
        """In the host's memory, or the weights and packs on a GPU."""
        return self.weights + self.packs + self.units + self.program


@dataclass(frozen=True, slots=True)
class Disk:
    """Bytes that the whole job writes."""

    parts: int
    output: int  # that is assembled from them; 0: the parts are the output
    texts: int  # distinct ones, kept until the job ends; compressed they are less
    encodings: int  # of these, likewise
    encodings_limit: int | None  # None: no limit
    free: int | None  # None: an object store does not say

    @property
    def most(self) -> int:
        """The most that is there at one time: parts and what is assembled from them, or what they are scored from."""
        encodings = self.encodings if self.encodings_limit is None else min(self.encodings, self.encodings_limit)
        return self.parts + max(self.output, self.texts + encodings)


def cost_of(job: PreparedJob, unit: Unit) -> UnitCost:
    """Read a unit with all its columns, and make its part; what is written is removed at once."""
    command, errors = job.plan.command, job.plan.errors
    try:
        # the quicker of two: the first may find the file on the disk only, and others may run meanwhile
        (rows, read), (_, again) = (timed(lambda: command.load(job.source, unit)) for _ in range(2))
    finally:
        job.source.close()
    read = min(read, again, key=lambda timing: timing.wall)
    scores = _made_up(rows, job.plan.setup)

    def write() -> tuple[pa.Table, int]:
        every = np.arange(len(rows.pairs), dtype=np.int64)
        table, _ = rows.table(every, scores, keep_bad=errors == "null")
        content = packed(table, b"{}")
        with tempfile.TemporaryFile() as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        return table, content.size

    (table, size), written = timed(write)
    return UnitCost(unit.rows, int(table.nbytes), size, read, written)


def _made_up(rows: UnitRows, setup: Setup) -> Scores:
    """Scores that compress no better than real ones."""
    size = len(rows.pairs)
    numbers = np.random.default_rng(0).normal(size=(size, 1)).astype(np.float32)
    is_logit = setup.spec.score_type == "cross-encoder" and not setup.spec.listwise
    counts = np.zeros(size, np.int32)
    return Scores(numbers, numbers if is_logit else None, counts, counts.astype(np.uint8))


def memory_of(setup: Setup, size: ModelSize, unit: UnitCost) -> Memory:
    """What one process needs."""
    dtype, budget = setup.placement.dtype, setup.budget
    packs = budget.workers * size.pack_bytes(dtype, budget.max_tokens)
    return Memory(size.weight_bytes(dtype), packs, _UNIT_COPIES * unit.unpacked, peak_rss_mb() << 20)


def disk_of(
    job: PreparedJob, division: Division, sample: Sample, read: Mapping[str, Reading], unit: UnitCost, rows: int
) -> Disk:
    """What the job writes.

    Args:
        job: what is planned.
        division: how often texts are read.
        sample: of the job.
        read: what the model reads of the job, as `lengths.reading` has it.
        unit: measured.
        rows: of the job.
    """
    scale, output = rows / max(1, unit.rows), job.output
    parts = int(unit.part * scale)
    assembled = parts if output.file.endswith(".parquet") else int(unit.unpacked * scale)
    folder = output.parts if is_url(output.parts) else _existing(output.parts)
    free = None if is_url(folder) else shutil.disk_usage(folder).free
    texts = encodings = 0
    limit: int | None = None
    if division.encode == "once":
        room = Room.of(job.plan.setup, job.options.encodings_gb, open_folder(folder))
        limit = int(room.limit) if room.limit < float("inf") else None
        for side in SIDES:
            size = _text_bytes(sample, side, len(division.units))
            texts += int(size + _TEXT_BYTES * read[side].texts)
            kept = min(size, room.limits[side] * read[side].texts)
            encodings += int(room.of_a_text * read[side].texts + room.of_a_byte * kept)
    return Disk(parts, assembled if job.assembles else 0, texts, encodings, limit, free)


def _text_bytes(sample: Sample, side: Side, units: int) -> float:
    """Bytes of the distinct texts that a job has on a side."""
    repetition = sample.repetition
    scale = units / max(1, repetition.units)
    share = repetition.distinct(side, units) / max(1.0, repetition.read(side, units))
    return repetition.letters[side] * scale * share


def _existing(path: str) -> str:
    """A path, or the nearest folder above it that is there."""
    while not os.path.isdir(path):
        path = os.path.dirname(path) or "."
    return path
