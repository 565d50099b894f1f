"""Each process of a launcher finds its own share, and together they have every unit once."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from batchscore.errors import UsageError
from batchscore.io.units import Unit
from batchscore.jobs.shards import Shard, find_shard

Environment = dict[str, str]


def environment(**variables: object) -> Environment:
    return {name: str(value) for name, value in variables.items()}


def torchrun(rank: int, size: int) -> Environment:
    return environment(RANK=rank, WORLD_SIZE=size, LOCAL_RANK=0, MASTER_ADDR="localhost")


def array(task: int, ids: Iterable[int], step: int = 1) -> Environment:
    """What Slurm says in the batch script of a task of an array, which runs as one process."""
    found = list(ids)
    return environment(
        SLURM_JOB_ID=1000 + task,
        SLURM_ARRAY_JOB_ID=1000,
        SLURM_ARRAY_TASK_ID=task,
        SLURM_ARRAY_TASK_MIN=min(found),
        SLURM_ARRAY_TASK_MAX=max(found),
        SLURM_ARRAY_TASK_STEP=step,
        SLURM_ARRAY_TASK_COUNT=len(found),
        SLURM_PROCID=0,
        SLURM_NTASKS=1,
    )


def srun(process: int, tasks: int) -> Environment:
    """What Slurm says to a process of a step."""
    return environment(
        SLURM_JOB_ID=7, SLURM_STEP_ID=0, SLURM_PROCID=process, SLURM_STEP_NUM_TASKS=tasks, SLURM_NTASKS=tasks
    )


ONE = Shard(0, 1, "one process")


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ({}, ONE),
        (torchrun(0, 1), Shard(0, 1, "torchrun")),
        (torchrun(3, 4), Shard(3, 4, "torchrun")),
        (environment(RANK=3), ONE),  # of some other launcher
        (environment(WORLD_SIZE=3), ONE),
        (array(0, range(4)), Shard(0, 4, "Slurm array")),
        (array(3, range(4)), Shard(3, 4, "Slurm array")),
        (array(1, range(1, 5)), Shard(0, 4, "Slurm array")),
        (array(12, range(10, 14)), Shard(2, 4, "Slurm array")),
        (array(6, range(0, 9, 2), 2), Shard(3, 5, "Slurm array")),  # --array=0-8:2
        (array(7, range(1, 11, 3), 3), Shard(2, 4, "Slurm array")),  # --array=1-10:3
        (array(5, [5]), Shard(0, 1, "Slurm array")),
        (srun(0, 3), Shard(0, 3, "srun")),
        (srun(2, 3), Shard(2, 3, "srun")),
        (srun(0, 1), ONE),
        (environment(SLURM_STEP_ID=0, SLURM_PROCID=1, SLURM_NTASKS=2), Shard(1, 2, "srun")),
        (environment(SLURM_STEP_ID=0, SLURM_PROCID=1, SLURM_NTASKS=8, SLURM_STEP_NUM_TASKS=2), Shard(1, 2, "srun")),
        (environment(SLURM_JOB_ID=7, SLURM_PROCID=0, SLURM_NTASKS=8), ONE),  # the batch script itself
        (srun(0, 8) | torchrun(2, 4), Shard(2, 4, "torchrun")),  # one torchrun a node, started by srun
        (array(1, range(4)) | environment(SLURM_NTASKS=3), Shard(1, 4, "Slurm array")),  # its batch script
        (array(0, range(4)) | srun(2, 3), Shard(2, 12, "Slurm array and srun")),
        (array(1, range(4)) | srun(0, 3), Shard(3, 12, "Slurm array and srun")),
        (array(8, range(0, 9, 2), 2) | srun(2, 3), Shard(14, 15, "Slurm array and srun")),
        (array(2, range(4)) | srun(0, 1), Shard(2, 4, "Slurm array")),
    ],
)
def test_a_launcher_says_which_shard_a_process_is(found: Environment, expected: Shard) -> None:
    assert find_shard(None, found) == expected
    assert find_shard(None, found | environment(PATH="/bin", SLURM_LOCALID=9)) == expected


@pytest.mark.parametrize(
    "found",
    [
        [torchrun(rank, 5) for rank in range(5)],
        [array(task, range(3, 7)) for task in range(3, 7)],
        [array(task, range(0, 9, 2), 2) for task in range(0, 9, 2)],
        [srun(process, 4) for process in range(4)],
        [array(task, range(1, 4)) | srun(process, 2) for task in range(1, 4) for process in range(2)],
        [{}],
    ],
)
def test_all_processes_of_a_launcher_have_every_unit_once(found: list[Environment]) -> None:
    units = [Unit(number, ()) for number in range(23)]
    shards = [find_shard(None, one) for one in found]
    assert sorted(shard.index for shard in shards) == list(range(len(found)))
    assert {shard.count for shard in shards} == {len(found)}
    shares = [shard.share(units) for shard in shards]
    assert sorted((unit for share in shares for unit in share), key=lambda unit: unit.index) == units
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert all(share == sorted(share, key=lambda unit: unit.index) for share in shares)


@pytest.mark.parametrize("count", [1, 2, 3, 7, 10, 13])
@pytest.mark.parametrize("total", [0, 1, 2, 9, 10, 11])
def test_the_shards_of_any_number_of_units_have_each_once(total: int, count: int) -> None:
    units = [Unit(number, ()) for number in range(total)]
    shares = [Shard(index, count).share(units) for index in range(count)]
    assert sorted((unit for share in shares for unit in share), key=lambda unit: unit.index) == units
    assert all(share == sorted(share, key=lambda unit: unit.index) for share in shares)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_more_shards_than_units_leave_some_without_any() -> None:
    units = [Unit(0, ()), Unit(1, ())]
    assert [Shard(index, 4).share(units) for index in range(4)] == [units[:1], units[1:], [], []]


@pytest.mark.parametrize(
    ("given", "expected"),
    [("0/1", (0, 1)), ("0/4", (0, 4)), ("3/4", (3, 4)), ("007/010", (7, 10)), ("99/100", (99, 100))],
)
@pytest.mark.parametrize("found", [{}, torchrun(1, 2), array(9, [1, 9]), array(1, range(2)) | torchrun(0, 2)])
def test_what_is_said_counts_more_than_any_launcher(given: str, expected: tuple[int, int], found: Environment) -> None:
    assert find_shard(given, found) == Shard(*expected, "--shard")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("4/4", "--shard 4/4: shards count from 0\nhint: 0/4 to 3/4"),
        ("1/1", "--shard 1/1: shards count from 0\nhint: 0/1 to 0/1"),
        ("9/4", "--shard 9/4: shards count from 0\nhint: 0/4 to 3/4"),
        *[
            (given, f"--shard {given!r} is not I/N\nhint: --shard 0/4 is the first of four")
            for given in (
                "",
                "/",
                "1",
                "1/",
                "/4",
                "0/0",
                "-1/4",
                "1/-4",
                "a/b",
                "1/4/8",
                "1 / 4",
                "1.0/4",
                "²/4",
                "1/④",
            )
        ],
    ],
)
def test_a_shard_that_there_is_not_is_refused(given: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        find_shard(given, torchrun(0, 2))
    assert str(caught.value) == message
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("ids", [[1, 3, 7], [0, 1, 2, 5], [0, 9], [1, 3, 5]])
def test_an_array_with_gaps_is_refused_with_both_ways_out(ids: list[int]) -> None:
    for task in ids:
        with pytest.raises(UsageError) as caught:
            find_shard(None, array(task, ids))
        message = f"the Slurm array has gaps: {len(ids)} tasks with ids from {ids[0]} to {ids[-1]}"
        assert caught.value.message == message
        assert "--shard I/N" in (caught.value.hint or "")
        assert "--claim dynamic" in (caught.value.hint or "")


@pytest.mark.parametrize("more", [{}, srun(1, 2)])
def test_torchrun_inside_of_an_array_is_refused(more: Environment) -> None:
    with pytest.raises(UsageError, match=r"both torchrun \(RANK\) and a Slurm array \(SLURM_ARRAY_TASK_ID\)") as caught:
        find_shard(None, array(1, range(4)) | torchrun(0, 2) | more)
    assert "--shard I/N" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"RANK": "x", "WORLD_SIZE": "2"}, "RANK='x' in the environment is not a number"),
        ({"RANK": "0", "WORLD_SIZE": ""}, "WORLD_SIZE='' in the environment is not a number"),
        ({"RANK": "3", "WORLD_SIZE": "2"}, "shard 3 of 2, which does not exist"),
        ({"RANK": "0", "WORLD_SIZE": "0"}, "shard 0 of 0, which does not exist"),
    ],
)
def test_what_a_launcher_cannot_mean_is_refused(environment: dict[str, str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        find_shard(None, environment)
