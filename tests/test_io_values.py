"""Columns are read in types that can be carried, join without loss, and are spelled in JSON and text as one."""

from __future__ import annotations

import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchscore.errors import InputError
from batchscore.io.schema import Shape, join
from batchscore.io.source import Chunk, open_source
from batchscore.io.values import as_text, json_values, storable

pytestmark = pytest.mark.usefixtures("here")

DAYS = [datetime.date(9999, 12, 31), datetime.date(1, 1, 1), None]
DOCUMENTS: dict[str, Shape] = {"documents": "documents"}


def read(file: str, shapes: dict[str, Shape] | None = None) -> Chunk:
    source = open_source([file])
    (unit,) = source.units(100)
    chunk = source.read(unit, None, shapes or {})
    source.close()
    return chunk


def moments(unit: str, *values: Any) -> pa.Array:
    return pa.array([None if value is None else np.datetime64(value, unit) for value in values], pa.timestamp(unit))


# ---- INT96


@pytest.mark.parametrize(
    ("written", "kind"),
    [
        (moments("us", "9999-12-31", "0001-01-01", None), pa.timestamp("us")),
        (moments("ns", "2024-05-01T00:00:00.123456789", None), pa.timestamp("ns")),
        (moments("ns", "1901-05-01T00:00:00.123456", None), pa.timestamp("us")),
    ],
    ids=["far", "nanoseconds", "near"],
)
def test_int96_timestamps_are_read_in_a_unit_that_holds_them(written: pa.Array, kind: pa.DataType) -> None:
    table = pa.table({"at": written, "in": pa.StructArray.from_arrays([written], ["a"])})
    pq.write_table(table, "in.parquet", use_deprecated_int96_timestamps=True)
    read_back = read("in.parquet").table

    assert read_back["at"].type == read_back["in"].type.field("a").type == kind
    assert read_back["at"].cast(written.type).combine_chunks().equals(written)
    assert read_back["in"].combine_chunks().field("a").cast(written.type).equals(written)


def test_int96_files_with_and_without_far_days_have_one_type() -> None:
    for name, day in (("a", "9999-12-31"), ("b", "2024-05-01")):
        table = pa.table({"at": moments("us", day)})
        pq.write_table(table, f"{name}.parquet", use_deprecated_int96_timestamps=True)
    source = open_source(["a.parquet", "b.parquet"])
    (unit,) = source.units(100)

    assert source.read(unit, None, {}).table["at"].type == pa.timestamp("us")


# ---- types that drift


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pa.array([datetime.date(2024, 5, 1)]), "2024-05-01"),
        (pa.array([Decimal("1.50")]), "1.50"),
        (pa.array([b"\xff"]), "/w=="),
        (moments("ns", "2024-05-01T10:00:00.000000001"), "2024-05-01T10:00:00.000000001"),
        (moments("us", "2024-05-01T10:00:00").cast(pa.timestamp("us", "UTC")), "2024-05-01T10:00:00+00:00"),
        (pa.array([datetime.time(10, 30)]), "10:30:00"),
        (pa.array([datetime.timedelta(seconds=-90)]), "-PT90S"),
        (pa.array([1.5]), "1.5"),
        (pa.array([float("nan")]), "NaN"),
        (pa.array([True]), "true"),
        (pa.array([[datetime.date(2024, 5, 1)]]), '["2024-05-01"]'),
        (pa.array([{"a": b"\xff"}]), '{"a": "/w=="}'),
        (pa.array([b"\x00" * 16]).cast(pa.binary(16)).cast(pa.uuid()), "00000000-0000-0000-0000-000000000000"),
    ],
    ids=lambda value: str(value) if isinstance(value, str) else "",
)
def test_values_beside_texts_become_texts_without_quotes(column: pa.Array, expected: str) -> None:
    joined = join([pa.table({"x": column}), pa.table({"x": ["text"]})])

    assert joined["x"].to_pylist() == [expected, "text"]


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (
            pa.array([Decimal("0.1000000000000000000000000001")]),
            pa.array([0.5]),
            ["0.1000000000000000000000000001", "0.5"],
        ),
        (pa.array([{"a": "x"}]), pa.array([{"a": b"x"}]), ['{"a": "x"}', '{"a": "eA=="}']),
        (pa.array([["x"]]), pa.array([[b"x"]]), ['["x"]', '["eA=="]']),
    ],
    ids=["decimals and floats", "structs", "lists"],
)
def test_types_that_arrow_would_join_with_loss_become_text(one: pa.Array, other: pa.Array, expected: list[str]) -> None:
    assert join([pa.table({"x": one}), pa.table({"x": other})])["x"].to_pylist() == expected


# ---- JSON


