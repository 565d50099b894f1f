"""Which files of a checkpoint are read, fetched from the hub and part of a job's identity."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub.errors import EntryNotFoundError
from safetensors import safe_open

from batchscore import Scorer
from batchscore.errors import CheckpointError, NotFoundError
from batchscore.inspection import inspect_model
from batchscore.models.checkpoint import Checkpoint, open_checkpoint
from batchscore.models.open import open_model, pinned_options
from batchscore.models.weights import identity

Tiny = Callable[[str], str]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def copied(tiny: Tiny, tmp_path: Path) -> Callable[[str], Path]:
    return lambda name: Path(shutil.copytree(tiny(name), tmp_path / name))


class Hub:
    """A hub with one model, which records what is asked of it."""

    def __init__(self, repository: Path, cache: Path) -> None:
        self.repository, self.folder = repository, cache / "snapshots" / COMMIT
        self.fetched: list[str] = []
        self.revisions: list[str | None] = []

    def names(self) -> list[str]:
        files = (path for path in self.repository.rglob("*") if path.is_file())
        return sorted(str(path.relative_to(self.repository)) for path in files)

    def snapshot_download(
        self, model: str, *, revision: str | None, allow_patterns: list[str], ignore_patterns: list[str]
    ) -> str:
        if model != "a/model":
            raise EntryNotFoundError("404")
        self.revisions.append(revision)
        for name in self.names():
            wanted = any(fnmatch(name, pattern) for pattern in allow_patterns)
            if wanted and not any(fnmatch(name, pattern) for pattern in ignore_patterns):
                self.fetched.append(name)
                (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(self.repository / name, self.folder / name)
        return str(self.folder)

    def parse_safetensors_file_metadata(self, model: str, name: str, *, revision: str) -> SimpleNamespace:
        assert (model, revision) == ("a/model", COMMIT)
        if not (self.repository / name).is_file():
            raise EntryNotFoundError("404")
        with safe_open(self.repository / name, "np") as file:
            shapes = {key: SimpleNamespace(shape=file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
        return SimpleNamespace(tensors=shapes)


@pytest.fixture
def hub(copied: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Hub]:
    """hub(row): the hub with this tiny checkpoint as a/model."""

    def serve(name: str) -> Hub:
        fake = Hub(copied(name), tmp_path / "cache")
        for function in ("snapshot_download", "parse_safetensors_file_metadata"):
            monkeypatch.setattr(f"huggingface_hub.{function}", getattr(fake, function))
        return fake

    return serve


def weights(names: list[str]) -> list[str]:
    return [name for name in names if name.endswith((".safetensors", ".bin"))]


# ---- the hub


def inspected(**options: Any) -> dict[str, Any]:
    return inspect_model("a/model", options, query="the cat", document="a dog").describe()


@pytest.mark.parametrize("name", ["bert_dense", "bert_ce", "colbert", "qwen3_reranker"])
def test_inspecting_a_hub_id_fetches_headers_but_no_weights(hub: Callable[[str], Hub], name: str) -> None:
    fake = hub(name)
    config = {"config": "qwen3-reranker"} if name == "qwen3_reranker" else {}
    found = inspected(**config)

    assert weights(fake.names())
    assert weights(fake.fetched) == []
    local = inspect_model(str(fake.repository), config, query="the cat", document="a dog").describe()
    assert {**found, "model": ""} == {**local, "model": ""}


def test_inspecting_a_hub_id_with_pickles_says_that_tensors_were_not_checked(hub: Callable[[str], Hub]) -> None:
    fake = hub("bert_bin")
    found = inspected()

    assert weights(fake.fetched) == []
    assert "tensors" not in found
    assert "pickles" in found["tensors_unchecked"]
    assert found["problems"] == []
    assert found["sample"]


def test_a_run_fetches_safetensors_and_no_pickle_beside_them(hub: Callable[[str], Hub], tiny: Tiny) -> None:
    fake = hub("bert_dense")
    for name in ("pytorch_model.bin", "2_Dense/pytorch_model.bin", "other.safetensors"):
        (fake.repository / name).write_bytes(b"unread")
    (fake.repository / "onnx").mkdir()
    (fake.repository / "onnx" / "config.json").write_text("{}")

    with Scorer("a/model", dtype="float32") as scorer, Scorer(tiny("bert_dense"), dtype="float32") as local:
        assert scorer.score("the cat", "a dog").tolist() == local.score("the cat", "a dog").tolist()

    assert set(weights(fake.fetched)) == {"model.safetensors", "2_Dense/model.safetensors"} | {
        name for name in fake.fetched if name.startswith("3_Dense/") and name.endswith(".safetensors")
    }
    assert "onnx/config.json" not in fake.fetched
    assert set(fake.revisions) == {None, COMMIT}  # weights come from the commit that the settings came from


def test_a_run_fetches_pickles_where_there_is_nothing_else(hub: Callable[[str], Hub]) -> None:
    fake = hub("bert_bin")
    with Scorer("a/model", dtype="float32") as scorer:
        scorer.score("the cat", "a dog")

    assert weights(fake.fetched) == ["pytorch_model.bin"]


def test_the_identity_of_a_hub_id_is_that_of_its_files(hub: Callable[[str], Hub]) -> None:
    fake = hub("bert_dense")

    assert identity(open_checkpoint("a/model")) == identity(open_checkpoint(str(fake.repository)))


def test_another_process_is_told_the_commit(hub: Callable[[str], Hub]) -> None:
    fake = hub("bert_mean")

    assert pinned_options(*open_model("a/model", None, {})) == {"revision": COMMIT}
    assert pinned_options(*open_model(str(fake.repository), None, {})) == {}


def test_a_folder_never_asks_the_hub(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the hub is asked")

    for function in ("snapshot_download", "parse_safetensors_file_metadata"):
        monkeypatch.setattr(f"huggingface_hub.{function}", refuse)
    with Scorer(tiny("bert_dense"), dtype="float32") as scorer:
        scorer.score("the cat", "a dog")
        identity(scorer.checkpoint)


def test_a_model_that_the_hub_lacks_is_not_found(hub: Callable[[str], Hub]) -> None:
    hub("bert_mean")

    with pytest.raises(NotFoundError, match="'b/model' is not a folder and could not be fetched from the hub: 404"):
        open_checkpoint("b/model")


# ---- identity


def as_pickle(folder: Path, safe: str, pickled: str) -> None:
    with safe_open(folder / safe, "pt") as file:
        torch.save({name: file.get_tensor(name) for name in file.keys()}, folder / pickled)  # noqa: SIM118
    (folder / safe).unlink()


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("bert_dense", "model.safetensors"),
        ("bert_dense", "2_Dense/model.safetensors"),
        ("bert_dense", "2_Dense/pytorch_model.bin"),
        ("bert_bin", "pytorch_model.bin"),
        ("bge_m3", "colbert_linear.pt"),
        ("bert_mean", "tokenizer.json"),
    ],
)
def test_other_bytes_in_a_file_that_scores_depend_on_are_another_identity(
    copied: Callable[[str], Path], name: str, file: str
) -> None:
    folder = copied(name)
    if file == "2_Dense/pytorch_model.bin":
        as_pickle(folder, "2_Dense/model.safetensors", file)
    before = identity(open_checkpoint(str(folder)))
    content = bytearray((folder / file).read_bytes())
    content[-1] ^= 1
    (folder / file).write_bytes(content)
    after = identity(open_checkpoint(str(folder)))

    assert {key for key in after if after[key] != before[key]} == {file}


@pytest.mark.parametrize("file", ["modeling.py", "layers/code.py", "adapter_model.safetensors", "extra.pt"])
def test_files_that_remote_code_may_read_count_where_it_may_run(copied: Callable[[str], Path], file: str) -> None:
    folder = copied("bert_mean")
    plain, with_code = (identity(open_checkpoint(str(folder)), with_code=code) for code in (False, True))
    (folder / file).parent.mkdir(exist_ok=True)
    (folder / file).write_text("x = 1")

    assert identity(open_checkpoint(str(folder))) == plain
    assert identity(open_checkpoint(str(folder)), with_code=True).items() - with_code.items()


def test_overrides_of_config_json_are_part_of_the_identity(tiny: Tiny) -> None:
    plain, overridden = (
        identity(open_model(tiny("bert_mean"), None, {"hf_overrides": overrides})[0])
        for overrides in (None, {"layer_norm_eps": 0.1})
    )

    assert {key for key in plain if plain[key] != overridden[key]} == {"config.json"}


# ---- values of another kind than their key wants


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", {"pad_token_id": "zero"}, "config.json: pad_token_id is 'zero', and must be a number"),
        ("config.json", {"rope_scaling": 4}, "config.json: rope_scaling is 4, and must be an object"),
        ("config.json", {"architectures": "BertModel"}, "architectures is 'BertModel', and must be a list"),
        ("sentence_bert_config.json", {"max_seq_length": "x"}, "max_seq_length is 'x', and must be a number"),
        ("config_sentence_transformers.json", {"prompts": ["a"]}, "prompts is ['a'], and must be an object"),
        ("modules.json", [{"type": "a.Transformer"}], "has no type and path"),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused_by_its_file_and_key(
    copied: Callable[[str], Path], file: str, content: Any, message: str
) -> None:
    folder = copied("bert_mean")
    path = folder / file
    old = json.loads(path.read_text()) if path.is_file() and isinstance(content, dict) else {}
    path.write_text(json.dumps(old | content if isinstance(content, dict) else content))

    with pytest.raises(CheckpointError) as caught:
        open_model(str(folder), None, {})
    assert message in caught.value.message


def test_a_key_that_an_architecture_needs_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["LayerWiseMiniCPMForCausalLM"]}))

    with pytest.raises(CheckpointError, match="config.json lacks "):
        open_model(str(tmp_path), None, {})


def test_our_own_bugs_are_not_shown_as_damaged_files(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    def bug(self: Checkpoint) -> None:
        raise TypeError("a bug")

    monkeypatch.setattr("batchscore.models.resolve.length_fields", bug)
    with pytest.raises(TypeError, match="a bug"):
        open_model(tiny("bert_mean"), None, {})
