"""Several devices on one machine: a worker process for each, which asks for a task when it is ready for one.

The parent never waits for a single worker. The tasks of one that dies go back, and it is started again a few times;
when no worker is left, the job ends with an error.
"""

from __future__ import annotations

import os
import pickle
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
from batchscore.jobs.leases import Task
from batchscore.jobs.meter import Amounts, Meter
from batchscore.jobs.pipeline import LULL_SECONDS
from batchscore.jobs.workers import start
from batchscore.jobs.workers.backlog import Backlog
from batchscore.jobs.workers.job import WorkerJob, Workforce
from batchscore.stop import GRACE_SECONDS, SIGNALS, Stop, blocked_signals

_CONTEXT = get_context("spawn")  # a fork would inherit threads and a CUDA context
_POLL_SECONDS = 0.2
_BEAT_SECONDS = 2.0  # between two signs of life of a worker
SILENCE_SECONDS = 60.0  # after which a worker counts as dead: stopped, or stuck in a driver
START_SECONDS = 600.0  # the same before its first sign of life: loading Python and torch from a busy disk takes minutes
_REPORT_SECONDS = 0.5  # between two messages on progress
_LEAVE_SECONDS = GRACE_SECONDS + 1.0  # for a worker to save and leave


@dataclass(frozen=True, slots=True)
class Slot:
    """Where one worker runs."""

    device: str
    threads: int | None = None  # None: as many as torch chooses


