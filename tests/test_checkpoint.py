"""Which files of a checkpoint are read, fetched from the hub and part of a job's identity."""

from __future__ import annotations

import json
import re
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
from safetensors.torch import load_file, save_file

from batchscore import Scorer
from batchscore.errors import CheckpointError, NotFoundError
from batchscore.inspection import inspect_model
from batchscore.models.checkpoint import Checkpoint, open_checkpoint
from batchscore.models.open import open_model, pinned_options
from batchscore.models.weights import empty_tensors, has_tensor, identity, read_tensors

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


@pytest.mark.parametrize(("name", "save"), [("model.safetensors", save_file), ("pytorch_model.bin", torch.save)])
def test_a_change_of_one_small_tensor_in_a_large_file_is_another_identity(
    copied: Callable[[str], Path], name: str, save: Callable[[Any, Path], None]
) -> None:
    folder = copied("bert_ce")
    path = folder / name
    tensors = {
        **load_file(folder / "model.safetensors"),
        "large": torch.zeros(4_000_000),
        "large.norm": torch.ones(16),
        "larger": torch.zeros(6_000_000),
    }
    (folder / "model.safetensors").unlink()
    save(tensors, path)
    before, size = identity(open_checkpoint(str(folder))), path.stat().st_size

    save({**tensors, "large.norm": -tensors["large.norm"]}, path)
    after = identity(open_checkpoint(str(folder)))

    assert path.stat().st_size == size
    assert [name for name in before if before[name] != after[name]] == [path.name]
    assert identity(open_checkpoint(str(folder))) == after


# ---- which files hold the weights

INDEX = "model.safetensors.index.json"


def zeros(source: Path, target: Path) -> None:
    save_file({name: torch.zeros_like(tensor) for name, tensor in load_file(source).items()}, target)


def add_stale_index(folder: Path) -> None:
    """An index of one shard of zeros, as an older save in several parts leaves it beside a newer model.safetensors."""
    names = load_file(folder / "model.safetensors")
    zeros(folder / "model.safetensors", folder / "model-00001-of-00001.safetensors")
    (folder / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(names, "model-00001-of-00001.safetensors")}))


def score(model: str | Path) -> list[float]:
    with Scorer(str(model), dtype="float32") as scorer:
        scores: list[float] = scorer.score("the cat", ["a dog", "old water"]).tolist()
        return scores


def test_a_whole_file_wins_over_an_index_of_older_shards(copied: Callable[[str], Path], tiny: Tiny) -> None:
    folder = copied("bert_ce")
    add_stale_index(folder)

    assert score(folder) == score(tiny("bert_ce"))
    assert "model.safetensors" in identity(open_checkpoint(str(folder)))
    assert "model-00001-of-00001.safetensors" not in identity(open_checkpoint(str(folder)))
    (folder / INDEX).write_text("not even JSON")
    assert score(folder) == score(tiny("bert_ce"))


def test_a_whole_pickle_wins_over_an_index_of_older_pickles(copied: Callable[[str], Path], tiny: Tiny) -> None:
    folder = copied("bert_bin")
    tensors = torch.load(folder / "pytorch_model.bin", weights_only=True)
    torch.save({name: torch.zeros_like(tensor) for name, tensor in tensors.items()}, folder / "old.bin")
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": dict.fromkeys(tensors, "old.bin")}))

    assert score(folder) == score(tiny("bert_bin"))


def test_a_run_of_a_hub_id_fetches_the_whole_file_and_not_the_older_shards(
    hub: Callable[[str], Hub], tiny: Tiny
) -> None:
    fake = hub("bert_ce")
    add_stale_index(fake.repository)

    assert has_tensor(open_checkpoint("a/model"), "classifier.weight")
    assert score("a/model") == score(tiny("bert_ce"))
    assert weights(fake.fetched) == ["model.safetensors"]


def test_shards_of_a_hub_id_are_fetched_where_there_is_no_whole_file(hub: Callable[[str], Hub], tiny: Tiny) -> None:
    fake = hub("bert_sharded")
    (fake.repository / "pytorch_model.bin").write_bytes(b"unread")

    assert inspected()["problems"] == []
    assert weights(fake.fetched) == []
    assert score("a/model") == score(tiny("bert_sharded"))
    assert weights(fake.fetched) == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]


