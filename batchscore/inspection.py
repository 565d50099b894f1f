"""Find out what a model would do, without its weights.

It shows the spec and the source of each field, the tokens of a sample pair and of an image, the tensors that would be
read, and the errors that a run would meet.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np

from batchscore.errors import BatchscoreError, InputError
from batchscore.media.faults import MediaError
from batchscore.media.find import MediaFinder
from batchscore.media.policy import MediaPolicy
from batchscore.models.arch import ARCHITECTURES, supported
from batchscore.models.arch.entry import Architecture
from batchscore.models.heads import value_range
from batchscore.models.load import LoadedModel, load_model
from batchscore.models.open import open_model
from batchscore.models.text.sides import InputReader
from batchscore.models.vision.reader import MediaReader
from batchscore.models.weights import UncheckedError
from batchscore.runners.build import input_reader, runner_kind
from batchscore.types import Cells, Content, Pairs

_PAGE = (850, 1100)  # pixels: a letter at 100 dots an inch
_OF_FILES = ("config", "revision", "tokenizer", "trust_remote_code")  # options that say what is read


@dataclass
class Inspection:
    """JSON-able findings about a model, and the errors a run would meet."""

    model: str
    findings: dict[str, Any] = field(default_factory=dict)
    problems: list[BatchscoreError] = field(default_factory=list)

    @contextmanager
    def noting_problems(self) -> Iterator[None]:
        """A block that an error ends, without ending the inspection."""
        try:
            yield
        except BatchscoreError as error:
            self.problems.append(error)

    def describe(self) -> dict[str, Any]:
        """Everything, for --json."""
        problems = [{"message": problem.message, "hint": problem.hint} for problem in self.problems]
        return {"model": self.model, **self.findings, "problems": problems}


def inspect_model(
    model: str, options: Mapping[str, Any], *, query: str, document: str, image: str | None = None
) -> Inspection:
    """Open a model as a run would, but load zeros instead of its weights.

    Args:
        model: folder or hub id.
        options: as Scorer takes them, of those that say what the model is and how it reads.
        query, document: the sample pair.
        image: file of a document's image; None: a page is made up, if the model reads images.
    """
    inspection = Inspection(model)
    findings = inspection.findings
    settings = {name: value for name, value in options.items() if name not in _OF_FILES}
    if settings.get("score_type") == "auto":
        settings["score_type"] = None
    trust_remote_code = bool(options.get("trust_remote_code"))
    loaded: LoadedModel | None = None
    with inspection.noting_problems():
        location = {name: options.get(name) for name in ("config", "revision", "tokenizer")}
        checkpoint, spec = open_model(model, options=settings, **location)
        findings |= {
            "spec": spec.describe(),
            "score_range": value_range(spec.activation, spec.similarity),
            "listed": spec.architecture in ARCHITECTURES,
        }
        reader = input_reader(checkpoint, spec, trust_remote_code=trust_remote_code)
    if inspection.problems:
        return inspection
    with inspection.noting_problems():
        try:
            loaded = load_model(checkpoint, spec, reader.tokenizer, dtype="float32", device="cpu", dry=True)
            findings["tensors"] = {kind: list(names) for kind, names in loaded.report.items()}
        except UncheckedError as error:
            findings["tensors_unchecked"] = error.message
    with inspection.noting_problems():
        findings |= _sample(reader, loaded, Pairs(Cells.of([query]), Cells.of([document])))
    with inspection.noting_problems():
        if reader.media is not None:
            findings["media"] = _image_sample(reader, reader.media, query, image)
    return inspection


def _image_sample(reader: InputReader, media: MediaReader, query: str, image: str | None) -> dict[str, Any]:
    """How the model reads an image, as a document by itself or beside the query."""
    finder = MediaFinder(MediaPolicy(root=os.path.dirname(os.path.abspath(image)) if image else None))
    try:
        found = finder.image(os.path.abspath(image) if image else np.full((*_PAGE[::-1], 3), 255, np.uint8))
    except MediaError as error:
        raise InputError(f"{image}: {error.fault.message}", hint=error.fault.hint) from error
    cell = Content((found,))
    if reader.spec.score_type == "cross-encoder":
        work = reader.pair_work(Pairs(Cells.of([query]), Cells.of([cell])))
    else:
        work = reader.side_work([cell], "document")
    for fault in work.faults.values():
        raise InputError(f"the sample image: {fault.message}", hint=fault.hint)
    (visual,) = media.planned(cell)
    return {
        "image": image or "a blank page",
        "size": [found.width, found.height],
        **media.describe(visual),
        "placeholder": media.placeholder(found),
        "sequence": len(work.items.ids),
        "tokens_around": reader.tokenizer.describe(work.items.ids[work.items.filled("media") == 0].tolist()),
        "backend": reader.spec.image_backend,
        "frames": media.sampling,
    }


def _sample(reader: InputReader, loaded: LoadedModel | None, pairs: Pairs) -> dict[str, Any]:
    """The prompt and the token ids the model would read for a pair."""
    # `sequences` needs no weights; `tokenize` also checks that the model has a vector for each token
    spec, tokenizer = reader.spec, reader.tokenizer
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
    return {"prompt": _prompts(reader, pairs), "sample": sequences}


def _prompts(reader: InputReader, pairs: Pairs) -> dict[str, str]:
    """The texts that are tokenized, by side, or of the pair."""
    spec, template = reader.spec, reader.template
    texts = {side: str(cells.values[0]) for side, cells in pairs.sides.items()}
    prompts = {"query": spec.query_prompt, "document": spec.document_prompt}
    if template is not None and spec.score_type != "cross-encoder":
        instruct = template.reads_instruction
        return {
            side: "".join(
                template.render_side(side, text, text, "", prompts[side])
                if instruct
                else template.render_side(side, prompts[side] + text, prompts[side] + text, "", "")
            )
            for side, text in texts.items()
        }
    query, document = (prompts[side] + text for side, text in texts.items())
    if template is None:
        return {"query": query, "document": document}
    pieces = template.render_list(query, [document]) if spec.listwise else template.render(query, document)
    return {"pair": "".join(pieces)}


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
