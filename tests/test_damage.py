"""Checkpoints and texts that are odd or damaged: the reference's score, or one clear error."""

from __future__ import annotations

import json
import pickle
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from batchscore import Scorer
from batchscore.errors import CheckpointError, UsageError, debug_traceback

Tiny = Callable[[str], str]


def copy_of(tiny: Tiny, name: str, folder: Path) -> Path:
    return Path(shutil.copytree(tiny(name), folder / "copy"))


@pytest.mark.parametrize("name", ["bert_ce_default", "roberta_ce", "xlmr_ce"])
@pytest.mark.parametrize("padded", [False, True])
def test_a_padding_token_spelled_out_in_a_text_counts_as_in_transformers(tiny: Tiny, name: str, padded: bool) -> None:
    """RoBERTa gives it the padding position and counts on without it."""
    tokenizer = AutoTokenizer.from_pretrained(tiny(name))
    document = f"a {tokenizer.pad_token} dog and {tokenizer.pad_token} more"
    inputs = tokenizer(["the cat"], [document], return_tensors="pt")
    model = AutoModelForSequenceClassification.from_pretrained(tiny(name)).eval()
    with torch.inference_mode():
        expected = torch.sigmoid(model(**inputs).logits).item()

    found = Scorer(tiny(name), dtype="float32", padded=padded).score("the cat", document)
    assert found[0] == pytest.approx(expected, abs=1e-5)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:1000])


