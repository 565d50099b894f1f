"""Media on their way into the model: decoded in threads ahead of it, seen once, and kept for packs to come.

Pixels are hundreds of times as large as the files they come from, so a batch waits for its own until enough of those
before it are used up.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Condition, Lock
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
from torch import Tensor

from batchscore.errors import InputError
from batchscore.media.sources import Embeddings
from batchscore.models.transfer import to_device
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
    """One distinct medium, which several packs may share: what was seen in it, or its pixels until then."""

    visual: Visual
    seen: Seen | None = None
    pixels: Mapping[str, Any] | None = None  # arrays
    fault: Fault | None = None  # why it has no pixels
    lock: Lock = field(default_factory=Lock)  # held by who decodes it, or looks at it
    give_up: Callable[[], object] = lambda: None  # says that the pixels take no memory any more


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
        self._readers, self._max_bytes, self._device = [reader], max_bytes, device
        self._decoders = ThreadPoolExecutor(threads, "batchscore-decode")
        self._waiting = 0  # bytes
        self._fewer = Condition()
        self._shared: WeakValueDictionary[Visual, View] = WeakValueDictionary()  # of packs that are not done
        self._seen: OrderedDict[Visual, Seen] = OrderedDict()
        self._seen_bytes = 0
        self._lock = Lock()

    def join(self, reader: MediaReader) -> MediaReader:
        """Take a further reader of the same model, whose visuals are told apart from then on; returns it."""
        with self._lock:
            reader.number = len(self._readers)
            self._readers.append(reader)
        return reader

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
            views = [self._shared.get(visual) or View(visual, self._seen.get(visual)) for visual in places]
            if not self._readers[0].vision.alone:  # whose tower looks at a pack at a time
                self._shared.update(zip(places, views, strict=True))
        is_new = list(self._decoders.map(self._prepare, views))
        if faults := _faults(items, {view.visual: view.fault for view in views if view.fault is not None}):
            raise UnreadableMediaError(faults)
        self._hold([view for view, new in zip(views, is_new, strict=True) if new], ahead=ahead)
        return Views(views, [places[visual] for visual in visuals])

    def _prepare(self, view: View) -> bool:
        """Decode a medium, unless that was done; returns whether this made its pixels."""
        with view.lock:
            if view.seen is not None or view.pixels is not None or view.fault is not None:
                return False
            if isinstance(view.visual.media.source, Embeddings):
                levels = self._readers[0].seen(view.visual.media)
                view.seen = tuple(to_device(level, self._device) for level in levels)
                return False
            try:
                view.pixels = self._readers[view.visual.reader].pixels(view.visual)
            except InputError as error:
                view.fault = Fault("media", error.message, error.hint)
            return view.fault is None

    def _hold(self, views: Sequence[View], *, ahead: bool) -> None:
        """Count the pixels of some media until they are given up; wait first until there is room for them."""
        sizes = [sum(array.nbytes for array in (view.pixels or {}).values()) for view in views]
        total = sum(sizes)
        with self._fewer:
            if ahead and total:
                self._fewer.wait_for(lambda: not self._waiting or self._waiting + total <= self._max_bytes)
            self._waiting += total
        for view, size in zip(views, sizes, strict=True):
            view.give_up = weakref.finalize(view, self._give_up, size)

    def _give_up(self, size: int) -> None:
        with self._fewer:
            self._waiting -= size
            self._fewer.notify_all()

    def look(self, body: Any, views: Views) -> list[Seen]:
        """What the tower sees in each medium of a pack, in the order of their tokens."""
        if body.sees_alone:
            for view in views.views:
                self._look_alone(body, view)
        else:
            new = [view for view in views.views if view.seen is None]
            for view, seen in zip(new, body.see_all([self._pixels(view) for view in new]), strict=True):
                view.seen, view.pixels = seen, None
                view.give_up()
        return [seen for place in views.order if (seen := views.views[place].seen) is not None]

    def _look_alone(self, body: Any, view: View) -> None:
        with view.lock:
            if view.seen is None:
                view.seen, view.pixels = body.see(self._pixels(view)), None
                view.give_up()
                self._keep(view.visual, view.seen)

    def _pixels(self, view: View) -> dict[str, Tensor]:
        arrays = (view.pixels or {}).items()
        return {name: to_device(np.require(array, requirements="W"), self._device) for name, array in arrays}

    def _keep(self, visual: Visual, seen: Seen) -> None:
        with self._lock:
            if visual in self._seen:
                return
            self._seen[visual] = seen
            self._seen_bytes += _size(seen)
            while self._seen_bytes > self._max_bytes:
                self._seen_bytes -= _size(self._seen.popitem(last=False)[1])


def _faults(items: Items, found: Mapping[Visual, Fault]) -> Faults:
    """Of the sequences with a medium that was not decoded."""
    return {
        sequence: found[visual] for sequence, visuals in enumerate(items.media) for visual in visuals if visual in found
    }


def _size(seen: Seen) -> int:
    return sum(level.nbytes for level in seen)
