"""What other tools call a query with its documents: their rows, read as `query_id`, `query` and a list of `documents`.

A dialect is a function of one row, which JSON, Parquet and datasets share. The other columns of a row stay.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import repeat
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from batchscore.io.block import Block, Reader, Stamp
from batchscore.io.forms import DialectName
from batchscore.io.objects import UnreadableError, kind_name, object_columns
from batchscore.io.schema import ID_FIELDS, QUERY_ID_FIELDS, Shape, is_nested, usual
from batchscore.io.units import Span, Steps
from batchscore.io.values import json_values
from batchscore.types import Fault

_OWN_IDS = (*QUERY_ID_FIELDS, "id")  # of a query, beside it
_LARGEST = 2**1023  # of 64-bit floats, near enough; JSON has larger integers
_NAMES = ("query_id", "query", "documents")
_TEXTS = ("text", "segment", "contents", "content", "body", "passage")  # rank_llm's order
_TITLED = ("text", "segment", "body", "passage")  # the others hold the title, as Anserini indexes write them


@dataclass(frozen=True, slots=True)
class Request:
    """A query with its documents."""

    query_id: str
    query: str
    documents: Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Dialect:
    """How a tool writes such a row."""

    columns: tuple[str, ...]  # that it reads
    fields: pa.StructType  # of a document
    request: Callable[[Mapping[str, Any], str], Request]  # (row, id of a query without one); UnreadableError


def rank_llm(row: Mapping[str, Any], query_id: str) -> Request:
    """{"query": {"text", "qid"}, "candidates": [{"docid", "score", "doc": {"text", "title", ...}}]}."""
    query = row["query"]
    text, number = (query.get("text"), query.get("qid")) if isinstance(query, dict) else (query, None)
    text = _text("query", text)
    documents = [_candidate(one) for one in _list("candidates", row["candidates"])]
    return Request(_id(number, _own_id(row, text)), text, documents)


def pyserini(row: Mapping[str, Any], query_id: str) -> Request:
    """{"query", "hits": [{"qid", "docid", "rank", "score", "content"}]}."""
    text = _text("query", row["query"])
    hits = _list("hits", row["hits"])
    own = _own_id(row, text)
    ids = {_id(hit.get("qid"), own) for hit in hits if isinstance(hit, dict)}
    if len(ids) > 1:
        raise UnreadableError(f"its hits are of several queries: {', '.join(sorted(ids)[:3])}", "write a row for each")
    return Request(ids.pop() if ids else own, text, [_candidate(hit) for hit in hits])


def mteb(row: Mapping[str, Any], query_id: str) -> Request:
    """{"query", "positive": [texts], "negative" or "documents": [texts]}, with the ids that MTEB makes of it.

    Documents in the order of a first stage count as positive if they are among those.
    """
    text = _text("query", row["query"])
    query_id = _own_id(row, query_id)
    positive = _list("positive", row["positive"])
    if row.get("documents") is None:
        marked = [(one, 1) for one in positive] + [(one, 0) for one in _list("negative", row.get("negative"))]
    else:
        marked = [(one, int(one in positive)) for one in _list("documents", row["documents"])]
    numbers = {1: 0, 0: 0}
    documents = []
    for one, relevance in marked:
        kind = "apositive" if relevance else "negative"
        document_id = f"{kind}_{query_id}_{numbers[relevance]:05}"
        numbers[relevance] += 1
        text_of = one if isinstance(one, str) else None
        documents.append({"document_id": document_id, "text": text_of, "relevance": relevance})
    return Request(query_id, text, documents)


def openai_batch(row: Mapping[str, Any], query_id: str) -> Request:
    """{"custom_id", "url", "body": {"query", "documents"}}, and the other names of both that the scoring API has."""
    body = row["body"]
    if not isinstance(body, dict):
        raise UnreadableError(f"'body' is {_what(body)}, not an object", "write the request into it")
    names = next((pair for pair in _SIDES if body.keys() >= {*pair}), _SIDES[0])
    queries, documents = (value if isinstance(value, list) else [value] for value in map(body.get, names))
    if len(queries) != 1:
        raise UnreadableError(f"it has {len(queries)} queries", "run-batch answers such requests")
    if documents == [None]:
        raise UnreadableError("its body has no documents", "run-batch answers it with an error")
    text = _text(names[0], queries[0])
    return Request(_id(row["custom_id"], text), text, [_candidate(document) for document in documents])


_SIDES = (
    ("query", "documents"),
    ("queries", "documents"),
    ("queries", "items"),
    ("data_1", "data_2"),
    ("text_1", "text_2"),
)
_ROWS = 1000  # in memory at once while they are numbered
_CANDIDATE = pa.struct({name: pa.string() for name in ("document_id", "title", "text")} | {"score": pa.float64()})
_JUDGED = pa.struct({"document_id": pa.string(), "text": pa.string(), "relevance": pa.int64()})
DIALECTS: dict[DialectName, Dialect] = {
    "rank-llm": Dialect(("query", "candidates", *_OWN_IDS), _CANDIDATE, rank_llm),
    "pyserini": Dialect(("query", "hits", *_OWN_IDS), _CANDIDATE, pyserini),
    "mteb": Dialect(("query", "positive", "negative", "documents", *_OWN_IDS), _JUDGED, mteb),
    "openai-batch": Dialect(("custom_id", "body"), _CANDIDATE, openai_batch),
}


def tell_apart(readers: Sequence[Reader]) -> None:
    """Have ids begin with the name of the file, as the user gave it, where several are of a split of one name."""
    made = [reader for reader in readers if isinstance(reader, DialectReader)]
    splits = Counter(reader.split for reader in made)
    for reader in made:
        if splits[reader.split] > 1:
            reader.split = reader.file


def dialect_of(schema: pa.Schema) -> DialectName | None:
    """The dialect of rows with these columns; None: none, or rows that need no reading."""
    lists = {field.name for field in schema if is_nested(field.type)}
    if {"custom_id", "url", "body"} <= {*schema.names}:
        return "openai-batch"
    if "query" not in schema.names or "document" in schema.names:
        return None
    if "positive" in lists and lists & {"negative", "documents"}:
        return "mteb"
    if "documents" in schema.names:
        return None
    return "rank-llm" if "candidates" in lists else "pyserini" if "hits" in lists else None


def _list(name: str, value: Any) -> Sequence[Any]:
    if not isinstance(value, list):
        raise UnreadableError(
            f"{name!r} is {_what(value)}, not a list",
            "write it again, or pass --in-format jsonl, json or parquet for rows as they are",
        )
    return value


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise UnreadableError(f"the text of {name!r} is {_what(value)}", "write it as a string")
    return value


def _what(value: Any) -> str:
    return "missing" if value is None else f"a JSON {kind_name(value)}"


def _id(value: Any, default: str) -> str:
    """An id as text, of whole numbers too."""
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise UnreadableError(f"an id is a JSON {kind_name(value)}", "write ids as strings")
    return str(value)


def _own_id(row: Mapping[str, Any], default: str) -> str:
    return _id(next((row[name] for name in _OWN_IDS if row[name] is not None), None), default)


def _candidate(value: Any) -> Mapping[str, Any]:
    """A candidate or hit, whose text is its own, or that of its `doc`; one without a text has none."""
    if not isinstance(value, dict):
        return {"text": value if isinstance(value, str) else None}
    own = value.get("doc", value)
    document = own if isinstance(own, dict) else {"text": own}
    field = next((name for name in _TEXTS if isinstance(document.get(name), str)), None)
    number = next((value[name] for name in ID_FIELDS if value.get(name) is not None), None)
    title, score = document.get("title"), value.get("score")
    return {
        "document_id": None if number is None else _id(number, ""),
        "title": title if field in _TITLED and isinstance(title, str) else None,
        "text": None if field is None else document[field],
        "score": float(score) if isinstance(score, int | float) and abs(score) < _LARGEST else None,
    }


class DialectReader:
    """A file or dataset whose rows are in a dialect: with `query_id`, `query` and `documents` after its own columns."""

    def __init__(self, reader: Reader, name: DialectName, split: str) -> None:
        self.file, self.first_number, self.is_ragged = reader.file, reader.first_number, reader.is_ragged
        self._reader = reader
        self._dialect = DIALECTS[name]
        self.split = split  # begins the ids that MTEB makes

    @cached_property
    def schema(self) -> pa.Schema:
        """That of the file, and a query's columns."""
        own = [field for field in self._reader.schema if field.name not in _NAMES]
        kinds = (pa.string(), pa.string(), pa.list_(self._dialect.fields))
        return pa.schema([*own, *zip(_NAMES, kinds, strict=True)])

    def stamp(self) -> Stamp:
        """That of the file."""
        return self._reader.stamp()

    def steps(self, group: str | None, sparse: Collection[str] = ()) -> Iterator[Steps]:
        """Those of the file. Rows are of one query if these are equal as written; those that MTEB numbers never are."""
        if group not in _NAMES:
            yield from self._reader.steps(group, sparse)
            return
        named = usual(self._reader.schema.names, _OWN_IDS if self._numbers_rows else ("query", "custom_id"))
        for steps in self._reader.steps(named, sparse):
            yield steps if named else replace(steps, value=steps.numbers.__getitem__)

    def read(self, span: Span, columns: Sequence[str] | None, shapes: Mapping[str, Shape]) -> Block:
        """The rows of a span; one that is not in the dialect is null, with a fault."""
        wanted = [name for name in self.schema.names if columns is None or name in columns]
        own = [name for name in wanted if name not in _NAMES]
        block, rows = self._rows(span, own, shapes)
        requests, faults = list[Request | None](), dict(block.faults)
        for row, (values, number) in enumerate(zip(rows, block.numbers, strict=True)):
            request = None
            if row not in faults:
                try:
                    request = self._request(values, number)
                except UnreadableError as error:
                    faults[row] = Fault("not-request", str(error), error.hint)
            requests.append(request)
        table = block.table.select([name for name in own if name in block.table.column_names])
        kept: dict[str, Sequence[Any]] = {}
        for name in filter(block.values.__contains__, own):  # also read as JSON, for what is wanted of the column
            carried, more = object_columns([{name: value} for value in block.values[name]], None, shapes, faults)
            table, kept = table.set_column(table.column_names.index(name), name, carried[name]), kept | more
        for name in filter(_NAMES.__contains__, wanted):
            found = [None if request is None else getattr(request, name) for request in requests]
            column = pa.array(found, self.schema.field(name).type)
            # Arrow may have lost the length of a table without columns
            table = table.append_column(name, column) if table.num_columns else pa.table({name: column})
        return replace(block, table=table, faults=dict(sorted(faults.items())), values=kept)

    def close(self) -> None:
        """Close the file."""
        self._reader.close()

    @property
    def _numbers_rows(self) -> bool:
        return self._dialect is DIALECTS["mteb"]

    def _rows(self, span: Span, own: Sequence[str], shapes: Mapping[str, Shape]) -> tuple[Block, list[dict[str, Any]]]:
        """The rows with these columns, and beside them what the dialect needs of each."""
        names = [name for name in self._dialect.columns if name in self._reader.schema.names]
        kinds = {name: shape for name, shape in shapes.items() if name in own}
        block = self._reader.read(
            span, list(dict.fromkeys([*own, *names])), {**kinds, **dict.fromkeys(names, "values")}
        )
        found = [name for name in names if name in block.table.column_names]
        columns = [block.values[name] if name in block.values else json_values(block.table[name]) for name in found]
        nothing = dict.fromkeys(self._dialect.columns)
        values = zip(*columns, strict=True) if columns else repeat((), len(block))  # of lines none of which is JSON
        return block, [nothing | dict(zip(found, row, strict=True)) for row in values]

    def _request(self, row: Mapping[str, Any], number: int) -> Request:
        if not self._numbers_rows:
            return self._dialect.request(row, "")
        if _is_left_out(row) and not any(row[name] is not None for name in _OWN_IDS):
            raise UnreadableError("it has no positive or no negative documents", "MTEB leaves such a query out too")
        index = np.searchsorted(self._numbered, number)
        return self._dialect.request(row, f"{self.split}_query{index}")

    @cached_property
    def _numbered(self) -> NDArray[np.int64]:
        """Numbers of the rows that MTEB numbers, which takes one pass over all of them."""
        numbers, at, first = array("q"), 0, self.first_number
        for steps in self._reader.steps(None):
            for stop in range(_ROWS, len(steps.ends) + _ROWS, _ROWS):
                ends, after = steps.ends[stop - _ROWS : stop], steps.numbers[stop - _ROWS : stop]
                block, rows = self._rows(Span(0, at, int(ends[-1]), len(ends), first), (), {})
                numbers.extend(number for number, row in zip(block.numbers, rows, strict=True) if not _is_left_out(row))
                at, first = int(ends[-1]), int(after[-1])
        return np.array(numbers)


def _is_left_out(row: Mapping[str, Any]) -> bool:
    return not row["positive"] or not (row["negative"] or row["documents"])
