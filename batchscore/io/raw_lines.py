"""Lines as they are, for those who parse and write them themselves."""

from __future__ import annotations

import codecs
from array import array
from collections.abc import Mapping, Sequence

import pyarrow as pa

from batchscore.io.block import Block
from batchscore.io.jsonl import JsonlReader
from batchscore.io.schema import Shape
from batchscore.io.units import Span

LINE = "line"  # the only column


class RawLineReader(JsonlReader):
    """A file of lines, plain or compressed, of which those that are not blank are rows of one column of bytes."""

    schema = pa.schema([(LINE, pa.large_binary())])

    def read(self, span: Span, columns: Sequence[str] | None, shapes: Mapping[str, Shape]) -> Block:
        """The lines of a span, whatever they hold."""
        numbers, lines = array("q"), list[bytes]()
        for number, line in enumerate(self.text_of(span).split(b"\n"), start=span.first_number):
            if line.strip():
                numbers.append(number)
                lines.append(line.removeprefix(codecs.BOM_UTF8) if number == 1 else line)
        return Block(pa.table({LINE: pa.array(lines, pa.large_binary())}), self.file, numbers, "line")
