"""Columns of any Arrow type on their way from input to output: in types that every step can hold, and as JSON.

Arrow has no rows of some types, Parquet no place for others, and Python no dates after the year 9999. Such types have a
stand-in from the moment they are read, and JSON values are made of Arrow's integers instead of Python's dates.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import chain, pairwise
from typing import Any
from uuid import UUID

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from batchscore.errors import InputError, first_line
from batchscore.types import offsets_of, ranges

KEEP_HINT = "give the column another type, or leave it out (with score: --keep-columns)"
_STAND_INS = {
    pa.string_view(): pa.large_string(),
    pa.binary_view(): pa.large_binary(),
    pa.date64(): pa.date32(),
}
_PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
_SECONDS_A_DAY = 86_400


# ---- types


def storable(table: pa.Table, location: str) -> pa.Table:
    """The table with stand-ins for types that Arrow cannot take rows of or that Parquet cannot hold.

    Views become plain texts, bytes and lists, seconds milliseconds, and structs without fields JSON text.

    Raises InputError, which begins with `location`, for values that the stand-in cannot hold.
    """
    for index, field in enumerate(table.schema):
        if is_storable(field.type):
            continue
        column = table.column(index)
        try:
            stored = as_text(column) if _has_bare_struct(field.type) else _stored(column.combine_chunks())
        except pa.ArrowException as error:
            message = f"{location}: column {field.name!r} is {field.type}, which the output cannot hold"
            raise InputError(f"{message}: {first_line(error)}", hint=KEEP_HINT) from error
        table = table.set_column(index, field.with_type(stored.type), stored)
    return table


def readable(table: pa.Table) -> pa.Table:
    """The table with lists of any length for those of a fixed size, in columns where one of these is null.

    Arrow before 26 writes such a column to Parquet, and cannot read it back.
    """
    for index, field in enumerate(table.schema):
        chunks = table.column(index).chunks
        if any(map(_lacks_fixed, chunks)):
            lists = pa.chunked_array(map(_unfixed, chunks))
            table = table.set_column(index, field.with_type(lists.type), lists)
    return table


def _lacks_fixed(array: pa.Array) -> bool:
    """Whether a list of a fixed size is null, or a struct that has one."""
    if not _has_fixed(array.type):
        return False
    if pa.types.is_struct(array.type):
        return any(map(_lacks_fixed, array.flatten()))
    return bool(pa.types.is_fixed_size_list(array.type) and array.null_count) or _lacks_fixed(elements(array)[0])


def _has_fixed(kind: pa.DataType) -> bool:
    fields = [kind.field(index).type for index in range(kind.num_fields)]
    return bool(pa.types.is_fixed_size_list(kind) or any(map(_has_fixed, fields)))


def _unfixed(array: pa.Array) -> pa.Array:
    """Not by Arrow's `cast`, which does not know how long lists of nulls in a struct are."""
    if not _has_fixed(array.type):
        return array
    if pa.types.is_struct(array.type):
        return _struct(array, map(_unfixed, array.flatten()))
    values, offsets = elements(array)
    return _list(array, _unfixed(values), offsets)


def empty_table(schema: pa.Schema) -> pa.Table:
    """A table without rows, also of types of which Arrow's own `Schema.empty_table` cannot make one."""
    return pa.table([pa.nulls(0, field.type) for field in schema], schema=schema)


def bare_table(rows: int) -> pa.Table:
    """Rows without a column."""
    return pa.Table.from_batches([pa.RecordBatch.from_struct_array(pa.array([{}] * rows, pa.struct([])))])


def is_storable(kind: pa.DataType) -> bool:
    """Whether columns of a type are carried as they are."""
    if pa.types.is_dictionary(kind) and kind.index_type != pa.int32():  # several files may have too many for them
        return False
    return (
        _leaf_stand_in(kind) is None
        and not _is_replaced_list(kind)
        and kind != pa.struct([])
        and all(map(is_storable, _parts(kind)))
    )


