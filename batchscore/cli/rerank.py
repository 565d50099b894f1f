"""`batchscore rerank`: each query's documents in order."""

from __future__ import annotations

from typing import Any

from batchscore.cli import options as o
from batchscore.cli.plan import show_plan
from batchscore.cli.run import run


@o.with_options(o.Rerank, o.Join, o.Settings, o.Execution, o.Rows, o.Run, o.Pictures)
def rerank(model: o.Model, dry_run: o.PlanOnly = False, **options: Any) -> None:
    """Rank the documents of each query, best first.

    A row holds a query with a list of documents, or one query and one document. The rows of a query may be anywhere in
    the input.

    batchscore rerank --model BAAI/bge-reranker-v2-m3 --in candidates.jsonl --out ranked.parquet --top-n 10
    """
    if dry_run:
        show_plan(rerank, "rerank", model, options.pop("out"), {}, options)
    else:
        run("rerank", model, **options)
