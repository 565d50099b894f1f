"""Which figures a page has, and which is the main one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from markupsafe import Markup

from batchscore.errors import InputError
from batchscore.evaluation.evaluate import Evaluation, PairsEvaluation
from batchscore.evaluation.measures import Evaluated
from batchscore.evaluation.pairs import PairsEvaluated
from batchscore.jobs.lengths import length_bins
from batchscore.report import figures
from batchscore.report.figures import Estimate, Picture
from batchscore.report.outputs import Reported, short_names

MOST_BARS = 300  # of all changes; beyond, they are outlines
AnyEvaluation = Evaluation | PairsEvaluation | None


@dataclass(frozen=True, slots=True)
class PagePictures:
    """The figures of a page; None: there is nothing to show."""

    measures: Markup | None
    changes: Sequence[Markup]  # one for each run but the first
    scores: Markup | None
    lengths: Markup | None
    speed: Markup | None


def page_pictures(outputs: Sequence[Reported], evaluation: AnyEvaluation) -> PagePictures:
    """All figures of a page."""
    scores, lengths, speed = _scores(outputs), _lengths(outputs), _speed(outputs)
    return PagePictures(
        figures.inline(_measures(evaluation), "measures") if evaluation else None,
        [figures.inline(picture, f"change-{run}") for run, picture in enumerate(_changes(evaluation), 1)],
        figures.inline(scores, "scores") if scores else None,
        figures.inline(lengths, "lengths") if lengths else None,
        figures.inline(speed, "speed") if speed else None,
    )


def main_picture(outputs: Sequence[Reported], evaluation: AnyEvaluation, form: Literal["png", "svg"]) -> bytes:
    """Measures and the change of the last run, or scores and lengths, as an image file; InputError without any."""
    chosen = (
        [_measures(evaluation), *_changes(evaluation)[-1:]]
        if evaluation
        else [picture for picture in (_scores(outputs), _lengths(outputs)) if picture]
    )
    if not chosen:
        names = ", ".join(output.name for output in outputs)
        raise InputError(f"there is nothing to draw: {names} has no scores", hint="name an output with scores")
    return figures.picture_file(chosen, form)


def _measures(evaluation: Evaluation | PairsEvaluation) -> Picture:
    runs: Sequence[Evaluated | PairsEvaluated] = evaluation.runs
    found = [
        Estimate(number, measure.name, measure.value, *measure.interval)
        for number, run in enumerate(runs)
        for measure in run.measures
    ]
    return figures.estimates(short_names([run.run for run in runs]), found)


def _changes(evaluation: AnyEvaluation) -> list[Picture]:
    """Of the first measure, of each run but the first."""
    if not isinstance(evaluation, Evaluation):
        return []
    first, *others = (run.measures[0] for run in evaluation.runs)
    baseline, *names = short_names([run.run for run in evaluation.runs])
    pictures = []
    for measure, name in zip(others, names, strict=True):
        differences = measure.values - first.values
        order = np.argsort(differences, kind="stable")
        ids = [f"bar-{place}" for place in order.tolist()] if len(order) * len(others) <= MOST_BARS else None
        pictures.append(figures.changes(differences[order], measure.name, name, baseline, ids))
    return pictures


def _scores(outputs: Sequence[Reported]) -> Picture | None:
    found = [
        (number, output.name, output.scores.values)
        for number, output in enumerate(outputs)
        if output.scores and len(output.scores.values)
    ]
    return figures.score_histograms(found) if found else None


def _lengths(outputs: Sequence[Reported]) -> Picture | None:
    found, limits = [], {}
    for number, output in enumerate(outputs):
        if bins := length_bins(output.counts.get("num_tokens", {})):
            found.append((number, output.name, bins))
            spec = output.record["spec"]
            if spec["score_type"]["value"] == "cross-encoder":
                limits[number] = spec["max_length"]["value"]
    return figures.length_histograms(found, limits) if found else None


def _speed(outputs: Sequence[Reported]) -> Picture | None:
    found = [
        (number, output.name, course)
        for number, output in enumerate(outputs)
        if len((course := output.record.get("over_time", {})).get("seconds", ())) > 2
    ]
    return figures.throughput(found) if found else None
