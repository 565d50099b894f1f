"""Pairs that are joined here: a run or judgements name queries and documents, whose texts are looked up unit by unit.

The rows are those of the run, so units, locations and bad rows are its own. A row whose id nobody has is a fault of
that row. The price of a look-up is some microseconds a document.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from batchscore.errors import InputError
from batchscore.io.block import Block
from batchscore.io.collection import (
    DOCUMENT,
    DOCUMENT_ID,
    QUERY,
    QUERY_ID,
    Collection,
    Corpus,
    IdsAsTexts,
    Lookup,
    Names,
    OverCorpus,
    Queries,
    Texts,
    Wrong,
)
from batchscore.io.product import ProductSource
from batchscore.io.schema import Shape, is_nested, require_columns
from batchscore.io.source import UNIT_BYTES, Chunk, FileAddresses, FileSource
from batchscore.io.texts import encode_texts
from batchscore.io.units import Unit
from batchscore.io.values import as_text, encode
from batchscore.media.policy import MediaPolicy
from batchscore.types import Faults, offsets_of

Pairs = Literal["run", "qrels", "all"]
_JOINED = (QUERY_ID, DOCUMENT_ID, QUERY, DOCUMENT)
_RENAMED = {  # what the numbers of the first stage, and of judgements, are called
    "run": {"rank": "run_rank", "score": "run_score"},
    "qrels": {"score": "relevance"},
}
_LISTS = ("corpus-ids", "corpus_ids", "document_ids", "doc_ids", "docids", "pids")  # of documents
_LIST_SHARE = 64  # rows of a unit that a list counts as
_ROWS = 65_536  # of a run that are looked at together
_NO_ID = "every pair needs the ids of its query and its document"


@dataclass(frozen=True, slots=True)
class JoinedAddresses:
    """What is joined, and how."""

    pairs: Pairs
    listed: FileAddresses | None  # the run or the judgements; of all pairs, judgements that choose the queries
    queries: FileAddresses
    corpus: FileAddresses
    names: Names
    depth: int | None  # documents of each query, the first ones of its run
    folder: str  # of the index

    def open(self) -> JoinedSource | ProductSource:
        """Raises as `open_source`, and InputError for columns that are missing."""
        listed = None if self.listed is None else self.listed.open()
        queries, corpus = self.queries.open(), self.corpus.open()
        self._require_named([source for source in (listed, queries, corpus) if source is not None])
        collection = Collection(Queries(queries, self.names), Corpus(corpus, self.names, self.folder))
        if self.pairs == "all":
            return ProductSource(self, collection, None if listed is None else _judged(listed, self.names))
        assert listed is not None
        return JoinedSource(self, listed, collection)

    def _require_named(self, sources: Sequence[FileSource]) -> None:
        """Raise InputError for an id's column that an option names and no file has."""
        named = {"--query-id-column": self.names.query_id, "--document-id-column": self.names.document_id}
        for flag, name in named.items():
            if name is not None and all(name not in source.column_names() for source in sources):
                listing = "; ".join(f"{source.files[0]} has {', '.join(source.column_names())}" for source in sources)
                raise InputError(f"no file has a column {name!r}: {listing}", hint=f"pass {flag} with one of these")


