"""How processes show each other, through the job's folder, that they are alive and what they have in work.

Each process touches a file of its own every few seconds. A block or a unit is claimed by creating its lease, which only
one process can do. A lease is void once the file of the process it names has not been touched for three beats. Two
processes may then work on one for a while, which is harmless: both write the same file.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from threading import Event, Thread
from time import monotonic, sleep, time
from typing import Any

from batchscore.errors import RuntimeFailureError
from batchscore.io.storage import Folder, LocalFolder, is_over, writer_id
from batchscore.io.units import Unit
from batchscore.jobs.blocks import Block
from batchscore.jobs.meter import Meter
from batchscore.jobs.parts import JOB, Parts, part_name
from batchscore.jobs.passes import Pass
from batchscore.stop import Stop

Task = Block | Unit | Pass

BEAT_SECONDS = 10.0
_BEATS = 3  # missed in a row, before a process counts as dead: one may be late on a busy disk, three are not
_POLL_SECONDS = 0.5


class Presence:
    """The sign of life of this process, and what it shows of its work."""

    def __init__(
        self, parts: Parts, shard: str, meter: Meter | None = None, *, beat_seconds: float = BEAT_SECONDS
    ) -> None:
        self.owner = writer_id()
        self.units: set[int] = set()  # in work
        self.blocks: set[int] = set()
        self.finished_rows = 0
        self.beat_seconds = beat_seconds
        self._parts, self._shard, self._meter = parts, shard, meter
        self._end = Event()
        self._thread = Thread(target=self._beat, name="batchscore-beat", daemon=True)

    def __enter__(self) -> Presence:
        self._touch()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()
        self._parts.folder.remove(_worker(self.owner))

    def shown(self, tasks: Iterable[Task | None]) -> Iterator[Task | None]:
        """The same tasks, each in work from now until it is finished."""
        for task in tasks:
            if task is not None:
                self._in_work(task).add(task.index)
            yield task

    def finish(self, task: Task) -> None:
        """A task has its file."""
        self._in_work(task).discard(task.index)
        if isinstance(task, Unit):
            self.finished_rows += task.rows
        elif isinstance(task, Pass) and task.is_last:
            self.finished_rows += task.unit.rows

    def _in_work(self, task: Task) -> set[int]:
        return self.blocks if isinstance(task, Block) else self.units

    def _beat(self) -> None:
        while not self._end.wait(self.beat_seconds):
            self._touch()

    def _touch(self) -> None:
        # from the meter, which counts packs: the first unit of a large model can take many minutes
        meter = self._meter or Meter()
        state = {
            "shard": self._shard,
            "units": sorted(self.units),
            "blocks": sorted(self.blocks),
            "rows_in_work": max(0, round(meter.rows) - self.finished_rows),
            "rows_per_second": round(meter.rows_per_second, 1),
            "seconds_left": None if meter.seconds_left is None else round(meter.seconds_left, 1),
            "time": time(),
            "beat_seconds": self.beat_seconds,
        }
        try:
            self._parts.folder.write(_worker(self.owner), json.dumps(state).encode())
        except Exception:  # a full disk, or a folder that was merged away: the work itself runs into it as well
            return


class Leases:
    """Tasks claimed one at a time."""

    def __init__(self, parts: Parts, presence: Presence) -> None:
        assert isinstance(parts.folder, LocalFolder)
        self._parts, self._folder, self._presence = parts, parts.folder, presence
        self._leases: set[str] = set()

    def claimed(self, units: Sequence[Unit]) -> Iterator[Unit]:
        """Free units, each claimed before it is handed out; ends when all are done or claimed by others."""
        progress = True
        while progress:
            progress = False
            for unit in units:
                if not self._parts.has(unit) and self.claim(unit):
                    if self._parts.has(unit):
                        self.release(unit)
                        continue
                    progress = True
                    yield unit

    def wait_for_silent(self, units: Sequence[Unit], stop: Stop) -> list[Unit]:
        """Units that are free after all, because the process on another host that had claimed them is dead.

        A process on this host is known to be dead at once, one on another host only after three beats. If every other
        process ended before that, the last unit of a dead one would stay undone. StoppedError once a stop is requested.
        """
        end = monotonic() + _BEATS * self._presence.beat_seconds
        while self._folder.has(JOB):
            left = [unit for unit in units if not self._parts.has(unit)]
            holders = {unit.index: self._holder(unit) for unit in left}
            if free := [unit for unit in left if holders[unit.index] is None]:
                return free
            if monotonic() >= end or all(_is_local(holder) for holder in holders.values() if holder is not None):
                return []
            stop.check()
            sleep(_POLL_SECONDS)
        return []

    def _holder(self, unit: Unit) -> str | None:
        """The live process that has claimed a unit."""
        try:
            owner = bytes(self._folder.read(_lease(unit))).decode()
        except FileNotFoundError:
            return None
        return owner if _state(self._folder, owner) is not None else None

    def claim(self, task: Task) -> bool:
        """Whether this process has just become the one to do a task."""
        return self._claim(_lease(task))

    def release(self, task: Task) -> None:
        """Give back a task, finished or not."""
        self._leases.discard(_lease(task))
        self._folder.remove(_lease(task))

    def release_all(self) -> None:
        """Give back what is not finished."""
        for name in list(self._leases):
            self._folder.remove(name)

    def claim_merge(self) -> bool:
        """Whether this process is the one to merge the parts."""
        return self._claim("part-merge.lease")

    def claim_survey(self) -> bool:
        """Whether this process is the one to collect the texts."""
        return self._claim("texts.lease")

    def claim_index(self) -> bool:
        """Whether this process is the one to make the index of the corpus."""
        return self._claim("corpus.lease")

    def _claim(self, name: str) -> bool:
        """Whether this process has the lease now; False if the folder was merged and is gone."""
        try:
            return name not in self._leases and self._take(name)
        except RuntimeFailureError:
            if self._folder.has(JOB):
                raise
            return False

    def _take(self, name: str) -> bool:
        owner = self._presence.owner
        with suppress(FileNotFoundError):  # looked at first: who waits tries again and again, and each try is a write
            holder = bytes(self._folder.read(name)).decode()
            # a container that starts again has the same host and process number
            if holder != owner and _state(self._folder, holder) is not None:
                return False
            self._folder.remove(name)
        if not self._folder.create(name, owner.encode()):
            return False  # another was faster; the next round looks again
        self._leases.add(name)
        return True


def workers(parts: Parts) -> list[dict[str, Any]]:
    """The state that each live process of the job has written."""
    owners = [name[7:-5] for name in parts.folder.names() if name.startswith("worker-")]
    states = [(owner, _state(parts.folder, owner)) for owner in owners]
    return [{"process": owner, **state} for owner, state in states if state is not None]


def _state(folder: Folder, owner: str) -> dict[str, Any] | None:
    """What a process wrote within the last three beats; None if it wrote nothing since, or is known to have ended."""
    if is_over(owner):
        return None
    try:
        state: dict[str, Any] = json.loads(bytes(folder.read(_worker(owner))))
        age = folder.age(_worker(owner)) if isinstance(folder, LocalFolder) else time() - state["time"]
        return state if age is not None and age < _BEATS * state["beat_seconds"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _is_local(owner: str) -> bool:
    """Whether a process runs on this machine, in the same namespace: then `is_over` knows about it."""
    return owner.rpartition("-")[0] == writer_id().rpartition("-")[0]


def _worker(owner: str) -> str:
    return f"worker-{owner}.json"


def _lease(task: Task) -> str:
    return task.file("lease") if isinstance(task, Block) else part_name(task.index, "lease")
