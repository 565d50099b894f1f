"""The Python face: `Scorer(model).score(queries, documents)`. The command line runs on the same object."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image
from typing_extensions import Unpack

from batchscore.engine.batcher import Batcher
from batchscore.engine.cache import EncodingCache, keys_of
from batchscore.engine.quantization import QuantizationError, measure
from batchscore.engine.ranking import rank_rows
from batchscore.engine.scheduler import plan_meetings
from batchscore.engine.setup import ScorerOptions, Setup, set_up
from batchscore.errors import InputError, RuntimeFailureError, UsageError, naming_keywords
from batchscore.media.content import read_cell
from batchscore.media.faults import MediaError
from batchscore.media.find import MediaFinder
from batchscore.media.policy import MediaPolicy
from batchscore.runners.build import vector_width
from batchscore.types import (
    SIDES,
    Cell,
    Cells,
    Content,
    Encodings,
    Faults,
    Outcome,
    Pairs,
    Side,
    cell_bytes,
    row_faults,
)

__all__ = ["Ranked", "Scorer", "ScorerOptions", "Setup", "set_up", "vector_width"]

Input = Any  # a query or document: a string, or what `Scorer.score` says
_FORMS = 'a text is a string; with media it is {"content": [parts]}, {"text": ..., "image": ...}, or a PIL image'
_LARGE_OUTPUTS = 1024  # held together, of 30,000 numbers or more each
# Of texts whose matrices are held together, some 130,000 tokens: a side's characters, and what a short text or an image
# at least costs, since a query may be filled up and an image has many vectors.
_GROUP_CHARS, _LEAST_CHARS, _IMAGE_CHARS = 2**19, 128, 4_096


@dataclass(frozen=True, slots=True)
class Ranked:
    """One document of a query in rank order."""

    index: int  # position in the documents passed in, from 0
    relevance_score: float
    document: Cell  # as it was passed in


class Scorer:
    """A model loaded for scoring; options are those of the command line, under the same names.

    Args:
        model: a checkpoint folder or a hub id, or what `set_up` made of it and the options.
        cache_mb: memory for vectors of texts and logits of pairs that come back in a later window or call; 0 keeps
            none. They need no tokenizer then, either. Late interaction keeps none beyond a call.
        media_root: folder below which images and videos that are named by a path must lie, and at which relative paths
            begin; None: the working directory.
        allow_remote_media: fetch images and videos that http and https URLs name.
        allowed_media_domains: fetch them from these hosts only.
        score_type: "auto" decides from the checkpoint's files.
        dtype: of the model body; "auto" is bfloat16 where the hardware multiplies it natively, else float32.
        quantize: "int8" multiplies in eight bits in the linear layers of the body, on a CPU with VNNI or AMX or on a
            GPU; `quantization_error` measures what that does to scores.
        device: "auto", "cpu", "cuda" or "cuda:N".
        config: a YAML file, or the name of a shipped one; None takes the shipped one that lists this hub id.
        batch_tokens: tokens of a pack; None fits the device.
        window_rows: rows tokenized and sorted together.
        revision: of a hub id.
        tokenizer: a folder or hub id with another tokenizer than the model's.
        trust_remote_code: run Python files of the checkpoint.
        media_mb: memory for pixels that wait for the model, and again for what it saw in images that come back.
        padded: run padded batches through transformers' own attention, to compare.
        options: what the model reads and how its score is made; None takes the checkpoint's own. These are
            max_length (or max_model_len), truncation, truncation_side, truncate_prompt_tokens, max_tokens_per_query,
            max_tokens_per_doc, chat_template, instruction, query_prompt, document_prompt, query_prompt_name,
            document_prompt_name, no_prompts, query_length, document_length, hf_overrides, pooler_config, convert,
            use_activation, dimensions, similarity, task, compat, image_backend, mm_processor_kwargs, max_pixels and
            limit_mm_per_prompt.

    Raises:
        BatchscoreError: the model cannot be found or used, or an option does not fit it.
    """

    @naming_keywords()
    def __init__(
        self,
        model: str | Setup,
        *,
        cache_mb: int = 256,
        media_root: str | None = None,
        allow_remote_media: bool = False,
        allowed_media_domains: Sequence[str] = (),
        **options: Unpack[ScorerOptions],
    ) -> None:
        if cache_mb < 0:
            raise UsageError(f"cache_mb {cache_mb} is less than 0")
        policy = MediaPolicy(media_root or ".", allow_remote_media, tuple(allowed_media_domains))
        self._finder = MediaFinder(policy)
        self.setup = model if isinstance(model, Setup) else set_up(model, **options)
        self.checkpoint, self.spec = self.setup.checkpoint, self.setup.spec
        self.placement, self.budget = self.setup.placement, self.setup.budget
        self.batcher = Batcher(self.setup)
        self._cache = EncodingCache(cache_mb * 2**20)

    @naming_keywords()
    def score(self, queries: Input | Iterable[Input], documents: Input | Iterable[Input]) -> NDArray[np.float32]:
        """Score 1:1, 1:N or N:N queries and documents.

        Each is a string, or has media: `{"content": [parts]}` with the parts of the scoring API, `{"text": ...,
        "image": ..., "video": ...}`, a list of parts (inside a list), or a PIL image. A string is always a text.

        Returns:
            float32 [N], in the documents' order.

        Raises:
            UsageError: other shapes, an empty list, something that is neither.
            InputError: an image or a pair that cannot be read; the message says which.
            RuntimeFailureError: a pair whose score is not a number, or that no memory is large enough for.
        """
        pairs = _pair_up(self._cells(queries, "queries"), self._cells(documents, "documents"))
        return self.batcher.activate(self._raw_scores(pairs))[:, 0]

    @naming_keywords()
    def rerank(self, query: Input, documents: Iterable[Input], top_n: int = 0) -> list[Ranked]:
        """Documents by descending score, equal scores in the order given; at most `top_n` of them, 0 for all.

        Raises:
            UsageError: there is not one query, the list is empty, top_n is negative.
            InputError, RuntimeFailureError: as `score`.
        """
        if not _is_one(query):
            raise UsageError(f"rerank takes one query as a string, not {type(query).__name__}")
        if top_n < 0:
            raise UsageError(f"top_n {top_n} is negative; 0 keeps all documents")
        pairs = _pair_up(self._cells(query, "query"), self._cells(documents, "documents"))
        raw = self._raw_scores(pairs)
        score = self.batcher.activate(raw)[:, 0]
        rows, _ = rank_rows(np.zeros(len(pairs), np.int32), np.arange(len(pairs)), raw[:, 0], top_n)
        values, codes = pairs.documents.values, pairs.documents.codes
        return [Ranked(int(row), float(score[row]), values[codes[row]]) for row in rows]

    @naming_keywords()
    def encode(
        self, texts: Input | Iterable[Input], side: Side = "document"
    ) -> NDArray[np.float32] | list[NDArray[np.float32]]:
        """Encode texts by themselves: what scores are made of, with the prompt and the limits of their side.

        Args:
            texts: one or several, or what `score` takes in their place; equal ones are encoded once.
            side: "query" or "document".

        Returns:
            float32 [n, dim] in the order given, of a bi-encoder; of a late interaction model a list of n float32
            [tokens, dim], with the tokens that count.

        Raises:
            UsageError: the model is a cross-encoder; as `score`.
            InputError: a text that the model cannot read; the message says which.
            RuntimeFailureError: a text whose encoding is not made of numbers, or that no memory is large enough for.
        """
        if side not in SIDES:
            raise UsageError(f"side {side!r} is unknown; choices: {', '.join(SIDES)}")
        listed = Cells.of(self._cells(texts, "texts"))
        parts: list[Encodings] = []
        for start in range(0, len(listed.values), self.budget.window_rows):
            parts.append(self._encoded(listed.values[start : start + self.budget.window_rows], side))
            faults = {start + text: fault for text, fault in parts[-1].faults.items()}
            _raise_first("texts[{}]", row_faults(faults, listed.codes))
        encodings = Encodings.concat(parts).take(listed.codes)
        vectors = encodings.float32
        return vectors if self.spec.score_type == "bi-encoder" else np.split(vectors, encodings.offsets[1:-1])

    @naming_keywords()
    def quantization_error(
        self, queries: Input | Iterable[Input], documents: Input | Iterable[Input]
    ) -> QuantizationError | None:
        """How far scores are from those of the same model without `quantize`, which is loaded for that time.

        Queries and documents are those of `score`; at most 256 distinct pairs of them are scored by both models.

        Returns:
            None if no pair can be scored.

        Raises:
            UsageError: the model is not quantized; as `score`.
        """
        if self.placement.quantize == "none":
            raise UsageError("the model is not quantized", hint='pass quantize="int8"')
        return measure(self.batcher, _pair_up(self._cells(queries, "queries"), self._cells(documents, "documents")))

    def _cells(self, values: Input | Iterable[Input], name: str) -> list[Cell]:
        """What a caller passed as `name`; UsageError as `score`."""
        if not (_is_one(values) or isinstance(values, Iterable)):
            raise UsageError(f"{name} is {type(values).__name__}, not a string or a list of strings")
        listed = [values] if _is_one(values) else list(values)
        if not listed:
            raise UsageError(f"{name} is empty; at least one text must be given")
        cells = []
        for position, value in enumerate(listed):
            cells.append(value if isinstance(value, str) else self._cell(value, f"{name}[{position}]"))
            try:
                cell_bytes(cells[-1])
            except UnicodeEncodeError as error:
                raise UsageError(
                    f"{name}[{position}] has half of a surrogate pair at character {error.start}, which is not text"
                ) from error
        return cells

    def _cell(self, value: Any, name: str) -> Cell:
        """What is no string."""
        if value is None or isinstance(value, bool | int | float | bytes | PathLike):
            raise UsageError(f"{name} is {type(value).__name__}, not a string", hint=_FORMS)
        try:
            return read_cell(value, self._finder)
        except MediaError as error:
            kind = InputError if error.fault.code.startswith("media-") else UsageError
            raise kind(f"{name} {error.fault.message}", hint=error.fault.hint) from error

    def _raw_scores(self, pairs: Pairs) -> NDArray[np.float32]:
        """float32 [pairs, k], a window at a time; a listwise model reads all documents of a query together."""
        if self.spec.score_type == "late-interaction":
            return self._scores_of_matrices(pairs)
        size = len(pairs) if self.spec.listwise else self.budget.window_rows
        is_encoded = self.spec.score_type == "bi-encoder"
        if is_encoded and self.batcher.has_large_outputs:
            size = min(size, _LARGE_OUTPUTS)
        score = self._score_encoded if is_encoded else self._score_together
        raw = []
        for start in range(0, len(pairs), size):
            outcome = score(pairs.rows(slice(start, start + size)))
            _raise_first("pair {}", {start + row: fault for row, fault in outcome.faults.items()})
            raw.append(outcome.raw)
        return np.concatenate(raw)

    def _score_encoded(self, pairs: Pairs) -> Outcome:
        """Score a window from encodings of its texts."""
        queries = self._encoded(pairs.queries.values, "query")
        documents = self._encoded(pairs.documents.values, "document")
        return self.batcher.compare(queries, documents, pairs.queries.codes, pairs.documents.codes)

    def _scores_of_matrices(self, pairs: Pairs) -> NDArray[np.float32]:
        """float32 [pairs, k] of late interaction, whose matrices are made group by group and kept no longer."""
        raw = np.empty((len(pairs), self.batcher.num_scores), np.float32)
        sides = pairs.queries, pairs.documents
        least = max(_LEAST_CHARS, _GROUP_CHARS // self.budget.window_rows)
        sizes = [np.array([max(least, _chars(cell)) for cell in side.values], np.int64) for side in sides]
        outer, meetings = plan_meetings((sides[0].codes, sides[1].codes), (sizes[0], sizes[1]), _GROUP_CHARS)
        group, held = None, Encodings.concat([])
        for place, rows in meetings:
            if place != group:
                group, held = place, self._encoded(sides[outer].values[place], SIDES[outer])
            others = sides[1 - outer].rows(rows)
            found = self._encoded(others.values, SIDES[1 - outer])
            both = (held, sides[outer].codes[rows] - place.start), (found, others.codes)
            (queries, left), (documents, right) = both[::-1] if outer else both
            outcome = self.batcher.compare(queries, documents, left, right)
            _raise_first("pair {}", {int(rows[row]): fault for row, fault in outcome.faults.items()})
            raw[rows] = outcome.raw
        return raw

    def _encoded(self, texts: Sequence[Cell], side: Side) -> Encodings:
        """The encodings of distinct texts."""

        def make(places: NDArray[np.int64]) -> Encodings:
            return self.batcher.encode(self.batcher.lay_out([texts[place] for place in places], side), side)

        if self.spec.score_type != "bi-encoder":
            return make(np.arange(len(texts)))
        return self._cache.complete(keys_of(texts, side), make)

    def _score_together(self, pairs: Pairs) -> Outcome:
        """Score a window of pairs; those of a cross-encoder are kept."""

        def make(rows: NDArray[np.int64]) -> Encodings:
            work = self.batcher.tokenize(pairs.rows(rows))
            outcome = self.batcher.score(work)
            return Encodings(outcome.raw, np.arange(len(rows) + 1), work.row_tokens(), work.cut, outcome.faults)

        if self.spec.listwise:
            found = make(np.arange(len(pairs)))
        else:
            queries, documents = keys_of(pairs.queries.values, "query"), keys_of(pairs.documents.values, "document")
            codes = zip(pairs.queries.codes.tolist(), pairs.documents.codes.tolist(), strict=True)
            found = self._cache.complete([queries[left] + documents[right] for left, right in codes], make)
        return Outcome(found.values, found.faults)

    def close(self) -> None:
        """Stop the workers; packs that have not begun are dropped."""
        self.batcher.close()

    def __enter__(self) -> Scorer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _chars(cell: Cell) -> int:
    """What reading a query or document costs, in characters of text."""
    return len(cell) if isinstance(cell, str) else len(cell.text) + _IMAGE_CHARS * len(cell.media)


def _raise_first(place: str, faults: Faults) -> None:
    """Raise the error of the first fault, if there is one."""
    for number in sorted(faults)[:1]:
        fault = faults[number]
        error = RuntimeFailureError if fault.is_models else InputError
        raise error(f"{place.format(number)}: {fault.message}", hint=fault.hint)


def _is_one(value: Any) -> bool:
    """Whether something is one query or document, and not several."""
    if isinstance(value, np.ndarray):
        return value.dtype == np.uint8 and value.ndim in (2, 3)
    return isinstance(value, str | Mapping | Content | Image)


def _pair_up(queries: list[Cell], documents: list[Cell]) -> Pairs:
    if len(queries) not in {1, len(documents)}:
        raise UsageError(
            f"{len(queries)} queries and {len(documents)} documents; lengths must be 1:1, 1:N or N:N",
            hint="to score every query against every document, repeat both lists",
        )
    encoded = Cells.of(queries)
    if len(queries) > 1:
        return Pairs(encoded, Cells.of(documents))
    together = np.zeros(len(documents), np.int32)
    return Pairs(Cells(encoded.values, together), Cells.of(documents), lists=together)
