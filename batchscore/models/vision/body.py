"""A language model some of whose tokens stand for parts of images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

Seen = tuple[Tensor, ...]  # of one medium: [tokens, dim] for its tokens, then the same for layers that take more


def in_squares(states: Tensor, side: int) -> Tensor:
    """[n, rows, columns, side * side * dim] of [n, patches, dim]: the patches of a square one after the other."""
    rows = math.isqrt(states.shape[1]) // side
    squares: Tensor = states.unflatten(1, (rows, side, rows, side)).transpose(2, 3).flatten(3)
    return squares


class SeeingBody(nn.Module):
    """transformers' model of texts and images, taken apart: the tower sees each image by itself, once.

    So what an image becomes depends on no other image of the pack, and the language model can run without padding.

    Args:
        model: with a `language_model` and a tower.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.config = self.language_model.config

    @property
    def language_model(self) -> Any:
        """What reads tokens."""
        return self.model.language_model

    @property
    def _supports_attention_backend(self) -> bool:
        return bool(getattr(self.language_model, "_supports_attention_backend", False))

    def set_attn_implementation(self, name: str) -> None:
        """Of the language model alone: the tower sees one image at a time, without padding."""
        self.language_model.set_attn_implementation(name)

    def get_input_embeddings(self) -> Any:
        """The table of token vectors."""
        return self.language_model.get_input_embeddings()

    sees_alone = True  # what is seen in a medium depends on no other, bit for bit, so it can be kept

    def see_all(self, pixels: Sequence[Mapping[str, Tensor]]) -> list[Seen]:
        """What several media's tokens are read as."""
        return [self.see(one) for one in pixels]

    def see(self, pixels: Mapping[str, Tensor]) -> Seen:
        """What one medium's tokens are read as."""
        raise NotImplementedError

    def forward(
        self, input_ids: Tensor, *, seen: Sequence[Seen] = (), places: Tensor | None = None, **inputs: Any
    ) -> Any:
        """Output of the language model.

        Args:
            input_ids: int64 [n, tokens].
            seen: the media, in the order of their tokens.
            places: int64, those tokens, counted over the whole batch.
            inputs: for the language model.
        """
        states = self.embedded(input_ids)
        if places is None:
            return self.read(inputs_embeds=states, **inputs)
        levels = [torch.cat(level) for level in zip(*seen, strict=True)]
        flat = states.flatten(0, 1).index_copy(0, places, self.scaled(levels[0]).to(states.dtype))
        beside = self.beside(levels[1:], places, input_ids)
        return self.read(inputs_embeds=flat.view_as(states), **beside, **inputs)

    def read(self, **inputs: Any) -> Any:
        """Output of the language model for vectors."""
        return self.language_model(**inputs)

    def embedded(self, input_ids: Tensor) -> Tensor:
        """The vectors of tokens, as the language model takes them."""
        vectors: Tensor = self.get_input_embeddings()(input_ids)
        return vectors

    def scaled(self, features: Tensor) -> Tensor:
        """What the tower gives, as the language model takes it."""
        return features

    def beside(self, levels: Sequence[Tensor], places: Tensor, input_ids: Tensor) -> dict[str, Any]:
        """Further inputs of the language model where there are media."""
        return {}
