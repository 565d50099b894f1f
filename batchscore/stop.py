"""How a run is asked to end: by a signal or by the clock, answered between two packs.

The first request lets the packs that are in the model finish, within a few seconds; a second signal ends the process on
the spot. That is bearable at any moment, because whatever is on the disk is whole.
"""

from __future__ import annotations

import atexit
import os
import signal
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager
from threading import TIMEOUT_MAX, Event, Timer
from time import monotonic
from typing import Any, TypeVar

from batchscore.errors import StoppedError

T = TypeVar("T")


class Interrupted(BaseException):
    """What a signal raises where nobody looks for it: libraries catch every Exception, to say or try something else."""


SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2") if hasattr(signal, name))
GRACE_SECONDS = 3.0  # for what is in the model; with saving and leaving, less than 5
_POLL_SECONDS = 0.1


def leave_on_signals() -> None:
    """Have a signal end the program on the spot, as one that may be run again: for as long as nothing is done."""
    for number in _heard():
        signal.signal(number, lambda *_: os._exit(StoppedError.exit_code))


@contextmanager
def blocked_signals(numbers: Iterable[int]) -> Iterator[None]:
    """A block in which these signals wait; for a process that is started in it, until it lets them through."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _heard() -> list[signal.Signals]:
    """Signals that nobody has asked to ignore."""
    return [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]


def _ignore() -> None:
    # on its way out Python takes handlers away while libraries still unload
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


class Stop:
    """A request to end that may come at any time. Safe to ask in any thread."""

    def __init__(self) -> None:
        self._event = Event()
        self._reason = ""
        self._deadline = float("inf")
        self.polled = False  # whether somebody looks often; else a signal raises where it finds the program
        self.unsettled = False  # a thread is in the middle of something that will take longer

    def request(self, reason: str) -> None:
        """Ask for the end; the first reason stays."""
        if not self._event.is_set():
            self._reason = reason
            self._deadline = monotonic() + GRACE_SECONDS
            self._event.set()

    @property
    def requested(self) -> bool:
        """Whether the end was asked for."""
        return self._event.is_set()

    def check(self) -> None:
        """Raise StoppedError if the end was asked for."""
        if self._event.is_set():
            raise StoppedError(f"stopped by {self._reason}", hint="run the same command again to go on")

    @contextmanager
    def polling(self) -> Iterator[None]:
        """A block that asks often and by itself."""
        self.check()
        self.polled = True
        try:
            yield
        finally:
            self.polled = False

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """A block in which a signal may raise wherever it is; it leaves as StoppedError."""
        try:
            yield
        except Interrupted:
            self.check()
            raise

    def result(self, future: Future[T]) -> T:
        """What the future gives; StoppedError as soon as the end is asked for, though it be there."""
        self.check()
        while not wait([future], _POLL_SECONDS).done:
            self.check()
        return future.result()

    def settle(self, futures: Sequence[Future[Any]]) -> None:
        """Drop what has not begun and wait for the rest, up to the grace."""
        begun = [future for future in futures if not future.cancel()]
        late = wait(begun, max(0.0, min(GRACE_SECONDS, self._deadline - monotonic()))).not_done
        self.unsettled = self.unsettled or bool(late)

    def listen(self) -> None:
        """Take the signals a scheduler or a person sends, from now on; one that is ignored stays so.

        Where nobody polls they raise Interrupted, which `interruptible` turns into StoppedError.
        """

        def handle(number: int, frame: object) -> None:
            if self.requested:
                os._exit(128 + number)
            self.request(signal.Signals(number).name)
            if not self.polled:
                raise Interrupted

        for number in _heard():
            signal.signal(number, handle)
        atexit.register(_ignore)

    def after(self, seconds: float) -> None:
        """Ask for the end when so many seconds have passed."""
        timer = Timer(min(max(0.0, seconds), TIMEOUT_MAX), self.request, ["--max-seconds"])
        timer.daemon = True
        timer.start()
