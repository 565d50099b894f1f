"""Documents whose encodings do not fit on the disk at once: groups of blocks, each removed when its rows are scored."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import jobs
from batchscore.engine.batcher import Batcher
from batchscore.errors import RuntimeFailureError, StoppedError, UsageError
from batchscore.jobs import survey
from batchscore.jobs.events import Outcome
from batchscore.jobs.files import score_files
from batchscore.jobs.passes import Pass, Passes
from batchscore.jobs.pipeline import Pipeline
from batchscore.jobs.room import Room
from batchscore.types import Encodings
from threads import one_thread

Tiny = Callable[[str], str]
ROWS = [
    {"id": number, "query": f"{jobs.WORDS[number * 5 % 7]} {number * 5 % 7}", "document": row["document"]}
    for number, row in enumerate(jobs.random_rows(40) * 3)
]


@pytest.fixture(autouse=True)
def _here(here: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(survey, "_BLOCK_TEXTS", 4)
    monkeypatch.setattr("batchscore.jobs.pipeline._WAIT_SECONDS", 0.01)
    jobs.write_rows("in.parquet", ROWS)
    with one_thread():
        yield


@pytest.fixture
def few(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """Room for the queries and three blocks of documents, after whole.parquet is made of one group."""
    score(tiny("bert_mean"), "whole.parquet")
    groups = Room.groups

    def in_threes(room: Room, blocks: list[Any]) -> list[list[Any]]:
        (documents,) = groups(room, blocks)
        return [documents[start : start + 3] for start in range(0, len(documents), 3)]

    monkeypatch.setattr(Room, "groups", in_threes)


def score(model: str, out: str, **options: Any) -> Outcome:
    return score_files(model, "in.parquet", out, dtype="float32", unit_rows=16, encode="once", details=True, **options)


def table(path: str) -> Any:
    return pq.read_table(path).to_pylist()


def test_groups_give_the_same_bytes_and_read_each_text_once(
    tiny: Tiny, few: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, encode = Counter[str](), Batcher.encode
    most = 0

    def counted(batcher: Batcher, work: Any, side: str, *rest: Any, **options: Any) -> Encodings:
        nonlocal most
        read[side] += len(work)
        most = max(most, len(list(Path(".grouped.parquet.parts").glob("block-*.safetensors"))))
        return encode(batcher, work, side, *rest, **options)

    monkeypatch.setattr(Batcher, "encode", counted)
    outcome = score(tiny("bert_mean"), "grouped.parquet")

    assert table("grouped.parquet") == table("whole.parquet")
    assert read == {"query": 7, "document": 40}
    assert (outcome.counts["texts"], outcome.counts["rows"]) == (47, 120)
    assert 3 <= most <= 2 + 3 + 1  # two blocks of queries, a group, and one that is removed only when it is over


def test_matrices_come_in_groups_too(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    groups, seen = Room.groups, list[int]()

    def counted(room: Room, blocks: list[Any]) -> list[list[Any]]:
        made = groups(room, blocks)
        seen.append(len(made))
        return made

    monkeypatch.setattr(Room, "groups", counted)
    for gigabytes in (1, 2e-5):
        score(tiny("colbert"), f"{gigabytes}.parquet", encodings_gb=gigabytes)

    assert seen[0] == 1 < seen[1]

    one, several = table("1.parquet"), table("2e-05.parquet")
    scores = [np.array([row.pop("score") for row in rows]) for rows in (one, several)]
    np.testing.assert_allclose(scores[0], scores[1], rtol=1e-6)
    assert one == several


def test_shards_take_their_passes_one_after_the_other(tiny: Tiny, few: None) -> None:
    for shard in ("1/2", "0/2"):
        score(tiny("bert_mean"), "parts/", shard=shard, merge=True)

    assert table("parts.parquet") == table("whole.parquet")


def test_a_run_that_ends_in_a_pass_is_resumed(tiny: Tiny, few: None, monkeypatch: pytest.MonkeyPatch) -> None:
    save, saved = Passes.save, []

    def stopping(passes: Passes, task: Pass, rows: Encodings) -> None:
        save(passes, task, rows)
        saved.append(task.key)
        if len(saved) in (3, 11):
            raise StoppedError("enough")

    monkeypatch.setattr(Passes, "save", stopping)
    for _ in range(2):
        with pytest.raises(StoppedError, match="enough"):
            score(tiny("bert_mean"), "parts/")
    score(tiny("bert_mean"), "parts/", merge=True)

    assert table("parts.parquet") == table("whole.parquet")
    assert len(set(saved)) == len(saved) == 8 * 3  # each unit has a pass for all groups but the last
    left = {path.name.partition("-")[0] for path in Path("parts").iterdir()}
    assert left == {"_job.json", "_run.json", "_texts.json", "part"}


def test_the_limit_makes_the_groups(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """A vector has 32 numbers of four bytes: 7 queries take 896 bytes, a block of four documents 512."""
    groups: list[int] = []
    run = Pipeline.run

    def seen(pipeline: Pipeline, *arguments: Any) -> None:
        assert pipeline.blocks is not None
        groups.append(len(pipeline.blocks.groups))
        run(pipeline, *arguments)

    monkeypatch.setattr(Pipeline, "run", seen)
    for gigabytes in (1, 2e-6, 1e-7 * 9.1):
        score(tiny("bert_mean"), f"{gigabytes}.parquet", encodings_gb=gigabytes)

    assert groups[0] == 1
    assert 1 < groups[1] < groups[2] == 10
    with pytest.raises(UsageError, match="those of the queries alone need more"):
        score(tiny("bert_mean"), "none.parquet", encodings_gb=5e-7)


def test_a_pass_that_is_gone_is_made_again(tiny: Tiny, few: None, monkeypatch: pytest.MonkeyPatch) -> None:
    read, damaged = Passes.before, []

    def gone(passes: Passes, task: Pass) -> Encodings:
        if task.key == ("pass 1 of unit", 2) and not damaged:
            damaged.append(task)
            Path("parts/part-00002.pass-0").write_bytes(b"")
        return read(passes, task)

    monkeypatch.setattr(Passes, "before", gone)
    with pytest.raises(RuntimeFailureError, match=r"part-00002.pass-0 is damaged or gone"):
        score(tiny("bert_mean"), "parts/")
    score(tiny("bert_mean"), "parts/", merge=True)

    assert table("parts.parquet") == table("whole.parquet")
    assert np.isfinite([row["score"] for row in table("parts.parquet")]).all()
