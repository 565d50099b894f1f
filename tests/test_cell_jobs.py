"""Jobs over rows with images: once a job or once a unit, from paths or from bytes, from files or from Python."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import jobs
import qwen_checkpoints
from batchscore import Scorer
from batchscore.errors import InputError, NotFoundError, OutputError, UsageError
from batchscore.io.source import open_source
from batchscore.io.storage import open_folder
from batchscore.io.upkeep import shelves
from batchscore.jobs.blocks import open_blocks
from batchscore.jobs.commands import ScoreCommand
from batchscore.jobs.files import encode_files, rerank_files, score_files
from batchscore.jobs.parts import Division, start_parts
from batchscore.jobs.room import Room
from batchscore.jobs.survey import survey
from batchscore.stop import Stop
from batchscore.types import Content

pytestmark = pytest.mark.usefixtures("images")

SIZES = [(64, 64), (96, 64), (64, 128)]
PHOTO: Any = {"document_image_column": "photo", "dtype": "float32"}


def png(number: int) -> bytes:
    noise = np.random.default_rng(number).integers(0, 255, (6, 6, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).resize(SIZES[number % 3]).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny bi-encoder that reads images."""
    folder = tmp_path_factory.mktemp("qwen3_embedding")
    qwen_checkpoints.write("qwen3_embedding", folder)
    return str(folder)


@pytest.fixture(scope="module")
def scorer(model: str) -> Iterator[Scorer]:
    with Scorer(model, dtype="float32") as opened:
        yield opened


@pytest.fixture
def images(here: Path) -> None:
    for number in range(4):
        Path(f"{number}.png").write_bytes(png(number))


def rows(count: int = 12) -> list[dict[str, Any]]:
    """Rows of a few queries and photos, every third with a caption."""
    return [
        {"query": f"q {row % 2}", "photo": f"{row % 4}.png", "document": None if row % 3 else f"caption {row % 4}"}
        for row in range(count)
    ]


def scores_of(path: str) -> list[Any]:
    return [json.loads(line)["score"] for line in Path(path).read_text("utf-8").splitlines()]


def record(path: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(f"{path}.run.json").read_text("utf-8"))
    return found


def test_files_and_python_give_the_same_scores(model: str, scorer: Scorer) -> None:
    score_files(model, jobs.write_rows("in.jsonl", rows()), "out.jsonl", **PHOTO)
    documents = [{"text": row["document"], "image": row["photo"]} for row in rows()]
    expected = scorer.score([row["query"] for row in rows()], documents)
    np.testing.assert_allclose(scores_of("out.jsonl"), expected, rtol=0, atol=1e-6)
    assert record("out.jsonl")["counts"]["media"] == {
        "images": 4,
        "videos": 0,
        "pixels": sum(width * height for width, height in (*SIZES, SIZES[0])),
    }


@pytest.mark.parametrize("column", ["paths", "bytes"])
def test_encoded_once_a_job_or_once_a_unit_images_give_the_same_scores(model: str, column: str) -> None:
    table = pa.Table.from_pylist(rows())
    if column == "bytes":
        photos = [{"bytes": Path(row["photo"]).read_bytes(), "path": None} for row in rows()]
        table = table.set_column(1, "photo", pa.array(photos))
    pq.write_table(table, "in.parquet")
    for encode in ("once", "unit"):
        options: Any = {**PHOTO, "encode": encode, "unit_rows": 5, "keep_columns": "none"}
        score_files(model, "in.parquet", f"{encode}.jsonl", **options)
    np.testing.assert_allclose(scores_of("once.jsonl"), scores_of("unit.jsonl"), rtol=0, atol=1e-6)
    assert record("once.jsonl")["counts"]["texts"] == 2 + 8  # the photos, each with and without a caption
    assert record("once.jsonl")["counts"]["media"]["images"] == 4


def test_blocks_keep_images_by_place_or_with_their_bytes_and_know_what_they_cost() -> None:
    photos = [{"bytes": None, "path": "0.png"}, {"bytes": png(1), "path": None}, None]
    pq.write_table(pa.table({"query": ["q"] * 3, "document": ["a"] * 3, "photo": pa.array(photos)}), "in.parquet")
    source, command = open_source(["in.parquet"]), ScoreCommand(document_image_column="photo")
    parts = start_parts(
        open_folder("job"),
        {"inputs": source.fingerprint()},
        lambda: Division(command.units(source, 10, listwise=False), "once"),
        overwrite=False,
    )
    survey(parts, command, source, Room(float("inf"), {"query": 40, "document": 4000}, 128.0, 0.0), print, Stop())
    blocks = open_blocks(parts.folder, parts.id)
    assert blocks is not None
    (block,) = (block for block in blocks.blocks if block.side == "document")
    Path("1.png").unlink()  # its bytes came with the row
    cells = blocks.texts(block)
    opened = [cell.media[0].source.frames([0], on_white=True)[0].size for cell in cells if isinstance(cell, Content)]
    assert opened == [SIZES[1], SIZES[0]]  # the larger one first
    assert cells[2] == "a"
    assert block.size == 3 * (1 + 16) + (96 * 64 + 64 * 64) // 256