class Payload:
    """What a pickle could run."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return print, ("a checkpoint's pickle ran",)


def pickled(path: Path) -> None:
    path.write_bytes(pickle.dumps({"embeddings.word_embeddings.weight": Payload()}))


@pytest.mark.parametrize(
    ("name", "file", "damage"),
    [
        ("bert_mean", "model.safetensors", cut_short),
        ("bert_dense", "2_Dense/model.safetensors", cut_short),
        ("bert_bin", "pytorch_model.bin", cut_short),
        ("bert_bin", "pytorch_model.bin", pickled),
        ("bert_mean", "config.json", lambda path: path.write_text("[1]")),
        ("bert_mean", "config.json", lambda path: path.write_text("{")),
        ("bert_mean", "modules.json", lambda path: path.write_text("[")),
    ],
)
def test_a_damaged_file_is_a_checkpoint_error(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, file: str, damage: Callable[[Path], Any]
) -> None:
    folder = copy_of(tiny, name, tmp_path)
    damage(folder / file)

    with pytest.raises(CheckpointError):
        Scorer(str(folder))
    assert "pickle ran" not in capsys.readouterr().out


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 437951328\n"
STAND_INS = {"a Git LFS pointer": POINTER, "a web page": b"\n<!DOCTYPE html><html>", "empty": b""}


@pytest.mark.parametrize("words", STAND_INS)
@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("bert_mean", "model.safetensors"),
        ("bert_mean", "tokenizer.json"),
        ("bert_mean", "config.json"),
        ("bert_mean", "1_Pooling/config.json"),
        ("bert_dense", "2_Dense/model.safetensors"),
        ("bert_bin", "pytorch_model.bin"),
        ("bert_sharded", "model-00002-of-00002.safetensors"),
        ("bert_sharded", "model.safetensors.index.json"),
        ("bge_m3", "colbert_linear.pt"),
    ],
)
def test_what_a_failed_download_leaves_is_named(tiny: Tiny, tmp_path: Path, name: str, file: str, words: str) -> None:
    folder = copy_of(tiny, name, tmp_path)
    (folder / file).write_bytes(STAND_INS[words])

    with pytest.raises(CheckpointError, match=f"copy: {file} is {words}") as caught:
        Scorer(str(folder), score_type="late-interaction" if name == "bge_m3" else "auto")
    steps = {"a Git LFS pointer": f"run `git lfs pull` in {(folder / file).parent}, or download the model with"}
    assert (caught.value.hint or "").startswith(steps.get(words, "download it again"))


@pytest.mark.parametrize(
    ("write", "problem"),
    [
        (lambda path: torch.save({"a": Payload()}, path), "holds print, and only tensors are read"),
        (lambda path: torch.save({"model": {"a": torch.zeros(2)}}, path), "holds a dict as 'model'"),
        (lambda path: torch.save([torch.zeros(2)], path), "holds a list, and should hold tensors by their names"),
        (lambda path: torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path), "is damaged, or no file of"),
        (lambda path: path.write_text("hello world"), "is damaged, or no file of tensors by torch.save"),
        (pickled, "is damaged, or no file of tensors by torch.save"),
        (cut_short, "is damaged, or no file of tensors by torch.save"),
    ],
)
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_a_pickle_without_tensors_is_refused_and_never_advised_to_run(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path], Any], problem: str
) -> None:
    monkeypatch.setenv("BATCHSCORE_DEBUG", "1")
    folder = copy_of(tiny, "bert_bin", tmp_path)
    write(folder / "pytorch_model.bin")

    with pytest.raises(CheckpointError, match=f"copy: pytorch_model.bin {problem}") as caught:
        Scorer(str(folder))
    assert "weights_only" not in debug_traceback(caught.value).replace("weights_only=True", "")


def test_an_adapter_of_another_kind_than_lora_is_refused_with_its_base_model(tmp_path: Path) -> None:
    settings = {"base_model_name_or_path": "a/base-model", "peft_type": "LORA", "use_dora": True}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")

    with pytest.raises(CheckpointError, match="adapter_config.json: it is a PEFT adapter of a/base-model") as caught:
        Scorer(str(tmp_path))
    assert "merge_and_unload" in str(caught.value.hint)


def test_an_adapter_beside_weights_is_refused_because_these_may_lack_it(tiny: Tiny, tmp_path: Path) -> None:
    folder = copy_of(tiny, "bert_ce", tmp_path)
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "a/base-model"}')

    with pytest.raises(CheckpointError, match="is a PEFT adapter of a/base-model") as caught:
        Scorer(str(folder))
    assert "remove adapter_config.json" in str(caught.value.hint)


def test_a_tokenizer_larger_than_the_embeddings_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    folder = copy_of(tiny, "bert_mean", tmp_path)
    weights = load_file(folder / "model.safetensors")
    weights["embeddings.word_embeddings.weight"] = weights["embeddings.word_embeddings.weight"][:20].clone()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    change_config(folder, vocab_size=20)

    with pytest.raises(CheckpointError, match="its embeddings end at 19"):
        Scorer(str(folder)).score("the cat", "the dog")


def change_config(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize("stated", ["bfloat16", "float16"])
def test_a_config_that_states_16_bits_does_not_round_a_float32_head(tiny: Tiny, tmp_path: Path, stated: str) -> None:
    folder = copy_of(tiny, "bert_ce_default", tmp_path)
    change_config(folder, torch_dtype=stated)
    expected = Scorer(tiny("bert_ce_default"), dtype="bfloat16").score("the cat", ["a dog", "old water"])

    assert Scorer(str(folder), dtype="bfloat16").score("the cat", ["a dog", "old water"]).tolist() == expected.tolist()


@pytest.mark.parametrize("name", ["bert_mean", "bert_no_prompt_pooling"])
def test_a_prompt_that_fills_the_model_is_refused(tiny: Tiny, name: str) -> None:
    with pytest.raises(UsageError, match="leaves no room for text"):
        Scorer(tiny(name), query_prompt="the cat " * 40).score("a", "b")


@pytest.mark.parametrize(("queries", "documents"), [(None, ["a"]), (3, ["a"]), ("a", None), ("a", 3.5)])
def test_what_is_no_text_at_all_is_a_usage_error(tiny: Tiny, queries: Any, documents: Any) -> None:
    with pytest.raises(UsageError, match="not a string or a list of strings"):
        Scorer(tiny("bert_mean")).score(queries, documents)


def test_an_empty_model_name_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="model is empty"):
        Scorer("")


def test_the_callers_torch_threads_are_left_alone(tiny: Tiny) -> None:
    """Workers have one thread each; the program around them keeps its own number, in threads to come too."""
    before, found = torch.get_num_threads(), []
    with Scorer(tiny("bert_mean")) as scorer:
        scorer.score("a", "b")
        thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
        thread.start()
        thread.join()

        assert (torch.get_num_threads(), found) == (before, [before])
        assert set(scorer.batcher._workers.map(lambda _: torch.get_num_threads(), range(4))) == {1}
