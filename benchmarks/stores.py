"""The store of encodings against SQLite and LMDB: speed, bytes a row, two writers at once, SIGKILL in the middle.

    python benchmarks/stores.py [ROUNDS]

Two loads: 200,000 vectors of 384 float32, and raw scores of 1,000,000 pairs, added and looked up 16,384 at a time.
Every peer syncs each addition to the disk. LMDB takes part where it is installed. Peers take turns; prints medians.
"""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from batchscore.io.digests import Digests
from batchscore.io.store import open_shelf
from batchscore.types import Encodings

BATCH = 16_384
LOADS = {"vectors": (200_000, 384), "pairs": (1_000_000, 1)}  # rows, float32 in each
Values = NDArray[np.float32]


class Peer(Protocol):
    """A store of float32 rows by digest."""

    def add(self, digests: Digests, values: Values) -> None:
        """Add rows that are not there."""

    def find(self, digests: Digests) -> Values:
        """The rows that are there, in the order of their digests."""

    def close(self) -> None:
        """Let another one open the folder."""


class Ours(Peer):
    """batchscore's."""

    def __init__(self, folder: str) -> None:
        self._shelf = open_shelf(folder, {}, {})

    def add(self, digests: Digests, values: Values) -> None:  # noqa: D102
        rows = len(digests)
        tokens, cut = np.full(rows, 100, np.int32), np.zeros(rows, np.uint8)
        self._shelf.add(digests, Encodings(values, np.arange(rows + 1), tokens, cut))

    def find(self, digests: Digests) -> Values:  # noqa: D102
        return self._shelf.find(digests)[1].values


class Sqlite(Peer):
    """A table with the digest as its key."""

    def __init__(self, folder: str) -> None:
        self._file = sqlite3.connect(f"{folder}/store.db", timeout=600, isolation_level=None)
        self._file.execute("PRAGMA journal_mode=WAL")
        self._file.execute("PRAGMA synchronous=FULL")
        self._file.execute("CREATE TABLE IF NOT EXISTS kept (key BLOB PRIMARY KEY, value BLOB) WITHOUT ROWID")

    def add(self, digests: Digests, values: Values) -> None:  # noqa: D102
        self._file.execute("BEGIN IMMEDIATE")
        rows = ((key.tobytes(), value.tobytes()) for key, value in zip(digests, values, strict=True))
        self._file.executemany("INSERT OR IGNORE INTO kept VALUES (?, ?)", rows)
        self._file.execute("COMMIT")

    def find(self, digests: Digests) -> Values:  # noqa: D102
        query = "SELECT value FROM kept WHERE key = ?"
        rows = [self._file.execute(query, (key.tobytes(),)).fetchone() for key in digests]
        return as_values([row[0] for row in rows if row is not None])

    def close(self) -> None:  # noqa: D102
        self._file.close()


class Lmdb(Peer):
    """One database, mapped."""

    def __init__(self, folder: str) -> None:
        self._file: Any = import_module("lmdb").open(folder, map_size=8 << 30)

    def add(self, digests: Digests, values: Values) -> None:  # noqa: D102
        with self._file.begin(write=True) as transaction:
            for key, value in zip(digests, values, strict=True):
                transaction.put(key.tobytes(), value.tobytes(), overwrite=False)

    def find(self, digests: Digests) -> Values:  # noqa: D102
        with self._file.begin(buffers=True) as transaction:
            found = (transaction.get(key.tobytes()) for key in digests)
            return as_values([value for value in found if value is not None])

    def close(self) -> None:  # noqa: D102
        self._file.close()


PEERS: dict[str, Callable[[str], Peer]] = {"ours": Ours, "SQLite": Sqlite}
if find_spec("lmdb"):
    PEERS["LMDB"] = Lmdb


def as_values(rows: list[Any]) -> Values:
    """float32 [n, dim] of their bytes."""
    return np.frombuffer(b"".join(rows), np.float32).reshape(len(rows), -1)


def load(name: str, seed: int) -> tuple[Digests, Values]:
    """Made up: the values say which digest they are of."""
    rows, dim = LOADS[name]
    digests = np.random.default_rng(seed).integers(0, 1 << 64, (rows, 2), dtype=np.uint64)
    return digests, np.repeat((digests[:, :1] >> np.uint64(40)).astype(np.float32), dim, axis=1)


