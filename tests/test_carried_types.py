"""Whatever type a column has, its values come out as they went in, or in the documented stand-in.

A generator makes columns of each type that Parquet or a saved dataset can hold, nested up to two deep, with nulls and
extremes. It knows each value three times: as Arrow has it, as a plain value, and as JSON should spell it.
"""

from __future__ import annotations

import base64
import datetime
import json
import math
import random
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchscore.engine.setup import set_up
from batchscore.io.source import open_source
from batchscore.io.storage import open_folder
from batchscore.jobs.commands import Command, RerankCommand, ScoreCommand
from batchscore.jobs.merge import assemble
from batchscore.jobs.meter import Meter
from batchscore.jobs.parts import Division, Parts, start_parts
from batchscore.jobs.pipeline import Pipeline
from batchscore.scorer import Scorer
from batchscore.stop import Stop

pytestmark = pytest.mark.usefixtures("here")

ROWS, BAD, UNIT = 8, 4, 3
GOOD = [row for row in range(ROWS) if row != BAD]
INT64 = 2**63 - 1
FAR = [2**31 - 1, -(2**31), 2932897, -800_000]  # days: Arrow's last and first, 10000-01-01, -0221-09-04
TICKS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}


@dataclass(frozen=True)
class Column:
    """The same values in three ways, and the type in which they should come out."""

    array: pa.Array
    plain: list[Any]
    spelled: list[Any]
    stored: pa.DataType


Maker = Callable[[random.Random, int], Column]


# ---- values of one type


def maker(
    kind: pa.DataType,
    values: Sequence[Any],
    spell: Callable[[Any], Any] = lambda value: value,
    *,
    stored: pa.DataType | None = None,
    raw: pa.DataType | None = None,
    into: Callable[[Any], Any] = lambda value: value,
) -> Maker:
    """Columns of some of these values, and of nulls.

    `raw` is the type of integers or bytes that the values are of; `into` makes of them those of the type `stored`.
    """

    def make(draw: random.Random, size: int) -> Column:
        drawn = [draw.choice([*values, None]) for _ in range(size)]
        array = pa.array(drawn, raw or kind)
        if raw is not None:
            is_extension = isinstance(kind, pa.BaseExtensionType)
            array = pa.ExtensionArray.from_storage(kind, array) if is_extension else array.view(kind)
        plain = [repr(None if value is None else into(value)) for value in drawn]
        return Column(array, plain, [None if value is None else spell(value) for value in drawn], stored or kind)

    return make


def day_text(days: int) -> str:
    """Python's calendar, moved by cycles of 400 years into the years that it has."""
    cycles, rest = divmod(days + 719_162, 146_097)
    day = datetime.date.fromordinal(rest + 1)
    year = day.year + 400 * cycles
    return f"{'-' if year < 0 else ''}{abs(year):04}-{day:%m-%d}"


def clock_text(ticks: int, unit: str) -> str:
    seconds, rest = divmod(ticks, TICKS[unit])
    fraction = f"{rest / TICKS[unit]:.{len(str(TICKS[unit])) - 1}f}"[1:] if rest else ""
    return f"{datetime.datetime.min + datetime.timedelta(seconds=seconds):%H:%M:%S}{fraction}"


