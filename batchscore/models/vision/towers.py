"""CLIP, SigLIP and their like: a tower for texts and one for images, whose vectors are compared as they are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from batchscore.errors import BatchscoreError, CheckpointError, UsageError, first_line
from batchscore.models.checkpoint import Checkpoint
from batchscore.models.spec import ModelSpec
from batchscore.models.text.tokenizer import TextTokenizer
from batchscore.models.vision.body import SeeingBody, Seen
from batchscore.models.vision.reader import MediaReader, Pixels, image_processor
from batchscore.types import Items, Media, Visual, offsets_of, ranges

_BEFORE_FIX = 2  # what CLIP's first configs call the end token, whatever its id is


class Reader(MediaReader):
    """Images of one size; texts that end as the text tower was trained to read them."""

    def __init__(self, checkpoint: Checkpoint, spec: ModelSpec, tokenizer: TextTokenizer) -> None:
        super().__init__(checkpoint, spec, tokenizer)
        self.text, self.images = self.config["text_config"], self.config["vision_config"]
        self.processor = image_processor(checkpoint, spec)
        self._grid = self._find_grid()

    def _find_grid(self) -> tuple[int, ...]:
        """Rows and columns of patches of any image, found by trying one.

        Raises:
            CheckpointError: the processor fails, or its size is not the tower's.
            UsageError: the same, by an option.
        """
        side, patch = self.images.get("image_size", 224), self.images.get("patch_size", 16)
        blank = np.zeros((side, side + 1, 3), np.uint8)
        try:
            made = self.processor(images=[blank], return_tensors="np")["pixel_values"]
        except Exception as error:  # any, by settings of a wrong kind
            raise self._unfit(first_line(error)) from error
        if made.ndim == 3:  # SigLIP 2 keeps an image's proportions, and fills up with patches that are not seen
            return 1, int(made.shape[1])
        if made.shape[-2:] != (side, side):
            raise self._unfit(f"it makes images of {made.shape[-1]} x {made.shape[-2]} for a model of {side} x {side}")
        return side // patch, side // patch

    def _unfit(self, problem: str) -> BatchscoreError:
        if self.spec.processor_options:
            source = self.spec.sources["processor_options"]
            return UsageError(f"{source.spell('mm_processor_kwargs')}: the image processor does not fit: {problem}")
        return CheckpointError(
            f"{self.checkpoint.name}: the image processor of preprocessor_config.json does not fit: {problem}",
            hint="it is not the file this model was trained with",
        )

    def visual(self, media: Media) -> Visual:
        """One vector, whatever the image's size."""
        return Visual(media, 1, math.prod(self._grid), self._grid)

    def pixels(self, visual: Visual) -> Pixels:
        """What the processor makes."""
        frames = visual.media.source.frames(visual.frames, on_white=self.on_white)
        return dict(self.processor(images=frames, return_tensors="np"))

    def ended(self, items: Items, length: int) -> Items:
        """CLIP reads a text up to its first end token, and SigLIP one that is filled up with padding."""
        if self.spec.reads_like_vllm or self.spec.pooling != ("lasttoken",):
            return items
        return self._filled(items, length) if self.vision.fills else self._cut(items)

    def _cut(self, items: Items) -> Items:
        sequence = np.repeat(np.arange(len(items)), items.lengths)
        end: int | NDArray[np.int32] = self.text["eos_token_id"]
        if end == _BEFORE_FIX and self.config["model_type"] == "clip":  # then it is the highest of the vocabulary
            highest = np.zeros(len(items), np.int32)
            np.maximum.at(highest, sequence, items.ids)
            end = highest[sequence]
        is_end = items.ids == end
        found, first = np.unique(sequence[is_end], return_index=True)
        lengths = items.lengths
        lengths[found] = items.positions[is_end][first] + 1
        return items.slice(items.offsets[:-1], lengths)

    def _filled(self, items: Items, length: int) -> Items:
        padding = self.tokenizer.named("pad_token")
        offsets = offsets_of(np.full(len(items), length))
        ids = np.full(offsets[-1], self.spec.pad_token_id if padding is None else padding, np.int32)
        ids[ranges(offsets[:-1], items.lengths)] = items.ids
        return Items(offsets, {"ids": ids})


class Body(SeeingBody):
    """A vector for each token of a text, of which the last is read, and one for an image in place of a token's."""

    sees_alone = False  # all images of a pack are seen at once: they have one size

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        projection = getattr(model, "text_projection", None)
        self.projection: nn.Linear = self.language_model.head if projection is None else projection
        self.width = self.projection.out_features
        embeddings = self.language_model.embeddings
        if hasattr(embeddings, "position_embedding"):
            self.language_model.embeddings = _Embeddings(embeddings)
        elif hasattr(embeddings, "token_type_ids"):
            del embeddings.token_type_ids  # zeros for as many tokens as there are positions, made anew where it lacks

    @property
    def language_model(self) -> Any:
        """The tower for texts."""
        return self.model.text_model

    def see_all(self, pixels: Sequence[Mapping[str, Tensor]]) -> list[Seen]:
        """[1, dim] of each image."""
        if not pixels:
            return []
        together = {name: torch.cat([one[name] for one in pixels]) for name in pixels[0]}
        values = together.pop("pixel_values").to(self.projection.weight.dtype)
        vectors: Tensor = self.model.get_image_features(values, **together).pooler_output
        return [(vector[None],) for vector in vectors]

    def forward(
        self, input_ids: Tensor, *, seen: Sequence[Seen] = (), places: Tensor | None = None, **inputs: Any
    ) -> Any:
        """`last_hidden_state` [n, tokens, dim]: the projected state of each token, and the vectors of images."""
        images = None if places is None else torch.cat([vector for (vector,) in seen])
        if images is not None and len(images) == input_ids.numel():
            return SimpleNamespace(last_hidden_state=images.view(*input_ids.shape, -1))
        vectors = self.projection(self.language_model(input_ids, **inputs).last_hidden_state)
        if images is not None and places is not None:
            vectors = vectors.flatten(0, 1).index_copy(0, places, images).view_as(vectors)
        return SimpleNamespace(last_hidden_state=vectors)


class _Embeddings(nn.Module):
    """The text tower's own, but that a batch without padding may have more tokens than there are positions."""

    def __init__(self, own: Any) -> None:
        super().__init__()
        self.token_embedding: nn.Embedding = own.token_embedding
        self.position_embedding: nn.Embedding = own.position_embedding

    def forward(self, input_ids: Tensor, position_ids: Tensor | None = None) -> Tensor:
        """[n, tokens, dim]."""
        if position_ids is None:
            position_ids = torch.arange(input_ids.shape[1], device=input_ids.device)[None]
        vectors: Tensor = self.token_embedding(input_ids) + self.position_embedding(position_ids)
        return vectors
