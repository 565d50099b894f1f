"""Phi-3-Vision: an image as a whole, and in views of a larger one; CLIP, with separators between rows, and Phi-3."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import interpolate
from transformers import CLIPVisionConfig, CLIPVisionModel, Phi3Config, Phi3Model, PreTrainedConfig, PreTrainedModel

from batchscore.models.checkpoint import Checkpoint
from batchscore.models.spec import ModelSpec
from batchscore.models.text.tokenizer import Special, TextTokenizer
from batchscore.models.vision.body import SeeingBody, Seen, in_squares
from batchscore.models.vision.processor import own_settings
from batchscore.models.vision.reader import MediaFaultError, MediaReader, Pixels
from batchscore.types import Fault, Media, Visual

_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_WHITE = (255, 255, 255)


class Reader(MediaReader):
    """Views of an image that is as wide as the number of views allows, with white above and below."""

    takes_embeddings = True
    image_token = "<|image|>"

    def __init__(self, checkpoint: Checkpoint, spec: ModelSpec, tokenizer: TextTokenizer) -> None:
        super().__init__(checkpoint, spec, tokenizer)
        saved = checkpoint.read_backbone_json("preprocessor_config.json")
        self.crops = int(own_settings(saved, spec, {"num_crops": 1})["num_crops"])
        self.unit = int(saved.get("unit", 336))  # pixels on a side of a view
        self.tokens = int(saved.get("num_img_tokens", 144))  # of a view

    def visual(self, media: Media) -> Visual:
        """A grid of (rows, columns) of views."""
        *_, rows, columns = self._layout(media.width, media.height)
        side = math.isqrt(self.tokens)
        # each row of tokens ends in a separator, and one stands between the views and the whole
        tokens = (rows * columns + 1) * self.tokens + 1 + (rows + 1) * side
        return Visual(media, tokens, 4 * self.tokens * (rows * columns + 1), (rows, columns))

    def _layout(self, width: int, height: int) -> tuple[int, int, int, int]:
        """(longer side, shorter side) after resizing, and (rows, columns) of views."""
        ratio = max(width, height) / min(width, height)
        count = max(views for views in range(1, self.crops + 1) if views * math.ceil(views / ratio) <= self.crops)
        longer = count * self.unit
        shorter = int(longer / ratio)
        if not shorter:
            message = f"{width} x {height} pixels is too stretched for this model"
            raise MediaFaultError(Fault("media", message, "crop it"))
        across = math.ceil(shorter / self.unit)
        return (longer, shorter, count, across) if width < height else (longer, shorter, across, count)

    def expansion(self, visual: Visual) -> NDArray[np.int32]:
        """The tokenizer's own tokens end the text before an image and begin the one behind it."""
        pattern = self.tokenizer.single
        (slot,) = [place for place, part in enumerate(pattern) if not isinstance(part, Special)]
        first, last = (
            np.array([part.id for part in parts if isinstance(part, Special)], np.int32)
            for parts in (pattern[:slot], pattern[slot + 1 :])
        )
        return np.concatenate([last, super().expansion(visual), first])

    def pixels(self, visual: Visual) -> Pixels:
        """float32 "whole" [1, 3, unit, unit] and "views" [rows, columns, 3, unit, unit]."""
        (image,) = visual.media.source.frames(visual.frames, on_white=self.on_white)
        longer, shorter, rows, columns = self._layout(image.width, image.height)
        is_upright = image.width < image.height
        lying = image.transpose(Image.Transpose.TRANSPOSE) if is_upright else image
        padded = Image.new("RGB", (longer, math.ceil(shorter / self.unit) * self.unit), _WHITE)
        padded.paste(lying.resize((longer, shorter), Image.Resampling.BILINEAR), (0, (padded.height - shorter) // 2))
        padded = padded.transpose(Image.Transpose.TRANSPOSE) if is_upright else padded
        mean, std = (np.array(part, np.float32)[:, None, None] for part in (_MEAN, _STD))
        values = (np.asarray(padded, np.float32).transpose(2, 0, 1) / np.float32(255) - mean) / std
        whole = interpolate(torch.from_numpy(values)[None], (self.unit, self.unit), mode="bicubic")
        views = values.reshape(3, rows, self.unit, columns, self.unit).transpose(1, 3, 0, 2, 4)
        return {"whole": whole.numpy(), "views": np.ascontiguousarray(views)}


class Phi3V(PreTrainedModel):
    """The parts, under the names of their tensors."""

    config_class = PreTrainedConfig

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        text, vision = Phi3Config.from_dict(config.text_config), CLIPVisionConfig.from_dict(config.vision_config)
        self.language_model, self.vision_model = Phi3Model(text), CLIPVisionModel(vision)
        width = 4 * vision.hidden_size
        self.glb_GN, self.sub_GN = (nn.Parameter(torch.zeros(*ones, width)) for ones in ((1, 1), (1, 1, 1)))
        self.img_projection = nn.Sequential(
            nn.Linear(width, text.hidden_size), nn.GELU(), nn.Linear(text.hidden_size, text.hidden_size)
        )
        self.post_init()

    @classmethod
    def from_pretrained(cls, *args: Any, **options: Any) -> Any:
        """As of transformers' classes; the tower's sizes are those of its tensors, since no file says them."""
        options["config"].vision_config = _tower_sizes(options["state_dict"])
        return super().from_pretrained(*args, **options)

    def get_input_embeddings(self) -> nn.Module:
        """The table of token vectors."""
        return self.language_model.get_input_embeddings()


def _tower_sizes(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The config of CLIP's tower; KeyError if it is not there."""
    under = "vision_model.vision_model."
    dim, _, _, patch = tensors[f"{under}embeddings.patch_embedding.weight"].shape
    positions = len(tensors[f"{under}embeddings.position_embedding.weight"])
    layers = {match[0] for name in tensors if (match := re.match(r"vision_model\..*\.layers\.\d+\.", name))}
    return {
        "hidden_size": dim,
        "patch_size": patch,
        "image_size": math.isqrt(positions - 1) * patch,
        "intermediate_size": len(tensors[f"{under}encoder.layers.0.mlp.fc1.weight"]),
        "num_hidden_layers": len(layers),
        "num_attention_heads": max(2, dim // 64),  # tensors do not tell; CLIP's have 64 components
        "hidden_act": "quick_gelu",
    }


class Body(SeeingBody):
    """The states of one of the tower's last layers, four of them in one."""

    def see(self, pixels: Mapping[str, Tensor]) -> Seen:
        """[tokens, dim]."""
        model, config = self.model, self.model.config
        tower, views = model.vision_model, pixels["views"]
        layer = config.img_processor.get("layer_idx", -2)
        images = torch.cat([pixels["whole"], views.flatten(0, 1)]).to(tower.dtype)
        states = tower(images, output_hidden_states=True).hidden_states[layer][:, 1:]  # without the first, of no patch
        whole, *_ = squares = in_squares(states, 2)
        # [rows, columns, side, side, dim] to one grid of tokens
        grid = squares[1:].unflatten(0, views.shape[:2]).transpose(1, 2).flatten(2, 3).flatten(0, 1)
        parts = [self._in_lines(grid), model.glb_GN[0], self._in_lines(whole)]
        if config.embd_layer.get("hd_transform_order", "sub_glb") == "glb_sub":
            parts.reverse()
        return (model.img_projection(torch.cat(parts)),)

    def _in_lines(self, grid: Tensor) -> Tensor:
        """[tokens, dim] of [rows, columns, dim]: each row ends in a separator."""
        ends = self.model.sub_GN[0].expand(len(grid), -1, -1)
        return torch.cat([grid, ends], 1).flatten(0, 1)
