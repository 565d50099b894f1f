"""Several devices on one machine: a process for each, which asks for a unit when it is ready for one.

The parent never waits for a single process. One that dies gives its units back and is started again a few times; when
no process is left, the job ends with an error.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import get_context, resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from threading import Lock, Thread, Timer
from time import monotonic, sleep
from typing import Any

from batchscore.errors import BatchscoreError, DeviceLostError, StoppedError, UsageError
from batchscore.io.units import Unit
from batchscore.jobs.meter import Meter
from batchscore.jobs.pipeline import LULL_SECONDS
from batchscore.jobs.workers.backlog import Backlog
from batchscore.jobs.workers.job import WorkerJob
from batchscore.stop import GRACE_SECONDS, SIGNALS, Stop, blocked_signals

_POLL_SECONDS = 0.2
_BEAT_SECONDS = 2.0  # between two signs of life of a worker
SILENCE_SECONDS = 60.0  # after which it is taken for dead: stopped, or stuck in a driver
_TELL_SECONDS = 0.5  # between two messages on progress
_LEAVE_SECONDS = GRACE_SECONDS + 1.0  # for a child to save and leave


@dataclass(frozen=True, slots=True)
class Slot:
    """Where one process runs."""

    device: str
    threads: int | None = None  # None: as many as it likes


def find_slots(devices: str) -> list[Slot]:
    """The processes that `--devices` asks for: `auto`, `cpu:N`, or a list such as `cuda:0,cuda:1`."""
    from batchscore.runners.device import count_cuda_devices, usable_cores

    if devices == "auto":
        return [Slot(f"cuda:{index}") for index in range(count_cuda_devices())] or [Slot("cpu")]
    places = []
    for device in devices.split(","):
        kind, _, number = device.strip().partition(":")
        if kind == "cuda" and number.isdigit():
            places.append(Slot(device.strip()))
        elif kind == "cpu" and (not number or (number.isdigit() and int(number))):
            count = int(number or 1)
            places += [Slot("cpu", max(1, usable_cores() // count))] * count
        else:
            raise UsageError(f"--devices {devices!r}: {device!r} is no device", hint="auto, cpu:2 or cuda:0,cuda:1")
    return places


@dataclass
class _Worker:
    place: Slot
    process: BaseProcess
    messages: Connection  # both ways
    orders: Connection  # to the worker; its end tells the worker that there is no parent
    restarts: int  # that are left to its place
    units: list[Unit] = field(default_factory=list)  # in work
    idle: bool = False  # asked for a unit when there was none
    told_end: bool = False
    lost: str = ""  # why it cannot go on
    heard: float | None = None  # when it last said something; None: it is loading Python


class Crew:
    """The parent's side."""

    def __init__(
        self,
        task: WorkerJob,
        places: Sequence[Slot],
        meter: Meter,
        stop: Stop,
        *,
        max_restarts: int,
        on_done: Callable[[Unit, Mapping[str, Any]], None],
        say: Callable[[str], None],
    ) -> None:
        self._task, self._meter, self._stop = task, meter, stop
        self._places, self._max_restarts = list(places), max_restarts
        self._on_done, self._say = on_done, say
        self._workers: list[_Worker] = []

    def run(self, units: Iterator[Unit]) -> dict[int, str]:
        """Have all units scored; those that were given up, and why.

        Raises:
            StoppedError: the end was asked for.
            BatchscoreError: what a worker could not go on from, or no worker is left.
        """
        self._backlog = Backlog(units, self._say)
        with self._stop.polling():
            try:
                for place in self._places:
                    self._workers.append(self._start(place, self._max_restarts))
                while self._workers:
                    self._stop.check()
                    self._give_out()
                    ends: dict[Any, _Worker] = {}
                    for worker in self._workers:
                        ends |= {worker.messages: worker, worker.process.sentinel: worker}
                    self._end_silent()
                    for worker in {id(ends[end]): ends[end] for end in wait(list(ends), _POLL_SECONDS)}.values():
                        self._listen(worker)
                self._backlog.require_empty()
            finally:
                self._dismiss()
        return self._backlog.given_up

    def _start(self, place: Slot, restarts: int) -> _Worker:
        context = get_context("spawn")  # a fork would inherit threads and a CUDA context
        ours, theirs = context.Pipe()
        orders, ordered = context.Pipe()
        process = context.Process(target=_work, args=(self._task, place.device, theirs, ordered), daemon=True)
        resource_tracker.ensure_running()  # start would, and with signals let through from there on
        with _threads(place.threads), blocked_signals(SIGNALS):
            process.start()
        theirs.close()
        ordered.close()
        return _Worker(place, process, ours, orders, restarts)

    def _give_out(self) -> None:
        for worker in self._workers:
            if worker.idle and (unit := self._backlog.take(worker.units)) is not None:
                worker.idle = False
                worker.units.append(unit)
                self._send(worker, unit.index)
        if not any(worker.units for worker in self._workers):
            for worker in self._workers:
                if worker.idle and not worker.told_end:
                    worker.told_end = True
                    self._send(worker, None)

    def _end_silent(self) -> None:
        """Kill workers that give no sign of life, which then are found dead."""
        for worker in self._workers:
            if worker.heard is not None and monotonic() - worker.heard > SILENCE_SECONDS and not worker.lost:
                worker.lost = f"no sign of life for {SILENCE_SECONDS:.0f} s"
                worker.process.kill()

    def _send(self, worker: _Worker, message: int | None) -> None:
        with suppress(OSError):  # it is dead; its sentinel will say so
            worker.messages.send(message)

    def _listen(self, worker: _Worker) -> None:
        """Take in what a worker says, to its last word if it is dead."""
        dead = not worker.process.is_alive()
        with suppress(EOFError, OSError):
            while worker.messages.poll():
                kind, *content = worker.messages.recv()
                worker.heard = monotonic()
                if kind == "want":
                    worker.idle = True
                elif kind == "progress":
                    self._meter.add(*content)
                elif kind == "done":
                    unit = next(unit for unit in worker.units if unit.index == content[0])
                    worker.units.remove(unit)
                    self._on_done(unit, content[1])
                elif kind == "error":
                    error, message, hint = content
                    if not issubclass(error, DeviceLostError):
                        raise error(message, hint=hint)
                    worker.lost = message
        if dead:
            worker.process.join()
            self._workers.remove(worker)
            if not (worker.told_end and worker.process.exitcode == 0):
                why = worker.lost or f"exit code {worker.process.exitcode}"
                if self._backlog.bury(worker.place.device, why, worker.units, worker.restarts):
                    self._workers.append(self._start(worker.place, worker.restarts - 1))

    def _dismiss(self) -> None:
        """Have every worker save and leave, and end those that do not."""
        for worker in self._workers:
            with suppress(OSError):
                worker.orders.send("stop")
        deadline = monotonic() + _LEAVE_SECONDS
        for worker in self._workers:
            worker.process.join(max(0.0, deadline - monotonic()))
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
        self._workers.clear()


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """So many threads for a process that is started meanwhile; torch reads it when it is loaded."""
    before = os.environ.get("OMP_NUM_THREADS")
    if count is not None:
        os.environ["OMP_NUM_THREADS"] = str(count)
    try:
        yield
    finally:
        if before is None:
            os.environ.pop("OMP_NUM_THREADS", None)
        else:
            os.environ["OMP_NUM_THREADS"] = before


