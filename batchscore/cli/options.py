"""Each option of the command line, once: its names, its help, its default and its place in the help page.

Options that several commands share come in groups: a command decorated with `takes(group)` has the group's options and
receives the group's result as one argument under the group's name.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Optional

import typer

from batchscore.errors import Errors

_INPUT, _MODEL, _TEXT, _OUTPUT, _RUN = "Input", "Model", "Text", "Output", "Run"

In = Annotated[
    list[str],
    typer.Option(
        "--in",
        "-i",
        metavar="PATH",
        help="Parquet or JSONL file (.gz, .zst too), folder, glob, saved dataset or hf:org/name; repeatable.",
        rich_help_panel=_INPUT,
        show_default=False,
    ),
]


def _out(what: str) -> Any:
    return typer.Option("--out", "-o", metavar="PATH", help=what, rich_help_panel=_OUTPUT, show_default=False)


Out = Annotated[str, _out("File to write, .parquet or .jsonl (.gz, .zst), or DIR/ for a part file a unit of work.")]
QueryColumn = Annotated[str, typer.Option(help="Column that holds the query.", rich_help_panel=_INPUT)]
DocumentColumn = Annotated[str, typer.Option(help="Column that holds the document.", rich_help_panel=_INPUT)]
DocumentsColumn = Annotated[
    Optional[str],  # noqa: UP045  typer reads this at run time, on Python 3.10 too
    typer.Option(
        "--document-column",
        help="Column with a document, or a list of strings or structs with `text`. (default: document, else documents)",
        rich_help_panel=_INPUT,
    ),
]
QueryIdColumn = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(help="Column that tells queries apart. (default: the query's text)", rich_help_panel=_INPUT),
]
DocumentIdColumn = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        help="Column or struct field with the document's id. (default: document_id; in structs id, _id, docid, ...)",
        rich_help_panel=_INPUT,
    ),
]
Split = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(help="Split of a dataset that has several.", rich_help_panel=_INPUT),
]
Limit = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option("--limit", "-L", min=0, help="Read the first N rows only.", rich_help_panel=_INPUT),
]

Model = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        metavar="MODEL",
        help="Checkpoint folder or hub id.",
        rich_help_panel=_MODEL,
        show_default=False,
    ),
]
ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help="Checkpoint folder or hub id.", show_default=False)]
SampleQuery = Annotated[str, typer.Option("--query", help="Query of the sample pair.", rich_help_panel=_INPUT)]
SampleDocument = Annotated[str, typer.Option("--document", help="Document of the sample pair.", rich_help_panel=_INPUT)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.", rich_help_panel=_OUTPUT)]
TableFormat = Annotated[
    Literal["text", "markdown", "json"],
    typer.Option("--format", help="How the table is printed.", rich_help_panel=_OUTPUT),
]
ScoreTypeOption = Annotated[
    Literal["auto", "cross-encoder", "bi-encoder", "late-interaction"],
    typer.Option(
        "--score-type", help="How a pair is scored; auto reads it off the checkpoint.", rich_help_panel=_MODEL
    ),
]
Compat = Annotated[
    Optional[Literal["vllm"]],  # noqa: UP045
    typer.Option(
        help="Reproduce another engine's numbers instead of the model's own reference library.", rich_help_panel=_MODEL
    ),
]
Convert = Annotated[
    Optional[Literal["auto", "none", "embed", "classify"]],  # noqa: UP045
    typer.Option(help="Use a language model as a reranker (classify) or embedder.", rich_help_panel=_MODEL),
]
HfOverrides = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(metavar="JSON", help="Keys of config.json to replace.", rich_help_panel=_MODEL),
]
PoolerConfig = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        metavar="JSON",
        help="pooling_type, use_activation, dimensions, logit_mean, logit_sigma, task.",
        rich_help_panel=_MODEL,
    ),
]
Task = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(help="LoRA adapter of a checkpoint that has several, such as retrieval.", rich_help_panel=_MODEL),
]
Similarity = Annotated[
    Optional[Literal["cosine", "dot"]],  # noqa: UP045
    typer.Option(help="Of a bi-encoder's vectors. (default: cosine)", rich_help_panel=_MODEL),
]
Dimensions = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(min=1, help="Keep the first N components of vectors (Matryoshka).", rich_help_panel=_MODEL),
]
UseActivation = Annotated[
    Optional[bool],  # noqa: UP045
    typer.Option(
        "--use-activation/--no-use-activation",
        help="Whether a logit goes through its activation, a token's vector to unit length. (default: yes)",
        rich_help_panel=_MODEL,
        show_default=False,
    ),
]
DtypeOption = Annotated[
    Literal["auto", "float32", "bfloat16", "float16"],
    typer.Option(
        "--dtype",
        help="Of the model body; auto is bfloat16 where the hardware multiplies it natively, else float32.",
        rich_help_panel=_MODEL,
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.", rich_help_panel=_MODEL)]
Revision = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(help="Branch, tag or commit of a hub id.", rich_help_panel=_MODEL),
]
Config = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(help="YAML file with a model's settings, or the name of a shipped one.", rich_help_panel=_MODEL),
]
Tokenizer = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(help="Folder or hub id with another tokenizer. (default: the model's)", rich_help_panel=_MODEL),
]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run Python files of the checkpoint.", rich_help_panel=_MODEL)
]

_LENGTH = "N[k|K]"

MaxLength = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--max-length",
        "--max-model-len",
        metavar=_LENGTH,
        help="Tokens the model reads at once; 8k is 8000, 8K is 8192. (default: the model's limit)",
        rich_help_panel=_TEXT,
    ),
]
TruncatePromptTokens = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(min=-1, help="As --max-length, for one sequence; -1 is the model's limit.", rich_help_panel=_TEXT),
]
TruncationOption = Annotated[
    Optional[Literal["document-first", "longest-first", "flag-embedding", "mxbai-rerank", "error"]],  # noqa: UP045
    typer.Option(
        "--truncation",
        help="What gives way when a pair or text is longer; error makes it a row at fault. (default: document-first, "
        "or the rule of the model's library)",
        rich_help_panel=_TEXT,
    ),
]
TruncationSide = Annotated[
    Optional[Literal["left", "right"]],  # noqa: UP045
    typer.Option(help="The end of a text that gives way. (default: right)", rich_help_panel=_TEXT),
]
MaxTokensPerQuery = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(min=0, help="Cut queries to N tokens before anything else; 0 for no limit.", rich_help_panel=_TEXT),
]
MaxTokensPerDoc = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(min=0, help="Cut documents to N tokens before anything else; 0 for no limit.", rich_help_panel=_TEXT),
]
QueryLength = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        metavar=_LENGTH, help="Tokens of a query read by itself. (default: the checkpoint's)", rich_help_panel=_TEXT
    ),
]
DocumentLength = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        metavar=_LENGTH, help="Tokens of a document read by itself. (default: the checkpoint's)", rich_help_panel=_TEXT
    ),
]
ChatTemplate = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        metavar="FILE|NAME|TEXT|none",
        help="Jinja template that makes a prompt of a pair; none puts the document right behind the query.",
        rich_help_panel=_TEXT,
    ),
]
TemplateDate = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        metavar="YYYY-MM-DD", help="The day for templates that ask for it. (default: today)", rich_help_panel=_TEXT
    ),
]
Instruction = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(help="The task, for prompts that have a place for it.", rich_help_panel=_TEXT),
]
QueryPrompt = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(help="Text before each query, '' for none. (default: the checkpoint's)", rich_help_panel=_TEXT),
]
DocumentPrompt = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(help="Text before each document, '' for none. (default: the checkpoint's)", rich_help_panel=_TEXT),
]
QueryPromptName = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(help="Name of one of the checkpoint's prompts, for queries.", rich_help_panel=_TEXT),
]
DocumentPromptName = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(help="Name of one of the checkpoint's prompts, for documents.", rich_help_panel=_TEXT),
]
NoPrompts = Annotated[
    bool, typer.Option("--no-prompts", help="No text before queries and documents.", rich_help_panel=_TEXT)
]

ScoreColumn = Annotated[str, typer.Option(help="Name of the column with the score.", rich_help_panel=_OUTPUT)]
KeepColumns = Annotated[
    str, typer.Option(metavar="all|none|A,B", help="Input columns to write beside the score.", rich_help_panel=_OUTPUT)
]
Details = Annotated[
    bool,
    typer.Option("--details", help="Add logit (cross-encoders), num_tokens and truncated.", rich_help_panel=_OUTPUT),
]
TopN = Annotated[
    int,
    typer.Option("--top-n", "-k", min=0, help="Documents to keep of each query; 0 keeps all.", rich_help_panel=_OUTPUT),
]
ReturnDocuments = Annotated[
    bool, typer.Option("--return-documents", help="Write the documents' text too.", rich_help_panel=_OUTPUT)
]
Nested = Annotated[
    bool, typer.Option("--nested", help="One row a query, with a list of results.", rich_help_panel=_OUTPUT)
]

BatchTokens = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(min=1, help="Tokens in one forward pass. (default: fits the device)", rich_help_panel=_RUN),
]
WindowRows = Annotated[
    int,
    typer.Option(
        min=1, help="Rows of a unit: read, sorted by length, written and resumed together.", rich_help_panel=_RUN
    ),
]
CacheMb = Annotated[
    int,
    typer.Option(
        min=0,
        help="Memory in MB for outputs of texts that come back in later units; the last bits of a score then depend on "
        "what came before.",
        rich_help_panel=_RUN,
    ),
]
Overwrite = Annotated[
    bool,
    typer.Option(
        "--overwrite",
        help="Start anew where the output is finished or another job's; an unfinished run of the same is gone on with.",
        rich_help_panel=_OUTPUT,
    ),
]
Merge = Annotated[
    bool,
    typer.Option(
        "--merge",
        help="Assemble the output once every unit of all shards is done; DIR/ becomes DIR.parquet.",
        rich_help_panel=_OUTPUT,
    ),
]
ErrorsOption = Annotated[
    Errors,
    typer.Option(
        "--errors",
        help="Rows at fault: stop, leave them out, or keep them without a score; OUT.errors.jsonl lists them.",
        rich_help_panel=_INPUT,
    ),
]
MaxErrors = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        metavar="N|P%",
        help="Stop when more rows than that are at fault, or than P% of the whole job's; earlier runs count too.",
        rich_help_panel=_INPUT,
    ),
]
MaxSeconds = Annotated[
    Optional[float],  # noqa: UP045
    typer.Option(
        min=0, help="Stop after so many seconds, with exit code 75; run again to go on.", rich_help_panel=_RUN
    ),
]
ShardOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--shard",
        metavar="I/N",
        help="Take every N-th unit from I on, I from 0. (default: as torchrun, Slurm array or srun say)",
        rich_help_panel=_RUN,
    ),
]
Claim = Annotated[
    Literal["static", "dynamic"],
    typer.Option(
        help="Units by turns, or whichever nobody has taken: a slow process then holds nothing up.",
        rich_help_panel=_RUN,
    ),
]
Devices = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        metavar="auto|cpu:N|cuda:0,cuda:1",
        help="A process for each of these devices; auto is every GPU. (default: one process on --device)",
        rich_help_panel=_RUN,
    ),
]
MaxRestarts = Annotated[
    int,
    typer.Option(
        min=0, help="How often a process of --devices or of Ray that died is started again.", rich_help_panel=_RUN
    ),
]
Engine = Annotated[
    Literal["local", "ray"],
    typer.Option(
        help="Where the processes run: here, or on a Ray cluster that shares the files.", rich_help_panel=_RUN
    ),
]
RayAddress = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(help="Of --engine ray's cluster. (default: RAY_ADDRESS, else a local one)", rich_help_panel=_RUN),
]
OutArgument = Annotated[str, typer.Argument(metavar="DIR|FILE", help="The --out of a run.", show_default=False)]
MergedFile = Annotated[str, _out("File to write, .parquet or .jsonl (.gz, .zst).")]
Partial = Annotated[bool, typer.Option("--partial", help="Merge what is done so far.", rich_help_panel=_OUTPUT)]
Padded = Annotated[
    bool,
    typer.Option(
        "--padded", help="Padded batches through transformers' own attention: slower, to compare.", rich_help_panel=_RUN
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.", rich_help_panel=_RUN)]
LogFormat = Annotated[
    Literal["text", "json"],
    typer.Option(help="How progress and the summary are printed, on stderr.", rich_help_panel=_RUN),
]


@dataclass(frozen=True)
class Files:
    """What a run reads and writes, and how it tells about it."""

    inputs: list[str]
    out: str
    split: str | None
    overwrite: bool
    merge: bool
    errors: Errors
    max_errors: str | None
    quiet: bool
    log_format: str


@dataclass(frozen=True)
class Shares:
    """Who does which part of a run, and for how long."""

    max_seconds: float | None
    shard: str | None
    claim: str
    devices: str | None
    max_restarts: int
    engine: str
    ray_address: str | None


def files(
    in_: In,
    out: Out,
    split: Split = None,
    overwrite: Overwrite = False,
    merge: Merge = False,
    errors: ErrorsOption = "quarantine",
    max_errors: MaxErrors = None,
    quiet: Quiet = False,
    log_format: LogFormat = "text",
) -> Files:
    """The options every run has."""
    return Files(in_, out, split, overwrite, merge, errors, max_errors, quiet, log_format)


def shares(
    max_seconds: MaxSeconds = None,
    shard: ShardOption = None,
    claim: Claim = "static",
    devices: Devices = None,
    max_restarts: MaxRestarts = 3,
    engine: Engine = "local",
    ray_address: RayAddress = None,
) -> Shares:
    """The options that divide a run."""
    return Shares(max_seconds, shard, claim, devices, max_restarts, engine, ray_address)


def settings(
    score_type: ScoreTypeOption = "auto",
    compat: Compat = None,
    config: Config = None,
    hf_overrides: HfOverrides = None,
    pooler_config: PoolerConfig = None,
    convert: Convert = None,
    task: Task = None,
    similarity: Similarity = None,
    dimensions: Dimensions = None,
    use_activation: UseActivation = None,
    revision: Revision = None,
    tokenizer: Tokenizer = None,
    trust_remote_code: TrustRemoteCode = False,
    max_length: MaxLength = None,
    truncate_prompt_tokens: TruncatePromptTokens = None,
    truncation: TruncationOption = None,
    truncation_side: TruncationSide = None,
    max_tokens_per_query: MaxTokensPerQuery = None,
    max_tokens_per_doc: MaxTokensPerDoc = None,
    query_length: QueryLength = None,
    document_length: DocumentLength = None,
    chat_template: ChatTemplate = None,
    template_date: TemplateDate = None,
    instruction: Instruction = None,
    query_prompt: QueryPrompt = None,
    document_prompt: DocumentPrompt = None,
    query_prompt_name: QueryPromptName = None,
    document_prompt_name: DocumentPromptName = None,
    no_prompts: NoPrompts = False,
) -> dict[str, Any]:
    """What decides a score beside the model: keywords of Scorer, by name."""
    return dict(locals())


def device(
    dtype: DtypeOption = "auto",
    device: Device = "auto",
    batch_tokens: BatchTokens = None,
    window_rows: WindowRows = 16_384,
    cache_mb: CacheMb = 0,
    padded: Padded = False,
) -> dict[str, Any]:
    """The keywords of Scorer about where and how it runs, by name."""
    return dict(locals())


def takes(*groups: Callable[..., Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Replace the arguments of a command that are named like a group by the group's own options."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        options = {group.__name__: list(_parameters(group)) for group in groups}
        shared = [option for group in options.values() for option in group]
        own = [parameter for parameter in _parameters(command) if parameter.name not in options]

        def call(**given: Any) -> None:
            arguments = {
                group.__name__: group(**{option.name: given.pop(option.name) for option in options[group.__name__]})
                for group in groups
            }
            command(**given, **arguments)

        # what typer builds the command line from
        call.__name__, call.__doc__ = command.__name__, command.__doc__
        required_first = sorted([*shared, *own], key=lambda parameter: parameter.default is not inspect.Parameter.empty)
        call.__signature__ = inspect.Signature(required_first)  # type: ignore[attr-defined]
        call.__annotations__ = {parameter.name: parameter.annotation for parameter in required_first}
        return call

    return decorate


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    return list(inspect.signature(function, eval_str=True).parameters.values())
