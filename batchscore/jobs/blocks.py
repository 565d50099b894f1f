"""The distinct texts of a job and their encodings, in its folder: blocks of texts, each of which is encoded once.

A block is to encoding what a unit is to scoring: its file is complete or absent, and that it is there is the whole
state. Which texts a block has is decided once, from the input alone (`jobs/survey.py`), so its bits do not depend on
who encodes it when.

    texts.json                 the blocks, and for each side how many texts there are
    texts-document.index       digest of a text -> its number among those of its side
    block-00003.texts          the texts of a block, and what stands for one, compressed
    block-00003.safetensors    their encodings
    block-00003.progress       what there is of a block that was interrupted
    block-00003.lease          who is encoding it
    _texts.json                sums of what was counted, once the texts are removed

Where the encodings of all documents would fill the disk, the blocks of documents form groups, and units are scored
group by group (`jobs/passes.py`):

    block-00003.counts         what was counted while a block was encoded that is removed by now
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import astuple, dataclass, replace
from functools import cached_property
from tempfile import TemporaryFile
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from batchscore.errors import InputError, RuntimeFailureError, first_line
from batchscore.io.digests import DigestIndex, Digests, digests_of
from batchscore.io.encodings import EncodingsFile
from batchscore.io.packed import unpack_cells
from batchscore.io.storage import Folder
from batchscore.jobs.parts import TEXTS, total
from batchscore.jobs.passes import Passes
from batchscore.jobs.progress import Progress
from batchscore.jobs.records import as_json
from batchscore.media.content import shown
from batchscore.media.policy import MediaPolicy
from batchscore.types import SIDES, Cell, Encodings, Side

COUNTS = "_texts.json"
_HEADER_BYTES = 1 << 12  # the start of a block's file that is read first: its header is nearly always shorter


@dataclass(frozen=True, slots=True)
class Block:
    """Texts of one side that are read, encoded and written as a whole."""

    index: int
    side: Side
    first: int  # number of its first text
    texts: int
    size: int  # bytes of the texts, as far as the model reads them, and for media as many as cost the same

    @property
    def key(self) -> tuple[str, int]:
        """By which processes name it to each other."""
        return "block", self.index

    def file(self, suffix: str = "safetensors") -> str:
        """Name of its encodings, or of another file of the block."""
        return f"block-{self.index:05}.{suffix}"


class Blocks:
    """The distinct texts of one job."""

    def __init__(self, folder: Folder, job: str, description: Mapping[str, Any]) -> None:
        self.folder, self._job = folder, job
        self.blocks = [Block(index, *fields) for index, fields in enumerate(description["blocks"])]
        self.groups = [[self.blocks[index] for index in group] for group in description["groups"]]  # of documents
        self.passes = Passes(folder, job, [sum(block.texts for block in group) for group in self.groups])
        self._of_side = {side: [block for block in self.blocks if block.side == side] for side in SIDES}
        self._starts = {side: np.array([b.first for b in blocks]) for side, blocks in self._of_side.items()}
        self._ends = {side: sum(block.texts for block in blocks) for side, blocks in self._of_side.items()}
        self._open: dict[int, EncodingsFile] = {}
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

    def missing(self, blocks: Sequence[Block]) -> list[Block]:
        """Those of these blocks whose encodings are not there; one list, where `has` would ask for each file."""
        names = set(self.folder.names())
        self._known |= {block.index for block in blocks if block.file() in names}
        return [block for block in blocks if block.index not in self._known]

    def to_encode(self) -> list[Block]:
        """Blocks that have not been encoded yet."""
        removed = {name for name in self.folder.names() if name.endswith(".counts")}
        return [block for block in self.missing(self.blocks) if block.file("counts") not in removed]

    def remove(self, blocks: Sequence[Block]) -> None:
        """Remove encodings that no unit needs any more; another process may do that at the same time."""
        self._close(blocks)
        for block in blocks:
            with suppress(FileNotFoundError):
                self.folder.write(block.file("counts"), as_json(self._note(block)["counts"]))
            self.folder.remove(block.file())
            self._known.discard(block.index)

    def enter(self, group: int) -> None:
        """Let go of the files of other groups: the disk keeps the bytes of one that is removed while it is mapped."""
        for number, blocks in enumerate(self.groups):
            if number != group:
                self._close(blocks)

    def _close(self, blocks: Sequence[Block]) -> None:
        for block in blocks:
            self._open.pop(block.index, None)

    def texts(self, block: Block, media: MediaPolicy | None = None) -> list[Cell]:
        """The texts of a block, in the order of their numbers; RuntimeFailureError if they are damaged or gone.

        `media` says which media the job may read.
        """
        name = block.file("texts")
        # without a root of all, each file lies below that of the input by which it was found
        media = media or MediaPolicy()
        media = replace(media, root=media.root or "/")
        try:
            with pa.ipc.open_file(self.folder.read(name)) as file:
                texts = unpack_cells(file.read_all(), media)
            if len(texts) != block.texts:
                raise ValueError(f"it has {len(texts):,} texts instead of {block.texts:,}")
        except (pa.ArrowException, OSError, ValueError, KeyError) as error:
            self._refuse(name, error)
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

    def sum_up(self) -> None:
        """Keep the counts, for a record that is written after the blocks are removed."""
        self.folder.write(COUNTS, as_json(total(self.counts())))

    def counts(self) -> list[Mapping[str, Any]]:
        """What was counted while blocks were encoded."""
        removed = {name for name in self.folder.names() if name.endswith(".counts")}
        counts = []
        for block in self.blocks:
            with suppress(OSError, ValueError, KeyError):  # not there, or a damaged header that no unit had to read
                if block.file("counts") in removed:
                    counts.append(json.loads(bytes(self.folder.read(block.file("counts")))))
                else:
                    counts.append(self._note(block)["counts"])
        return counts

    def find(self, side: Side, texts: Sequence[Cell]) -> tuple[NDArray[np.int64], Digests]:
        """(int64 [n], the number of each text; their digests).

        Raises:
            RuntimeFailureError: a text was not there when the job began, or the index is damaged or gone.
        """
        digests = digests_of(texts)
        numbers = self._index[side].find(digests)
        if (is_missing := (numbers < 0) | (numbers >= self._ends[side])).any():
            text = texts[int(np.flatnonzero(is_missing)[0])]
            self.folder.remove(TEXTS)
            raise RuntimeFailureError(
                f"the {side} {shown(text)[:60]!r} is not among the texts that were collected",
                hint="if the input has changed, start again with --overwrite; else run the same command again",
            )
        return numbers, digests

    def take(self, side: Side, numbers: NDArray[np.int64], digests: Digests) -> Encodings:
        """The encodings of texts whose numbers ascend; their blocks must be there.

        Args:
            side: of the texts.
            numbers: int64 [n], of the texts.
            digests: uint64 [n, 2], of the texts: no damage to an index gives a text the vectors of another.

        Raises:
            RuntimeFailureError: a block is damaged; it is removed.
        """
        parts, start = [], 0
        for block, texts in self._by_block(side, numbers):
            file, stop = self._file(block), start + len(texts)
            if (file.digests[texts] != digests[start:stop]).any():
                self._refuse(block.file(), ValueError("it has other texts"))
            parts.append(file.encodings.take(texts))
            start = stop
        return Encodings.concat(parts)

    def sizes(self, side: Side, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """int64 [n]: bytes of the encodings of texts whose numbers ascend; errors as `take`."""
        sizes = [np.empty(0, np.int64)]
        for block, texts in self._by_block(side, numbers):
            encodings = self._file(block).encodings
            width = encodings.values.itemsize * encodings.values.shape[1]
            sizes.append(np.diff(encodings.offsets)[texts] * width)
        return np.concatenate(sizes)

    def _by_block(self, side: Side, numbers: NDArray[np.int64]) -> Iterator[tuple[Block, NDArray[np.int64]]]:
        """(block, which of its texts) of texts whose numbers ascend."""
        blocks = np.searchsorted(self._starts[side], numbers, side="right") - 1
        for rows in np.split(np.arange(len(numbers)), np.flatnonzero(np.diff(blocks)) + 1):
            if len(rows):
                block = self._of_side[side][int(blocks[rows[0]])]
                yield block, numbers[rows] - block.first

    def group_of(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """int64 [n]: the group of documents with these numbers."""
        firsts = np.array([group[0].first for group in self.groups if group])
        return np.searchsorted(firsts, numbers, side="right") - 1

    # ---- files

    @cached_property
    def _index(self) -> dict[Side, DigestIndex]:
        return {side: self._opened(index_file(side)) for side in SIDES}

    def _opened(self, name: str) -> DigestIndex:
        try:
            return DigestIndex.open(self._mapped(name), name)
        except (InputError, pa.ArrowException, OSError) as error:
            self._refuse(name, error)

    def _mapped(self, name: str) -> pa.Buffer:
        """A file's bytes, from the disk as they are read: a file of an object store is copied there."""
        content = self.folder.read(name)
        if self.folder.is_local or not content.size:
            return content
        with TemporaryFile() as file:  # it has no name, so that it goes with its mapping, however the process ends
            file.write(content)
            file.flush()
            return pa.py_buffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))

    def _file(self, block: Block) -> EncodingsFile:
        if block.index not in self._open:
            try:
                file = EncodingsFile.of_bytes(self._mapped(block.file()), block.file())
                if (file.note["job"], len(file.encodings)) != (self._job, block.texts):
                    raise ValueError("it belongs to another job")
            except (InputError, pa.ArrowException, OSError, ValueError, KeyError) as error:
                self._refuse(block.file(), error)
            self._open[block.index] = file
        return self._open[block.index]

    def _refuse(self, name: str, error: Exception) -> NoReturn:
        """Remove a damaged file, and the list of blocks where the next run is to collect texts again."""
        is_gone = isinstance(error, FileNotFoundError)
        if not (is_gone and name.endswith(".safetensors")):  # these another process may have removed
            self.folder.remove(TEXTS)
        self.folder.remove(name)
        what = "is gone" if is_gone else "was damaged and has been removed"
        raise RuntimeFailureError(
            f"{self.folder.path}/{name} {what}: {first_line(error)}",
            hint="run the same command again: only the texts of this file are encoded again",
        ) from error

    def _note(self, block: Block) -> Any:
        """What was written beside the encodings; of the file only its start is read."""
        start = self.folder.read_start(block.file(), _HEADER_BYTES)
        size = 8 + int.from_bytes(start.slice(0, 8).to_pybytes(), "little")
        start = start if size <= start.size else self.folder.read_start(block.file(), size)
        header = json.loads(start.slice(8, size - 8).to_pybytes())
        return json.loads(header["__metadata__"]["batchscore"])["note"]


def index_file(side: Side) -> str:
    """Name of the index of a side's texts."""
    return f"texts-{side}.index"


def open_blocks(folder: Folder, job: str) -> Blocks | None:
    """The texts of a job, if they were collected already."""
    try:
        description = json.loads(bytes(folder.read(TEXTS)))
        return Blocks(folder, job, description) if description["job"] == job else None
    except (OSError, ValueError, LookupError, TypeError):
        return None


def summed_counts(folder: Folder, job: str) -> Mapping[str, Any]:
    """What was counted while the texts of a job were encoded, if they were and are."""
    if (blocks := open_blocks(folder, job)) is not None:
        return total(blocks.counts())
    with suppress(OSError, ValueError):
        counts: Mapping[str, Any] = json.loads(bytes(folder.read(COUNTS)))
        return counts
    return {}


def describe(job: str, blocks: Sequence[Block], groups: Sequence[Sequence[Block]]) -> bytes:
    """The content of texts.json."""
    return as_json(
        {
            "job": job,
            "blocks": [astuple(block)[1:] for block in blocks],
            "groups": [[block.index for block in group] for group in groups],
        }
    )
