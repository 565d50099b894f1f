"""A test collection: queries in memory, and a corpus in its index on disk.

Queries are few, some thousands or a million, and every process reads them. The corpus is read once, by the process that
makes the index.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from typing import Any, Protocol

from batchscore.errors import InputError
from batchscore.io.corpus import Rows, TextColumns, TextIndex, build_index, read_rows
from batchscore.io.schema import DOCUMENT_ID_FIELDS, QUERY_ID_FIELDS
from batchscore.io.source import FileSource
from batchscore.io.storage import remove_orphans, write_errors_as, writer_id
from batchscore.types import Fault

INDEX = r"corpus-\w+\.sqlite"  # names of indexes
QUERY_ID, DOCUMENT_ID, QUERY, DOCUMENT = "query_id", "document_id", "query", "document"  # columns of joined rows
_OWN = "batchscore-corpus-"  # begins the name of a folder for one process
_SAMPLE = 1000  # documents that tell how long one is
_OWN_IDS = ("id", "_id")  # in files of texts

Texts = list[str | None]
Wrong = dict[int, Fault]  # what is wrong with those that are None


@dataclass(frozen=True, slots=True)
class Names:
    """Columns as options name them; None: the usual names."""

    query_id: str | None = None
    document_id: str | None = None
    query: str | None = None
    document: str | None = None
    document_fields: Sequence[str] | None = None

    def query_ids(self, *own: str) -> dict[str, str]:
        """Names of a query's id, the best first, and the option that names another."""
        return _flagged("--query-id-column", self.query_id, *own, *QUERY_ID_FIELDS)

    def document_ids(self, *own: str) -> dict[str, str]:
        """Names of a document's id in the same way."""
        return _flagged("--document-id-column", self.document_id, *own, *DOCUMENT_ID_FIELDS)


def _flagged(flag: str, *names: str | None) -> dict[str, str]:
    return {name: flag for name in names if name is not None}


class Lookup(Protocol):
    """Where the texts of ids are found."""

    def find_queries(self, ids: Sequence[str]) -> tuple[Texts, Wrong]:
        """(the text of each id, what is wrong with those that have none)."""

    def find_documents(self, ids: Sequence[str]) -> tuple[Texts, Wrong]:
        """The same for documents."""

    def documents(self, start: int, stop: int) -> Rows:
        """A part of the corpus, by numbers from 0."""


class IdsAsTexts:
    """Finds the id itself for each id: as different from others as its text is, and nothing is read for it."""

    def find_queries(self, ids: Sequence[str]) -> tuple[Texts, Wrong]:
        """The ids."""
        return list(ids), {}

    find_documents = find_queries

    def documents(self, start: int, stop: int) -> Rows:
        """The numbers."""
        ids = list(map(str, range(start, stop)))
        return Rows(ids, ids, range(start, stop), {}, [(0, stop - start, "corpus", "row")])


class Queries:
    """All queries, read into memory.

    Raises:
        InputError: the files have no column with an id or a text, or no query.
    """

    def __init__(self, source: FileSource, names: Names) -> None:
        named = names.query, "--query-column"
        columns = TextColumns.chosen(source, names.query_ids(*_OWN_IDS), named, usual=["query"])
        self._source, self._columns = source, columns
        self.file = _called(source)
        self.ids: list[str] = []
        self._numbers: dict[str, int] = {}
        self._texts: Texts = []
        self._wrong: Wrong = {}
        self._duplicates: list[str] = []
        for chunk, rows in read_rows(source, self._columns):
            for row, (name, text) in enumerate(zip(rows.ids, rows.texts, strict=True)):
                if name is None:  # no pair can name it
                    raise InputError(f"{chunk.locate(row)}: {rows.faults[row].said}", hint="give each query an id")
                if name in self._numbers:
                    self._duplicates.append(f"{name!r} in {chunk.locate(row)}")
                    continue
                if text is None:
                    self._wrong[len(self.ids)] = _unusable(name, f"{chunk.locate(row)}: {rows.faults[row].said}")
                self._numbers[name] = len(self.ids)
                self.ids.append(name)
                self._texts.append(text)
        if not self.ids:
            raise InputError(f"{self.file} has no queries", hint="name another file with --queries")

    def find(self, ids: Sequence[str]) -> tuple[Texts, Wrong]:
        """The texts of ids, and what is wrong with those that have none."""
        numbers = [self._numbers.get(one) for one in ids]
        texts = [None if number is None else self._texts[number] for number in numbers]
        unknown = {row: _unknown(ids[row], self.file) for row, number in enumerate(numbers) if number is None}
        return texts, unknown | {
            row: self._wrong[number] for row, number in enumerate(numbers) if number in self._wrong
        }

    def line(self) -> str:
        """What a person should know."""
        count = len(self._duplicates)
        said = f"; {count:,} more have an id that came before, the first {self._duplicates[0]}" if count else ""
        return f"queries  {len(self.ids):,} in {self.file}{said}"

    def fingerprint(self) -> list[dict[str, Any]]:
        """Their files and columns."""
        return _described(self._source, self._columns, "queries")


