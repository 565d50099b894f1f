"""Images and video in Qwen's families, against transformers' own forward of one sequence at a time."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import cache
from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn
from torch.nn.functional import cosine_similarity, normalize, relu
from transformers import AutoImageProcessor

import qwen_checkpoints
from batchscore import Scorer
from batchscore.errors import BatchscoreError, InputError
from batchscore.media.find import MediaFinder
from batchscore.media.policy import MediaPolicy
from batchscore.models.checkpoint import open_checkpoint
from batchscore.models.weights import identity
from batchscore.types import Cell, Cells, Content, Items, Media, Pairs
from qwen_checkpoints import ROWS

Load = Callable[..., Scorer]
LATE = [name for name, row in ROWS.items() if row.architecture.startswith(("Col", "Ops", "Qwen3VLNemotron"))]
ANSWERS = {"classifier_from_token": ["no", "yes"], "is_original_qwen3_reranker": True}
OPTIONS: dict[str, dict[str, Any]] = {"qwen3_reranker": {"hf_overrides": ANSWERS}}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Any, list[nn.Linear]]]:
    @cache
    def write(name: str) -> tuple[Path, Any, list[nn.Linear]]:
        folder = tmp_path_factory.mktemp(name)
        return folder, *qwen_checkpoints.write(name, folder)

    return write


@pytest.fixture(scope="module")
def load(folders: Callable[[str], Any]) -> Iterator[Load]:
    """A float32 Scorer of a row."""
    opened: dict[str, Scorer] = {}

    def make(name: str, **options: Any) -> Scorer:
        key = f"{name} {options}"
        if key not in opened:
            settings = {"dtype": "float32", "cache_mb": 0, **OPTIONS.get(name, {}), **options}
            opened[key] = Scorer(str(folders(name)[0]), **settings)
        return opened[key]

    yield make
    for scorer in opened.values():
        scorer.close()


def picture(width: int, height: int, seed: int) -> bytes:
    noise = np.random.default_rng(seed).integers(0, 255, (6, 6, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC).save(file, "PNG")
    return file.getvalue()


FINDER = MediaFinder(MediaPolicy())
CAT, DOG, WIDE = (FINDER.image(picture(*size, seed)) for seed, size in enumerate([(64, 64), (96, 64), (300, 40)]))
CLIP = FINDER.video([picture(64, 64, seed) for seed in range(3)], fps=1.0)
CELLS: list[Cell] = [
    "the old cat sleeps",
    Content((CAT,)),
    "a",
    Content((DOG, "a dog in the winter garden")),
    Content((WIDE, DOG)),
    Content(("first this", CAT, "then that")),
    "where is the bridge over the river, and what is on it?",
]


def own_states(folder: Path, model: Any, work: Items, cells: Sequence[Content]) -> list[torch.Tensor]:
    """The last hidden states of each sequence by itself, through transformers' processor and model."""
    processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    states = []
    for index, cell in enumerate(cells):
        item = work.take(np.array([index]))
        ids = torch.from_numpy(item.ids.astype(np.int64))[None]
        inputs: dict[str, Any] = {}
        if cell.media:
            frames = [media.source.frames([0], on_white=False)[0] for media in cell.media]
            made = processor(images=frames, return_tensors="pt")
            kinds = torch.from_numpy(item.filled("media").astype(np.int64))[None]
            inputs = {**made, "mm_token_type_ids": kinds}
            assert int(kinds.sum()) == int(made["image_grid_thw"].prod(1).sum()) // 4
        with torch.no_grad():
            output = model(input_ids=ids, attention_mask=torch.ones_like(ids), **inputs)
        states.append(output.last_hidden_state[0])
        model.rope_deltas = None
    return states


def as_content(cell: Cell) -> Content:
    return cell if isinstance(cell, Content) else Content((cell,))


def encoded(scorer: Scorer, cells: Sequence[Cell]) -> list[NDArray[np.float32]]:
    work = scorer.batcher.lay_out(cells, "document")
    assert work.faults == {}
    made = scorer.batcher.encode(work, "document")
    assert made.faults == {}
    return np.split(made.float32, made.offsets[1:-1])


def close(found: Sequence[Any], expected: Sequence[Any], tolerance: float = 2e-5) -> None:
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance)


# ---- the same as transformers


@pytest.mark.parametrize("padded", [False, True], ids=["flat", "padded"])
@pytest.mark.parametrize("name", [name for name in LATE if name != "nemotron"])
def test_the_vectors_of_a_page_are_those_of_transformers(
    folders: Callable[[str], Any], load: Load, name: str, padded: bool
) -> None:
    folder, model, head = folders(name)
    scorer = load(name, padded=padded)
    work = scorer.batcher.lay_out(CELLS, "document")
    states = own_states(folder, model, work.items, [as_content(cell) for cell in CELLS])
    with torch.no_grad():
        expected = [normalize(head[0](state)[:, :8], dim=1) for state in states]
    close(encoded(scorer, CELLS), expected)


