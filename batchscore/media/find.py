"""From what a row holds to a `Media`: bytes are hashed and the header is read, and no pixel is decoded.

What a path or URL names is looked at once while the file does not change; its faults are remembered too, so that a
server that does not answer is not asked for every row.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from PIL import Image

from batchscore.media import images, sources
from batchscore.media.faults import MediaError
from batchscore.media.places import Memory, Place, locate
from batchscore.media.policy import MediaPolicy
from batchscore.media.sources import Embeddings, FrameList, ImageFile, Pixels
from batchscore.types import Fault, Media

__all__ = ["MediaError", "MediaFinder"]

_KNOWN = 65_536  # media that a finder remembers
_Kind = Literal["image", "video"]


class MediaFinder:
    """Finds media within a policy; several threads may use it."""

    def __init__(self, policy: MediaPolicy) -> None:
        self._policy = policy
        self._known = lru_cache(maxsize=_KNOWN)(self._outcome)

    def image(self, reference: Any) -> Media:
        """An image.

        Args:
            reference: a path or URL, the bytes of a file, a mapping with `bytes` or `path` as `datasets` has it, a PIL
                image, or a uint8 array [height, width], or [height, width, 3 or 4].

        Raises:
            MediaError: it is none of these, is not allowed, or cannot be read.
        """
        if isinstance(reference, Image.Image):
            return self._pixels(reference)
        if isinstance(reference, np.ndarray):
            return self._pixels(_from_array(reference))
        return self._file("image", reference, 0.0)

    def embeddings(self, value: Any) -> Media:
        """What stands for an image: base64 of a tensor that torch saved, an array, or an object of several by name."""
        named = value if isinstance(value, Mapping) else {"image_embeds": value}
        try:
            plain = {name: part.tolist() if hasattr(part, "tolist") else part for name, part in named.items()}
            data = json.dumps({name: part for name, part in plain.items() if part is not None}, sort_keys=True).encode()
        except (TypeError, ValueError) as error:
            raise MediaError("media", f"its image_embeds are no numbers: {error}", "give base64 or lists") from error
        return Media("image", sources.digest_of(b"embeddings", data), 0, 0, Embeddings(data))

    def video(self, reference: Any, fps: float = 0.0) -> Media:
        """A video.

        Args:
            reference: as of an image, the path, URL or bytes of a file; or a list of its frames, each as of an image
                and all of one size, or a uint8 array [frames, height, width, 3].
            fps: frames a second; 0: what the file says.

        Raises:
            MediaError: as of an image.
        """
        if not (math.isfinite(fps) and fps >= 0):
            raise MediaError("not-media", f"has {fps} frames a second", "give a positive number")
        if isinstance(reference, np.ndarray) and reference.ndim == 4:
            reference = list(reference)
        if isinstance(reference, list | tuple):
            return _of_frames(tuple(self.image(frame) for frame in reference), fps)
        return self._file("video", reference, fps)

    def _file(self, kind: _Kind, reference: Any, fps: float) -> Media:
        """The medium in a file."""
        if isinstance(reference, Mapping):
            data = reference.get("bytes")
            reference = reference.get("path") if data is None else data
        if isinstance(reference, bytes | bytearray | memoryview):
            return self._look(kind, Memory(bytes(reference), f"the {kind}"), fps)
        if not isinstance(reference, str | os.PathLike):
            message = f"is {type(reference).__name__}, not a path, URL or bytes of {kind}"
            raise MediaError("not-media", message, "pass a path, a URL, or the bytes of a file")
        place = locate(str(reference), self._policy)
        if isinstance(place, Memory):
            return self._look(kind, place, fps)
        outcome = self._known(kind, place, fps)
        if isinstance(outcome, Fault):
            raise MediaError(outcome.code, outcome.message, outcome.hint)
        return outcome

    def _pixels(self, image: Image.Image) -> Media:
        """An image that came decoded: as transformers passes it on, so EXIF does not turn it."""
        images.check_pixels(*image.size, "the image", self._policy.max_image_pixels)
        colour = images.in_colour(image, "the image")
        data = colour.tobytes()
        digest = sources.digest_of(f"{colour.mode} {colour.size}".encode(), data)
        return Media("image", digest, *colour.size, Pixels(colour.mode, colour.size, data))

    def _outcome(self, kind: _Kind, place: Place, fps: float) -> Media | Fault:
        """What is found at a place, or why nothing is."""
        try:
            return self._look(kind, place, fps)
        except MediaError as error:
            return error.fault

    def _look(self, kind: _Kind, place: Place, fps: float) -> Media:
        """Hash the bytes at a place and read their header."""
        if kind == "video":
            from batchscore.media.video import look

            return look(place, fps, self._policy.max_image_pixels)
        data = sources.read_image(place)
        limit = self._policy.max_image_pixels
        size = images.upright_size(data, place.name, limit)
        digest = sources.digest_of(data)
        return Media("image", digest, *size, ImageFile(place, digest, size, limit))


def _from_array(array: np.ndarray[Any, Any]) -> Image.Image:
    """A PIL image of an array of pixels."""
    if array.dtype != np.uint8 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))):
        message = f"is an array of {array.dtype} with shape {list(array.shape)}"
        raise MediaError("not-media", message, "an image is uint8 [height, width] or [height, width, 3 or 4]")
    return Image.fromarray(array)


def _of_frames(frames: tuple[Media, ...], fps: float) -> Media:
    """A video that came as its frames."""
    if not frames:
        raise MediaError("not-media", "is an empty list of frames")
    first = frames[0]
    for number, frame in enumerate(frames):
        if (frame.width, frame.height) != (first.width, first.height):
            sizes = f"{frame.width} x {frame.height} pixels, and the first has {first.width} x {first.height}"
            raise MediaError("not-media", f"frame {number} has {sizes}", "frames of a video have one size")
    digest = sources.video_digest(b"frames", fps, *(frame.digest for frame in frames))
    return Media("video", digest, first.width, first.height, FrameList(frames), len(frames), fps, sampled=True)
