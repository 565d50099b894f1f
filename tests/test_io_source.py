"""What comes in is what is in the files, in bounded windows; what is wrong is named with its file and line."""

from __future__ import annotations

import gzip
import io
import json
import math
import os
import pickle
import random
import sys
import tracemalloc
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby, pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchscore.errors import (
    BatchscoreError,
    InputError,
    MissingDependencyError,
    NotFoundError,
    StoppedError,
    UsageError,
)
from batchscore.io import hf, jsonl, lines, parquet
from batchscore.io.hf import DatasetReader
from batchscore.io.source import Chunk, FileAddresses, FileSource, Source, open_source
from batchscore.io.units import Unit

pytestmark = pytest.mark.usefixtures("here")

ROWS: list[dict[str, Any]] = [
    {"query": "naïve 東京", "document": "été 🎉\u2028", "meta": {"lang": "fr", "tags": ["a", "b"]}, "year": 2001},
    {"query": "", "document": '"quoted"\\', "meta": {"lang": None, "tags": []}, "year": None},
    {"query": "2024-01-02", "document": "2024-01-02T03:04:05Z", "meta": None, "year": 3},
]
FLAGS = {"query": "--query-column", "document": "--document-column"}


def write(path: str, rows: list[dict[str, Any]]) -> str:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    if path.lower().endswith((".parquet", ".pq")):
        pq.write_table(pa.Table.from_pylist(rows), path)
        return path
    return write_bytes(path, "".join(json.dumps(row) + "\n" for row in rows).encode())


def write_bytes(path: str, content: bytes) -> str:
    packed = {".gz": gzip.compress, ".zst": lambda text: pa.compress(text, codec="zstd", asbytes=True)}
    Path(path).write_bytes(packed.get(Path(path).suffix.lower(), bytes)(content))
    return path


def numbered(path: str, count: int, start: int = 0) -> str:
    return write(path, [{"query": f"q{i}", "document": f"d{i}", "n": i} for i in range(start, start + count)])


def chunks_of(
    source: Source,
    rows: int = 2,
    columns: Sequence[str] | None = None,
    *,
    flags: Mapping[str, str] | None = None,
    texts: Sequence[str] = (),
    **cut: Any,
) -> list[Chunk]:
    """All units, read in order."""
    try:
        units = source.units(rows, columns={**dict.fromkeys(columns or (), "--keep-columns"), **(flags or {})}, **cut)
        return [source.read(unit, columns, dict.fromkeys(texts, "text")) for unit in units]
    finally:
        source.close()


