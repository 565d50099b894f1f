"""A query or document with images is one cell, whatever kind of column it comes from; what is none is a bad row."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from batchscore.errors import InputError, UsageError
from batchscore.io.digests import digests_of
from batchscore.io.hf import DatasetReader
from batchscore.io.packed import pack_cells, unpack_cells
from batchscore.io.source import FileAddresses, FileSource, open_source
from batchscore.jobs.commands import EncodeCommand, RerankCommand, ScoreCommand
from batchscore.media.content import TYPES, read_cell, shown
from batchscore.media.find import MediaFinder
from batchscore.media.policy import MediaPolicy
from batchscore.types import Cell, Cells, Content, Side

pytestmark = pytest.mark.usefixtures("images")

Rows = Sequence[Mapping[str, Any]]
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])  # of `datasets`


def png(colour: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 6), colour).save(file, "PNG")
    return file.getvalue()


RED, BLUE = png("red"), png("blue")
URL = f"data:image/png;base64,{base64.b64encode(RED).decode()}"
NAMES = {MediaFinder(MediaPolicy()).image(data).digest: name for name, data in (("<red>", RED), ("<blue>", BLUE))}


@pytest.fixture
def images(here: Path) -> Path:
    """A folder with a red and a blue image in `img`."""
    Path("img").mkdir()
    Path("img/red.png").write_bytes(RED)
    Path("img/blue.png").write_bytes(BLUE)
    return here


def text(content: str) -> dict[str, Any]:
    return {"type": "text", "text": content}


def image(name: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": f"img/{name}.png"}}


def view(cell: Cell) -> Any:
    """A text as it is; of others a list of parts, or a tuple where their order is the model's."""
    if isinstance(cell, str):
        return cell
    parts = [
        part if isinstance(part, str) else NAMES.get(part.digest, f"<{part.kind} of {part.count}>")
        for part in cell.parts
    ]
    return parts if cell.ordered else tuple(parts)


def written(rows: Rows | Mapping[str, Any], name: str = "in") -> str:
    """Rows as JSON Lines, or columns as Parquet."""
    if isinstance(rows, Mapping):
        pq.write_table(pa.table(dict(rows)), f"{name}.parquet")
        return f"{name}.parquet"
    Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return f"{name}.jsonl"


def rows_of(command: Any, *paths: str, media: MediaPolicy | None = None) -> Any:
    """The only unit of these files."""
    with closing(open_source(paths, media=media)) as source:
        command.check(source)
        (unit,) = command.units(source, 6400, listwise=False)
        return command.load(source, unit)


def loaded(command: Any, *paths: str, side: Side = "document") -> tuple[list[Any], list[str]]:
    """(the cells of one side, what is wrong with the other rows)."""
    rows = rows_of(command, *paths)
    cells: Cells = rows.pairs.sides[side]
    faults = [f"{bad.column}: {bad.fault.code}: {bad.fault.message}" for bad in rows.bad_rows]
    return [view(cells.values[code]) for code in cells.codes], faults


def scored(documents: Any, **options: Any) -> tuple[list[Any], list[str]]:
    """Documents of `score`: a list for JSON Lines, an array for Parquet."""
    if isinstance(documents, pa.Array):
        return loaded(ScoreCommand(**options), written({"query": ["q"] * len(documents), "document": documents}))
    return loaded(ScoreCommand(**options), written([{"query": "q", "document": one} for one in documents]))


# ---- one cell, many spellings


