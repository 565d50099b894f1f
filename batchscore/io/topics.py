"""TREC topics: the SGML of the tracks' files, and XML that looks like it. They are few, and held in memory.

    <top>                                          <topic number="1">
    <num> Number: 401                                <query>obama family tree</query>
    <title> foreign minorities, Germany              <description>Find information on ...</description>
    <desc> Description:                            </topic>
    What language and cultural differences ...
    </top>

A field ends where the next one begins, since SGML may leave out end tags.
"""

from __future__ import annotations

import codecs
import html
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa

from batchscore.errors import InputError
from batchscore.io.block import Block, Stamp
from batchscore.io.lines import LineFile, fault_at, packed
from batchscore.io.schema import Shape
from batchscore.io.units import Span, Steps
from batchscore.io.values import bare_table
from batchscore.types import Fault

SUFFIXES = packed(".topics", ".xml")

_NAMES = ("query_id", "query", "description", "narrative")
_TOPIC = re.compile(r"<(top|topic)\b([^>]*)>(.*?)</\1\s*>", re.IGNORECASE | re.DOTALL)
_OPENED = re.compile(r"<(top|topic)\b[^>]*>", re.IGNORECASE)
_NUMBER = re.compile(r"""\b(?:number|id|num)\s*=\s*["']?([^"'\s>]+)""", re.IGNORECASE)
_FIELD = re.compile(r"<(num|number|title|query|desc|description|question|narr|narrative)\b[^>]*>([^<]*)", re.IGNORECASE)
_LABEL = re.compile(r"^(?:number|topic|description|narrative)\s*:", re.IGNORECASE)
_MEANING = {
    "num": "query_id", "number": "query_id", "title": "query", "query": "query", "desc": "description",
    "description": "description", "question": "description", "narr": "narrative", "narrative": "narrative",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Topic:
    line: int
    values: Mapping[str, str]
    fault: Fault | None


class TopicsReader:
    """One file of topics. Positions are their numbers."""

    first_number = 1
    is_ragged = False
    schema = pa.schema([(name, pa.string()) for name in _NAMES])

    def __init__(self, file: str) -> None:
        self.file = file
        self._content = LineFile(file)

    def stamp(self) -> Stamp:
        """Size and time of the file."""
        return self._content.stamp()

    def steps(self, group: str | None, sparse: Collection[str] = ()) -> Iterator[Steps]:
        """All topics at once."""
        topics = self._topics
        numbers = np.arange(1, len(topics) + 1)
        after = np.array([topic.line for topic in topics[1:]] + [topics[-1].line + 1])
        yield Steps(numbers, after, np.zeros_like(numbers), lambda row: topics[row].values.get(str(group)))

    def read(self, span: Span, columns: Sequence[str] | None, shapes: Mapping[str, Shape]) -> Block:
        """The topics of a span; one without a number or a title is null, with a fault."""
        topics = self._topics[span.start : span.stop]
        arrays = {
            name: pa.array([None if topic.fault else topic.values.get(name) for topic in topics], pa.string())
            for name in _NAMES
            if columns is None or name in columns
        }
        table = pa.table(arrays) if arrays else bare_table(len(topics))
        faults = {row: topic.fault for row, topic in enumerate(topics) if topic.fault}
        return Block(table, self.file, [topic.line for topic in topics], "line", faults)

    def close(self) -> None:
        """Nothing is open: the topics stay."""

    @cached_property
    def _topics(self) -> list[_Topic]:
        content = b"".join(line for _, line in self._content.lines()).removeprefix(codecs.BOM_UTF8)
        text = content.decode(errors="surrogateescape")
        topics = {match.start(): match for match in _TOPIC.finditer(text)}
        at, line, found = 0, 1, list[_Topic]()
        for opened in _OPENED.finditer(text):
            at, line = opened.start(), line + text.count("\n", at, opened.start())
            if at not in topics:
                message = f"{opened[0]} is never closed, or within another"
                raise fault_at(self.file, line, message, f"end each topic with </{opened[1]}>")
            found.append(_topic(topics[at], line))
        if not found:
            raise InputError(f"{self.file} has no topic, <top> or <topic>", hint="pass another --in-format")
        return found


def _topic(match: re.Match[str], line: int) -> _Topic:
    """The fields of a topic; the text of one without any is its query."""
    number, values = _NUMBER.search(match[2]), dict[str, str]()
    if number is not None:
        values["query_id"] = number[1]
    fields = _FIELD.findall(match[3]) or [("title", match[3])]
    for name, text in fields:
        text = _LABEL.sub("", " ".join(html.unescape(text).split())).strip()
        if text:
            values.setdefault(_MEANING[name.lower()], text)
    missing = next((name for name in ("query_id", "query") if name not in values), None)
    fault = None if missing is None else Fault("not-topic", f"the topic has no {_WORDS[missing]}", _FIELDS)
    try:
        match[0].encode()
    except UnicodeEncodeError:
        fault = Fault("not-utf8", "is not UTF-8", "convert the file with iconv")
    return _Topic(line, values, fault)


_WORDS = {"query_id": "number", "query": "title"}
_FIELDS = "a topic has <num> and <title>, or number= and <query>"
