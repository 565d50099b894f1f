"""What a command makes of a unit: `score` rows with a score, `rerank` the ranked candidates of its queries.

A job reads a unit into pairs and makes a table of their scores. Columns are checked before a model is loaded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from batchscore.engine.ranking import positions_in_groups, rank_rows
from batchscore.errors import InputError, UsageError
from batchscore.io.documents import explode, require_fields
from batchscore.io.schema import Shape, is_nested
from batchscore.io.source import Chunk, Source
from batchscore.io.texts import read_texts
from batchscore.io.units import Unit
from batchscore.jobs.parts import Parts
from batchscore.jobs.rankings import merge_rankings, merge_rows
from batchscore.jobs.results import candidates, encode_ids, rows_with_scores
from batchscore.types import CUT_NAMES, Fault, Pairs, Scores, Texts

_DETAILS = ("logit", "num_tokens", "truncated")
_RANKED = ("index", "document_id", "rank", "relevance_score", "document", "results", "num_documents", "first")
_CUT_NAMES = np.array(CUT_NAMES)


@dataclass(frozen=True, slots=True)
class Loaded:
    """The rows of a unit, read and checked."""

    unit: Unit
    pairs: Pairs  # of the rows that have both texts
    rows: NDArray[np.int64]  # [pairs], which of the output's rows each is
    faults: Sequence[tuple[Mapping[str, Any], Fault]]  # rows without a pair, as they are reported
    report: Callable[[Fault], Mapping[str, Any]]  # of a fault in an output's row
    extra: Any  # what the table needs beside the scores


class Job(Protocol):
    """A command's work on units."""

    name: ClassVar[str]

    def check(self, source: Source) -> None: ...  # columns, before a model is loaded
    def units(self, source: Source, window_rows: int, *, listwise: bool) -> list[Unit]: ...
    def load(self, source: Source, unit: Unit) -> Loaded: ...
    def table(self, loaded: Loaded, pairs: NDArray[np.int64], scores: Scores, *, keep_faulty: bool) -> Any: ...
    def merged(self, parts: Parts, units: Sequence[int], scratch: str) -> Generator[Any]: ...


@dataclass(frozen=True)
class ScoreCommand:
    """What `score` reads and writes besides the model."""

    name: ClassVar[str] = "score"
    query_column: str = "query"
    document_column: str = "document"
    score_column: str = "score"
    keep_columns: Sequence[str] | None = None  # None: all
    details: bool = False
    limit: int | None = None
    document_fields: Sequence[str] | None = None  # None: title and text where a document has both

    def check(self, source: Source) -> None:
        """Raise InputError or UsageError for columns that are missing or in the way."""
        if "" in (self.keep_columns or ()):
            raise UsageError("--keep-columns has a name that is empty", hint="all, none, or names such as id,query")
        source.require(self._flags)
        self._refuse_clash(source.column_names())

    def units(self, source: Source, window_rows: int, *, listwise: bool) -> list[Unit]:
        """Units of a window each."""
        return source.units(window_rows, limit=self.limit)

    def load(self, source: Source, unit: Unit) -> Loaded:
        """One pair a row."""
        kept = self.keep_columns
        columns = None if kept is None else list(dict.fromkeys([*kept, *self._flags]))
        chunk = source.read(unit, columns, self._flags, dict.fromkeys(self._flags, "text"))
        self._refuse_clash(chunk.table.column_names)
        faults = {fault.row: fault for fault in chunk.faults()}
        queries = read_texts(chunk, self.query_column, faults)
        pairs = Pairs(queries, read_texts(chunk, self.document_column, faults))
        report = partial(_reported, chunk)
        good = _others(len(chunk.table), faults)
        if faults:
            pairs = pairs.rows(good)
        table = chunk.table if kept is None else chunk.table.select(list(kept))
        return Loaded(unit, pairs, good, _sorted_reports(faults, report), report, table)

    def table(self, loaded: Loaded, pairs: NDArray[np.int64], scores: Scores, *, keep_faulty: bool) -> Any:
        """The input's rows with their scores, those at fault left out or without one."""
        columns: dict[str, NDArray[Any]] = {self.score_column: scores.score}
        if self.details:
            if scores.logit is not None:
                columns["logit"] = scores.logit
            columns |= {"num_tokens": scores.num_tokens, "truncated": _CUT_NAMES[scores.cut]}
        return rows_with_scores(loaded.extra, loaded.rows[pairs], columns, keep_others=keep_faulty)

    def merged(self, parts: Parts, units: Sequence[int], scratch: str) -> Generator[Any]:
        """Rows in input order."""
        return merge_rows(parts, units)

    @property
    def _flags(self) -> dict[str, str]:
        return {self.query_column: "--query-column", self.document_column: "--document-column"}

    def _refuse_clash(self, existing: Sequence[str]) -> None:
        added = [self.score_column, *(_DETAILS if self.details else ())]
        carried = existing if self.keep_columns is None else self.keep_columns
        if len(set(added)) < len(added):
            raise UsageError(f"--details adds a column {self.score_column!r} too", hint="pass another --score-column")
        clash = next((name for name in added if name in carried), None)
        if clash is not None:
            raise UsageError(
                f"the input already has a column {clash!r}, which the output needs",
                hint="pass --score-column with another name, or leave the column out with --keep-columns",
            )


