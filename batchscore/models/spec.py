"""What a checkpoint means for scoring, decided once: prompt x backbone x readout x head x similarity."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import Any, Literal, NamedTuple

from batchscore.types import ScoreType, Truncation

PoolingMode = Literal["cls", "max", "mean", "mean_sqrt_len", "weightedmean", "lasttoken", "splade"]
# in the order in which several modes of one checkpoint are concatenated (sentence-transformers' order)
POOLING_MODES: tuple[PoolingMode, ...] = ("cls", "max", "mean", "mean_sqrt_len", "weightedmean", "lasttoken")
Similarity = Literal["identity", "cosine", "dot", "maxsim", "meanmaxsim"]
TokenMethod = Literal["from_2_way_softmax", "no_post_processing"]


class Layer(NamedTuple):
    """One step of a head: the linear layer of a name (the layer norm, if its weight is a vector), then a function."""

    name: str  # of the tensors, without ".weight"
    activation: str = ""  # of transformers' activation functions, none if empty


@dataclass(frozen=True, slots=True)
class DenseSpec:
    """One Dense module of a modules.json chain: activation(x @ weight.T + bias)."""

    source: str  # folder or file with the weights
    in_features: int
    out_features: int
    bias: bool
    activation: str  # dotted torch.nn name


@dataclass(frozen=True, slots=True)
class Marks:
    """What ColBERT models put into a sequence beside the text, and which document tokens they leave out."""

    query: str  # token put behind the first one of a query; none if empty
    document: str
    expand: bool  # fill queries up to their length with a token whose state counts
    attend: bool  # whether other tokens see those
    skip: tuple[str, ...]  # document tokens that do not count


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A resolved checkpoint. `sources` tells where each field came from."""

    score_type: ScoreType
    architecture: str

    # prompt
    listwise: bool  # all documents of a query stand in one prompt
    chat_template: str  # Jinja text that makes one sequence of a pair; "" for the tokenizer's own pair of segments
    instruction: str  # what the template calls `instruction`; "" for the template's own
    system_prompt: str  # first message of the template
    template_variables: Mapping[str, Any]  # what else the template is given
    query_prompt: str  # text before each query
    document_prompt: str
    marks: Marks | None  # ColBERT's
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
    truncation_side: Literal["left", "right"] | None  # the end of a text that gives way; None: right, and in vLLM's
    # way with the special tokens kept

    # backbone
    first_position: int
    pad_token_id: int
    regime_length: int  # sequences up to this length and longer ones have other rotary frequencies; 0: all the same
    token_types: bool  # the model tells the two segments of a pair apart
    layers: str  # set where only first tokens are read: the body's layers, the last of which runs for them alone
    adapters: tuple[str, str]  # names of LoRA adapters to merge, for queries and for documents; empty: none

    # readout
    pooling: tuple[PoolingMode, ...]  # several: concatenated; empty where every token's state is used
    include_prompt: bool  # whether the prompt's tokens count in the pooling
    drop_first: bool  # the first token's state does not count

    # head
    head: tuple[Layer, ...]
    answer_tokens: tuple[str | int, ...]  # rows of the output embeddings that make the head instead
    method: TokenMethod
    dense: tuple[DenseSpec, ...]
    logit_mean: float  # score = activation((logit - mean) / sigma)
    logit_sigma: float
    activation: str  # dotted torch.nn name; torch.nn.Identity for similarities
    dimensions: int  # components of a vector that are kept; 0 for all

    # similarity
    similarity: Similarity
    normalize: bool  # unit vectors before the similarity; only a dot product can tell

    sources: Mapping[str, str] = field(compare=False)

    def describe(self) -> dict[str, dict[str, object]]:
        """JSON-able {field: {"value", "source"}} of every field."""
        names = [f.name for f in fields(self) if f.name != "sources"]
        return {name: {"value": _plain(getattr(self, name)), "source": self.sources[name]} for name in names}


def _plain(value: object) -> object:
    if isinstance(value, Layer):
        return value._asdict()
    if is_dataclass(value) and not isinstance(value, type):
        return {name: _plain(part) for name, part in asdict(value).items()}
    if isinstance(value, Mapping):
        return dict(value)
    return [_plain(part) for part in value] if isinstance(value, tuple) else value
