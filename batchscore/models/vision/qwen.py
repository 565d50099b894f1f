"""Qwen2-VL, Qwen2.5-VL, Qwen3-VL and Qwen3.5: as many patches as an image is large, and positions in three axes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from batchscore.media.sources import Embeddings
from batchscore.models.arch.entry import Vision
from batchscore.models.checkpoint import Checkpoint
from batchscore.models.spec import ModelSpec
from batchscore.models.text.tokenizer import TextTokenizer
from batchscore.models.vision.body import SeeingBody, Seen
from batchscore.models.vision.embeddings import arrays_of
from batchscore.models.vision.processor import image_processor
from batchscore.models.vision.reader import MediaFaultError, MediaReader, Pixels
from batchscore.types import Fault, Items, Media, Visual

_MOST_STRETCHED = 200  # how many times longer than wide an image may be, in Qwen's own rule


class Reader(MediaReader):
    """Patches of an image resized to a multiple of a patch's sides, within a number of pixels."""

    takes_embeddings = True
    image_token, video_token = "<|image_pad|>", "<|video_pad|>"

    def __init__(self, checkpoint: Checkpoint, spec: ModelSpec, tokenizer: TextTokenizer) -> None:
        super().__init__(checkpoint, spec, tokenizer)
        self.processor = image_processor(checkpoint, spec, **_token_limit(self.vision, spec, checkpoint))
        self.merge = int(self.processor.merge_size)
        self.patch = int(self.processor.patch_size)
        self.per_frame = int(self.processor.temporal_patch_size)

    def visual(self, media: Media) -> Visual:
        """A grid of (frames, rows, columns) of patches, and a token for each square of them."""
        if max(media.width, media.height) > _MOST_STRETCHED * min(media.width, media.height):
            raise MediaFaultError(
                Fault("media", f"{media.width} x {media.height} pixels is too stretched for this model", "crop it")
            )
        frames = self._frames(media)
        steps = -(-len(frames) // self.per_frame)
        height, width = self._size(media, len(frames))
        grid = (steps, height // self.patch, width // self.patch)
        patches = int(np.prod(grid))
        return Visual(media, patches // self.merge**2, patches, grid, frames)

    def _size(self, media: Media, frames: int) -> tuple[int, int]:
        """(height, width) after resizing: multiples of a token's sides, so that all frames have so many pixels."""
        sides, factor, steps = (media.height, media.width), self.patch * self.merge, 1
        size = self.processor.size
        if media.kind == "video":
            size, steps = self._video["size"], max(1, round(frames / self.per_frame)) * self.per_frame
            enlarged = max(1.0, factor / min(sides))
            sides = int(sides[0] * enlarged), int(sides[1] * enlarged)
        height, width = (round(side / factor) * factor for side in sides)
        area = frames * sides[0] * sides[1]
        if steps * height * width > size["longest_edge"]:
            shrunk = math.sqrt(area / size["longest_edge"])
            height, width = (max(factor, math.floor(side / shrunk / factor) * factor) for side in sides)
        elif steps * height * width < size["shortest_edge"]:
            grown = math.sqrt(size["shortest_edge"] / area)
            height, width = (math.ceil(side * grown / factor) * factor for side in sides)
        return height, width

    @property
    def _video(self) -> Mapping[str, Any]:
        """The settings of the video processor."""
        saved = self.checkpoint.read_backbone_json("video_preprocessor_config.json")
        own = {"size": {"shortest_edge": 128 * 32 * 32, "longest_edge": 32 * 32 * 768}, "fps": 2}
        settings = {**own, "min_frames": 4, "max_frames": 768, **saved, **self.spec.video_options}
        return {**settings, "size": {**settings["size"], **settings.get("limits", {})}}

    def _frames(self, media: Media) -> tuple[int, ...]:
        """Which frames are read: all that someone chose, else so many a second."""
        if media.kind == "image":
            return (0,)
        if media.sampled:
            return tuple(range(media.count))
        settings = self._video
        wanted = int(media.count / (media.fps or 24.0) * settings["fps"])
        count = min(max(wanted, settings["min_frames"]), settings["max_frames"], media.count)
        return tuple(np.linspace(0, media.count - 1, count).round().astype(int).tolist())

    def expansion(self, visual: Visual) -> NDArray[np.int32]:
        """Of a video, the time and the tokens of each pair of frames."""
        if visual.media.kind == "image":
            return super().expansion(visual)
        tokens = visual.tokens // visual.grid[0]
        parts = [
            self.ids(f"<{time:.1f} seconds><|vision_start|>" + self.video_token * tokens + "<|vision_end|>")
            for time in self._times(visual)
        ]
        return np.concatenate(parts)

    def _times(self, visual: Visual) -> list[float]:
        """Seconds of each group of frames that becomes one: the mean of its first and last."""
        seconds = np.array(visual.frames) / (visual.media.fps or 24.0)
        padded = np.concatenate([seconds, np.repeat(seconds[-1:], -len(seconds) % self.per_frame)])
        groups = padded.reshape(-1, self.per_frame)
        return [float(first + last) / 2 for first, last in zip(groups[:, 0], groups[:, -1], strict=True)]

    def given_grid(self, media: Media, tokens: int) -> tuple[int, ...]:
        """From `image_grid_thw`, which tells where each token stands."""
        assert isinstance(media.source, Embeddings)
        grid = arrays_of(media.source).get("image_grid_thw", np.empty(0)).reshape(-1).astype(int).tolist()
        if len(grid) != 3 or np.prod(grid) != tokens * self.merge**2 or grid[0] != 1:
            message = f"its image_grid_thw is {grid or 'missing'}, and its image_embeds are {tokens} tokens"
            raise MediaFaultError(Fault("media", message, "give [1, rows, columns] of patches beside image_embeds"))
        return tuple(grid)

    def describe(self, visual: Visual) -> dict[str, Any]:
        """With the size after resizing."""
        _, rows, columns = visual.grid
        return {**super().describe(visual), "resized": [columns * self.patch, rows * self.patch]}

    @property
    def sampling(self) -> dict[str, Any]:
        """So many frames a second of a file; of a list of frames all."""
        names = ("fps", "min_frames", "max_frames", "size") if self.vision.video else ()
        return {name: self._video[name] for name in names}

    def pixels(self, visual: Visual) -> Pixels:
        """Patches, end to end."""
        frames = visual.media.source.frames(visual.frames, on_white=self.on_white)
        if visual.media.kind == "image":
            made = self.processor(images=frames, return_tensors="np")
            return {"pixel_values": made["pixel_values"], "grid": made["image_grid_thw"]}
        return {"pixel_values": self._video_patches(frames, visual), "grid": np.array([visual.grid], np.int64)}

    def _video_patches(self, frames: Sequence[Any], visual: Visual) -> NDArray[np.float32]:
        """As of an image, but that a patch holds several frames, which an image's own are copies of."""
        steps, rows, columns = visual.grid
        size = {"width": columns * self.patch, "height": rows * self.patch}
        resized = [frame.resize((size["width"], size["height"]), self.processor.resample) for frame in frames]
        resized += [resized[-1]] * (steps * self.per_frame - len(resized))
        stack = np.stack([np.asarray(frame, np.float32).transpose(2, 0, 1) for frame in resized])
        mean, std = (np.array(numbers, np.float32)[:, None, None] for numbers in self._mean_and_std())
        stack = (stack * np.float32(self.processor.rescale_factor) - mean) / std
        m, p = self.merge, self.patch
        cut = stack.reshape(steps, self.per_frame, 3, rows // m, m, p, columns // m, m, p)
        patches: NDArray[np.float32] = cut.transpose(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(steps * rows * columns, -1)
        return patches

    def _mean_and_std(self) -> tuple[Sequence[float], Sequence[float]]:
        return self.processor.image_mean, self.processor.image_std

    def positions(self, items: Items) -> NDArray[np.int64] | None:
        """int64 [3, tokens]: time, row and column; of text all three count on from the largest before."""
        if items.visuals is None:
            return None
        found = [self._sequence_positions(kinds, visuals) for kinds, visuals in _sequences(items)]
        return np.concatenate(found, axis=1)

    def _sequence_positions(self, kinds: NDArray[np.int8], visuals: Sequence[Visual]) -> NDArray[np.int64]:
        # each pair of frames of a video has a grid of its own, since times stand between them
        grids = iter([grid[1:] for visual in visuals for grid in [visual.grid] * visual.grid[0]])
        parts, start = [], 0
        for kind, run in groupby(kinds.tolist()):
            length = len(list(run))
            if not kind:
                parts.append(np.tile(np.arange(start, start + length), (3, 1)))
                start += length
                continue
            while length:  # images may follow each other directly
                rows, columns = (side // self.merge for side in next(grids))
                row, column = np.divmod(np.arange(rows * columns), columns)
                parts.append(start + np.stack([np.zeros_like(row), row, column]))
                start, length = start + max(rows, columns), length - rows * columns
        return np.concatenate(parts, axis=1)


def _sequences(items: Items) -> list[tuple[NDArray[np.int8], Sequence[Visual]]]:
    kinds = np.split(items.filled("media"), items.offsets[1:-1])
    return list(zip(kinds, items.media, strict=True))


def _token_limit(vision: Vision, spec: ModelSpec, checkpoint: Checkpoint) -> dict[str, Any]:
    """The size of images by ColQwen3's limit of visual tokens, which its processor sets above the file's of pixels."""
    settings = checkpoint.read_backbone_json("preprocessor_config.json")
    tokens = settings.get("max_num_visual_tokens") or vision.max_tokens
    if not tokens or {"max_pixels", "size"} & spec.processor_options.keys():
        return {}
    side = int(settings["patch_size"]) * int(settings["merge_size"])
    return {"size": {**settings["size"], "longest_edge": int(tokens) * side**2}}


class Body(SeeingBody):
    """The tower gives further features for the first layers of Qwen3-VL's language model."""

    def see(self, pixels: Mapping[str, Tensor]) -> Seen:
        """[tokens, dim] and, of Qwen3-VL, the same for each of its layers that take some."""
        tower = self.model.visual
        output = self.model.get_image_features(pixels["pixel_values"].to(tower.dtype), pixels["grid"])
        levels = getattr(output, "deepstack_features", None) or []
        return (torch.cat(list(output.pooler_output)), *(torch.cat(list(level)) for level in levels))

    def beside(self, levels: Sequence[Tensor], places: Tensor, input_ids: Tensor) -> dict[str, Any]:
        """Where the further features go."""
        if not levels:
            return {}
        mask = torch.zeros(input_ids.numel(), dtype=torch.bool, device=input_ids.device)
        mask[places] = True
        return {"visual_pos_masks": mask.view_as(input_ids), "deepstack_visual_embeds": list(levels)}