def test_kept_columns_pass_through_and_what_was_ranked_is_shown_without_bytes(model: str) -> None:
    photos = pa.array([png(0), png(1), png(0)])
    pq.write_table(pa.table({"query": ["q"] * 3, "photo": photos, "text": ["a", None, None]}), "in.parquet")
    score_files(model, "in.parquet", "out.parquet", **PHOTO)
    assert pq.read_table("out.parquet")["photo"].to_pylist() == photos.to_pylist()

    options: Any = {**PHOTO, "document_column": "text", "return_documents": True}
    rerank_files(model, "in.parquet", "ranked.parquet", **options)
    shown = pq.read_table("ranked.parquet").sort_by("index")["document"].to_pylist()
    assert shown[0] == "a"
    assert [list(json.loads(text)[0]) for text in shown[1:]] == [["type", "digest"]] * 2
    assert shown[1] != shown[2]


def test_encode_writes_the_vectors_of_images(model: str, scorer: Scorer) -> None:
    pq.write_table(pa.table({"id": [7, 8], "photo": [png(0), png(1)]}), "in.parquet")
    encode_files(model, "in.parquet", "out.parquet", image_column="photo", dtype="float32")
    table = pq.read_table("out.parquet")
    expected = scorer.encode([Image.open(io.BytesIO(png(number))) for number in range(2)])
    np.testing.assert_allclose(np.array(table[1].to_pylist()), np.array(expected), rtol=0, atol=1e-5)
    assert table["id"].to_pylist() == [7, 8]


def test_a_store_keeps_encodings_of_images_and_no_sample_of_them(model: str) -> None:
    path = jobs.write_rows("in.jsonl", rows())
    for out in ("one.jsonl", "two.jsonl"):
        score_files(model, path, out, store="store", **PHOTO)
    assert scores_of("one.jsonl") == scores_of("two.jsonl")
    assert record("two.jsonl")["counts"]["from_store"] == 10
    kept = {text for shelf in shelves("store") for one in shelf.segments for _, text in one.samples}
    assert kept == {"q 0", "q 1"}


def test_a_bad_image_costs_its_row_alone(model: str) -> None:
    Path("2.png").write_bytes(b"no image")
    outcome = score_files(model, jobs.write_rows("in.jsonl", rows(8)), "out.jsonl", **PHOTO, errors="null")
    assert [score is None for score in scores_of("out.jsonl")] == [False, False, True, False] * 2
    assert outcome.bad_rows == 2
    listed = [json.loads(line) for line in Path("out.jsonl.errors.jsonl").read_text("utf-8").splitlines()]
    assert [(bad["line"], bad["column"], bad["code"]) for bad in listed] == [
        (3, "photo", "media-damaged"),
        (7, "photo", "media-damaged"),
    ]


# ---- options


def test_which_media_may_be_read_is_part_of_the_job(model: str) -> None:
    path = jobs.write_rows("in.jsonl", rows(2))
    score_files(model, path, "out.jsonl", **PHOTO)
    with pytest.raises(OutputError, match=r"media\.root"):
        score_files(model, path, "out.jsonl", **PHOTO, media_root=".")


def test_media_options_without_a_meaning_are_refused(model: str) -> None:
    path = jobs.write_rows("in.jsonl", rows(2))
    with pytest.raises(NotFoundError, match="--media-root gone: no such folder"):
        score_files(model, path, "out.jsonl", **PHOTO, media_root="gone")
    with pytest.raises(UsageError, match="--allowed-media-domains has no effect without --allow-remote-media"):
        score_files(model, path, "out.jsonl", **PHOTO, allowed_media_domains="a.org,b.org")


# ---- Python


def test_python_takes_a_cell_in_every_form(scorer: Scorer) -> None:
    image = Image.open(io.BytesIO(png(1)))
    forms = [
        image,
        {"image": image},
        {"image": "1.png"},
        {"image": Path("1.png")},
        {"image": png(1)},
        {"content": [{"type": "image_url", "image_url": {"url": "1.png"}}]},
        [{"type": "image", "image": image}],
        np.asarray(image),
    ]
    scores = scorer.score("q", forms)
    np.testing.assert_allclose(scores, scores[:1].repeat(len(forms)), rtol=0, atol=1e-6)
    assert abs(scorer.score("q", "1.png")[0] - scores[0]) > 1e-3  # a string is a text
    assert scorer.score(image, [image])[0] > scorer.score(image, ["a"])[0]


def test_python_ranks_documents_with_images(scorer: Scorer) -> None:
    image = Image.open(io.BytesIO(png(1)))
    ranked = scorer.rerank(image, ["a", {"image": "1.png"}])
    assert ranked[0].index == 1
    assert isinstance(ranked[0].document, Content)


@pytest.mark.parametrize(
    ("documents", "error", "message"),
    [
        ([{"image": "gone.png"}], InputError, r"documents\[0\] 'gone.png' does not exist"),
        (["a", {"content": []}], UsageError, r"documents\[1\] has no content parts"),
        ([{"image": "/etc/hostname"}], InputError, r"documents\[0\] '/etc/hostname' is not below"),
        ([Path("1.png")], UsageError, r"documents\[0\] is PosixPath, not a string"),
        ([{"image": "http://127.0.0.1/1.png"}], InputError, r"documents\[0\] 'http://127.0.0.1/1.png' is "),
    ],
)
def test_what_python_cannot_pass_is_named(scorer: Scorer, documents: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        scorer.score("q", documents)
