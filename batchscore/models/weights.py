"""A checkpoint's weights: the files that hold them, on the disk or on the hub, their tensors and their digests."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any, TypeVar

from batchscore.errors import CheckpointError, first_line
from batchscore.models.checkpoint import Checkpoint

T = TypeVar("T")

BGE_M3_HEAD = "colbert_linear.pt"  # the projection of every token for late interaction
_TOKENIZER_FILES = ("tokenizer", "vocab", "merges", "spiece", "spm", "sentencepiece", "special_tokens", "added_tokens")
_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")
# 1 MiB in all: read in well under a second from a network disk, and no training leaves all of it as it was
_SAMPLES, _SAMPLE_BYTES = 256, 4096


class UncheckedError(CheckpointError):
    """Tensors whose names and shapes are not known before they are downloaded."""


def fetch_weights(checkpoint: Checkpoint) -> None:
    """Download what loading reads, if this is a hub id and something is missing.

    Raises:
        NotFoundError: the hub cannot be reached.
    """
    if checkpoint.snapshot is None:
        return
    for preference in range(2):  # a pickle only where there is no safetensors file
        missing = [module for module in _modules(checkpoint) if not _stored(checkpoint, module)]
        names = [name for module in missing for name in _choices(checkpoint, module)[preference]]
        if names:
            checkpoint.snapshot.fetch(names)


def weight_files(checkpoint: Checkpoint) -> list[Path]:
    """The files that loading reads: the backbone's, then those of the modules."""
    return [path for module in _modules(checkpoint) for path in _stored(checkpoint, module)]


def has_tensor(checkpoint: Checkpoint, name: str) -> bool:
    """Whether the weights hold a tensor of this name, or one that ends in it. Pickles are not looked into."""
    indexed = checkpoint.read_json("model.safetensors.index.json").get("weight_map")
    names = indexed or _shapes(checkpoint, "model.safetensors")
    return any(key == name or key.endswith(f".{name}") for key in names)


def read_tensors(checkpoint: Checkpoint, module: str = "") -> dict[str, Any]:
    """Name -> tensor, from every shard; mapped from disk where the format allows it.

    Args:
        checkpoint: its weights are on the disk.
        module: the folder or file of a module; "" for the backbone and its head.

    Raises:
        CheckpointError: there is no weight file, or a damaged one.
    """
    from safetensors.torch import load_file

    files = _required(checkpoint, module)
    read = load_file if files[0].suffix == ".safetensors" else _read_pickle
    return {name: tensor for file in files for name, tensor in _opened(checkpoint, file, read).items()}


def empty_tensors(checkpoint: Checkpoint, module: str = "") -> dict[str, Any]:
    """Like `read_tensors`, but zeros that take no memory, of the shapes in the files' headers.

    For a hub id only the headers are fetched.

    Raises:
        UncheckedError: weights on the hub that have no such headers.
    """
    import torch

    files = _stored(checkpoint, module) if checkpoint.snapshot else _required(checkpoint, module)
    if files and files[0].suffix != ".safetensors":
        return read_tensors(checkpoint, module)
    headers = [_shapes(checkpoint, file) for file in _choices(checkpoint, module)[0]]
    if not any(headers):
        raise UncheckedError(
            f"{checkpoint.name} has no safetensors files, and pickles must be downloaded to look inside"
        )
    return {name: torch.zeros(()).expand(shape) for header in headers for name, shape in header.items()}


# ---- files


def _modules(checkpoint: Checkpoint) -> list[str]:
    """Everything that `read_tensors` takes for this checkpoint."""
    modules = [module.folder for module in checkpoint.modules if module.kind in ("Dense", "LayerNorm")]
    return ["", *modules, *([BGE_M3_HEAD] if (checkpoint.folder / BGE_M3_HEAD).is_file() else [])]


def _choices(checkpoint: Checkpoint, module: str) -> list[list[str]]:
    """The names of the files, one or several shards, that may hold these weights: as safetensors, as pickles."""
    if module == BGE_M3_HEAD:
        return [[], [module]]
    choices = []
    for file in ("model.safetensors", "pytorch_model.bin"):
        shards = checkpoint.read_json(str(Path(module, f"{file}.index.json"))).get("weight_map", {}).values()
        choices.append([str(Path(module, shard)) for shard in sorted(set(shards)) or [file]])
    return choices


def _stored(checkpoint: Checkpoint, module: str) -> list[Path]:
    """The files with these weights; [] unless all of them are on the disk."""
    choices = ([checkpoint.folder / name for name in names] for names in _choices(checkpoint, module))
    return next((files for files in choices if files and all(file.is_file() for file in files)), [])


def _required(checkpoint: Checkpoint, module: str) -> list[Path]:
    if files := _stored(checkpoint, module):
        return files
    name, expected = checkpoint.name, "model.safetensors or pytorch_model.bin"
    for names in _choices(checkpoint, module):
        missing = [file for file in names if not (checkpoint.folder / file).is_file()]
        if len(missing) < len(names):
            raise CheckpointError(f"{name} lacks {missing[0]}", hint="finish the download")
    if module:
        raise CheckpointError(f"{name}: module {module!r} has no weights", hint=f"expected {expected} in {module}/")
    raise CheckpointError(f"{name} has no weights", hint=f"expected {expected}, whole or in parts")


# ---- content


def _shapes(checkpoint: Checkpoint, file: str) -> Mapping[str, tuple[int, ...]]:
    """{tensor: shape} of a safetensors file, on the disk or else on the hub; {} if there is no such file."""
    path = checkpoint.folder / file
    if path.is_file():
        return _opened(checkpoint, path, _read_header)
    return (checkpoint.snapshot.shapes(file) if checkpoint.snapshot else None) or {}


def _opened(checkpoint: Checkpoint, path: Path, read: Callable[[Path], T]) -> T:
    try:
        return read(path)
    # only safetensors and pickle run here, and damaged bytes make them raise almost anything
    except Exception as error:
        raise CheckpointError(f"{checkpoint.name}: {path.name} is damaged: {first_line(error)}") from error


def _read_pickle(path: Path) -> dict[str, Any]:
    """Name -> tensor; refuses everything that is not a tensor, since a pickle could run code."""
    import torch

    tensors: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return tensors


def _read_header(path: Path) -> dict[str, tuple[int, ...]]:
    from safetensors import safe_open

    with safe_open(path, "np") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


# ---- identity


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