def read(source: Source, rows: int = 2, columns: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """All rows, none of them at fault."""
    chunks = chunks_of(source, rows, columns)
    assert [chunk.faults() for chunk in chunks] == [{}] * len(chunks)
    return [row for chunk in chunks for row in chunk.table.to_pylist()]


def faults_of(chunk: Chunk) -> list[str]:
    """The rows at fault as a person is told of them."""
    return [
        f"{chunk.locate(row)}: {f'column {fault.column!r} ' if fault.column else ''}{fault.message}"
        + (f"\nhint: {fault.hint}" if fault.hint else "")
        for row, fault in chunk.faults().items()
    ]


def fault(error: type[BatchscoreError], call: Callable[[], object]) -> str:
    with pytest.raises(error) as caught:
        call()
    return str(caught.value)


@pytest.mark.parametrize(
    "suffix", ["parquet", "PQ", "jsonl", "ndjson", "jsonl.gz", "jsonl.zst", "ndjson.gz", "ndjson.ZST"]
)
def test_every_format_reads_back_the_same_rows(suffix: str) -> None:
    source = open_source([write(f"pairs.{suffix}", ROWS)])
    assert read(source) == ROWS
    assert source.column_names() == ["query", "document", "meta", "year"]
    assert [unit.rows for unit in source.units(2)] == [2, 1]


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_only_asked_columns_are_read_in_the_asked_order(suffix: str) -> None:
    (chunk,) = chunks_of(open_source([write(f"pairs.{suffix}", ROWS)]), 10, ["year", "query"])
    assert chunk.table.column_names == ["year", "query"]
    assert chunk.blocks[0].table.num_columns == 2


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
@pytest.mark.parametrize("rows", [1, 3, 4, 7, 100])
def test_units_have_exactly_rows_rows_and_span_files(suffix: str, rows: int) -> None:
    files = [numbered(f"{i}.{suffix}", 5, 5 * i) for i in range(3)]
    source = open_source(files)
    chunks = chunks_of(source, rows, ["n"])
    assert [n for chunk in chunks for n in chunk.table["n"].to_pylist()] == list(range(15))
    assert all(len(chunk.table) == rows for chunk in chunks[:-1])
    assert all(sum(map(len, chunk.blocks)) == len(chunk.table) for chunk in chunks)
    assert [unit.rows for unit in source.units(rows)] == [len(chunk.table) for chunk in chunks]
    assert [unit.index for unit in source.units(rows)] == list(range(len(chunks)))


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
@pytest.mark.parametrize("limit", [0, 1, 4, 5, 6, 10, 99])
@pytest.mark.parametrize("group", [None, "query"])
def test_limit_counts_rows_over_all_files(suffix: str, limit: int, group: str | None) -> None:
    source = open_source([numbered(f"a.{suffix}", 5), numbered(f"b.{suffix}", 5, 5)])
    chunks = chunks_of(source, 3, ["n"], limit=limit, group=group)
    assert [n for chunk in chunks for n in chunk.table["n"].to_pylist()] == list(range(min(limit, 10)))
    assert [len(chunk.table) for chunk in chunks] == {0: [0], 1: [1], 4: [3, 1], 5: [3, 2], 6: [3, 3]}.get(
        limit, [3, 3, 3, 1]
    )


def test_rows_are_located_by_line_in_jsonl_and_by_row_elsewhere() -> None:
    write_bytes("pairs.jsonl", b'\xef\xbb\xbf{"n": 0}\r\n\r\n  \n{"n": 1}\r\n\n{"n": 2}')
    numbered("a.parquet", 3)
    chunks = chunks_of(open_source(["pairs.jsonl", "a.parquet"]), 4, ["n"])
    assert [chunks[0].locate(row) for row in range(4)] == [
        *(f"pairs.jsonl, line {line}" for line in (1, 4, 6)),
        "a.parquet, row 0",
    ]
    assert chunks[1].locate(1) == "a.parquet, row 2"
    assert chunks[0].location(1) == ("pairs.jsonl", "line", 4)
    assert [n for chunk in chunks for n in chunk.table["n"].to_pylist()] == [0, 1, 2, 0, 1, 2]


def test_jsonl_columns_are_the_union_of_keys_and_absent_keys_are_null() -> None:
    write("pairs.jsonl", [{"a": 1}, {"b": "x", "a": 2.5}, {"c": None}])
    (chunk,) = chunks_of(open_source(["pairs.jsonl"]), 10)
    assert chunk.table.to_pydict() == {"a": [1.0, 2.5, None], "b": [None, "x", None], "c": [None, None, None]}


def test_a_wanted_column_absent_from_a_whole_unit_is_null_there() -> None:
    write("pairs.jsonl", [{"query": "a", "n": 1}, {"query": "b"}])
    chunks = chunks_of(open_source(["pairs.jsonl"]), 1, ["n", "query"])
    assert [chunk.table.to_pylist() for chunk in chunks] == [[{"n": 1, "query": "a"}], [{"n": None, "query": "b"}]]


def test_files_of_different_types_are_widened_and_lose_their_writers_metadata() -> None:
    pq.write_table(pa.table({"n": [1], "t": ["a"]}).replace_schema_metadata({"pandas": "{}"}), "a.parquet")
    pq.write_table(pa.table({"t": pa.array(["b"], pa.large_string()), "n": [2.5], "more": [True]}), "b.parquet")
    (chunk,) = chunks_of(open_source(["a.parquet", "b.parquet"]), 10)
    assert chunk.table.to_pydict() == {"n": [1.0, 2.5], "t": ["a", "b"], "more": [None, True]}
    assert chunk.table.schema.metadata is None


def test_dictionary_columns_pass_through() -> None:
    pq.write_table(pa.table({"kind": pa.array(["a", "b", "a"]).dictionary_encode()}), "a.parquet")
    assert read(open_source(["a.parquet", "a.parquet"]), 4) == [{"kind": kind} for kind in "abaaba"]


@pytest.mark.parametrize("files", [["a.parquet"], ["a.parquet", "a.parquet"]])
@pytest.mark.parametrize("group", [None, "query"])
def test_an_empty_parquet_is_one_empty_unit_with_its_columns(files: list[str], group: str | None) -> None:
    pq.write_table(pa.table({"query": pa.array([], pa.string()), "n": pa.array([], pa.int64())}), "a.parquet")
    (chunk,) = chunks_of(open_source(files), 4, ["query"], group=group)
    assert (chunk.table.num_rows, chunk.table.schema.types) == (0, [pa.string()])
    assert (chunk.locate(0), chunk.faults()) == ("a.parquet", {})


def test_an_empty_file_between_others_leaves_no_trace() -> None:
    pq.write_table(pa.table({"n": pa.array([], pa.string())}), "b.parquet")
    assert [row["n"] for row in read(open_source([numbered("a.parquet", 2), "b.parquet", "a.parquet"]), 3, ["n"])] == [
        *(0, 1, 0, 1)
    ]


def test_a_fingerprint_is_json_and_changes_with_the_file() -> None:
    before = open_source([numbered("a.jsonl", 2)]).fingerprint()
    assert before[0]["name"] == "a.jsonl"
    assert before[0]["bytes"] == os.path.getsize("a.jsonl")
    assert json.loads(json.dumps(before)) == before == open_source(["a.jsonl"]).fingerprint()
    os.utime("a.jsonl", (0, 0))
    assert open_source(["a.jsonl"]).fingerprint()[0]["modified"] == "1970-01-01T00:00:00+00:00" != before[0]["modified"]


# ---- what a path means


def names(source: Source) -> list[str]:
    return [str(file["name"]) for file in source.fingerprint()]


def test_a_folder_is_its_supported_files_sorted_and_hidden_ones_skipped() -> None:
    for path in ["data/b.jsonl", "data/a/z.parquet", "data/.hidden.jsonl", "data/_temporary/c.jsonl", "data/a/y.jsonl"]:
        numbered(path, 1)
    Path("data/README.md").write_text("words")
    assert names(open_source(["data"])) == ["data/a/y.jsonl", "data/a/z.parquet", "data/b.jsonl"]


def test_a_pattern_is_its_matches_sorted() -> None:
    for path in ["part-2.jsonl", "part-1.jsonl", "deep/part-3.jsonl", "other.jsonl"]:
        numbered(path, 1)
    assert names(open_source(["part-*.jsonl"])) == ["part-1.jsonl", "part-2.jsonl"]
    assert names(open_source(["**/part-*.jsonl"])) == ["deep/part-3.jsonl", "part-1.jsonl", "part-2.jsonl"]


def test_a_file_matched_by_its_folder_as_well_is_read_once() -> None:
    for path in ["data/a/x.jsonl", "data/b.jsonl"]:
        numbered(path, 1)
    assert names(open_source(["data/**"])) == ["data/a/x.jsonl", "data/b.jsonl"]


def test_a_file_whose_name_looks_like_a_pattern_is_that_file() -> None:
    assert names(open_source([numbered("a[1].jsonl", 1)])) == ["a[1].jsonl"]


@pytest.mark.parametrize(
    ("path", "error", "message"),
    [
        ("none.jsonl", NotFoundError, "none.jsonl: no such file or folder\nhint: check the path"),
        (
            "zeros.jsonl",
            NotFoundError,
            "zeros.jsonl: no such file or folder\nhint: did you mean zero.jsonl or zero.parquet?",
        ),
        ("none*.jsonl", NotFoundError, "none*.jsonl: no such file or folder"),
        ("notes.txt", UsageError, "cannot read notes.txt: its suffix is none of .parquet, .pq, .jsonl, .ndjson"),
        ("hollow", NotFoundError, "no input files in hollow; suffixes: .parquet"),
        ("zero.jsonl", InputError, "zero.jsonl is empty"),
        ("zero.parquet", InputError, "zero.parquet is empty"),
    ],
)
def test_an_unusable_path_is_named(path: str, error: type[BatchscoreError], message: str) -> None:
    Path("hollow").mkdir()
    Path("notes.txt").write_text("words")
    Path("zero.jsonl").touch()
    Path("zero.parquet").touch()
    assert message in fault(error, lambda: open_source([path]))


def test_a_split_of_plain_files_is_refused() -> None:
    text = fault(UsageError, lambda: open_source([numbered("a.jsonl", 1)], split="test"))
    assert text == "no split 'test' in a.jsonl: only datasets have splits\nhint: drop --split"


# ---- broken lines and files


@pytest.mark.parametrize(
    ("lines", "messages", "kept"),
    [
        (
            b'{"n": 1}\n\n{"n": }\n',
            ["line 3: not JSON: Expecting value (column 7)\nhint: JSON Lines holds one object a line"],
            [1, None],
        ),
        (
            b'[\n{"n": 1}\n]\n',
            ["line 1: not JSON: Expecting value (column 2)", "line 3: not JSON: Expecting value (column 1)"],
            [None, 1, None],
        ),
        (
            b'{"n": 1}\n{"n": "caf\xe9"}\n',
            ["line 2: not UTF-8 (byte 11)\nhint: convert the file with iconv"],
            [1, None],
        ),
        (b'{"n": "\xed\xa0\x80"}\n{"n": 1}\n', ["line 1: not UTF-8"], [None, 1]),
        (b'{"n": 1}\n[1]\n', ["line 2: holds a JSON array, not an object"], [1, None]),
        (
            b'{"n": 1}\nnull\n"n"\n',
            ["line 2: holds a JSON null, not", "line 3: holds a JSON string, not"],
            [1, None, None],
        ),
        (b'{"n": 1}\n{"n": {"\\uD800": 1}}\n', ["line 2: half of a surrogate pair cannot be stored"], [1, None]),
        (b'{"n": 1}\n{"n": ' + b"[" * 100_000 + b'\n{"n": 2}', ["line 2: not readable"], [1, None, 2]),
    ],
)
@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz"])
def test_a_broken_line_is_a_null_row_and_its_fault(
    lines: bytes, messages: list[str], kept: list[Any], suffix: str
) -> None:
    (chunk,) = chunks_of(open_source([write_bytes(f"pairs.{suffix}", lines)]), 9)
    assert [
        found[: len(f"pairs.{suffix}, {message}")] for found, message in zip(faults_of(chunk), messages, strict=True)
    ] == [f"pairs.{suffix}, {message}" for message in messages]
    assert chunk.table["n"].to_pylist() == kept


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (b'[\n{"n": 1},\n]\n', "pairs.jsonl, line 1: not JSON"),
        (b'{"n": "caf\xe9"}\n', "pairs.jsonl, line 1: not UTF-8 (byte 11)\nhint: convert the file with iconv"),
        (b"\n \n\r\n", "pairs.jsonl has only blank lines"),
    ],
)
def test_a_file_without_one_readable_line_is_an_error_with_the_first_fault(lines: bytes, message: str) -> None:
    source = open_source([write_bytes("pairs.jsonl", lines)])
    assert fault(InputError, source.column_names).startswith(message)
    assert fault(InputError, lambda: chunks_of(source, flags=FLAGS)).startswith(message)


