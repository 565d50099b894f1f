"""Test collections of the package ir_datasets, by its names: documents, queries, judgements and some runs.

The package fetches and unpacks what it does not have yet, into a folder of its own. Its iterators start at the first
record only, so a span is reached through all before it, as in a compressed file.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import islice
from typing import Any, Literal

import pyarrow as pa

from batchscore.errors import InputError, MissingDependencyError, NotFoundError, first_line
from batchscore.io.block import Block, RowCursor, Stamp
from batchscore.io.schema import Shape, join
from batchscore.io.units import Span, Steps, count_steps, table_steps
from batchscore.io.values import empty_table

PREFIX = "irds:"
Kind = Literal["docs", "queries", "qrels", "scoreddocs"]  # as the package calls them
_ROWS = 4096  # in a table
_TYPES = {str: pa.string(), int: pa.int64(), float: pa.float64()}


def load(name: str) -> Any:
    """The dataset of this name; raises MissingDependencyError and NotFoundError."""
    try:
        import ir_datasets
    except ImportError as error:
        message = f"{name} is a name of ir_datasets, which is not installed"
        raise MissingDependencyError(message, hint="pip install 'batchscore[ir-datasets]'") from error
    try:
        return ir_datasets.load(name.removeprefix(PREFIX))
    except Exception as error:  # KeyError for an unknown name, and anything from what is fetched
        message = f"{name} is no dataset of ir_datasets: {first_line(error)}"
        raise NotFoundError(message, hint="`ir_datasets list` shows all names") from error


class IrDatasetReader:
    """One kind of record of a dataset."""

    first_number = 0
    is_ragged = False

    def __init__(self, name: str, kind: Kind) -> None:
        self.file = name
        self._kind, self._dataset = kind, load(name)
        if not getattr(self._dataset, f"has_{kind}")():
            raise InputError(f"{name} has no {kind}", hint="`ir_datasets list` shows what each dataset has")
        self._cursor = RowCursor(lambda row: 0, self._tables)

    def stamp(self) -> Stamp:
        """Nothing: what a name stands for does not change."""
        return 0, None

    @cached_property
    def schema(self) -> pa.Schema:
        """The fields that are text or numbers; of a text without a field `text` what the package takes for it."""
        kinds = getattr(self._dataset, f"{self._kind}_cls")().__annotations__
        fields = {name: _TYPES[kind] for name, kind in kinds.items() if kind in _TYPES}
        if self._has_texts and "text" not in fields:
            fields = {self._id: pa.string(), "text": pa.string()}
        return pa.schema(list(fields.items()))

    @property
    def _has_texts(self) -> bool:
        return self._kind in ("docs", "queries")

    @property
    def _id(self) -> str:
        return "doc_id" if self._kind == "docs" else "query_id"

    def steps(self, group: str | None, sparse: Collection[str] = ()) -> Iterator[Steps]:
        """From the number of records where the package knows it, else by going through them."""
        count = getattr(self._dataset, f"{self._kind}_count", None)
        rows = None if group is not None or count is None else count()
        if rows is not None:
            yield from count_steps(rows, 0)
        else:
            yield from table_steps(self._tables([group or self.schema.names[0]], 0), 0)

    def read(self, span: Span, columns: Sequence[str] | None, shapes: Mapping[str, Shape]) -> Block:
        """The records of a span."""
        tables = self._cursor.read(columns, span.start, span.stop)
        names = [name for name in self.schema.names if columns is None or name in columns]
        table = join(tables) if tables else empty_table(self.schema).select(names)
        if len(table) < span.rows:
            raise InputError(f"{self.file} has fewer {self._kind} than it says", hint="fetch it again")
        return Block(table, self.file, range(span.start, span.stop), "row")

    def close(self) -> None:
        """Leave the iterator."""
        self._cursor.close()

    def _tables(self, columns: Sequence[str] | None, start: int) -> Generator[pa.Table]:
        schema = pa.schema([field for field in self.schema if columns is None or field.name in columns])
        records = getattr(self._dataset, f"{self._kind}_iter")()
        done = start
        try:
            while some := list(islice(records, _ROWS)):
                yield pa.table([[_value(one, name) for one in some] for name in schema.names], schema=schema)
                done += len(some)
        except Exception as error:  # the readers of many collections raise anything
            raise InputError(f"{self.file}, row {done}: cannot be read: {first_line(error)}") from error


def _value(record: Any, name: str) -> Any:
    return getattr(record, name) if hasattr(record, name) else record.default_text()
