"""`batchscore verify`: whether a model's scores are those of its own library."""

from __future__ import annotations

import json
from typing import Any

import typer

from batchscore.cli import options as o


@o.with_options(o.Verify, o.Settings)
def verify(model: o.ModelArgument, as_json: o.AsJson = False, **options: Any) -> None:
    """Compare a model's scores with those of its own library, once, before the first long job with it.

    Thirty built-in pairs (long, empty, in many scripts, with special tokens spelled out, ...) are scored by the library
    and by batchscore. The exit code is 9 if a difference exceeds the tolerance.

    batchscore verify BAAI/bge-reranker-v2-m3
    """
    from batchscore.cli.display import Display, exit_on_error

    display = Display(quiet=False, log_format="text")
    display.loading(model, "files")  # the imports that follow take seconds
    with exit_on_error(display):
        from batchscore.cli.report import print_verification
        from batchscore.verification.verify import verify_model

        verification = verify_model(model, on_step=display.note, **options)
        if as_json:
            typer.echo(json.dumps(verification.describe(), ensure_ascii=False, indent=2))
        else:
            print_verification(verification)
        if verification.problem is not None:
            raise verification.problem
