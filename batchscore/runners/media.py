"""Media on their way into the model: decoded in threads ahead of it, seen once, and kept for packs to come.

Pixels are hundreds of times as large as the files they come from, so a batch waits for its own until enough of those
before it are used up.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Condition, Lock
from typing import Any

import numpy as np
import torch
from torch import Tensor

from batchscore.errors import InputError
from batchscore.media.sources import Embeddings
from batchscore.models.vision.body import Seen
from batchscore.models.vision.reader import MediaReader
from batchscore.types import Fault, Faults, Items, Visual


class UnreadableMediaError(Exception):
    """Media of a pack that cannot be decoded; `faults` are by sequence of the pack."""

    def __init__(self, faults: Faults) -> None:
        super().__init__(f"{len(faults)} sequences have media that cannot be decoded")
        self.faults = faults


@dataclass(eq=False)
class View:
    """One distinct medium of a pack: what was seen in it before, or its pixels."""

    visual: Visual
    seen: Seen | None
    pixels: Mapping[str, Any] | None  # arrays


@dataclass(frozen=True)
class Views:
    """The distinct media of a pack."""

    views: list[View]
    order: list[int]  # of each medium, sequence by sequence, which of `views` it is


class MediaMemory:
    """Pixels that wait, and what the tower made of media.

    Args:
        reader: of the model.
        max_bytes: for pixels that wait, and again for what was seen; a single batch may have more.
        threads: that decode.
        device: the model's.
    """

    def __init__(self, reader: MediaReader, max_bytes: int, threads: int, device: str) -> None:
        self._reader, self._max_bytes, self._device = reader, max_bytes, device
        self._decoders = ThreadPoolExecutor(threads, "batchscore-decode")
        self._waiting = 0  # bytes
        self._fewer = Condition()
        self._seen: OrderedDict[Visual, Seen] = OrderedDict()
        self._seen_bytes = 0
        self._lock = Lock()

    def views(self, items: Items, *, ahead: bool) -> Views:
        """The media of a pack, ready for the tower.

        Args:
            items: the pack.
            ahead: whether this thread may wait until other packs are done; one that would forward them may not.

        Raises:
            UnreadableMediaError: some cannot be decoded.
        """
        visuals = [visual for one in items.media for visual in one]
        places = {visual: place for place, visual in enumerate(dict.fromkeys(visuals))}
        with self._lock:
            found = {visual: self._seen.get(visual) for visual in places}
            found |= {visual: self._given(visual) for visual in places if isinstance(visual.media.source, Embeddings)}
        missing = [visual for visual, seen in found.items() if seen is None]
        pixels = dict(zip(missing, self._decoders.map(self._decode, missing), strict=True))
        if faults := _faults(items, pixels):
            raise UnreadableMediaError(faults)
        views = [View(visual, found[visual], pixels.get(visual)) for visual in places]
        self._hold(views, ahead=ahead)
        return Views(views, [places[visual] for visual in visuals])

    def _given(self, visual: Visual) -> Seen:
        return tuple(torch.from_numpy(level).to(self._device) for level in self._reader.seen(visual.media))

    def _decode(self, visual: Visual) -> Any:
        """Pixels, or the Fault of a medium that has none."""
        try:
            return self._reader.pixels(visual)
        except InputError as error:
            return Fault("media", error.message, error.hint)

    def _hold(self, views: Sequence[View], *, ahead: bool) -> None:
        """Count the pixels of a pack until they are given up; wait first until there is room for them."""
        size = sum(array.nbytes for view in views for array in (view.pixels or {}).values())
        if not size:
            return
        with self._fewer:
            if ahead:
                self._fewer.wait_for(lambda: not self._waiting or self._waiting + size <= self._max_bytes)
            self._waiting += size
        weakref.finalize(views[0], self._give_up, size)

    def _give_up(self, size: int) -> None:
        with self._fewer:
            self._waiting -= size
            self._fewer.notify_all()

    def look(self, body: Any, views: Views) -> list[Seen]:
        """What the tower sees in each medium of a pack, in the order of their tokens."""
        new = [view for view in views.views if view.seen is None]
        pixels = [_on_device(view.pixels or {}, self._device) for view in new]
        for view, seen in zip(new, body.see_all(pixels), strict=True):
            view.seen, view.pixels = seen, None
            if body.sees_alone:
                self._keep(view.visual, seen)
        return [seen for place in views.order if (seen := views.views[place].seen) is not None]

    def _keep(self, visual: Visual, seen: Seen) -> None:
        with self._lock:
            if visual in self._seen:
                return
            self._seen[visual] = seen
            self._seen_bytes += _size(seen)
            while self._seen_bytes > self._max_bytes:
                self._seen_bytes -= _size(self._seen.popitem(last=False)[1])


def _faults(items: Items, pixels: Mapping[Visual, Any]) -> Faults:
    """Of the sequences with a medium that was not decoded."""
    return {
        sequence: pixels[visual]
        for sequence, visuals in enumerate(items.media)
        for visual in visuals
        if isinstance(pixels.get(visual), Fault)
    }


def _size(seen: Seen) -> int:
    return sum(level.nbytes for level in seen)


def _on_device(pixels: Mapping[str, Any], device: str) -> dict[str, Tensor]:
    return {name: torch.from_numpy(np.require(array, requirements="W")).to(device) for name, array in pixels.items()}
