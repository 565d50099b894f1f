"""The output file is there whole or not at all, and holds what was written."""

from __future__ import annotations

import datetime
import gzip
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
from decimal import Decimal
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchscore.errors import InputError, OutputError, RuntimeFailureError, UsageError
from batchscore.io.sink import open_sink
from batchscore.io.source import open_source
from batchscore.io.storage import writer_id

SUFFIXES = ["parquet", "pq", "jsonl", "ndjson", "jsonl.gz", "jsonl.zst"]
ROWS: list[dict[str, Any]] = [
    {"query": "東京", "score": 0.1, "meta": {"tags": ["é"]}, "year": None},
    {"query": "", "score": -2.5e-08, "meta": None, "year": 3},
]


def write(path: Path, *tables: pa.Table) -> Path:
    with open_sink(str(path)) as sink:
        for table in tables:
            sink.write(table)
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [row for table in tables_of(path, 2) for row in table.to_pylist()]


def tables_of(path: Path | str, rows: int) -> list[pa.Table]:
    source = open_source([str(path)])
    try:
        return [source.read(unit, None, {}).table for unit in source.units(rows)]
    finally:
        source.close()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_is_written_reads_back_the_same(tmp_path: Path, suffix: str) -> None:
    table = pa.Table.from_pylist(ROWS)
    path = write(tmp_path / f"scores.{suffix}", table, table.slice(1))
    assert read(path) == [*ROWS, ROWS[1]]
    assert os.listdir(tmp_path) == [path.name]


def test_parquet_keeps_types_and_metadata_and_is_zstd(tmp_path: Path) -> None:
    columns = {
        "kind": pa.array(["a", None, "a"]).dictionary_encode(),
        "score": pa.array([0.1, float("nan"), 1], pa.float32()),
        "when": pa.array([datetime.date(2024, 1, 2), None, None]),
    }
    table = pa.table(columns).replace_schema_metadata({"model": "tiny"})
    path = write(tmp_path / "a.parquet", table, table)
    assert pq.read_schema(path).equals(table.schema, check_metadata=True)
    assert str(pq.read_table(path)["kind"].to_pylist()) == str(["a", None, "a"] * 2)
    assert pq.read_metadata(path).row_group(0).column(0).compression == "ZSTD"


def test_vectors_have_no_dictionary_and_texts_have_one(tmp_path: Path) -> None:
    """In a dictionary, numbers that never repeat take ten times the time and half as many bytes again."""
    vectors = pa.FixedSizeListArray.from_arrays(pa.array([0.5, 1.5, 2.5, 3.5], pa.float32()), 2)
    matrices = pa.ListArray.from_arrays(pa.array([0, 1, 2], pa.int32()), vectors.cast(pa.list_(pa.float16(), 2)))
    path = write(tmp_path / "a.parquet", pa.table({"text": ["a", "a"], "vector": vectors, "vectors": matrices}))
    group = pq.read_metadata(path).row_group(0)

    assert [group.column(index).has_dictionary_page for index in range(3)] == [True, False, False]
    assert pq.read_table(path)["vectors"].to_pylist() == [[[0.5, 1.5]], [[2.5, 3.5]]]


def test_jsonl_has_no_escapes_and_spells_what_json_lacks(tmp_path: Path) -> None:
    columns = {
        "text": ["東京 🎉"],
        "score": pa.array([0.1], pa.float64()),
        "nan": [float("nan")],
        "deep": [[{"inf": float("-inf"), "one": 1.0}]],
        "day": [datetime.date(2024, 1, 2)],
        "at": [datetime.datetime(2024, 1, 2, 3, tzinfo=datetime.timezone.utc)],
        "raw": [b"\x00\xff"],
        "price": [Decimal("1.50")],
        "kind": pa.array(["k"]).dictionary_encode(),
    }
    assert write(tmp_path / "a.jsonl", pa.table(columns)).read_text(encoding="utf-8") == (
        '{"text": "東京 🎉", "score": 0.1, "nan": null, "deep": [{"inf": null, "one": 1.0}], "day": "2024-01-02", '
        '"at": "2024-01-02T03:00:00+00:00", "raw": "AP8=", "price": "1.50", "kind": "k"}\n'
    )


def test_a_gzipped_output_is_gzip(tmp_path: Path) -> None:
    content = write(tmp_path / "a.jsonl.gz", pa.table({"n": [1]})).read_bytes()
    assert json.loads(gzip.decompress(content)) == {"n": 1}


