"""As test_parity.py, for the rows that read images and video.

The reference libraries ran twice: with Pillow, which resizes as batchscore does by default, and with torchvision, whose
pixels differ by one in 255; vLLM has torchvision only.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from batchscore import Scorer
from batchscore.media.find import MediaFinder
from batchscore.media.policy import MediaPolicy
from batchscore.types import Cell, Cells, Content, Pairs
from test_parity import (
    MULTIMODAL,
    VLLM,
    Json,
    Matrix,
    Scorers,
    assert_close,
    cases,
    flat_and_padded,
    own_options,
    read,
    scorer,
)
from windows import score_work

__all__ = ["scorer"]  # the fixture

pytestmark = pytest.mark.skipif(
    "BATCHSCORE_PARITY" not in os.environ, reason="BATCHSCORE_PARITY does not name a folder of parity fixtures"
)

OTHER_BACKEND = {"ce": 1e-3, "li": 2e-2, "bi": 5e-3}  # absolute, between Pillow's pixels and torchvision's
# the reference cuts a prompt at its end, and with this vocabulary the end has more tokens than it spares
CUT_PROMPT = [("jina_vl", "trunc"), ("qwen3_vl", "trunc"), ("qwen3_vl_untied", "trunc")]
SWAPPED_IN_VLLM = ("jina_vl", "text_imgimg")  # it gives a document's two images to each other's places

CE_CASES = """
    short_pos long_doc unicode empty_doc newlines trunc text_image_a text_image_b_resized text_image_c image_text
    image_image text_imgtext text_imgimg
""".split()
TILES = [*CE_CASES[:9], "text_imgtext", "text_image_d_tiles"]
OF_ROW = {"nemotron_vl": TILES, "qwen3_vl_video": ["video4", "video5_odd", "video4_text"]}
PARAMETERS = [
    pytest.param(row, case, id=f"{row}-{case}") for row in MULTIMODAL["ce"] for case in OF_ROW.get(row, CE_CASES)
]


def media_of(folder: str) -> MediaFinder:
    return MediaFinder(MediaPolicy(root=str(Path(os.environ["BATCHSCORE_PARITY"], folder))))


def cell(value: str | Sequence[Mapping[str, Any]], finder: MediaFinder) -> Cell:
    """A query or document of a cross-encoder's case."""
    if isinstance(value, str):
        return value
    parts: list[Any] = []
    for part in value:
        if "text" in part:
            parts.append(part["text"])
        elif "image" in part:
            parts.append(finder.image(f"images/{part['image']}.png"))
        else:  # "images/video/f[0..3].jpg"
            start, last = part["video"].split("[0..")
            last, end = last.split("]")
            parts.append(finder.video([f"{start}{frame}{end}" for frame in range(int(last) + 1)], part["fps"]))
    return Content(tuple(parts))


def scored(loaded: Scorer, queries: Sequence[Cell], documents: Sequence[Cell]) -> tuple[list[int], Any]:
    work = loaded.batcher.tokenize(Pairs(Cells.of(queries), Cells.of(documents)))
    assert work.faults == {}
    return work.items.ids.tolist(), score_work(loaded, work)


def matrix(loaded: Scorer, queries: Sequence[Cell], documents: Sequence[Cell]) -> Matrix:
    _, scores = scored(loaded, [query for query in queries for _ in documents], [*documents] * len(queries))
    found: Matrix = scores.score.reshape(len(queries), len(documents))
    return found


def assert_within(found: Any, expected: Any, tolerance: float) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)


# ---- cross-encoders


@pytest.mark.parametrize("row", MULTIMODAL["ce"])
def test_every_case_is_tried(row: str) -> None:
    assert sorted(cases(row)) == sorted(OF_ROW.get(row, CE_CASES))


@flat_and_padded
@pytest.mark.parametrize(("row", "name"), [each for each in PARAMETERS if each.values not in CUT_PROMPT])
def test_a_reranker_reads_the_same_tokens_and_gives_the_same_logit_and_score(
    scorer: Scorers, row: str, name: str, padded: bool
) -> None:
    case, finder = cases(row)[name], media_of("ce")
    loaded = scorer("ce", row, padded=padded, **own_options(case))
    ids, scores = scored(loaded, [cell(case["query"], finder)], [cell(case["document"], finder)])
    assert ids == case["input_ids"]
    assert_close(scores.logit, [case["logit"]], "ce")
    assert_close(scores.score, [case["score"]], "ce")


