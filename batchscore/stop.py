"""How a run is stopped: by a signal or by the clock, between two packs.

The first signal lets the packs that are in the model finish, within a few seconds; a second one ends the process at
once. That is safe at any moment, because every file on the disk is whole.
"""

from __future__ import annotations

import atexit
import os
import signal
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from threading import TIMEOUT_MAX, Event, Timer
from time import monotonic
from typing import Any, TypeVar

from batchscore.errors import StoppedError

T = TypeVar("T")


class Interrupted(BaseException):
    """Raised by a signal where no code polls. Not an Exception: libraries catch these and try something else."""


SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2") if hasattr(signal, name))
GRACE_SECONDS = 3.0  # for what is in the model; with saving and leaving, less than 5
_POLL_SECONDS = 0.1


def leave_on_signals(tell: Callable[[StoppedError], None] = lambda error: None) -> None:
    """Have a signal end the program at once, with the exit code of a stopped run: good while nothing is done yet."""

    def leave(number: int, frame: object) -> None:
        try:
            tell(_stopped_by(signal.Signals(number).name))
        finally:
            os._exit(StoppedError.exit_code)

    for number in _handled():
        signal.signal(number, leave)


@contextmanager
def blocked_signals(numbers: Iterable[int]) -> Iterator[None]:
    """A block in which these signals wait; a process that is started in it inherits that until it unblocks them."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _handled() -> list[signal.Signals]:
    """The signals that are not ignored."""
    return [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]


def _ignore() -> None:
    # at exit Python removes handlers while libraries still unload, and a late signal would change the exit code
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _stopped_by(reason: str) -> StoppedError:
    return StoppedError(f"stopped by {reason}", hint="run the same command again to resume")


class Stop:
    """A request to stop that may come at any time. Safe to ask in any thread."""

    def __init__(self) -> None:
        self._event = Event()
        self._reason = ""
        self._deadline = float("inf")
        self._signalled = False
        self.polled = False  # whether the running code checks often; else a signal raises wherever the program is
        self.unsettled = False  # whether a thread is still busy with something that takes longer than the grace

    def request(self, reason: str) -> None:
        """Request a stop; the first reason stays."""
        if not self._event.is_set():
            self._reason = reason
            self._deadline = monotonic() + GRACE_SECONDS
            self._event.set()

    @property
    def requested(self) -> bool:
        """Whether a stop was requested."""
        return self._event.is_set()

    def check(self) -> None:
        """Raise StoppedError if a stop was requested."""
        if self._event.is_set():
            raise _stopped_by(self._reason)

    @contextmanager
    def polling(self) -> Iterator[None]:
        """A block that checks often, so that signals need not raise in it."""
        self.check()
        self.polled = True
        try:
            yield
        finally:
            self.polled = False

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """A block in which a signal may raise anywhere; it leaves the block as StoppedError."""
        try:
            yield
        except Interrupted:
            self.check()
            raise

    def result(self, future: Future[T]) -> T:
        """The future's result. Raises StoppedError once a stop is requested, even if the result is ready."""
        self.check()
        while not wait([future], _POLL_SECONDS).done:
            self.check()
        return future.result()

    def settle(self, futures: Sequence[Future[Any]]) -> None:
        """Cancel what has not begun and wait for the others, up to the grace."""
        begun = [future for future in futures if not future.cancel()]
        late = wait(begun, max(0.0, min(GRACE_SECONDS, self._deadline - monotonic()))).not_done
        self.unsettled = self.unsettled or bool(late)

    def listen(self) -> None:
        """Handle the signals of schedulers and people from now on; one that is ignored stays ignored.

        Where no code polls they raise Interrupted, which `interruptible` turns into StoppedError.
        """

        def handle(number: int, frame: object) -> None:
            if self._signalled:  # not `requested`: after --max-seconds, the first signal is still the first
                os._exit(128 + number)
            self._signalled = True
            self.request(signal.Signals(number).name)
            if not self.polled:
                raise Interrupted

        for number in _handled():
            signal.signal(number, handle)
        atexit.register(_ignore)

    def after(self, seconds: float) -> None:
        """Request a stop when so many seconds have passed."""
        timer = Timer(min(max(0.0, seconds), TIMEOUT_MAX), self.request, ["--max-seconds"])
        timer.daemon = True
        timer.start()


def prefetch(values: Iterator[T], stop: Stop) -> Generator[T]:
    """The same values, each made in a thread while the one before is in use; StoppedError once a stop is requested."""
    end: Any = object()
    thread = ThreadPoolExecutor(1, "batchscore-read")
    try:
        following = thread.submit(next, values, end)
        while (value := stop.result(following)) is not end:
            following = thread.submit(next, values, end)
            yield value
            stop.check()
    finally:
        stop.settle([following])
        thread.shutdown(wait=not stop.unsettled, cancel_futures=True)
