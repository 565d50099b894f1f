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
from batchscore.errors import CheckpointError, UsageError

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
