"""Queries and documents as people write them -> cells: texts, images, and the content parts of the scoring API.

A cell with media is one of

    {"content": [parts]}, or the list alone     in the author's order
    {"text": ..., "image": ..., "video": ...}   in the order of the model's own rule
    an image: bytes, {"bytes": ..., "path": ...}, and in Python a PIL image or an array

Whatever has no media in it is a string in the end. Fields that are None count as absent: Arrow has every field in
every row.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from batchscore.media.faults import MediaError
from batchscore.media.find import MediaFinder
from batchscore.types import Cell, Content, Media

Kind = Literal["text", "image", "video", "embeddings"]

TYPES: Mapping[str, Kind] = {  # of parts; the first of each kind is the one that the scoring API documents
    "text": "text",
    "image_url": "image",
    "video_url": "video",
    "image": "image",
    "video": "video",
    "input_text": "text",
    "input_image": "image",
    "image_pil": "image",
    "image_embeds": "embeddings",
}
MEDIA_FIELDS: Mapping[Literal["image", "video"], tuple[str, ...]] = {
    "image": ("image", "image_url"),
    "video": ("video", "video_url"),
}
MEDIA_NAMES = {name for names in MEDIA_FIELDS.values() for name in names}
_FIELDS: Mapping[Kind, tuple[str, ...]] = {  # of a part, in which its text or medium may be
    "text": ("text",),
    "image": ("image_url", "image", "image_pil", "url", "path"),
    "video": ("video_url", "video", "url", "path"),
    "embeddings": ("image_embeds",),
}
# a part may lack `type` beside one of these fields
_BARE_TYPES = ("image_url", "video_url", "image", "video", "image_embeds")
_EMBEDDED = ("video_embeds", "audio_embeds")
_SETTINGS = (  # in other libraries' parts; to leave them out in silence would give other scores
    "min_pixels",
    "max_pixels",
    "total_pixels",
    "resized_height",
    "resized_width",
    "nframes",
    "min_frames",
    "max_frames",
    "video_start",
    "video_end",
)  # fmt: skip
PART_FIELDS = {
    "type",
    "fps",
    "uuid",
    "detail",
    *_EMBEDDED,
    *_SETTINGS,
    *(name for names in _FIELDS.values() for name in names),
}
IMAGE_FIELDS = {"bytes", "path"}  # of the struct that `datasets` makes of an image


def read_cell(value: Any, finder: MediaFinder, fields: Sequence[str] = ("text",)) -> Cell:
    """A query or document.

    Args:
        value: a string, Content, or what the head of this file lists.
        finder: looks at media.
        fields: of an object without a list of parts, whose texts are joined.

    Raises:
        MediaError: it is none, has nothing in it, or has a medium that cannot be used.
    """
    if isinstance(value, str | Content):
        return value
    if value is None:
        raise MediaError("null", "is null", NULL_HINT)
    if isinstance(value, bool | int | float):
        raise MediaError("not-text", f"is {type(value).__name__}, not text", "convert it to a string")
    if isinstance(value, list | tuple):
        if all(isinstance(part, str) for part in value) and value:
            raise MediaError("not-text", "is a list of strings, not text", "join them, or name another column")
        return _of_parts(value, finder)
    if not isinstance(value, Mapping) or is_image(value):
        return Content((finder.image(value),))
    content = value.get("content")
    if isinstance(content, list | tuple):
        return _of_parts(content, finder)
    if isinstance(content, str) and "content" not in fields and all(value.get(field) is None for field in fields):
        fields = ("content",)
    images, videos = (_first(value, names) for names in MEDIA_FIELDS.values())
    media = [*find_images(images, finder), *find_video(videos, finder)]
    return joined([value.get(field) for field in fields], media)


def is_image(value: Mapping[str, Any]) -> bool:
    """Whether an object is an image as `datasets` stores it."""
    return "bytes" in value and value.keys() <= IMAGE_FIELDS


def joined(texts: Sequence[Any], media: Sequence[Media]) -> Cell:
    """Texts joined by blanks, and media, as one cell whose order is the model's; None and empty texts are skipped.

    Raises MediaError for neither, and for what is no text.
    """
    for text in texts:
        if not (text is None or isinstance(text, str)):
            raise MediaError("not-text", f"is {type(text).__name__}, not text", "convert it to a string")
    known = [text for text in texts if text is not None]
    text = known[0] if len(texts) == len(known) == 1 else " ".join(filter(None, known)).strip()
    if media:
        parts = (*media, text) if text else tuple(media)
        return Content(parts, ordered=len(parts) == 1)
    if not known:
        raise MediaError("null", "is null, or has neither text nor media", NULL_HINT)
    return text


NULL_HINT = "drop the row, or fill it in: an empty string is a text"


def find_images(value: Any, finder: MediaFinder) -> list[Media]:
    """The images of a value: none, one or a list of them."""
    listed = value if isinstance(value, list | tuple) else [value]
    return [finder.image(_reference(one)) for one in listed if one is not None]


def find_video(value: Any, finder: MediaFinder, fps: float = 0.0) -> list[Media]:
    """The video of a value, if it has one: a file, or a list of frames."""
    if value is None or (isinstance(value, list | tuple) and not value):
        return []
    if isinstance(value, list | tuple):
        return [finder.video([_reference(frame) for frame in value], fps)]
    return [finder.video(_reference(value), fps)]


def _of_parts(parts: Sequence[Any], finder: MediaFinder) -> Cell:
    """Parts in their order."""
    if not parts:
        raise MediaError("empty", "has no content parts", "drop the row, or fill it in")
    read = []
    for number, part in enumerate(parts):
        try:
            read.append(_part(part, finder))
        except MediaError as error:
            error.fault = replace(error.fault, message=f"part {number}: {error.fault.message}")
            raise
    texts = [part for part in read if isinstance(part, str)]
    return "\n".join(texts) if len(texts) == len(read) else Content(tuple(read))


def _part(part: Any, finder: MediaFinder) -> str | Media:
    if isinstance(part, str):
        return part
    if not isinstance(part, Mapping):
        raise MediaError("content", f"is {type(part).__name__}, not an object", _TYPES_HINT)
    name, kind = _type_of(part)
    for setting in _SETTINGS:
        if part.get(setting) is not None:
            hint = "settings are those of the whole job: pass --max-pixels or --mm-processor-kwargs"
            raise MediaError("not-supported", f"sets {setting}, which is not supported in a part", hint)
    value = _first(part, _FIELDS[kind])
    if value is None or (kind == "text" and not isinstance(value, str)):
        raise MediaError("content", f"is of type {name!r} and has no {_FIELDS[kind][0]}", _TYPES_HINT)
    if kind == "text":
        return str(value)
    if kind == "image":
        return finder.image(_reference(value))
    if kind == "embeddings":
        return finder.embeddings(value)
    fps = part.get("fps") or 0
    if isinstance(fps, bool) or not isinstance(fps, int | float):
        raise MediaError("content", f"has the fps {fps!r}, not a number", _TYPES_HINT)
    for video in find_video(value, finder, fps):
        return video
    raise MediaError("content", f"is of type {name!r} and has no frames", _TYPES_HINT)


def _type_of(part: Mapping[str, Any]) -> tuple[str, Kind]:
    """(a part's type, its kind)."""
    name = part.get("type")
    if name is None:
        present = [field for field in (*_BARE_TYPES, *_EMBEDDED) if part.get(field) is not None]
        if len(present) != 1:
            raise MediaError("content", "has no type", _TYPES_HINT)
        name = present[0]
    if name in _EMBEDDED:
        message = f"holds {name}, made outside of this job, which is not supported"
        raise MediaError("not-supported", message, "give the images themselves, as image_url")
    if name not in TYPES:
        raise MediaError("content", f"has the unknown type {name!r}", _TYPES_HINT)
    return str(name), TYPES[name]


_TYPES_HINT = f'types: {", ".join(TYPES)}; a part is for example {{"type": "text", "text": "..."}}'


def _first(value: Mapping[str, Any], fields: Sequence[str]) -> Any:
    return next((value[field] for field in fields if value.get(field) is not None), None)


def _reference(value: Any) -> Any:
    """What a finder takes: the URL of an object that has one."""
    return value["url"] if isinstance(value, Mapping) and value.get("url") is not None else value


def shown(cell: Cell) -> str:
    """A cell as one string: its texts or, without any, its media as JSON, by their digests.

    Not by their places: media of equal content are one, and may be in several.
    """
    if isinstance(cell, str):
        return cell
    return cell.text or json.dumps([{"type": media.kind, "digest": media.digest.hex()} for media in cell.media])
