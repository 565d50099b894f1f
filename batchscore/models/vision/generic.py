"""Any model of texts and images in transformers: its own processor writes an image's tokens, its own class reads them.

What a class does beside putting features in the place of tokens is not known here, so each model is compared with its
class when it is loaded (`Reader.check`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from inspect import signature
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoTokenizer
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

from batchscore.errors import CheckpointError, MissingDependencyError, first_line, one_line
from batchscore.models.checkpoint import Checkpoint
from batchscore.models.quiet import quiet
from batchscore.models.spec import ModelSpec
from batchscore.models.text.tokenizer import TextTokenizer
from batchscore.models.vision.body import SeeingBody, Seen
from batchscore.models.vision.processor import image_processor
from batchscore.models.vision.reader import MediaFaultError, MediaReader, Pixels
from batchscore.types import Fault, Media, Visual

_SIZES = 1024  # of images whose tokens are remembered
_TEXT = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids", "labels")  # that processors give


class Reader(MediaReader):
    """An image's tokens as its processor writes those of a black image of that size."""

    def __init__(self, checkpoint: Checkpoint, spec: ModelSpec, tokenizer: TextTokenizer) -> None:
        self.native = _native(checkpoint, spec)
        self.processor = _processor(checkpoint, spec, self.native)
        self.image_token = self.processor.image_token
        super().__init__(checkpoint, spec, tokenizer)
        self.vision = replace(self.vision, image=self.image_token)
        self._written = lru_cache(_SIZES)(self._write)
        try:
            with quiet():  # what processors report the first time; it is not for threads, in which the others are made
                self._written(64, 48)
        except MediaFaultError as error:
            raise CheckpointError(f"{checkpoint.name}: {error.fault.message}") from error

    def visual(self, media: Media) -> Visual:
        """Found out from the size."""
        ids, patches = self._written(media.width, media.height)
        return Visual(media, int((ids == self.features["image"]).sum()), patches, (media.height, media.width))

    def expansion(self, visual: Visual) -> NDArray[np.int32]:
        """All that stands for the image, with marks before, between and behind its parts."""
        return self._written(visual.media.width, visual.media.height)[0]

    @property
    def features(self) -> dict[str, int]:
        """The token that config.json names."""
        return {"image": int(self.native.image_token_id)}

    def pixels(self, visual: Visual) -> Pixels:
        """Whatever the processor makes of an image."""
        return self._pixels(self._made(visual.media.source.frames(visual.frames, on_white=self.on_white)[0]))

    def _write(self, width: int, height: int) -> tuple[NDArray[np.int32], int]:
        """(tokens, patches) of an image."""
        try:
            made = self._made(Image.new("RGB", (width, height)))
        except Exception as error:  # each processor has rules of its own
            message = f"the model's processor refuses an image of {width} x {height} pixels: {first_line(error)}"
            raise MediaFaultError(Fault("media", message)) from error
        patch = int(np.max(getattr(self.native.vision_config, "patch_size", None) or 14))
        numbers = sum(array.size for array in self._pixels(made).values())
        return np.asarray(made["input_ids"][0], np.int32), numbers // (3 * patch**2)

    def _made(self, image: Any, text: str = "") -> Mapping[str, Any]:
        made: Mapping[str, Any] = self.processor(
            text=[text or self.image_token], images=[image], add_special_tokens=False, return_tensors="pt"
        )
        return made

    def _pixels(self, made: Mapping[str, Any]) -> Pixels:
        return {name: np.asarray(array) for name, array in made.items() if name not in _TEXT}

    @torch.inference_mode()
    def check(self, body: Any) -> None:
        """Compare the body with its class on a text with an image.

        Raises:
            CheckpointError: they differ, so that the class does something that is not known here.
        """
        noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
        text, device = f"one {self.image_token} two", next(body.parameters()).device
        try:
            made = self._made(Image.fromarray(noise), text)
            takes = signature(body.model.forward).parameters
            given = {name: _cast(value, body).to(device) for name, value in made.items() if name in takes}
            expected = body.model(**given).last_hidden_state[0]
        except Exception as error:  # code of any model
            raise self._refusal(body, first_line(error)) from error
        before, after = np.split(ids := self.ids(text), np.flatnonzero(ids == self.image_id)[:1])
        ids = np.concatenate([before, self._written(64, 48)[0], after[1:]])
        if ids.tolist() != np.asarray(made["input_ids"][0]).tolist():
            raise self._refusal(body, "its processor writes other tokens around an image")
        pixels = {name: torch.from_numpy(array).to(device) for name, array in self._pixels(made).items()}
        inputs = torch.from_numpy(ids.astype(np.int64)).to(device)[None]
        places = torch.from_numpy(np.flatnonzero(self.kinds(ids))).to(device)
        try:
            seen = [body.see(pixels)]
            output = body(inputs, seen=seen, places=places, attention_mask=torch.ones_like(inputs))
        except Exception as error:  # as above
            raise self._refusal(body, first_line(error)) from error
        states = output.last_hidden_state[0]
        error_size, size = ((part.float()).norm(dim=1) for part in (states - expected, expected))
        if not bool((error_size <= (1e-3 if states.dtype == torch.float32 else 0.1) * size).all()):
            raise self._refusal(body, "its states differ from those of transformers")

    def _refusal(self, body: Any, reason: str) -> CheckpointError:
        return CheckpointError(
            f"{self.checkpoint.name}: {type(body.model).__name__} does more with images than is known here: {reason}",
            hint="batchscore models lists what is supported",
        )


