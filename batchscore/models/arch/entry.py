"""What an architecture says before its checkpoint's files do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from batchscore.models.spec import Layer, PoolingMode
from batchscore.types import ScoreType

Json = dict[str, Any]


class Rename(NamedTuple):
    """A tensor under another name: a regular expression, and the names it becomes; several share its rows evenly."""

    pattern: str
    names: tuple[str, ...]


def same(config: Json) -> Json:
    """No translation: transformers knows this config."""
    return config


@dataclass(frozen=True, slots=True)
class Architecture:
    """One line of the registry. Everything but the body's own layers is data."""

    score_type: ScoreType = "bi-encoder"
    hub: str = ""  # a published model of this architecture

    # body
    translate: Callable[[Json], Json] = same  # config.json into that of the class transformers has for it
    renames: tuple[Rename, ...] = ()
    body: str = ""  # "module:class" of the body for a model type that transformers lacks
    body_renames: tuple[Rename, ...] = ()  # into the names of that body
    flat: bool = True  # False: tokens meet elsewhere than in attention, so sequences must not share a batch row
    layers: str = ""  # its list of BERT-like layers, the last of which may run for first tokens alone
    positions_after_pad: bool = False  # the first token's position is pad_token_id + 1 (fairseq's convention)
    unread: str = ""  # regular expression: tensors of the file that this way of scoring does not need
    adapters: tuple[str, ...] = ()  # LoRA adapters stacked in the checkpoint's tensors

    # readout and head
    pooling: PoolingMode = "cls"  # without sentence-transformers files
    head: tuple[Layer, ...] = ()  # of a cross-encoder, or before the vectors of the others
    mlm_head: tuple[Layer, ...] = ()  # states to vocabulary, for SPLADE
    logit_sigma: float = 1.0

    # prompt, where the architecture fixes it
    listwise: bool = False  # all documents of a query stand in one prompt
    template: str = ""  # name of a shipped one
    query_prompt: str = ""
    document_prompt: str = ""
    instruct: str = ""  # query prompt with {instruction}
    include_prompt: bool = True


Entry = Architecture | Callable[[Json], Architecture]