def test_nemotron_reads_both_ways_and_before_the_last_norm(folders: Callable[[str], Any], load: Load) -> None:
    folder, model, _ = folders("nemotron")
    scorer = load("nemotron")
    work = scorer.batcher.lay_out(CELLS, "document")
    norm, model.language_model.norm = model.language_model.norm, nn.Identity()
    model.language_model.config.is_causal = False
    states = own_states(folder, model, work.items, [as_content(cell) for cell in CELLS])
    model.language_model.norm, model.language_model.config.is_causal = norm, True
    close(encoded(scorer, CELLS), [normalize(state, dim=1) for state in states])


@pytest.mark.parametrize("padded", [False, True], ids=["flat", "padded"])
@pytest.mark.parametrize("name", ["qwen3_embedding", "qwen3_moe"])
def test_an_embedding_is_the_last_state_of_transformers(
    folders: Callable[[str], Any], load: Load, name: str, padded: bool
) -> None:
    folder, model, _ = folders(name)
    scorer = load(name, padded=padded)
    work = scorer.batcher.lay_out(CELLS, "document")
    states = own_states(folder, model, work.items, [as_content(cell) for cell in CELLS])
    close(encoded(scorer, CELLS), [state[-1:] for state in states], 1e-4)


def scored(scorer: Scorer, queries: Sequence[Cell], documents: Sequence[Cell]) -> tuple[Items, NDArray[np.float32]]:
    work = scorer.batcher.tokenize(Pairs(Cells.of(queries), Cells.of(documents)))
    outcome = scorer.batcher.score(work)
    assert outcome.faults == {}
    return work.items.take(work.right), outcome.raw[:, 0]


PAIRS: list[tuple[Cell, Cell]] = [
    ("a cat", Content((CAT,))),
    (Content((DOG,)), "a dog"),
    (Content((DOG, "is it this one?")), Content((WIDE, "a line"))),
    ("which is it", Content((CAT, DOG))),
    ("a cat", "a cat"),
]


def joined(name: str, pair: tuple[Cell, Cell]) -> Content:
    """The media of both sides in the order of the prompt."""
    query, document = map(as_content, pair)
    return Content((document if name == "jina" else query).parts + (query if name == "jina" else document).parts)


@pytest.mark.parametrize("padded", [False, True], ids=["flat", "padded"])
@pytest.mark.parametrize("name", ["qwen3_reranker", "jina"])
def test_a_rerankers_logit_is_made_of_transformers_last_state(
    folders: Callable[[str], Any], load: Load, name: str, padded: bool
) -> None:
    folder, model, head = folders(name)
    queries, documents = zip(*PAIRS, strict=True)
    scorer = load(name, padded=padded)
    items, raw = scored(scorer, queries, documents)
    last = torch.stack(
        [state[-1] for state in own_states(folder, model, items, [joined(name, pair) for pair in PAIRS])]
    )
    with torch.no_grad():
        if name == "jina":
            expected = head[1](relu(head[0](last)))[:, 0] - 2.65
            assert (items.ids[items.offsets[1:] - 1] == 100).all()
        else:
            table = model.get_input_embeddings().weight
            no, yes = (scorer.batcher._runner.reader.tokenizer.token_id(word) for word in ("no", "yes"))  # type: ignore[attr-defined]
            expected = last @ (table[yes] - table[no])
    close(raw, expected, 1e-4)


# ---- what must not matter


@pytest.mark.parametrize("name", ["colqwen2_5", "colqwen3_5", "qwen3_embedding"])
def test_neighbours_order_and_pack_size_do_not_show_in_an_encoding(load: Load, name: str) -> None:
    alone = [encoded(load(name), [cell])[0] for cell in CELLS]
    close(encoded(load(name), CELLS), alone)
    close(encoded(load(name), CELLS[::-1])[::-1], alone)
    close(encoded(load(name, batch_tokens=40), CELLS), alone)


