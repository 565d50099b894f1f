"""Read a checkpoint's small files once; nothing here touches a weight.

A model is a local folder or a hub id. For a hub id only the JSON files and tokenizer are fetched here, the weights
when the model is loaded.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any, TypeVar

from batchscore.errors import CheckpointError, NotFoundError, UsageError, first_line

Json = dict[str, Any]
T = TypeVar("T")

SAVED = "config_sentence_transformers.json"

# sentence-transformers wrote this file under the backbone's name before it settled on the first
_SENTENCE_CONFIGS = tuple(
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)


@dataclass(frozen=True)
class Module:
    """One entry of modules.json."""

    kind: str  # last part of the type's dotted name: Transformer, Pooling, Dense, Normalize
    folder: str
    config: Json


@dataclass(frozen=True)
class Checkpoint:
    """A folder in the hub's layout, and what its files say."""

    name: str  # as the user gave it
    folder: Path
    tokenizer_folder: Path
    overrides: Mapping[str, Any] = field(default_factory=dict)  # of config.json
    config_source: str = "config.json"  # and what else `config` is made of

    def read_json(self, file: str) -> Json:
        """The file's content, {} if there is no such file.

        Raises:
            CheckpointError: it is not valid JSON, or holds something other than an object.
        """
        return self._parsed(file, {})

    def read_text(self, file: str) -> str:
        """The file's text, "" if there is no such file."""
        path = self.folder / file
        return path.read_text("utf-8") if path.is_file() else ""

    def _parsed(self, file: str, absent: T, folder: Path | None = None) -> T:
        """The file's content, which must be of the type of `absent`, or `absent` if there is no such file."""
        path = (folder or self.folder) / file
        if not path.is_file():
            return absent
        try:
            content = json.loads(path.read_text("utf-8"))
        except ValueError as error:
            raise CheckpointError(f"{self.name}: {file} is not valid JSON: {error}") from error
        if not isinstance(content, type(absent)):
            raise CheckpointError(f"{self.name}: {file} holds a JSON {type(content).__name__}, not settings")
        return content

    @cached_property
    def config(self) -> Json:
        """config.json, which every checkpoint has, with the user's overrides."""
        config = self.read_json("config.json")
        if not config:
            raise CheckpointError(
                f"{self.name} has no config.json",
                hint="pass the folder that holds config.json and the weights, or a hub id",
            )
        return updated(config, self.overrides)

    @cached_property
    def tokenizer_config(self) -> Json:
        """tokenizer_config.json, {} without one."""
        return self._parsed("tokenizer_config.json", {}, self.tokenizer_folder)

    @cached_property
    def saved(self) -> Json:
        """config_sentence_transformers.json, {} without one."""
        return self.read_json(SAVED)

    @cached_property
    def architecture(self) -> str:
        """The first of `architectures`."""
        names = self.config.get("architectures") or []
        if not names:
            raise CheckpointError(f"{self.name}: config.json names no architectures")
        return str(names[0])

    @cached_property
    def modules(self) -> list[Module]:
        """The sentence-transformers chain in order; empty without a modules.json."""
        entries: list[Json] = self._parsed("modules.json", [])
        return [
            Module(
                entry["type"].rsplit(".", 1)[-1], entry["path"], self.read_json(str(Path(entry["path"], "config.json")))
            )
            for entry in entries
        ]

    @cached_property
    def sentence_config(self) -> tuple[str, Json]:
        """(file name, content) of sentence_bert_config.json or its older names; ("", {}) without one."""
        folder = next((m.folder for m in self.modules if m.kind == "Transformer"), "")
        for file in _SENTENCE_CONFIGS:
            content = self.read_json(str(Path(folder) / file))
            if content:
                return file, content
        return "", {}

    def weight_files(self) -> list[Path]:
        """Every weight file of the backbone and the modules, for the run record."""
        return sorted(
            p for pattern in ("*.safetensors", "*.bin", "*/model.safetensors") for p in self.folder.glob(pattern)
        )

    def identity(self) -> dict[str, str]:
        """Digests of what is the checkpoint's own beside its settings: weights, and the files of its tokenizer.

        Of a weight file its length and samples all over it are read: a night's job should not begin with reading a
        model twice, and no training leaves all samples as they were.
        """
        tokenizer = [path for path in self.tokenizer_folder.iterdir() if path.name.startswith(_TOKENIZER_FILES)]
        return {
            **{str(path.relative_to(self.folder)): _sampled_digest(path) for path in self.weight_files()},
            **{path.name: _sampled_digest(path, whole=True) for path in sorted(tokenizer)},
        }

    def has_tensor(self, name: str) -> bool:
        """Whether the weights hold a tensor of this name, or of one that ends in it; a pickle is not looked into."""
        from safetensors import safe_open

        def names(path: Path) -> list[str]:
            with safe_open(path, "np") as file:
                return list(file.keys())

        indexed = self.read_json("model.safetensors.index.json").get("weight_map")
        whole = self.folder / "model.safetensors"
        known = indexed or (self._opened(whole, names) if whole.is_file() else [])
        return any(key == name or key.endswith(f".{name}") for key in known)

    def read_tensors(self) -> dict[str, Any]:
        """Name -> tensor of the backbone and its head, from every shard; mapped from disk where the format allows it.

        Raises:
            CheckpointError: there is no weight file, or a damaged one.
        """
        from safetensors.torch import load_file

        return self._tensors(load_file)

    def empty_tensors(self) -> dict[str, Any]:
        """As `read_tensors`, but of zeros that take no memory: what the headers say, to see what would fit where."""
        import torch
        from safetensors import safe_open

        def headers(path: Path) -> dict[str, Any]:
            with safe_open(path, "pt") as file:
                shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
            return {name: torch.zeros(()).expand(shape) for name, shape in shapes.items()}

        return self._tensors(headers)

    def _tensors(self, read: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
        for stem, suffix, reader in (("model", "safetensors", read), ("pytorch_model", "bin", _read_pickle)):
            parts = self.read_json(f"{stem}.{suffix}.index.json").get("weight_map", {}).values()
            files = [self.folder / part for part in sorted(set(parts) or {f"{stem}.{suffix}"})]
            present = [file for file in files if file.is_file()]
            if present and len(present) < len(files):
                missing = next(file.name for file in files if file not in present)
                raise CheckpointError(f"{self.name} lacks {missing}", hint="finish the download")
            if present:
                return {name: tensor for file in files for name, tensor in self._opened(file, reader).items()}
        raise CheckpointError(
            f"{self.name} has no weights", hint="expected model.safetensors or pytorch_model.bin, whole or in parts"
        )

    def read_weights(self, source: str) -> Mapping[str, Any]:
        """Name -> tensor of one module: a folder with model.safetensors or pytorch_model.bin, or a file.

        Raises:
            CheckpointError: it is not there.
        """
        from safetensors.torch import load_file

        safe, pickled = (self.folder / source / file for file in ("model.safetensors", "pytorch_model.bin"))
        if safe.is_file():
            return self._opened(safe, load_file)
        if pickled.is_file() or (self.folder / source).is_file():
            return self._opened(pickled if pickled.is_file() else self.folder / source, _read_pickle)
        raise CheckpointError(
            f"{self.name}: module {source!r} has no weights",
            hint=f"expected {safe.name} or {pickled.name} in {source}/",
        )

    def _opened(self, path: Path, read: Callable[[Path], T]) -> T:
        try:
            return read(path)
        except Exception as error:  # safetensors and pickle each have their own for a damaged file
            raise CheckpointError(f"{self.name}: {path.name} is damaged: {first_line(error)}") from error


def _read_pickle(path: Path) -> dict[str, Any]:
    import torch

    tensors: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return tensors


_TOKENIZER_FILES = ("tokenizer", "vocab", "merges", "spiece", "sentencepiece", "special_tokens", "added_tokens")
_SAMPLES, _SAMPLE_BYTES = 256, 4096


def _sampled_digest(path: Path, *, whole: bool = False) -> str:
    size = path.stat().st_size
    digest = blake2b(size.to_bytes(8, "little"), digest_size=16)
    with path.open("rb") as file:
        if whole or size <= _SAMPLES * _SAMPLE_BYTES:
            digest.update(file.read())
        else:
            for sample in range(_SAMPLES):
                file.seek((size - _SAMPLE_BYTES) * sample // (_SAMPLES - 1))
                digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def open_checkpoint(
    model: str,
    revision: str | None = None,
    *,
    tokenizer: str | None = None,
    overrides: tuple[Mapping[str, Any], str] | None = None,
) -> Checkpoint:
    """The checkpoint a user means: an existing folder, else a hub id.

    Args:
        model: folder or hub id.
        revision: of a hub id.
        tokenizer: folder or hub id with another tokenizer; None takes the model's.
        overrides: of config.json, and where they are from.

    Raises:
        NotFoundError: it is neither, or the hub cannot be reached and the files are not in its cache.
    """
    folder = _folder_of(model, revision)
    return Checkpoint(
        model, folder, _folder_of(tokenizer, None) if tokenizer else folder, *(overrides or ({}, "config.json"))
    )


def _folder_of(model: str, revision: str | None) -> Path:
    if not model:
        raise UsageError("model is empty", hint="pass a checkpoint folder or a hub id")
    if Path(model).is_dir():
        return Path(model)
    if Path(model).exists():
        raise CheckpointError(f"{model} is a file", hint="pass the folder that holds config.json and the weights")
    return _download(model, revision)


def _download(model: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    # one kind of weights is enough: a repository often carries the same tensors for several frameworks
    skipped = ["*.onnx", "onnx/*", "openvino/*", "*.h5", "*.msgpack", "*.ot", "*.gguf"]
    try:
        return Path(snapshot_download(model, revision=revision, ignore_patterns=skipped))
    except Exception as error:  # the hub client's own errors, and every kind of network failure
        raise NotFoundError(
            f"model {model!r} is not a folder and could not be fetched from the hub: {first_line(error)}",
            hint="check the spelling and the network, or download it and pass the folder",
        ) from error


def updated(config: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The config with the overrides; a nested one keeps the keys that an override does not name."""
    nested = {
        key: updated(config[key], value)
        for key, value in overrides.items()
        if isinstance(value, Mapping) and isinstance(config.get(key), Mapping)
    }
    return {**config, **overrides, **nested}