def test_a_file_that_config_json_names_wins_over_all_others(copied: Callable[[str], Path], tiny: Tiny) -> None:
    folder = copied("bert_ce")
    (folder / "model.safetensors").rename(folder / "exact.safetensors")
    zeros(folder / "exact.safetensors", folder / "model.safetensors")
    change(folder / "config.json", lambda config: {**config, "transformers_weights": "exact.safetensors"})

    assert score(folder) == score(tiny("bert_ce"))


def test_the_tensors_of_a_model_are_those_of_the_file_that_is_read(copied: Callable[[str], Path]) -> None:
    folder = copied("bert_ce")
    (folder / INDEX).write_text(json.dumps({"weight_map": {"score.weight": "gone.safetensors"}}))
    checkpoint = open_checkpoint(str(folder))

    assert (has_tensor(checkpoint, "classifier.weight"), has_tensor(checkpoint, "score.weight")) == (True, False)
    (folder / "model.safetensors").unlink()
    assert (has_tensor(checkpoint, "classifier.weight"), has_tensor(checkpoint, "score.weight")) == (False, True)


SECOND = "model-00002-of-00002.safetensors"


def drop_shard(folder: Path) -> None:
    (folder / SECOND).unlink()
    (folder / "pytorch_model.bin").write_bytes(b"an index forbids pickles, as in transformers")


def name_a_tensor_more(folder: Path) -> None:
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"]["pooler.extra"] = SECOND
    (folder / INDEX).write_text(json.dumps(index))


def repeat_a_tensor(folder: Path) -> None:
    first = load_file(folder / SECOND.replace("00002-of", "00001-of"))
    name = min(first)
    save_file({**load_file(folder / SECOND), name: first[name]}, folder / SECOND)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (drop_shard, f"tiny lacks {SECOND}, which {INDEX} names"),
        (name_a_tensor_more, f"tiny: {SECOND} lacks pooler.extra, which {INDEX} names"),
        (repeat_a_tensor, f"tiny: {SECOND} holds .*, which {INDEX} gives to model-00001-of-00002.safetensors"),
        (lambda folder: (folder / INDEX).write_text("{}"), f"tiny: {INDEX} has no weight_map"),
        (lambda folder: (folder / INDEX).write_text('{"weight_map": {"a": 3}}'), f"tiny: {INDEX} has no weight_map"),
    ],
)
@pytest.mark.parametrize("read", [read_tensors, empty_tensors])
def test_shards_that_are_not_those_of_their_index_are_refused(
    copied: Callable[[str], Path],
    read: Callable[[Checkpoint], Any],
    damage: Callable[[Path], Any],
    message: str,
) -> None:
    folder = copied("bert_sharded")
    damage(folder)

    with pytest.raises(CheckpointError, match=f"^{message}"):
        read(Checkpoint("tiny", folder, folder))


# ---- where the backbone is


def moved(folder: Path, to: str) -> Path:
    """The checkpoint as sentence-transformers 0.x saved it: the Transformer module has a folder."""
    (folder / to).mkdir()
    for path in folder.iterdir():
        if path.is_file() and path.name not in ("modules.json", "config_sentence_transformers.json"):
            path.rename(folder / to / path.name)
    modules = json.loads((folder / "modules.json").read_text())
    (folder / "modules.json").write_text(json.dumps([{**modules[0], "path": to}, *modules[1:]]))
    return folder