def test_a_unit_of_broken_lines_has_their_number_of_rows() -> None:
    source = open_source([write_bytes("a.jsonl", b'{"query": "x", "n": 1}\n{\n}\n{"n": 2}')])
    chunks = chunks_of(source, 1, ["n"])
    assert [chunk.table.to_pylist() for chunk in chunks] == [[{"n": n}] for n in (1, None, None, 2)]
    assert [list(chunk.faults()) for chunk in chunks] == [[], [0], [0], []]
    assert [len(chunk.table) for chunk in chunks_of(source, 2)] == [2, 2]


def test_faults_count_rows_over_the_files_of_a_unit() -> None:
    source = open_source([numbered("a.parquet", 2), write_bytes("b.jsonl", b'{"n": 2}\n{\n'), "b.jsonl"])
    (chunk,) = chunks_of(source, 9, ["n"])
    assert [(row, fault.code, fault.column) for row, fault in chunk.faults().items()] == [
        (3, "not-json", None),
        (5, "not-json", None),
    ]
    assert [found.split(":")[0] for found in faults_of(chunk)] == ["b.jsonl, line 2"] * 2
    assert chunk.table["n"].to_pylist() == [0, 1, 2, None, 2, None]


def test_a_text_column_holds_strings_and_anything_else_is_a_fault_of_its_row() -> None:
    values: list[Any] = ["2024-01-02", 1, 2.5, True, None, ["a"], {"a": "b"}, ""]
    source = open_source([write("a.jsonl", [{"query": value, "n": 1} for value in values])])
    (chunk,) = chunks_of(source, 9, texts=["query"])
    assert chunk.table.schema.field("query").type == pa.string()
    assert chunk.table["query"].to_pylist() == ["2024-01-02", *[None] * 6, ""]
    hint = "hint: convert it to a string, or name another column"
    assert faults_of(chunk) == [
        f"a.jsonl, line {line}: column 'query' is a JSON {kind}, not text\n{hint}"
        for line, kind in [(2, "number"), (3, "number"), (4, "boolean"), (6, "array"), (7, "object")]
    ]


def test_a_row_has_one_fault_at_most() -> None:
    rows: list[dict[str, Any]] = [{"query": "a", "m": "x"}, {"query": 1, "m": 2}, {"query": "b", "m": 3}]
    (chunk,) = chunks_of(open_source([write("a.jsonl", rows)]), 9, texts=["query", "m"])
    assert [(row, fault.column, fault.code) for row, fault in chunk.faults().items()] == [
        (1, "query", "not-text"),
        (2, "m", "not-text"),
    ]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([None, 1, 2, "x", 2.5, "\u00e9"], [None, "1", "2", "x", "2.5", "\u00e9"]),
        ([True, 1], ["true", "1"]),
        ([[1], {"a": "\u00e9"}], ["[1]", '{"a": "\u00e9"}']),
        ([1, [1, "a"]], ["1", '[1, "a"]']),
        ([1, 2**63], ["1", "9223372036854775808"]),
        ([1, 2**53 + 1, 0.5], ["1", "9007199254740993", "0.5"]),
        ([{"a": {}}, {"a": {}}], ['{"a": {}}'] * 2),
        ([{}, None, {}], [None] * 3),
        ([{}, {"a": 1}], [{"a": None}, {"a": 1}]),
    ],
)
def test_a_carried_column_without_a_type_of_its_own_is_text_and_no_fault(values: Any, expected: Any) -> None:
    (chunk,) = chunks_of(open_source([write("a.jsonl", [{"n": value} for value in values])]), 9)
    assert chunk.faults() == {}
    assert chunk.table["n"].to_pylist() == expected


def test_documents_are_structs_with_a_text_whatever_one_line_holds() -> None:
    values: list[Any] = ["x", ["a", None, 7], [{"content": "b", "id": 1}, "c", {"content": 5, "id": "2"}], None, [], {}]
    source = open_source([write("a.jsonl", [{"documents": value} for value in values])])
    (unit,) = source.units(9)
    chunk = source.read(unit, None, {"documents": "documents"})
    source.close()
    assert faults_of(chunk) == [
        f"a.jsonl, line {line}: column 'documents' is a JSON {kind}, not a list\nhint: an empty list means no documents"
        for line, kind in ((1, "string"), (6, "object"))
    ]
    assert chunk.table["documents"].to_pylist() == [
        None,
        [{"content": text, "id": None} for text in ("a", None, None)],
        [{"content": "b", "id": "1"}, {"content": "c", "id": None}, {"content": None, "id": "2"}],
        None,
        [],
        None,
    ]
    assert pa.types.is_large_list(source.column_type("documents"))  # as most of the lines say


@pytest.mark.parametrize(
    ("kind", "shape", "message"),
    [
        (pa.int64(), "text", "column 'd' is int64, not text\nhint: convert it to strings"),
        (pa.string(), "documents", "column 'd' is string, not a list\nhint: name a list with --document-column"),
        (pa.list_(pa.int64()), "documents", "column 'd[]' is int64, not text"),
        (pa.list_(pa.struct([("text", pa.int64())])), "documents", "column 'd[].text' is int64, not text"),
    ],
)
def test_a_typed_column_of_another_shape_is_an_error(kind: pa.DataType, shape: Any, message: str) -> None:
    pq.write_table(pa.table({"d": pa.nulls(2, kind)}), "a.parquet")
    source = open_source(["a.parquet"])
    (unit,) = source.units(9)
    assert fault(InputError, lambda: source.read(unit, None, {"d": shape})).startswith(f"a.parquet, row 0: {message}")


def test_lists_of_strings_and_of_structs_do_not_go_together() -> None:
    for name, documents in (("a", ["x"]), ("b", [{"text": "x"}])):
        pq.write_table(pa.table({"d": [documents]}), f"{name}.parquet")
    source = open_source(["a.parquet", "b.parquet"])
    (unit,) = source.units(9)
    text = fault(InputError, lambda: source.read(unit, None, {"d": "documents"}))
    assert text.startswith("b.parquet: column 'd' lists other kinds of documents than the files before\nhint: ")


def test_a_column_that_is_there_twice_is_an_error() -> None:
    pq.write_table(pa.table([[1], [2], ["x"]], names=["n", "n", "m"]), "a.parquet")
    source = open_source(["a.parquet"])
    assert fault(InputError, lambda: read(source)).startswith("a.parquet has several columns 'n'\nhint: ")
    assert read(source, columns=["m"]) == [{"m": "x"}]


def test_escaped_surrogate_pairs_are_one_character() -> None:
    assert read(open_source([write_bytes("a.jsonl", b'{"n": "\\ud83c\\udf89"}')])) == [{"n": "🎉"}]


