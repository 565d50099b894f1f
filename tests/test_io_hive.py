"""Folders named key=value are columns, as pyarrow and polars make them of the same folders."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from batchscore.errors import InputError
from batchscore.io.hive import partition_of
from batchscore.io.source import FileSource, open_source

pytestmark = pytest.mark.usefixtures("here")

NULL = "__HIVE_DEFAULT_PARTITION__"


def put(path: str, text: str = "a", **more: Any) -> str:
    """A file of one row."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({"query": [text]} | {name: [value] for name, value in more.items()})
    if path.endswith(".parquet"):
        pq.write_table(table, path)
    else:
        fields = "".join(f', "{name}": "{value}"' for name, value in more.items())
        Path(path).write_text(f'{{"query": "{text}"{fields}}}\n', "utf-8")
    return path


def read(source: FileSource, columns: list[str] | None = None) -> pa.Table:
    (unit,) = source.units(100)
    try:
        return source.read(unit, columns, {}).table
    finally:
        source.close()


@pytest.mark.parametrize(
    "folders",
    [
        ["k=1", "k=2"],
        ["k=-1", "k=007"],
        ["k=1", "k=one"],
        ["k=1", "k="],
        ["k=+1"],
        ["k=1.5"],
        ["k=2024-05-01"],
        ["k=true"],
        ["k=1", f"k={NULL}"],
        ["k=a%20b%2Fc", "k=x+y", "k=50%"],
        ["a=1/b=x", "a=2/b=y"],
        ["a=1/b=x", "b=y/a=2"],
        ["a=1/a=2"],
        ["a=1/plain/b=2"],
        ["k%20y=2=3"],
        ["k=1", "plain"],
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_columns_of_folders_are_those_of_pyarrow(folders: list[str], suffix: str) -> None:
    for folder in folders:
        put(f"in/{folder}/x.{suffix}")
        put(f"same/{folder}/x.parquet")
    expected = ds.dataset("same", partitioning="hive").to_table()
    table = read(open_source(["in"]))
    assert table.column_names == expected.column_names
    assert sorted(map(repr, table.to_pylist())) == sorted(map(repr, expected.to_pylist()))
    kinds = [field.type for field in table.schema]
    assert kinds == [pa.int64() if field.type == pa.int32() else field.type for field in expected.schema]


def test_a_number_of_more_than_32_bits_stays_one() -> None:
    put("in/k=3000000000/x.parquet")
    put("in/k=2/x.parquet")
    assert read(open_source(["in"]))["k"].to_pylist() == [2, 3_000_000_000]


def test_one_type_holds_for_all_files_of_the_input() -> None:
    put("one/k=1/x.parquet")
    put("two/k=x/x.jsonl")
    assert read(open_source(["one"]))["k"].to_pylist() == [1]
    assert read(open_source(["one", "two"]))["k"].to_pylist() == ["1", "x"]


def test_a_column_without_a_value_anywhere_is_text() -> None:
    put(f"in/k={NULL}/x.parquet")
    column = read(open_source(["in"]))["k"]
    assert (column.to_pylist(), column.type) == ([None], pa.string())


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_a_file_keeps_a_column_of_its_own(suffix: str) -> None:
    put(f"in/k=1/a.{suffix}", k="mine")
    put(f"in/k=2/b.{suffix}")
    assert read(open_source(["in"]), ["k"])["k"].to_pylist() == ["mine", "2"]


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("d=0/in", ["k", "j"]),
        ("d=0/in/", ["k", "j"]),
        ("d=0/in/*", ["k", "j"]),
        ("d=0/in/k=*", ["k", "j"]),
        ("d=0/in/k=?/j=*/*.parquet", ["k", "j"]),
        ("d=0/in/**/*.parquet", ["k", "j"]),
        ("d=*/in/k=[0-9]/**", ["d", "k", "j"]),
        ("d=0/in/k=1/*", ["j"]),
        ("d=0/in/k=1", ["j"]),
        ("d=0/in/k=1/j=2/x.parquet", []),
    ],
)
def test_only_folders_below_the_one_that_was_named_are_columns(path: str, names: list[str]) -> None:
    put("d=0/in/k=1/j=2/x.parquet")
    for start in ("", f"{os.getcwd()}/", f"file://{os.getcwd()}/"):
        assert open_source([start + path]).column_names() == ["query", *names]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[str]:
    """A folder of a store in memory."""
    memory = fsspec.filesystem("memory")
    yield f"memory:/{tmp_path}"
    memory.rm(str(tmp_path), recursive=True)


