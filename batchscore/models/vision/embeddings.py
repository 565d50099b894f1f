"""Embeddings that stand for an image: what a tower made of it before this job."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from batchscore.errors import first_line
from batchscore.media.sources import Embeddings
from batchscore.models.vision.reader import MediaFaultError
from batchscore.types import Fault


def arrays_of(source: Embeddings) -> Mapping[str, NDArray[Any]]:
    """The arrays by name.

    Raises:
        MediaFaultError: one is neither numbers nor a tensor that torch saved.
    """
    arrays = {}
    for name, part in json.loads(source.data).items():
        try:
            array = _saved(part) if isinstance(part, str) else np.array(part)
            if not np.issubdtype(array.dtype, np.number):
                raise ValueError("it has no numbers")
        except Exception as error:  # torch raises almost anything for bytes that are no tensor
            raise MediaFaultError(
                Fault("media", f"its {name} cannot be read: {first_line(error)}", "save it with torch.save, in base64")
            ) from error
        arrays[name] = array
    return arrays


def _saved(text: str) -> NDArray[Any]:
    """A tensor as base64 of what torch.save writes; no other objects are loaded."""
    loaded = torch.load(io.BytesIO(base64.b64decode(text, validate=True)), map_location="cpu", weights_only=True)
    if not isinstance(loaded, torch.Tensor):
        raise ValueError(f"it is {type(loaded).__name__}, not a tensor")
    array: NDArray[Any] = (loaded.float() if loaded.is_floating_point() else loaded).numpy()
    return array
