"""The texts of queries and documents that a page shows: from outputs that have them, else from the inputs of the runs.

An input is read again the way the run read it, as long as it is there, unchanged and not too large; all that is missing
then is missing on the page, which says so.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from batchscore.errors import BatchscoreError
from batchscore.io.corpus import TextColumns, read_rows
from batchscore.io.source import open_source
from batchscore.io.values import as_text
from batchscore.jobs.commands import COMMANDS
from batchscore.jobs.commands.rerank import RankedRows
from batchscore.media.content import shown
from batchscore.report.outputs import Reported

_BYTES = 1 << 30  # of an input that is read again
_UNIT = 8_192

Inputs = Sequence[Mapping[str, Any]]  # as a record describes them
Wanted = Mapping[str, Sequence[str]]  # query -> documents


@dataclass(slots=True)
class Texts:
    """Texts by id. A document's id may mean another document for another query, as in lists that number theirs."""

    queries: dict[str, str] = field(default_factory=dict)
    documents: dict[tuple[str, str], str] = field(default_factory=dict)  # by query and document

    def have(self, wanted: Wanted) -> bool:
        """Whether nothing is missing."""
        return wanted.keys() <= self.queries.keys() and all(
            (query, document) in self.documents for query, documents in wanted.items() for document in documents
        )


def find_texts(outputs: Sequence[Reported], wanted: Wanted) -> Texts:
    """What can be found of the wanted texts."""
    texts = Texts()
    for output in outputs:
        if output.record.get("options", {}).get("return_documents") and not texts.have(wanted):
            with suppress(BatchscoreError):  # of a format that has no texts
                _take_written(output, wanted, texts)
    seen: list[Any] = []
    for output in outputs:
        inputs: Inputs = output.record.get("inputs", ())
        if output.record.get("command") != "rerank" or inputs in seen or texts.have(wanted):
            continue
        seen.append(inputs)
        with suppress(BatchscoreError):  # the input is gone, or of a kind that is not read again
            if any("role" in file for file in inputs):
                _take_joined(inputs, wanted, texts)
                continue
            for rows in _units(output.record):
                _take(rows, wanted, texts)
                if texts.have(wanted):
                    break
    return texts


def _take_joined(inputs: Inputs, wanted: Wanted, texts: Texts) -> None:
    """Take the texts of ids that the run has looked up in files of queries and of documents."""
    queries: dict[str, list[str]] = {}  # of each document
    for query, documents in wanted.items():
        for document in documents:
            queries.setdefault(document, []).append(query)
    texts.queries |= _looked_up(inputs, "queries", wanted.keys())
    for document, text in _looked_up(inputs, "corpus", queries.keys()).items():
        texts.documents |= {(query, document): text for query in queries[document]}


def _looked_up(inputs: Inputs, role: str, ids: Collection[str]) -> dict[str, str]:
    """The texts of ids in the files with this role."""
    files = [file for file in inputs if file.get("role") == role]
    found: dict[str, str] = {}
    if not files or _bytes(files) > _BYTES:
        return found
    name, *columns = files[0]["columns"]
    source = open_source([file["name"] for file in files])
    own = {"role": role, "columns": [name, *columns]}
    if [{**file, **own} for file in source.fingerprint()] != files:
        return found
    for _, rows in read_rows(source, TextColumns(name, tuple(columns))):
        pairs = zip(rows.ids, rows.texts, strict=True)
        found |= {one: text for one, text in pairs if one in ids and one is not None and text is not None}
        if len(found) == len(ids):
            break
    return found


def _bytes(files: Inputs) -> int:
    return sum(file["bytes"] or 0 for file in files)


def _take_written(output: Reported, wanted: Wanted, texts: Texts) -> None:
    """Take the texts that --return-documents wrote."""
    with closing(open_source([output.file])) as source:
        names = source.column_names()
        columns = [*names[:1], "document_id", "document"]  # the first has the queries' ids, under any name
        if not set(columns) <= set(names):
            return  # lists of results, or documents without ids
        for unit in source.units(_UNIT):
            table = source.read(unit, columns, {}).table
            for name, document, text in zip(*(as_text(table[column]).to_pylist() for column in columns), strict=True):
                if document in wanted.get(name, ()) and text is not None:
                    texts.documents[name, document] = text


def _units(record: Mapping[str, Any]) -> Iterator[RankedRows]:
    """The units of a run's input."""
    inputs = record["inputs"]
    if _bytes(inputs) > _BYTES:
        return
    command = COMMANDS["rerank"](**record["fingerprint"]["options"])
    with closing(open_source([file["name"] for file in inputs])) as source:
        if source.fingerprint() != inputs:
            return
        for unit in command.units(source, _UNIT, listwise=False):
            rows = command.load_pairs(source, unit)
            assert isinstance(rows, RankedRows)
            yield rows


def _take(rows: RankedRows, wanted: Wanted, texts: Texts) -> None:
    """Take the wanted texts of a unit."""
    if (document_ids := rows.carried.get("document_id")) is None:
        return
    ids = as_text(rows.queries.column(0)).to_pylist()
    groups = [number for number, name in enumerate(ids) if name in wanted]
    pairs = np.flatnonzero(np.isin(rows.groups[rows.documents], groups))
    documents = rows.documents[pairs]
    names = as_text(pa.chunked_array([document_ids.take(pa.array(documents))])).to_pylist()
    for pair, group, name in zip(pairs.tolist(), rows.groups[documents].tolist(), names, strict=True):
        query = ids[group]
        texts.queries.setdefault(query, shown(rows.pairs.queries.values[rows.pairs.queries.codes[pair]]))
        if name in wanted[query]:
            texts.documents.setdefault(
                (query, name), shown(rows.pairs.documents.values[rows.pairs.documents.codes[pair]])
            )
