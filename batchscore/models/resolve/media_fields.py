"""Fields on how images and videos are read."""

from __future__ import annotations

from typing import Any

from batchscore.models.resolve.context import Context
from batchscore.models.spec import DEFAULT, Sourced

_VIDEO_ONLY = {"fps", "min_frames", "max_frames"}


def media_fields(context: Context) -> dict[str, Sourced]:
    """What resizes images, with which settings, and how many there may be."""
    options, source = context.option("mm_processor_kwargs", ({}, DEFAULT))
    image, video = dict(options), dict(options)
    if isinstance(options.get("images_kwargs"), dict) or isinstance(options.get("videos_kwargs"), dict):
        image, video = dict(options.get("images_kwargs", {})), dict(options.get("videos_kwargs", {}))
    if "max_pixels" in context.options:
        pixels, source = context.options["max_pixels"]
        image["max_pixels"] = pixels
    image = {name: value for name, value in image.items() if name not in _VIDEO_ONLY}
    return {
        "image_backend": context.option("image_backend", ("pil", DEFAULT)),
        "processor_options": (image, source),
        "video_options": (_sized(video), source),
        "media_limits": context.option("limit_mm_per_prompt", ({}, DEFAULT)),
    }


def _sized(video: dict[str, Any]) -> dict[str, Any]:
    """The settings with `min_pixels` and `max_pixels` as the sizes that they stand for."""
    known: dict[str, Any] = {name: video[name] for name in (*_VIDEO_ONLY, "size") if name in video}
    edges = {"min_pixels": "shortest_edge", "max_pixels": "longest_edge"}
    limits = {edge: video[name] for name, edge in edges.items() if name in video}
    return {**known, "limits": limits} if limits else known