def test_json_values_of_all_kinds_share_a_column() -> None:
    cells, faults = scored(
        [
            "img/red.png",  # a string is a text
            [text("a"), image("red"), "bare"],
            {"content": [image("blue"), text("b")]},
            {"content": [text("two"), text("texts")]},
            {"content": "plain"},
            {"text": "caption", "image": "img/red.png"},
            {"text": "", "image": ["img/red.png", "img/blue.png"]},
            {"text": "no image", "image": None},
            [{"type": "image_url", "image_url": URL}],
            [{"image_url": {"url": URL}}],
            [{"type": "image", "path": "img/blue.png"}, {"type": "input_image", "image_url": "img/red.png"}],
            [{"type": "video", "video": ["img/red.png", "img/blue.png"], "fps": 2}, text("c")],
        ]
    )
    assert faults == []
    assert cells == [
        "img/red.png",
        ["a", "<red>", "bare"],
        ["<blue>", "b"],
        "two\ntexts",
        "plain",
        ("<red>", "caption"),
        ("<red>", "<blue>"),
        "no image",
        ["<red>"],
        ["<red>"],
        ["<blue>", "<red>"],
        ["<video of 2>", "c"],
    ]


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pa.array([[text("a"), image("red")], [text("b")]]), [["a", "<red>"], "b"]),
        (pa.array([{"content": [text("a"), image("red")]}, {"content": [text("b")]}]), [["a", "<red>"], "b"]),
        (pa.array([{"text": "a", "image": "img/red.png"}, {"text": "b", "image": None}]), [("<red>", "a"), "b"]),
        (pa.array([{"image": ["img/red.png"], "text": None}]), [["<red>"]]),
        (pa.array([{"bytes": RED, "path": None}, {"bytes": BLUE, "path": "gone.png"}], IMAGE), [["<red>"], ["<blue>"]]),
        (pa.array([{"bytes": None, "path": "img/red.png"}], IMAGE), [["<red>"]]),
        (pa.array([RED, BLUE, RED]), [["<red>"], ["<blue>"], ["<red>"]]),
        (pa.array([RED], pa.large_binary()), [["<red>"]]),
        (pa.array(["img/red.png"]), ["img/red.png"]),
    ],
    ids=lambda value: str(value.type)[:40] if isinstance(value, pa.Array) else "",
)
def test_a_typed_column_may_hold_cells(column: pa.Array, expected: list[Any]) -> None:
    assert scored(column) == (expected, [])


def test_files_of_different_kinds_are_read_together() -> None:
    first = written([{"query": "q", "document": "a"}], "first")
    second = written({"query": ["q"], "document": [[text("b"), image("red")]]}, "second")
    assert loaded(ScoreCommand(), first, second) == (["a", ["b", "<red>"]], [])


def test_equal_media_are_one_whatever_they_are_called() -> None:
    Path("img/copy.png").write_bytes(RED)
    rows = [{"query": "q", "photo": name} for name in ("img/red.png", "img/copy.png", URL)]
    documents = rows_of(ScoreCommand(document_image_column="photo"), written(rows)).pairs.documents
    assert (len(documents.values), documents.codes.tolist()) == (1, [0, 0, 0])


@pytest.mark.parametrize(
    ("document", "fault"),
    [
        ([], "empty: has no content parts"),
        ({"content": []}, "empty: has no content parts"),
        ({"content": None}, "null: is null, or has neither text nor media"),
        ({}, "null: is null, or has neither text nor media"),
        ({"text": None, "image": None}, "null: is null, or has neither text nor media"),
        ({"text": 3, "image": "img/red.png"}, "not-text: is int, not text"),
        ([text("a"), {"type": "audio_url"}], "content: part 1: has the unknown type 'audio_url'"),
        ([{"text": "a"}], "content: part 0: has no type"),
        ([{"type": "text"}], "content: part 0: is of type 'text' and has no text"),
        ([{"type": "image_url"}], "content: part 0: is of type 'image_url' and has no image_url"),
        ([text("a"), 3], "content: part 1: is int, not an object"),
        (["a", "b"], "not-text: is a list of strings, not text"),
        ([{"type": "video", "video": []}], "content: part 0: is of type 'video' and has no frames"),
        ([{"type": "video", "video": ["img/red.png"], "fps": "2"}], "content: part 0: has the fps '2', not a number"),
        (
            [{**image("red"), "max_pixels": 100}],
            "not-supported: part 0: sets max_pixels, which is not supported in a part",
        ),
        (
            [{"type": "video_embeds", "video_embeds": "AAAA"}],
            "not-supported: part 0: holds video_embeds, made outside of this job, which is not supported",
        ),
        ([image("none")], "media-missing: part 0: 'img/none.png' does not exist"),
        (3, "not-text: is a JSON number, not text"),
        (None, "null: is null"),
    ],
)
def test_what_is_no_cell_is_a_fault_of_its_row_alone(document: Any, fault: str) -> None:
    assert scored(["good", document, [image("red")]]) == (["good", ["<red>"]], [f"document: {fault}"])


