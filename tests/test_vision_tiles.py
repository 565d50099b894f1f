"""Llama Nemotron VL and Phi-3-Vision, against transformers' parts put together one image at a time."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn.functional import gelu, interpolate, layer_norm, linear
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaModel,
    Phi3Config,
    Phi3Model,
    SiglipVisionConfig,
    SiglipVisionModel,
)

import tile_checkpoints
from batchscore import Scorer
from batchscore.errors import CheckpointError, UsageError
from batchscore.media.find import MediaFinder
from batchscore.media.policy import MediaPolicy
from batchscore.types import Cell, Cells, Content, Pairs
from checkpoints import write_json

Folders = Callable[[str], Path]
Load = Callable[..., Scorer]
Numbers = NDArray[np.float32]
both_layouts = pytest.mark.parametrize("padded", [False, True], ids=["flat", "padded"])

WRITERS: Mapping[str, Callable[[Path], Path]] = {
    "nemotron": tile_checkpoints.nemotron,
    "reranker": lambda folder: tile_checkpoints.nemotron(folder, pairs=True),
    "phi3v": tile_checkpoints.phi3v,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    return cache(lambda name: WRITERS[name](tmp_path_factory.mktemp(name)))


@pytest.fixture(scope="module")
def load(folders: Folders) -> Iterator[Load]:
    """A float32 Scorer of a row."""
    opened: dict[str, Scorer] = {}

    def make(name: str, **options: Any) -> Scorer:
        key = f"{name} {options}"
        if key not in opened:
            opened[key] = Scorer(str(folders(name)), **{"dtype": "float32", "cache_mb": 0, **options})
        return opened[key]

    yield make
    for scorer in opened.values():
        scorer.close()


FINDER = MediaFinder(MediaPolicy())


def picture(width: int, height: int, seed: int) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 255, (5, 7, 3), np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def cell(image: Image.Image, *texts: str) -> Content:
    file = io.BytesIO()
    image.save(file, "PNG")
    return Content((FINDER.image(file.getvalue()), *texts))


WIDE, TALL, SMALL = picture(90, 40, 1), picture(20, 47, 2), picture(9, 9, 3)
IMAGES = [WIDE, TALL, SMALL]


def encoded(scorer: Scorer, cells: Sequence[Cell], side: Any = "document") -> Numbers:
    made = scorer.batcher.encode(scorer.batcher.lay_out(cells, side), side)
    assert made.faults == {}
    return made.float32


def scored(scorer: Scorer, queries: Sequence[Cell], documents: Sequence[Cell]) -> Numbers:
    outcome = scorer.batcher.score(scorer.batcher.tokenize(Pairs(Cells.of(queries), Cells.of(documents))))
    assert outcome.faults == {}
    return outcome.raw[:, 0]


def close(found: Any, expected: Any, tolerance: float = 2e-5) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)


# ---- the models, in transformers' parts


def part(model: Any, tensors: Mapping[str, Tensor], prefix: str) -> Any:
    """The model with those of the tensors that it has, whose names begin so in the file."""
    under = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    names = {name: name if name in under else f"vision_model.{name}" for name in model.state_dict()}
    model.load_state_dict({name: under[stored] for name, stored in names.items()})
    return model.eval()


def squares(states: Tensor) -> Tensor:
    """[rows / 2, columns / 2, 4 * dim] of the [patches, dim] of a square."""
    side = math.isqrt(len(states))
    grid = states.view(side, side, -1)
    return torch.stack(
        [
            torch.stack([grid[row : row + 2, column : column + 2].reshape(-1) for column in range(0, side, 2)])
            for row in range(0, side, 2)
        ]
    )


def normalised(image: Image.Image, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    values = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float() / 255
    return (values - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


class Nemotron:
    """Mean states of a prompt, in which `<image>` stands for an image in `grid` tiles, and the whole of it."""

    def __init__(self, folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        self.tensors = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
        config = json.loads((folder / "config.json").read_text())
        llama = LlamaConfig.from_dict({**config["llm_config"], "model_type": "llama", "is_causal": False})
        self.llama = part(LlamaModel(llama), self.tensors, "language_model.")
        tower = SiglipVisionModel(SiglipVisionConfig.from_dict(config["vision_config"]))
        self.tower = part(tower, self.tensors, "vision_model.")
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))

    def seen(self, image: Image.Image, grid: tuple[int, int]) -> Tensor:
        columns, rows = grid
        large = image.resize((16 * columns, 16 * rows), Image.Resampling.BICUBIC)
        corners = [(16 * column, 16 * row) for row in range(rows) for column in range(columns)]
        tiles = [large.crop((left, top, left + 16, top + 16)) for left, top in corners]
        tiles += [image.resize((16, 16), Image.Resampling.BICUBIC)] * (len(tiles) > 1)
        pixels = torch.stack([normalised(tile, (0.5,) * 3, (0.5,) * 3) for tile in tiles])
        states = torch.cat([squares(one).flatten(0, 1) for one in self.tower(pixels).last_hidden_state])
        w = self.tensors
        states = layer_norm(states, (64,), w["mlp1.0.weight"], w["mlp1.0.bias"])
        states = gelu(linear(states, w["mlp1.1.weight"], w["mlp1.1.bias"]))
        return linear(states, w["mlp1.3.weight"], w["mlp1.3.bias"])

    @torch.no_grad()
    def vector(self, prompt: str, *images: tuple[Image.Image, tuple[int, int]]) -> Numbers:
        seen = [self.seen(*one) for one in images]
        for one in seen:
            prompt = prompt.replace("<image>", "<img>" + "<IMG_CONTEXT>" * len(one) + "</img>", 1)
        ids = torch.tensor(self.tokenizer.encode(prompt).ids)
        embedded = self.llama.embed_tokens(ids)
        if seen:
            embedded[ids == self.tokenizer.token_to_id("<IMG_CONTEXT>")] = torch.cat(seen)
        vector: Numbers = self.llama(inputs_embeds=embedded[None]).last_hidden_state[0].mean(0).numpy()
        return vector

    def logit(self, prompt: str, *images: tuple[Image.Image, tuple[int, int]]) -> float:
        """By the reranker's head and temperature."""
        return float(self.vector(prompt, *images) @ self.tensors["score.weight"][0].numpy()) / 0.5


