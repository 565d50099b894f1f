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
from tokenizers import AddedToken, Encoding, Tokenizer, normalizers
from tokenizers.normalizers import BertNormalizer

from batchscore.errors import CheckpointError, MissingDependencyError, first_line, one_line
from batchscore.models.checkpoint import Checkpoint
from batchscore.models.folder import check_content, inside, vocabularies
from batchscore.models.quiet import quiet
from batchscore.models.text.recent import RecentTokens, Tokens
from batchscore.models.text.siglip import SIGLIP, siglip_tokenizer
from batchscore.types import Items, offsets_of, ranges

_SLICE_CHARS = 2_000_000  # a tokenizer's own result takes some 150 bytes a token; keep few of them alive
_MARGIN = 128  # tokens beside a cut that may differ from the whole text's; more than a word of WordPiece has (100)
_CHARS_A_TOKEN = 8  # of a piece, to begin with
_NEAR = 256  # characters in which a place to cut is looked for
# where an end of a text may begin: tokenizers put something before its first word, so this has a second edge close by
_EDGE = re.compile(r"(?<=\S)(?:\n(?=\w)| \S{1,32}(?= \S))")
# in the scripts that vocabularies of one language are made for
_SENTENCES = [
    "The quick brown fox",
    "Быстрая рыжая лиса",
    "Η γρήγορη αλεπού",
    "الثعلب البني السريع",
    "השועל החום המהיר",
]
_SENTENCES += ["敏捷的棕色狐狸", "すばやい茶色の狐", "빠른 갈색 여우", "तेज़ भूरी लोमड़ी", "สุนัขจิ้งจอกสีน้ำตาล", "ቀይ ቀበሮ"]
_TIKTOKEN = re.compile(rb"[A-Za-z0-9+/]+=* \d+\s")  # a token in base64 and its rank
_FILE_KEYS = {"vocab_file", "merges_file", "spm_file", "tokenizer_file"}
_CLASS = "name the class that reads it as tokenizer_class in tokenizer_config.json, or add tokenizer.json"
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
        self._recent = RecentTokens()
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
        return _joined(list(self._read(texts, max_tokens, keep_end=keep_end)), max_tokens)

    def tokenize_again(
        self, texts: Sequence[str], max_tokens: int, *, keep_end: bool = False
    ) -> tuple[Items, NDArray[np.int64]]:
        """As `tokenize`, for texts that come back in one call after the other."""
        keys = [(text, max_tokens, keep_end) for text in texts]
        found = self._recent.find(keys)
        missing = [place for place, tokens in enumerate(found) if tokens is None]
        made = self._read([texts[place] for place in missing], max_tokens, keep_end=keep_end)
        for place, tokens in zip(missing, made, strict=True):
            found[place] = tokens
            self._recent.add(keys[place], tokens)
        return _joined([tokens for tokens in found if tokens is not None], max_tokens)

    def _read(self, texts: Sequence[str], max_tokens: int, *, keep_end: bool) -> Iterator[Tokens]:
        kept = slice(-max_tokens, None) if keep_end else slice(max_tokens)
        encode = self._tokenizer.encode_batch_fast
        for text, (piece, encoding) in zip(texts, _bounded(encode, texts, max_tokens, keep_end=keep_end), strict=True):
            of_piece = encoding.ids
            yield np.array(of_piece[kept], np.int32), len(of_piece) * len(text) // max(1, len(piece))

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


def _joined(texts: Sequence[Tokens], max_tokens: int) -> tuple[Items, NDArray[np.int64]]:
    lengths = np.array([length for _, length in texts], np.int64)
    joined = np.concatenate([ids for ids, _ in texts]) if texts else np.empty(0, np.int32)
    return Items(offsets_of(np.minimum(lengths, max_tokens)), {"ids": joined}), lengths


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


def load_tokenizer(
    checkpoint: Checkpoint,
    *,
    trust_remote_code: bool,
    restore_specials: bool,
    special_tokens: bool = True,
    lower_case: bool = False,
) -> TextTokenizer:
    """The checkpoint's tokenizer.json, or what transformers converts older files to.

    Args:
        checkpoint: the model's files.
        trust_remote_code: run its own tokenizer class.
        restore_specials: as in `TextTokenizer`.
        special_tokens: whether the tokenizer puts its tokens around a text.
        lower_case: lower-case texts, but not the special tokens that they spell out.

    Raises:
        CheckpointError: there is no tokenizer, not one that converts, or one that knows no words.
        MissingDependencyError: a package that reads its vocabulary is not installed.
    """
    path, pieces = (checkpoint.tokenizer_folder / name for name in ("tokenizer.json", "spiece.model"))
    # a tokenizer.json beside SigLIP's pieces is someone's conversion, which transformers does not read
    is_siglip = checkpoint.tokenizer_config.get("tokenizer_class") == SIGLIP and pieces.is_file()
    if is_siglip:
        _require_packages(checkpoint.name, [pieces])
    is_read = path.is_file() and not is_siglip
    tokenizer = _read(checkpoint, path) if is_read else _convert(checkpoint, trust_remote_code)
    _apply_config(tokenizer, checkpoint.tokenizer_config)
    _register_specials(tokenizer, checkpoint.tokenizer_config)
    if lower_case:
        own = tokenizer.normalizer
        tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), *([own] if own else [])])
    if not special_tokens:
        tokenizer.post_processor = None
    return TextTokenizer(tokenizer, checkpoint.name, checkpoint.tokenizer_config, restore_specials=restore_specials)


