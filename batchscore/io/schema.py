"""Tables that should agree on their columns: whether a column is there, and what type holds the rows of all.

The join is permissive (null to anything, int to float, a struct gains fields): files written at different times read as
one, at the price that a column's type may change from one window to the next.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence

import pyarrow as pa

from batchscore.errors import InputError

KEEP_HINT = "give the column one type, or leave it out with --keep-columns"


def require_columns(names: Sequence[str], wanted: Mapping[str, str], file: str) -> None:
    """Raise InputError for the first column of `wanted` (column -> the flag that names it) that `file` lacks."""
    for column, flag in wanted.items():
        if column not in names:
            closest = difflib.get_close_matches(column, names, n=1, cutoff=0.5)
            hint = f"pass {flag} {closest[0]}" if closest else f"pass {flag} with one of these columns"
            raise InputError(f"column {column!r} not found in {file}; columns: {', '.join(names)}", hint=hint)


def join(tables: Sequence[pa.Table], places: Sequence[str]) -> pa.Table:
    """All rows as one table, null where a column is absent; InputError names the column and the place of a clash."""
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException as error:
        raise _clash(tables, places) from error


def without_views(table: pa.Table) -> pa.Table:
    """The same with plain strings and bytes for those that are views, of which Arrow cannot take rows."""
    plain = pa.schema([field.with_type(_plain(field.type)) for field in table.schema])
    return table if plain.equals(table.schema) else table.cast(plain)


def _plain(kind: pa.DataType) -> pa.DataType:
    if kind == pa.string_view():
        return pa.large_string()
    if kind == pa.binary_view():
        return pa.large_binary()
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_plain(field.type)) for field in kind])
    if pa.types.is_list(kind):
        return pa.list_(kind.value_field.with_type(_plain(kind.value_type)))
    if pa.types.is_large_list(kind):
        return pa.large_list(kind.value_field.with_type(_plain(kind.value_type)))
    return kind


def _clash(tables: Sequence[pa.Table], places: Sequence[str]) -> InputError:
    """Join one column at a time, one table more at a time, until it fails: only done once the fast way has failed."""
    for name in dict.fromkeys(name for table in tables for name in table.column_names):
        parts: list[pa.Table] = []
        for table, place in zip(tables, places, strict=True):
            if name not in table.column_names:
                continue
            parts.append(table.select([name]))
            try:
                before = pa.concat_tables(parts, promote_options="permissive").schema.types[0]
            except pa.ArrowException:
                here = table.schema.field(name).type
                return InputError(
                    f"{place}: column {name!r} is {here}, and {before} in the rows before", hint=KEEP_HINT
                )
    return InputError(f"{places[0]}: the columns of these rows cannot be joined", hint=KEEP_HINT)
