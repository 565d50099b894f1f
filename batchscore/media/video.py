"""Videos, through PyAV: what the container says, and frames by their number.

Frames are decoded from the start, since a seek by number is inexact in many containers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from batchscore.errors import first_line
from batchscore.media.faults import MediaError, as_input_error
from batchscore.media.images import check_pixels
from batchscore.media.places import Place
from batchscore.media.sources import changed, file_digest, video_digest
from batchscore.types import Media

# playlists are not among them: they would open other files and URLs
_FORMATS = "mov,mp4,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,ogg,asf,gif"


@dataclass(frozen=True, slots=True)
class VideoFile:
    """A video in a file."""

    place: Place
    digest: bytes
    size: tuple[int, int]  # width and height, upright
    fps: float

    def frames(self, index: Sequence[int], *, on_white: bool) -> list[Any]:
        """As of `FrameSource`; what is transparent in a video is dropped."""
        with as_input_error(), self.place.open() as file:
            if video_digest(b"file", self.fps, file_digest(file)) != self.digest:
                raise changed(self.place.name)
            file.seek(0)
            with _opened(file, self.place.name) as (container, stream):
                return _decoded(container, stream, index, self.size, self.place.name)


def look(place: Place, fps: float, max_pixels: int) -> Media:
    """What the container says; packets are counted, and none is decoded but those of the first frame."""
    with place.open() as file:
        digest = file_digest(file)
        file.seek(0)
        with _opened(file, place.name) as (container, stream):
            check_pixels(stream.codec_context.width, stream.codec_context.height, place.name, max_pixels)
            fps = fps or float(stream.average_rate or stream.guessed_rate or 0)
            size, count = _size_and_count(container, stream)
    if not count:
        raise MediaError("media-damaged", f"{place.name} has no frames")
    whole = video_digest(b"file", fps, digest)
    return Media("video", whole, *size, VideoFile(place, whole, size, fps), count, fps)


@contextmanager
def _opened(file: BinaryIO, name: str) -> Iterator[tuple[Any, Any]]:
    """The container and its first video stream; what goes wrong inside becomes MediaError."""
    try:
        import av
    except ImportError as error:
        raise MediaError("media-damaged", f"{name}: videos need PyAV", "pip install 'batchscore[video]'") from error
    options = {"format_whitelist": _FORMATS, "protocol_whitelist": ""}
    try:
        with av.open(file, options=options) as container:
            if not container.streams.video:
                raise MediaError("media-damaged", f"{name} has no video stream")
            yield container, container.streams.video[0]
    except MediaError:
        raise
    except Exception as error:  # a damaged file may raise anything
        raise MediaError("media-damaged", f"{name} is not a video that is read: {first_line(error)}") from error


def _size_and_count(container: Any, stream: Any) -> tuple[tuple[int, int], int]:
    """Width and height upright, and the number of frames, which few containers state as they decode."""
    count, size = 0, None
    for packet in container.demux(stream):
        count += bool(packet.size) and not packet.is_discard
        for frame in packet.decode() if size is None else ():
            size = (frame.height, frame.width) if _quarters(frame) % 2 else (frame.width, frame.height)
    return size or (0, 0), count if size else 0


def _quarters(frame: Any) -> int:
    """By how many quarters it is to be turned counterclockwise; what a container says may be a degree off."""
    return round(int(frame.rotation) / 90)


def _decoded(container: Any, stream: Any, index: Sequence[int], size: tuple[int, int], name: str) -> list[Image.Image]:
    """The frames at these positions, ascending."""
    stream.thread_type = "AUTO"
    wanted, found, seen = set(index), {}, 0
    for seen, frame in enumerate(container.decode(stream), start=1):
        if seen - 1 in wanted:
            pixels = frame.to_ndarray(format="rgb24")
            image = Image.fromarray(np.ascontiguousarray(np.rot90(pixels, _quarters(frame))))
            if image.size != size:
                raise MediaError("media-damaged", f"{name} changes its size at frame {seen - 1}")
            found[seen - 1] = image
            if len(found) == len(wanted):
                break
    if len(found) < len(wanted):
        raise MediaError(
            "media-damaged", f"{name} has {seen} frames that can be decoded, and frame {max(wanted)} is asked"
        )
    return [found[frame] for frame in index]
