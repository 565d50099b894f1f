"""Files in a checkpoint's folder: paths that stay inside it, JSON, and what lies there in place of a file's content."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from batchscore.errors import CheckpointError

_SPECIAL_FLOATS = {text: float(text) for text in ("Infinity", "-Infinity", "NaN")}
_DOWNLOAD = "download it again"
_PAGES = (b"<!doctype", b"<html", b"<?xml")
_VOCABULARIES = ("vocab.txt", "vocab.json", "merges.txt", "tekken.json")
_VOCABULARY_SUFFIXES = (".model", ".spm", ".tiktoken", ".codes")  # SentencePiece under many names, tiktoken, fastBPE


def inside(name: str, file: str, path: str) -> str:
    """The path, unless it leads out of the checkpoint's folder.

    Only what is written counts: the files of the hub's cache are symbolic links to a folder beside it.

    Args:
        name: of the checkpoint, for the error.
        file: the file that names the path.
        path: relative to the checkpoint's folder.

    Raises:
        CheckpointError: it is absolute or goes up.
    """
    if Path(path).is_absolute() or ".." in Path(path).parts:
        raise CheckpointError(f"{name}: {file} names {path!r}, which is outside of the checkpoint")
    return path


def check_content(name: str, file: str, path: Path) -> None:
    """Refuse a file whose content is still elsewhere.

    Args:
        name, file: of the checkpoint and of the file in it, for the error.
        path: of the file.

    Raises:
        CheckpointError: it is empty, a Git LFS pointer, the page that a failed download left, or cannot be read.
    """
    try:
        with path.open("rb") as opened:
            start = opened.read(64).lstrip().lower()
    except OSError as error:
        raise CheckpointError(f"{name}: {file} cannot be read: {error.strerror}") from error
    if start.startswith(b"version https://git-lfs.github.com/spec/"):
        raise CheckpointError(
            f"{name}: {file} is a Git LFS pointer, not the file it stands for",
            hint=f"run `git lfs pull` in {path.parent}, or download the model with `hf download`",
        )
    if start.startswith(_PAGES):
        raise CheckpointError(f"{name}: {file} is a web page, which a failed download left", hint=_DOWNLOAD)
    if not start:
        raise CheckpointError(f"{name}: {file} is empty", hint=_DOWNLOAD)


def parse_json(text: str) -> Any:
    """The value of a JSON text, with infinity and NaN as transformers 5 writes them.

    Raises:
        ValueError: it is not JSON.
    """
    return json.loads(text, object_hook=_number_or_object)


def _number_or_object(content: dict[str, Any]) -> Any:
    """{"__float__": "Infinity"} is a number."""
    tag = content.get("__float__")
    return _SPECIAL_FLOATS[tag] if len(content) == 1 and isinstance(tag, str) and tag in _SPECIAL_FLOATS else content


def vocabularies(folder: Path) -> list[str]:
    """The names of a folder's files that tokenizers are made from, besides tokenizer.json."""
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    return [name for name in names if name in _VOCABULARIES or name.endswith(_VOCABULARY_SUFFIXES)]
