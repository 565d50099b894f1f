"""Runs of the command line as processes of their own, and what they leave on the disk."""

from __future__ import annotations

import atexit
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

WORDS = "river horse paper cloud seven green stone quiet apple winter market signal".split()


def random_rows(count: int, seed: int = 0, queries: int = 20) -> list[dict[str, Any]]:
    """Distinct documents of a few words for a few queries, scattered."""
    draw = random.Random(seed)
    return [
        {
            "id": f"r{number}",
            "query": f"{WORDS[draw.randrange(queries) % len(WORDS)]} {draw.randrange(queries)}",
            "document": f"{number} " + " ".join(draw.choices(WORDS, k=draw.randint(1, 24))),
        }
        for number in range(count)
    ]


def write_rows(path: str, rows: Sequence[dict[str, Any]]) -> str:
    """Rows as .parquet or .jsonl."""
    if path.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(list(rows)), path, row_group_size=1000)
    else:
        Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


SERVER = "BATCHSCORE_TEST_RUNS"  # names the socket of the process that runs are forked from


def serve() -> None:
    """Start that process, for this one and all that it starts; it ends with this one."""
    folder = tempfile.mkdtemp()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{folder}/socket")
        listener.listen()
        server = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("forks.py")), str(listener.fileno())],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            cwd=Path(__file__).parent,  # not a test's folder, by which its processes are found
            pass_fds=[listener.fileno()],
            stdin=subprocess.PIPE,
        )
    os.environ[SERVER] = f"{folder}/socket"
    atexit.register(shutil.rmtree, folder)
    atexit.register(server.kill)


def ask(request: dict[str, Any]) -> dict[str, Any]:
    """What that process answers."""
    if SERVER not in os.environ:
        serve()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(os.environ[SERVER])
        with connection.makefile("rw", encoding="utf-8") as stream:
            stream.write(json.dumps(request) + "\n")
            stream.flush()
            answer: dict[str, Any] = json.loads(stream.readline())
    return answer


class Run:
    """A run of `batchscore` with one thread, which makes outputs comparable bit for bit."""

    def __init__(self, arguments: Sequence[str], environment: dict[str, str]) -> None:
        self.returncode: int | None = None
        handle, self._stderr = tempfile.mkstemp(suffix=".stderr")
        os.close(handle)
        asked = {
            "start": list(arguments),
            "cwd": os.getcwd(),
            "environment": {**os.environ, "OMP_NUM_THREADS": "1", **environment},
            "stderr": self._stderr,
        }
        self.pid: int = ask(asked)["pid"]

    def poll(self) -> int | None:
        """Exit code, None while it runs."""
        if self.returncode is None:
            self.returncode = ask({"poll": self.pid})["code"]
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it is over."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float = 300) -> tuple[None, str]:
        """(None, stderr) once it is over."""
        wait_until(lambda: self.poll() is not None, timeout)
        said = Path(self._stderr).read_text("utf-8")
        os.remove(self._stderr)
        return None, said


def start(*arguments: str, **environment: str) -> Run:
    """Start `batchscore`."""
    return Run(arguments, environment)


def finish(*arguments: str, **environment: str) -> tuple[int | None, str]:
    """(exit code, stderr) of a run to its end."""
    run = start(*arguments, **environment)
    said = run.communicate()[1]
    return run.returncode, said


def workers(run: Run) -> list[psutil.Process]:
    """The worker processes of a run that was started in this folder."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            is_here = process.cwd() == os.getcwd() and process.pid not in (run.pid, os.getpid())
            if is_here and "resource_tracker" not in " ".join(process.cmdline()):
                found.append(process)
    return found


def parts(folder: str) -> list[str]:
    """Names of a folder's parts."""
    return sorted(path.name for path in Path(folder).glob("part-*.parquet"))


def contents(folder: str) -> dict[str, bytes]:
    """Every file of a folder but the records, which have times in them."""
    return {path.name: path.read_bytes() for path in Path(folder).iterdir() if not path.name.startswith("_run")}


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    """Poll a condition."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("waited in vain")
