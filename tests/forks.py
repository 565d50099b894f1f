"""Starts runs as forks of a process that has loaded everything: a tenth of a second each, where Python takes five.

Each connection to its socket asks by one line of JSON: {"start": arguments, "cwd", "environment", "stderr"} answers
{"pid"}, {"poll": pid} answers {"code"}, null while it runs. Variables of a run's environment change it: BLOCK_ON names
a file that its first pack writes before it takes forever. BLOCK_TEXTS is how many texts a block has. KILL_AT and
HOLD_AT name a file of the job's folder: when it is about to be written, the process is killed, or writes a file of this
name where it runs and takes forever. STDIN and STDOUT name files or pipes that stand for these. Its workers are forks
as well.
"""

from __future__ import annotations

import importlib
import json
import os
import select
import signal
import socket
import sys
import time
import traceback
from multiprocessing import forkserver, get_context
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

from batchscore.cli.main import app
from batchscore.io.storage import LocalFolder
from batchscore.jobs import leases, pipeline, run, survey
from batchscore.jobs.workers import processes
from batchscore.runners.cross_encoder import CrossEncoder

# what each fork would load: pyarrow imports pandas where it is, and transformers imports models when one is opened
PRELOADED = [
    "batchscore.cli.display",
    "batchscore.jobs.files",
    "batchscore.runners.build",
    "pandas",
    "transformers.models.bert.modeling_bert",
    "transformers.models.qwen2_vl.modeling_qwen2_vl",
    "transformers.processing_utils",
]


def forking() -> ForkServerContext:
    """Starts workers as forks of a process that has one thread and has loaded what workers do."""
    context = get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def block(path: str) -> None:
    """A pack that takes longer than anybody waits."""
    Path(path).touch()
    time.sleep(600)


def obstruct(environment: dict[str, str]) -> None:
    """Do what BLOCK_TEXTS, KILL_AT and HOLD_AT ask for, and look often at what other processes do."""
    pipeline._WAIT_SECONDS = leases._POLL_SECONDS = run._POLL_SECONDS = 0.02
    survey._BLOCK_TEXTS = int(environment.get("BLOCK_TEXTS", survey._BLOCK_TEXTS))
    filled = LocalFolder._filled

    def filling(folder: LocalFolder, name: str, content: Any) -> Any:
        if name == environment.get("KILL_AT"):
            os.kill(os.getpid(), signal.SIGKILL)
        if name == environment.get("HOLD_AT"):
            block(name)
        return filled(folder, name, content)

    LocalFolder._filled = filling  # type: ignore[method-assign]


def start(arguments: list[str], cwd: str, environment: dict[str, str], stderr: str, context: ForkServerContext) -> int:
    """Process id of a run."""
    if "--devices" in arguments:
        forkserver.ensure_running()
    process = os.fork()
    if process:
        return process
    code: Any = 1
    try:
        os.dup2(os.open(environment.get("STDIN", os.devnull), os.O_RDONLY), 0)
        os.dup2(os.open(environment.get("STDOUT", os.devnull), os.O_WRONLY), 1)
        sys.stdout = open(1, "w", closefd=False, encoding="utf-8")  # noqa: SIM115  the old one remembers what it led to
        os.dup2(os.open(stderr, os.O_WRONLY | os.O_CREAT), 2)
        os.chdir(cwd)
        os.environ.clear()
        os.environ.update(environment)
        processes._CONTEXT = context
        # it is no child of this process, which therefore cannot ask whether it runs
        forkserver._forkserver.ensure_running = lambda: None
        obstruct(environment)
        if "BLOCK_ON" in environment:
            CrossEncoder.forward = lambda *_: block(environment["BLOCK_ON"])
        app(arguments)
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
    sys.stderr.flush()
    os._exit(code)


def poll(process: int) -> int | None:
    """Exit code, negative after a signal."""
    found, status = os.waitpid(process, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if found else None


def main() -> None:
    """Answer until the input ends, with the process that started this one."""
    listener = socket.socket(fileno=int(sys.argv[1]))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell ignores in its background
    context = forking()
    for name in PRELOADED:
        importlib.import_module(name)
    while sys.stdin not in select.select([listener, sys.stdin], [], [])[0]:
        with listener.accept()[0] as connection, connection.makefile("rw", encoding="utf-8") as stream:
            asked = json.loads(stream.readline())
            if "poll" in asked:
                answer = {"code": poll(asked["poll"])}
            else:
                answer = {"pid": start(asked["start"], asked["cwd"], asked["environment"], asked["stderr"], context)}
            stream.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
