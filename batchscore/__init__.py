"""batchscore: score query/document pairs over whole corpora, offline."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from batchscore.evaluation.evaluate import evaluate_runs, evaluate_scores
    from batchscore.io.runs import read_run, write_run
    from batchscore.jobs.events import Outcome
    from batchscore.jobs.files import encode_files, plan_files, rerank_files, run_batch_files, score_files
    from batchscore.report.page import write_report
    from batchscore.scorer import Ranked, Scorer

__version__ = "0.1.0"
__all__ = [
    "Outcome",
    "Ranked",
    "Scorer",
    "__version__",
    "encode_files",
    "evaluate_runs",
    "evaluate_scores",
    "plan_files",
    "read_run",
    "rerank_files",
    "run_batch_files",
    "score_files",
    "write_report",
    "write_run",
]

_MODULES = {
    "Outcome": "batchscore.jobs.events",
    "Ranked": "batchscore.scorer",
    "Scorer": "batchscore.scorer",
    "encode_files": "batchscore.jobs.files",
    "evaluate_runs": "batchscore.evaluation.evaluate",
    "evaluate_scores": "batchscore.evaluation.evaluate",
    "plan_files": "batchscore.jobs.files",
    "read_run": "batchscore.io.runs",
    "rerank_files": "batchscore.jobs.files",
    "run_batch_files": "batchscore.jobs.files",
    "score_files": "batchscore.jobs.files",
    "write_report": "batchscore.report.page",
    "write_run": "batchscore.io.runs",
}


def __getattr__(name: str) -> Any:
    # torch takes a second to import; `batchscore --help` must not pay for it
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
