"""Fetching over HTTP: see the next commit."""

from __future__ import annotations

from typing import BinaryIO

from batchscore.media.faults import MediaError, shown
from batchscore.media.policy import MediaPolicy


def fetched(url: str, policy: MediaPolicy) -> BinaryIO:
    """A reader of what a URL names."""
    raise MediaError("media-refused", f"{shown(url)} is remote", "pass --allow-remote-media")
