"""Every option of the command line: its names, its type, its default, its help text and its panel of the help page.

Options are declared in groups, dataclasses with one field for each option. A command decorated with `with_options`
takes those of its groups as keywords, with the names that they have in `score_files` and `rerank_files`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial, wraps
from typing import Annotated, Any, Literal, TypeVar

import typer

from batchscore.cli.sources import read_job
from batchscore.errors import Errors
from batchscore.io.forms import InFormat, OutFormat


def _option(panel: str, text: str, *names: str, **settings: Any) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=panel, **settings)


_input, _model, _text = partial(_option, "Input"), partial(_option, "Model"), partial(_option, "Text")
_media, _join = partial(_option, "Images and video"), partial(_option, "Joining by id")
_output, _run = partial(_option, "Output"), partial(_option, "Run")
_LENGTH = "N[k|K]"

# ---- options of single commands

_MODEL_HELP = "Checkpoint folder or Hugging Face hub id."
Model = Annotated[str, _model(_MODEL_HELP, "--model", "-m", metavar="MODEL", show_default=False)]
Models = Annotated[
    list[str],
    _model(
        "Checkpoint folder or Hugging Face hub id, if need be with the name under which requests ask for it. May be "
        "repeated; requests that name no model go to the first.",
        "--model",
        "-m",
        metavar="[NAME=]MODEL",
        show_default=False,
    ),
]
ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help=_MODEL_HELP, show_default=False)]
OptionalModel = Annotated[
    str | None, typer.Argument(metavar="MODEL", help=f"{_MODEL_HELP} It is inspected and run too.", show_default=False)
]
SampleQuery = Annotated[str, _input("Query of the sample pair.", "--query")]
SampleDocument = Annotated[str, _input("Document of the sample pair.", "--document")]
SampleImage = Annotated[
    str | None, _media("Image of a document, for a model that reads images. (default: a blank page)", "--image")
]


def _out(text: str) -> Any:
    return _output(text, "--out", "-o", metavar="PATH", show_default=False)


MergedFile = Annotated[str, _out("File to write, as --out of the job takes it.")]
OutputFormat = Annotated[
    OutFormat,
    _output(
        "Format of the output. auto follows the suffix. trec, msmarco, mteb (predictions) and rank-llm are rankings "
        "for other tools: rerank writes them.",
        "--out-format",
    ),
]
RunTag = Annotated[
    str | None, _output("Last field of a TREC run. (default: the model's name)", "--run-tag", metavar="WORD")
]
OutArgument = Annotated[str, typer.Argument(metavar="DIR|FILE", help="The --out of the job.", show_default=False)]
Partial = Annotated[bool, _output("Merge the units that are done so far.", "--partial")]
AsJson = Annotated[bool, _output("Print JSON.", "--json")]
TableFormat = Annotated[Literal["text", "markdown", "json"], _output("Format of the table.", "--format")]
PlanOnly = Annotated[
    bool, _run("Show what the job would read, take and cost, and score nothing; `plan` can say more.", "--dry-run")
]
Probe = Annotated[
    bool, _run("Load the model, run it on the sample for about a minute, and predict the time.", "--probe")
]
ProbeSeconds = Annotated[float, _run("For how long --probe runs the model.", min=0.1)]
BenchSeconds = Annotated[
    float,
    _run("For how long to time each length and each size of pack, in each of three rounds.", "--seconds", min=0.01),
]
SampleRows = Annotated[int, _run("How many rows to tokenize, roughly, from all over the input.", "--sample", min=1)]
PlannedOut = Annotated[
    str | None,
    _out("The --out of the job, whose disk is looked at; nothing is written. (default: a file in this folder)"),
]
PlannedColumns = Annotated[
    str | None, _output("The --keep-columns of the job. (default: that of its command)", metavar="all|none|A,B")
]
Planned = Annotated[
    Literal["auto", "score", "rerank"],
    _run("Which command the job is for. auto is rerank where a row lists documents, or pairs are joined.", "--command"),
]
Quiet = Annotated[bool, _run("Print errors only.", "--quiet", "-q")]

RunArguments = Annotated[
    list[str], typer.Argument(metavar="RUN...", help="Outputs of rerank, or other runs.", show_default=False)
]
OutputArguments = Annotated[
    list[str],
    typer.Argument(metavar="OUT...", help="Outputs of score or rerank, or other runs.", show_default=False),
]
PageFile = Annotated[str, _output("HTML page to write.", "--out", "-o", metavar="PATH")]
StoreArgument = Annotated[str, typer.Argument(metavar="DIR", help="Folder of the store.", show_default=False)]
OfModel = Annotated[
    str | None,
    _input(
        "Only what this model made, under the name that `store stats` shows. Without other limits, all of it.",
        "--model",
        "-m",
        metavar="MODEL",
    ),
]
OlderThan = Annotated[
    str | None, _input("Only what was added longer ago than this: 90m, 12h, 30d or 8w.", "--older-than", metavar="AGE")
]
MaxSize = Annotated[
    str | None, _input("Remove the oldest until no more than this is left: 500MB, 10GB.", "--max-size", metavar="SIZE")
]
DryRun = Annotated[bool, _run("Show what would be removed, and remove nothing.", "--dry-run")]
Sample = Annotated[
    int, _run("How many texts of each model and side to encode again. 0 loads no model.", "--sample", min=0)
]

# ---- options that several commands have under one name

_DocumentFields = Annotated[
    str | None,
    _input(
        "Fields of a document to score, joined by a space. (default: title and text where it has both)", metavar="A,B"
    ),
]


def _media_column(side: str, kind: str) -> Any:
    what = f"Column with the {side}'s {kind}s" if kind == "image" else f"Column with the {side}'s {kind}"
    return _media(f"{what}: paths, URLs or bytes, beside its text or instead of it.")


_MetricsFile = Annotated[
    str | None,
    _run(
        "File to write metrics of the run to, for Prometheus's textfile collector, even if the run fails. Its name "
        "becomes a label.",
        metavar="FILE.prom",
    ),
]
_Limit = Annotated[int | None, _input("Read only the first N rows.", "--limit", "-L", min=0)]
_QRELS = "Judgements: qrels of TREC or BEIR, or any file with the columns."
_METRICS = "Measures, as ir-measures names them. (default: nDCG@10 RR@10 AP@100 R@100{})"
_Metrics = Annotated[str | None, _run(_METRICS.format(""), metavar="NAMES")]
_FailUnder = Annotated[
    list[str] | None,
    _run("Fail with exit code 9 if a mean is lower than this. May be repeated.", metavar="NAME=VALUE"),
]
_Figure = Annotated[
    str | None, _output("Picture file to write the main figure to, .png or .svg, for a mail.", metavar="PATH")
]


@dataclass
class Join:
    """Pairs of ids, and where their texts are."""

    run: Annotated[
        str | None,
        _join("Candidates by id: a TREC or MS MARCO run, or a table with two columns of ids.", metavar="PATH"),
    ] = None
    qrels: Annotated[
        str | None,
        _join("Judgements: their pairs are scored. With --all-pairs they only choose the queries.", metavar="PATH"),
    ] = None
    all_pairs: Annotated[bool, _join("Every query against every document.", "--all-pairs")] = False
    queries: Annotated[
        list[str] | None, _join("Queries by id. May be repeated.", metavar="PATH", show_default=False)
    ] = None
    corpus: Annotated[
        list[str] | None,
        _join(
            "Documents by id. A corpus may be larger than memory. May be repeated.", metavar="PATH", show_default=False
        ),
    ] = None
    depth: Annotated[int | None, _join("Take the first N documents of each query of --run.", min=1)] = None


@dataclass
class _Columns:
    """Columns of queries and documents; `rerank` has other texts for some."""

    query_column: Annotated[str, _input("Column with the query.")] = "query"
    query_image_column: Annotated[str | None, _media_column("query", "image")] = None
    query_video_column: Annotated[str | None, _media_column("query", "video")] = None
    document_column: Annotated[
        str | None, _input("Column with the document. (default: document, else passage, text, contents, ...)")
    ] = None
    document_fields: _DocumentFields = None
    document_image_column: Annotated[str | None, _media_column("document", "image")] = None
    document_video_column: Annotated[str | None, _media_column("document", "video")] = None
    query_id_column: Annotated[
        str | None, _join("Column with a query's id. (default: query_id, qid; in --queries id, _id, ...)")
    ] = None
    document_id_column: Annotated[
        str | None, _join("Column with a document's id. (default: document_id, docid, pid; in --corpus id, _id, ...)")
    ] = None
    limit: _Limit = None


@dataclass
class Score(_Columns):
    """What `score` reads and writes."""

    score_column: Annotated[str, _output("Name of the score column.")] = "score"
    keep_columns: Annotated[str, _output("Input columns to write beside the score.", metavar="all|none|A,B")] = "all"
    details: Annotated[bool, _output("Add columns logit (cross-encoders), num_tokens and truncated.", "--details")] = (
        False
    )


@dataclass
class Rerank(_Columns):
    """What `rerank` reads and writes."""

    document_column: Annotated[
        str | None,
        _input(
            "Column with one document, or with a list of strings or of structs. (default: document, else documents, "
            "passage, text, ...)"
        ),
    ] = None
    query_id_column: Annotated[
        str | None, _input("Column that identifies a query. (default: query_id or qid, else the query's text)")
    ] = None
    document_id_column: Annotated[
        str | None,
        _input(
            "Column or struct field that identifies a document. (default: document_id, docid, docno, ...; in structs "
            "id and _id too)"
        ),
    ] = None
    top_n: Annotated[int, _output("Keep the best N documents of each query. 0 keeps all.", "--top-n", "-k", min=0)] = 0
    return_documents: Annotated[bool, _output("Write the text of each document too.", "--return-documents")] = False
    keep_columns: Annotated[
        str,
        _output(
            "Other input columns to write. Where rows list documents, a query has the values of its first row; where "
            "each row is one document, the document has those of its row.",
            metavar="all|none|A,B",
        ),
    ] = "none"
    keep_document_fields: Annotated[
        str, _output("Fields of listed documents to write, such as url or title.", metavar="all|none|A,B")
    ] = "none"
    nested: Annotated[bool, _output("Write one row for each query, with a list of results.", "--nested")] = False
    qrels: Annotated[
        str | None,
        _join(
            "Judgements to evaluate the output by. Without --in and --run they also say which pairs are scored, and "
            "with --all-pairs which queries.",
            metavar="PATH",
        ),
    ] = None
    metrics: _Metrics = None
    fail_under: _FailUnder = None


@dataclass
class Encode:
    """What `encode` reads and writes."""

    side: Annotated[
        Literal["document", "query"],
        _text("What the texts are, since prompts, lengths and marks of the two sides may differ."),
    ] = "document"
    text_column: Annotated[
        str | None,
        _input("Column with the text. (default: text, document, contents, ...; for queries query, else text)"),
    ] = None
    document_fields: _DocumentFields = None
    image_column: Annotated[str | None, _media_column("row", "image")] = None
    video_column: Annotated[str | None, _media_column("row", "video")] = None
    id_column: Annotated[
        str | None, _input("Column that identifies a text. (default: id, _id, document_id, query_id, ... if there)")
    ] = None
    limit: _Limit = None
    keep_columns: Annotated[str, _output("Other input columns to write.", metavar="all|none|A,B")] = "none"


@dataclass
class Requests:
    """What `run-batch` reads."""

    limit: _Limit = None


@dataclass
class Settings:
    """What decides a score besides the model."""

    score_type: Annotated[
        Literal["auto", "cross-encoder", "bi-encoder", "late-interaction"],
        _model("How a pair is scored. auto follows the checkpoint."),
    ] = "auto"
    compat: Annotated[
        Literal["vllm"] | None,
        _model("Reproduce another engine's scores instead of those of the model's own reference library."),
    ] = None
    config: Annotated[str | None, _model("YAML file with settings for the model, or the name of a shipped one.")] = None
    hf_overrides: Annotated[str | None, _model("Values that replace those of config.json.", metavar="JSON")] = None
    pooler_config: Annotated[
        str | None,
        _model(
            "Pooler settings: pooling_type, use_activation, dimensions, logit_mean, logit_sigma, task.", metavar="JSON"
        ),
    ] = None
    convert: Annotated[
        Literal["auto", "none", "embed", "classify"] | None,
        _model("Use a language model as a reranker (classify) or as an embedder (embed)."),
    ] = None
    task: Annotated[
        str | None, _model("Which LoRA adapter to use if the checkpoint has several, for example retrieval.")
    ] = None
    similarity: Annotated[
        Literal["cosine", "dot"] | None, _model("How a bi-encoder compares its vectors. (default: cosine)")
    ] = None
    dimensions: Annotated[
        int | None, _model("Keep only the first N dimensions of each vector (Matryoshka).", min=1)
    ] = None
    use_activation: Annotated[
        bool | None,
        _model(
            "Apply the model's activation to logits, and normalize token vectors. (default: yes)", show_default=False
        ),
    ] = None
    revision: Annotated[str | None, _model("Branch, tag or commit of a hub id.")] = None
    tokenizer: Annotated[str | None, _model("Folder or hub id of another tokenizer. (default: the model's own)")] = None
    trust_remote_code: Annotated[
        bool, _model("Allow Python code from the checkpoint to run.", "--trust-remote-code")
    ] = False
    max_length: Annotated[
        str | None,
        _text(
            "Longest sequence in tokens. 8k is 8000, 8K is 8192. (default: the model's limit)",
            "--max-length",
            "--max-model-len",
            metavar=_LENGTH,
        ),
    ] = None
    truncate_prompt_tokens: Annotated[
        int | None, _text("Same as --max-length for a single sequence. -1 is the model's limit.", min=-1)
    ] = None
    truncation: Annotated[
        Literal["document-first", "longest-first", "flag-embedding", "mxbai-rerank", "qwen3-vl", "error"] | None,
        _text(
            "What to cut when a text or pair is too long. error makes it a bad row. (default: document-first, or the "
            "rule of the model's library)"
        ),
    ] = None
    truncation_side: Annotated[
        Literal["left", "right"] | None, _text("Which end of a text to cut. (default: the tokenizer's, mostly right)")
    ] = None
    max_tokens_per_query: Annotated[int | None, _text("First cut each query to N tokens. 0 is no limit.", min=0)] = None
    max_tokens_per_doc: Annotated[int | None, _text("First cut each document to N tokens. 0 is no limit.", min=0)] = (
        None
    )
    query_length: Annotated[
        str | None,
        _text("Longest query in tokens, when encoded by itself. (default: the checkpoint's)", metavar=_LENGTH),
    ] = None
    document_length: Annotated[
        str | None,
        _text("Longest document in tokens, when encoded by itself. (default: the checkpoint's)", metavar=_LENGTH),
    ] = None
    chat_template: Annotated[
        str | None,
        _text(
            "Jinja template that turns a pair into a prompt, or a query or document of a model that reads images. none "
            "puts the document directly after the query.",
            metavar="FILE|NAME|TEXT|none",
        ),
    ] = None
    template_date: Annotated[
        str | None,
        _text("Date for templates that print one. (default: the day a job is started)", metavar="YYYY-MM-DD"),
    ] = None
    instruction: Annotated[str | None, _text("Task description, for prompts that include one.")] = None
    query_prompt: Annotated[str | None, _text("Text before each query, '' for none. (default: the checkpoint's)")] = (
        None
    )
    document_prompt: Annotated[
        str | None, _text("Text before each document, '' for none. (default: the checkpoint's)")
    ] = None
    query_prompt_name: Annotated[str | None, _text("Name of the checkpoint's prompt to use for queries.")] = None
    document_prompt_name: Annotated[str | None, _text("Name of the checkpoint's prompt to use for documents.")] = None
    no_prompts: Annotated[bool, _text("Put no prompt before queries and documents.", "--no-prompts")] = False
    max_pixels: Annotated[
        int | None,
        _media("Shrink larger images to N pixels, for fewer tokens; for models that take images of any size.", min=1),
    ] = None
    mm_processor_kwargs: Annotated[
        str | None,
        _media("Settings of the model's image and video processors: min_pixels, max_pixels, fps, ...", metavar="JSON"),
    ] = None
    limit_mm_per_prompt: Annotated[
        str | None,
        _media(
            'How many images and videos a query or document may have, like {"image": 4, "video": 0}.', metavar="JSON"
        ),
    ] = None
    image_backend: Annotated[
        Literal["pil", "torchvision"] | None,
        _media("Library that resizes images; scores differ slightly by it. (default: pil)"),
    ] = None


_Dtype = Annotated[
    Literal["auto", "float32", "bfloat16", "float16"],
    _model(
        "Number format of the model body. auto is bfloat16 where the hardware multiplies it natively, else float32."
    ),
]
_Device = Annotated[str, _model("auto, cpu, cuda or cuda:N.")]


@dataclass
class Execution:
    """Where and how the model runs."""

    dtype: _Dtype = "auto"
    quantize: Annotated[
        Literal["none", "int8"],
        _model(
            "Multiply in eight bits in the linear layers of the body: faster, on GPUs and on CPUs with VNNI or AMX. "
            "What it does to scores is measured on rows of the job, and printed."
        ),
    ] = "none"
    device: _Device = "auto"
    batch_tokens: Annotated[int | None, _run("Tokens in one forward pass. (default: what suits the device)", min=1)] = (
        None
    )
    unit_rows: Annotated[
        int, _run("Rows in a unit. A unit is read, sorted by length, written and resumed as a whole.", min=1)
    ] = 16_384
    media_mb: Annotated[
        int,
        _media("MB of memory for pixels that wait for the model, and as many for features of repeated images.", min=1),
    ] = 512
    padded: Annotated[
        bool, _run("Run padded batches through transformers' own attention. Slower; for comparison.", "--padded")
    ] = False


@dataclass
class Machine:
    """Where the model runs, and in what numbers."""

    dtype: _Dtype = "auto"
    device: _Device = "auto"


@dataclass
class Verify:
    """What `verify` compares with, and how closely."""

    reference: Annotated[
        Literal["auto", "sentence-transformers", "transformers", "none"],
        _run(
            "Library to compare with. auto is sentence-transformers where the checkpoint has its files, else plain "
            "transformers with the pooling and prompts that batchscore resolved; none compares layouts only."
        ),
    ] = "auto"
    tolerance: Annotated[
        float | None,
        _run(
            "Largest difference of a logit or similarity, relative to the largest of them if that exceeds 1. (default: "
            "1e-4, with bfloat16 5e-2, with float16 1e-2)",
            min=0,
        ),
    ] = None
    dtype: _Dtype = "float32"
    device: _Device = "auto"


@dataclass
class Evaluate:
    """What `eval` compares with what, and what it fails for."""

    qrels: Annotated[str | None, _input(_QRELS)] = None
    task: Annotated[
        Literal["ranking", "pairs"], _input("pairs compares a column of scores with a column of labels.")
    ] = "ranking"
    label_column: Annotated[str, _input("Column with the labels of --task pairs.")] = "label"
    score_column: Annotated[str, _input("Column with the scores of --task pairs.")] = "score"
    metrics: Annotated[str | None, _run(_METRICS.format("; of pairs all that the labels allow"), metavar="NAMES")] = (
        None
    )
    baseline: Annotated[str | None, _run("Run to compare the others with. (default: the first of several)")] = None
    max_drop: Annotated[
        float | None, _run("Fail with exit code 9 if a mean is lower than the baseline's by more than this.", min=0)
    ] = None
    significant: Annotated[
        bool, _run("Fail only for a drop that the paired test confirms (p < 0.05, adjusted by Holm).", "--significant")
    ] = False
    fail_under: _FailUnder = None
    out: Annotated[
        str | None,
        _output("File for the values of each query, .parquet, .jsonl or .csv.", "--out", "-o", metavar="PATH"),
    ] = None
    metrics_file: _MetricsFile = None
    table_format: Annotated[Literal["text", "markdown", "csv"], _output("Format of the table.", "--format")] = "text"


@dataclass
class Pictures:
    """What shows a run to people."""

    report: Annotated[
        str | None, _output("HTML page about the outputs to write; it is complete in itself.", metavar="PATH")
    ] = None
    figure: _Figure = None


@dataclass
class Report:
    """What `report` shows besides the outputs."""

    qrels: Annotated[str | None, _input(_QRELS)] = None
    metrics: _Metrics = None
    figure: _Figure = None


@dataclass
class Rows:
    """What commands have in common whose input has columns."""

    in_format: Annotated[
        InFormat, _input("Format of the input. auto goes by the suffix, and by what is in the file.")
    ] = "auto"
    out_format: OutputFormat = "auto"
    run_tag: RunTag = None
    split: Annotated[str | None, _input("Split to read from a dataset that has several.")] = None
    hive: Annotated[
        bool, _input("Add the columns that folders below --in name, as in lang=en/part.parquet.", "--hive/--no-hive")
    ] = True
    errors: Annotated[
        Errors,
        _input(
            "What to do with bad rows: stop at the first (fail), leave them out (quarantine), or keep them without a "
            "score (null). OUT.errors.jsonl lists them."
        ),
    ] = "quarantine"
    encode: Annotated[
        Literal["auto", "once", "unit"],
        _run(
            "How often a bi-encoder or late interaction model reads a text: once a job, keeping its encoding, or "
            "once in each unit that has it. auto decides from a sample of the input."
        ),
    ] = "auto"
    encodings_gb: Annotated[
        float | None,
        _run(
            "GB of disk for encodings in the job's folder. More documents than that are encoded in groups, each of "
            "which is removed when its rows are scored. (default: half of what is free there)",
            min=0,
        ),
    ] = None
    store: Annotated[
        list[str] | None,
        _run(
            "Folder in which encodings, or a cross-encoder's scores of pairs, are kept for later jobs; also a file "
            "that `batchscore encode` wrote. May be repeated.",
            metavar="DIR|FILE",
            show_default=False,
        ),
    ] = None


@dataclass
class Run:
    """What a run reads and writes, how it reports, and which part of a job it does where."""

    out: Annotated[
        str,
        _out(
            "File to write: .parquet, .jsonl, .csv, .tsv, with rerank also .trec or .run (all but .parquet also .gz "
            "and .zst), with encode .npy; or DIR/ to keep one part file for each unit; - writes JSONL to standard "
            "output."
        ),
    ]
    inputs: Annotated[
        list[str] | None,
        _input(
            "Parquet or JSONL file (.gz and .zst too), folder, glob, saved dataset or hf:org/name; - reads JSONL from "
            "standard input. May be repeated.",
            "--in",
            "-i",
            metavar="PATH",
            show_default=False,
        ),
    ] = None
    media_root: Annotated[
        str | None,
        _media(
            "Folder below which images and videos may lie, and at which relative paths begin. (default: the folder of "
            "the file that names them)",
            metavar="DIR",
        ),
    ] = None
    allow_remote_media: Annotated[
        bool, _media("Fetch images and videos that http and https URLs name.", "--allow-remote-media")
    ] = False
    allowed_media_domains: Annotated[
        str | None, _media("Fetch images and videos from these hosts only.", metavar="HOST,HOST")
    ] = None
    overwrite: Annotated[
        bool,
        _output(
            "Replace an output that is finished or belongs to another job. An unfinished run of this job is resumed.",
            "--overwrite",
        ),
    ] = False
    merge: Annotated[
        bool,
        _output(
            "Assemble one output file once every unit of every shard is done; for DIR/ that is DIR.parquet, or with "
            "--out-format DIR.jsonl, DIR.trec, ...",
            "--merge",
        ),
    ] = False
    max_errors: Annotated[
        str | None,
        _input(
            "Stop when more than N rows, or more than P% of the job's rows, are bad. Earlier runs of the job count "
            "too.",
            metavar="N|P%",
        ),
    ] = None
    quiet: Quiet = False
    as_json: Annotated[
        bool, _run("Print the result as one JSON object to stdout, even if the run fails.", "--json")
    ] = False
    metrics_file: _MetricsFile = None
    log_format: Annotated[Literal["text", "json"], _run("Format of progress and summary, which go to stderr.")] = "text"
    max_seconds: Annotated[
        float | None,
        _run("Stop after this many seconds with exit code 75. The same command resumes the job.", min=0),
    ] = None
    shard: Annotated[
        str | None,
        _run(
            "Score only every N-th unit, starting with unit I (counted from 0). (default: taken from torchrun, srun "
            "or a Slurm array)",
            metavar="I/N",
        ),
    ] = None
    claim: Annotated[
        Literal["static", "dynamic"],
        _run(
            "static fixes the units of each shard in advance. dynamic lets every process take the next free unit, so "
            "that a slow one delays nobody."
        ),
    ] = "static"
    devices: Annotated[
        str | None,
        _run(
            "Run one process on each of these devices. auto is every GPU. (default: a single process on --device)",
            metavar="auto|cpu:N|cuda:0,cuda:1",
        ),
    ] = None
    max_restarts: Annotated[
        int, _run("How often to restart a process of --devices or --engine ray that has died.", min=0)
    ] = 3
    engine: Annotated[
        Literal["local", "ray"],
        _run("Where worker processes run: on this machine, or on a Ray cluster that sees the files."),
    ] = "local"
    ray_address: Annotated[
        str | None,
        _run("Ray cluster to connect to. (default: RAY_ADDRESS, else a cluster started on this machine)"),
    ] = None


@dataclass
class Sources:
    """Where other options come from; every command with groups of options has these too."""

    job: Annotated[
        str | None,
        _run(
            "TOML or YAML file with options, `unit-rows = 4096`. Flags come first, then variables such as "
            "BATCHSCORE_UNIT_ROWS, then this file.",
            metavar="FILE",
            callback=read_job,
            is_eager=True,
        ),
    ] = None
    print_config: Annotated[
        bool, _run("Print every option and where it is set, as a job file, and exit.", "--print-config")
    ] = False


_FIRST = {"model": 0, "inputs": 1, "out": 2}  # on help pages; then what is required, and the rest

CommandT = TypeVar("CommandT", bound=Callable[..., None])


def with_options(*groups: type) -> Callable[[CommandT], CommandT]:
    """Give a command the options of these groups: typer reads them from its signature, and passes them as keywords.

    An option of the command itself, or of an earlier group, stands for those of the same name in later ones. It is to
    be registered as a SettledCommand, which deals with `Sources`.
    """

    def decorate(command: CommandT) -> CommandT:
        own = [item for item in _parameters(command) if item.kind is not inspect.Parameter.VAR_KEYWORD]
        found: dict[str, inspect.Parameter] = {}
        for item in [*own, *(item for group in (*groups, Sources) for item in _parameters(group))]:
            found.setdefault(item.name, item)
        items = list(found.values())
        items.sort(key=lambda item: (_FIRST.get(item.name, len(_FIRST)), item.default is not inspect.Parameter.empty))

        # keyword-only ones may be in any order
        by_name = [item.replace(kind=inspect.Parameter.KEYWORD_ONLY) for item in items]

        @wraps(command)
        def settled(job: str | None, print_config: bool, **options: Any) -> None:
            command(**options)

        settled.__signature__ = inspect.Signature(by_name)  # type: ignore[attr-defined]
        settled.__annotations__ = {item.name: item.annotation for item in items}
        return settled  # type: ignore[return-value]

    return decorate


def given(command: Callable[..., Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a command that are not at their defaults."""
    defaults = {item.name: item.default for item in _parameters(command)}
    return {name: value for name, value in options.items() if value != defaults[name]}


def words(command: Callable[..., Any], options: Mapping[str, Any]) -> list[str]:
    """The words of a command line that set these options of a command."""
    found: list[str] = []
    for item in _parameters(command):
        if item.name in options:
            value, flag = options[item.name], item.name.replace("_", "-")
            declared = next((name for name in _declared(item) if name.startswith("--")), f"--{flag}/--no-{flag}")
            yes, _, no = declared.partition("/")
            if isinstance(value, bool):
                found.append(yes if value else no)
            else:
                found += [word for one in (value if isinstance(value, list) else [value]) for word in (yes, str(one))]
    return found


def _declared(item: inspect.Parameter) -> Sequence[str]:
    """How an option is spelled, where its declaration says so; typer takes the first name for a default."""
    (info,) = item.annotation.__metadata__
    return [name for name in (info.default, *(info.param_decls or ())) if isinstance(name, str)]


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    return list(inspect.signature(function, eval_str=True).parameters.values())
