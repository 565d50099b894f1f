"""Every option of the command line: its names, its help text, its default and its panel of the help page.

Options that several commands share are groups: dataclasses with one field for each option. A command decorated with
`with_groups` takes a group as one argument.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, is_dataclass
from functools import partial
from typing import Annotated, Any, Literal

import typer

from batchscore.errors import Errors


def _option(panel: str, text: str, *names: str, **settings: Any) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=panel, **settings)


_input, _model, _text = partial(_option, "Input"), partial(_option, "Model"), partial(_option, "Text")
_output, _run = partial(_option, "Output"), partial(_option, "Run")
_LENGTH = "N[k|K]"

# ---- what is read

In = Annotated[
    list[str],
    _input(
        "Parquet or JSONL file (.gz and .zst too), folder, glob, saved dataset or hf:org/name. May be repeated.",
        "--in",
        "-i",
        metavar="PATH",
        show_default=False,
    ),
]
QueryColumn = Annotated[str, _input("Column with the query.")]
DocumentColumn = Annotated[str, _input("Column with the document.")]
DocumentsColumn = Annotated[
    str | None,
    _input(
        "Column with one document, or with a list of strings or of structs. (default: document, else documents)",
        "--document-column",
    ),
]
DocumentFields = Annotated[
    str | None,
    _input(
        "Fields of a document to score, joined by a space. (default: title and text where it has both)",
        metavar="A,B",
    ),
]
QueryIdColumn = Annotated[str | None, _input("Column that identifies a query. (default: the query's text)")]
DocumentIdColumn = Annotated[
    str | None,
    _input("Column or struct field that identifies a document. (default: document_id; in structs id, _id, docid, ...)"),
]
Split = Annotated[str | None, _input("Split to read from a dataset that has several.")]
Limit = Annotated[int | None, _input("Read only the first N rows.", "--limit", "-L", min=0)]
ErrorsOption = Annotated[
    Errors,
    _input(
        "What to do with bad rows: stop at the first (fail), leave them out (quarantine), or keep them without a score "
        "(null). OUT.errors.jsonl lists them.",
        "--errors",
    ),
]
MaxErrors = Annotated[
    str | None,
    _input(
        "Stop when more than N rows, or more than P% of the job's rows, are bad. Earlier runs of the job count too.",
        metavar="N|P%",
    ),
]
SampleQuery = Annotated[str, _input("Query of the sample pair.", "--query")]
SampleDocument = Annotated[str, _input("Document of the sample pair.", "--document")]

# ---- the model

_MODEL_HELP = "Checkpoint folder or Hugging Face hub id."
Model = Annotated[str, _model(_MODEL_HELP, "--model", "-m", metavar="MODEL", show_default=False)]
ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help=_MODEL_HELP, show_default=False)]
ScoreTypeOption = Annotated[
    Literal["auto", "cross-encoder", "bi-encoder", "late-interaction"],
    _model("How a pair is scored. auto follows the checkpoint.", "--score-type"),
]
Compat = Annotated[
    Literal["vllm"] | None,
    _model("Reproduce another engine's scores instead of those of the model's own reference library."),
]
Convert = Annotated[
    Literal["auto", "none", "embed", "classify"] | None,
    _model("Use a language model as a reranker (classify) or as an embedder (embed)."),
]
HfOverrides = Annotated[str | None, _model("Values that replace those of config.json.", metavar="JSON")]
PoolerConfig = Annotated[
    str | None,
    _model("Pooler settings: pooling_type, use_activation, dimensions, logit_mean, logit_sigma, task.", metavar="JSON"),
]
Task = Annotated[str | None, _model("Which LoRA adapter to use if the checkpoint has several, for example retrieval.")]
Similarity = Annotated[
    Literal["cosine", "dot"] | None, _model("How a bi-encoder compares its vectors. (default: cosine)")
]
Dimensions = Annotated[int | None, _model("Keep only the first N dimensions of each vector (Matryoshka).", min=1)]
UseActivation = Annotated[
    bool | None,
    _model(
        "Apply the model's activation to logits, and normalize token vectors. (default: yes)",
        "--use-activation/--no-use-activation",
        show_default=False,
    ),
]
DtypeOption = Annotated[
    Literal["auto", "float32", "bfloat16", "float16"],
    _model(
        "Number format of the model body. auto is bfloat16 where the hardware multiplies it natively, else float32.",
        "--dtype",
    ),
]
DeviceOption = Annotated[str, _model("auto, cpu, cuda or cuda:N.", "--device")]
Revision = Annotated[str | None, _model("Branch, tag or commit of a hub id.")]
Config = Annotated[str | None, _model("YAML file with settings for the model, or the name of a shipped one.")]
Tokenizer = Annotated[str | None, _model("Folder or hub id of another tokenizer. (default: the model's own)")]
TrustRemoteCode = Annotated[bool, _model("Allow Python code from the checkpoint to run.", "--trust-remote-code")]

# ---- how texts become tokens

MaxLength = Annotated[
    str | None,
    _text(
        "Longest sequence in tokens. 8k is 8000, 8K is 8192. (default: the model's limit)",
        "--max-length",
        "--max-model-len",
        metavar=_LENGTH,
    ),
]
TruncatePromptTokens = Annotated[
    int | None, _text("Same as --max-length for a single sequence. -1 is the model's limit.", min=-1)
]
TruncationOption = Annotated[
    Literal["document-first", "longest-first", "flag-embedding", "mxbai-rerank", "error"] | None,
    _text(
        "What to cut when a text or pair is too long. error makes it a bad row. (default: document-first, or the rule "
        "of the model's library)",
        "--truncation",
    ),
]
TruncationSide = Annotated[Literal["left", "right"] | None, _text("Which end of a text to cut. (default: right)")]
MaxTokensPerQuery = Annotated[int | None, _text("First cut each query to N tokens. 0 is no limit.", min=0)]
MaxTokensPerDoc = Annotated[int | None, _text("First cut each document to N tokens. 0 is no limit.", min=0)]
QueryLength = Annotated[
    str | None,
    _text("Longest query in tokens, when encoded by itself. (default: the checkpoint's)", metavar=_LENGTH),
]
DocumentLength = Annotated[
    str | None,
    _text("Longest document in tokens, when encoded by itself. (default: the checkpoint's)", metavar=_LENGTH),
]
ChatTemplate = Annotated[
    str | None,
    _text(
        "Jinja template that turns a pair into a prompt. none puts the document directly after the query.",
        metavar="FILE|NAME|TEXT|none",
    ),
]
TemplateDate = Annotated[
    str | None, _text("Date for templates that print one. (default: the day a job is started)", metavar="YYYY-MM-DD")
]
Instruction = Annotated[str | None, _text("Task description, for prompts that include one.")]
QueryPrompt = Annotated[str | None, _text("Text before each query, '' for none. (default: the checkpoint's)")]
DocumentPrompt = Annotated[str | None, _text("Text before each document, '' for none. (default: the checkpoint's)")]
QueryPromptName = Annotated[str | None, _text("Name of the checkpoint's prompt to use for queries.")]
DocumentPromptName = Annotated[str | None, _text("Name of the checkpoint's prompt to use for documents.")]
NoPrompts = Annotated[bool, _text("Put no prompt before queries and documents.", "--no-prompts")]

# ---- what is written


def _out(text: str) -> Any:
    return _output(text, "--out", "-o", metavar="PATH", show_default=False)


Out = Annotated[
    str, _out("File to write, .parquet or .jsonl (.gz and .zst too), or DIR/ to keep one part file for each unit.")
]
MergedFile = Annotated[str, _out("File to write, .parquet or .jsonl (.gz and .zst too).")]
OutArgument = Annotated[str, typer.Argument(metavar="DIR|FILE", help="The --out of the job.", show_default=False)]
ScoreColumn = Annotated[str, _output("Name of the score column.")]
KeepColumns = Annotated[str, _output("Input columns to write beside the score.", metavar="all|none|A,B")]
Details = Annotated[bool, _output("Add columns logit (cross-encoders), num_tokens and truncated.", "--details")]
TopN = Annotated[int, _output("Keep the best N documents of each query. 0 keeps all.", "--top-n", "-k", min=0)]
ReturnDocuments = Annotated[bool, _output("Write the text of each document too.", "--return-documents")]
Nested = Annotated[bool, _output("Write one row for each query, with a list of results.", "--nested")]
Overwrite = Annotated[
    bool,
    _output(
        "Replace an output that is finished or belongs to another job. An unfinished run of this job is resumed.",
        "--overwrite",
    ),
]
Merge = Annotated[
    bool,
    _output(
        "Assemble one output file once every unit of every shard is done; for DIR/ that is DIR.parquet.", "--merge"
    ),
]
Partial = Annotated[bool, _output("Merge the units that are done so far.", "--partial")]
AsJson = Annotated[bool, _output("Print JSON.", "--json")]
TableFormat = Annotated[Literal["text", "markdown", "json"], _output("Format of the table.", "--format")]

# ---- how it runs

BatchTokens = Annotated[int | None, _run("Tokens in one forward pass. (default: what suits the device)", min=1)]
UnitRows = Annotated[
    int, _run("Rows in a unit. A unit is read, sorted by length, written and resumed as a whole.", min=1)
]
CacheMb = Annotated[
    int,
    _run(
        "MB of memory for model outputs of texts that occur again in later units. The last bits of a score can then "
        "depend on earlier units.",
        min=0,
    ),
]
MaxSeconds = Annotated[
    float | None,
    _run("Stop after this many seconds with exit code 75. The same command resumes the job.", min=0),
]
ShardOption = Annotated[
    str | None,
    _run(
        "Score only every N-th unit, starting with unit I (counted from 0). (default: taken from torchrun, srun or a "
        "Slurm array)",
        "--shard",
        metavar="I/N",
    ),
]
Claim = Annotated[
    Literal["static", "dynamic"],
    _run(
        "static fixes the units of each shard in advance. dynamic lets every process take the next free unit, so that "
        "a slow one delays nobody."
    ),
]
Devices = Annotated[
    str | None,
    _run(
        "Run one process on each of these devices. auto is every GPU. (default: a single process on --device)",
        metavar="auto|cpu:N|cuda:0,cuda:1",
    ),
]
MaxRestarts = Annotated[int, _run("How often to restart a process of --devices or --engine ray that has died.", min=0)]
Engine = Annotated[
    Literal["local", "ray"],
    _run("Where worker processes run: on this machine, or on a Ray cluster that sees the files."),
]
RayAddress = Annotated[
    str | None, _run("Ray cluster to connect to. (default: RAY_ADDRESS, else a cluster started on this machine)")
]
Padded = Annotated[
    bool, _run("Run padded batches through transformers' own attention. Slower; for comparison.", "--padded")
]
Quiet = Annotated[bool, _run("Print errors only.", "--quiet", "-q")]
LogFormat = Annotated[Literal["text", "json"], _run("Format of progress and summary, which go to stderr.")]


@dataclass(frozen=True)
class Files:
    """What a run reads and writes, and how it reports."""

    inputs: In
    out: Out
    split: Split = None
    overwrite: Overwrite = False
    merge: Merge = False
    errors: ErrorsOption = "quarantine"
    max_errors: MaxErrors = None
    quiet: Quiet = False
    log_format: LogFormat = "text"


@dataclass(frozen=True)
class Shares:
    """Which part of a job a run does, where, and for how long."""

    max_seconds: MaxSeconds = None
    shard: ShardOption = None
    claim: Claim = "static"
    devices: Devices = None
    max_restarts: MaxRestarts = 3
    engine: Engine = "local"
    ray_address: RayAddress = None


@dataclass(frozen=True)
class Settings:
    """What decides a score besides the model: keywords of Scorer, under the same names."""

    score_type: ScoreTypeOption = "auto"
    compat: Compat = None
    config: Config = None
    hf_overrides: HfOverrides = None
    pooler_config: PoolerConfig = None
    convert: Convert = None
    task: Task = None
    similarity: Similarity = None
    dimensions: Dimensions = None
    use_activation: UseActivation = None
    revision: Revision = None
    tokenizer: Tokenizer = None
    trust_remote_code: TrustRemoteCode = False
    max_length: MaxLength = None
    truncate_prompt_tokens: TruncatePromptTokens = None
    truncation: TruncationOption = None
    truncation_side: TruncationSide = None
    max_tokens_per_query: MaxTokensPerQuery = None
    max_tokens_per_doc: MaxTokensPerDoc = None
    query_length: QueryLength = None
    document_length: DocumentLength = None
    chat_template: ChatTemplate = None
    template_date: TemplateDate = None
    instruction: Instruction = None
    query_prompt: QueryPrompt = None
    document_prompt: DocumentPrompt = None
    query_prompt_name: QueryPromptName = None
    document_prompt_name: DocumentPromptName = None
    no_prompts: NoPrompts = False


@dataclass(frozen=True)
class Execution:
    """Where and how the model runs."""

    dtype: DtypeOption = "auto"
    device: DeviceOption = "auto"
    batch_tokens: BatchTokens = None
    unit_rows: UnitRows = 16_384
    cache_mb: CacheMb = 0
    padded: Padded = False


def scorer_options(model: str, settings: Settings, execution: Execution) -> dict[str, Any]:
    """Keywords of Scorer. It tokenizes a whole unit at once, so its window is a unit."""
    options = {"model": model, **vars(settings), **vars(execution)}
    options["window_rows"] = options.pop("unit_rows")
    return options


def names(text: str) -> tuple[str, ...]:
    """The names in a list separated by commas."""
    return tuple(name.strip() for name in text.split(","))


def with_groups(command: Callable[..., None]) -> Callable[..., None]:
    """Let a command take groups of options.

    typer makes an option of each parameter in a command's signature. So each parameter whose type is a group is
    replaced in the signature by the group's fields, and a call collects their values into the group again.
    """
    groups: dict[str, Any] = {
        item.name: item.annotation for item in _parameters(command) if is_dataclass(item.annotation)
    }
    fields = {name: _parameters(group) for name, group in groups.items()}

    def call(**options: Any) -> None:
        for name, group in groups.items():
            options[name] = group(**{field.name: options.pop(field.name) for field in fields[name]})
        command(**options)

    own = [item for item in _parameters(command) if item.name not in groups]
    flat = [*own, *(field for group in fields.values() for field in group)]
    flat.sort(key=lambda item: item.default is not inspect.Parameter.empty)  # required ones first, as signatures demand
    call.__name__, call.__doc__ = command.__name__, command.__doc__
    call.__signature__ = inspect.Signature(flat)  # type: ignore[attr-defined]
    call.__annotations__ = {item.name: item.annotation for item in flat}
    return call


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    return list(inspect.signature(function, eval_str=True).parameters.values())
