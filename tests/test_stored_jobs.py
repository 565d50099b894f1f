"""Jobs with a store: what an earlier job read is not read again, and gives the same bits."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import jobs
from batchscore.engine.batcher import Batcher
from batchscore.engine.scheduler import Pack
from batchscore.errors import StoppedError, UsageError
from batchscore.io.storage import open_folder
from batchscore.jobs.commands import ScoreCommand
from batchscore.jobs.events import Outcome, Silent
from batchscore.jobs.files import encode_files, rerank_files, score_files
from batchscore.jobs.meter import Meter
from batchscore.jobs.options import RunOptions
from batchscore.jobs.parts import start_parts
from batchscore.jobs.run import prepare
from batchscore.models.checkpoint import Checkpoint
from batchscore.runners.build import with_weights
from batchscore.stop import Stop
from batchscore.types import Items
from threads import one_thread

Tiny = Callable[[str], str]
MODELS = ["bert_mean", "colbert", "bert_ce"]
QUERIES = [f"{word} {number}" for number, word in enumerate(jobs.WORDS)][:5]
DOCUMENTS = [row["document"] for row in jobs.random_rows(30)]


def product(queries: list[str], documents: list[str]) -> list[dict[str, Any]]:
    return [{"query_id": query, "query": query, "document": text} for query in queries for text in documents]


@pytest.fixture(autouse=True)
def _here(here: Path) -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture
def forwarded(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How many sequences of each side were forwarded; pairs count as documents."""
    counts, attempt = Counter[str](), Batcher._attempt

    def attempting(batcher: Batcher, items: Items, pack: Pack, *rest: Any, is_query: bool) -> Any:
        counts["query" if is_query else "document"] += len(pack)
        return attempt(batcher, items, pack, *rest, is_query=is_query)

    monkeypatch.setattr(Batcher, "_attempt", attempting)
    return counts


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The models whose weights were read."""
    names: list[str] = []

    def reading(runner: Any, checkpoint: Checkpoint, *rest: Any, **options: Any) -> Any:
        names.append(checkpoint.name)
        return with_weights(runner, checkpoint, *rest, **options)

    monkeypatch.setattr("batchscore.engine.batcher.with_weights", reading)
    return names


def score(model: str, rows: list[dict[str, Any]], out: str, **options: Any) -> Outcome:
    jobs.write_rows("in.parquet", rows)
    return score_files(
        model, "in.parquet", out, **{"store": "store", "dtype": "float32", "unit_rows": 16, "details": True, **options}
    )


def scores(out: str) -> Any:
    return pq.read_table(out)["score"].to_numpy()


@pytest.mark.parametrize("name", MODELS)
def test_the_next_night_reads_what_is_new(tiny: Tiny, forwarded: Counter[str], name: str) -> None:
    is_pair = name == "bert_ce"
    score(tiny(name), product(QUERIES[:4], DOCUMENTS[:29]), "first.parquet")
    assert forwarded == ({"document": 116} if is_pair else {"query": 4, "document": 29})
    forwarded.clear()

    outcome = score(tiny(name), product(QUERIES, DOCUMENTS), "second.parquet")

    assert forwarded == ({"document": 150 - 116} if is_pair else {"query": 1, "document": 1})
    assert outcome.counts["from_store"] == (116 if is_pair else 33)
    assert outcome.counts["texts"] == (150 if is_pair else 35)
    np.testing.assert_array_equal(scores("second.parquet").reshape(5, 30)[:4, :29].ravel(), scores("first.parquet"))
    without = score(tiny(name), product(QUERIES, DOCUMENTS), "without.parquet", store=None)
    np.testing.assert_allclose(scores("second.parquet"), scores("without.parquet"), atol=1e-5, rtol=1e-5)
    assert "from_store" not in without.counts
    for column in ("num_tokens", "truncated"):
        assert pq.read_table("second.parquet")[column] == pq.read_table("without.parquet")[column]


class Stages(Silent):
    """What was loaded, as the events tell it."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def loading(self, model: str, stage: str) -> None:
        self.told.append(stage)


