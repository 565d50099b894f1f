"""Everything batchscore raises on purpose, and the exit code each kind ends the program with.

    BatchscoreError                 1
    +-- UsageError                  2   the call itself is wrong: an option, a shape of lists
    +-- MissingDependencyError      3   an optional package or a device is missing
    +-- NotFoundError               4   no such model or input
    |   +-- CheckpointError         4   the model is there but cannot be used for scoring
    +-- InputError                  5   a file, column or row of the input cannot be read or scored
    +-- RuntimeFailureError         6   the device, the disk or the arithmetic failed during the run
    |   +-- DeviceMemoryError       6   a pack does not fit into memory; a smaller one may
    |   +-- DeviceLostError         6   the device no longer answers; it may work again in a new process
    +-- OutputError                 8   the output cannot be written to its path
    +-- VerificationError           9   `verify` could not confirm the scores
    +-- GateError                   9   `eval` found a measure that is too low, or has fallen too far
    +-- StoppedError               75   stopped on request; run again to resume
    +-- ClosedPipeError           141   nobody reads standard output any more, as after `| head`: no error is shown

What is wrong with single rows is no exception but a Fault (types.py), unless it ends a call or a run.
Codes 0 (all rows scored), 7 (all but some bad rows) and those of a second signal (130, 143, ...) complete the list.
A message is one line that names the field, the value and the choices; `hint` says what to do next.

With BATCHSCORE_DEBUG=1 in the environment the command line also shows the traceback behind an error. An error that
blames a file often wraps another library's exception; only the traceback tells a damaged file from a bug.
"""

from __future__ import annotations

import os
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

Errors = Literal["fail", "quarantine", "null"]  # what to do about bad rows: --errors


def first_line(error: BaseException) -> str:
    """The first line of an error's message, with those after it while it ends in a colon; its type if it has none."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    last = next((number for number, line in enumerate(lines) if not line.endswith(":")), len(lines))
    return " ".join(lines[: last + 1])


def one_line(error: BaseException) -> str:
    """The whole of an error's message as one line, or its type if it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def debug_traceback(error: BaseException) -> str:
    """The traceback of an error and its causes if BATCHSCORE_DEBUG=1 is set, else ""."""
    return "".join(traceback.format_exception(error)) if os.environ.get("BATCHSCORE_DEBUG") == "1" else ""


class BatchscoreError(Exception):
    """Base of all errors meant for a person; any other exception that escapes is a bug."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.names_keywords = False  # whether its text says what the flags of the hint are called in Python

    def __str__(self) -> str:
        if self.hint is None:
            return self.message
        flags = _FLAG.findall(self.hint) if self.names_keywords else []
        keywords = dict.fromkeys(_KEYWORDS.get(flag) or flag.replace("-", "_") for flag in flags)
        in_python = f" (in Python: {', '.join(keywords)})" if keywords else ""
        return f"{self.message}\nhint: {self.hint}{in_python}"


_FLAG = re.compile(r"(?<!\S)--([a-z][a-z-]+)")
_KEYWORDS = {"in": "inputs", "no-hive": "hive=False"}  # the others are called as their flags


def flags_in(error: BatchscoreError) -> list[str]:
    """The flags that an error's message names, without hyphens in front."""
    return list(dict.fromkeys(_FLAG.findall(error.message)))


@contextmanager
def naming_keywords() -> Iterator[None]:
    """Around calls from Python: hints speak of flags, and the text of an error then names the keywords too."""
    try:
        yield
    except BatchscoreError as error:
        error.names_keywords = True
        raise


class UsageError(BatchscoreError, ValueError):
    """An option or an argument without a valid meaning."""

    exit_code = 2


class MissingDependencyError(BatchscoreError, ImportError):
    """A package or device that this call needs but the machine lacks."""

    exit_code = 3


class NotFoundError(BatchscoreError):
    """A model or an input that does not exist."""

    exit_code = 4


class CheckpointError(NotFoundError):
    """A checkpoint that cannot produce a score: a missing head, a missing weight, an unknown pooling mode."""


class InputError(BatchscoreError):
    """A file, column or row that cannot be scored; the message names whichever of them is known."""

    exit_code = 5


class RuntimeFailureError(BatchscoreError):
    """Scoring started but could not continue."""

    exit_code = 6


class DeviceMemoryError(RuntimeFailureError):
    """A pack that does not fit into the device's memory."""


class DeviceLostError(RuntimeFailureError):
    """A device whose context is broken for this process."""


class VerificationError(BatchscoreError):
    """The model's own library gives different scores, or no library gives any."""

    exit_code = 9


class GateError(BatchscoreError):
    """A measure is below what was asked for, or has dropped by more than was allowed."""

    exit_code = 9


class StoppedError(BatchscoreError):
    """The run stopped on request; what is done is kept, and running again resumes it."""

    exit_code = 75  # EX_TEMPFAIL


class OutputError(BatchscoreError):
    """The output path cannot be used."""

    exit_code = 8


class ClosedPipeError(BatchscoreError):
    """Nobody reads standard output any more. The exit code is that of a program which SIGPIPE ends."""

    exit_code = 141
