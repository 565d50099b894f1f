"""What lines with requests ask for, and the lines that answer them.

Whatever is wrong with a line is its own answer: nothing here ends a run.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from batchscore.engine.layouts import Options, RequestPairs
from batchscore.engine.ranking import rank_rows
from batchscore.io.cells import Collected
from batchscore.io.raw_lines import LINE
from batchscore.io.source import Chunk
from batchscore.io.units import Unit
from batchscore.jobs.commands.base import BadRow, Counts
from batchscore.jobs.commands.requests import ANSWER, ROW, RequestScores
from batchscore.media.content import read_cell
from batchscore.media.find import MediaFinder
from batchscore.requests import (
    BatchAnswer,
    BatchLine,
    BatchResponse,
    RequestError,
    RerankRequest,
    ScoreRequest,
    read,
)
from batchscore.types import Cells, Fault, Faults, Pairs, Side, offsets_of

_OPTIONS = (  # of a request, that decide how its texts are laid out and its scores read
    *("truncate_prompt_tokens", "truncation_side", "padding", "max_tokens_per_query", "max_tokens_per_doc"),
    *("instruction", "chat_template_kwargs", "mm_processor_kwargs", "use_activation"),
)


@dataclass(slots=True)
class _Asked:
    """A line with a request."""

    row: int  # of the unit
    key: str  # of this line alone
    created: int  # seconds since 1970
    finder: MediaFinder
    name: str  # of the model
    model: int = 0
    custom_id: str | None = None
    request: ScoreRequest | RerankRequest | None = None
    error: RequestError | None = None
    warnings: list[str] = field(default_factory=list)

    @property
    def sides(self) -> tuple[Sequence[Any], Sequence[Any]]:
        """Queries and documents; none of a line that has an error."""
        return ((), ()) if self.request is None or self.error is not None else self.request.sides

    @property
    def options(self) -> Options:
        """Those that the request sets."""
        assert self.request is not None
        given = {name: getattr(self.request, name) for name in _OPTIONS if name in self.request.model_fields_set}
        return {name: value for name, value in given.items() if value is not None}

    def place(self, side: Side, index: int) -> str:
        """What this request calls one of its queries or documents."""
        assert self.request is not None
        return self.request.place(side, index)

    @property
    def request_id(self) -> str:
        """That of the request, or else a digest."""
        return self.key if self.request is None or self.request.request_id is None else self.request.request_id

    def answer(self, scores: RequestScores | None, warnings: Sequence[str]) -> str:
        """The line that answers it; with an error if there are no scores."""
        body = None if scores is None else self._body(scores)
        error = self.error
        return BatchAnswer(
            id=f"batchscore-{self.key}",
            custom_id=self.custom_id,
            response=BatchResponse(status_code=error.status if error else 200, request_id=self.request_id, body=body),
            error=error.response if error else None,
            warnings=[*self.warnings, *warnings],
        ).model_dump_json()

    def _body(self, scores: RequestScores) -> Any:
        request, found = self.request, scores.scores.score[:, 0].tolist()
        tokens = scores.tokens(shares_query=request is not None and len(request.sides[0]) == 1)
        if isinstance(request, RerankRequest):
            size = len(found)
            order, _ = rank_rows(np.zeros(size, np.int32), np.arange(size), scores.rank_by)
            return request.response(found, order.tolist(), tokens, request_id=self.request_id, model=self.name)
        assert request is not None
        return request.response(found, tokens, request_id=self.request_id, created=self.created, model=self.name)


@dataclass(slots=True)
class RequestRows:
    """The lines of a unit that one model answers."""

    unit: Unit
    chunk: Chunk
    asked: Sequence[_Asked]
    pairs: RequestPairs
    bad_rows: Sequence[BadRow]
    owners: NDArray[np.int64]  # [pairs], which of `asked` a pair is of
    faults: Faults = field(default_factory=dict)  # of pairs, as far as `bad_row` was asked for them

    @classmethod
    def of(cls, unit: Unit, chunk: Chunk, times: Sequence[int], models: Sequence[str], model: int) -> RequestRows:
        """The lines that one of the models answers; one with a query or document that cannot be read has an error.

        Args:
            unit: of lines.
            chunk: its lines.
            times: of the file of each block, in seconds since 1970.
            models: the names under which they are served.
            model: which of them.
        """
        asked = list(_asked(chunk, times, models, model))
        sides = [one.sides for one in asked]
        queries = _cells(asked, "query", [listed for listed, _ in sides])
        documents = _cells(asked, "document", [listed for _, listed in sides])
        counts, sizes = ([len(listed[side]) for listed in sides] for side in (0, 1))
        owners = np.repeat(np.arange(len(asked)), sizes)
        index = np.arange(len(owners)) - offsets_of(sizes)[owners]
        left = offsets_of(counts)[owners] + np.where(np.array(counts, np.int64)[owners] == 1, 0, index)
        # a listwise model reads all documents of one query together
        pairs = Pairs(Cells(queries.values, queries.codes[left]), documents, lists=left)
        if any(one.error for one in asked):
            good = np.flatnonzero(np.array([one.error is None for one in asked])[owners])
            pairs, owners = pairs.rows(good), owners[good]
        codes, sets = _option_sets(asked)
        bad = [
            BadRow.of(chunk, one.row, Fault("request", one.error.message), column=one.error.param)
            for one in asked
            if one.error
        ]
        return cls(unit, chunk, asked, RequestPairs(pairs, codes[owners], sets), bad, owners)

    def bad_row(self, pair: int, fault: Fault) -> BadRow:
        """A pair's fault as that of its line, whose answer will be an error."""
        self.faults[pair] = fault
        owner = int(self.owners[pair])
        index = pair - int(np.searchsorted(self.owners, owner))
        return BadRow.of(self.chunk, self.asked[owner].row, fault, index, self.asked[owner].place("document", index))

    def table(self, pairs: NDArray[np.int64], scores: RequestScores, *, keep_bad: bool) -> tuple[pa.Table, Counts]:
        """The answers to all lines."""
        starts = np.searchsorted(self.owners, np.arange(len(self.asked) + 1))
        place = np.full(len(self.owners), -1)
        place[pairs] = np.arange(len(pairs))
        answers = [
            self._answer(one, slice(start, stop), place[start:stop], scores)
            for one, start, stop in zip(self.asked, starts[:-1].tolist(), starts[1:].tolist(), strict=True)
        ]
        rows = pa.array([one.row for one in self.asked], pa.int32())
        return pa.table({ROW: rows, ANSWER: pa.array(answers, pa.large_string())}), {}

    def before(self, table: pa.Table, row: int) -> pa.Table:
        """The answers to the lines before this one."""
        return table.filter(pc.less(table[ROW], row))

    def _answer(self, one: _Asked, pairs: slice, places: NDArray[np.int64], scores: RequestScores) -> str:
        missing = np.flatnonzero(places < 0)
        if one.error is None and len(missing):
            fault = self.faults[pairs.start + int(missing[0])]
            one.error = RequestError.of(fault, one.place("document", int(missing[0])))
        if one.error is not None:
            return one.answer(None, ())
        return one.answer(scores.take(places), scores.warnings[int(self.pairs.codes[pairs.start])])


