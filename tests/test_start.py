"""A run imports nothing that it does not use, and a body's tensors are those that transformers would load."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, MODEL_MAPPING
from transformers.conversion_mapping import get_checkpoint_conversion_mapping
from transformers.utils import import_utils

from batchscore import Scorer
from batchscore.models import lean, load, materialize
from batchscore.models.open import open_model
from batchscore.models.text.tokenizer import load_tokenizer

Tiny = Callable[[str], str]

UNUSED = [
    "accelerate",
    "av",
    "batchscore.jobs.planning",
    "batchscore.requests",
    "datasets",
    "fsspec",
    "pandas",
    "peft",
    "ray",
    "scipy",
    "sentence_transformers",
    "sklearn",
]
UNUSED += ["sympy", "torch._dynamo", "torch._inductor", "torch.distributed.tensor", "torch.distributed.checkpoint"]
UNUSED += ["torchvision", "transformers.trainer", "transformers.pipelines"]


def test_a_run_imports_nothing_that_it_does_not_use(tiny: Tiny, tmp_path: Path) -> None:
    """And what it has left out can be imported afterwards."""
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(json.dumps({"query": "a cat", "document": "the dog"}) + "\n", "utf-8")
    arguments = ["score", "--model", tiny("bert_ce"), "--in", str(pairs), "--out", str(tmp_path / "out.parquet")]
    code = (
        "import sys\nfrom batchscore.cli.main import app\n"
        f"app({[*arguments, '--dtype', 'float32', '--quiet']!r}, standalone_mode=False)\n"
        f"print([name for name in {UNUSED!r} if name in sys.modules])\n"
        "import torch, scipy\n"
        "print(torch.compile(lambda x: x + 1, backend='eager')(torch.ones(1)).item(), torch.distributed.is_available())"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines() == ["[]", f"2.0 {torch.distributed.is_available()}"]


def test_names_of_transformers_are_searched_for_in_last_lines_and_are_the_same() -> None:
    quick = SimpleNamespace(
        fetch__all__=import_utils.fetch__all__,
        create_import_structure_from_path=import_utils.create_import_structure_from_path,
    )
    lean._quicken(quick)
    files = sorted((Path(transformers.__file__).parent / "models").glob("*/[cmt]o*.py"))
    contents = [path.read_text("utf-8") for path in files[::5]]

    assert len(contents) > 100
    assert list(map(quick.fetch__all__, contents)) == list(map(import_utils.fetch__all__, contents))


def test_what_the_stand_in_for_the_compiler_lacks_comes_from_the_compiler() -> None:
    assert lean._compiler(torch).reset is torch._dynamo.reset


# ---- tensors


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers(remove_duplicate=False))}


def loaded(folder: str, dtype: str) -> load.LoadedModel:
    checkpoint, spec = open_model(folder, None, {})
    tokenizer = load_tokenizer(
        checkpoint, trust_remote_code=False, restore_specials=False, special_tokens=spec.special_tokens
    )
    return load.load_model(checkpoint, spec, tokenizer, dtype=dtype, device="cpu")


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each body that was loaded was made by `materialize`."""
    found: list[bool] = []

    def spy(*args: Any, **options: Any) -> Any:
        model = materialize.materialize(*args, **options)
        found.append(model is not None)
        return model

    monkeypatch.setattr(load, "materialize", spy)
    return found


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "name", ["bert_ce", "bert_legacy", "roberta_ce", "modernbert", "deberta", "qwen3_lm", "t5_whole"]
)
def test_tensors_in_their_places_are_those_that_transformers_loads(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, made: list[bool], name: str, dtype: str
) -> None:
    """Parameters, buffers that are saved and buffers that are computed, bit for bit."""
    ours = loaded(tiny(name), dtype)
    monkeypatch.setattr(load, "materialize", lambda *args, **options: None)
    theirs = loaded(tiny(name), dtype)

    assert made == [True]
    assert ours.report == theirs.report
    found, expected = tensors_of(ours.bodies[0]), tensors_of(theirs.bodies[0])
    assert {name: tensor.dtype for name, tensor in found.items()} == {n: tensor.dtype for n, tensor in expected.items()}
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert not any(module.training for module in ours.bodies[0].modules() if not isinstance(module, nn.Identity))


@pytest.mark.parametrize(
    ("name", "dtype"), [("qwen3_moe", "float32"), ("gemma_model", "bfloat16"), ("static", "float32")]
)
def test_what_has_to_be_converted_or_computed_is_left_to_transformers(
    tiny: Tiny, made: list[bool], name: str, dtype: str
) -> None:
    """Experts are put together; Gemma has a buffer in the model's dtype; a table of vectors is no class of its."""
    loaded(tiny(name), dtype)

    assert made == [False]


@pytest.mark.parametrize("kind", sorted(materialize.UNCONVERTED))
def test_transformers_converts_nothing_of_the_types_that_are_not_looked_up(kind: str) -> None:
    config = CONFIG_MAPPING[kind]
    mappings: list[Any] = [MODEL_MAPPING, MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING]
    classes = [mapping[config].__name__ for mapping in mappings if config in mapping]

    assert [name for name in [kind, *classes] if get_checkpoint_conversion_mapping(name) is not None] == []


def test_modules_that_another_thread_builds_meanwhile_have_memory() -> None:
    built: list[nn.Module] = []
    with materialize._parameters_on_meta():
        thread = Thread(target=lambda: built.append(nn.Linear(2, 2)))
        thread.start()
        thread.join()
        built.append(nn.Linear(2, 2))

    assert [module.weight.is_meta for module in [*built, nn.Linear(2, 2)]] == [False, True, False]


def test_a_model_is_built_in_one_thread_and_the_callers_threads_come_back(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a busy machine the threads of an operation wait for each other, a hundred times a load."""
    seen: list[int] = []
    monkeypatch.setattr(load, "materialize", lambda *args, **options: seen.append(torch.get_num_threads()))
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        Scorer(tiny("bert_ce"), dtype="float32", device="cpu").close()
        seen.append(torch.get_num_threads())
    finally:
        torch.set_num_threads(before)

    assert seen == [1, 2]
