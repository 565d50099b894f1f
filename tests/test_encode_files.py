"""`encode`: the vectors and matrices that scores are made of, in files."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray
from typer.testing import CliRunner

import jobs
from batchscore import Scorer, encode_files, score_files
from batchscore.cli.main import app
from batchscore.engine.batcher import Batcher
from batchscore.errors import InputError, OutputError, RuntimeFailureError, UsageError
from batchscore.io.digests import digests_of
from batchscore.io.sink import open_sinks
from batchscore.io.source import open_source
from batchscore.jobs.commands import EncodeCommand
from batchscore.jobs.events import Outcome
from batchscore.jobs.results import matrices
from batchscore.runners.bi_encoder import BiEncoder
from batchscore.types import Encodings
from threads import one_thread

pytestmark = pytest.mark.usefixtures("here")

Tiny = Callable[[str], str]
CORPUS: list[dict[str, Any]] = [
    {"_id": "007", "title": "Cats", "text": "the cat sat on the mat"},
    {"_id": "008", "title": "", "text": "a dog"},
    {"_id": "0010", "title": "Cats", "text": "the cat sat on the mat"},
]
JOINED = ["Cats the cat sat on the mat", "a dog", "Cats the cat sat on the mat"]
SAME = 1e-6


def encode(model: str, source: str, out: str, **options: Any) -> Outcome:
    return encode_files(model, source, out, **{"dtype": "float32", **options})


def vectors(path: str, column: str = "vector") -> list[NDArray[np.float32]]:
    return [np.array(row, np.float32) for row in pq.read_table(path)[column].to_pylist()]


# ---- numbers


def test_vectors_are_those_of_sentence_transformers(tiny: Tiny) -> None:
    """The first six numbers of SentenceTransformer.encode_document and encode_query, version 6.2."""
    jobs.write_rows("corpus.jsonl", CORPUS[:2])
    encode(tiny("bert_mean"), "corpus.jsonl", "documents.parquet")
    encode(tiny("bert_mean"), "corpus.jsonl", "queries.parquet", side="query")

    documents, queries = vectors("documents.parquet"), vectors("queries.parquet")
    expected = [
        [0.0746175, -0.2269776, 0.1361388, 0.1395940, 0.0525805, 0.1327064],
        [0.0098239, -0.0348275, 0.1427015, -0.0379457, 0.2017063, 0.0163580],
    ]
    np.testing.assert_allclose([vector[:6] for vector in documents], expected, rtol=0, atol=SAME)
    of_a_query = [0.0263549, -0.0007373, 0.0638647, 0.0554444, 0.1264635, 0.0891605]
    np.testing.assert_allclose(queries[1][:6], of_a_query, rtol=0, atol=SAME)


def test_matrices_are_those_of_sentence_transformers(tiny: Tiny) -> None:
    """The first four columns of MultiVectorEncoder.encode_document, version 6.2."""
    jobs.write_rows("corpus.jsonl", CORPUS[:2])
    encode(tiny("colbert"), "corpus.jsonl", "documents.parquet")

    matrix = vectors("documents.parquet", "vectors")[1]
    expected = [
        [0.211564, 0.148600, 0.277878, 0.053280],
        [0.163097, 0.167485, 0.238894, 0.007920],
        [0.307862, -0.018485, 0.017884, 0.057090],
        [0.287442, -0.164408, 0.269176, 0.120545],
        [0.183120, -0.066288, 0.209804, 0.171883],
    ]
    assert matrix.shape == (5, 16)
    np.testing.assert_allclose(matrix[:, :4], expected, rtol=0, atol=SAME)


@pytest.mark.parametrize(("name", "column"), [("bert_mean", "vector"), ("colbert", "vectors")])
def test_what_is_written_gives_the_scores_of_score(tiny: Tiny, name: str, column: str) -> None:
    jobs.write_rows("pairs.parquet", jobs.random_rows(40))
    for side in ("query", "document"):
        encode(tiny(name), "pairs.parquet", f"{side}.parquet", side=side, unit_rows=16)
    score_files(tiny(name), "pairs.parquet", "scores.parquet", dtype="float32", unit_rows=16)

    pairs = zip(vectors("query.parquet", column), vectors("document.parquet", column), strict=True)
    products = [query @ document.T for query, document in pairs]
    scores = [product.max(1).sum() if column == "vectors" else product for product in products]
    np.testing.assert_allclose(scores, pq.read_table("scores.parquet")["score"].to_numpy(), rtol=0, atol=1e-5)


def test_rows_keep_their_order_whatever_the_units_and_the_format(tiny: Tiny) -> None:
    rows = jobs.random_rows(50)
    rows[20]["document"] = rows[3]["document"]
    jobs.write_rows("in.jsonl", rows)
    for out in ("out.parquet", "out.jsonl", "out.npy"):
        encode(tiny("bert_mean"), "in.jsonl", out, unit_rows=16)

    table, matrix = pq.read_table("out.parquet"), np.load("out.npy")
    lines = [json.loads(line) for line in Path("out.jsonl").read_text("utf-8").splitlines()]
    with Scorer(tiny("bert_mean"), dtype="float32") as scorer:
        expected = scorer.encode([row["document"] for row in rows])
    np.testing.assert_allclose(matrix, expected, rtol=0, atol=SAME)
    np.testing.assert_array_equal(np.stack(vectors("out.parquet")), matrix)
    np.testing.assert_array_equal(np.float32([line["vector"] for line in lines]), matrix)
    ids = [row["id"] for row in rows]
    assert table["id"].to_pylist() == [line["id"] for line in lines] == ids
    assert Path("out.npy.ids.txt").read_text("utf-8").splitlines() == ids
    assert (matrix.dtype, matrix.shape) == (np.float32, (50, 32))


def test_equal_texts_of_a_unit_are_read_once(tiny: Tiny) -> None:
    jobs.write_rows("corpus.jsonl", CORPUS)
    outcome = encode(tiny("bert_mean"), "corpus.jsonl", "out.parquet")

    first, _, last = vectors("out.parquet")
    assert outcome.counts["texts"] == 2
    np.testing.assert_array_equal(first, last)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_matrices_of_a_bfloat16_body_are_written_as_float32(tiny: Tiny, dtype: str) -> None:
    jobs.write_rows("corpus.jsonl", CORPUS)
    encode(tiny("colbert"), "corpus.jsonl", "out.parquet", dtype=dtype)

    kind = pq.read_schema("out.parquet").field("vectors").type
    assert (kind.value_type, kind.value_type.list_size) == (pa.list_(pa.float32(), 16), 16)
    written = torch.tensor(vectors("out.parquet", "vectors")[1])
    assert torch.equal(written, written.to(getattr(torch, dtype)).float())
    np.testing.assert_allclose(written.norm(dim=1), 1, rtol=0, atol=1e-2)


def test_half_floats_stay_half_floats() -> None:
    values = np.arange(6, dtype=np.float16).reshape(3, 2)
    column = matrices(Encodings(values, np.array([0, 1, 3]), np.zeros(2, np.int32), np.zeros(2, np.uint8)))

    assert column.type == pa.list_(pa.list_(pa.float16(), 2))
    assert column.to_pylist() == [[[0, 1]], [[2, 3], [4, 5]]]


# ---- columns


@pytest.mark.parametrize(
    ("row", "options", "text", "ids"),
    [
        (CORPUS[0], {}, "Cats the cat sat on the mat", {"_id": "007"}),
        (CORPUS[0], {"document_fields": "text"}, "the cat sat on the mat", {"_id": "007"}),
        (CORPUS[0], {"text_column": "title", "id_column": "text"}, "Cats", {"text": "the cat sat on the mat"}),
        ({"_id": "q1", "text": "cat", "title": "x"}, {"side": "query"}, "cat", {"_id": "q1"}),
        ({"id": 7, "query": "cat", "document": "a dog"}, {}, "a dog", {"id": 7}),
        ({"id": 7, "query_id": "q", "query": "cat", "document": "dog"}, {"side": "query"}, "cat", {"query_id": "q"}),
        ({"docno": "7", "contents": "a dog", "url": "u"}, {"keep_columns": "url"}, "a dog", {"docno": "7", "url": "u"}),
        ({"text": "a dog"}, {}, "a dog", {}),
    ],
)  # fmt: skip
def test_texts_and_ids_are_found_by_their_usual_names(
    tiny: Tiny, row: dict[str, Any], options: dict[str, Any], text: str, ids: dict[str, Any]
) -> None:
    jobs.write_rows("in.jsonl", [row])
    encode(tiny("bert_mean"), "in.jsonl", "out.parquet", max_length=8, **options)

    (found,) = pq.read_table("out.parquet").to_pylist()
    assert {name: found.pop(name) for name in ids} == ids
    assert found.keys() == {"vector", "text_digest", "num_tokens", "truncated"}
    assert found["text_digest"] == digests_of([text]).tobytes()
    is_long = len(text) > len("the cat sat")
    assert (found["num_tokens"] == 8, found["truncated"]) == (is_long, "document" if is_long else "none")


def test_the_file_says_what_encoded_it(tiny: Tiny) -> None:
    jobs.write_rows("corpus.jsonl", CORPUS)
    outcomes = [
        encode(tiny("bert_mean"), "corpus.jsonl", f"{side}.parquet", side=side) for side in ("query", "document")
    ]
    for side, outcome in zip(("query", "document"), outcomes, strict=True):
        note = json.loads(pq.read_metadata(f"{side}.parquet").metadata[b"batchscore"])
        expected = outcome.plan.encoding_fingerprint(side)  # type: ignore[arg-type]
        assert note == {"encoding": json.loads(json.dumps(expected))}
        assert note["encoding"]["side"] == side


def test_a_column_that_is_not_clear_is_asked_for(tiny: Tiny) -> None:
    jobs.write_rows("in.jsonl", [{"passage": "a dog"}])
    with pytest.raises(InputError, match="no column has a usual name of a document's text; columns: passage") as caught:
        encode(tiny("bert_mean"), "in.jsonl", "out.parquet")
    assert caught.value.hint == "pass --text-column with one of these columns"
    jobs.write_rows("in.jsonl", [{"text": "a dog", "vector": [1]}])
    with pytest.raises(UsageError, match="already has a column 'vector'"):
        encode(tiny("bert_mean"), "in.jsonl", "out.parquet", keep_columns="all")
    with pytest.raises(InputError, match="column 'key' not found"):
        encode(tiny("bert_mean"), "in.jsonl", "out.parquet", id_column="key")


# ---- what is refused


@pytest.mark.parametrize(
    ("name", "out", "options", "message"),
    [
        ("bert_ce", "out.parquet", {}, "no text has an encoding of its own"),
        ("colbert", "out.npy", {}, "late interaction has a matrix for each text"),
        ("bert_mean", "out.npy", {"keep_columns": "title"}, "beside the matrix there are ids alone"),
        ("bert_mean", "out.parquet", {"encode": "once"}, "encode reads each text once in each unit"),
        ("bert_mean", "out.parquet", {"text_column": "text", "document_fields": "text"}, "has no effect beside"),
    ],
)
def test_what_cannot_be_written_is_refused_before_anything_is(
    tiny: Tiny, name: str, out: str, options: dict[str, Any], message: str
) -> None:
    jobs.write_rows("corpus.jsonl", CORPUS)
    with pytest.raises(UsageError, match=message):
        encode(tiny(name), "corpus.jsonl", out, **options)
    assert os.listdir() == ["corpus.jsonl"]


def test_scores_are_no_matrix(tiny: Tiny) -> None:
    jobs.write_rows("in.jsonl", jobs.random_rows(3))
    with pytest.raises(UsageError, match="a score is no vector"):
        score_files(tiny("bert_mean"), "in.jsonl", "out.npy")
    score_files(tiny("bert_mean"), "in.jsonl", "parts/")
    result = CliRunner().invoke(app, ["merge", "parts/", "--out", "out.npy"])
    assert (result.exit_code, "a score is no vector" in result.stderr) == (2, True)
    assert sorted(os.listdir()) == ["in.jsonl", "parts"]


# ---- bad rows


@pytest.mark.parametrize("errors", ["quarantine", "null"])
def test_bad_rows_are_left_out_or_have_no_vector(tiny: Tiny, monkeypatch: pytest.MonkeyPatch, errors: str) -> None:
    """The last unit has bad rows alone, whose vectors have no dimension."""
    texts: list[Any] = ["a dog", "cat " * 30, 7, "bird", None, None]
    jobs.write_rows("in.jsonl", [{"id": f"{row:03}", "text": text} for row, text in enumerate(texts)])
    plain = BiEncoder.vectors

    def overflowing(runner: BiEncoder, batch: Any) -> Any:
        made = plain(runner, batch)
        return made * torch.inf if batch.longest > 20 else made

    monkeypatch.setattr(BiEncoder, "vectors", overflowing)
    options = {"errors": errors, "unit_rows": 4, "batch_tokens": 8}
    outcomes = [encode(tiny("bert_mean"), "in.jsonl", out, **options) for out in ("out.parquet", "out.npy")]

    assert [(outcome.bad_rows, outcome.exit_code) for outcome in outcomes] == [(4, 7), (4, 7)]
    faults = [json.loads(line) for line in Path("out.npy.errors.jsonl").read_text("utf-8").splitlines()]
    assert [(fault["row"], fault["code"]) for fault in faults] == [
        (1, "non-finite"), (2, "not-text"), (4, "null"), (5, "null")
    ]  # fmt: skip
    ids = [f"{row:03}" for row in ((0, 3) if errors == "quarantine" else range(6))]
    table, matrix = pq.read_table("out.parquet"), np.load("out.npy")
    assert pa.types.is_fixed_size_list(table.schema.field("vector").type) == (errors == "quarantine")
    assert table["id"].to_pylist() == Path("out.npy.ids.txt").read_text("utf-8").splitlines() == ids
    has_none = [vector is None for vector in table["vector"].to_pylist()]
    assert has_none == np.isnan(matrix).all(1).tolist() == [name not in ("000", "003") for name in ids]
    assert b"batchscore" in pq.read_metadata("out.parquet").metadata


def test_an_input_without_rows_has_an_output_without_rows(tiny: Tiny) -> None:
    jobs.write_rows("corpus.jsonl", CORPUS)
    for out in ("out.parquet", "out.npy"):
        encode(tiny("bert_mean"), "corpus.jsonl", out, limit=0)

    assert pq.read_table("out.parquet").num_rows == len(np.load("out.npy")) == 0


def test_rows_before_the_first_vector_are_nan(tmp_path: Path) -> None:
    vector = pa.FixedSizeListArray.from_arrays(pa.array([1.5, 2.5], pa.float32()), 2)
    tables = [
        pa.table({"id": [None, 7], "vector": pa.nulls(2)}),
        pa.table({"id": [8], "vector": vector}),
        pa.table({"id": [9], "vector": pa.nulls(1)}),
    ]
    write(tables, "out.npy")

    np.testing.assert_array_equal(
        np.load("out.npy"), np.float32([[np.nan] * 2, [np.nan] * 2, [1.5, 2.5], [np.nan] * 2])
    )
    assert Path("out.npy.ids.txt").read_text("utf-8") == "\n7\n8\n9\n"


@pytest.mark.parametrize("name", ["a\nb", "a\r", "a\u2028b"])
def test_an_id_that_is_no_line_is_refused_and_leaves_no_file(name: str) -> None:
    vector = pa.FixedSizeListArray.from_arrays(pa.array([1.5, 2.5], pa.float32()), 2)
    with pytest.raises(InputError, match="has a line break"):
        write([pa.table({"id": [name], "vector": vector})], "out.npy")
    assert os.listdir() == []


def write(tables: Sequence[pa.Table], path: str) -> None:
    first, second = open_sinks(path, tables[0].column_names)
    with first, second:
        for table in tables:
            first.write(table)
            second.write(table)


# ---- jobs


def test_parts_shards_and_a_resumed_run_give_the_bytes_of_one_run(tiny: Tiny) -> None:
    jobs.write_rows("in.parquet", jobs.random_rows(100))
    encode(tiny("bert_mean"), "in.parquet", "whole.parquet", unit_rows=16)
    for index in (1, 0):
        encode(tiny("bert_mean"), "in.parquet", "parts/", unit_rows=16, shard=f"{index}/2", merge=True)
    assert Path("parts.parquet").read_bytes() == Path("whole.parquet").read_bytes()

    before = jobs.contents("parts")
    for name in jobs.parts("parts")[::3]:
        os.remove(f"parts/{name}")
    os.remove("parts.parquet")
    outcome = encode(tiny("bert_mean"), "in.parquet", "parts/", unit_rows=16)
    assert (outcome.done["rows"], jobs.contents("parts")) == (16 + 16 + 4, before)
    result = CliRunner().invoke(app, ["merge", "parts/", "--out", "merged.npy"])
    assert result.exit_code == 0, result.output
    np.testing.assert_array_equal(np.load("merged.npy"), np.stack(vectors("whole.parquet")))
    with pytest.raises(OutputError, match="options.side was"):
        encode(tiny("bert_mean"), "in.parquet", "parts/", unit_rows=16, side="query")


@pytest.mark.parametrize("name", ["bert_mean", "colbert"])
def test_a_unit_that_was_interrupted_goes_on_where_it_was(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    jobs.write_rows("in.parquet", jobs.random_rows(80))
    options: dict[str, Any] = {"batch_tokens": 64, "unit_rows": 50}
    with one_thread():
        whole = encode(tiny(name), "in.parquet", "whole.parquet", **options)
        forward, packs = Batcher._forward, count()

        def failing(*arguments: Any, **keywords: Any) -> None:
            if next(packs) == 5:
                raise RuntimeFailureError("the device is gone")
            forward(*arguments, **keywords)

        with monkeypatch.context() as patch:
            patch.setattr(Batcher, "_forward", failing)
            with pytest.raises(RuntimeFailureError, match="the device is gone"):
                encode(tiny(name), "in.parquet", "out.parquet", **options)
        assert "part-00000.progress" in os.listdir(".out.parquet.parts")
        outcome = encode(tiny(name), "in.parquet", "out.parquet", **options)

    assert 0 < outcome.counts["tokens_forwarded"] < whole.counts["tokens_forwarded"]
    assert Path("out.parquet").read_bytes() == Path("whole.parquet").read_bytes()


def test_with_a_store_the_second_run_reads_no_text(tiny: Tiny) -> None:
    jobs.write_rows("in.parquet", jobs.random_rows(60))
    first, second = (
        encode(tiny("bert_mean"), "in.parquet", f"{name}.parquet", store="store", unit_rows=16) for name in "ab"
    )

    assert (first.counts["from_store"], second.counts["from_store"], second.counts["tokens_forwarded"]) == (0, 60, 0)
    assert Path("a.parquet").read_bytes() == Path("b.parquet").read_bytes()


@pytest.mark.parametrize(("name", "dtype"), [("bert_mean", "float32"), ("colbert", "bfloat16")])
def test_score_looks_documents_up_in_what_encode_wrote(tiny: Tiny, name: str, dtype: str) -> None:
    rows = jobs.random_rows(30)
    jobs.write_rows("in.jsonl", [*rows, {**rows[0], "id": "bad", "document": None}])
    encode(tiny(name), "in.jsonl", "documents.parquet", dtype=dtype, unit_rows=16, errors="null")
    options: dict[str, Any] = {"dtype": dtype, "encode": "once"}
    plain = score_files(tiny(name), "in.jsonl", "plain.jsonl", **options)
    stored = score_files(tiny(name), "in.jsonl", "stored.jsonl", store=["store", "documents.parquet"], **options)

    assert stored.counts["from_store"] == 30
    assert 0 < stored.counts["tokens_forwarded"] < plain.counts["tokens_forwarded"] / 2
    scores = [
        [json.loads(line)["score"] for line in Path(f"{out}.jsonl").read_text("utf-8").splitlines()]
        for out in ("plain", "stored")
    ]
    np.testing.assert_allclose(scores[0], scores[1], rtol=0, atol=SAME if dtype == "float32" else 5e-2)


def test_a_unit_takes_two_megabytes_of_the_input() -> None:
    jobs.write_rows("in.jsonl", [{"text": "x" * 100_000}] * 50)
    units = EncodeCommand().units(open_source(["in.jsonl"]), 16_384, listwise=False)

    assert [unit.rows for unit in units] == [21, 21, 8]


def test_the_command_writes_what_the_call_writes(tiny: Tiny) -> None:
    jobs.write_rows("corpus.jsonl", CORPUS)
    arguments = ["--in", "corpus.jsonl", "--out", "command.jsonl", "--dtype", "float32", "--keep-columns", "title"]
    result = CliRunner().invoke(app, ["encode", "-m", tiny("bert_mean"), *arguments, "--side", "query"])
    encode(tiny("bert_mean"), "corpus.jsonl", "call.jsonl", side="query", keep_columns="title")

    assert "text     text; ids in _id" in result.stderr
    assert Path("command.jsonl").read_bytes() == Path("call.jsonl").read_bytes()
