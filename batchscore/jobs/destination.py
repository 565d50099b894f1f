"""What a pipeline knows of where finished units go: the parts of a job (parts.py), or a stream (stream.py)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from batchscore.io.units import Unit
from batchscore.jobs.progress import Progress


class Destination(Protocol):
    """Takes finished units, and may keep what there is of those in work."""

    @property
    def units(self) -> Sequence[Unit]: ...  # that are known beforehand
    @property
    def in_order(self) -> bool: ...  # as the input has them: with --errors fail, rows before the bad one are taken
    def progress(self, unit: Unit) -> Progress | None: ...  # where encodings of a unit in work are kept
    def saved_scores(self, unit: Unit, rows: int, k: int) -> NDArray[np.float32]: ...
    def save_scores(self, unit: Unit, raw: NDArray[np.float32]) -> None: ...
    def write(
        self, unit: Unit, table: pa.Table, counts: Mapping[str, Any], faults: Sequence[Mapping[str, Any]]
    ) -> None: ...
