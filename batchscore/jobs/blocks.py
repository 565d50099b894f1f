"""The distinct texts of a job and their encodings, in its folder: blocks of texts, each of which is encoded once.

A block is to encoding what a unit is to scoring: its file is complete or absent, and that it is there is the whole
state. Which texts a block has is decided once, from the input alone (`jobs/survey.py`), so its bits do not depend on
who encodes it when.

    texts.json                 the blocks, and for each side how many texts there are
    texts-document.index       digest of a text -> its number among those of its side
    block-00003.texts          the texts of a block, compressed
    block-00003.safetensors    their encodings
    block-00003.progress       what there is of a block that was interrupted
    block-00003.lease          who is encoding it

Where the encodings of all documents would fill the disk, the blocks of documents form groups. All units are scored as
far as they need a group while its encodings are there; then these are removed, and the next group is encoded:

    part-00012.pass-1          the scores of a unit as far as groups 0 and 1 give them
    block-00003.counts         what was counted while a block was encoded that is removed by now
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from functools import cached_property
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from batchscore.errors import InputError, RuntimeFailureError
from batchscore.io.digests import DigestIndex, Digests, digests_of
from batchscore.io.encodings import EncodingsFile
from batchscore.io.storage import Folder, LocalFolder
from batchscore.io.units import Unit
from batchscore.jobs.parts import TEXTS, part_name
from batchscore.jobs.progress import Progress
from batchscore.jobs.records import as_json
from batchscore.types import SIDES, Encodings, Side

_HEADER_BYTES = 1 << 12  # the start of a block's file that is read first: its header is nearly always shorter


@dataclass(frozen=True, slots=True)
class Block:
    """Texts of one side that are read, encoded and written as a whole."""

    index: int
    side: Side
    first: int  # number of its first text
    texts: int
    size: int  # bytes of the texts, as far as the model reads them: what encoding costs

    @property
    def key(self) -> tuple[str, int]:
        """By which processes name it to each other."""
        return "block", self.index

    def file(self, suffix: str = "safetensors") -> str:
        """Name of its encodings, or of another file of the block."""
        return f"block-{self.index:05}.{suffix}"


@dataclass(frozen=True, slots=True)
class Pass:
    """The rows of a unit whose documents are in one group of blocks."""

    unit: Unit
    group: int
    is_last: bool  # then the unit has all its scores, and is finished

    @property
    def index(self) -> int:
        """The unit's."""
        return self.unit.index

    @property
    def key(self) -> tuple[str, int]:
        """By which processes name it to each other."""
        return f"pass {self.group} of unit", self.index