def batches(*arrays: NDArray[Any]) -> Iterator[tuple[NDArray[Any], ...]]:
    """Arrays, a batch of rows at a time."""
    for start in range(0, len(arrays[0]), BATCH):
        yield tuple(array[start : start + BATCH] for array in arrays)


def measure(peer: str, name: str) -> dict[str, float]:
    """Rows a second of each task, and bytes a row."""
    digests, values = load(name, 0)
    order = np.random.default_rng(1).permutation(len(digests))[:100_000]
    with tempfile.TemporaryDirectory() as folder:
        store = PEERS[peer](folder)
        begin = time.perf_counter()
        for keys, some in batches(digests, values):
            store.add(keys, some)
        found = {"adds/s": len(digests) / (time.perf_counter() - begin)}
        store.close()
        found["bytes a row"] = sum(path.stat().st_size for path in Path(folder).rglob("*.*")) / len(digests)
        for task, keys in (("in order/s", digests[: 10 * BATCH]), ("scattered/s", digests[order])):
            store = PEERS[peer](folder)
            begin = time.perf_counter()
            for (some,) in batches(keys):
                check(store.find(some), some)
            found[task] = len(keys) / (time.perf_counter() - begin)
            store.close()
        return found


def check(values: Values, digests: Digests) -> None:
    """Fail unless these are the values of the digests."""
    assert len(values) == len(digests)
    assert (values[:, -1] == (digests[:, 0] >> np.uint64(40)).astype(np.float32)).all()


def writer(peer: str, name: str, seed: int, folder: str) -> subprocess.Popen[str]:
    """A process that adds a load."""
    arguments = [sys.executable, __file__, "write", peer, name, str(seed), folder]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)


def write(peer: str, name: str, seed: int, folder: str) -> None:
    """The process of `writer`: adds everything, and says how much is added after each batch."""
    store = PEERS[peer](folder)
    print("ready", flush=True)
    done = 0
    for keys, some in batches(*load(name, seed)):
        store.add(keys, some)
        done += len(keys)
        print(done, flush=True)


def together(peer: str, name: str) -> float:
    """Rows a second of two processes that add different rows at once."""
    with tempfile.TemporaryDirectory() as folder:
        writers = [writer(peer, name, seed, folder) for seed in (0, 1)]
        for one in writers:
            assert one.stdout is not None
            assert one.stdout.readline() == "ready\n"
        begin = time.perf_counter()
        codes = [one.communicate() and one.returncode for one in writers]
        seconds = time.perf_counter() - begin
        assert codes == [0, 0], codes
        store = PEERS[peer](folder)
        for seed in (0, 1):
            for (keys,) in batches(load(name, seed)[0]):
                check(store.find(keys[:100]), keys[:100])
        store.close()
        return 2 * LOADS[name][0] / seconds


def killed(peer: str, name: str, times: int) -> str:
    """What SIGKILL at drawn moments costs of what was said to be added."""
    lost, draw = 0, np.random.default_rng(2)
    for _ in range(times):
        with tempfile.TemporaryDirectory() as folder:
            process = writer(peer, name, 0, folder)
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(draw.uniform(0.05, 1.0))
            process.send_signal(signal.SIGKILL)
            said = [int(line) for line in process.communicate()[0].split()]
            keys = load(name, 0)[0][: max(said, default=0)]
            store = PEERS[peer](folder)
            try:
                for (some,) in batches(keys):
                    check(store.find(some), some)
            except AssertionError:
                lost += 1
            store.close()
    return f"{times} kills, {lost} with losses or wrong rows"


def main(rounds: int) -> None:
    """Let the peers take turns."""
    for name, (rows, dim) in LOADS.items():
        print(f"{rows:,} {name} of {dim}")
        runs: dict[str, list[dict[str, float]]] = {peer: [] for peer in PEERS}
        for _ in range(rounds):
            for peer in PEERS:
                runs[peer].append(measure(peer, name) | {"two writers, adds/s": together(peer, name)})
        for peer, found in runs.items():
            cells = [f"{task} {median(run[task] for run in found):,.0f}" for task in found[0]]
            print(f"  {peer:6}  {', '.join(cells)}; {killed(peer, name, 5)}", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["write"]:
        write(sys.argv[2], sys.argv[3], int(sys.argv[4]), sys.argv[5])
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
