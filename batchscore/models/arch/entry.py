"""What an architecture decides unless the checkpoint's files or the user say otherwise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from batchscore.types import ScoreType

Json = dict[str, Any]
PoolingMode = Literal["cls", "max", "mean", "mean_sqrt_len", "weightedmean", "lasttoken", "splade"]


class Rename(NamedTuple):
    """A tensor under another name: a regular expression and its replacement; several divide its rows evenly."""

    pattern: str
    names: tuple[str, ...]


class Layer(NamedTuple):
    """One step of a head: the linear layer (or layer norm, if its weight is a vector) of this name, then a function."""

    name: str  # of the tensors, without ".weight"
    activation: str = ""  # one of transformers' activation functions; none if empty
    bias: bool = True  # whether its bias is read, if it has one


@dataclass(frozen=True, slots=True)
class Vision:
    """How an architecture reads media."""

    family: str  # the module of models/vision/ with its `Reader`, of media, and its `Body`, which sees them
    image: str  # what stands for an image in a text; one token of it becomes as many as the image has parts
    vllm_image: str = ""  # what vLLM's templates know it by, where that is something else
    video: str = ""  # the same for a video; none is read if empty
    vllm_video: str = ""  # where vLLM writes something else
    media_first: bool = False  # media come before texts, whatever the author's order
    max_tokens: int = 0  # of one image, where this stands above the processor's file; 0: the file alone counts
    apart: bool = False  # texts beside a medium are tokenized by themselves
    alone: bool = False  # a query or document is a text or one image, not both
    fills: bool = False  # texts are filled up to their greatest length with padding, which is read like any token


def same(config: Json) -> Json:
    """Return the config as it is: transformers knows it."""
    return config


@dataclass(frozen=True, slots=True)
class Architecture:
    """An entry of the registry. Everything but the body's own layers is data."""

    score_type: ScoreType = "bi-encoder"
    hub: str = ""  # a published model of this architecture

    # body
    translate: Callable[[Json], Json] = same  # from config.json to the config of the class in transformers
    renames: tuple[Rename, ...] = ()
    body: str = ""  # "module:class" of the body for a model type that transformers lacks, with its `from_pretrained`
    body_renames: tuple[Rename, ...] = ()  # to the names of that body
    flat: bool = True  # False: tokens interact outside attention too, so sequences must not share a batch row
    layers: str = ""  # name of its list of BERT-like layers, the last of which may run for first tokens alone
    positions_after_pad: bool = False  # the first token's position is pad_token_id + 1 (fairseq's convention)
    unread: str = ""  # regular expression: tensors in the file that this way of scoring does not read
    adapters: tuple[str, ...] = ()  # LoRA adapters stacked in the checkpoint's tensors

    # readout and head
    pooling: PoolingMode = "cls"  # without sentence-transformers files
    # what transformers' own class gives for each sequence is read instead of a body's states: the logit of its
    # classifier, or the state of its decoder's first step
    per_sequence: Literal["", "logit", "decoder"] = ""
    final_norm: bool = True  # False: states are read before the language model's last norm
    dimensions: int = 0  # components of a vector that are kept; 0: all
    answers: tuple[str, ...] = ()  # tokens, false and true, whose rows of the output embeddings are the head
    head: tuple[Layer, ...] = ()  # from states to a cross-encoder's logit, or to the vectors of other score types
    mlm_head: tuple[Layer, ...] = ()  # from states to the vocabulary, for SPLADE
    logit_mean: float = 0.0
    logit_sigma: float = 1.0

    # prompt, where the architecture fixes it
    listwise: bool = False  # all documents of a query share one prompt
    template: str = ""  # name of a shipped template, for its own score type
    vision: Vision | None = None  # None: it reads texts alone
    end_token: int | None = None  # id of a token behind each prompt

    in_vllm: Architecture | None = None  # what vLLM makes of it, for --compat vllm; None: the same
    query_prompt: str = ""
    document_prompt: str = ""
    instruct: str = ""  # query prompt with {instruction}
    include_prompt: bool = True
    lower_case: bool = False  # texts are lower-cased, which the tokenizer's file may leave to others
    special_tokens: bool = True  # False: texts have none around them


Entry = Architecture | Callable[[Json], Architecture]
