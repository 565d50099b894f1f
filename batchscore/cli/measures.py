"""How an evaluation is shown: as tables, and as metrics."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from batchscore.cli.text import table_lines

if TYPE_CHECKING:
    from batchscore.cli.metrics import Sample
    from batchscore.evaluation.evaluate import Evaluation, PairsEvaluation

_FEW = 5  # names that are shown


def samples_of(evaluation: Evaluation | PairsEvaluation, *, has_baseline: bool) -> list[Sample]:
    """Metrics; runs go by their numbers, since a name with a day in it would be new every night."""
    from batchscore.cli.metrics import Sample
    from batchscore.evaluation.evaluate import Evaluation

    samples = []
    runs: Sequence[Any] = evaluation.runs
    for number, run in enumerate(runs, 1 - has_baseline):
        name = ("run", str(number) if number else "baseline")
        if isinstance(evaluation, Evaluation):
            samples.append(Sample("batchscore_eval_queries", len(run.queries), (name,)))
        samples += [
            Sample("batchscore_eval_measure", measure.value, (name, ("measure", measure.name)))
            for measure in run.measures
        ]
    return samples


def lines_of(evaluation: Evaluation | PairsEvaluation, form: str) -> list[str]:
    """What people read of it; `form` is text, markdown or csv."""
    from batchscore.evaluation.evaluate import Evaluation

    if not isinstance(evaluation, Evaluation):
        return _table([row for run in evaluation.runs for row in _pair_rows(run)], form)
    lines = _table([_row(run) for run in evaluation.runs], form)
    if evaluation.comparisons:
        lines += ["", *_table([_compared(comparison) for comparison in evaluation.comparisons], form)]
    return lines if form == "csv" else [*lines, "", *(line for run in evaluation.runs for line in _notes(run))]


def _row(run: Any) -> dict[str, str]:
    measures = {measure.name: _with_interval(measure.value, measure.interval) for measure in run.measures}
    return {"run": run.run, "queries": str(len(run.queries)), **measures}


def _with_interval(value: float, interval: tuple[float, float]) -> str:
    return f"{value:.4f} [{interval[0]:.4f}, {interval[1]:.4f}]"


def _pair_rows(run: Any) -> list[dict[str, str]]:
    return [
        {
            "run": run.run,
            "pairs": f"{run.pairs}",
            "measure": measure.name,
            "value": _with_interval(measure.value, measure.interval),
            "note": measure.note,
        }
        for measure in run.measures
    ]


def _compared(comparison: Any) -> dict[str, str]:
    return {
        "run": comparison.run,
        "against": comparison.baseline,
        "measure": comparison.measure,
        "difference": f"{comparison.difference:+.4f}",
        "better": str(comparison.better),
        "worse": str(comparison.worse),
        "p": f"{comparison.p_value:.4f}",
        "p (Holm)": f"{comparison.adjusted:.4f}",
    }


def _notes(run: Any) -> list[str]:
    """What one should know of a run before its numbers are believed."""
    lines = []
    unjudged = ", ".join(f"{share:.1%} {depth}" for depth, share in run.unjudged.items())
    lines.append(f"{run.run}: unjudged results {unjudged}")
    if run.ties.results:
        spread = ", ".join(
            f"{measure.name} {measure.worst:.4f} to {measure.best:.4f}"
            for measure in run.measures
            if measure.best - measure.worst >= 5e-5
        )
        moved = f": by their order {spread}" if spread else ", whose order moves no measure by 0.0001"
        lines.append(
            f"{run.run}: {run.ties.results:,} of {run.results:,} results in {run.ties.queries:,} queries have equal "
            f"scores{moved}"
        )
    if run.without_results:
        some = ", ".join(run.without_results[:_FEW]) + (", ..." if len(run.without_results) > _FEW else "")
        lines.append(f"{run.run}: {len(run.without_results):,} judged queries without results count as 0: {some}")
    if run.not_judged:
        lines.append(f"{run.run}: {run.not_judged:,} queries are not judged and left out")
    return lines


def _table(rows: Sequence[Mapping[str, str]], form: str) -> list[str]:
    if form != "csv":
        return table_lines(rows, form)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().splitlines()
