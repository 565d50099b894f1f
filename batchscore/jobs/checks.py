"""What is refused before a model is loaded, and how many bad rows a job may have."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from math import inf
from typing import Any

from batchscore.errors import Errors, NotFoundError, OutputError, RuntimeFailureError, UsageError
from batchscore.io.jsonl import SUFFIXES
from batchscore.io.outputs import Format, RunColumns
from batchscore.io.source import Source
from batchscore.io.storage import Folder, is_url, local_path, split_url
from batchscore.io.stream import STREAM
from batchscore.jobs.commands import Command, EncodeCommand, RequestsCommand, RerankCommand
from batchscore.jobs.options import RunOptions
from batchscore.jobs.output import Output
from batchscore.jobs.parts import JOB, Parts
from batchscore.jobs.records import exists
from batchscore.jobs.shards import Shard, find_shard
from batchscore.models.spec import ModelSpec


def shard_of(options: RunOptions) -> Shard:
    """The share of this process; UsageError as `find_shard`."""
    if options.is_dynamic and options.shard is None:
        # only the unit to begin with depends on the shard, so an array with gaps is no error
        with suppress(UsageError):
            return find_shard(None, os.environ)
        return Shard()
    return find_shard(options.shard, os.environ)


def bad_rows(counts: Mapping[str, Any]) -> int:
    """Rows with a fault; older parts count faults only, of which a row with a list of documents can have several."""
    return int(counts.get("faulty_rows", counts.get("faulty", 0)))


@dataclass(frozen=True, slots=True)
class MaxErrors:
    """How many bad rows a job may have."""

    number: float
    is_share: bool  # in percent of the job's rows

    @classmethod
    def parsed(cls, text: str | None) -> MaxErrors:
        """From N or P%; UsageError for anything else."""
        if text is None:
            return cls(inf, is_share=False)
        try:
            number = float(text.removesuffix("%"))
        except ValueError:
            number = -1.0
        if not number >= 0:  # false for nan too
            raise UsageError(
                f"--max-errors {text!r} is not a number of rows or a percentage", hint="for example 100 or 1%"
            )
        return cls(number, text.endswith("%"))

    @property
    def is_set(self) -> bool:
        """Whether there is a limit."""
        return self.number < inf

    def check(self, bad: int, rows: int) -> None:
        """Raise RuntimeFailureError if so many of the job's rows are too many."""
        if bad > (self.number * rows / 100 if self.is_share else self.number):
            limit = f"{self.number:.6g}{'%' if self.is_share else ''}"
            raise RuntimeFailureError(
                f"{bad:,} of {rows:,} rows are bad, more than --max-errors {limit}",
                hint="the list of errors names them; finished units are kept, and a run that allows more resumes",
            )


def refuse_overwriting_input(source: Source, output: Output) -> None:
    """Raise UsageError if the output is one of the inputs."""
    for file in source.fingerprint():
        for out in (output.path, output.file):
            if _is_same(str(file["name"]), out):
                raise UsageError(f"--out {out} is one of the inputs", hint="choose another output")


def refuse_merging_into(parts: Parts, file: str) -> None:
    """Raise UsageError if a merge would overwrite an input of the job, or one of its parts."""
    if any(_is_same(file, source["name"]) for source in parts.fingerprint["inputs"]):
        raise UsageError(f"--out {file} is an input of the job", hint="choose another output")
    if _is_same(split_url(local_path(file))[0], parts.folder.path):
        raise UsageError(f"--out {file} lies among the job's parts", hint="choose another folder")


def refuse_replacing_merged(folder: Folder, output: Output, options: RunOptions) -> None:
    """Raise OutputError if a new job would replace the file beside its folder that --merge writes."""
    if options.overwrite or not (options.merge and output.is_folder) or folder.has(JOB):
        return
    if exists(output.file):
        raise OutputError(
            f"{output.file}, which --merge writes, already exists and is not of this job",
            hint="pass --overwrite to replace it, or choose another output",
        )


def refuse_media(options: RunOptions) -> None:
    """Raise UsageError or NotFoundError for options on media without a meaning."""
    if options.media_root is not None and not os.path.isdir(options.media_root):
        raise NotFoundError(f"--media-root {options.media_root}: no such folder", hint="check the path")
    if options.allowed_media_domains and not options.allow_remote_media:
        raise UsageError(
            "--allowed-media-domains has no effect without --allow-remote-media", hint="pass both, or neither"
        )


