"""Rows of a job from all over its input, read and cut into windows as the job would.

Some units are read whole, so that what repeats inside a unit is counted and not guessed. Of each window of them a part
is drawn to be tokenized: runs of neighbouring rows, or whole lists of documents, since these decide what packs share;
and distinct texts, since drawing rows would draw a text the more often the more rows have it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np

from batchscore.engine.timing import Timing, groups_of, spread_rows, timed
from batchscore.io.source import Source
from batchscore.io.units import Unit
from batchscore.jobs.commands import Command
from batchscore.jobs.commands.base import UnitRows
from batchscore.jobs.survey import Repetition, picked_units
from batchscore.models.text.prompts import distinct_pairs
from batchscore.scorer import Setup
from batchscore.types import SIDES, Cell, Pairs, Side


@dataclass(frozen=True, slots=True)
class Window:
    """Pairs that a job tokenizes and packs together, and what is drawn of them."""

    pairs: int
    distinct_pairs: int
    distinct: Mapping[Side, int]  # texts
    drawn: Pairs
    texts: Mapping[Side, Sequence[Cell]]  # drawn of the distinct ones

    @classmethod
    def of(cls, pairs: Pairs, wanted: int) -> Window:
        """Draw about `wanted` pairs of a window, and at most `wanted` distinct texts of each side."""
        rows = spread_rows(groups_of(pairs), wanted)
        texts = {}
        for side in SIDES:
            values = pairs.sides[side].values
            texts[side] = [values[place] for place in spread_rows(np.arange(len(values)), wanted).tolist()]
        return cls(
            len(pairs),
            len(distinct_pairs(pairs)[0]),
            {side: len(cells.values) for side, cells in pairs.sides.items()},
            pairs.rows(rows) if len(rows) < len(pairs) else pairs,
            texts,
        )


@dataclass(frozen=True, slots=True)
class Sample:
    """What was read and drawn."""

    rows: int  # of the units that were read, bad ones too
    units: int
    bad_rows: int
    windows: Sequence[Window]
    repetition: Repetition
    reading: Timing  # of the texts of these units, and of telling them apart
    has_all_units: bool

    @property
    def pairs(self) -> int:
        """Pairs in the units that were read."""
        return sum(window.pairs for window in self.windows)

    @property
    def drawn(self) -> int:
        """Pairs that were drawn."""
        return sum(len(window.drawn) for window in self.windows)

    @property
    def is_whole(self) -> bool:
        """Whether nothing is estimated."""
        return self.has_all_units and all(
            len(window.drawn) == window.pairs
            and all(len(window.texts[side]) == window.distinct[side] for side in SIDES)
            for window in self.windows
        )


def take_sample(command: Command, source: Source, setup: Setup, units: Sequence[Unit], size: int) -> Sample:
    """Read some units, and draw about `size` pairs of them."""
    picked, repetition = picked_units(source, units), Repetition()
    windows: list[Window] = []
    rows = bad = 0
    reading = Timing()

    def read(unit: Unit) -> UnitRows:
        loaded = command.load_pairs(source, unit)
        repetition.add(loaded.pairs.sides)
        return loaded

    with closing(source):
        for unit in picked:
            loaded, timing = timed(lambda unit=unit: read(unit))  # type: ignore[misc]
            reading += timing
            rows += unit.rows
            bad += len({row.row for row in loaded.bad_rows})
            assert isinstance(loaded.pairs, Pairs)
            cut = list(_windows(loaded.pairs, setup))
            windows += [Window.of(pairs, max(1, size // (len(picked) * len(cut)))) for pairs in cut]
    return Sample(rows, len(picked), bad, windows, repetition, reading, len(picked) == len(units))


def _windows(pairs: Pairs, setup: Setup) -> Iterator[Pairs]:
    """The windows of a unit, as the pipeline has them; a unit whose rows list documents has several."""
    step = max(1, len(pairs) if setup.spec.listwise else setup.budget.window_rows)
    for start in range(0, len(pairs), step):
        yield pairs.rows(slice(start, start + step)) if len(pairs) > step else pairs
