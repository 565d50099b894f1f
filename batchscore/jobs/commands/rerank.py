"""`rerank`: each query's documents in rank order."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from batchscore.engine.ranking import positions_in_groups, rank_rows
from batchscore.errors import UsageError
from batchscore.io.cells import CellColumns, read_cells
from batchscore.io.collection import DOCUMENT, DOCUMENT_ID, QUERY, QUERY_ID, Names
from batchscore.io.documents import document_fields, explode, id_field_of, require_fields
from batchscore.io.outputs import Layout, RunColumns
from batchscore.io.schema import (
    DOCUMENT_ID_FIELDS,
    QUERY_ID_FIELDS,
    Shape,
    document_column,
    holds_media,
    is_documents,
    listed_type,
    usual,
)
from batchscore.io.source import Chunk, Source
from batchscore.io.texts import document_columns
from batchscore.io.units import Unit
from batchscore.jobs.commands.base import BadRow, Counts, columns_line
from batchscore.jobs.parts import Fingerprint, Parts
from batchscore.jobs.rankings import Rank, merge_rankings, rank_alone
from batchscore.jobs.results import candidates, encode_ids
from batchscore.types import Cells, Fault, Faults, Pairs, Scores, good_rows

_RANKED = (
    "index",
    "document_id",
    "rank",
    "relevance_score",
    "rank_by",
    "document",
    "results",
    "num_documents",
    "first",
)
_NESTED_SHARE = 64  # rows of a unit that a list of documents counts as; usual lists have 20 to 100


@dataclass(frozen=True)
class RerankCommand:
    """What `rerank` reads and writes besides the model."""

    name: ClassVar[str] = "rerank"

    query_column: str = "query"
    document_column: str | None = None  # None: the first with a usual name of one
    query_id_column: str | None = None  # None: likewise, or else the query's text
    document_id_column: str | None = None  # None: likewise, and so in structs
    top_n: int = 0
    return_documents: bool = False
    nested: bool = False
    limit: int | None = None
    document_fields: Sequence[str] | None = None  # of structs, or columns; None: title and text where both are there
    query_image_column: str | None = None
    query_video_column: str | None = None
    document_image_column: str | None = None
    document_video_column: str | None = None
    keep_columns: Sequence[str] | None = ()  # of the input, beside the query or document; None: all
    keep_document_fields: Sequence[str] | None = ()  # of structs; None: all

    def joined_names(self) -> Names:
        """Where the ids and texts of a join are, as the options say."""
        query = None if self.query_column == RerankCommand.query_column else self.query_column
        return Names(self.query_id_column, self.document_id_column, query, self.document_column, self.document_fields)

    def of_joined(self) -> RerankCommand:
        """The command for rows that are joined, whose columns have fixed names."""
        return replace(
            self,
            query_column=QUERY,
            document_column=DOCUMENT,
            query_id_column=QUERY_ID,
            document_id_column=DOCUMENT_ID,
            document_fields=None,
        )

    def check(self, source: Source) -> None:
        """Raise InputError or UsageError for columns that are missing or in the way."""
        if "" in (*(self.keep_columns or ()), *(self.keep_document_fields or ())):
            raise UsageError("--keep-columns or --keep-document-fields has an empty name", hint="all, none, or names")
        columns = self._columns(source)
        if columns.nested:
            location = f"{source.files[0]}: column {columns.document!r}"
            kind = listed_type(source.column_type(columns.document))
            kept = self.keep_document_fields
            require_fields(kind, self.document_id_column, location, self.document_fields, kept)
        elif self.keep_document_fields != ():
            raise UsageError(
                "--keep-document-fields is for lists of documents, and here each row has one",
                hint="name columns with --keep-columns",
            )
        if columns.query_id in _RANKED:
            raise UsageError(
                f"the query's id column is called {columns.query_id!r}, a name of the output", hint="rename the column"
            )
        columns.refuse_clash(columns.kept(source.column_names(), self.keep_columns), self.keep_document_fields or ())

    def lists_documents(self, source: Source) -> bool:
        """Whether a row has a list of documents; raises as `check`."""
        return self._columns(source).nested

    def lines(self, source: Source) -> list[str]:
        """Which columns or fields together are a query or document."""
        columns, documents = self._columns(source), None
        if columns.nested:
            kind = listed_type(source.column_type(columns.document))
            documents = CellColumns(document_fields(kind, self.document_fields))
        found = {} if self.query_id_column else {"query ids": columns.query_id}
        if self.document_column is None:
            found["documents"] = columns.document
        if self.document_id_column is None and columns.document_id:
            found["document ids"] = columns.document_id
        return [
            *columns_line(found),
            *columns.queries.lines("query"),
            *(documents or columns.documents).lines("document"),
        ]

    def units(self, source: Source, unit_rows: int, *, listwise: bool) -> Iterable[Unit]:
        """Units that do not divide a query's run of rows; of fewer rows where each lists documents."""
        columns = self._columns(source)
        rows = max(1, unit_rows // _NESTED_SHARE) if columns.nested else unit_rows
        if listwise:
            source.require_runs(columns.query_id, self.limit)
        # a listwise model must have all documents of a query at once
        stretch = math.inf if listwise else 2
        return source.units(rows, columns=columns.flags, group=columns.query_id, stretch=stretch, limit=self.limit)

    def load(self, source: Source, unit: Unit) -> RankedRows:
        """One pair a document."""
        columns = self._columns(source)
        chunk = source.read(unit, None if self.keep_columns is None else list(columns.flags), columns.shapes)
        kept = columns.kept(chunk.table.column_names, self.keep_columns)
        row_faults = chunk.faults()
        missing: Faults = {}  # documents without a text
        queries = read_cells(chunk, columns.queries, row_faults)
        row_groups, ids = _groups_of(chunk, columns.query_id, row_faults)
        if columns.nested:
            documents = explode(
                chunk,
                columns.document,
                self.document_id_column,
                row_faults,
                missing,
                self.document_fields,
                self.keep_document_fields,
            )
            parents, texts, document_ids = documents.parents, documents.texts, documents.ids
            of_query, of_document = kept, documents.fields
        else:  # a document is a row
            parents = np.arange(len(chunk.table))
            texts = read_cells(chunk, columns.documents, missing)
            document_ids = chunk.table[columns.document_id].combine_chunks() if columns.document_id else None
            row_faults = {**missing, **row_faults}
            of_query = [name for name in kept if name in columns.queries.shapes]
            of_document = {name: chunk.table[name].combine_chunks() for name in kept if name not in of_query}
        columns.refuse_clash(of_query, of_document)
        good = good_rows(len(parents), missing)
        good = good[~np.isin(parents[good], list(row_faults))]
        groups = row_groups[parents]
        pairs = Pairs(Cells(queries.values, queries.codes[parents]), texts, lists=groups)
        shown = None
        if self.return_documents:
            codes = texts.codes.copy()
            codes[list(missing)] = -1
            shown = Cells(texts.values, codes)
        rows = RankedRows(
            command=self,
            unit=unit,
            pairs=pairs.rows(good) if len(good) < len(pairs) else pairs,
            bad_rows=[BadRow.of(chunk, row, row_faults[row]) for row in sorted(row_faults)],
            chunk=chunk,
            listed=columns.document if columns.nested else None,
            parents=parents,
            documents=good,
            row_groups=row_groups,
            groups=groups,
            queries=_queries_of(chunk, columns.query_id, ids, of_query, row_groups),
            carried={**({} if document_ids is None else {"document_id": document_ids}), **of_document},
            texts=shown,
        )
        if columns.nested:
            rows.bad_rows += [rows.bad_document(document, missing[document]) for document in sorted(missing)]
        return rows

    def load_pairs(self, source: Source, unit: Unit) -> RankedRows:
        """The same without the columns that are kept."""
        return replace(self, keep_columns=(), keep_document_fields=()).load(source, unit)

    def merged(self, parts: Parts, units: Sequence[int], scratch: str, layout: Layout) -> Generator[pa.Table]:
        """Each query's documents of all parts in rank order."""
        is_run = layout != "own"
        nested = layout == "lists" if is_run else self.nested
        return merge_rankings(parts, units, self._rank, nested=nested, is_run=is_run, scratch=scratch)

    def finished(self, part: pa.Table, job: Fingerprint) -> Iterable[pa.Table]:
        """Each query's documents in rank order."""
        return rank_alone(part, self._rank, nested=self.nested)

    @property
    def _rank(self) -> Rank:
        return partial(rank_rows, top_n=self.top_n)

    def run_columns(self, source: Source) -> RunColumns:
        """What the output has of what a run may need."""
        columns = self._columns(source)
        document_id = columns.document_id
        if columns.nested:
            kind = listed_type(source.column_type(columns.document)).value_type
            document_id = id_field_of(kind, self.document_id_column)
        is_text = columns.query_id == self.query_column
        has_text = is_text or self.keep_columns is None or self.query_column in self.keep_columns
        return RunColumns(not is_text, has_text, bool(document_id), self.return_documents)

    def _query_id(self, source: Source) -> str:
        """The column with the query's id, which has this name in the output too."""
        return self.query_id_column or usual(source.column_names(), QUERY_ID_FIELDS) or self.query_column

    def _columns(self, source: Source) -> _Columns:
        """What the first file and the options say; the first row tells whether documents come in lists."""
        names, query_id = source.column_names(), self._query_id(source)
        document = self.document_column or document_column(names)
        queries = self._queries(source)
        flags = {query_id: "--query-id-column", **dict.fromkeys(queries.texts, "--query-column")}
        flags |= queries.flags("query-")
        documents = CellColumns.chosen(
            document_columns(document, names, self.document_fields),
            self.document_image_column,
            self.document_video_column,
            names,
            is_usual=self.document_fields is None and self.document_column is None,
        )
        # columns that are joined, or have media, stand for the document column, which the input then need not have
        is_replaced = document not in names and (self.document_fields is not None or not documents.texts)
        column = {} if is_replaced else {document: "--document-column"}
        source.require({**flags, **column})
        kept = dict.fromkeys(self.keep_columns or (), "--keep-columns")
        if column and is_documents(source.column_type(document)):
            if documents.has_media:
                raise UsageError(
                    f"column {document!r} lists documents, which {', '.join(documents.flags('document-').values())} "
                    "cannot add to",
                    hint="write each image or video into its document, as {text, image}",
                )
            shapes: dict[str, Shape] = {**queries.shapes, document: "documents"}
            flags = {**kept, **flags, **column}
            return _Columns(query_id, document, queries, documents, None, True, flags, shapes)
        flags |= {name: column.get(name, "--document-fields") for name in documents.texts}
        flags |= documents.flags("document-")
        document_id = self.document_id_column or usual(names, DOCUMENT_ID_FIELDS)
        if document_id:
            flags[document_id] = "--document-id-column"
        flags = {**kept, **flags}
        source.require(flags)
        shapes = {**queries.shapes, **documents.shapes}
        return _Columns(query_id, document, queries, documents, document_id, False, flags, shapes)

    def _queries(self, source: Source) -> CellColumns:
        """The columns of the query; UsageError if it has media, by which queries are not told apart, and no id."""
        queries = CellColumns.chosen(
            (self.query_column,),
            self.query_image_column,
            self.query_video_column,
            source.column_names(),
            is_usual=self.query_column == RerankCommand.query_column,
        )
        has_media = queries.has_media or holds_media(source.column_type(self.query_column))
        if has_media and self._query_id(source) == self.query_column:
            raise UsageError(
                "queries with images or videos need a column that tells them apart",
                hint="pass --query-id-column",
            )
        return queries


@dataclass(frozen=True, slots=True)
class _Columns:
    query_id: str
    document: str
    queries: CellColumns
    documents: CellColumns  # of long rows
    document_id: str | None  # of long rows; a list's documents carry their ids
    nested: bool  # a row lists the documents of its query
    flags: Mapping[str, str]  # column -> the option that names it
    shapes: Mapping[str, Shape]

    def kept(self, names: Sequence[str], wanted: Sequence[str] | None) -> list[str]:
        """Which of all columns stay, besides ids: those that are wanted; None: all but the documents."""
        if wanted is not None:
            return [name for name in dict.fromkeys(wanted) if name != self.query_id]
        return [name for name in names if name not in (self.query_id, self.document, self.document_id)]

    def refuse_clash(self, of_query: Iterable[str], of_document: Iterable[str]) -> None:
        """Raise UsageError if two columns of the output would have one name."""
        taken = {self.query_id, *_RANKED}
        for name in (*of_query, *of_document):
            if name in taken:
                raise UsageError(
                    f"the output already has a column {name!r}, which is also to be kept",
                    hint="name the columns with --keep-columns, the fields of documents with --keep-document-fields; "
                    "the text of a document is kept by --return-documents",
                )
            taken.add(name)


@dataclass(slots=True)
class RankedRows:
    """The documents of a unit, bad ones too."""

    command: RerankCommand
    unit: Unit
    pairs: Pairs
    bad_rows: list[BadRow]
    chunk: Chunk
    listed: str | None  # the column with lists of documents; None: a document a row
    parents: NDArray[np.int64]  # [documents], the row of each
    documents: NDArray[np.int64]  # [pairs], the document of each
    row_groups: NDArray[np.int64]  # [rows], which query; -1: none
    groups: NDArray[np.int64]  # [documents], likewise
    queries: pa.Table  # [queries], their ids and what stays beside these
    carried: Mapping[str, pa.Array]  # [documents], what stays beside them, their ids first
    texts: Cells | None  # code -1: none

    def bad_row(self, pair: int, fault: Fault) -> BadRow:
        """A pair's fault as that of its document."""
        return self.bad_document(int(self.documents[pair]), fault)

    def bad_document(self, document: int, fault: Fault) -> BadRow:
        """A document's fault, found in its list as "documents[3]"."""
        row = int(self.parents[document])
        if self.listed is None:
            return BadRow.of(self.chunk, row, fault)
        number = document - int(np.searchsorted(self.parents, row))
        return BadRow.of(self.chunk, row, fault, number, f"{self.listed}[{number}]")

    def table(self, pairs: NDArray[np.int64], scores: Scores, *, keep_bad: bool) -> tuple[pa.Table, Counts]:
        """One row a query, with its candidates in rank order; those without a score come last, or are left out."""
        size, scored = len(self.groups), self.documents[pairs]
        num_documents = np.zeros(len(self.queries), np.int64)
        known = np.flatnonzero(self.groups >= 0)
        index = np.zeros(size, np.int32)
        index[known] = positions_in_groups(self.groups[known], num_documents)
        score = np.full(size, np.nan, np.float32)
        rank_by = np.full(size, -np.inf, np.float32)
        score[scored], rank_by[scored] = scores.score[:, 0], scores.rank_by
        listed = known if keep_bad else scored
        order, _ = rank_rows(self.groups[listed], index[listed], rank_by[listed], self.command.top_n)
        kept = listed[order]
        columns = {"index": index[kept], "relevance_score": score[kept], "rank_by": rank_by[kept]}
        table = candidates(self.queries, num_documents, self.groups[kept], columns, self.carried, self.texts, kept)
        return table, {"ranked": len(kept)}

    def before(self, table: pa.Table, row: int) -> pa.Table:
        """The queries that have no documents in this row or after it."""
        return table.slice(0, len(np.setdiff1d(self.row_groups[:row], self.row_groups[row:])))


def _queries_of(chunk: Chunk, column: str, ids: pa.Array, kept: Sequence[str], groups: NDArray[np.int64]) -> pa.Table:
    """The ids of the queries, and what their first rows have in other columns."""
    queries = pa.table({column: ids})
    numbers, first = np.unique(groups, return_index=True)
    rows = pa.array(first[numbers >= 0])
    for name in kept:
        queries = queries.append_column(name, chunk.table[name].combine_chunks().take(rows))
    return queries


def _groups_of(chunk: Chunk, column: str, faults: Faults) -> tuple[NDArray[np.int64], pa.Array]:
    """(int64 [rows], number of each row's query in order of first appearance; ids); a null id is a fault of its row."""
    groups, ids = encode_ids(chunk.table[column], f"{chunk.locate(0)}: column {column!r}")
    for row in np.flatnonzero(groups < 0).tolist():
        faults.setdefault(row, Fault("null", "is null", "every row needs its query's id", column))
    return groups, ids
