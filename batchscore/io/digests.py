"""Digests of texts, and which number each has: how a text is known that came before, in 24 bytes.

A digest is 128 bits of BLAKE2b. That two texts of a trillion share one has a chance of 1 in 10^15, and nobody can make
two that do, so that no document gets another's score on purpose either.
"""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from typing import IO

import numpy as np
import pyarrow as pa
from numpy.lib import format as npy
from numpy.typing import NDArray

from batchscore.errors import InputError
from batchscore.types import Cell, cell_bytes

Digests = NDArray[np.uint64]  # [n, 2]
_Run = NDArray[np.uint64]  # [3, n]: both halves of the digests, ascending by the first, and the bits of the numbers

_HELD = 1 << 20  # digests of a run in memory; a longer one goes to the disk
_PIECE = 1 << 18  # digests of the longest run that are merged at a time


def digests_of(texts: Sequence[Cell]) -> Digests:
    """uint64 [n, 2]: the digest of each text, or of what stands for one."""
    begun, digests = blake2b(digest_size=16), []
    for text in texts:
        hasher = begun.copy()  # a third faster for short texts than to begin anew
        hasher.update(text.encode() if isinstance(text, str) else cell_bytes(text))
        digests.append(hasher.digest())
    return np.frombuffer(b"".join(digests), "<u8").reshape(-1, 2)


def first_of_each(digests: Digests) -> NDArray[np.bool_]:
    """bool [n]: where a digest stands for the first time."""
    order = np.lexsort((digests[:, 1], digests[:, 0]))
    is_first = np.ones(len(digests), bool)
    is_first[order[1:]] = (digests[order[1:]] != digests[order[:-1]]).any(axis=1)
    return is_first


class DigestIndex:
    """Digest -> number, in sorted arrays: a few of them, each at least twice as long as the next.

    Args:
        scratch: folder for the long ones, in files that vanish with the process; None: all in memory.
    """

    def __init__(self, scratch: str | None = None) -> None:
        self._scratch = scratch
        self._runs: list[_Run] = []

    @classmethod
    def open(cls, content: pa.Buffer, name: str, scratch: str | None = None) -> DigestIndex:
        """The index that `write` wrote; its file is read where digests are looked for.

        Args:
            content: of the file, mapped.
            name: of the file, for the error.
            scratch: as above.

        Raises:
            InputError: the file is damaged, or no index.
        """
        index = cls(scratch)
        try:
            index._runs.append(_read(content))
        except ValueError as error:
            raise InputError(f"{name} is damaged: {error}", hint="remove it, and run the same command again") from error
        return index

    def __len__(self) -> int:
        return sum(run.shape[1] for run in self._runs)

    def find(self, digests: Digests) -> NDArray[np.int64]:
        """int64 [n]: the number of each digest; -1 where it has none."""
        found = np.full(len(digests), -1, np.int64)
        missing = np.argsort(digests[:, 0])  # what is looked for in order walks through a run once
        for run in self._runs:
            numbers = _look_up(run, digests[missing])
            found[missing] = numbers
            missing = missing[numbers < 0]
        return found

    def add(self, digests: Digests, numbers: NDArray[np.int64]) -> None:
        """Give numbers to digests that have none so far and are all different."""
        if not len(digests):
            return
        self._runs.append(_sorted(np.stack([*digests.T, np.asarray(numbers, np.int64).view(np.uint64)])))
        while len(self._runs) > 1 and self._runs[-2].shape[1] < 2 * self._runs[-1].shape[1]:
            self._runs[-2:] = [self._merged(self._runs[-2:])]

    def items(self) -> tuple[Digests, NDArray[np.int64]]:
        """(digests [n, 2], ascending by their first half; numbers [n]) of the whole, in memory."""
        first, second, numbers = np.concatenate([np.empty((3, 0), np.uint64), *_pieces(self._runs)], axis=1)
        return np.stack([first, second], axis=1), numbers.view(np.int64)

    def write(self, path: str) -> None:
        """Write the whole into a file for `open`: a .npy of uint64 [3, n]."""
        with open(path, "wb") as file:
            _write(self._runs, file)

    def _merged(self, runs: Sequence[_Run]) -> _Run:
        """Runs as one, on disk if that is long."""
        if self._scratch is None or sum(run.shape[1] for run in runs) <= _HELD:
            return np.concatenate(list(_pieces(runs)), axis=1)
        with tempfile.TemporaryFile(dir=self._scratch) as file:
            _write(runs, file)
            return _read(pa.py_buffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)))


def _sorted(run: _Run) -> _Run:
    return run[:, np.argsort(run[0], kind="stable")]


def _look_up(run: _Run, digests: Digests) -> NDArray[np.int64]:
    """int64 [n]: the number of each digest in a run; -1 where it has none."""
    first, second, numbers = run
    found = np.full(len(digests), -1, np.int64)
    wanted = np.arange(len(digests))
    places = np.searchsorted(first, digests[:, 0])
    while len(wanted):  # a second time only for first halves that several digests share
        is_there = places < len(first)
        is_there[is_there] = first[places[is_there]] == digests[wanted[is_there], 0]
        wanted, places = wanted[is_there], places[is_there]
        is_same = second[places] == digests[wanted, 1]
        found[wanted[is_same]] = numbers[places[is_same]].view(np.int64)
        wanted, places = wanted[~is_same], places[~is_same] + 1
    return found


def _pieces(runs: Sequence[_Run]) -> Iterator[_Run]:
    """Runs merged, a piece at a time: each holds all digests whose first half is in its range."""
    if not runs:
        return
    longest = max(runs, key=lambda run: run.shape[1])
    bounds = np.unique(longest[0, ::_PIECE])[1:]
    ends = [np.append(np.searchsorted(run[0], bounds), run.shape[1]) for run in runs]
    starts = [0 for _ in runs]
    for piece in range(len(bounds) + 1):
        stops = [int(end[piece]) for end in ends]
        parts = [run[:, start:stop] for run, start, stop in zip(runs, starts, stops, strict=True)]
        yield _sorted(np.concatenate(parts, axis=1))
        starts = stops


def _write(runs: Sequence[_Run], file: IO[bytes]) -> None:
    """Write runs as one, in the format of .npy files."""
    count = sum(run.shape[1] for run in runs)
    npy.write_array_header_1_0(file, {"descr": "<u8", "fortran_order": False, "shape": (3, count)})
    header, done = file.tell(), 0
    for piece in _pieces(runs):
        for row, column in enumerate(piece):
            file.seek(header + 8 * (row * count + done))
            file.write(np.ascontiguousarray(column, "<u8").data)
        done += piece.shape[1]
    file.flush()


def _read(content: pa.Buffer) -> _Run:
    """A run as `_write` wrote it, without a copy."""
    header = pa.BufferReader(content)
    npy.read_magic(header)
    shape, _, dtype = npy.read_array_header_1_0(header)
    if dtype != np.dtype("<u8") or content.size - header.tell() != 8 * np.prod(shape):
        raise ValueError("it has another size")
    return np.frombuffer(content, "<u8", offset=header.tell()).reshape(shape)
