"""A checkpoint's weights: the files that hold them, on the disk or on the hub, their tensors and their digests."""

from __future__ import annotations

import json
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar

from batchscore.errors import CheckpointError, first_line
from batchscore.models.checkpoint import Checkpoint
from batchscore.models.folder import check_content, inside, vocabularies

T = TypeVar("T")

ADAPTER_WEIGHTS = "adapter_model.safetensors"
BGE_M3_HEAD = "colbert_linear.pt"  # the projection of every token for late interaction
_TOKENIZER_FILES = ("tokenizer", "vocab", "merges", "special_tokens", "added_tokens")
_PROCESSOR_FILES = {"preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json"}  # of media
_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")
# 1 MiB, and as much for 256 tensors: read in about a second from a network disk
_SAMPLES, _SAMPLE_BYTES = 256, 4096


class UncheckedError(CheckpointError):
    """Tensors whose names and shapes are not known before they are downloaded."""


def fetch_weights(checkpoint: Checkpoint) -> None:
    """Download what loading reads, if this is a hub id and something is missing.

    Raises:
        NotFoundError: the hub cannot be reached.
    """
    if checkpoint.base is not None:
        fetch_weights(checkpoint.base)
        if checkpoint.snapshot is not None:
            checkpoint.snapshot.fetch([ADAPTER_WEIGHTS])
        return
    if checkpoint.snapshot is None:
        return
    places = [_choices(checkpoint, module) for module in _modules(checkpoint)]
    while places:  # what comes later is read only where nothing before it exists
        choices = [next(place, None) for place in places]
        files = [file for choice in choices if choice for file in choice.files]
        missing = [file for file in files if not (checkpoint.folder / file).is_file()]
        if missing:
            checkpoint.snapshot.fetch(missing)
        places = [
            place for place, choice in zip(places, choices, strict=True) if choice and not _exists(checkpoint, choice)
        ]


def weight_files(checkpoint: Checkpoint) -> list[Path]:
    """The files that loading reads: the backbone's, then those of the modules; of an adapter its base's and its own."""
    if checkpoint.base is not None:
        return [*weight_files(checkpoint.base), checkpoint.folder / ADAPTER_WEIGHTS]
    return [path for module in _modules(checkpoint) for path in _stored(checkpoint, module)]


def has_tensor(checkpoint: Checkpoint, name: str) -> bool:
    """Whether the weights hold a tensor of this name, or one that ends in it. Of pickles only an index is read."""
    choice = _announced(checkpoint.base or checkpoint, "")
    names = (choice.holds or _shapes(checkpoint, choice.files[0])) if choice else ()
    return any(key == name or key.endswith(f".{name}") for key in names)


def read_tensors(checkpoint: Checkpoint, module: str = "") -> dict[str, Any]:
    """Name -> tensor, from every shard; mapped from disk where the format allows it.

    Args:
        checkpoint: its weights are on the disk.
        module: the folder or file of a module; "" for the backbone and its head.

    Raises:
        CheckpointError: there is no weight file, a damaged one, or shards that are not those of their index.
    """
    from safetensors.torch import load_file

    choice = _required(checkpoint, module)
    read = load_file if choice.is_safetensors else _read_pickle
    content = {file: _opened(checkpoint, file, read) for file in choice.files}
    for file, tensors in content.items():
        _check_tensors(checkpoint, file, tensors)
    return _joined(checkpoint, choice, content)


def read_adapter(checkpoint: Checkpoint, *, dry: bool) -> dict[str, Any]:
    """Name -> tensor of a LoRA adapter; zeros if `dry`.

    Raises:
        CheckpointError: there is no such file, or a damaged one.
    """
    import torch
    from safetensors.torch import load_file

    if dry and (shapes := _shapes(checkpoint, ADAPTER_WEIGHTS)):
        return {name: torch.zeros(()).expand(shape) for name, shape in shapes.items()}
    if not (checkpoint.folder / ADAPTER_WEIGHTS).is_file():
        raise CheckpointError(f"{checkpoint.name} has no {ADAPTER_WEIGHTS}", hint="save the adapter as safetensors")
    tensors: dict[str, Any] = _opened(checkpoint, ADAPTER_WEIGHTS, load_file)
    return tensors