def _native(checkpoint: Checkpoint, spec: ModelSpec) -> Any:
    """The config object of the class in transformers."""
    kind: Any = spec.config.get("model_type")
    if kind not in CONFIG_MAPPING:
        theirs = f"transformers {transformers.__version__}"
        raise CheckpointError(f"{checkpoint.name}: {theirs} has no model of type {kind!r}", hint="a later release may")
    try:
        return CONFIG_MAPPING[kind].from_dict(dict(spec.config))
    except Exception as error:  # classes of transformers raise almost anything
        raise CheckpointError(
            f"{checkpoint.name}: transformers cannot read config.json: {first_line(error)}"
        ) from error


def _processor(checkpoint: Checkpoint, spec: ModelSpec, native: Any) -> Any:
    """The model's processor, without that of videos, which needs torchvision."""
    if type(native) not in PROCESSOR_MAPPING:
        raise CheckpointError(f"{checkpoint.name}: transformers has no processor for {native.model_type!r} models")
    kind: Any = PROCESSOR_MAPPING[type(native)]
    images = image_processor(checkpoint, spec)
    saved = checkpoint.read_backbone_json("processor_config.json")
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(checkpoint.tokenizer_folder, trust_remote_code=False)
            processor = _made_of(kind, saved, {"image_processor": images, "tokenizer": tokenizer})
    except ImportError as error:
        raise MissingDependencyError(
            f"{checkpoint.name}: transformers' processor of it needs a package: {one_line(error)}"
        ) from error
    except Exception as error:  # transformers raises almost anything
        raise CheckpointError(f"{checkpoint.name}: no {kind.__name__} can be made: {first_line(error)}") from error
    _complete(processor, saved, native)
    if not isinstance(getattr(processor, "image_token", None), str) or getattr(native, "image_token_id", None) is None:
        raise CheckpointError(f"{checkpoint.name}: its files do not say which token stands for an image")
    return processor


def _made_of(kind: Any, saved: Mapping[str, Any], parts: Mapping[str, Any]) -> Any:
    """A processor of some parts, the others left out, with its own settings."""
    known = signature(kind.__init__).parameters
    settings = {name: value for name, value in saved.items() if name in known and not isinstance(value, dict)}
    absent = dict.fromkeys(kind.get_attributes())
    unchecked = type(kind.__name__, (kind,), {"check_argument_for_proper_class": lambda self, name, part: None})
    return unchecked(**{**settings, **absent, **parts})


def _complete(processor: Any, saved: Mapping[str, Any], native: Any) -> None:
    """Set what files of the first LLaVA models lack, as the model has it."""
    if getattr(processor, "patch_size", 0) is None:
        processor.patch_size = native.vision_config.patch_size
    if getattr(processor, "vision_feature_select_strategy", "") is None:
        processor.vision_feature_select_strategy = native.vision_feature_select_strategy
    if hasattr(processor, "num_additional_image_tokens") and "num_additional_image_tokens" not in saved:
        # CLIP's tower has a token for the whole image
        processor.num_additional_image_tokens = int(native.vision_config.model_type == "clip_vision_model")


class Body(SeeingBody):
    """The class as a whole reads vectors, so that masks are its own."""

    def __init__(self, model: Any) -> None:
        if not hasattr(model, "get_image_features") or self._texts_of(model) is None:
            raise CheckpointError(f"{type(model).__name__} reads images in a way that is not supported")
        super().__init__(model)
        self.masks_images = "token_type_ids" in signature(model.forward).parameters

    @staticmethod
    def _texts_of(model: Any) -> Any:
        return getattr(model, "language_model", None) or getattr(model, "text_model", None)

    @property
    def language_model(self) -> Any:
        """What reads tokens."""
        return self._texts_of(self.model)

    @property
    def _supports_attention_backend(self) -> bool:
        return super()._supports_attention_backend and not self.masks_images

    def read(self, **inputs: Any) -> Any:
        """Output of the whole class for vectors."""
        return self.model(**inputs)

    def see(self, pixels: Mapping[str, Tensor]) -> Seen:
        """[tokens, dim]."""
        takes = signature(self.model.get_image_features).parameters
        given = {name: _cast(value, self) for name, value in pixels.items() if name in takes}
        features = self.model.get_image_features(**given).pooler_output
        parts: Sequence[Tensor] = features if isinstance(features, (list, tuple)) else [features]
        return (torch.cat([part.reshape(-1, part.shape[-1]) for part in parts]),)

    def beside(self, levels: Sequence[Tensor], places: Tensor, input_ids: Tensor) -> dict[str, Any]:
        """Which tokens are an image's, for models whose parts of an image see each other in both directions."""
        if not self.masks_images:
            return {}
        types = torch.zeros(input_ids.numel(), dtype=torch.int64, device=input_ids.device)
        types[places] = 1
        return {"token_type_ids": types.view_as(input_ids)}


def _cast(value: Tensor, body: Any) -> Tensor:
    """The tensor in the body's dtype, if it holds real numbers."""
    return value.to(body.model.dtype) if value.is_floating_point() else value
