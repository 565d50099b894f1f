"""What scoring adds to tables: columns beside the input's for `score`, ranked rows for `rerank`.

Ranked rows are held until the last document is scored, since documents of a query may be anywhere in the input. With
a top_n only each query's best are kept, so memory grows with queries and not with documents; the ranking itself is
handed in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from batchscore.errors import InputError
from batchscore.io.source import Chunk
from batchscore.types import Texts

Rank = Callable[[NDArray[Any], NDArray[Any], NDArray[Any]], tuple[NDArray[np.int64], NDArray[np.int32]]]

_ROWS_A_TABLE = 65_536  # written at once
_PRUNE_FROM = 100_000  # rows held before the first look at which can go


def append_columns(table: pa.Table, columns: Mapping[str, NDArray[Any]]) -> pa.Table:
    """`table` with further columns."""
    for name, values in columns.items():
        table = table.append_column(name, pa.array(values))
    return table


def text_array(texts: Texts) -> pa.Array:
    """large_string [rows]."""
    return pa.array(texts.values, pa.large_string()).take(pa.array(texts.codes))


class QueryIds:
    """Numbers queries in order of first appearance, by the values of their id column."""

    def __init__(self, column: str) -> None:
        self.column = column
        self._codes: dict[Any, int] = {}
        self._type: pa.DataType = pa.null()

    def __len__(self) -> int:
        return len(self._codes)

    def encode(self, chunk: Chunk) -> NDArray[np.int64]:
        """int64 [rows]: the number of each row's query; InputError where the id is null."""
        values = chunk.table[self.column]
        encoded = (
            (values if pa.types.is_dictionary(values.type) else values.dictionary_encode())
            .unify_dictionaries()
            .combine_chunks()
        )
        if encoded.null_count:
            row = int(np.flatnonzero(encoded.is_null())[0])
            raise InputError(
                f"{chunk.locate(row)}: column {self.column!r} is null", hint="every row needs its query's id"
            )
        self._type = encoded.dictionary.type
        codes = [self._codes.setdefault(value, len(self._codes)) for value in encoded.dictionary.to_pylist()]
        numbers: NDArray[np.int64] = np.array(codes, np.int64)[encoded.indices.to_numpy()]
        return numbers

    def array(self) -> pa.Array:
        """The id of each number, in the input's type."""
        return pa.array(list(self._codes), self._type)


class RankedRows:
    """Scored documents on their way to a ranking."""

    def __init__(self, queries: QueryIds, rank: Rank, *, prune: bool) -> None:
        self._queries = queries
        self._rank = rank
        self._prune = prune
        self._tables: list[pa.Table] = []
        self._rows, self._limit = 0, _PRUNE_FROM

    def add(self, columns: Mapping[str, Any]) -> None:
        """Rows of a window: group, index, rank_by, relevance_score and, where wanted, document_id and document."""
        table = pa.table(dict(columns))
        self._tables.append(table)
        self._rows += len(table)
        if self._prune and self._rows > self._limit:
            self._tables = [self._ranked().drop_columns("rank")]
            self._rows = len(self._tables[0])
            self._limit = max(_PRUNE_FROM, 2 * self._rows)

    def tables(self) -> Iterator[pa.Table]:
        """One row a kept document: the query's id, index, document_id, rank, relevance_score, document."""
        ranked, ids = self._ranked(), self._queries.array()
        for start in range(0, max(1, len(ranked)), _ROWS_A_TABLE):
            part = ranked.slice(start, _ROWS_A_TABLE)
            yield _output(part).add_column(0, self._queries.column, ids.take(part["group"]))

    def nested_tables(self) -> Iterator[pa.Table]:
        """One row a query, also of one without documents: its id and `results`, a list of structs in rank order."""
        ranked, ids = self._ranked(), self._queries.array()
        ends = np.concatenate([[0], np.cumsum(np.bincount(ranked["group"].to_numpy(), minlength=len(ids)))])
        for start in range(0, max(1, len(ids)), _ROWS_A_TABLE // 64):
            part = ids.slice(start, _ROWS_A_TABLE // 64)
            offsets = ends[start : start + len(part) + 1]
            structs = _output(ranked.slice(offsets[0], offsets[-1] - offsets[0])).to_struct_array().combine_chunks()
            results = pa.LargeListArray.from_arrays(pa.array(offsets - offsets[0]), structs)
            yield pa.table({self._queries.column: part, "results": results})

    def _ranked(self) -> pa.Table:
        table = pa.concat_tables(self._tables, promote_options="permissive")
        rows, ranks = self._rank(*(table[name].to_numpy() for name in ("group", "index", "rank_by")))
        return table.take(pa.array(rows)).append_column("rank", pa.array(ranks))


def _output(ranked: pa.Table) -> pa.Table:
    order = ("index", "document_id", "rank", "relevance_score", "document")
    return ranked.select([name for name in order if name in ranked.column_names])