@pytest.mark.parametrize("suffix", ["gz", "zst"])
def test_a_truncated_archive_is_named_with_the_line_reached(suffix: str) -> None:
    path = write(f"pairs.jsonl.{suffix}", [{"text": os.urandom(500).hex()} for _ in range(5000)])
    content = Path(path).read_bytes()
    Path(path).write_bytes(content[: len(content) // 2])
    text = fault(InputError, lambda: open_source([path]).units(100))
    assert text.startswith(f"{path}, line ")
    assert int(text.split("line ")[1].split(":")[0]) > 1000
    assert {"gz": "ended before the end-of-stream marker", "zst": "Truncated compressed stream"}[suffix] in text


@pytest.mark.parametrize("filling", [0, 1, 700, 1 << 21])
def test_archives_in_several_pieces_and_filled_up_with_zero_bytes_are_whole(filling: int) -> None:
    lines = [json.dumps({"n": number}).encode() + b"\n" for number in range(6)]
    zeros = bytes(filling)
    content = gzip.compress(lines[0]) + gzip.compress(b"".join(lines[1:4])) + zeros + gzip.compress(b"".join(lines[4:]))
    Path("a.jsonl.gz").write_bytes(content + zeros)
    assert [row["n"] for row in read(open_source(["a.jsonl.gz"]))] == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("damage", ["cut", "filled", "checksum", "middle", "rest"])
def test_a_damaged_archive_is_named(damage: str) -> None:
    content = gzip.compress(os.urandom(4000).hex().join(('{"n": "', '"}\n')).encode())
    changed = {
        "cut": content[:-9],
        "filled": content[:-9] + bytes(700),  # zero bytes instead of its end
        "checksum": content[:-8] + b"12345678",
        "middle": content[:2000] + bytes(50) + content[2050:],
        "rest": content + b"rest",
    }
    Path("a.jsonl.gz").write_bytes(changed[damage])
    text = fault(InputError, lambda: open_source(["a.jsonl.gz"]).units(10))
    assert text.startswith("a.jsonl.gz, line ")
    assert text.endswith("hint: write or download the file again")


def test_what_only_pretends_to_be_an_archive_is_named() -> None:
    Path("pairs.jsonl.gz").write_bytes(b'{"n": 1}\n')
    assert fault(InputError, lambda: read(open_source(["pairs.jsonl.gz"]))).startswith("pairs.jsonl.gz, line 1: cannot")


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz", "jsonl.zst"])
def test_a_file_that_shrank_or_went_after_it_was_cut_is_named(suffix: str) -> None:
    path = write(f"a.{suffix}", [{"n": number, "text": os.urandom(50).hex()} for number in range(200)])
    source = open_source([path])
    units, reader = source.units(50), jsonl.JsonlReader(path)
    content = Path(path).read_bytes()
    Path(path).write_bytes(content[: len(content) // 2])
    try:
        text = fault(InputError, lambda: reader.read(units[3].spans[0], None, {}))
        assert text.startswith((f"{path} is shorter than when the job began", f"{path}, line 151: cannot be read"))
    finally:
        reader.close()
    os.remove(path)
    assert fault(InputError, lambda: source.read(units[3], None, {})).startswith(f"{path} cannot be read: ")


def test_a_parquet_that_shrank_after_it_was_cut_is_named() -> None:
    source = open_source([numbered("a.parquet", 9)])
    units, reader = source.units(5), parquet.ParquetReader("a.parquet")
    numbered("a.parquet", 8)
    try:
        assert fault(InputError, lambda: reader.read(units[1].spans[0], None, {})).startswith(
            "a.parquet has fewer rows than"
        )
    finally:
        reader.close()


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl"])
def test_a_file_that_was_replaced_after_it_was_cut_is_named(name: str) -> None:
    """Its rows would go by the name of the old ones."""
    source = open_source([numbered(name, 9)])
    units = source.units(5)
    os.replace(numbered(f"new-{name}", 9), name)
    os.utime(name, (0, 0))
    text = fault(InputError, lambda: source.read(units[0], None, {}))
    assert text.startswith(f"{name} has changed since the job began")


@pytest.mark.parametrize("declared", [8, 100])
def test_a_dataset_of_fewer_rows_than_it_declares_is_named(declared: int) -> None:
    datasets = pytest.importorskip("datasets")
    dataset = datasets.Dataset.from_dict({"n": list(range(7))}).to_iterable_dataset()
    source = FileSource(FileAddresses(()), [DatasetReader("hf:org/pairs", dataset, declared)])
    units = source.units(6)
    try:
        assert len(source.read(units[0], ["n"], {}).table) == 6
        text = fault(InputError, lambda: source.read(units[1], ["n"], {}))
    finally:
        source.close()
    assert text.startswith("hf:org/pairs has fewer rows than when the job began")


def test_a_corrupt_parquet_is_named_on_opening() -> None:
    Path("a.parquet").write_bytes(b"PAR1 is how it starts, and it goes on as text")
    text = fault(InputError, lambda: read(open_source(["a.parquet"])))
    assert text.startswith("a.parquet is not a readable Parquet file")
    assert text.endswith("hint: write or download the file again")


def test_a_parquet_damaged_midway_is_named_with_the_row_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "_ROWS", 500)  # which is as near as it is told
    table = pa.table({"text": [os.urandom(50).hex() for _ in range(4000)]})
    pq.write_table(table, "a.parquet", row_group_size=1000, use_dictionary=False, compression="zstd")
    start = pq.read_metadata("a.parquet").row_group(2).column(0).data_page_offset
    with open("a.parquet", "r+b") as file:
        file.seek(start)
        file.write(b"\xff" * 200)
    source = open_source(["a.parquet"])
    units = source.units(500)
    for order in ([0, 1, 2, 3, 4], [4], [6, 4], [3, 6, 7, 0]):
        try:
            for unit in (units[index] for index in order):
                if unit.index == 4:
                    text = fault(InputError, lambda: source.read(units[4], None, {}))
                    assert text.startswith("a.parquet, row 2000: damaged from here on")
                else:  # a row group that is not asked for is not read
                    assert len(source.read(unit, None, {}).table) == 500
        finally:
            source.close()


def test_null_lists_of_a_fixed_size_are_read_or_named_where_arrow_cannot() -> None:
    table = pa.table({"n": pa.array([[1, 2], None], pa.list_(pa.int8(), 2))})
    pq.write_table(table, "a.parquet")
    try:
        pq.read_table("a.parquet")
    except pa.ArrowInvalid:  # before 26
        text = fault(InputError, lambda: read(open_source(["a.parquet"])))
        assert "row 0" in text
        assert "only pyarrow 26 or later reads its null lists" in text
    else:
        source = open_source(["a.parquet"])
        assert source.read(source.units(9)[0], None, {}).table["n"].to_pylist() == [[1, 2], None]


# ---- columns that are not there


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
@pytest.mark.parametrize(
    ("columns", "flags", "message", "hint"),
    [
        (["doc"], {"doc": "--document-column"}, "'doc'", "pass --document-column document"),
        (None, {"doc": "--document-column"}, "'doc'", "pass --document-column document"),
        (["qury", "n"], {}, "'qury'", "pass --keep-columns query"),
        (["zzz"], {"zzz": "--query-column"}, "'zzz'", "pass --query-column with one of these columns"),
    ],
)
def test_a_missing_column_is_named_with_the_nearest_one(
    suffix: str, columns: list[str] | None, flags: dict[str, str], message: str, hint: str
) -> None:
    source = open_source([numbered(f"a.{suffix}", 2)])
    expected = f"column {message} not found in a.{suffix}; columns: query, document, n\nhint: {hint}"
    assert fault(InputError, lambda: chunks_of(source, 2, columns, flags=flags)) == expected


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_each_file_is_checked_when_the_input_is_divided(suffix: str) -> None:
    source = open_source([numbered(f"a.{suffix}", 2), write(f"b.{suffix}", [{"query": "x"}] * 4)])
    text = fault(InputError, lambda: source.units(2, columns=FLAGS))
    assert text.startswith(f"column 'document' not found in b.{suffix}; columns: query")
    assert [unit.rows for unit in source.units(2, columns=FLAGS, limit=2)] == [2]  # none of which is in b


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_a_later_file_without_the_column_that_rows_are_grouped_by_is_named(suffix: str) -> None:
    source = open_source([numbered(f"a.{suffix}", 2), write(f"b.{suffix}", [{"querry": "x"}])])
    text = fault(InputError, lambda: source.units(2, group="query"))
    assert text.startswith(f"column 'query' not found in b.{suffix}; columns: querry")


def test_a_key_first_seen_on_a_later_line_counts() -> None:
    source = open_source([write("a.jsonl", [{"query": "x"}, {"query": "y", "document": "z"}])])
    assert [row["document"] for row in read(source, 2, ["query", "document"])] == [None, "z"]


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0], [1, 0, 2]])
def test_a_key_of_any_line_counts_whichever_unit_is_read_first(order: list[int]) -> None:
    rows: list[dict[str, Any]] = [{"n": 0, "no\u00e9": 1}, {"n": 1}, {"n": 2, "é": {"é": 1}}, {"n": 3, "note": "é"}]
    source = open_source([write("a.jsonl", [{"n": -1}, {"n": -2}, *rows])])
    units = source.units(2)
    try:
        found = {index: source.read(units[index], ["note", "é"], {}).table.to_pylist() for index in order}
    finally:
        source.close()
    assert found == {
        0: [{"note": None, "é": None}] * 2,
        1: [{"note": None, "é": None}] * 2,
        2: [{"note": None, "é": {"é": 1}}, {"note": "é", "é": None}],
    }
    text = fault(InputError, lambda: chunks_of(source, 2, ["noé", "not"]))
    assert text == "column 'not' not found in a.jsonl; columns: n, noé, é, note\nhint: pass --keep-columns note"


