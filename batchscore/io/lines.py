"""What files of lines have in common, plain or compressed: a row is a line or a few, and its place is a byte.

A plain file is read from any byte on. A compressed one is unpacked from its start up to there, which an open stream
saves as long as spans are read in order.
"""

from __future__ import annotations

import gzip
import io
import os
import zlib
from array import array
from collections.abc import Callable, Collection, Generator, Iterable, Iterator
from contextlib import closing
from typing import Any

import numpy as np
import pyarrow as pa

from batchscore.errors import InputError
from batchscore.io.block import Stamp
from batchscore.io.storage import open_file, stat_file
from batchscore.io.units import Span, Steps

_COMPRESSIONS = {"": None, ".gz": "gzip", ".zst": "zstd"}
AGAIN = "write or download the file again"

_BUFFER_BYTES = 1 << 20  # unpacked at once on the way to a unit
_ROWS = 4096  # in memory at once while units are divided, with `group`; a stop request is checked that often
ROWS_BYTES = 8 << 20  # a limit on both, so that long lines do not fill the memory
_UNREADABLE = (pa.ArrowException, OSError, EOFError, zlib.error)  # from files and from what unpacks them

Line = tuple[int, bytes]  # its number, from 1 on; with its end


def packed(*suffixes: str) -> tuple[str, ...]:
    """The suffixes, each with those of all compressions."""
    return tuple(suffix + packing for suffix in suffixes for packing in _COMPRESSIONS)


def compression(path: str) -> str | None:
    """pyarrow's name of the compression that the suffix of `path` asks for."""
    return _COMPRESSIONS.get(os.path.splitext(path.lower())[1])


def fault_at(file: str, line: int, reason: str, hint: str | None = None) -> InputError:
    """What is wrong with a line, as an error that ends the run."""
    return InputError(f"{file}, line {line}: {reason}", hint=hint)


class LineFile:
    """A file of lines: what their readers are made of. Positions are bytes of the unpacked text."""

    first_number = 1

    def __init__(self, file: str) -> None:
        self.file = file
        self._stream: io.BufferedReader | None = None
        self._at = 0  # position of the open stream

    def stamp(self) -> Stamp:
        """Size and time of the file."""
        return stat_file(self.file)

    def lines(self) -> Generator[Line]:
        """All lines; the file is closed when the iterator is."""
        number = 0
        with closing(self._opened()) as stream:
            try:
                for number, line in enumerate(stream, start=1):
                    yield number, line
            except _UNREADABLE as error:
                raise fault_at(self.file, number + 1, f"cannot be read: {error}", AGAIN) from error

    def blocks(self) -> Generator[Line]:
        """Whole lines, some megabytes at once, each time with the number of the first; else as `lines`."""
        number, rest = 1, b""
        with closing(self._opened()) as stream:
            try:
                while block := stream.read(ROWS_BYTES):
                    whole, end, after = block.rpartition(b"\n")
                    if end:
                        content, rest = rest + whole + end, after
                        yield number, content
                        number += content.count(b"\n")
                    else:
                        rest += block
            except _UNREADABLE as error:
                raise fault_at(self.file, number, f"cannot be read: {error}", AGAIN) from error
        if rest:
            yield number, rest

    def first_line(self) -> Line:
        """The first line that is not blank; InputError if there is none."""
        with closing(self.lines()) as lines:
            for number, line in lines:
                if line.strip():
                    return number, line
        raise InputError(f"{self.file} has only blank lines", hint="leave the file out, or write it again")

    def text_of(self, span: Span) -> bytes:
        """The bytes of a span; the stream stays open after it."""
        if self._stream is None or self._at > span.start:
            self.close()
            self._stream, self._at = self._opened(), 0
        try:
            if compression(self.file) is None:
                self._stream.seek(span.start)
            else:  # a packed file has to be unpacked up to there
                while self._at < span.start:
                    self._at += len(self._stream.read(min(_BUFFER_BYTES, span.start - self._at)) or self._too_short())
            content = self._stream.read(span.stop - span.start)
        except (*_UNREADABLE, ValueError) as error:
            self.close()
            raise fault_at(self.file, span.first_number, f"cannot be read: {error}", AGAIN) from error
        self._at = span.stop
        return content if len(content) == span.stop - span.start else self._too_short()

    def close(self) -> None:
        """Close the file."""
        if self._stream is not None:
            self._stream.close()
        self._stream = None

    def _too_short(self) -> bytes:
        raise InputError(f"{self.file} is shorter than when the job began", hint=AGAIN)

    def _opened(self) -> io.BufferedReader:
        try:
            raw = open_file(self.file)
        except OSError as error:
            hint = "check that it is still there"
            raise InputError(f"{self.file} cannot be read: {error.strerror}", hint=hint) from error
        packing = compression(self.file)
        if packing is None:
            return raw if isinstance(raw, io.BufferedReader) else io.BufferedReader(raw, _BUFFER_BYTES)
        if packing == "gzip":
            # not Arrow's, which refuses the zero bytes with which tapes and block devices fill up the last block
            unpacked = gzip.GzipFile(fileobj=raw)
            unpacked.myfileobj = raw  # is closed with it
            return io.BufferedReader(unpacked, _BUFFER_BYTES)
        return io.BufferedReader(pa.input_stream(raw, compression=packing), _BUFFER_BYTES)


def row_steps(
    rows: Iterable[tuple[int, int, Any]],
    value: Callable[[Any], object] | None = None,
    present: Collection[str] = (),
) -> Iterator[Steps]:
    """Rows of lines, a few thousand at a time.

    Args:
        rows: (position after the row, number of the line after it, what `value` takes).
        value: the row's value in the column by which rows are grouped; None: in none.
        present: which of the `sparse` columns have turned up so far.
    """
    start, end, ends, numbers, kept = 0, 0, array("q"), array("q"), list[Any]()
    for end, number, row in rows:
        ends.append(end)
        numbers.append(number)
        if value is not None:
            kept.append(row)
        if len(ends) == _ROWS or (kept and end - start > ROWS_BYTES):
            yield _steps(start, ends, numbers, kept, value, present)
            start, ends, numbers, kept = end, array("q"), array("q"), []
    if ends:
        yield _steps(start, ends, numbers, kept, value, present)


def _steps(
    start: int,
    ends: array[int],
    numbers: array[int],
    rows: list[Any],
    value: Callable[[Any], object] | None,
    present: Collection[str],
) -> Steps:
    sizes = np.diff(np.array(ends), prepend=start)
    values = (lambda row: None) if value is None else (lambda row: value(rows[row]))
    return Steps(np.array(ends), np.array(numbers), sizes, values, frozenset(present))
