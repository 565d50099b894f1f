"""Runs and judgements as files have them -> rankings and relevance, by query.

A run is held in memory as a whole, as columns: some 30 bytes a result.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from batchscore.errors import InputError, UsageError
from batchscore.io import irds
from batchscore.io.forms import InFormat
from batchscore.io.inputs import format_of_ids
from batchscore.io.runs import QUERY_IDS, RUN_COLUMNS, Columns, is_object, named, read_run, require_readable
from batchscore.io.schema import DOCUMENT_ID_FIELDS
from batchscore.io.source import open_source
from batchscore.io.values import as_numbers

_ROWS = 65_536  # read at once
_JUDGEMENT_COLUMNS: Columns = {
    "query": QUERY_IDS,
    "document": DOCUMENT_ID_FIELDS,
    "relevance": ("relevance", "score", "rel", "label"),
}
_GREATEST = 1_000_000  # relevance, either way

Judgements = Mapping[str, Mapping[str, int]]  # query -> document -> relevance


@dataclass(frozen=True, slots=True)
class Ranking:
    """The results of a query, best first."""

    documents: Sequence[str]
    scores: NDArray[np.float64]  # [documents], descending


@dataclass(frozen=True, slots=True, eq=False)
class Rankings(Mapping[str, Ranking]):
    """The results of all queries, best first."""

    places: Mapping[str, int]  # query -> its number
    bounds: NDArray[np.int64]  # [queries + 1], where the results of each query begin
    documents: pa.Array  # [results], text
    scores: NDArray[np.float64]  # [results]

    def __getitem__(self, query: str) -> Ranking:
        """The results of one query."""
        place = self.places[query]
        start, stop = self.bounds[place : place + 2].tolist()
        return Ranking(self.documents[start:stop].to_pylist(), self.scores[start:stop])

    def __contains__(self, query: object) -> bool:
        """Whether a query has results."""
        return query in self.places

    def __iter__(self) -> Iterator[str]:
        """The queries."""
        return iter(self.places)

    def __len__(self) -> int:
        """How many queries have results."""
        return len(self.places)


def read_rankings(path: str) -> Rankings:
    """The run in a file: an output of `rerank`, or any other that `read_run` reads.

    Results are in the order of their scores. Equal scores keep the ranks of a file that `rerank` wrote, which has
    compared logits; else the document with the greater id comes first, as in trec_eval.

    Raises:
        InputError: columns are missing, a score is not a number, or a document comes twice for a query.
    """
    table = _of_object(path) if is_object(path) else _read(path, "trec-run", RUN_COLUMNS)
    table = table.set_column(table.column_names.index("score"), "score", as_numbers(table["score"], "score", path))
    table = table.filter(pc.is_valid(table["score"]))  # rows that --errors null has kept
    if pc.any(pc.is_nan(table["score"])).as_py():
        query = table.filter(pc.is_nan(table["score"]))["query"][0].as_py()
        raise InputError(f"{path}: a score of query {query!r} is not a number", hint="leave such results out")
    keys = [("query", "ascending"), ("score", "descending")]
    keys += [("rank", "ascending")] if "rank" in table.column_names else []
    order = pc.sort_indices(table, sort_keys=[*keys, ("document", "descending")])
    table = table.select(["query", "document", "score"]).take(order).combine_chunks()
    bounds, queries = _runs(table["query"])
    documents = table["document"].cast(pa.large_string()).combine_chunks()
    for query, start, stop in zip(queries, bounds, bounds[1:], strict=False):
        if len((some := documents[start:stop]).unique()) < len(some):
            names = some.to_pylist()
            twice = max(names, key=names.count)
            raise InputError(f"{path}: document {twice!r} comes twice for query {query!r}", hint="keep one of them")
    places = {query: place for place, query in enumerate(queries)}
    return Rankings(places, np.array(bounds), documents, table["score"].to_numpy())


def read_judgements(path: str, split: str | None = None) -> Judgements:
    """The relevance that people gave to documents, one judgement a row; `split` of a dataset that has several.

    A judgement that comes twice counts once. Raises as `read_rankings`, and for two judgements that differ.
    """
    table = _read(path, "trec-qrels", _JUDGEMENT_COLUMNS, split=split, part="qrels")
    grades = as_numbers(table["relevance"], "relevance", path)
    if grades.null_count:
        raise InputError(f"{path}: a relevance is missing", hint="leave out what nobody judged")
    if not pc.all(pc.equal(grades, pc.floor(grades))).as_py():
        raise InputError(f"{path}: a relevance is not a whole number", hint="measures need grades like 0, 1, 2")
    if not pc.all(pc.less_equal(pc.abs(grades), _GREATEST)).as_py():  # trec_eval has an array as long as the greatest
        raise InputError(f"{path}: a relevance is beyond {_GREATEST:,}", hint="measures need grades like 0, 1, 2")
    table = table.set_column(2, "relevance", pc.cast(grades, pa.int64()))
    table = table.take(pc.sort_indices(table, sort_keys=[("query", "ascending")]))
    judged: dict[str, dict[str, int]] = {}
    for query, document, relevance in zip(*(table[name].to_pylist() for name in _JUDGEMENT_COLUMNS), strict=True):
        known = judged.setdefault(query, {}).setdefault(document, relevance)
        if known != relevance:
            raise InputError(
                f"{path}: document {document!r} of query {query!r} is judged {known} and {relevance}",
                hint="keep one of them",
            )
    if not judged:
        raise InputError(f"{path} has no judgements", hint="name the qrels that belong to the queries of the run")
    return judged


def _read(
    path: str, usual_format: InFormat, wanted: Columns, *, split: str | None = None, part: irds.Kind = "scoreddocs"
) -> pa.Table:
    """A result or judgement a row, with the columns that `named` gives them."""
    tables = []
    form = format_of_ids(path, usual_format)
    with closing(open_source([path], split=split, is_strict=False, form=form, part=part)) as source:
        for unit in source.units(_ROWS):
            chunk = source.read(unit, None, {})
            require_readable(chunk)
            tables.append(named(chunk.table, wanted, path)[1])
    table = pa.concat_tables(tables, promote_options="permissive").combine_chunks()
    for name in ("query", "document"):
        if table[name].null_count:
            raise InputError(f"{path}: the id of a {name} is null", hint="leave such rows out")
    return table


def _of_object(path: str) -> pa.Table:
    """A run that is one JSON object: MTEB's predictions, or {query: {document: score}}."""
    run = read_run(path)
    rows = [(query, document, score) for query, found in run.items() for document, score in found.items()]
    names = ("query", "document", "score")
    return pa.table({name: [row[place] for row in rows] for place, name in enumerate(names)})


def _runs(column: pa.ChunkedArray) -> tuple[list[int], list[str]]:
    """(where each run of equal values begins, and the end; the values)."""
    if not len(column):
        return [0], []
    runs = pc.run_end_encode(column.combine_chunks())
    return [0, *runs.run_ends.to_pylist()], runs.values.to_pylist()


def require_overlap(run: Rankings, judged: Judgements, path: str, qrels: str) -> None:
    """Raise UsageError if no query of the run is judged."""
    if run.keys().isdisjoint(judged):
        some, other = next(iter(run), None), next(iter(judged))
        raise UsageError(
            f"no query of {path} (such as {some!r}) is judged in {qrels} (such as {other!r})",
            hint="the ids must be the same text in both files",
        )
