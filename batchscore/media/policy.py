"""Which media a run may read."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class MediaPolicy:
    """Which media a run may read."""

    root: str | None = None  # the folder below which local files may lie; None: no local file is read
    allow_remote: bool = False
    domains: tuple[str, ...] = ()  # exact host names; empty: all, with `allow_remote`
    max_image_pixels: int = 178_956_970  # at which Pillow refuses too, so a larger number has no effect on images
