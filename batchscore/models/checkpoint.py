"""A checkpoint: a local folder or a hub id, and what its files say.

Small files are read once, on first use. Weights have their own methods, which are the only ones to read them or, for a
hub id, to download them: deciding what a model means needs neither.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any, TypeVar

from batchscore.errors import CheckpointError, UsageError, first_line
from batchscore.models.hub import Snapshot, open_snapshot
from batchscore.models.spec import CONFIG_JSON, Source, Sourced

Json = dict[str, Any]
T = TypeVar("T")

SAVED = "config_sentence_transformers.json"

# what the keys that decisions are made from must hold, in any of the files; null counts as absent
_NUMBER_KEYS = {"pad_token_id", "type_vocab_size", "max_position_embeddings", "n_positions", "max_seq_len"}
_NUMBER_KEYS |= {"original_max_position_embeddings", "num_labels", "hidden_size", "n_embd", "dim", "d_model"}
_NUMBER_KEYS |= {"num_hidden_layers", "num_attention_heads", "max_seq_length", "model_max_length", "doc_maxlen"}
_NUMBER_KEYS |= {"query_length", "document_length", "query_maxlen", "in_features", "out_features"}
_OBJECT_KEYS = {"rope_scaling", "rope_parameters", "id2label", "sentence_transformers", "task_instructions", "prompts"}
_OBJECT_KEYS |= {"processing_kwargs"}
_TEXT_KEYS = {"model_type", "problem_type", "activation_fn", "activation_function", "default_prompt_name"}
_TEXT_KEYS |= {"sbert_ce_default_activation_function", "query_prefix", "document_prefix", "query_token_id"}
_LIST_KEYS = {"architectures", "lora_adaptations", "matryoshka_dimensions", "skiplist_words"}
_KINDS: dict[str, tuple[type | tuple[type, ...], str]] = {
    **dict.fromkeys(_NUMBER_KEYS, ((int, float), "a number")),
    **dict.fromkeys(_OBJECT_KEYS, (dict, "an object")),
    **dict.fromkeys(_LIST_KEYS, (list, "a list")),
    **dict.fromkeys(_TEXT_KEYS, (str, "text")),
}

# sentence-transformers named this file after the backbone before it settled on the first of these
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
    config_source: Source = CONFIG_JSON  # of `config`: the file, or where its overrides come from
    snapshot: Snapshot | None = None  # set for a hub id: where to fetch weights from

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
        if isinstance(content, dict):
            self._check_kinds(content, file)
        return content

    def _check_kinds(self, content: Mapping[str, Any], file: str) -> None:
        for key, value in content.items():
            kind, words = _KINDS.get(key, (object, ""))
            if value is not None and not isinstance(value, kind):
                raise CheckpointError(f"{self.name}: {file}: {key} is {value!r}, and must be {words}")

    @cached_property
    def config(self) -> Json:
        """config.json, which every checkpoint has, with the user's overrides."""
        config = self.read_json("config.json")
        if not config:
            raise CheckpointError(
                f"{self.name} has no config.json",
                hint="pass the folder that holds config.json and the weights, or a hub id",
            )
        config = updated(config, self.overrides)
        self._check_kinds(config, str(self.config_source))
        return config

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
        entries: list[Any] = self._parsed("modules.json", [])
        return [self._module(entry) for entry in entries]

    def _module(self, entry: Any) -> Module:
        kind, folder = (entry.get(key) if isinstance(entry, dict) else None for key in ("type", "path"))
        if not isinstance(kind, str) or not isinstance(folder, str):
            raise CheckpointError(f"{self.name}: modules.json: {entry!r} has no type and path")
        return Module(kind.rsplit(".", 1)[-1], folder, self.read_json(str(Path(folder, "config.json"))))

    @cached_property
    def sentence_config(self) -> tuple[str, Json]:
        """(file name, content) of sentence_bert_config.json or its older names; ("", {}) without one."""
        folder = next((m.folder for m in self.modules if m.kind == "Transformer"), "")
        for file in _SENTENCE_CONFIGS:
            content = self.read_json(str(Path(folder) / file))
            if content:
                return file, content
        return "", {}

    # ---- weights

    def fetch_weights(self) -> None:
        """Download what loading reads, if this is a hub id and something is missing.

        Raises:
            NotFoundError: the hub cannot be reached.
        """
        if self.snapshot is None:
            return
        for preference in range(2):  # a pickle only where there is no safetensors file
            missing = [source for source in self._weight_sources() if not self._stored(source)]
            names = [name for source in missing for name in self._choices(source)[preference]]
            if names:
                self.snapshot.fetch(names)

    def weight_files(self) -> list[Path]:
        """The files that loading reads: the backbone's, then those of the modules."""
        return [path for source in self._weight_sources() for path in self._stored(source)]

    def identity(self, *, with_code: bool = False) -> dict[str, str]:
        """Digests of what the scores depend on and no spec describes: weights, config.json and the tokenizer's files.

        Weight files are sampled: a long job should not begin by reading a model twice, and no training leaves all
        samples as they were.

        Args:
            with_code: the checkpoint's Python files may run; they count, and so does every file they may read.
        """
        self.fetch_weights()
        sampled = self.weight_files()
        whole = [path for path in self.tokenizer_folder.iterdir() if path.name.startswith(_TOKENIZER_FILES)]
        if with_code:
            sampled += [path for path in self.folder.iterdir() if path.suffix in _WEIGHT_SUFFIXES]
            whole += [*self.folder.rglob("*.py"), *self.tokenizer_folder.rglob("*.py")]
        return {
            **{self._relative(path): _sampled_digest(path) for path in sorted(set(sampled))},
            **{self._relative(path): _digest(path.read_bytes()) for path in sorted(set(whole))},
            "config.json": _digest(json.dumps(self.config, sort_keys=True).encode()),
        }

    def _relative(self, path: Path) -> str:
        return str(path.relative_to(self.folder if path.is_relative_to(self.folder) else self.tokenizer_folder))

    def has_tensor(self, name: str) -> bool:
        """Whether the weights hold a tensor of this name, or one that ends in it. Pickles are not looked into."""
        indexed = self.read_json("model.safetensors.index.json").get("weight_map")
        names = indexed or self._header("model.safetensors")
        return any(key == name or key.endswith(f".{name}") for key in names)

    def read_tensors(self, source: str = "") -> dict[str, Any]:
        """Name -> tensor, from every shard; mapped from disk where the format allows it.

        Args:
            source: the folder or file of a module; "" for the backbone and its head.

        Raises:
            CheckpointError: there is no weight file, or a damaged one.
        """
        from safetensors.torch import load_file

        files = self._required(source)
        read = load_file if files[0].suffix == ".safetensors" else _read_pickle
        return {name: tensor for file in files for name, tensor in self._opened(file, read).items()}

    def empty_tensors(self, source: str = "") -> dict[str, Any]:
        """As `read_tensors`, but zeros that take no memory, of the shapes that the files' headers give.

        For a hub id only the headers are fetched.

        Raises:
            UncheckedError: weights on the hub that have no such headers.
        """
        import torch

        files = self._stored(source) if self.snapshot else self._required(source)
        if files and files[0].suffix != ".safetensors":
            return self.read_tensors(source)
        shapes = {name: shape for file in self._choices(source)[0] for name, shape in self._header(file).items()}
        if not shapes:
            raise UncheckedError(f"{self.name} has its weights as pickles, which must be downloaded to look inside")
        return {name: torch.zeros(()).expand(shape) for name, shape in shapes.items()}

    def _weight_sources(self) -> list[str]:
        """What `read_tensors` may be asked for."""
        modules = [module.folder for module in self.modules if module.kind == "Dense"]
        return ["", *modules, *([BGE_M3_HEAD] if (self.folder / BGE_M3_HEAD).is_file() else [])]

    def _choices(self, source: str) -> tuple[list[str], list[str]]:
        """The names of files that hold these weights: as safetensors, as pickles."""
        if source == BGE_M3_HEAD:
            return [], [source]
        return self._parts(source, "model.safetensors"), self._parts(source, "pytorch_model.bin")

    def _parts(self, folder: str, file: str) -> list[str]:
        index = self.read_json(str(Path(folder, f"{file}.index.json"))).get("weight_map", {})
        return [str(Path(folder, part)) for part in sorted(set(index.values())) or [file]]

    def _stored(self, source: str) -> list[Path]:
        """The files with these weights; [] unless all of them are on the disk."""
        choices = ([self.folder / name for name in names] for names in self._choices(source))
        return next((files for files in choices if files and all(file.is_file() for file in files)), [])

    def _required(self, source: str) -> list[Path]:
        if files := self._stored(source):
            return files
        for names in self._choices(source):
            missing = [name for name in names if not (self.folder / name).is_file()]
            if len(missing) < len(names):
                raise CheckpointError(f"{self.name} lacks {missing[0]}", hint="finish the download")
        expected = "model.safetensors or pytorch_model.bin"
        if source:
            raise CheckpointError(
                f"{self.name}: module {source!r} has no weights", hint=f"expected {expected} in {source}/"
            )
        raise CheckpointError(f"{self.name} has no weights", hint=f"expected {expected}, whole or in parts")

    def _header(self, file: str) -> Mapping[str, tuple[int, ...]]:
        """{tensor: shape} of a safetensors file, on the disk or else on the hub; {} if there is no such file."""
        path = self.folder / file
        if path.is_file():
            return self._opened(path, _shapes)
        return (self.snapshot.shapes(file) if self.snapshot else None) or {}

    def _opened(self, path: Path, read: Callable[[Path], T]) -> T:
        try:
            return read(path)
        # only safetensors and pickle run here, and damaged bytes make them raise almost anything
        except Exception as error:
            raise CheckpointError(f"{self.name}: {path.name} is damaged: {first_line(error)}") from error


