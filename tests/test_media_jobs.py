"""Jobs over rows with images: mixed cells, bad files, kills."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import jobs
import qwen_checkpoints
from batchscore.jobs.files import plan_files, rerank_files, score_files

ROWS = 40
SMALL = {"unit_rows": 8, "encode": "once"}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A page retriever, of which texts and images are encoded by themselves, and a reranker."""
    folder = tmp_path_factory.mktemp("models")
    for name in ("colqwen2", "jina"):
        qwen_checkpoints.write(name, folder / name)
    return {name: str(folder / name) for name in ("colqwen2", "jina")}


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Rows of every kind of document, written to rows.jsonl beside their images."""
    monkeypatch.chdir(tmp_path)
    draw = np.random.default_rng(0)
    for number in range(6):
        size = (40 + 8 * number, 90 - 6 * number)
        noise = Image.fromarray(draw.integers(0, 255, (5, 5, 3), np.uint8))
        noise.resize(size, Image.Resampling.BICUBIC).save(f"page{number}.png")

    def image(number: int) -> dict[str, Any]:
        return {"type": "image_url", "image_url": {"url": f"page{number % 6}.png"}}

    def document(row: int) -> Any:
        text = {"type": "text", "text": f"the river of row {row % 7}"}
        kinds = (text["text"], [image(row)], [image(row), text], [text, image(row), image(row + 1)])
        return kinds[row % 4]

    made = [{"id": row, "query": f"seven green {row % 3}", "document": document(row)} for row in range(ROWS)]
    jobs.write_rows("rows.jsonl", made)
    return made


def scored(model: str, source: str = "rows.jsonl", out: str = "out.parquet", **options: Any) -> dict[int, float]:
    """Scores by id."""
    settings: dict[str, Any] = {"dtype": "float32", "keep_columns": "id", **options}
    score_files(model, source, out, **settings)
    table = pq.read_table(out)
    return dict(zip(table["id"].to_pylist(), table["score"].to_pylist(), strict=True))


@pytest.mark.parametrize("name", ["colqwen2", "jina"])
def test_texts_images_and_both_in_one_file_have_one_score_each_whatever_the_order(
    models: dict[str, str], rows: list[dict[str, Any]], name: str
) -> None:
    whole = scored(models[name])
    random.Random(1).shuffle(rows)
    jobs.write_rows("shuffled.jsonl", rows)
    shuffled = scored(models[name], "shuffled.jsonl", "shuffled.parquet", unit_rows=5)

    assert whole.keys() == shuffled.keys() == set(range(ROWS))
    assert len({round(score, 4) for score in whole.values()}) > 20
    for row, score in whole.items():
        assert shuffled[row] == pytest.approx(score, abs=2e-5)


def test_an_image_in_the_file_and_one_beside_it_give_the_same_score(
    models: dict[str, str], rows: list[dict[str, Any]]
) -> None:
    pages = [row["document"][0]["image_url"]["url"] for row in rows if row["id"] % 4 == 1]
    columns = {"id": list(range(len(pages))), "query": ["seven green"] * len(pages)}
    stored = [{"bytes": Path(page).read_bytes(), "path": None} for page in pages]
    pq.write_table(pa.table({**columns, "picture": pages}), "paths.parquet")
    pq.write_table(pa.table({**columns, "picture": stored}), "bytes.parquet")
    found = [
        scored(models["jina"], f"{kind}.parquet", f"{kind}-out.parquet", document_image_column="picture")
        for kind in ("paths", "bytes")
    ]

    assert found[0] == found[1]


@pytest.mark.parametrize("name", ["colqwen2", "jina"])
def test_a_bad_image_costs_its_rows_and_no_others(
    models: dict[str, str], rows: list[dict[str, Any]], name: str
) -> None:
    before = scored(models[name])
    half = Path("page1.png").read_bytes()
    Path("page1.png").write_bytes(half[: len(half) // 2])  # its header is whole
    Path("page2.png").write_text("<html>")
    os.remove("page3.png")
    after = scored(
        models[name], out="after.parquet", **({"encode": "once", "unit_rows": 8} if name == "colqwen2" else {})
    )

    bad = {row["id"] for row in rows if set("123") & set("".join(_numbers(row["document"])))}
    assert after.keys() == before.keys() - bad
    for row, score in after.items():
        assert score == pytest.approx(before[row], abs=2e-5)
    errors = [json.loads(line) for line in Path("after.parquet.errors.jsonl").read_text().splitlines()]
    assert {error["row"] for error in errors} == bad
    assert {error["column"] for error in errors} <= {"document", None}


def _numbers(document: Any) -> list[str]:
    parts = [] if isinstance(document, str) else document
    return [part["image_url"]["url"][4] for part in parts if "image_url" in part]


def test_a_page_is_ranked_once_for_a_query_and_named_in_the_output(
    models: dict[str, str], rows: list[dict[str, Any]]
) -> None:
    listed = [{"query": "seven green", "documents": [f"page{number}.png" for number in range(6)]}]
    long = [{"query": row["query"], "page": page} for row in listed for page in row["documents"]]
    jobs.write_rows("long.jsonl", long)
    rerank_files(
        models["colqwen2"],
        "long.jsonl",
        "ranked.parquet",
        dtype="float32",
        document_image_column="page",
        return_documents=True,
        top_n=4,
    )
    ranked = pq.read_table("ranked.parquet").to_pylist()

    assert [row["rank"] for row in ranked] == [1, 2, 3, 4]
    assert len({row["index"] for row in ranked}) == len({row["document"] for row in ranked}) == 4


POINTS = {
    "colqwen2": ["texts-document.index", "block-00003.safetensors", "part-00002.parquet"],
    "jina": ["part-00002.parquet", "_run.json"],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["colqwen2", "jina"])
def test_a_killed_job_over_images_is_resumed_to_the_same_bytes(
    models: dict[str, str], rows: list[dict[str, Any]], name: str
) -> None:
    encode = ["--encode", "once"] if name == "colqwen2" else []

    def arguments(out: str) -> list[str]:
        options = ["--dtype", "float32", "--unit-rows", "8", "--quiet", *encode]
        return ["score", "-m", models[name], "-i", "rows.jsonl", "-o", out, *options]

    small = {"BLOCK_TEXTS": "6"}
    code, said = jobs.finish(*arguments("whole/"), **small)
    assert code == 0, said
    for point in POINTS[name]:
        killed = jobs.start(*arguments("killed/"), KILL_AT=point, **small)
        killed.communicate()
        assert killed.returncode == -9
    code, said = jobs.finish(*arguments("killed/"), **small)
    assert code == 0, said
    whole, resumed = jobs.contents("whole"), jobs.contents("killed")
    parts = [file for file in whole if file.startswith("part-")]
    assert len(parts) == ROWS // 8
    assert all(whole[part] == resumed[part] for part in parts)


@pytest.mark.parametrize("name", ["colqwen2", "jina"])
def test_a_plan_counts_the_tokens_of_images(models: dict[str, str], rows: list[dict[str, Any]], name: str) -> None:
    options: dict[str, Any] = {"dtype": "float32", "unit_rows": 8, "keep_columns": "id"}

    forecast = plan_files(models[name], "rows.jsonl", **options)

    counts = score_files(models[name], "rows.jsonl", "out.parquet", **options).counts
    assert forecast.sampled.is_whole
    assert (forecast.rows, forecast.encode, forecast.tokens) == (ROWS, counts["encode"], counts["tokens"])