@pytest.mark.parametrize(
    ("tables", "expected"),
    [
        ([{"n": [1]}, {"n": [2.5]}, {"n": [3]}], {"n": [1.0, 2.5, 3.0]}),
        ([{"n": [None]}, {"n": ["x"]}, {"n": [None]}], {"n": [None, "x", None]}),
        ([{"n": [1]}, {"n": [2], "m": ["x"]}, {"m": ["y"]}], {"n": [1, 2, None], "m": [None, "x", "y"]}),
        ([{"n": [[]]}, {"n": [["a"]]}], {"n": [[], ["a"]]}),
        ([{"n": [{"a": 1}]}, {"n": [{"b": "x"}]}], {"n": [{"a": 1, "b": None}, {"a": None, "b": "x"}]}),
        ([{"n": [1], "m": [1]}, {"m": [2], "n": [2]}], {"n": [1, 2], "m": [1, 2]}),
        (
            [{"n": [1]}, {"n": [2.5]}, {"n": [3], "m": [None]}, {"m": ["x"]}],
            {"n": [1, 2.5, 3, None], "m": [*[None] * 3, "x"]},
        ),
        ([{"n": [1], "m": [1]}, {"n": ["x"], "m": [2]}, {"n": [[2]]}], {"n": ["1", "x", "[2]"], "m": [1, 2, None]}),
        ([{"n": [2**60 + 1]}, {"n": [0.5]}, {"n": [1]}], {"n": [str(2**60 + 1), "0.5", "1"]}),
        ([{"n": [datetime.date(2024, 1, 2)]}, {"n": [1]}], {"n": ["2024-01-02", "1"]}),
        ([{"n": pa.array([[1, 2]], pa.list_(pa.int8(), 2))}, {"m": [3]}], {"n": [[1, 2], None], "m": [None, 3]}),
    ],
)
def test_types_widen_from_table_to_table(tmp_path: Path, tables: list[Any], expected: dict[str, Any]) -> None:
    path = write(tmp_path / "a.parquet", *map(pa.table, tables))
    assert pq.read_table(path).to_pydict() == expected
    assert os.listdir(tmp_path) == ["a.parquet"]


FIXED, OF_ANY_SIZE = pa.list_(pa.float32(), 2), pa.list_(pa.float32())


