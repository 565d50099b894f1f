"""CLIP, SigLIP and their like, against transformers' own vectors of one text or image at a time."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from tokenizers import Tokenizer
from transformers import AutoImageProcessor, SiglipTokenizer

import towers_checkpoints
from batchscore import Scorer
from batchscore.errors import BatchscoreError
from batchscore.inspection import inspect_model
from batchscore.media.find import MediaFinder
from batchscore.media.policy import MediaPolicy
from batchscore.models.checkpoint import open_checkpoint
from batchscore.models.text.tokenizer import load_tokenizer
from batchscore.types import Cell, Cells, Content, Pairs
from batchscore.verification.verify import verify_model
from checkpoints import WORDS
from towers_checkpoints import ROWS

sentencepiece = pytest.importorskip("sentencepiece")

Folders = Callable[[str], tuple[Path, Any]]
Load = Callable[..., Scorer]
both_layouts = pytest.mark.parametrize("padded", [False, True], ids=["flat", "padded"])


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """A row's folder, and transformers' model."""

    @cache
    def write(name: str) -> tuple[Path, Any]:
        folder = tmp_path_factory.mktemp(name)
        return folder, towers_checkpoints.write(name, folder)

    return write


@pytest.fixture(scope="module")
def load(folders: Folders) -> Iterator[Load]:
    """A float32 Scorer of a row."""
    opened: dict[str, Scorer] = {}

    def make(name: str, **options: Any) -> Scorer:
        key = f"{name} {options}"
        if key not in opened:
            opened[key] = Scorer(str(folders(name)[0]), **{"dtype": "float32", "cache_mb": 0, **options})
        return opened[key]

    yield make
    for scorer in opened.values():
        scorer.close()


def picture(width: int, height: int, seed: int) -> Content:
    noise = np.random.default_rng(seed).integers(0, 255, (5, 5, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC).save(file, "PNG")
    return Content((FINDER.image(file.getvalue()),))


FINDER = MediaFinder(MediaPolicy())
SQUARE, WIDE, TALL = (picture(*size, seed) for seed, size in enumerate([(32, 32), (90, 40), (20, 70)]))
LONG = " ".join(["the old bridge over the river"] * 30)
CELLS: list[Cell] = ["The old CAT sleeps", SQUARE, "a", WIDE, LONG, "a dog. In the winter, garden!", TALL, SQUARE]


def ids_of(folder: Path, text: str, *, length: int, fill: int | None) -> list[int]:
    """What the model's own library reads, with its end token behind what is cut."""
    if (folder / "spiece.model").is_file():
        ids: list[int] = SiglipTokenizer.from_pretrained(folder)(text, truncation=True, max_length=length)["input_ids"]
    else:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.enable_truncation(length)
        ids = tokenizer.encode(text).ids
    return ids if fill is None else ids + [fill] * (length - len(ids))


def own_vector(name: str, folder: Path, model: Any, cell: Cell) -> NDArray[np.float32]:
    """The features of a text or image by themselves, through transformers."""
    is_siglip = ROWS[name].architecture.startswith("Siglip")
    with torch.no_grad():
        if isinstance(cell, Content):
            frames = cell.media[0].source.frames([0], on_white=False)
            made = AutoImageProcessor.from_pretrained(folder, backend="pil")(images=frames, return_tensors="pt")
            output = model.get_image_features(**made)
        else:
            fill = {"spiece": 1, "gemma": 0}[ROWS[name].tokenizer] if is_siglip else None
            text = cell.lower() if is_siglip else cell
            length = 64 if is_siglip or name == "chinese_clip" else 77
            output = model.get_text_features(torch.tensor([ids_of(folder, text, length=length, fill=fill)]))
    vector: NDArray[np.float32] = output.pooler_output[0].numpy()
    return vector


def encoded(scorer: Scorer, cells: Sequence[Cell]) -> NDArray[np.float32]:
    made = scorer.batcher.encode(scorer.batcher.lay_out(cells, "document"), "document")
    assert made.faults == {}
    return made.float32


