"""Files that are broken, lie or attack: each is decoded as expected, or refused in words alone."""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageFile

from batchscore.errors import InputError
from batchscore.media import images
from batchscore.media.find import MediaError, MediaFinder
from batchscore.media.policy import MediaPolicy
from media_files import GREEN, RED, chunk, corners, png, saved

GOOD = saved(Image.new("RGB", (1, 1), RED))


def jpeg() -> bytes:
    return saved(Image.new("RGB", (64, 64), RED), "JPEG")


def noise(kind: str, **options: object) -> bytes:
    values = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    return saved(Image.fromarray(values), kind, **options)


def gif(width: int, height: int, frames: int = 1, frame: tuple[int, int] = (1, 1)) -> bytes:
    """A GIF whose screen may have another size than its frames, which are green."""
    head = b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + bytes([*GREEN, *RED])
    picture = b"," + struct.pack("<HHHHB", 0, 0, *frame, 0) + b"\x02\x02\x44\x01\x00"
    return head + picture * frames + b";"


def icon(inner: bytes) -> bytes:
    """An icon of 16 x 16 pixels, as its directory says, that holds this PNG."""
    return struct.pack("<HHHBBBBHHII", 0, 1, 1, 16, 16, 0, 0, 1, 32, len(inner), 22) + inner


def heif(brand: bytes) -> bytes:
    return b"\0\0\0\x18ftyp" + brand + b"\0\0\0\0" + brand + b"mif1" + b"\0" * 64


def sixteen_bit() -> bytes:
    return saved(Image.fromarray(np.full((4, 4), 40_000, np.uint16)))


def floats(kind: str) -> bytes:
    return saved(Image.fromarray(np.full((4, 4), 0.5, np.float32)), kind)


def text_bomb(kind: bytes, prefix: bytes) -> bytes:
    """64 MB of zeros in a few kB, before the pixels."""
    return png(1, 1, chunk(kind, prefix + zlib.compress(bytes(64 << 20), 9)))


def apng(frames: int) -> bytes:
    control = struct.pack(">5I2H2B", 0, 1, 1, 0, 0, 1, 1, 0, 0)
    return png(1, 1, chunk(b"acTL", struct.pack(">II", frames, 0)), chunk(b"fcTL", control))


def bmp(width: int, height: int) -> bytes:
    """A BMP that says it has this size, and has 2 x 3 pixels."""
    return saved(corners(), "BMP").replace(struct.pack("<ii", 2, 3), struct.pack("<ii", width, height))


