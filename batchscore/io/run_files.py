"""Runs as evaluation tools read them: TREC, MS MARCO, MTEB's predictions and rank_llm's results.

Tables have the query's id first, and `document_id`, `rank` and `rank_by` of each document: a document a row, or a query
a row with a list of `results`. Queries are whole, and each is there once; what is written is never held in memory.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from batchscore.io.outputs import Origin, UnfitError
from batchscore.io.text_files import TextWriter, cell_texts, lines
from batchscore.io.values import json_values
from batchscore.types import offsets_of

_ROWS, _QUERIES = 16_384, 256  # whose lines are made at once
# what Python's split() and C's isspace() take for the end of a field, and the end of a string in C
_BREAK = r"[\s\pZ\x00\x0b\x1c-\x1f\x{85}]"


class TrecWriter(TextWriter):
    """`qid Q0 docno rank sim run_tag`, one document a line."""

    def __init__(self, path: str, temporary: str, tag: str) -> None:
        super().__init__(path, temporary)
        self._tag = tag

    def write(self, table: pa.Table) -> None:
        """Append documents; UnfitError for an id that is not one word."""
        for queries, documents, ranks, scores in _fields(table):
            _refuse(queries, pc.starts_with(queries, "#"), "query id {} begins with #, which trec_eval skips")
            constants = [pa.repeat(pa.scalar(text, pa.large_string()), len(queries)) for text in ("Q0", self._tag)]
            self._file.write(lines([queries, constants[0], documents, ranks, scores, constants[1]], " "))


class MsMarcoWriter(TextWriter):
    """`qid`, `pid` and `rank` between tabs, one document a line."""

    def write(self, table: pa.Table) -> None:
        """Append documents; UnfitError for an id that is not one word."""
        for queries, documents, ranks, _ in _fields(table):
            self._file.write(lines([queries, documents, ranks], "\t"))


def _fields(table: pa.Table) -> Iterator[tuple[pa.Array, pa.Array, pa.Array, pa.Array]]:
    """Texts of (query ids, document ids, ranks, scores) of some rows; UnfitError for an id that is not one word."""
    names = [table.column_names[0], "document_id", "rank", "rank_by"]
    for batch in table.select(names).to_batches(max_chunksize=_ROWS):
        queries, documents, ranks, scores = map(cell_texts, batch.columns)
        for side, ids in (("query", queries), ("document", documents)):
            _refuse(ids, pc.equal(ids, ""), f"a {side} id is empty")
            _refuse(ids, pc.match_substring_regex(ids, _BREAK), f"{side} id {{}} has whitespace, which ends a field")
        yield queries, documents, ranks, scores


def _refuse(ids: pa.Array, is_unfit: pa.Array, message: str) -> None:
    """Raise UnfitError for the first of the ids that does not fit."""
    place = pc.index(is_unfit, True).as_py()
    if place >= 0:
        raise UnfitError(message.format(repr(ids[place].as_py())))


class MtebWriter(TextWriter):
    """MTEB's predictions for one subset and split, which `convert_to_reranking` takes."""

    _end = "\n}}}\n"

    def __init__(self, path: str, temporary: str, origin: Origin) -> None:
        super().__init__(path, temporary)
        model = {"model_name": origin.model, "revision": origin.revision}
        self._file.write(f'{{"mteb_model_meta": {_json(model)}, "default": {{{_json(origin.split)}: {{'.encode())
        self._between = "\n"

    def write(self, table: pa.Table) -> None:
        """Append queries."""
        for batch in table.to_batches(max_chunksize=_QUERIES):
            for query, documents in zip(cell_texts(batch.column(0)).to_pylist(), _candidates(batch), strict=True):
                scores = ", ".join(f"{_json(name)}: {score}" for name, score, _ in documents)
                self._file.write(f"{self._between}{_json(query)}: {{{scores}}}".encode())
                self._between = ",\n"


class RankLlmWriter(TextWriter):
    """rank_llm's requests with their candidates in rank order: one a line, or an array in .json."""

    def __init__(self, path: str, temporary: str) -> None:
        super().__init__(path, temporary)
        is_array = re.search(r"\.json(\.gz|\.zst)?$", path.lower()) is not None
        self._file.write(b"[\n" if is_array else b"")
        self._before, self._between, self._end = ("", ",\n", "\n]\n") if is_array else ("", "\n", "\n")

    def write(self, table: pa.Table) -> None:
        """Append queries."""
        texts = "query" if "query" in table.column_names else table.column_names[0]
        for batch in table.to_batches(max_chunksize=_QUERIES):
            queries = zip(*(cell_texts(batch.column(name)).to_pylist() for name in (0, texts)), strict=True)
            for (query, text), documents in zip(queries, _candidates(batch), strict=True):
                found = ", ".join(
                    f'{{"docid": {_json(name)}, "score": {score}, "doc": {_json(document)}}}'
                    for name, score, document in documents
                )
                head = _json({"text": text, "qid": query})
                self._file.write(f'{self._before}{{"query": {head}, "candidates": [{found}]}}'.encode())
                self._before = self._between


def _candidates(batch: pa.RecordBatch) -> Iterator[list[tuple[str, str, Any]]]:
    """[(id, score as JSON, document as an object)] of each query."""
    lists = batch.column("results")
    structs = lists.flatten()
    ids, scores = (cell_texts(structs.field(name)).to_pylist() for name in ("document_id", "rank_by"))
    has_texts = structs.type.get_field_index("document") >= 0
    documents = json_values(structs.field("document")) if has_texts else [None] * len(ids)
    found = [
        (name, score, {"text": document} if isinstance(document, str) else document)
        for name, score, document in zip(ids, scores, documents, strict=True)
    ]
    bounds = offsets_of(pc.list_value_length(lists).to_numpy()).tolist()
    return (found[start:stop] for start, stop in pairwise(bounds))


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
