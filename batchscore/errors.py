"""Everything batchscore raises on purpose, and the exit code each kind ends the program with.

    BatchscoreError                 1
    +-- UsageError                  2   the call itself is wrong: an option, a shape of lists
    +-- MissingDependencyError      3   an optional package or a device is not there
    +-- NotFoundError               4   no such model or input
    |   +-- CheckpointError         4   the model is there and cannot be used for scoring
    +-- InputError                  5   a file, column or row of the input is not what was asked for
    +-- RuntimeFailureError         6   the device, the disk or the numbers failed on the way
    |   +-- DeviceMemoryError             6   a pack does not fit into memory; a smaller one may
    |   +-- DeviceLostError         6   the device answers no more; a new process may find it well
    +-- OutputError                 8   the output cannot be written where it was asked for
    +-- StoppedError                    75   asked to stop; run again to go on

RowError is internal: it becomes a fault of its row, an InputError or a RuntimeFailureError once its file is known.
Codes 0 (all rows scored), 7 (all but some rows that are at fault) and those of a second signal (130, 143, ...) complete
the list. A message is one line that names the field, the value and the choices; `hint` is the next step for the person
who reads it.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:  # the command line shows its help without numpy
    import numpy as np
    from numpy.typing import NDArray


Errors = Literal["fail", "quarantine", "null"]  # what becomes of rows at fault: --errors


def first_line(error: BaseException) -> str:
    """What an error says, in one line."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def debug_traceback(error: BaseException) -> str:
    """The traceback of an error and its causes if BATCHSCORE_DEBUG=1 is set, else ""."""
    return "".join(traceback.format_exception(error)) if os.environ.get("BATCHSCORE_DEBUG") == "1" else ""


class BatchscoreError(Exception):
    """Base of all errors meant for a person; anything else that escapes is a bug."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message}\nhint: {self.hint}"


class UsageError(BatchscoreError, ValueError):
    """An option or an argument that cannot mean anything."""

    exit_code = 2


class MissingDependencyError(BatchscoreError, ImportError):
    """A package or device that this call needs and the machine lacks."""

    exit_code = 3


class NotFoundError(BatchscoreError):
    """A model or an input that is not where it was said to be."""

    exit_code = 4


class CheckpointError(NotFoundError):
    """A checkpoint that cannot give a score: a missing head, a missing weight, an unknown pooling mode."""


class InputError(BatchscoreError):
    """A file, column or row that cannot be scored; the message names all three where they are known."""

    exit_code = 5


class RuntimeFailureError(BatchscoreError):
    """Scoring started and could not go on."""

    exit_code = 6


class DeviceMemoryError(RuntimeFailureError):
    """A pack that does not fit into the device's memory."""


class DeviceLostError(RuntimeFailureError):
    """A device whose context is broken for this process."""


class RowError(BatchscoreError):
    """A fault of rows, raised where only their positions in the window are known; the pipeline adds file and row.

    `cause` says whose fault it is: an InputError, the rows'; a RuntimeFailureError, the model's. `code` is what the
    list of rows at fault calls it.
    """

    def __init__(
        self,
        rows: Sequence[int] | NDArray[np.integer],
        message: str,
        *,
        code: str,
        cause: type[InputError | RuntimeFailureError],
        hint: str | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.rows = [int(row) for row in rows]
        self.code = code
        self.cause = cause

    @property
    def row(self) -> int:
        """The first of them."""
        return self.rows[0]


class StoppedError(BatchscoreError):
    """The run was asked to stop and left what is done in a state to go on from."""

    exit_code = 75  # EX_TEMPFAIL


class OutputError(BatchscoreError):
    """The output path is unusable."""

    exit_code = 8