@pytest.mark.parametrize("below", ["", "/", "/k=*/*/*", "/**/*.parquet"])
def test_folders_of_a_store_are_columns(store: str, below: str) -> None:
    memory = fsspec.filesystem("memory")
    content = Path(put("x.parquet")).read_bytes()
    for folder in ("k=1/j=a%20b", f"k=2/j={NULL}"):
        memory.pipe(f"{store.removeprefix('memory:/')}/{folder}/x.parquet", content)
    assert read(open_source([store + below])).to_pylist() == [
        {"query": "a", "k": 1, "j": "a b"},
        {"query": "a", "k": 2, "j": None},
    ]


def test_without_hive_folders_are_only_folders() -> None:
    put("in/k=1/x.parquet")
    put("in/k=%FF/x.parquet")
    source = open_source(["in"], hive=False)
    assert read(source).column_names == ["query"]
    assert all("hive" not in file for file in source.fingerprint())


def test_what_folders_say_is_in_the_fingerprint_and_the_same_in_another_process() -> None:
    put("in/k=01/x.parquet")
    put("in/k=2/x.jsonl")
    source = open_source(["in"])
    assert [file["hive"] for file in source.fingerprint()] == [{"k": "01"}, {"k": "2"}]
    again = source.addresses().open()
    assert again.fingerprint() == source.fingerprint()
    assert read(again) == read(source)


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_a_column_of_folders_can_be_all_that_is_read(suffix: str) -> None:
    put(f"in/k=x/a.{suffix}")
    put(f"in/k=y/b.{suffix}")
    source = open_source(["in"])
    units = source.units(1, columns={"k": "--query-column"})
    assert [source.read(unit, ["k"], {"k": "text"}).table.to_pylist() for unit in units] == [[{"k": "x"}], [{"k": "y"}]]
    source.close()


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_a_column_of_folders_holds_rows_together(suffix: str) -> None:
    for folder, name in (("k=1", "a"), ("k=1", "b"), ("k=2", "c")):
        put(f"in/{folder}/{name}.{suffix}")
    source = open_source(["in"])
    assert [unit.rows for unit in source.units(1, group="k", stretch=9)] == [2, 1]
    source.require_runs("k", None)


def test_a_missing_column_is_named_with_those_of_folders() -> None:
    put("in/lang=en/x.parquet")
    with pytest.raises(InputError) as caught:
        open_source(["in"]).require({"langs": "--query-column"})
    assert caught.value.message == "column 'langs' not found in in/lang=en/x.parquet; columns: query, lang"
    assert caught.value.hint == "pass --query-column lang"


@pytest.mark.parametrize("folder", ["k=%FF", "%FF=1", os.fsdecode(b"k=caf\xe9")])
def test_a_folder_that_is_not_utf_8_is_refused_by_name(folder: str) -> None:
    put(f"in/a=1/{folder}/x.jsonl")
    with pytest.raises(InputError) as caught:
        open_source(["in"])
    assert caught.value.message == f"a=1/{folder}: a folder's name is not UTF-8"
    assert read(open_source(["in"], hive=False)).column_names == ["query"]


def test_a_name_without_a_key_is_no_column() -> None:
    assert partition_of("=1/a/b=2/") == (("b", "2"),)
