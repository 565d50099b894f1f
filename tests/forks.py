"""Starts runs as forks of a process that has loaded everything: a tenth of a second each, where Python takes five.

Reads one JSON object a line: {"start": arguments, "cwd", "environment", "stderr"} answers {"pid"}, {"poll": pid}
answers {"code"}, null while it runs.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from typing import Any

from batchscore.cli.main import app
from batchscore.cli.run import run  # noqa: F401  what each fork would load


def start(arguments: list[str], cwd: str, environment: dict[str, str], stderr: str) -> int:
    """Process id of a run."""
    process = os.fork()
    if process:
        return process
    code: Any = 1
    try:
        os.dup2(os.open(os.devnull, os.O_RDWR), 0)
        os.dup2(0, 1)
        os.dup2(os.open(stderr, os.O_WRONLY | os.O_CREAT), 2)
        os.chdir(cwd)
        os.environ.clear()
        os.environ.update(environment)
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
    """Answer until the input ends."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell ignores in its background
    for line in sys.stdin:
        asked = json.loads(line)
        if "poll" in asked:
            answer = {"code": poll(asked["poll"])}
        else:
            answer = {"pid": start(asked["start"], asked["cwd"], asked["environment"], asked["stderr"])}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
