"""How models read media: a module for each family, with a `Reader` (media to tokens and pixels) and a `Body`.

What a family does with an image follows from the image's size, so that a `Visual` is planned from the header alone;
pixels are made when a pack needs them.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from batchscore.models.arch.entry import Vision


def family(vision: Vision) -> Any:
    """The module of a family; it imports torch and transformers."""
    return import_module(f"batchscore.models.vision.{vision.family}")
