"""The registry: architecture name -> Row. A new architecture is one line in a file of this folder, listed here."""

from __future__ import annotations

from batchscore.models.arch.encoders import ENCODERS
from batchscore.models.spec import Row

ARCHITECTURES: dict[str, Row] = {**ENCODERS}
