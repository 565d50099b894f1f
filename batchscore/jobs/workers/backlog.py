"""Tasks that wait for a worker, and tasks that a worker died on."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator

from batchscore.errors import RuntimeFailureError
from batchscore.jobs.blocks import Block
from batchscore.jobs.leases import Task

_DEATHS_OF_A_TASK = 2  # after which it is given up: one death may be the machine's fault, two are the task's


class Backlog:
    """Tasks for several workers.

    All tasks that a dead worker had are suspects, since one may have been read while another was in the model. Each is
    tried again alone, so that the next death shows which one it was.
    """

    def __init__(self, tasks: Iterator[Task | None], note: Callable[[str], None]) -> None:
        self._tasks, self._note = tasks, note
        self._returned: deque[Task] = deque()
        self._deaths: Counter[tuple[str, int]] = Counter()  # of workers, by task
        self.given_up: dict[Task, str] = {}  # tasks that are not tried again, with the reason
        self.is_waiting = False  # the next task is not ready yet

    def take(self, in_work: Collection[Task]) -> Task | None:
        """A task for a worker that has these in work; None if none may join them, or if none is ready."""
        if any(task.key in self._deaths for task in in_work):
            return None
        if self._returned and not in_work:
            return self._returned.popleft()
        if any(isinstance(task, Block) for task in self.given_up):  # no unit can be scored without it
            self.is_waiting = False
            return None
        self.is_waiting = True  # unless the tasks have an end here
        for task in self._tasks:
            self.is_waiting = task is None
            return task
        self.is_waiting = False
        return None

    def bury(self, worker: str, reason: str, in_work: Collection[Task], restarts: int) -> bool:
        """Take back the tasks of a dead worker that may be restarted so often; returns whether it is."""
        for task in in_work:
            self._deaths[task.key] += 1
            if self._deaths[task.key] < _DEATHS_OF_A_TASK:
                self._returned.append(task)
            else:
                self.given_up[task] = f"{_DEATHS_OF_A_TASK} workers died on it, the last with {reason}"
        then = f"started again, {restarts - 1} restarts left" if restarts else "going on without it"
        self._note(f"worker on {worker} died ({reason}); {then}")
        return restarts > 0

    def require_empty(self) -> None:
        """RuntimeFailureError if tasks are left that no worker is there for."""
        if self.take(()) is not None or self.is_waiting:
            raise RuntimeFailureError(
                "no worker is left, and not all units are done", hint="run the same command again to resume"
            )
