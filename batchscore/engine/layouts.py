"""One loaded model under the options of single requests: pairs of all of them are scheduled together.

A request may change how its texts are laid out, and whether its logits are activated; the weights stay. So pairs are
tokenized option set by option set, and what comes of it is one `Work`, whose packs mix them. Equal token sequences of
different sets are one item: a limit that no text reaches costs nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from batchscore.engine.batcher import Batcher
from batchscore.errors import BatchscoreError, UsageError
from batchscore.models.open import respecified
from batchscore.models.spec import ModelSpec
from batchscore.models.text.templates import uses
from batchscore.runners.base import Runner
from batchscore.types import Cells, Fault, Faults, Items, Pairs, Side, Work, offsets_of

Options = Mapping[str, Any]  # of a request, by the names of its fields; JSON-able
Rows = NDArray[np.int64]

_KEPT = 256  # layouts; each has a compiled template
_OPEN = {  # fields of the spec that may differ from request to request
    *("instruction", "query_prompt", "template_variables", "activation", "truncation", "truncation_side"),
    *("max_length", "query_length", "document_length", "max_tokens_per_query", "max_tokens_per_doc"),
    *("processor_options", "video_options"),
}
_RESERVED = ("chat_template", "tools", "tokenize")  # arguments of what renders templates elsewhere
_TRIAL = Pairs(Cells.of(["a"]), Cells.of(["a"]))


@dataclass(frozen=True, slots=True)
class RequestPairs:
    """Pairs, each with the options of its request."""

    pairs: Pairs
    codes: NDArray[np.int32]  # [rows], into `sets`
    sets: Sequence[Options]

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def sides(self) -> dict[Side, Cells]:
        """The texts of both sides."""
        return self.pairs.sides

    def rows(self, rows: slice | NDArray[np.integer]) -> RequestPairs:
        """Some rows."""
        return RequestPairs(self.pairs.rows(rows), self.codes[rows], self.sets)

    def by_options(self) -> Iterator[tuple[Options, Rows]]:
        """Each set of options that pairs have, and these pairs."""
        order = np.argsort(self.codes, kind="stable")
        codes, starts = np.unique(self.codes[order], return_index=True)
        for code, rows in zip(codes.tolist(), np.split(order, starts[1:]), strict=True):
            yield self.sets[code], rows


@dataclass(frozen=True, slots=True)
class Layout:
    """How the pairs of some requests are read."""

    runner: Runner  # the loaded model, as these requests have it
    warnings: tuple[str, ...]  # options that have no effect


class Layouts:
    """The layouts of one loaded model.

    Args:
        batcher: has the model.
    """

    def __init__(self, batcher: Batcher) -> None:
        self._batcher = batcher
        self._of = lru_cache(_KEPT)(self._made)

    def of(self, options: Options) -> Layout | Fault:
        """The layout for a set of options, or why there is none."""
        return self._of(json.dumps(options, sort_keys=True))

    def tokenize(self, pairs: RequestPairs) -> Work:
        """The token sequences of a window."""
        parts: list[tuple[Rows, Work]] = []
        refused: Faults = {}
        for options, rows in pairs.by_options():
            layout = self.of(options)
            if isinstance(layout, Fault):
                refused |= dict.fromkeys(rows.tolist(), layout)
            else:
                parts += _tokenized(layout.runner.tokenize, pairs.pairs, rows, refused)
        return join(parts, len(pairs)).refused(refused)

    def activate(self, raw: NDArray[np.float32], pairs: RequestPairs) -> NDArray[np.float32]:
        """float32 [rows, k]: raw scores to scores, each as its options have it."""
        scores = np.full_like(raw, np.nan)
        for options, rows in pairs.by_options():
            layout = self.of(options)
            if not isinstance(layout, Fault):
                scores[rows] = layout.runner.activate(raw[rows])
        return scores

    def warnings(self, options: Options) -> tuple[str, ...]:
        """What a request with these options should know."""
        layout = self.of(options)
        return () if isinstance(layout, Fault) else layout.warnings

    def _made(self, key: str) -> Layout | Fault:
        warnings: list[str] = []
        options = json.loads(key)
        try:
            spec = self._spec(dict(options), warnings)
            runner = self._batcher.respecified(spec)
            runner.tokenize(_TRIAL)  # raises where no text could be laid out as asked for
        except BatchscoreError as error:
            code = "not-supported" if isinstance(error, _NotForOneRequestError) else "option"
            named = (name for name in options if error.message.startswith(name))
            return Fault(code, error.message, error.hint, next(named, next(iter(options), None)))
        return Layout(runner, tuple(warnings))

    def _spec(self, options: dict[str, Any], warnings: list[str]) -> ModelSpec:
        """What the checkpoint means with these options; adds to `warnings`."""
        setup, base = self._batcher.setup, self._batcher.spec
        if options.pop("padding", None) == "max_length":
            raise _NotForOneRequestError("padding max_length is not supported: the model would read it as text")
        variables = options.pop("chat_template_kwargs", {})
        for name in _RESERVED:
            if name in variables:
                raise UsageError(f"chat_template_kwargs {name!r} is not for templates")
        if "instruction" in variables:
            options["instruction"] = variables.pop("instruction")
        for name in self._without_effect(options):
            warnings.append(f"{name} has no effect on this model")
            del options[name]
        if base.reads_like_vllm:
            self._refuse_like_vllm(options)
        spec = respecified(setup.checkpoint, setup.config, setup.options, options)
        used = {
            name: value for name, value in variables.items() if spec.chat_template and uses(spec.chat_template, name)
        }
        warnings += [f"chat_template_kwargs: no template reads {name!r}" for name in variables if name not in used]
        # a template that prints the date has that of the job
        spec = replace(spec, template_variables={**spec.template_variables, **used}, template_date=base.template_date)
        for field in fields(spec):
            is_common = field.compare and field.name not in {*_OPEN, "sources"}
            if is_common and getattr(spec, field.name) != getattr(base, field.name):
                message = f"{', '.join(options)} would change {field.name}, which all requests have in common"
                raise _NotForOneRequestError(message, hint="pass it as an option of the command")
        return spec

    def _without_effect(self, options: Options) -> list[str]:
        """Options that change no score, where a server would take no notice."""
        spec = self._batcher.spec
        names = []
        if "use_activation" in options and (spec.score_type == "bi-encoder" or spec.listwise):
            names.append("use_activation")
        has_place = bool(spec.chat_template) and uses(spec.chat_template, "instruction")
        if "instruction" in options and spec.reads_like_vllm and not has_place:
            names.append("instruction")
        return names

    def _refuse_like_vllm(self, options: dict[str, Any]) -> None:
        """Have what is too long refused, unless a request or the command says how to cut it."""
        asked = {**self._batcher.setup.options, **options}
        for name in ("max_tokens_per_query", "max_tokens_per_doc"):
            if options.get(name, 0) >= self._batcher.spec.max_length:
                most = self._batcher.spec.max_length
                raise UsageError(f"{name} {options[name]} is not less than the model's {most} tokens")
        if asked.get("truncate_prompt_tokens") is None and asked.get("truncation") is None:
            options["truncation"] = "error"


class _NotForOneRequestError(UsageError):
    """Something that needs a run of its own, or that nothing here does."""


def _tokenized(tokenize: Callable[[Pairs], Work], pairs: Pairs, rows: Rows, faults: Faults) -> list[tuple[Rows, Work]]:
    """Work of some rows in parts that can be laid out; the others are added to `faults`."""
    try:
        return [(rows, tokenize(pairs.rows(rows)))]
    except UsageError as error:  # one of them leaves no room for its texts, say
        if len(rows) == 1:
            faults[int(rows[0])] = Fault("option", error.message, error.hint)
            return []
    half = len(rows) // 2
    return [part for some in (rows[:half], rows[half:]) for part in _tokenized(tokenize, pairs, some, faults)]


def join(parts: Sequence[tuple[Rows, Work]], size: int) -> Work:
    """The work of `size` rows, of which each part has those that it names; equal items of two parts are one."""
    works = [work.spread(rows, size) for rows, work in parts]
    if len(works) == 1:
        return works[0]
    left, right = np.full(size, -1, np.int32), np.full(size, -1, np.int32)
    cut = np.zeros(size, np.uint8)
    slot = np.full(size, -1, np.int32) if any(work.slot is not None for work in works) else None
    if not works:
        return Work(Items(offsets_of([]), {"ids": np.empty(0, np.int32)}), 0, left, right, cut, np.empty(0, np.int32))
    items = Items.joined([work.items for work in works])
    is_query = np.concatenate([np.arange(len(work.items)) < work.queries for work in works])
    kept, number = _distinct(items, is_query)
    groups, start, group_start, faults = list[NDArray[np.int32]](), 0, 0, Faults()
    for (rows, _), work in zip(parts, works, strict=True):
        good = rows[work.right[rows] >= 0]
        left[good], right[good] = number[start + work.left[good]], number[start + work.right[good]]
        cut[rows] = work.cut[rows]
        if slot is not None and work.slot is not None:
            slot[rows] = work.slot[rows]
        groups.append(np.where(work.group < 0, -1, work.group + group_start).astype(np.int32))
        start, group_start = start + len(work.items), group_start + int(work.group.max(initial=-1)) + 1
        faults |= work.faults
    return Work(
        items.take(kept), int(is_query[kept].sum()), left, right, cut, np.concatenate(groups)[kept], slot, faults
    )


def _distinct(items: Items, is_query: NDArray[np.bool_]) -> tuple[Rows, NDArray[np.int32]]:
    """(one of each distinct item, queries first; int32 [items], which of these each item is)."""
    columns = [(column.tobytes(), column.itemsize) for column in items.columns.values()]
    offsets, known = items.offsets.tolist(), dict[Any, int]()
    first = np.empty(len(items), np.int64)
    for item, (media, query) in enumerate(zip(items.media, is_query.tolist(), strict=True)):
        start, stop = offsets[item], offsets[item + 1]
        key = query, *(column[start * size : stop * size] for column, size in columns), *media
        first[item] = known.setdefault(key, item)
    kept = np.fromiter(known.values(), np.int64, len(known))
    kept = np.concatenate([kept[is_query[kept]], kept[~is_query[kept]]])
    number = np.empty(len(items), np.int32)
    number[kept] = np.arange(len(kept))
    return kept, number[first]
