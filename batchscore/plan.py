"""A run before it starts, and its record after it: one JSON-able description, and the lines a person reads.

The record stands beside the output as OUT.run.json: months later it answers which model, prompts, limits and versions
gave these scores.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from batchscore.api import Scorer
from batchscore.models.heads import value_range

_PACKAGES = ("batchscore", "torch", "transformers", "tokenizers", "pyarrow", "numpy")


@dataclass(frozen=True)
class Plan:
    """Everything that decides the scores."""

    command: str
    scorer: Scorer
    inputs: Sequence[Mapping[str, Any]]  # name, bytes and time of each file
    num_rows: int | None
    output: str
    options: Mapping[str, Any]  # as given: of the scorer and of the command

    def describe(self) -> dict[str, Any]:
        """JSON-able."""
        scorer = self.scorer
        return {
            "command": self.command,
            "model": scorer.checkpoint.name,
            "weights": [{"name": path.name, "bytes": path.stat().st_size} for path in scorer.checkpoint.weight_files()],
            "spec": scorer.spec.describe(),
            "score_range": self._score_range(),
            "placement": asdict(scorer.placement),
            "budget": asdict(scorer.budget),
            "options": dict(self.options),
            "inputs": list(self.inputs),
            "output": self.output,
            "versions": {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}},
        }

    def lines(self) -> list[str]:
        """For a person, before the run."""
        spec, sources, placement = self.scorer.spec, self.scorer.spec.sources, self.scorer.placement
        texts = ("query", spec.query_prompt), ("document", spec.document_prompt), ("instruction", spec.instruction)
        prompts = [f"{side} {text!r}" for side, text in texts if text]
        if spec.chat_template:
            prompts.append(f"a template ({sources['chat_template']})")
        if spec.marks:
            prompts.append(f"ColBERT marks {spec.marks.query!r}, {spec.marks.document!r} ({sources['marks']})")
        if "compat vllm" in sources.values():
            prompts.append("as vLLM reads it (--compat vllm)")
        size = "rows unknown" if self.num_rows is None else f"{self.num_rows:,} rows"
        return [
            f"model    {self.scorer.checkpoint.name}: {spec.score_type}, {spec.architecture}",
            f"score    {self._score_meaning()}, {self._score_range()}",
            f"length   {spec.max_length} tokens ({sources['max_length']}), truncation {spec.truncation}",
            *([f"prompts  {', '.join(prompts)}"] if prompts else []),
            f"device   {placement.device} ({placement.device_name}), {placement.dtype} ({placement.dtype_reason})",
            f"input    {len(self.inputs)} file{'s' * (len(self.inputs) != 1)}, {size}",
        ]

    def write_record(self, counts: Mapping[str, Any]) -> str:
        """Write OUT.run.json and return its path."""
        path, finished = f"{self.output}.run.json", datetime.now(timezone.utc).isoformat(timespec="seconds")
        temporary = f"{path}.tmp-{os.getpid()}"
        with open(temporary, "w", encoding="utf-8") as file:
            json.dump(
                {**self.describe(), "counts": dict(counts), "finished": finished}, file, ensure_ascii=False, indent=2
            )
            file.write("\n")
        os.replace(temporary, path)
        return path

    def _score_range(self) -> str:
        return value_range(self.scorer.spec.activation, self.scorer.spec.similarity)

    def _score_meaning(self) -> str:
        spec = self.scorer.spec
        if spec.score_type != "cross-encoder":
            return f"{spec.similarity} of {'+'.join(spec.pooling) or 'token'} vectors"
        return f"{spec.activation.rsplit('.', 1)[-1].lower()} of the logit ({spec.sources['activation']})"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
