"""The registry: architecture name -> Architecture, or a function of config.json where a name covers several layouts.

A new architecture is one entry in a file of this folder. One that is not listed is handled by the ending of its name.
"""

from __future__ import annotations

from batchscore.models.arch.decoders import DECODERS, LAST, SCORE
from batchscore.models.arch.encoder_decoders import ENCODER_DECODERS
from batchscore.models.arch.encoders import COLBERTS, ENCODERS
from batchscore.models.arch.entry import Architecture, Entry, Json
from batchscore.models.arch.pages import PAGES, any_images
from batchscore.models.arch.tiles import TILES
from batchscore.models.arch.towers import TOWERS
from batchscore.models.arch.vision import VISION

ARCHITECTURES: dict[str, Entry] = {
    **ENCODERS,
    **COLBERTS,
    **ENCODER_DECODERS,
    **DECODERS,
    **VISION,
    **PAGES,
    **TILES,
    **TOWERS,
}

_ENCODER = Architecture(unread=r"predictions\b|^generator_")  # the names that heads for masked words have
_CLASSIFIER = Architecture("cross-encoder", flat=False, per_sequence="logit")
_IMAGES = "vision_config"  # a model that reads images has this in its config.json
# what they give depends on what they read before, or on chance
_UNSTEADY = ("big_bird", "reformer")


def _is_encoder(config: Json) -> bool:
    """Whether the class is transformers' own, of a model type that it has for predicting masked words."""
    if config.get("model_type") in (None, *_UNSTEADY):
        return False
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    return (
        hasattr(transformers, config["architectures"][0]) and config["model_type"] in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    )


# tried in this order; whether such a body runs without padding is tested when it is loaded
GENERIC: dict[str, Entry] = {
    # transformers' classifiers of language models have one layer at the last token, those of encoders differ
    "ForSequenceClassification": lambda config: _CLASSIFIER if _is_encoder(config) else SCORE,
    "ForMaskedLM": _ENCODER,
    "ForConditionalGeneration": any_images,
    "ForCausalLM": lambda config: any_images(config) if _IMAGES in config else LAST,
    "LMHeadModel": LAST,
    "Model": lambda config: any_images(config) if _IMAGES in config else _ENCODER if _is_encoder(config) else LAST,
}


def architecture_of(architecture: str, config: Json) -> Architecture | None:
    """The entry for an architecture and its config.json; None if even the ending of its name is unknown."""
    entry = ARCHITECTURES.get(architecture) or next(
        (generic for ending, generic in GENERIC.items() if architecture.endswith(ending)), None
    )
    if entry is any_images and _IMAGES not in config:
        return None  # a model of texts with a decoder, or of sounds
    return None if entry is None else _applied(entry, config)


def supported() -> dict[str, Architecture]:
    """Every architecture with its entry for an empty config.json, for tables."""
    listed = {name: _applied(entry, {}) for name, entry in ARCHITECTURES.items()}
    return {**listed, **{f"*{ending}": _applied(generic, {}) for ending, generic in GENERIC.items()}}


def _applied(entry: Entry, config: Json) -> Architecture:
    return entry if isinstance(entry, Architecture) else entry(config)
