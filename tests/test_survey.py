"""Which texts a job has, found before any is encoded, and whether it is worth it to encode each of them once."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import jobs
from batchscore.errors import InputError, StoppedError
from batchscore.io.source import Source, open_source
from batchscore.io.storage import LocalFolder, open_folder
from batchscore.jobs import survey as surveys
from batchscore.jobs.blocks import Blocks, open_blocks
from batchscore.jobs.commands import ScoreCommand
from batchscore.jobs.commands.base import UnitRows
from batchscore.jobs.files import score_files
from batchscore.jobs.parts import TEXTS, Division, Parts, start_parts
from batchscore.jobs.room import Room
from batchscore.jobs.survey import choose, survey
from batchscore.stop import Stop
from batchscore.types import SIDES, Side
from threads import one_thread

pytestmark = pytest.mark.usefixtures("here")

Tiny = Callable[[str], str]
Pairs = list[tuple[str, str]]
ROOM = Room(float("inf"), {"query": 40, "document": 400}, 128.0, 0.0)


def rows_of(pairs: Pairs) -> list[dict[str, Any]]:
    return [{"query": query, "document": document} for query, document in pairs]


def surveyed(pairs: Pairs, unit_rows: int = 10, room: Room = ROOM, folder: str = "job") -> tuple[Blocks, Parts, Source]:
    """The texts of a job."""
    source = open_source([jobs.write_rows("in.jsonl", rows_of(pairs))])
    command = ScoreCommand()
    parts = start_parts(
        open_folder(folder),
        {"inputs": source.fingerprint()},
        lambda: Division(command.units(source, unit_rows, listwise=False), "once"),
        overwrite=False,
    )
    survey(parts, command, source, room, lambda rows: None, Stop())
    blocks = open_blocks(parts.folder, parts.id)
    assert blocks is not None
    return blocks, parts, source


def texts_of(blocks: Blocks, side: Side) -> list[str]:
    return [text for block in blocks.blocks if block.side == side for text in blocks.texts(block)]


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows of 50 texts in blocks of 8."""
    monkeypatch.setattr(surveys, "_WINDOW_TEXTS", 50)
    monkeypatch.setattr(surveys, "_BLOCK_TEXTS", 8)


# ---- what is collected


@pytest.mark.usefixtures("small_blocks")
def test_every_distinct_text_is_in_one_block_and_the_index_knows_where() -> None:
    draw = random.Random(1)
    pairs = [(f"query {draw.randrange(30)}", f"{number % 170} " + "word " * draw.randrange(9)) for number in range(400)]
    blocks, *_ = surveyed(pairs)

    for place, side in enumerate(SIDES):
        found = texts_of(blocks, side)
        assert sorted(found) == sorted({pair[place] for pair in pairs})
        assert blocks.find(side, found)[0].tolist() == list(range(len(found)))
    assert blocks.num_texts == len(texts_of(blocks, "query")) + len(texts_of(blocks, "document"))
    documents = [block for block in blocks.blocks if block.side == "document"]
    assert len(documents) > 170 / 8
    assert all(block.texts > 0 for block in documents)
    assert [block.first for block in documents] == [sum(b.texts for b in documents[:n]) for n in range(len(documents))]
    assert max(block.size for block in documents) < 3 * min(block.size for block in documents[:5])


@pytest.mark.usefixtures("small_blocks")
def test_the_longest_text_of_a_window_comes_first() -> None:
    blocks, *_ = surveyed([("q", "x" * length) for length in [3, 50, 7, 380, 1, 20]])
    assert [len(text) for text in texts_of(blocks, "document")] == [380, 50, 20, 7, 3, 1]


def test_texts_beyond_what_the_model_reads_cost_no_more() -> None:
    blocks, *_ = surveyed([("q" * 30_000, "x" * 200_000), ("q", "x" * 100_000)])
    assert [(block.side, block.texts, block.size) for block in blocks.blocks] == [
        ("query", 2, 40 + 1 + 2 * 16),
        ("document", 2, 2 * 400 + 2 * 16),
    ]


@pytest.mark.usefixtures("small_blocks")
def test_a_survey_writes_the_same_files_again() -> None:
    pairs = [(f"q {number % 7}", f"document {number % 90}") for number in range(200)]
    _, parts, source = surveyed(pairs)
    before = jobs.contents("job")
    survey(parts, ScoreCommand(), source, ROOM, lambda rows: None, Stop())
    assert jobs.contents("job") == before

    (Path("job") / TEXTS).write_text('{"job": "anothe')
    assert open_blocks(parts.folder, parts.id) is None
    survey(parts, ScoreCommand(), source, ROOM, lambda rows: None, Stop())
    assert jobs.contents("job") == before


@pytest.mark.usefixtures("small_blocks")
def test_groups_are_decided_by_the_first_survey() -> None:
    pairs = [("q", f"document {number}") for number in range(60)]
    blocks, parts, source = surveyed(pairs, room=Room(20 * 128.0, ROOM.limits, 128.0, 0.0))
    assert len(blocks.groups) > 2
    survey(parts, ScoreCommand(), source, ROOM, lambda rows: None, Stop())
    again = open_blocks(parts.folder, parts.id)
    assert again is not None
    assert again.groups == blocks.groups