@dataclass(frozen=True)
class RerankCommand:
    """What `rerank` reads and writes besides the model."""

    name: ClassVar[str] = "rerank"
    query_column: str = "query"
    document_column: str | None = None  # None: "document", or else "documents"
    query_id_column: str | None = None  # None: the query's text
    document_id_column: str | None = None  # None: "document_id", in structs a field with an id's usual name
    top_n: int = 0
    return_documents: bool = False
    nested: bool = False
    limit: int | None = None
    document_fields: Sequence[str] | None = None  # None: title and text where a document has both

    def check(self, source: Source) -> None:
        """Raise InputError or UsageError for columns that are missing or in the way."""
        columns = self._columns(source)
        if columns.nested:
            kind, place = source.column_type(columns.document), f"{source.readers[0].file}: column {columns.document!r}"
            require_fields(kind, self.document_id_column, place)
        if columns.query_id in _RANKED:
            raise UsageError(
                f"the query's id column is called {columns.query_id!r}, a name of the output", hint="rename the column"
            )

    def units(self, source: Source, window_rows: int, *, listwise: bool) -> list[Unit]:
        """Units that divide no run of a query's rows: of a window each, or of fewer rows where each lists documents."""
        columns = self._columns(source)
        rows = max(1, window_rows // _NESTED_SHARE) if columns.nested else window_rows
        if listwise:
            _require_runs(source, columns.query_id, self.limit)
        # a listwise model must have all documents of a query at once
        stretch = math.inf if listwise else 2
        return source.units(rows, group=columns.query_id, stretch=stretch, limit=self.limit)

    def load(self, source: Source, unit: Unit) -> Loaded:
        """One pair a document."""
        columns = self._columns(source)
        chunk = source.read(unit, list(columns.flags), columns.flags, columns.shapes)
        row_faults = {fault.row: fault for fault in chunk.faults()}
        missing: dict[int, Fault] = {}  # documents without a text
        queries = read_texts(chunk, self.query_column, row_faults)
        groups, ids = _groups_of(chunk, columns.query_id, row_faults)
        if columns.nested:
            documents = explode(chunk, columns.document, self.document_id_column, row_faults, missing)
            parents, texts, document_ids = documents.parents, documents.texts, documents.ids
            starts = np.searchsorted(parents, parents)
        else:
            parents = np.arange(len(chunk.table))
            texts = read_texts(chunk, columns.document, missing)
            row_faults = {**missing, **row_faults}  # a document is a row
            document_ids = chunk.table[columns.document_id].combine_chunks() if columns.document_id else None
            starts = None

        def report(fault: Fault) -> Mapping[str, Any]:
            row = int(parents[fault.row])
            column = fault.column
            if column is None and starts is not None:
                column = f"{columns.document}[{fault.row - starts[fault.row]}]"
            return _reported(chunk, Fault(row, column, fault.code, fault.message))

        of_rows = _sorted_reports(row_faults, partial(_reported, chunk))
        good = np.flatnonzero(~np.isin(parents, list(row_faults)))
        good = np.setdiff1d(good, list(missing), assume_unique=True)
        groups = groups[parents]
        pairs = Pairs(Texts(queries.values, queries.codes[parents]), texts, lists=groups)
        if len(good) < len(pairs):
            pairs = pairs.rows(good)
        shown = None
        if self.return_documents:
            codes = texts.codes.copy()
            codes[list(missing)] = -1
            shown = Texts(texts.values, codes)
        extra = _Candidates(groups, ids, document_ids, shown)
        of_documents = _sorted_reports(missing, report) if columns.nested else []
        return Loaded(unit, pairs, good, [*of_rows, *of_documents], report, extra)

    def table(self, loaded: Loaded, pairs: NDArray[np.int64], scores: Scores, *, keep_faulty: bool) -> Any:
        """One row a query, with its candidates in rank order."""
        found: _Candidates = loaded.extra
        size, rows = len(found.groups), loaded.rows[pairs]
        counts = np.zeros(len(found.ids), np.int64)
        known = np.flatnonzero(found.groups >= 0)
        index = np.zeros(size, np.int32)
        index[known] = positions_in_groups(found.groups[known], counts)
        score = np.full(size, np.nan, np.float32)
        rank_by = np.full(size, -np.inf, np.float32)  # what has no score comes last
        score[rows], rank_by[rows] = scores.score, scores.rank_by
        listed = known if keep_faulty else rows
        order, _ = rank_rows(found.groups[listed], index[listed], rank_by[listed], self.top_n)
        chosen = listed[order]
        columns = {"index": index[chosen], "relevance_score": score[chosen], "rank_by": rank_by[chosen]}
        return candidates(
            self._id_name, found.ids, counts, found.groups[chosen], columns, found.document_ids, found.texts, chosen
        )

    def merged(self, parts: Parts, units: Sequence[int], scratch: str) -> Generator[Any]:
        """Each query's documents of all parts in rank order."""
        rank = partial(rank_rows, top_n=self.top_n)
        return merge_rankings(parts, units, rank, nested=self.nested, scratch=scratch)

    @property
    def _id_name(self) -> str:
        return self.query_id_column or self.query_column

    def _columns(self, source: Source) -> _RerankColumns:
        """What the first file and the options say; the first row tells whether documents come in lists."""
        names = source.column_names()
        document = self.document_column or (
            "documents" if "documents" in names and "document" not in names else "document"
        )
        flags = {
            self._id_name: "--query-id-column", self.query_column: "--query-column", document: "--document-column"
        }  # fmt: skip
        source.require(flags)
        nested = is_nested(source.column_type(document))
        document_id = None if nested else self.document_id_column or ("document_id" if "document_id" in names else None)
        if document_id:
            flags[document_id] = "--document-id-column"
            source.require(flags)
        shapes: dict[str, Shape] = {self.query_column: "text", document: "documents" if nested else "text"}
        return _RerankColumns(self._id_name, document, document_id, nested, flags, shapes)


_NESTED_SHARE = 64  # of a window's rows, where each carries a list of documents


@dataclass(frozen=True, slots=True)
class _RerankColumns:
    query_id: str
    document: str
    document_id: str | None  # of long rows; a list's documents carry their ids
    nested: bool  # a row lists the documents of its query
    flags: Mapping[str, str]  # column -> the option that names it
    shapes: Mapping[str, Shape]


@dataclass(frozen=True, slots=True)
class _Candidates:
    """The documents of a unit, those at fault too."""

    groups: NDArray[np.int64]  # [documents], which query; -1: none
    ids: Any  # [queries]
    document_ids: Any  # [documents] or None
    texts: Texts | None  # code -1: none


def _groups_of(chunk: Chunk, column: str, faults: dict[int, Fault]) -> tuple[NDArray[np.int64], Any]:
    """(int64 [rows], number of each row's query in order of first appearance; ids); a null id is a fault of its row."""
    groups, ids = encode_ids(chunk.table[column], f"{chunk.locate(0)}: column {column!r}")
    for row in np.flatnonzero(groups < 0).tolist():
        faults.setdefault(row, Fault(row, column, "null", "is null", "every row needs its query's id"))
    return groups, ids


def _require_runs(source: Source, column: str, limit: int | None) -> None:
    """Raise InputError where a query comes back after others: a listwise model must have all its documents at once."""
    seen, last, left = set[int](), object(), 2**62 if limit is None else limit
    for reader in source.readers:
        for steps in reader.steps(column):
            source.on_step()
            for row in range(min(len(steps.ends), left)):
                value = steps.value(row)
                if value == last:
                    continue
                if (number := hash(str(value))) in seen:
                    unit = "line" if reader.first_place else "row"
                    raise InputError(
                        f"{reader.file}, {unit} {steps.places[row] - 1}: its query came before, among other queries",
                        hint="this model reads all documents of a query together: sort the input by query",
                    )
                seen.add(number)
                last = value
            left -= min(len(steps.ends), left)


def _others(size: int, faults: Mapping[int, Fault]) -> NDArray[np.int64]:
    """int64: the rows without a fault."""
    good = np.ones(size, bool)
    good[list(faults)] = False
    return np.flatnonzero(good)


def _sorted_reports(
    faults: Mapping[int, Fault], report: Callable[[Fault], Mapping[str, Any]]
) -> list[tuple[Mapping[str, Any], Fault]]:
    return [(report(faults[row]), faults[row]) for row in sorted(faults)]


def _reported(chunk: Chunk, fault: Fault) -> Mapping[str, Any]:
    """JSON-able: where a fault is, and what it is."""
    file, unit, number = chunk.place(fault.row)
    place = {"row": number} if unit == "row" else {"row": number - 1, "line": number}
    return {"file": file, **place, "column": fault.column, "code": fault.code, "message": fault.message}
