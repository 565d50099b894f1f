"""Systems that take turns: each in processes of its own, all but one of them stopped."""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import psutil
from peers import SYSTEMS

PEERS = Path(__file__).with_name("peers.py")
CHECKOUT = Path(__file__).resolve().parents[1]


class FailedError(Exception):
    """A system that is not there, did not start or did not answer."""


@dataclass(frozen=True)
class Round:
    """One turn of one system."""

    seconds: float
    cpu_seconds: float  # of all its processes


@dataclass(frozen=True)
class Task:
    """What all systems are asked to do."""

    kind: str  # of the loaders in peers.py
    model: Path
    pairs: Path
    dtype: str
    threads: int
    peers: Path  # folder of virtual environments
    work: Path  # for outputs and logs

    def environment(self, more: Mapping[str, str]) -> dict[str, str]:
        """Of every process: no network, and no more threads than asked for."""
        return {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(self.threads), **more}

    def peer(self, command: str, name: str, *more: str) -> list[str]:
        """The command by which peers.py does something; FailedError if the peer is not installed."""
        venv = SYSTEMS[name].venv
        python = self.peers / venv / "bin" / "python" if venv else Path(sys.executable)
        if not python.exists():
            raise FailedError(f"not installed in {self.peers / venv}")
        options = ["--kind", self.kind, "--model", str(self.model), "--pairs", str(self.pairs)]
        options += ["--dtype", self.dtype, "--threads", str(self.threads)]
        return [str(python), str(PEERS), command, name, *options, *more]


@dataclass(frozen=True)
class Variant:
    """Ourselves in another way: NAME:checkout=DIR, NAME:VARIABLE=VALUE or NAME:option=JSON, several with commas.

    A name that ends in -cli or -file is a command line, without its start-up or with it, and takes no options.
    """

    checkout: Path = CHECKOUT
    environment: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)  # of Scorer

    @classmethod
    def read(cls, text: str) -> tuple[str, Variant]:
        """(name, variant)."""
        name, _, rest = text.partition(":")
        values = dict(one.split("=", 1) for one in rest.split(",") if one)
        checkout = Path(values.pop("checkout", CHECKOUT)).resolve()
        environment = {key: value for key, value in values.items() if key.isupper()}
        return name, cls(
            checkout, environment, {key: json.loads(values[key]) for key in values if key not in environment}
        )


# ---- processes


def family(pid: int) -> list[psutil.Process]:
    """A process and all below it."""
    try:
        first = psutil.Process(pid)
        return [first, *first.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def send(pid: int, number: signal.Signals) -> None:
    """A signal to a process and all below it, the lowest first, which their parents would start again."""
    for process in reversed(family(pid)):
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def cpu_seconds(pid: int) -> float:
    """Processor time of a process and all below it."""
    total = 0.0
    for process in family(pid):
        with suppress(psutil.NoSuchProcess):
            total += sum(process.cpu_times()[:2])
    return total


def run_process(command: Sequence[str], environment: Mapping[str, str], log: Path) -> Round:
    """A whole process; FailedError if it fails."""
    begun = time.perf_counter()
    with log.open("w") as file:
        # in a folder without a package of ours, which `-m` would prefer to that of PYTHONPATH
        process = subprocess.Popen(command, env=environment, stdout=file, stderr=file, cwd=log.parent)
        _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - begun
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise FailedError(f"exit code {process.returncode}: {_end(log)}")
    return Round(seconds, usage.ru_utime + usage.ru_stime)


def _end(log: Path) -> str:
    """The last lines of a log."""
    return log.read_text("utf-8", "replace")[-1500:]


# ---- systems


@dataclass
class Entrant:
    """A system, and what is known of it by now."""

    name: str
    task: Task
    version: str = ""
    rounds: list[Round] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)

    @property
    def seconds(self) -> list[float]:
        """Of each round."""
        return [one.seconds for one in self.rounds]

    @property
    def cpu_seconds(self) -> list[float]:
        """Processor time of each round."""
        return [one.cpu_seconds for one in self.rounds]

    @property
    def log(self) -> Path:
        """What it printed."""
        return self.task.work / f"{self.name}.log"

    def turn(self) -> None:
        """Score all pairs once."""
        raise NotImplementedError

    def close(self) -> None:
        """End its processes."""


