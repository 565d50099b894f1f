"""Small images and videos as bytes, whole and broken."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
ORIENTATION = 0x0112


def corners() -> Image.Image:
    """Two pixels wide and three high: red is on top left, blue on top right, and the rest is green."""
    image = Image.new("RGB", (2, 3), GREEN)
    image.putpixel((0, 0), RED)
    image.putpixel((1, 0), BLUE)
    return image


def saved(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def turned(orientation: int, kind: str = "PNG") -> bytes:
    """An image of which EXIF says how it is to be turned."""
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return saved(corners(), kind, exif=exif)


def chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *chunks: bytes, pixels: bytes | None = None) -> bytes:
    """A PNG in RGB that says what size it has; without `pixels` it holds green ones, at most one row."""
    rows = zlib.compress((b"\0" + bytes(GREEN) * width) * height) if pixels is None else pixels
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def with_segment(jpeg: bytes, marker: int, data: bytes) -> bytes:
    """A JPEG with one more segment after its first two bytes."""
    return jpeg[:2] + bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data + jpeg[2:]


def exif_of(*entries: tuple[int, int, int, bytes], tail: bytes = b"") -> bytes:
    """EXIF data for a JPEG of entries: tag, type, count, and a value or an offset in 4 bytes."""
    body = b"".join(struct.pack("<HHI", tag, kind, count) + value for tag, kind, count, value in entries)
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + body + b"\0\0\0\0" + tail


def video(count: int = 12, *, kind: str = "mp4", size: tuple[int, int] = (64, 48), rate: int = 10) -> bytes:
    """Grey frames, each lighter by 20 than the one before."""
    import av

    file = io.BytesIO()
    with av.open(file, "w", format=kind) as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for number in range(count):
            pixels = np.full((size[1], size[0], 3), number * 20, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return file.getvalue()


def turned_video(whole: bytes | None = None) -> bytes:
    """An MP4 that says that it is to be turned by 90 degrees clockwise."""
    matrix = [struct.pack(">9i", *numbers) for numbers in _MATRICES]
    whole = whole or video()
    assert whole.count(matrix[0]) == 2  # of the movie and of the track
    return matrix[1].join(whole.rsplit(matrix[0], 1))


_ONE = 1 << 16
_MATRICES = ((_ONE, 0, 0, 0, _ONE, 0, 0, 0, 1 << 30), (0, _ONE, 0, -_ONE, 0, 0, 0, 0, 1 << 30))