def scored(scorer: Scorer, queries: Sequence[Cell], documents: Sequence[Cell]) -> NDArray[np.float32]:
    outcome = scorer.batcher.score(scorer.batcher.tokenize(Pairs(Cells.of(queries), Cells.of(documents))))
    assert outcome.faults == {}
    return outcome.raw[:, 0]


def close(found: Any, expected: Any, tolerance: float = 2e-5) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)


# ---- the same as transformers


@both_layouts
@pytest.mark.parametrize("name", ROWS)
def test_a_text_and_an_image_have_the_vectors_of_transformers(
    folders: Folders, load: Load, name: str, padded: bool
) -> None:
    folder, model = folders(name)
    expected = [own_vector(name, folder, model, cell) for cell in CELLS]
    close(encoded(load(name, padded=padded), CELLS), expected)


@pytest.mark.parametrize("name", ["clip", "siglip", "naflex"])
def test_texts_and_images_stand_on_both_sides(folders: Folders, load: Load, name: str) -> None:
    folder, model = folders(name)
    sides = [("a dog", SQUARE), (WIDE, "a dog"), (TALL, WIDE), ("a dog", "a cat"), (TALL, TALL)]
    vectors = [[own_vector(name, folder, model, cell) for cell in pair] for pair in sides]
    expected = [left @ right / np.linalg.norm(left) / np.linalg.norm(right) for left, right in vectors]
    found = scored(load(name), *zip(*sides, strict=True))
    close(found, expected, 1e-6)
    assert found[-1] == pytest.approx(1.0, abs=1e-6)


def test_clip_runs_without_padding(load: Load) -> None:
    assert load("clip").batcher.layout == "flat"


@pytest.mark.parametrize("name", ["clip", "clip_2021"])
def test_clip_reads_a_text_up_to_its_first_end_token(folders: Folders, load: Load, name: str) -> None:
    folder, model = folders(name)
    text = "a cat<|endoftext|> or a dog, or anything"
    close(encoded(load(name), [text])[0], own_vector(name, folder, model, text))
    assert load(name).batcher.lay_out([text], "query").items.ids.tolist() == ids_of(
        folder, "a cat", length=77, fill=None
    )


def test_metaclip_ends_at_token_2_which_is_no_mistake_of_its_config(folders: Folders, load: Load) -> None:
    folder, model = folders("metaclip")
    assert model.config.text_config.eos_token_id == 2
    text = "zzz</s>the dog"
    close(encoded(load("metaclip"), [text])[0], own_vector("metaclip", folder, model, text))


@pytest.mark.parametrize("name", ["siglip", "siglip2"])
def test_vllm_neither_fills_siglips_texts_up_nor_lower_cases_them(folders: Folders, load: Load, name: str) -> None:
    folder, model = folders(name)
    texts = ["The OLD cat", "a dog"]
    with torch.no_grad():
        expected = [
            model.get_text_features(torch.tensor([ids_of(folder, text, length=64, fill=None)])).pooler_output[0]
            for text in texts
        ]
    close(encoded(load(name, compat="vllm"), texts), expected)


def test_every_text_of_siglip_costs_its_full_length(load: Load) -> None:
    assert load("siglip").batcher.lay_out(["a", SQUARE, LONG], "query").items.lengths.tolist() == [64, 1, 64]
    assert load("siglip", max_length=16).batcher.lay_out(["a", LONG], "query").items.lengths.tolist() == [16, 16]


# transformers makes another tokenizer of any tokenizer.json for this model type
@pytest.mark.parametrize("name", [name for name in ROWS if name != "naflex"])
def test_verify_finds_nothing(folders: Folders, name: str) -> None:
    found = verify_model(str(folders(name)[0]), device="cpu", dtype="float32", reference="transformers")
    assert found.to_reference is not None
    assert found.to_reference.count >= 28
    assert max(comparison.worst[0] for comparison in found.comparisons) < 1e-5


def test_inspect_tells_the_patches_of_an_image(folders: Folders) -> None:
    sample = inspect_model(str(folders("clip")[0]), {}, query="a", document="b").describe()["media"]
    assert (sample["tokens"], sample["patches"], sample["grid"]) == (1, 16, [4, 4])


