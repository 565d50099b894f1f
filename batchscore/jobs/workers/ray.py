"""A Ray cluster instead of one machine: actors that get the keys of tasks and do these.

Only keys and counts go through Ray. An actor itself reads the input and writes the parts, so the folder
looks as it does without Ray, and any other run can resume it. The price is that every node must see the same files
under the same paths; an actor that finds other files refuses to work. Ray's own restarts stay off, since they would
not show which task an actor died on.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, field, replace
from queue import Empty, SimpleQueue
from socket import create_connection, gethostname
from textwrap import shorten
from threading import Thread
from time import sleep
from typing import Any

from batchscore.errors import BatchscoreError, DeviceLostError, MissingDependencyError, RuntimeFailureError, first_line
from batchscore.io.units import Unit
from batchscore.jobs.leases import Task
from batchscore.jobs.meter import Amounts, Meter
from batchscore.jobs.pipeline import LULL_SECONDS
from batchscore.jobs.workers.backlog import Backlog
from batchscore.jobs.workers.job import WorkerJob, Workforce
from batchscore.stop import GRACE_SECONDS, SIGNALS, Stop, blocked_signals

_IN_WORK = 2  # tasks of an actor: one in the model, one being read or written
_ACTORS_OF_A_NODE = 4  # at most, without GPUs: each has a model of its own
_CONNECT_SECONDS = 10.0
_POLL_SECONDS = 0.2
_LEAVE_SECONDS = GRACE_SECONDS + 1.0  # for an actor to save
_STORE_BYTES = 128 << 20  # of a Ray that is started here; its store stays nearly empty


def run_on_ray(workforce: Workforce, address: str | None, tasks: Iterator[Task | None]) -> dict[Task, str]:
    """Have all tasks done; returns those that were given up, with the reason.

    Args:
        workforce: what is done, and who hears of it.
        address: of the cluster; None: that of RAY_ADDRESS, or else one is started here.
        tasks: to do; None among them: the next one is not ready yet.

    Raises:
        MissingDependencyError: there is no Ray, or a node lacks batchscore.
        StoppedError: a stop was requested.
        BatchscoreError: an error that ended an actor, or no actor is left.
    """
    with _cluster(address, workforce.stop) as ray:
        slots = _find_slots(ray.nodes(), workforce.job.scorer.get("device", "auto"))
        workforce.note(f"ray      {len(slots)} workers at {ray.get_runtime_context().gcs_address}")
        return _Pool(ray, workforce).run(slots, tasks)


@contextmanager
def _cluster(address: str | None, stop: Stop) -> Iterator[Any]:
    """Ray, connected to its cluster; a cluster that is started here ends with the block."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise MissingDependencyError("--engine ray needs Ray", hint="pip install 'batchscore[ray]'") from error
    if ray.is_initialized():
        yield ray
        return
    with (
        open(os.devnull, "w") as nowhere,
        redirect_stdout(nowhere),
    ):  # Ray prints deaths there, and we note them ourselves
        _connect(ray, address or os.environ.get("RAY_ADDRESS") or "local", stop)
        try:
            yield ray
        finally:
            ray.shutdown()


def _connect(ray: Any, address: str, stop: Stop) -> None:
    from batchscore.runners.device import usable_cores

    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address == "local":
        options |= {"num_cpus": usable_cores(), "include_dashboard": False, "object_store_memory": _STORE_BYTES}
    try:
        _require_listener(address)
        with _signals_kept():
            ray.init(address, **options)
    except SystemExit:  # what Ray makes of SIGTERM while it starts
        stop.request("SIGTERM")
        stop.check()
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        stop.check()  # Ray tries again when a signal raises
        problem = "Ray cannot be started here" if address == "local" else f"no Ray cluster answers at {address}"
        raise RuntimeFailureError(
            f"{problem}: {first_line(error)}",
            hint="check it with `ray status`; RAY_AUTH_MODE=token if it wants a token",
        ) from error


