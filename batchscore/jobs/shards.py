"""Which share of a job is this process's: as told, or as the launcher's environment says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from batchscore.errors import UsageError
from batchscore.io.units import Unit


@dataclass(frozen=True, slots=True)
class Shard:
    """Which share of the units is this process's: every `count`-th, from `index` on."""

    index: int = 0
    count: int = 1
    origin: str = "one process"  # where that was read off

    def units(self, units: Sequence[Unit]) -> list[Unit]:
        """The units of this shard, in order."""
        return list(units[self.index :: self.count])


_SAY = "say it with --shard I/N (from 0), or take units as they come with --claim dynamic"


def find_shard(given: str | None, environment: Mapping[str, str]) -> Shard:
    """The shard that `given` (I/N, from 0) names, else that of torchrun, of a Slurm array, of srun, or all.

    An array whose tasks start several processes with srun has a shard for each of them.

    Raises:
        UsageError: a shard that there is not, an array with gaps, torchrun inside of an array.
    """
    if given is not None:
        return _parsed(given)
    torchrun = "RANK" in environment and "WORLD_SIZE" in environment
    array = "SLURM_ARRAY_TASK_ID" in environment
    if torchrun and array:
        raise UsageError(
            "both torchrun (RANK) and a Slurm array (SLURM_ARRAY_TASK_ID) say which shard this is", hint=_SAY
        )
    if torchrun:
        return _checked(Shard(_number(environment, "RANK"), _number(environment, "WORLD_SIZE"), "torchrun"))
    # a batch script has SLURM_PROCID 0 as well; only a step has several processes
    step = "SLURM_STEP_ID" in environment and "SLURM_PROCID" in environment
    tasks = int(environment.get("SLURM_STEP_NUM_TASKS") or environment.get("SLURM_NTASKS") or 1) if step else 1
    process = _number(environment, "SLURM_PROCID") if step else 0
    if array:
        index, count = _array_place(environment)
        origin = "Slurm array and srun" if tasks > 1 else "Slurm array"
        return _checked(Shard(index * tasks + process, count * tasks, origin))
    return _checked(Shard(process, tasks, "srun")) if tasks > 1 else Shard()


def _number(environment: Mapping[str, str], name: str) -> int:
    value = environment[name]
    if not value.isdecimal():
        raise UsageError(f"{name}={value!r} in the environment is not a number", hint=f"unset it, or {_SAY}")
    return int(value)


def _checked(shard: Shard) -> Shard:
    if not 0 <= shard.index < shard.count:
        raise UsageError(
            f"by the environment ({shard.origin}) this is shard {shard.index} of {shard.count}, which there is not",
            hint=_SAY,
        )
    return shard


def _parsed(given: str) -> Shard:
    index, slash, count = given.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal() and int(count)):
        raise UsageError(f"--shard {given!r} is not I/N", hint="--shard 0/4 is the first of four")
    if int(index) >= int(count):
        raise UsageError(f"--shard {given}: shards count from 0", hint=f"0/{count} to {int(count) - 1}/{count}")
    return Shard(int(index), int(count), "--shard")


def _array_place(environment: Mapping[str, str]) -> tuple[int, int]:
    """(index, count) in an array without gaps; ids may begin anywhere and go in steps."""

    def value(name: str, default: int) -> int:
        return int(environment.get(f"SLURM_ARRAY_TASK_{name}") or default)

    task, least, most = value("ID", 0), value("MIN", 0), value("MAX", 0)
    step, count = value("STEP", 1), value("COUNT", 1)
    if least + (count - 1) * step != most:
        raise UsageError(f"the Slurm array has gaps: {count} tasks with ids from {least} to {most}", hint=_SAY)
    return (task - least) // step, count
