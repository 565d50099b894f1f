"""Where a model runs and in which numbers: decided once, with the reason, so that it can be printed and recorded."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

import torch

from batchscore.errors import MissingDependencyError, UsageError

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
_CPU_PACK, _CUDA_PACK = 2_048, 65_536  # a CPU core is busy with few tokens and likes them in cache; a GPU wants many


@dataclass(frozen=True, slots=True)
class Placement:
    """Device, dtype and how much to feed it."""

    device: str
    device_name: str
    dtype: str
    dtype_reason: str
    workers: int  # packs at once; each worker has one thread, so that a busy neighbour costs its share and no more
    max_tokens: int  # of a pack, unless the user says otherwise


def choose_device(device: str, dtype: Dtype) -> Placement:
    """Choose what "auto" leaves open.

    Raises:
        MissingDependencyError: a CUDA device that is not there.
        UsageError: a device torch does not know, or float16 on a CPU.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    kind = _device_kind(device)
    if kind == "cuda":
        index = torch.device(device).index or 0
        if index >= torch.cuda.device_count():
            raise MissingDependencyError(
                f"device {device} is not there; CUDA devices found: {torch.cuda.device_count()}", hint="--device cpu"
            )
        chosen, reason = _choose_dtype(dtype, torch.cuda.get_device_capability(index) >= (8, 0), "this GPU")
        return Placement(device, torch.cuda.get_device_name(index), chosen, reason, 1, _CUDA_PACK)
    if dtype == "float16":
        raise UsageError("--dtype float16: CPUs compute it in software", hint="use auto, bfloat16 or float32 on a CPU")
    chosen, reason = _choose_dtype(dtype, _cpu_multiplies_bfloat16(), "this CPU")
    threads = torch.get_num_threads()  # follows OMP_NUM_THREADS and the cores this process may use
    return Placement("cpu", f"{threads} threads", chosen, reason, threads, _CPU_PACK)


def count_cuda_devices() -> int:
    """CUDA devices that this process may use."""
    return torch.cuda.device_count()


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _device_kind(device: str) -> str:
    try:
        kind: str = torch.device(device).type
    except RuntimeError as error:
        raise UsageError(f"--device {device!r} is no torch device; known: auto, cpu, cuda, cuda:N") from error
    if kind not in {"cpu", "cuda"}:
        raise UsageError(f"--device {device!r}: only cpu and cuda are supported")
    return kind


def _choose_dtype(dtype: Dtype, native_bfloat16: bool, where: str) -> tuple[str, str]:
    if dtype != "auto":
        return dtype, "asked for"
    if native_bfloat16:
        return "bfloat16", f"auto: {where} multiplies bfloat16 natively"
    return "float32", f"auto: {where} has no native bfloat16"


def _cpu_multiplies_bfloat16() -> bool:
    """AMX tiles or AVX512-BF16; bfloat16 without either is slower than float32."""
    probes = (getattr(torch.cpu, name, None) for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"))
    return any(probe() for probe in probes if probe is not None)
