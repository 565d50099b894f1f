"""A job as it is sent to another process: values from which that opens everything."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from socket import gethostname
from typing import Any

from batchscore.errors import Errors, InputError, RuntimeFailureError
from batchscore.io.source import Addresses
from batchscore.io.storage import open_folder
from batchscore.jobs.blocks import open_blocks
from batchscore.jobs.commands import Command
from batchscore.jobs.meter import Meter
from batchscore.jobs.one_model import OneModel
from batchscore.jobs.options import EncodeChoice
from batchscore.jobs.parts import first_difference, open_parts
from batchscore.jobs.pipeline import OnDone, Pipeline
from batchscore.jobs.plan import Plan
from batchscore.jobs.shelves import Stores
from batchscore.scorer import set_up
from batchscore.stop import Stop

_SAME_FILES = "every worker needs the same files under the same paths"


@dataclass(frozen=True)
class WorkerJob:
    """What is done to which input, into which folder."""

    command: Command
    scorer: Mapping[str, Any]  # keywords of Scorer
    source: Addresses
    folder: str  # of the parts
    errors: Errors
    encode: EncodeChoice
    store: Sequence[str] | None
    others: Sequence[Mapping[str, Any]] = ()  # keywords for further models

    def pipeline(self, meter: Meter, stop: Stop, *, device: str) -> OneModel:
        """A pipeline with models of its own on this device; with a store, weights are read when they are needed.

        Raises:
            RuntimeFailureError: this process does not see the job's folder, or would score something else.
            InputError: the input has changed since the job began.
        """
        parts = open_parts(open_folder(self.folder))
        if parts is None:
            raise RuntimeFailureError(
                f"{gethostname()} does not see {os.path.abspath(self.folder)}, or it was removed", hint=_SAME_FILES
            )
        source = self.source.open()
        changed = first_difference(parts.fingerprint["inputs"], source.fingerprint(), "inputs")
        if changed is not None:
            raise InputError(f"the input is not what it was when the job began: {changed}", hint="run again to see")
        if not source.is_ready:  # on another machine, where the job's folder is on no disk
            source.make_ready()
        setups = [set_up(**{**scorer, "device": device}) for scorer in (self.scorer, *self.others)]
        plan = Plan(
            setups[0],
            self.command,
            self.errors,
            self.encode,
            source.fingerprint(),
            self.folder,
            self.scorer,
            source.media,
            setups[1:],
        )
        if (difference := first_difference(parts.fingerprint, plan.fingerprint)) is not None:
            raise RuntimeFailureError(f"{gethostname()} would score something else: {difference}", hint=_SAME_FILES)
        blocks = open_blocks(parts.folder, parts.id) if parts.encode == "once" else None
        shelves = Stores.of(plan, self.store or ()).open(plan)
        models = OneModel(
            setups,
            lambda batcher: Pipeline(batcher, self.command, source, parts, blocks, shelves, self.errors, meter, stop),
        )
        if not self.store:  # which may have all; else a process that dies of it dies on no task
            models.pipeline.batcher.load()
        return models


@dataclass(frozen=True)
class Workforce:
    """What the process that leads the workers has, wherever these run."""

    job: WorkerJob
    meter: Meter
    stop: Stop
    max_restarts: int  # of each worker that dies
    finish: OnDone  # called with the counts of each task that is done
    note: Callable[[str], None]  # called with news for a person