def _read(checkpoint: Checkpoint, path: Path) -> Tokenizer:
    check_content(checkpoint.name, path.name, path)
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the Rust library raises nothing more special
        raise CheckpointError(f"{checkpoint.name}: its tokenizer cannot be loaded: {error}") from error
    if not _knows_words(tokenizer):
        raise CheckpointError(f"{checkpoint.name}: tokenizer.json has no words: all texts become the same tokens")
    return tokenizer


def _convert(checkpoint: Checkpoint, trust_remote_code: bool) -> Tokenizer:
    from transformers import AutoTokenizer

    folder, name = checkpoint.tokenizer_folder, checkpoint.name
    files = vocabularies(folder)
    if not files:
        # transformers would make up a vocabulary of special tokens, in which every text is unknown
        raise CheckpointError(
            f"{name} has no tokenizer", hint="expected tokenizer.json, or the vocabulary it is made from"
        )
    for file in files:
        check_content(name, file, folder / file)
    for key in _FILE_KEYS & checkpoint.tokenizer_config.keys():  # some releases of transformers read them
        inside(name, f"{key} in tokenizer_config.json", str(checkpoint.tokenizer_config[key] or ""))
    listed = ", ".join(files)
    try:
        with quiet():
            loaded = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except Exception as error:  # transformers raises OSError, ValueError, TypeError, ImportError
        _require_packages(name, [folder / file for file in files])
        if isinstance(error, ImportError):
            raise MissingDependencyError(f"{name}: its tokenizer cannot be loaded: {one_line(error)}") from error
        raise CheckpointError(
            f"{name}: no tokenizer can be made from {listed}: {first_line(error)}", hint=_CLASS
        ) from error
    kind = type(loaded)
    tokenizer: Tokenizer | None
    tokenizer = siglip_tokenizer(loaded) if kind.__name__ == SIGLIP else getattr(loaded, "backend_tokenizer", None)
    if tokenizer is None:
        raise CheckpointError(f"{name}: {kind.__name__} is a tokenizer in Python, and only those in Rust are supported")
    if not _knows_words(tokenizer):
        reads = ", ".join(kind.vocab_files_names.values())
        raise CheckpointError(
            f"{name}: {kind.__name__} finds no words: it reads {reads}, and the folder has {listed}", hint=_CLASS
        )
    if _drops_letters(tokenizer):
        raise CheckpointError(
            f"{name}: {kind.__name__} drops letters of words: {listed} is for another class", hint=_CLASS
        )
    return tokenizer


def _require_packages(name: str, files: Sequence[Path]) -> None:
    """Name the package that a vocabulary needs; transformers asks for tiktoken wherever another one is missing."""
    from transformers.utils import import_utils as packages

    for file in files:
        if file.suffix in (".txt", ".json", ".codes"):
            continue
        with file.open("rb") as opened:
            is_tiktoken = bool(_TIKTOKEN.match(opened.read(4096)))
        has_sentencepiece = packages.is_sentencepiece_available() and packages.is_protobuf_available()
        if not (packages.is_tiktoken_available() if is_tiktoken else has_sentencepiece):
            package = "tiktoken" if is_tiktoken else "sentencepiece"
            raise MissingDependencyError(
                f"{name}: {file.name} is read by {package}, which is not installed",
                hint=f"pip install 'batchscore[{package}]'",
            )


def _knows_words(tokenizer: Tokenizer) -> bool:
    """Whether words have tokens of their own, in any script.

    A class that is not given its vocabulary makes one up of special tokens: then words are unknown, or nothing at all.
    """
    encodings = tokenizer.encode_batch(_SENTENCES, add_special_tokens=False)
    # besides the unknown token, such a vocabulary may have one for spaces
    return len({token for encoding in encodings for token in encoding.ids}) > 2


def _drops_letters(tokenizer: Tokenizer) -> bool:
    """Whether letters vanish beside others that have tokens: a class for merges does that to a Unigram vocabulary."""
    for sentence in _SENTENCES:
        spans = tokenizer.encode(sentence, add_special_tokens=False).offsets
        covered = {place for start, end in spans for place in range(start, end)}
        if covered and any(letter.isalpha() and place not in covered for place, letter in enumerate(sentence)):
            return True
    return False


def _register_specials(tokenizer: Tokenizer, config: Mapping[str, Any]) -> None:
    """Let a text spell out the special tokens that tokenizer_config.json names, also where tokenizer.json does not."""
    known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    named = [value for key, value in config.items() if key.endswith("_token")]
    named += config.get("additional_special_tokens") or []
    for token in named:
        content = _content(token)
        if content and content not in known and tokenizer.token_to_id(content) is not None:
            flags = {name: token[name] for name in _TOKEN_FLAGS if name in token} if isinstance(token, dict) else {}
            tokenizer.add_special_tokens([AddedToken(content, **{"normalized": False, **flags})])


_TOKEN_FLAGS = ("single_word", "lstrip", "rstrip", "normalized")


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
