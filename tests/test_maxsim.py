"""MaxSim of many pairs is that of each pair, in whatever products it is made."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils._python_dispatch import TorchDispatchMode

from batchscore.models import maxsim as module
from batchscore.models.maxsim import maxsim
from batchscore.runners.base import Match
from batchscore.scorer import Scorer

Tiny = Callable[[str], str]
Sides = tuple[Tensor, np.ndarray, Tensor, np.ndarray]


def sides(seed: int, queries: int, documents: int, dtype: torch.dtype = torch.float32) -> Sides:
    """Matrices of unit vectors, of one to nine of them each."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 10, queries), rng.integers(1, 10, documents)
    first, second = (
        normalize(torch.from_numpy(rng.standard_normal((sum(side), 5))).float(), dim=1).to(dtype) for side in lengths
    )
    return first, lengths[0], second, lengths[1]


def naive(both: Sides, left: np.ndarray, right: np.ndarray) -> list[float]:
    """Pair by pair and token by token, in double precision."""
    queries, documents = (
        [matrix.double() for matrix in vectors.split(lengths.tolist())]
        for vectors, lengths in zip(both[::2], both[1::2], strict=True)
    )
    return [
        sum(max(float(query @ document) for document in documents[d]) for query in queries[q])
        for q, d in zip(left.tolist(), right.tolist(), strict=True)
    ]


def pairs(kind: str, queries: int, documents: int) -> tuple[np.ndarray, np.ndarray]:
    """Which pairs: all, in the order of one side, or some of them in no order, some twice."""
    if kind == "query by query":
        return np.divmod(np.arange(queries * documents), documents)
    if kind == "document by document":
        return np.divmod(np.arange(queries * documents), queries)[::-1]
    rng = np.random.default_rng(7)
    return rng.integers(queries, size=40), rng.integers(documents, size=40)


@pytest.mark.parametrize("block", [1, 30, 2**18])
@pytest.mark.parametrize("kind", ["query by query", "document by document", "scattered"])
@pytest.mark.parametrize("size", [(1, 12), (12, 1), (5, 9), (9, 5)])
def test_maxsim_of_many_is_that_of_each_pair(
    monkeypatch: pytest.MonkeyPatch, block: int, kind: str, size: tuple[int, int]
) -> None:
    monkeypatch.setattr(module, "_BLOCK", block)
    both, (left, right) = sides(block, *size), pairs(kind, *size)

    assert maxsim(*both, left, right).tolist() == pytest.approx(naive(both, left, right), abs=1e-5)


def test_vectors_in_16_bits_are_multiplied_in_float32() -> None:
    """Products that come out in bfloat16 would be off by some 1e-2."""
    both, (left, right) = sides(0, 6, 7, torch.bfloat16), pairs("scattered", 6, 7)

    assert maxsim(*both, left, right).tolist() == pytest.approx(naive(both, left, right), abs=1e-5)


class CountsProducts(TorchDispatchMode):
    """Counts matrix products in its block."""

    count = 0

    def __torch_dispatch__(self, func: object, types: object, args: tuple = (), kwargs: dict | None = None) -> object:
        self.count += func is torch.ops.aten.mm.default
        return func(*args, **kwargs or {})  # type: ignore[operator]


@pytest.mark.parametrize(("size", "products"), [((1, 200), 1), ((3, 50), 3), ((50, 3), 3), ((200, 1), 1)])
def test_there_is_a_product_for_each_text_of_the_side_that_has_fewer(size: tuple[int, int], products: int) -> None:
    both, some = sides(1, *size), pairs("query by query", *size)

    with CountsProducts() as counted:
        maxsim(*both, *some)
    assert counted.count == products


def test_tokens_of_opposite_direction_are_negative() -> None:
    """A padding token's zero would win here: 1 + 0.8; -1 + 0; 0 + 1, then both tokens against the second."""
    query, opposite = torch.tensor([[1.0, 0], [0, 1]]), torch.tensor([[1.0, 0], [1, 0]])
    documents, lengths = torch.tensor([[1.0, 0], [0.6, 0.8], [-1, 0], [0, 1]]), np.array([2, 1, 1])
    both = torch.cat([query, opposite]), np.array([2, 2]), documents, lengths

    scores = maxsim(*both, np.array([0, 0, 0, 1]), np.array([0, 1, 2, 1]))
    assert scores.tolist() == pytest.approx([1.8, -1, 1, -2])


def test_a_text_with_itself_has_its_number_of_tokens() -> None:
    first, lengths, *_ = sides(3, 4, 1)

    assert maxsim(first, lengths, first, lengths, np.arange(4), np.arange(4)).tolist() == pytest.approx(lengths)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_equal_rows_of_a_pack_have_equal_bits(tiny: Tiny, dtype: str) -> None:
    """Where a row stands in a product may change its last bit, so that it is compared once."""
    with Scorer(tiny("colbert"), dtype=dtype) as scorer:  # type: ignore[arg-type]
        runner = scorer.batcher._runner
        first, first_sizes, second, second_sizes = sides(4, 6, 5)
        held, output = (
            runner.of_arrays(vectors.numpy(), sizes)
            for vectors, sizes in ((first, first_sizes), (second, second_sizes))
        )
        left, right = pairs("scattered", 6, 5)

        scores = runner.compare(held, Match(left, right, None), output)[:, 0]

    same = left * 5 + right
    assert len(np.unique(same)) < len(same)
    assert all(len(set(scores[same == key].tolist())) == 1 for key in same)
    assert scores.tolist() == pytest.approx(naive((first, first_sizes, second, second_sizes), left, right), abs=1e-5)
