"""What another process needs to open a medium: where it is, or its bytes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, cast

from batchscore.media.faults import shown
from batchscore.media.places import LocalFile, Memory, Place, Remote
from batchscore.media.policy import MediaPolicy
from batchscore.media.sources import Embeddings, FrameList, ImageFile, Pixels
from batchscore.media.video import VideoFile
from batchscore.types import FrameSource, Media

_FIELDS = ("kind", "digest", "width", "height", "count", "fps", "sampled")
_PIXELS = "pixels:"  # before the mode, in place of a path
_EMBEDDINGS = "embeddings:"  # in place of a path


def pack(media: Media) -> dict[str, Any]:
    """A row of plain values.

    Returns:
        All fields of `Media` but its source, and for that

        * `where`: an absolute path or a URL; of a list of frames a JSON list of objects, each with the `where`, the
          `digest` in hexadecimal and the `size` in bytes of a frame; None if only the bytes are known
        * `bytes`: of what came as bytes or pixels; those of frames are joined; else None
    """
    where, data = _parts(media)
    return {**{name: getattr(media, name) for name in _FIELDS}, "where": where, "bytes": data}


def unpack(row: Mapping[str, Any], policy: MediaPolicy) -> Media:
    """The medium of a packed row; it is read within `policy`, which is checked whenever it is opened."""
    return Media(**{name: row[name] for name in _FIELDS}, source=_source(row, policy))


def _parts(media: Media) -> tuple[str | None, bytes | None]:
    """`where` and `bytes`."""
    source = media.source
    if isinstance(source, FrameList):
        parts = [(frame, *_parts(frame)) for frame in source.images]
        frames = [
            {"where": where, "digest": frame.digest.hex(), "size": len(data or b"")} for frame, where, data in parts
        ]
        return json.dumps(frames), b"".join(data or b"" for _, _, data in parts)
    if isinstance(source, Embeddings):
        return _EMBEDDINGS, source.data
    if isinstance(source, Pixels):
        return _PIXELS + source.mode, source.data
    place = cast("ImageFile | VideoFile", source).place
    if isinstance(place, Memory):
        return None, place.data
    return (place.path if isinstance(place, LocalFile) else place.url), None


def _source(row: Mapping[str, Any], policy: MediaPolicy) -> FrameSource:
    """Where the pixels of a packed row are."""
    where, data, size = row["where"], row["bytes"], (row["width"], row["height"])
    if where and where.startswith("["):
        return FrameList(tuple(_frames(row, json.loads(where), policy)))
    if where == _EMBEDDINGS:
        return Embeddings(data)
    if where and where.startswith(_PIXELS):
        return Pixels(where.removeprefix(_PIXELS), size, data)
    place = _place(row["kind"], where, data, policy)
    if row["kind"] == "video":
        return VideoFile(place, row["digest"], size, row["fps"])
    return ImageFile(place, row["digest"], size, policy.max_image_pixels)


def _frames(row: Mapping[str, Any], frames: list[dict[str, Any]], policy: MediaPolicy) -> Iterator[Media]:
    """The frames of a packed list."""
    start = 0
    for frame in frames:
        stop = start + frame["size"]
        image = {"kind": "image", "digest": bytes.fromhex(frame["digest"]), "count": 1, "fps": 0.0, "sampled": False}
        yield unpack({**row, **image, "where": frame["where"], "bytes": row["bytes"][start:stop]}, policy)
        start = stop


def _place(kind: str, where: str | None, data: bytes | None, policy: MediaPolicy) -> Place:
    """Where the file of an image or a video is."""
    if where is None:
        return Memory(data or b"", f"the {kind}")
    if where.lower().startswith(("http:", "https:")):
        return Remote(where, policy, shown(where))
    return LocalFile(where, policy, shown(where))