def refuse_together(options: RunOptions, shard: Shard, output: Output) -> None:
    """Raise UsageError for options that exclude each other."""
    if options.overwrite and shard.count > 1:
        raise UsageError(
            "--overwrite in one of several shards would throw away what others did",
            hint=f"drop it, and remove {output.parts} and {output.file} before the shards start",
        )
    if options.is_dynamic and is_url(output.parts):
        raise UsageError(
            "--claim dynamic needs a disk: an object store cannot tell who came first",
            hint="use --claim static, the default",
        )
    if options.devices is not None and options.engine == "ray":
        raise UsageError("--devices is for this machine, --engine ray uses the cluster's devices", hint="drop one")
    if options.ray_address is not None and options.engine != "ray":
        raise UsageError("--ray-address needs --engine ray", hint="add --engine ray, or drop it")


def refuse_jobs_options(options: RunOptions) -> None:
    """Raise UsageError for options that have no meaning for a stream."""
    reads = STREAM in options.inputs
    if reads and len(options.inputs) > 1:
        raise UsageError("--in - is standard input, beside which no other input is read", hint="cat the files into it")
    if options.out.endswith("/") or (options.out != STREAM and os.path.isdir(options.out)):
        raise UsageError(f"--out {options.out} is a folder of parts, and a stream has none", hint=_JOB_HINT)
    is_set = {
        "--shard": options.shard is not None,
        "--claim dynamic": options.is_dynamic,
        "--devices": options.devices is not None,
        "--engine ray": options.engine == "ray",
        "--ray-address": options.ray_address is not None,
        "--merge": options.merge,
        "--overwrite": options.overwrite and options.out == STREAM,
        "--encode": options.encode != "auto",
        "--encodings-gb": options.encodings_gb is not None,
        "--split": reads and options.split is not None,
        "--run-tag": options.run_tag is not None,
        f"--out-format {options.out_format}": options.out == STREAM and options.out_format not in ("auto", "jsonl"),
        f"--in-format {options.in_format}": reads and options.in_format not in ("auto", "jsonl"),
    }
    for flag, is_given in is_set.items():
        if is_given:
            raise UsageError(f"{flag} has no meaning for a stream (-)", hint=f"drop it; or {_JOB_HINT}")


_JOB_HINT = "name files for --in and --out"


def refuse_run_of_a_stream(output: Output) -> None:
    """Raise UsageError for a format that has each query once: a stream may have one again later on."""
    if output.format.kind.layout != "own":
        noun = output.format.kind.noun
        message = f"cannot write {output.path}: {noun} has each query once, and a stream may have it again"
        raise UsageError(message, hint=_JOB_HINT)


def refuse_share_of_errors(limits: MaxErrors) -> None:
    """Raise UsageError if the number of bad rows that a stream may have is a share of rows nobody has counted."""
    if limits.is_share:
        raise UsageError("--max-errors in percent needs to know how many rows there are", hint="pass a number of rows")


def refuse_encodings_of_a_stream(command: Command, options: RunOptions, spec: ModelSpec) -> None:
    """Raise UsageError if encodings of a stream's texts are to be kept, which only jobs collect beforehand."""
    if options.store and spec.score_type != "cross-encoder" and not isinstance(command, EncodeCommand):
        raise UsageError(
            "--store keeps the encodings that a job makes of its distinct texts, which a stream does not collect",
            hint=f"drop --store, or unset BATCHSCORE_STORE; or {_JOB_HINT}",
        )


def refuse_replacing(output: Output, options: RunOptions) -> None:
    """Raise OutputError if there is a file in the place of a stream's output."""
    if exists(output.path) and not options.overwrite:
        raise OutputError(f"{output.path} already exists", hint="pass --overwrite to replace it, or choose another")


def refuse_encoding_pairs(options: RunOptions, spec: ModelSpec) -> None:
    """Raise UsageError if texts of a model that reads pairs are to be encoded once."""
    if options.encode == "once" and spec.score_type == "cross-encoder":
        raise UsageError(
            "--encode once needs a model that reads queries and documents apart, which a cross-encoder does not",
            hint="drop --encode",
        )


