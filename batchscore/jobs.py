"""The commands' work from files to files: `score` row by row, `rerank` query by query.

This is the one place where input, scorer and ranking meet. Columns are checked before the model is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from batchscore.api import Scorer
from batchscore.errors import InputError, UsageError
from batchscore.io.documents import explode, is_nested
from batchscore.io.results import QueryIds, RankedRows, append_columns, text_array
from batchscore.io.sink import Sink
from batchscore.io.source import Chunk, Source, whole_groups
from batchscore.io.texts import read_texts
from batchscore.pipeline import Meter, Window, scored
from batchscore.ranking import positions_in_groups, rank_rows
from batchscore.types import CUT_NAMES, Pairs, Scores, Texts

_NESTED_ROWS = 256  # rows read at once where each carries a list of documents
_DETAILS = ("logit", "num_tokens", "truncated")
_RANKED = ("index", "document_id", "rank", "relevance_score", "document", "results")
_CUT_NAMES = np.array(CUT_NAMES)


@dataclass(frozen=True, slots=True)
class ScoreJob:
    """What `score` reads and writes besides the model."""

    query_column: str = "query"
    document_column: str = "document"
    score_column: str = "score"
    keep_columns: Sequence[str] | None = None  # None: all
    details: bool = False
    limit: int | None = None


def run_score(load: Callable[[], Scorer], source: Source, sink: Sink, job: ScoreJob, meter: Meter) -> None:
    """Write the input's rows with their scores, in the input's order; columns are checked before the model loads."""
    added = [job.score_column, *(_DETAILS if job.details else ())]
    flags = {job.query_column: "--query-column", job.document_column: "--document-column"}
    kept = None if job.keep_columns is None else list(job.keep_columns)
    source.require(flags)
    _refuse_clash(source.column_names() if kept is None else kept, added)
    columns = None if kept is None else list(dict.fromkeys([*kept, *flags]))
    scorer = load()

    def windows() -> Iterator[Window]:
        for chunk in source.chunks(columns, scorer.budget.window_rows, job.limit, flags=flags):
            _refuse_clash(chunk.table.column_names if kept is None else kept, added)
            pairs = Pairs(read_texts(chunk, job.query_column), read_texts(chunk, job.document_column))
            yield Window(pairs, chunk.fraction, chunk.locate, chunk.table if kept is None else chunk.table.select(kept))

    for window, scores in scored(scorer, windows(), meter):
        with meter.timed("write"):
            sink.write(append_columns(window.extra, _score_columns(job, scores)))


def _score_columns(job: ScoreJob, scores: Scores) -> Mapping[str, NDArray[Any]]:
    columns: dict[str, NDArray[Any]] = {job.score_column: scores.score}
    if job.details:
        if scores.logit is not None:
            columns["logit"] = scores.logit
        columns |= {"num_tokens": scores.num_tokens, "truncated": _CUT_NAMES[scores.cut]}
    return columns


def _refuse_clash(existing: Sequence[str], added: Sequence[str]) -> None:
    clash = next((name for name in added if name in existing), None)
    if clash is not None:
        raise UsageError(
            f"the input already has a column {clash!r}, which the output needs",
            hint="pass --score-column with another name, or leave the column out with --keep-columns",
        )


@dataclass(frozen=True, slots=True)
class RerankJob:
    """What `rerank` reads and writes besides the model."""

    query_column: str = "query"
    document_column: str | None = None  # None: "document", or else "documents"
    query_id_column: str | None = None  # None: the query's text
    document_id_column: str | None = None  # None: "document_id", in structs a field with an id's usual name
    top_n: int = 0
    return_documents: bool = False
    nested: bool = False
    limit: int | None = None


def run_rerank(load: Callable[[], Scorer], source: Source, sink: Sink, job: RerankJob, meter: Meter) -> None:
    """Write each query's documents in rank order; columns are checked before the model loads."""
    columns = _rerank_columns(source, job)
    queries = QueryIds(columns.query_id)
    ranked = RankedRows(queries, partial(rank_rows, top_n=job.top_n), prune=bool(job.top_n))
    scorer = load()
    windows = _rerank_windows(source, job, columns, queries, scorer.budget.window_rows, listwise=scorer.spec.listwise)
    for window, scores in scored(scorer, windows, meter):
        ranked.add({**window.extra, "rank_by": scores.rank_by, "relevance_score": scores.score})
    with meter.timed("write"):
        for table in ranked.nested_tables() if job.nested else ranked.tables():
            sink.write(table)