def empty_tensors(checkpoint: Checkpoint, module: str = "") -> dict[str, Any]:
    """Like `read_tensors`, but zeros that take no memory, of the shapes in the files' headers.

    For a hub id only the headers are fetched.

    Raises:
        UncheckedError: weights on the hub that have no such headers.
    """
    import torch

    choice = _announced(checkpoint, module) if checkpoint.snapshot else _required(checkpoint, module)
    if choice and choice.is_safetensors:
        shapes = _joined(checkpoint, choice, {file: _shapes(checkpoint, file) for file in choice.files})
        return {name: torch.zeros(()).expand(shape) for name, shape in shapes.items()}
    if not _stored(checkpoint, module):
        raise UncheckedError(
            f"{checkpoint.name} has no safetensors files, and pickles must be downloaded to look inside"
        )
    return read_tensors(checkpoint, module)


# ---- files


def _modules(checkpoint: Checkpoint) -> list[str]:
    """Everything that `read_tensors` takes for this checkpoint."""
    modules = [module.folder for module in checkpoint.modules if module.kind in ("Dense", "LayerNorm")]
    return ["", *modules, *([BGE_M3_HEAD] if (checkpoint.folder / BGE_M3_HEAD).is_file() else [])]


class _Choice(NamedTuple):
    """Files, one or several shards, that may hold the weights of a module."""

    files: Sequence[str]  # in the checkpoint's folder
    listed_in: str = ""  # the index, if they are shards
    holds: Mapping[str, str] = {}  # what it says: {tensor: its shard}

    @property
    def is_safetensors(self) -> bool:
        return self.files[0].endswith(".safetensors")


def _choices(checkpoint: Checkpoint, module: str) -> Iterator[_Choice]:
    """Where these weights may be. The first that exists is read, in the order that transformers has.

    Raises:
        CheckpointError: an index without shards, or with one outside of the checkpoint.
    """
    if module == BGE_M3_HEAD:
        yield _Choice([module])
        return
    named = None if module else checkpoint.own_config.get("transformers_weights")
    if named:
        file = str(Path(checkpoint.backbone, inside(checkpoint.name, "config.json", named)))
        yield _indexed(checkpoint, file) if file.endswith(".json") else _Choice([file])
        return
    for name in ("model.safetensors", "pytorch_model.bin"):
        file = str(Path(module or checkpoint.backbone, name))
        index = f"{file}.index.json"
        yield _Choice([file])
        if (checkpoint.folder / index).is_file():
            yield _indexed(checkpoint, index)


def _indexed(checkpoint: Checkpoint, index: str) -> _Choice:
    entries = checkpoint.read_json(index).get("weight_map") or {}
    if not entries or not all(isinstance(shard, str) for shard in entries.values()):
        raise CheckpointError(f"{checkpoint.name}: {index} has no weight_map from tensors to files")
    folder = Path(index).parent
    holds = {name: str(folder / inside(checkpoint.name, index, shard)) for name, shard in entries.items()}
    return _Choice(sorted({*holds.values()}), index, holds)


def _exists(checkpoint: Checkpoint, choice: _Choice) -> bool:
    """Whether this is what is read: an index beside which shards are missing still forbids all that comes later."""
    return bool(choice.listed_in) or (checkpoint.folder / choice.files[0]).is_file()


def _first(checkpoint: Checkpoint, module: str) -> _Choice | None:
    return next((choice for choice in _choices(checkpoint, module) if _exists(checkpoint, choice)), None)


