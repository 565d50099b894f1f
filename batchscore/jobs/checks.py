"""What can be refused of a run's options before anything is opened."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from math import inf

from batchscore.cli.options import Files, Shares
from batchscore.errors import RuntimeFailureError, UsageError
from batchscore.io.source import Source
from batchscore.io.storage import is_url, local_path, split_url
from batchscore.jobs.output import Output
from batchscore.jobs.parts import Parts
from batchscore.jobs.shards import Shard, find_shard


def shard_of(shares: Shares) -> Shard:
    """The share of this process; UsageError as `find_shard`."""
    if shares.claim == "dynamic" and shares.shard is None:
        with suppress(UsageError):  # an array with gaps: only where each begins is read off it
            return find_shard(None, os.environ)
        return Shard()
    return find_shard(shares.shard, os.environ)


@dataclass(frozen=True, slots=True)
class MaxErrors:
    """How many rows of a job may be at fault."""

    number: float
    is_share: bool  # in percent of the job's rows

    @classmethod
    def parsed(cls, text: str | None) -> MaxErrors:
        """From N or P%."""
        if text is None:
            return cls(inf, is_share=False)
        try:
            number = float(text.removesuffix("%"))
        except ValueError:
            number = -1.0
        if not number >= 0:  # nor is nan
            raise UsageError(f"--max-errors {text!r} is not a number of rows or a percentage", hint="such as 100 or 1%")
        return cls(number, text.endswith("%"))

    def check(self, faulty: int, rows: int) -> None:
        """Raise RuntimeFailureError if so many of the job's rows are too many."""
        if faulty > (self.number * rows / 100 if self.is_share else self.number):
            limit = f"{self.number:.6g}{'%' if self.is_share else ''}"
            raise RuntimeFailureError(
                f"{faulty:,} of {rows:,} rows are at fault, more than --max-errors {limit}",
                hint="see the list of errors; what is done stays, and a run that allows more goes on with it",
            )


def refuse_overwriting_input(source: Source, output: Output) -> None:
    """Raise UsageError if the output is one of the inputs."""
    for file in source.fingerprint():
        name = str(file["name"])
        for out in (output.path, output.file):
            if _is_same(name, out):
                raise UsageError(f"--out {out} is one of the inputs", hint="choose another output")


def refuse_merging_into(parts: Parts, file: str) -> None:
    """Raise UsageError if a merge would overwrite an input of the job, or one of its parts."""
    if any(_is_same(file, source["name"]) for source in parts.fingerprint["inputs"]):
        raise UsageError(f"--out {file} is an input of the job", hint="choose another output")
    if _is_same(split_url(local_path(file))[0], parts.folder.path):
        raise UsageError(f"--out {file} lies among the job's parts", hint="choose another folder")


def _is_same(one: str, other: str) -> bool:
    return one == other or (os.path.exists(one) and os.path.exists(other) and os.path.samefile(one, other))


def refuse_together(files: Files, shares: Shares, shard: Shard, output: Output) -> None:
    """Raise UsageError for options that do not go together."""
    if files.overwrite and shard.count > 1:
        raise UsageError(
            "--overwrite in one of several shards would throw away what others did",
            hint=f"remove {output.parts} before the shards start",
        )
    if shares.claim == "dynamic" and is_url(output.parts):
        raise UsageError(
            "--claim dynamic needs a disk: an object store cannot say who was first",
            hint="leave it out: --claim static",
        )
    if shares.devices is not None and shares.engine == "ray":
        raise UsageError("--devices is for this machine, and --engine ray takes what the cluster has", hint="drop one")
    if shares.ray_address is not None and shares.engine != "ray":
        raise UsageError("--ray-address without --engine ray says nothing", hint="add --engine ray, or drop it")
