"""LoRA adapters in folders of their own, as PEFT saves them, against the same weights merged."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import qwen_checkpoints
from batchscore import Scorer
from batchscore.errors import CheckpointError, NotFoundError
from batchscore.inspection import inspect_model
from batchscore.media.find import MediaFinder
from batchscore.media.policy import MediaPolicy
from batchscore.models.checkpoint import open_checkpoint
from batchscore.models.weights import identity, weight_files
from batchscore.types import Cell, Content

Tiny = Callable[[str], str]
RANK, ALPHA = 4, 6
SETTINGS: dict[str, Any] = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "base_model_name_or_path": "../base"}


def write(base: Path, folder: Path, targets: str, *, scale: float = ALPHA / RANK, **settings: Any) -> Path:
    """An adapter of the layers whose names match; returns a copy of the base with it merged."""
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({**SETTINGS, **settings}))
    merged = Path(copytree(base, folder.with_name(f"{folder.name}-merged")))
    weights, adapter = load_file(base / "model.safetensors"), {}
    chance = torch.Generator().manual_seed(5)
    for name in [name for name in weights if re.search(targets, name) and weights[name].dim() == 2]:
        rows, columns = weights[name].shape
        a, b = torch.randn(RANK, columns, generator=chance), torch.randn(rows, RANK, generator=chance) * 0.2
        stem = f"base_model.model.{name.removesuffix('.weight')}"
        adapter |= {f"{stem}.lora_A.weight": a, f"{stem}.lora_B.weight": b}
        weights[name] = weights[name] + scale * b @ a
    assert adapter
    save_file(adapter, folder / "adapter_model.safetensors")
    save_file(weights, merged / "model.safetensors", metadata={"format": "pt"})
    return merged


def vectors(model: Path) -> list[Any]:
    noise = np.random.default_rng(0).integers(0, 255, (64, 90, 3), np.uint8)
    page = MediaFinder(MediaPolicy()).image(noise)
    cells: list[Cell] = ["the old house", Content((page,))]
    with Scorer(str(model), dtype="float32", cache_mb=0) as scorer:
        work = scorer.batcher.lay_out(cells, "document")
        made = scorer.batcher.encode(work, "document")
        return np.split(made.float32, made.offsets[1:-1])


@pytest.mark.parametrize("name", ["colqwen2", "colqwen2_5"])
def test_an_adapter_of_a_page_retriever_gives_the_vectors_of_its_merged_weights(tmp_path: Path, name: str) -> None:
    qwen_checkpoints.write(name, tmp_path / "base")
    merged = write(tmp_path / "base", tmp_path / "adapter", r"language_model.*(q|v|o)_proj|custom_text_proj")
    found, expected, plain = (vectors(folder) for folder in (tmp_path / "adapter", merged, tmp_path / "base"))

    for one, other, without in zip(found, expected, plain, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)
        assert np.abs(one - without).max() > 1e-2


@pytest.mark.parametrize(
    ("settings", "scale"),
    [
        ({"use_rslora": True}, ALPHA / RANK**0.5),
        ({"alpha_pattern": {"query": 8, "key": 8, "value": 8}}, 8 / RANK),
    ],
)
def test_an_adapter_of_a_text_model_is_scaled_as_peft_scales_it(
    tiny: Tiny, tmp_path: Path, settings: dict[str, Any], scale: float
) -> None:
    base = Path(copytree(tiny("bert_plain"), tmp_path / "base"))
    merged = write(base, tmp_path / "adapter", r"attention\.self\.(query|key|value)", scale=scale, **settings)
    pairs = ["the cat", "a dog"], ["bird house", "the old river"]
    with Scorer(str(tmp_path / "adapter"), dtype="float32") as one, Scorer(str(merged), dtype="float32") as other:
        np.testing.assert_allclose(one.score(*pairs), other.score(*pairs), rtol=0, atol=1e-5)


def test_what_an_adapter_lacks_is_its_bases(tmp_path: Path) -> None:
    qwen_checkpoints.write("colqwen2", tmp_path / "base")
    write(tmp_path / "base", tmp_path / "adapter", "q_proj")
    checkpoint = open_checkpoint(str(tmp_path / "adapter"))

    assert checkpoint.tokenizer_folder.resolve() == tmp_path / "base"
    assert [path.name for path in weight_files(checkpoint)] == ["model.safetensors", "adapter_model.safetensors"]
    names = identity(checkpoint)
    assert {"base: model.safetensors", "base: config.json", "adapter_model.safetensors"} <= names.keys()
    assert inspect_model(str(tmp_path / "adapter"), {}, query="a", document="b").problems == []


def test_an_adapter_of_another_model_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    base = Path(copytree(tiny("bert_plain"), tmp_path / "base"))
    write(base, tmp_path / "adapter", "attention.self.query")
    weights = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    renamed = {name.replace("layer.0", "layer.9"): tensor for name, tensor in weights.items()}
    save_file(renamed, tmp_path / "adapter" / "adapter_model.safetensors")

    with pytest.raises(CheckpointError, match=r"its adapter changes .*layer\.9.*, which its base lacks"):
        Scorer(str(tmp_path / "adapter"))


def test_an_adapter_without_its_base_says_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({**SETTINGS, "base_model_name_or_path": "no/such-base"}))

    with pytest.raises(NotFoundError, match="no/such-base"):
        Scorer(str(tmp_path))
