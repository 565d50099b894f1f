"""A run before it starts, and its record afterwards: one JSON-able description, and the lines a person reads.

The record lies beside the output as OUT.run.json. Months later it says which model, prompts, limits and versions gave
these scores.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from functools import cached_property
from typing import Any

from batchscore.errors import Errors
from batchscore.io.units import Unit
from batchscore.jobs.blocks import Blocks
from batchscore.jobs.commands import Command
from batchscore.jobs.options import EncodeChoice
from batchscore.jobs.parts import Parts, encoding_fingerprint
from batchscore.jobs.room import Room
from batchscore.jobs.shards import Shard
from batchscore.media.policy import MediaPolicy
from batchscore.models.heads import value_range
from batchscore.models.open import pinned_options
from batchscore.models.weights import identity, weight_files
from batchscore.resources import installed_version
from batchscore.scorer import Setup

_PACKAGES = ("batchscore", "torch", "transformers", "tokenizers", "pyarrow", "numpy")


@dataclass(frozen=True)
class Plan:
    """Everything that decides the scores."""

    setup: Setup
    command: Command
    errors: Errors
    encode: EncodeChoice
    inputs: Sequence[Mapping[str, Any]]  # name, bytes and time of each file
    output: str
    scorer: Mapping[str, Any]  # keywords of Scorer, as the user gave them
    media: MediaPolicy
    others: Sequence[Setup] = ()  # of a job with requests for several models

    @property
    def setups(self) -> Sequence[Setup]:
        """All models."""
        return self.setup, *self.others

    @cached_property
    def fingerprint(self) -> dict[str, Any]:
        """What must be equal for parts of two runs to belong to one job: JSON-able.

        The device and the budget are left out, so that different machines can work on one job. The dtype is in, because
        scores show it; so are the rows of a unit, because units would begin elsewhere, and which media may be read,
        because the same row would be bad in one unit and good in another.
        """
        return {
            "command": self.command.name,
            **_identity(self.setup),
            **({"others": [_identity(setup) for setup in self.others]} if self.others else {}),
            "dtype": self.setup.placement.dtype,
            **({} if self.setup.placement.quantize == "none" else {"quantize": self.setup.placement.quantize}),
            "options": asdict(self.command),  # type: ignore[call-overload]
            "errors": self.errors,
            "encode": self.encode,
            "unit_rows": self.setup.budget.window_rows,
            "inputs": list(self.inputs),
            "media": asdict(self.media),
        }

    def encoding_fingerprint(self, side: str) -> dict[str, Any]:
        """As the function of this name has it from the fingerprint of a job."""
        return encoding_fingerprint(self.fingerprint, side)

    @property
    def pinned_scorer(self) -> dict[str, Any]:
        """Keywords by which another process has the same Scorer.

        They fix what could differ there: the dtype, since `auto` depends on the machine, the commit of a hub id, since
        its branch may have moved on, and the date that a template prints.
        """
        return self._pinned(self.setup)

    @property
    def pinned_others(self) -> list[dict[str, Any]]:
        """The same of the other models."""
        return [{**self._pinned(setup), "model": setup.checkpoint.name} for setup in self.others]

    def _pinned(self, setup: Setup) -> dict[str, Any]:
        pinned = pinned_options(setup.checkpoint, setup.spec)
        return {**self.scorer, "dtype": setup.placement.dtype, **pinned}

    def describe(self) -> dict[str, Any]:
        """JSON-able."""
        setup = self.setup
        return {
            "command": self.command.name,
            "model": setup.checkpoint.name,
            **({"others": [other.checkpoint.name for other in self.others]} if self.others else {}),
            "weights": [{"name": path.name, "bytes": path.stat().st_size} for path in weight_files(setup.checkpoint)],
            "spec": setup.spec.describe(),
            "score_range": self._score_range(),
            "placement": asdict(setup.placement),
            "budget": asdict(setup.budget),
            "options": {**self.scorer, **asdict(self.command)},  # type: ignore[call-overload]
            "inputs": list(self.inputs),
            "output": self.output,
            "versions": {
                "python": platform.python_version(),
                **{name: installed_version(name) for name in _PACKAGES},
            },
        }

    def lines(self) -> list[str]:
        """What a person reads before the run."""
        spec, sources, placement = self.setup.spec, self.setup.spec.sources, self.setup.placement
        texts = ("query", spec.query_prompt), ("document", spec.document_prompt), ("instruction", spec.instruction)
        prompts = [f"{side} {text!r}" for side, text in texts if text]
        if spec.chat_template:
            prompts.append(f"a template ({sources['chat_template']})")
        if spec.marks:
            prompts.append(f"ColBERT marks {spec.marks.query!r}, {spec.marks.document!r} ({sources['marks']})")
        if spec.reads_like_vllm:
            prompts.append("as vLLM reads it (--compat vllm)")
        return [
            *(f"model    {one.checkpoint.name}: {one.spec.score_type}, {one.spec.architecture}" for one in self.setups),
            f"score    {self._score_meaning()}, {self._score_range()}",
            f"length   {spec.max_length} tokens ({sources['max_length']}), truncation {spec.truncation}",
            *([f"prompts  {', '.join(prompts)}"] if prompts else []),
            f"device   {placement.device} ({placement.device_name}), {placement.numbers} ({placement.dtype_reason})",
        ]

    def record(self, counts: Mapping[str, Any], over_time: Mapping[str, Any]) -> dict[str, Any]:
        """JSON-able: the description, the counts, and the fingerprint by which a later run recognises its job."""
        finished = datetime.now(timezone.utc).isoformat(timespec="seconds")
        return {
            **self.describe(),
            "counts": dict(counts),
            "finished": finished,
            "fingerprint": self.fingerprint,
            "over_time": dict(over_time),
        }

    def _score_range(self) -> str:
        return value_range(self.setup.spec.activation, self.setup.spec.similarity)

    def _score_meaning(self) -> str:
        spec = self.setup.spec
        if spec.score_type != "cross-encoder":
            return f"{spec.similarity} of {'+'.join(spec.pooling) or 'token'} vectors"
        return f"{spec.activation.rsplit('.', 1)[-1].lower()} of the logit ({spec.sources['activation']})"


def _identity(setup: Setup) -> dict[str, Any]:
    """JSON-able: what a model means, and which files it is read from."""
    return {
        "model": {name: field["value"] for name, field in setup.spec.describe().items()},
        "files": identity(setup.checkpoint, with_code=setup.trust_remote_code),
    }


def share_lines(
    inputs: Sequence[Mapping[str, Any]], parts: Parts, todo: Sequence[Unit], shard: Shard, *, is_dynamic: bool
) -> list[str]:
    """What a person reads about the input, this process's share of it, and how much of that is left to do."""
    rows, units, left = parts.rows, len(parts.units), sum(unit.rows for unit in todo)
    files, formats = len(inputs), sorted({file["format"] for file in inputs if "format" in file})
    read_as = f" ({', '.join(formats)})" if formats else ""
    lines = [
        f"input    {files} file{'s' * (files != 1)}{read_as}, {rows:,} rows in {units:,} unit{'s' * (units != 1)}",
        f"encode   each text once a {'job' if parts.encode == 'once' else 'unit'}: {parts.encode_reason}",
    ]
    if shard.count > 1 or is_dynamic:
        how = "claimed one at a time" if is_dynamic else f"one unit in {shard.count}"
        lines.append(f"share    shard {shard} ({shard.origin}), {how}")
    if left < rows:
        lines.append(f"to do    {left:,} rows in {len(todo):,} units")
    return lines


def text_line(blocks: Blocks, rows: int, room: Room) -> str:
    """What a person reads about the texts of a job that encodes them once."""
    size, count = room.needed(blocks.blocks), len(blocks.groups)
    groups = f" in {count} groups of at most {room.limit / 1e9:.3g} GB" if count > 1 else ""
    return f"texts    {blocks.num_texts:,} distinct texts in {rows:,} rows: encoded once, {size / 1e6:,.0f} MB{groups}"
