"""Jobs on a real Slurm that is started here: arrays, srun, signals and preemption, with the scripts of examples/."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import checkpoints
import jobs
from batchscore.errors import UsageError
from batchscore.jobs.shards import Shard, find_shard

_MISSING = [name for name in ("sbatch", "slurmctld", "slurmd", "munged") if shutil.which(name) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("here"),
    pytest.mark.skipif(bool(_MISSING), reason=f"Slurm is not installed: no {', '.join(_MISSING)}"),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can start a Slurm"),
]

Tiny, Plain = Callable[[str], str], Callable[[], bytes]
EXAMPLES = Path(__file__).parents[1] / "examples"
ARRAY, PREEMPTIBLE = str(EXAMPLES / "slurm_array.sbatch"), str(EXAMPLES / "slurm_preemptible.sbatch")

ROWS, UNITS = 2400, 24
PACE = ["--window-rows", str(ROWS // UNITS), "--batch-tokens", "64"]  # a pair at a time: slow, in many units

# one node of four cores, whatever the machine has; requeued jobs wait for cred_expire, 5 s at the least
CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
MpiDefault=none
StateSaveLocation={folder}/slurmctld
SlurmdSpoolDir={folder}/slurmd
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
RequeueExit=75
KillWait=10
SchedulerParameters=sched_interval=1,bf_interval=1
NodeName=node NodeHostname={host} NodeAddr=127.0.0.1 CPUs=4 RealMemory=64000
PartitionName=low Nodes=node Default=YES PriorityTier=1
PartitionName=high Nodes=node PriorityTier=10
"""


@dataclass(frozen=True)
class Cluster:
    """A Slurm of one node, and the input that its jobs score."""

    environment: dict[str, str]
    folder: Path

    def call(self, *command: str, **variables: str) -> str:
        """What a command prints."""
        done = ask(command, self.environment | variables)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout.strip()

    def submit(self, *arguments: str, out: str = "") -> str:
        """The number of a new job, whose script finds OUT in its environment."""
        return self.call("sbatch", "--parsable", *arguments, OUT=out)

    def tasks(self, job: str) -> list[dict[str, str]]:
        """What Slurm says of a job: one dict, or one for each task of an array."""
        lines = self.call("scontrol", "--oneliner", "show", "job", job).splitlines()
        return sorted(
            (dict(re.findall(r"(\w+)=(\S+)", line)) for line in lines), key=lambda task: task.get("ArrayTaskId", "")
        )

    def ended(self, job: str) -> list[dict[str, str]]:
        """The same once all of it has ended for good."""
        wait_until(lambda: all(task["JobState"] in ("COMPLETED", "FAILED", "CANCELLED") for task in self.tasks(job)))
        return self.tasks(job)


