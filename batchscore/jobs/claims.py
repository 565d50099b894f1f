"""The units that one process works on: claimed, shown to other processes while in work, counted when finished."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from threading import Lock
from typing import Any

from batchscore.io.units import Unit
from batchscore.jobs.checks import MaxErrors, bad_rows
from batchscore.jobs.leases import Leases, Presence
from batchscore.jobs.parts import Parts, total
from batchscore.stop import Stop


class Claims:
    """Hands out the units of a run and takes them back."""

    def __init__(self, parts: Parts, presence: Presence, limits: MaxErrors, *, is_dynamic: bool, bad: int) -> None:
        self.counts: Mapping[str, Any] = {"rows": 0, "faulty": 0, "tokens": 0}  # of the units finished here
        self._parts, self._presence, self._limits = parts, presence, limits
        self._leases = Leases(parts, presence) if is_dynamic else None
        self._bad = bad  # rows of units that were finished before, by anybody
        self._lock = Lock()

    def units(self, units: Sequence[Unit]) -> Iterator[Unit]:
        """Those of the units that this process gets, one at a time."""
        for unit in self._leases.claimed(units) if self._leases else units:
            self._presence.units.add(unit.index)
            yield unit

    def finish(self, unit: Unit, counts: Mapping[str, Any]) -> None:
        """Count a unit that has its part; RuntimeFailureError if the job has too many bad rows by now."""
        self._presence.units.discard(unit.index)
        self._presence.finished_rows += unit.rows
        if self._leases:
            self._leases.release(unit)
        with self._lock:
            self.counts = total([self.counts, counts])
            self._limits.check(self._bad + bad_rows(self.counts), self._parts.rows)

    def wait_for_more(self, units: Sequence[Unit], stop: Stop) -> list[Unit]:
        """Units of a process that turned out to be dead; only a dynamic claim takes them over."""
        return self._leases.wait_for_silent(units, stop) if self._leases else []

    def release(self) -> None:
        """Give back what is not finished."""
        for index in list(self._presence.units):
            self._presence.units.discard(index)
            if self._leases:
                self._leases.release(self._parts.units[index])
