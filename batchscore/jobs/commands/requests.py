"""`run-batch`: lines with requests of the scoring API in, and for each a line with its answer out, in the same order.

Pairs of many requests are one window, whatever the options of each (`engine/layouts.py`). Whatever is wrong with a line
is its own answer. Of several models one is in memory at a time: every line is read in the pass of each of them, and
answered in that of its own.

An answer is the same bytes whenever and wherever it is made: its ids are digests of the line and its number, and its
`created` is the time of the file with the requests.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from hashlib import blake2b
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from batchscore.engine.layouts import Options, RequestPairs
from batchscore.engine.ranking import rank_rows
from batchscore.io.cells import Collected
from batchscore.io.outputs import Layout
from batchscore.io.raw_lines import LINE
from batchscore.io.source import Chunk, Source
from batchscore.io.units import Unit
from batchscore.jobs.commands.base import BadRow, Counts
from batchscore.jobs.parts import Fingerprint, Parts
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
from batchscore.types import Cells, Fault, Faults, Pairs, Scores, Side, offsets_of

ANSWER = "answer"  # the column of a part with the lines of the output
_ROW = "row"  # of the unit, by which the answers of several models are put in order
_ROWS_SHARE, _UNIT_BYTES = 4, 8 << 20  # a line has some pairs: of a unit's rows this share, and fewer where it has many
_OPTIONS = (  # of a request, that decide how its texts are laid out and its scores read
    *("truncate_prompt_tokens", "truncation_side", "padding", "max_tokens_per_query", "max_tokens_per_doc"),
    *("instruction", "chat_template_kwargs", "mm_processor_kwargs", "use_activation"),
)


@dataclass(frozen=True)
class RequestsCommand:
    """What `run-batch` reads and writes besides the models."""

    name: ClassVar[str] = "run-batch"

    models: Sequence[str]  # the names under which they are served
    limit: int | None = None

    def check(self, source: Source) -> None:
        """Nothing: a bad line is answered."""

    def lines(self, source: Source) -> list[str]:
        """Under which names models are asked for."""
        return [f"serves   {', '.join(self.models)}"]

    def units(self, source: Source, unit_rows: int, *, listwise: bool) -> list[Unit]:
        """Units of lines, each once for each model, one after the other; every one counts for a share of its lines."""
        units = source.units(max(1, unit_rows // _ROWS_SHARE), size=_UNIT_BYTES, limit=self.limit)
        count = len(self.models)
        return [
            Unit(
                unit.index * count + model,
                tuple(replace(span, rows=(span.rows + model) // count) for span in unit.spans),
            )
            for unit in units
            for model in range(count)
        ]

    def model_of(self, unit: Unit) -> int:
        """Which model a unit needs."""
        return unit.index % len(self.models)

    def load(self, source: Source, unit: Unit) -> RequestRows:
        """One pair for each score that the model of this unit is asked for."""
        chunk = source.read(unit, None, {})
        times = [_seconds(source.fingerprint()[span.file]["modified"]) for span in unit.spans]
        asked = list(self._asked(chunk, times, self.model_of(unit)))
        return RequestRows.of(unit, chunk, asked)

    def load_pairs(self, source: Source, unit: Unit) -> RequestRows:
        """The same: nothing is read besides the pairs."""
        return self.load(source, unit)

    def merged(self, parts: Parts, units: Sequence[int], scratch: str, layout: Layout = "own") -> Generator[pa.Table]:
        """The answers in the order of the requests."""
        count, found = len(self.models), dict[int, list[int]]()
        for unit in units:
            found.setdefault(unit // count, []).append(unit)
        for passes in found.values():
            yield pa.concat_tables(map(parts.read, passes)).sort_by(_ROW).select([ANSWER])

    def finished(self, part: pa.Table, job: Fingerprint) -> Iterator[pa.Table]:
        """The answers of one part."""
        yield part.select([ANSWER])

    def _asked(self, chunk: Chunk, times: Sequence[int], model: int) -> Iterator[_Asked]:
        """The lines that the pass of a model answers; those that name none belong to the first."""
        lines = iter(enumerate(chunk.table[LINE].to_pylist()))
        first: dict[str, str] = {}  # by custom_id: which line of the unit had it first
        for block, finder, created in zip(chunk.blocks, chunk.finders, times, strict=True):
            for number in block.numbers:
                asked = self._read(*next(lines), number, created, finder)
                if asked.custom_id is not None:
                    place = f"{block.file}, line {number}"
                    if (before := first.setdefault(asked.custom_id, place)) != place:
                        asked.warnings.append(f"custom_id: that of {before} too")
                if asked.model == model:
                    yield asked

    def _read(self, row: int, line: bytes, number: int, created: int, finder: MediaFinder) -> _Asked:
        key = blake2b(b"%d %b" % (number, line), digest_size=16).hexdigest()
        asked = _Asked(row, key, created, finder, self.models[0])
        try:
            batch = read(BatchLine, line)
            asked.custom_id = batch.custom_id
            asked.warnings += [f"{name}: unknown field" for name in batch.model_extra or ()]
            asked.request = request = batch.request
            asked.warnings += [f"body.{name}: unknown field" for name in request.unknown]
            if request.model is not None and request.model not in self.models:
                raise RequestError(
                    f"The model `{request.model}` does not exist. Models: {', '.join(self.models)}", "model", 404
                )
            asked.name = request.model or self.models[0]
            asked.model = self.models.index(asked.name)
        except RequestError as error:
            asked.error = error
            asked.custom_id = asked.custom_id or _custom_id(line)
        return asked


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


@dataclass(frozen=True, slots=True)
class RequestScores:
    """The scores of some pairs, with what answers say beside them."""

    scores: Scores
    rank_by: NDArray[np.float32]  # [rows]
    query_tokens: NDArray[np.int32]  # [rows], of the query where it is read by itself, else 0
    warnings: Mapping[int, Sequence[str]]  # of the option sets of these pairs, by code

    @property
    def cut(self) -> NDArray[np.uint8]:
        """As of `Scores`."""
        return self.scores.cut

    @property
    def num_tokens(self) -> NDArray[np.int32]:
        """As of `Scores`."""
        return self.scores.num_tokens

    def tokens(self, *, shares_query: bool) -> int:
        """Tokens that the model read for one request, whose query may be that of all its pairs."""
        again = int(self.query_tokens[1:].sum()) if shares_query else 0
        return int(self.scores.num_tokens.sum()) - again

    def take(self, rows: NDArray[np.integer]) -> RequestScores:
        """Some rows."""
        return RequestScores(self.scores.take(rows), self.rank_by[rows], self.query_tokens[rows], self.warnings)

    @classmethod
    def concat(cls, parts: Sequence[RequestScores]) -> RequestScores:
        """The rows of all parts, one after the other."""
        return cls(
            Scores.concat([part.scores for part in parts]),
            np.concatenate([np.empty(0, np.float32), *(part.rank_by for part in parts)]),
            np.concatenate([np.empty(0, np.int32), *(part.query_tokens for part in parts)]),
            {code: warnings for part in parts for code, warnings in part.warnings.items()},
        )


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
    def of(cls, unit: Unit, chunk: Chunk, asked: Sequence[_Asked]) -> RequestRows:
        """The pairs of these lines; one with a query or document that cannot be read has an error from now on."""
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
        return pa.table({_ROW: rows, ANSWER: pa.array(answers, pa.large_string())}), {}

    def before(self, table: pa.Table, row: int) -> pa.Table:
        """The answers to the lines before this one."""
        return table.filter(pc.less(table[_ROW], row))

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


def _seconds(modified: str | None) -> int:
    """Seconds since 1970; 0 where a file has no time."""
    return 0 if modified is None else int(datetime.fromisoformat(modified).timestamp())