def is_text(kind: pa.DataType) -> bool:
    """Whether values of a type are strings, which may be encoded in a dictionary."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _parts(kind: pa.DataType) -> list[pa.DataType]:
    """The types that a type is made of."""
    if pa.types.is_dictionary(kind):
        return [kind.value_type]
    if isinstance(kind, pa.BaseExtensionType):
        return [kind.storage_type]
    return [kind.field(index).type for index in range(kind.num_fields)]


def _has_bare_struct(kind: pa.DataType) -> bool:
    return kind == pa.struct([]) or any(map(_has_bare_struct, _parts(kind)))


def _is_replaced_list(kind: pa.DataType) -> bool:
    """Views, and lists of a fixed size 0, which Parquet does not read back."""
    is_view = pa.types.is_list_view(kind) or pa.types.is_large_list_view(kind)
    return bool(is_view or (pa.types.is_fixed_size_list(kind) and kind.list_size == 0))


def _leaf_stand_in(kind: pa.DataType) -> pa.DataType | None:
    if pa.types.is_timestamp(kind) and kind.unit == "s":
        return pa.timestamp("ms", kind.tz)
    if pa.types.is_decimal(kind) and kind.scale < 0:
        digits = kind.precision - kind.scale
        return pa.decimal128(digits, 0) if digits <= _DECIMAL128_DIGITS else pa.decimal256(digits, 0)
    return _STAND_INS.get(kind)


_DECIMAL128_DIGITS = 38


def _stored(array: pa.Array) -> pa.Array:
    kind = array.type
    if is_storable(kind):
        return array
    if (stand_in := _leaf_stand_in(kind)) is not None:
        return array.cast(stand_in)
    if isinstance(kind, pa.BaseExtensionType):
        storage = _stored(array.storage)
        is_json = kind.extension_name == "arrow.json"
        return pa.ExtensionArray.from_storage(pa.json_(storage.type), storage) if is_json else storage
    if pa.types.is_dictionary(kind):
        indices, values = array.indices.cast(pa.int32()), _stored(array.dictionary)
        return pa.DictionaryArray.from_arrays(indices, values, ordered=kind.ordered)
    if pa.types.is_struct(kind):
        return _struct(array, map(_stored, array.flatten()))
    if pa.types.is_fixed_size_list(kind) and kind.list_size:
        # with the elements of rows that are null, which `elements` leaves out
        values = _stored(array.values.slice(array.offset * kind.list_size, len(array) * kind.list_size))
        kind = pa.list_(kind.value_field.with_type(values.type), kind.list_size)
        return pa.FixedSizeListArray.from_arrays(values, type=kind, mask=array.is_null())
    return _list(array, *elements(array))


def _struct(like: pa.StructArray, parts: Iterable[pa.Array]) -> pa.StructArray:
    """Structs of other parts, null where those of `like` are."""
    parts = list(parts)
    fields = [field.with_type(part.type) for field, part in zip(like.type, parts, strict=True)]
    return pa.StructArray.from_arrays(parts, fields=fields, mask=like.is_null())


def _list(like: pa.Array, values: pa.Array, offsets: NDArray[np.int64]) -> pa.Array:
    """Maps or lists of other values, null where those of `like` are; views become large lists."""
    kind, is_null = like.type, like.is_null()
    if pa.types.is_map(kind):
        keys, items = values.flatten()
        kind = pa.map_(kind.key_field.with_type(keys.type), kind.item_field.with_type(items.type))
        return pa.MapArray.from_arrays(offsets.astype(np.int32), keys, items, type=kind, mask=is_null)
    field = kind.value_field.with_type(values.type)
    if pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind):
        offsets = offsets.astype(np.int32)
        return pa.ListArray.from_arrays(pa.array(offsets), values, type=pa.list_(field), mask=is_null)
    return pa.LargeListArray.from_arrays(pa.array(offsets), values, type=pa.large_list(field), mask=is_null)


def elements(lists: pa.Array) -> tuple[pa.Array, NDArray[np.int64]]:
    """The elements of lists, or maps, in types that can be carried, and where those of each row begin.

    Arrow's own `flatten` does not know all types. Returns (elements of all rows, int64 [rows + 1]); rows that are null
    have none.
    """
    values, size = _stored(lists.values), len(lists)
    if pa.types.is_fixed_size_list(lists.type):
        starts = (lists.offset + np.arange(size)) * lists.type.list_size
    else:
        starts = lists.offsets.to_numpy()[:size]
    is_map = pa.types.is_map(lists.type)
    lengths = pa.array(np.diff(lists.offsets.to_numpy())) if is_map else pc.list_value_length(lists)
    lengths = pc.if_else(lists.is_valid(), lengths, 0).to_numpy(zero_copy_only=False)
    offsets = offsets_of(lengths)
    if size and (starts == starts[0] + offsets[:-1]).all():
        return values.slice(starts[0], offsets[-1]), offsets
    return values.take(pa.array(ranges(starts, lengths))), offsets


def encode(column: pa.Array) -> tuple[pa.Array, pa.Array]:
    """(int32 [rows], number of each value in order of first appearance; values), also where Arrow has no kernel for it.

    Lists and structs are not supported.
    """
    kind = column.type
    if isinstance(kind, pa.BaseExtensionType):
        indices, values = encode(column.storage)
        return indices, pa.ExtensionArray.from_storage(kind, values)
    wide = None
    if pa.types.is_float16(kind):
        wide = pa.float32()
    elif pa.types.is_decimal(kind) and kind.bit_width < 128:
        wide = pa.decimal128(kind.precision, kind.scale)
    if wide is not None:
        indices, values = encode(column.cast(wide))
        return indices, values.cast(kind)
    # decoded first: a dictionary has values of other rows, and may have one twice
    encoded = (column.dictionary_decode() if pa.types.is_dictionary(kind) else column).dictionary_encode()
    return encoded.indices, encoded.dictionary


# ---- values


def as_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Strings unchanged, and other values as they are written in JSON, without quotes."""
    if not pa.types.is_dictionary(column.type) and (is_text(column.type) or pa.types.is_null(column.type)):
        return column
    return pa.chunked_array([pa.array(map(json_text, json_values(column)), pa.large_string())])