def test_bfloat16_is_near_float32(load: Load) -> None:
    for name in ("clip", "siglip"):
        exact, rough = (encoded(load(name, dtype=dtype), CELLS) for dtype in ("float32", "bfloat16"))
        cosines = (exact * rough).sum(1) / np.linalg.norm(exact, axis=1) / np.linalg.norm(rough, axis=1)
        assert cosines.min() > 0.999


# ---- what must not matter


@pytest.mark.parametrize("name", ["clip", "siglip2", "naflex"])
def test_neighbours_order_and_pack_size_do_not_show_in_a_vector(load: Load, name: str) -> None:
    alone = np.concatenate([encoded(load(name), [cell]) for cell in CELLS])
    close(encoded(load(name), CELLS), alone)
    close(encoded(load(name), CELLS[::-1])[::-1], alone)
    close(encoded(load(name, batch_tokens=40), CELLS), alone)


def test_parts_that_are_all_text_are_a_text_of_several_lines(load: Load) -> None:
    close(encoded(load("clip"), [Content(("two", "lines"))]), encoded(load("clip"), ["two\nlines"]), 1e-6)


def test_a_chat_template_is_for_texts_and_leaves_images_alone(load: Load) -> None:
    scorer = load("clip", chat_template="a photo of {{ content }}")
    close(encoded(scorer, ["a cat", SQUARE]), encoded(load("clip"), ["a photo of a cat", SQUARE]))


# ---- SigLIP's tokenizer


TEXTS = [
    "A red square, on the left!",
    "  two spaces",
    "a\n\nline\tor two  ",
    "",
    "   ",
    "!!!",
    "! x",
    "...the cat...",
    "▁x",
]
TEXTS += [
    "北京 the cat",
    "北京",
    "naïve café",
    "don't",
    "ÅNGSTRÖM 2024",
    "the-old.bridge",
    "\u3000wide\u3000",
    "x▁ ",
    "(a) [b] {c} ^&~",
    "a </s> the dog",
    "</s>cat",
]


def same_tokens(folder: Path) -> None:
    own = SiglipTokenizer.from_pretrained(folder)
    found = load_tokenizer(open_checkpoint(str(folder)), trust_remote_code=False, restore_specials=True)
    ids = [[*found.tokenize([text], 100)[0].ids.tolist(), 1] for text in TEXTS]
    assert ids == [own(text)["input_ids"] for text in TEXTS]


@pytest.mark.parametrize("lower", [True, False])
def test_siglips_tokens_are_those_of_its_class_in_python(folders: Folders, tmp_path: Path, lower: bool) -> None:
    shutil.copytree(folders("siglip")[0], tmp_path, dirs_exist_ok=True)
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "SiglipTokenizer", "do_lower_case": lower})
    )
    # transformers does not read it, nor its other tokens
    shutil.copy(folders("siglip2")[0] / "tokenizer.json", tmp_path)
    same_tokens(tmp_path)


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
@pytest.mark.parametrize("rules", ["nmt_nfkc", "identity"])
def test_so_are_those_of_a_trained_vocabulary(folders: Folders, tmp_path: Path, kind: str, rules: str) -> None:
    shutil.copytree(folders("siglip")[0], tmp_path, dirs_exist_ok=True)
    options = {"vocab_size": 90, "hard_vocab_limit": False, "pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([" ".join(WORDS[n : n + 9]) for n in range(80)]),
        model_prefix=str(tmp_path / "spiece"),
        model_type=kind,
        normalization_rule_name=rules,
        minloglevel=2,
        **options,
    )
    same_tokens(tmp_path)


# ---- layouts of files


