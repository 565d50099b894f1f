"""`batchscore eval`: how good runs are, and whether they are good enough."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from batchscore.cli import options as o
from batchscore.cli.text import print_result

if TYPE_CHECKING:
    from batchscore.evaluation.evaluate import Evaluation, PairsEvaluation


@o.with_options(o.Evaluate, o.Pictures)
def evaluate(runs: o.RunArguments, as_json: o.AsJson = False, **options: Any) -> None:
    """Measure runs against judgements, with intervals, ties and a paired test of several runs.

    A run is an output of `rerank` or any run that --in reads; the first one, or --baseline, is what the others are
    compared with. The exit code is 9 if a measure is below --fail-under or has dropped by more than --max-drop.

    batchscore eval reranked.trec --qrels qrels.tsv --metrics "nDCG@10 RR@10" --fail-under nDCG@10=0.70
    """
    from batchscore.cli.display import Display, exit_on_error
    from batchscore.cli.measures import lines_of, samples_of
    from batchscore.cli.report import require_pictures, write_pictures
    from batchscore.cli.result import Result

    display = Display(quiet=False, log_format="text")
    result = Result("eval", display, as_json=False, metrics_file=options.pop("metrics_file"))
    report, figure = options.pop("report"), options.pop("figure")
    form = options.pop("table_format")
    with exit_on_error(display), result.of_errors():
        result.check()
        require_pictures(report, figure)
        evaluation = _of_pairs(runs, options) if options.pop("task") == "pairs" else _of_rankings(runs, options)
        result.samples += samples_of(evaluation, has_baseline=options.get("baseline") is not None)
        print_result(evaluation.describe(), lines_of(evaluation, form), as_json=as_json)
        outputs = [run.run for run in evaluation.runs]
        write_pictures(display, outputs, report, figure, evaluation)
        evaluation.require_pass()
        result.passed()


def _of_rankings(runs: Sequence[str], options: dict[str, Any]) -> Evaluation:
    from batchscore.errors import UsageError
    from batchscore.evaluation.evaluate import USUAL_MEASURES, evaluate_runs
    from batchscore.jobs.output import require_finished

    qrels = options.pop("qrels")
    if qrels is None:
        raise UsageError("rankings need judgements", hint="pass --qrels FILE, or --task pairs for a column of labels")
    for run in (*runs, options["baseline"]):
        if run is not None:
            require_finished(run)
    for column in ("label_column", "score_column"):
        options.pop(column)
    return evaluate_runs(runs, qrels, **{**options, "metrics": options["metrics"] or USUAL_MEASURES})


def _of_pairs(runs: Sequence[str], options: dict[str, Any]) -> PairsEvaluation:
    from batchscore.errors import UsageError
    from batchscore.evaluation.evaluate import evaluate_scores

    for name in ("qrels", "baseline", "max_drop", "significant", "out"):
        if (value := options.pop(name)) is not None and value is not False:
            raise UsageError(f"--{name.replace('_', '-')} is for rankings, not for --task pairs", hint="drop it")
    return evaluate_scores(runs, **options)
