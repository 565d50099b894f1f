"""`batchscore score`: a score for each row."""

from __future__ import annotations

from batchscore.cli import options as o


def score(
    model: o.Model,
    in_: o.In,
    out: o.Out,
    query_column: o.QueryColumn = "query",
    document_column: o.DocumentColumn = "document",
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
    score_column: o.ScoreColumn = "score",
    keep_columns: o.KeepColumns = "all",
    details: o.Details = False,
    batch_tokens: o.BatchTokens = None,
    window_rows: o.WindowRows = 16_384,
    padded: o.Padded = False,
    quiet: o.Quiet = False,
    log_format: o.LogFormat = "text",
) -> None:
    """Score query/document pairs: the input's rows in the input's order, plus a score.

    batchscore score --model BAAI/bge-reranker-v2-m3 --in pairs.parquet --out scores.parquet
    """
    from batchscore.cli.run import run
    from batchscore.pipeline import ScoreJob, run_score

    kept = {"all": None, "none": ()}.get(keep_columns, tuple(name.strip() for name in keep_columns.split(",")))
    run(
        "score",
        run_score,
        ScoreJob(query_column, document_column, score_column, kept, details, limit),
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
