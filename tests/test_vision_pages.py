"""Models that read pages, and any class of transformers that reads images, against that class's own forward."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn.functional import normalize
from transformers.utils.import_utils import is_torchvision_available

import pages_checkpoints
from batchscore import Scorer
from batchscore.errors import CheckpointError, MissingDependencyError
from batchscore.media.find import MediaFinder
from batchscore.media.policy import MediaPolicy
from batchscore.types import Cell, Content, Items
from pages_checkpoints import ROWS, WIDTH

Load = Callable[..., Scorer]
RETRIEVERS = [name for name, row in ROWS.items() if row.projection]
READ = sorted(ROWS.keys() - ({"mistral3"} if not is_torchvision_available() else set()))  # its processor needs it
FINDER = MediaFinder(MediaPolicy())


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Any, Any]]:
    @cache
    def write(name: str) -> tuple[Path, Any, Any]:
        folder = tmp_path_factory.mktemp(name)
        return folder, *pages_checkpoints.write(name, folder)

    return write


@pytest.fixture(scope="module")
def load(folders: Callable[[str], Any]) -> Iterator[Load]:
    """A float32 Scorer of a row."""
    opened: dict[str, Scorer] = {}

    def make(name: str, **options: Any) -> Scorer:
        key = f"{name} {options}"
        if key not in opened:
            opened[key] = Scorer(str(folders(name)[0]), dtype="float32", cache_mb=0, **options)
        return opened[key]

    yield make
    for scorer in opened.values():
        scorer.close()


def picture(width: int, height: int, seed: int) -> bytes:
    noise = np.random.default_rng(seed).integers(0, 255, (6, 6, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC).save(file, "PNG")
    return file.getvalue()


PAGE, WIDE, SMALL = (FINDER.image(picture(*size, seed)) for seed, size in enumerate([(50, 70), (120, 40), (20, 20)]))
CELLS: list[Cell] = [
    "the old house",
    Content((PAGE,)),
    "a",
    Content((WIDE,)),
    Content((SMALL,)),
    "where is the bridge?",
]
BOTH: list[Cell] = [Content((PAGE, "a page of text")), Content((WIDE, "a wide one"))]


def cells_of(name: str) -> list[Cell]:
    """Texts and images; both at once where the model takes them."""
    return CELLS if name == "e5v" else CELLS + BOTH


def encoded(scorer: Scorer, cells: Sequence[Cell]) -> list[NDArray[np.float32]]:
    work = scorer.batcher.lay_out(cells, "document")
    assert work.faults == {}
    made = scorer.batcher.encode(work, "document")
    assert made.faults == {}
    return np.split(made.float32, made.offsets[1:-1])


def own_states(scorer: Scorer, model: Any, cells: Sequence[Cell]) -> list[torch.Tensor]:
    """The last hidden states of each sequence by itself, from transformers' class."""
    reader: Any = scorer.batcher._runner.reader.media  # type: ignore[attr-defined]
    items: Items = scorer.batcher.lay_out(cells, "document").items
    takes = signature(model.forward).parameters
    states = []
    for index in range(len(cells)):
        item = items.take(np.array([index]))
        ids, kinds = (torch.from_numpy(column.astype(np.int64))[None] for column in (item.ids, item.filled("media")))
        inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        for (visual,) in [visuals for visuals in item.media if visuals]:
            inputs |= {key: torch.from_numpy(np.array(array)) for key, array in reader.pixels(visual).items()}
        if "grid" in inputs:  # Qwen's
            inputs |= {"image_grid_thw": inputs.pop("grid"), "mm_token_type_ids": kinds}
        elif "token_type_ids" in takes:
            inputs["token_type_ids"] = kinds if model.config.model_type == "gemma3" else torch.zeros_like(ids)
        with torch.no_grad():
            states.append(model(**inputs).last_hidden_state[0])
    return states


def close(found: Sequence[Any], expected: Sequence[Any], tolerance: float = 3e-5) -> None:
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance)


@pytest.mark.parametrize("padded", [False, True], ids=["flat", "padded"])
@pytest.mark.parametrize("name", RETRIEVERS)
def test_the_vectors_of_a_page_are_those_of_transformers(
    folders: Callable[[str], Any], load: Load, name: str, padded: bool
) -> None:
    _, model, projection = folders(name)
    cells = cells_of(name)
    with torch.no_grad():
        expected = [normalize(projection(state), dim=1) for state in own_states(load(name), model, cells)]
    found = encoded(load(name, padded=padded), cells)
    assert found[0].shape[1] == WIDTH
    close(found, expected)


@pytest.mark.parametrize("name", [name for name in READ if name not in RETRIEVERS])
def test_any_class_of_transformers_gives_its_own_states(folders: Callable[[str], Any], load: Load, name: str) -> None:
    _, model, _ = folders(name)
    scorer = load(name, score_type="late-interaction")  # which shows all of them
    expected = [normalize(state, dim=1) for state in own_states(scorer, model, CELLS)]
    close(encoded(scorer, CELLS), expected)
    close(encoded(load(name, score_type="late-interaction", padded=True), CELLS), expected)