@pytest.mark.parametrize(
    ("of", "whole", "lacking"),
    [
        (lambda kind: kind, [1.5, 2.5], None),
        (pa.list_, [[1.5, 2.5], [3.5, 4.5]], [[1.5, 2.5], None]),
        (lambda kind: pa.struct([("a", kind)]), {"a": [1.5, 2.5]}, None),
        (lambda kind: pa.map_(pa.string(), kind), [("a", [1.5, 2.5])], [("a", None)]),
    ],
    ids=["alone", "in a list", "in a struct", "in a map"],
)
def test_lists_of_a_fixed_size_keep_it_unless_one_is_null(tmp_path: Path, of: Any, whole: Any, lacking: Any) -> None:
    """Arrow before 26 does not read nulls among them back."""
    full, with_null = (pa.table({"n": pa.array(values, of(FIXED))}) for values in ([whole] * 2, [whole, lacking]))

    assert pq.read_schema(write(tmp_path / "a.parquet", full)).field("n").type == of(FIXED)
    for tables in ([with_null], [full, with_null], [with_null, full]):
        table = pq.read_table(write(tmp_path / "a.parquet", *tables))
        assert table.schema.field("n").type == of(OF_ANY_SIZE)
        assert table["n"].to_pylist() == pa.concat_tables(tables)["n"].to_pylist()


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ([{"n": [{}]}], "cannot hold these values"),
    ],
)
def test_what_parquet_cannot_hold_is_named_and_leaves_no_file(tmp_path: Path, tables: list[Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        write(tmp_path / "a.parquet", *map(pa.table, tables))
    assert message in caught.value.message
    assert str(tmp_path / "a.parquet") in caught.value.message
    assert "--keep-columns" in (caught.value.hint or "")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_empty_table_gives_a_valid_empty_file(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"a.{suffix}", pa.table({"score": pa.array([], pa.float32())}))
    assert path.exists()
    if suffix in ("parquet", "pq"):
        assert pq.read_table(path).schema == pa.schema([("score", pa.float32())])


def test_no_table_at_all_is_a_bug_of_the_caller(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="at least one table"):
        write(tmp_path / "a.parquet")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failure_removes_the_half_output_and_keeps_the_older_one(
    tmp_path: Path, suffix: str, error: type[BaseException]
) -> None:
    path = write(tmp_path / f"a.{suffix}", pa.table({"n": [1]}))
    with pytest.raises(error, match="half way"), open_sink(str(path)) as sink:  # noqa: PT012
        sink.write(pa.table({"n": [2]}))
        raise error("half way")
    assert os.listdir(tmp_path) == [path.name]
    assert read(path) == [{"n": 1}]


KILLED = """
import os, signal, sys
import pyarrow as pa
from batchscore.io.sink import open_sink

with open_sink(sys.argv[1]) as sink:
    for _ in range(3):
        sink.write(pa.table({"n": list(range(20_000))}))
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("suffix", ["parquet", "jsonl", "jsonl.gz"])
def test_a_killed_writer_leaves_no_output_and_the_older_one_whole(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    command = [sys.executable, "-c", KILLED, str(path)]
    root = Path(__file__).parents[1]
    assert subprocess.run(command, cwd=root, check=False).returncode == -signal.SIGKILL
    assert not path.exists()
    assert all(name.startswith(f".{path.name}.tmp-") for name in os.listdir(tmp_path))
    write(path, pa.table({"n": [1]}))
    assert os.listdir(tmp_path) == [path.name]  # the next writer cleans up after a dead one
    subprocess.run(command, cwd=root, check=False)
    assert read(path) == [{"n": 1}]


def test_only_what_dead_processes_of_this_machine_left_is_removed(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    host = writer_id().rpartition("-")[0]
    kept = [
        f".a.jsonl.tmp-{host}-{os.getppid()}",
        f".a.jsonl.tmp-elsewhere-{dead.pid}",
        f".b.jsonl.tmp-{host}-{dead.pid}",
    ]
    for name in [*kept, f".a.jsonl.tmp-{host}-{dead.pid}"]:
        (tmp_path / name).touch()
    write(tmp_path / "a.jsonl", pa.table({"n": [1]}))
    assert sorted(os.listdir(tmp_path)) == sorted([*kept, "a.jsonl"])


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_object_of_a_store_is_there_whole_or_not_at_all(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    url = f"memory://{tmp_path}/out/a.{suffix}"
    with pytest.raises(ValueError, match="half way"), open_sink(url) as sink:  # noqa: PT012
        sink.write(pa.table({"n": [1]}))
        raise ValueError("half way")
    store = fsspec.filesystem("memory")
    assert store.find(str(tmp_path)) == []
    with open_sink(url) as sink:
        sink.write(pa.Table.from_pylist(ROWS))
    assert store.find(str(tmp_path)) == [f"{tmp_path}/out/a.{suffix}"]
    assert os.listdir(tmp_path) == []
    assert [row for table in tables_of(url, 2) for row in table.to_pylist()] == ROWS
    store.rm(str(tmp_path), recursive=True)


@pytest.mark.parametrize("suffix", ["parquet", "jsonl", "jsonl.gz"])
def test_a_full_disk_is_named_and_leaves_nothing(
    tmp_path: Path, suffix: str, capfd: pytest.CaptureFixture[str]
) -> None:
    table = pa.table({"text": [os.urandom(500).hex() for _ in range(4000)]})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(RuntimeFailureError) as caught:
            write(tmp_path / f"a.{suffix}", table, table)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.message.startswith(f"cannot write {tmp_path / 'a'}.{suffix}: ")
    del caught
    assert os.listdir(tmp_path) == []
    assert capfd.readouterr().err == ""


def test_an_unknown_suffix_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"a\.txt: its suffix is none of \.parquet, \.pq, \.jsonl, \.jsonl\.gz"):
        open_sink(str(tmp_path / "a.txt"))


def test_a_missing_folder_is_named_with_the_command_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(OutputError) as caught:
        open_sink(str(tmp_path / "none" / "a.jsonl"))
    assert caught.value.message.endswith(f"no folder {tmp_path / 'none'}")
    assert caught.value.hint == f"mkdir -p {tmp_path / 'none'}"


def test_a_folder_is_no_output(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").mkdir()
    with pytest.raises(OutputError, match="it is a folder"):
        open_sink(str(tmp_path / "a.jsonl"))


def test_a_folder_without_permission_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # tests may run as root, who may write anywhere
    with pytest.raises(OutputError, match="no permission to write in"):
        open_sink(str(tmp_path / "a.jsonl"))


def test_the_output_is_the_input_of_the_next_run(tmp_path: Path) -> None:
    first = write(tmp_path / "a.jsonl", pa.Table.from_pylist(ROWS))
    second = write(tmp_path / "b.parquet", *tables_of(first, 1))
    assert read(second) == ROWS


def test_a_relative_name_is_written_where_the_run_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(Path("a.jsonl"), pa.table({"n": [1]}))
    assert os.listdir(tmp_path) == ["a.jsonl"]
