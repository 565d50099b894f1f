"""`batchscore rerank`: each query's documents in order."""

from __future__ import annotations

from batchscore.cli import options as o


def rerank(
    model: o.Model,
    in_: o.In,
    out: o.Out,
    query_column: o.QueryColumn = "query",
    document_column: o.DocumentsColumn = None,
    query_id_column: o.QueryIdColumn = None,
    document_id_column: o.DocumentIdColumn = None,
    split: o.Split = None,
    limit: o.Limit = None,
    score_type: o.ScoreTypeOption = "auto",
    similarity: o.Similarity = None,
    dtype: o.DtypeOption = "auto",
    device: o.Device = "auto",
    revision: o.Revision = None,
    config: o.Config = None,
    trust_remote_code: o.TrustRemoteCode = False,
    max_length: o.MaxLength = None,
    truncation: o.TruncationOption = "document-first",
    query_prompt: o.QueryPrompt = None,
    document_prompt: o.DocumentPrompt = None,
    top_n: o.TopN = 0,
    return_documents: o.ReturnDocuments = False,
    nested: o.Nested = False,
    batch_tokens: o.BatchTokens = None,
    window_rows: o.WindowRows = 16_384,
    padded: o.Padded = False,
    quiet: o.Quiet = False,
    log_format: o.LogFormat = "text",
) -> None:
    """Rank each query's documents, best first.

    A row is a query with a list of documents, or one query and one document; rows of a query need not be neighbours.

    batchscore rerank --model BAAI/bge-reranker-v2-m3 --in candidates.jsonl --out ranked.parquet --top-n 10
    """
    from batchscore.cli.run import run
    from batchscore.pipeline import RerankJob, run_rerank

    run(
        "rerank",
        run_rerank,
        RerankJob(
            query_column, document_column, query_id_column, document_id_column, top_n, return_documents, nested, limit
        ),
        model=model,
        paths=in_,
        out=out,
        split=split,
        scorer_options={
            "score_type": score_type,
            "similarity": similarity,
            "dtype": dtype,
            "device": device,
            "revision": revision,
            "config": config,
            "trust_remote_code": trust_remote_code,
            "max_length": max_length,
            "truncation": truncation,
            "query_prompt": query_prompt,
            "document_prompt": document_prompt,
            "batch_tokens": batch_tokens,
            "window_rows": window_rows,
            "padded": padded,
        },
        quiet=quiet,
        log_format=log_format,
    )
