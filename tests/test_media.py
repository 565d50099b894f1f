"""References become media: sizes and digests from headers, pixels as transformers reads them."""

from __future__ import annotations

import base64
import io
import logging
import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from batchscore.errors import InputError
from batchscore.media import images
from batchscore.media.find import MediaError, MediaFinder
from batchscore.media.policy import MediaPolicy
from batchscore.media.stored import pack, unpack
from batchscore.types import Media
from media_files import BLUE, GREEN, RED, WHITE, chunk, corners, exif_of, png, saved, turned, with_segment


@pytest.fixture
def finder(tmp_path: Path) -> MediaFinder:
    return MediaFinder(MediaPolicy(str(tmp_path)))


def pixels(media: Media, *, on_white: bool = False) -> list[tuple[int, ...]]:
    image = media.source.frames((0,), on_white=on_white)[0]
    assert image.mode == "RGB"
    assert image.size == (media.width, media.height)
    return [tuple(pixel) for row in np.asarray(image).tolist() for pixel in row]


CORNERS = [RED, BLUE, GREEN, GREEN, GREEN, GREEN]


def test_a_path_a_url_and_bytes_of_one_file_are_one_medium(finder: MediaFinder, tmp_path: Path) -> None:
    data = saved(corners())
    path = tmp_path / "two words.png"
    path.write_bytes(data)
    encoded = base64.encodebytes(data).decode()  # with line breaks
    percent = "".join(f"%{byte:02x}" for byte in data)
    references = [
        "two words.png", "./x/../two words.png", str(path), path, path.as_uri(), f"file://localhost{path.as_uri()[7:]}",
        data, bytearray(data), {"bytes": data, "path": "elsewhere.png"}, {"bytes": None, "path": "two words.png"},
        f"data:image/png;base64,{encoded}", f"DATA:;charset=x;BASE64,{encoded}", f"data:image/png,{percent}",
    ]  # fmt: skip

    found = [finder.image(reference) for reference in references]

    assert set(found) == {found[0]}
    assert (found[0].kind, found[0].width, found[0].height, found[0].count, len(found[0].digest)) == (
        "image", 2, 3, 1, 16,
    )  # fmt: skip
    assert [pixels(media) for media in found] == [CORNERS] * len(found)


def test_headers_are_read_without_decoding(finder: MediaFinder, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "TGA"]
    files = [saved(Image.new("RGB", (40, 30)), kind) for kind in kinds]

    def fail(self: ImageFile.ImageFile) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", fail)

    assert {(found.width, found.height) for found in map(finder.image, files)} == {(40, 30)}


