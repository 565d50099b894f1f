"""Arrays on their way to a device, for which the host does not wait."""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor


def to_device(array: NDArray[Any], device: str | torch.device) -> Tensor:
    """The same numbers on a device.

    A copy from pageable memory would wait until the GPU has done all that is queued; one from pinned memory is queued
    behind that.
    """
    tensor = torch.from_numpy(array)
    if torch.device(device).type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
