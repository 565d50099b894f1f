"""Digests of a checkpoint's files, by which two processes know that they score with the same model."""

from __future__ import annotations

import json
from hashlib import blake2b
from pathlib import Path

from batchscore.models.checkpoint import Checkpoint
from batchscore.models.weights import fetch_weights, weight_files

_TOKENIZER_FILES = ("tokenizer", "vocab", "merges", "spiece", "spm", "sentencepiece", "special_tokens", "added_tokens")
_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")
# 1 MiB in all: read in well under a second from a network disk, and no training leaves all of it as it was
_SAMPLES, _SAMPLE_BYTES = 256, 4096


def identity(checkpoint: Checkpoint, *, with_code: bool = False) -> dict[str, str]:
    """{file: digest} of what scores depend on and no spec describes: weights, config.json and the tokenizer's files.

    Downloads the weights of a hub id. Weight files are sampled: a long job should not begin by reading a model twice.

    Args:
        checkpoint: the model's files.
        with_code: the checkpoint's Python files may run; they count, and so does every file they may read.
    """
    fetch_weights(checkpoint)
    folder, tokenizer_folder = checkpoint.folder, checkpoint.tokenizer_folder
    sampled = {*weight_files(checkpoint)}
    whole = {path for path in tokenizer_folder.iterdir() if path.name.startswith(_TOKENIZER_FILES)}
    if with_code:
        sampled |= {path for path in folder.iterdir() if path.suffix in _WEIGHT_SUFFIXES}
        whole |= {*folder.rglob("*.py"), *tokenizer_folder.rglob("*.py")}

    def relative(path: Path) -> str:
        return str(path.relative_to(folder if path.is_relative_to(folder) else tokenizer_folder))

    return {
        **{relative(path): _sampled_digest(path) for path in sorted(sampled)},
        **{relative(path): _digest(path.read_bytes()) for path in sorted(whole)},
        "config.json": _digest(json.dumps(checkpoint.config, sort_keys=True).encode()),
    }


def _digest(content: bytes) -> str:
    return blake2b(content, digest_size=16).hexdigest()


def _sampled_digest(path: Path) -> str:
    """A digest of a file's length and of samples spread over it; of all of it if it is small."""
    size = path.stat().st_size
    with path.open("rb") as file:
        if size <= _SAMPLES * _SAMPLE_BYTES:
            return _digest(file.read())
        samples = [size.to_bytes(8, "little")]
        for sample in range(_SAMPLES):
            file.seek((size - _SAMPLE_BYTES) * sample // (_SAMPLES - 1))
            samples.append(file.read(_SAMPLE_BYTES))
    return _digest(b"".join(samples))
