"""The commands as functions: files in, files out, with the flags of the command line as keywords.

A call resumes what an earlier one, or the command line, left unfinished. Where the command line ends with an exit code,
these raise the BatchscoreError that has it; a run with bad rows returns, and says so in its outcome.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, Literal

from typing_extensions import Unpack

from batchscore.errors import BatchscoreError, Errors, UsageError, naming_keywords
from batchscore.io.forms import InFormat, OutFormat
from batchscore.io.stream import STREAM
from batchscore.jobs.commands import Command, EncodeCommand, RequestsCommand, RerankCommand, ScoreCommand
from batchscore.jobs.events import Events, Outcome, Silent
from batchscore.jobs.options import PROBE_SECONDS, SAMPLE_ROWS, EncodeChoice, JoinOptions, RunOptions
from batchscore.jobs.run import PreparedJob, prepare
from batchscore.jobs.stream import is_stream, prepare_stream
from batchscore.models.resolve.options import nearest
from batchscore.scorer import ScorerOptions
from batchscore.stop import Stop
from batchscore.types import Side

if TYPE_CHECKING:
    from batchscore.evaluation.evaluate import Criteria, Evaluation
    from batchscore.jobs.planning.forecast import Forecast

_MEASURING = ("metrics", "fail_under")  # options of `rerank` that its job knows nothing of
Inputs = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
# what is kept unless the user says otherwise
_KEPT: Mapping[type[Command], Mapping[str, str]] = {
    ScoreCommand: {"keep_columns": "all"},
    RerankCommand: {"keep_columns": "none", "keep_document_fields": "none"},
    EncodeCommand: {"keep_columns": "none"},
}


class JobOptions(ScorerOptions, total=False):
    """Options that all functions take: the flags of the command line, with the same defaults."""

    media_root: str | None
    allow_remote_media: bool
    allowed_media_domains: str | Sequence[str] | None  # "one.org,two.org", or names
    overwrite: bool
    merge: bool
    max_errors: str | int | None
    max_seconds: float | None
    shard: str | None
    claim: Literal["static", "dynamic"]
    devices: str | None
    max_restarts: int
    engine: Literal["local", "ray"]
    ray_address: str | None
    unit_rows: int  # `window_rows` of a Scorer
    limit: int | None


class FileOptions(JobOptions, total=False):
    """Options of all functions whose input has columns."""

    in_format: InFormat
    out_format: OutFormat
    run_tag: str | None
    split: str | None
    hive: bool
    errors: Errors
    encode: EncodeChoice
    encodings_gb: float | None
    store: str | Sequence[str]  # a folder, files that `encode_files` wrote
    document_fields: str | Sequence[str] | None  # "title,text", or names


class PairOptions(FileOptions, total=False):
    """Options of `score_files` and `rerank_files`, which take pairs of ids too."""

    run: str | os.PathLike[str] | None
    qrels: str | os.PathLike[str] | None
    all_pairs: bool
    queries: Inputs | None
    corpus: Inputs | None
    depth: int | None
    query_column: str
    query_image_column: str | None
    query_video_column: str | None
    query_id_column: str | None
    document_image_column: str | None
    document_video_column: str | None
    document_id_column: str | None


class ScoreOptions(PairOptions, total=False):
    """Options of `score_files`."""

    document_column: str | None
    score_column: str
    keep_columns: str | Sequence[str]  # "all", "none", or names
    details: bool


class RerankOptions(PairOptions, total=False):
    """Options of `rerank_files`."""

    document_column: str | None
    top_n: int
    return_documents: bool
    keep_columns: str | Sequence[str]  # as in `ScoreOptions`
    keep_document_fields: str | Sequence[str]  # likewise
    nested: bool
    metrics: str | None
    fail_under: Sequence[str] | None


class EncodeOptions(FileOptions, total=False):
    """Options of `encode_files`."""

    side: Side
    text_column: str | None
    image_column: str | None
    video_column: str | None
    id_column: str | None
    keep_columns: str | Sequence[str]  # as in `ScoreOptions`, beside the id


def score_files(
    model: str,
    inputs: Inputs | None,
    out: str | os.PathLike[str],
    *,
    events: Events | None = None,
    stop: Stop | None = None,
    **options: Unpack[ScoreOptions],
) -> Outcome:
    """Score query/document pairs in files, as `batchscore score` does.

    Args:
        model: checkpoint folder or hub id.
        inputs: one or several files, folders, patterns or datasets; "-" for standard input; None with `queries` and
            `corpus`.
        out: file to write, or a folder with a slash at the end for one part file per unit; or "-" for standard output.
        events: receives the progress of the run.
        stop: by which another thread can end the run.
        options: the flags of the command line.

    Raises:
        BatchscoreError: the run could not begin or ended early; finished units are kept, and the next call resumes.
    """
    return _run(ScoreCommand, model, inputs, out, options, events, stop or Stop())


def rerank_files(
    model: str,
    inputs: Inputs | None,
    out: str | os.PathLike[str],
    *,
    events: Events | None = None,
    stop: Stop | None = None,
    **options: Unpack[RerankOptions],
) -> Outcome:
    """Rank the documents of each query in files, as `batchscore rerank` does; arguments as in `score_files`.

    With `qrels` the outcome has an evaluation, unless other processes have a part of the job. A ranking that is not
    good enough for `fail_under` does not raise: the outcome's `exit_code` is 9.

    Raises:
        BatchscoreError: as `score_files`; or the output and the judgements have no query in common.
    """
    criteria, rest = _criteria(options, out)
    outcome = _run(RerankCommand, model, inputs, out, rest, events, stop or Stop())
    if criteria is None or outcome.end in ("partial", "share", "merged-elsewhere"):
        return outcome
    return replace(outcome, evaluation=_evaluation(criteria, outcome.output, options.get("run"), events or Silent()))


def encode_files(
    model: str,
    inputs: Inputs,
    out: str | os.PathLike[str],
    *,
    events: Events | None = None,
    stop: Stop | None = None,
    **options: Unpack[EncodeOptions],
) -> Outcome:
    """Write the vectors or matrices of texts in files, as `batchscore encode` does; arguments as in `score_files`."""
    return _run(EncodeCommand, model, inputs, out, options, events, stop or Stop())


@naming_keywords()
def plan_files(
    model: str,
    inputs: Inputs | None,
    out: str | os.PathLike[str] | None = None,
    *,
    command: Literal["auto", "score", "rerank"] = "auto",
    sample: int = SAMPLE_ROWS,
    probe: bool | float = False,
    events: Events | None = None,
    **options: Any,
) -> Forecast:
    """What a job would read, take and cost, as `batchscore plan` finds it out; the job writes nothing.

    Args:
        model, inputs: as in `score_files`.
        out: likewise; without one, a file in the working directory is planned for.
        command: whose job it is; auto is rerank where rows list documents, pairs are joined, or options are of it.
        sample: rows to tokenize, roughly.
        probe: run the model on these, which takes about a minute or so many seconds, and predict the time.
        events: receives news.
        options: those of `score_files` or `rerank_files`.

    Raises:
        BatchscoreError: the job could not begin.
    """
    from batchscore.jobs.planning.forecast import plan_job  # and all that it measures with, which no job needs

    def prepared(kind: type[Command]) -> PreparedJob:
        of_kind = {name: value for name, value in options.items() if kind is ScoreCommand or name not in _MEASURING}
        asked = _split(kind, model, inputs, out or f"{kind.name}.parquet", of_kind)
        if is_stream(asked[2]):
            raise UsageError("a stream can be read only once, and a plan would read it", hint="save it as a file first")
        return prepare(*asked, events, is_plan=True)

    ranking = RerankOptions.__annotations__.keys() - ScoreOptions.__annotations__.keys()
    ranking |= {field.name for field in fields(JoinOptions)}
    if command == "score":
        job = prepared(ScoreCommand)
    else:
        job = prepared(RerankCommand)
        planned = job.plan.command
        is_rerank = command == "rerank" or ranking & options.keys()
        if not is_rerank and isinstance(planned, RerankCommand) and not planned.lists_documents(job.source):
            job = prepared(ScoreCommand)
    seconds = PROBE_SECONDS if probe is True else float(probe)
    return plan_job(job, sample=sample, seconds=seconds, events=events)


def run_batch_files(
    models: str | Sequence[str] | Mapping[str, str],
    inputs: Inputs,
    out: str | os.PathLike[str],
    *,
    events: Events | None = None,
    stop: Stop | None = None,
    **options: Unpack[JobOptions],
) -> Outcome:
    """Answer requests of the scoring API in files, as `batchscore run-batch` does; arguments as in `score_files`.

    Args:
        models: by the names that requests give them, or as the command line has it: folders, hub ids, or "NAME=PATH".
        inputs: one or several files of lines.
        out: file to write, or a folder with a slash at the end for one part file per unit.
        events: receives the progress of the run.
        stop: by which another thread can end the run.
        options: the flags of the command line.

    Raises:
        BatchscoreError: as `score_files`.
    """
    named = (
        dict(models) if isinstance(models, Mapping) else named_models([models] if isinstance(models, str) else models)
    )
    first, *others = named.values()
    # a bad line has an answer in its place
    left = {**options, "models": tuple(named), "errors": "null", "in_format": "lines", "out_format": "lines"}
    return _run(RequestsCommand, first, inputs, out, left, events, stop or Stop(), others)


def named_models(models: Sequence[str]) -> dict[str, str]:
    """Models by the names under which they are served: NAME=PATH, or a path that is its own name.

    Raises:
        UsageError: a name comes twice, or a model has none.
    """
    named: dict[str, str] = {}
    for model in models:
        name, is_named, path = model.partition("=") if not os.path.isdir(os.path.expanduser(model)) else (model, "", "")
        if not name or (is_named and not path):
            raise UsageError(
                f"--model {model!r} is not NAME=PATH", hint="for example --model bge=BAAI/bge-reranker-v2-m3"
            )
        if name in named:
            raise UsageError(f"--model has the name {name!r} twice", hint="give each model a name of its own")
        named[name] = path or name
    if not named:
        raise UsageError("no model is given", hint="pass --model")
    return named


@naming_keywords()
def _criteria(options: RerankOptions, out: str | os.PathLike[str]) -> tuple[Criteria | None, dict[str, Any]]:
    """The criteria by which the ranking is evaluated, or None, and the options of its job."""
    rest = {name: value for name, value in options.items() if name not in _MEASURING}
    qrels = options.get("qrels")
    if qrels is None:
        for name in _MEASURING:
            if options.get(name):
                flag = name.replace("_", "-")
                raise UsageError(f"--{flag} is for rankings that are evaluated", hint="pass --qrels with judgements")
        return None, rest
    if os.fspath(out) == STREAM:
        raise UsageError("--qrels has the output evaluated, which --out - does not keep", hint="write it to a file")
    from batchscore.evaluation.evaluate import USUAL_MEASURES, Criteria  # takes scipy

    criteria = Criteria.read(
        os.fspath(qrels), options.get("metrics") or USUAL_MEASURES, options.get("fail_under"), options.get("split")
    )
    return criteria, rest


@naming_keywords()
def _evaluation(
    criteria: Criteria, output: str, candidates: str | os.PathLike[str] | None, events: Events
) -> Evaluation:
    """The output measured, and compared with its candidates if these are ranked."""
    ranked = criteria.measured(output)
    baseline = None
    if candidates is not None:
        try:
            baseline = criteria.measured(os.fspath(candidates))
        except BatchscoreError as error:
            events.note(f"eval     without the candidates: {error.message}")
    return criteria.evaluation([ranked], baseline)


@naming_keywords()
def _run(
    kind: type[Command],
    model: str,
    inputs: Inputs | None,
    out: str | os.PathLike[str],
    options: Mapping[str, Any],
    events: Events | None,
    stop: Stop,
    others: Sequence[str] = (),
) -> Outcome:
    """Prepare a job, and do it."""
    if (seconds := options.get("max_seconds")) is not None:
        stop.after(seconds)
    command, scorer, run = _split(kind, model, inputs, out, options)
    if is_stream(run) and kind is RequestsCommand:
        raise UsageError("run-batch reads files, and writes one", hint="name a file in the place of -")
    if is_stream(run):
        return prepare_stream(command, scorer, run, events).execute(stop, events)
    return prepare(command, scorer, run, events, others=others).execute(stop, events)


def _split(
    kind: type[Command], model: str, inputs: Inputs | None, out: str | os.PathLike[str], options: Mapping[str, Any]
) -> tuple[Command, dict[str, Any], RunOptions]:
    """The options split by what takes them: the command, the Scorer, the run."""
    left = dict(options)
    for option, default in _KEPT.get(kind, {}).items():
        left[option] = _kept(left.get(option, default))
    if left.get("max_errors") is not None:
        left["max_errors"] = str(left["max_errors"])
    if isinstance(store := left.get("store"), str | os.PathLike):
        left["store"] = [os.fspath(store)]
    for option in left.keys() & {"document_fields", "allowed_media_domains"}:
        left[option] = _names(left.get(option) or ()) or None
    left.pop("max_seconds", None)
    if "unit_rows" in left:  # a Scorer tokenizes a whole unit at once: its window is a unit
        left["window_rows"] = left.pop("unit_rows")
    command = kind(**_taken(left, kind))
    _refuse_undecodable({"model": model, **options})
    join = _join(left) if kind in (ScoreCommand, RerankCommand) else JoinOptions()
    run = RunOptions(_paths(inputs), os.fspath(out), join=join, **_taken(left, RunOptions))
    if unknown := left.keys() - ScorerOptions.__annotations__.keys():
        known = set().union(*(kind.__annotations__ for kind in (ScoreOptions, RerankOptions, EncodeOptions)))
        hint = f"options are the flags of the command line; {nearest(min(unknown), dict.fromkeys(known))}"
        raise UsageError(f"unknown option {min(unknown)!r}", hint=hint)
    return command, {"model": os.fspath(model), **left}, run


def _join(options: dict[str, Any]) -> JoinOptions:
    """The options of a join, taken out."""
    taken = _taken(options, JoinOptions)
    for name in ("run", "qrels"):
        taken[name] = None if taken.get(name) is None else os.fspath(taken[name])
    for name in ("queries", "corpus"):
        taken[name] = _paths(taken.get(name)) or None
    return JoinOptions(**taken)


def _paths(inputs: Inputs | None) -> list[str]:
    if isinstance(inputs, str | os.PathLike):
        return [os.fspath(inputs)]
    return [os.fspath(path) for path in inputs or ()]


def _refuse_undecodable(options: Mapping[str, Any]) -> None:
    """Raise UsageError for text that is not UTF-8, which only a file system can take."""
    for name, value in options.items():
        try:
            str(value).encode()
        except UnicodeEncodeError as error:
            raise UsageError(f"{name} {value!r} is not UTF-8", hint="write it in UTF-8") from error


def _kept(columns: str | Sequence[str]) -> tuple[str, ...] | None:
    """The columns to keep; None: all."""
    if isinstance(columns, str):
        return {"all": None, "none": ()}.get(columns, _names(columns))
    return tuple(columns)


def _names(names: str | Sequence[str]) -> tuple[str, ...]:
    """Names from a list separated by commas, or from any other."""
    return tuple(name.strip() for name in (names.split(",") if isinstance(names, str) else names))


def _taken(options: dict[str, Any], kind: Any) -> dict[str, Any]:
    """The options that are fields of a dataclass, taken out."""
    return {field.name: options.pop(field.name) for field in fields(kind) if field.name in options}