def find_slots(devices: str) -> list[Slot]:
    """The slots that `--devices` names: `auto`, `cpu:N`, or a list like `cuda:0,cuda:1`."""
    from batchscore.runners.device import count_cuda_devices, usable_cores

    if devices == "auto":
        return [Slot(f"cuda:{index}") for index in range(count_cuda_devices())] or [Slot("cpu")]
    slots = []
    for device in devices.split(","):
        kind, _, number = device.strip().partition(":")
        if kind == "cuda" and number.isdigit():
            slots.append(Slot(device.strip()))
        elif kind == "cpu" and (not number or (number.isdigit() and int(number))):
            count = int(number or 1)
            slots += [Slot("cpu", max(1, usable_cores() // count))] * count
        else:
            raise UsageError(f"--devices {devices!r}: unknown device {device!r}", hint="auto, cpu:2 or cuda:0,cuda:1")
    return slots


def run_in_processes(workforce: Workforce, slots: Sequence[Slot], tasks: Iterator[Task | None]) -> dict[Task, str]:
    """Have all tasks done; returns those that were given up, with the reason.

    Raises:
        StoppedError: a stop was requested.
        BatchscoreError: an error that ended a worker, or no worker is left.
    """
    return _Pool(workforce).run(slots, tasks)


@dataclass
class _Worker:
    slot: Slot
    process: BaseProcess
    messages: Connection  # both ways
    orders: Connection  # to the worker; when it closes, the worker knows that its parent is gone
    restarts: int  # that are left to its slot
    tasks: list[Task] = field(default_factory=list)  # in work
    idle: bool = False  # it asked for a task when there was none
    dismissed: bool = False  # it knows that there are no more tasks
    lost: str = ""  # why it cannot continue
    started: float = field(default_factory=monotonic)
    heard: float | None = None  # when it last sent a message; None while it loads Python

    def silence(self) -> str:
        """Why it counts as dead: for how long it has sent nothing; "" if it does not."""
        since, limit = (self.started, START_SECONDS) if self.heard is None else (self.heard, SILENCE_SECONDS)
        return f"no sign of life for {limit:.0f} s" if monotonic() - since > limit else ""


class _Pool:
    """The parent's side."""

    def __init__(self, workforce: Workforce) -> None:
        self._workforce = workforce
        self._workers: list[_Worker] = []

    def run(self, slots: Sequence[Slot], tasks: Iterator[Task | None]) -> dict[Task, str]:
        self._backlog = Backlog(tasks, self._workforce.note)
        stop = self._workforce.stop
        with stop.polling():
            try:
                for slot in slots:
                    self._start(slot, self._workforce.max_restarts)
                while self._workers:
                    stop.check()
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

    def _start(self, slot: Slot, restarts: int) -> None:
        ours, theirs = _CONTEXT.Pipe()
        orders, ordered = _CONTEXT.Pipe()
        process: BaseProcess = _CONTEXT.Process(
            target=start.work,
            args=(pickle.dumps(self._workforce.job), slot.device, theirs, ordered),
            daemon=True,
        )
        resource_tracker.ensure_running()  # else start() would start it, and unblock signals in doing so
        with _threads(slot.threads), blocked_signals(SIGNALS):
            process.start()
        theirs.close()
        ordered.close()
        self._workers.append(_Worker(slot, process, ours, orders, restarts))

    def _give_out(self) -> None:
        for worker in self._workers:
            if worker.idle and (task := self._backlog.take(worker.tasks)) is not None:
                worker.idle = False
                worker.tasks.append(task)
                self._send(worker, task.key)
        if not (self._backlog.is_waiting or any(worker.tasks for worker in self._workers)):
            for worker in self._workers:
                if worker.idle and not worker.dismissed:
                    worker.dismissed = True
                    self._send(worker, None)

    def _end_silent(self) -> None:
        """Kill workers that give no sign of life; the next round buries them."""
        for worker in self._workers:
            if not worker.lost and (silence := worker.silence()):
                worker.lost = silence
                worker.process.kill()

    def _send(self, worker: _Worker, message: tuple[str, int] | None) -> None:
        with suppress(OSError):  # it is dead; its sentinel will say so
            worker.messages.send(message)

    def _listen(self, worker: _Worker) -> None:
        """Read what a worker has sent, all of it if the worker is dead."""
        dead = not worker.process.is_alive()
        with suppress(EOFError, OSError):
            while worker.messages.poll():
                kind, *content = worker.messages.recv()
                worker.heard = monotonic()
                if kind == "want":
                    worker.idle = True
                elif kind == "progress":
                    self._workforce.meter.merge(*content)
                elif kind == "done":
                    task = next(task for task in worker.tasks if task.key == content[0])
                    worker.tasks.remove(task)
                    self._workforce.finish(task, content[1])
                elif kind == "error":
                    error, message, hint = content
                    if not issubclass(error, DeviceLostError):
                        raise error(message, hint=hint)
                    worker.lost = message
        if dead:
            self._bury(worker)

    def _bury(self, worker: _Worker) -> None:
        worker.process.join()
        self._workers.remove(worker)
        if not (worker.dismissed and worker.process.exitcode == 0):
            reason = worker.lost or f"exit code {worker.process.exitcode}"
            if self._backlog.bury(worker.slot.device, reason, worker.tasks, worker.restarts):
                self._start(worker.slot, worker.restarts - 1)

    def _dismiss(self) -> None:
        """Have every worker save and leave, and kill those that do not."""
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
    """Give a process that is started in this block so many threads: torch reads the variable when it is loaded."""
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


def work(job: WorkerJob, device: str, messages: Connection, orders: Connection) -> None:
    """The worker's side; ends the process."""
    for number in SIGNALS:  # a terminal or a scheduler sends them to every process; the parent decides
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # blocked while Python was loaded
    stop, lock = Stop(), Lock()

    def send(*message: Any) -> None:
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
            send("alive")
            sleep(_BEAT_SECONDS)

    Thread(target=obey, daemon=True).start()
    Thread(target=beat, daemon=True).start()
    code = 1
    try:
        report = _Report(send)
        pipeline = job.pipeline(report.meter, stop, device=device)
        tasks = _Asking(send, messages, pipeline.task)
        while not tasks.ended:
            pipeline.run(tasks, report.finish)
        code = 0
    except StoppedError:
        code = StoppedError.exit_code
    except EOFError:
        pass  # the parent is gone
    except BatchscoreError as error:
        send("error", type(error), error.message, error.hint)
    sys.stderr.flush()
    os._exit(code)  # without waiting for threads that are still busy


class _Asking:
    """The tasks that a worker gets, up to the next lull."""

    def __init__(
        self, send: Callable[..., None], messages: Connection, task: Callable[[tuple[str, int]], Task]
    ) -> None:
        self._send, self._messages, self._task = send, messages, task
        self._asked = False
        self.ended = False  # there are no more

    def __iter__(self) -> Iterator[Task]:
        while not self.ended:
            if not self._asked:
                self._send("want")
            self._asked = not self._messages.poll(LULL_SECONDS)
            if self._asked:
                return
            key = self._messages.recv()
            if key is None:
                self.ended = True
            else:
                yield self._task(key)


class _Report:
    """What a worker's meter counts, sent to the parent now and then and with each finished task."""

    def __init__(self, send: Callable[..., None]) -> None:
        self.meter = Meter(on_change=self._changed)
        self._send, self._sent, self._at = send, Amounts(), 0.0
        self._lock = Lock()

    def finish(self, task: Task, counts: Mapping[str, Any]) -> None:
        """Report a task that is done."""
        self._send_amounts()
        self._send("done", task.key, counts)

    def _changed(self, _: Meter) -> None:
        if monotonic() - self._at >= _REPORT_SECONDS:
            self._send_amounts()

    def _send_amounts(self) -> None:
        with self._lock:  # packs and the writer come from several threads, and each amount is to be sent once
            amounts = self.meter.amounts()
            self._send("progress", amounts.since(self._sent))
            self._sent, self._at = amounts, monotonic()