@pytest.mark.parametrize("name", MODELS)
def test_the_same_job_again_loads_and_forwards_nothing_and_writes_the_same_file(
    tiny: Tiny, forwarded: Counter[str], loaded: list[str], name: str
) -> None:
    rows, stages = product(QUERIES, DOCUMENTS), Stages()
    score(tiny(name), rows, "first.parquet", details=False, events=stages)
    assert (loaded, stages.told) == ([tiny(name)], ["files", "weights"])
    forwarded.clear()
    loaded.clear()
    again = score(tiny(name), rows, "again.parquet", details=False, unit_rows=37, events=stages)

    assert not forwarded
    assert (loaded, stages.told[2:]) == ([], ["files"])
    assert again.counts["tokens"] == again.counts["tokens_forwarded"] == 0
    assert pq.read_table("again.parquet") == pq.read_table("first.parquet")
    rerank_files(tiny(name), "in.parquet", "ranked.jsonl", store="store", dtype="float32", query_id_column="query_id")
    if name != "bert_ce":
        encode_files(tiny(name), "in.parquet", "vectors.parquet", store="store", dtype="float32")
    assert not forwarded
    assert not loaded
    assert len(Path("ranked.jsonl").read_text("utf-8").splitlines()) == len(rows)
    score(tiny(name), [*rows, {"query_id": "new", "query": "a new one", "document": "and another"}], "more.parquet")
    assert loaded == [tiny(name)]


@pytest.mark.parametrize("store", [None, "store"])
def test_workers_load_at_once_unless_a_store_may_have_everything(
    tiny: Tiny, loaded: list[str], store: str | None
) -> None:
    score(tiny("bert_ce"), product(QUERIES, DOCUMENTS), "first.parquet", store=store)
    loaded.clear()
    options = RunOptions(["in.parquet"], "second.parquet", store=[store] if store else None)
    job = prepare(ScoreCommand(), {"model": tiny("bert_ce"), "dtype": "float32", "window_rows": 16}, options)
    parts = start_parts(open_folder(job.output.parts), job.plan.fingerprint, job.divide, overwrite=False)
    models = job.for_worker().pipeline(Meter(), Stop(), device="cpu")
    assert bool(loaded) == (store is None)
    models.run(parts.units, lambda task, counts: None)
    models.close()

    assert len(parts.finished()) == len(parts.units) == 10
    assert bool(loaded) == (store is None)


def test_what_is_left_of_a_job_is_compared_without_the_weights(tiny: Tiny, loaded: list[str]) -> None:
    """Once all texts are encoded."""
    jobs.write_rows("in.parquet", product(QUERIES, DOCUMENTS))
    call: Any = partial(score_files, tiny("bert_mean"), "in.parquet", dtype="float32", unit_rows=16, encode="once")
    call("whole.parquet")
    stop = Stop()

    class Stopping(Silent):
        def progress(self, meter: Meter) -> None:
            if meter.rows:
                stop.request("a test")

    with pytest.raises(StoppedError, match="35 of 35 texts are encoded"):
        call("out.parquet", stop=stop, events=Stopping())
    loaded.clear()
    call("out.parquet")

    assert not loaded
    assert pq.read_table("out.parquet") == pq.read_table("whole.parquet")


def test_another_prompt_length_or_dtype_is_another_entry(tiny: Tiny, forwarded: Counter[str]) -> None:
    rows = product(QUERIES, DOCUMENTS)
    score(tiny("bert_mean"), rows, "0.parquet")
    read = []
    for number, options in enumerate(
        ({"query_prompt": "a cat "}, {"document_length": 8}, {"dtype": "bfloat16"}, {"similarity": "dot"}), start=1
    ):
        forwarded.clear()
        score(tiny("bert_mean"), rows, f"{number}.parquet", **options)
        read.append(dict(forwarded))

    # the side that is not concerned is found; how vectors are compared changes none of them
    assert read == [{"query": 5}, {"document": 30}, {"query": 5, "document": 30}, {}]