def test_a_grouping_key_of_any_line_of_a_later_file_counts() -> None:
    source = open_source([numbered("a.jsonl", 1), write("b.jsonl", [{"n": 1}, {"n": 2, "query": "x"}])])
    assert [unit.rows for unit in source.units(1, group="query")] == [1, 1, 1]


def test_types_that_do_not_go_together_become_text() -> None:
    source = open_source([write("a.parquet", [{"n": 1, "m": 1}]), write("b.parquet", [{"n": 2, "m": "x"}])])
    assert read(source, 2) == [{"n": 1, "m": "1"}, {"n": 2, "m": "x"}]


def test_an_integer_that_no_float_can_hold_is_not_rounded() -> None:
    source = open_source([write("a.parquet", [{"n": 2.5}]), write("b.parquet", [{"n": 2**60 + 1}])])
    assert read(source, 2) == [{"n": "2.5"}, {"n": str(2**60 + 1)}]


# ---- memory


def held(source: Source, units: Iterable[Unit], columns: Sequence[str]) -> int:
    """The most bytes that Arrow held while the units went by."""
    before, most = pa.total_allocated_bytes(), 0
    for unit in units:
        chunk = source.read(unit, columns, {})
        assert len(chunk.table) == unit.rows
        most = max(most, pa.total_allocated_bytes() - before)
    source.close()
    return most