@pytest.fixture(scope="module")
def cluster(tiny: Tiny) -> Iterator[Cluster]:
    """Started for this module, in a folder that the user munge can enter, and gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="batchscore-slurm-") as name, ExitStack() as stack:
        folder = Path(name)
        folder.chmod(0o755)
        started = Cluster(environment(folder, tiny("bert_ce")), folder)
        write_pairs(Path(started.environment["IN"]))
        (folder / "slurm.conf").write_text(
            CONFIG.format(folder=folder, host=socket.gethostname().split(".")[0], ports=free_ports())
        )
        stack.enter_context(munge(folder / "munge"))
        for command in (["slurmctld"], ["slurmd", "-N", "node"]):
            stack.enter_context(daemon(command, folder / f"{command[0]}.pid", env=started.environment))
        stack.callback(cancel_all, started)
        wait_until(lambda: "idle" in ask(["sinfo"], started.environment).stdout)
        yield started


@pytest.fixture(scope="module")
def plain(cluster: Cluster) -> Iterator[Callable[[], bytes]]:
    """The file that one run without Slurm writes, which begins now and is waited for when it is asked for."""
    out = cluster.folder / "plain.parquet"
    command = ["score", "--model", cluster.environment["MODEL"], "--in", cluster.environment["IN"], "--out", str(out)]
    run = jobs.start(*command, *PACE)

    def written() -> bytes:
        jobs.wait_until(lambda: run.poll() is not None, 180)
        assert run.returncode == 0
        assert pq.read_table(out)["id"].to_pylist() == list(range(ROWS))
        return out.read_bytes()

    yield written
    run.kill()


def test_a_signalled_and_then_preempted_job_goes_on_where_it_was_each_time(cluster: Cluster, plain: Plain) -> None:
    """The first start ends with exit code 75, the second is preempted, and the third does what is left."""
    job = cluster.submit(PREEMPTIBLE, *PACE, out="scores.parquet")
    wait_until(lambda: parts() > 0)
    cluster.call("scancel", "--signal=USR1", "--batch", job)
    wait_until(lambda: cluster.tasks(job)[0]["ExitCode"] == "75:0")
    done = parts()
    wait_until(lambda: parts() > done)
    cluster.submit("--partition=high", "--exclusive", "--wrap=true")
    (end,) = cluster.ended(job)

    log = Path(f"batchscore-{job}.log").read_text()
    assert (end["JobState"], end["Restarts"], end["ExitCode"]) == ("COMPLETED", "2", "0:0"), log
    first, second, third = re.split(r"start \d on ", log)[1:]
    assert "DUE TO PREEMPTION" in second
    left = [units_left(first, "SIGUSR1"), units_left(second, "SIGTERM")]
    assert UNITS > left[0] > left[1] > 0
    for start, units in zip((second, third), left, strict=True):
        assert f"to do    {units * ROWS // UNITS:,} rows in {units} units" in start
    assert Path("scores.parquet").read_bytes() == plain()


def test_tasks_of_an_array_write_the_file_of_one_run(cluster: Cluster, plain: Plain) -> None:
    job = cluster.submit("--array=0-1", ARRAY, *PACE, out="scores/")
    ends = cluster.ended(job)

    logs = [Path(f"batchscore-{job}_{task}.log").read_text() for task in range(2)]
    assert [end["ExitCode"] for end in ends] == ["0:0"] * 2, "".join(logs)
    assert [f"shard {task}/2 (Slurm array)" in log for task, log in enumerate(logs)] == [True] * 2
    assert ["to do    1,200 rows in 12 units" in log for log in logs] == [True] * 2
    assert Path("scores.parquet").read_bytes() == plain()


def test_what_slurm_tells_its_processes_is_what_their_shards_follow_from(cluster: Cluster) -> None:
    """tests/test_shards.py shows what follows; here is only what each process finds in its environment."""
    steps = """env -0 >batch.env; srun sh -c 'env -0 >"srun-$SLURM_PROCID.env"'"""
    submitted = [
        cluster.submit("--ntasks=2", f"--wrap={steps}"),
        cluster.submit("--array=1,3", "--wrap=env -0 >array-$SLURM_ARRAY_TASK_ID.env"),
    ]
    assert [end["ExitCode"] for job in submitted for end in cluster.ended(job)] == ["0:0"] * 3

    assert find_shard(None, told("batch")) == Shard(0, 1, "one process")
    assert [find_shard(None, told(f"srun-{process}")) for process in range(2)] == [
        Shard(0, 2, "srun"),
        Shard(1, 2, "srun"),
    ]
    for task in (1, 3):
        with pytest.raises(UsageError, match="the Slurm array has gaps: 2 tasks with ids from 1 to 3") as caught:
            find_shard(None, told(f"array-{task}"))
        assert "--claim dynamic" in (caught.value.hint or "")


def told(name: str) -> dict[str, str]:
    """The environment that a process wrote down."""
    return dict(line.split("=", 1) for line in Path(f"{name}.env").read_text().split("\0") if line)


def parts() -> int:
    """How many the job of this folder has."""
    return len(jobs.parts(".scores.parquet.parts"))


def units_left(log: str, reason: str) -> int:
    """What a start that was stopped in the middle left to the next."""
    found = re.search(rf"stopped by {reason}; (\d+) of {UNITS} units are done", log)
    assert found is not None, log
    return UNITS - int(found[1])


# ---- the cluster


def environment(folder: Path, model: str) -> dict[str, str]:
    """Of the jobs: this batchscore first, no network, one thread, and nothing of a Slurm that the tests may run in."""
    own = {name: value for name, value in os.environ.items() if not re.match("SLURM|SBATCH|RANK|WORLD_SIZE", name)}
    path = os.pathsep.join([str(Path(sys.executable).parent), own.get("PATH", os.defpath)])
    own |= {"PATH": path, "SLURM_CONF": str(folder / "slurm.conf"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return own | {"MODEL": model, "IN": str(folder / "pairs.jsonl")}


def write_pairs(path: Path) -> None:
    """Rows of random words, no two alike."""
    rng = random.Random(0)

    def text(words: int) -> str:
        return " ".join(rng.choices(checkpoints.WORDS, k=words))

    rows = ({"id": row, "query": text(6), "document": text(40)} for row in range(ROWS))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def free_ports() -> list[int]:
    """Two of them."""
    with socket.socket() as one, socket.socket() as other:
        for found in (one, other):
            found.bind(("127.0.0.1", 0))
        return [one.getsockname()[1], other.getsockname()[1]]


@contextmanager
def munge(folder: Path) -> Iterator[None]:
    """Its daemon, with a key and a socket of its own."""
    folder.mkdir(mode=0o755)
    (folder / "key").write_bytes(os.urandom(128))
    (folder / "key").chmod(0o600)
    for path in (folder, folder / "key"):
        shutil.chown(path, "munge", "munge")
    files = {"socket": "socket", "key-file": "key", "log-file": "log", "pid-file": "pid", "seed-file": "seed"}
    command = ["munged", *(f"--{option}={folder / name}" for option, name in files.items())]
    with daemon(command, folder / "pid", user="munge"):
        yield


@contextmanager
def daemon(
    command: list[str], pid_file: Path, *, user: str | None = None, env: dict[str, str] | None = None
) -> Iterator[None]:
    """A program that goes to the background by itself and leaves its number in a file; ended at the end."""
    as_user = {"user": user, "group": user, "extra_groups": []} if user else {}
    subprocess.run(command, env=env, stdin=subprocess.DEVNULL, check=True, **as_user)
    wait_until(lambda: pid_file.exists() and pid_file.read_text().strip())
    pid = int(pid_file.read_text())
    try:
        yield
    finally:
        os.kill(pid, signal.SIGTERM)
        wait_until(lambda: not is_alive(pid))


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that nobody has waited for yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def ask(command: Sequence[str], env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a command that answers at once."""
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


def cancel_all(cluster: Cluster) -> None:
    """End what a failed test left running."""
    cluster.call("scancel", "--user=root")
    wait_until(lambda: not cluster.call("squeue", "--noheader"))


def wait_until(condition: Callable[[], object], seconds: float = 180) -> None:
    """Poll; AssertionError if it stays false."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds} s in vain"
        time.sleep(0.2)
