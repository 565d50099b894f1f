"""What a process of a job does next: blocks until all texts are encoded, then its units.

Every process takes any block, its own share first, since all units need nearly all of them. On a disk a block is
claimed by its lease; an object store has none, and there a process leaves others their share as long as any of them
lives.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from batchscore.io.storage import writer_id
from batchscore.io.units import Unit
from batchscore.jobs.blocks import Block, Blocks, Pass
from batchscore.jobs.leases import Leases, Task, workers
from batchscore.jobs.meter import Meter
from batchscore.jobs.parts import Parts
from batchscore.jobs.shards import Shard


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
                    yield None
            # units of processes that are not alive are none to wait for: these encode the group again
            while number < last and self._left(blocks, self.parts.units, number) and not self._is_alone():
                yield None
            if number < last:
                blocks.remove(group)

    def _left(self, blocks: Blocks, units: Sequence[Unit], group: int) -> list[Unit]:
        """Units that have not got the scores of a group."""
        return [unit for unit in units if not self.parts.has(unit) and not blocks.passed(unit, group)]

    def _claim_unit(self, unit: Unit) -> bool:
        return not (self.leases and self.is_dynamic) or self.leases.claim(unit)

    def _encode(self, blocks: Blocks, wanted: Sequence[Block]) -> Iterator[Block | None]:
        mine = self.shard.share(wanted)
        own = {block.index for block in mine}
        order = mine + [block for block in wanted if block.index not in own]
        begun: dict[int, Block] = {}  # by this process
        while missing := [block for block in order if not blocks.has(block)]:
            self._expect([block for block in missing if block.index not in begun], begun.values())
            before = len(begun)
            for block in missing:
                if block.index not in begun and not blocks.has(block) and self._claim(block, own):
                    if self.leases and blocks.has(block):  # finished while its lease was looked at
                        self.leases.release(block)
                        continue
                    begun[block.index] = block
                    yield block
            if len(begun) == before:
                yield None

    def _claim(self, block: Block, own: set[int]) -> bool:
        if self.leases:
            return self.leases.claim(block)
        return block.index in own or self._is_alone()

    def _is_alone(self) -> bool:
        """Whether no other process of the job is alive."""
        return all(worker["process"] == writer_id() for worker in workers(self.parts))

    def _expect(self, missing: Sequence[Block], begun: Collection[Block]) -> None:
        """Tell the meter what this process is to encode: what it has begun, and its share of what nobody has."""
        share = max(1, len(workers(self.parts)))
        self.meter.total_texts = sum(block.texts for block in begun) + sum(block.texts for block in missing) // share
        self.meter.total_size = sum(block.size for block in begun) + sum(block.size for block in missing) / share
