"""What a run reports while it goes, and what it has come to in the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from batchscore.errors import GateError
from batchscore.jobs.meter import Meter
from batchscore.jobs.plan import Plan

if TYPE_CHECKING:  # it imports scipy
    from batchscore.evaluation.evaluate import Evaluation

End = Literal[
    "found",  # the output was complete before the run began, or another run completed it during this one
    "partial",  # other processes have units that are not done yet
    "share",  # every unit has its part, and this run was one of several that made them
    "parts",  # every unit has its part, and the folder of parts is the output
    "merged",  # this run assembled the output
    "merged-elsewhere",  # another run assembled it
    "streamed",  # the input was read, or the output written, as a stream
]
Stage = Literal["files", "weights"]  # of a model: first what it is, then, once it has to read a text, what that takes
_PARTIAL_SUCCESS = 7  # exit code: done, but for some bad rows


@dataclass(frozen=True, slots=True)
class Outcome:
    """A run that came to its end."""

    end: End  # how far the job is, and who brought it there
    output: str  # where the scores are
    bad_rows: int  # of the whole job if this run completed it, else of this process's units
    counts: Mapping[str, Any]  # likewise, with seconds and memory of this run
    done: Mapping[str, Any]  # counts of this run alone
    errors: str | None  # the list of bad rows, if there are any; a stream tells them as they come
    record: str | None  # the run record; None: there is none beside standard output
    plan: Plan = field(repr=False)  # what was decided before the first row
    evaluation: Evaluation | None = field(default=None, repr=False)  # of `rerank` with judgements, once all is scored

    @property
    def exit_code(self) -> int:
        """0; 7 if there are bad rows; 9 if the ranking is not good enough."""
        if self.evaluation is not None and self.evaluation.failures:
            return GateError.exit_code
        return _PARTIAL_SUCCESS if self.bad_rows else 0


class Events(Protocol):
    """What watches a run."""

    def loading(self, model: str, stage: Stage) -> None: ...  # or fetching, if it is on the hub; from any thread
    def started(self, lines: Sequence[str], description: Mapping[str, Any]) -> None: ...  # for people, for programs
    def progress(self, meter: Meter) -> None: ...  # after each pack, from any thread
    def note(self, line: str) -> None: ...  # news for people
    def bad_row(self, record: Mapping[str, Any]) -> None: ...  # of a stream, which has no list of them
    def finished(self, outcome: Outcome) -> None: ...


class Silent:
    """Ignores everything."""

    def loading(self, model: str, stage: Stage) -> None: ...
    def started(self, lines: Sequence[str], description: Mapping[str, Any]) -> None: ...
    def progress(self, meter: Meter) -> None: ...
    def note(self, line: str) -> None: ...
    def bad_row(self, record: Mapping[str, Any]) -> None: ...
    def finished(self, outcome: Outcome) -> None: ...


def bad_row_line(record: Mapping[str, Any]) -> str:
    """What a list of bad rows says of one, for people: "standard input, line 3: column 'document' is null"."""
    place = f"line {record['line']}" if "line" in record else f"row {record['row']}"
    column = f"column {record['column']!r} " if record["column"] else ""
    return f"{record['file']}, {place}: {column}{record['message']}"