class Phi:
    """Last states of chunks of text with an image between each two; all views of 8 x 8 pixels."""

    def __init__(self, folder: Path, longrope: str = "short_factor") -> None:
        tensors = load_file(folder / "model.safetensors")
        self.tensors = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
        config = json.loads((folder / "config.json").read_text())
        rope = {**config["rope_scaling"], "short_factor": config["rope_scaling"][longrope], "type": "longrope"}
        phi = Phi3Config.from_dict({**config, "model_type": "phi3", "rope_scaling": rope})
        self.phi = part(Phi3Model(phi), self.tensors, "")
        sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}
        clip = CLIPVisionConfig(**sizes, image_size=8, patch_size=2)
        self.tower = part(CLIPVisionModel(clip), self.tensors, "vision_embed_tokens.img_processor.")
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))

    def seen(self, image: Image.Image, size: tuple[int, int]) -> Tensor:
        """Of an image resized to this size, then padded with white to whole views."""
        resized = image.resize(size, Image.Resampling.BILINEAR)
        if image.width < image.height:  # the rounding of the model's code, which turns upright images first
            turned = image.transpose(Image.Transpose.TRANSPOSE).resize(size[::-1], Image.Resampling.BILINEAR)
            resized = turned.transpose(Image.Transpose.TRANSPOSE)
        padded = Image.new("RGB", (-(-size[0] // 8) * 8, -(-size[1] // 8) * 8), (255, 255, 255))
        padded.paste(resized, ((padded.width - size[0]) // 2, (padded.height - size[1]) // 2))
        mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
        pixels = normalised(padded, mean, std)
        whole = interpolate(pixels[None], (8, 8), mode="bicubic")
        rows, columns = padded.height // 8, padded.width // 8
        lines = []
        for row in range(rows):
            views = torch.stack([pixels[:, 8 * row : 8 * row + 8, 8 * c : 8 * c + 8] for c in range(columns)])
            beside = torch.cat([self.view(view[None]) for view in views], 1)
            lines += [torch.cat([line, self.own("sub_GN").view(1, -1)]) for line in beside]
        alone = [torch.cat([line, self.own("sub_GN").view(1, -1)]) for line in self.view(whole)]
        states = torch.cat([*lines, self.own("glb_GN").view(1, -1), *alone])
        states = gelu(linear(states, self.own("img_projection.0.weight"), self.own("img_projection.0.bias")))
        return linear(states, self.own("img_projection.2.weight"), self.own("img_projection.2.bias"))

    def own(self, name: str) -> Tensor:
        return self.tensors[f"vision_embed_tokens.{name}"]

    def view(self, pixels: Tensor) -> Tensor:
        """[2, 2, dim]."""
        return squares(self.tower(pixels, output_hidden_states=True).hidden_states[-2][0, 1:])

    @torch.no_grad()
    def vector(self, chunks: Sequence[str], *images: tuple[Image.Image, tuple[int, int]]) -> Numbers:
        parts = [self.phi.embed_tokens(torch.tensor(self.tokenizer.encode(chunk).ids)) for chunk in chunks]
        between = [self.seen(*one) for one in images]
        mixed = [states for pair in zip(parts, [*between, parts[0][:0]], strict=True) for states in pair]
        vector: Numbers = self.phi(inputs_embeds=torch.cat(mixed)[None]).last_hidden_state[0, -1].numpy()
        return vector


GRIDS = [(3, 1), (1, 3), (1, 1)]  # of WIDE, TALL and SMALL, at most 4 tiles
SIZES = [(16, 7), (6, 16), (16, 16)]  # of the same, at most 4 views


# ---- Llama Nemotron VL


@both_layouts
def test_nemotrons_vectors_are_those_of_its_parts(folders: Folders, load: Load, padded: bool) -> None:
    model, scorer = Nemotron(folders("nemotron")), load("nemotron", padded=padded)
    cells = [cell(WIDE), "the rain in there", cell(TALL, "on top"), cell(SMALL), cell(WIDE)]
    wide, tall, small = zip(IMAGES, GRIDS, strict=True)
    expected = [
        model.vector("passage: <image> ", wide),
        model.vector("passage: the rain in there"),
        model.vector("passage: <image> on top", tall),
        model.vector("passage: <image> ", small),
        model.vector("passage: <image> ", wide),
    ]
    close(encoded(scorer, cells), expected)
    close(encoded(scorer, ["rain", cell(TALL)], "query")[0], model.vector("query: rain"))


def test_nemotron_reads_several_images_before_the_text(folders: Folders, load: Load) -> None:
    model = Nemotron(folders("nemotron"))
    both = Content(("the", *cell(WIDE).parts, *cell(TALL).parts, "rain"))
    expected = model.vector("passage: <image><image> the\nrain", (WIDE, (3, 1)), (TALL, (1, 3)))
    close(encoded(load("nemotron"), [both])[0], expected)


def test_without_prompts_nemotron_reads_bare_texts_and_images(folders: Folders, load: Load) -> None:
    model = Nemotron(folders("nemotron"))
    expected = [model.vector("rain"), model.vector("<image>", (WIDE, (3, 1)))]
    close(encoded(load("nemotron", no_prompts=True), ["rain", cell(WIDE)]), expected)
    close(encoded(load("nemotron", compat="vllm"), ["rain", cell(WIDE)]), expected)


@pytest.mark.parametrize(
    ("most", "size", "grid"),
    [
        (6, (100, 100), (2, 2)),
        (6, (300, 100), (3, 1)),
        (6, (10, 80), (1, 6)),
        (6, (1000, 10), (6, 1)),
        (6, (210, 140), (3, 2)),
        (12, (100, 100), (3, 3)),
        (1, (300, 100), (1, 1)),
    ],
)
def test_tiles_are_those_of_the_models_own_rule(
    load: Load, most: int, size: tuple[int, int], grid: tuple[int, int]
) -> None:
    """Grids by the code that is published with the model."""
    scorer = load("nemotron", mm_processor_kwargs={"max_input_tiles": most})
    (visuals,) = scorer.batcher.lay_out([cell(picture(*size, 0))], "document").items.media
    tiles = math.prod(grid) + (math.prod(grid) > 1)
    assert (visuals[0].grid, visuals[0].tokens, visuals[0].patches) == (grid, 4 * tiles, 16 * tiles)


def test_an_image_without_its_thumbnail_is_read_by_fewer_tokens(load: Load) -> None:
    bare = load("nemotron", mm_processor_kwargs={"use_thumbnail": False})
    tokens = [scorer.batcher.lay_out([cell(WIDE)], "document").items.lengths[0] for scorer in (load("nemotron"), bare)]
    assert tokens[0] - tokens[1] == 4


@both_layouts
def test_a_pair_is_scored_with_its_image_first(folders: Folders, load: Load, padded: bool) -> None:
    model, scorer = Nemotron(folders("reranker")), load("reranker", padded=padded)
    found = scored(
        scorer, ["the rain"] * 3 + [cell(TALL, "here")], ["in there", cell(WIDE), cell(SMALL, "on"), cell(WIDE, "top")]
    )
    expected = [
        model.logit("question:the rain \n \n passage:in there"),
        model.logit("<image> question:the rain \n \n passage:", (WIDE, (3, 1))),
        model.logit("<image> question:the rain \n \n passage:on", (SMALL, (1, 1))),
        model.logit("<image><image> question:here \n \n passage:top", (TALL, (1, 3)), (WIDE, (3, 1))),
    ]
    close(found, expected)


def test_a_template_of_vllm_finds_its_placeholder(folders: Folders, load: Load) -> None:
    template = "{% if '<image>' in messages[1].content %}<image> {% endif %}question:{{ messages[0].content }}"
    template += " \n \n passage:{{ messages[1].content | replace('<image>', '') }}"
    model, documents = Nemotron(folders("reranker")), [cell(WIDE, "top"), "top"]
    found = scored(load("reranker", compat="vllm", chat_template=template), ["rain"] * 2, documents)
    logits = [
        model.logit("<image> question:rain \n \n passage:top", (WIDE, (3, 1))),
        model.logit("question:rain \n \n passage:top"),
    ]
    close(found, np.array(logits) * 0.5)  # without the temperature of 0.5, which vLLM ignores


def test_a_long_text_is_cut_behind_its_image(folders: Folders, load: Load) -> None:
    document = cell(WIDE, "the rain " * 100)
    whole, cut = (load("reranker", **options).batcher for options in ({}, {"max_length": 60}))
    work, shorter = (one.tokenize(Pairs(Cells.of(["a"]), Cells.of([document]))) for one in (whole, cut))
    assert shorter.items.ids.tolist() == work.items.ids[:60].tolist()
    assert shorter.cut.tolist() == [2]
    too_long = load("reranker", max_length=40).batcher.tokenize(Pairs(Cells.of(["a"]), Cells.of([document])))
    assert too_long.faults[0].code == "too-long"


def test_the_first_placeholder_that_a_text_spells_out_is_dropped(folders: Folders, load: Load) -> None:
    texts = ["see <image> and <image>"]
    model = Nemotron(folders("reranker"))
    close(scored(load("reranker"), ["rain"], texts), [model.logit("question:rain \n \n passage:see  and <image>")])
    (found,) = encoded(load("nemotron"), texts)
    close(found, Nemotron(folders("nemotron")).vector("passage: see  and <image>"))
    work = load("nemotron").batcher.lay_out(["fine", "<IMG_CONTEXT>"], "document")
    assert {row: fault.code for row, fault in work.faults.items()} == {1: "media"}


# ---- Phi-3-Vision


@both_layouts
def test_phis_vectors_are_those_of_its_parts(folders: Folders, load: Load, padded: bool) -> None:
    model, scorer = Phi(folders("phi3v")), load("phi3v", padded=padded)
    cells = [cell(WIDE), "the rain", cell(TALL), cell(SMALL), cell(WIDE)]
    wide, tall, small = zip(IMAGES, SIZES, strict=True)
    prompt = ["", " Represent the given image."]
    expected = [
        model.vector(prompt, wide),
        model.vector(["the rain"]),
        model.vector(prompt, tall),
        model.vector(prompt, small),
        model.vector(prompt, wide),
    ]
    close(encoded(scorer, cells), expected)


def test_phi_asks_a_question_about_an_image_with_text(folders: Folders, load: Load) -> None:
    (found,) = encoded(load("phi3v"), [cell(SMALL, "why?")])
    chunks = ["", " Represent the given image with the following question: why?"]
    close(found, Phi(folders("phi3v")).vector(chunks, (SMALL, (16, 16))))


def test_each_text_beside_an_image_begins_as_a_text_of_its_own(folders: Folders, load: Load) -> None:
    model, vllm = Phi(folders("phi3v")), load("phi3v", compat="vllm", max_length=64)
    small, tall = (SMALL, (16, 16)), (TALL, (6, 16))
    found = encoded(vllm, [cell(SMALL), Content(("rain", *cell(SMALL).parts, *cell(TALL).parts))])
    close(found, [model.vector(["", ""], small), model.vector(["", "", "rain"], small, tall)])


def test_vllm_takes_the_factors_for_long_sequences_for_all(folders: Folders, load: Load) -> None:
    short, long = (Phi(folders("phi3v"), name).vector(["the rain"]) for name in ("short_factor", "long_factor"))
    assert np.abs(short - long).max() > 0.01
    close(encoded(load("phi3v"), ["the rain"])[0], short)
    close(encoded(load("phi3v", compat="vllm", max_length=64), ["the rain"])[0], short)
    close(encoded(load("phi3v", compat="vllm"), ["the rain"])[0], long)
    close(encoded(load("phi3v", compat="vllm", truncate_prompt_tokens=32), ["the rain"])[0], long)


def test_more_crops_make_more_views(load: Load) -> None:
    def visual(size: tuple[int, int], **options: Any) -> tuple[tuple[int, ...], int]:
        (visuals,) = load("phi3v", **options).batcher.lay_out([cell(picture(*size, 0))], "document").items.media
        return visuals[0].grid, visuals[0].tokens

    # (rows * columns + 1) views of 4 tokens, a separator, and one behind each row of tokens
    assert visual((90, 40)) == ((1, 2), 17)
    assert visual((100, 100), mm_processor_kwargs={"num_crops": 16}) == ((4, 4), 79)
    assert visual((40, 90), mm_processor_kwargs={"num_crops": 1}) == ((1, 1), 13)


def test_an_image_that_is_hardly_wide_is_a_fault_of_its_row(load: Load) -> None:
    cells = ["fine", cell(picture(2, 400, 0)), cell(SMALL)]
    work = load("phi3v").batcher.lay_out(cells, "document")
    assert {row: fault.message for row, fault in work.faults.items()} == {
        1: "2 x 400 pixels is too stretched for this model"
    }


# ---- both


@pytest.mark.parametrize("name", ["nemotron", "phi3v"])
def test_bfloat16_is_close_and_files_are_read_whole(load: Load, name: str) -> None:
    full, half = (encoded(load(name, dtype=dtype), [cell(WIDE), "the rain"]) for dtype in ("float32", "bfloat16"))
    cosines = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(full, half, strict=True)]
    assert min(cosines) > 0.99


@pytest.mark.parametrize("name", ["nemotron", "phi3v"])
def test_embeddings_stand_for_their_image(folders: Folders, load: Load, name: str) -> None:
    made = (Nemotron if name == "nemotron" else Phi)(folders(name))
    with torch.no_grad():
        seen = made.seen(SMALL, (1, 1) if name == "nemotron" else (16, 16))  # type: ignore[attr-defined]
    given = Content((FINDER.embeddings({"image_embeds": seen.tolist()}),))
    close(*encoded(load(name), [given, cell(SMALL)]))


@pytest.mark.parametrize("name", ["nemotron", "phi3v"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_backend": "torchvision"}, "--image-backend 'torchvision': this model resizes images with Pillow"),
        ({"max_pixels": 1000}, "--max-pixels: this model's processor has no 'max_pixels'"),
        ({"mm_processor_kwargs": {"crops": 3}}, "--mm-processor-kwargs: this model's processor has no 'crops'"),
    ],
)
def test_an_option_that_the_processor_lacks_is_refused(
    load: Load, name: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        load(name, **options)


@pytest.mark.parametrize(("name", "key"), [("nemotron", "max_input_tiles"), ("phi3v", "num_crops")])
@pytest.mark.parametrize("value", [0, "4", 2.5, True])
def test_a_number_of_tiles_is_a_number(load: Load, name: str, key: str, value: Any) -> None:
    with pytest.raises(UsageError, match=f"{key} {value!r} cannot be used"):
        load(name, mm_processor_kwargs={key: value})


def test_a_file_without_its_tower_is_refused(tmp_path: Path) -> None:
    folder = tile_checkpoints.phi3v(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    kept = {name: tensor.numpy() for name, tensor in tensors.items() if "img_processor" not in name}
    tile_checkpoints.save_tensors(folder, kept)
    with pytest.raises(CheckpointError, match="vision_model"):
        Scorer(str(folder), dtype="float32")


def test_a_config_without_its_language_model_is_refused(tmp_path: Path) -> None:
    folder = tile_checkpoints.nemotron(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", {name: value for name, value in config.items() if name != "llm_config"})
    with pytest.raises(CheckpointError, match="config.json lacks 'llm_config'"):
        Scorer(str(folder), dtype="float32")
