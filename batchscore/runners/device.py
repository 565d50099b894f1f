"""Where a model runs and in which dtype: decided once, with the reason, so that it can be printed and recorded."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Barrier
from typing import Literal

import torch

from batchscore.errors import MissingDependencyError, UsageError
from batchscore.runners.quantized import Quantize, require_int8

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
_CPU_PACK, _CUDA_PACK = 2_048, 65_536  # tokens: few keep a CPU core busy and stay in its cache; a GPU wants many
_UNLIMITED = 1 << 60  # bytes
_CUDA_WORKERS = 2  # one waits for the pack that runs, the other has queued the next (turns.py)


@dataclass(frozen=True, slots=True)
class Placement:
    """Device, dtype and how much to feed it."""

    device: str
    device_name: str
    dtype: str
    dtype_reason: str
    workers: int  # packs in work; on a CPU each has one thread, so that a busy neighbour costs only its share
    max_tokens: int  # of a pack, unless the user says otherwise
    quantize: Quantize = "none"

    @property
    def numbers(self) -> str:
        """The format of the body's numbers, for people."""
        return self.dtype if self.quantize == "none" else f"{self.quantize} and {self.dtype}"


def choose_device(device: str, dtype: Dtype, quantize: Quantize = "none") -> Placement:
    """Choose what "auto" leaves open.

    Raises:
        MissingDependencyError: the CUDA device does not exist.
        UsageError: torch does not know the device, float16 on a CPU, or int8 where the hardware has no products of it.
    """
    placement = _placement(device, dtype)
    if quantize == "int8":
        require_int8(placement.device)
    return replace(placement, quantize=quantize)


def _placement(device: str, dtype: Dtype) -> Placement:
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    kind = _device_kind(device)
    if kind == "cuda":
        index = torch.device(device).index or 0
        if index >= torch.cuda.device_count():
            raise MissingDependencyError(
                f"device {device} is not there; CUDA devices found: {torch.cuda.device_count()}",
                hint="pass one that is there, or cpu",
            )
        chosen, reason = _choose_dtype(dtype, torch.cuda.get_device_capability(index) >= (8, 0), "this GPU")
        return Placement(device, torch.cuda.get_device_name(index), chosen, reason, _CUDA_WORKERS, _CUDA_PACK)
    if dtype == "float16":
        raise UsageError("--dtype float16: CPUs compute it in software", hint="use auto, bfloat16 or float32 on a CPU")
    chosen, reason = _choose_dtype(dtype, _cpu_multiplies_bfloat16(), "this CPU")
    threads = torch.get_num_threads()  # follows OMP_NUM_THREADS and the affinity
    threads = min(threads, cpu_quota() or threads)  # but not a container's quota, past which all threads are paused
    return Placement("cpu", f"{threads} threads", chosen, reason, threads, _CPU_PACK)


@contextmanager
def one_thread_an_operation() -> Iterator[None]:
    """No operation in this thread is shared with others: on a busy machine these wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def start_workers(device: str, count: int) -> ThreadPoolExecutor:
    """Threads for packs. On a CPU each has one thread: packs never wait for each other inside an operation."""
    threads = torch.get_num_threads()
    barrier = Barrier(count)

    def begin() -> None:
        if device == "cpu":
            torch.get_num_threads()  # a thread's first use of torch would set its number; have that done
            torch.set_num_threads(1)
        barrier.wait()

    workers = ThreadPoolExecutor(count, "batchscore")
    for started in [workers.submit(begin) for _ in range(count)]:
        started.result()
    torch.set_num_threads(threads)  # what a worker sets is also the default of threads to come, which are not ours
    return workers


def count_cuda_devices() -> int:
    """CUDA devices that this process may use."""
    return torch.cuda.device_count()


def device_memory(device: str) -> int | None:
    """Bytes of a GPU's memory."""
    return None if device == "cpu" else int(torch.cuda.get_device_properties(device).total_memory)


def peak_device_bytes(device: str) -> int:
    """The most that this process has had in the memory of a device; 0 on a CPU."""
    return 0 if device == "cpu" else torch.cuda.max_memory_allocated(device)


def usable_cores() -> int:
    """Cores this process may use: those of its affinity, within its CPU quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, cpu_quota() or cores)


def cpu_quota(root: Path = Path("/")) -> int | None:
    """Cores' worth of time that the process's control groups allow, rounded up; None: no limit.

    Args:
        root: of the file system that holds `proc` and `sys`.
    """
    shares = [share for folder in _groups(root, "cpu") if (share := _share(folder))]
    return max(1, math.ceil(min(shares))) if shares else None


def memory_limit(root: Path = Path("/")) -> int | None:
    """Bytes that the process's control groups allow; None: no limit. `root` as in `cpu_quota`."""
    limits = [limit for folder in _groups(root, "memory") if (limit := _memory(folder))]
    return min(limits) if limits else None


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Folders of the process's control group and the groups around it, each of which may have a limit."""
    mount = root / "sys/fs/cgroup"
    try:
        lines = (root / "proc/self/cgroup").read_text("utf-8").splitlines()
    except OSError:  # no Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        # a container often sees its own group at the root, under a path that exists only outside
        group = Path(path.lstrip("/"))
        yield from (mount / controllers / parent for parent in (group, *group.parents))


def _share(folder: Path) -> float | None:
    """Of a group: its time per period, in cores; None without a limit."""
    try:
        if (folder / "cpu.max").exists():  # version 2: "max 100000" or "400000 100000"
            quota, period = (folder / "cpu.max").read_text("utf-8").split()
        else:  # version 1: -1 without a limit
            quota, period = ((folder / f"cpu.cfs_{name}_us").read_text("utf-8").strip() for name in ("quota", "period"))
        return None if quota in {"max", "-1"} else int(quota) / int(period)
    except (OSError, ValueError):
        return None


def _memory(folder: Path) -> int | None:
    """Of a group: bytes; None without a limit, which version 1 writes as the largest number of whole pages."""
    for name in ("memory.max", "memory.limit_in_bytes"):
        try:
            limit = int((folder / name).read_text("utf-8"))
        except (OSError, ValueError):  # "max" is no number
            continue
        return limit if limit < _UNLIMITED else None
    return None


def _device_kind(device: str) -> str:
    try:
        kind: str = torch.device(device).type
    except RuntimeError as error:
        raise UsageError(f"--device {device!r} is not a torch device; known: auto, cpu, cuda, cuda:N") from error
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