def test_one_image_is_decoded_and_seen_once_for_all_its_queries(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = load("jina", batch_tokens=64)
    looks, decoded = [], []
    body: Any = scorer.batcher._runner.model.bodies[0]  # type: ignore[attr-defined]
    see, reader = body.see, type(scorer.batcher._runner.reader.media)  # type: ignore[attr-defined]
    pixels = reader.pixels
    monkeypatch.setattr(body, "see", lambda one: looks.append(1) or see(one))
    monkeypatch.setattr(reader, "pixels", lambda self, visual: decoded.append(1) or pixels(self, visual))
    page = FINDER.image(picture(80, 80, 99))
    _, first = scored(scorer, [f"query {number}" for number in range(20)], [Content((page,))] * 20)
    again = FINDER.image(picture(80, 80, 99))  # equal content is the same image, wherever it is
    _, second = scored(scorer, ["query 3"], [Content((again,))])
    assert (len(looks), len(decoded)) == (1, 1)
    np.testing.assert_allclose(second, first[3:4], rtol=0, atol=1e-6)


# ---- placeholders and order


def tokens_of(scorer: Scorer, cell: Cell) -> str:
    work = scorer.batcher.lay_out([cell], "document")
    return "".join(scorer.batcher._runner.reader.tokenizer.describe(work.items.ids.tolist()))  # type: ignore[attr-defined]


def test_parts_keep_the_authors_order_and_columns_have_the_models(load: Load) -> None:
    scorer = load("qwen3_embedding")
    pad = "<|vision_start|>" + "<|image_pad|>" * 4 + "<|vision_end|>"
    assert f"one{pad}two" in tokens_of(scorer, Content(("one", CAT, "two")))
    assert f"{pad}oneĊtwo" in tokens_of(scorer, Content(("one", CAT, "two"), ordered=False))
    assert "NULL" in tokens_of(scorer, "")
    vllm = load("qwen3_embedding", compat="vllm")
    assert tokens_of(vllm, Content(("one", CAT, "two"))) == f"{pad}oneĊtwo"


def test_a_video_has_the_time_before_each_pair_of_frames(load: Load) -> None:
    pads = "<|vision_start|>" + "<|video_pad|>" * 4 + "<|vision_end|>"
    text = tokens_of(load("qwen3_embedding"), Content((CLIP,)))
    assert f"<0.5Ġseconds>{pads}<2.0Ġseconds>{pads}" in text
    assert np.isfinite(encoded(load("qwen3_embedding"), [Content((CLIP,))])[0]).all()


@pytest.mark.parametrize("cell", ["see <|image_pad|> here", Content((CAT, "and <|image_pad|>"))])
def test_a_text_that_spells_a_placeholder_out_is_a_fault_of_its_row(load: Load, cell: Cell) -> None:
    work = load("qwen3_embedding").batcher.lay_out(["fine", cell, Content((DOG,))], "document")
    assert list(work.faults) == [1]
    assert "a token that stands for an image" in work.faults[1].message


# ---- limits


def test_truncation_cuts_texts_and_never_an_image(load: Load) -> None:
    long = "word " * 300
    whole = load("qwen3_embedding").batcher.lay_out([Content((DOG, long))], "document")
    cut = load("qwen3_embedding", max_length=160).batcher.lay_out([Content((DOG, long))], "document")
    assert (len(cut.items.ids), cut.cut.tolist(), cut.faults) == (160, [2], {})
    for items in (whole.items, cut.items):
        assert int((items.filled("media") == 1).sum()) == 6
    assert cut.items.ids[-8:].tolist() == whole.items.ids[-8:].tolist()


def test_an_image_that_passes_max_length_by_itself_is_a_fault_that_says_what_to_do(load: Load) -> None:
    scorer = load("qwen3_reranker", max_length=300)
    work = scorer.batcher.tokenize(Pairs(Cells.of(["a"] * 2), Cells.of([Content((WIDE,) * 20), Content((CAT,))])))
    assert list(work.faults) == [0]
    fault = work.faults[0]
    assert "its media are" in fault.message
    assert "--max-length" in str(fault.hint)
    assert "--max-pixels" in str(fault.hint)


def test_fewer_pixels_make_fewer_tokens(load: Load) -> None:
    counts = [
        int(load("colqwen2", **options).batcher.lay_out([Content((DOG,))], "document").items.filled("media").sum())
        for options in ({}, {"max_pixels": 28 * 28 * 4}, {"mm_processor_kwargs": {"max_pixels": 28 * 28}})
    ]
    assert counts == [6, 2, 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mm_processor_kwargs": {"max_pixel": 9}}, "--mm-processor-kwargs: .* has no 'max_pixel'\nhint: did you mean"),
        ({"mm_processor_kwargs": "[1]"}, "must be a JSON object"),
        ({"limit_mm_per_prompt": {"audio": 1}}, "must be like"),
        ({"max_pixels": 0}, "must be a number of pixels"),
    ],
)
def test_a_setting_without_a_meaning_is_refused(load: Load, options: dict[str, Any], message: str) -> None:
    with pytest.raises(BatchscoreError, match=message):
        load("colqwen2", **options)


