"""Files of encodings that never change: read where needed by any machine, while others may remove them.

They are not mapped: when another machine removes a mapped file of a network disk, the next access ends the process.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from batchscore.errors import RuntimeFailureError
from batchscore.io.digests import Digests
from batchscore.io.encodings import StoredArray, checksums, read_layout
from batchscore.io.storage import LocalFolder
from batchscore.types import Encodings, offsets_of, ranges

_SUFFIX = ".safetensors"
_NAME = re.compile(rf"[0-9a-f]{{32}}{re.escape(_SUFFIX)}")
_GAP = 1 << 14  # bytes between two rows that are read with them, since one more request costs more
_BLOCK = 1 << 25  # bytes that are read at a time

Rows = NDArray[np.int64]


class SegmentError(Exception):
    """A segment cannot be used: it is damaged, or another process has removed it."""

    def __init__(self, name: str, why: str, *, is_gone: bool = False) -> None:
        super().__init__(why)
        self.name, self.why, self.is_gone = name, why, is_gone


class Segment:
    """A file in the format of `EncodingsFile`, named after its content; only its header is kept in memory.

    Whatever reads it, also the constructor, raises SegmentError.
    """

    def __init__(self, folder: str, name: str) -> None:
        self.name, self.path = name, os.path.join(folder, name)
        with self._opened() as file:
            status = os.fstat(file)
            self.size = status.st_size
            self._arrays, beside = read_layout(lambda start, size: _read(file, start, size), self.size)
            values, digests = self._arrays["values"], self._arrays["digests"]
            self.texts = digests.shape[0]
            self.kind = values.dtype, values.shape[1:]
            note = {"time": status.st_mtime, "replaces": [], "samples": [], **beside["note"]}
            self.time = float(note["time"])  # when its newest text was added, in seconds since the epoch
            self.replaces: list[str] = list(note["replaces"])  # names of the segments that were merged into it
            # of a few texts the digest, as two numbers, and the text; of a pair a list of query and document
            self.samples: list[Any] = list(note["samples"])

    def digests(self) -> Digests:
        """uint64 [texts, 2]."""
        array = self._arrays["digests"]
        with self._opened() as file:
            return array.of(_read(file, array.start, array.nbytes))

    def read(self, rows: Rows, digests: Digests) -> Encodings:
        """The texts at `rows`, which ascend, once it is certain that they are those of `digests`."""
        arrays, once = self._arrays, np.ones_like(rows)
        with self._opened() as file:
            tokens, cut, crc = (_gather(file, arrays[name], rows, once) for name in ("tokens", "cut", "crc32"))
            starts, ends = _gather(file, arrays["offsets"], rows, 2 * once).reshape(-1, 2).T
            if (starts < 0).any() or (ends < starts).any() or (ends > arrays["values"].shape[0]).any():
                raise ValueError("its offsets are wrong")
            values = _gather(file, arrays["values"], starts, ends - starts)
            encodings = Encodings(values, offsets_of(ends - starts), tokens, cut)
            if (checksums(encodings, digests) != crc).any():
                raise ValueError("a checksum differs")
        return encodings

    def check(self) -> None:
        """Read the whole file: its name says what its content must be."""
        hasher = blake2b(digest_size=16)
        with self._opened() as file:
            for start in range(0, self.size, _BLOCK):
                hasher.update(_read(file, start, min(_BLOCK, self.size - start)))
            if hasher.hexdigest() + _SUFFIX != self.name:
                raise ValueError("its content is not what was written")

    @contextmanager
    def _opened(self) -> Iterator[int]:
        """A handle; any error in the block becomes a SegmentError."""
        try:
            file = os.open(self.path, os.O_RDONLY)
            try:
                yield file
            finally:
                os.close(file)
        except OSError as error:
            is_gone = error.errno in (errno.ENOENT, errno.ESTALE)
            raise SegmentError(self.name, error.strerror or str(error), is_gone=is_gone) from error
        except (ValueError, KeyError, TypeError) as error:
            raise SegmentError(self.name, f"it is damaged: {error}") from error


def segment_name(content: bytes) -> str:
    """The name of a segment with this content: whoever writes the same writes the same file."""
    return blake2b(content, digest_size=16).hexdigest() + _SUFFIX


def segment_names(folder: LocalFolder) -> list[str]:
    """Of all segments in a folder, sorted."""
    try:
        return [name for name in folder.names() if _NAME.fullmatch(name)]
    except OSError as error:
        message = f"cannot list {folder.path}: {error.strerror or error}"
        raise RuntimeFailureError(message, hint="check the disk and the permissions, or name another folder") from error


def current(segments: Iterable[Segment]) -> list[Segment]:
    """Those that were not merged into another of them, the oldest first."""
    segments = sorted(segments, key=lambda segment: (segment.time, segment.name))
    merged = {name for segment in segments for name in segment.replaces}
    return [segment for segment in segments if segment.name not in merged]


def _read(file: int, start: int, size: int) -> memoryview:
    """Bytes of a file; ValueError if it ends before them."""
    content, done = memoryview(bytearray(size)), 0
    while done < size:
        read = os.preadv(file, [content[done:]], start + done)
        if not read:
            raise ValueError("it ends early")
        done += read
    return content


def _gather(file: int, array: StoredArray, starts: Rows, counts: Rows) -> NDArray[Any]:
    """[sum of counts, ...]: runs of rows of an array, in ascending order; near ones are read together."""
    gaps, width = starts[1:] - starts[:-1] - counts[:-1], array.row_bytes
    is_far = (gaps * width > _GAP) | (np.diff(starts * width // _BLOCK) > 0)
    parts = [np.empty((0, *array.shape[1:]), array.dtype)]
    for near in np.split(np.arange(len(starts)), np.flatnonzero(is_far) + 1) if len(starts) else []:
        first, last = int(starts[near[0]]), int(starts[near[-1]] + counts[near[-1]])
        block = array.of(_read(file, array.start + first * width, (last - first) * width))
        is_whole = not gaps[near[0] : near[-1]].any()
        parts.append(block if is_whole else block[ranges(starts[near] - first, counts[near])])
    return np.concatenate(parts)
