"""Which share of a job this process does: from --shard, or from the launcher's environment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from batchscore.errors import UsageError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Shard:
    """One share of the work: every `count`-th, from `index` on."""

    index: int = 0
    count: int = 1
    origin: str = "one process"  # where the numbers come from

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def share(self, tasks: Sequence[T]) -> list[T]:
        """The blocks or units of this shard, in order."""
        return list(tasks[self.index :: self.count])


_HINT = "pass --shard I/N (from 0), or claim units one at a time with --claim dynamic"


def find_shard(text: str | None, environment: Mapping[str, str]) -> Shard:
    """The shard that `text` (I/N, from 0) names, or else that of torchrun, of a Slurm array or of srun, or all.

    An array whose tasks start several processes with srun has a shard for each process.

    Raises:
        UsageError: the index is out of range, the array has gaps, or torchrun runs in an array.
    """
    if text is not None:
        return _parsed(text)
    torchrun = "RANK" in environment and "WORLD_SIZE" in environment
    array = "SLURM_ARRAY_TASK_ID" in environment
    if torchrun and array:
        raise UsageError("both torchrun (RANK) and a Slurm array (SLURM_ARRAY_TASK_ID) name a shard", hint=_HINT)
    if torchrun:
        return _checked(Shard(_number(environment, "RANK"), _number(environment, "WORLD_SIZE"), "torchrun"))
    # a batch script without srun has SLURM_PROCID=0 too, but only a step has several processes
    step = "SLURM_STEP_ID" in environment and "SLURM_PROCID" in environment
    tasks = int(environment.get("SLURM_STEP_NUM_TASKS") or environment.get("SLURM_NTASKS") or 1) if step else 1
    process = _number(environment, "SLURM_PROCID") if step else 0
    if array:
        index, count = _array_position(environment)
        origin = "Slurm array and srun" if tasks > 1 else "Slurm array"
        return _checked(Shard(index * tasks + process, count * tasks, origin))
    return _checked(Shard(process, tasks, "srun")) if tasks > 1 else Shard()


def _number(environment: Mapping[str, str], name: str) -> int:
    value = environment[name]
    if not value.isdecimal():
        raise UsageError(f"{name}={value!r} in the environment is not a number", hint=f"unset it, or {_HINT}")
    return int(value)


def _checked(shard: Shard) -> Shard:
    if not 0 <= shard.index < shard.count:
        raise UsageError(
            f"the environment ({shard.origin}) names shard {shard.index} of {shard.count}, which does not exist",
            hint=_HINT,
        )
    return shard


def _parsed(text: str) -> Shard:
    index, slash, count = text.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal() and int(count)):
        raise UsageError(f"--shard {text!r} is not I/N", hint="--shard 0/4 is the first of four")
    if int(index) >= int(count):
        raise UsageError(f"--shard {text}: shards count from 0", hint=f"0/{count} to {int(count) - 1}/{count}")
    return Shard(int(index), int(count), "--shard")


def _array_position(environment: Mapping[str, str]) -> tuple[int, int]:
    """(index, count) in an array without gaps; ids may start anywhere and increase in steps."""

    def value(name: str, default: int) -> int:
        return int(environment.get(f"SLURM_ARRAY_TASK_{name}") or default)

    task, least, most = value("ID", 0), value("MIN", 0), value("MAX", 0)
    step, count = value("STEP", 1), value("COUNT", 1)
    if least + (count - 1) * step != most:
        raise UsageError(f"the Slurm array has gaps: {count} tasks with ids from {least} to {most}", hint=_HINT)
    return (task - least) // step, count
