"""Small JSON files beside an output, on a disk or an object store, each written whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from batchscore.io.storage import Folder, open_folder, split_url


def as_json(value: Any, indent: int | None = None) -> bytes:
    """JSON in UTF-8. File names that are not UTF-8 have surrogates, which are written as JSON's escapes for them."""
    return json.dumps(value, ensure_ascii=False, indent=indent).encode("utf-8", "backslashreplace")


def read_record(path: str) -> dict[str, Any] | None:
    """The JSON object in a file; None if it is missing or damaged."""
    folder, name = _split(path)
    try:
        record = json.loads(bytes(folder.read(name)))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None


def write_record(path: str, record: Mapping[str, Any]) -> None:
    """Write a JSON object for people to read."""
    folder, name = _split(path)
    folder.write(name, as_json(record, indent=2) + b"\n")


def write_lines(path: str, records: Sequence[Mapping[str, Any]]) -> None:
    """Write JSON Lines; without records the file is removed."""
    folder, name = _split(path)
    if records:
        folder.write(name, b"".join(as_json(record) + b"\n" for record in records))
    else:
        folder.remove(name)


def exists(path: str) -> bool:
    """Whether a file exists."""
    folder, name = _split(path)
    return folder.has(name)


def _split(path: str) -> tuple[Folder, str]:
    folder, name = split_url(path)
    return open_folder(folder), name
