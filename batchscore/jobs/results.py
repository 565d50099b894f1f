"""What a model adds to tables: columns beside the input's for `score` and `encode`, candidates for `rerank`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from batchscore.errors import InputError
from batchscore.io.values import encode
from batchscore.media.content import shown
from batchscore.types import Cells, Encodings, offsets_of


def rows_with_scores(
    table: pa.Table, rows: NDArray[np.int64], columns: Mapping[str, Any], *, keep_others: bool
) -> pa.Table:
    """`table` with further columns, whose values are those of `rows`; other rows are left out, or have null there.

    A column is an array of numpy or Arrow.
    """
    values = {name: pa.array(column) if isinstance(column, np.ndarray) else column for name, column in columns.items()}
    if not table.num_columns and not keep_others:
        return pa.table(values)  # Arrow loses the length of a table without columns that rows are taken of
    if keep_others and len(rows) < len(table):
        place = np.full(len(table), -1)
        place[rows] = np.arange(len(rows))
        take = pa.array(place, mask=place < 0)
        values = {name: column.take(take) for name, column in values.items()}
    elif len(rows) < len(table):
        table = table.take(pa.array(rows))
    for name, column in values.items():
        table = table.append_column(name, column)
    return table


def vectors(encodings: Encodings) -> pa.Array:
    """A fixed-size list for each text, each of which has one vector; nulls if there are none, whose size is unknown."""
    values, dimension = _floats(encodings), encodings.values.shape[1]
    if not dimension:
        return pa.nulls(len(encodings))
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), dimension)


def matrices(encodings: Encodings) -> pa.Array:
    """A list of fixed-size lists for each text."""
    values, dimension = _floats(encodings), encodings.values.shape[1]
    if not dimension:
        return pa.nulls(len(encodings))
    rows = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), dimension)
    return pa.ListArray.from_arrays(pa.array(encodings.offsets, pa.int32()), rows)


def _floats(encodings: Encodings) -> NDArray[Any]:
    """float32 or float16 [vectors, dim]: the vectors; bfloat16 as float32."""
    values = encodings.values
    return (values.astype(np.uint32) << 16).view(np.float32) if values.dtype == np.uint16 else values


def encode_ids(ids: pa.ChunkedArray, place: str) -> tuple[NDArray[np.int64], pa.Array]:
    """(int64 [rows], numbers in order of first appearance, -1 where null; the id of each number).

    InputError, which calls the column `place`, for lists and structs.
    """
    kind = ids.type.storage_type if isinstance(ids.type, pa.BaseExtensionType) else ids.type
    if pa.types.is_nested(kind):
        raise InputError(
            f"{place} is {ids.type}, which cannot tell queries apart",
            hint="name a column of texts or numbers with --query-id-column",
        )
    if pa.types.is_null(kind):
        return np.full(len(ids), -1), pa.nulls(0)
    indices, values = encode(ids.combine_chunks())
    return pc.fill_null(indices, -1).to_numpy().astype(np.int64), values


def candidates(
    queries: pa.Table,
    num_documents: NDArray[np.int64],
    groups: NDArray[np.int64],
    values: Mapping[str, NDArray[Any]],
    carried: Mapping[str, pa.Array],
    texts: Cells | None,
    rows: NDArray[np.int64],
) -> pa.Table:
    """One row a query: its columns, how many documents it has here, and those of them that are kept.

    Args:
        queries: the id first, then what else stays beside it.
        num_documents: int64 [queries].
        groups: int64 [kept], ascending: which query a document is of.
        values: columns of the kept documents; NaN is null.
        carried: columns of all documents, their ids among them.
        texts: of all documents, if they are to be kept as `shown`; code -1 is null.
        rows: int64 [kept], the kept of all documents.
    """
    fields = {name: pa.array(value, from_pandas=True) for name, value in values.items()}
    fields |= {name: column.take(pa.array(rows)) for name, column in carried.items()}
    if texts is not None:
        codes = texts.codes[rows]
        fields["document"] = pa.array(map(shown, texts.values), pa.large_string()).take(pa.array(codes, mask=codes < 0))
    structs = pa.StructArray.from_arrays(list(fields.values()), list(fields))
    offsets = offsets_of(np.bincount(groups, minlength=len(queries)))
    results = pa.LargeListArray.from_arrays(pa.array(offsets), structs)
    return queries.append_column("num_documents", pa.array(num_documents)).append_column("results", results)
