"""What a checkpoint means for scoring, decided once: prompt x backbone x readout x head x similarity."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import Any, Literal, NamedTuple

from batchscore.models.arch.entry import Architecture, Layer, PoolingMode
from batchscore.types import ScoreType, Side, Truncation

POOLING_MODES: tuple[PoolingMode, ...] = ("cls", "max", "mean", "mean_sqrt_len", "weightedmean", "lasttoken")
Similarity = Literal["identity", "cosine", "dot", "maxsim", "meanmaxsim"]
TokenMethod = Literal["from_2_way_softmax", "no_post_processing"]


class Source(NamedTuple):
    """Where the value of a setting comes from; `str` of it is what plans, inspections and errors show."""

    kind: Literal["architecture", "file", "config", "user", "compat", "rule"]
    name: str  # an architecture, a file of the checkpoint, a config file, an option, an engine, a rule

    def __str__(self) -> str:
        return f"{self.kind} {self.name}" if self.kind in ("architecture", "compat") else self.name

    def spell(self, option: str) -> str:
        """How an error names an option that was set here: "--max-length", "e5.yaml: max_length"."""
        return self.name if self.kind == "user" else f"{self}: {option}"


Sourced = tuple[Any, Source]  # a value and where it comes from

CONFIG_JSON = Source("file", "config.json")
MODULES_JSON = Source("file", "modules.json")
COMPAT_VLLM = Source("compat", "vllm")
DEFAULT = Source("rule", "default")
SCORE_TYPE = Source("rule", "score type")


@dataclass(frozen=True, slots=True)
class DenseSpec:
    """A Dense module of modules.json: activation(x @ weight.T + bias)."""

    source: str  # folder or file with the weights
    in_features: int
    out_features: int
    bias: bool
    activation: str  # dotted torch.nn name
    residual: bool = False  # its input is added to its output


@dataclass(frozen=True, slots=True)
class LayerNormSpec:
    """A LayerNorm module of modules.json."""

    source: str
    dimension: int


@dataclass(frozen=True, slots=True)
class NormalizeSpec:
    """A Normalize module of modules.json: unit vectors."""

    source: str


ModuleSpec = DenseSpec | LayerNormSpec | NormalizeSpec


@dataclass(frozen=True, slots=True)
class Marks:
    """What ColBERT models add to the text of a sequence, and which document tokens they leave out."""

    query: str  # token inserted after the first one of a query; none if empty
    document: str
    expand: bool  # fill queries up to their length with a token whose state counts
    attend: bool  # whether other tokens attend to them
    skip: tuple[str, ...]  # tokens that do not count
    skip_sides: tuple[str, ...] = ("document",)  # on these sides
    filler: str = ""  # the token to fill with; the mask, EOS or padding token if empty
    shortest: int = 0  # what queries are filled up to, where that is less than their length


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A resolved checkpoint.

    The last three fields do not identify a score, so they are left out of comparisons, of `describe` and so of a job's
    fingerprint.
    """

    score_type: ScoreType
    architecture: str

    # prompt
    listwise: bool  # all documents of a query share one prompt
    chat_template: str  # Jinja text that makes one sequence of a pair; "" for the tokenizer's own pair of segments
    instruction: str  # what the template calls `instruction`; "" for the template's own
    system_prompt: str  # first message of the template
    template_variables: Mapping[str, Any]  # other variables of the template
    template_date: str  # the day (YYYY-MM-DD) for `strftime_now`; "" if the template does not call it
    query_prompt: str  # text before each query
    document_prompt: str
    marks: Marks | None  # ColBERT's
    special_tokens: bool  # whether the tokenizer puts its tokens around a text
    restore_specials: bool  # add the BOS and EOS that tokenizer_config.json asks for and tokenizer.json forgot
    pair_of_empty: bool  # an empty document keeps its separators, as in training
    lower_case: bool
    max_length: int  # tokens of one sequence, special tokens included
    query_length: int  # of one query, where the sides are read separately
    document_length: int
    position_limit: int  # what max_length may be raised to
    max_tokens_per_query: int  # tokens of the text itself; 0 for no limit
    max_tokens_per_doc: int
    truncation: Truncation
    # the end at which texts are cut; None cuts the right, and then vLLM's rule for prompts spares special tokens
    truncation_side: Literal["left", "right"] | None

    # backbone
    first_position: int
    pad_token_id: int
    regime_length: int  # longer sequences have other rotary frequencies, so packs must not mix; 0: all the same
    token_types: bool  # the model tells the two segments of a pair apart
    layers: str  # set where only first tokens are read: the name of the body's layers; the last runs for them alone
    adapters: tuple[str, str]  # names of LoRA adapters to merge, for queries and for documents; empty: none

    # media
    image_backend: Literal["pil", "torchvision"]  # what resizes images; scores differ by it
    processor_options: Mapping[str, Any]  # of the image processor, beside its own file's
    video_options: Mapping[str, Any]  # of the video processor, likewise
    media_limits: Mapping[str, int]  # most images and videos of a query or document; none for a kind that is not there

    # readout
    pooling: tuple[PoolingMode, ...]  # several: concatenated; empty where every token's state is used
    include_prompt: bool  # whether the prompt's tokens count in the pooling
    drop_first: bool  # the first token's state does not count

    # head
    head: tuple[Layer, ...]
    answer_tokens: tuple[str | int, ...]  # rows of the output embeddings that make the head instead
    method: TokenMethod
    token_modules: tuple[ModuleSpec, ...]  # for the state of every token, before they are pooled
    modules: tuple[ModuleSpec, ...]  # behind the readout and the head
    logit_mean: float  # score = activation((logit - mean) / sigma)
    logit_sigma: float
    activation: str  # dotted torch.nn name; torch.nn.Identity for similarities
    dimensions: int  # components of a vector that are kept; 0 for all

    # similarity
    similarity: Similarity
    normalize: bool  # unit vectors at the end

    sources: Mapping[str, Source] = field(compare=False)  # where each field comes from
    arch: Architecture = field(compare=False)  # how the body is loaded
    config: Mapping[str, Any] = field(compare=False)  # config.json, translated for the class in transformers

    @property
    def per_sequence(self) -> str:
        """What of a whole sequence is read instead of its tokens' states, as in `Architecture`."""
        is_whole = self.score_type == "cross-encoder" and not self.modules  # those read the states of tokens
        return self.arch.per_sequence if is_whole else ""

    @property
    def lengths(self) -> dict[Side, int]:
        """Tokens of one sequence of each side, where they are read separately."""
        return {"query": self.query_length, "document": self.document_length}

    @property
    def reads_like_vllm(self) -> bool:
        """Whether --compat vllm decided something."""
        return COMPAT_VLLM in self.sources.values()

    def describe(self) -> dict[str, dict[str, object]]:
        """JSON-able {field: {"value", "source"}} of every field."""
        names = [f.name for f in fields(self) if f.compare]
        return {name: {"value": _plain(getattr(self, name)), "source": str(self.sources[name])} for name in names}


def _plain(value: object) -> object:
    if isinstance(value, Layer):
        return value._asdict()
    if is_dataclass(value) and not isinstance(value, type):
        return {name: _plain(part) for name, part in asdict(value).items()}
    if isinstance(value, Mapping):
        return dict(value)
    return [_plain(part) for part in value] if isinstance(value, tuple) else value
