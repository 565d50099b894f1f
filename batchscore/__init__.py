"""batchscore: score query/document pairs over whole corpora, offline."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from batchscore.scorer import Ranked, Scorer

__version__ = "0.1.0"
__all__ = ["Ranked", "Scorer", "__version__"]


def __getattr__(name: str) -> Any:
    # torch takes a second to import; `batchscore --help` must not pay for it
    if name in {"Ranked", "Scorer"}:
        from batchscore import scorer

        return getattr(scorer, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
