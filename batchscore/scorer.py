"""The Python face: `Scorer(model).score(queries, documents)`. The command line runs on the same object.

A window of rows is tokenised, cut into packs and scored here; where rows come from and go to is the pipeline's
business.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Unpack

from batchscore.engine.ranking import rank_rows
from batchscore.engine.scheduler import collate, plan_packs
from batchscore.errors import DeviceMemoryError, RowError, RuntimeFailureError, UsageError
from batchscore.models.checkpoint import Checkpoint
from batchscore.models.open import ModelOptions, open_model
from batchscore.models.spec import ModelSpec
from batchscore.runners.build import build_runner
from batchscore.runners.device import Dtype, Placement, choose_device
from batchscore.stop import Stop
from batchscore.types import Budget, Items, Pairs, Scores, ScoreType, Texts, Work, ranges

T = TypeVar("T")
OnPack = Callable[[int, int], None]  # (rows scored, tokens read) since the last call


@dataclass(frozen=True, slots=True)
class Ranked:
    """One document of a query in rank order."""

    index: int  # position in the documents given, from 0
    relevance_score: float
    document: str


class ScorerOptions(ModelOptions, total=False):
    """Options of a Scorer beside what the model reads; the class says what they mean."""

    score_type: ScoreType | Literal["auto"]
    dtype: Dtype
    device: str
    config: str | None
    batch_tokens: int | None
    window_rows: int
    cache_mb: int
    revision: str | None
    tokenizer: str | None
    trust_remote_code: bool
    padded: bool


@dataclass(frozen=True, slots=True)
class Setup:
    """All that is decided about a model before its weights are read."""

    checkpoint: Checkpoint
    spec: ModelSpec
    placement: Placement
    budget: Budget
    cache_mb: int
    padded: bool
    trust_remote_code: bool


def set_up(
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
) -> Setup:
    """Decide what a model means and where it runs; arguments and errors are those of Scorer."""
    _require_choice("dtype", dtype, get_args(Dtype))
    _require_least("batch_tokens", batch_tokens, 1)
    _require_least("window_rows", window_rows, 1)
    _require_least("cache_mb", cache_mb, 0)
    given = {"score_type": None if score_type == "auto" else score_type, **options}
    checkpoint, spec = open_model(model, config, given, revision=revision, tokenizer=tokenizer)
    placement = choose_device(device, dtype)
    budget = Budget(batch_tokens or placement.max_tokens, window_rows, workers=placement.workers)
    return Setup(checkpoint, spec, placement, budget, cache_mb, padded, trust_remote_code)


class Scorer:
    """A model loaded for scoring; options are those of the command line, under the same names.

    Args:
        model: a checkpoint folder or a hub id, or what `set_up` made of it and the options.
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

    def __init__(self, model: str | Setup, **options: Unpack[ScorerOptions]) -> None:
        self.setup = model if isinstance(model, Setup) else set_up(model, **options)
        self.checkpoint, self.spec = self.setup.checkpoint, self.setup.spec
        self.placement, self.budget = self.setup.placement, self.setup.budget
        self._runner = build_runner(
            self.checkpoint,
            self.spec,
            self.placement,
            cache_mb=self.setup.cache_mb,
            padded=self.setup.padded,
            trust_remote_code=self.setup.trust_remote_code,
        )
        self._workers = self._runner.start_workers(self.budget.workers)
        self._fitting_tokens = sys.maxsize  # of a pack, as far as the device's memory has shown
        self._precise: Scorer | None = None  # the same in float32

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

    def score_work(
        self,
        work: Work,
        on_pack: OnPack = lambda rows, tokens: None,
        *,
        raw: NDArray[np.float32] | None = None,
        stop: Stop | None = None,
    ) -> Scores:
        """Score a window.

        Packs do not depend on what `raw` holds, so that scores are the same bit for bit whether a window is scored
        at once or goes on after an interruption.

        Args:
            work: of `tokenize`.
            on_pack: called after each pack, in any thread.
            raw: float32 [rows], raw scores that are known, NaN for the others, which are filled in pack by pack.
            stop: ends the work between packs, with StoppedError.

        Raises:
            RowError: rows that no pack is small enough for, or whose score is not a finite number in float32 either;
                what `raw` holds by then stays good.
            StoppedError: as `stop` says.
        """
        raw = np.full(len(work), np.nan, np.float32) if raw is None else raw
        stop = stop or Stop()
        limit = self.budget.max_held_tokens if self._holds_much else max(1, len(work.items.ids))
        for held, rows in work.split(limit):
            if len(rows):
                self._score_group(work, held, rows, raw, on_pack, stop)
        bad = np.flatnonzero(~np.isfinite(raw))
        if len(bad):
            self._retry(work, bad, raw, stop)
        is_logit = self.spec.score_type == "cross-encoder" and not self.spec.listwise
        return Scores(self._runner.activate(raw), raw if is_logit else None, work.row_tokens(), work.cut)

    def _retry(self, work: Work, bad: NDArray[np.int64], raw: NDArray[np.float32], stop: Stop) -> None:
        """Score rows again whose number is not finite, with a model in float32."""
        first = raw[bad[0]]
        raw[bad] = np.nan
        if self.placement.dtype == "float32":
            hint = "the checkpoint's weights overflow"
            raise RowError(bad, f"its score is {first}", code="non-finite", cause=RuntimeFailureError, hint=hint)
        if self._precise is None:
            precise = replace(self.placement, dtype="float32", dtype_reason="retry")
            try:
                self._precise = Scorer(replace(self.setup, placement=precise, cache_mb=0))
            except RuntimeError as error:  # two models may be more than the device has memory for
                message = f"its score is {first} in {self.placement.dtype}, and float32 cannot be tried: {error}"
                raise RowError(
                    bad, message, code="non-finite", cause=RuntimeFailureError, hint="pass --dtype float32"
                ) from error
        self._precise.score_work(work, raw=raw, stop=stop)

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
        self,
        work: Work,
        held: range,
        rows: NDArray[np.int64],
        raw: NDArray[np.float32],
        on_pack: OnPack,
        stop: Stop,
    ) -> None:
        """Forward the held items, then stream the others past them; fills raw[rows]."""
        items = work.items
        # rows sorted by the item they need, so that a pack finds its rows without a search over all
        by_item = rows[np.argsort(work.right[rows], kind="stable")]
        streamed, starts, counts = np.unique(work.right[by_item], return_index=True, return_counts=True)
        missing = np.logical_or.reduceat(np.isnan(raw[by_item]), starts)
        on_pack(int(counts[~missing].sum()), 0)
        if not missing.any():
            return
        kept = self._encode(work, held, on_pack, stop) if held else None

        def compare(places: NDArray[np.int64], output: Any, tokens: int) -> None:
            of_pack = by_item[ranges(starts[places], counts[places])]
            if isinstance(output, DeviceMemoryError):
                raise _too_large(of_pack, output)
            right = np.repeat(np.arange(len(places)), counts[places])
            raw[of_pack] = self._runner.compare(kept, work.left[of_pack] - held.start, output, right)
            on_pack(len(of_pack), tokens)

        def forward(pack: NDArray[np.int64]) -> None:
            for part, output, tokens in self._forward(items, streamed[pack], is_query=False):
                compare(pack[part], output, tokens)

        known, output = self._runner.recall(items, streamed)
        if output is not None:
            compare(np.flatnonzero(known), output, 0)
        # packs are planned for all items and then thinned out: the same packs give the same bits
        packs = [pack[missing[pack]] for pack in self._plan(items.lengths[streamed], np.flatnonzero(~known))]
        self._map(forward, [pack for pack in packs if len(pack)], stop)

    def _encode(self, work: Work, held: range, on_pack: OnPack, stop: Stop) -> Any:
        """The outputs of the held items, joined."""
        items, index = work.items, np.arange(held.start, held.stop)

        def forward(pack: NDArray[np.int64]) -> list[tuple[NDArray[np.int64], Any]]:
            outputs = []
            for part, output, tokens in self._forward(items, index[pack], is_query=True):
                if isinstance(output, DeviceMemoryError):
                    raise _too_large(np.flatnonzero(np.isin(work.left, index[pack[part]])), output)
                outputs.append((pack[part], output))
                on_pack(0, tokens)
            return outputs

        known, recalled = self._runner.recall(items, index)
        packs = self._plan(items.lengths[index], np.flatnonzero(~known))
        encoded = [part for parts in self._map(forward, packs, stop) for part in parts]
        if recalled is not None:
            encoded.insert(0, (np.flatnonzero(known), recalled))
        return self._runner.hold([places for places, _ in encoded], [output for _, output in encoded])

    def _map(self, forward: Callable[[NDArray[np.int64]], T], packs: list[NDArray[np.int64]], stop: Stop) -> list[T]:
        """Run packs in the workers; when one fails or the end is asked for, those that have begun are waited for."""
        futures = [self._workers.submit(forward, pack) for pack in packs]
        try:
            return [stop.result(future) for future in futures]
        finally:
            stop.settle(futures)

    def _forward(self, items: Items, index: NDArray[np.integer], *, is_query: bool) -> Iterator[tuple[slice, Any, int]]:
        """Yield (which of the items, their output, tokens), in halves where the memory does not do for all.

        The output of an item that does not even fit alone is a DeviceMemoryError. What did not fit is remembered, so
        that later packs are halved without a try.
        """
        parts = [slice(0, len(index))]
        while parts:
            part = parts.pop()
            some, size = index[part], part.stop - part.start
            tokens = int(items.lengths[some].sum())
            if size == 1 or tokens <= self._fitting_tokens:
                output = self._attempt(items, some, is_query=is_query)
                if size == 1 or not isinstance(output, DeviceMemoryError):
                    yield part, output, tokens
                    continue
                self._fitting_tokens = min(self._fitting_tokens, tokens // 2)
            middle = part.start + size // 2
            parts += [slice(middle, part.stop), slice(part.start, middle)]

    def _attempt(self, items: Items, index: NDArray[np.integer], *, is_query: bool) -> Any:
        """The output of one pack, or the DeviceMemoryError that it ran into."""
        batch = collate(items, index, self.spec.first_position, is_query=is_query)
        try:
            output = self._runner.forward(batch)
        except DeviceMemoryError as error:
            output = DeviceMemoryError(error.message, hint=error.hint)  # without what the traceback holds on to
        if isinstance(output, DeviceMemoryError):
            self._runner.release_memory()
        else:
            self._runner.remember(items, index, output)
        return output

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
        if self._precise is not None:
            self._precise.close()

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


def _too_large(rows: NDArray[np.int64], fault: DeviceMemoryError) -> RowError:
    return RowError(rows, fault.message, code="out-of-memory", cause=RuntimeFailureError, hint=fault.hint)