@dataclass(frozen=True, slots=True)
class _RerankColumns:
    query_id: str
    document: str
    document_id: str | None  # of long rows; a list's documents carry their ids
    nested: bool  # a row lists the documents of its query
    flags: Mapping[str, str]  # column -> the option that names it


def _rerank_columns(source: Source, job: RerankJob) -> _RerankColumns:
    """What the first file and the options say about columns; the first row tells whether documents come in lists."""
    names = source.column_names()
    document = job.document_column or ("documents" if "documents" in names and "document" not in names else "document")
    query_id = job.query_id_column or job.query_column
    flags = {query_id: "--query-id-column", job.query_column: "--query-column", document: "--document-column"}
    source.require(flags)
    if query_id in _RANKED:
        raise UsageError(
            f"the query's id column is called {query_id!r}, a name of the output", hint="rename the column"
        )
    nested = is_nested(next(source.chunks([document], 1, 1)).table.schema.field(document).type)
    document_id = None if nested else job.document_id_column or ("document_id" if "document_id" in names else None)
    if document_id:
        flags[document_id] = "--document-id-column"
        source.require(flags)
    return _RerankColumns(query_id, document, document_id, nested, flags)


def _rerank_windows(
    source: Source, job: RerankJob, columns: _RerankColumns, queries: QueryIds, window_rows: int, *, listwise: bool
) -> Iterator[Window]:
    """Windows of pairs, one pair a document, with the columns the ranking needs."""
    counts = np.zeros(0, np.int64)
    rows_at_once = min(_NESTED_ROWS, window_rows) if columns.nested else window_rows
    chunks = source.chunks(list(columns.flags), rows_at_once, job.limit, flags=columns.flags)
    for chunk in whole_groups(chunks, columns.query_id) if listwise else chunks:
        seen = len(queries)
        groups, pairs, ids, locate = _documents_of(chunk, job, columns, queries)
        if listwise:
            _refuse_return(groups, seen, locate)
        counts = np.pad(counts, (0, len(queries) - len(counts)))
        index = positions_in_groups(groups, counts)
        step = max(1, len(pairs)) if listwise else window_rows
        for start in range(0, max(1, len(pairs)), step):
            rows = slice(start, start + step)
            part = replace(pairs, lists=groups).rows(rows)
            extra = {"group": groups[rows], "index": index[rows]}
            if ids is not None:
                extra["document_id"] = ids[rows]
            if job.return_documents:
                extra["document"] = text_array(part.documents)
            yield Window(part, chunk.fraction, partial(_shifted, locate, start), extra)


def _refuse_return(groups: NDArray[np.int64], seen: int, locate: Callable[[int], str]) -> None:
    """A listwise model must have all documents of a query at once."""
    back = np.flatnonzero(groups < seen)
    if len(back):
        raise InputError(
            f"{locate(int(back[0]))}: its query came before, among other queries",
            hint="this model reads all documents of a query together: sort the input by query",
        )


def _shifted(locate: Callable[[int], str], start: int, row: int) -> str:
    return locate(start + row)


def _documents_of(
    chunk: Chunk, job: RerankJob, columns: _RerankColumns, queries: QueryIds
) -> tuple[NDArray[np.int64], Pairs, Any, Callable[[int], str]]:
    """(query number, pair, document id) of each document of a chunk, and where a document is from."""
    texts, groups = read_texts(chunk, job.query_column), queries.encode(chunk)
    if not columns.nested:
        ids = chunk.table[columns.document_id].combine_chunks() if columns.document_id else None
        return groups, Pairs(texts, read_texts(chunk, columns.document)), ids, chunk.locate
    documents = explode(chunk, columns.document, job.document_id_column)
    parents = documents.parents
    pairs = Pairs(Texts(texts.values, texts.codes[parents]), documents.texts)
    return groups[parents], pairs, documents.ids, lambda row: chunk.locate(int(parents[row]))
