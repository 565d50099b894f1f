"""What a device multiplies at most: matrix products of a model's shapes and nothing else, as `bench` compares with."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from time import perf_counter

import torch
from torch import Tensor, nn

from batchscore.runners.device import start_workers
from batchscore.runners.linears import PackedLinear
from batchscore.runners.size import Products, flops_of

_ROUNDS = 3  # of which the best counts: a peak is what nothing disturbed


def matmul_peak(products: Products, tokens: int, dtype: str, device: str, count: int, seconds: float) -> float:
    """Multiplications and additions a second of a token's products, layer after layer, with nothing in between.

    Args:
        products: of a token.
        tokens: of a pack.
        dtype: of the numbers.
        device: where.
        count: threads, each of which multiplies packs of its own, as in a run.
        seconds: for all of it, roughly.
    """
    workers = start_workers(device, count)
    number = getattr(torch, dtype)
    each = seconds / (_ROUNDS * len(products))
    spent = 0.0
    for (rows, columns), layers in products.items():
        states = torch.randn(tokens, rows, device=device).to(number)
        candidates = _candidates(rows, columns, number, device)
        runs = [partial(_calls_a_second, layer, states, each / len(candidates)) for layer in candidates] * _ROUNDS
        best = max(sum(done.result() for done in [workers.submit(run) for _ in range(count)]) for run in runs)
        spent += layers / (best * tokens)
    workers.shutdown()
    return flops_of(products) / spent


@torch.inference_mode()
def _calls_a_second(layer: Callable[[Tensor], Tensor], states: Tensor, seconds: float) -> float:
    """Calls of a layer in this thread, for about so many seconds."""
    layer(states)
    _wait(states)
    calls, start = 0, perf_counter()
    while (passed := perf_counter() - start) < seconds or not calls:
        layer(states)
        _wait(states)
        calls += 1
    return calls / max(passed, 1e-9)


def _wait(states: Tensor) -> None:
    if not states.is_cpu:
        torch.cuda.synchronize(states.device)


def _candidates(rows: int, columns: int, dtype: torch.dtype, device: str) -> list[Callable[[Tensor], Tensor]]:
    """The ways in which bodies multiply here: torch's, and oneDNN's with the weight in its own order."""
    linear = nn.Linear(rows, columns, bias=False, device=device, dtype=dtype)
    packed = device == "cpu" and torch.backends.mkldnn.is_available()
    return [linear, PackedLinear(linear)] if packed else [linear]
