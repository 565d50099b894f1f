"""Units that wait for a worker, and what becomes of those that a worker died on."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator

from batchscore.errors import RuntimeFailureError
from batchscore.io.units import Unit

_DEATHS_OF_A_UNIT = 2  # after so many it is given up


class Backlog:
    """Units for several workers.

    All that a dead worker had are suspects: one may have been read while another was in the model. They are tried again
    alone, so that the next death tells.
    """

    def __init__(self, units: Iterator[Unit], say: Callable[[str], None]) -> None:
        self._units, self._say = units, say
        self._returned: deque[Unit] = deque()
        self._deaths: Counter[int] = Counter()  # of the workers of a unit
        self.given_up: dict[int, str] = {}  # units that are not tried again, and why

    def take(self, in_work: Collection[Unit]) -> Unit | None:
        """A unit for a worker that has these in work; None if there is none that may join them."""
        if any(unit.index in self._deaths for unit in in_work):
            return None
        return self._returned.popleft() if self._returned and not in_work else next(self._units, None)

    def bury(self, place: str, why: str, in_work: Collection[Unit], restarts: int) -> bool:
        """Take a dead worker's units back; whether it is started again, of which so many times are left."""
        for unit in in_work:
            self._deaths[unit.index] += 1
            if self._deaths[unit.index] < _DEATHS_OF_A_UNIT:
                self._returned.append(unit)
            else:
                self.given_up[unit.index] = f"{_DEATHS_OF_A_UNIT} workers died on it, the last with {why}"
        then = f"started again, {restarts - 1} restarts left" if restarts else "going on without it"
        self._say(f"worker on {place} died ({why}); {then}")
        return restarts > 0

    def require_empty(self) -> None:
        """RuntimeFailureError if there are units that nobody is left for."""
        if self.take(()) is not None:
            raise RuntimeFailureError(
                "no worker is left, and not all units are done", hint="run the same command again to go on"
            )
