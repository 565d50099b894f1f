"""A job as another process needs it: values that travel, from which it opens everything by itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from batchscore.errors import Errors, InputError, RuntimeFailureError
from batchscore.io.source import Addresses
from batchscore.io.storage import open_folder
from batchscore.jobs.commands import Command
from batchscore.jobs.meter import Meter
from batchscore.jobs.parts import Parts, first_difference, open_parts
from batchscore.jobs.pipeline import Pipeline
from batchscore.scorer import Scorer
from batchscore.stop import Stop


@dataclass(frozen=True)
class WorkerJob:
    """What is done to which input, into which folder."""

    job: Command
    scorer: Mapping[str, Any]  # keywords of Scorer
    inputs: Addresses
    folder: str  # of the parts
    errors: Errors

    def parts(self) -> Parts:
        """The job's parts."""
        parts = open_parts(open_folder(self.folder))
        if parts is None:
            raise RuntimeFailureError(f"{self.folder} is gone", hint="run the same command again")
        return parts

    def pipeline(self, meter: Meter, stop: Stop, *, device: str) -> Pipeline:
        """A pipeline with a model of its own on this device."""
        parts, source = self.parts(), self.inputs.open()
        # files may have changed meanwhile
        changed = first_difference(parts.fingerprint["inputs"], source.fingerprint(), "inputs")
        if changed is not None:
            raise InputError(f"the input is not what it was when the job began: {changed}", hint="run again to see")
        return Pipeline(Scorer(**{**self.scorer, "device": device}), self.job, source, parts, self.errors, meter, stop)
