"""`encode`: the input's rows in the input's order, each with the vector, or the matrix, that scores are made of."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from batchscore.errors import InputError, UsageError
from batchscore.io.cells import CellColumns, read_cells
from batchscore.io.digests import digests_of
from batchscore.io.encodings import DIGEST, MATRIX, VECTOR
from batchscore.io.outputs import Layout
from batchscore.io.schema import ID_FIELDS, QUERY_ID_FIELDS, text_field
from batchscore.io.source import Chunk, Source
from batchscore.io.texts import document_columns
from batchscore.io.units import Unit
from batchscore.jobs.commands.base import BadRow, Counts
from batchscore.jobs.parts import Fingerprint, Parts, encoding_fingerprint
from batchscore.jobs.rankings import merge_rows
from batchscore.jobs.records import as_json
from batchscore.jobs.results import matrices, rows_with_scores, vectors
from batchscore.types import CUT_NAMES, Encodings, Fault, OneSide, Side, good_rows

_ADDED = (VECTOR, MATRIX, DIGEST, "num_tokens", "truncated")
# Vectors are some forty times as large as their texts, matrices some two hundred: a unit of either fits into memory.
_UNIT_BYTES = 2 << 20
_IDS: Mapping[Side, Sequence[str]] = {
    "query": (*QUERY_ID_FIELDS, "id", "_id"),
    "document": ("document_id", *ID_FIELDS),
}
_CUT_NAMES = np.array(CUT_NAMES)


@dataclass(frozen=True, slots=True)
class Encoded:
    """The encodings of some rows."""

    encodings: Encodings
    is_matrix: bool  # a vector for each token, not for each row

    def column(self) -> tuple[str, pa.Array]:
        """(its name, a value for each row)."""
        return (MATRIX, matrices(self.encodings)) if self.is_matrix else (VECTOR, vectors(self.encodings))


@dataclass(frozen=True)
class EncodeCommand:
    """What `encode` reads and writes besides the model."""

    name: ClassVar[str] = "encode"

    side: Side = "document"
    text_column: str | None = None  # None: a column with a usual name of one
    id_column: str | None = None  # None: likewise, if there is one
    keep_columns: Sequence[str] | None = ()  # beside the id; None: all
    limit: int | None = None
    document_fields: Sequence[str] | None = None  # columns that are joined; None: title and text where both are there
    image_column: str | None = None
    video_column: str | None = None

    def check(self, source: Source) -> None:
        """Raise InputError or UsageError for columns that are missing or in the way."""
        if "" in (self.keep_columns or ()):
            raise UsageError("--keep-columns has an empty name", hint="all, none, or names like url,title")
        if self.text_column is not None and self.document_fields is not None:
            raise UsageError("--text-column has no effect beside --document-fields", hint="drop one of them")
        source.require(self._flags(source))
        self._refuse_clash(source.column_names() if self.keep_columns is None else self._carried(source))

    def lines(self, source: Source) -> list[str]:
        """Which columns are read."""
        columns, ids = self._cells(source), self._ids(source)
        [line] = columns.lines("text") or [f"text     {columns.texts[0]}"]
        return [f"{line}; {f'ids in {ids[0]}' if ids else 'no ids'}"]

    def units(self, source: Source, unit_rows: int, *, listwise: bool) -> Iterable[Unit]:
        """Units of `unit_rows` rows, fewer where these are long."""
        kept = dict.fromkeys(self.keep_columns or (), "--keep-columns")
        columns = {**kept, **self._flags(source)}
        return source.units(unit_rows, columns=columns, size=_UNIT_BYTES, limit=self.limit)

    def load(self, source: Source, unit: Unit) -> EncodedRows:
        """One text, or what stands for it, a row."""
        cells, carried = self._cells(source), self._carried(source)
        columns = None if self.keep_columns is None else list(dict.fromkeys([*carried, *cells.shapes]))
        chunk = source.read(unit, columns, cells.shapes)
        table = chunk.table if self.keep_columns is None else chunk.table.select(carried)
        self._refuse_clash(table.column_names)
        faults = chunk.faults()
        side = OneSide(self.side, read_cells(chunk, cells, faults))
        good = good_rows(len(chunk.table), faults)
        bad = [BadRow.of(chunk, row, faults[row]) for row in sorted(faults)]
        return EncodedRows(unit, side.rows(good) if faults else side, bad, chunk, good, table)

    def load_pairs(self, source: Source, unit: Unit) -> EncodedRows:
        """The texts of a unit, without the columns that stay beside them."""
        return replace(self, keep_columns=()).load(source, unit)

    def merged(self, parts: Parts, units: Sequence[int], scratch: str, layout: Layout) -> Generator[pa.Table]:
        """Rows in input order; what encoded them is in the metadata, for those who look texts up in the file."""
        for table in merge_rows(parts, units):
            yield self._noted(table, parts.fingerprint)

    def finished(self, part: pa.Table, job: Fingerprint) -> Iterable[pa.Table]:
        """The rows, with the same metadata."""
        return [self._noted(part, job)]

    def _noted(self, table: pa.Table, job: Fingerprint) -> pa.Table:
        return table.replace_schema_metadata(
            {"batchscore": as_json({"encoding": encoding_fingerprint(job, self.side)})}
        )

    def _cells(self, source: Source) -> CellColumns:
        """The columns that together are what is encoded."""
        return CellColumns(self._texts(source), self.image_column, self.video_column)

    def _texts(self, source: Source) -> tuple[str, ...]:
        """The columns that together are a row's text."""
        names, fields = source.column_names(), self.document_fields
        if fields is not None:
            return tuple(fields)
        column = self.text_column or _usual_text(self.side, names)
        if column is None and (self.image_column or self.video_column):
            return ()
        if column is None:
            raise InputError(
                f"{source.files[0]}: no column has a usual name of a {self.side}'s text; columns: {', '.join(names)}",
                hint="pass --text-column with one of these columns",
            )
        return document_columns(column, names, None) if self.side == "document" else (column,)

    def _ids(self, source: Source) -> list[str]:
        """The column with the ids, if there is one."""
        usual = (name for name in _IDS[self.side] if name in source.column_names())
        column = self.id_column or next(usual, None)
        return [] if column is None else [column]

    def _carried(self, source: Source) -> list[str]:
        """The columns that stay beside the encodings, where these are not all."""
        return list(dict.fromkeys([*self._ids(source), *(self.keep_columns or ())]))

    def _flags(self, source: Source) -> dict[str, str]:
        """The columns to read, and the option that names each."""
        flag = "--text-column" if self.document_fields is None else "--document-fields"
        ids = dict.fromkeys(self._ids(source), "--id-column")
        cells = self._cells(source)
        return {**ids, **dict.fromkeys(cells.texts, flag), **cells.flags()}

    def _refuse_clash(self, carried: Sequence[str]) -> None:
        clash = next((name for name in _ADDED if name in carried), None)
        if clash is not None:
            raise UsageError(
                f"the input already has a column {clash!r}, which the output needs",
                hint="rename it, or leave it out with --keep-columns",
            )


