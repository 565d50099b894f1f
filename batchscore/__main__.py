"""The program `batchscore`, which is also `python -m batchscore`."""

from __future__ import annotations

import atexit
import os
import sys
import threading

from batchscore.cli.main import app


def main() -> None:
    """Run the command line; a success ends without Python's taking apart all that was imported, a sixth of a second."""
    try:
        app(prog_name="batchscore")
    except SystemExit as end:
        if end.code or any(not thread.daemon for thread in threading.enumerate()[1:]):
            raise
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
