"""Llama Nemotron VL: an image in equal tiles, and the whole of it in one more; SigLIP and a bidirectional Llama."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor, nn
from transformers import (
    LlamaConfig,
    LlamaModel,
    PreTrainedConfig,
    PreTrainedModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from batchscore.models.checkpoint import Checkpoint
from batchscore.models.spec import ModelSpec
from batchscore.models.text.tokenizer import TextTokenizer
from batchscore.models.vision.body import SeeingBody, Seen, in_squares
from batchscore.models.vision.processor import own_settings
from batchscore.models.vision.reader import MediaReader, Pixels
from batchscore.types import Media, Visual

_MEAN_AND_STD = {
    "siglip": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
_ENOUGH = 0.6  # of an image's pixels; tiles with more of them are no better


class Reader(MediaReader):
    """Tiles in the columns and rows that fit an image's shape and size best."""

    takes_embeddings = True
    image_token = "<IMG_CONTEXT>"

    def __init__(self, checkpoint: Checkpoint, spec: ModelSpec, tokenizer: TextTokenizer) -> None:
        super().__init__(checkpoint, spec, tokenizer)
        config, tower = self.config, self.config["vision_config"]
        most = config.get("max_input_tiles") or config.get("max_dynamic_patch") or 6
        defaults = {
            "max_input_tiles": most,
            "use_thumbnail": config.get("use_thumbnail", True),
            "dynamic_image_size": config.get("dynamic_image_size", True),
            "norm_type": "siglip",
        }
        self.settings = own_settings(checkpoint.read_backbone_json("processor_config.json"), spec, defaults)
        self.side = int(config.get("force_image_size") or tower["image_size"])
        self.patches = (self.side // int(tower["patch_size"])) ** 2

    def visual(self, media: Media) -> Visual:
        """A grid of (columns, rows) of tiles, each of as many tokens."""
        columns, rows = self._grid(media.width, media.height) if self.settings["dynamic_image_size"] else (1, 1)
        tiles = columns * rows
        tiles += tiles > 1 and self.settings["use_thumbnail"]
        tokens = int(self.patches * self.config["downsample_ratio"] ** 2)
        return Visual(media, tiles * tokens, tiles * self.patches, (columns, rows))

    def _grid(self, width: int, height: int) -> tuple[int, int]:
        """(columns, rows) by the model's own rule, of which the first best wins."""
        most, shape = self.settings["max_input_tiles"], width / height
        # a set in the order in which the model's code makes it: rounding decides between grids of one area
        grids = {
            (columns, rows)
            for count in range(1, most + 1)
            for columns in range(1, count + 1)
            for rows in range(1, count + 1)
            if columns * rows <= most
        }

        def fit(grid: tuple[int, int]) -> float:
            ratio = grid[0] / grid[1]
            covered = min(grid[0] * grid[1] * self.side * self.side / (width * height), _ENOUGH)
            return covered * min(ratio / shape, shape / ratio)

        return max(sorted(grids, key=lambda grid: grid[0] * grid[1]), key=fit)

    def pixels(self, visual: Visual) -> Pixels:
        """float32 [tiles, 3, side, side]: row by row, then the whole image."""
        (image,) = visual.media.source.frames(visual.frames, on_white=self.on_white)
        (columns, rows), side = visual.grid, self.side
        resized = image.resize((columns * side, rows * side), Image.Resampling.BICUBIC)
        tiles = [
            resized.crop((left, top, left + side, top + side))
            for top in range(0, resized.height, side)
            for left in range(0, resized.width, side)
        ]
        if len(tiles) > 1 and self.settings["use_thumbnail"]:
            tiles.append(image.resize((side, side), Image.Resampling.BICUBIC))
        stack = np.stack([np.asarray(tile, np.float32) for tile in tiles]).transpose(0, 3, 1, 2)
        mean, std = (np.array(part, np.float32)[:, None, None] for part in _MEAN_AND_STD[self.settings["norm_type"]])
        return {"pixel_values": (stack / np.float32(255) - mean) / std}


class NemotronVL(PreTrainedModel):
    """The parts, under the names of their tensors."""

    config_class = PreTrainedConfig

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        text = LlamaConfig.from_dict(config.text_config)
        vision = SiglipVisionConfig.from_dict({**config.vision_config, "vision_use_head": False})
        self.language_model, self.vision_model = LlamaModel(text), SiglipVisionModel(vision)
        width = vision.hidden_size * round(1 / config.downsample_ratio) ** 2
        self.mlp1 = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, text.hidden_size),
            nn.GELU(),
            nn.Linear(text.hidden_size, text.hidden_size),
        )
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The table of token vectors."""
        return self.language_model.get_input_embeddings()


class Body(SeeingBody):
    """The tower's last states, four of them in one."""

    def see(self, pixels: Mapping[str, Tensor]) -> Seen:
        """[tokens, dim]."""
        config, tower = self.model.config, self.model.vision_model
        layer = getattr(config, "select_layer", -1)
        output: Any = tower(pixels["pixel_values"].to(tower.dtype), output_hidden_states=layer != -1)
        states = output.last_hidden_state if layer == -1 else output.hidden_states[layer]
        squares = in_squares(states, round(1 / config.downsample_ratio))
        if getattr(config, "ps_version", "v2") == "v1":
            squares = squares.transpose(1, 2)
        return (self.model.mlp1(squares.flatten(0, 2)),)
