"""What a command is to a job: it divides the input into units, reads one, and makes a table of its scores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from batchscore.engine.layouts import RequestPairs
from batchscore.errors import BatchscoreError, InputError, RuntimeFailureError
from batchscore.io.outputs import Layout
from batchscore.io.source import Chunk, Source
from batchscore.io.units import Unit
from batchscore.jobs.parts import Fingerprint, Parts
from batchscore.types import Cell, Fault, OneSide, Pairs

Counts = dict[str, Any]


@dataclass(frozen=True, slots=True)
class BadRow:
    """A fault and where in the input it is: what the list of errors holds."""

    row: int  # of the unit
    document: int  # of the row, where it lists several
    file: str
    counts_in: str  # "row" or "line"
    number: int
    column: str | None
    fault: Fault

    @classmethod
    def of(cls, chunk: Chunk, row: int, fault: Fault, document: int = 0, column: str | None = None) -> BadRow:
        """The fault of a row of a chunk; `column` if the fault names none."""
        return cls(row, document, *chunk.location(row), fault.column or column, fault)

    def record(self) -> dict[str, Any]:
        """JSON-able; rows count from 0, lines from 1."""
        line = {"line": self.number} if self.counts_in == "line" else {}
        row = self.number - 1 if line else self.number
        fault = {"code": self.fault.code, "message": self.fault.message}
        return {"file": self.file, "row": row, **line, "column": self.column, **fault}

    def error(self, prefix: str = "") -> BatchscoreError:
        """The fault as what ends a run."""
        kind = RuntimeFailureError if self.fault.is_models else InputError
        column = f"column {self.column!r} " if self.column else ""
        message = f"{prefix}{self.file}, {self.counts_in} {self.number}: {column}{self.fault.message}"
        return kind(message, hint=self.fault.hint)


class UnitRows(Protocol):
    """The rows of a unit, read and checked, with what its table needs besides scores."""

    @property
    def unit(self) -> Unit: ...
    @property
    def pairs(self) -> Pairs | OneSide | RequestPairs: ...  # of the rows that have their texts
    @property
    def bad_rows(self) -> Sequence[BadRow]: ...  # of the others
    def bad_row(self, pair: int, fault: Fault) -> BadRow: ...
    def table(self, pairs: NDArray[np.int64], scores: Any, *, keep_bad: bool) -> tuple[pa.Table, Counts]:
        """(the unit's part, further counts); `scores` are those of `pairs`, rows without one stay if `keep_bad`.

        What `scores` are is for the method to say that makes them (`jobs/scoring.py`): `Scores`, or `Encoded` texts.
        """

    def before(self, table: pa.Table, row: int) -> pa.Table:
        """What the rows before the first bad row have in the unit's part."""


class Command(Protocol):
    """What `score` and the like do to the units of a job. Its fields are JSON-able: they describe the job."""

    name: ClassVar[str]

    def check(self, source: Source) -> None: ...  # columns, before a model is loaded
    def lines(self, source: Source) -> list[str]: ...  # what a person should know of how rows are read
    def units(self, source: Source, unit_rows: int, *, listwise: bool) -> Iterable[Unit]: ...
    def load(self, source: Source, unit: Unit) -> UnitRows: ...
    def load_pairs(self, source: Source, unit: Unit) -> UnitRows: ...  # as `load`, with nothing else read
    def merged(self, parts: Parts, units: Sequence[int], scratch: str, layout: Layout) -> Generator[pa.Table]: ...
    def finished(self, part: pa.Table, job: Fingerprint) -> Iterable[pa.Table]: ...  # as `merged`, of a part by itself


def columns_line(found: Mapping[str, str]) -> list[str]:
    """What a person reads of columns that were found by their names (what is in each -> its name)."""
    told = [f"{what} in {name}" for what, name in found.items() if name not in _FIRST_NAMES]
    return [f"columns  {', '.join(told)}"] if told else []


_FIRST_NAMES = ("query", "document", "documents", "document_id")  # of columns that nobody wonders about


def media_counts(cells: Iterable[Cell]) -> Counts:
    """Distinct images and videos of these cells, and their pixels; nothing where there are none."""
    media = {one for cell in cells if not isinstance(cell, str) for one in cell.media}
    if not media:
        return {}
    kinds = Counter(one.kind for one in media)
    pixels = sum(one.width * one.height * one.count for one in media)
    return {"media": {"images": kinds["image"], "videos": kinds["video"], "pixels": pixels}}


def input_order(bad: BadRow) -> tuple[int, int]:
    """By what bad rows are sorted."""
    return bad.row, bad.document
