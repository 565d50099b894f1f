"""SigLIP's tokenizer, which transformers has in Python alone, as one of `tokenizers`."""

from __future__ import annotations

import re
import string
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

SIGLIP = "SiglipTokenizer"  # its name
_SPACE = "▁"


def siglip_tokenizer(loaded: Any) -> Tokenizer:
    """The tokens that a `SiglipTokenizer` gives, with an end token also behind one that a text spells out.

    That class puts a space before a text, then drops punctuation and makes spaces single. So a text that begins with a
    space has two, unless SentencePiece's table takes one for the other; one that begins with punctuation has one, which
    is written in its place, since `tokenizers` sees no beginning where it is dropped.
    """
    from transformers.convert_slow_tokenizer import SpmConverter

    proto = SpmConverter(loaded).proto
    tokenizer = Tokenizer(_model(proto))
    table = proto.normalizer_spec.precompiled_charsmap
    punctuation = f"[{re.escape(string.punctuation)}]"
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Replace(_SPACE, " "),
            *([normalizers.Lowercase()] if loaded.do_lower_case else []),
            normalizers.Replace(Regex(rf"\A{punctuation}+"), _SPACE),
            normalizers.Replace(Regex(punctuation), ""),
            normalizers.Replace(Regex(r"\A\s+"), f"{_SPACE} "),
            normalizers.Replace(Regex(r"\s+"), " "),
            *([normalizers.Precompiled(table)] if table else []),
            normalizers.Replace(Regex(" {2,}"), " "),
            normalizers.Replace(Regex(rf"[ {_SPACE}]+\z"), ""),
            normalizers.Replace(" ", _SPACE),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(_SPACE, prepend_scheme="first")
    end = str(loaded.eos_token)
    tokenizer.post_processor = processors.TemplateProcessing(
        f"$A {end}", f"$A {end} $B {end}", [(end, loaded.eos_token_id)]
    )
    tokens = dict.fromkeys((str(loaded.unk_token), end, str(loaded.pad_token)))
    tokenizer.add_special_tokens([AddedToken(token, lstrip=True, rstrip=True, normalized=False) for token in tokens])
    return tokenizer


def _model(proto: Any) -> models.Model:
    """The vocabulary of a SentencePiece model."""
    scored = [(piece.piece, piece.score) for piece in proto.pieces]
    settings = proto.trainer_spec
    if settings.model_type == settings.UNIGRAM:
        return models.Unigram(scored, settings.unk_id, settings.byte_fallback)
    vocab = {piece: number for number, (piece, _) in enumerate(scored)}
    merges = [
        (piece[:place], piece[place:])
        for piece, _ in sorted(scored, key=lambda one: -one[1])
        for place in range(1, len(piece))
        if piece[:place] in vocab and piece[place:] in vocab
    ]
    unknown = settings.unk_piece
    return models.BPE(vocab, merges, unk_token=unknown, fuse_unk=True, byte_fallback=settings.byte_fallback)
