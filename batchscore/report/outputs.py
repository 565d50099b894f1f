"""An output and what lies beside it: its record, its scores, its bad rows.

Scores are read from the output itself, of a large one from parts that are spread evenly over it, so that a report of
any job takes seconds. The page says of how many rows.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from io import TextIOWrapper
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from batchscore.errors import InputError, UsageError
from batchscore.io.runs import SCORES, exploded, is_object, read_run
from batchscore.io.schema import is_nested, usual
from batchscore.io.source import Source, open_source
from batchscore.io.storage import open_file, open_folder
from batchscore.io.units import Unit
from batchscore.io.values import as_numbers, as_text
from batchscore.jobs.output import Output, open_output
from batchscore.jobs.records import exists, read_record

MOST_OUTPUTS = 10
LONGEST_TEXT = 400  # characters
_ROWS = 1_000_000  # whose scores are read
_UNIT = 65_536
_ENDS = 8  # rows with the highest scores that are shown, and with the lowest
_FAULTS = 30  # bad rows that are shown
_COLUMNS = 12  # of such rows
_SCORES = SCORES[:2]  # without ranks, whose distribution says nothing


@dataclass(frozen=True, slots=True)
class ScoreSample:
    """The scores of an output, or of some of its rows."""

    values: NDArray[np.float64]  # finite ones
    read: int  # rows
    rows: int  # of the output
    highest: Sequence[Mapping[str, str]]  # rows of `score`, as texts
    lowest: Sequence[Mapping[str, str]]


@dataclass(frozen=True, slots=True)
class Faults:
    """The bad rows of a run."""

    count: int
    kinds: Mapping[str, int]  # code -> bad rows, the most frequent first
    first: Sequence[Mapping[str, Any]]  # entries of the list of errors


@dataclass(frozen=True, slots=True)
class Reported:
    """An output of a report."""

    path: str
    file: str  # with the rows
    name: str  # as short as tells it from the others
    record: Mapping[str, Any]  # of the run; empty for a file of another program
    processes: int  # that have a record of their own, where the job has none of the whole
    scores: ScoreSample | None  # None: the file has no column of scores
    faults: Faults

    @property
    def counts(self) -> Mapping[str, Any]:
        """What the run counted."""
        counts: Mapping[str, Any] = self.record.get("counts", {})
        return counts

    @property
    def cut(self) -> int:
        """Pairs of which the model did not read all."""
        return sum(self.counts.get("cut", {}).values())

    @property
    def model(self) -> str:
        """The model's id on the hub, or the end of its folder's path."""
        name = str(self.record["model"])
        return printable("…/" + "/".join(name.rstrip("/").split("/")[-2:]) if name.count("/") > 2 else name)

    @property
    def range(self) -> str:
        """The scores that its model can give, in words."""
        said = str(self.record["score_range"])
        return f"from {said}" if said[:1] in "-0123456789" else said


def read_outputs(paths: Sequence[str]) -> list[Reported]:
    """Outputs of `score` and `rerank`, and runs of others; raises UsageError and InputError."""
    if len(paths) > MOST_OUTPUTS:
        raise UsageError(f"{len(paths)} outputs in one report", hint=f"name at most {MOST_OUTPUTS}")
    return [_reported(path, name) for path, name in zip(paths, short_names(paths), strict=True)]


def short_names(paths: Sequence[str]) -> list[str]:
    """The last parts of each path, as many as tell it from the others."""
    parts = [[part for part in path.split("/") if part] or [path] for path in paths]
    size = next(
        (size for size in range(1, max(map(len, parts))) if len({tuple(p[-size:]) for p in parts}) == len(parts)), 99
    )
    return [printable("/".join(part[-size:])) for part in parts]


def printable(text: str) -> str:
    """A text that UTF-8 and XML can hold: file names and ids may have bytes and characters that they cannot."""
    text = text.encode("utf-8", "replace").decode()
    return "".join(char if char >= " " or char in "\t\n" else "�" for char in text)


def cut(text: str, longest: int = LONGEST_TEXT) -> str:
    """A printable text, or the beginning of a longer one."""
    return printable(text if len(text) <= longest else f"{text[:longest].rstrip()} …")


def _reported(path: str, name: str) -> Reported:
    output = open_output(path)
    record, processes = _record(output)
    if record and record["command"] not in ("score", "rerank"):
        raise UsageError(f"{path} was written by {record['command']}", hint="name an output of score or rerank")
    if output.is_folder:  # its parts may be assembled, in a format that the record says
        output = replace(output, asked=record.get("out_format", "auto"))
    file = output.file if not output.is_folder or exists(output.file) else output.path
    return Reported(path, file, name, record, processes, _sample(file, record), _faults(output.errors))


def _record(output: Output) -> tuple[Mapping[str, Any], int]:
    """(the record of the job, 1), or (that of one process, how many there are); ({}, 0) without one."""
    if (record := read_record(output.record())) is not None:
        return record, 1
    folder = open_folder(output.path if output.is_folder else os.path.dirname(output.path) or ".")
    start = os.path.basename(output.record("-")).removesuffix(".json")
    names = [name for name in folder.names() if name.startswith(start) and name.endswith(".json")]
    records = [record for name in names if (record := read_record(f"{folder.path}/{name}")) is not None]
    return (records[0], len(records)) if records else ({}, 0)


# ---- scores


def _sample(path: str, record: Mapping[str, Any]) -> ScoreSample | None:
    if is_object(path):
        found = [score for documents in read_run(path).values() for score in documents.values()]
        return ScoreSample(np.array(found, np.float64), len(found), len(found), [], [])
    with closing(open_source([path])) as source:
        column = _score_column(source, record)
        if column is None:
            return None
        units = source.units(_UNIT)
        rows = sum(unit.rows for unit in units)
        chosen = units[:: max(1, -(-rows // _ROWS))]
        scores = [_scores(source, unit, column) for unit in chosen]
        values = np.concatenate([np.empty(0), *scores])
        is_rows = record.get("command") == "score"
        lowest, highest = _ends(source, chosen, scores, column) if is_rows else ([], [])
    return ScoreSample(values[np.isfinite(values)], len(values), rows, highest, lowest)


def _score_column(source: Source, record: Mapping[str, Any]) -> str | None:
    named = record.get("options", {}).get("score_column", _SCORES[0])
    if "results" in source.column_names() and is_nested(source.column_type("results")):
        return "results"
    return usual(source.column_names(), [named, *_SCORES])


def _scores(source: Source, unit: Unit, column: str) -> NDArray[np.float64]:
    """float64 [rows, or results of all rows], NaN where there is none."""
    table = source.read(unit, [column], {}).table
    _, results = exploded(table)
    if results is not table:
        column = usual(results.column_names, _SCORES) or ""
        if not column:
            raise InputError(f"{source.files[0]}: results have no {_SCORES[0]}", hint="name an output of rerank")
    numbers: NDArray[np.float64] = as_numbers(results[column], column, source.files[0]).to_numpy()
    return numbers


def _ends(
    source: Source, units: Sequence[Unit], scores: Sequence[NDArray[np.float64]], column: str
) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Rows with the lowest scores, and with the highest: those first that are furthest out."""
    values = np.concatenate([np.empty(0), *scores])
    known = np.flatnonzero(np.isfinite(values))
    order = known[np.argsort(values[known], kind="stable")]
    few = min(_ENDS, len(order) // 2)
    wanted = [*order[:few].tolist(), *order[::-1][:few].tolist()]
    rows = rows_at(source, units, wanted, [column])
    shown = [{column: f"{values[row]:.4f}", **rows[row]} for row in wanted]
    return shown[:few], shown[few:]


def rows_at(
    source: Source, units: Sequence[Unit], wanted: Sequence[int], but: Collection[str]
) -> dict[int, dict[str, str]]:
    """The first dozen columns, without some, of rows of these units, which are counted through from 0: as texts."""
    starts = np.cumsum([0, *(unit.rows for unit in units)])
    rows: dict[int, dict[str, str]] = {}
    for place, unit in enumerate(units):
        if inside := [row for row in wanted if starts[place] <= row < starts[place + 1]]:
            table = source.read(unit, None, {}).table.take(pa.array([row - int(starts[place]) for row in inside]))
            names = [name for name in table.column_names if name not in but][:_COLUMNS]
            texts = [as_text(table[name]).to_pylist() for name in names]
            for number, row in enumerate(inside):
                rows[row] = {name: text[number] or "" for name, text in zip(names, texts, strict=True)}
    return rows


def _faults(path: str) -> Faults:
    if not exists(path):
        return Faults(0, {}, [])
    kinds, first = Counter[str](), list[Mapping[str, Any]]()
    with open_file(path) as file, TextIOWrapper(file, "utf-8") as lines:
        for line in lines:
            entry = json.loads(line)
            kinds[entry["code"]] += 1
            if len(first) < _FAULTS:
                first.append(entry)
    return Faults(kinds.total(), dict(kinds.most_common()), first)