class Blocks:
    """The distinct texts of one job."""

    def __init__(self, folder: Folder, job: str, description: Mapping[str, Any]) -> None:
        self.folder, self._job = folder, job
        self.blocks = [Block(index, *fields) for index, fields in enumerate(description["blocks"])]
        self.groups = [[self.blocks[index] for index in group] for group in description["groups"]]  # of documents
        self._of_side = {side: [block for block in self.blocks if block.side == side] for side in SIDES}
        self._starts = {side: np.array([b.first for b in blocks]) for side, blocks in self._of_side.items()}
        self._open: dict[int, Encodings] = {}
        self._known: set[int] = set()  # blocks that were there when last looked at: none is removed during a run

    @property
    def num_texts(self) -> int:
        """Distinct texts of both sides."""
        return sum(block.texts for block in self.blocks)

    def has(self, block: Block) -> bool:
        """Whether a block is encoded."""
        if block.index not in self._known and self.folder.has(block.file()):
            self._known.add(block.index)
        return block.index in self._known

    @property
    def queries(self) -> list[Block]:
        """Blocks of queries, whose encodings stay until the job ends."""
        return self._of_side["query"]

    def missing(self) -> list[Block]:
        """Blocks that have not been encoded yet."""
        removed = {name for name in self.folder.names() if name.endswith(".counts")}
        return [block for block in self.blocks if block.file("counts") not in removed and not self.has(block)]

    def remove(self, blocks: Sequence[Block]) -> None:
        """Remove encodings that no unit needs any more."""
        for block in blocks:
            if self.has(block):
                self.folder.write(block.file("counts"), as_json(self._note(block)["counts"]))
                self.folder.remove(block.file())
            self._open.pop(block.index, None)
            self._known.discard(block.index)

    def texts(self, block: Block) -> list[str]:
        """The texts of a block, in the order of their numbers."""
        with pa.ipc.open_file(self.folder.read(block.file("texts"))) as file:
            texts: list[str] = file.read_all()["text"].to_pylist()
        return texts

    def write(self, block: Block, digests: Digests, encodings: Encodings, counts: Mapping[str, Any]) -> None:
        """Finish a block."""
        note = {"job": self._job, "block": block.index, "counts": dict(counts)}
        self.folder.write(block.file(), EncodingsFile(encodings, digests, note).to_bytes())
        self._known.add(block.index)
        self.folder.remove(block.file("progress"))

    def progress(self, block: Block) -> Progress:
        """What there is of a block that is not finished."""
        return Progress(self.folder, block.file("progress"), {"job": self._job, "block": block.index})

    def counts(self) -> list[Mapping[str, Any]]:
        """What was counted while blocks were encoded."""
        removed = {name for name in self.folder.names() if name.endswith(".counts")}
        return [
            json.loads(bytes(self.folder.read(block.file("counts"))))
            if block.file("counts") in removed
            else self._note(block)["counts"]
            for block in self.blocks
            if block.file("counts") in removed or self.has(block)
        ]

    def find(self, side: Side, texts: Sequence[str]) -> NDArray[np.int64]:
        """int64 [n]: the number of each text.

        Raises:
            RuntimeFailureError: a text was not there when the job began.
        """
        numbers = self._index[side].find(digests_of(texts))
        if (numbers < 0).any():
            text = texts[int(np.flatnonzero(numbers < 0)[0])]
            raise RuntimeFailureError(
                f"the {side} {text[:60]!r} was not in the input when the job began",
                hint="the input has changed: start again with --overwrite",
            )
        return numbers

    def take(self, side: Side, numbers: NDArray[np.int64]) -> Encodings:
        """The encodings of texts, in this order; their blocks must be there.

        Raises:
            RuntimeFailureError: a block is damaged; it is removed.
        """
        order, parts = np.argsort(numbers, kind="stable"), []
        for block, texts in self._by_block(side, numbers[order]):
            parts.append(self._encodings(block).take(texts))
        return Encodings.concat(parts).take(np.argsort(order, kind="stable"))

    def sizes(self, side: Side, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """int64 [n]: bytes of the encodings of texts; errors as `take`."""
        order, sizes = np.argsort(numbers, kind="stable"), np.empty(len(numbers), np.int64)
        parts = []
        for block, texts in self._by_block(side, numbers[order]):
            encodings = self._encodings(block)
            width = encodings.values.itemsize * encodings.values.shape[1]
            parts.append(np.diff(encodings.offsets)[texts] * width)
        sizes[order] = np.concatenate([np.empty(0, np.int64), *parts])
        return sizes

    def _by_block(self, side: Side, numbers: NDArray[np.int64]) -> Iterator[tuple[Block, NDArray[np.int64]]]:
        """(block, which of its texts) of texts in ascending order."""
        blocks = np.searchsorted(self._starts[side], numbers, side="right") - 1
        for rows in np.split(np.arange(len(numbers)), np.flatnonzero(np.diff(blocks)) + 1):
            if len(rows):
                block = self._of_side[side][int(blocks[rows[0]])]
                yield block, numbers[rows] - block.first

    # ---- passes

    def passed(self, unit: Unit, group: int) -> bool:
        """Whether a unit that is not finished has the scores that this group gives."""
        return any(self.folder.has(_pass_file(unit, done)) for done in range(group, len(self.groups) - 1))

    def save_pass(self, task: Pass, rows: Encodings) -> None:
        """Keep what is known of a unit's rows: raw scores as their vectors, tokens, cuts and faults."""
        note = {"job": self._job, "unit": task.index, "group": task.group}
        digests = np.empty((0, 2), np.uint64)
        self.folder.write(_pass_file(task.unit, task.group), EncodingsFile(rows, digests, note).to_bytes())
        for before in range(task.group):
            self.folder.remove(_pass_file(task.unit, before))

    def saved_pass(self, task: Pass) -> Encodings:
        """What the pass before this one kept; RuntimeFailureError if it is damaged or gone."""
        name = _pass_file(task.unit, task.group - 1)
        try:
            return EncodingsFile.of_bytes(self.folder.read(name), name).encodings
        except (FileNotFoundError, InputError) as error:
            self.folder.remove(name)
            raise RuntimeFailureError(
                f"{self.folder.path}/{name} is damaged or gone",
                hint="run the same command again: only this unit's rows are scored again",
            ) from error

    def group_of(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """int64 [n]: the group of documents with these numbers."""
        firsts = np.array([group[0].first for group in self.groups if group])
        return np.searchsorted(firsts, numbers, side="right") - 1

    # ---- files

    @cached_property
    def _index(self) -> dict[Side, DigestIndex]:
        return {side: DigestIndex.open(self._mapped(index_file(side)), index_file(side)) for side in SIDES}

    @cached_property
    def _copies(self) -> TemporaryDirectory[str]:
        """Where files of an object store are put to be mapped."""
        return TemporaryDirectory(prefix="batchscore-")

    def _mapped(self, name: str) -> pa.Buffer:
        if self.folder.is_local:
            return self.folder.read(name)
        copies = LocalFolder(self._copies.name)
        if not copies.has(name):
            copies.write(name, self.folder.read(name))
        return copies.read(name)

    def _encodings(self, block: Block) -> Encodings:
        if block.index not in self._open:
            name = f"{self.folder.path}/{block.file()}"
            try:
                file = EncodingsFile.of_bytes(self._mapped(block.file()), name)
                if (file.note["job"], len(file.encodings)) != (self._job, block.texts):
                    raise InputError(f"{name} belongs to another job")
            except InputError as error:
                self._known.discard(block.index)
                self.folder.remove(block.file())
                raise RuntimeFailureError(
                    f"{error.message}; it has been removed",
                    hint="run the same command again: only its texts are encoded again",
                ) from error
            self._open[block.index] = file.encodings
        return self._open[block.index]

    def _note(self, block: Block) -> Any:
        """What was written beside the encodings; of the file only its start is read."""
        start = self.folder.read_start(block.file(), _HEADER_BYTES)
        size = 8 + int.from_bytes(start.slice(0, 8).to_pybytes(), "little")
        start = start if size <= start.size else self.folder.read_start(block.file(), size)
        header = json.loads(start.slice(8, size - 8).to_pybytes())
        return json.loads(header["__metadata__"]["batchscore"])["note"]


def _pass_file(unit: Unit, group: int) -> str:
    return part_name(unit.index, f"pass-{group}")


def index_file(side: Side) -> str:
    """Name of the index of a side's texts."""
    return f"texts-{side}.index"


def open_blocks(folder: Folder, job: str) -> Blocks | None:
    """The texts of a job, if they were collected already."""
    try:
        description = json.loads(bytes(folder.read(TEXTS)))
    except (FileNotFoundError, ValueError):
        return None
    return Blocks(folder, job, description) if description.get("job") == job else None


def describe(job: str, blocks: Sequence[Block], groups: Sequence[Sequence[Block]]) -> bytes:
    """The content of texts.json."""
    return as_json(
        {
            "job": job,
            "blocks": [astuple(block)[1:] for block in blocks],
            "groups": [[block.index for block in group] for group in groups],
        }
    )