def peak(call: Callable[[], object]) -> int:
    """The most bytes that Python and numpy held during a call."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_parquet_of_one_row_group_is_never_held_whole() -> None:
    text = pa.array([f"{i:0>200}" for i in range(300_000)])
    pq.write_table(
        pa.table({"text": text}), "big.parquet", row_group_size=300_000, use_dictionary=False, compression="none"
    )
    assert text.nbytes > 60_000_000
    del text
    source = open_source(["big.parquet"])
    units = source.units(4096)
    assert held(source, units, ["text"]) < 12_000_000
    assert held(source, units[1::8], ["text"]) < 12_000_000  # one of eight shards
    assert held(source, units[60:0:-30], ["text"]) < 12_000_000  # each time from the beginning of the row group


@pytest.mark.parametrize("group", [None, "query"])
def test_long_lines_are_not_held_while_units_are_cut(group: str | None) -> None:
    line = json.dumps({"query": "q", "documents": ["x" * 100_000]})
    Path("a.jsonl").write_text((line + "\n") * 500)
    source = open_source(["a.jsonl"])
    assert peak(lambda: source.units(16, group=group, stretch=4)) < 30_000_000
    assert [unit.rows for unit in source.units(16, group=group, stretch=4)][:2] == [64, 64] if group else [16, 16]


def test_counted_rows_are_not_listed_one_by_one() -> None:
    pq.write_table(pa.table({"n": pa.array(np.zeros(5_000_000, np.int8))}), "a.parquet")
    source = open_source(["a.parquet"])
    assert peak(lambda: source.units(16_384)) < 10_000_000
    assert [unit.rows for unit in source.units(3_000_000)] == [3_000_000, 2_000_000]
    assert sum(unit.rows for unit in source.units(16_384, limit=4_999_999)) == 4_999_999


# ---- Hugging Face datasets


@pytest.fixture
def saved() -> list[dict[str, Any]]:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    rows = [{"query": f"q{i}", "document": "été", "n": i} for i in range(7)]
    dataset = datasets.Dataset.from_list(rows)
    dataset.save_to_disk("one")
    datasets.DatasetDict(train=dataset, test=dataset.select([3, 1])).save_to_disk("two")
    return rows


def test_a_saved_dataset_reads_back_the_same_rows(saved: list[dict[str, Any]]) -> None:
    source = open_source(["one"])
    chunks = chunks_of(source, 3, ["n", "query"])
    assert [row for chunk in chunks for row in chunk.table.to_pylist()] == [
        {"n": row["n"], "query": row["query"]} for row in saved
    ]
    assert ([len(chunk.table) for chunk in chunks], source.column_names()) == ([3, 3, 1], ["query", "document", "n"])
    assert (chunks[2].locate(0), chunks[0].table.schema.metadata) == ("one, row 6", None)
    assert source.fingerprint()[0]["bytes"] == os.path.getsize("one/data-00000-of-00001.arrow")


def test_rows_of_a_saved_dataset_are_sought_and_not_read_from_the_start(
    saved: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    starts: list[int] = []
    stream = DatasetReader._stream

    def recorded(self: DatasetReader, columns: Sequence[str] | None, start: int) -> Iterator[Any]:
        starts.append(start)
        return stream(self, columns, start)

    monkeypatch.setattr(DatasetReader, "_stream", recorded)
    source = open_source(["one"])
    units = source.units(2)
    assert [source.read(units[index], ["n"], {}).table["n"].to_pylist() for index in (3, 0, 1, 2, 2)] == [
        *([6], [0, 1], [2, 3], [4, 5], [4, 5])
    ]
    source.close()
    assert starts == [6, 0, 4]


def test_a_split_is_chosen_by_name_and_must_be_where_there_are_several(saved: list[dict[str, Any]]) -> None:
    assert [row["n"] for row in read(open_source(["two"], split="test"))] == [3, 1]
    expected = "two has several splits; splits: train, test\nhint: pass --split train"
    assert fault(UsageError, lambda: open_source(["two"])) == expected
    assert "one has no split 'dev'; splits: train" in fault(UsageError, lambda: open_source(["one"], split="dev"))


def test_a_column_missing_from_a_dataset_is_named(saved: list[dict[str, Any]]) -> None:
    text = fault(InputError, lambda: read(open_source(["one"]), 2, ["querry"]))
    assert text == "column 'querry' not found in one; columns: query, document, n\nhint: pass --keep-columns query"


def test_a_damaged_saved_dataset_is_named(saved: list[dict[str, Any]]) -> None:
    Path("one/state.json").write_text("{")
    assert fault(InputError, lambda: open_source(["one"])).startswith("one is not a readable dataset")


@pytest.mark.parametrize("group", [None, "query"])
def test_an_empty_dataset_is_one_empty_unit(group: str | None) -> None:
    datasets = pytest.importorskip("datasets")
    empty = datasets.Dataset.from_dict({"query": []}, datasets.Features({"query": datasets.Value("string")}))
    (chunk,) = chunks_of(FileSource(FileAddresses(()), [DatasetReader("empty", empty, 0)]), 3, ["query"], group=group)
    assert (len(chunk.table), chunk.table.schema.types) == (0, [pa.string()])


@pytest.mark.parametrize("name", ["hf:org/pairs", "hf:./org/pairs"])
@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_a_hub_dataset_is_streamed(name: str, suffix: str) -> None:
    pytest.importorskip("datasets")
    numbered(f"org/pairs/train.{suffix}", 5)
    source = open_source([name])
    chunks = chunks_of(source, 2, ["n"])
    assert [n for chunk in chunks for n in chunk.table["n"].to_pylist()] == [0, 1, 2, 3, 4]
    assert chunks[1].locate(1) == f"{name}, row 3"
    assert ([len(chunk.table) for chunk in chunks], source.column_names()) == ([2, 2, 1], ["query", "document", "n"])


def test_a_name_that_is_no_path_is_looked_up_on_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    asked = []

    def load_dataset(name: str, streaming: bool) -> None:
        asked.append((name, streaming))
        raise datasets.exceptions.DatasetNotFoundError(f"Dataset '{name}' doesn't exist")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    text = fault(NotFoundError, lambda: open_source(["org/name"]))
    assert text.startswith("org/name is neither a file nor a dataset on the Hub: Dataset 'org/name' doesn't exist")
    assert asked == [("org/name", True)]


def test_without_the_datasets_package_the_install_line_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    text = fault(MissingDependencyError, lambda: open_source(["hf:org/name"]))
    assert "hf:org/name" in text
    assert text.endswith("hint: pip install datasets")


# ---- units


def lines_of(rows: Sequence[dict[str, Any]]) -> bytes:
    """JSON Lines as an editor may leave them: a byte order mark, blank lines, CRLF, no end of the last line."""
    draw = random.Random(len(rows))
    ends = [draw.choice([b"\n", b"\r\n", b"\n\n", b"\n  \r\n\n"]) for _ in rows]
    ends[-1] = b"\n\n \n" if len(rows) % 2 else b""
    lines = [json.dumps(row, ensure_ascii=False).encode() + end for row, end in zip(rows, ends, strict=True)]
    return b"\xef\xbb\xbf" + b"".join(lines)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, tuple[str, list[dict[str, Any]]]]:
    """Kind of an input -> (path, rows)."""
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    folder = tmp_path_factory.mktemp("inputs")
    found = {}
    for number, kind in enumerate(
        ["groups of 1", "groups of 4", "one group", "empty", "jsonl", "jsonl.gz", "jsonl.zst", "saved", "streamed"]
    ):
        count = 0 if kind == "empty" else 23 + number
        rows = [
            {"query": f"é{i // 3}", "document": f"d{i}", "n": 100 * number + i, "tags": ["x"] * (i % 3)}
            for i in range(count)
        ]
        path = folder / f"{number}.{kind if kind.startswith('jsonl') else 'parquet'}"
        if kind.startswith("jsonl"):
            write_bytes(str(path), lines_of(rows))
        elif kind == "saved":
            path = folder / "saved"
            datasets.Dataset.from_list(rows).save_to_disk(str(path))
        elif kind == "streamed":
            write(str(folder / "hub" / "train.parquet"), rows)
            path = Path(f"hf:{folder / 'hub'}")
        else:
            schema = pa.schema(
                [("query", pa.string()), ("document", pa.string()), ("n", pa.int64()), ("tags", pa.list_(pa.string()))]
            )
            size = {"groups of 1": 1, "groups of 4": 4}.get(kind, 100)
            pq.write_table(pa.Table.from_pylist(rows, schema), path, row_group_size=size)
        found[kind] = (str(path), rows)
    return found


@pytest.fixture
def small_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    """A unit takes several tables of a reader's stream, and steps end within units."""
    monkeypatch.setattr(parquet, "_ROWS", 5)
    monkeypatch.setattr(hf, "_ROWS", 5)
    monkeypatch.setattr(lines, "_ROWS", 5)


MIXES = [
    *[
        [kind]
        for kind in ("groups of 1", "groups of 4", "one group", "empty", "jsonl", "jsonl.gz", "jsonl.zst", "saved")
    ],
    ["jsonl.gz", "empty", "groups of 4", "jsonl", "saved"],
]
STREAMED = [(["streamed"], 12, None), (["empty", "streamed", "one group", "jsonl.zst", "empty"], 1000, "query")]


@pytest.mark.usefixtures("small_tables")
@pytest.mark.parametrize(
    ("kinds", "size", "group"), [*product(MIXES, [1, 7, 1000], [None, "query"]), *STREAMED], ids=str
)
def test_units_in_any_order_are_the_rows_of_the_input(
    inputs: Mapping[str, tuple[str, list[dict[str, Any]]]], kinds: list[str], group: str | None, size: int
) -> None:
    source = open_source([inputs[kind][0] for kind in kinds])
    expected = [row for kind in kinds for row in inputs[kind][1]]
    units = source.units(size, group=group)
    shuffled = random.Random(size).sample(units, len(units))
    orders = [units, shuffled, units[::-1], [*units[1::3], *units[::3], *units[2::3]], [*units[-1:], *units[-1:]]]
    columns = ["n", "tags", "query"]
    try:
        found = [{unit.index: source.read(unit, columns, {"query": "text"}) for unit in order} for order in orders]
    finally:
        source.close()
    rows = [row for index in range(len(units)) for row in found[0][index].table.to_pylist()]
    assert rows == [{name: row[name] for name in columns} for row in expected]
    assert [len(found[0][unit.index].table) for unit in units] == [unit.rows for unit in units]
    for order, chunks in zip(orders[1:], found[1:], strict=True):
        for unit in order:
            assert chunks[unit.index].table.equals(found[0][unit.index].table)
            places = [chunks[unit.index].locate(row) for row in range(unit.rows)]
            assert places == [found[0][unit.index].locate(row) for row in range(unit.rows)]


