"""What eight bits do to scores, measured on a sample of pairs or texts: the same model with and without them."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from batchscore.engine.batcher import Batcher
from batchscore.stop import Stop
from batchscore.types import Encodings, OneSide, Pairs, good_rows

_SIZE = 256  # pairs or texts of a sample
_DOCUMENTS = 16  # of each query, as long as others are left

Scored = tuple[NDArray[np.float32], NDArray[np.float32]]  # [pairs] each: scores, and what pairs are ranked by


@dataclass(frozen=True, slots=True)
class QuantizationError:
    """How far scores of a sample of pairs, or vectors of a sample of texts, are from those without quantization."""

    quantize: str
    dtype: str  # of the model without it
    pairs: int
    texts: int  # where none are scored, but encoded
    mean: float  # absolute difference of the scores, or 1 - cosine of the vectors
    largest: float
    kendall: float | None  # tau-b of the two orders of all pairs; None where no two scores differ
    queries: int  # that have several documents in the sample
    changed: int  # of these, those with another document on top

    @property
    def line(self) -> str:
        """For people."""
        what, size = ("scores", f"{self.pairs} pairs") if self.pairs else ("vectors", f"1 - cosine; {self.texts} texts")
        facts = [f"{what} differ from {self.dtype} by {self.mean:.2g} on average, {self.largest:.2g} at most"]
        if self.kendall is not None:
            facts.append(f"Kendall's tau {self.kendall:.3f}")
        if self.queries:
            facts.append(f"{self.changed} of {self.queries} top documents change")
        return f"{self.quantize:8} {'; '.join(facts)} ({size})"


def measure(batcher: Batcher, rows: Pairs | OneSide, stop: Stop | None = None) -> QuantizationError | None:
    """Compare a quantized model with itself, which is loaded without quantization for that time; None without rows.

    Args:
        batcher: of the quantized model.
        rows: of these at most 256 distinct ones are taken, of several queries with several documents where there are.
        stop: ends the work between packs.

    Raises:
        StoppedError: `stop` was requested.
    """
    placement = batcher.setup.placement
    about = placement.quantize, placement.dtype
    with closing(Batcher(replace(batcher.setup, placement=replace(placement, quantize="none")))) as exact:
        if isinstance(rows, OneSide):
            texts = rows.rows(np.unique(rows.texts.codes, return_index=True)[1][:_SIZE])
            encodings = _encoded(batcher, texts, stop), _encoded(exact, texts, stop)
            whole = good_rows(len(texts), {**encodings[0].faults, **encodings[1].faults})
            if not len(whole):
                return None
            distances = 1 - _cosines(*(encoded.take(whole).float32 for encoded in encodings))
            return QuantizationError(*about, 0, len(whole), float(distances.mean()), float(distances.max()), None, 0, 0)
        sample = rows.rows(_sampled(rows))
        found, expected = _scores(batcher, sample, stop), _scores(exact, sample, stop)
    good = np.isfinite(found[0] + expected[0])
    if not good.any():
        return None
    difference = np.abs(found[0] - expected[0])[good]
    ranks = found[1][good], expected[1][good]
    tops = _top_documents(_queries(sample)[good], *ranks)
    far = float(difference.mean()), float(difference.max())
    return QuantizationError(*about, int(good.sum()), 0, *far, kendall_tau(*ranks), *tops)


def kendall_tau(first: NDArray[np.floating], second: NDArray[np.floating]) -> float | None:
    """Kendall's tau-b of two lists of n scores, in n * n steps; None where it is not defined."""
    signs = [np.sign(scores[:, None] - scores[None, :]).astype(np.float64) for scores in (first, second)]
    size = np.sqrt(np.prod([(sign * sign).sum() for sign in signs]))
    return float((signs[0] * signs[1]).sum() / size) if size else None


def _queries(pairs: Pairs) -> NDArray[np.integer]:
    """[pairs], whose documents are ranked together."""
    return pairs.queries.codes if pairs.lists is None else pairs.lists


def _sampled(pairs: Pairs) -> NDArray[np.int64]:
    """Distinct pairs, in order: the first documents of each query, then others if there are too few queries."""
    keys = np.stack([_queries(pairs), pairs.queries.codes, pairs.documents.codes])
    distinct = np.sort(np.unique(keys, axis=1, return_index=True)[1])
    queries = _queries(pairs)[distinct]
    order = np.argsort(queries, kind="stable")
    starts = np.searchsorted(queries[order], queries[order])
    number = np.empty(len(order), np.int64)  # of a document among those of its query
    number[order] = np.arange(len(order)) - starts
    chosen = np.argsort(number >= _DOCUMENTS, kind="stable")[:_SIZE]
    rows: NDArray[np.int64] = distinct[np.sort(chosen)]
    return rows


def _scores(batcher: Batcher, pairs: Pairs, stop: Stop | None) -> Scored:
    work = batcher.tokenize(pairs)
    scores = batcher.scores(work, batcher.score(work, stop=stop))
    return scores.score[:, 0], scores.rank_by


def _top_documents(queries: NDArray[np.integer], first: NDArray[np.float32], second: NDArray[np.float32]) -> list[int]:
    """[queries with several documents, those of them whose best document is another]."""
    several = changed = 0
    for query in np.unique(queries):
        rows = queries == query
        if rows.sum() > 1:
            several += 1
            changed += int(first[rows].argmax() != second[rows].argmax())
    return [several, changed]


def _encoded(batcher: Batcher, texts: OneSide, stop: Stop | None) -> Encodings:
    cells = texts.texts
    work = batcher.lay_out([cells.values[code] for code in cells.codes], texts.side)
    return batcher.encode(work, texts.side, stop=stop)


def _cosines(first: NDArray[np.float32], second: NDArray[np.float32]) -> NDArray[np.float64]:
    """float64 [vectors]; 1 of two that are zero."""
    products = np.einsum("ij,ij->i", first, second, dtype=np.float64)
    size = np.linalg.norm(first.astype(np.float64), axis=1) * np.linalg.norm(second.astype(np.float64), axis=1)
    cosines: NDArray[np.float64] = np.divide(products, size, out=np.ones_like(size), where=size > 0)
    return cosines