# the places of red and blue once the image stands upright
TURNED = {
    1: [RED, BLUE, GREEN, GREEN, GREEN, GREEN],
    2: [BLUE, RED, GREEN, GREEN, GREEN, GREEN],
    3: [GREEN, GREEN, GREEN, GREEN, BLUE, RED],
    4: [GREEN, GREEN, GREEN, GREEN, RED, BLUE],
    5: [RED, GREEN, GREEN, BLUE, GREEN, GREEN],
    6: [GREEN, GREEN, RED, GREEN, GREEN, BLUE],
    7: [GREEN, GREEN, BLUE, GREEN, GREEN, RED],
    8: [BLUE, GREEN, GREEN, RED, GREEN, GREEN],
    9: [RED, BLUE, GREEN, GREEN, GREEN, GREEN],  # is no orientation
}


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", TURNED)
def test_files_are_turned_upright(finder: MediaFinder, orientation: int, kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    exif = Image.Exif()
    exif[0x0112] = orientation

    media = finder.image(saved(corners(), kind, exif=exif, **options))

    assert (media.width, media.height) == ((3, 2) if 5 <= orientation <= 8 else (2, 3))
    assert pixels(media) == TURNED[orientation]


def test_an_orientation_that_follows_the_pixels_of_a_png_counts(finder: MediaFinder) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    whole = saved(corners())
    late = whole[:-12] + chunk(b"eXIf", exif.tobytes()[6:]) + whole[-12:]

    media = finder.image(late)

    assert (media.width, media.height) == (3, 2)
    assert pixels(media) == TURNED[6]


def test_images_that_come_decoded_are_not_turned(finder: MediaFinder) -> None:
    with Image.open(io.BytesIO(turned(6))) as image:
        media = finder.image(image)

    assert pixels(media) == CORNERS


NOT_UTF8 = b'http://ns.adobe.com/xap/1.0/\0<x:xmpmeta \xa8 tiff:Orientation="6"/>'
ORIENTED = (0x0112, 3, 1, b"\6\0\0\0")
RESOLUTION = (0x011A, 5, 1, b"\x26\0\0\0")  # a fraction that lies behind the entries
BROKEN_EXIF = {
    "xmp in another encoding": ( NOT_UTF8, "turned"),
    "a denominator of zero": ( exif_of(ORIENTED, RESOLUTION, tail=b"\1\0\0\0\0\0\0\0"), "turned"),
    "an offset past the end": ( exif_of((0x010F, 2, 900, b"\xff\xff\xff\x7f"), ORIENTED), "as Pillow reads it"),
    "more entries than there are": ( b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\1\3\0", "as stored"),
    "no tiff header": ( b"Exif\0\0no such thing at all", "as stored"),
    "no data": ( b"Exif\0\0", "as stored"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN_EXIF)
def test_broken_exif_costs_the_orientation_at_most(finder: MediaFinder, name: str) -> None:
    exif, expected = BROKEN_EXIF[name]
    data = with_segment(saved(Image.new("RGB", (32, 16), RED), "JPEG"), 0xE1, exif)
    if expected == "as Pillow reads it":  # before 13 it gives up at such an entry
        with pytest.warns(match="[Dd]ata|Truncated"), Image.open(io.BytesIO(data)) as image:
            expected = "turned" if 0x0112 in image.getexif() else "as stored"

    media = finder.image(data)

    assert (media.width, media.height) == {"turned": (16, 32), "as stored": (32, 16)}[expected]
    assert np.abs(np.array(pixels(media)) - RED).max() <= 2  # JPEG


def test_broken_exif_is_said_once(
    finder: MediaFinder, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "_said", [])
    text = chunk(b"tEXt", b"Raw profile type exif\0\nexif\n4\nnot hex")

    with caplog.at_level(logging.WARNING, "batchscore.media"):
        found = [finder.image(png(width, 1, text)) for width in (2, 3, 4)]

    assert [pixels(media) for media in found] == [[GREEN] * width for width in (2, 3, 4)]
    assert [record.getMessage().split(":")[1] for record in caplog.records] == [" its EXIF data cannot be read"]


def of_transformers(data: bytes) -> np.ndarray:
    from transformers.image_utils import load_image

    return np.asarray(load_image(base64.b64encode(data).decode()))


def mode_samples() -> dict[str, bytes]:
    base = Image.fromarray(np.arange(4 * 4 * 4, dtype=np.uint8).reshape(4, 4, 4) * 4)
    palette = base.convert("RGB").quantize(16)
    later = Image.new("RGB", (4, 4), BLUE)
    return {
        "RGBA": saved(base),
        "LA": saved(base.convert("LA")),
        "L with a transparent grey": saved(base.convert("L"), transparency=12),
        "RGB with a transparent colour": saved(base.convert("RGB"), transparency=(0, 4, 8)),
        "palette": saved(palette),
        "palette with one transparent entry": saved(palette, transparency=3),
        "palette with opacities": saved(palette, transparency=bytes(range(0, 160, 10))),
        "one bit": saved(base.convert("1")),
        "CMYK": saved(base.convert("CMYK"), "JPEG"),
        "CMYK TIFF": saved(base.convert("CMYK"), "TIFF"),
        "YCbCr TIFF": saved(base.convert("YCbCr"), "TIFF"),
        "animated GIF": saved(palette, "GIF", save_all=True, append_images=[later]),
        "animated WEBP": saved(base, "WEBP", save_all=True, append_images=[later], lossless=True),
        "animated PNG": saved(base, "PNG", save_all=True, append_images=[later.convert("RGBA")]),
        "TIFF of two pages": saved(base, "TIFF", save_all=True, append_images=[later]),
        "MPO": saved(base.convert("RGB"), "MPO", save_all=True, append_images=[later]),
        "icon": saved(base, "ICO", sizes=[(4, 4)]),
    }


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", mode_samples())
def test_modes_are_decoded_as_by_transformers(finder: MediaFinder, name: str) -> None:
    data = mode_samples()[name]

    media = finder.image(data)

    try:
        expected = of_transformers(data)
    except OSError:  # Pillow before 13 does not read the YCbCr TIFF that it writes
        with pytest.raises(InputError, match="cannot be decoded"):
            media.source.frames((0,), on_white=False)
    else:
        assert np.array_equal(np.asarray(media.source.frames((0,), on_white=False)[0]), expected)


@pytest.mark.parametrize(
    "image",
    [
        Image.new("RGBA", (1, 1), (0, 0, 255, 0)),
        Image.new("LA", (1, 1), (0, 0)),
        np.array([[[0, 0, 255, 0]]], np.uint8),
    ],
    ids=["RGBA", "LA", "array"],
)
def test_what_is_transparent_is_laid_on_white_if_asked(finder: MediaFinder, image: Image.Image) -> None:
    assert pixels(finder.image(image), on_white=True) == [WHITE]
    assert pixels(finder.image(image))[0] in (BLUE, (0, 0, 0))


def test_half_transparent_blue_on_white_is_light_blue(finder: MediaFinder) -> None:
    data = saved(Image.new("RGBA", (1, 1), (0, 0, 255, 128)))

    assert pixels(finder.image(data), on_white=True) == [(127, 127, 255)]
    assert pixels(finder.image(data)) == [BLUE]


def test_arrays_and_pil_images_of_equal_pixels_are_one_medium(finder: MediaFinder) -> None:
    image = corners()
    array = np.asarray(image)

    assert finder.image(image) == finder.image(array) == finder.image(np.asfortranarray(array))
    assert finder.image(image) != finder.image(array[::-1])
    assert finder.image(array[..., 0]) == finder.image(image.getchannel("R"))
    # as many bytes in another shape
    assert finder.image(np.zeros((2, 3, 3), np.uint8)).digest != finder.image(np.zeros((3, 2, 3), np.uint8)).digest


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        (None, "is NoneType, not a path"),
        (3, "is int, not a path"),
        ("", "is an empty path"),
        ({"url": "x"}, "is NoneType, not a path"),
        (np.zeros((4, 4, 3)), "is an array of float64 with shape [4, 4, 3]"),
        (np.zeros((3, 4, 5), np.uint8), "is an array of uint8 with shape [3, 4, 5]"),
        (np.zeros((0, 4, 3), np.uint8), "no pixels"),
        (Image.new("I;16", (1, 1)), "grey levels of more than 8 bits"),
        ("data:image/png;base64", "no comma"),
        ("data:image/png;base64,a", "is not base64"),
        ("data:image/png;base64,@@@@", "is not base64"),
        ("data:,", "is empty"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_what_is_no_image_is_a_fault(finder: MediaFinder, reference: object, words: str) -> None:
    with pytest.raises(MediaError) as caught:
        finder.image(reference)

    assert words in caught.value.fault.message


def test_a_file_is_looked_at_once_until_it_changes(
    finder: MediaFinder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(saved(corners()))
    looks = []
    look = images.upright_size
    monkeypatch.setattr(images, "upright_size", lambda *args: looks.append(args) or look(*args))
    first = [finder.image("a.png") for _ in range(3)]
    path.write_bytes(saved(Image.new("RGB", (5, 5))))

    second = finder.image("a.png")

    assert len(looks) == 2
    assert len(set(first)) == 1
    assert (second.width, second.height) == (5, 5)


@pytest.mark.parametrize("change", ["changed", "gone", "escaped"])
def test_a_file_that_is_another_when_it_is_decoded_is_an_error(
    finder: MediaFinder, tmp_path: Path, change: str
) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(saved(corners()))
    media = finder.image("a.png")
    path.unlink()
    if change == "changed":
        path.write_bytes(saved(Image.new("RGB", (2, 3))))
    elif change == "escaped":
        path.symlink_to("/etc/hostname")
    words = {"changed": "has changed since", "gone": "does not exist", "escaped": "is not below"}[change]

    with pytest.raises(InputError, match=words) as caught:
        media.source.frames((0,), on_white=False)

    assert "'a.png'" in caught.value.message


def test_media_are_opened_from_their_packed_rows(finder: MediaFinder, tmp_path: Path) -> None:
    data = saved(corners())
    (tmp_path / "a.png").write_bytes(data)
    policy = MediaPolicy(str(tmp_path))
    found = [
        finder.image("a.png"),
        finder.image(data),
        finder.image(corners()),
        finder.image(Image.new("RGBA", (2, 3), (1, 2, 3, 0))),
        finder.video(["a.png", data, corners(), "a.png"], fps=2.0),
    ]

    rows = [pack(media) for media in found]
    again = [unpack(row, policy) for row in rows]

    assert again == found
    assert [row["where"] for row in rows[:3]] == [str(tmp_path / "a.png"), None, "pixels:RGB"]
    assert [row["bytes"] for row in rows[:2]] == [None, data]
    for one, other in zip(found, again, strict=True):
        index = range(one.count)
        expected = [image.tobytes() for image in one.source.frames(index, on_white=True)]
        assert [image.tobytes() for image in other.source.frames(index, on_white=True)] == expected
    with pytest.raises(InputError, match="has 2 x 3 pixels, and 3 x 3 were read from its header"):
        unpack({**rows[1], "width": 3}, policy).source.frames((0,), on_white=False)
    with pytest.raises(InputError, match="none may be read"):
        unpack(rows[0], MediaPolicy()).source.frames((0,), on_white=False)


def test_frames_are_a_video_of_which_all_are_read(finder: MediaFinder) -> None:
    frames = [Image.new("RGB", (2, 2), colour) for colour in (RED, GREEN, BLUE)]

    media = finder.video(frames, fps=1.5)

    assert (media.kind, media.count, media.fps, media.sampled) == ("video", 3, 1.5, True)
    assert [image.getpixel((0, 0)) for image in media.source.frames((0, 2), on_white=False)] == [RED, BLUE]
    assert finder.video(np.stack([np.asarray(frame) for frame in frames]), fps=1.5) == media
    assert len({media.digest, finder.video(frames).digest, finder.video(frames[::-1], fps=1.5).digest}) == 3


@pytest.mark.parametrize(
    ("frames", "fps", "words"),
    [
        ([], 0.0, "empty list of frames"),
        ([Image.new("RGB", (2, 2)), Image.new("RGB", (2, 3))], 0.0, "frame 1 has 2 x 3 pixels"),
        ([Image.new("RGB", (2, 2)), b"no image"], 0.0, "or not an image"),
        ([Image.new("RGB", (2, 2))], float("nan"), "nan frames a second"),
    ],
)  # fmt: skip
def test_what_is_no_list_of_frames_is_a_fault(
    finder: MediaFinder, frames: list[object], fps: float, words: str
) -> None:
    with pytest.raises(MediaError) as caught:
        finder.video(frames, fps)

    assert words in caught.value.fault.message


def test_threads_find_and_decode_the_same(finder: MediaFinder, tmp_path: Path) -> None:
    for number in range(8):
        (tmp_path / f"{number}.png").write_bytes(saved(Image.new("RGB", (64, 64), (number, 0, 0))))

    def read(number: int) -> tuple[int, ...]:
        return finder.image(f"{number % 8}.png").source.frames((0,), on_white=False)[0].getpixel((9, 9))

    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(read, range(64)))

    assert found == [(number % 8, 0, 0) for number in range(64)]


def places(root: Path) -> None:
    """A root of media beside what must not be reached."""
    (root / "in").mkdir(parents=True)
    (root / "secret.png").write_bytes(saved(corners()))
    (root / "in" / "good.png").write_bytes(saved(corners()))
    (root / "in-other").mkdir()
    shutil.copy(root / "secret.png", root / "in-other" / "a.png")
    (root / "in" / "folder.png").mkdir()
    (root / "in" / "out.png").symlink_to(root / "secret.png")
    (root / "in" / "up").symlink_to(root)
    (root / "in" / "within.png").symlink_to("good.png")
    (root / "in" / "loop.png").symlink_to("loop.png")
    os.mkfifo(root / "in" / "pipe.png")
    (root / "in" / "device.png").symlink_to("/dev/zero")


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("good.png", None),
        ("within.png", None),
        ("folder.png/../good.png", None),
        ("../secret.png", "is not below the folder of media"),
        ("../in-other/a.png", "is not below the folder of media"),
        ("file:../secret.png", "is not below the folder of media"),
        ("file:///etc/hostname", "is not below the folder of media"),
        ("file:///%65tc/hostname", "is not below the folder of media"),
        ("file://server/share/a.png", "names a file of another host"),
        ("file://[/a.png", "is not a URL"),
        ("/etc/hostname", "is not below the folder of media"),
        ("out.png", "is not below the folder of media"),
        ("up/secret.png", "is not below the folder of media"),
        ("device.png", "is not below the folder of media"),
        (".", "is not below the folder of media"),
        ("folder.png", "is a folder"),
        ("pipe.png", "is not a regular file"),
        ("loop.png", "cannot be opened"),
        ("gone.png", "does not exist"),
        ("good.png/more.png", "does not exist"),
        ("file:good%00.png", "embedded null"),
        ("\ud800.png", "cannot be opened"),
        ("a" * 300, "cannot be opened"),
        ("s3://bucket/a.png", "no media are read from s3:"),
        ("https://example.org/a.png", "--allow-remote-media"),
    ],
)
def test_local_files_are_read_below_the_root_alone(tmp_path: Path, reference: str, words: str | None) -> None:
    places(tmp_path)
    finder = MediaFinder(MediaPolicy(str(tmp_path / "in")))

    if words is None:
        assert pixels(finder.image(reference)) == CORNERS
        return
    with pytest.raises(MediaError) as caught:
        finder.image(reference)

    fault = caught.value.fault
    assert words in f"{fault.message} {fault.hint}"


def test_a_root_may_be_a_symlink_relative_or_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places(tmp_path)
    (tmp_path / "link").symlink_to("in")
    monkeypatch.chdir(tmp_path)

    for root in ("link", "./in", ".", "/"):
        assert pixels(MediaFinder(MediaPolicy(root)).image(str(tmp_path / "in" / "good.png"))) == CORNERS
    with pytest.raises(MediaError, match="none may be read"):
        MediaFinder(MediaPolicy()).image("in/good.png")


def test_a_fifo_that_takes_the_place_of_a_file_does_not_hang(finder: MediaFinder, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(saved(corners()))
    media = finder.image("a.png")
    path.unlink()
    os.mkfifo(path)
    errors: list[BaseException] = []

    def read() -> None:
        with pytest.raises(InputError, match="not a regular file") as caught:
            media.source.frames((0,), on_white=False)
        errors.append(caught.value)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    thread.join(10)

    assert len(errors) == 1
