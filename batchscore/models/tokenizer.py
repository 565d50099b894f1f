"""Texts to token ids, and the fixed pattern a tokenizer puts around one text or a pair of them.

A text is tokenised once, without special tokens; sequences are assembled from those ids by `Pattern`. That makes one
tokenisation serve every pair a text is part of, and lets truncation cut a text without touching the structure.
tokenizer.json is taken as it stands: the tokenizer classes of transformers 5 rebuild normalisers from their own code,
which changes ids from one version to the next.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer
from tokenizers.normalizers import BertNormalizer

from batchscore.errors import CheckpointError
from batchscore.models.checkpoint import Checkpoint
from batchscore.types import Items, offsets_of, ranges

_SLICE_CHARS = 2_000_000  # a tokenizer's own result takes some 150 bytes a token; keep few of them alive
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


def num_specials(pattern: Pattern) -> int:
    """Tokens of a sequence that belong to no text."""
    return sum(isinstance(part, Special) for part in pattern)


class TextTokenizer:
    """A checkpoint's tokenizer, reduced to what scoring needs."""

    def __init__(self, tokenizer: Tokenizer, name: str) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self.single = self._pattern("a")
        self.pair = self._pattern("a", "b")
        self._check_patterns(name)

    def tokenize(self, texts: Sequence[str], max_tokens: int) -> tuple[Items, NDArray[np.int64]]:
        """(token ids of each text without special tokens, at most `max_tokens`; int64 [n], how many there were)."""
        ids: list[NDArray[np.int32]] = []
        lengths: list[int] = []
        for part in _slices(texts, _SLICE_CHARS):
            encoded = [encoding.ids for encoding in self._tokenizer.encode_batch_fast(part, add_special_tokens=False)]
            lengths.extend(map(len, encoded))
            ids.extend(np.array(text[:max_tokens], np.int32) for text in encoded)
        full = np.array(lengths, np.int64)
        kept = np.concatenate(ids) if ids else np.empty(0, np.int32)
        return Items(kept, offsets_of(np.minimum(full, max_tokens))), full

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

    def _check_patterns(self, name: str) -> None:
        """Assembled ids must equal the tokenizer's own; a tokenizer that mixes the sides otherwise is unknown."""
        for probe in _PROBES:
            for pattern, texts in ((self.single, probe[:1]), (self.pair, probe)):
                sides = [self.tokenize([text], 1_000)[0] for text in texts]
                only = np.zeros(1, np.int64)
                built = assemble(pattern, [(side, only, side.lengths) for side in sides])
                slots = {part.side for part in pattern if isinstance(part, Slot)}
                if len(slots) < len(texts) or built.ids.tolist() != self._encode(*texts).ids:
                    raise CheckpointError(
                        f"{name}: its tokenizer does not put fixed tokens around its texts ({texts!r})"
                    )


def _slices(texts: Sequence[str], max_chars: int) -> Iterator[Sequence[str]]:
    start, chars = 0, 0
    for position, text in enumerate(texts):
        chars += len(text)
        if chars > max_chars:
            yield texts[start : position + 1]
            start, chars = position + 1, 0
    if start < len(texts):
        yield texts[start:]


def assemble(pattern: Pattern, sides: Sequence[tuple[Items, NDArray[np.integer], NDArray[np.integer]]]) -> Items:
    """Lay out sequences by a pattern.

    Args:
        pattern: special tokens and slots.
        sides: for each slot's side (tokenised texts, which text of them each sequence takes [n], how many of its
            tokens [n]).

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
        ids[where], types[where] = texts.ids[ranges(texts.offsets[:-1][index], taken)], part.type
        cursor += taken
    return Items(ids, offsets, types)


def load_tokenizer(checkpoint: Checkpoint, trust_remote_code: bool) -> TextTokenizer:
    """The checkpoint's tokenizer.json, or what transformers converts older files to.

    Raises:
        CheckpointError: there is no tokenizer, or not one that converts.
    """
    path = checkpoint.folder / "tokenizer.json"
    if not path.is_file() and not any((checkpoint.folder / file).is_file() for file in _VOCABULARIES):
        # transformers would make up a vocabulary of special tokens, in which every text is unknown
        raise CheckpointError(
            f"{checkpoint.name} has no tokenizer", hint="expected tokenizer.json, or the vocabulary it is made from"
        )
    try:
        tokenizer = Tokenizer.from_file(str(path)) if path.is_file() else _convert(checkpoint, trust_remote_code)
    except Exception as error:  # the Rust library raises bare Exception, transformers OSError, ValueError, ImportError
        raise CheckpointError(f"{checkpoint.name}: its tokenizer cannot be loaded: {error}") from error
    _apply_config(tokenizer, checkpoint.read_json("tokenizer_config.json"))
    return TextTokenizer(tokenizer, checkpoint.name)


def _convert(checkpoint: Checkpoint, trust_remote_code: bool) -> Tokenizer:
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(checkpoint.folder, trust_remote_code=trust_remote_code)
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
