"""From files to files: window -> tokens -> scores -> output, one window ahead.

While a window is in the model, the next one is read and tokenised in a thread; nothing else is buffered, so memory
does not depend on the input's size. This is the one place where input, scorer and ranking meet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from threading import Lock
from time import perf_counter
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from batchscore.api import Scorer
from batchscore.errors import RowError, UsageError
from batchscore.io.documents import explode, is_nested
from batchscore.io.results import QueryIds, RankedRows, append_columns, text_array
from batchscore.io.sink import Sink
from batchscore.io.source import Chunk, Source
from batchscore.io.texts import read_texts
from batchscore.ranking import positions_in_groups, rank_rows
from batchscore.types import CUT_NAMES, Pairs, Scores, Texts, Work

T = TypeVar("T")
_NESTED_ROWS = 256  # rows read at once where each carries a list of documents


@dataclass(frozen=True, slots=True)
class ScoreJob:
    """What `score` reads and writes besides the model."""

    query_column: str = "query"
    document_column: str = "document"
    score_column: str = "score"
    keep_columns: Sequence[str] | None = None  # None: all
    details: bool = False
    limit: int | None = None


@dataclass(frozen=True, slots=True)
class RerankJob:
    """What `rerank` reads and writes besides the model."""

    query_column: str = "query"
    document_column: str | None = None  # None: "document", or else "documents"
    query_id_column: str | None = None  # None: the query's text
    document_id_column: str | None = (
        None  # None: "document_id" where there is one; for structs, a field with an id's usual name
    )
    top_n: int = 0
    return_documents: bool = False
    nested: bool = False
    limit: int | None = None


@dataclass
class Meter:
    """Counts and seconds of a run; `on_change` is called after each pack, from any thread."""

    on_change: Callable[[Meter], None] = lambda meter: None
    rows: int = 0
    texts: int = 0  # distinct sequences the model read
    tokens: int = 0
    cut: dict[str, int] = field(default_factory=lambda: dict.fromkeys(CUT_NAMES[1:], 0))
    seconds: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(("read", "tokenize", "forward", "write"), 0.0)
    )
    fraction: float | None = None  # of the input, scored
    started: float = field(default_factory=perf_counter)
    _lock: Lock = field(default_factory=Lock)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the block's time to a stage."""
        start = perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] += perf_counter() - start

    def window(self, size: int, fraction: float | None) -> Callable[[int, int], None]:
        """What to call with (rows, tokens) of each pack of a window; at its end `fraction` of the input is done."""
        start, rows_before = self.fraction or 0.0, self.rows

        def add(rows: int, tokens: int) -> None:
            with self._lock:
                self.rows += rows
                self.tokens += tokens
                if fraction is not None and size:
                    self.fraction = start + (fraction - start) * (self.rows - rows_before) / size
            self.on_change(self)

        return add


@dataclass(frozen=True, slots=True)
class Window:
    """Rows on their way through the scorer."""

    pairs: Pairs
    fraction: float | None
    locate: Callable[[int], str]
    extra: Any  # what the writer needs beside the scores


def run_score(load: Callable[[], Scorer], source: Source, sink: Sink, job: ScoreJob, meter: Meter) -> None:
    """Write the input's rows with their scores, in the input's order; columns are checked before the model loads."""
    added = [job.score_column, *(_DETAILS if job.details else ())]
    flags = {job.query_column: "--query-column", job.document_column: "--document-column"}
    kept = None if job.keep_columns is None else list(job.keep_columns)
    source.require(flags)
    _refuse_existing(source.column_names() if kept is None else kept, added)
    columns = None if kept is None else list(dict.fromkeys([*kept, *flags]))
    scorer = load()

    def windows() -> Iterator[Window]:
        for chunk in source.chunks(columns, scorer.budget.window_rows, job.limit, flags=flags):
            _refuse_existing(chunk.table.column_names if kept is None else kept, added)
            pairs = Pairs(read_texts(chunk, job.query_column), read_texts(chunk, job.document_column))
            yield Window(pairs, chunk.fraction, chunk.locate, chunk.table if kept is None else chunk.table.select(kept))

    for window, scores in _scored(scorer, windows(), meter):
        with meter.timed("write"):
            sink.write(append_columns(window.extra, _score_columns(job, scores)))