class JoinedSource(OverCorpus):
    """The rows of a run or of judgements, with the texts that they name.

    Columns: `query_id` and `document_id` whatever the file calls them, `run_rank` and `run_score` (of judgements
    `relevance`), the file's other columns, `query` and `document`. A row with a list of ids is one for each of them.
    """

    looked_up = frozenset((QUERY, DOCUMENT))
    is_streamed = False

    def __init__(
        self, addresses: JoinedAddresses, rows: FileSource, collection: Collection, lookup: Lookup | None = None
    ) -> None:
        self.on_step: Callable[[], None] = lambda: None
        self._addresses, self._rows, self._collection = addresses, rows, collection
        self._lookup: Lookup = lookup or collection
        names, schema = addresses.names, rows.column_names()
        self._query_id = _chosen(rows, names.query_ids())
        lists = dict.fromkeys(_LISTS, "--document-id-column")
        self._document_id = _chosen(rows, names.document_ids() | lists)
        self._is_listed = is_nested(rows.column_type(self._document_id))
        renamed = {before: after for before, after in _RENAMED[addresses.pairs].items() if after not in schema}
        self._renamed = renamed | {self._query_id: QUERY_ID, self._document_id: DOCUMENT_ID}
        self._queries_left: int | None = None  # without candidates

    @property
    def files(self) -> list[str]:
        """As the user named them."""
        return self._rows.files

    @property
    def media(self) -> MediaPolicy:
        """There are none."""
        return self._rows.media

    def addresses(self) -> JoinedAddresses:
        """By which another process opens the same."""
        return self._addresses

    def fingerprint(self) -> list[dict[str, Any]]:
        """Name, bytes and time of each file, what it is for, and which columns and rows are read."""
        own = {"role": self._addresses.pairs, "columns": [self._query_id, self._document_id]}
        depth = {"depth": self._addresses.depth} if self._addresses.depth is not None else {}
        rows = [{**file, **own, **depth} for file in self._rows.fingerprint()]
        return [*rows, *self._collection.queries.fingerprint(), *self._collection.corpus.fingerprint()]

    def column_names(self) -> list[str]:
        """Columns of the first file under their names here, and the two texts."""
        return [*dict.fromkeys(map(self._name, self._carried())), QUERY, DOCUMENT]

    def _carried(self) -> list[str]:
        """Columns of the first file that are not in the way of a text."""
        return [name for name in self._rows.column_names() if self._name(name) not in self.looked_up]

    def _name(self, column: str) -> str:
        return self._renamed.get(column, column)

    def _own_name(self, column: str) -> str:
        """What the file calls a column."""
        return next((before for before, after in self._renamed.items() if after == column), column)

    def column_type(self, column: str) -> pa.DataType:
        """Ids and texts are strings."""
        return pa.string() if column in _JOINED else self._rows.column_type(self._own_name(column))

    def require(self, flags: Mapping[str, str]) -> None:
        """As of files."""
        require_columns(self.column_names(), flags, self.files[0])

    def require_runs(self, column: str, limit: int | None) -> None:
        """As of files."""
        self._rows.on_step = self.on_step
        self._rows.require_runs(self._own_name(column), limit)

    def units(
        self,
        rows: int,
        *,
        columns: Mapping[str, str] | None = None,
        size: int = UNIT_BYTES,
        group: str | None = None,
        stretch: float = 2,
        limit: int | None = None,
    ) -> list[Unit]:
        """As of files; a unit is full at `size` bytes of documents too, of which a sample tells how long one is."""
        self._rows.on_step = self.on_step
        self.require(columns or {})
        keep = self._first_of_each_query()
        rows = max(1, min(rows, size // self._collection.corpus.average_bytes))
        if self._is_listed:
            rows = max(1, rows // _LIST_SHARE)
        needed = {self._query_id: "--query-id-column", self._document_id: "--document-id-column"}
        group = None if group is None else self._own_name(group)
        return self._rows.units(rows, columns=needed, group=group, stretch=stretch, limit=limit, keep=keep)

    # ---- the first documents of each query

    def _first_of_each_query(self) -> NDArray[np.bool_] | None:
        """bool [rows]: which rows are within the depth; None: all. Queries without candidates are counted on the way.

        Memory holds some 40 bytes a row for the depth, and nothing without it.
        """
        depth = None if self._is_listed else self._addresses.depth
        by, sign = self._order() if depth is not None else (None, 0)
        numbers: dict[str, int] = {}
        groups, keys = [np.empty(0, np.int32)], [np.empty(0)]
        columns = [self._query_id, *([by] if by else [])]
        with closing(self._rows):
            for unit in self._rows.units(_ROWS):
                self.on_step()
                chunk = self._rows.read(unit, columns, {})
                codes, ids = encode(as_text(chunk.table[self._query_id]).combine_chunks())
                known = np.array([numbers.setdefault(one, len(numbers)) for one in ids.to_pylist()] + [-1], np.int32)
                if depth is not None:
                    groups.append(known[codes.fill_null(-1).to_numpy()])
                    keys.append(sign * _numbers(chunk, by) if by else np.zeros(len(chunk.table)))
        self._queries_left = sum(one not in numbers for one in self._collection.queries.ids)
        return None if depth is None else _first(np.concatenate(groups), np.concatenate(keys), depth)

    def _order(self) -> tuple[str | None, int]:
        """(the score or the rank of the first stage, if the run has it; whether the best is the least, 1, or -1)."""
        for column, sign in (("run_score", -1), ("run_rank", 1)):
            if (own := self._own_name(column)) in self._rows.column_names():
                return own, sign
        return None, 0

    # ---- reading

    def read(self, unit: Unit, columns: Sequence[str] | None, shapes: Mapping[str, Shape]) -> Chunk:
        """As of files."""
        wanted = None if columns is None else list(dict.fromkeys([*columns, *shapes]))
        chunk = self._rows.read(unit, None if wanted is None else self._needed(wanted), {})
        if self._is_listed:
            chunk = _exploded(chunk, self._document_id, self._addresses.depth)
        names = [name for name in chunk.table.column_names if self._name(name) not in self.looked_up]
        table = chunk.table.select(names).rename_columns([*map(self._name, names)])
        faults = chunk.faults()
        for id_column, own, text, find in (
            (QUERY_ID, self._query_id, QUERY, self._lookup.find_queries),
            (DOCUMENT_ID, self._document_id, DOCUMENT, self._lookup.find_documents),
        ):
            ids = as_text(table[id_column])
            texts, wrong = _looked_up(ids, find, own)
            if unit.index == 0 and len(ids) and len(wrong) == len(ids):
                self._refuse_foreign(text, ids, wrong)
            faults = wrong | faults
            table = table.set_column(table.column_names.index(id_column), id_column, ids)
            table = table.append_column(text, texts)
        table = table if wanted is None else table.select(wanted)
        return Chunk(table, _with_faults(chunk.blocks, table, faults), chunk.finders)

    def _needed(self, wanted: Sequence[str]) -> list[str]:
        """The file's columns for these."""
        own = [self._own_name(name) for name in wanted if name not in self.looked_up]
        return list(dict.fromkeys([self._query_id, self._document_id, *own]))

    def _refuse_foreign(self, text: str, ids: pa.ChunkedArray, wrong: Wrong) -> None:
        """Raise InputError if no id of the first unit is known: the files do not belong together."""
        if {fault.code for fault in wrong.values()} != {"unknown-id"}:
            return
        collection = self._collection
        if text == QUERY:
            file, flag, known = collection.queries.file, "--queries", collection.queries.ids[0]
        else:
            file, flag = collection.corpus.file, "--corpus"
            known = next(filter(None, collection.documents(0, 1000).ids), "no id")
        raise InputError(
            f"no {text} of {self.files[0]} is in {file}: the first are {ids[0].as_py()!r} and {known!r}",
            hint=f"name the {'queries' if text == QUERY else 'corpus'} of this {self._addresses.pairs} with {flag}",
        )

    def close(self) -> None:
        """Close the run and the index."""
        self._rows.close()
        self._collection.corpus.close()

    # ---- before the index is there

    def outline(self) -> JoinedSource:
        """The same with ids for texts."""
        return JoinedSource(self._addresses, self._rows, self._collection, IdsAsTexts())

    def lines(self) -> list[str]:
        """What is joined, and which queries and documents cannot be."""
        line = self._collection.queries.line()
        if self._queries_left:
            line += f"; {self._queries_left:,} of them have no documents in {self.files[0]}"
        return [line, self._collection.corpus.line()]


def _chosen(rows: FileSource, names: Mapping[str, str]) -> str:
    """The first of these columns that is there."""
    found = next((name for name in names if name in rows.column_names()), None)
    if found is None:
        flag = next(iter(names.values()))
        side = "query" if flag == "--query-id-column" else "document"
        listing = ", ".join(rows.column_names())
        raise InputError(
            f"{rows.files[0]} has no column with the id of a {side}; columns: {listing}", hint=f"pass {flag}"
        )
    return found


def _judged(rows: FileSource, names: Names) -> list[str]:
    """The ids of queries that are judged."""
    column, ids = _chosen(rows, names.query_ids()), dict[str, None]()
    with closing(rows):
        for unit in rows.units(_ROWS):
            read = as_text(rows.read(unit, [column], {}).table[column])
            ids |= dict.fromkeys(read.drop_null().unique().to_pylist())
    return list(ids)


def _numbers(chunk: Chunk, column: str) -> NDArray[np.float64]:
    """float64 [rows], NaN where there is none; InputError for what is no number."""
    values = chunk.table[column]
    try:
        return values.cast(pa.float64()).fill_null(np.nan).to_numpy()  # type: ignore[no-any-return]
    except pa.ArrowException as error:
        row = next(row for row, value in enumerate(values.to_pylist()) if not _is_number(value))
        message = f"{chunk.locate(row)}: column {column!r} is {values[row].as_py()!r}, not a number"
        raise InputError(message, hint="--depth needs it to know what comes first") from error


def _is_number(value: str | None) -> bool:
    try:
        return value is None or float(value) is not None
    except ValueError:
        return False


def _first(groups: NDArray[np.int32], keys: NDArray[np.float64], depth: int) -> NDArray[np.bool_]:
    """bool [rows]: those with one of the `depth` smallest keys of their group, the first of equals; of group -1 all."""
    order = np.lexsort((keys, groups))
    grouped = groups[order]
    starts = np.flatnonzero(np.diff(grouped, prepend=-2))
    position = np.arange(len(order)) - np.repeat(starts, np.diff(starts, append=len(order)))
    keep = np.zeros(len(order), bool)
    keep[order[(position < depth) | (grouped < 0)]] = True
    return keep


def _looked_up(
    ids: pa.ChunkedArray, find: Callable[[Sequence[str]], tuple[Texts, Wrong]], column: str
) -> tuple[pa.DictionaryArray, Faults]:
    """(the text of each row's id, what is wrong with rows that have none); the file calls the ids `column`."""
    faults: Faults = {}
    cells = encode_texts(ids, lambda row: column, faults)
    faults = {row: replace(fault, hint=_NO_ID) for row, fault in faults.items()}
    texts, wrong = find([str(one) for one in cells.values])
    for row in np.flatnonzero(np.isin(cells.codes, list(wrong))).tolist():
        faults.setdefault(row, replace(wrong[int(cells.codes[row])], column=column))
    has_none = np.zeros(len(cells.codes), bool)
    has_none[list(faults)] = True
    distinct = pa.array([text or "" for text in texts], pa.large_string())
    return pa.DictionaryArray.from_arrays(pa.array(cells.codes, mask=has_none), distinct), faults


def _exploded(chunk: Chunk, column: str, depth: int | None) -> Chunk:
    """A row for each id of the lists, the first `depth` of each; a row without a list stays, without an id."""
    lists = chunk.table[column].combine_chunks()
    lists = lists if depth is None else pc.list_slice(lists, 0, depth)
    without = np.flatnonzero(lists.is_null())
    parents = np.concatenate([pc.list_parent_indices(lists).to_numpy(), without]).astype(np.int64)
    order = np.argsort(parents, kind="stable")
    parents, size = parents[order], len(parents) - len(without)
    ids = pc.list_flatten(lists).take(pa.array(order, mask=order >= size))
    table = chunk.table.take(pa.array(parents))
    table = table.set_column(table.column_names.index(column), column, ids)
    starts = offsets_of([len(block) for block in chunk.blocks])
    bounds = np.searchsorted(parents, starts).tolist()
    blocks = []
    for block, start, stop, first in zip(chunk.blocks, bounds, bounds[1:], starts.tolist(), strict=False):
        inside = parents[start:stop] - first
        faults = {row: block.faults[parent] for row, parent in enumerate(inside.tolist()) if parent in block.faults}
        numbers = np.asarray(block.numbers)[inside]
        blocks.append(replace(block, table=table.slice(start, stop - start), numbers=numbers, faults=faults))
    return Chunk(table, tuple(blocks), chunk.finders)


def _with_faults(blocks: Sequence[Block], table: pa.Table, faults: Faults) -> tuple[Block, ...]:
    """The blocks with the rows of a table, and with all faults."""
    starts = offsets_of([len(block) for block in blocks]).tolist()
    return tuple(
        replace(
            block,
            table=table.slice(start, stop - start),
            faults={row - start: fault for row, fault in sorted(faults.items()) if start <= row < stop},
            values={},
        )
        for block, start, stop in zip(blocks, starts, starts[1:], strict=False)
    )
