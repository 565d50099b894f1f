"""Weight files: tensors, headers and digests."""

from __future__ import annotations

from hashlib import blake2b
from pathlib import Path
from typing import Any

# 1 MiB in all: read in well under a second from a network disk, and no training leaves all of it as it was
_SAMPLES, _SAMPLE_BYTES = 256, 4096


def read_pickle(path: Path) -> dict[str, Any]:
    """Name -> tensor; refuses everything that is not a tensor, since a pickle could run code."""
    import torch

    tensors: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return tensors


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Name -> shape, from the header of a safetensors file."""
    from safetensors import safe_open

    with safe_open(path, "np") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


def digest(content: bytes) -> str:
    """A hexadecimal digest."""
    return blake2b(content, digest_size=16).hexdigest()


def sampled_digest(path: Path) -> str:
    """A digest of a file's length and of samples spread over it; of all of it if it is small."""
    size = path.stat().st_size
    with path.open("rb") as file:
        if size <= _SAMPLES * _SAMPLE_BYTES:
            return digest(file.read())
        samples = [size.to_bytes(8, "little")]
        for sample in range(_SAMPLES):
            file.seek((size - _SAMPLE_BYTES) * sample // (_SAMPLES - 1))
            samples.append(file.read(_SAMPLE_BYTES))
    return digest(b"".join(samples))
