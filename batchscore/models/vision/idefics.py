"""ModernVBert, which reads images as Idefics 3 does: squares cut out of an image, each with its row and column."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from batchscore.models.checkpoint import Checkpoint
from batchscore.models.spec import ModelSpec
from batchscore.models.text.tokenizer import TextTokenizer
from batchscore.models.vision.body import SeeingBody, Seen
from batchscore.models.vision.processor import image_processor
from batchscore.models.vision.reader import MediaReader, Pixels
from batchscore.types import Media, Visual

_LONGEST_SIDE = 4096  # pixels, in Idefics 3's own rule
_AROUND = "<fake_token_around_image>"


class Reader(MediaReader):
    """Squares row by row, then the whole image as one more. vLLM reads the whole image alone, without a name."""

    image_token = "<image>"

    def __init__(self, checkpoint: Checkpoint, spec: ModelSpec, tokenizer: TextTokenizer) -> None:
        super().__init__(checkpoint, spec, tokenizer)
        whole = {"do_image_splitting": False} if spec.reads_like_vllm else {}
        self.processor = image_processor(checkpoint, spec, **whole)
        self.before_specials = spec.reads_like_vllm
        vision = self.config["vision_config"]
        self.patches = (int(vision["image_size"]) // int(vision["patch_size"])) ** 2
        self.tokens = self.patches // int(self.config["pixel_shuffle_factor"]) ** 2

    def visual(self, media: Media) -> Visual:
        """The grid is (rows, columns) of squares, (0, 0) of an image that is not cut."""
        rows, columns = self._grid(media.height, media.width)
        squares = rows * columns + 1
        return Visual(media, squares * self.tokens, squares * self.patches, (rows, columns))

    def _grid(self, height: int, width: int) -> tuple[int, int]:
        settings = self.processor
        if not settings.do_image_splitting:
            return 0, 0
        side = int(settings.max_image_size["longest_edge"])
        if settings.do_resize:
            height, width = _enlarged(height, width, int(settings.size["longest_edge"]))
        ratio = width / height
        if width >= height:
            columns = math.ceil(width / side)
            rows = math.ceil(int(columns * side / ratio) / side)
        else:
            rows = math.ceil(height / side)
            columns = math.ceil(int(rows * side * ratio) / side)
        return (rows, columns) if rows > 1 or columns > 1 else (0, 0)

    def expansion(self, visual: Visual) -> NDArray[np.int32]:
        """Each square after its name, lines of them, and the whole image."""
        if self.spec.reads_like_vllm:
            return super().expansion(visual)
        rows, columns = visual.grid
        square = self.image_token * self.tokens
        lines = [
            "".join(f"{_AROUND}<row_{row}_col_{column}>{square}" for column in range(1, columns + 1)) + "\n"
            for row in range(1, rows + 1)
        ]
        cut = "".join(lines) + "\n" if lines else ""
        return self.ids(f"{cut}{_AROUND}<global-img>{square}{_AROUND}")

    def pixels(self, visual: Visual) -> Pixels:
        """Squares of equal size, float32 [1, squares, 3, side, side], and which of their pixels are the image's."""
        frames = visual.media.source.frames(visual.frames, on_white=self.on_white)
        made = self.processor(images=frames, return_tensors="np")
        return {name: np.asarray(made[name]) for name in ("pixel_values", "pixel_attention_mask") if name in made}


def _enlarged(height: int, width: int, longest: int) -> tuple[int, int]:
    """The sides with the longer one as asked for, as transformers rounds them."""
    ratio = width / height
    if width >= height:
        short = int(longest / ratio)
        height, width = max(1, short + short % 2), longest
    else:
        short = int(longest * ratio)
        height, width = longest, max(1, short + short % 2)
    if max(height, width) <= _LONGEST_SIDE:
        return height, width
    ratio = width / height
    if width >= height:
        return max(1, int(_LONGEST_SIDE / ratio)), _LONGEST_SIDE
    return _LONGEST_SIDE, max(1, int(_LONGEST_SIDE * ratio))


class Body(SeeingBody):
    """An encoder of texts and a tower for squares."""

    @property
    def language_model(self) -> Any:
        """What reads tokens."""
        return self.model.text_model

    def see(self, pixels: Mapping[str, Tensor]) -> Seen:
        """[tokens, dim]."""
        return (self.model.get_image_features(**pixels).pooler_output[0],)