def as_numbers(column: pa.ChunkedArray, name: str, location: str) -> pa.ChunkedArray:
    """float64: numbers, booleans, or texts of numbers; an empty text is null, as CSV has no other.

    Raises InputError, which begins with `location`, for a column of anything else.
    """
    try:
        if is_text(column.type):
            column = pc.if_else(pc.equal(column, ""), None, column)
        if pa.types.is_boolean(column.type):
            column = column.cast(pa.int8())
        return column.cast(pa.float64())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise InputError(
            f"{location}: column {name!r} does not hold numbers: {first_line(error)}", hint="see what the column holds"
        ) from error


def json_text(value: Any) -> str | None:
    """A string unchanged, anything else as JSON."""
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def json_values(column: pa.Array | pa.ChunkedArray) -> list[Any]:
    """[rows], values that `json.dumps` takes; NaN and infinity stay.

    Bytes are base64, dates, times and durations ISO 8601, decimals and UUIDs texts, maps lists of pairs. Years beyond
    9999 have more digits, and those before 0 a minus. ValueError for structs with two fields of one name.
    """
    if isinstance(column, pa.ChunkedArray):
        return list(chain.from_iterable(map(json_values, column.chunks)))
    kind = column.type
    if isinstance(kind, pa.BaseExtensionType):
        return _extension_values(column)
    if pa.types.is_dictionary(kind):
        return json_values(column.dictionary_decode())
    if pa.types.is_struct(kind):
        values = _struct_values(column)
    elif pa.types.is_map(kind):
        pairs, offsets = elements(column)
        values = _sliced(list(zip(*map(json_values, pairs.flatten()), strict=True)), offsets)
    elif pa.types.is_nested(kind):
        parts, offsets = elements(column)
        values = _sliced(json_values(parts), offsets)
    else:
        return _leaf_values(column)
    return values if not column.null_count else _with_nulls(values, column)


def _struct_values(structs: pa.StructArray) -> list[Any]:
    names = [field.name for field in structs.type]
    if len(set(names)) < len(names):
        raise ValueError(f"a struct has several fields {max(names, key=names.count)!r}")
    if not names:
        return [{} for _ in range(len(structs))]
    rows = zip(*map(json_values, structs.flatten()), strict=True)
    return [dict(zip(names, row, strict=True)) for row in rows]


def _sliced(values: list[Any], offsets: NDArray[np.int64]) -> list[Any]:
    return [values[start:stop] for start, stop in pairwise(offsets.tolist())]


