"""What the card can do, and parts of a layer in several ways: where a kernel of its own would pay."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch
from gpu_report import Report
from torch import Tensor, nn
from torch.nn.functional import gelu, layer_norm, rms_norm, silu

from batchscore.runners.fused_norms import short_norm
from batchscore.runners.masks import Rule
from batchscore.runners.padded import padded_attention
from batchscore.runners.sequences import Sequences
from batchscore.runners.varlen import fits_kernel, kernel_attention

PACK = 65_536  # tokens
Part = tuple[str, Callable[[], object]]


def measure_peak(report: Report) -> float:
    """TFLOP/s of a large product in bfloat16; the rate of a copy beside it."""
    size = 256 if report.small else 8192
    a, b = (made(report, size, size) for _ in range(2))
    times = [seconds_of(report, lambda: a @ b) for _ in range(3 if report.small else 20)]
    best, peak = (2 * size**3 / seconds / 1e12 for seconds in (min(times), statistics.median(times)))
    copied = torch.empty(2**16 if report.small else 2**30, device=report.device, dtype=torch.uint8)
    rate = 2 * copied.nbytes / min(seconds_of(report, copied.clone) for _ in range(5)) / 1e12
    report.say(f"peak    {peak:.3g} TFLOP/s ({best:.3g} at best) in bfloat16, {rate:.2g} TB/s")
    return peak


def measure_kernels(report: Report) -> None:
    """Each part at the size of a pack."""
    tokens = 512 if report.small else PACK
    with torch.inference_mode():
        for parts in (of_layers, of_attention, compiled):
            for name, run in parts(report, tokens):
                run()
                seconds = min(seconds_of(report, run) for _ in range(2 if report.small else 6))
                report.say(f"kernel  {name}, {tokens:,} tokens: {seconds * 1e6:,.0f} us")


def of_layers(report: Report, tokens: int) -> Iterator[Part]:
    """An encoder's and a decoder's, of width 1,024."""
    x, wide, heads = (made(report, tokens, size) for size in (1024, 4096, 2048))
    weight, narrow, by_head = made(report, 1024), made(report, 128), heads.view(-1, 128)
    linear = nn.Linear(1024, 4096, device=report.device, dtype=torch.bfloat16)
    yield "linear 1024 to 4096", lambda: linear(x)
    yield "gelu of 4096", lambda: gelu(wide)
    yield "silu of 4096 times 4096", lambda: gated(wide, wide)
    yield "add of 1024", lambda: x + x
    yield "layer norm of 1024", lambda: layer_norm(x, (1024,), weight, weight)
    yield "RMS norm of 1024 as transformers", lambda: written_norm(x, weight)
    yield "RMS norm of 1024 fused", lambda: rms_norm(x, (1024,), weight, 1e-6)
    yield "RMS norm of 16 heads of 128 as transformers", lambda: written_norm(by_head, narrow)
    yield "RMS norm of 16 heads of 128 fused", lambda: rms_norm(by_head, (128,), narrow, 1e-6)
    yield "RMS norm of 16 heads of 128 in three passes", lambda: short_norm(by_head, narrow, 1e-6)
    angles = made(report, tokens, 1, 128)
    yield "rotation of 16 heads of 128 as transformers", lambda: rotated(heads.view(tokens, 16, 128), angles)


def of_attention(report: Report, tokens: int) -> Iterator[Part]:
    """Over lengths of a mixed workload, in the kernel for packs and in padded batches."""
    drawn = np.exp(np.random.default_rng(0).normal(4.4, 0.6, tokens)).clip(15, 365).astype(np.int64)
    lengths = np.sort(drawn[: int(np.searchsorted(drawn.cumsum(), tokens))])[::-1]
    pack = Sequences.of(lengths, None, lambda column: torch.from_numpy(column).to(report.device))
    for heads, key_heads, size, causal in ((16, 16, 64, False), (16, 8, 128, True)):
        query, key = (made(report, int(lengths.sum()), count, size) for count in (heads, key_heads))
        rule, name = Rule(causal), f"attention of {heads} on {key_heads} heads of {size}"
        if fits_kernel(query, key):
            yield name, partial(kernel_attention, query, key, key, rule, pack, from_first=False)
        yield f"{name}, padded", partial(padded_attention, query, key, key, rule, pack, from_first=False)


def compiled(report: Report, tokens: int) -> Iterator[Part]:
    """What torch.compile makes of the parts that are several kernels, where it has what it needs."""
    if report.small:  # a CPU takes a minute to compile
        return
    heads, narrow, angles = made(report, tokens, 16, 128), made(report, 128), made(report, tokens, 1, 128)
    wide = made(report, tokens, 4096)
    norm, rotate, gate = (torch.compile(part, dynamic=True) for part in (written_norm, rotated, gated))
    yield "RMS norm of 16 heads of 128 compiled", lambda: norm(heads, narrow)
    yield "rotation of 16 heads of 128 compiled", lambda: rotate(heads, angles)
    yield "silu of 4096 times 4096 compiled", lambda: gate(wide, wide)


def written_norm(x: Tensor, weight: Tensor) -> Tensor:
    """As transformers writes it."""
    wide = x.float()
    return weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)).to(x.dtype)


def rotated(x: Tensor, angles: Tensor) -> Tensor:
    """Rotary positions as transformers writes them; sine and cosine are the same here."""
    first, second = x.chunk(2, -1)
    return x * angles + torch.cat([-second, first], -1) * angles


def gated(gate: Tensor, up: Tensor) -> Tensor:
    """As in a decoder's MLP."""
    return silu(gate) * up


def made(report: Report, *shape: int) -> Tensor:
    """Random numbers in bfloat16."""
    return torch.randn(*shape, device=report.device, dtype=torch.bfloat16)


def seconds_of(report: Report, run: Callable[[], object]) -> float:
    """Of one call, until the device is done with it."""
    wait(report)
    begun = time.perf_counter()
    run()
    wait(report)
    return time.perf_counter() - begun


def wait(report: Report) -> None:
    """Until the device has done what is queued."""
    if report.device == "cuda":
        torch.cuda.synchronize()
