"""A store: encodings kept for a lifetime, in files that are added and removed but never changed.

    DIR/0123456789abcdef0123456789abcdef/    a shelf: what one model made of one side's texts, under the same options
        _fingerprint.json                    which model and options; its digest is the folder's name
        89abcdef0123...4567.safetensors      a segment: the encodings of some texts; its digest is its name

Nothing is locked: any number of processes and machines read and add at once. What is added appears whole or not at
all. Small segments are merged when there are many (upkeep.py), and then stay for a day, so that whoever reads them can
go on. A segment that is gone or damaged costs no more than encoding its texts again.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from hashlib import blake2b
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from batchscore.errors import RuntimeFailureError
from batchscore.io.digests import DigestIndex, Digests, first_of_each
from batchscore.io.encodings import EncodingsFile
from batchscore.io.segments import Segment, SegmentError, current, segment_name, segment_names
from batchscore.io.storage import LocalFolder
from batchscore.io.upkeep import DESCRIPTION, has_many_small, merge_small, store_path
from batchscore.types import Encodings

SAMPLES = 4  # texts of an addition that are kept, to be encoded again by `batchscore store verify`
_SAMPLE_LENGTH = 10_000  # characters of the longest of them
_ROW_BITS = 40  # of a number in the index; the bits above say which segment

Text = str | tuple[str, str]  # of a pair the query and the document


def open_shelf(
    store: str, fingerprint: Mapping[str, Any], about: Mapping[str, Any], *, scratch: str | None = None
) -> Shelf:
    """What a store has under one fingerprint. Nothing is written before something is added.

    Args:
        store: folder on a disk of this machine or of a network.
        fingerprint: JSON-able: all that decides an encoding besides the text.
        about: JSON-able, for people and for `batchscore store`: "model", "side" ("query", "document" or "pair") and
            "scorer", the keywords of Scorer besides the model.
        scratch: folder for an index of more than a million texts; None: in memory, 24 bytes a text.

    Raises:
        UsageError: the store is a URL.
    """
    key = blake2b(json.dumps(fingerprint, sort_keys=True).encode(), digest_size=16).hexdigest()
    description = json.dumps({**about, "fingerprint": fingerprint}, indent=1).encode()
    return Shelf(LocalFolder(os.path.join(store_path(store), key)), description, scratch)


class Shelf:
    """Encodings under one fingerprint; threads may share it."""

    def __init__(self, folder: LocalFolder, description: bytes, scratch: str | None) -> None:
        self.damaged: dict[str, str] = {}  # path of each segment that cannot be used -> why
        self._folder, self._description, self._scratch = folder, description, scratch
        self._lost: set[str] = set()  # names of segments that are damaged, or that others have removed
        self._segments: dict[str, Segment] = {}  # by name, also those that were merged
        self._index: DigestIndex | None = None  # None: to be made
        self._indexed: list[Segment] = []
        self._lock = threading.RLock()

    def find(self, digests: Digests) -> tuple[NDArray[np.bool_], Encodings]:
        """(bool [n]: which texts are there; their encodings, in that order).

        Of an empty shelf the encodings are float32 [0, 0], whatever the others will be.

        Raises:
            RuntimeFailureError: the folder cannot be listed.
        """
        with self._lock:
            while True:  # each round but the last loses a segment
                numbers = self._known().find(digests)
                with self._losing():
                    return numbers >= 0, self._read(numbers, digests)

    def add(self, digests: Digests, encodings: Encodings, samples: Mapping[int, Text] | None = None) -> None:
        """Keep the encodings of texts without faults that are not there so far.

        Args:
            digests: [n, 2], of the texts.
            encodings: of these n texts, of one type and width in all calls.
            samples: row -> text, of a few rows, which `batchscore store verify` encodes again.

        Raises:
            RuntimeFailureError: the disk is full, or nothing may be written there.
            ValueError: another type or width than the shelf has.
        """
        with self._lock:
            is_new = first_of_each(digests) & (self._known().find(digests) < 0)
            is_new[list(encodings.faults)] = False
            rows = np.flatnonzero(is_new)
            if not len(rows):
                return
            texts = [(row, text) for row, text in (samples or {}).items() if is_new[row] and _is_short(text)]
            note = {"samples": [[digests[row].tolist(), text] for row, text in texts[:SAMPLES]]}
            added = encodings.take(rows)
            kind = added.values.dtype.str, added.values.shape[1:]
            if self._indexed and kind != self._indexed[0].kind:
                raise ValueError(f"{self._folder.path} holds {self._indexed[0].kind}, not {kind}")
            self._write(EncodingsFile(added, digests[rows], note).to_bytes())
            self._merge()

    def refresh(self) -> None:
        """Look for segments that others have added."""
        with self._lock:
            names = set(segment_names(self._folder))
            for name in self._segments.keys() - names:
                self._forget(name)
            for name in sorted(names - self._segments.keys() - self._lost):
                with self._losing():
                    self._segments[name] = Segment(self._folder.path, name)
            if self._index is None:
                self._index, self._indexed = DigestIndex(self._scratch), []
            while todo := self._unindexed():  # a second time if one is lost that others were merged into
                for segment in todo:
                    with self._losing():
                        self._add_to_index(self._index, segment)

    def _known(self) -> DigestIndex:
        if self._index is None:
            self.refresh()
        assert self._index is not None
        return self._index

    def _unindexed(self) -> list[Segment]:
        names = {segment.name for segment in self._indexed}
        return [segment for segment in current(self._segments.values()) if segment.name not in names]

    def _add_to_index(self, index: DigestIndex, segment: Segment) -> None:
        if self._indexed and segment.kind != self._indexed[0].kind:
            raise SegmentError(segment.name, f"it holds {segment.kind}, the others {self._indexed[0].kind}")
        digests = segment.digests()
        rows = np.flatnonzero(index.find(digests) < 0)
        index.add(digests[rows], rows + (len(self._indexed) << _ROW_BITS))
        self._indexed.append(segment)

    def _read(self, numbers: NDArray[np.int64], digests: Digests) -> Encodings:
        """The encodings of the texts that have a number, in their order."""
        places = np.flatnonzero(numbers >= 0)
        order = np.argsort(numbers[places], kind="stable")
        asked, rows = digests[places[order]], numbers[places[order]]
        which, firsts = np.unique(rows >> _ROW_BITS, return_index=True)
        parts = []
        for segment, (start, stop) in zip(which.tolist(), pairwise([*firsts, len(rows)]), strict=True):
            parts.append(self._indexed[segment].read(rows[start:stop] & ((1 << _ROW_BITS) - 1), asked[start:stop]))
        if not parts:
            dtype, shape = self._indexed[0].kind if self._indexed else ("<f4", (0,))
            return _nothing(np.empty((0, *shape), dtype))
        found = Encodings.concat(parts) if len(parts) > 1 else parts[0]
        return found if (order[1:] > order[:-1]).all() else found.take(np.argsort(order))

    def _write(self, content: bytes) -> None:
        name = segment_name(content)
        self._folder.make()
        if not self._folder.has(DESCRIPTION):
            self._folder.create(DESCRIPTION, self._description)
        self._folder.write(name, content)
        self._lost.discard(name)  # a damaged one of this name is whole again
        self.damaged.pop(os.path.join(self._folder.path, name), None)
        with self._losing():
            self._segments[name] = segment = Segment(self._folder.path, name)
            self._add_to_index(self._known(), segment)

    def _merge(self) -> None:
        """Merge small segments if there are many."""
        if not has_many_small(self._segments.values()):
            return
        self.refresh()  # another process may have done it
        with self._losing(), suppress(RuntimeFailureError):  # what was added is safe all the same
            merge_small(self._folder, self._segments.values())
        self.refresh()

    @contextmanager
    def _losing(self) -> Iterator[None]:
        """Whatever segment cannot be used in the block is not used again."""
        try:
            yield
        except SegmentError as error:
            self._lost.add(error.name)
            self._forget(error.name)
            if not error.is_gone:
                self.damaged[os.path.join(self._folder.path, error.name)] = error.why

    def _forget(self, name: str) -> None:
        self._segments.pop(name, None)
        if any(segment.name == name for segment in self._indexed):
            self._index = None


def _is_short(text: Text) -> bool:
    return len(text if isinstance(text, str) else "".join(text)) <= _SAMPLE_LENGTH


def _nothing(values: NDArray[Any]) -> Encodings:
    return Encodings(values, np.zeros(1, np.int64), np.empty(0, np.int32), np.empty(0, np.uint8))
