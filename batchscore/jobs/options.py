"""What a run does besides the command and the model: flags of the command line, under the same names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from batchscore.errors import Errors
from batchscore.io.forms import InFormat, Lines, OutFormat
from batchscore.media.policy import MediaPolicy

EncodeChoice = Literal["auto", "once", "unit"]
SAMPLE_ROWS, PROBE_SECONDS = 4_096, 45.0  # that a plan tokenizes, and for which its probe runs the model


@dataclass(frozen=True, slots=True)
class JoinOptions:
    """Pairs of ids, and where their texts are."""

    run: str | None = None
    qrels: str | None = None
    all_pairs: bool = False
    queries: Sequence[str] | None = None
    corpus: Sequence[str] | None = None
    depth: int | None = None

    @property
    def is_used(self) -> bool:
        """Whether any of them is given."""
        return self != JoinOptions()


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What a run reads and writes, and which part of the job it does where."""

    inputs: Sequence[str]
    out: str
    in_format: InFormat | Lines = "auto"
    out_format: OutFormat | Lines = "auto"
    run_tag: str | None = None
    split: str | None = None
    hive: bool = True
    media_root: str | None = None  # None: of each file that names media, its folder
    allow_remote_media: bool = False
    allowed_media_domains: Sequence[str] | None = None
    overwrite: bool = False
    merge: bool = False
    errors: Errors = "quarantine"
    max_errors: str | None = None
    encode: EncodeChoice = "auto"
    encodings_gb: float | None = None
    store: Sequence[str] | None = None  # at most one folder, and files of encodings
    shard: str | None = None
    claim: Literal["static", "dynamic"] = "static"
    devices: str | None = None
    max_restarts: int = 3
    engine: Literal["local", "ray"] = "local"
    ray_address: str | None = None
    join: JoinOptions = JoinOptions()

    @property
    def media(self) -> MediaPolicy:
        """Which media the rows may name."""
        return MediaPolicy(self.media_root, self.allow_remote_media, tuple(self.allowed_media_domains or ()))

    @property
    def is_dynamic(self) -> bool:
        """Whether units are claimed one at a time."""
        return self.claim == "dynamic"