def _require_listener(address: str) -> None:
    """OSError if nothing listens at HOST:PORT; Ray would keep trying for a quarter of an hour."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if port.isdigit():
        create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS).close()


@contextmanager
def _signals_kept() -> Iterator[None]:
    """A block in which Ray may be started: it takes SIGTERM for itself, and signals sent to all would kill it."""
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    news = set(SIGNALS) - {signal.SIGTERM, signal.SIGINT}  # Ray ends itself by the one, and blocks the other
    with blocked_signals(news):  # its processes inherit the mask
        try:
            yield
        finally:
            for number, handler in handlers.items():
                if signal.getsignal(number) is not handler:
                    signal.signal(number, handler)


_Done = tuple[Mapping[str, Any], Amounts]  # counts of a task, and what the actor's meter counted since the last


@dataclass(frozen=True, slots=True)
class _Slot:
    """Room for an actor."""

    device: str
    options: Mapping[str, Any]  # what the actor asks Ray for


def _find_slots(nodes: Sequence[Mapping[str, Any]], device: str) -> list[_Slot]:
    """One for each GPU of the cluster; without GPUs, or on `--device cpu`, some for each node, the largest first."""
    resources = [node["Resources"] for node in nodes if node["Alive"]]
    gpus = sum(int(node.get("GPU", 0)) for node in resources)
    if gpus and device != "cpu":
        return [_Slot("cuda", {"num_gpus": 1, "num_cpus": 0})] * gpus
    if device.startswith("cuda"):
        raise MissingDependencyError("the Ray cluster has no GPU", hint="pass --device cpu")
    slots = []
    for cpus in sorted((int(node.get("CPU", 0)) for node in resources), reverse=True):
        count = min(cpus, _ACTORS_OF_A_NODE)
        threads = cpus // max(1, count)
        environment = {"env_vars": {"OMP_NUM_THREADS": str(threads)}}
        slots += [_Slot("cpu", {"num_cpus": threads, "runtime_env": environment})] * count
    if not slots:
        raise MissingDependencyError("the Ray cluster has neither GPUs nor CPUs", hint="add a node to it")
    return slots


@dataclass
class _Worker:
    slot: _Slot
    restarts: int  # that are left to its slot
    actor: Any
    loading: Any  # the call; None: it is ready
    name: str  # for a person
    calls: dict[Any, Task] = field(default_factory=dict)  # the oldest first


class _Pool:
    """The driver's side."""

    def __init__(self, ray: Any, workforce: Workforce) -> None:
        self._ray, self._workforce = ray, workforce
        self._workers: list[_Worker] = []

    def run(self, slots: Sequence[_Slot], tasks: Iterator[Task | None]) -> dict[Task, str]:
        self._backlog = Backlog(tasks, self._workforce.note)
        stop = self._workforce.stop
        with stop.polling():
            try:
                for slot in slots:
                    self._start(slot, self._workforce.max_restarts)
                while self._give_out():
                    stop.check()
                    calls = {call: worker for worker in self._workers for call in worker.calls}
                    calls |= {worker.loading: worker for worker in self._workers if worker.loading is not None}
                    for call in self._ray.wait(list(calls), timeout=_POLL_SECONDS)[0] if calls else []:
                        self._listen(calls[call], call)
                    if not calls:
                        sleep(_POLL_SECONDS)
                self._backlog.require_empty()
            finally:
                self._dismiss()
        return self._backlog.given_up

    def _start(self, slot: _Slot, restarts: int) -> None:
        # a call for each task in work, and one to stop it
        options = {**slot.options, "max_concurrency": _IN_WORK + 1}
        actor = self._ray.remote(_Actor).options(**options).remote(self._workforce.job, slot.device, os.getcwd())
        self._workers.append(_Worker(slot, restarts, actor, actor.load.remote(), slot.device))

    def _give_out(self) -> bool:
        """Keep every worker busy. Returns whether there is anything to wait for."""
        ready = [worker for worker in self._workers if worker.loading is None]
        for number in range(_IN_WORK):
            for worker in ready:
                if len(worker.calls) == number and (task := self._backlog.take(worker.calls.values())) is not None:
                    worker.calls[worker.actor.run.remote(task.key)] = task
        is_waiting = not ready or self._backlog.is_waiting
        return any(worker.calls for worker in ready) or (bool(self._workers) and is_waiting)

    def _listen(self, worker: _Worker, call: Any) -> None:
        """Take the result of a call."""
        try:
            answer = self._ray.get(call)
        except self._ray.exceptions.RayError as error:
            reason = _last_line(error)
            if getattr(error, "actor_init_failed", False):
                raise MissingDependencyError(
                    f"a node of the Ray cluster cannot start a worker: {reason}",
                    hint="install on every node what is installed here, in the same versions",
                ) from error
            self._bury(worker, reason)
            return
        if isinstance(answer, DeviceLostError):
            self._bury(worker, answer.message)
        elif isinstance(answer, BatchscoreError):
            raise answer
        elif call == worker.loading:
            worker.loading, worker.name = None, answer
        else:
            task, (counts, amounts) = worker.calls.pop(call), answer
            # the meter has rows of the next unit too
            self._workforce.meter.merge(replace(amounts, rows=task.rows if isinstance(task, Unit) else 0.0))
            self._workforce.finish(task, counts)

    def _bury(self, worker: _Worker, reason: str) -> None:
        """End a worker that is dead or of no use, and start another if restarts are left."""
        self._workers.remove(worker)
        self._ray.kill(worker.actor)  # one that lost its device is still alive
        if self._backlog.bury(worker.name, reason, worker.calls.values(), worker.restarts):
            self._start(worker.slot, worker.restarts - 1)

    def _dismiss(self) -> None:
        """Have every worker save, and end it."""
        calls = [call for worker in self._workers for call in worker.calls]
        if calls:
            for worker in self._workers:
                worker.actor.leave.remote()
            self._ray.wait(calls, num_returns=len(calls), timeout=_LEAVE_SECONDS)
        for worker in self._workers:
            self._ray.kill(worker.actor)