def _cells(asked: Sequence[_Asked], side: Side, listed: Sequence[Sequence[Any]]) -> Cells:
    """The queries, or the documents, of all lines; a line of which one cannot be read gets its error."""
    values = [value for of_line in listed for value in of_line]
    if all(isinstance(value, str) for value in values):
        return Cells.of(values)
    places = [(one, index) for one, of_line in zip(asked, listed, strict=True) for index in range(len(of_line))]
    faults: Faults = {}
    cells = Collected(lambda place: places[place][0].place(side, places[place][1]), faults)
    for (one, _), value in zip(places, values, strict=True):
        cells.add(partial(read_cell, value, one.finder))
    encoded = cells.encoded()
    for place in sorted(faults):
        one, _ = places[place]
        one.error = one.error or RequestError.of(faults[place], str(faults[place].column))
    return encoded


def _option_sets(asked: Sequence[_Asked]) -> tuple[NDArray[np.int32], list[Options]]:
    """(int32 [lines], which set of options each has; the sets)."""
    known: dict[str, int] = {}
    sets: list[Options] = []
    codes = np.zeros(len(asked), np.int32)
    for line, one in enumerate(asked):
        options = {} if one.error else one.options
        codes[line] = known.setdefault(json.dumps(options, sort_keys=True), len(known))
        if codes[line] == len(sets):
            sets.append(options)
    return codes, sets


def _custom_id(line: bytes) -> str | None:
    """What tells a person which line this was, if anything does."""
    try:
        found = json.loads(line).get("custom_id")
    except (ValueError, RecursionError, AttributeError):
        return None
    return found if isinstance(found, str) else None


def _asked(chunk: Chunk, times: Sequence[int], models: Sequence[str], model: int) -> Iterator[_Asked]:
    """The lines that the pass of a model answers; those that name none belong to the first."""
    lines = iter(enumerate(chunk.table[LINE].to_pylist()))
    first: dict[str, str] = {}  # by custom_id: which line of the unit had it first
    for block, finder, created in zip(chunk.blocks, chunk.finders, times, strict=True):
        for number in block.numbers:
            asked = _read(*next(lines), number, created, finder, models)
            if asked.custom_id is not None:
                place = f"{block.file}, line {number}"
                if (before := first.setdefault(asked.custom_id, place)) != place:
                    asked.warnings.append(f"custom_id: that of {before} too")
            if asked.model == model:
                yield asked


def _read(row: int, line: bytes, number: int, created: int, finder: MediaFinder, models: Sequence[str]) -> _Asked:
    key = blake2b(b"%d %b" % (number, line), digest_size=16).hexdigest()
    asked = _Asked(row, key, created, finder, models[0])
    try:
        batch = read(BatchLine, line)
        asked.custom_id = batch.custom_id
        asked.warnings += [f"{name}: unknown field" for name in batch.model_extra or ()]
        asked.request = request = batch.request
        asked.warnings += [f"body.{name}: unknown field" for name in request.unknown]
        if request.model is not None and request.model not in models:
            raise RequestError(f"The model `{request.model}` does not exist. Models: {', '.join(models)}", "model", 404)
        asked.name = request.model or models[0]
        asked.model = models.index(asked.name)
    except RequestError as error:
        asked.error = error
        asked.custom_id = asked.custom_id or _custom_id(line)
    return asked
