"""A window through a model by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from batchscore import Scorer
from batchscore.types import Scores, Work


def score_work(scorer: Scorer, work: Work, *args: Any, **options: Any) -> Scores:
    """The scores of a window whose rows are all good, as columns [rows]."""
    outcome = scorer.batcher.score(work, *args, **options)
    assert outcome.faults == {}
    scores = scorer.batcher.scores(work, outcome)
    logit = None if scores.logit is None else scores.logit[:, 0]
    return replace(scores, score=scores.score[:, 0], logit=logit)