class _Actor:
    """The worker's side: a pipeline in a thread, and calls that wait until their task is done.

    A BatchscoreError is returned instead of raised: Ray would wrap it.
    """

    def __init__(self, job: WorkerJob, device: str, folder: str) -> None:
        with suppress(OSError):  # a node without this folder may still have what is named by absolute paths
            os.chdir(folder)
        self._job, self._device, self._stop = job, device, Stop()
        self._meter, self._reported = Meter(), Amounts()
        self._wanted: SimpleQueue[tuple[str, int]] = SimpleQueue()
        self._done: dict[tuple[str, int], Future[_Done]] = {}  # by task
        self._end: Future[_Done] = Future()  # an error

    def load(self) -> str | BatchscoreError:
        """Load the model. Returns where that is."""
        try:
            self._pipeline = self._job.pipeline(self._meter, self._stop, device=self._device)
        except BatchscoreError as error:
            return error
        Thread(target=self._work, name="batchscore-work", daemon=True).start()
        return f"{self._device} of {gethostname()}"

    def run(self, key: tuple[str, int]) -> _Done | BatchscoreError:
        """Do a task. Returns its counts, and what the meter counted since the last one."""
        done = self._done[key] = Future()
        self._wanted.put(key)
        wait([done, self._end], return_when=FIRST_COMPLETED)
        try:
            return done.result() if done.done() else self._end.result()
        except BatchscoreError as error:
            return error

    def leave(self) -> None:
        """Save what is in work, and stop."""
        self._stop.request("the driver")

    def _work(self) -> None:
        try:
            while True:
                self._pipeline.run(self._following(self._wanted.get()), self._finish)
        except BaseException as error:  # raised again in the calls that wait for it
            self._end.set_exception(error)

    def _following(self, key: tuple[str, int]) -> Iterator[Task]:
        """Tasks that follow without a pause. After the last, the pipeline waits for its file to be written."""
        with suppress(Empty):
            while True:
                yield self._pipeline.task(key)
                key = self._wanted.get(timeout=LULL_SECONDS)

    def _finish(self, task: Task, counts: Mapping[str, Any]) -> None:
        amounts = self._meter.amounts()
        self._done.pop(task.key).set_result((counts, amounts.since(self._reported)))
        self._reported = amounts


def _last_line(error: BaseException) -> str:
    """Ray's reason for a death: the last line, after a traceback or ids."""
    return shorten((str(error).splitlines() or [type(error).__name__])[-1], 160)
