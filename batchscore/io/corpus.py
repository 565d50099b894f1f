"""Texts by id, in an index on disk: a corpus may be larger than memory.

It is a database of SQLite, which comes with Python: a table of texts in the order of the files, and an index of the
ids, which is made at the end by an external sort. It never changes once it is there, so any number of processes read
it without locks. The price is the disk: as much as the texts take unpacked, and some 30 bytes for each id.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from batchscore.errors import InputError, RuntimeFailureError
from batchscore.io.schema import TEXT_FIELDS, text_field
from batchscore.io.source import Chunk, FileSource
from batchscore.io.storage import TEMPORARY, remove_orphans, writer_id
from batchscore.io.texts import document_columns, encode_joined, encode_texts
from batchscore.io.values import as_text
from batchscore.types import Fault, Faults

_ROWS = 16_384  # read at once
_CACHE_KIB = 64 << 10  # of SQLite, which also sorts as much in memory at once
_TABLES = """
CREATE TABLE texts (id TEXT, text TEXT, number INTEGER);
CREATE TABLE files (first INTEGER, name TEXT, counts_in TEXT);
CREATE TABLE faults (row INTEGER PRIMARY KEY, code TEXT, message TEXT, hint TEXT);
"""
_DUPLICATE = "duplicate-id"

CountsIn = Literal["row", "line"]


@dataclass(frozen=True, slots=True)
class TextColumns:
    """Where files of texts have the ids and the texts."""

    id: str
    texts: tuple[str, ...]  # joined

    @classmethod
    def chosen(
        cls,
        source: FileSource,
        ids: Mapping[str, str],
        text: tuple[str | None, str],
        *,
        usual: Sequence[str] = (),
        fields: Sequence[str] | None = None,
    ) -> TextColumns:
        """The columns of the first file that are meant.

        Args:
            source: the files.
            ids: names of an id -> the option that names another; the first one that is there counts.
            text: (the column of a text as an option names it, this option).
            usual: names of a text where none is named, besides those that `text_field` knows.
            fields: columns that are joined instead of one text.

        Raises:
            InputError: there is no such column.
        """
        names, file = source.column_names(), source.files[0]
        listing = f"columns: {', '.join(names)}"
        found = next((name for name in ids if name in names), None)
        if found is None:
            message = f"{file} has no column with an id, such as {', '.join(ids)}; {listing}"
            raise InputError(message, hint=f"pass {next(iter(ids.values()))}")
        if fields is not None:
            source.require(dict.fromkeys(fields, "--document-fields"))
            return cls(found, tuple(fields))
        named, flag = text
        if named is not None and named not in names:
            raise InputError(f"column {named!r} not found in {file}; {listing}", hint=f"pass {flag} with one of these")
        column = named or next((name for name in usual if name in names), text_field(names))
        if column is None:
            known = ", ".join(dict.fromkeys([*usual, *TEXT_FIELDS]))
            message = f"{file} has no column with a text, such as {known}; {listing}"
            raise InputError(message, hint=f"pass {flag}")
        return cls(found, document_columns(column, names, None))


@dataclass(frozen=True, slots=True)
class Rows:
    """Some texts."""

    ids: Sequence[str | None]
    texts: Sequence[str | None]
    numbers: Sequence[int]  # of each in its file
    faults: Faults  # of those without a text or an id
    files: Sequence[tuple[int, int, str, CountsIn]] = ()  # (first row, row after the last, file, "row" or "line")


def read_rows(source: FileSource, columns: TextColumns) -> Iterator[tuple[Chunk, Rows]]:
    """All texts of a source, some at a time."""
    with closing(source):
        for unit in source.units(_ROWS):
            chunk = source.read(unit, [columns.id, *columns.texts], dict.fromkeys(columns.texts, "text"))
            unread, without_id, without_text = chunk.faults(), Faults(), Faults()
            ids = encode_texts(as_text(chunk.table[columns.id]), lambda row: columns.id, without_id)
            parts = [chunk.table[name] for name in columns.texts]
            texts = encode_joined(parts, lambda row: columns.texts[-1], without_text)
            faults = without_text | without_id | unread
            yield (
                chunk,
                Rows(
                    [None if row in without_id else ids.values[code] for row, code in enumerate(ids.codes.tolist())],
                    [
                        None if row in faults else str(texts.values[code])
                        for row, code in enumerate(texts.codes.tolist())
                    ],
                    [int(number) for block in chunk.blocks for number in block.numbers],
                    faults,
                ),
            )


def build_index(path: str, source: FileSource, columns: TextColumns) -> None:
    """Write the index of all texts of a source to `path`, where it appears whole.

    Raises:
        InputError: a file cannot be read.
        RuntimeFailureError: the disk is full or cannot be written.
    """
    folder, name = os.path.split(path)
    prefix = f".{name}{TEMPORARY}"
    remove_orphans(folder or ".", prefix)
    temporary = os.path.join(folder, prefix + writer_id())
    with _disk_errors_as(path):
        try:
            with suppress(FileNotFoundError):
                os.remove(temporary)
            with closing(sqlite3.connect(temporary, isolation_level=None)) as database:
                _fill(database, folder, source, columns)
            os.replace(temporary, path)
        finally:
            with suppress(FileNotFoundError):
                os.remove(temporary)


def _fill(database: sqlite3.Connection, folder: str, source: FileSource, columns: TextColumns) -> None:
    # a killed build is begun anew, so that nothing has to be safe before the rename
    for pragma in ("journal_mode = OFF", "synchronous = OFF", f"cache_size = -{_CACHE_KIB}"):
        database.execute(f"PRAGMA {pragma}")
    # what is sorted goes beside the index: the usual place may be in memory
    database.execute("PRAGMA temp_store_directory = '{}'".format((folder or ".").replace("'", "''")))
    database.executescript(_TABLES)
    database.execute("BEGIN")
    count, file = 0, None
    for chunk, rows in read_rows(source, columns):
        first = count
        for block in chunk.blocks:
            if block.file != file:
                database.execute("INSERT INTO files VALUES (?, ?, ?)", (first + 1, block.file, block.counts_in))
            file, first = block.file, first + len(block)
        database.executemany("INSERT INTO texts VALUES (?, ?, ?)", zip(rows.ids, rows.texts, rows.numbers, strict=True))
        bad = [(count + 1 + row, fault.code, fault.said, fault.hint) for row, fault in rows.faults.items()]
        database.executemany("INSERT INTO faults VALUES (?, ?, ?, ?)", bad)
        count += len(rows.ids)
    database.execute("CREATE INDEX ids ON texts (id)")  # a unique one that fails cannot be undone without a journal
    _set_duplicates_apart(database)
    database.execute("COMMIT")


def _set_duplicates_apart(database: sqlite3.Connection) -> None:
    """Take the ids from rows whose id came before: the first text counts."""
    database.execute(
        "REPLACE INTO faults SELECT texts.rowid, ?, first, id FROM texts JOIN "
        "(SELECT id AS same, MIN(rowid) AS first FROM texts WHERE id IS NOT NULL GROUP BY id HAVING COUNT(*) > 1) "
        "ON id = same WHERE texts.rowid > first",
        [_DUPLICATE],
    )
    database.execute("UPDATE texts SET id = NULL WHERE rowid IN (SELECT row FROM faults WHERE code = ?)", [_DUPLICATE])


@contextmanager
def _disk_errors_as(path: str) -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        message = f"cannot write {path}: {error}"
        raise RuntimeFailureError(message, hint="make room on the disk, then run the same command again") from error


class TextIndex:
    """An index that `build_index` wrote, open for reading.

    Raises:
        RuntimeFailureError: it cannot be read.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        uri = f"{Path(path).absolute().as_uri()}?mode=ro&immutable=1"
        with self._errors():  # one thread at a time reads it, and not always the same
            self._database = sqlite3.connect(uri, uri=True, check_same_thread=False)
            self._files = self._all("SELECT first, name, counts_in FROM files ORDER BY first")
            ((self.count,),) = self._all("SELECT COALESCE(MAX(rowid), 0) FROM texts")

    def find(self, ids: Sequence[str]) -> tuple[list[str | None], dict[int, str | None]]:
        """(the text of each id; for those that have none what is wrong and where, or None where the id is unknown)."""
        query = "SELECT id, text, rowid FROM texts WHERE id IN (SELECT value FROM json_each(?))"
        found = {row[0]: row for row in self._all(query, [json.dumps(ids)])}
        texts = [found[one][1] if one in found else None for one in ids]
        missing = {number: found.get(ids[number]) for number, text in enumerate(texts) if text is None}
        faults = self._faults([row[2] for row in missing.values() if row])
        return texts, {
            number: f"{self._located(row[2])}: {faults[row[2]].message}" if row else None
            for number, row in missing.items()
        }

    def range(self, start: int, stop: int) -> Rows:
        """The texts from number `start` to `stop`, in the order of the files, from 0."""
        query = "SELECT id, text, number FROM texts WHERE rowid > ? AND rowid <= ? ORDER BY rowid"
        rows = self._all(query, [start, stop])
        ids, texts, numbers = (list(column) for column in zip(*rows, strict=True)) if rows else ([], [], [])
        faults = self._faults([start + 1 + row for row in range(len(rows)) if texts[row] is None or ids[row] is None])
        ends = [first - 1 for first, _, _ in self._files[1:]] + [self.count]
        files = [
            (max(first - 1, start) - start, min(end, stop) - start, file, counts_in)
            for (first, file, counts_in), end in zip(self._files, ends, strict=True)
            if first - 1 < stop and end > start
        ]
        return Rows(ids, texts, numbers, {row - start - 1: fault for row, fault in faults.items()}, files)

    def lines(self) -> list[str]:
        """What a person should know of texts that cannot be used, or not under their id."""
        said = []
        for sign, what in (("=", "have an id that came before"), ("<>", "have no text or no id")):
            query = f"SELECT COUNT(*), MIN(row) FROM faults WHERE code {sign} ?"
            ((count, first),) = self._all(query, [_DUPLICATE])
            if count:
                fault = self._faults([first])[first]
                said.append(f"{count:,} {what}, the first {self._located(first)}: {fault.message}")
        return said

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def _faults(self, rows: Sequence[int]) -> dict[int, Fault]:
        """By row of the table."""
        query = "SELECT row, code, message, hint FROM faults WHERE row IN (SELECT value FROM json_each(?))"
        return {row: self._fault(*fault) for row, *fault in self._all(query, [json.dumps(list(rows))])} if rows else {}

    def _fault(self, code: str, message: str, hint: str | None) -> Fault:
        if code != _DUPLICATE:
            return Fault(code, message, hint)
        # what is stored of a duplicate is the row that came first, and the id
        return Fault(code, f"has the id {hint!r} of {self._located(int(message))}", "give each text an id of its own")

    def _located(self, row: int) -> str:
        """Where a person finds a text."""
        ((number,),) = self._all("SELECT number FROM texts WHERE rowid = ?", [row])
        file, counts_in = next((file, kind) for first, file, kind in reversed(self._files) if first <= row)
        return f"{file}, {counts_in} {number}"

    def _all(self, query: str, values: Sequence[object] = ()) -> list[tuple]:  # type: ignore[type-arg]
        with self._errors():
            return self._database.execute(query, values).fetchall()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            message = f"{self._path} cannot be read: {error}"
            raise RuntimeFailureError(message, hint="run the same command again with --overwrite") from error
