"""Find out what a model would do, without its weights.

It shows the spec and the source of each field, the tokens of a sample pair, the tensors that would be read, and the
errors that a run would meet.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np

from batchscore.errors import BatchscoreError, InputError
from batchscore.models.arch import ARCHITECTURES, supported
from batchscore.models.arch.entry import Architecture
from batchscore.models.heads import value_range
from batchscore.models.load import LoadedModel, load_model
from batchscore.models.open import open_model
from batchscore.models.text.sides import InputReader
from batchscore.models.weights import UncheckedError
from batchscore.runners.build import input_reader, runner_kind
from batchscore.types import Cells, Pairs


@dataclass
class Inspection:
    """JSON-able findings about a model, and the errors a run would meet."""

    model: str
    findings: dict[str, Any] = field(default_factory=dict)
    problems: list[BatchscoreError] = field(default_factory=list)

    def describe(self) -> dict[str, Any]:
        """Everything, for --json."""
        problems = [{"message": problem.message, "hint": problem.hint} for problem in self.problems]
        return {"model": self.model, **self.findings, "problems": problems}


def inspect_model(
    model: str, options: Mapping[str, Any], *, query: str, document: str, trust_remote_code: bool = False
) -> Inspection:
    """Open a model as a run would, but load zeros instead of its weights.

    Args:
        model: folder or hub id.
        options: as Scorer takes them, config, revision and tokenizer among them.
        query, document: the sample pair.
        trust_remote_code: as Scorer takes it.
    """
    inspection = Inspection(model)
    location = {name: options.get(name) for name in ("config", "revision", "tokenizer")}
    settings = {name: value for name, value in options.items() if name not in location}
    try:
        checkpoint, spec = open_model(model, options=settings, **location)
        inspection.findings |= {
            "spec": spec.describe(),
            "score_range": value_range(spec.activation, spec.similarity),
            "listed": spec.architecture in ARCHITECTURES,
        }
        reader = input_reader(checkpoint, spec, trust_remote_code=trust_remote_code)
    except BatchscoreError as error:
        inspection.problems.append(error)
        return inspection
    loaded: LoadedModel | None = None
    try:
        loaded = load_model(checkpoint, spec, reader.tokenizer, dtype="float32", device="cpu", dry=True)
        inspection.findings["tensors"] = {kind: list(names) for kind, names in loaded.report.items()}
    except UncheckedError as error:
        inspection.findings["tensors_unchecked"] = error.message
    except BatchscoreError as error:
        inspection.problems.append(error)
    pairs = Pairs(Cells.of([query]), Cells.of([document]))
    try:
        inspection.findings |= _sample(reader, loaded, pairs)
    except BatchscoreError as error:
        inspection.problems.append(error)
    return inspection


def _sample(reader: InputReader, loaded: LoadedModel | None, pairs: Pairs) -> dict[str, Any]:
    """The prompt and the token ids the model would read for a pair."""
    # `sequences` needs no weights; `tokenize` also checks that the model has a vector for each token
    spec, tokenizer, template = reader.spec, reader.tokenizer, reader.template
    engine = runner_kind(spec)(reader, cast("LoadedModel", loaded), "cpu", None)
    work = engine.sequences(pairs) if loaded is None else engine.tokenize(pairs)
    for fault in work.faults.values():
        raise InputError(f"the sample pair: {fault.message}", hint=fault.hint)
    items = work.items
    sides = ["query", "document"] if len(items) == 2 else ["pair"]
    sequences = []
    for index, side in enumerate(sides):
        item = items.take(np.array([index]))
        ids = item.ids.tolist()
        sequence: dict[str, Any] = {"side": side, "ids": ids, "tokens": tokenizer.describe(ids)}
        if "keep" in item.columns:
            sequence["counted"] = item.columns["keep"].tolist()
        sequences.append(sequence)
    query = f"{spec.query_prompt}{pairs.queries.values[0]}"
    document = f"{spec.document_prompt}{pairs.documents.values[0]}"
    prompt = {"query": query, "document": document}
    if template is not None and spec.score_type == "cross-encoder":
        pieces = template.render_list(query, [document]) if spec.listwise else template.render(query, document)
        prompt = {"pair": "".join(pieces)}
    return {"prompt": prompt, "sample": sequences}


def architecture_table() -> list[dict[str, str]]:
    """A line for each architecture in the registry."""
    return [
        {
            "architecture": name,
            "score type": architecture.score_type,
            "read at": _readout(architecture),
            "published as": architecture.hub,
        }
        for name, architecture in supported().items()
    ]


def _readout(architecture: Architecture) -> str:
    if architecture.listwise:
        return "marked tokens"
    return "every token" if architecture.score_type == "late-interaction" else architecture.pooling
