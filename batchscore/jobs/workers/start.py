"""How a worker process begins: its job comes as bytes, so that nothing is imported before `work` decides how."""

from __future__ import annotations

import pickle
from multiprocessing.connection import Connection

from batchscore.models.lean import lean_imports


def work(job: bytes, device: str, messages: Connection, orders: Connection) -> None:
    """What `work` in `processes` does with the unpickled job."""
    with lean_imports():
        from batchscore.jobs.workers import processes
    processes.work(pickle.loads(job), device, messages, orders)
