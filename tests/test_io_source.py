"""What comes in is what is in the files, in bounded windows; what is wrong is named with its file and line."""

from __future__ import annotations

import gzip
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchscore.errors import BatchscoreError, InputError, MissingDependencyError, NotFoundError, UsageError
from batchscore.io.hf import DatasetReader
from batchscore.io.source import Chunk, Source, open_source, whole_groups

ROWS: list[dict[str, Any]] = [
    {"query": "naïve 東京", "document": "été 🎉\u2028", "meta": {"lang": "fr", "tags": ["a", "b"]}, "year": 2001},
    {"query": "", "document": '"quoted"\\', "meta": {"lang": None, "tags": []}, "year": None},
    {"query": "2024-01-02", "document": "2024-01-02T03:04:05Z", "meta": None, "year": 3},
]
FLAGS = {"query": "--query-column", "document": "--document-column"}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


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


def read(source: Source, rows: int = 2, columns: Sequence[str] | None = None) -> list[dict[str, Any]]:
    return [row for chunk in source.chunks(columns, rows) for row in chunk.table.to_pylist()]


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
    assert source.num_rows == (3 if suffix in ("parquet", "PQ") else None)


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_only_asked_columns_are_read_in_the_asked_order(suffix: str) -> None:
    chunk = next(open_source([write(f"pairs.{suffix}", ROWS)]).chunks(["year", "query"], 10))
    assert chunk.table.column_names == ["year", "query"]
    assert chunk.blocks[0].table.num_columns == 2


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
@pytest.mark.parametrize("rows", [1, 3, 4, 7, 100])
def test_windows_have_exactly_rows_rows_and_span_files(suffix: str, rows: int) -> None:
    files = [numbered(f"{i}.{suffix}", 5, 5 * i) for i in range(3)]
    chunks = list(open_source(files).chunks(["n"], rows))
    assert [n for chunk in chunks for n in chunk.table["n"].to_pylist()] == list(range(15))
    assert all(len(chunk.table) == rows for chunk in chunks[:-1])
    assert all(sum(map(len, chunk.blocks)) == len(chunk.table) for chunk in chunks)
    assert chunks[-1].fraction == 1.0
    assert [chunk.fraction for chunk in chunks] == sorted(chunk.fraction or 0 for chunk in chunks)


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
@pytest.mark.parametrize("limit", [0, 1, 4, 5, 6, 10, 99])
def test_limit_counts_rows_over_all_files(suffix: str, limit: int) -> None:
    source = open_source([numbered(f"a.{suffix}", 5), numbered(f"b.{suffix}", 5, 5)])
    chunks = list(source.chunks(["n"], 3, limit))
    assert [n for chunk in chunks for n in chunk.table["n"].to_pylist()] == list(range(min(limit, 10)))
    assert limit == 0 or chunks[-1].fraction == 1.0


def test_fraction_weighs_files_by_rows_where_known_or_else_by_bytes() -> None:
    parquet = open_source([numbered("a.parquet", 30), numbered("b.parquet", 10)])
    assert [chunk.fraction for chunk in parquet.chunks(["n"], 10)] == [0.25, 0.5, 0.75, 1.0]
    mixed = open_source(["a.parquet", numbered("c.jsonl", 10)])
    first, share = next(mixed.chunks(["n"], 30)), os.path.getsize("a.parquet")
    assert first.fraction == pytest.approx(share / (share + os.path.getsize("c.jsonl")))


def test_fraction_of_a_compressed_file_follows_its_bytes() -> None:
    write("big.jsonl.gz", [{"text": os.urandom(2000).hex()} for _ in range(4000)])
    fractions = [chunk.fraction or 0 for chunk in open_source(["big.jsonl.gz"]).chunks(None, 1000)]
    assert fractions == sorted(fractions)
    assert 0.2 < fractions[0] < 0.6
    assert fractions[-1] == 1.0


def test_rows_are_located_by_line_in_jsonl_and_by_row_elsewhere() -> None:
    write_bytes("pairs.jsonl", b'\xef\xbb\xbf{"n": 0}\r\n\r\n  \n{"n": 1}\r\n\n{"n": 2}')
    numbered("a.parquet", 3)
    chunks = list(open_source(["pairs.jsonl", "a.parquet"]).chunks(["n"], 4))
    assert [chunks[0].locate(row) for row in range(4)] == [
        *(f"pairs.jsonl, line {line}" for line in (1, 4, 6)),
        "a.parquet, row 0",
    ]
    assert chunks[1].locate(1) == "a.parquet, row 2"
    assert [n for chunk in chunks for n in chunk.table["n"].to_pylist()] == [0, 1, 2, 0, 1, 2]


