"""The registry: architecture name -> Architecture, or a function of config.json where a name covers several layouts.

A new architecture is one line in a file of this folder. A language model that is not listed gets the row of its kind,
read off the end of its name.
"""

from __future__ import annotations

from dataclasses import replace

from batchscore.models.arch.decoders import DECODERS, LAST, SCORE
from batchscore.models.arch.encoders import COLBERTS, ENCODERS
from batchscore.models.arch.entry import Architecture, Entry, Json

ARCHITECTURES: dict[str, Entry] = {**ENCODERS, **COLBERTS, **DECODERS}

# in the order in which a name is tried; a body of unknown build shows at loading whether it runs without padding
GENERIC: dict[str, Architecture] = {
    "ForSequenceClassification": SCORE,
    "ForCausalLM": LAST,
    "LMHeadModel": LAST,
    "Model": LAST,
}


def architecture_of(architecture: str, config: Json) -> Architecture | None:
    """The row of an architecture, given its config.json; None if the name ends like none that is known."""
    found = ARCHITECTURES.get(architecture) or next(
        (row for ending, row in GENERIC.items() if architecture.endswith(ending)), None
    )
    return found if found is None or isinstance(found, Architecture) else found(config)


def supported() -> dict[str, Architecture]:
    """Every architecture and the row it has without a config.json, for tables."""
    listed = {name: found if isinstance(found, Architecture) else found({}) for name, found in ARCHITECTURES.items()}
    return {**listed, **{f"*{ending}": replace(row, hub="") for ending, row in GENERIC.items()}}
