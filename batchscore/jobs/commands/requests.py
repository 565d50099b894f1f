"""`run-batch`: lines with requests of the scoring API in, and for each a line with its answer out, in the same order.

Pairs of many requests are one window, whatever the options of each (`engine/layouts.py`). Whatever is wrong with a line
is its own answer. Of several models one is in memory at a time: every line is read in the pass of each of them, and
answered in that of its own.

An answer is the same bytes whenever and wherever it is made: its ids are digests of the line and its number, and its
`created` is the time of the file with the requests.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from batchscore.io.outputs import Layout
from batchscore.io.source import Source
from batchscore.io.units import Unit
from batchscore.jobs.commands.base import UnitRows
from batchscore.jobs.parts import Fingerprint, Parts
from batchscore.types import Scores

ANSWER, ROW = "answer", "row"  # columns of a part: lines of the output, and the row of the unit that each answers
_ROWS_SHARE, _UNIT_BYTES = 4, 8 << 20  # a line has some pairs: of a unit's rows this share, and fewer where it has many


@dataclass(frozen=True)
class RequestsCommand:
    """What `run-batch` reads and writes besides the models."""

    name: ClassVar[str] = "run-batch"

    models: Sequence[str]  # the names under which they are served
    limit: int | None = None

    def check(self, source: Source) -> None:
        """Nothing: a bad line is answered."""

    def lines(self, source: Source) -> list[str]:
        """Under which names models are asked for."""
        return [f"serves   {', '.join(self.models)}"]

    def units(self, source: Source, unit_rows: int, *, listwise: bool) -> list[Unit]:
        """Units of lines, each once for each model, one after the other; every one counts for a share of its lines."""
        units = source.units(max(1, unit_rows // _ROWS_SHARE), size=_UNIT_BYTES, limit=self.limit)
        count = len(self.models)
        return [
            Unit(
                unit.index * count + model,
                tuple(replace(span, rows=(span.rows + model) // count) for span in unit.spans),
            )
            for unit in units
            for model in range(count)
        ]

    def model_of(self, unit: Unit) -> int:
        """Which model a unit needs."""
        return unit.index % len(self.models)

    def load(self, source: Source, unit: Unit) -> UnitRows:
        """One pair for each score that the model of this unit is asked for."""
        from batchscore.jobs.commands.answers import (
            RequestRows,  # with the models of pydantic, which take a while to make
        )

        files = source.fingerprint()
        times = [_seconds(files[span.file]["modified"]) for span in unit.spans]
        return RequestRows.of(unit, source.read(unit, None, {}), times, self.models, self.model_of(unit))

    def load_pairs(self, source: Source, unit: Unit) -> UnitRows:
        """The same: nothing is read besides the pairs."""
        return self.load(source, unit)

    def merged(self, parts: Parts, units: Sequence[int], scratch: str, layout: Layout = "own") -> Generator[pa.Table]:
        """The answers in the order of the requests."""
        count, found = len(self.models), dict[int, list[int]]()
        for unit in units:
            found.setdefault(unit // count, []).append(unit)
        for passes in found.values():
            yield pa.concat_tables(map(parts.read, passes)).sort_by(ROW).select([ANSWER])

    def finished(self, part: pa.Table, job: Fingerprint) -> Iterator[pa.Table]:
        """The answers of one part."""
        yield part.select([ANSWER])


@dataclass(frozen=True, slots=True)
class RequestScores:
    """The scores of some pairs, with what answers say beside them."""

    scores: Scores
    rank_by: NDArray[np.float32]  # [rows]
    query_tokens: NDArray[np.int32]  # [rows], of the query where it is read by itself, else 0
    warnings: Mapping[int, Sequence[str]]  # of the option sets of these pairs, by code

    @property
    def cut(self) -> NDArray[np.uint8]:
        """As of `Scores`."""
        return self.scores.cut

    @property
    def num_tokens(self) -> NDArray[np.int32]:
        """As of `Scores`."""
        return self.scores.num_tokens

    def tokens(self, *, shares_query: bool) -> int:
        """Tokens that the model read for one request, whose query may be that of all its pairs."""
        again = int(self.query_tokens[1:].sum()) if shares_query else 0
        return int(self.scores.num_tokens.sum()) - again

    def take(self, rows: NDArray[np.integer]) -> RequestScores:
        """Some rows."""
        return RequestScores(self.scores.take(rows), self.rank_by[rows], self.query_tokens[rows], self.warnings)

    @classmethod
    def concat(cls, parts: Sequence[RequestScores]) -> RequestScores:
        """The rows of all parts, one after the other."""
        return cls(
            Scores.concat([part.scores for part in parts]),
            np.concatenate([np.empty(0, np.float32), *(part.rank_by for part in parts)]),
            np.concatenate([np.empty(0, np.int32), *(part.query_tokens for part in parts)]),
            {code: warnings for part in parts for code, warnings in part.warnings.items()},
        )


def _seconds(modified: str | None) -> int:
    """Seconds since 1970; 0 where a file has no time."""
    return 0 if modified is None else int(datetime.fromisoformat(modified).timestamp())
