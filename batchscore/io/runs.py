"""Runs in Python: scores of documents by query, from any file that has them and to any format that tools read.

A run is held in memory, as the tools that take one hold it: about 200 bytes a document.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import closing
from itertools import islice
from math import isfinite, nan
from numbers import Real
from operator import itemgetter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from batchscore.errors import InputError, UsageError, naming_keywords
from batchscore.io.forms import InFormat, OutFormat
from batchscore.io.lines import LineFile, packed
from batchscore.io.outputs import Format, Layout, Origin, UnfitError, chosen_format
from batchscore.io.schema import DOCUMENT_ID_FIELDS, ID_FIELDS, QUERY_ID_FIELDS, is_nested, usual
from batchscore.io.sink import open_sink
from batchscore.io.source import Chunk, open_source
from batchscore.io.storage import is_url, local_path, target_path
from batchscore.io.values import as_numbers, as_text
from batchscore.types import offsets_of

Run = dict[str, dict[str, float]]

Columns = Mapping[str, Sequence[str]]  # what is wanted -> the names that it may have, the most telling first
QUERY_IDS = (*QUERY_ID_FIELDS, "query")
SCORES = ("relevance_score", "score", "rank")
RUN_COLUMNS: Columns = {"query": QUERY_IDS, "document": DOCUMENT_ID_FIELDS, "score": SCORES}
_LISTS = ("results", "documents")  # columns with a query's documents
_ROWS, _QUERIES = 65_536, 1024  # in memory as tables at once
_WHAT = "a run has the ids of queries and documents, and a score or rank of each"
_FINITE = "scores are finite numbers"


@naming_keywords()
def read_run(path: str | os.PathLike[str], *, in_format: InFormat = "auto") -> Run:
    """The scores of a run.

    Reads TREC and MS MARCO runs; what `rerank` writes, as Parquet, JSON Lines, CSV or TSV, a document or a query a row;
    any other table with the ids of queries and documents and a score under their usual names; and of .json MTEB's
    predictions for one subset and split, and {query id: {document id: score}}, as ranx has it. Files of text may be
    packed (.gz, .zst). Where there are ranks alone, the score is 1/rank.

    Args:
        path: the file.
        in_format: what it is; auto goes by suffix and content.

    Returns:
        {query id: {document id: score}}, in the order of the file.

    Raises:
        NotFoundError: no such file.
        UsageError: a suffix that means no format.
        InputError: no run, or a broken one: a line that cannot be read, an id or score that is null, a document that a
            query has twice.
    """
    name = local_path(os.fspath(path))
    if in_format == "auto" and (found := _object_in(name)) is not None:
        return _of_object(found, name)
    run: Run = {}
    source = open_source([name], form=in_format)
    with closing(source):
        for unit in source.units(_ROWS):
            chunk = source.read(unit, None, {})
            require_readable(chunk)
            rows, results = named(chunk.table, RUN_COLUMNS, name)
            columns = (results[column].to_pylist() for column in RUN_COLUMNS)
            for row, query, document, score in zip(rows.tolist(), *columns, strict=True):
                _add(run, query, document, score, chunk.locate(row))
    return run


def is_object(name: str) -> bool:
    """Whether a file is one JSON object: MTEB's predictions, or scores by query."""
    if not name.lower().endswith(packed(".json")) or not (is_url(name) or os.path.exists(name)):
        return False
    file = LineFile(name)
    file.stamp()
    return file.first_line()[1].lstrip().startswith(b"{")


def _object_in(name: str) -> dict[str, Any] | None:
    """The object that is the whole of a .json; None for any other file."""
    if not is_object(name):
        return None
    file = LineFile(name)
    try:
        found: dict[str, Any] = json.loads(b"".join(line for _, line in file.lines()), object_pairs_hook=_without_twins)
    except ValueError as error:
        raise InputError(f"{name} is no run: {error}", hint=_WHAT) from error
    return found


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"it has {max(names, key=names.count)!r} twice in one object")
    return found


