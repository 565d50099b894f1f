"""Videos by file: what the container says, and frames by their number."""

from __future__ import annotations

import io
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from batchscore.errors import InputError
from batchscore.media.find import MediaError, MediaFinder
from batchscore.media.policy import MediaPolicy
from batchscore.media.stored import pack, unpack
from batchscore.types import Media
from media_files import saved, turned_video, video


def greys(media: Media, *index: int) -> list[int]:
    """The grey of each frame; the codec is off by a little."""
    images = media.source.frames(index, on_white=False)
    assert {image.size for image in images} == {(media.width, media.height)}
    return [round(float(np.asarray(image).mean()) / 20) * 20 for image in images]


@pytest.mark.parametrize("kind", ["mp4", "matroska", "avi", "mpegts"])
def test_frames_are_read_by_their_number(kind: str) -> None:
    media = MediaFinder(MediaPolicy()).video(video(12, kind=kind))

    assert (media.kind, media.width, media.height, media.count, media.fps, media.sampled) == (
        "video", 64, 48, 12, 10.0, False,
    )  # fmt: skip
    assert greys(media, 0, 5, 11) == [0, 100, 220]
    assert greys(media, *range(12)) == list(range(0, 240, 20))


def test_a_video_is_turned_as_its_container_says() -> None:
    media = MediaFinder(MediaPolicy()).video(turned_video())

    assert (media.width, media.height) == (48, 64)
    assert greys(media, 3) == [60]


def test_the_top_of_a_turned_video_is_its_left_before() -> None:
    import av

    file = io.BytesIO()
    pixels = np.zeros((48, 64, 3), np.uint8)
    pixels[:, :32] = 255
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    media = MediaFinder(MediaPolicy()).video(turned_video(file.getvalue()))

    upright = np.asarray(media.source.frames((0,), on_white=False)[0])

    assert upright[:24].mean() > 200
    assert upright[-24:].mean() < 50


def test_a_video_on_disk_is_found_and_opened_by_another_process(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(video())
    policy = MediaPolicy(str(tmp_path))
    finder = MediaFinder(policy)
    by_path, by_bytes = finder.video("a.mp4"), finder.video(video())

    row = pack(by_path)

    assert by_path == by_bytes
    assert (row["where"], row["bytes"]) == (str(tmp_path / "a.mp4"), None)
    assert greys(unpack(row, policy), 2, 4) == greys(unpack(pack(by_bytes), MediaPolicy()), 2, 4) == [40, 80]


def test_the_rate_that_is_given_counts_and_makes_another_medium(tmp_path: Path) -> None:
    finder = MediaFinder(MediaPolicy())

    assert finder.video(video(), fps=2.0).fps == 2.0
    assert finder.video(video(), fps=2.0).digest != finder.video(video()).digest
    assert finder.video(video(), fps=10.0) == finder.video(video())


def test_an_animation_is_an_image_or_a_video_as_it_is_asked_for() -> None:
    frames = [Image.new("RGB", (16, 16), (grey, grey, grey)) for grey in (0, 100, 200)]
    data = saved(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=100)
    finder = MediaFinder(MediaPolicy())

    image, moving = finder.image(data), finder.video(data)

    assert (image.count, moving.count) == (1, 3)
    assert image.digest != moving.digest
    assert greys(moving, 1, 2) == [100, 200]


def test_threads_read_one_video(tmp_path: Path) -> None:
    media = MediaFinder(MediaPolicy()).video(video())

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(lambda frame: greys(media, frame), range(12))) == [[20 * n] for n in range(12)]


def playlist(path: Path) -> bytes:
    return f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile://{path}\n#EXT-X-ENDLIST\n".encode()


@pytest.mark.parametrize("name", ["empty", "text", "image", "no end", "HLS", "concat", "DASH", "sound alone"])
def test_what_is_no_video_is_a_fault(name: str, tmp_path: Path) -> None:
    """A playlist is not followed: FFmpeg would open the files and URLs that it names."""
    (tmp_path / "secret.ts").write_bytes(video(kind="mpegts"))
    mpd = '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><Period/></MPD>'
    data = {
        "empty": b"",
        "text": b"a red bicycle " * 99,
        "image": saved(Image.new("RGB", (9, 9))),
        "no end": video()[:1000],  # the index of an MP4 is at its end
        "HLS": playlist(tmp_path / "secret.ts"),
        "concat": f"ffconcat version 1.0\nfile '{tmp_path}/secret.ts'\n".encode(),
        "DASH": mpd.encode(),
        "sound alone": sound(),
    }[name]

    with pytest.raises(MediaError) as caught:
        MediaFinder(MediaPolicy(str(tmp_path))).video(data)

    words = "no video stream" if name in ("no end", "sound alone") else "is not a video that is read"
    assert words in caught.value.fault.message


def sound() -> bytes:
    import av

    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
    return file.getvalue()


def test_a_video_that_ends_early_fails_by_the_frames_it_lacks() -> None:
    whole = video(12, kind="mpegts")
    finder = MediaFinder(MediaPolicy())
    media = finder.video(whole[: len(whole) // 2])

    assert 0 < media.count < 12
    assert greys(media, 0) == [0]
    with pytest.raises(InputError, match="frame 99 is asked"):
        media.source.frames((0, 99), on_white=False)


def test_a_video_of_too_many_pixels_is_refused() -> None:
    with pytest.raises(MediaError, match="64 x 48 pixels, more than the 1,000"):
        MediaFinder(MediaPolicy(max_image_pixels=1000)).video(video())


def test_a_video_that_has_changed_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(video())
    media = MediaFinder(MediaPolicy(str(tmp_path))).video("a.mp4")
    path.write_bytes(video(11))

    with pytest.raises(InputError, match="'a.mp4' has changed since"):
        media.source.frames((0,), on_white=False)


def test_without_pyav_the_fault_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    data = video()
    monkeypatch.setitem(sys.modules, "av", None)

    with pytest.raises(MediaError) as caught:
        MediaFinder(MediaPolicy()).video(data)

    assert caught.value.fault.hint == "pip install 'batchscore[video]'"
