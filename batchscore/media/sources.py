"""Where pixels come from: a file, pixels at hand, a list of frames. Each may be asked by several threads at once."""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

from PIL import Image

from batchscore.errors import InputError
from batchscore.media import images
from batchscore.media.faults import MediaError, as_input_error
from batchscore.media.places import Place
from batchscore.types import Media

_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class ImageFile:
    """An image in a file."""

    place: Place
    digest: bytes
    size: tuple[int, int]  # width and height, upright
    max_pixels: int

    def frames(self, index: Sequence[int], *, on_white: bool) -> list[Any]:
        """As of `FrameSource`."""
        with as_input_error():
            data = read_image(self.place)
            if digest_of(data) != self.digest:
                raise changed(self.place.name)
            image = images.decoded(data, self.place.name, self.size, self.max_pixels)
        return [images.flat(image, on_white=on_white)]


@dataclass(frozen=True, slots=True)
class Pixels:
    """An image that came decoded."""

    mode: str  # RGB or RGBA
    size: tuple[int, int]
    data: bytes

    def frames(self, index: Sequence[int], *, on_white: bool) -> list[Any]:
        """As of `FrameSource`."""
        return [images.flat(Image.frombytes(self.mode, self.size, self.data), on_white=on_white)]


@dataclass(frozen=True, slots=True)
class Embeddings:
    """What a model's tower made of an image before this job, in place of the image."""

    data: bytes  # a JSON object: name -> base64 of a tensor that torch saved, or nested lists of numbers

    def frames(self, index: Sequence[int], *, on_white: bool) -> list[Any]:
        """None: InputError."""
        raise InputError("embeddings have no pixels", hint="give the image itself")


@dataclass(frozen=True, slots=True)
class FrameList:
    """A video that came as its frames."""

    images: tuple[Media, ...]

    def frames(self, index: Sequence[int], *, on_white: bool) -> list[Any]:
        """As of `FrameSource`."""
        return [self.images[frame].source.frames((0,), on_white=on_white)[0] for frame in index]


def read_image(place: Place) -> bytes:
    """The bytes of an image's file; MediaError if they are too many."""
    with place.open() as file:
        size = file.seek(0, os.SEEK_END)
        if size > images.MAX_BYTES:
            message = f"{place.name} has {size >> 20:,} MB, more than the {images.MAX_BYTES >> 20} that are read"
            raise MediaError("media-too-large", message, "make it smaller")
        file.seek(0)
        return file.read(size)


def digest_of(*parts: bytes) -> bytes:
    """16 bytes of BLAKE2b."""
    return hashlib.blake2b(b"".join(parts), digest_size=16).digest()


def file_digest(file: BinaryIO) -> bytes:
    """That of a file's bytes, from where it stands to its end."""
    digest = hashlib.blake2b(digest_size=16)
    while chunk := file.read(_CHUNK):
        digest.update(chunk)
    return digest.digest()


def video_digest(kind: bytes, fps: float, *digests: bytes) -> bytes:
    """That of a video file, or of a list of frames: the same bytes as an image are another medium."""
    return digest_of(kind, struct.pack("<d", fps), *digests)


def changed(name: str) -> MediaError:
    """The bytes are no longer those of which the header was read."""
    return MediaError("media-changed", f"{name} has changed since its header was read", "start the job anew")