def run_rerank(load: Callable[[], Scorer], source: Source, sink: Sink, job: RerankJob, meter: Meter) -> None:
    """Write each query's documents in rank order; columns are checked before the model loads."""
    columns = _rerank_columns(source, job)
    queries = QueryIds(columns.query_id)
    ranked = RankedRows(queries, partial(rank_rows, top_n=job.top_n), prune=bool(job.top_n))
    scorer = load()
    for window, scores in _scored(
        scorer, _rerank_windows(source, job, columns, queries, scorer.budget.window_rows), meter
    ):
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
    flags = {job.query_column: "--query-column", query_id: "--query-id-column", document: "--document-column"}
    flags[job.query_column] = "--query-column"
    source.require(flags)
    _refuse_existing([query_id], ["index", "document_id", "rank", "relevance_score", "document", "results"])
    nested = is_nested(next(source.chunks([document], 1, 1)).table.schema.field(document).type)
    document_id = None if nested else job.document_id_column or ("document_id" if "document_id" in names else None)
    if document_id:
        flags[document_id] = "--document-id-column"
        source.require(flags)
    return _RerankColumns(query_id, document, document_id, nested, flags)


def _rerank_windows(
    source: Source, job: RerankJob, columns: _RerankColumns, queries: QueryIds, window_rows: int
) -> Iterator[Window]:
    """Windows of pairs, one pair a document, with the columns the ranking needs."""
    counts = np.zeros(0, np.int64)
    rows_at_once = min(_NESTED_ROWS, window_rows) if columns.nested else window_rows
    for chunk in source.chunks(list(columns.flags), rows_at_once, job.limit, flags=columns.flags):
        groups, pairs, ids, locate = _documents_of(chunk, job, columns, queries)
        counts = np.pad(counts, (0, len(queries) - len(counts)))
        index = positions_in_groups(groups, counts)
        for start in range(0, max(1, len(pairs)), window_rows):
            rows = slice(start, start + window_rows)
            part = pairs.rows(rows)
            extra = {"group": groups[rows], "index": index[rows]}
            if ids is not None:
                extra["document_id"] = ids[rows]
            if job.return_documents:
                extra["document"] = text_array(part.documents)
            yield Window(part, chunk.fraction, partial(_shifted, locate, start), extra)


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


def _scored(scorer: Scorer, windows: Iterator[Window], meter: Meter) -> Iterator[tuple[Window, Scores]]:
    """Score windows in order, reading and tokenising one ahead."""

    def prepared() -> Iterator[tuple[Window, Work]]:
        while True:
            with meter.timed("read"):
                window = next(windows, None)
            if window is None:
                return
            with meter.timed("tokenize"), _located(window):
                work = scorer.tokenize(window.pairs)
            yield window, work

    for window, work in prefetch(prepared()):
        with meter.timed("forward"), _located(window):
            scores = scorer.score_work(work, meter.window(len(work), window.fraction))
        meter.texts += len(work.items)
        meter.fraction = window.fraction
        for code, name in enumerate(CUT_NAMES[1:], start=1):
            meter.cut[name] += int((scores.cut == code).sum())
        yield window, scores


def prefetch(values: Iterator[T]) -> Iterator[T]:
    """The same values, each made in a thread while the one before is in use."""
    end: Any = object()
    with ThreadPoolExecutor(1, "batchscore-read") as thread:
        following = thread.submit(next, values, end)
        while (value := following.result()) is not end:
            following = thread.submit(next, values, end)
            yield value


@contextmanager
def _located(window: Window) -> Iterator[None]:
    """Give a row's fault its file and row."""
    try:
        yield
    except RowError as error:
        raise error.cause(f"{window.locate(error.row)}: {error.message}", hint=error.hint) from error


_DETAILS = ("logit", "num_tokens", "truncated")
_CUT_NAMES = np.array(CUT_NAMES)


def _score_columns(job: ScoreJob, scores: Scores) -> Mapping[str, NDArray[Any]]:
    columns: dict[str, NDArray[Any]] = {job.score_column: scores.score}
    if job.details:
        if scores.logit is not None:
            columns["logit"] = scores.logit
        columns |= {"num_tokens": scores.num_tokens, "truncated": _CUT_NAMES[scores.cut]}
    return columns


def _refuse_existing(existing: Sequence[str], added: Sequence[str]) -> None:
    clash = next((name for name in added if name in existing), None)
    if clash is not None:
        raise UsageError(
            f"the input already has a column {clash!r}, which the output needs",
            hint="pass --score-column with another name, or leave the column out with --keep-columns",
        )