@flat_and_padded
@pytest.mark.parametrize(("row", "name"), CUT_PROMPT)
def test_a_cut_prompt_keeps_its_end(scorer: Scorers, row: str, name: str, padded: bool) -> None:
    case = cases(row)[name]
    whole, _ = scored(scorer("ce", row, padded=padded), [case["query"]], [case["document"]])
    loaded = scorer("ce", row, padded=padded, **own_options(case))
    ids, scores = scored(loaded, [case["query"]], [case["document"]])
    spared = 5 if row.startswith("qwen3") else 0
    assert len(ids) == case["max_length"] + spared < len(whole)
    assert ids[-3:] == whole[-3:]
    assert np.isfinite(scores.score).all()


@flat_and_padded
@pytest.mark.parametrize(("row", "name"), [each for each in PARAMETERS if each.values != SWAPPED_IN_VLLM])
def test_a_reranker_reads_the_tokens_of_vllm_and_gives_its_logit_and_score(
    scorer: Scorers, row: str, name: str, padded: bool
) -> None:
    case, finder = cases(row)[name], media_of("ce")
    expected = case.get("vllm_ref") or case["vllm"]
    options = {"truncate_prompt_tokens" if key == "max_length" else key: v for key, v in own_options(case).items()}
    loaded = scorer("ce", row, padded=padded, **VLLM, **options)
    ids, scores = scored(loaded, [cell(case["query"], finder)], [cell(case["document"], finder)])
    assert ids == expected.get("input_ids", case["input_ids"])
    # where a resized image is part of it, vLLM has torchvision's pixels
    tolerance = OTHER_BACKEND["ce"] if "image_grid_thw" in case else 1e-5
    assert_within(scores.logit, [expected["logit"]], tolerance)


# ---- late interaction

Documents = Callable[[Json, MediaFinder], list[Cell]]


def images(expected: Json, finder: MediaFinder) -> list[Cell]:
    return [Content((finder.image(path),)) for path in expected.get("inputs", expected)["images"]]


def texts(expected: Json, finder: MediaFinder) -> list[Cell]:
    return list(expected.get("inputs", expected)["documents"])


def late(row: str, engine: str, scores: str) -> Any:
    return pytest.param(row, engine, scores, id=f"{row}-{engine}-{scores}")


HAS_TEXTS = [row for row in MULTIMODAL["li"] if row not in ("colpali", "colqwen2_hf")]
OF_VLLM = [row for row in MULTIMODAL["li"] if not row.startswith(("colqwen2", "colmodernvbert_hf"))]
FAITHFUL = [late(row, "hand_reference_pil", "scores_images") for row in MULTIMODAL["li"]]
FAITHFUL += [late(row, "hand_reference", "scores") for row in HAS_TEXTS]


@flat_and_padded
@pytest.mark.parametrize(("row", "engine", "scores"), FAITHFUL)
def test_late_interaction_gives_the_maxsim_of_the_reference(
    scorer: Scorers, row: str, engine: str, scores: str, padded: bool
) -> None:
    expected, finder = read(f"li/expected/{row}.json"), media_of("li")
    documents = (images if scores == "scores_images" else texts)(expected, finder)
    found = matrix(scorer("li", row, padded=padded), expected["inputs"]["queries"], documents)
    assert_close(found, expected["expected"][engine][scores], "li")


@flat_and_padded
@pytest.mark.parametrize("scores", ["scores", "scores_images"])
@pytest.mark.parametrize("row", OF_VLLM)
def test_late_interaction_gives_the_maxsim_of_vllm(scorer: Scorers, row: str, scores: str, padded: bool) -> None:
    expected, finder = read(f"li/expected/{row}.json"), media_of("li")
    engines = expected["expected"]
    # for a model without a prompt of its own the two are the same
    engine = next(
        name
        for name in ("hand_vllm_pil", "hand_vllm", "hand_reference_pil")
        if scores in engines.get(name, ()) and (row == "generic_vlm" or name != "hand_reference_pil")
    )
    documents = (images if scores == "scores_images" else texts)(expected, finder)
    found = matrix(scorer("li", row, padded=padded, **VLLM), expected["inputs"]["queries"], documents)
    is_other_backend = engine == "hand_vllm" and scores == "scores_images"
    assert_within(found, engines[engine][scores], OTHER_BACKEND["li"] if is_other_backend else 1e-4)


# ---- bi-encoders


def captioned(text: str) -> Documents:
    return lambda expected, finder: [Content((finder.image(path), text)) for path in expected["images"]]


def videos(expected: Json, finder: MediaFinder) -> list[Cell]:
    return [
        Content((finder.video(each["frames"], each["fps"]), *filter(None, [each["text"]])))
        for each in expected["documents"]
    ]