class Corpus:
    """Documents, read into an index on disk.

    Args:
        source: of the documents.
        names: of columns.
        folder: of the index.

    Raises:
        InputError: the files have no column with an id or a text.
    """

    def __init__(self, source: FileSource, names: Names, folder: str) -> None:
        named = names.document, "--document-column"
        columns = TextColumns.chosen(source, names.document_ids(*_OWN_IDS), named, fields=names.document_fields)
        self._source, self._columns = source, columns
        self.file = _called(source)
        key = blake2b(json.dumps(self.fingerprint(), sort_keys=True).encode(), digest_size=8).hexdigest()
        self._folder = folder
        self.path = os.path.join(folder, f"corpus-{key}.sqlite")

    @property
    def is_ready(self) -> bool:
        """Whether the index is there."""
        return os.path.exists(self.path)

    def build(self, on_step: Callable[[], None]) -> None:
        """Make the index; raises as `build_index`."""
        self._source.on_step = on_step
        with write_errors_as(self._folder):
            os.makedirs(self._folder or ".", exist_ok=True)
        remove_orphans(tempfile.gettempdir(), _OWN)
        build_index(self.path, self._source, self._columns)

    @cached_property
    def index(self) -> TextIndex:
        """The index, which must be there."""
        return TextIndex(self.path)

    def discard(self) -> None:
        """Remove an index that is this process's own."""
        if os.path.basename(self._folder).startswith(_OWN):
            self.close()
            shutil.rmtree(self._folder, ignore_errors=True)

    def close(self) -> None:
        """Close the index; it opens again when it is needed."""
        if (index := self.__dict__.pop("index", None)) is not None:
            index.close()

    @cached_property
    def average_bytes(self) -> int:
        """How long a document is, from the first ones."""
        texts = self._columns.texts
        with closing(self._source):
            (unit, *_) = self._source.units(_SAMPLE, limit=_SAMPLE)
            table = self._source.read(unit, texts, dict.fromkeys(texts, "text")).table
        return max(1, int(table.nbytes) // max(1, len(table)))

    def count(self) -> int:
        """Documents, for which the files are read through if they do not say it."""
        return sum(unit.rows for unit in self._source.units(1 << 20))

    def find(self, ids: Sequence[str]) -> tuple[Texts, Wrong]:
        """The texts of ids, and what is wrong with those that have none."""
        texts, missing = self.index.find(ids)
        wrong = {
            row: _unknown(ids[row], self.file) if problem is None else _unusable(ids[row], problem)
            for row, problem in missing.items()
        }
        return texts, wrong

    def line(self) -> str:
        """What a person should know."""
        size = os.path.getsize(self.path) / 1e6
        said = "".join(f"; {line}" for line in self.index.lines())
        return f"corpus   {self.index.count:,} in {self.file}, indexed in {size:,.0f} MB{said}"

    def fingerprint(self) -> list[dict[str, Any]]:
        """Its files and columns."""
        return _described(self._source, self._columns, "corpus")


def own_folder() -> str:
    """For an index of this process alone, where the job's folder is on no disk."""
    return os.path.join(tempfile.gettempdir(), f"{_OWN}{writer_id()}")


@dataclass(frozen=True, slots=True)
class Collection:
    """Queries and documents."""

    queries: Queries
    corpus: Corpus

    def find_queries(self, ids: Sequence[str]) -> tuple[Texts, Wrong]:
        """Their texts."""
        return self.queries.find(ids)

    def find_documents(self, ids: Sequence[str]) -> tuple[Texts, Wrong]:
        """Their texts."""
        return self.corpus.find(ids)

    def documents(self, start: int, stop: int) -> Rows:
        """A part of the corpus."""
        return self.corpus.index.range(start, stop)


class OverCorpus:
    """A source of rows whose documents are in a corpus: what has to be done before they can be read, and after."""

    on_step: Callable[[], None]
    _collection: Collection

    @property
    def is_ready(self) -> bool:
        """Whether the index of the corpus is there."""
        return self._collection.corpus.is_ready

    def make_ready(self) -> None:
        """Make it."""
        self._collection.corpus.build(self.on_step)

    def discard(self) -> None:
        """Remove the index, if it is this process's own."""
        self._collection.corpus.discard()


def _called(source: FileSource) -> str:
    first, *others = source.files
    return f"{first} and {len(others)} more" if others else first


def _described(source: FileSource, columns: TextColumns, role: str) -> list[dict[str, Any]]:
    names = [columns.id, *columns.texts]
    return [{**file, "role": role, "columns": names} for file in source.fingerprint()]


def _unknown(name: str, file: str) -> Fault:
    return Fault("unknown-id", f"is {name!r}, which {file} does not have", "see that the files belong together")


def _unusable(name: str, problem: str) -> Fault:
    return Fault("no-text", f"is {name!r}, which has no text ({problem})", "fill it in, or drop the row")