def test_a_hint_names_the_types_of_parts() -> None:
    (bad,) = rows_of(ScoreCommand(), written([{"query": "q", "document": [{"type": "x"}]}])).bad_rows
    assert all(name in str(bad.fault.hint) for name in TYPES)


@pytest.mark.parametrize(
    "column",
    [pa.array([["a", "b"]]), pa.array([[{"id": "1", "text": "a"}]]), pa.array([3]), pa.array([{"x": 1}])],
    ids=lambda column: str(column.type)[:40],
)
def test_a_typed_column_that_can_hold_no_cell_is_refused(column: pa.Array) -> None:
    with pytest.raises(InputError, match="row 0: column 'document' is .*, not text"):
        scored(column)


def test_text_that_is_not_utf8_costs_its_row_alone() -> None:
    raw = pa.array([b"good", b"\xff"], pa.binary())
    texts = pa.Array.from_buffers(pa.string(), 2, raw.buffers())
    column = pa.StructArray.from_arrays([texts, pa.array([RED, RED])], ["text", "image"])
    assert scored(column) == ([("<red>", "good")], ["document: not-utf8: is not UTF-8"])


# ---- flat tables


@pytest.mark.parametrize(
    ("photos", "expected"),
    [
        (["img/red.png", "img/blue.png", None, "img/red.png"], [("<red>", "t"), ["<blue>"], "u", ["<red>"]]),
        ([RED, BLUE, None, RED], [("<red>", "t"), ["<blue>"], "u", ["<red>"]]),
        (
            [["img/red.png", "img/blue.png"], ["img/blue.png"], [], ["img/red.png"]],
            [("<red>", "<blue>", "t"), ["<blue>"], "u", ["<red>"]],
        ),
        (
            [{"bytes": RED, "path": "x"}, {"bytes": BLUE, "path": None}, None, {"bytes": None, "path": "img/red.png"}],
            [("<red>", "t"), ["<blue>"], "u", ["<red>"]],
        ),
    ],
    ids=["paths", "bytes", "lists", "structs"],
)
def test_an_image_column_stands_beside_the_text_or_instead_of_it(photos: list[Any], expected: list[Any]) -> None:
    columns = {"query": ["q"] * 4, "document": ["t", None, "u", ""], "photo": photos}
    command = ScoreCommand(document_image_column="photo")
    assert loaded(command, written(columns)) == (expected, [])
    del columns["document"]
    assert loaded(command, written(columns))[0][1] == ["<blue>"]


def test_in_json_lines_an_image_column_may_mix_what_it_holds() -> None:
    rows = [{"query": "q", "photo": photo} for photo in ("img/red.png", {"url": URL}, ["img/blue.png", URL], 3, "")]
    assert loaded(ScoreCommand(document_image_column="photo"), written(rows)) == (
        [["<red>"], ["<red>"], ("<blue>", "<red>")],
        [
            "photo: not-media: is a JSON number, not the path or URL of an image or video",
            "photo: not-media: is an empty path",
        ],
    )


def test_a_row_with_neither_text_nor_image_is_null() -> None:
    rows = [{"query": "q", "document": "a", "photo": None}, {"query": "q", "document": None, "photo": None}]
    found = loaded(ScoreCommand(document_image_column="photo"), written(rows))
    assert found == (["a"], ["document: null: is null, or has neither text nor media"])


def test_queries_and_videos_have_columns_too() -> None:
    command = ScoreCommand(query_image_column="picture", document_video_column="frames")
    path = written([{"picture": "img/blue.png", "document": "t", "frames": ["img/red.png", "img/blue.png"]}])
    assert loaded(command, path, side="query") == ([["<blue>"]], [])
    assert loaded(command, path) == ([("<video of 2>", "t")], [])


