"""What a checkpoint means for scoring, decided once: prompt x backbone x readout x head x similarity."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Literal

from batchscore.types import ScoreType

PoolingMode = Literal["cls", "max", "mean", "mean_sqrt_len", "weightedmean", "lasttoken"]
# in the order in which several modes of one checkpoint are concatenated (sentence-transformers' order)
POOLING_MODES: tuple[PoolingMode, ...] = ("cls", "max", "mean", "mean_sqrt_len", "weightedmean", "lasttoken")
Similarity = Literal["identity", "cosine", "dot", "maxsim"]


@dataclass(frozen=True, slots=True)
class DenseSpec:
    """One Dense module of a modules.json chain: activation(x @ weight.T + bias)."""

    folder: str
    in_features: int
    out_features: int
    bias: bool
    activation: str  # dotted torch.nn name


@dataclass(frozen=True, slots=True)
class Row:
    """What an architecture says before its checkpoint's files do; the registry in `arch/` is a dict of these."""

    # submodules of the *ForSequenceClassification class that turn the first token's state into the logit, in order
    head: tuple[str, ...] = ()
    pooling: PoolingMode = "cls"  # without sentence-transformers files
    layers: str = ""  # the body's list of BERT-like layers; the last may run for first tokens alone
    positions_after_pad: bool = False  # the first token's position is pad_token_id + 1 (fairseq's convention)


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A resolved checkpoint. `sources` tells where each field came from."""

    score_type: ScoreType
    architecture: str
    query_prompt: str
    document_prompt: str
    lower_case: bool
    max_length: int  # tokens of one sequence, special tokens included
    position_limit: int  # what --max-length may be raised to
    first_position: int
    pad_token_id: int
    token_types: bool  # the model tells the two segments of a pair apart
    pooling: tuple[PoolingMode, ...]  # several: concatenated; empty for a cross-encoder and late interaction
    include_prompt: bool  # whether the prompt's tokens count in the pooling
    head: tuple[str, ...]
    layers: str  # set where only first tokens are read: the body's layers, the last of which runs for them alone
    dense: tuple[DenseSpec, ...]
    activation: str  # dotted torch.nn name; torch.nn.Identity for similarities
    similarity: Similarity
    normalize: bool  # unit vectors before the similarity; only a dot product can tell
    sources: Mapping[str, str] = field(compare=False)

    def describe(self) -> dict[str, dict[str, object]]:
        """JSON-able {field: {"value", "source"}} of every field."""
        names = [f.name for f in fields(self) if f.name != "sources"]
        return {name: {"value": _plain(getattr(self, name)), "source": self.sources[name]} for name in names}


def _plain(value: object) -> object:
    if isinstance(value, DenseSpec):
        return {f.name: getattr(value, f.name) for f in fields(value)}
    return [_plain(part) for part in value] if isinstance(value, tuple) else value
