"""batchscore: score query/document pairs over whole corpora, offline."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from batchscore.jobs.events import Outcome
    from batchscore.jobs.files import encode_files, rerank_files, score_files
    from batchscore.scorer import Ranked, Scorer

__version__ = "0.1.0"
__all__ = ["Outcome", "Ranked", "Scorer", "__version__", "encode_files", "rerank_files", "score_files"]

_MODULES = {
    "Outcome": "batchscore.jobs.events",
    "Ranked": "batchscore.scorer",
    "Scorer": "batchscore.scorer",
    "encode_files": "batchscore.jobs.files",
    "rerank_files": "batchscore.jobs.files",
    "score_files": "batchscore.jobs.files",
}


def __getattr__(name: str) -> Any:
    # torch takes a second to import; `batchscore --help` must not pay for it
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