# name: the file, and either the pixel on top left or words of the refusal
HOSTILE: dict[str, tuple[Callable[[], bytes], tuple[int, int, int] | str]] = {
    # no image
    "empty": (lambda: b"", "is empty"),
    "one byte": (lambda: b"\x89", "is damaged, or not an image"),
    "text": (lambda: b"a red bicycle " * 9, "is damaged, or not an image"),
    "zeros": (lambda: bytes(4096), "is damaged, or not an image"),
    "web page": (lambda: b"\n<!DOCTYPE html><html><img></html>", "is a web page"),
    "SVG": (lambda: b'<?xml version="1.0"?>\n<!-- x -->\n<svg width="9" height="9"/>', "is SVG"),
    "comments that SVG may begin with": (lambda: b"<!---->" * 146, "is damaged, or not an image"),
    "PDF": (lambda: b"%PDF-1.7\n", "is PDF"),
    "PostScript": (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is PostScript"),
    "Git LFS pointer": (lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "Git LFS"),
    "HEIC": (lambda: heif(b"heic"), "is HEIC"),
    "AVIF without pixels": (lambda: heif(b"avif"), "AVIF, which this Pillow does not read|cannot be decoded"),
    "video": (lambda: heif(b"isom"), "is a video"),
    "gzip of an image": (lambda: gzip.compress(GOOD), "is an archive"),
    "format off the list": (lambda: saved(corners(), "PCX"), "is damaged, or not an image"),
    # damaged
    "PNG cut in its pixels": (lambda: noise("PNG")[:-5000], "cannot be decoded"),
    "PNG without end": (lambda: png(4, 4)[:-12], GREEN),
    "PNG with fewer rows": (lambda: png(4, 9, pixels=zlib.compress(b"\0" + bytes(GREEN) * 4)), GREEN),
    "PNG with a bad checksum": (lambda: png(4, 4).replace(b"\x08\x02\0\0\0", b"\x08\x02\0\0\0\xff", 1), "is damaged"),
    "PNG with pixels that are no zlib": (lambda: png(4, 4, pixels=b"no zlib"), "cannot be decoded"),
    "PNG of no width": (lambda: png(0, 4), "is damaged"),
    "PNG of negative width": (lambda: png(0xFFFFFFFF, 1, pixels=b""), "pixels"),
    "JPEG cut in its header": (lambda: jpeg()[:30], "cannot be decoded|is damaged"),
    "JPEG cut in its pixels": (lambda: noise("JPEG")[:-900], "truncated"),
    "JPEG with bytes behind it": (lambda: jpeg() + b"<?php" * 99, (254, 0, 0)),
    "WEBP cut": (lambda: noise("WEBP")[:-900], "cannot be decoded"),
    "TIFF cut": (lambda: noise("TIFF")[:-900], "cannot be decoded|is damaged"),
    "GIF without pixels": (lambda: gif(4, 4)[:20], "is damaged"),
    "BMP cut": (lambda: noise("BMP")[:-900], "truncated"),
    # of another mode than Pillow makes RGB of
    "16-bit grey": (sixteen_bit, "more than 8 bits (mode I;16)"),
    "floats": (lambda: floats("TIFF"), "more than 8 bits (mode F)"),
    # too large
    "PNG of 50,000 x 50,000": (lambda: png(50_000, 50_000, pixels=b""), "exceeds limit"),
    "PNG of 13,000 x 13,000 without pixels": (lambda: png(13_000, 13_000, pixels=b""), "cannot be decoded"),
    "GIF of 60,000 x 60,000": (lambda: gif(60_000, 60_000), "exceeds limit"),
    "GIF whose frame exceeds its screen": (lambda: gif(1, 1, frame=(60_000, 60_000)), "exceeds limit"),
    "BMP of 60,000 x 60,000": (lambda: bmp(60_000, 60_000), "exceeds limit"),
    "icon that hides 15,000 x 15,000": (lambda: icon(png(15_000, 15_000, pixels=b"")), "exceeds limit"),
    "icon that hides 20 x 20": (lambda: icon(png(20, 20)), GREEN),
    "compressed text of 64 MB": (lambda: text_bomb(b"zTXt", b"x\0\0"), "cannot be decoded"),
    "international text of 64 MB": (lambda: text_bomb(b"iTXt", b"x\0\1\0\0\0"), "cannot be decoded"),
    "colour profile of 64 MB": (lambda: text_bomb(b"iCCP", b"x\0\0"), "cannot be decoded"),
    "GIF of 100,000 frames": (lambda: gif(1, 1, 100_000), GREEN),
    "APNG of 2,000,000,000 frames": (lambda: apng(2_000_000_000), GREEN),
    "APNG of no frames": (lambda: apng(0), GREEN),
}  # fmt: skip


def read(data: bytes, finder: MediaFinder) -> tuple[int, ...] | str:
    """The pixel on top left, or why there is none."""
    try:
        return tuple(finder.image(data).source.frames((0,), on_white=False)[0].getpixel((0, 0)))
    except MediaError as error:
        return error.fault.message
    except InputError as error:
        return error.message


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_images_are_decoded_or_refused(name: str) -> None:
    make, expected = HOSTILE[name]
    finder = MediaFinder(MediaPolicy())

    found = read(make(), finder)

    if isinstance(expected, str):
        assert isinstance(found, str)
        assert any(words in found for words in expected.split("|")), found
        assert "\n" not in found
    else:
        assert found == expected
    assert read(GOOD, finder) == RED


@pytest.mark.parametrize("size", [(50_000, 50_000), (3_000, 3_001)])
def test_an_image_of_too_many_pixels_is_not_decoded(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: ImageFile.ImageFile) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
    finder = MediaFinder(MediaPolicy(max_image_pixels=3_000 * 3_000))

    with pytest.raises(MediaError) as caught:
        finder.image(png(*size, pixels=b""))

    assert caught.value.fault.code == "media-too-large"


def test_arrays_and_images_have_the_same_limit() -> None:
    finder = MediaFinder(MediaPolicy(max_image_pixels=8))

    for image in (np.zeros((3, 3), np.uint8), Image.new("RGB", (3, 3))):
        with pytest.raises(MediaError, match="3 x 3 pixels, more than the 8"):
            finder.image(image)


def test_a_file_of_too_many_bytes_is_not_read(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_BYTES", 1 << 20)
    with open(tmp_path / "a.png", "wb") as file:
        file.write(GOOD)
        file.truncate(1 << 40)  # sparse: a terabyte

    with pytest.raises(MediaError, match="has 1,048,576 MB, more than the 1 that are read"):
        MediaFinder(MediaPolicy(str(tmp_path))).image("a.png")