@pytest.mark.parametrize("name", ["e5v", "llava", "gemma3", "idefics3", "internvl", "paligemma2"])
def test_an_embedding_is_the_state_of_the_last_token(folders: Callable[[str], Any], load: Load, name: str) -> None:
    _, model, _ = folders(name)
    scorer = load(name)
    close(encoded(scorer, CELLS), [state[-1:] for state in own_states(scorer, model, CELLS)], 2e-4)


@pytest.mark.parametrize("name", READ)
def test_neighbours_order_and_pack_size_do_not_show_in_an_encoding(load: Load, name: str) -> None:
    options = {} if name in RETRIEVERS else {"score_type": "late-interaction"}
    cells = cells_of(name) if name == "e5v" else [*cells_of(name), Content((PAGE, "and", WIDE))]
    alone = [encoded(load(name, **options), [cell])[0] for cell in cells]
    close(encoded(load(name, **options), cells), alone)
    close(encoded(load(name, batch_tokens=40, **options), cells[::-1])[::-1], alone)


def tokens_of(scorer: Scorer, cell: Cell) -> str:
    items = scorer.batcher.lay_out([cell], "document").items
    return "".join(scorer.batcher._runner.reader.tokenizer.describe(items.ids.tolist()))  # type: ignore[attr-defined]


def test_squares_have_their_row_and_column_and_the_whole_image_comes_last(load: Load) -> None:
    square = "<image>" * 4
    around = "<fake_token_around_image>"
    text = tokens_of(load("colmodernvbert"), Content((WIDE,)))
    named = "".join(f"{around}<row_1_col_{column}>{square}" for column in (1, 2))
    assert f"{named}ĊĊ{around}<global-img>{square}{around}" in text
    assert tokens_of(load("colmodernvbert", compat="vllm"), Content((WIDE,))) == square + "<bos><eos>"


def test_the_squares_of_any_size_are_those_that_the_processor_cuts(load: Load) -> None:
    reader: Any = load("colmodernvbert").batcher._runner.reader.media  # type: ignore[attr-defined]
    for width, height in [(1, 1), (16, 16), (17, 16), (3, 200), (200, 3), (31, 64), (64, 31), (33, 32), (97, 101)]:
        media = FINDER.image(picture(width, height, 0))
        planned, cut = (
            reader.visual(media),
            reader.processor(Image.new("RGB", (width, height)), return_row_col_info=True),
        )
        assert planned.grid == (cut["rows"][0][0], cut["cols"][0][0])
        assert len(reader.pixels(planned)["pixel_values"][0]) == planned.tokens // 4


def test_colpali_reads_both_ways_and_in_vllm_one_way(load: Load) -> None:
    cells: list[Cell] = [Content((PAGE,)), "the old house"]
    first = [vectors[0] for vectors in encoded(load("colpali"), cells)]
    other = encoded(load("colpali"), ["the old river"])[0][0]
    assert np.abs(first[1] - other).max() > 1e-3  # its first token sees the last word
    vllm = load("colpali", compat="vllm")
    one, two = (encoded(vllm, [text])[0][0] for text in ("the old house", "the old river"))
    np.testing.assert_allclose(one, two, rtol=0, atol=1e-6)


def test_e5v_reads_a_text_or_an_image(load: Load) -> None:
    work = load("e5v").batcher.lay_out(["text", *BOTH], "document")
    assert list(work.faults) == [1, 2]
    assert "not both at once" in work.faults[1].message


@pytest.mark.skipif(is_torchvision_available(), reason="torchvision is installed")
def test_a_processor_that_needs_torchvision_says_so(load: Load) -> None:
    with pytest.raises(MissingDependencyError, match="PixtralProcessor requires the Torchvision library"):
        load("mistral3")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"architectures": ["FooForConditionalGeneration"], "model_type": "foo"}, "has no model of type 'foo'"),
        # texts from images: no token of its text stands for one
        ({"architectures": ["BlipForConditionalGeneration"], "model_type": "blip"}, "which token stands for an image"),
        ({"text_config": {"model_type": "llama", "hidden_size": "wide"}}, "transformers cannot read config.json"),
    ],
)
def test_a_model_whose_images_cannot_be_read_is_refused(load: Load, config: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        load("llava", hf_overrides=config)


@pytest.mark.skipif(is_torchvision_available(), reason="torchvision is installed")
def test_the_backend_of_torchvision_is_refused_without_it(load: Load) -> None:
    with pytest.raises(MissingDependencyError, match="--image-backend torchvision needs torchvision"):
        load("colpali", image_backend="torchvision")


def test_a_class_that_reads_images_otherwise_is_refused_when_it_is_loaded(
    folders: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What its forward does beside putting features in place is found out, and not left out."""
    _, model, _ = folders("llava")
    forward = type(model).forward

    def other(self: Any, *arguments: Any, **inputs: Any) -> Any:
        output = forward(self, *arguments, **inputs)
        if inputs.get("pixel_values") is not None:
            output.last_hidden_state = output.last_hidden_state * 1.5
        return output

    other.__signature__ = signature(forward)  # type: ignore[attr-defined]
    monkeypatch.setattr(type(model), "forward", other)
    with pytest.raises(CheckpointError, match="does more with images than is known here: its states differ"):
        Scorer(str(folders("llava")[0]), dtype="float32")