@pytest.mark.parametrize(
    ("kind", "path"), [("models.CLIPModel", "0_CLIPModel"), ("base.modules.transformer.Transformer", "")]
)
def test_sentence_transformers_layouts_are_read(
    folders: Folders, load: Load, tmp_path: Path, kind: str, path: str
) -> None:
    shutil.copytree(folders("clip")[0], tmp_path / path, dirs_exist_ok=True)
    first = {"idx": 0, "name": "0", "path": path, "type": f"sentence_transformers.{kind}"}
    (tmp_path / "modules.json").write_text(json.dumps([first]))
    if not path:
        ways = {
            f"{part}": {"method": f"get_{part}_features", "method_output_name": "pooler_output"}
            for part in ("text", "image")
        }
        settings = {"transformer_task": "feature-extraction", "modality_config": ways}
        (tmp_path / "sentence_bert_config.json").write_text(
            json.dumps({**settings, "module_output_name": "sentence_embedding"})
        )
        processor = json.loads((tmp_path / "preprocessor_config.json").read_text())
        (tmp_path / "preprocessor_config.json").unlink()
        (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": processor}))
    with Scorer(str(tmp_path), dtype="float32", cache_mb=0) as scorer:
        close(encoded(scorer, CELLS), encoded(load("clip"), CELLS), 1e-6)


def test_configs_of_2021_say_the_towers_settings_twice_or_not_at_all(
    folders: Folders, load: Load, tmp_path: Path
) -> None:
    shutil.copytree(folders("clip")[0], tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"text_config": {}, "text_config_dict": config["text_config"], "vision_config_dict": None}
    del config["text_config_dict"]["max_position_embeddings"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    processor = {"feature_extractor_type": "CLIPFeatureExtractor", "size": 32, "crop_size": 32, "resample": 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    with Scorer(str(tmp_path), dtype="float32", cache_mb=0) as scorer:
        close(encoded(scorer, CELLS), encoded(load("clip"), CELLS), 1e-6)


# ---- what cannot be read


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_a_text_beside_an_image_or_two_images_are_a_fault_of_their_rows(load: Load, name: str) -> None:
    image = SQUARE.media[0]
    cells: list[Cell] = ["fine", Content((image, "a caption")), SQUARE, Content((image, *WIDE.media))]
    work = load(name).batcher.lay_out(cells, "document")
    assert sorted(work.faults) == [1, 3]
    assert {fault.message for fault in work.faults.values()} == {"this model reads a text or an image, one at a time"}


def test_a_video_is_a_fault_of_its_row(load: Load) -> None:
    video = FINDER.video([SQUARE.media[0].source.frames([0], on_white=False)[0]] * 2)
    faults = load("clip").batcher.lay_out([Content((video,)), "fine"], "document").faults
    assert {row: fault.message for row, fault in faults.items()} == {0: "this model reads images, and no video"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"score_type": "late-interaction"},
            "--score-type 'late-interaction': this model gives a text or an image one",
        ),
        ({"score_type": "cross-encoder"}, "--score-type 'cross-encoder': this model gives"),
        ({"pooling": "mean"}, "--pooling 'mean': this architecture has a readout of its own"),
        ({"dimensions": 25}, "--dimensions 25: this model's vectors can be cut to 1 to 24"),
        ({"max_length": 78}, "--max-length 78: must be between 1 and the model's 77 positions"),
        ({"max_pixels": 100}, "--max-pixels: .* has no 'max_pixels'"),
        (
            {"mm_processor_kwargs": {"crop_size": 64}},
            "--mm-processor-kwargs: .* images of 64 x 64 for a model of 32 x 32",
        ),
        ({"mm_processor_kwargs": {"image_mean": [0.5]}}, "--mm-processor-kwargs: the image processor does not fit: "),
    ],
)
def test_an_option_that_does_not_fit_is_refused(load: Load, options: dict[str, Any], message: str) -> None:
    with pytest.raises(BatchscoreError, match=message):
        load("clip", **options)


def test_an_image_processor_of_another_size_is_refused(folders: Folders, tmp_path: Path) -> None:
    shutil.copytree(folders("siglip2")[0], tmp_path, dirs_exist_ok=True)
    settings = {**ROWS["siglip2"].images, "size": {"height": 64, "width": 64}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    with pytest.raises(BatchscoreError, match=r"preprocessor_config.json does not fit: it makes images of 64 x 64"):
        Scorer(str(tmp_path), dtype="float32")
