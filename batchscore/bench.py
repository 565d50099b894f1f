"""How quick a model is on this machine: by length, against what the machine multiplies at most, and by size of pack.

Texts are made up, since what a forward costs does not depend on what they say. A figure holds for the moment in which
it was measured: whatever else runs on the machine is in it.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from typing import Any

from batchscore.engine.batcher import Batcher
from batchscore.engine.setup import Setup
from batchscore.engine.timing import Measured, time_scoring
from batchscore.resources import installed_version
from batchscore.runners.attention import attention_path
from batchscore.runners.build import unloaded_runner
from batchscore.runners.peak import matmul_peak
from batchscore.runners.size import ModelSize, flops_of
from batchscore.types import Cells, Pairs

LENGTHS = (32, 128, 512)
_PACKS = (0.25, 0.5, 2.0, 4.0)  # times the size of a pack that is usual on the device
_PACKS_A_ROUND = 16
_LEAST_TOKENS = 1 << 16  # of the rows that are made up
_ROUNDS = 3
_PACKAGES = ("batchscore", "torch", "transformers")
_GAIN = 1.03  # by which another size of pack must be quicker to be proposed: less is noise
_QUERIES = 8
_WORDS = "the river begins as a spring in hills and reaches our old town after four hundred slow miles of quiet water"


@dataclass(frozen=True, slots=True)
class Speed:
    """How quick rows of one length are."""

    tokens: float  # of a row, both sides
    tokens_per_second: float
    pairs_per_second: float
    peak_share: float | None  # of what the device multiplies at most; None: its products are not known

    @property
    def line(self) -> str:
        """For people."""
        share = "" if self.peak_share is None else f" ({self.peak_share:.0%} of peak)"
        speed = f"{self.pairs_per_second:,.1f} pairs/s {self.tokens_per_second:,.0f} tokens/s"
        return f"{self.tokens:.0f} tokens {speed}{share}"


@dataclass(frozen=True)
class Benchmark:
    """What was measured."""

    model: str
    score_type: str
    parameters: int
    device: str
    device_name: str
    numbers: str  # the format of the body's
    workers: int
    load: float  # of the machine before it began: processes that wanted a core
    attention: str
    versions: Mapping[str, str]
    peak_flops: float | None  # multiplications and additions a second in matrix products of the model's shapes
    speeds: Sequence[Speed]
    batch_tokens: int  # of a pack
    packs: Mapping[int, float]  # tokens of a pack -> tokens a second
    best_batch_tokens: int

    def describe(self) -> dict[str, Any]:
        """JSON-able."""
        return {**asdict(self), "line": self.line}

    @property
    def line(self) -> str:
        """All of it, to be pasted into an issue."""
        versions = " ".join(f"{name} {number}" for name, number in self.versions.items())
        speeds = ", ".join(speed.line for speed in self.speeds)
        peak = "" if self.peak_flops is None else f"; peak {self.peak_flops / 1e9:,.0f} GFLOP/s"
        return (
            f"{self.model} ({self.score_type}, {self.parameters / 1e6:,.1f} M) on {self.device} ({self.device_name}), "
            f"{self.numbers}, {self.attention} attention: {speeds}{peak}; packs of {self.batch_tokens:,} tokens, best "
            f"{self.best_batch_tokens:,}; load {self.load:.1f}; {versions}"
        )

    def lines(self) -> list[str]:
        """For people; the last line stands on its own."""
        rows = [f"{'tokens':>10}{'tokens/s':>12}{'pairs/s':>12}{'of peak':>10}"]
        for speed in self.speeds:
            share = "-" if speed.peak_share is None else f"{speed.peak_share:.0%}"
            rows.append(
                f"{speed.tokens:10.0f}{speed.tokens_per_second:12,.0f}{speed.pairs_per_second:12,.1f}{share:>10}"
            )
        packs = [f"{'batch':>10}{'tokens/s':>12}"]
        packs += [f"{tokens:10,}{speed:12,.0f}" for tokens, speed in sorted(self.packs.items())]
        same = self.best_batch_tokens == self.batch_tokens
        advice = "the default is best here" if same else f"--batch-tokens {self.best_batch_tokens} is quicker here"
        return [*rows, "", *packs, advice, "", self.line]


def benchmark(setup: Setup, *, seconds: float, on_step: Callable[[str], None] = lambda line: None) -> Benchmark:
    """Load a model, and time it.

    Args:
        setup: of the model.
        seconds: for each length and each size of pack, in each of three rounds, roughly.
        on_step: gets a line of news before each round.

    Raises:
        BatchscoreError: the model cannot be loaded.
    """
    placement, spec, usual = setup.placement, setup.spec, setup.budget.max_tokens
    size = ModelSize.of(unloaded_runner(setup.checkpoint, spec, trust_remote_code=setup.trust_remote_code).model)
    lengths = sorted({min(length, spec.max_length) for length in LENGTHS})
    packs = [max(1, int(usual * times)) for times in (1.0, *_PACKS)]
    load = os.getloadavg()[0]
    with closing(Batcher(setup)) as batcher:
        rows = [made_up_pairs(batcher, length) for length in lengths]
        middle = rows[min(1, len(rows) - 1)]
        cases = [*((pairs, usual) for pairs in rows), *((middle, tokens) for tokens in packs)]
        found, peak = _best_of_rounds(batcher, cases, seconds, on_step)
        means = [float(batcher.tokenize(pairs.rows(slice(0, 64))).row_tokens().mean()) for pairs in rows]
        share = flops_of(batcher.products) / peak if peak else None
        attention = attention_path(placement.device, placement.dtype, batcher.layout)[0]
    by_pack = {tokens: one.tokens_per_second for tokens, one in zip(packs, found[len(rows) :], strict=True)}
    best = max(packs, key=lambda tokens: by_pack[tokens])
    return Benchmark(
        model=setup.checkpoint.name,
        score_type=spec.score_type,
        parameters=size.body + size.head,
        device=placement.device,
        device_name=placement.device_name,
        numbers=placement.numbers,
        workers=placement.workers,
        load=round(load, 1),
        attention=attention,
        versions={name: installed_version(name) or "unknown" for name in _PACKAGES}
        | {"python": platform.python_version()},
        peak_flops=peak,
        speeds=[_speed(mean, one, share) for mean, one in zip(means, found[: len(rows)], strict=True)],
        batch_tokens=usual,
        packs=by_pack,
        best_batch_tokens=best if by_pack[best] > _GAIN * by_pack[usual] else usual,
    )


def _best_of_rounds(
    batcher: Batcher, cases: Sequence[tuple[Pairs, int]], seconds: float, on_step: Callable[[str], None]
) -> tuple[list[Measured], float | None]:
    """(of each case, some pairs and the tokens of a pack, the quickest of three rounds; the peak, likewise).

    Cases take turns, so that what else runs on the machine meets all of them alike.
    """
    placement, budget = batcher.setup.placement, batcher.budget
    best, peaks = list[Measured](), list[float]()
    for turn in range(1, _ROUNDS + 1):
        on_step(f"timing   round {turn} of {_ROUNDS}")
        if batcher.products:
            how = placement.dtype, placement.device, placement.workers
            peaks.append(matmul_peak(batcher.products, budget.max_tokens, *how, seconds))
        found = []
        for pairs, tokens in cases:
            batcher.budget = replace(budget, max_tokens=tokens)
            found.append(time_scoring(batcher, pairs, seconds))
        batcher.budget = budget
        both = zip(best or found, found, strict=True)
        best = [max(pair, key=lambda one: one.tokens_per_second) for pair in both]
    return best, max(peaks, default=None)


def _speed(tokens: float, found: Measured, share: float | None) -> Speed:
    """The speed of rows with so many tokens; a token a second is `share` of the peak."""
    speed = found.tokens_per_second
    return Speed(tokens, speed, found.rows / max(found.timing.wall, 1e-9), None if share is None else share * speed)


def made_up_pairs(batcher: Batcher, length: int) -> Pairs:
    """Pairs of about `length` tokens with distinct documents, as many as fill some packs."""
    count = max(_LEAST_TOKENS, _PACKS_A_ROUND * batcher.budget.max_tokens) // length
    queries = [f"what is number {row % _QUERIES}" for row in range(count)]

    def pairs(words: int, rows: int) -> Pairs:
        text = _WORDS.split() * (words // len(_WORDS.split()) + 1)
        documents = [f"{row} {' '.join(text[:words])}" for row in range(rows)]
        return Pairs(Cells.of(queries[:rows]), Cells.of(documents))

    least, more = (float(batcher.tokenize(pairs(words, 8)).row_tokens().mean()) for words in (0, 8))
    words = max(0, round((length - least) * 8 / max(1.0, more - least)))
    return pairs(words, count)