def refuse_store(options: RunOptions, spec: ModelSpec) -> None:
    """Raise UsageError if nothing that the model makes can be kept in a store."""
    if not options.store:
        return
    if spec.listwise:
        raise UsageError(
            "--store keeps scores of pairs, and this model reads all documents of a query together",
            hint="drop --store, or unset BATCHSCORE_STORE",
        )
    if options.encode == "unit" and spec.score_type != "cross-encoder":
        raise UsageError("--store keeps encodings, and --encode unit makes none to keep", hint="drop one of them")


def require_fit(command: Command, errors: Errors, form: Format, file: str) -> None:
    """Raise UsageError for a command whose tables the format of the output has no place for."""
    if isinstance(command, RequestsCommand) and not file.lower().endswith(SUFFIXES):
        raise UsageError(
            f"cannot write {file}: answers to requests are lines", hint=f"end the name with {', '.join(SUFFIXES)}"
        )
    noun, is_run = form.kind.noun, form.kind.layout != "own"
    if form.name == "npy" and not isinstance(command, EncodeCommand):
        raise UsageError(f"cannot write {file}: a score is no vector", hint="write .parquet or .jsonl")
    if form.name in ("csv", "tsv") and isinstance(command, EncodeCommand):
        raise UsageError(f"cannot write {file}: {noun} has no vectors", hint="write .parquet, .jsonl or .npy")
    if form.name in ("csv", "tsv") and isinstance(command, RerankCommand) and command.nested:
        raise UsageError(
            f"cannot write {file}: {noun} has no lists, which --nested asks for",
            hint="drop --nested, or write .parquet or .jsonl",
        )
    if not is_run:
        return
    if not isinstance(command, RerankCommand):
        raise UsageError(
            f"cannot write {file}: {noun} has documents in rank order, and {command.name} ranks none",
            hint="use rerank, or write .parquet, .jsonl or .csv",
        )
    if errors == "null":
        raise UsageError(
            f"cannot write {file} with --errors null: {noun} has no document without a score",
            hint="drop --errors null: bad rows are then listed in OUT.errors.jsonl",
        )


def require_run(form: Format, columns: RunColumns) -> None:
    """Raise UsageError if a ranking has no columns for what the format needs."""
    texts = form.name == "rank-llm"
    if form.kind.layout == "own":
        return
    if not columns.query_ids and not texts:
        raise UsageError(f"{form.kind.noun} needs the ids of queries", hint="name their column with --query-id-column")
    if not columns.document_ids:
        hint = "name their column or field with --document-id-column"
        raise UsageError(f"{form.kind.noun} needs the ids of documents", hint=hint)
    if texts and not columns.document_texts:
        raise UsageError(f"{form.kind.noun} needs the texts of documents", hint="add --return-documents")
    if texts and not columns.query_texts:
        raise UsageError(f"{form.kind.noun} needs the texts of queries", hint="add --keep-columns query")


def require_judged(options: RunOptions, columns: RunColumns) -> None:
    """Raise UsageError if a ranking that is to be evaluated has no document ids."""
    if options.join.qrels is not None and not columns.document_ids:
        hint = "name their column or field with --document-id-column"
        raise UsageError("--qrels judges documents by their ids, and these have none", hint=hint)


def refuse_encoding(command: Command, options: RunOptions, output: Output | None, spec: ModelSpec) -> None:
    """Raise UsageError for encodings that a model does not make, or that the output has no place for."""
    is_matrix = output is not None and output.format.name == "npy"
    if not isinstance(command, EncodeCommand):
        return
    if spec.score_type == "cross-encoder":
        raise UsageError(
            "a cross-encoder reads a query and a document together: no text has an encoding of its own",
            hint="encode takes bi-encoders and late interaction models; score and rerank take this one",
        )
    if options.encode != "auto" or options.encodings_gb is not None:
        raise UsageError(
            "--encode and --encodings-gb are for score and rerank: encode reads each text once in each unit",
            hint="drop them; --store keeps encodings of texts that come back in other units",
        )
    if is_matrix and spec.score_type == "late-interaction":
        raise UsageError(
            f"cannot write {options.out}: late interaction has a matrix for each text", hint="write .parquet or .jsonl"
        )
    if is_matrix and command.keep_columns != ():
        raise UsageError(
            f"cannot write {options.out} with --keep-columns: beside the matrix there are ids alone",
            hint="drop --keep-columns, or write .parquet or .jsonl",
        )


def _is_same(one: str, other: str) -> bool:
    return one == other or (os.path.exists(one) and os.path.exists(other) and os.path.samefile(one, other))
