"""Images: what the header says, and the pixels as transformers' own `load_image` gives them.

That is: upright by EXIF, then RGB. Where its result would be silently wrong, as for 16-bit greyscale, of which Pillow
makes white, the image is refused.
"""

from __future__ import annotations

import io
import logging
import re
import warnings
from functools import lru_cache

from PIL import ExifTags, Image, UnidentifiedImageError

from batchscore.errors import first_line
from batchscore.media.faults import MediaError

MAX_BYTES = 256 << 20  # of an image's file
# raster formats alone: EPS would start Ghostscript. TGA, which has no signature, comes last
_FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "AVIF", "JPEG2000", "ICO", "TGA")
# of which Pillow makes RGB
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr", "HSV", "LAB")
_LATE_EXIF = (b"eXIf", b"XML:com.adobe.xmp", b"Raw profile type exif")  # chunks of PNG that may follow the pixels
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# what people take for an image: the first bytes, what it is, what to do
_OTHERS = (
    (rb"\s*<(!doctype html|html|head|body)", "a web page", "was it fetched without a login?"),
    (rb"\s*<(svg|[?!].*<svg)", "SVG", "render it to PNG"),
    (rb"%PDF", "PDF", "render its pages to PNG"),
    (rb"%!PS|\xc5\xd0\xd3\xc6", "PostScript", "render it to PNG"),
    (rb"version https://git-lfs", "a Git LFS pointer", "run git lfs pull"),
    (rb"....ftyp(heic|heix|heim|heis|hevc|mif1|msf1)", "HEIC", "convert it to JPEG"),
    (rb"....ftypavi[fs]", "AVIF, which this Pillow does not read", "pip install 'pillow>=11.3'"),
    (rb"....ftyp|\x1a\x45\xdf\xa3", "a video", "give it as a video"),
    (rb"\x1f\x8b|PK\x03\x04", "an archive", "unpack it"),
)
_log = logging.getLogger("batchscore.media")


def upright_size(data: bytes, name: str, max_pixels: int) -> tuple[int, int]:
    """Width and height in pixels once it stands upright, from the header; MediaError if it is no image to read."""
    image = _opened(data, name, max_pixels)
    width, height = image.size
    return (height, width) if _orientation(image, data, name) > 4 else (width, height)


def decoded(data: bytes, name: str, size: tuple[int, int], max_pixels: int) -> Image.Image:
    """The image upright, in RGB, or in RGBA if it has transparency; `size` is what was read from its header."""
    image = _opened(data, name, max_pixels)
    _load(image, name)
    turn = _TURNS.get(_orientation(image, data, name))
    upright = image if turn is None else image.transpose(turn)
    if upright.size != size:  # tokens were counted by it
        right, wrong = (f"{width} x {height}" for width, height in (upright.size, size))
        raise MediaError("media-damaged", f"{name} has {right} pixels, and {wrong} were read from its header")
    return in_colour(upright, name)


def in_colour(image: Image.Image, name: str) -> Image.Image:
    """RGB, or RGBA if it has transparency, of an image of any mode that Pillow makes RGB of without loss of meaning."""
    _check(image, name)
    try:
        # RGB has the same colours by way of RGBA
        return image.convert("RGBA" if image.has_transparency_data else "RGB")
    except Exception as error:
        raise MediaError("media-damaged", f"{name} cannot be decoded: {first_line(error)}") from error


def flat(image: Image.Image, *, on_white: bool) -> Image.Image:
    """RGB of RGB or RGBA: the colours as they are stored, or laid on white."""
    if image.mode == "RGBA" and on_white:
        image = Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image)
    return image.convert("RGB")


def check_pixels(width: int, height: int, name: str, max_pixels: int) -> None:
    """MediaError if it has more than are decoded, or none."""
    if width * height > max_pixels:
        message = f"{name} has {width} x {height} pixels, more than the {max_pixels:,} that are decoded"
        raise MediaError("media-too-large", message, "make it smaller")
    if width < 1 or height < 1:
        raise MediaError("media-damaged", f"{name} has no pixels")


def _opened(data: bytes, name: str, max_pixels: int) -> Image.Image:
    """The image with its header read; MediaError if it is not to be decoded."""
    _quieten()
    if not data:
        raise MediaError("media-damaged", f"{name} is empty")
    try:
        image = Image.open(io.BytesIO(data), formats=_formats())
    except UnidentifiedImageError as error:
        raise _not_an_image(data, name) from error
    except Image.DecompressionBombError as error:
        raise MediaError("media-too-large", f"{name}: {first_line(error)}", "make it smaller") from error
    except Exception as error:  # a damaged file may raise anything
        raise MediaError("media-damaged", f"{name} cannot be decoded: {first_line(error)}") from error
    check_pixels(*image.size, name, max_pixels)
    _check(image, name)
    return image


def _check(image: Image.Image, name: str) -> None:
    """MediaError if Pillow makes no RGB of its mode, or a wrong one."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        # `convert` clips at 255: nearly all of a 16-bit scan turns white
        message = f"{name} has grey levels of more than 8 bits (mode {image.mode}), which Pillow would clip to white"
        raise MediaError("media-damaged", message, "scale it to 8 bits")
    if image.mode not in _MODES:
        raise MediaError("media-damaged", f"{name} has mode {image.mode}, which is not made RGB", "convert it to RGB")


def _load(image: Image.Image, name: str) -> None:
    """Decode; MediaError if the file is damaged."""
    try:
        image.load()
    except Exception as error:
        raise MediaError("media-damaged", f"{name} cannot be decoded: {first_line(error)}") from error


def _orientation(image: Image.Image, data: bytes, name: str) -> int:
    """1 to 8 as EXIF counts; 1 if nothing says so."""
    if image.format == "TIFF":
        return 1  # Pillow turns these by itself
    if image.format == "PNG" and any(chunk in data for chunk in _LATE_EXIF):
        _load(image, name)
    try:
        # that of PNG would decode every image
        value = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)
        return value if value in _TURNS else 1
    except Exception as error:  # text in the wrong encoding, offsets that point nowhere
        _say_unreadable_exif(f"{name}: its EXIF data cannot be read: {first_line(error)}")
        return 1


_said: list[str] = []


def _say_unreadable_exif(line: str) -> None:
    """Once a process: a corpus that has one such image has thousands."""
    if not _said:
        _said.append(line)
        _log.warning("%s; such images are taken as upright (said once)", line)


def _not_an_image(data: bytes, name: str) -> MediaError:
    """What it is instead, if that is known."""
    start = data[:1024]
    for pattern, what, hint in _OTHERS:
        if re.match(pattern, start, re.IGNORECASE | re.DOTALL):
            return MediaError("media-damaged", f"{name} is {what}, not an image", hint)
    return MediaError(
        "media-damaged", f"{name} is damaged, or not an image in a format that is read", "convert it to PNG or JPEG"
    )


@lru_cache(maxsize=1)
def _formats() -> list[str]:
    """Those of the formats that this Pillow reads."""
    Image.init()
    return [name for name in _FORMATS if name in Image.OPEN]


_OF_PILLOW = ("ignore", None, Warning, re.compile("PIL"), 0)


def _quieten() -> None:
    """Let Pillow's warnings pass: of large images and odd metadata, which are dealt with here.

    `warnings.catch_warnings` is not safe in threads, and decoding runs in several.
    """
    if _OF_PILLOW not in warnings.filters:
        warnings.filterwarnings("ignore", module="PIL")
