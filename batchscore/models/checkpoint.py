"""Read a checkpoint's small files once; nothing here touches a weight.

A model is a local folder or a hub id. For a hub id only the JSON files and tokenizer are fetched here, the weights
when the model is loaded.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

from batchscore.errors import CheckpointError, NotFoundError, UsageError

Json = dict[str, Any]
T = TypeVar("T")

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

    def read_json(self, file: str) -> Json:
        """The file's content, {} if there is no such file.

        Raises:
            CheckpointError: it is not valid JSON, or holds something other than an object.
        """
        return self._parsed(file, {})

    def _parsed(self, file: str, absent: T) -> T:
        """The file's content, which must be of the type of `absent`, or `absent` if there is no such file."""
        path = self.folder / file
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
        """config.json, which every checkpoint has."""
        config = self.read_json("config.json")
        if not config:
            raise CheckpointError(
                f"{self.name} has no config.json",
                hint="pass the folder that holds config.json and the weights, or a hub id",
            )
        return config

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

    def stored_dtype(self) -> str | None:
        """Name of float32 if the first weight file holds a tensor of it, else None; a pickle counts as float32."""
        file = next(iter(sorted(self.folder.glob("*.safetensors"))), None)
        if file is None:
            return "float32"  # a pickle says nothing before it is loaded; float32 loses nothing

        def has_float32(path: Path) -> bool:
            from safetensors import safe_open

            with safe_open(path, "pt") as tensors:
                return any(tensors.get_slice(name).get_dtype() == "F32" for name in tensors.keys())  # noqa: SIM118

        return "float32" if self._opened(file, has_float32) else None

    def _opened(self, path: Path, read: Callable[[Path], T]) -> T:
        try:
            return read(path)
        except Exception as error:  # safetensors and pickle each have their own for a damaged file
            raise CheckpointError(f"{self.name}: {path.name} is damaged: {first_line(error)}") from error

    def read_weights(self, folder: str) -> Mapping[str, Any]:
        """Name -> tensor of one module folder, from model.safetensors or pytorch_model.bin.

        Raises:
            CheckpointError: neither file is there.
        """
        safe, pickled = (self.folder / folder / file for file in ("model.safetensors", "pytorch_model.bin"))
        if safe.is_file():
            from safetensors.torch import load_file

            return self._opened(safe, load_file)
        if pickled.is_file():
            import torch

            return self._opened(pickled, partial(torch.load, map_location="cpu", weights_only=True))
        raise CheckpointError(
            f"{self.name}: module {folder!r} of modules.json has no weights",
            hint=f"expected {safe.name} or {pickled.name} in {folder}/",
        )


def open_checkpoint(model: str, revision: str | None = None) -> Checkpoint:
    """The checkpoint a user means: an existing folder, else a hub id.

    Raises:
        NotFoundError: it is neither, or the hub cannot be reached and the files are not in its cache.
    """
    if not model:
        raise UsageError("model is empty", hint="pass a checkpoint folder or a hub id")
    if Path(model).is_dir():
        return Checkpoint(model, Path(model))
    if Path(model).exists():
        raise CheckpointError(f"{model} is a file", hint="pass the folder that holds config.json and the weights")
    return Checkpoint(model, _download(model, revision))


def first_line(error: Exception) -> str:
    """What an error says, in one line."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


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
