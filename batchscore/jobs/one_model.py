"""Of the models of a job one is in memory at a time: tasks of one model come together, and it is loaded for these."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import groupby

from batchscore.engine.batcher import Batcher
from batchscore.io.units import Unit
from batchscore.jobs.commands import Command, RequestsCommand
from batchscore.jobs.leases import Task
from batchscore.jobs.pipeline import OnDone, Pipeline
from batchscore.scorer import Setup


def model_of(command: Command, task: Task | None) -> int:
    """Which of a job's models a task needs; None, for there is no task yet, needs none in particular."""
    return command.model_of(task) if isinstance(command, RequestsCommand) and isinstance(task, Unit) else 0


class OneModel:
    """A pipeline for each of several models, as long as there are tasks for it.

    Args:
        setups: of the models.
        make: a pipeline for a model, whose weights are not read yet.
    """

    def __init__(self, setups: Sequence[Setup], make: Callable[[Batcher], Pipeline]) -> None:
        self._setups, self._make = setups, make
        self._number, self.pipeline = 0, make(Batcher(setups[0], lazy=True))

    def run(self, tasks: Iterable[Task | None], on_done: OnDone) -> None:
        """As that of a pipeline."""
        for number, some in groupby(tasks, self._number_of):
            if number != self._number:
                self.close()
                self._number, self.pipeline = number, self._make(Batcher(self._setups[number], lazy=True))
            self.pipeline.run(some, on_done)

    def task(self, key: tuple[str, int]) -> Task:
        """As that of a pipeline."""
        return self.pipeline.task(key)

    def close(self) -> None:
        """Stop the threads of the model in memory."""
        self.pipeline.batcher.close()

    def _number_of(self, task: Task | None) -> int:
        return self._number if task is None else model_of(self.pipeline.command, task)
