"""Rows that are JSON objects, as columns of Arrow: what a column must hold is checked value by value."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from batchscore.io.block import unequal_lists
from batchscore.io.schema import TEXT_FIELDS, Shape, text_field
from batchscore.io.values import bare_table, json_text
from batchscore.media.content import MEDIA_NAMES
from batchscore.types import Fault, Faults, offsets_of

_UNSTORABLE = (pa.ArrowException, OverflowError)
_NAMES = {
    dict: "object", list: "array", str: "string", int: "number", float: "number", bool: "boolean", type(None): "null"
}  # fmt: skip


class UnreadableError(Exception):
    """Why a text is no row."""

    def __init__(self, reason: str, hint: str | None = None) -> None:
        super().__init__(reason)
        self.hint = hint


def as_object(value: Any, *, may_have_surrogates: bool, hint: str) -> dict[str, Any]:
    """A value as a row; UnreadableError, with this hint, if it is no object, or holds what no file can."""
    if may_have_surrogates:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise UnreadableError("half of a surrogate pair cannot be stored", "write both halves") from error
    if not isinstance(value, dict):
        raise UnreadableError(f"holds a JSON {kind_name(value)}, not an object", hint)
    return value


def kind_name(value: Any) -> str:
    """What JSON calls a value of this kind."""
    return _NAMES[type(value)]


def object_schema(rows: Sequence[Mapping[str, Any]], names: Iterable[str] | None = None) -> pa.Schema:
    """The keys of rows, or these names, each with the type that most of its values have."""
    names = dict.fromkeys(name for row in rows for name in row) if names is None else names
    return pa.schema([(name, _of_one_kind([row.get(name) for row in rows]).type) for name in names])


def object_columns(
    rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None, shapes: Mapping[str, Shape], faults: Faults
) -> tuple[pa.Table, dict[str, Sequence[Any]]]:
    """(rows as a table over the keys that occur in them, columns that may have media as they are).

    Args:
        rows: a key that one lacks is null there.
        columns: the keys that are wanted; None: all.
        shapes: what columns must hold; any other value is null, and a fault of its row.
        faults: these are added here.
    """
    names = dict.fromkeys(key for row in rows for key in row if columns is None or key in columns)
    kept: dict[str, Sequence[Any]] = {}
    arrays = {name: _column(name, rows, shapes.get(name), faults, kept) for name in names}
    return pa.table(arrays) if arrays else bare_table(len(rows)), kept


def _of_one_kind(values: Sequence[Any]) -> pa.Array:
    """The values of the most frequent kind, null for others."""
    kinds = Counter(type(value) for value in values if value is not None)
    kind = max(kinds, key=kinds.__getitem__, default=None)
    same = [value if type(value) is kind else None for value in values]
    return _documents(same) if kind is list else _carried(same)


def _column(
    name: str, rows: Sequence[Mapping[str, Any]], shape: Shape | None, faults: Faults, kept: dict[str, Sequence[Any]]
) -> pa.Array:
    """A column of the rows; a value that is not of `shape` becomes null and a fault of its row.

    Values that may have media are added to `kept` as they are: JSON has more kinds of them in a column than Arrow.
    """
    values = [row.get(name) for row in rows]
    if shape is None:
        return _carried(values)
    if shape == "values":
        kept[name] = values
        return pa.nulls(len(values))
    if shape == "documents":
        values = [_listed(name, row, value, faults) for row, value in enumerate(values)]
    kind, code, wanted, hint = _SHAPES[shape]
    for row, value in enumerate(values):
        if value is not None and not isinstance(value, kind):
            message = f"is a JSON {kind_name(value)}, not {wanted}"
            faults.setdefault(row, Fault(code, message, hint, column=name))
            values[row] = None
    if shape == "documents":
        if any(_may_hold_media(document) for documents in values for document in documents or ()):
            kept[name] = values
        return _documents(values)
    if all(value is None or isinstance(value, str) for value in values):
        return pa.array(values, pa.string())
    kept[name] = values
    return _carried(values)


def _may_hold_media(document: Any) -> bool:
    if isinstance(document, dict):
        return isinstance(document.get("content"), list) or not document.keys().isdisjoint(MEDIA_NAMES)
    return isinstance(document, list)


def _listed(name: str, row: int, value: Any, faults: Faults) -> Any:
    """An object of arrays as an array of objects; null and a fault of its row where these differ in length."""
    if not (value and isinstance(value, dict) and all(isinstance(part, list) for part in value.values())):
        return value
    if value.keys() == {"content"} and any(isinstance(part, dict) for part in value["content"]):
        return [value]  # one document, in parts
    if len({len(part) for part in value.values()}) > 1:
        faults.setdefault(row, unequal_lists(name))
        return None
    return [dict(zip(value, parts, strict=True)) for parts in zip(*value.values(), strict=True)]


_TEXT_HINT = "convert it to a string, or name another column"
_SHAPES: dict[Shape, tuple[type | tuple[type, ...], str, str, str]] = {
    "text": (str, "not-text", "text", _TEXT_HINT),
    "cell": ((str, list, dict), "not-text", "text", _TEXT_HINT),
    "media": ((str, list, dict), "not-media", "the path or URL of an image or video", "name another column"),
    "documents": (list, "not-list", "a list", "an empty list means no documents"),
}


def _carried(values: Sequence[Any]) -> pa.Array:
    """Values in the type that Arrow finds for all of them; where there is none that Parquet can hold, as JSON text."""
    try:
        column = pa.array(values)
    except _UNSTORABLE:
        return pa.array(map(json_text, values), pa.string())
    if column.type == pa.struct([]):  # null joins with the fields that objects may have elsewhere
        return pa.nulls(len(values))
    return pa.array(map(json_text, values), pa.string()) if _has_bare_struct(column.type) else column


def _has_bare_struct(kind: pa.DataType) -> bool:
    fields = [kind.field(index) for index in range(kind.num_fields)]
    return kind == pa.struct([]) or any(_has_bare_struct(field.type) for field in fields)


def _documents(lists: Sequence[list[Any] | None]) -> pa.Array:
    """Lists of structs with a text. Strings become structs with that text; anything else has a null for it."""
    flat = [document for documents in lists for document in documents or ()]
    fields = dict.fromkeys(name for document in flat if isinstance(document, dict) for name in document)
    text = text_field(list(fields)) or "text"
    if not fields or any(isinstance(document, str) for document in flat):
        fields.setdefault(text)
    columns = {}
    for name in fields:
        values = [
            document.get(name) if isinstance(document, dict) else document if name == text else None
            for document in flat
        ]
        if name in TEXT_FIELDS:
            columns[name] = pa.array([value if isinstance(value, str) else None for value in values], pa.string())
        else:
            columns[name] = _carried(values)
    offsets = pa.array(offsets_of([len(documents or ()) for documents in lists]))
    missing = pa.array([documents is None for documents in lists])
    structs = pa.StructArray.from_arrays(list(columns.values()), list(columns))
    return pa.LargeListArray.from_arrays(offsets, structs, mask=missing)
