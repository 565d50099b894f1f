"""Where the bytes of a medium are: in memory, in a local file, behind a URL.

A row may name any path, so a path is resolved, symlinks included, each time before it is opened, and only a regular
file strictly below the root of the policy is.
"""

from __future__ import annotations

import base64
import binascii
import io
import os
import re
import stat
from dataclasses import dataclass, field
from typing import BinaryIO
from urllib.parse import unquote, unquote_to_bytes, urlsplit

from batchscore.media.faults import MediaError, shown
from batchscore.media.fetch import fetched
from batchscore.media.policy import MediaPolicy

_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*):", re.IGNORECASE)
_KNOWN_SCHEMES = ("data", "file", "http", "https")


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes at hand."""

    data: bytes
    name: str = field(compare=False)  # in messages, as for the others

    def open(self) -> BinaryIO:
        """A reader of the bytes."""
        return io.BytesIO(self.data)


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A file below the root."""

    path: str  # absolute, without symlinks
    policy: MediaPolicy
    name: str = field(compare=False)
    stamp: tuple[int, int] | None = None  # size and time of last change when it was found

    def open(self) -> BinaryIO:
        """A reader of the file; MediaError if it is gone or no longer below the root."""
        _resolve(self.path, self.policy, self.name)
        try:
            # without O_NONBLOCK, opening a FIFO that took the file's place would wait for its writer
            file = open(self.path, "rb", opener=lambda path, flags: os.open(path, flags | os.O_NONBLOCK))  # noqa: SIM115
        except OSError as error:
            raise _unreadable(self.name, error) from error
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            file.close()
            raise MediaError("media-refused", f"{self.name} is not a regular file")
        return file


@dataclass(frozen=True, slots=True)
class Remote:
    """What a URL names; it is fetched once a process."""

    url: str
    policy: MediaPolicy
    name: str = field(compare=False)

    def open(self) -> BinaryIO:
        """A reader of what was fetched; MediaError if the policy or the server refuses."""
        return fetched(self.url, self.policy)


Place = Memory | LocalFile | Remote


def locate(reference: str, policy: MediaPolicy) -> Place:
    """What a path or URL names.

    Raises:
        MediaError: nothing is there, or the policy forbids it. Whether a URL answers is seen when it is opened.
    """
    if not reference:
        raise MediaError("not-media", "is an empty path")
    scheme = _SCHEME.match(reference)
    kind = scheme[1].lower() if scheme else ""
    if kind == "data":
        return _from_data(reference)
    if kind in ("http", "https"):
        return Remote(reference, policy, shown(reference))
    if kind == "file":
        return _local(_path_of(reference), policy, shown(reference))
    if scheme and reference[scheme.end() :].startswith("//"):
        hint = f"copy it to a local folder or pass its bytes; the schemes are {', '.join(_KNOWN_SCHEMES)}"
        raise MediaError("media-refused", f"{shown(reference)}: no media are read from {kind}:", hint)
    return _local(reference, policy, shown(reference))


def _from_data(url: str) -> Memory:
    """The bytes that a `data:` URL carries."""
    head, comma, body = url.partition(",")
    name = f"the URL {shown(url[:40])}"
    if not comma:
        raise MediaError("not-media", f"{name} has no comma before its data")
    if not head.lower().endswith(";base64"):
        return Memory(unquote_to_bytes(body), name)
    try:
        # whitespace comes from line breaks in the file it was copied from
        return Memory(base64.b64decode(re.sub(r"\s+", "", unquote(body)), validate=True), name)
    except (binascii.Error, ValueError) as error:
        raise MediaError("media-damaged", f"{name} is not base64: {error}") from error


def _path_of(url: str) -> str:
    """The path of a `file:` URL."""
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise MediaError("not-media", f"{shown(url)} is not a URL: {error}") from error
    if parts.netloc.lower() not in ("", "localhost"):
        raise MediaError("media-refused", f"{shown(url)} names a file of another host", "write file:///path")
    return unquote(parts.path)


def _local(path: str, policy: MediaPolicy, name: str) -> LocalFile:
    """A file that is there."""
    found = _resolve(path, policy, name)
    try:
        status = os.stat(found)
    except (OSError, ValueError) as error:
        raise _unreadable(name, error) from error
    if not stat.S_ISREG(status.st_mode):
        what = "a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file"
        raise MediaError("media-refused", f"{name} is {what}")
    return LocalFile(found, policy, name, (status.st_size, status.st_mtime_ns))


def _resolve(path: str, policy: MediaPolicy, name: str) -> str:
    """The absolute path without symlinks; MediaError unless it is below the root."""
    if policy.root is None:
        raise MediaError("media-refused", f"{name} is a local file, and none may be read", "pass --media-root")
    root = os.path.realpath(policy.root)
    try:
        found = os.path.realpath(os.path.join(root, path))
    except (OSError, ValueError) as error:
        raise _unreadable(name, error) from error
    if found == root or os.path.commonpath([root, found]) != root:
        hint = "pass --media-root with a folder that holds all media"
        raise MediaError("media-refused", f"{name} is not below the folder of media, {root}", hint)
    return found


def _unreadable(name: str, error: Exception) -> MediaError:
    """What a failed look at a path means."""
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return MediaError("media-missing", f"{name} does not exist", "relative paths begin at --media-root")
    reason = error.strerror if isinstance(error, OSError) else str(error)
    return MediaError("media-missing", f"{name} cannot be opened: {reason}")
