"""`batchscore run-batch`: an answer for each request of the scoring API."""

from __future__ import annotations

from typing import Any

from batchscore.cli import options as o
from batchscore.cli.run import run


@o.with_options(o.Requests, o.Settings, o.Execution, o.Run)
def run_batch(models: o.Models, **options: Any) -> None:
    """Answer a file of requests: lines with bodies of /score and /rerank, as `vllm run-batch` reads them.

    A bad line has an error in its place. docs/requests.md says what is read and what comes back.

    batchscore run-batch --model BAAI/bge-reranker-v2-m3 -i requests.jsonl -o responses.jsonl
    """
    run("run_batch", models, **options)
