"""`batchscore score`: a score for each row."""

from __future__ import annotations

from typing import Any

from batchscore.cli import options as o
from batchscore.stop import leave_on_signals


@o.takes(o.settings, o.device, o.files, o.shares)
def score(
    model: o.Model,
    settings: dict[str, Any],
    device: dict[str, Any],
    files: o.Files,
    shares: o.Shares,
    query_column: o.QueryColumn = "query",
    document_column: o.DocumentColumn = "document",
    limit: o.Limit = None,
    score_column: o.ScoreColumn = "score",
    keep_columns: o.KeepColumns = "all",
    details: o.Details = False,
) -> None:
    """Score query/document pairs: the input's rows in the input's order, plus a score.

    batchscore score --model BAAI/bge-reranker-v2-m3 --in pairs.parquet --out scores.parquet
    """
    leave_on_signals()  # nothing is done while Python and the model load, so a signal may end the program at once
    from batchscore.cli.display import Display

    display = Display.open(files, model)
    from batchscore.cli.run import run
    from batchscore.jobs.commands import ScoreCommand

    names = tuple(name.strip() for name in keep_columns.split(","))
    kept = {"all": None, "none": ()}.get(keep_columns, names)
    command = ScoreCommand(query_column, document_column, score_column, kept, details, limit)
    run(command, {"model": model, **settings, **device}, files, shares, display)