def _usual_text(side: Side, names: Sequence[str]) -> str | None:
    """The column that has the texts by its name."""
    if side == "document":
        return text_field(names)
    return next((name for name in ("query", "text") if name in names), None)


@dataclass(frozen=True, slots=True)
class EncodedRows:
    """The rows of a unit."""

    unit: Unit
    pairs: OneSide
    bad_rows: Sequence[BadRow]
    chunk: Chunk
    rows: NDArray[np.int64]  # [texts], which row each is of
    carried: pa.Table  # the columns that stay beside the encodings

    def bad_row(self, pair: int, fault: Fault) -> BadRow:
        """A text's fault as that of its row."""
        return BadRow.of(self.chunk, int(self.rows[pair]), fault)

    def table(self, pairs: NDArray[np.int64], scores: Encoded, *, keep_bad: bool) -> tuple[pa.Table, Counts]:
        """The rows with their encodings; bad ones are left out, or stay without one."""
        texts, encodings = self.pairs.texts, scores.encodings
        digests = digests_of(texts.values)[texts.codes[pairs]]
        name, values = scores.column()
        columns: dict[str, Any] = {
            name: values,
            DIGEST: pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), len(digests), [None, pa.py_buffer(digests)]),
            "num_tokens": encodings.tokens,
            "truncated": _CUT_NAMES[encodings.cut],
        }
        return rows_with_scores(self.carried, self.rows[pairs], columns, keep_others=keep_bad), {}

    def before(self, table: pa.Table, row: int) -> pa.Table:
        """That many rows."""
        return table.slice(0, row)