def _of_object(found: dict[str, Any], name: str) -> Run:
    """The run of an object by query, or of MTEB's predictions."""
    if "mteb_model_meta" in found:
        subsets = [(subset, splits) for subset, splits in found.items() if subset != "mteb_model_meta"]
        runs = {f"{subset}/{split}": run for subset, splits in subsets for split, run in splits.items()}
        if len(runs) != 1:
            raise InputError(
                f"{name} has predictions of {', '.join(runs) or 'nothing'}, not of one subset and split",
                hint="write what is to be read to a file of its own",
            )
        [found] = runs.values()
    run: Run = {}
    for query, documents in found.items():
        if not isinstance(documents, dict):
            raise InputError(f"{name} is no run: {query!r} has no object of documents and scores", hint=_WHAT)
        run[query] = {}
        for document, score in documents.items():
            _add(run, query, document, score, name)
    return run


def require_readable(chunk: Chunk) -> None:
    """Raise InputError for the first row that could not be read."""
    for row, fault in chunk.faults().items():
        column = f"column {fault.column!r} " if fault.column else ""
        raise InputError(f"{chunk.locate(row)}: {column}{fault.message}", hint=fault.hint)


def exploded(table: pa.Table) -> tuple[NDArray[np.int64], pa.Table]:
    """(int64 [results], the row of each; the results): of rows with a list of results, or of results that are rows."""
    lists = usual(table.column_names, _LISTS)
    if lists is None or not is_nested(table[lists].type):
        return np.arange(len(table)), table
    column = table[lists].combine_chunks()
    rows = np.repeat(np.arange(len(table)), column.value_lengths().fill_null(0).to_numpy())
    return rows, pa.Table.from_struct_array(column.flatten())


def named(table: pa.Table, wanted: Columns, file: str) -> tuple[NDArray[np.int64], pa.Table]:
    """(int64 [results], the row of each; the results): the wanted columns, each under the name of what it is.

    Ids are texts. Where there are ranks alone, the score is 1/rank. Beside the scores of `rerank`, which may be equal
    where its logits are not, its ranks come as `rank`.

    Raises:
        InputError: a column is missing.
    """
    rows, results = exploded(table)
    own, listed = table.column_names, results.column_names
    is_flat = results is table
    columns: dict[str, pa.ChunkedArray] = {}
    for name, choices in wanted.items():
        if name == "query":
            # an output of `rerank` has the query's id first, under its name in the input
            found = own[0] if {"index", "rank", "relevance_score"} <= {*own, *listed} else usual(own, choices)
        else:
            found = usual(listed, choices if is_flat or name != "document" else ID_FIELDS)
        if found is None:
            every = own if is_flat else [*own, *(f"[].{field}" for field in listed)]
            message = f"{file} has no column for the {name}: none of {', '.join(choices)}; columns: {', '.join(every)}"
            raise InputError(message, hint="rename the column")
        column = table[found] if name == "query" else results[found]
        if name in ("query", "document"):
            column = as_text(column)
        elif found == "rank":
            column = pc.divide(1.0, as_numbers(column, found, file))
        elif found == "relevance_score" and "rank" in listed:
            columns["rank"] = as_numbers(results["rank"], "rank", file)
        columns[name] = column.take(pa.array(rows)) if name == "query" and not is_flat else column
    return rows, pa.table(columns)


def _add(run: Run, query: str | None, document: str | None, score: Any, place: str) -> None:
    """Put one document into a run; InputError, which begins with `place`, if it cannot be there."""
    if query is None or document is None:
        raise InputError(f"{place}: the id of a {'query' if query is None else 'document'} is null", hint=_WHAT)
    try:
        number = float(score)
    except (TypeError, ValueError):
        number = nan
    if not isfinite(number):
        has = "no score" if score is None else f"the score {score!r}"
        raise InputError(f"{place}: document {document!r} of query {query!r} has {has}", hint=_FINITE)
    documents = run.setdefault(query, {})
    if document in documents:
        raise InputError(f"{place}: query {query!r} has document {document!r} twice", hint="leave one of them out")
    documents[document] = number