def test_what_python_has_no_dates_for_is_spelled() -> None:
    days = pa.array([2**31 - 1, -719_529, 2932897], pa.int32()).view(pa.date32())
    zoned = pa.array([0, -(10**17)], pa.int64()).view(pa.timestamp("us", "Europe/Berlin"))

    assert json_values(days) == ["5881580-07-11", "-0001-12-31", "10000-01-01"]
    assert json_values(zoned) == ["1970-01-01T01:00:00+01:00", "-1199-02-15T15:06:48+00:53:28"]
    assert json_values(pa.array([86_400_000_000]).view(pa.time64("us"))) == ["24:00:00"]
    unknown = pa.array([0]).view(pa.timestamp("s", "Mars/Olympus"))
    assert json_values(unknown) == ["1970-01-01T00:00:00+00:00"]


def test_bytes_in_a_column_of_texts_that_are_not_utf8_are_marked() -> None:
    texts = pa.array([b"a\xff", None]).view(pa.string())

    assert json_values(texts) == ["a\ufffd", None]
    assert as_text(pa.chunked_array([pa.array([{"a": 1}])])).to_pylist() == ['{"a": 1}']


def test_list_views_may_share_and_reorder_elements() -> None:
    views = pa.ListViewArray.from_arrays([2, 0, 1], [1, 2, 2], pa.array(["a", "b", "c"], pa.string_view()))

    assert json_values(views) == [["c"], ["a", "b"], ["b", "c"]]
    assert json_values(views.slice(1)) == [["a", "b"], ["b", "c"]]


# ---- stand-ins


def saved(table: pa.Table) -> str:
    import datasets

    datasets.Dataset(table).save_to_disk("saved")
    return "saved"


def test_maps_of_list_views_of_nulls_are_carried() -> None:
    """Arrow's `cast` of such maps loses count of the nulls."""
    starts, sizes = pa.array([0, 3], pa.int32()), pa.array([3, 2], pa.int32())
    views = pa.ListViewArray.from_arrays(starts, sizes, pa.nulls(5))
    maps = pa.MapArray.from_arrays(pa.array([0, 1, 2], pa.int32()), pa.array(["a", "b"]), views)

    stored = storable(pa.table({"n": maps}), "here")

    assert stored["n"].to_pylist() == [[("a", [None] * 3)], [("b", [None] * 2)]]


def test_structs_without_fields_become_json_text() -> None:
    column = pa.array([[{}], None], pa.list_(pa.struct([])))

    assert read(saved(pa.table({"x": column}))).table["x"].to_pylist() == ["[{}]", None]


def test_values_that_no_output_can_hold_are_refused_before_they_are_scored() -> None:
    seconds = pa.array([0, 2**62]).view(pa.timestamp("s"))
    with pytest.raises(InputError, match=r"^saved, row 0: column 'at' is timestamp\[s\], which the output") as caught:
        read(saved(pa.table({"at": seconds})))
    assert "--keep-columns" in str(caught.value.hint)


def test_small_dictionaries_of_several_files_become_one() -> None:
    words = [f"{letter}{number}" for letter in "ab" for number in range(100)]
    for file, some in (("a", words[:100]), ("b", words[100:])):
        column = pa.DictionaryArray.from_arrays(pa.array(range(100), pa.int8()), pa.array(some))
        pq.write_table(pa.table({"x": column}), f"{file}.parquet")
    pq.write_table(pa.table({"x": ["c"]}), "c.parquet")
    source = open_source(["a.parquet", "b.parquet"])
    column = source.read(source.units(200)[0], None, {}).table["x"]

    assert column.type == pa.dictionary(pa.int32(), pa.string())
    assert column.take([0, 199]).combine_chunks().to_pylist() == ["a0", "b99"]
    source = open_source(["b.parquet", "c.parquet"])
    assert source.read(source.units(200)[0], None, {}).table["x"].to_pylist() == [*words[100:], "c"]


# ---- structs of lists


def test_a_struct_of_lists_is_read_as_a_list_of_structs() -> None:
    rows = [
        {"text": ["a", "b"], "id": [1, 2]},
        {"text": ["c"], "id": []},
        None,
        {"text": [], "id": []},
    ]
    chunk = read(saved(pa.table({"documents": rows})), DOCUMENTS)

    assert chunk.table["documents"].to_pylist() == [
        [{"text": "a", "id": 1}, {"text": "b", "id": 2}], None, None, []
    ]  # fmt: skip
    assert [(row, fault.message) for row, fault in chunk.faults().items()] == [(1, "holds lists of different lengths")]


def test_an_object_of_arrays_is_read_as_an_array_of_objects() -> None:
    Path("in.jsonl").write_text(
        '{"documents": {"text": ["a", "b"], "id": [1, 2]}}\n'
        '{"documents": {"text": ["c"], "id": []}}\n'
        '{"documents": [{"text": "d", "id": 3}]}\n'
    )
    chunk = read("in.jsonl", DOCUMENTS)

    assert chunk.table["documents"].to_pylist() == [
        [{"text": "a", "id": 1}, {"text": "b", "id": 2}], None, [{"text": "d", "id": 3}]
    ]  # fmt: skip
    assert [(row, fault.message) for row, fault in chunk.faults().items()] == [(1, "holds lists of different lengths")]
