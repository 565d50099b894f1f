"""What all families have in common: placeholders in a text, and the tokens they become."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from batchscore.errors import CheckpointError
from batchscore.media.sources import Embeddings
from batchscore.models.arch.entry import Json, Vision
from batchscore.models.checkpoint import Checkpoint
from batchscore.models.spec import ModelSpec
from batchscore.models.text.tokenizer import TextTokenizer
from batchscore.types import Content, Fault, Items, Media, Visual

IMAGE, VIDEO = np.int8(1), np.int8(2)  # values of the column "media"
TEXT_ONLY = Fault("media", "this model reads text only", "choose a model that reads images, or leave the row out")
Pixels = Mapping[str, NDArray[Any]]  # what a vision tower takes, by keyword


class MediaFaultError(Exception):
    """Media that this model cannot read."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.message)
        self.fault = fault


class MediaReader:
    """Media as one checkpoint reads them.

    Args:
        checkpoint: whose processor's files are read.
        spec: its image backend, and what is set besides those files.
        tokenizer: finds the placeholders' tokens.
    """

    takes_embeddings = False  # whether what a tower made of an image may stand for it
    image_token = ""  # the token of `Vision.image` that is replaced
    video_token = ""
    number = 0  # among the readers of one loaded model
    before_specials = False  # media stand even before the tokens that the tokenizer puts around a text

    def __init__(self, checkpoint: Checkpoint, spec: ModelSpec, tokenizer: TextTokenizer) -> None:
        assert spec.arch.vision is not None
        self.vision: Vision = spec.arch.vision
        self.config: Json = dict(spec.config)
        self.checkpoint, self.spec, self.tokenizer = checkpoint, spec, tokenizer
        self.on_white = spec.reads_like_vllm
        self.image_id = self._token(self.image_token) if self.vision.image else -1
        self.video_id = self._token(self.video_token) if self.vision.video else -1

    # ---- for each family to say

    def visual(self, media: Media) -> Visual:
        """How a medium is cut, from its header.

        Raises:
            MediaFaultError: the model cannot read it.
        """
        raise NotImplementedError

    def expansion(self, visual: Visual) -> NDArray[np.int32]:
        """What the placeholder's token becomes: a run of the token that features take the place of."""
        return np.full(visual.tokens, self.features[visual.media.kind], np.int32)

    @property
    def features(self) -> dict[str, int]:
        """The token whose vectors are replaced by what is seen, by the kind of medium."""
        return {"image": self.image_id, **({"video": self.video_id} if self.vision.video else {})}

    def pixels(self, visual: Visual) -> Pixels:
        """What the vision tower takes; InputError if the medium cannot be decoded."""
        raise NotImplementedError

    def positions(self, items: Items) -> NDArray[np.int64] | None:
        """int64 [axes, tokens] for models in which an image's tokens have rows and columns; None: they count on."""
        return None

    def check(self, body: Any) -> None:
        """Try a body that no entry of the registry answers for; CheckpointError if it reads media in another way."""

    def describe(self, visual: Visual) -> dict[str, Any]:
        """JSON-able: how a medium is cut."""
        return {"tokens": visual.tokens, "patches": visual.patches, "grid": list(visual.grid)}

    @property
    def sampling(self) -> dict[str, Any]:
        """JSON-able: which frames of a video are read; empty if none is."""
        return {}

    def ended(self, items: Items, length: int) -> Items:
        """Texts by themselves, of at most `length` tokens, as the model reads them; most models as they are."""
        return items

    # ---- texts with placeholders

    def planned(self, content: Content) -> tuple[Visual, ...]:
        """How the media of a query or document are cut; raises as `visual`."""
        limits = self.spec.media_limits
        for kind in ("image", "video"):
            count = sum(media.kind == kind for media in content.media)
            if count > limits.get(kind, count):
                message = f"{count} {kind}s, and --limit-mm-per-prompt allows {limits[kind]}"
                raise MediaFaultError(Fault("media", message, "raise --limit-mm-per-prompt, or leave some out"))
        if any(media.kind == "video" for media in content.media) and not self.vision.video:
            raise MediaFaultError(Fault("media", "this model reads images, and no video", "pass some of its frames"))
        if self.vision.alone and (len(content.media) > 1 or (content.media and content.text)):
            message = "this model reads a text or an image, one at a time"
            raise MediaFaultError(Fault("media", message, "put them into separate rows"))
        return tuple(
            self._given(media)
            if isinstance(media.source, Embeddings)
            else replace(self.visual(media), reader=self.number)
            for media in self._media(content)
        )

    def _given(self, media: Media) -> Visual:
        """The place of embeddings."""
        seen = self.seen(media)
        return Visual(media, len(seen[0]), 0, self.given_grid(media, len(seen[0])))

    def given_grid(self, media: Media, tokens: int) -> tuple[int, ...]:
        """What an image was cut into of which there are embeddings; MediaFaultError if these do not say."""
        return (1, 1, tokens)

    def seen(self, media: Media) -> list[NDArray[np.float32]]:
        """Embeddings as the tower gives them: float32 [tokens, dim], then the same for layers that take more.

        Raises:
            MediaFaultError: they are not those of this model.
        """
        from batchscore.models.vision.embeddings import arrays_of

        if not self.takes_embeddings:
            raise MediaFaultError(Fault("media", "this model takes no image_embeds", "give the image itself"))
        assert isinstance(media.source, Embeddings)
        array = arrays_of(media.source).get("image_embeds")
        width = int(self.config.get("text_config", self.config).get("hidden_size", 0))
        if array is None or array.ndim != 2 or not array.size or array.shape[1] % width:
            shape = "missing" if array is None else list(array.shape)
            message = f"its image_embeds are {shape}, and this model takes [tokens, {width}]"
            raise MediaFaultError(Fault("media", message, "make them with this model's own tower"))
        return np.split(array.astype(np.float32), array.shape[1] // width, axis=1)

    def _media(self, content: Content) -> list[Media]:
        """In the order of their placeholders."""
        return [part for part in self._ordered(content) if not isinstance(part, str)]

    def _ordered(self, content: Content) -> list[str | Media]:
        """The parts as the model reads them: videos, images, texts, where the order is not the author's."""
        if content.ordered and not self.vision.media_first and not self.spec.reads_like_vllm:
            return list(content.parts)
        if self.spec.reads_like_vllm:  # it moves placeholders to the front, and keeps their order
            return sorted(content.parts, key=lambda part: isinstance(part, str))
        ranks = {"video": 0, "image": 1}
        return sorted(content.parts, key=lambda part: 2 if isinstance(part, str) else ranks[part.kind])

    def placeholder(self, media: Media) -> str:
        """What stands for a medium in a text."""
        if media.kind == "image":
            return self.vision.vllm_image or self.vision.image if self.spec.reads_like_vllm else self.vision.image
        return self.vision.vllm_video or self.vision.video if self.spec.reads_like_vllm else self.vision.video

    def spelled(self, piece: str, images: int) -> str:
        """A piece of a prompt, in which the model's own placeholders stand where a template of vLLM's has others."""
        if not (self.vision.vllm_image and self.spec.reads_like_vllm):
            return piece
        return piece.replace(self.vision.vllm_image, self.vision.image, images)

    def media_text(self, content: Content) -> str:
        """The placeholders alone."""
        return "".join(self.placeholder(media) for media in self._media(content))

    def written(self, content: Content) -> str:
        """The parts as one text with placeholders; texts side by side are on lines of their own."""
        written, before_is_text = "", False
        for part in self._ordered(content):
            is_text = isinstance(part, str)
            written += "\n" * (is_text and before_is_text) + (part if isinstance(part, str) else self.placeholder(part))
            before_is_text = is_text
        return written

    @cached_property
    def placeholder_ids(self) -> NDArray[np.int32]:
        """The tokens that are replaced."""
        return np.array([token for token in (self.image_id, self.video_id) if token >= 0], np.int32)

    @cached_property
    def feature_ids(self) -> NDArray[np.int32]:
        """The tokens whose vectors are replaced."""
        return np.array(list(self.features.values()), np.int32)

    def kinds(self, ids: NDArray[np.int32]) -> NDArray[np.int8]:
        """int8 [tokens], the column "media"."""
        kinds = np.zeros(len(ids), np.int8)
        for kind, token in self.features.items():
            kinds[ids == token] = IMAGE if kind == "image" else VIDEO
        return kinds

    @cached_property
    def uncut_ids(self) -> NDArray[np.int32]:
        """The tokens of placeholders, which no truncation takes."""
        texts = [text for text in (self.vision.image, self.vision.video, self.vision.vllm_video) if text]
        ids = [self.tokenizer.tokenize([text], 64)[0].ids for text in texts]
        return np.unique(np.concatenate(ids)).astype(np.int32)

    def _token(self, token: str) -> int:
        found = self.tokenizer.token_id(token)
        if found is None:
            raise CheckpointError(
                f"{self.checkpoint.name}: its vocabulary lacks {token}, which stands for an image",
                hint="the tokenizer is not the one this model was trained with",
            )
        return found

    def ids(self, text: str) -> NDArray[np.int32]:
        """The tokens of a text, without special ones around it."""
        return self.tokenizer.tokenize([text], 1 << 20)[0].ids


def too_large(tokens: int, limit: int) -> Fault:
    """The fault of a row whose media alone are more than the model reads."""
    return Fault(
        "too-long",
        f"its media are {tokens} tokens with the prompt, and max_length is {limit}",
        "raise --max-length, or shrink images: --max-pixels, or --mm-processor-kwargs where a model has no such bound",
    )
