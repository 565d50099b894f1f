"""`score`: the input's rows in the input's order, each with its score."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from batchscore.errors import InputError, UsageError
from batchscore.io.cells import CellColumns, read_cells
from batchscore.io.collection import DOCUMENT, QUERY, Names
from batchscore.io.outputs import Layout
from batchscore.io.schema import document_column, is_documents, pair_columns
from batchscore.io.source import Chunk, Source
from batchscore.io.texts import document_columns
from batchscore.io.units import Unit
from batchscore.jobs.commands.base import BadRow, Counts, columns_line
from batchscore.jobs.parts import Fingerprint, Parts
from batchscore.jobs.rankings import merge_rows
from batchscore.jobs.results import rows_with_scores
from batchscore.types import CUT_NAMES, Fault, Pairs, Scores, good_rows

_DETAILS = ("logit", "num_tokens", "truncated")
_CUT_NAMES = np.array(CUT_NAMES)


@dataclass(frozen=True)
class ScoreCommand:
    """What `score` reads and writes besides the model."""

    name: ClassVar[str] = "score"

    query_column: str = "query"
    document_column: str | None = None  # None: the first with a usual name of one
    score_column: str = "score"
    keep_columns: Sequence[str] | None = None  # None: all
    details: bool = False
    limit: int | None = None
    document_fields: Sequence[str] | None = None  # columns that are joined; None: title and text where both are there
    query_image_column: str | None = None
    query_video_column: str | None = None
    document_image_column: str | None = None
    document_video_column: str | None = None
    query_id_column: str | None = None  # of pairs that are joined by id
    document_id_column: str | None = None

    def joined_names(self) -> Names:
        """Where the ids and texts of a join are, as the options say."""
        query = None if self.query_column == ScoreCommand.query_column else self.query_column
        return Names(self.query_id_column, self.document_id_column, query, self.document_column, self.document_fields)

    def of_joined(self) -> ScoreCommand:
        """The command for rows that are joined, whose columns have fixed names."""
        return replace(self, query_column=QUERY, document_column=DOCUMENT, document_fields=None)

    def check(self, source: Source) -> None:
        """Raise InputError or UsageError for columns that are missing or in the way."""
        if "" in (self.keep_columns or ()):
            raise UsageError("--keep-columns has an empty name", hint="all, none, or names like id,query")
        flags = self._flags(source)
        if self.document_column is None and "documents" in flags and is_documents(source.column_type("documents")):
            message = f"{source.files[0]}: each row lists documents, and score takes one document a row"
            raise InputError(message, hint="rank the documents of each query with rerank")
        source.require(flags)
        self._refuse_clash(self._carried(source, source.column_names()))

    def lines(self, source: Source) -> list[str]:
        """Which columns together are a query or document."""
        queries, documents = self._sides(source)
        found = {} if self.document_column or len(documents.texts) != 1 else {"documents": documents.texts[0]}
        if len(queries.texts) == 1 and queries.texts[0] != self.query_column:
            found = {"queries": queries.texts[0], **found}
        return [*columns_line(found), *queries.lines("query"), *documents.lines("document")]

    def units(self, source: Source, unit_rows: int, *, listwise: bool) -> Iterable[Unit]:
        """Units of `unit_rows` rows."""
        kept = dict.fromkeys(self.keep_columns or (), "--keep-columns")
        return source.units(unit_rows, columns={**kept, **self._flags(source)}, limit=self.limit)

    def load(self, source: Source, unit: Unit) -> ScoredRows:
        """One pair a row."""
        kept, (queries, documents) = self.keep_columns, self._sides(source)
        shapes = {**queries.shapes, **documents.shapes}
        columns = None if kept is None else list(dict.fromkeys([*kept, *shapes]))
        chunk = source.read(unit, columns, shapes)
        carried = self._carried(source, chunk.table.column_names)
        self._refuse_clash(carried)
        faults = chunk.faults()
        pairs = Pairs(read_cells(chunk, queries, faults), read_cells(chunk, documents, faults))
        good = good_rows(len(chunk.table), faults)
        table = chunk.table.select(carried)
        bad = [BadRow.of(chunk, row, faults[row]) for row in sorted(faults)]
        return ScoredRows(self, unit, pairs.rows(good) if faults else pairs, bad, chunk, good, table)

    def load_pairs(self, source: Source, unit: Unit) -> ScoredRows:
        """The rows of a unit, without the columns that stay beside their scores."""
        return replace(self, keep_columns=()).load(source, unit)

    def columns(self, scores: Scores) -> dict[str, NDArray[Any]]:
        """The columns that scoring adds."""
        columns: dict[str, NDArray[Any]] = {self.score_column: scores.score[:, 0]}
        if self.details:
            if scores.logit is not None:
                columns["logit"] = scores.logit[:, 0]
            columns |= {"num_tokens": scores.num_tokens, "truncated": _CUT_NAMES[scores.cut]}
        return columns

    def merged(self, parts: Parts, units: Sequence[int], scratch: str, layout: Layout) -> Generator[pa.Table]:
        """Rows in input order."""
        return merge_rows(parts, units)

    def finished(self, part: pa.Table, job: Fingerprint) -> Iterable[pa.Table]:
        """The rows."""
        return [part]

    def _sides(self, source: Source) -> tuple[CellColumns, CellColumns]:
        """The columns that together are a row's query, and those of its document."""
        names, fields = source.column_names(), self.document_fields
        query, text = self.query_column, self.document_column or document_column(names)
        is_unnamed = query == ScoreCommand.query_column and self.document_column is None and fields is None
        if is_unnamed and (pair := pair_columns(names)) is not None:
            query, text = pair
        queries = CellColumns.chosen(
            (query,),
            self.query_image_column,
            self.query_video_column,
            names,
            is_usual=self.query_column == ScoreCommand.query_column,
        )
        documents = CellColumns.chosen(
            document_columns(text, names, fields),
            self.document_image_column,
            self.document_video_column,
            names,
            is_usual=fields is None and self.document_column is None,
        )
        return queries, documents

    def _flags(self, source: Source) -> dict[str, str]:
        """The columns to read, and the option that names each."""
        queries, documents = self._sides(source)
        flag = "--document-column" if self.document_fields is None else "--document-fields"
        texts = dict.fromkeys(queries.texts, "--query-column") | dict.fromkeys(documents.texts, flag)
        return {**texts, **queries.flags("query-"), **documents.flags("document-")}

    def _carried(self, source: Source, names: Sequence[str]) -> list[str]:
        """The columns of these that stay beside the scores."""
        if self.keep_columns is not None:
            return list(self.keep_columns)
        return [name for name in names if name not in source.looked_up]

    def _refuse_clash(self, carried: Sequence[str]) -> None:
        added = [self.score_column, *(_DETAILS if self.details else ())]
        if len(set(added)) < len(added):
            raise UsageError(f"--details adds a column {self.score_column!r} too", hint="pass another --score-column")
        clash = next((name for name in added if name in carried), None)
        if clash is not None:
            instead = "pass --score-column with another name" if clash == self.score_column else "drop --details"
            raise UsageError(
                f"the input already has a column {clash!r}, which the output needs",
                hint=f"{instead}, or leave the column out with --keep-columns",
            )


@dataclass(frozen=True, slots=True)
class ScoredRows:
    """The rows of a unit."""

    command: ScoreCommand
    unit: Unit
    pairs: Pairs
    bad_rows: Sequence[BadRow]
    chunk: Chunk
    rows: NDArray[np.int64]  # [pairs], which row each is
    carried: pa.Table  # the columns that stay beside the scores

    def bad_row(self, pair: int, fault: Fault) -> BadRow:
        """A pair's fault as that of its row."""
        return BadRow.of(self.chunk, int(self.rows[pair]), fault)

    def table(self, pairs: NDArray[np.int64], scores: Scores, *, keep_bad: bool) -> tuple[pa.Table, Counts]:
        """The rows with their scores; bad ones are left out, or stay without a score."""
        return rows_with_scores(self.carried, self.rows[pairs], self.command.columns(scores), keep_others=keep_bad), {}

    def before(self, table: pa.Table, row: int) -> pa.Table:
        """That many rows."""
        return table.slice(0, row)