CAPTION = "Find me an everyday image that matches the given caption: "
BI: list[tuple[str, str, Documents, Json]] = [
    ("clip", "hf.text-text", texts, {}),
    ("clip", "hf.text-image", images, {}),
    ("siglip", "hf.maxlen.text-text", texts, {}),
    ("siglip", "hf.maxlen.text-image", images, {}),
    ("siglip2", "hf.maxlen.lowercased.text-text", texts, {}),
    ("e5v", "hf.faithful.text-text", texts, {}),
    ("e5v", "hf.faithful.text-image.pil", images, {}),
    ("generic_llava", "hf.last", texts, {}),
    ("generic_llava", "hf.text-image.pil", images, {}),
    ("nemotron_vl", "hf_pieces.text-text", texts, {}),
    ("nemotron_vl", "hf_pieces.text-image", images, {}),
    ("nemotron_vl", "hf_pieces.text-image+text", captioned("some text"), {}),
    ("nemotron_vl", "hf_pieces.noprefix.text-text", texts, {"no_prompts": True}),
    ("phi3v", "hf_pieces.text-text", texts, {}),
    ("phi3v", "hf_pieces.caption-image", images, {"query_prompt": CAPTION}),
    ("qwen3_vl", "hf.faithful.text-text", texts, {}),
    ("qwen3_vl", "hf.faithful.text-image.pil", images, {}),
    ("qwen3_vl", "hf.faithful.text-image+text.pil", captioned("a caption"), {}),
    ("qwen3_vl_video", "hf.faithful.whole", videos, {}),
]
IN_VLLM = {"phi3v": {"max_length": 4096}}  # as vLLM was started: its rotary factors depend on it
BI_VLLM: list[tuple[str, str, Documents, float]] = [
    ("clip", "vllm.text-text", texts, 1e-5),
    ("clip", "vllm.text-image", images, OTHER_BACKEND["bi"]),
    ("siglip", "vllm.text-text", texts, 1e-5),
    ("siglip", "vllm.text-image", images, OTHER_BACKEND["bi"]),
    ("siglip2", "vllm.text-text", texts, 1e-5),
    ("siglip2", "vllm.text-image", images, OTHER_BACKEND["bi"]),
    ("e5v", "vllm.plain.text-text", texts, 1e-5),
    ("generic_llava", "vllm.plain", texts, 1e-5),
    ("generic_llava", "vllm.text-image", images, OTHER_BACKEND["bi"]),
    ("nemotron_vl", "vllm.plain.text-text", texts, 1e-5),
    ("nemotron_vl", "vllm.plain.text-image", images, 1e-5),
    ("phi3v", "vllm.text-text (max_model_len 4096)", texts, 1e-5),
    ("qwen3_vl", "vllm.plain.text-text", texts, 1e-5),
    ("qwen3_vl", "hf.plain.text-image.pil", images, 1e-5),
    ("qwen3_vl", "vllm.plain.text-image", images, OTHER_BACKEND["bi"]),
    ("qwen3_vl_video", "vllm.plain", videos, 1e-5),
]


@flat_and_padded
@pytest.mark.parametrize(
    ("row", "engine", "documents", "options"), [pytest.param(*each, id=f"{each[0]}-{each[1]}") for each in BI]
)
def test_a_bi_encoder_gives_the_cosines_of_its_own_library(
    scorer: Scorers, row: str, engine: str, documents: Documents, options: Json, padded: bool
) -> None:
    expected, finder = read(f"bi/expected/{row}.json"), media_of("bi")
    loaded = scorer("bi", row, padded=padded, **options)
    found = matrix(loaded, expected["queries"], documents(expected, finder))
    # phi3v resizes in ways of its own, and its reference is less close
    assert_within(found, expected["engines"][engine], 2e-5 if row == "phi3v" else 1e-5)


@flat_and_padded
@pytest.mark.parametrize(
    ("row", "engine", "documents", "tolerance"), [pytest.param(*each, id=f"{each[0]}-{each[1]}") for each in BI_VLLM]
)
def test_a_bi_encoder_gives_the_cosines_of_vllm(
    scorer: Scorers, row: str, engine: str, documents: Documents, tolerance: float, padded: bool
) -> None:
    expected, finder = read(f"bi/expected/{row}.json"), media_of("bi")
    loaded = scorer("bi", row, padded=padded, **VLLM, **IN_VLLM.get(row, {}))
    found = matrix(loaded, expected["queries"], documents(expected, finder))
    assert_within(found, expected["engines"][engine], tolerance)


@pytest.mark.parametrize("row", ["clip", "siglip", "siglip2"])
def test_images_are_compared_with_images(scorer: Scorers, row: str) -> None:
    expected, finder = read(f"bi/expected/{row}.json"), media_of("bi")
    pages = images(expected, finder)
    assert_within(matrix(scorer("bi", row), pages, pages), expected["engines"]["hf.image-image"], 1e-5)


def test_every_multimodal_row_is_tried() -> None:
    assert {row for row, *_ in BI} == {row for row, *_ in BI_VLLM} == set(MULTIMODAL["bi"])