@naming_keywords()
def write_run(
    run: Mapping[str, Mapping[str, float]],
    path: str | os.PathLike[str],
    *,
    run_tag: str = "batchscore",
    out_format: OutFormat = "auto",
) -> None:
    """Write the scores of a run, each query's documents in the order in which trec_eval reads them.

    That is by score, and equal scores by document id, both descending. Scores are written in full.

    Args:
        run: {query id: {document id: score}}.
        path: file to write; it appears when it is whole.
        run_tag: what made the scores: the last field of a TREC run, and the model of MTEB's predictions.
        out_format: auto goes by the suffix; "rank-llm" and "npy" are of no run.

    Raises:
        UsageError: a format or tag without a meaning, ids that are not texts, scores that are not finite numbers.
        InputError: an id that the format has no place for.
        OutputError: no file can be written there.
    """
    target = target_path(os.fspath(path))
    chosen = _chosen(target, out_format, run_tag)
    _require_scores(run)
    try:
        with open_sink(target, chosen, Origin(run_tag)) as sink:
            queries = iter(run.items())
            sink.write(_table([], chosen.kind.layout))
            while some := list(islice(queries, _QUERIES)):
                sink.write(_table(some, chosen.kind.layout))
    except UnfitError as error:
        raise InputError(
            f"cannot write {target} as {chosen.kind.noun}: {error.message}", hint="write .jsonl, which has any id"
        ) from error


def _chosen(path: str, out_format: OutFormat, tag: str) -> Format:
    chosen = chosen_format(path, out_format)
    if chosen.name in ("npy", "rank-llm"):
        raise UsageError(
            f"cannot write {path}: {chosen.kind.noun} has more than a run", hint="pass another --out-format"
        )
    return chosen_format(path, chosen.name, tag) if chosen.name == "trec" else chosen


def _require_scores(run: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise UsageError for ids that are not texts, and scores that are not finite numbers."""
    for query, documents in run.items():
        for name in (query, *documents):
            if not isinstance(name, str):
                raise UsageError(f"id {name!r} is no text", hint=f"ids are texts, always: {str(name)!r}")
        for document, score in documents.items():
            if not isinstance(score, Real) or not isfinite(score):
                raise UsageError(f"document {document!r} of query {query!r} has the score {score!r}", hint=_FINITE)


def _table(queries: Sequence[tuple[str, Mapping[str, float]]], layout: Layout) -> pa.Table:
    """Some queries of a run as the writers of a layout take them."""
    # by score and id, descending: the order of code points is that of bytes in UTF-8, which trec_eval compares
    ranked = [sorted(documents.items(), key=itemgetter(1, 0), reverse=True) for _, documents in queries]
    sizes = [len(documents) for documents in ranked]
    ids, scores = ([pair[place] for documents in ranked for pair in documents] for place in (0, 1))
    names = pa.array([query for query, _ in queries], pa.string())
    columns = {
        "document_id": pa.array(ids, pa.string()),
        "rank": pa.array([rank for size in sizes for rank in range(1, size + 1)], pa.int32()),
        "relevance_score" if layout == "own" else "rank_by": pa.array(map(float, scores), pa.float64()),
    }
    if layout == "lists":
        structs = pa.StructArray.from_arrays(list(columns.values()), list(columns))
        lists = pa.LargeListArray.from_arrays(pa.array(offsets_of(sizes)), structs)
        return pa.table({"query_id": names, "results": lists})
    return pa.table({"query_id": names.take(pa.array(np.repeat(np.arange(len(sizes)), sizes))), **columns})