def test_a_text_column_that_was_named_must_be_there() -> None:
    path = written({"query": ["q"], "photo": [RED]})
    with pytest.raises(InputError, match="column 'caption' not found"):
        loaded(ScoreCommand(document_column="caption", document_image_column="photo"), path)
    with pytest.raises(InputError, match="column 'foto' not found") as caught:
        loaded(ScoreCommand(document_image_column="foto"), path)
    assert caught.value.hint == "pass --document-image-column photo"


def test_numbers_are_no_images() -> None:
    with pytest.raises(InputError, match="column 'photo' is int64, no images or videos"):
        loaded(ScoreCommand(document_image_column="photo"), written({"query": ["q"], "photo": [3]}))


def test_encode_reads_images_with_or_without_texts() -> None:
    path = written({"id": [1, 2], "photo": [RED, None], "text": ["t", "u"]})
    assert loaded(EncodeCommand(image_column="photo"), path) == ([("<red>", "t"), "u"], [])
    assert loaded(EncodeCommand(image_column="photo"), written({"id": [1], "photo": [RED]})) == ([["<red>"]], [])


# ---- documents of rerank


def test_listed_documents_have_images_of_their_own() -> None:
    documents = [
        "a",
        {"id": "2", "title": "T", "text": "t", "image": "img/red.png"},
        {"content": [text("x"), image("blue")]},
        [text("y"), image("red")],
        {"image": "img/none.png"},
        {"image": URL},
        None,
    ]
    cells, faults = loaded(RerankCommand(), written([{"query": "q", "documents": documents}]))
    assert cells == ["a", ("<red>", "T t"), ["x", "<blue>"], ["y", "<red>"], ["<red>"]]
    assert faults == [
        "documents[4]: media-missing: 'img/none.png' does not exist",
        "documents[6]: null: is null",
    ]


@pytest.mark.parametrize(
    ("documents", "expected"),
    [
        ([[{"id": "1", "text": "a", "image": {"bytes": RED, "path": None}}]], [("<red>", "a")]),
        ([[{"bytes": RED, "path": None}, {"bytes": BLUE, "path": None}]], [["<red>"], ["<blue>"]]),
        ([[RED, BLUE]], [["<red>"], ["<blue>"]]),
        ([[[text("x"), image("red")], [text("y")]]], [["x", "<red>"], "y"]),
        ([[{"content": [text("x"), image("red")]}]], [["x", "<red>"]]),
        ([[{"id": "1", "text": "a", "type": "news"}, {"id": "2", "text": "b", "type": "blog"}]], ["a", "b"]),
        ([[text("x"), image("red")]], [["x", "<red>"]]),  # parts of one document
        ([{"content": [text("x"), image("red")]}], [["x", "<red>"]]),
        ([{"text": ["a", "b"], "id": ["1", "2"]}], ["a", "b"]),  # a struct of lists, as `datasets` wrote it
    ],
)
def test_parts_of_a_document_are_told_from_a_list_of_documents(documents: list[Any], expected: list[Any]) -> None:
    assert loaded(RerankCommand(), written({"query": ["q"], "documents": documents})) == (expected, [])


def test_ids_stay_with_their_documents() -> None:
    documents = [{"id": "1", "image": "img/red.png"}, {"id": "2", "image": "img/none.png"}, {"id": "3", "text": "t"}]
    rows = rows_of(RerankCommand(), written([{"query": "q", "documents": documents}]))
    assert rows.carried["document_id"].take(pa.array(rows.documents)).to_pylist() == ["1", "3"]


def test_queries_with_images_need_an_id() -> None:
    path = written([{"n": 1, "picture": "img/red.png", "documents": ["a"]}])
    with pytest.raises(UsageError, match="need a column that tells them apart"):
        loaded(RerankCommand(query_image_column="picture"), path)
    command = RerankCommand(query_image_column="picture", query_id_column="n")
    assert loaded(command, path, side="query") == ([["<red>"]], [])


def test_lists_of_documents_take_no_image_column() -> None:
    with pytest.raises(UsageError, match="which --document-image-column cannot add to"):
        loaded(
            RerankCommand(document_image_column="photo"),
            written({"query": ["q"], "photo": [RED], "documents": [["a"]]}),
        )


# ---- where media may lie


