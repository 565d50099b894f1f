"""Units that are scored group by group, where the encodings of all documents would fill the disk.

All units are scored as far as they need a group of blocks while its encodings are there; then these are removed, and
the next group is encoded. What a pass makes of a unit is a file:

    part-00012.pass-1          the scores of a unit as far as groups 0 and 1 give them
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from batchscore.errors import InputError, RuntimeFailureError
from batchscore.io.encodings import EncodingsFile
from batchscore.io.storage import Folder
from batchscore.io.units import Unit
from batchscore.jobs.parts import part_name
from batchscore.types import Encodings


@dataclass(frozen=True, slots=True)
class Pass:
    """The rows of a unit whose documents are in one group of blocks."""

    unit: Unit
    group: int
    is_last: bool  # then the unit has all its scores, and is finished

    @property
    def index(self) -> int:
        """The unit's."""
        return self.unit.index

    @property
    def key(self) -> tuple[str, int]:
        """By which processes name it to each other."""
        return f"pass {self.group} of unit", self.index


class Passes:
    """What the passes of one job have made.

    Args:
        folder: of the job.
        job: its id.
        documents: how many each group has.
    """

    def __init__(self, folder: Folder, job: str, documents: Sequence[int]) -> None:
        self.folder, self._job, self._documents = folder, job, documents

    def is_finished(self, unit: Unit) -> bool:
        """Whether a unit has its part."""
        return self.folder.has(part_name(unit.index))

    def has(self, unit: Unit, group: int) -> bool:
        """Whether a unit that is not finished has the scores that this group gives."""
        return any(map(self.folder.has, self.files(unit, group)))

    def files(self, unit: Unit, group: int) -> list[str]:
        """Files, one of which says that a unit has the scores that this group gives."""
        return [_pass_file(unit, done) for done in range(group, len(self._documents) - 1)]

    def save(self, task: Pass, rows: Encodings) -> None:
        """Keep what is known of a unit's rows: raw scores as their vectors, tokens, cuts and faults."""
        note = {"job": self._job, "unit": task.index, "documents": self._documents_before(task.group + 1)}
        digests = np.zeros((len(rows), 2), np.uint64)  # rows are known by their places
        self.folder.write(_pass_file(task.unit, task.group), EncodingsFile(rows, digests, note).to_bytes())
        for before in range(task.group):
            self.folder.remove(_pass_file(task.unit, before))

    def before(self, task: Pass) -> Encodings:
        """What the pass before this one kept; RuntimeFailureError if it is damaged or gone."""
        name = _pass_file(task.unit, task.group - 1)
        wanted = {"job": self._job, "unit": task.index, "documents": self._documents_before(task.group)}
        try:
            file = EncodingsFile.of_bytes(self.folder.read(name), name)
            if file.note != wanted:
                raise ValueError("it was made with other groups")
            return file.encodings
        except (OSError, InputError, ValueError) as error:
            self.folder.remove(name)
            raise RuntimeFailureError(
                f"{self.folder.path}/{name} is damaged or gone",
                hint="run the same command again: only this unit's rows are scored again",
            ) from error

    def _documents_before(self, group: int) -> int:
        """How many documents the groups before this one have."""
        return sum(self._documents[:group])


def _pass_file(unit: Unit, group: int) -> str:
    return part_name(unit.index, f"pass-{group}")