def _announced(checkpoint: Checkpoint, module: str) -> _Choice | None:
    """`_first`, where safetensors files on the hub count like those on the disk."""
    choices = _choices(checkpoint, module)
    return next((c for c in choices if _exists(checkpoint, c) or _shapes(checkpoint, c.files[0])), None)


def _stored(checkpoint: Checkpoint, module: str) -> list[Path]:
    """The files with these weights; [] unless all of them are on the disk."""
    choice = _first(checkpoint, module)
    files = [checkpoint.folder / file for file in choice.files] if choice else []
    return files if all(file.is_file() for file in files) else []


def _required(checkpoint: Checkpoint, module: str) -> _Choice:
    name, expected, choice = checkpoint.name, "model.safetensors or pytorch_model.bin", _first(checkpoint, module)
    missing = [file for file in choice.files if not (checkpoint.folder / file).is_file()] if choice else []
    if choice and missing:
        hint = f"finish the download, or remove {choice.listed_in} if the weights are in another file"
        raise CheckpointError(f"{name} lacks {missing[0]}, which {choice.listed_in} names", hint=hint)
    if choice:
        return choice
    if module:
        raise CheckpointError(f"{name}: module {module!r} has no weights", hint=f"expected {expected} in {module}/")
    named = checkpoint.own_config.get("transformers_weights")
    hint = f"config.json names {named}" if named else f"expected {expected}, whole or in parts"
    raise CheckpointError(f"{name} has no weights", hint=hint)


# ---- content


def _joined(checkpoint: Checkpoint, choice: _Choice, content: Mapping[str, Mapping[str, T]]) -> dict[str, T]:
    """The tensors of all files {file: {tensor: its content}}, which must be in those that the index gives them to."""
    hint = "index and shards are of different saves; download or save all of them again"
    for name, file in choice.holds.items():
        if name not in content[file]:
            raise CheckpointError(f"{checkpoint.name}: {file} lacks {name}, which {choice.listed_in} names", hint=hint)
    for file, tensors in content.items():
        for name in tensors:
            if choice.holds.get(name, file) != file:
                other = f"{choice.listed_in} gives to {choice.holds[name]}"
                raise CheckpointError(f"{checkpoint.name}: {file} holds {name}, which {other}", hint=hint)
    return {name: tensor for tensors in content.values() for name, tensor in tensors.items()}


def _shapes(checkpoint: Checkpoint, file: str) -> Mapping[str, tuple[int, ...]]:
    """{tensor: shape} of a safetensors file, on the disk or else on the hub; {} if there is no such file."""
    if not file.endswith(".safetensors"):
        return {}
    if (checkpoint.folder / file).is_file():
        return _opened(checkpoint, file, _read_header)
    return (checkpoint.snapshot.shapes(file) if checkpoint.snapshot else None) or {}


def _opened(checkpoint: Checkpoint, file: str, read: Callable[[Path], T]) -> T:
    path = checkpoint.folder / file
    check_content(checkpoint.name, file, path)
    try:
        return read(path)
    # only safetensors and pickle run here, and damaged bytes make them raise almost anything
    except Exception as error:
        if path.suffix == ".safetensors":
            raise CheckpointError(f"{checkpoint.name}: {file} is damaged: {first_line(error)}") from error
        raise CheckpointError(f"{checkpoint.name}: {file} {pickle_problem(error)}") from None


def pickle_problem(error: Exception) -> str:
    """What is wrong with a file that torch.load refuses, without torch's advice to run whatever the file contains."""
    found = re.search(r"GLOBAL (\S+)", str(error))
    return (
        f"holds {found[1]}, and only tensors are read" if found else "is damaged, or no file of tensors by torch.save"
    )


def _check_tensors(checkpoint: Checkpoint, file: str, content: Any) -> None:
    import torch

    entries = content.items() if isinstance(content, dict) else [("", content)]
    for name, value in entries:
        if not isinstance(value, torch.Tensor):
            where = f"a {type(value).__name__} as {name!r}" if name else f"a {type(value).__name__}"
            raise CheckpointError(f"{checkpoint.name}: {file} holds {where}, and should hold tensors by their names")


