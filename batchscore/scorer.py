"""The Python face: `Scorer(model).score(queries, documents)`. The command line runs on the same object."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Unpack

from batchscore.engine.batcher import Batcher
from batchscore.engine.ranking import rank_rows
from batchscore.engine.setup import ScorerOptions, Setup, SetupOptions, set_up
from batchscore.errors import InputError, RuntimeFailureError, UsageError, naming_keywords
from batchscore.runners.build import vector_width
from batchscore.types import Pairs, Scores, Texts

__all__ = ["Ranked", "Scorer", "ScorerOptions", "Setup", "SetupOptions", "set_up", "vector_width"]


@dataclass(frozen=True, slots=True)
class Ranked:
    """One document of a query in rank order."""

    index: int  # position in the documents passed in, from 0
    relevance_score: float
    document: str


class Scorer:
    """A model loaded for scoring; options are those of the command line, under the same names.

    Args:
        model: a checkpoint folder or a hub id, or what `set_up` made of it and the options.
        score_type: "auto" decides from the checkpoint's files.
        dtype: of the model body; "auto" is bfloat16 where the hardware multiplies it natively, else float32.
        device: "auto", "cpu", "cuda" or "cuda:N".
        config: a YAML file, or the name of a shipped one; None takes the shipped one that lists this hub id.
        batch_tokens: tokens of a pack; None fits the device.
        window_rows: rows tokenized and sorted together.
        cache_mb: memory for outputs of texts or pairs that come back in a later window or call; 0 keeps none.
        revision: of a hub id.
        tokenizer: a folder or hub id with another tokenizer than the model's.
        trust_remote_code: run Python files of the checkpoint.
        padded: run padded batches through transformers' own attention, to compare.
        options: what the model reads and how its score is made; None takes the checkpoint's own. These are
            max_length (or max_model_len), truncation, truncation_side, truncate_prompt_tokens, max_tokens_per_query,
            max_tokens_per_doc, chat_template, instruction, query_prompt, document_prompt, query_prompt_name,
            document_prompt_name, no_prompts, query_length, document_length, hf_overrides, pooler_config, convert,
            use_activation, dimensions, similarity, task and compat.

    Raises:
        BatchscoreError: the model cannot be found or used, or an option does not fit it.
    """

    @naming_keywords()
    def __init__(self, model: str | Setup, **options: Unpack[ScorerOptions]) -> None:
        self.setup = model if isinstance(model, Setup) else set_up(model, **options)
        self.checkpoint, self.spec = self.setup.checkpoint, self.setup.spec
        self.placement, self.budget = self.setup.placement, self.setup.budget
        self.batcher = Batcher(self.setup)

    @naming_keywords()
    def score(self, queries: str | Sequence[str], documents: str | Sequence[str]) -> NDArray[np.float32]:
        """Score 1:1, 1:N or N:N queries and documents.

        Returns:
            float32 [N], in the documents' order.

        Raises:
            UsageError: other shapes, an empty list, something that is not a string.
            InputError: a pair that the model cannot read; the message says which.
            RuntimeFailureError: a pair whose score is not a number, or that no memory is large enough for.
        """
        pairs = _pair_up(_as_texts(queries, "queries"), _as_texts(documents, "documents"))
        return np.concatenate([scores.score[:, 0] for scores in self._windows(pairs)])

    @naming_keywords()
    def rerank(self, query: str, documents: Sequence[str], top_n: int = 0) -> list[Ranked]:
        """Documents by descending score, equal scores in the order given; at most `top_n` of them, 0 for all.

        Raises:
            UsageError: the query is not a string, the list is empty, top_n is negative.
            InputError, RuntimeFailureError: as `score`.
        """
        if not isinstance(query, str):
            raise UsageError(f"rerank takes one query as a string, not {type(query).__name__}")
        if top_n < 0:
            raise UsageError(f"top_n {top_n} is negative; 0 keeps all documents")
        pairs = _pair_up(_as_texts(query, "query"), _as_texts(documents, "documents"))
        windows = list(self._windows(pairs))
        score = np.concatenate([scores.score[:, 0] for scores in windows])
        rank_by = np.concatenate([scores.rank_by for scores in windows])
        rows, _ = rank_rows(np.zeros(len(pairs), np.int32), np.arange(len(pairs)), rank_by, top_n)
        values, codes = pairs.documents.values, pairs.documents.codes
        return [Ranked(int(row), float(score[row]), values[codes[row]]) for row in rows]

    def _windows(self, pairs: Pairs) -> Iterator[Scores]:
        """The scores of all pairs, a window at a time; a listwise model reads all documents of a query together."""
        size = len(pairs) if self.spec.listwise else self.budget.window_rows
        for start in range(0, len(pairs), size):
            work = self.batcher.tokenize(pairs.rows(slice(start, start + size)))
            outcome = self.batcher.score(work)
            for row, fault in sorted(outcome.faults.items()):
                error = RuntimeFailureError if fault.is_models else InputError
                raise error(f"pair {start + row}: {fault.message}", hint=fault.hint)
            yield self.batcher.scores(work, outcome)

    def close(self) -> None:
        """Stop the workers; packs that have not begun are dropped."""
        self.batcher.close()

    def __enter__(self) -> Scorer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _as_texts(texts: str | Sequence[str], name: str) -> list[str]:
    if not isinstance(texts, Iterable):
        raise UsageError(f"{name} is {type(texts).__name__}, not a string or a list of strings")
    listed = [texts] if isinstance(texts, str) else list(texts)
    if not listed:
        raise UsageError(f"{name} is empty; at least one text must be given")
    for position, text in enumerate(listed):
        if not isinstance(text, str):
            raise UsageError(f"{name}[{position}] is {type(text).__name__}, not a string")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UsageError(
                f"{name}[{position}] has half of a surrogate pair at character {error.start}, which is not text"
            ) from error
    return listed


def _pair_up(queries: list[str], documents: list[str]) -> Pairs:
    if len(queries) not in {1, len(documents)}:
        raise UsageError(
            f"{len(queries)} queries and {len(documents)} documents; lengths must be 1:1, 1:N or N:N",
            hint="to score every query against every document, repeat both lists",
        )
    encoded = Texts.of(queries)
    if len(queries) > 1:
        return Pairs(encoded, Texts.of(documents))
    together = np.zeros(len(documents), np.int32)
    return Pairs(Texts(encoded.values, together), Texts.of(documents), lists=together)
