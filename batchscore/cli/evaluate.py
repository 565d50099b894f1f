"""`batchscore eval`: how good runs are, and whether they are good enough."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import typer

from batchscore.cli import options as o

if TYPE_CHECKING:
    from batchscore.cli.metrics import Sample
    from batchscore.evaluation.evaluate import Evaluation, PairsEvaluation

_FEW = 5  # names that are shown


@o.with_options(o.Evaluate, o.Pictures)
def evaluate(runs: o.RunArguments, as_json: o.AsJson = False, **options: Any) -> None:
    """Measure runs against judgements, with intervals, ties and a paired test of several runs.

    A run is an output of `rerank` or any run that --in reads; the first one, or --baseline, is what the others are
    compared with. The exit code is 9 if a measure is below --fail-under or has dropped by more than --max-drop.

    batchscore eval reranked.trec --qrels qrels.tsv --metrics "nDCG@10 RR@10" --fail-under nDCG@10=0.70
    """
    from batchscore.cli.display import Display, exit_on_error
    from batchscore.cli.page import require_pictures, write_pictures
    from batchscore.cli.result import Result

    display = Display(quiet=False, log_format="text")
    result = Result("eval", display, as_json=False, metrics_file=options.pop("metrics_file"))
    report, figure = options.pop("report"), options.pop("figure")
    form = "json" if as_json else options.pop("table_format")
    options.pop("table_format", None)
    with exit_on_error(display), result.of_errors():
        result.check()
        require_pictures(report, figure)
        evaluation = _of_pairs(runs, options) if options.pop("task") == "pairs" else _of_rankings(runs, options)
        result.samples += _samples(evaluation, has_baseline=options.get("baseline") is not None)
        if form == "json":
            typer.echo(json.dumps(evaluation.describe(), ensure_ascii=False, indent=2))
        else:
            typer.echo("\n".join(_lines(evaluation, form)))
        outputs = [run.run for run in evaluation.runs]
        write_pictures(display, outputs, report, figure, evaluation)
        evaluation.require_pass()
        result.passed()


def _of_rankings(runs: Sequence[str], options: dict[str, Any]) -> Evaluation:
    from batchscore.errors import UsageError
    from batchscore.evaluation.evaluate import METRICS, evaluate_runs

    qrels = options.pop("qrels")
    if qrels is None:
        raise UsageError("rankings need judgements", hint="pass --qrels FILE, or --task pairs for a column of labels")
    for column in ("label_column", "score_column"):
        options.pop(column)
    return evaluate_runs(runs, qrels, **{**options, "metrics": options["metrics"] or METRICS})


def _of_pairs(runs: Sequence[str], options: dict[str, Any]) -> PairsEvaluation:
    from batchscore.errors import UsageError
    from batchscore.evaluation.evaluate import evaluate_scores

    for name in ("qrels", "baseline", "max_drop", "significant", "out"):
        if options.pop(name):
            raise UsageError(f"--{name.replace('_', '-')} is for rankings, not for --task pairs", hint="drop it")
    return evaluate_scores(runs, **options)


def _samples(evaluation: Evaluation | PairsEvaluation, *, has_baseline: bool) -> list[Sample]:
    """Metrics; runs go by their numbers, since a name with a day in it would be new every night."""
    from batchscore.cli.metrics import Sample
    from batchscore.evaluation.evaluate import Evaluation

    samples = []
    runs: Sequence[Any] = evaluation.runs
    for number, run in enumerate(runs, 1 - has_baseline):
        name = ("run", str(number) if number else "baseline")
        if isinstance(evaluation, Evaluation):
            samples.append(Sample("batchscore_eval_queries", len(run.queries), (name,)))
            values = {str(measure.name): measure.mean for measure in run.measures}
        else:
            values = {measure.name: measure.value for measure in run.measures}
        samples += [
            Sample("batchscore_eval_measure", value, (name, ("measure", measure))) for measure, value in values.items()
        ]
    return samples


def _lines(evaluation: Evaluation | PairsEvaluation, form: str) -> list[str]:
    from batchscore.evaluation.evaluate import Evaluation

    if not isinstance(evaluation, Evaluation):
        return _table([row for run in evaluation.runs for row in _pair_rows(run)], form)
    lines = _table([_row(run) for run in evaluation.runs], form)
    if evaluation.comparisons:
        lines += ["", *_table([_compared(comparison) for comparison in evaluation.comparisons], form)]
    return lines if form == "csv" else [*lines, "", *(line for run in evaluation.runs for line in _notes(run))]


def _row(run: Any) -> dict[str, str]:
    measures = {f"{measure.name}": _with_interval(measure.mean, measure.interval) for measure in run.measures}
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
    from batchscore.cli.report import table_lines

    if form != "csv":
        return table_lines(rows, form)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().splitlines()
