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
    command = ["batchscore", "score", "--model", cluster.environment["MODEL"], "--in", cluster.environment["IN"]]

    def written() -> bytes:
        assert run.wait() == 0
        assert pq.read_table(out)["id"].to_pylist() == list(range(ROWS))
        return out.read_bytes()

    with subprocess.Popen([*command, "--out", str(out), *PACE], env=cluster.environment) as run:
        yield written


def test_a_preempted_job_goes_on_where_it_was(cluster: Cluster, plain: Plain) -> None:
    job = cluster.submit(PREEMPTIBLE, *PACE, out="scores.parquet")
    wait_until(lambda: list(Path(".scores.parquet.parts").glob("part-*.parquet")))
    cluster.submit("--partition=high", "--exclusive", "--wrap=true")
    (end,) = cluster.ended(job)

    log = Path(f"batchscore-{job}.log").read_text()
    assert (end["JobState"], end["Restarts"]) == ("COMPLETED", "1"), log
    assert "DUE TO PREEMPTION" in log
    assert_went_on(log, "SIGTERM")
    assert Path("scores.parquet").read_bytes() == plain()


def test_an_array_of_four_writes_the_file_of_one_run(cluster: Cluster, plain: Plain) -> None:
    job = cluster.submit(ARRAY, *PACE, out="scores/")
    ends = cluster.ended(job)

    logs = [Path(f"batchscore-{job}_{task}.log").read_text() for task in range(4)]
    assert [end["ExitCode"] for end in ends] == ["0:0"] * 4, "".join(logs)
    assert [f"shard {task}/4 (Slurm array)" in log for task, log in enumerate(logs)] == [True] * 4
    assert ["to do    600 rows in 6 units" in log for log in logs] == [True] * 4
    assert Path("scores.parquet").read_bytes() == plain()


def test_a_job_that_is_signalled_ends_with_75_and_is_started_again(cluster: Cluster, plain: Plain) -> None:
    job = cluster.submit(PREEMPTIBLE, *PACE, out="scores.parquet")
    wait_until(lambda: list(Path(".scores.parquet.parts").glob("part-*.parquet")))
    cluster.call("scancel", "--signal=USR1", "--batch", job)
    wait_until(lambda: cluster.tasks(job)[0]["ExitCode"] == "75:0")
    (end,) = cluster.ended(job)

    log = Path(f"batchscore-{job}.log").read_text()
    assert (end["JobState"], end["Restarts"], end["ExitCode"]) == ("COMPLETED", "1", "0:0"), log
    assert_went_on(log, "SIGUSR1")
    assert Path("scores.parquet").read_bytes() == plain()


def test_tasks_of_srun_share_the_units_and_a_batch_script_without_it_takes_all(cluster: Cluster, plain: Plain) -> None:
    command = f'batchscore score --model "$MODEL" --in "$IN" --out "$OUT" {" ".join(PACE)}'
    shared = cluster.submit("--ntasks=2", "--output=srun.log", f"--wrap=srun {command} --merge", out="shared/")
    alone = cluster.submit("--ntasks=2", "--output=alone.log", f"--wrap={command}", out="alone.parquet")
    ends = cluster.ended(shared) + cluster.ended(alone)

    logs = [Path(name).read_text() for name in ("srun.log", "alone.log")]
    assert [end["ExitCode"] for end in ends] == ["0:0"] * 2, "".join(logs)
    assert sorted(re.findall(r"shard (\d/\d \(.*\))", logs[0])) == ["0/2 (srun)", "1/2 (srun)"]
    assert "shard" not in logs[1]
    assert Path("shared.parquet").read_bytes() == plain()
    assert Path("alone.parquet").read_bytes() == plain()


def test_an_array_with_gaps_is_refused_with_a_way_out(cluster: Cluster) -> None:
    job = cluster.submit("--array=1,3", ARRAY, out="scores/")
    ends = cluster.ended(job)

    logs = [Path(f"batchscore-{job}_{task}.log").read_text() for task in (1, 3)]
    assert [end["ExitCode"] for end in ends] == ["2:0"] * 2, "".join(logs)
    assert ["error: the Slurm array has gaps: 2 tasks with ids from 1 to 3" in log for log in logs] == [True] * 2
    assert [re.findall("hint: .*--claim dynamic", log) != [] for log in logs] == [True] * 2
    assert not Path("scores").exists()


def assert_went_on(log: str, reason: str) -> None:
    """The log is of two starts; the first was stopped in the middle, and the second did the rest only."""
    first, second = log.split("start 2 on ")
    found = re.search(rf"stopped by {reason}; (\d+) of {UNITS} units are done", first)
    assert found is not None, log
    left = UNITS - int(found[1])
    assert 0 < left < UNITS
    assert f"to do    {left * ROWS // UNITS:,} rows in {left} units" in second


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