def _work(task: WorkerJob, device: str, messages: Connection, orders: Connection) -> None:
    """The worker's side; ends the process."""
    for number in SIGNALS:  # a terminal or a scheduler sends them to all; the parent decides
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # held while Python was loaded
    stop, lock = Stop(), Lock()

    def tell(*message: Any) -> None:
        with lock, suppress(OSError):
            messages.send(message)

    def obey() -> None:
        with suppress(EOFError, OSError):
            orders.recv()
        stop.request("its parent")
        timer = Timer(_LEAVE_SECONDS, os._exit, [1])
        timer.daemon = True
        timer.start()

    def beat() -> None:
        while True:
            tell("alive")
            sleep(_BEAT_SECONDS)

    Thread(target=obey, daemon=True).start()
    Thread(target=beat, daemon=True).start()
    code = 1
    try:
        pipeline = task.pipeline(Meter(on_change=_teller(tell)), stop, device=device)
        units = _Asking(tell, messages, pipeline.parts.units)
        while not units.ended:
            pipeline.run(units, lambda unit, counts: tell("done", unit.index, counts))
        code = 0
    except StoppedError:
        code = StoppedError.exit_code
    except EOFError:
        pass  # the parent is gone
    except BatchscoreError as error:
        tell("error", type(error), error.message, error.hint)
    sys.stderr.flush()
    os._exit(code)  # without waiting for threads that are in the middle of something


class _Asking:
    """The units a worker is given, up to the next lull."""

    def __init__(self, tell: Callable[..., None], messages: Connection, units: Sequence[Unit]) -> None:
        self._tell, self._messages, self._units = tell, messages, units
        self._asked = False
        self.ended = False  # there are no more

    def __iter__(self) -> Iterator[Unit]:
        while not self.ended:
            if not self._asked:
                self._tell("want")
            self._asked = not self._messages.poll(LULL_SECONDS)
            if self._asked:
                return
            index = self._messages.recv()
            if index is None:
                self.ended = True
            else:
                yield self._units[index]


def _teller(tell: Callable[..., None]) -> Callable[[Meter], None]:
    """Tells what came to a meter since the last time, now and then."""
    told = {"rows": 0.0, "tokens": 0, "at": 0.0}

    def on_change(meter: Meter) -> None:
        if monotonic() - told["at"] >= _TELL_SECONDS:
            rows, tokens = meter.rows, meter.tokens
            tell("progress", rows - told["rows"], tokens - told["tokens"])
            told.update(rows=rows, tokens=tokens, at=monotonic())

    return on_change
