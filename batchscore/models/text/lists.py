"""One sequence for each list: the token sequences of prompts that hold a query and all its documents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from batchscore.errors import CheckpointError, UsageError
from batchscore.models.spec import ModelSpec
from batchscore.models.text.fitting import Ids, framed
from batchscore.models.text.prompts import prefixed, too_long_faults
from batchscore.models.text.templates import Template
from batchscore.models.text.tokenizer import TextTokenizer
from batchscore.types import CUT_DOCUMENT, CUT_QUERY, Faults, Pairs, Work

LIST_MARKS = ("<|rerank_token|>", "<|embed_token|>")  # whose states stand for the query, for a document
_SLACK = 8  # tokens; texts fall into a few more or less beside others than alone


def list_work(tokenizer: TextTokenizer, spec: ModelSpec, template: Template, pairs: Pairs) -> Work:
    """One sequence for each list of documents, split where it would pass max_length; a row without a list is its own.

    `slot` holds which document of its prompt a row is.

    Raises:
        CheckpointError: the vocabulary lacks the marks.
        UsageError: max_length leaves no room for text.
    """
    marks = _mark_ids(tokenizer)
    bare, beside, most = _list_costs(tokenizer, spec, template)
    queries = _without_marks(prefixed(pairs.queries, spec.query_prompt))
    documents = _without_marks(prefixed(pairs.documents, ""))
    query_lengths, document_lengths = (tokenizer.tokenize(texts, spec.max_length)[1] for texts in (queries, documents))
    bodies: list[Ids] = []
    group: list[int] = []
    faults: Faults = {}
    slot, right, cut = np.zeros(len(pairs), np.int32), np.zeros(len(pairs), np.int32), np.zeros(len(pairs), np.uint8)
    for rows in _groups(np.arange(len(pairs)) if pairs.lists is None else pairs.lists):
        query = int(pairs.queries.codes[rows[0]])
        text, length = queries[query], int(query_lengths[query])
        if length > most:
            faults |= too_long_faults(spec, rows)
            text, length, cut[rows] = tokenizer.shorten(text, most), most, CUT_QUERY
        room = spec.max_length - bare - 2 * length
        is_long = document_lengths[pairs.documents.codes[rows]] + beside > room
        faults |= too_long_faults(spec, rows[is_long])
        rows = rows[~np.isin(rows, list(faults))]
        for block in _blocks(document_lengths[pairs.documents.codes[rows]] + beside, room):
            members = rows[block]
            codes = pairs.documents.codes[members]
            texts = [documents[code] for code in codes]
            if document_lengths[codes[0]] + beside > room:  # such a document is alone in its block
                texts = [tokenizer.shorten(texts[0], room - beside)]
                cut[members] |= CUT_DOCUMENT
            slot[members], right[members] = np.arange(len(members)), len(bodies)
            pieces = template.render_list(text, texts)
            bodies.append(np.concatenate([ids for ids, _ in tokenizer.spans(pieces)]))
            group.append(query)
    items = framed(tokenizer, spec, bodies)
    items = items.with_columns(keep=np.isin(items.ids, marks))
    return Work(items, 0, right, right, cut, np.array(group, np.int32), slot).refused(faults)


def _mark_ids(tokenizer: TextTokenizer) -> list[int]:
    ids = [token for mark in LIST_MARKS if (token := tokenizer.token_id(mark)) is not None]
    if len(ids) < len(LIST_MARKS):
        raise CheckpointError(f"its vocabulary lacks {' or '.join(LIST_MARKS)}, which its prompt is read at")
    return ids


def _list_costs(tokenizer: TextTokenizer, spec: ModelSpec, template: Template) -> tuple[int, int, int]:
    """Tokens (of a prompt without texts, of each document beside its text, that a query may have at most)."""
    none, one, two = (tokenizer.count("".join(template.render_list("", [""] * number))) for number in range(3))
    bare, beside = none + _SLACK, two - one + _SLACK
    most = (spec.max_length - bare - beside) // 4  # it stands in the prompt twice, and as much stays for documents
    if most < 1:
        raise UsageError(
            f"max_length {spec.max_length} leaves no room for text in the prompt", hint="raise --max-length"
        )
    return bare, beside, most


def _without_marks(texts: Sequence[str]) -> list[str]:
    """Texts that cannot pass for several, or for none."""

    def cleaned(text: str) -> str:
        # taking one out may put another together
        while any(mark in text for mark in LIST_MARKS):
            text = text.replace(LIST_MARKS[0], "").replace(LIST_MARKS[1], "")
        return text

    return [cleaned(text) for text in texts]


def _groups(lists: NDArray[Any]) -> list[NDArray[np.int64]]:
    """The rows of each list, in order."""
    order = np.argsort(lists, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(lists[order])) + 1) if len(order) else []


def _blocks(lengths: NDArray[np.int64], room: int) -> list[slice]:
    """Consecutive documents that fit together; one that does not fit alone has a block of its own."""
    blocks, start, total = [], 0, 0
    for index, length in enumerate(lengths):
        if index > start and total + length > room:
            blocks.append(slice(start, index))
            start, total = index, 0
        total += int(length)
    return [*blocks, slice(start, len(lengths))] if len(lengths) else []
