"""The Python face: `Scorer(model).score(queries, documents)`. The command line runs on the same object.

A window of rows is tokenised, cut into packs and scored here; where rows come from and go to is the pipeline's
business.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Unpack

from batchscore.errors import RowError, RuntimeFailureError, UsageError
from batchscore.models.door import ModelOptions, open_model
from batchscore.ranking import rank_rows
from batchscore.runners.build import build_runner
from batchscore.runners.device import Dtype, place
from batchscore.scheduler import collate, plan_packs
from batchscore.types import Budget, Items, Pairs, Scores, ScoreType, Texts, Work, ranges

OnPack = Callable[[int, int], None]  # (rows scored, tokens read) since the last call


@dataclass(frozen=True, slots=True)
class Ranked:
    """One document of a query in rank order."""

    index: int  # position in the documents given, from 0
    relevance_score: float
    document: str


class Scorer:
    """A model loaded for scoring; options are those of the command line, under the same names.

    Args:
        model: a checkpoint folder or a hub id.
        score_type: "auto" decides from the checkpoint's files.
        dtype: of the model body; "auto" is bfloat16 where the hardware multiplies it natively, else float32.
        device: "auto", "cpu", "cuda" or "cuda:N".
        config: a YAML file, or the name of a shipped one; None takes the shipped one that lists this hub id.
        batch_tokens: tokens of a pack; None fits the device.
        window_rows: rows tokenised and sorted together.
        cache_mb: memory for outputs of texts or pairs that come back in a later window or call; 0 keeps none.
        revision: of a hub id.
        tokenizer: a folder or hub id with another tokenizer than the model's.
        trust_remote_code: run Python files of the checkpoint.
        padded: run padded batches through transformers' own attention, to compare.
        options: what the model reads and how its score is made; None takes the checkpoint's own. Those that decide are
            max_length (or max_model_len), truncation, truncation_side, truncate_prompt_tokens, max_tokens_per_query,
            max_tokens_per_doc, chat_template, instruction, query_prompt, document_prompt, query_prompt_name,
            document_prompt_name, no_prompts, query_length, document_length, hf_overrides, pooler_config, convert,
            use_activation, dimensions, similarity, task and compat.

    Raises:
        BatchscoreError: the model cannot be found or used, or an option does not fit it.
    """

    def __init__(
        self,
        model: str,
        *,
        score_type: ScoreType | Literal["auto"] = "auto",
        dtype: Dtype = "auto",
        device: str = "auto",
        config: str | None = None,
        batch_tokens: int | None = None,
        window_rows: int = 16_384,
        cache_mb: int = 256,
        revision: str | None = None,
        tokenizer: str | None = None,
        trust_remote_code: bool = False,
        padded: bool = False,
        **options: Unpack[ModelOptions],
    ) -> None:
        _require_choice("dtype", dtype, get_args(Dtype))
        _require_least("batch_tokens", batch_tokens, 1)
        _require_least("window_rows", window_rows, 1)
        _require_least("cache_mb", cache_mb, 0)
        given = {"score_type": None if score_type == "auto" else score_type, **options}
        self.checkpoint, self.spec = open_model(model, config, given, revision=revision, tokenizer=tokenizer)
        self.placement = place(device, dtype)
        self.budget = Budget(batch_tokens or self.placement.max_tokens, window_rows, workers=self.placement.workers)
        self._runner = build_runner(
            self.checkpoint,
            self.spec,
            self.placement,
            cache_mb=cache_mb,
            padded=padded,
            trust_remote_code=trust_remote_code,
        )
        self._workers = self._runner.start_workers(self.budget.workers)

    def score(self, queries: str | Sequence[str], documents: str | Sequence[str]) -> NDArray[np.float32]:
        """Score 1:1, 1:N or N:N queries and documents.

        Returns:
            float32 [N], in the documents' order.

        Raises:
            UsageError: other shapes, an empty list, something that is not a string.
        """
        pairs = _pair_up(_as_texts(queries, "queries"), _as_texts(documents, "documents"))
        size = self.budget.window_rows
        return np.concatenate(
            [
                self._score_from(start, pairs.rows(slice(start, start + size))).score
                for start in range(0, len(pairs), size)
            ]
        )

    def rerank(self, query: str, documents: Sequence[str], top_n: int = 0) -> list[Ranked]:
        """Documents by descending score, equal scores in the order given; at most `top_n` of them, 0 for all."""
        if not isinstance(query, str):
            raise UsageError(f"rerank takes one query as a string, not {type(query).__name__}")
        if top_n < 0:
            raise UsageError(f"top_n {top_n} is negative; 0 keeps all documents")
        pairs = _pair_up(_as_texts(query, "query"), _as_texts(documents, "documents"))
        scores = self._score_from(0, pairs)
        rows, _ = rank_rows(np.zeros(len(pairs), np.int32), np.arange(len(pairs)), scores.rank_by, top_n)
        values, codes = pairs.documents.values, pairs.documents.codes
        return [Ranked(int(row), float(scores.score[row]), values[codes[row]]) for row in rows]

    def tokenize(self, pairs: Pairs) -> Work:
        """A window's token sequences. Safe to call in another thread while a window is being scored."""
        return self._runner.tokenize(pairs)

    def score_work(self, work: Work, on_pack: OnPack = lambda rows, tokens: None) -> Scores:
        """Score a window.

        Raises:
            RowError: a row's score is not a finite number.
        """
        raw = np.full(len(work), np.nan, np.float32)
        limit = self.budget.max_held_tokens if self._holds_much else max(1, len(work.items.ids))
        for held, rows in work.split(limit):
            self._score_group(work, held, rows, raw, on_pack)
        _require_finite(raw, self.placement.dtype)
        is_logit = self.spec.score_type == "cross-encoder" and not self.spec.listwise
        return Scores(self._runner.activate(raw), raw if is_logit else None, work.row_tokens(), work.cut)

    @property
    def _holds_much(self) -> bool:
        """Whether a query's output is a vector a token, or a number a word of the vocabulary."""
        return self.spec.similarity in ("maxsim", "meanmaxsim") or self.spec.pooling == ("splade",)

    def _score_from(self, start: int, pairs: Pairs) -> Scores:
        """Score a window that begins at pair `start` of what the caller gave."""
        try:
            return self.score_work(self.tokenize(pairs))
        except RowError as error:
            raise error.cause(f"pair {start + error.row}: {error.message}", hint=error.hint) from error

    def _score_group(
        self, work: Work, held: range, rows: NDArray[np.int64], raw: NDArray[np.float32], on_pack: OnPack
    ) -> None:
        """Forward the held items, then stream the others past them; fills raw[rows]."""
        items = work.items
        kept = (
            self._encode(items, np.arange(held.start, held.stop), lambda tokens: on_pack(0, tokens)) if held else None
        )
        # rows sorted by the item they need, so that a pack finds its rows without a search over all
        by_item = rows[np.argsort(work.right[rows], kind="stable")]
        streamed, starts, counts = np.unique(work.right[by_item], return_index=True, return_counts=True)

        def compare(places: NDArray[np.int64], output: Any, tokens: int) -> None:
            of_pack = by_item[ranges(starts[places], counts[places])]
            right = np.repeat(np.arange(len(places)), counts[places])
            raw[of_pack] = self._runner.compare(kept, work.left[of_pack] - held.start, output, right)
            on_pack(len(of_pack), tokens)

        def forward(pack: NDArray[np.int64]) -> None:
            compare(pack, *self._forward(items, streamed[pack], is_query=False))

        known, output = self._runner.recall(items, streamed)
        if output is not None:
            compare(np.flatnonzero(known), output, 0)
        for _ in self._workers.map(forward, self._plan(items.lengths[streamed], np.flatnonzero(~known))):
            pass

    def _encode(self, items: Items, index: NDArray[np.int64], on_tokens: Callable[[int], None]) -> Any:
        """The outputs of the items at `index`, joined."""

        def forward(pack: NDArray[np.int64]) -> Any:
            output, tokens = self._forward(items, index[pack], is_query=True)
            on_tokens(tokens)
            return output

        known, recalled = self._runner.recall(items, index)
        packs = self._plan(items.lengths[index], np.flatnonzero(~known))
        outputs = list(self._workers.map(forward, packs))
        if recalled is not None:
            packs, outputs = [np.flatnonzero(known), *packs], [recalled, *outputs]
        return self._runner.hold(packs, outputs)

    def _forward(self, items: Items, index: NDArray[np.integer], *, is_query: bool) -> tuple[Any, int]:
        """(output, tokens) of one pack."""
        batch = collate(items, index, self.spec.first_position, is_query=is_query)
        output = self._runner.forward(batch)
        self._runner.remember(items, index, output)
        return output, len(batch.input_ids)

    def _plan(self, lengths: NDArray[np.int64], places: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """Packs of the items at `places`; items of two regimes of the model never share one."""
        limit = self.spec.regime_length or int(lengths.max(initial=0))
        return [
            of_regime[pack]
            for of_regime in (places[lengths[places] > limit], places[lengths[places] <= limit])
            if len(of_regime)
            for pack in plan_packs(lengths[of_regime], self.budget.max_tokens, self.budget.workers)
        ]

    def close(self) -> None:
        """Stop the workers; packs that have not begun are dropped."""
        self._workers.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> Scorer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _require_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise UsageError(f"{name} {value!r} is unknown; choices: {', '.join(choices)}")


def _require_least(name: str, number: int | None, least: int) -> None:
    if number is not None and number < least:
        raise UsageError(f"{name} {number} is less than {least}")


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
                f"{name}[{position}] holds half of a surrogate pair at character {error.start}, which is no text"
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


def _require_finite(raw: NDArray[np.float32], dtype: str) -> None:
    bad = np.flatnonzero(~np.isfinite(raw))
    if len(bad):
        hint = "the checkpoint's weights overflow" if dtype == "float32" else "pass --dtype float32"
        raise RowError(int(bad[0]), f"its score is {raw[bad[0]]}", cause=RuntimeFailureError, hint=hint)
