"""Processes that tell each other, through the job's folder, that they are at work and on what.

Each touches a file of its own every few seconds. A unit is claimed by creating its lease, which only one can; a lease
is void when the file of the process it names has not been touched for three beats. That two may still work on one unit
for a while is harmless: both write the same part.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from threading import Event, Thread
from time import time
from typing import Any

from batchscore.errors import RuntimeFailureError
from batchscore.io.storage import Folder, LocalFolder, is_over, writer_id
from batchscore.io.units import Unit
from batchscore.jobs.parts import JOB, Parts, part_name

BEAT_SECONDS = 10.0
_BEATS = 3


class Presence:
    """The sign of life of this process."""

    def __init__(self, parts: Parts, shard: str, beat_seconds: float = BEAT_SECONDS) -> None:
        self.owner = writer_id()
        self.units: set[int] = set()
        self.rows_per_second = 0.0
        self._parts, self._shard, self._beat_seconds = parts, shard, beat_seconds
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

    def _beat(self) -> None:
        while not self._end.wait(self._beat_seconds):
            self._touch()

    def _touch(self) -> None:
        state = {
            "shard": self._shard,
            "units": sorted(self.units),
            "rows_per_second": round(self.rows_per_second, 1),
            "time": time(),
            "beat_seconds": self._beat_seconds,
        }
        try:
            self._parts.folder.write(_worker(self.owner), json.dumps(state).encode())
        except Exception:  # a full disk or a folder that was merged away; the work itself will say so
            return


class Leases:
    """Units claimed one at a time."""

    def __init__(self, parts: Parts, presence: Presence) -> None:
        assert isinstance(parts.folder, LocalFolder)
        self._parts, self._folder, self._presence = parts, parts.folder, presence
        self._held: set[str] = set()

    def claimed(self, units: Sequence[Unit]) -> Iterator[Unit]:
        """Units that nobody has, each claimed before it is given out; ends when all are done or someone's."""
        found = True
        while found:
            found = False
            for unit in units:
                if not self._parts.has(unit) and self._claim(_lease(unit)):
                    if self._parts.has(unit):
                        self.release(unit)
                        continue
                    found = True
                    yield unit

    def release(self, unit: Unit) -> None:
        """Give a unit back, or let go of one that is done."""
        self._held.discard(_lease(unit))
        self._folder.remove(_lease(unit))

    def claim_merge(self) -> bool:
        """Whether it is for this process to merge the parts."""
        return self._claim("part-merge.lease")

    def _claim(self, name: str) -> bool:
        """Whether this process has got a lease now; nobody gets one of a folder that was merged and is gone."""
        try:
            return name not in self._held and self._take(name)
        except RuntimeFailureError:
            if self._folder.has(JOB):
                raise
            return False

    def _take(self, name: str) -> bool:
        owner = self._presence.owner
        if not self._folder.create(name, owner.encode()):
            try:
                holder = bytes(self._folder.read(name)).decode()
            except FileNotFoundError:
                return False  # let go of just now; the next round looks again
            # a name comes back where a container starts again
            if holder != owner and _state(self._folder, holder) is not None:
                return False
            self._folder.remove(name)
            if not self._folder.create(name, owner.encode()):
                return False
        self._held.add(name)
        return True


def workers(parts: Parts) -> list[dict[str, Any]]:
    """What the processes that are at work say of themselves."""
    owners = [name[7:-5] for name in parts.folder.names() if name.startswith("worker-")]
    states = [(owner, _state(parts.folder, owner)) for owner in owners]
    return [{"process": owner, **state} for owner, state in states if state is not None]


def _state(folder: Folder, owner: str) -> dict[str, Any] | None:
    """What a process says of itself, if it has within three beats and is not known to have ended since."""
    if is_over(owner):
        return None
    try:
        state: dict[str, Any] = json.loads(bytes(folder.read(_worker(owner))))
        age = folder.age(_worker(owner)) if isinstance(folder, LocalFolder) else time() - state["time"]
        return state if age is not None and age < _BEATS * state["beat_seconds"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _worker(owner: str) -> str:
    return f"worker-{owner}.json"


def _lease(unit: Unit) -> str:
    return part_name(unit.index, "lease")