def test_jsonl_columns_are_the_union_of_keys_and_absent_keys_are_null() -> None:
    write("pairs.jsonl", [{"a": 1}, {"b": "x", "a": 2.5}, {"c": None}])
    table = next(open_source(["pairs.jsonl"]).chunks(None, 10)).table
    assert table.to_pydict() == {"a": [1.0, 2.5, None], "b": [None, "x", None], "c": [None, None, None]}


def test_a_wanted_column_absent_from_a_whole_window_is_null_there() -> None:
    write("pairs.jsonl", [{"query": "a", "n": 1}, {"query": "b"}])
    chunks = list(open_source(["pairs.jsonl"]).chunks(["n", "query"], 1))
    assert [chunk.table.to_pylist() for chunk in chunks] == [[{"n": 1, "query": "a"}], [{"n": None, "query": "b"}]]


def test_files_of_different_types_are_widened_and_lose_their_writers_metadata() -> None:
    pq.write_table(pa.table({"n": [1], "t": ["a"]}).replace_schema_metadata({"pandas": "{}"}), "a.parquet")
    pq.write_table(pa.table({"t": pa.array(["b"], pa.large_string()), "n": [2.5], "more": [True]}), "b.parquet")
    table = next(open_source(["a.parquet", "b.parquet"]).chunks(None, 10)).table
    assert table.to_pydict() == {"n": [1.0, 2.5], "t": ["a", "b"], "more": [None, True]}
    assert table.schema.metadata is None


def test_dictionary_columns_pass_through() -> None:
    pq.write_table(pa.table({"kind": pa.array(["a", "b", "a"]).dictionary_encode()}), "a.parquet")
    assert read(open_source(["a.parquet", "a.parquet"]), 4) == [{"kind": kind} for kind in "abaaba"]


@pytest.mark.parametrize("files", [["a.parquet"], ["a.parquet", "a.parquet"]])
def test_an_empty_parquet_is_one_empty_window_with_its_columns(files: list[str]) -> None:
    pq.write_table(pa.table({"query": pa.array([], pa.string()), "n": pa.array([], pa.int64())}), "a.parquet")
    source = open_source(files)
    (chunk,) = source.chunks(["query"], 4)
    assert (source.num_rows, chunk.table.num_rows, chunk.table.column_names) == (0, 0, ["query"])
    assert (chunk.fraction, chunk.blocks[0].file) == (1.0, "a.parquet")


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
        ("none.jsonl", NotFoundError, "none.jsonl: no such file or folder"),
        ("none*.jsonl", NotFoundError, "none*.jsonl: no such file or folder"),
        ("notes.txt", UsageError, "cannot read notes.txt: its suffix is none of .parquet, .pq, .jsonl, .jsonl.gz"),
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


# ---- broken files


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (b'{"n": 1}\n\n{"n": }\n', "line 3: not JSON: Expecting value (column 7)\nhint: JSON Lines holds one object"),
        (b'[\n{"n": 1}\n]\n', "line 1: not JSON"),
        (b'{"n": "caf\xe9"}\n', "line 1: not UTF-8 (byte 11)\nhint: convert the file with iconv"),
        (b'{"n": "\xed\xa0\x80"}\n', "line 1: not UTF-8"),
        (b'{"n": 1}\n[1]\n', "line 2: holds a JSON array, not an object"),
        (b'{"n": 1}\nnull\n', "line 2: holds a JSON null, not an object"),
        (b'{"n": 1}\n{"n": {"\\uD800": 1}}\n', "line 2: half of a surrogate pair cannot be stored"),
        (b'{"n": 1}\n{"n": ' + b"[" * 100_000 + b"\n", "line 2: not readable"),
        (
            b'{"n": null}\n{"n": 1}\n{"n": 2}\n{"n": "x"}\n',
            "line 4: column 'n' is string, and int64 on the lines before",
        ),
        (b'{"n": true}\n{"n": 1}\n', "line 2: column 'n' is int64, and bool on the lines before"),
        (b'{"n": [1]}\n{"n": {"a": 1}}\n', "line 2: column 'n' is struct<a: int64>, and list<item: int64> on the"),
        (b'{"n": 1}\n{"n": [1, "a"]}\n', "line 2: column 'n' cannot be stored"),
        (b'{"n": 1}\n{"n": 9223372036854775808}\n', "line 2: column 'n' cannot be stored"),
        (b"\n \n\r\n", " has only blank lines"),
    ],
)
@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz"])
def test_a_broken_line_is_named(lines: bytes, message: str, suffix: str) -> None:
    source = open_source([write_bytes(f"pairs.{suffix}", lines)])
    assert f"pairs.{suffix}" + ("" if message[0] == " " else ", ") + message in fault(
        InputError, lambda: read(source, 9)
    )


