"""The texts of a whole input, each of them once: counted, numbered and cut into blocks before anything is encoded.

All rows are read once more for it, of which only the texts. Memory holds the texts of one window and 24 bytes for each
distinct text, on the disk where these are many. Numbers follow the order of first appearance, but inside a window the
longest text comes first: blocks of similar lengths make packs of similar lengths.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from batchscore.io.digests import DigestIndex, Digests, digests_of
from batchscore.io.packed import pack_cells
from batchscore.io.source import Source
from batchscore.io.storage import Folder, writer_id
from batchscore.io.units import Unit
from batchscore.jobs.blocks import Block, describe, index_file, open_blocks
from batchscore.jobs.commands.base import Command, UnitRows
from batchscore.jobs.parts import SCRATCH, TEXTS, Division, Parts
from batchscore.jobs.room import Room
from batchscore.media.stored import pack
from batchscore.stop import Stop, prefetch
from batchscore.types import SIDES, Cell, Cells, Side

_WINDOW_TEXTS, _WINDOW_BYTES = 16_384, 64 << 20  # of a side, at which texts are sorted and cut into blocks
_BLOCK_TEXTS = 1_024  # of a small job: what a kill may cost
_BLOCKS = 64  # a block has this share of the texts before it, so that large jobs have some thousands of blocks
_TEXT_OVERHEAD = 16  # bytes that a text costs besides its own
# What an image costs as text: vision-language models make a token of a square of some 32 pixels, or of 4 bytes of text.
_PIXELS_A_BYTE = 32 * 32 // 4
_SAMPLED_UNITS = 8
_MOST_TEXTS = 1e6  # times as many as were seen: so few in common tell nothing
_WORTH_IT = 0.9  # share of what units read that is left if each text is read once


def choose(command: Command, source: Source, units: Sequence[Unit], on_step: Callable[[], None]) -> Division:
    """Find out from a sample of units whether texts come back in other units."""
    if len(units) <= 1:
        return Division(units, "unit", "there is one unit, which reads each text once")
    picked, repetition = picked_units(source, units), Repetition()
    with closing(source):
        for unit in picked:
            on_step()
            repetition.add(command.load_pairs(source, unit).pairs.sides)
    share = repetition.share(len(units))
    reason = f"{share:.0%} of what units read is new to the job, judging by {len(picked)} of its {len(units):,} units"
    return Division(units, "once" if share < _WORTH_IT else "unit", reason)


def picked_units(source: Source, units: Sequence[Unit]) -> list[Unit]:
    """A few units from all over the input, or its first ones where a row is reached only through those before it."""
    last = min(_SAMPLED_UNITS, len(units)) - 1 if source.is_streamed else len(units) - 1
    return [units[place] for place in np.unique(np.linspace(0, last, _SAMPLED_UNITS).astype(int)).tolist()]


class Repetition:
    """How often texts come back, judging by some units.

    If all texts were equally frequent, units with a, b, ... distinct ones would have N (1 - (1 - a/N)(1 - b/N)...) of N
    together; so what they have together tells N. Where some texts are much more frequent than others, N is too small.
    """

    def __init__(self) -> None:
        self.units = 0
        self.letters = dict.fromkeys(SIDES, 0)  # of the distinct texts of each unit: what reading costs
        self._together: dict[Side, DigestIndex] = {side: DigestIndex() for side in SIDES}
        self._counts: dict[Side, list[int]] = {side: [] for side in SIDES}  # distinct texts of each unit

    def add(self, sides: Mapping[Side, Cells]) -> None:
        """Take a unit's texts."""
        self.units += 1
        for side, texts in sides.items():
            digests = digests_of(texts.values)
            self._counts[side].append(len(digests))
            self.letters[side] += sum(map(text_cost, texts.values))
            _add_new(self._together[side], digests)

    def seen(self, side: Side) -> int:
        """Distinct texts of these units together."""
        return len(self._together[side])

    def read(self, side: Side, units: int) -> float:
        """Texts that a job of so many units reads, if each reads its own."""
        return sum(self._counts[side]) * units / max(1, self.units)

    def distinct(self, side: Side, units: int) -> float:
        """Distinct texts of a job of so many units; these units' if there are no others."""
        if self.units == units:
            return float(self.seen(side))
        return _expected(self.read(side, units), self._counts[side], self.seen(side))

    def share(self, units: int) -> float:
        """What is left of the reading if each text is read once."""
        new = sum(self.letters[side] * self.distinct(side, units) / max(1.0, self.read(side, units)) for side in SIDES)
        return new / max(sum(self.letters.values()), 1)


def count_blocks(texts: float) -> float:
    """About how many blocks so many texts make; of a large job fewer, since its blocks are larger."""
    return max(1.0, texts / _BLOCK_TEXTS)


def text_cost(cell: Cell) -> int:
    """What the model has to read, in bytes of text."""
    if isinstance(cell, str):
        return len(cell.encode())
    pixels = sum(media.width * media.height * media.count for media in cell.media)
    return len(cell.text.encode()) + pixels // _PIXELS_A_BYTE


def _held(cell: Cell) -> int:
    """Bytes in memory: of media those that came with the row, and not in a file of their own."""
    if isinstance(cell, str):
        return len(cell)
    return len(cell.text) + sum(len(pack(media)["bytes"] or b"") for media in cell.media)


