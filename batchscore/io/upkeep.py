"""What a store needs beside reading and adding: few segments, less of them, and knowing what is in it."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from batchscore.errors import NotFoundError, UsageError
from batchscore.io.digests import first_of_each
from batchscore.io.encodings import EncodingsFile
from batchscore.io.segments import Segment, SegmentError, current, segment_name, segment_names
from batchscore.io.storage import TEMPORARY, LocalFolder, is_over, is_url, iso_time, local_path, write_errors_as
from batchscore.types import Encodings

DESCRIPTION = "_fingerprint.json"
_SHELF = re.compile(r"[0-9a-f]{32}")
_SMALL = 32 << 20  # bytes of a segment that is worth merging
_MERGED = 64 << 20  # bytes of a merged one, which is made in memory
_MANY = 64  # small segments that are left alone
_GRACE = 24 * 3600.0  # seconds that a segment stays after it was merged into another one
_MERGED_SAMPLES = 16


def store_path(store: str) -> str:
    """The folder of a store; UsageError if it is a URL."""
    path = local_path(store)
    if is_url(path):
        raise UsageError(
            f"{store} cannot be a store: it is not on a disk",
            hint="name a folder on a disk of this machine, or on a network disk that is mounted",
        )
    return path


# ---- few segments


def has_many_small(segments: Iterable[Segment]) -> bool:
    """Whether segments should be merged."""
    return len(_small(segments)) > _MANY


def merge_small(folder: LocalFolder, segments: Iterable[Segment]) -> None:
    """Merge the oldest small segments if there are many, and remove those that were merged a day ago.

    Processes that do this at the same time choose the same segments, and so write the same files.

    Raises:
        SegmentError: one of them cannot be used.
        RuntimeFailureError: the disk is full, or nothing may be written there.
    """
    segments = list(segments)
    if has_many_small(segments):
        for group in _groups(_small(segments)[:_MANY]):
            content = _merged(group, {segment.name for segment in segments})
            folder.write(segment_name(content), content)
        _remove_merged(folder, segments)


def _small(segments: Iterable[Segment]) -> list[Segment]:
    return [segment for segment in current(segments) if segment.size < _SMALL]


def _groups(segments: Sequence[Segment]) -> Iterator[list[Segment]]:
    """Neighbours that together are not too large to be merged in memory: two at least, since each is small."""
    group: list[Segment] = []
    for segment in segments:
        if sum(one.size for one in group) + segment.size > _MERGED:
            yield group
            group = []
        group.append(segment)
    if len(group) > 1:
        yield group


def _merged(segments: Sequence[Segment], names: Collection[str]) -> bytes:
    """The content of the segment that replaces these, and those of `names` that were merged into them."""
    every = [segment.digests() for segment in segments]
    parts = [segment.read(np.arange(segment.texts), digests) for segment, digests in zip(segments, every, strict=True)]
    digests = np.concatenate(every)
    rows = np.flatnonzero(first_of_each(digests))  # two processes may have added the same
    before = {name for segment in segments for name in segment.replaces}
    note = {
        "time": max(segment.time for segment in segments),
        "replaces": sorted({segment.name for segment in segments} | before.intersection(names)),
        "samples": [sample for segment in segments for sample in segment.samples][:_MERGED_SAMPLES],
    }
    return EncodingsFile(Encodings.concat(parts).take(rows), digests[rows], note).to_bytes()


def _remove_merged(folder: LocalFolder, segments: Iterable[Segment]) -> None:
    """Remove segments that were merged into another one a day ago, if that one is whole."""
    names = set(folder.names())
    for segment in segments:
        left = names.intersection(segment.replaces)
        age = folder.age(segment.name) if left else None
        if age is not None and age > _GRACE:
            with suppress(SegmentError, OSError):
                segment.check()
                for name in left:
                    folder.remove(name)


# ---- what is in it


@dataclass(frozen=True)
class ShelfFiles:
    """The files of one shelf."""

    folder: LocalFolder
    about: Mapping[str, Any]  # of its description; {} if that cannot be read
    segments: Sequence[Segment]  # with those that were merged
    damaged: Mapping[str, str]  # path of a segment that cannot be opened -> why

    @property
    def model(self) -> str:
        """As it was named by whoever added first."""
        return str(self.about.get("model", "unknown"))

    @property
    def side(self) -> str:
        """Query, document or pair."""
        return str(self.about.get("side", "unknown"))

    def bytes_of(self, segments: Iterable[Segment]) -> int:
        """Bytes of segments with those that were merged into them and are still there."""
        sizes = {segment.name: segment.size for segment in self.segments}
        return sum(sizes.get(name, 0) for segment in segments for name in {segment.name, *segment.replaces})

    def describe(self) -> dict[str, Any]:
        """JSON-able."""
        segments = current(self.segments)
        return {
            "shelf": os.path.basename(self.folder.path),
            "model": self.model,
            "side": self.side,
            "texts": sum(segment.texts for segment in segments),
            "bytes": sum(segment.size for segment in self.segments),
            "segments": len(segments),
            "oldest": iso_time(segments[0].time) if segments else None,
            "newest": iso_time(segments[-1].time) if segments else None,
            "damaged": dict(self.damaged),
        }


def shelves(store: str) -> list[ShelfFiles]:
    """All shelves of a store, by model and side; NotFoundError if there is no such folder."""
    path = store_path(store)
    try:
        names = sorted(entry.name for entry in os.scandir(path) if _SHELF.fullmatch(entry.name) and entry.is_dir())
    except OSError as error:
        raise NotFoundError(f"{store}: {error.strerror or error}", hint="check the path and the access") from error
    found = [_files(LocalFolder(os.path.join(path, name))) for name in names]
    return sorted(found, key=lambda shelf: (shelf.model, shelf.side))


def _files(folder: LocalFolder) -> ShelfFiles:
    about: Any = None
    with suppress(OSError, ValueError):
        about = json.loads(bytes(folder.read(DESCRIPTION)))
    segments, damaged = [], {}
    for name in segment_names(folder):
        try:
            segments.append(Segment(folder.path, name))
        except SegmentError as error:
            if not error.is_gone:
                damaged[os.path.join(folder.path, name)] = error.why
    return ShelfFiles(folder, about if isinstance(about, dict) else {}, segments, damaged)


# ---- less of it


@dataclass(frozen=True)
class Pruned:
    """What was removed of a shelf, or would be."""

    shelf: ShelfFiles
    segments: Sequence[Segment]  # without those that were merged into them

    def describe(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "shelf": os.path.basename(self.shelf.folder.path),
            "model": self.shelf.model,
            "side": self.shelf.side,
            "texts": sum(segment.texts for segment in self.segments),
            "bytes": self.shelf.bytes_of(self.segments),
            "segments": len(self.segments),
        }


def prune(
    store: str,
    *,
    model: str | None = None,
    older_than: float | None = None,
    max_bytes: int | None = None,
    dry_run: bool = False,
) -> list[Pruned]:
    """Remove encodings, and what interrupted and damaged writes have left. Jobs that run can go on.

    Args:
        store: folder.
        model: only of this model; without the next two all that it has.
        older_than: only what was added more than this many seconds ago.
        max_bytes: the oldest, until the rest (of that model) is no larger.
        dry_run: remove nothing.

    Raises:
        NotFoundError: there is no such folder, or nothing of the model in it.
        RuntimeFailureError: a file cannot be removed.
    """
    chosen = [shelf for shelf in shelves(store) if model in (None, shelf.model)]
    if model is not None and not chosen:
        models = ", ".join(dict.fromkeys(shelf.model for shelf in shelves(store))) or "nothing"
        raise NotFoundError(f"{store} has nothing of the model {model!r}", hint=f"it has {models}")
    if model is not None and older_than is None and max_bytes is None:
        older_than = float("-inf")
    doomed = _doomed(chosen, older_than, max_bytes)
    pruned = [Pruned(shelf, doomed.get(shelf.folder.path, [])) for shelf in chosen]
    if not dry_run:
        for one in pruned:
            _remove(one)
    return [one for one in pruned if one.segments]


def _doomed(chosen: Iterable[ShelfFiles], older_than: float | None, max_bytes: int | None) -> dict[str, list[Segment]]:
    """By folder, the segments that rules of `prune` remove."""
    oldest = sorted(
        ((shelf, segment) for shelf in chosen for segment in current(shelf.segments)),
        key=lambda pair: (pair[1].time, pair[1].name),
    )
    left = sum(shelf.bytes_of([segment]) for shelf, segment in oldest)
    limit = left if max_bytes is None else max_bytes
    before = float("-inf") if older_than is None else time.time() - older_than
    doomed: dict[str, list[Segment]] = {}
    for shelf, segment in oldest:
        if left > limit or segment.time < before:
            doomed.setdefault(shelf.folder.path, []).append(segment)
            left -= shelf.bytes_of([segment])
    return doomed


def _remove(pruned: Pruned) -> None:
    """Remove segments, those first that were merged into them: without their successor they would count again."""
    shelf, folder = pruned.shelf, pruned.shelf.folder
    with write_errors_as(folder.path):
        for segment in pruned.segments:
            for name in [*segment.replaces, segment.name]:
                folder.remove(name)
        for path in filter(_is_readable, shelf.damaged):
            folder.remove(os.path.basename(path))
        for name in folder.names():
            writer = name.rpartition(TEMPORARY)[2].rpartition("-")[0]
            if TEMPORARY in name and (is_over(writer) or (folder.age(name) or 0) > _GRACE):
                folder.remove(name)
        _remove_merged(folder, shelf.segments)
        if not segment_names(folder) and (folder.age(DESCRIPTION) or 0) > _GRACE:  # a younger one may be in use
            folder.remove(DESCRIPTION)
            with suppress(OSError):  # something else is in it
                os.rmdir(folder.path)


def _is_readable(path: str) -> bool:
    """Whether this user may read a file; of another's nobody knows that it is damaged."""
    return os.access(path, os.R_OK)
