"""`batchscore encode`: a vector or matrix for each row."""

from __future__ import annotations

from typing import Any

from batchscore.cli import options as o
from batchscore.cli.run import run


@o.with_options(o.Encode, o.Settings, o.Execution, o.Rows, o.Run)
def encode(model: o.Model, **options: Any) -> None:
    """Write the vector of each text, or its matrix where a model has a vector for each token.

    The rows of the output are those of the input, in the same order.

    batchscore encode --model BAAI/bge-small-en-v1.5 --in corpus.jsonl --out vectors.parquet
    """
    run("encode", model, **options)