def test_bad_texts_are_not_kept(tiny: Tiny, forwarded: Counter[str]) -> None:
    rows = product(QUERIES[:2], [*jobs.WORDS[:5], "the cat and the dog " * 20])
    first = score(tiny("bert_mean"), rows, "first.parquet", truncation="error", max_length=40)
    forwarded.clear()
    second = score(tiny("bert_mean"), rows, "second.parquet", truncation="error", max_length=40)

    assert (first.bad_rows, second.bad_rows) == (2, 2)
    assert Path("first.parquet.errors.jsonl").read_bytes() == Path("second.parquet.errors.jsonl").read_bytes()
    assert not forwarded
    assert second.counts["from_store"] == 2 + 5


@pytest.mark.parametrize("name", ["bert_mean", "colbert"])
def test_files_of_encode_are_looked_up_beside_the_store(tiny: Tiny, forwarded: Counter[str], name: str) -> None:
    jobs.write_rows("corpus.jsonl", [{"id": number, "text": text} for number, text in enumerate(DOCUMENTS)])
    encode_files(tiny(name), "corpus.jsonl", "vectors.parquet", dtype="float32")
    forwarded.clear()
    outcome = score(tiny(name), product(QUERIES, DOCUMENTS), "out.parquet", store=["vectors.parquet", "store"])

    assert forwarded == {"query": 5}
    assert outcome.counts["from_store"] == 30
    score(tiny(name), product(QUERIES, DOCUMENTS), "without.parquet", store=None)
    np.testing.assert_allclose(scores("out.parquet"), scores("without.parquet"), atol=1e-5, rtol=1e-5)
    forwarded.clear()
    score(tiny(name), product(QUERIES, DOCUMENTS), "only.parquet", store="vectors.parquet")
    assert forwarded == {"query": 5}
    assert {path.name for path in Path("store").iterdir()} != set()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("bert_ce", {"store": "vectors.parquet"}, "--store vectors.parquet has encodings of texts"),
        ("bert_mean", {"store": ["one", "two"]}, "--store names two folders, one and two"),
        ("bert_mean", {"store": "parts"}, "--store parts is the folder of a job"),
        ("bert_mean", {"store": "s3://bucket/store"}, "s3://bucket/store cannot be a store"),
        ("bert_mean", {"store": "in.parquet"}, "--store in.parquet has no encodings that can be looked up"),
        (
            "bert_mean",
            {"store": "vectors.parquet", "document_length": 8},
            "--store vectors.parquet has encodings of another model: model.document_length was 64 and is 8",
        ),
        ("jina_listwise", {"store": "store"}, "--store keeps scores of pairs"),
        ("bert_mean", {"store": "store", "encode": "unit"}, "--encode unit makes none to keep"),
    ],
)
def test_what_is_no_store_is_refused_before_the_weights_are_read(
    tiny: Tiny, name: str, options: dict[str, Any], message: str
) -> None:
    jobs.write_rows("corpus.jsonl", [{"id": number, "text": text} for number, text in enumerate(DOCUMENTS)])
    encode_files(tiny("bert_mean"), "corpus.jsonl", "vectors.parquet", dtype="float32")
    encode_files(tiny("bert_mean"), "corpus.jsonl", "parts/", dtype="float32")
    with pytest.raises(UsageError) as caught:
        score(tiny(name), product(QUERIES, DOCUMENTS), "out.parquet", **options)

    assert caught.value.message.startswith(message) or message in caught.value.message
    assert not Path(".out.parquet.parts").exists()


def test_the_variable_names_the_store_for_all_jobs(tiny: Tiny) -> None:
    jobs.write_rows("in.parquet", product(QUERIES[:1], DOCUMENTS[:3]))
    arguments = ["score", "--model", tiny("bert_mean"), "--in", "in.parquet", "--dtype", "float32"]
    for out in ("first.parquet", "second.parquet"):
        code, said = jobs.finish(*arguments, "--out", out, BATCHSCORE_STORE="everything")
        assert code == 0, said

    counts = json.loads(Path("second.parquet.run.json").read_text("utf-8"))["counts"]
    assert (counts["from_store"], counts["tokens_forwarded"]) == (4, 0)
    assert "texts    4 distinct, each read once, 4 from the store; 0 tokens" in said
