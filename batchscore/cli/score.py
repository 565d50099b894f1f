"""`batchscore score`: a score for each row."""

from __future__ import annotations

from batchscore.cli import options as o
from batchscore.stop import leave_on_signals


@o.with_groups
def score(
    model: o.Model,
    settings: o.Settings,
    execution: o.Execution,
    files: o.Files,
    shares: o.Shares,
    query_column: o.QueryColumn = "query",
    document_column: o.DocumentColumn = "document",
    document_fields: o.DocumentFields = None,
    limit: o.Limit = None,
    score_column: o.ScoreColumn = "score",
    keep_columns: o.KeepColumns = "all",
    details: o.Details = False,
) -> None:
    """Score query/document pairs: the input's rows, in the same order, with a score.

    batchscore score --model BAAI/bge-reranker-v2-m3 --in pairs.parquet --out scores.parquet
    """
    leave_on_signals()  # nothing is done while Python and the model load, so a signal may end the program at once
    from batchscore.cli.display import Display

    display = Display.open(files, model)
    from batchscore.cli.run import run
    from batchscore.jobs.commands import ScoreCommand

    kept = {"all": None, "none": ()}.get(keep_columns, o.names(keep_columns))
    fields = o.names(document_fields) if document_fields else None
    command = ScoreCommand(query_column, document_column, score_column, kept, details, limit, document_fields=fields)
    run(command, o.scorer_options(model, settings, execution), files, shares, display)
