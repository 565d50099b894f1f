"""What the input of a run is: whole pairs, or pairs of ids that are joined with texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from batchscore.errors import UsageError
from batchscore.io import irds
from batchscore.io.collection import Names
from batchscore.io.forms import InFormat, Lines
from batchscore.io.inputs import Input, Skip, find_inputs, format_of_ids
from batchscore.io.joined import JoinedAddresses, Pairs
from batchscore.io.layouts import Layout, find_layout, of_split
from batchscore.io.source import FileAddresses, Source, open_source
from batchscore.io.stream import STREAM, standard_input
from batchscore.jobs.commands import Command, EncodeCommand, RequestsCommand, RerankCommand, ScoreCommand
from batchscore.jobs.options import JoinOptions, RunOptions

_PAIRS = "--run, --qrels or --all-pairs"


def open_input(command: Command, options: RunOptions, *, skip: Skip, folder: str) -> tuple[Command, Source]:
    """The source, and the command as it reads it.

    Args:
        command: as the user gave it.
        options: of the run.
        skip: which files of folders and patterns are left out.
        folder: of the index of a corpus.

    Raises:
        UsageError: options that exclude each other, or that lack another.
        BatchscoreError: as `open_source`.
    """
    other, layout = "", None
    if len(options.inputs) == 1 and not isinstance(command, RequestsCommand):
        layout = find_layout(options.inputs[0])
    has_pairs = options.join.run is not None or (options.inputs and layout is None)
    if isinstance(command, RerankCommand) and has_pairs:  # judgements are for its evaluation
        options = replace(options, join=replace(options.join, qrels=None))
    if isinstance(command, EncodeCommand) and layout is not None:
        texts = layout.corpus if command.side == "document" else layout.queries
        return command, _of(texts, options).open()
    if isinstance(command, (ScoreCommand, RerankCommand)):
        other = f", or --queries and --corpus with {_PAIRS}"
        if options.join.is_used or layout is not None:
            _refuse_media(command)
            _refuse_together(options, layout)
            return command.of_joined(), _addresses(options, layout, command.joined_names(), skip, folder).open()
    if not options.inputs:
        raise UsageError("nothing to read: no --in", hint=f"pass --in{other}")
    if STREAM in options.inputs:
        return command, standard_input(options.media)
    source = open_source(
        options.inputs,
        split=options.split,
        hive=options.hive,
        form=options.in_format,
        skip=skip,
        media=options.media,
    )
    return command, source


def _addresses(options: RunOptions, layout: Layout | None, names: Names, skip: Skip, folder: str) -> JoinedAddresses:
    files = partial(_files, options, skip)
    join = options.join
    pairs, listed = _pairs(options, layout, files)
    queries = files(join.queries or (), "queries") if layout is None else _of(layout.queries, options)
    corpus = files(join.corpus or (), "docs") if layout is None else _of(layout.corpus, options)
    has_chosen = layout is not None and join.run is None and join.qrels is None  # its judgements, or its run
    parts = [part for part in (listed, queries, corpus) if part is not None]
    if options.split is not None and not has_chosen and all(file.kind == "file" for p in parts for file in p.inputs):
        raise UsageError(
            f"no split {options.split!r}: all of this is files, and datasets have splits", hint="drop --split"
        )
    return JoinedAddresses(
        pairs=pairs,
        listed=listed,
        queries=queries,
        corpus=corpus,
        names=names,
        depth=join.depth,
        folder=folder,
    )


def _pairs(
    options: RunOptions, layout: Layout | None, files: Callable[..., FileAddresses]
) -> tuple[Pairs, FileAddresses | None]:
    """Which pairs are scored, and the files with their ids; for all pairs, the judgements that choose the queries."""
    join, split = options.join, options.split
    if join.run is not None:
        return "run", files([join.run], "scoreddocs")
    judged = None if join.qrels is None else files([join.qrels], "qrels")
    if layout is not None and judged is None:
        if not join.all_pairs and layout.runs:
            return "run", of_split(layout.runs, split, layout.name)
        judged = None if split is None else of_split(layout.qrels, split, layout.name)
    return "all" if join.all_pairs else "qrels", judged


def _files(options: RunOptions, skip: Skip, paths: Sequence[str], part: irds.Kind) -> FileAddresses:
    """The files that paths stand for; of a name of ir_datasets, `part` is read.

    Files of ids whose suffix says nothing are TREC's, as anserini and trec_eval name them.
    """
    inputs = []
    for path in paths:
        form: InFormat | Lines = options.in_format if part in _TREC else "auto"
        if form == "auto" and part in _TREC:
            form = format_of_ids(path, _TREC[part])
        inputs += [replace(file, part=part) for file in find_inputs(path, skip, hive=False, form=form)]
    return FileAddresses(tuple(inputs), options.split, is_strict=False, media=options.media)


_TREC: dict[irds.Kind, InFormat] = {"scoreddocs": "trec-run", "qrels": "trec-qrels"}


def _of(file: Input, options: RunOptions) -> FileAddresses:
    return FileAddresses((file,), options.split, is_strict=False, media=options.media)


def _refuse_together(options: RunOptions, layout: Layout | None) -> None:
    """Raise UsageError for options of a join that exclude each other, or that lack another."""
    join = options.join
    if options.inputs and layout is None:
        raise UsageError(
            f"--in has whole pairs, and {_first_of(join)} names ids or texts that are joined", hint="drop one of them"
        )
    if layout is not None and (join.queries or join.corpus):
        raise UsageError(f"{layout.name} has queries and a corpus of its own", hint="drop --queries and --corpus")
    if join.run is not None and (join.qrels is not None or join.all_pairs):
        other = "--qrels" if join.qrels is not None else "--all-pairs"
        hint = "drop one; `eval` measures what is scored" if join.qrels is not None else "drop one"
        raise UsageError(f"--run and {other} both say which pairs are scored", hint=hint)
    if layout is None and not _says_pairs(join):
        raise UsageError(f"{_first_of(join)} alone does not say which pairs are scored", hint=f"add {_PAIRS}")
    if layout is not None and not (_says_pairs(join) or layout.runs or options.split):
        judged = f", or --split {' or '.join(layout.qrels)} for those that are judged" if layout.qrels else ""
        message = f"{layout.name} is a test collection, and nothing says which of its pairs are scored"
        raise UsageError(message, hint=f"add {_PAIRS}{judged}")
    for option, value in (("--queries", join.queries), ("--corpus", join.corpus)):
        if layout is None and not value:
            raise UsageError(f"{_first_of(join)} has ids: their texts are needed too", hint=f"add {option}")
    if join.depth is not None and (join.all_pairs or join.qrels):
        raise UsageError("--depth takes the first documents of a --run, and there is none", hint="drop it")


def _says_pairs(join: JoinOptions) -> bool:
    return join.run is not None or join.qrels is not None or join.all_pairs


def _first_of(join: JoinOptions) -> str:
    given: dict[str, object] = {
        "--run": join.run,
        "--qrels": join.qrels,
        "--all-pairs": join.all_pairs or None,
        "--depth": join.depth,
    }
    given |= {"--queries": join.queries, "--corpus": join.corpus or None}
    return next(flag for flag, value in given.items() if value is not None)


def _refuse_media(command: ScoreCommand | RerankCommand) -> None:
    for option in ("query_image_column", "query_video_column", "document_image_column", "document_video_column"):
        if getattr(command, option) is not None:
            flag = f"--{option.replace('_', '-')}"
            raise UsageError(
                f"{flag}: only texts are joined by id", hint="write each pair into one row, and name the file with --in"
            )
