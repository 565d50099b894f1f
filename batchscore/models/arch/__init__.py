"""The registry: architecture name -> Architecture, or a function of config.json where a name covers several layouts.

A new architecture is one entry in a file of this folder. One that is not listed is handled by the ending of its name.
"""

from __future__ import annotations

from dataclasses import replace

from batchscore.models.arch.decoders import DECODERS, LAST, SCORE
from batchscore.models.arch.encoders import COLBERTS, ENCODERS
from batchscore.models.arch.entry import Architecture, Entry, Json

ARCHITECTURES: dict[str, Entry] = {**ENCODERS, **COLBERTS, **DECODERS}

# tried in this order; whether such a body runs without padding is tested when it is loaded
GENERIC: dict[str, Architecture] = {
    "ForSequenceClassification": SCORE,
    "ForCausalLM": LAST,
    "LMHeadModel": LAST,
    "Model": LAST,
}


def architecture_of(architecture: str, config: Json) -> Architecture | None:
    """The entry for an architecture and its config.json; None if even the ending of its name is unknown."""
    entry = ARCHITECTURES.get(architecture) or next(
        (generic for ending, generic in GENERIC.items() if architecture.endswith(ending)), None
    )
    return None if entry is None else _applied(entry, config)


def supported() -> dict[str, Architecture]:
    """Every architecture with its entry for an empty config.json, for tables."""
    listed = {name: _applied(entry, {}) for name, entry in ARCHITECTURES.items()}
    return {**listed, **{f"*{ending}": replace(generic, hub="") for ending, generic in GENERIC.items()}}


def _applied(entry: Entry, config: Json) -> Architecture:
    return entry if isinstance(entry, Architecture) else entry(config)