def test_mixed_types_hint_at_leaving_the_column_out_and_doing_so_helps() -> None:
    source = open_source([write("pairs.jsonl", [{"query": "a", "n": 1}, {"query": "b", "n": "x"}])])
    assert "--keep-columns" in fault(InputError, lambda: read(source))
    assert read(source, columns=["query"]) == [{"query": "a"}, {"query": "b"}]


def test_escaped_surrogate_pairs_are_one_character() -> None:
    assert read(open_source([write_bytes("a.jsonl", b'{"n": "\\ud83c\\udf89"}')])) == [{"n": "🎉"}]


@pytest.mark.parametrize("suffix", ["gz", "zst"])
def test_a_truncated_archive_is_named_with_the_line_reached(suffix: str) -> None:
    path = write(f"pairs.jsonl.{suffix}", [{"text": os.urandom(500).hex()} for _ in range(5000)])
    content = Path(path).read_bytes()
    Path(path).write_bytes(content[: len(content) // 2])
    text = fault(InputError, lambda: read(open_source([path]), 100))
    assert text.startswith(f"{path}, line ")
    assert int(text.split("line ")[1].split(":")[0]) > 1000
    assert "Truncated compressed stream" in text


def test_what_only_pretends_to_be_an_archive_is_named() -> None:
    Path("pairs.jsonl.gz").write_bytes(b'{"n": 1}\n')
    assert fault(InputError, lambda: read(open_source(["pairs.jsonl.gz"]))).startswith("pairs.jsonl.gz, line 1: cannot")


def test_a_corrupt_parquet_is_named_on_opening() -> None:
    Path("a.parquet").write_bytes(b"PAR1 is how it starts, and it goes on as text")
    text = fault(InputError, lambda: read(open_source(["a.parquet"])))
    assert text.startswith("a.parquet is not a readable Parquet file")
    assert text.endswith("hint: write or download the file again")


def test_a_parquet_damaged_midway_is_named_with_the_row_reached() -> None:
    table = pa.table({"text": [os.urandom(50).hex() for _ in range(4000)]})
    pq.write_table(table, "a.parquet", row_group_size=1000, use_dictionary=False, compression="zstd")
    start = pq.read_metadata("a.parquet").row_group(2).column(0).data_page_offset
    with open("a.parquet", "r+b") as file:
        file.seek(start)
        file.write(b"\xff" * 200)
    assert fault(InputError, lambda: read(open_source(["a.parquet"]), 500)).startswith("a.parquet, row 2000: damaged")


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
    assert fault(InputError, lambda: next(source.chunks(columns, 2, flags=flags))) == expected


def test_each_file_is_checked_before_its_rows_are_read() -> None:
    source = open_source([numbered("a.parquet", 2), write("b.parquet", [{"query": "x"}])])
    chunks = source.chunks(["query", "document"], 2, flags=FLAGS)
    assert len(next(chunks).table) == 2
    assert "column 'document' not found in b.parquet; columns: query" in fault(InputError, lambda: next(chunks))


def test_a_key_first_seen_on_a_later_line_counts() -> None:
    source = open_source([write("a.jsonl", [{"query": "x"}, {"query": "y", "document": "z"}])])
    assert [row["document"] for row in read(source, 2, ["query", "document"])] == [None, "z"]


def test_types_that_do_not_go_together_name_file_and_column() -> None:
    source = open_source([write("a.parquet", [{"n": 1, "m": 1}]), write("b.parquet", [{"n": 2, "m": "x"}])])
    text = fault(InputError, lambda: read(source, 2))
    assert text.startswith("b.parquet, row 0: column 'm' is string, and int64 in the rows before\nhint: ")


def test_an_integer_that_no_float_can_hold_is_not_rounded() -> None:
    source = open_source([write("a.parquet", [{"n": 2.5}]), write("b.parquet", [{"n": 2**60 + 1}])])
    assert "b.parquet, row 0: column 'n' is int64, and double" in fault(InputError, lambda: read(source, 2))


# ---- memory


def held(chunks: Iterator[Chunk]) -> int:
    """The most bytes that Arrow held while the windows went by."""
    before, most = pa.total_allocated_bytes(), 0
    for _ in chunks:
        most = max(most, pa.total_allocated_bytes() - before)
    return most


def test_a_parquet_of_one_row_group_is_never_held_whole() -> None:
    text = pa.array([f"{i:0>200}" for i in range(300_000)])
    pq.write_table(
        pa.table({"text": text}), "big.parquet", row_group_size=300_000, use_dictionary=False, compression="none"
    )
    assert text.nbytes > 60_000_000
    del text
    assert held(open_source(["big.parquet"]).chunks(["text"], 4096)) < 12_000_000


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
    chunks = list(source.chunks(["n", "query"], 3))
    assert [row for chunk in chunks for row in chunk.table.to_pylist()] == [
        {"n": row["n"], "query": row["query"]} for row in saved
    ]
    assert (source.num_rows, source.column_names()) == (7, ["query", "document", "n"])
    assert (chunks[0].fraction, chunks[2].locate(0), chunks[0].table.schema.metadata) == (3 / 7, "one, row 6", None)
    assert source.fingerprint()[0]["bytes"] == os.path.getsize("one/data-00000-of-00001.arrow")


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


def test_an_empty_dataset_is_one_empty_window() -> None:
    datasets = pytest.importorskip("datasets")
    empty = datasets.Dataset.from_dict({"query": []}, datasets.Features({"query": datasets.Value("string")}))
    (chunk,) = Source([DatasetReader("empty", empty, 0)]).chunks(["query"], 3)
    assert (len(chunk.table), chunk.table.schema.types) == (0, [pa.string()])


@pytest.mark.parametrize("name", ["hf:org/pairs", "hf:./org/pairs"])
@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_a_hub_dataset_is_streamed(name: str, suffix: str) -> None:
    pytest.importorskip("datasets")
    numbered(f"org/pairs/train.{suffix}", 5)
    source = open_source([name])
    chunks = list(source.chunks(["n"], 2))
    assert [n for chunk in chunks for n in chunk.table["n"].to_pylist()] == [0, 1, 2, 3, 4]
    assert chunks[1].locate(1) == f"{name}, row 3"
    assert (source.num_rows, chunks[-1].fraction, source.column_names()) == (None, None, ["query", "document", "n"])


def test_a_name_that_is_no_path_is_looked_up_on_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    asked = []

    def load_dataset(name: str, streaming: bool) -> None:
        asked.append((name, streaming))
        raise datasets.exceptions.DatasetNotFoundError(f"Dataset '{name}' doesn't exist")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    text = fault(NotFoundError, lambda: open_source(["org/name"]))
    assert text.startswith("org/name is no file here and no dataset of the Hub: Dataset 'org/name' doesn't exist")
    assert asked == [("org/name", True)]


def test_without_the_datasets_package_the_install_line_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    text = fault(MissingDependencyError, lambda: open_source(["hf:org/name"]))
    assert "hf:org/name" in text
    assert text.endswith("hint: pip install datasets")


# ---- rows that belong together


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 100])
def test_no_run_of_a_value_is_divided(rows: int) -> None:
    values = ["a", "a", "b", "c", "c", "c", "a", "d"]
    files = [write("1.jsonl", [{"q": q, "n": n} for n, q in enumerate(values[:5])])]
    files.append(write("2.jsonl", [{"q": q, "n": n} for n, q in enumerate(values[5:])]))
    chunks = list(whole_groups(open_source(files).chunks(["q"], rows), "q"))
    found = [chunk.table["q"].to_pylist() for chunk in chunks]

    assert [value for part in found for value in part] == values
    assert all(before[-1] != after[0] for before, after in pairwise(found))
    places = [chunk.locate(row) for chunk in chunks for row in range(chunk.table.num_rows)]
    assert places == [f"1.jsonl, line {n}" for n in range(1, 6)] + [f"2.jsonl, line {n}" for n in range(1, 4)]


def test_an_empty_input_is_one_empty_chunk_of_whole_groups() -> None:
    pq.write_table(pa.table({"q": pa.array([], pa.string())}), "empty.parquet")
    (chunk,) = whole_groups(open_source(["empty.parquet"]).chunks(["q"], 10), "q")

    assert chunk.table.num_rows == 0
    assert chunk.table.column_names == ["q"]
