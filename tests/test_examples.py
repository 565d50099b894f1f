"""The example images are what their scripts draw, and the files beside them name images that are there."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest
from PIL import Image

EXAMPLES = Path(__file__).parents[1] / "examples"
FOLDERS = ["pages", "photos"]


def rows(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def images(folder: Path) -> dict[str, tuple[tuple[int, int], str]]:
    """Size and mode of each image that a script drew."""
    found = {}
    for path in sorted(folder.glob("images/*.png")):
        with Image.open(path) as image:
            found[path.name] = (image.size, image.mode)
    return found


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_holds_what_its_script_makes(name: str, tmp_path: Path) -> None:
    """Not its bytes: other releases of Pillow draw letters and compress files a little differently."""
    runpy.run_path(str(EXAMPLES / name / "make.py"))["main"](tmp_path)
    made = sorted(path.name for path in tmp_path.glob("*.jsonl"))

    assert images(tmp_path) == images(EXAMPLES / name)
    assert made == sorted(path.name for path in (EXAMPLES / name).glob("*.jsonl"))
    assert all((tmp_path / file).read_bytes() == (EXAMPLES / name / file).read_bytes() for file in made)


@pytest.mark.parametrize("name", FOLDERS)
def test_every_image_is_named_and_there(name: str) -> None:
    named = {
        row[column]
        for path in (EXAMPLES / name).glob("*.jsonl")
        for row in rows(path)
        for column in ("image", "query_image")
        if column in row
    }

    assert named == {path.relative_to(EXAMPLES / name).as_posix() for path in (EXAMPLES / name).glob("images/*")}


def test_judged_pages_are_candidates_of_queries() -> None:
    candidates = rows(EXAMPLES / "pages" / "candidates.jsonl")
    pairs = rows(EXAMPLES / "pages" / "pairs.jsonl")
    queries = [row["query"] for row in rows(EXAMPLES / "pages" / "queries.jsonl")]

    assert {(row["query"], row["image"]) for row in pairs} <= {(row["query"], row["image"]) for row in candidates}
    assert [sum(row["label"] == 2 for row in pairs if row["query"] == query) for query in queries] == [1] * 10
    assert len(candidates) == 10 * 12


def test_images_are_small() -> None:
    sizes = {path.name: path.stat().st_size for path in EXAMPLES.glob("*/images/*")}

    assert max(sizes.values()) < 40_000
    assert sum(sizes.values()) < 400_000


def test_photographs_have_a_licence() -> None:
    licences = (EXAMPLES / "photos" / "LICENSES.md").read_text("utf-8")
    photographs = [path.name for path in EXAMPLES.glob("photos/images/*.jpg")]

    assert len(photographs) == 4
    assert [name for name in photographs if f"`images/{name}`" not in licences] == []