@pytest.mark.usefixtures("small_tables")
@pytest.mark.parametrize("kind", ["groups of 4", "jsonl", "saved", "streamed"])
def test_other_columns_may_be_read_of_each_unit(
    inputs: Mapping[str, tuple[str, list[dict[str, Any]]]], kind: str
) -> None:
    source, rows = open_source([inputs[kind][0]]), inputs[kind][1]
    units = source.units(6)
    try:
        for unit, columns in zip(units, [["n"], ["document", "n"], ["query"], None], strict=False):
            found = source.read(unit, columns, {}).table.to_pylist()
            here = rows[6 * unit.index : 6 * unit.index + 6]
            assert found == [{name: row[name] for name in columns or row} for row in here]
    finally:
        source.close()


def test_lines_keep_their_numbers_in_every_unit(inputs: Mapping[str, tuple[str, list[dict[str, Any]]]]) -> None:
    for kind in ("jsonl", "jsonl.gz", "jsonl.zst"):
        path, rows = inputs[kind]
        lines = lines_of(rows).removeprefix(b"\xef\xbb\xbf").split(b"\n")
        expected = [f"{path}, line {number}" for number, line in enumerate(lines, start=1) if line.strip()]
        for size in (1, 5, 1000):
            chunks = chunks_of(open_source([path]), size, ["n"])
            assert [chunk.locate(row) for chunk in chunks for row in range(len(chunk.table))] == expected


def test_units_outlive_the_source_that_cut_them(inputs: Mapping[str, tuple[str, list[dict[str, Any]]]]) -> None:
    paths = [inputs[kind][0] for kind in ("jsonl.gz", "one group", "saved")]
    units = open_source(paths).units(10)
    assert open_source(paths).units(10) == units
    source = open_source(paths)
    try:
        assert source.read(units[-1], ["n"], {}).table["n"].to_pylist()[-1] == 729
    finally:
        source.close()


class CountedFile(io.FileIO):
    """A file that counts what is read of it."""

    count = 0

    def readinto(self, buffer: Any) -> int | None:
        found = super().readinto(buffer)
        self.count += found or 0
        return found


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[CountedFile]:
    """Files as the reader of lines opens them."""
    files: list[CountedFile] = []

    def open_file(path: str) -> io.BufferedReader:
        files.append(CountedFile(path))
        return io.BufferedReader(files[-1], 8192)

    monkeypatch.setattr(lines, "open_file", open_file)
    return files


LONG = [{"n": number, "text": "".join(map(chr, range(65 + number % 7, 110))) * 20} for number in range(600)]


def test_lines_are_sought_by_their_bytes_and_not_read_from_the_start(opened: list[CountedFile]) -> None:
    write("a.jsonl", LONG)
    source = open_source(["a.jsonl"])
    units, size = source.units(50), os.path.getsize("a.jsonl")
    opened.clear()
    try:
        for unit in (units[11], units[4]):
            found = source.read(unit, ["n"], {}).table["n"].to_pylist()
            assert found == list(range(50 * unit.index, 50 * unit.index + 50))
    finally:
        source.close()
    assert size > 500_000
    assert sum(file.count for file in opened) < 2 * (size / 12 + 3 * 8192)


def test_what_is_before_a_unit_need_not_even_be_readable() -> None:
    write("a.jsonl", LONG)
    units = open_source(["a.jsonl"]).units(50)
    start = units[9].spans[0].start
    first = json.dumps(LONG[0]).encode()
    with open("a.jsonl", "r+b") as file:
        file.seek(len(first))
        file.write(b"\xff" * (start - len(first)))
    source = open_source(["a.jsonl"])
    try:
        chunks = [source.read(unit, ["n"], {}) for unit in units[9:]]
    finally:
        source.close()
    assert [n for chunk in chunks for n in chunk.table["n"].to_pylist()] == list(range(450, 600))
    assert chunks[0].locate(0) == "a.jsonl, line 451"


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz", "jsonl.zst"])
def test_units_in_order_are_one_pass_through_the_lines(suffix: str, opened: list[CountedFile]) -> None:
    source = open_source([write(f"a.{suffix}", LONG)])
    units = source.units(50)
    opened.clear()
    for unit in units[::3]:
        source.read(unit, ["n"], {})
    whole = [file for file in opened if file.count]
    assert len(whole) <= 2  # the first line's keys, and the units
    source.close()
    assert all(file.closed for file in opened)


# ---- rows that belong together


def assert_is_cut_by_runs(values: list[Any], sizes: list[int], size: int, most: int) -> None:
    """Whether units of these sizes end with a run as soon as they have `size` rows, or in one with `most` rows."""
    assert sum(sizes) == len(values)
    start = 0
    for rows in sizes:
        stop = start + rows
        at_end = stop == len(values)
        assert at_end or size <= rows <= most
        assert at_end or values[stop] != values[stop - 1] or rows == most
        assert all(values[row] == values[row - 1] for row in range(start + size, stop))
        start = stop


@pytest.mark.usefixtures("small_tables")
@pytest.mark.parametrize("suffix", ["parquet", "jsonl", "jsonl.gz"])
@pytest.mark.parametrize("seed", range(8))
def test_a_unit_ends_where_a_run_does_unless_it_is_full(suffix: str, seed: int) -> None:
    draw = random.Random(seed)
    values: list[Any] = [value for _ in range(12) for value in [draw.choice(["a", "b", None])] * draw.randint(1, 9)]
    stops = [0, *sorted(draw.sample(range(1, len(values)), 2)), len(values)]
    files = [
        write(f"{start}.{suffix}", [{"q": value, "n": start + n} for n, value in enumerate(values[start:stop])])
        for start, stop in pairwise(stops)
    ]
    source = open_source(files)
    for size in (1, 2, 5, 11, 1000):
        for most in (None, size, size + 3, 2**62):
            units = source.units(size, group="q", stretch=2 if most is None else most / size)
            assert_is_cut_by_runs(values, [unit.rows for unit in units], size, most or 2 * size)
            chunks = [source.read(unit, ["n"], {}) for unit in units]
            assert [n for chunk in chunks for n in chunk.table["n"].to_pylist()] == list(range(len(values)))
    source.close()


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 100])
def test_no_run_of_a_value_is_divided(rows: int) -> None:
    values = ["a", "a", "b", "c", "c", "c", "a", "d"]
    files = [write("1.jsonl", [{"q": q, "n": n} for n, q in enumerate(values[:5])])]
    files.append(write("2.jsonl", [{"q": q, "n": n} for n, q in enumerate(values[5:])]))
    chunks = chunks_of(open_source(files), rows, ["q"], group="q", stretch=math.inf)
    found = [chunk.table["q"].to_pylist() for chunk in chunks]

    assert [value for part in found for value in part] == values
    assert all(before[-1] != after[0] for before, after in pairwise(found))
    places = [chunk.locate(row) for chunk in chunks for row in range(chunk.table.num_rows)]
    assert places == [f"1.jsonl, line {n}" for n in range(1, 6)] + [f"2.jsonl, line {n}" for n in range(1, 4)]


