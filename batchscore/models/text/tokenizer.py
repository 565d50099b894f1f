"""Texts to token ids, and the fixed pattern a tokenizer puts around one text or a pair of them.

A text is tokenized once, without special tokens; sequences are assembled from those ids by `Pattern`. That makes one
tokenization serve every pair a text is part of, and lets truncation cut a text without touching the structure.
tokenizer.json is taken as it stands: the tokenizer classes of transformers 5 rebuild normalisers from their own code,
which changes ids from one version to the next.

Of a text far longer than what is kept of it only a piece is tokenized (`TextTokenizer.tokenize`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal
from unicodedata import combining

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer
from tokenizers.normalizers import BertNormalizer

from batchscore.errors import CheckpointError
from batchscore.models.checkpoint import Checkpoint
from batchscore.types import Items, offsets_of, ranges

_SLICE_CHARS = 2_000_000  # a tokenizer's own result takes some 150 bytes a token; keep few of them alive
_MARGIN = 128  # tokens beside a cut that may differ from the whole text's; more than a word of WordPiece has (100)
_CHARS_A_TOKEN = 8  # of a piece, to begin with
_NEAR = 256  # characters in which a place to cut is looked for
# where an end of a text may begin: tokenizers put something before its first word, so this has a second edge close by
_EDGE = re.compile(r"(?<=\S)(?:\n(?=\w)| \S{1,32}(?= \S))")
_VOCABULARIES = ("vocab.txt", "vocab.json", "sentencepiece.bpe.model", "spiece.model", "tokenizer.model")
_PROBES = (("what is it?", "It is A, not B."), ("Zwölf Öfen", "北京"), ("a", "b c"))


@dataclass(frozen=True, slots=True)
class Special:
    """A token the tokenizer adds."""

    id: int
    type: int


@dataclass(frozen=True, slots=True)
class Slot:
    """The place of a text: 0 for the first of a pair, 1 for the second."""

    side: int
    type: int


Pattern = tuple[Special | Slot, ...]
Spans = tuple[NDArray[np.int32], NDArray[np.int64]]


def num_specials(pattern: Pattern) -> int:
    """Tokens of a sequence that belong to no text."""
    return sum(isinstance(part, Special) for part in pattern)


class TextTokenizer:
    """A checkpoint's tokenizer, reduced to what scoring needs.

    Args:
        tokenizer: as loaded.
        name: of the checkpoint, for errors.
        config: tokenizer_config.json.
        restore_specials: add the BOS and EOS that `config` asks for to the pattern of one text, where it lacks them.
            transformers 5 lets tokenizer.json alone decide, and the models were trained with them.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        name: str,
        config: Mapping[str, Any] | None = None,
        *,
        restore_specials: bool = False,
    ) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self._name = name
        self._config = config or {}
        self.single = self._pattern("a")
        self._check_pattern(self.single, 1)
        if restore_specials:
            self.single = self._restored(self.single)

    @cached_property
    def pair(self) -> Pattern:
        """The pattern of two texts.

        Raises:
            CheckpointError: the tokenizer has none.
        """
        pattern = self._pattern("a", "b")
        self._check_pattern(pattern, 2)
        return pattern

    def tokenize(
        self, texts: Sequence[str], max_tokens: int, *, keep_end: bool = False
    ) -> tuple[Items, NDArray[np.int64]]:
        """(ids of each text without special tokens, `max_tokens` from its start or end; int64 [n], how many it has).

        Of a text of many more characters only a start or an end is read that has `_MARGIN` tokens more than are kept:
        those kept are the whole text's, and how many that has is an estimate, above `max_tokens`. An end begins at the
        edge of a word, so that nothing before it has a say in its tokens; a text without such an edge is read whole.
        A start is cut at a space or, where none is near (Chinese, one endless word), anywhere. Then the ids rest on the
        margin: a word that WordPiece does not call unknown has 100 tokens at most; where best paths of Unigram part,
        and how far back a letter changes merges of BPE, is within a few tokens in practice.
        """
        ids: list[NDArray[np.int32]] = []
        lengths: list[int] = []
        kept = slice(-max_tokens, None) if keep_end else slice(max_tokens)
        encode = self._tokenizer.encode_batch_fast
        for text, (piece, encoding) in zip(texts, _bounded(encode, texts, max_tokens, keep_end=keep_end), strict=True):
            of_piece = encoding.ids
            lengths.append(len(of_piece) * len(text) // max(1, len(piece)))
            ids.append(np.array(of_piece[kept], np.int32))
        full = np.array(lengths, np.int64)
        joined = np.concatenate(ids) if ids else np.empty(0, np.int32)
        return Items(offsets_of(np.minimum(full, max_tokens)), {"ids": joined}), full

    def spans(self, texts: Sequence[str]) -> list[Spans]:
        """(ids int32 [n] without special tokens, characters each stands for int64 [n, 2]) of each text."""
        return [
            (np.array(encoding.ids, np.int32), np.array(encoding.offsets, np.int64).reshape(-1, 2))
            for encoding in self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        ]

    def count(self, text: str) -> int:
        """Tokens of a text."""
        return len(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def shorten(self, text: str, max_tokens: int) -> str:
        """The longest start of a text that has at most `max_tokens` tokens."""
        while True:
            ((_, encoding),) = _bounded(self._tokenizer.encode_batch, [text], max_tokens)
            if len(encoding) <= max_tokens:
                return text
            # a shorter text may fall into more tokens than it had as part of the longer one
            text = text[: min(encoding.offsets[max_tokens - 1][1] if max_tokens else 0, len(text) - 1)]

    def without_middle(self, text: str, max_tokens: int, *, keep_end: bool) -> str:
        """A text too long for `max_tokens`, with the tokens `tokenize` gives, that begins and ends as this one does."""
        ((kept, _),) = _bounded(self._tokenizer.encode_batch_fast, [text], max_tokens, keep_end=keep_end)
        rest = min(len(text) - len(kept), _MARGIN * _CHARS_A_TOKEN)
        return text[:rest] + kept if keep_end else kept + text[len(text) - rest :]

    def token_id(self, token: str) -> int | None:
        """The id of a token by its exact name."""
        found: int | None = self._tokenizer.token_to_id(token)
        return found

    def named(self, *names: str) -> int | None:
        """The id of the first special token of these names in tokenizer_config.json, such as "mask_token"."""
        tokens = (_content(self._config.get(name)) for name in names)
        return next((found for token in tokens if token and (found := self.token_id(token)) is not None), None)

    def describe(self, ids: Sequence[int]) -> list[str]:
        """Each id as the vocabulary writes it."""
        return [self._tokenizer.id_to_token(int(token)) or f"<{token}?>" for token in ids]

    def specials(self) -> dict[str, str]:
        """bos_token, eos_token and the like, for templates."""
        return {key: _content(value) for key, value in self._config.items() if key.endswith("_token") and value}

    def _restored(self, pattern: Pattern) -> Pattern:
        bos, eos = self.named("bos_token"), self.named("eos_token")
        if self._config.get("add_bos_token") and bos is not None and not _is_special(pattern[0], bos):
            pattern = (Special(bos, 0), *pattern)
        if self._config.get("add_eos_token") and eos is not None and not _is_special(pattern[-1], eos):
            pattern = (*pattern, Special(eos, 0))
        return pattern

    def _pattern(self, *texts: str) -> Pattern:
        """Read the pattern off an encoded probe: special tokens where they stand, one slot for each text."""
        encoding = self._encode(*texts)
        pattern: list[Special | Slot] = []
        for token, kind, side in zip(encoding.ids, encoding.type_ids, encoding.sequence_ids, strict=True):
            part = Special(token, kind) if side is None else Slot(side, kind)
            if part not in pattern or isinstance(part, Special):
                pattern.append(part)
        return tuple(pattern)

    def _encode(self, first: str, second: str | None = None) -> Encoding:
        return self._tokenizer.encode(first, second, add_special_tokens=True)

    def _check_pattern(self, pattern: Pattern, texts_count: int) -> None:
        """Assembled ids must equal the tokenizer's own; a tokenizer that mixes the sides otherwise is unknown."""
        for probe in _PROBES:
            texts = probe[:texts_count]
            sides = [self.tokenize([text], 1_000)[0] for text in texts]
            only = np.zeros(1, np.int64)
            built = assemble(pattern, [(side, only, side.lengths) for side in sides])
            slots = {part.side for part in pattern if isinstance(part, Slot)}
            if len(slots) < texts_count or built.ids.tolist() != self._encode(*texts).ids:
                raise CheckpointError(
                    f"{self._name}: its tokenizer does not put fixed tokens around its texts ({texts!r})",
                    hint="pass --chat-template with a prompt for a pair" if texts_count > 1 else None,
                )


def _is_special(part: Special | Slot, token: int) -> bool:
    return isinstance(part, Special) and part.id == token


def _content(token: Any) -> str:
    """A token of tokenizer_config.json, which may be an object with flags."""
    return str(token.get("content", "")) if isinstance(token, dict) else str(token or "")


def _bounded(
    encode: Callable[..., list[Encoding]], texts: Sequence[str], max_tokens: int, *, keep_end: bool = False
) -> Iterator[tuple[str, Encoding]]:
    """(a start or end of each text that has the `max_tokens` tokens of it and a margin, or the text; its encoding)."""
    enough = max_tokens + _MARGIN
    for part in _slices(texts, _SLICE_CHARS):
        read: dict[int, tuple[str, Encoding]] = {}
        places, chars = list(range(len(part))), enough * _CHARS_A_TOKEN
        while places:
            pieces = [_piece(part[place], chars, keep_end=keep_end) for place in places]
            read |= zip(places, zip(pieces, encode(pieces, add_special_tokens=False), strict=True), strict=True)
            places = [p for p in places if len(read[p][0]) < len(part[p]) and len(read[p][1]) < enough]
            chars *= 4
        yield from (read[place] for place in range(len(part)))


def _piece(text: str, chars: int, *, keep_end: bool) -> str:
    """A start or end of a text of about so many characters; the text where it has no more."""
    if len(text) <= chars:
        return text
    if keep_end:
        edge = _EDGE.search(text, len(text) - chars)
        return text[edge.start() :] if edge else ""
    stop = text.rfind(" ", chars - _NEAR, chars)
    if stop < 0:
        stop = chars
        while stop < len(text) and combining(text[stop]):  # normalising may put these in another order
            stop += 1
    return text[:stop].rstrip()  # spaces belong to what follows them


def _slices(texts: Sequence[str], max_chars: int) -> Iterator[Sequence[str]]:
    start, chars = 0, 0
    for position, text in enumerate(texts):
        chars += len(text)
        if chars > max_chars:
            yield texts[start : position + 1]
            start, chars = position + 1, 0
    if start < len(texts):
        yield texts[start:]


def assemble(
    pattern: Pattern,
    sides: Sequence[tuple[Items, NDArray[np.integer], NDArray[np.integer]]],
    *,
    keep_end: bool = False,
) -> Items:
    """Lay out sequences by a pattern.

    Args:
        pattern: special tokens and slots.
        sides: for each slot's side (tokenized texts, which text of them each sequence takes [n], how many of its
            tokens [n]).
        keep_end: take the last tokens of a text instead of the first.

    Returns:
        n sequences with their token types.
    """
    lengths = num_specials(pattern) + sum(taken for _, _, taken in sides)
    offsets = offsets_of(np.asarray(lengths))
    ids = np.empty(offsets[-1], np.int32)
    types = np.empty(offsets[-1], np.int32)
    cursor = offsets[:-1].copy()
    for part in pattern:
        if isinstance(part, Special):
            ids[cursor], types[cursor] = part.id, part.type
            cursor += 1
            continue
        texts, index, taken = sides[part.side]
        where = ranges(cursor, taken)
        starts = texts.offsets[1:][index] - taken if keep_end else texts.offsets[:-1][index]
        ids[where], types[where] = texts.ids[ranges(starts, taken)], part.type
        cursor += taken
    return Items(offsets, {"ids": ids, "types": types})


def load_tokenizer(checkpoint: Checkpoint, *, trust_remote_code: bool, restore_specials: bool) -> TextTokenizer:
    """The checkpoint's tokenizer.json, or what transformers converts older files to.

    Raises:
        CheckpointError: there is no tokenizer, or not one that converts.
    """
    folder = checkpoint.tokenizer_folder
    path = folder / "tokenizer.json"
    if not path.is_file() and not any((folder / file).is_file() for file in _VOCABULARIES):
        # transformers would make up a vocabulary of special tokens, in which every text is unknown
        raise CheckpointError(
            f"{checkpoint.name} has no tokenizer", hint="expected tokenizer.json, or the vocabulary it is made from"
        )
    try:
        tokenizer = Tokenizer.from_file(str(path)) if path.is_file() else _convert(folder, trust_remote_code)
    except Exception as error:  # the Rust library raises bare Exception, transformers OSError, ValueError, ImportError
        raise CheckpointError(f"{checkpoint.name}: its tokenizer cannot be loaded: {error}") from error
    _apply_config(tokenizer, checkpoint.tokenizer_config)
    return TextTokenizer(tokenizer, checkpoint.name, checkpoint.tokenizer_config, restore_specials=restore_specials)


def _convert(folder: Path, trust_remote_code: bool) -> Tokenizer:
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    tokenizer: Tokenizer = loaded.backend_tokenizer
    return tokenizer


def _apply_config(tokenizer: Tokenizer, config: dict[str, Any]) -> None:
    """Let tokenizer_config.json overrule a BERT normaliser, as the fast BERT tokenizers have always done."""
    keys: dict[str, Literal["lowercase", "strip_accents", "handle_chinese_chars"]]
    keys = {
        "do_lower_case": "lowercase",
        "strip_accents": "strip_accents",
        "tokenize_chinese_chars": "handle_chinese_chars",
    }
    if isinstance(tokenizer.normalizer, BertNormalizer):
        for key, attribute in keys.items():
            if key in config:
                setattr(tokenizer.normalizer, attribute, config[key])
