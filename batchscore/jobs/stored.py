"""A store checked: all bytes against what was written, and a few texts against what their model makes of them now."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from batchscore.errors import BatchscoreError, VerificationError, first_line
from batchscore.io.segments import Segment, SegmentError, current
from batchscore.io.upkeep import ShelfFiles, shelves
from batchscore.scorer import Scorer
from batchscore.types import SIDES, Cells, Encodings, Pairs

# of the length of a text's vectors: what rounding leaves, also on another machine
_TOLERANCES = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}


@dataclass
class ShelfCheck:
    """What became of one shelf."""

    shelf: ShelfFiles
    damaged: dict[str, str] = field(default_factory=dict)  # path of a segment -> why
    differences: list[float] = field(default_factory=list)  # of the texts that were encoded again
    tolerance: float = 0.0
    obstacle: str | None = None  # why none was encoded again

    @property
    def beyond(self) -> int:
        """Texts that differ by more than the tolerance."""
        return sum(not difference <= self.tolerance for difference in self.differences)

    def describe(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            **self.shelf.describe(),
            "damaged": self.damaged,
            "encoded_again": len(self.differences),
            "beyond_tolerance": self.beyond,
            "largest_difference": max(self.differences, default=None),
            "tolerance": self.tolerance,
            "not_encoded_again": self.obstacle,
        }


def check_store(store: str, sample: int, on_step: Callable[[str], None] = lambda step: None) -> list[ShelfCheck]:
    """Check all files of a store, and encode texts that it has kept for this purpose again.

    Args:
        store: folder.
        sample: how many texts of each shelf are encoded again, at most; with 0 no model is loaded.
        on_step: told what happens next.

    Raises:
        NotFoundError: there is no such folder.
    """
    checks = []
    for shelf in shelves(store):
        on_step(f"reading  {shelf.model} ({shelf.side}), segments: {len(shelf.segments):,}")
        check = ShelfCheck(shelf, dict(shelf.damaged))
        for segment in shelf.segments:
            try:
                segment.check()
            except SegmentError as error:
                if not error.is_gone:
                    check.damaged[segment.path] = error.why
        if sample:
            _encode_again(check, sample, on_step)
        checks.append(check)
    return checks


def problem(checks: Sequence[ShelfCheck]) -> VerificationError | None:
    """What is wrong with a store, if anything is."""
    if damaged := [path for check in checks for path in check.damaged]:
        more = f", and {len(damaged) - 1:,} more files" if len(damaged) > 1 else ""
        hint = "remove such a file: its texts will be encoded again"
        return VerificationError(f"{damaged[0]} is damaged{more}", hint=hint)
    if beyond := [check for check in checks if check.beyond]:
        check = beyond[0]
        return VerificationError(
            f"{check.shelf.model} ({check.shelf.side}): {check.beyond} of {len(check.differences)} texts are encoded "
            f"differently by now, by up to {max(check.differences):.1e}; the tolerance is {check.tolerance:g}",
            hint=f"see whether the model's files have changed; batchscore store prune --model {check.shelf.model} "
            "removes what was kept",
        )
    return None


def _encode_again(check: ShelfCheck, sample: int, on_step: Callable[[str], None]) -> None:
    whole = [segment for segment in current(check.shelf.segments) if segment.path not in check.damaged]
    kept = [(segment, one) for segment in whole for one in segment.samples]
    if not kept:
        check.obstacle = "no texts were kept"
        return
    chosen = [kept[place] for place in np.unique(np.linspace(0, len(kept) - 1, sample).astype(int))]
    on_step(f"loading  {check.shelf.model} to encode {len(chosen)} texts ({check.shelf.side}) again")
    try:
        # this may be another machine, and whoever wrote to the store does not decide what code it runs
        keywords = {**check.shelf.about.get("scorer", {}), "device": "auto", "trust_remote_code": False}
        with closing(Scorer(check.shelf.model, **keywords)) as scorer:
            check.tolerance = max(_TOLERANCES[scorer.placement.dtype], _stored_tolerance(whole[0]))
            now = _encoded(scorer, check.shelf.side, [text for _, (_, text) in chosen])
    except (BatchscoreError, TypeError) as error:  # TypeError: a keyword that Scorer no longer has
        check.obstacle = first_line(error)
        return
    for place, (segment, (digest, _)) in enumerate(chosen):
        with suppress(SegmentError):  # it was removed just now
            before = _stored(segment, np.array([digest], np.uint64))
            check.differences.append(_difference(before, now.take(np.array([place]))))


def _stored_tolerance(segment: Segment) -> float:
    """That of the numbers that are kept: bfloat16 as its bits."""
    dtype = {"<u2": "bfloat16", "<f2": "float16"}.get(segment.kind[0], "float32")
    return _TOLERANCES[dtype]


def _encoded(scorer: Scorer, side: str, texts: Sequence[Any]) -> Encodings:
    """What the model makes of texts, or of pairs of them."""
    for known in SIDES:
        if side == known:
            return scorer.batcher.encode(scorer.batcher.lay_out(texts, known), known)
    queries, documents = zip(*texts, strict=True)
    work = scorer.batcher.tokenize(Pairs(Cells.of(queries), Cells.of(documents)))
    raw = scorer.batcher.score(work).raw
    return Encodings(raw, np.arange(len(raw) + 1), work.row_tokens(), work.cut)


def _stored(segment: Segment, digest: NDArray[np.uint64]) -> Encodings:
    rows = np.flatnonzero((segment.digests() == digest).all(axis=1))
    return segment.read(rows, digest)


def _difference(before: Encodings, now: Encodings) -> float:
    """How far one text's vectors have moved, relative to their length; of a score, to 1 if that is larger."""
    old, new = _numbers(before.values), _numbers(now.values)
    if old.shape != new.shape or not np.isfinite(new).all():
        return 1.0  # as if it had none by now
    least = 1.0 if before.values.shape[1] == 1 else np.finfo(np.float64).tiny
    return float(np.linalg.norm(new - old) / max(np.linalg.norm(old), least))


def _numbers(values: NDArray[Any]) -> NDArray[np.float64]:
    """float64; uint16 are the bits of bfloat16."""
    if values.dtype == np.uint16:
        values = (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float64)
