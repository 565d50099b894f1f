"""What the parts of gpu.py write to, and how long each may take."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

checkpoints: Any = import_module("checkpoints")  # of the tests
Cells = list[str]


class OutOfTimeError(Exception):
    """A part took longer than it may."""


@dataclass
class Report:
    """What was seen so far."""

    small: bool
    device: str
    deadline: float  # by time.monotonic
    folder: Path
    failures: list[str] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)

    def say(self, text: str) -> None:
        """A line with the time in front."""
        print(f"{time.monotonic() - self.started:6.1f} s  {text}", flush=True)

    def check(self, right: bool, text: str) -> None:
        """A line that says whether something holds."""
        self.say(f"{'ok    ' if right else 'FAILED'}  {text}")
        if not right:
            self.failures.append(text)

    def checkpoint(self, name: str) -> str:
        """Folder of a tiny checkpoint, made if need be."""
        folder = self.folder / name
        return str(folder if folder.exists() else checkpoints.build(name, folder))

    @contextmanager
    def at_most(self, seconds: float) -> Iterator[None]:
        """A block that ends after so many seconds, or when the time of the block around it, or of all, is up."""
        begun, outer = time.monotonic(), signal.getitimer(signal.ITIMER_REAL)[0]
        left = min(seconds, self.deadline - begun, outer or seconds)

        def end(*_: object) -> None:
            raise OutOfTimeError(f"ended after {left:.0f} seconds")

        if left <= 0:
            raise OutOfTimeError("left out, the time is up")
        before = signal.signal(signal.SIGALRM, end)
        signal.setitimer(signal.ITIMER_REAL, left)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
            if outer:
                signal.setitimer(signal.ITIMER_REAL, max(0.01, outer - (time.monotonic() - begun)))
