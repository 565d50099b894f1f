"""PaliGemma and ColPali: all images resized to one square, as many tokens each."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from batchscore.models.checkpoint import Checkpoint
from batchscore.models.spec import ModelSpec
from batchscore.models.text.tokenizer import TextTokenizer
from batchscore.models.vision.body import SeeingBody, Seen
from batchscore.models.vision.reader import MediaReader, Pixels, image_processor
from batchscore.types import Content, Media, Visual


class Reader(MediaReader):
    """A token for each patch of the square."""

    image_token = "<image>"

    def __init__(self, checkpoint: Checkpoint, spec: ModelSpec, tokenizer: TextTokenizer) -> None:
        super().__init__(checkpoint, spec, tokenizer)
        self.processor = image_processor(checkpoint, spec)
        side = int(self.processor.size["height"]) // int(self.config["vision_config"]["patch_size"])
        self.patches = side**2

    def visual(self, media: Media) -> Visual:
        """Always the same number of tokens."""
        return Visual(media, self.patches, self.patches, ())

    def written(self, content: Content) -> str:
        """As PaliGemma's own processor writes it where no template does: <bos> behind images, a line's end."""
        written = super().written(content)
        if self.spec.chat_template or not content.media:
            return written
        before, image, after = written.rpartition(self.vision.image)
        return f"{before}{image}<bos>{after}\n"

    def pixels(self, visual: Visual) -> Pixels:
        """float32 [1, 3, side, side]."""
        frames = visual.media.source.frames(visual.frames, on_white=self.on_white)
        return {"pixel_values": self.processor(images=frames, return_tensors="np")["pixel_values"]}


class Body(SeeingBody):
    """The language model reads all tokens in both directions, as config.json is translated."""

    def see(self, pixels: Mapping[str, Tensor]) -> Seen:
        """[tokens, dim]."""
        values = pixels["pixel_values"].to(self.model.dtype)
        return (self.model.get_image_features(values).pooler_output[0],)
