"""`batchscore bench`: how quick a model is on this machine."""

from __future__ import annotations

from typing import Any

from batchscore.cli import options as o
from batchscore.cli.text import print_result
from batchscore.stop import leave_on_signals


@o.with_options(o.Settings, o.Execution)
def bench(model: o.ModelArgument, seconds: o.BenchSeconds = 1.0, as_json: o.AsJson = False, **options: Any) -> None:
    """Time a model on texts that are made up: tokens and pairs a second by length, and the best --batch-tokens.

    The peak is the speed of matrix products of the same shapes alone, on this machine and at this moment. The last line
    can be pasted into an issue.

    batchscore bench BAAI/bge-reranker-v2-m3
    """
    leave_on_signals()
    from batchscore.cli.display import Display, exit_on_error

    display = Display(quiet=False, log_format="text")
    display.loading(model, "files")  # the imports that follow take seconds
    with exit_on_error(display):
        from batchscore.jobs.start import lean_imports

        with lean_imports():
            from batchscore.bench import benchmark
            from batchscore.scorer import set_up
        options["window_rows"] = options.pop("unit_rows")
        found = benchmark(set_up(model, **options), seconds=seconds, on_step=display.note)
    print_result(found.describe(), found.lines(), as_json=as_json)