def _read_pickle(path: Path) -> Any:
    """Tensors and plain values; everything else is refused, since a pickle could run code."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch asks for reports on what it then refuses
        return torch.load(path, map_location="cpu", weights_only=True)


def _read_header(path: Path) -> dict[str, tuple[int, ...]]:
    from safetensors import safe_open

    with safe_open(path, "np") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


# ---- identity


def identity(checkpoint: Checkpoint, *, with_code: bool = False) -> dict[str, str]:
    """{file: digest} of what scores depend on and no spec describes: weights, config.json, tokenizer and processors.

    Downloads the weights of a hub id. Weight files are sampled: a long job should not begin by reading a model twice.

    Args:
        checkpoint: the model's files.
        with_code: the checkpoint's Python files may run; they count, and so does every file they may read.
    """
    fetch_weights(checkpoint)
    if checkpoint.base is not None:  # and what it has beside its base's files
        own = {path for path in checkpoint.folder.iterdir() if path.name.startswith(("adapter_", *_TOKENIZER_FILES))}
        own |= {path for path in checkpoint.folder.iterdir() if path.name in _PROCESSOR_FILES}
        of_base = {f"base: {name}": digest for name, digest in identity(checkpoint.base).items()}
        return {**of_base, **{path.name: _sampled_digest(path) for path in sorted(own)}}
    folder, tokenizer_folder = checkpoint.folder, checkpoint.tokenizer_folder
    sampled = {*weight_files(checkpoint)}
    whole = {path for path in tokenizer_folder.iterdir() if path.name.startswith(_TOKENIZER_FILES)}
    whole |= {tokenizer_folder / name for name in vocabularies(tokenizer_folder)}
    whole |= {path for path in checkpoint.backbone_folder.iterdir() if path.name in _PROCESSOR_FILES}
    if with_code:
        beside = {*folder.iterdir(), *checkpoint.backbone_folder.iterdir()}
        sampled |= {path for path in beside if path.suffix in _WEIGHT_SUFFIXES}
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
    """A digest of a file's length and of samples spread over it, and of each tensor; of all of a small file.

    Training changes every number of the tensors that it reaches, which may be a head or a norm alone.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        if size <= _SAMPLES * _SAMPLE_BYTES:
            return _digest(file.read())
        starts = [(size - _SAMPLE_BYTES) * sample // (_SAMPLES - 1) for sample in range(_SAMPLES)]
        spans = [(start, start + _SAMPLE_BYTES) for start in starts]
        digest = blake2b(size.to_bytes(8, "little"), digest_size=16)
        if path.suffix == ".safetensors":
            spans += _tensor_samples(file, size)
        elif zipfile.is_zipfile(file):  # as torch.save writes: the checksum of each tensor is at the end
            with suppress(zipfile.BadZipFile), zipfile.ZipFile(file) as archive:
                digest.update(repr([(entry.filename, entry.CRC) for entry in archive.infolist()]).encode())
        for start, end in spans:
            file.seek(start)
            digest.update(file.read(end - start))
    return digest.hexdigest()


def _tensor_samples(file: BinaryIO, size: int) -> list[tuple[int, int]]:
    """Where the middle of each tensor is; none if the header is damaged, which loading reports."""
    first = 8 + int.from_bytes(file.read(8), "little")
    if first > size:
        return []
    try:
        header = json.loads(file.read(first - 8))
        spans = sorted(tensor["data_offsets"] for name, tensor in header.items() if name != "__metadata__")
        starts = [max(begin, (begin + end - _SAMPLE_BYTES) // 2) for begin, end in spans]
    except (ValueError, TypeError, LookupError, AttributeError):
        return []
    return [
        (first + start, first + min(end, start + _SAMPLE_BYTES)) for start, (_, end) in zip(starts, spans, strict=True)
    ]
