"""A run before it starts, and its record after it: one JSON-able description, and the lines a person reads.

The record stands beside the output as OUT.run.json: months later it answers which model, prompts, limits and versions
gave these scores.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from batchscore.errors import Errors
from batchscore.jobs.commands import Command
from batchscore.models.heads import value_range
from batchscore.scorer import Setup

_PACKAGES = ("batchscore", "torch", "transformers", "tokenizers", "pyarrow", "numpy")


@dataclass(frozen=True)
class Plan:
    """Everything that decides the scores."""

    command: str
    setup: Setup
    job: Command
    errors: Errors
    inputs: Sequence[Mapping[str, Any]]  # name, bytes and time of each file
    output: str
    options: Mapping[str, Any]  # of the scorer, as given

    @cached_property
    def fingerprint(self) -> dict[str, Any]:
        """What must be equal for parts of two runs to belong together: JSON-able.

        Not in it are the device and how much is processed at once, so that different machines may work on one job; the
        dtype is, because it can be seen in the scores.
        """
        return {
            "command": self.command,
            "model": {name: field["value"] for name, field in self.setup.spec.describe().items()},
            "files": self.setup.checkpoint.identity(with_code=self.setup.trust_remote_code),
            "dtype": self.setup.placement.dtype,
            "options": asdict(self.job),  # type: ignore[call-overload]
            "errors": self.errors,
            "window_rows": self.setup.budget.window_rows,
            "inputs": list(self.inputs),
        }

    def describe(self) -> dict[str, Any]:
        """JSON-able."""
        setup = self.setup
        return {
            "command": self.command,
            "model": setup.checkpoint.name,
            "weights": [{"name": path.name, "bytes": path.stat().st_size} for path in setup.checkpoint.weight_files()],
            "spec": setup.spec.describe(),
            "score_range": self._score_range(),
            "placement": asdict(setup.placement),
            "budget": asdict(setup.budget),
            "options": {**self.options, **asdict(self.job)},  # type: ignore[call-overload]
            "inputs": list(self.inputs),
            "output": self.output,
            "versions": {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}},
        }

    def lines(self) -> list[str]:
        """For a person, before the run."""
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
            f"model    {self.setup.checkpoint.name}: {spec.score_type}, {spec.architecture}",
            f"score    {self._score_meaning()}, {self._score_range()}",
            f"length   {spec.max_length} tokens ({sources['max_length']}), truncation {spec.truncation}",
            *([f"prompts  {', '.join(prompts)}"] if prompts else []),
            f"device   {placement.device} ({placement.device_name}), {placement.dtype} ({placement.dtype_reason})",
        ]

    def record(self, counts: Mapping[str, Any]) -> dict[str, Any]:
        """JSON-able: the description, what came of it, and the fingerprint by which a later run knows its own."""
        finished = datetime.now(timezone.utc).isoformat(timespec="seconds")
        return {**self.describe(), "counts": dict(counts), "finished": finished, "fingerprint": self.fingerprint}

    def _score_range(self) -> str:
        return value_range(self.setup.spec.activation, self.setup.spec.similarity)

    def _score_meaning(self) -> str:
        spec = self.setup.spec
        if spec.score_type != "cross-encoder":
            return f"{spec.similarity} of {'+'.join(spec.pooling) or 'token'} vectors"
        return f"{spec.activation.rsplit('.', 1)[-1].lower()} of the logit ({spec.sources['activation']})"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
