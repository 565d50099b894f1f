"""`batchscore rerank`: each query's documents in order."""

from __future__ import annotations

from typing import Any

from batchscore.cli import options as o
from batchscore.stop import leave_on_signals


@o.takes(o.settings, o.device, o.files, o.shares)
def rerank(
    model: o.Model,
    settings: dict[str, Any],
    device: dict[str, Any],
    files: o.Files,
    shares: o.Shares,
    query_column: o.QueryColumn = "query",
    document_column: o.DocumentsColumn = None,
    query_id_column: o.QueryIdColumn = None,
    document_id_column: o.DocumentIdColumn = None,
    limit: o.Limit = None,
    top_n: o.TopN = 0,
    return_documents: o.ReturnDocuments = False,
    nested: o.Nested = False,
) -> None:
    """Rank each query's documents, best first.

    A row is a query with a list of documents, or one query and one document; rows of a query need not be neighbours.

    batchscore rerank --model BAAI/bge-reranker-v2-m3 --in candidates.jsonl --out ranked.parquet --top-n 10
    """
    leave_on_signals()  # nothing is done while Python and the model load, so a signal may end the program at once
    from batchscore.cli.display import Display

    display = Display.open(files, model)
    from batchscore.cli.run import run
    from batchscore.jobs.commands import RerankCommand

    command = RerankCommand(
        query_column, document_column, query_id_column, document_id_column, top_n, return_documents, nested, limit
    )
    run(command, {"model": model, **settings, **device}, files, shares, display)
