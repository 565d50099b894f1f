"""`batchscore verify`: whether a model's scores are those of its own library."""

from __future__ import annotations

from typing import Any

from batchscore.cli import options as o
from batchscore.cli.text import print_result, verification_lines


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
        from batchscore.verification.verify import verify_model

        verification = verify_model(model, on_step=display.note, **options)
        print_result(verification.describe(), verification_lines(verification), as_json=as_json)
        if verification.problem is not None:
            raise verification.problem
