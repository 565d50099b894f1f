"""A checkpoint: a local folder or a hub id, and what its files say.

Settings are read once, on first use. Weights are read, and for a hub id downloaded, only in weights.py: deciding what a
model means does not need them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from batchscore.errors import CheckpointError, UsageError
from batchscore.models.arch.entry import Json
from batchscore.models.folder import check_content, inside, parse_json, vocabularies
from batchscore.models.hub import Snapshot, open_snapshot
from batchscore.models.spec import CONFIG_JSON, Source, Sourced

T = TypeVar("T")

SAVED = "config_sentence_transformers.json"
STATIC = "StaticEmbedding"  # the module that is a table of vectors
_BACKBONES = ("Transformer", "CLIPModel", STATIC)
ADAPTER = "adapter_config.json"

_NUMBERS = (
    "pad_token_id type_vocab_size max_position_embeddings original_max_position_embeddings n_positions max_seq_len "
    "hidden_size n_embd dim d_model num_labels num_hidden_layers num_attention_heads max_seq_length model_max_length "
    "query_length document_length query_maxlen doc_maxlen in_features out_features truncate_dim"
)
_OBJECTS = (
    "rope_scaling rope_parameters id2label sentence_transformers task_instructions prompts weight_map "
    "processing_kwargs modality_config query_expansion "
    "config_kwargs config_args model_kwargs model_args processor_kwargs tokenizer_args"
)
_LISTS = "architectures lora_adaptations matryoshka_dimensions skiplist_words"
_TEXTS = (
    "model_type problem_type sbert_ce_default_activation_function activation_fn activation_function "
    "transformers_weights default_prompt_name query_prefix document_prefix query_token_id"
)
# the kind of value that a key must have, in any file; null counts as absent
_KINDS: dict[str, tuple[Any, str]] = {
    **dict.fromkeys(_NUMBERS.split(), (int | float, "a number")),
    **dict.fromkeys(_OBJECTS.split(), (dict, "an object")),
    **dict.fromkeys(_LISTS.split(), (list, "a list")),
    **dict.fromkeys(_TEXTS.split(), (str, "text")),
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
    config_source: Source = CONFIG_JSON  # of `config`: the file, or the source of its overrides
    snapshot: Snapshot | None = None  # set for a hub id: where to fetch weights from

    def read_json(self, file: str) -> Json:
        """The file's content, {} if there is no such file.

        Raises:
            CheckpointError: it is not valid JSON, or holds something other than an object.
        """
        return self._parsed(file, {})

    def read_backbone_json(self, file: str) -> Json:
        """`read_json` of a file beside the backbone's weights; an adapter may lack one that its base has."""
        content = self.read_json(str(Path(self.backbone, file)))
        return content if content or file == ADAPTER or self.base is None else self.base.read_backbone_json(file)

    def read_text(self, file: str) -> str:
        """The text of a file beside the backbone's weights, "" if there is no such file.

        Raises:
            CheckpointError: it is not UTF-8.
        """
        path = self.backbone_folder / file
        try:
            return path.read_text("utf-8") if path.is_file() else ""
        except UnicodeDecodeError as error:
            raise CheckpointError(f"{self.name}: {file} is not UTF-8: {error}") from error

    def _parsed(self, file: str, absent: T, folder: Path | None = None) -> T:
        """The file's content, which must be of the type of `absent`, or `absent` if there is no such file."""
        path = (folder or self.folder) / file
        if not path.is_file():
            return absent
        check_content(self.name, file, path)
        try:
            content = parse_json(path.read_text("utf-8"))
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
        for reference in _texts_in(content.get("auto_map")):  # module.Class, or repository--module.Class
            for path in reference.split("--"):
                inside(self.name, f"auto_map in {file}", path)

    @cached_property
    def backbone(self) -> str:
        """The sub-folder with config.json, weights and tokenizer; "", as it mostly is, for the folder itself."""
        return next((module.folder for module in self.modules if module.kind.endswith(_BACKBONES)), "")

    @property
    def backbone_folder(self) -> Path:
        """`backbone` on the disk."""
        return self.folder / self.backbone

    def folder_of(self, file: str) -> Path:
        """Where a file is that stands beside the backbone's weights, or those of an adapter's base."""
        is_here = self.base is None or (self.backbone_folder / file).is_file()
        return self.backbone_folder if is_here or self.base is None else self.base.folder_of(file)

    @cached_property
    def base(self) -> Checkpoint | None:
        """The checkpoint whose weights a LoRA adapter is added to; None: this is no adapter.

        Raises:
            CheckpointError: an adapter of another kind, or one whose weights may be merged already.
            NotFoundError: the base is neither a folder nor on the hub.
        """
        settings = self.read_backbone_json(ADAPTER)
        if not settings:
            return None
        if (self.backbone_folder / "config.json").is_file():
            raise self._adapter_error(beside_weights=True)
        name = settings.get("base_model_name_or_path")
        if settings.get("peft_type") != "LORA" or settings.get("use_dora") or not name:
            raise self._adapter_error(beside_weights=False)
        beside = self.backbone_folder / str(name)
        return open_checkpoint(str(beside if beside.is_dir() else name), settings.get("revision"))

    @cached_property
    def own_config(self) -> Json:
        """config.json as it stands, which every checkpoint has but a table of vectors; an adapter has its base's."""
        content = self.read_backbone_json("config.json")
        if not content and [module.kind for module in self.modules[:1]] == [STATIC]:
            return {"architectures": [STATIC], "model_type": STATIC}
        if not content:
            raise CheckpointError(
                f"{self.name} has no {Path(self.backbone, 'config.json')}",
                hint="pass the folder that holds config.json and the weights, or a hub id",
            )
        return content

    def _adapter_error(self, *, beside_weights: bool) -> CheckpointError:
        base = self.read_backbone_json(ADAPTER).get("base_model_name_or_path") or "a base model that it does not name"
        merged = f"; if it is merged into the weights beside it already, remove {ADAPTER}" if beside_weights else ""
        return CheckpointError(
            f"{self.name} has {ADAPTER}: it is a PEFT adapter of {base}, and only LoRA by itself is supported",
            hint=f"merge it with peft (merge_and_unload), save the result with its tokenizer, and pass that{merged}",
        )

    @cached_property
    def config(self) -> Json:
        """config.json with the user's overrides."""
        config = updated(self.own_config, self.overrides)
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
            raise CheckpointError(f"{self.name}: config.json names no architectures", hint=self._architecture_hint())
        return str(names[0])

    def _architecture_hint(self) -> str:
        from transformers.models.auto import modeling_auto as auto

        kind = self.config.get("model_type")
        tables: list[dict[Any, Any]] = [auto.MODEL_MAPPING_NAMES, auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES]
        names = [name for table in tables[: 1 if self.modules else 2] if isinstance(name := table.get(kind), str)]
        options = [f"""--hf-overrides '{{"architectures": ["{name}"]}}'""" for name in names or ["BertModel"]]
        return f"name the class it was saved from: {', or for a reranker '.join(options)}"

    @cached_property
    def modules(self) -> list[Module]:
        """The sentence-transformers chain in order; empty without a modules.json."""
        entries: list[Any] = self._parsed("modules.json", [])
        return [self._module(entry) for entry in entries]

    def _module(self, entry: Any) -> Module:
        kind, folder = (entry.get(key) if isinstance(entry, dict) else None for key in ("type", "path"))
        if not isinstance(kind, str) or not isinstance(folder, str):
            raise CheckpointError(f"{self.name}: modules.json: {entry!r} has no type and path")
        config = self.read_json(str(Path(inside(self.name, "modules.json", folder), "config.json")))
        return Module(kind.rsplit(".", 1)[-1], folder, config)

    @cached_property
    def sentence_config(self) -> tuple[str, Json]:
        """(file name, content) of sentence_bert_config.json or its older names; ("", {}) without one."""
        for folder in dict.fromkeys((self.backbone, "")):
            for file in _SENTENCE_CONFIGS:
                content = self.read_json(str(Path(folder, file)))
                if content:
                    return file, content
        return "", {}


def _texts_in(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _texts_in(part)


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
    other = _folder_of(tokenizer, None)[0] if tokenizer else folder
    tokenizer_folder = Checkpoint(tokenizer or model, other, other).backbone_folder
    values, source = overrides or ({}, CONFIG_JSON)
    checkpoint = Checkpoint(model, folder, tokenizer_folder, values, source, snapshot)
    if (folder / ADAPTER).is_file() and not tokenizer and not vocabularies(tokenizer_folder) and checkpoint.base:
        return replace(checkpoint, tokenizer_folder=checkpoint.base.tokenizer_folder)
    return checkpoint


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