def _expected(texts: float, sizes: Sequence[int], distinct: int) -> float:
    """Distinct texts of all units, of which sampled ones with so many each have so many distinct ones together."""
    counts, mean = np.array(sizes, np.float64), sum(sizes) / max(1, len(sizes))
    if distinct >= sum(sizes):
        return texts
    low, high = float(distinct), float(distinct) * _MOST_TEXTS
    while high > low * 1.001:  # N units' texts are drawn from: the more there are, the fewer these have in common
        population = (low * high) ** 0.5
        found = population * (1 - np.prod(1 - counts / population))
        low, high = (population, high) if found < distinct else (low, population)
    return float(min(texts, high * (1 - (1 - min(1.0, mean / high)) ** (texts / mean))))


def _add_new(index: DigestIndex, digests: Digests) -> NDArray[np.int64]:
    """Add what is not there; returns the positions of those."""
    new = np.flatnonzero(index.find(digests) < 0)
    index.add(digests[new], np.arange(len(new), dtype=np.int64))
    return new


def survey(
    parts: Parts, command: Command, source: Source, room: Room, on_unit: Callable[[UnitRows], None], stop: Stop
) -> None:
    """Collect the distinct texts of a job and write them into its folder in blocks.

    Several processes may do this at once: they write the same files.

    Args:
        parts: the job.
        command: tells which texts a row has.
        source: the input.
        room: what encodings take and may take.
        on_unit: called with each unit that was read; what it raises ends the survey.
        stop: ends it between two units.

    Raises:
        StoppedError: `stop` was requested.
        UsageError: there is no room even for the queries.
    """
    folder = parts.folder
    for name in folder.names():
        if ".pass-" in name:  # of groups that an earlier list of blocks had
            folder.remove(name)
    prefix = f"{SCRATCH}{writer_id()}-"
    place = folder.path if folder.is_local else None
    with tempfile.TemporaryDirectory(prefix=prefix, dir=place) as scratch, closing(source):
        blocks: list[Block] = []
        sides: dict[Side, _Side] = {side: _Side(side, folder, scratch, room.limits[side], blocks) for side in SIDES}
        read = (command.load_pairs(source, unit) for unit in parts.units)
        with closing(prefetch(read, stop)) as units:  # no thread reads on when the source is closed
            for rows in units:
                on_unit(rows)
                for side, texts in rows.pairs.sides.items():
                    sides[side].add(texts.values)
        for collected in sides.values():
            collected.finish()
    description = describe(parts.id, blocks, room.groups(blocks))
    # processes with more room would make other groups: the first list is used by all
    if not folder.create(TEXTS, description) and open_blocks(folder, parts.id) is None:
        folder.write(TEXTS, description)


class _Side:
    """The texts of one side as they are collected."""

    def __init__(self, side: Side, folder: Folder, scratch: str, limit: int, blocks: list[Block]) -> None:
        self._side, self._folder, self._limit, self._blocks = side, folder, limit, blocks
        self._path = os.path.join(scratch, f"{side}.index")
        self._index = DigestIndex(scratch)
        self._clear()

    def _clear(self) -> None:
        """Begin a window."""
        self._fresh = DigestIndex()  # digests of the window's texts, which have no numbers yet
        self._texts: list[Cell] = []
        self._digests: list[Digests] = []
        self._size = 0

    def add(self, texts: Sequence[Cell]) -> None:
        """Take the texts that did not come before."""
        digests = digests_of(texts)
        digests_new = np.flatnonzero(self._index.find(digests) < 0)
        new = digests_new[_add_new(self._fresh, digests[digests_new])]
        fresh = [texts[position] for position in new.tolist()]
        self._texts += fresh
        self._digests.append(digests[new])
        self._size += sum(map(_held, fresh))
        if len(self._texts) >= _WINDOW_TEXTS or self._size >= _WINDOW_BYTES:
            self._close()

    def finish(self) -> None:
        """Write what is left, and the index."""
        self._close()
        self._index.write(self._path)
        with pa.memory_map(self._path) as file:
            self._folder.write(index_file(self._side), file.read_buffer())

    def _close(self) -> None:
        """Number the texts of the window, and cut it into blocks that cost the same."""
        if not self._texts:
            return
        sizes = np.minimum(list(map(text_cost, self._texts)), self._limit) + _TEXT_OVERHEAD
        order = np.argsort(-sizes, kind="stable")
        before = len(self._index)
        self._index.add(np.concatenate(self._digests)[order], before + np.arange(len(order)))
        target = min(max(_BLOCK_TEXTS, before // _BLOCKS), _WINDOW_TEXTS)
        count = -(-len(order) // target)
        costs = np.cumsum(sizes[order])
        ends = np.unique(np.searchsorted(costs, costs[-1] * np.arange(1, count + 1) / count) + 1)
        start = 0
        for end in np.minimum(ends, len(order)).tolist():
            if end > start:
                self._write([self._texts[position] for position in order[start:end]], before + start)
                start = end
        self._clear()

    def _write(self, texts: Sequence[Cell], first: int) -> None:
        size = sum(min(text_cost(text), self._limit) + _TEXT_OVERHEAD for text in texts)
        block = Block(len(self._blocks), self._side, first, len(texts), size)
        self._blocks.append(block)
        table, stream = pack_cells(texts), pa.BufferOutputStream()
        with pa.ipc.new_file(stream, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
            writer.write_table(table)
        self._folder.write(block.file("texts"), stream.getvalue())
