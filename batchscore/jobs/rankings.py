"""Parts into one output: rows in input order for `score`, whole rankings for `rerank`.

Documents of a query may be in any part. Where they are too many for the memory, queries are dealt out into piles on the
disk by a hash, ranked pile by pile, and dealt out once more by where in the input each first appeared. Memory is
bounded by the largest pile and 24 bytes a query; the price is that everything is written twice more.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from hashlib import blake2b
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from batchscore.engine.ranking import rank_rows
from batchscore.io.outputs import UnfitError
from batchscore.io.schema import join
from batchscore.io.storage import remove_orphans, writer_id
from batchscore.io.values import as_text, empty_table, encode, is_text, json_values
from batchscore.jobs.parts import Parts
from batchscore.types import offsets_of

Rank = Callable[[NDArray[Any], NDArray[Any], NDArray[Any]], tuple[NDArray[np.int64], NDArray[np.int32]]]

_DOCUMENTS_A_PILE = 500_000
_BYTES_A_PILE = 256 << 20
_PILES = ".batchscore-merge-"  # begins the name of their folder
_ROWS_A_TABLE, _BYTES_A_TABLE = 65_536, 256 << 20  # written at once
_RESULT = ("index", "document_id", "rank", "relevance_score", "document")


def merge_rows(parts: Parts, units: Sequence[int]) -> Generator[pa.Table]:
    """The parts one after the other; before them, if they differ, an empty table with all their columns."""
    schemas = list(dict.fromkeys(parts.part(unit).schema for unit in units))
    if len(schemas) > 1:
        yield join(list(map(empty_table, schemas)))
    for unit in units:
        yield parts.read(unit)


def merge_rankings(
    parts: Parts,
    units: Sequence[int],
    rank: Rank,
    *,
    nested: bool,
    scratch: str,
    is_run: bool = False,
    documents_a_pile: int = _DOCUMENTS_A_PILE,
) -> Generator[pa.Table]:
    """The documents of each query in rank order, queries in the order of their first appearance.

    Args:
        parts: tables of one row a query: its id, further columns of it, of which those of its first row stay,
            num_documents, and results, a list of structs with index (among this part's documents of the query),
            document_id, relevance_score, rank_by, document and further fields.
        units: the parts to merge.
        rank: (groups, index, rank_by) -> (rows to keep in rank order, their ranks).
        nested: one row a query with a list of results, else one row a document.
        scratch: a folder for piles.
        is_run: for formats of runs: with rank_by, ids as texts, and equal documents in the order of trec_eval.
        documents_a_pile: how many are ranked at once.

    Raises:
        UnfitError: of a run: a document without an id, or one that a query has twice.
    """
    known = [parts.part(unit) for unit in units]
    documents, size = sum(part.counts["ranked"] for part in known), sum(part.size for part in known)
    count = max(1, -(-documents // documents_a_pile), -(-size // _BYTES_A_PILE))
    fit = partial(_fitted, *_in_common(parts, units))
    column = known[0].schema.names[0]
    with ExitStack() as stack:
        dealt = stack.enter_context(_Piles(count, scratch))
        queries = _Queries()
        for unit in units:
            table = fit(parts.read(unit))
            hashes = _hashes(table[column])
            first = queries.add(hashes, np.diff(table["results"].combine_chunks().offsets))
            dealt.deal(table.append_column("first", pa.array(first)), hashes % count)
        ordered = stack.enter_context(_Piles(count, scratch))
        bounds = queries.bounds(count)
        for pile in range(count):
            for table in dealt.tables(pile):
                ranked = _ranked(table, column, rank, is_run=is_run)
                ordered.deal(ranked, np.searchsorted(bounds, ranked["first"].to_numpy(), side="right"))
        for pile in range(count):
            for table in ordered.tables(pile):
                yield from _tables(table.sort_by("first"), nested=nested)


def rank_alone(part: pa.Table, rank: Rank, *, nested: bool) -> Iterator[pa.Table]:
    """The queries of a part in the same order, where no other part has documents of them; as `merge_rankings`."""
    column = part.schema.names[0]
    ranked = _ranked(part.append_column("first", pa.array(np.arange(len(part)))), column, rank)
    yield from _tables(ranked, nested=nested)


def _in_common(parts: Parts, units: Sequence[int]) -> tuple[pa.Table, pa.Table]:
    """Empty tables of queries and of documents in the types that hold those of all parts."""
    schemas = list(dict.fromkeys(parts.part(unit).schema for unit in units))
    empty = [empty_table(schema) for schema in schemas]
    queries, documents = join([_queries(table) for table in empty]), join([_documents(table) for table in empty])
    for unit in units if len(schemas) > 1 else ():  # values may not fit into the type that joins their types
        part = parts.read(unit)
        queries, documents = (
            join([queries, _queries(part)]).slice(0, 0),
            join([documents, _documents(part)]).slice(0, 0),
        )
    return queries, documents


def _fitted(queries: pa.Table, documents: pa.Table, part: pa.Table) -> pa.Table:
    """A part in the types that all parts have in common, of which there are these empty tables."""
    joined = join([documents, _documents(part)])
    offsets = offsets_of(np.diff(part["results"].combine_chunks().offsets))
    results = pa.LargeListArray.from_arrays(pa.array(offsets), _structs(joined))
    return join([queries, _queries(part)]).append_column("results", results)


def _queries(part: pa.Table) -> pa.Table:
    return part.drop_columns("results")


def _documents(part: pa.Table) -> pa.Table:
    return pa.Table.from_struct_array(part["results"].combine_chunks().flatten())


class _Piles:
    """Tables dealt out by number: in memory if there is one pile, else in a file each."""

    def __init__(self, count: int, scratch: str) -> None:
        self._folder = None
        if count > 1:
            remove_orphans(scratch, _PILES, numbered=True)
            self._folder = tempfile.TemporaryDirectory(prefix=f"{_PILES}{writer_id()}-", dir=scratch)
        self._writers: dict[int, pa.RecordBatchStreamWriter] = {}
        self._held: list[pa.Table] = []

    def __enter__(self) -> _Piles:
        return self

    def __exit__(self, *_: object) -> None:
        for writer in self._writers.values():
            writer.close()
        if self._folder is not None:
            self._folder.cleanup()

    def deal(self, table: pa.Table, piles: NDArray[np.integer]) -> None:
        """Put each row on its pile."""
        if self._folder is None:
            self._held.append(table)
            return
        order = np.argsort(piles, kind="stable")
        found, starts, counts = np.unique(piles[order], return_index=True, return_counts=True)
        table = table.take(pa.array(order))
        for pile, start, size in zip(found.tolist(), starts, counts, strict=True):
            if pile not in self._writers:
                self._writers[pile] = pa.ipc.new_stream(self._path(pile), table.schema)
            self._writers[pile].write_table(table.slice(start, size))

    def tables(self, pile: int) -> Iterator[pa.Table]:
        """The pile as one table, if anything is on it; afterwards it is gone."""
        if self._folder is None:
            if self._held:
                yield pa.concat_tables(self._held)
            self._held.clear()
        elif pile in self._writers:
            self._writers.pop(pile).close()
            with pa.OSFile(self._path(pile)) as file:
                table = pa.ipc.open_stream(file).read_all()
            os.remove(self._path(pile))
            yield table

    def _path(self, pile: int) -> str:
        assert self._folder is not None
        return os.path.join(self._folder.name, str(pile))


class _Queries:
    """Where each query came first and how many documents it has."""

    def __init__(self) -> None:
        self._count = 0  # of rows, which tell where a query is
        self._known = np.empty((3, 0), np.int64)  # hash, first, documents
        self._new: list[NDArray[np.int64]] = []

    def add(self, hashes: NDArray[np.uint64], documents: NDArray[np.integer]) -> NDArray[np.int64]:
        """Take the queries of a part; int64 [queries]: where each is in the sequence of all parts' queries."""
        places = np.arange(self._count, self._count + len(hashes))
        self._count += len(hashes)
        self._new.append(np.stack([hashes.view(np.int64), places, documents.astype(np.int64)]))
        if sum(new.shape[1] for new in self._new) > max(_ROWS_A_TABLE, self._known.shape[1]):
            self._sum_up()
        return places

    def bounds(self, count: int) -> NDArray[np.int64]:
        """int64 [count - 1]: where the sequence is divided so that each share has about as many documents."""
        self._sum_up()
        _, first, documents = self._known[:, np.argsort(self._known[1])]
        before = np.cumsum(documents) - documents
        shares = np.arange(1, count) * documents.sum() / count
        bounds: NDArray[np.int64] = np.append(first, self._count)[np.searchsorted(before, shares)]
        return bounds

    def _sum_up(self) -> None:
        hashes, first, documents = np.concatenate([self._known, *self._new], axis=1)
        hashes, place, query = np.unique(hashes, return_index=True, return_inverse=True)
        sums = np.zeros(len(hashes), np.int64)
        np.add.at(sums, query, documents)
        self._known, self._new = np.stack([hashes, first[place], sums]), []


def _hashes(ids: pa.ChunkedArray) -> NDArray[np.uint64]:
    """uint64 [rows]: equal for equal ids, on every machine."""
    indices, distinct = encode(ids.combine_chunks())
    digests = [blake2b(repr(value).encode(), digest_size=8).digest() for value in json_values(distinct)]
    hashes: NDArray[np.uint64] = np.frombuffer(b"".join(digests), np.uint64)[indices.to_numpy()]
    return hashes


def _ranked(table: pa.Table, column: str, rank: Rank, *, is_run: bool = False) -> pa.Table:
    """One row a query: its columns, its results in rank order, and where it came first.

    A part counts a query's documents from 0, so those of the parts before are added.
    """
    indices, ids = encode(table[column].combine_chunks())
    groups, queries = indices.to_numpy(), len(ids)
    counts = table["num_documents"].to_numpy()
    before = np.zeros(len(table), np.int64)
    seen = np.zeros(queries, np.int64)
    for row, (group, size) in enumerate(zip(groups.tolist(), counts.tolist(), strict=True)):
        before[row] = seen[group]
        seen[group] += size
    lists = table["results"].combine_chunks()
    sizes = np.diff(lists.offsets.to_numpy())
    flat = pa.Table.from_struct_array(lists.flatten())
    of_document = np.repeat(np.arange(len(table)), sizes)
    index = (flat["index"].to_numpy() + before[of_document]).astype(np.int32)
    document_groups = groups[of_document]
    rows, ranks = rank(document_groups, index, flat["rank_by"].to_numpy())
    if is_run:
        rows = rows[_as_trec_eval(document_groups[rows], ids, flat.take(pa.array(rows)))]
    results = flat.take(pa.array(rows)).drop_columns(["index"])
    results = results.append_column("index", pa.array(index[rows])).append_column("rank", pa.array(ranks))
    names = [name for name in results.column_names if is_run or name != "rank_by"]
    results = results.select(sorted(names, key=lambda name: _RESULT.index(name) if name in _RESULT else len(_RESULT)))
    offsets = offsets_of(np.bincount(document_groups[rows], minlength=queries))
    _, first = np.unique(groups, return_index=True)
    ranked = pa.LargeListArray.from_arrays(pa.array(offsets), _structs(results))
    of_query = table.drop_columns(["num_documents", "results"]).take(pa.array(first))
    return of_query.add_column(of_query.num_columns - 1, "results", ranked)


def _as_trec_eval(groups: NDArray[np.int64], queries: pa.Array, documents: pa.Table) -> NDArray[np.int64]:
    """int64 [rows], row numbers in the order in which trec_eval reads them: equal scores by id, descending.

    Args:
        groups: int64 [rows], ascending: which query a document is of.
        queries: id of each group.
        documents: document_id and rank_by of each row.

    Raises:
        UnfitError: a document without an id, or one that a query has twice.
    """
    ids = as_text(documents["document_id"]).combine_chunks()
    if ids.null_count:
        raise UnfitError(f"a document of query {_shown(queries, groups[np.argmax(ids.is_null())])} has no id")
    places = pc.rank(ids, sort_keys="descending", tiebreaker="dense").to_numpy().astype(np.int64)
    _, first, counts = np.unique(groups * (len(ids) + 1) + places, return_index=True, return_counts=True)
    if (counts > 1).any():
        row = first[counts > 1].min()
        raise UnfitError(f"query {_shown(queries, groups[row])} has document {_shown(ids, row)} twice")
    order, _ = rank_rows(groups, places, documents["rank_by"].to_numpy())
    return order


def _shown(ids: pa.Array, row: int) -> str:
    """An id as errors have it."""
    return repr(json_values(ids.slice(row, 1))[0])


def _structs(table: pa.Table) -> pa.StructArray:
    found = table.to_struct_array()
    return found.combine_chunks() if found.num_chunks else pa.nulls(0, found.type)


def _tables(ranked: pa.Table, *, nested: bool) -> Iterator[pa.Table]:
    """Ranked queries as they are written."""
    whole = ranked.drop_columns("first")
    return _nested_tables(whole) if nested else _flat_tables(whole)


def _nested_tables(table: pa.Table) -> Iterator[pa.Table]:
    step = _ROWS_A_TABLE // 64
    for start in range(0, max(1, len(table)), step):
        yield table.slice(start, step)


def _flat_tables(table: pa.Table) -> Iterator[pa.Table]:
    """One row a document, beside the columns of its query."""
    lists = table["results"].combine_chunks()
    queries, results = table.drop_columns("results").combine_chunks(), pa.Table.from_struct_array(lists.flatten())
    of_document = np.repeat(np.arange(len(table)), np.diff(lists.offsets))
    # a query's long text is there once for each document: a table of them has to fit into the memory
    ends, start = np.cumsum(_sizes(queries)[of_document]), 0
    while start < max(1, len(of_document)):
        before = ends[start - 1] if start else 0
        stop = start + _ROWS_A_TABLE
        stop = max(start + 1, min(stop, int(np.searchsorted(ends, before + _BYTES_A_TABLE, side="right"))))
        flat = queries.take(pa.array(of_document[start:stop]))
        for name, column in zip(results.column_names, results.slice(start, stop - start).columns, strict=True):
            flat = flat.append_column(name, column)
        yield flat
        start = stop


def _sizes(table: pa.Table) -> NDArray[np.int64]:
    """int64 [rows], about how many bytes each takes."""
    sizes = np.zeros(len(table), np.int64)
    for column in table.columns:
        kind = column.type
        if is_text(kind) and not pa.types.is_dictionary(kind):
            sizes += pc.fill_null(pc.binary_length(column), 0).to_numpy()
        else:
            sizes += column.nbytes // max(1, len(column))
    return sizes
