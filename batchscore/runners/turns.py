"""How workers share a GPU: one queues a pack's kernels while another waits for the scores of the pack before.

All kernels are in one stream and run in the order in which they were queued, so a pack may have the memory of the one
before as soon as that is queued. Workers take turns: if two queued at the same time, both packs would be done at the
same time, and the GPU would idle until the next is queued. So two workers keep a pack queued behind the one that runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock, get_ident
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor


class Turns:
    """Turns at a device's queue.

    Args:
        are_taken: whether workers share one queue; on a CPU each computes by itself, and nobody waits.
    """

    def __init__(self, *, are_taken: bool) -> None:
        self._lock = Lock() if are_taken else None
        self._holder: int | None = None  # the thread whose turn it is

    @contextmanager
    def turn(self) -> Iterator[None]:
        """A block in which no other worker queues anything, until `fetch` is called in it."""
        if self._lock is not None:
            self._lock.acquire()
            self._holder = get_ident()
        try:
            yield
        finally:
            self._end()

    def _end(self) -> None:
        if self._lock is not None and self._holder == get_ident():
            self._holder = None
            self._lock.release()

    @torch.inference_mode()
    def fetch(self, *tensors: Tensor) -> list[NDArray[Any]]:
        """Tensors in main memory. It ends the turn: once their copies are queued, it is for others to queue."""
        copies = [_begin_copy(tensor) for tensor in tensors]
        arrived = _mark(tensors[0].device)
        self._end()
        if arrived is None:
            return [copy.numpy() for copy in copies]
        arrived.synchronize()
        # pinned memory is for the next pack
        return [copy.numpy().copy() for copy in copies]


def _begin_copy(tensor: Tensor) -> Tensor:
    """A tensor's numbers in main memory, once the device has come to the end of what is queued."""
    if tensor.is_cpu:
        return tensor
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)


def _mark(device: torch.device) -> torch.cuda.Event | None:
    """What is reached when all that is queued is done; on a CPU it is done."""
    if device.type == "cpu":
        return None
    event = torch.cuda.Event(blocking=True)  # the thread sleeps: others need its core for texts
    event.record(torch.cuda.current_stream(device))
    return event
