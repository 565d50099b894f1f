"""Encodings of which a run made a part before it was interrupted, in a file of the job's folder."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from threading import Lock
from time import monotonic
from typing import Any

import numpy as np

from batchscore.errors import InputError
from batchscore.io.digests import Digests
from batchscore.io.encodings import EncodingsFile
from batchscore.io.storage import Folder
from batchscore.types import Encodings

_SAVE_SECONDS = 10.0  # between two savings: what a kill may cost


@dataclass(frozen=True, slots=True)
class Progress:
    """What there is of the encodings of some texts."""

    folder: Folder
    file: str
    note: Mapping[str, Any]  # JSON-able: what the texts are of

    def saved(self, digests: Digests) -> Encodings | None:
        """What an earlier run kept of the encodings of these very texts."""
        with suppress(OSError, ValueError, InputError):
            kept = EncodingsFile.of_bytes(self.folder.read(self.file), self.file)
            if kept.note == self.note and np.array_equal(kept.digests, digests):
                return kept.encodings
        return None

    def save(self, digests: Digests, encodings: Encodings) -> None:
        """Keep what there is."""
        self.folder.write(self.file, EncodingsFile(encodings, digests, self.note).to_bytes())


class Timer:
    """Tells when it is time to save."""

    def __init__(self) -> None:
        self._saved = monotonic()
        self._lock = Lock()

    def is_due(self) -> bool:
        """Whether it is time; True in one thread."""
        with self._lock:
            if monotonic() - self._saved < _SAVE_SECONDS:
                return False
            self._saved = monotonic()
            return True