def _with_nulls(values: Sequence[Any], column: pa.Array) -> list[Any]:
    return [value if valid else None for value, valid in zip(values, column.is_valid().to_pylist(), strict=True)]


def _extension_values(column: pa.ExtensionArray) -> list[Any]:
    name = column.type.extension_name
    if name == "arrow.uuid":
        return [None if value is None else str(UUID(bytes=value)) for value in column.storage.to_pylist()]
    values = json_values(column.storage)
    return [None if value is None else bool(value) for value in values] if name == "arrow.bool8" else values


def _leaf_values(column: pa.Array) -> list[Any]:
    kind = column.type
    if pa.types.is_temporal(kind) and not pa.types.is_interval(kind):
        return _with_nulls(_temporal_texts(column), column)
    if is_text(kind):
        try:
            values: list[Any] = column.to_pylist()
        except UnicodeDecodeError:  # JSON has nothing else but Unicode
            raw = column.cast(pa.large_binary()).to_pylist()
            values = [None if value is None else value.decode(errors="replace") for value in raw]
        return values
    # of half floats Arrow before 21 makes numpy's, which JSON does not take
    values = (column.cast(pa.float32()) if pa.types.is_float16(kind) else column).to_pylist()
    if pa.types.is_decimal(kind):
        return [None if value is None else format(value, "f") for value in values]
    if values and any(isinstance(value, bytes) for value in values):
        return [None if value is None else base64.b64encode(value).decode() for value in values]
    return values


def _temporal_texts(column: pa.Array) -> list[str]:
    """ISO 8601 with a fraction where it is not 0; any text where the value is null."""
    kind = column.type
    numbers = column.view(pa.int32() if kind.bit_width == 32 else pa.int64()).fill_null(0)
    ticks = numbers.to_numpy().astype(np.int64)
    if pa.types.is_date32(kind):
        return _dates(ticks)
    second = _PER_SECOND[getattr(kind, "unit", "ms")]  # a date64 counts milliseconds
    day = _SECONDS_A_DAY * second
    if pa.types.is_date64(kind):
        return _dates(ticks // day)
    if pa.types.is_time(kind):
        return [_clock(tick, second) for tick in ticks.tolist()]
    if pa.types.is_duration(kind):
        return [_duration(tick, second) for tick in ticks.tolist()]
    days, ticks = np.divmod(ticks, day)
    shifts = _shifts(column)
    more, ticks = np.divmod(ticks + shifts, day)
    zones = [_zone(shift) for shift in (shifts // second).tolist()] if kind.tz else [""] * len(ticks)
    clocks = [_clock(tick, second) for tick in ticks.tolist()]
    return [f"{date}T{clock}{zone}" for date, clock, zone in zip(_dates(days + more), clocks, zones, strict=True)]


def _shifts(column: pa.Array) -> NDArray[np.int64]:
    """int64 [rows]: how far local time is ahead, in the column's unit; 0, which is as true, in zones unknown here."""
    local = column
    with suppress(pa.ArrowException):
        local = pc.local_timestamp(column) if column.type.tz else column
    times: list[NDArray[np.int64]] = [part.view(pa.int64()).fill_null(0).to_numpy() for part in (local, column)]
    return times[0] - times[1]


def _dates(days: NDArray[np.int64]) -> list[str]:
    return [
        # numpy counts the minus as one of a year's four digits
        "-" + text[1:].zfill(len("0000-00-00")) if text.startswith("-") else text
        for text in np.datetime_as_string(days.view("datetime64[D]")).tolist()
    ]


def _clock(ticks: int, second: int) -> str:
    """A time of the day, which may be 24:00:00."""
    seconds, rest = divmod(ticks, second)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{seconds:02}{_fraction(rest, second)}"


def _duration(ticks: int, second: int) -> str:
    seconds, rest = divmod(abs(ticks), second)
    return f"{'-' if ticks < 0 else ''}PT{seconds}{_fraction(rest, second)}S"


def _fraction(ticks: int, second: int) -> str:
    return f".{ticks:0{len(str(second)) - 1}}" if ticks else ""


def _zone(seconds: int) -> str:
    """+01:00, with seconds where local mean time has them."""
    clock = _clock(abs(seconds), 1)
    return f"{'-' if seconds < 0 else '+'}{clock.removesuffix(':00')}"
