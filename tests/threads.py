"""How many threads a tiny model gets, and whether its body is that of a CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch


@contextmanager
def one_thread() -> Iterator[None]:
    """A second thread in a model this small only waits for the first, and holds up whatever else runs."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@contextmanager
def plain_bodies() -> Iterator[None]:
    """Models that are loaded meanwhile have no layers that only a CPU has, as if they were loaded on a GPU."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("replace_norms", "pack_linears"):
            patch.setattr(f"batchscore.runners.build.{name}", lambda *_: None)
        yield
