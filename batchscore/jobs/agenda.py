"""What a process of a job does next: blocks until all texts are encoded, then its units.

Every process takes any block, its own share first, since all units need nearly all of them. On a disk a block is
claimed by its lease; an object store has none, and there a process leaves others their share as long as any of them
lives.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from batchscore.io.storage import writer_id
from batchscore.io.units import Unit
from batchscore.jobs.blocks import Block, Blocks
from batchscore.jobs.leases import Leases, Task, workers
from batchscore.jobs.meter import Meter
from batchscore.jobs.parts import Parts, part_name
from batchscore.jobs.passes import Pass
from batchscore.jobs.shards import Shard, find_shard


@dataclass(frozen=True)
class Agenda:
    """The tasks of one process."""

    parts: Parts
    blocks: Blocks | None  # None: units have all they need
    shard: Shard
    leases: Leases | None  # None: the folder has none
    is_dynamic: bool
    meter: Meter

    def tasks(self, todo: Sequence[Unit]) -> Iterator[Task | None]:
        """Tasks in the order in which they are to be begun; None where it is not time for the next one."""
        if self.blocks and len(self.blocks.groups) > 1:
            yield from self._in_groups(self.blocks, todo)
            return
        if self.blocks:
            yield from self._encode(self.blocks, self.blocks.blocks)
        if self.leases and self.is_dynamic:
            yield from self.leases.claimed(todo)
        else:
            yield from todo

    def _in_groups(self, blocks: Blocks, todo: Sequence[Unit]) -> Iterator[Task | None]:
        """Each group of blocks, then the rows that need it, until there is no further group."""
        yield from self._encode(blocks, blocks.queries)
        last = len(blocks.groups) - 1
        for number, group in enumerate(blocks.groups):
            if self._left(blocks, todo, number):
                yield from self._encode(blocks, group)
            begun: set[int] = set()
            while left := self._left(blocks, todo, number):
                before = len(begun)
                for unit in left:
                    if unit.index not in begun and self._claim_unit(unit):
                        begun.add(unit.index)
                        yield Pass(unit, number, number == last)
                if len(begun) == before:
                    yield from self._wait()
            while number < last and self._left(blocks, self._units_of_others(), number):
                yield from self._wait()
            if number < last:
                blocks.remove(group)

    def _left(self, blocks: Blocks, units: Sequence[Unit], group: int) -> list[Unit]:
        """Units that have not got the scores of a group."""
        names = set(self.parts.folder.names()) if units else set()
        return [unit for unit in units if names.isdisjoint((part_name(unit.index), *blocks.passes.files(unit, group)))]

    def _units_of_others(self) -> list[Unit]:
        """Units of other processes that are alive. One that begins later encodes again what it needs."""
        shards = {find_shard(worker["shard"], {}) for worker in self._others()}
        return [unit for shard in shards for unit in shard.share(self.parts.units)]

    def _claim_unit(self, unit: Unit) -> bool:
        return not (self.leases and self.is_dynamic) or self.leases.claim(unit)

    def _encode(self, blocks: Blocks, wanted: Sequence[Block]) -> Iterator[Block | None]:
        mine = set(self.shard.share(wanted))
        begun: dict[int, Block] = {}  # by this process
        while missing := blocks.missing(wanted):
            free = [block for block in missing if block.index not in begun]
            others = self._others()
            self._expect(free, begun.values(), len(others) + 1)
            before = len(begun)
            for block in sorted(free, key=lambda block: block not in mine):
                if (self.leases or not others or block in mine) and self._claim(blocks, block):
                    begun[block.index] = block
                    yield block
            if len(begun) == before:
                yield from self._wait()

    def _wait(self) -> Iterator[None]:
        """Nothing is ready; OutputError if nothing will be, because another run has merged the folder."""
        self.parts.require_ours()
        yield None

    def _claim(self, blocks: Blocks, block: Block) -> bool:
        if blocks.has(block) or not (self.leases is None or self.leases.claim(block)):
            return False
        if self.leases and blocks.has(block):  # finished while its lease was looked at
            self.leases.release(block)
            return False
        return True

    def _others(self) -> list[dict[str, Any]]:
        """The other processes of the job that are alive."""
        return [worker for worker in workers(self.parts) if worker["process"] != writer_id()]

    def _expect(self, free: Sequence[Block], begun: Collection[Block], share: int) -> None:
        """Tell the meter what this process is to encode: what it has begun, and its share of what nobody has."""
        self.meter.total_texts = sum(block.texts for block in begun) + sum(block.texts for block in free) // share
        self.meter.total_size = sum(block.size for block in begun) + sum(block.size for block in free) / share