def test_of_a_row_without_both_texts_none_is_collected() -> None:
    jobs.write_rows("in.jsonl", [{"query": "a", "document": "b"}, {"query": "c"}, {"query": None, "document": "d"}])
    source, command = open_source(["in.jsonl"]), ScoreCommand()
    division = Division(command.units(source, 2, listwise=False), "once")
    parts = start_parts(open_folder("job"), {"a": 1}, lambda: division, overwrite=False)
    seen: list[int] = []

    def on_unit(rows: UnitRows) -> None:
        seen.append(len(rows.bad_rows))

    survey(parts, command, source, ROOM, on_unit, Stop())
    blocks = open_blocks(parts.folder, parts.id)
    assert blocks is not None
    assert (texts_of(blocks, "query"), texts_of(blocks, "document"), seen) == (["a"], ["b"], [1, 1])


def test_a_survey_that_is_stopped_leaves_no_list_and_no_folder() -> None:
    source = open_source([jobs.write_rows("in.jsonl", rows_of([("q", str(number)) for number in range(30)]))])
    command, stop = ScoreCommand(), Stop()
    division = Division(command.units(source, 10, listwise=False), "once")
    parts = start_parts(LocalFolder("job"), {"a": 1}, lambda: division, overwrite=False)
    stop.request("a test")
    with pytest.raises(StoppedError):
        survey(parts, command, source, ROOM, lambda rows: None, stop)
    assert [path.name for path in Path("job").iterdir()] == ["_job.json"]


# ---- the choice


def chosen(pairs: Sequence[tuple[str, str]], unit_rows: int = 20) -> Division:
    source = open_source([jobs.write_rows("in.jsonl", rows_of(list(pairs)))])
    command = ScoreCommand()
    return choose(command, source, command.units(source, unit_rows, listwise=False), lambda: None)


def scattered(times: int, texts: int) -> Iterator[tuple[str, str]]:
    draw = random.Random(0)
    for number in range(texts * times):
        yield f"q {draw.randrange(texts)}", f"document {number % texts}"


PRODUCT = [(f"query {query}", f"document {document}") for query in range(20) for document in range(60)]
NEW = [(f"query {number}", f"document {number}") for number in range(600)]
INSIDE = [(f"query {number // 20}", f"document {number // 20} {number % 4}") for number in range(600)]


@pytest.mark.parametrize(
    ("pairs", "encode"),
    [
        (NEW, "unit"),
        (PRODUCT, "once"),
        (sorted(PRODUCT, key=lambda pair: pair[1]), "once"),
        (list(scattered(100, 12)), "once"),
        (list(scattered(2, 300)), "once"),
        (INSIDE, "unit"),
        (NEW[:20], "unit"),  # one unit
        (NEW[:40], "unit"),  # two
        (NEW[:20] * 2, "once"),
    ],
    ids=["new", "product", "by document", "100:1", "2:1", "inside units", "one unit", "two units", "one unit twice"],
)
def test_texts_are_encoded_once_where_they_come_back_in_other_units(pairs: Pairs, encode: str) -> None:
    division = chosen(pairs)
    assert division.encode == encode, division.reason
    assert division.reason


def test_no_units_are_no_texts_to_encode_once() -> None:
    source = open_source([jobs.write_rows("in.jsonl", rows_of(NEW[:2]))])
    assert choose(ScoreCommand(), source, [], lambda: None).encode == "unit"


def test_the_sample_is_small_and_can_be_stopped() -> None:
    source = open_source([jobs.write_rows("in.jsonl", rows_of(NEW))])
    command, stop, seen = ScoreCommand(), Stop(), list[int]()
    units = command.units(source, 20, listwise=False)
    choose(command, source, units, lambda: seen.append(1))
    assert len(seen) <= 8 < len(units)
    stop.request("a test")
    with pytest.raises(StoppedError):
        choose(command, source, units, stop.check)


def score(model: str, **options: Any) -> Any:
    with one_thread():
        return score_files(model, "in.jsonl", "out/", dtype="float32", unit_rows=20, **options)


def test_a_job_keeps_its_choice(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs.write_rows("in.jsonl", rows_of(PRODUCT[:200]))
    score(tiny("bert_mean"), shard="0/2")
    job = json.loads(Path("out/_job.json").read_text("utf-8"))
    assert job["encode"] == "once"
    assert "% of what units read" in job["encode_reason"]
    monkeypatch.setattr("batchscore.jobs.run.choose", pytest.fail)
    outcome = score(tiny("bert_mean"))
    assert outcome.counts["encode"] == "once"
    assert outcome.counts["texts"] == 60 + 4


def test_fail_ends_with_the_first_bad_row_before_anything_is_encoded(tiny: Tiny) -> None:
    rows = [*rows_of(PRODUCT[:100]), {"query": None, "document": "x"}, *rows_of(PRODUCT[100:200])]
    jobs.write_rows("in.jsonl", rows)
    with pytest.raises(InputError, match="in.jsonl, line 101: column 'query' "):
        score(tiny("bert_mean"), errors="fail", encode="once")
    assert not list(Path("out").glob("*.safetensors"))