def test_paths_begin_at_the_folder_of_their_file_and_stay_below_it(images: Path) -> None:
    Path("rows").mkdir()
    Path("rows/here.png").write_bytes(BLUE)
    rows = [{"query": "q", "photo": name} for name in ("here.png", "../img/red.png", str(images / "img/red.png"))]
    path, command = written(rows, "rows/in"), ScoreCommand(document_image_column="photo")
    cells, faults = loaded(command, path)
    assert cells == [["<blue>"]]
    assert [fault.split(": ")[1] for fault in faults] == ["media-refused"] * 2

    found = rows_of(command, path, media=MediaPolicy(root="."))
    assert [bad.fault.code for bad in found.bad_rows] == ["media-missing", "media-refused"]
    assert [view(cell) for cell in found.pairs.documents.values] == [["<red>"]]


def test_rows_of_a_dataset_bring_their_images_and_name_no_files() -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"query": datasets.Value("string"), "document": datasets.Image()})
    columns = {"query": ["q"] * 2, "document": [{"bytes": RED, "path": None}] * 2}
    datasets.Dataset.from_dict(columns, features).save_to_disk("saved")
    assert loaded(ScoreCommand(), "saved") == ([["<red>"]] * 2, [])

    named = datasets.Dataset.from_dict({"query": ["q"], "photo": ["img/red.png"]})
    named.save_to_disk("named")
    cells, faults = loaded(ScoreCommand(document_image_column="photo"), "named")
    assert (cells, faults[0].split(": ")[1]) == ([], "media-refused")


# ---- from one process to another


def test_packed_cells_are_the_same_cells_and_can_be_opened() -> None:
    finder = MediaFinder(MediaPolicy(root="."))
    cells: list[Cell] = [
        "a text",
        "",
        Content((finder.image("img/red.png"), "t"), ordered=False),
        Content(("x", finder.image(BLUE), "y", finder.video(["img/red.png", RED], 2.0))),
    ]
    table = pack_cells(cells)
    again = unpack_cells(table, MediaPolicy(root="/"))
    assert again == cells
    assert (digests_of(again) == digests_of(cells)).all()
    pixels = [one.source.frames([0], on_white=True)[0].getpixel((0, 0)) for cell in again[2:] for one in cell.media]  # type: ignore[union-attr]
    assert pixels == [(255, 0, 0), (0, 0, 255), (255, 0, 0)]
    assert pack_cells(cells[:2]).column_names == ["text"]


def test_order_and_place_of_parts_are_in_the_digest() -> None:
    red = MediaFinder(MediaPolicy()).image(RED)
    cells: list[Cell] = ["a", Content(("a",)), Content((red, "a")), Content(("a", red)), Content((red, "a"), False)]
    assert len(np.unique(digests_of(cells), axis=0)) == len(cells)


def test_a_cell_shows_its_text_or_else_the_digests_of_its_media() -> None:
    red = MediaFinder(MediaPolicy()).image(RED)
    assert shown(Content((red, "a", "b"))) == "a\nb"
    assert json.loads(shown(Content((red,)))) == [{"type": "image", "digest": red.digest.hex()}]


@pytest.mark.parametrize("value", [Image.new("RGB", (8, 6), "red"), np.full((6, 8, 3), [255, 0, 0], np.uint8)])
def test_python_may_pass_pixels(value: Any) -> None:
    cell = read_cell({"text": "t", "image": value}, MediaFinder(MediaPolicy()))
    assert isinstance(cell, Content)
    assert [(media.width, media.height) for media in cell.media] == [(8, 6)]


def test_units_of_a_streamed_dataset_with_images_are_small() -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"n": datasets.Value("int64"), "photo": datasets.Image()})
    columns = {"n": list(range(300)), "photo": [{"bytes": RED, "path": None}] * 300}
    streamed = datasets.Dataset.from_dict(columns, features).to_iterable_dataset()
    source = FileSource(FileAddresses(()), [DatasetReader("hf:org/name", streamed, 300)])
    assert [unit.rows for unit in source.units(16_384)] == [128, 128, 44]  # of 32 MiB, if a photo has 256 KiB