def test_more_images_than_the_limit_are_a_fault(load: Load) -> None:
    work = load("qwen3_embedding", limit_mm_per_prompt={"image": 1}).batcher.lay_out(CELLS, "document")
    assert list(work.faults) == [4]
    assert "2 images, and --limit-mm-per-prompt allows 1" in work.faults[4].message


# ---- embeddings in place of images


def saved(tensor: torch.Tensor) -> str:
    file = io.BytesIO()
    torch.save(tensor, file)
    return base64.b64encode(file.getvalue()).decode()


@pytest.mark.parametrize("name", ["qwen3_embedding", "colqwen2"])
def test_what_the_tower_made_of_an_image_may_stand_for_it(folders: Callable[[str], Any], load: Load, name: str) -> None:
    folder, model, _ = folders(name)
    frames = DOG.source.frames([0], on_white=False)
    made = AutoImageProcessor.from_pretrained(folder, backend="pil")(images=frames, return_tensors="pt")
    with torch.no_grad():
        output = model.get_image_features(made["pixel_values"], made["image_grid_thw"])
    levels = getattr(output, "deepstack_features", None) or []
    features = torch.cat([torch.cat(list(level)) for level in (output.pooler_output, *levels)], dim=1)
    grid = made["image_grid_thw"][0]
    given = FINDER.embeddings({"image_embeds": saved(features), "image_grid_thw": saved(grid)})
    close(encoded(load(name), [Content((given, "a dog"))]), encoded(load(name), [Content((DOG, "a dog"))]))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("!", "its image_embeds cannot be read"),
        ([[1.0] * 5], r"are \[1, 5\], and this model takes \[tokens, 32\]"),
        ([[1.0] * 32], "its image_grid_thw is missing"),
        ({"image_embeds": [[1.0] * 32], "image_grid_thw": [[1, 4, 4]]}, r"image_grid_thw is \[1, 4, 4\]"),
    ],
)
def test_embeddings_of_another_model_are_a_fault(load: Load, given: Any, message: str) -> None:
    work = load("colqwen2").batcher.lay_out([Content((FINDER.embeddings(given),)), "text"], "document")
    assert list(work.faults) == [0]
    assert re.search(message, work.faults[0].message)


# ---- bad images


class Gone:
    """A file that was removed after its header was read."""

    def frames(self, index: Sequence[int], *, on_white: bool) -> list[Any]:
        raise InputError("page.png is gone", hint="put it back")


@pytest.mark.parametrize("name", ["colqwen2", "jina"])
def test_an_image_that_cannot_be_decoded_is_a_fault_of_its_rows_alone(load: Load, name: str) -> None:
    gone: Media = replace(FINDER.image(picture(60, 60, 7)), source=Gone())
    documents: list[Cell] = [Content((CAT,)), Content((gone,)), Content((DOG, "x")), Content((DOG, gone)), "text"]
    good = [0, 2, 4]
    scorer = load(name)
    work = scorer.batcher.tokenize(Pairs(Cells.of(["q"] * 5), Cells.of(documents)))
    outcome = scorer.batcher.score(work)
    assert sorted(outcome.faults) == [1, 3]
    assert {fault.message for fault in outcome.faults.values()} == {"page.png is gone"}
    _, alone = scored(scorer, ["q"] * 3, [documents[row] for row in good])
    np.testing.assert_allclose(outcome.raw[good, 0], alone, rtol=0, atol=1e-5)


def test_a_job_ends_where_the_memory_for_pixels_holds_a_single_batch(load: Load) -> None:
    setup = load("colqwen2", batch_tokens=40).setup
    with closing(Scorer(replace(setup, budget=replace(setup.budget, max_media_bytes=1)))) as scorer:
        pages: list[Cell] = [Content((FINDER.image(picture(60 + number, 60, number)),)) for number in range(12)]
        close(encoded(scorer, pages), encoded(load("colqwen2"), pages))


def test_another_size_of_images_makes_another_job(folders: Callable[[str], Any], tmp_path: Path) -> None:
    folder = Path(copytree(folders("colqwen2")[0], tmp_path / "changed"))
    before = identity(open_checkpoint(str(folder)))
    file = folder / "preprocessor_config.json"
    file.write_text(file.read_text().replace('"longest_edge"', '"longest_edge": 9, "other"'))
    after = identity(open_checkpoint(str(folder)))
    assert {name for name in before if before[name] != after[name]} == {"preprocessor_config.json"}


def test_similarity_of_an_image_with_itself_is_one(load: Load) -> None:
    vectors = [torch.from_numpy(vector[0]) for vector in encoded(load("qwen3_embedding"), [Content((CAT,))] * 2)]
    assert float(cosine_similarity(*vectors, dim=0)) == pytest.approx(1.0, abs=1e-6)