def moment_text(ticks: int, unit: str, zone: str | None) -> str:
    shift = datetime.timedelta(0)
    if zone == "+05:30":
        shift = datetime.timedelta(hours=5, minutes=30)
    elif zone == "Europe/Berlin":
        epoch = datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)
        moment = epoch + datetime.timedelta(seconds=ticks // TICKS[unit])
        shift = moment.astimezone(ZoneInfo(zone)).utcoffset() or shift
    ticks += int(shift.total_seconds()) * TICKS[unit]
    days, rest = divmod(ticks, 86_400 * TICKS[unit])
    offset = "" if zone is None else f"{'+' if shift >= datetime.timedelta(0) else '-'}{str(shift).zfill(8)}"
    return f"{day_text(days)}T{clock_text(rest, unit)}{offset.removesuffix(':00') if offset else ''}"


def duration_text(ticks: int, unit: str) -> str:
    seconds = format(Decimal(abs(ticks)).scaleb(1 - len(str(TICKS[unit]))), "f")
    whole = seconds.split(".")
    return f"{'-' if ticks < 0 else ''}PT{seconds if int('0' + ''.join(whole[1:])) else whole[0]}S"


def base64_text(value: bytes) -> str:
    return base64.b64encode(value).decode()


def finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def temporal() -> Iterator[Maker]:
    yield maker(pa.date32(), [0, -1, *FAR], day_text, raw=pa.int32())
    yield maker(
        pa.date64(), [86_400_000 * day for day in FAR], lambda ms: day_text(ms // 86_400_000), raw=pa.int64(),
        stored=pa.date32(), into=lambda ms: ms // 86_400_000,
    )  # fmt: skip
    for unit, second in TICKS.items():

        def milliseconds(ticks: int, unit: str = unit) -> int:
            return 1000 * ticks if unit == "s" else ticks

        near = [0, -1, 1_714_556_789 * second + second // 8, -2_208_988_800 * second]
        ends = [INT64, -INT64, -INT64 - 1] if unit != "s" else [INT64 // 1000, -(INT64 // 1000)]
        for zone in (None, "UTC", "+05:30", "Europe/Berlin"):
            kind = pa.timestamp(unit, zone)
            yield maker(
                kind, near if zone == "Europe/Berlin" else [*near, *ends],
                lambda ticks, unit=unit, zone=zone: moment_text(ticks, unit, zone),
                raw=pa.int64(), stored=pa.timestamp("ms", zone) if unit == "s" else kind, into=milliseconds,
            )  # fmt: skip
        yield maker(
            pa.duration(unit), [0, -1, second, 3 * second // 2, INT64, -INT64 - 1],
            lambda ticks, unit=unit: duration_text(ticks, unit), raw=pa.int64(),
        )  # fmt: skip
        clock = pa.time32(unit) if unit in ("s", "ms") else pa.time64(unit)
        yield maker(
            clock, [0, 1, 3_600 * second, 86_400 * second - 1], lambda ticks, unit=unit: clock_text(ticks, unit),
            raw=pa.int32() if unit in ("s", "ms") else pa.int64(), stored=pa.time32("ms") if unit == "s" else clock,
            into=milliseconds,
        )  # fmt: skip


def numbers() -> Iterator[Maker]:
    yield maker(pa.bool_(), [True, False])
    for bits in (8, 16, 32, 64):
        kind = getattr(pa, f"int{bits}")()
        yield maker(kind, [-(2 ** (bits - 1)), 0, 2 ** (bits - 1) - 1])
        yield maker(getattr(pa, f"uint{bits}")(), [0, 2**bits - 1])
    special = [math.nan, math.inf, -math.inf, -0.0, 1.5]
    yield maker(pa.float16(), [*special, 65504.0], finite)
    yield maker(pa.float32(), [*special, float(np.float32(0.1))], finite)
    yield maker(pa.float64(), [*special, 5e-324, 1.7976931348623157e308], finite)
    for make, digits in ((pa.decimal32, 9), (pa.decimal64, 18), (pa.decimal128, 38), (pa.decimal256, 76)):
        ends = [Decimal(f"{sign}{'9' * (digits - 2)}.99") for sign in "+-"]
        yield maker(make(digits, 2), [*ends, Decimal("0.00"), Decimal("1.50")], str)
    yield maker(pa.decimal128(5, -2), [Decimal(1500)], str, stored=pa.decimal128(7, 0))


def texts_and_bytes() -> Iterator[Maker]:
    words = ["", "a", "東京" * 9, '"\\\n']
    for kind in (pa.string(), pa.large_string()):
        yield maker(kind, words)
    yield maker(pa.string_view(), words, stored=pa.large_string())
    raws = [b"", b"\xff\x00", bytes(range(32))]
    for kind in (pa.binary(), pa.large_binary()):
        yield maker(kind, raws, base64_text)
    yield maker(pa.binary_view(), raws, base64_text, stored=pa.large_binary())
    yield maker(pa.binary(3), [b"\x00\x00\x00", b"abc"], base64_text)
    yield maker(pa.null(), [None])
    ids = [uuid.UUID(int=0).bytes, uuid.UUID(int=2**128 - 1).bytes]
    yield maker(pa.uuid(), ids, lambda value: str(uuid.UUID(bytes=value)), raw=pa.binary(16))
    yield maker(pa.json_(), ['{"a": 1}', "null", "NaN"], raw=pa.string())
    yield maker(pa.bool8(), [0, 1], bool, raw=pa.int8())


LEAVES = [*temporal(), *numbers(), *texts_and_bytes()]


# ---- values of values


def offsets(draw: random.Random, size: int) -> tuple[list[int], list[bool]]:
    """(where the elements of each row begin, which rows are null)."""
    nulls = [draw.random() < 0.2 for _ in range(size)]
    starts = [0]
    for is_null in nulls:
        starts.append(starts[-1] + (0 if is_null else draw.randint(0, 3)))
    return starts, nulls


def lists(make: Maker, form: str) -> Maker:
    def wrapped(draw: random.Random, size: int) -> Column:
        starts, nulls = offsets(draw, size)
        inner = make(draw, starts[-1])
        offset, length = starts[:-1], np.diff(starts)
        mask = pa.array(nulls)
        if form == "list":
            array = pa.ListArray.from_arrays(pa.array(starts, pa.int32()), inner.array, mask=mask)
        elif form == "large_list":
            array = pa.LargeListArray.from_arrays(pa.array(starts, pa.int64()), inner.array, mask=mask)
        elif form == "list_view":
            array = pa.ListViewArray.from_arrays(
                pa.array(offset, pa.int32()), pa.array(length, pa.int32()), inner.array, mask=mask
            )
        else:
            array = pa.LargeListViewArray.from_arrays(pa.array(offset), pa.array(length), inner.array, mask=mask)
        stored = pa.list_(inner.stored) if form == "list" else pa.large_list(inner.stored)
        plain, spelled = (
            [
                None if is_null else values[start:stop]
                for is_null, start, stop in zip(nulls, starts[:-1], starts[1:], strict=True)
            ]
            for values in (inner.plain, inner.spelled)
        )
        return Column(array, plain, spelled, stored)

    return wrapped


def fixed(make: Maker) -> Maker:
    def wrapped(draw: random.Random, size: int) -> Column:
        nulls = [draw.random() < 0.2 for _ in range(size)]
        inner = make(draw, 2 * size)
        array = pa.FixedSizeListArray.from_arrays(inner.array, 2, mask=pa.array(nulls))
        plain, spelled = (
            [None if nulls[row] else values[2 * row : 2 * row + 2] for row in range(size)]
            for values in (inner.plain, inner.spelled)
        )
        return Column(array, plain, spelled, pa.list_(inner.stored, 2))

    return wrapped


def structs(make: Maker, field: str = "a", texts: Sequence[str | None] | None = None) -> Maker:
    """Structs of a text, which a document needs, and of another field."""

    def wrapped(draw: random.Random, size: int) -> Column:
        nulls = [texts is None and draw.random() < 0.2 for _ in range(size)]
        inner, words = make(draw, size), texts or [f"t{row}" for row in range(size)]
        columns = [pa.array(words, pa.string()), inner.array]
        array = pa.StructArray.from_arrays(columns, ["text", field], mask=pa.array(nulls))
        plain, spelled = (
            [None if nulls[row] else {"text": shown[row], field: values[row]} for row in range(size)]
            for values, shown in ((inner.plain, list(map(repr, words))), (inner.spelled, words))
        )
        return Column(array, plain, spelled, pa.struct([("text", pa.string()), (field, inner.stored)]))

    return wrapped


def maps(make: Maker) -> Maker:
    def wrapped(draw: random.Random, size: int) -> Column:
        starts, nulls = offsets(draw, size)
        inner, keys = make(draw, starts[-1]), [f"k{key}" for key in range(starts[-1])]
        array = pa.MapArray.from_arrays(
            pa.array(starts, pa.int32()), pa.array(keys, pa.string()), inner.array, mask=pa.array(nulls)
        )
        plain, spelled = (
            [
                None if is_null else [[key, value] for key, value in zip(names, values, strict=True)][start:stop]
                for is_null, start, stop in zip(nulls, starts[:-1], starts[1:], strict=True)
            ]
            for names, values in (([repr(key) for key in keys], inner.plain), (keys, inner.spelled))
        )
        return Column(array, plain, spelled, pa.map_(pa.string(), inner.stored))

    return wrapped


def dictionaries(kind: pa.DataType, values: Sequence[Any], spell: Callable[[Any], Any]) -> Maker:
    def make(draw: random.Random, size: int) -> Column:
        codes = [draw.choice([*range(len(values)), None]) for _ in range(size)]
        array = pa.DictionaryArray.from_arrays(pa.array(codes, pa.int8()), pa.array(values, kind))
        plain = [None if code is None else values[code] for code in codes]
        spelled = [None if value is None else spell(value) for value in plain]
        stored = pa.dictionary(pa.int32(), kind)
        return Column(array, [repr(value) for value in plain], spelled, stored)

    return make


LEAVES += [
    dictionaries(pa.string(), ["a", "b", "c"], str),
    dictionaries(pa.binary(), [b"a", b"\xff"], base64_text),
]
WRAPS: list[Callable[[Maker], Maker]] = [
    *(lambda make, form=form: lists(make, form) for form in ("list", "large_list", "list_view", "large_list_view")),
    fixed, structs, maps,
]  # fmt: skip


def plain_of(array: pa.Array) -> list[Any]:
    """Arrow's values as the generator spells plain ones, without the code under test."""
    kind = array.type
    if isinstance(kind, pa.BaseExtensionType):
        return plain_of(array.storage)
    if pa.types.is_struct(kind):
        parts = {field.name: plain_of(part) for field, part in zip(kind, array.flatten(), strict=True)}
        values: list[Any] = [dict(zip(parts, row, strict=True)) for row in zip(*parts.values(), strict=True)]
        return [value if valid else None for value, valid in zip(values, array.is_valid().to_pylist(), strict=True)]
    if pa.types.is_map(kind):
        return [None if not row.is_valid else _pairs(row) for row in array]
    if pa.types.is_nested(kind):
        return [None if not row.is_valid else plain_of(row.values) for row in array]
    if pa.types.is_temporal(kind):
        array = array.view(pa.int32() if kind.bit_width == 32 else pa.int64())
    return [repr(value) for value in array.to_pylist()]


def _pairs(row: pa.MapScalar) -> list[list[Any]]:
    keys, values = row.values.flatten()
    return [list(pair) for pair in zip(plain_of(keys), plain_of(values), strict=True)]


# ---- jobs


@dataclass
class Jobs:
    """Runs jobs in this process, all with one model."""

    scorer: Scorer

    def run(self, command: Command, source: str, name: str, units: int | None = None) -> Parts:
        """One run; stopped after some units, or else with its output assembled in each format."""
        opened, folder, stop = open_source([source]), open_folder(f".{name}.parts"), Stop()
        command.check(opened)
        job = {"command": command.name, "options": asdict(command), "inputs": []}  # type: ignore[call-overload]
        parts = start_parts(folder, job, lambda: Division(command.units(opened, UNIT, listwise=False)), overwrite=False)
        todo = [unit for unit in parts.units if unit.index not in parts.finished()][:units]
        batcher = self.scorer.batcher
        Pipeline(batcher, command, opened, parts, None, {}, "quarantine", Meter(), stop).run(todo, lambda *_: None)
        if units is None:
            for suffix in ("parquet", "jsonl"):
                assemble(parts, f"{name}.{suffix}", stop)
        return parts


@pytest.fixture(scope="module")
def jobs(tiny: Callable[[str], str]) -> Jobs:
    return Jobs(Scorer(set_up(model=tiny("bert_ce"), device="cpu", dtype="float32")))


def columns(deep: int, seed: int) -> Iterator[Column]:
    """Each type alone and in each container, and some in containers of containers."""
    draw = random.Random(seed)
    for make in LEAVES:
        yield make(draw, ROWS)
        for wrap in WRAPS:
            yield wrap(make)(draw, ROWS)
    for _ in range(deep):
        yield draw.choice(WRAPS)(draw.choice(WRAPS)(draw.choice(LEAVES)))(draw, ROWS)


def parquet_holds(array: pa.Array) -> bool:
    """Whether Arrow writes values to Parquet and reads them back.

    It writes no decimals of a negative scale, and before 25 no views of lists; before 26 it does not read lists of a
    fixed size that are null.
    """
    stream = pa.BufferOutputStream()
    try:
        pq.write_table(pa.table({"x": array}), stream)
        pq.read_table(pa.BufferReader(stream.getvalue()))
    except (pa.ArrowException, OSError):
        return False
    return True


def datasets_hold(array: pa.Array) -> bool:
    """Whether `datasets` loads values of this type from a folder."""
    try:
        datasets.Features.from_arrow_schema(pa.schema([("x", array.type)]))
    except ValueError:
        return False
    return "dictionary" not in str(array.type)  # it decodes these


def may_be_id(make: Maker) -> bool:
    """Whether rows can have ids of a type, also in lists: not if all are null."""
    array = make(random.Random(0), 0).array
    in_lists = datasets_hold if "view" in str(array.type) else parquet_holds
    return parquet_holds(array) and in_lists(array) and not pa.types.is_null(array.type)


def is_as_stored(kind: pa.DataType, stored: pa.DataType) -> bool:
    """Whether a type is the one that it should be; lists of a fixed size may be of any where one of them is null."""
    if pa.types.is_list(kind) and pa.types.is_fixed_size_list(stored):
        return is_as_stored(kind.value_type, stored.value_type)
    if kind.id != stored.id or kind.num_fields != stored.num_fields or not kind.num_fields:
        return kind == stored
    return all(is_as_stored(kind.field(index).type, stored.field(index).type) for index in range(kind.num_fields))


def write(table: pa.Table, form: str) -> str:
    """A Parquet file, or the folder that `save_to_disk` writes."""
    if form == "parquet":
        pq.write_table(table, "in.parquet")
        return "in.parquet"
    datasets.Dataset(table).save_to_disk("saved")
    return "saved"


def read(out: str) -> tuple[dict[str, list[Any]], dict[str, pa.DataType]]:
    """(values of each column, plain or as JSON; types)."""
    if out.endswith(".parquet"):
        table = pq.read_table(out)
        types = {field.name: field.type for field in table.schema}
        return {name: plain_of(table[name].combine_chunks()) for name in types}, types
    rows = [json.loads(line) for line in Path(out).read_text("utf-8").splitlines()]
    return {name: [row[name] for row in rows] for name in rows[0]}, {}


TEXTS = {"query": ["q"] * ROWS, "document": [None if row == BAD else f"d {row}" for row in range(ROWS)]}


@pytest.mark.parametrize(("form", "holds", "count"), [("parquet", parquet_holds, 300), ("saved", datasets_hold, 250)])
def test_columns_of_all_types_are_carried(jobs: Jobs, form: str, holds: Callable[..., bool], count: int) -> None:
    """One row has no document, and the run is stopped after its first unit and resumed."""
    made = {f"c{index}": column for index, column in enumerate(columns(100, 0)) if holds(column.array)}
    assert len(made) > count
    source = write(pa.table({**TEXTS, **{name: column.array for name, column in made.items()}}), form)
    jobs.run(ScoreCommand(), source, "whole")
    jobs.run(ScoreCommand(), source, "out", units=1)
    parts = jobs.run(ScoreCommand(), source, "out")
    values, types = read("out.parquet")
    rows, _ = read("out.jsonl")

    assert [(fault["row"], fault["column"]) for fault in parts.faults()] == [(BAD, "document")]
    for name, column in made.items():
        assert values[name] == [column.plain[row] for row in GOOD], column.array.type
        assert rows[name] == [column.spelled[row] for row in GOOD], column.array.type
        assert is_as_stored(types[name], column.stored)
    for suffix in ("parquet", "jsonl"):
        assert Path(f"out.{suffix}").read_bytes() == Path(f"whole.{suffix}").read_bytes()


@pytest.mark.parametrize("nested", [False, True])
def test_columns_of_all_types_are_kept_beside_a_ranking(jobs: Jobs, nested: bool) -> None:
    """Of documents that are rows, and of the queries of lists."""
    made = {f"c{index}": column for index, column in enumerate(columns(0, 0)) if parquet_holds(column.array)}
    texts: dict[str, list[Any]] = {"qid": list(range(ROWS)), **TEXTS}
    if nested:
        texts = {"qid": texts["qid"], "query": TEXTS["query"], "documents": [[text] for text in TEXTS["document"]]}
    source = write(pa.table({**texts, **{name: column.array for name, column in made.items()}}), "parquet")
    jobs.run(RerankCommand(query_id_column="qid", keep_columns=list(made)), source, "out")
    for suffix, of in (("parquet", lambda column: column.plain), ("jsonl", lambda column: column.spelled)):
        values, types = read(f"out.{suffix}")

        assert [int(row) for row in values["qid"]] == GOOD
        for name, column in made.items():
            assert values[name] == [of(column)[row] for row in GOOD], column.array.type
            assert not types or is_as_stored(types[name], column.stored)


@pytest.mark.parametrize("make", [make for make in LEAVES if may_be_id(make)])
def test_ids_of_all_types_stay_with_their_documents(jobs: Jobs, make: Maker) -> None:
    """As ids of queries and of documents, in long rows and in lists."""
    draw = random.Random(1)
    ids, documents, listed = make(draw, ROWS), make(draw, ROWS), structs(make, "id", TEXTS["document"])(draw, ROWS)
    known = [row for row in GOOD if ids.array[row].is_valid]
    long = write(pa.table({"id": ids.array, **TEXTS, "document_id": documents.array}), "parquet")
    jobs.run(RerankCommand(query_id_column="id"), long, "long")
    lists = pa.ListArray.from_arrays(pa.array(range(ROWS + 1), pa.int32()), listed.array)
    queries = [f"q {row}" for row in range(ROWS)]
    form = "saved" if "view" in str(ids.array.type) else "parquet"  # which cannot have views in structs in lists
    jobs.run(RerankCommand(nested=True), write(pa.table({"query": queries, "documents": lists}), form), "lists")
    for suffix, of in (("parquet", lambda column: column.plain), ("jsonl", lambda column: column.spelled)):
        values, types = read(f"long.{suffix}")
        results, _ = read(f"lists.{suffix}")

        pairs = [(of(ids)[row], of(documents)[row]) for row in known]
        assert sorted(map(repr, zip(values["id"], values["document_id"], strict=True))) == sorted(map(repr, pairs))
        assert [[result["document_id"] for result in row] for row in results["results"]] == [
            [] if row == BAD else [of(listed)[row]["id"]] for row in range(ROWS)
        ]
        decoded = getattr(ids.stored, "value_type", ids.stored)
        assert not types or (types["id"], types["document_id"]) == (decoded, documents.stored)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (pa.array([2**60 + 1] * 3), pa.array([0.5] * 3), [str(2**60 + 1), "0.5"]),
        (
            pa.array([2932897] * 3, pa.int32()).view(pa.date32()).cast(pa.timestamp("us")),
            pa.array([1] * 3).view(pa.timestamp("ns")),
            ["10000-01-01T00:00:00", "1970-01-01T00:00:00.000000001"],
        ),
    ],
    ids=["numbers", "timestamps"],
)
def test_ids_of_several_units_that_have_no_type_in_common_become_text(
    jobs: Jobs, one: pa.Array, other: pa.Array, expected: list[str]
) -> None:
    """Their types have one, but not all of their values fit into it."""
    Path("in").mkdir()
    for name, ids in (("a", one), ("b", other)):
        texts = {"query": ["q"] * UNIT, "document": [f"d {row}" for row in range(UNIT)]}
        pq.write_table(pa.table({"id": ids, **texts, "document_id": ids}), f"in/{name}.parquet")
    jobs.run(RerankCommand(query_id_column="id"), "in", "out")
    table = pq.read_table("out.parquet")

    assert list(dict.fromkeys(table["id"].to_pylist())) == list(dict.fromkeys(table["document_id"].to_pylist()))
    assert list(dict.fromkeys(table["id"].to_pylist())) == expected