class UncheckedError(CheckpointError):
    """Tensors whose names and shapes cannot be told without downloading them."""


BGE_M3_HEAD = "colbert_linear.pt"
_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")
_TOKENIZER_FILES = ("tokenizer", "vocab", "merges", "spiece", "spm", "sentencepiece", "special_tokens", "added_tokens")
_SAMPLES, _SAMPLE_BYTES = 256, 4096


def _read_pickle(path: Path) -> dict[str, Any]:
    import torch

    tensors: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return tensors


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    from safetensors import safe_open

    with safe_open(path, "np") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


def _digest(content: bytes) -> str:
    return blake2b(content, digest_size=16).hexdigest()


def _sampled_digest(path: Path) -> str:
    size = path.stat().st_size
    with path.open("rb") as file:
        if size <= _SAMPLES * _SAMPLE_BYTES:
            return _digest(file.read())
        digest = blake2b(size.to_bytes(8, "little"), digest_size=16)
        for sample in range(_SAMPLES):
            file.seek((size - _SAMPLE_BYTES) * sample // (_SAMPLES - 1))
            digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def open_checkpoint(
    model: str, revision: str | None = None, *, tokenizer: str | None = None, overrides: Sourced | None = None
) -> Checkpoint:
    """The checkpoint a user means: an existing folder, else a hub id.

    Args:
        model: folder or hub id.
        revision: of a hub id.
        tokenizer: folder or hub id with another tokenizer; None takes the model's.
        overrides: of config.json, and where they come from.

    Raises:
        NotFoundError: it is neither, or the hub cannot be reached and the files are not in its cache.
    """
    folder, snapshot = _folder_of(model, revision)
    tokenizer_folder = _folder_of(tokenizer, None)[0] if tokenizer else folder
    values, source = overrides or ({}, CONFIG_JSON)
    return Checkpoint(model, folder, tokenizer_folder, values, source, snapshot)


def _folder_of(model: str, revision: str | None) -> tuple[Path, Snapshot | None]:
    if not model:
        raise UsageError("model is empty", hint="pass a checkpoint folder or a hub id")
    if Path(model).is_dir():
        return Path(model), None
    if Path(model).exists():
        raise CheckpointError(f"{model} is a file", hint="pass the folder that holds config.json and the weights")
    snapshot = open_snapshot(model, revision)
    return snapshot.folder, snapshot


def updated(config: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The config with the overrides; a nested one keeps the keys that an override does not name."""
    nested = {
        key: updated(config[key], value)
        for key, value in overrides.items()
        if isinstance(value, Mapping) and isinstance(config.get(key), Mapping)
    }
    return {**config, **overrides, **nested}
