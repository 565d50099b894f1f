"""Units that wait for a worker, and units that a worker died on."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator

from batchscore.errors import RuntimeFailureError
from batchscore.io.units import Unit

_DEATHS_OF_A_UNIT = 2  # after which it is given up: one death may be the machine's fault, two are the unit's


class Backlog:
    """Units for several workers.

    All units that a dead worker had are suspects, since one may have been read while another was in the model. Each is
    tried again alone, so that the next death shows which one it was.
    """

    def __init__(self, units: Iterator[Unit], note: Callable[[str], None]) -> None:
        self._units, self._note = units, note
        self._returned: deque[Unit] = deque()
        self._deaths: Counter[int] = Counter()  # of workers, by unit
        self.given_up: dict[int, str] = {}  # units that are not tried again, with the reason

    def take(self, in_work: Collection[Unit]) -> Unit | None:
        """A unit for a worker that has these in work; None if no unit may join them."""
        if any(unit.index in self._deaths for unit in in_work):
            return None
        return self._returned.popleft() if self._returned and not in_work else next(self._units, None)

    def bury(self, worker: str, reason: str, in_work: Collection[Unit], restarts: int) -> bool:
        """Take back the units of a dead worker that may be restarted so often; returns whether it is."""
        for unit in in_work:
            self._deaths[unit.index] += 1
            if self._deaths[unit.index] < _DEATHS_OF_A_UNIT:
                self._returned.append(unit)
            else:
                self.given_up[unit.index] = f"{_DEATHS_OF_A_UNIT} workers died on it, the last with {reason}"
        then = f"started again, {restarts - 1} restarts left" if restarts else "going on without it"
        self._note(f"worker on {worker} died ({reason}); {then}")
        return restarts > 0

    def require_empty(self) -> None:
        """RuntimeFailureError if units are left that no worker is there for."""
        if self.take(()) is not None:
            raise RuntimeFailureError(
                "no worker is left, and not all units are done", hint="run the same command again to resume"
            )
