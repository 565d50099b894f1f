"""`batchscore score`: a score for each row."""

from __future__ import annotations

from typing import Any

from batchscore.cli import options as o
from batchscore.cli.plan import show_plan
from batchscore.cli.run import run


@o.with_options(o.Score, o.Join, o.Settings, o.Execution, o.Rows, o.Run, o.Pictures)
def score(model: o.Model, dry_run: o.PlanOnly = False, **options: Any) -> None:
    """Score query/document pairs: the input's rows, in the same order, with a score.

    batchscore score --model BAAI/bge-reranker-v2-m3 --in pairs.parquet --out scores.parquet
    """
    if dry_run:
        show_plan(score, "score", model, options.pop("out"), {}, options)
    else:
        run("score", model, **options)