@pytest.mark.parametrize("group", [None, "q"])
def test_a_unit_is_full_by_its_bytes_too(group: str | None) -> None:
    """Long lines fill it as many short ones do."""
    draw = random.Random(5)
    rows = [{"q": n // 3, "text": "x" * draw.choice([1, 50, 400, 3000])} for n in range(200)]
    sizes = [len(json.dumps(row)) + 1 for row in rows]
    source = open_source([write("1.jsonl", rows[:70]), write("2.jsonl", rows[70:])])
    units = source.units(20, size=2000, group=group)
    start = 0
    for unit in units[:-1]:
        stop = start + unit.rows
        filled = max(unit.rows / 20, sum(sizes[start:stop]) / 2000)
        before = max((unit.rows - 1) / 20, sum(sizes[start : stop - 1]) / 2000)
        assert filled >= 1
        assert before < (1 if group is None else 2)
        assert group is None or filled >= 2 or stop % 3 == 0
        start = stop
    assert start + units[-1].rows == 200
    assert [unit.rows for unit in source.units(20, size=1, group=group, stretch=1)] == [1] * 200


def test_a_unit_of_parquet_is_full_by_the_bytes_of_its_rows_on_average(here: Path) -> None:
    texts = [os.urandom(500).hex() for _ in range(400)]
    pq.write_table(pa.table({"text": texts, "q": [0] * 400}), "a.parquet", row_group_size=100)
    for options in ({}, {"group": "q", "stretch": 1}):
        units = open_source(["a.parquet"]).units(400, size=50_000, **options)
        assert len(units) == 9  # 1,012 bytes a row
        assert sum(unit.rows for unit in units) == 400


def test_a_run_goes_on_from_parquet_to_lines() -> None:
    paths = [write("a.parquet", [{"q": 7}] * 3), write("b.jsonl", [{"q": 7}, {"q": 8}]), write("c.jsonl", [{"q": 8}])]
    assert [unit.rows for unit in open_source(paths).units(1, group="q", stretch=99)] == [4, 2]


def test_a_line_that_cannot_be_read_is_a_run_of_its_own() -> None:
    write_bytes("a.jsonl", b'{"q": 1}\n{"q": 1}\n{\n{\n{"q": 1}\n{}\n{}\n')
    assert [unit.rows for unit in open_source(["a.jsonl"]).units(1, group="q", stretch=99)] == [2, 1, 1, 1, 2]


def test_runs_of_a_saved_dataset_are_seen(small_tables: None) -> None:
    datasets = pytest.importorskip("datasets")
    values = [value for value, count in zip("abcab", [1, 7, 2, 6, 3], strict=True) for _ in range(count)]
    reader = DatasetReader("saved", datasets.Dataset.from_dict({"q": values}), len(values))
    units = FileSource(FileAddresses(()), [reader]).units(3, group="q", stretch=33)
    assert [unit.rows for unit in units] == [8, 8, 3]
    assert [len(list(run)) for _, run in groupby(values)] == [1, 7, 2, 6, 3]


def test_the_type_of_a_column_is_that_of_most_of_the_first_rows() -> None:
    write("a.jsonl", [{"s": ["x"], "l": "x", "o": 1}, *[{"s": "x", "l": ["x"], "o": [{"t": "x"}]}] * 2])
    source = open_source(["a.jsonl"])
    kinds = {name: source.column_type(name) for name in ("s", "l", "o", "none")}
    assert kinds["s"] == pa.string()
    assert kinds["l"] == pa.large_list(pa.struct([("text", pa.string())]))
    assert kinds["o"] == pa.large_list(pa.struct([("t", pa.string())]))
    assert kinds["none"] == pa.null()
    pq.write_table(pa.table({"s": pa.array([], pa.large_string())}), "a.parquet")
    assert open_source(["a.parquet"]).column_type("s") == pa.large_string()


def test_a_streamed_dataset_with_more_rows_than_its_card_says_is_refused() -> None:
    datasets = pytest.importorskip("datasets")
    streamed = datasets.Dataset.from_dict({"n": list(range(7))}).to_iterable_dataset()
    source = FileSource(FileAddresses(()), [DatasetReader("hf:org/name", streamed, 5)])
    last = source.units(3)[-1]
    with pytest.raises(InputError, match="hf:org/name has more rows than the 5 of its card"):
        source.read(last, ["n"], {})


def stop_at_third_step(source: FileSource) -> list[int]:
    """Has the source's third step raise StoppedError. Returns the steps, which grow."""
    steps: list[int] = []

    def stop() -> None:
        steps.append(1)
        if len(steps) == 3:
            raise StoppedError("enough")

    source.on_step = stop
    return steps


def test_cutting_can_be_ended(small_tables: None) -> None:
    """Lines are read through to be counted, which takes its time."""
    source = open_source([numbered("a.jsonl", 100)])
    steps = stop_at_third_step(source)
    with pytest.raises(StoppedError, match="enough"):
        source.units(10)
    assert len(steps) == 3


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz"])
def test_a_key_that_the_first_lines_lack_is_looked_for_while_units_are_divided(
    suffix: str, opened: list[CountedFile]
) -> None:
    rows = [{"n": n, "text": os.urandom(100).hex()} for n in range(5000)]
    path = write(f"a.{suffix}", [*rows, {"n": 5000, "late": 1}])
    source = open_source([path])
    units = source.units(1000, columns={"late": "--keep-columns"}, limit=2000)  # past the limit too
    assert [row["late"] for row in source.read(units[1], ["late"], {}).table.to_pylist()] == [None] * 1000
    source.close()
    assert len([file for file in opened if file.count]) == 3  # for the schema, to divide, and to read


def test_looking_for_a_key_can_be_ended(small_tables: None) -> None:
    source = open_source([write("a.jsonl", [{"n": n} for n in range(100)])])
    stop_at_third_step(source)
    with pytest.raises(StoppedError, match="enough"):
        source.units(1, columns={"late": "--keep-columns"}, limit=1)


# ---- another process


def test_addresses_open_the_same_input_in_another_process(saved: list[dict[str, Any]]) -> None:
    numbered("part-1.jsonl", 2)
    source = open_source(["part-*.jsonl", "one"], skip=lambda file: False)
    numbered("part-2.jsonl", 2, 5)  # comes too late
    again = pickle.loads(pickle.dumps(source.addresses())).open()
    assert again.fingerprint() == source.fingerprint()
    assert again.files == source.files == ["part-1.jsonl", "one"]
    assert read(again, 3, ["n"]) == read(source, 3, ["n"])


def test_addresses_keep_the_split() -> None:
    datasets = pytest.importorskip("datasets")
    splits = {name: datasets.Dataset.from_dict({"n": [number]}) for number, name in enumerate(("train", "test"))}
    datasets.DatasetDict(splits).save_to_disk("two")
    assert read(open_source(["two"], split="test").addresses().open()) == [{"n": 1}]


# ---- runs


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_a_query_that_comes_back_is_named_with_its_row(suffix: str) -> None:
    rows = [{"q": value} for value in "aabbc"]
    source = open_source([write(f"1.{suffix}", rows), write(f"2.{suffix}", [{"q": value} for value in "cda"])])
    place = {"parquet": "row 2", "jsonl": "line 3"}[suffix]
    text = fault(InputError, lambda: source.require_runs("q", None))
    assert text.startswith(f"2.{suffix}, {place}: its query came before, among other queries")
    source.require_runs("q", 7)  # rows before that


# ---- inputs of another kind


@pytest.mark.parametrize(
    "row", [{"_id": "1", "title": "a", "text": "b"}, {"_id": "1", "text": "b", "metadata": None}, {"contents": "b"}]
)
def test_a_corpus_is_told_from_pairs(row: dict[str, Any]) -> None:
    source = open_source([write("corpus.jsonl", [row])])
    assert fault(InputError, lambda: source.require(FLAGS)) == (
        f"corpus.jsonl has one text a row, no query and document: no column 'query'; columns: {', '.join(row)}\n"
        "hint: pass --queries and --corpus with --run, --qrels or --all-pairs"
    )