@pytest.mark.parametrize("name", ["0_Transformer", "backbone"])
def test_the_folder_of_the_transformer_module_has_config_weights_and_tokenizer(
    copied: Callable[[str], Path], tiny: Tiny, name: str
) -> None:
    folder, plain = moved(copied("bert_dense"), name), identity(open_checkpoint(tiny("bert_dense")))

    assert score(folder) == score(tiny("bert_dense"))
    backbone = {"model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    renamed = {f"{name}/{file}" if file in backbone else file: digest for file, digest in plain.items()}
    assert identity(open_checkpoint(str(folder))) == renamed
    (folder / name / "sentence_bert_config.json").rename(folder / "sentence_bert_config.json")
    assert score(folder) == score(tiny("bert_dense"))
    assert score_with_tokenizer(tiny("bert_dense"), folder) == score(folder)


def score_with_tokenizer(model: str, tokenizer: Path) -> list[float]:
    with Scorer(model, tokenizer=str(tokenizer), dtype="float32") as scorer:
        scores: list[float] = scorer.score("the cat", ["a dog", "old water"]).tolist()
        return scores


def test_a_hub_id_with_a_folder_for_its_transformer_is_inspected_and_fetched(
    hub: Callable[[str], Hub], tiny: Tiny
) -> None:
    fake = hub("bert_mean")
    moved(fake.repository, "0_Transformer")

    assert inspected()["problems"] == []
    assert weights(fake.fetched) == []
    assert score("a/model") == score(tiny("bert_mean"))
    assert weights(fake.fetched) == ["0_Transformer/model.safetensors"]


def test_a_missing_folder_of_the_transformer_module_is_named(copied: Callable[[str], Path]) -> None:
    folder = moved(copied("bert_mean"), "0_Transformer")
    shutil.rmtree(folder / "0_Transformer")

    with pytest.raises(CheckpointError, match="has no 0_Transformer/config.json"):
        open_model(str(folder), None, {})


# ---- paths that lead out


@pytest.mark.parametrize("outside", ["../other", "1_Pooling/../../other", "{absolute}"])
@pytest.mark.parametrize("file", ["modules.json", INDEX, "config.json", "tokenizer_config.json"])
def test_a_path_that_leads_out_of_the_checkpoint_is_refused(
    copied: Callable[[str], Path], tmp_path: Path, file: str, outside: str
) -> None:
    """Whatever is there is a checkpoint of its own: it would be read."""
    folder = copied("bert_mean")
    shutil.copytree(folder, tmp_path / "other")
    outside = outside.format(absolute=tmp_path / "other")
    if file == "modules.json":
        change(folder / file, lambda modules: [{**module, "path": outside} for module in modules])
    elif file == INDEX:
        names = load_file(folder / "model.safetensors")
        (folder / file).write_text(json.dumps({"weight_map": dict.fromkeys(names, f"{outside}/model.safetensors")}))
        (folder / "model.safetensors").unlink()
    else:
        change(folder / file, lambda config: {**config, "auto_map": {"AutoModel": f"{outside}--modeling.Model"}})

    with pytest.raises(CheckpointError, match=f"{file} names '.*', which is outside of the checkpoint"):
        Scorer(str(folder))


def change(path: Path, by: Callable[[Any], Any]) -> None:
    path.write_text(json.dumps(by(json.loads(path.read_text()))))


def test_files_that_are_symbolic_links_are_read_as_in_the_hubs_cache(copied: Callable[[str], Path], tiny: Tiny) -> None:
    folder = copied("bert_dense")
    blobs = folder.parent / "blobs"
    blobs.mkdir()
    for number, path in enumerate([path for path in folder.rglob("*") if path.is_file()]):
        path.rename(blobs / str(number))
        path.symlink_to(blobs / str(number))

    assert score(folder) == score(tiny("bert_dense"))


# ---- what config.json says


def test_infinity_as_transformers_writes_it_is_a_number(tmp_path: Path) -> None:
    tags = ["Infinity", "-Infinity", "NaN", "1"]
    content = {"architectures": ["BertModel"], "limits": [{"__float__": tag} for tag in tags]}
    (tmp_path / "config.json").write_text(json.dumps(content))
    limits = open_checkpoint(str(tmp_path)).config["limits"]

    assert limits[:2] == [float("inf"), float("-inf")]
    assert limits[2] != limits[2]
    assert limits[3] == {"__float__": "1"}  # transformers leaves others alone, too


def test_a_config_that_transformers_refuses_is_quoted_to_the_end(copied: Callable[[str], Path]) -> None:
    folder = copied("bert_mean")
    change(folder / "config.json", lambda config: {**config, "hidden_act": [3]})

    with pytest.raises(CheckpointError, match="Validation error for field 'hidden_act': .*expected str, got list"):
        Scorer(str(folder))


@pytest.mark.parametrize(
    ("name", "suggested"), [("bert_mean", "BertModel"), ("bert_ce", "BertForSequenceClassification")]
)
def test_a_config_without_architectures_is_told_how_to_name_one(
    copied: Callable[[str], Path], tiny: Tiny, name: str, suggested: str
) -> None:
    folder = copied(name)
    change(folder / "config.json", lambda config: {k: v for k, v in config.items() if k != "architectures"})

    with pytest.raises(CheckpointError, match="config.json names no architectures") as caught:
        open_model(str(folder), None, {})
    assert caught.value.hint is not None
    hint = caught.value.hint
    overrides = re.findall("--hf-overrides '(.*?)'", hint)[-1]
    assert json.loads(overrides) == {"architectures": [suggested]}
    with Scorer(str(folder), hf_overrides=overrides, dtype="float32") as scorer:
        assert scorer.score("the cat", ["a dog", "old water"]).tolist() == score(tiny(name))


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
