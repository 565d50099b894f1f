"""Every query against every document of a corpus, which is never written out.

A unit is a tile: some queries against consecutive documents. Texts are read once a tile and not once a pair, and the
corpus is gone through once for every so many queries. The price is that rows come in the order of tiles.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from batchscore.errors import InputError
from batchscore.io.block import Block
from batchscore.io.collection import DOCUMENT, DOCUMENT_ID, QUERY, QUERY_ID, Collection, IdsAsTexts, Lookup, OverCorpus
from batchscore.io.schema import Shape, require_columns
from batchscore.io.source import UNIT_BYTES, Chunk
from batchscore.io.units import Span, Unit
from batchscore.media.find import MediaFinder
from batchscore.media.policy import MediaPolicy

if TYPE_CHECKING:
    from batchscore.io.joined import JoinedAddresses

# More would mean fewer passes over the corpus and larger parts: of every query in it a part has the best N documents.
_QUERIES = 32


class ProductSource(OverCorpus):
    """All pairs of some queries and all documents.

    Columns: `query_id`, `document_id`, `query`, `document`.

    Args:
        addresses: by which another process opens the same.
        collection: the queries and documents.
        judged: the ids of the queries to take; None: all.
    """

    looked_up = frozenset((QUERY, DOCUMENT))
    is_streamed = False

    def __init__(
        self,
        addresses: JoinedAddresses,
        collection: Collection,
        judged: Sequence[str] | None,
        lookup: Lookup | None = None,
    ) -> None:
        self.on_step: Callable[[], None] = lambda: None
        self._addresses, self._collection, self._judged = addresses, collection, judged
        self._lookup: Lookup = lookup or collection
        wanted = collection.queries.ids if judged is None else set(judged)
        self._ids = [one for one in collection.queries.ids if judged is None or one in wanted]
        if not self._ids:
            message = f"no query that is judged is in {collection.queries.file}"
            raise InputError(message, hint="see that --qrels and --queries belong together")

    @property
    def files(self) -> list[str]:
        """As the user named them."""
        return [self._collection.queries.file, self._collection.corpus.file]

    @property
    def media(self) -> MediaPolicy:
        """There are none."""
        return self._addresses.corpus.media

    def addresses(self) -> JoinedAddresses:
        """By which another process opens the same."""
        return self._addresses

    def fingerprint(self) -> list[dict[str, Any]]:
        """Name, bytes and time of each file, and what it is for."""
        listed = self._addresses.listed
        judged = [] if listed is None else [{**file, "role": "judged"} for file in listed.open().fingerprint()]
        return [*judged, *self._collection.queries.fingerprint(), *self._collection.corpus.fingerprint()]

    def column_names(self) -> list[str]:
        """Ids and texts."""
        return [QUERY_ID, DOCUMENT_ID, QUERY, DOCUMENT]

    def column_type(self, column: str) -> pa.DataType:
        """All are strings."""
        return pa.string() if column in self.column_names() else pa.null()

    def require(self, flags: Mapping[str, str]) -> None:
        """As of files."""
        require_columns(self.column_names(), flags, self.files[1])

    def require_runs(self, column: str, limit: int | None) -> None:
        """A model that reads all documents of a query together gets tiles of one query."""

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
        """Tiles of at most so many rows, and at most so many bytes of documents, unless a query must not be divided."""
        self.require(columns or {})
        documents, left = self._collection.corpus.count(), math.inf if limit is None else limit
        queries, tall = len(self._ids), min(_QUERIES, len(self._ids), rows)
        wide = max(1, min(documents, rows // tall, size // self._collection.corpus.average_bytes))
        tall = min(queries, max(tall, rows // wide))
        if math.isinf(stretch):
            tall, wide = 1, max(1, documents)
        units: list[Unit] = []
        for top in range(0, queries, tall):
            for start in range(0, documents, wide):
                bottom, stop = min(top + tall, queries), min(start + wide, documents)
                count = int(min((bottom - top) * (stop - start), left))
                if count:
                    units.append(_tile(len(units), top, bottom, start, stop, count))
                left -= count
        return units or [_tile(0, 0, 0, 0, 0, 0)]

    def read(self, unit: Unit, columns: Sequence[str] | None, shapes: Mapping[str, Shape]) -> Chunk:
        """The rows of a tile, query by query."""
        queries, documents = unit.spans
        ids = self._ids[queries.start : queries.stop]
        texts, wrong = self._lookup.find_queries(ids)
        rows = self._lookup.documents(documents.start, documents.stop)
        row, width = np.arange(unit.rows), max(1, len(rows.ids))
        left, right = row // width, row % width
        table = pa.table(
            {
                QUERY_ID: pa.array(ids, pa.string()).take(pa.array(left)),
                DOCUMENT_ID: pa.array(rows.ids, pa.string()).take(pa.array(right)),
                QUERY: _repeated(texts, left),
                DOCUMENT: _repeated(rows.texts, right),
            }
        )
        wanted = list(dict.fromkeys([*(table.column_names if columns is None else columns), *shapes]))
        table = table.select(wanted)
        blocks = []
        for query in range(len(ids)):
            for start, stop, file, counts_in in rows.files:
                first = query * width + start
                part = table.slice(first, stop - start)
                faults = {row - start: fault for row, fault in rows.faults.items() if start <= row < stop}
                if query in wrong:
                    faults = dict.fromkeys(range(stop - start), replace(wrong[query], column=QUERY_ID))
                faults = {row: faults[row] for row in sorted(faults) if row < len(part)}
                blocks.append(Block(part, file, rows.numbers[start:stop][: len(part)], counts_in, faults))
        finder = MediaFinder(self.media)
        return Chunk(table, tuple(blocks), (finder,) * len(blocks))

    def close(self) -> None:
        """Close the index."""
        self._collection.corpus.close()

    def outline(self) -> ProductSource:
        """The same with numbers for documents."""
        return ProductSource(self._addresses, self._collection, self._judged, IdsAsTexts())

    def lines(self) -> list[str]:
        """What is paired, and which queries and documents cannot be."""
        queries = self._collection.queries.line()
        if self._judged is not None:
            missing = len(set(self._judged) - set(self._ids))
            queries += f"; {len(self._ids):,} of them are judged"
            queries += f", {missing:,} more that are judged are not there" if missing else ""
        return [queries, self._collection.corpus.line()]


def _tile(index: int, top: int, bottom: int, start: int, stop: int, rows: int) -> Unit:
    """Queries from `top` to `bottom` against documents from `start` to `stop`; the last rows may be left out."""
    return Unit(index, (Span(0, top, bottom, 0, top), Span(1, start, stop, rows, start)))


def _repeated(texts: Sequence[str | None], codes: NDArray[np.int64]) -> pa.DictionaryArray:
    """The texts of these rows; null where there is none."""
    has_none = np.array([text is None for text in texts], bool)[codes]
    distinct = pa.array([text or "" for text in texts], pa.large_string())
    return pa.DictionaryArray.from_arrays(pa.array(codes.astype(np.int32), mask=has_none), distinct)