@dataclass
class Server(Entrant):
    """A system that has its model loaded, and is stopped while it is not its turn."""

    variant: Variant | None = None  # of ourselves
    load_seconds: float = 0.0

    def __post_init__(self) -> None:
        more: list[str] = []
        environment: dict[str, str] = {}
        if self.variant is not None:
            more = ["--options", json.dumps(dict(self.variant.options))]
            environment = {"PYTHONPATH": str(self.variant.checkout), **self.variant.environment}
        command = self.task.peer("serve", "batchscore" if self.variant else self.name, *more)
        with self.log.open("w") as log:
            self._process = subprocess.Popen(
                command,
                env=self.task.environment(environment),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        try:
            ready = self._answer()
        except BaseException:  # an interrupt, too: nobody else knows the process
            self.close()
            raise
        self.version, self.load_seconds = ready["version"], ready["load_seconds"]
        send(self._process.pid, signal.SIGSTOP)

    def _answer(self) -> dict[str, Any]:
        line = _pipe(self._process.stdout).readline()
        if not line:
            raise FailedError(_end(self.log))
        found: dict[str, Any] = json.loads(line)
        return found

    def turn(self) -> None:
        """A round from texts in memory to Python floats."""
        send(self._process.pid, signal.SIGCONT)
        before = cpu_seconds(self._process.pid)
        _pipe(self._process.stdin).write("round\n" if self.scores else "scores\n")
        _pipe(self._process.stdin).flush()
        answer = self._answer()
        self.rounds.append(Round(answer["seconds"], cpu_seconds(self._process.pid) - before))
        self.scores = self.scores or answer["scores"]
        send(self._process.pid, signal.SIGSTOP)

    def close(self) -> None:
        """End it and all below it."""
        send(self._process.pid, signal.SIGKILL)
        self._process.communicate()  # closes its pipes, too


def _pipe(stream: IO[str] | None) -> IO[str]:
    assert stream is not None
    return stream


@dataclass
class Script(Entrant):
    """What a user of a library would write, from the start of the process to the file."""

    def turn(self) -> None:
        """A whole process."""
        out = self.task.work / f"{self.name}.jsonl"
        command = self.task.peer("file", self.name.removesuffix("-file"), "--out", str(out))
        self.rounds.append(run_process(command, self.task.environment({}), self.log))
        self.scores = read_scores(out)


@dataclass
class CommandLine(Entrant):
    """`batchscore score`, from the start of the process to the file."""

    variant: Variant = field(default_factory=Variant)

    def turn(self) -> None:
        """A whole process."""
        out = self.task.work / f"{self.name}.jsonl"
        self.rounds.append(self._score(out))
        self.scores = read_scores(out)

    def _score(self, out: Path, *more: str) -> Round:
        task = self.task
        command = [sys.executable, "-m", "batchscore", "score", "-m", str(task.model), "-i", str(task.pairs)]
        command += ["-o", str(out), "--dtype", task.dtype, "--overwrite", "--quiet", *more]
        environment = {"PYTHONPATH": str(self.variant.checkout), **self.variant.environment}
        return run_process(command, task.environment(environment), self.log)


@dataclass
class CommandLineAlone(CommandLine):
    """The same without its start-up, which is what two rows take: another process in each turn."""

    start_up: list[Round] = field(default_factory=list)

    @property
    def seconds(self) -> list[float]:
        """Of each round, less the median start-up."""
        less = statistics.median(one.seconds for one in self.start_up)
        return [one.seconds - less for one in self.rounds]

    @property
    def cpu_seconds(self) -> list[float]:
        """Processor time of each round, less that of the median start-up."""
        less = statistics.median(one.cpu_seconds for one in self.start_up)
        return [one.cpu_seconds - less for one in self.rounds]

    def turn(self) -> None:
        """Two processes."""
        self.start_up.append(self._score(self.task.work / "two.jsonl", "--limit", "2"))
        super().turn()


@dataclass
class TorchImport(Entrant):
    """Importing torch, and nothing else."""

    def turn(self) -> None:
        """A whole process."""
        self.rounds.append(run_process([sys.executable, "-c", "import torch"], self.task.environment({}), self.log))


def read_scores(path: Path) -> list[float]:
    """Of a JSONL file."""
    return [json.loads(line)["score"] for line in path.read_text("utf-8").splitlines()]


def enter(name: str, task: Task, variants: Mapping[str, Variant]) -> Entrant:
    """Start a system by its name in a workload; FailedError if that does not go."""
    if name == "import-torch":
        return TorchImport(name, task)
    variant = variants.get(name)
    if name.endswith("-cli"):
        return CommandLineAlone(name, task, variant=variant or Variant())
    if name.endswith("-file"):
        ours = variant or (Variant() if name == "batchscore-file" else None)
        return Script(name, task) if ours is None else CommandLine(name, task, variant=ours)
    return Server(name, task, variant=variant)
