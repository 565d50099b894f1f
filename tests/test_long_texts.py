"""Of a text far longer than what is kept of it a piece is tokenized, and nothing that is made of it can tell."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, models, normalizers

from batchscore.models.checkpoint import open_checkpoint
from batchscore.models.resolve import resolve
from batchscore.models.resolve.options import user_options
from batchscore.models.text import fitting
from batchscore.models.text import tokenizer as tokenizer_module
from batchscore.models.text.prompts import pair_work
from batchscore.models.text.sides import InputReader
from batchscore.models.text.templates import Template
from batchscore.models.text.tokenizer import _EDGE, TextTokenizer
from batchscore.types import CUT_DOCUMENT, CUT_QUERY, Cells, Pairs, Work

Tiny = Callable[[str], str]
Lay = Callable[[TextTokenizer, Pairs], Work]

PARITY = sorted(Path(os.environ.get("BATCHSCORE_PARITY", "/nowhere")).glob("*/ckpt/*/tokenizer.json"))
DISTINCT = {path.read_bytes(): path for path in reversed(PARITY)}.values()  # many checkpoints share one
CHARS = 6_000  # more than the first piece of 512 tokens has
WORDS = "the cats of Zürich don't re-read internationalization, 3.14 or 1234567 pages. ".split(" ")
SCRIPTS: dict[str, list[str]] = {
    "english": [f"{word} " for word in WORDS],
    "lines": ["the cats\n", "don't ", "read.\n\n", "It\tis ", "\r\n", "Zürich\n"],
    "wide spaces": ["cat ", "dog" + " " * 40, "bird" + " " * 700],
    "chinese": [*"的一是在不了有和人这中大为上个国我以要他时来用们生到作地于出就分对成会可", "，", "。"],
    "chinese lines": [*"的一是在不了有和人这中大为上个国我以要他时来用们", "。\n", "\n"],
    "japanese": ["東京", "です", "の", "カタカナ", "ｶﾞ", "は", "を", "食べる", "、", "。"],
    "thai": [chr(code) for code in range(0x0E01, 0x0E3A)],
    "one word": [*"abcdefghijklmnopqrstuvwxyz"],
    "one letter": ["a"],
    "one syllable": ["the"],
    "rule": ["-"],
    "digits": [*"0123456789"],
    "words of 100": [letter * length + "." for letter in "ab" for length in (99, 100, 101)],
    "emoji": ["👩‍🔬", "🙂", "🇫🇷", "🇩🇪", "👍🏽", "a"],
    "combining": ["e\u0301", "a\u0323\u0301", "n", "\u0303", "한", "ᄒ", "ᅡ", "ᆫ"],
    "marks": ["\u0301", "\u0323", "\u0327"],
    "code": ["def f(x):\n", "    return x\n", "\t\tif (a==b) {\n", "}\n\n", "https://a.example/b?c=%20&d", "→", " "],
    "special tokens": ["[SEP]", "</s>", "<mask>", "<|im_end|>", " cat", " "],
}
LETTERS = [*SCRIPTS].index("one letter")  # read whole where the end is kept, as all that has no edge of a word


def text_of(script: str, chars: int, seed: int = 0) -> str:
    pick = random.Random(f"{script} {seed}")
    return "".join(pick.choices(SCRIPTS[script], k=chars // min(map(len, SCRIPTS[script]))))[:chars]


@cache
def texts() -> list[str]:
    mixed = "".join(text_of(script, 500, seed) for seed in range(2) for script in SCRIPTS)
    return [*(text_of(script, CHARS) for script in SCRIPTS), mixed]


class Counting:
    """A tokenizer that knows how many characters it was given."""

    def __init__(self, own: Tokenizer) -> None:
        self.own, self.chars = own, 0

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.own, name)
        if not name.startswith("encode"):
            return method

        def counted(given: str | list[str], *rest: Any, **options: Any) -> Any:
            self.chars += len(given) if isinstance(given, str) else sum(map(len, given))
            return method(given, *rest, **options)

        return counted


# ---- ids


@pytest.mark.parametrize(
    "source",
    [*DISTINCT, "bert_mean", "roberta_mean", "xlmr_cls"],
    ids=lambda s: s if isinstance(s, str) else s.parts[-2],
)
def test_the_ids_of_a_piece_are_those_of_the_whole_text(tiny: Tiny, source: str | Path) -> None:
    own = Tokenizer.from_file(str(source) if isinstance(source, Path) else f"{tiny(source)}/tokenizer.json")
    tokenizer = TextTokenizer(own, "long")
    whole = [encoding.ids for encoding in own.encode_batch_fast(texts(), add_special_tokens=False)]

    with_edges = [place for place, text in enumerate(texts()) if place == LETTERS or _EDGE.search(text)]

    for max_tokens in (1, 8, 64, 512):
        starts = tokenizer.tokenize(texts(), max_tokens)
        ends = tokenizer.tokenize([texts()[place] for place in with_edges], max_tokens, keep_end=True)

        for (items, lengths), places, kept in (
            (starts, range(len(whole)), slice(max_tokens)),
            (ends, with_edges, slice(-max_tokens, None)),
        ):
            for found, length, place in zip(np.split(items.ids, items.offsets[1:-1]), lengths, places, strict=True):
                ids = whole[place]
                assert found.tolist() == ids[kept], texts()[place][:40]
                assert length == len(ids) or min(length, len(ids)) > max_tokens


@pytest.mark.parametrize("name", ["bert_mean", "roberta_mean", "xlmr_cls"])
def test_a_long_text_is_shortened_as_if_read_whole(tiny: Tiny, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = TextTokenizer(Tokenizer.from_file(f"{tiny(name)}/tokenizer.json"), "long")
    found = [tokenizer.shorten(text, max_tokens) for text in texts() for max_tokens in (0, 300)]

    monkeypatch.setattr(tokenizer_module, "_CHARS_A_TOKEN", CHARS)

    assert found == [tokenizer.shorten(text, max_tokens) for text in texts() for max_tokens in (0, 300)]


# ---- windows

JUDGE = "read the page : {{ query }} . is it on the line : {{ document }}\n? open answer :"
IN_PIECES = "read : {{ query }}{{ piece }} . {{ piece }}is it on {{ document }}{{ piece }} ? open{{ piece }} answer :"
LISTED = "{% for document in documents %} / {{ document }}<|embed_token|>{% endfor %} query {{ query }}<|rerank_token|>"


def pairs_of(chars: int) -> Pairs:
    """A short and a long query, each with documents of a few scripts."""
    scripts = ["english", "lines", "code"]
    long = [text_of(script, 6_000) * (chars // 6_000) for script in scripts]
    queries, documents = ["the cat", "Zürich, " + long[0][: chars // 2]], ["a dog", *long]
    return Pairs(Cells.of([q for q in queries for _ in documents]), Cells.of(documents * len(queries)))


def laid_out(
    tiny: Tiny, name: str, template: str, **changes: Any
) -> tuple[TextTokenizer, Counting, Callable[[Pairs], Work]]:
    checkpoint = open_checkpoint(tiny(name))
    spec = replace(resolve(checkpoint, user_options({"max_length": 64})), **changes)
    own = Tokenizer.from_file(f"{tiny(name)}/tokenizer.json")
    if spec.listwise:
        own.add_special_tokens(["<|rerank_token|>", "<|embed_token|>"])
    tokenizer = TextTokenizer(own, name)
    counting = tokenizer._tokenizer = Counting(own)  # type: ignore[assignment]

    def lay(pairs: Pairs) -> Work:
        reader = InputReader(spec, tokenizer, Template(template) if template else None, None)
        shorter, _ = reader.shortened(pairs)
        return (reader.pair_work if spec.score_type == "cross-encoder" else reader.text_work)(shorter)

    return tokenizer, counting, lay


ALL_WAYS = [
    ("bert_ce", "", {}),
    ("bert_ce", "", {"truncation_side": "left"}),
    ("roberta_ce", "", {"query_prompt": "find: "}),
    ("roberta_ce", "", {"truncation": "prompt-end"}),
    ("roberta_ce", "", {"truncation": "prompt-end", "truncation_side": "right"}),
    ("xlmr_ce", "", {"truncation": "prompt-end", "truncation_side": "left"}),
    ("bert_mean", "", {}),
    ("roberta_mean", "", {"document_prompt": "page: ", "truncation_side": "left"}),
    ("xlmr_cls", "", {"truncation_side": "left"}),
    ("bert_mean", "", {"truncation": "prompt-end", "truncation_side": "right"}),
    ("roberta_mean", "", {"truncation": "prompt-end", "truncation_side": "left"}),
    ("roberta_mean", "", {"max_tokens_per_query": 5, "max_tokens_per_doc": 20}),
    ("bert_ce", JUDGE, {}),
    ("roberta_ce", JUDGE, {"query_prompt": "find: "}),
    ("xlmr_ce", JUDGE, {"truncation_side": "left"}),
    ("roberta_ce", IN_PIECES, {"truncation_side": "left"}),
    ("bert_ce", IN_PIECES, {"truncation": "flag-embedding"}),
    ("xlmr_ce", IN_PIECES, {"truncation": "mxbai-rerank"}),
    ("roberta_ce", JUDGE, {"truncation": "prompt-end"}),
    ("roberta_ce", JUDGE, {"truncation": "prompt-end", "truncation_side": "left"}),
    ("bert_ce", LISTED, {"listwise": True}),
]


@pytest.mark.parametrize(("name", "template", "changes"), ALL_WAYS)
def test_a_window_of_long_texts_is_laid_out_as_if_they_were_read_whole(
    tiny: Tiny, name: str, template: str, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, counting, lay = laid_out(tiny, name, template, **changes)
    pairs = pairs_of(12_000)
    found = lay(pairs)

    monkeypatch.setattr(tokenizer_module, "_CHARS_A_TOKEN", 12_000)
    _, counting_whole, lay_whole = laid_out(tiny, name, template, **changes)  # one that knows none of them yet
    whole = lay_whole(pairs)

    assert found.items.offsets.tolist() == whole.items.offsets.tolist()
    for column in ("ids", "types", "keep", "seen"):
        np.testing.assert_array_equal(found.items.columns.get(column), whole.items.columns.get(column))
    np.testing.assert_array_equal((found.left, found.right, found.cut), (whole.left, whole.right, whole.cut))
    assert found.cut.any() or changes.get("max_tokens_per_doc")  # of which `shortened` tells
    assert counting.chars < counting_whole.chars


@pytest.mark.parametrize(("name", "template", "changes"), ALL_WAYS)
def test_texts_of_megabytes_are_not_tokenized_whole(
    tiny: Tiny, name: str, template: str, changes: dict[str, Any]
) -> None:
    _, counting, lay = laid_out(tiny, name, template, **changes)
    chars = 2_000_000

    lay(pairs_of(chars))

    assert counting.chars < chars // 10


def test_two_texts_that_both_do_not_fit_share_as_the_tokenizers_library_has_it(tiny: Tiny) -> None:
    """61 tokens to share; the 61st goes to the text with more tokens, which may have fewer characters."""
    _, _, lay = laid_out(tiny, "bert_ce", "", truncation="longest-first")
    own = Tokenizer.from_file(f"{tiny('bert_ce')}/tokenizer.json")
    own.enable_truncation(64)
    dense, sparse = "the cat " * 200 + ". " * 200, "the cat " * 200 + "x" * 3_000

    for query, document in ((dense, sparse), (sparse, dense), (dense, dense)):
        work = lay(Pairs(Cells.of([query]), Cells.of([document])))

        assert work.items.ids.tolist() == own.encode(query, document).ids


def test_a_prompt_whose_template_counts_its_texts_is_read_as_it_is(tiny: Tiny) -> None:
    """What stands in it depends on the whole text."""
    _, _, lay = laid_out(tiny, "bert_ce", "{{ query }} {{ document[:40] }} {{ document | length }}")
    long = text_of("english", 5_000)

    assert len(long) > fitting._LONG * 64
    found, expected = (lay(Pairs(Cells.of(["cat"]), Cells.of([text]))) for text in (long, long + " " * 7))
    assert not found.cut.any()
    assert found.items.ids.tolist() != expected.items.ids.tolist()


# ---- what a cut must not do


def hostile() -> Tokenizer:
    """Pairs of one letter from the left, marks in an order of their own, a token that swallows the spaces before it."""
    vocab = {token: place for place, token in enumerate(["a", "b", " ", "\u0301", "\u0323", "aa"])}
    tokenizer = Tokenizer(models.BPE(vocab, [("a", "a")]))
    tokenizer.normalizer = normalizers.NFD()
    tokenizer.add_tokens([AddedToken("<m>", lstrip=True)])
    return tokenizer


@pytest.mark.parametrize("keep_end", [False, True])
@pytest.mark.parametrize(
    "text",
    [
        "b" + "a" * 10_000,
        "b" + "a" * 10_001,
        "b" * 300 + "\u0301" * 5_000 + "\u0323" * 200 + "b" * 300,
        "\u0301" * 5_000 + "\u0323" * 200,
        "b" * 50 + " " * 10_000 + "<m>" + "a" * 99,
        " " * 10_000 + "<m>" + " " * 10_000,
        "a a " * 5_000,
    ],
)
def test_no_cut_comes_between_characters_that_are_read_together(text: str, keep_end: bool) -> None:
    own = hostile()
    whole = own.encode(text, add_special_tokens=False).ids

    for max_tokens in (1, 2, 64, 200):
        found, _ = TextTokenizer(own, "hostile").tokenize([text], max_tokens, keep_end=keep_end)

        assert found.ids.tolist() == (whole[-max_tokens:] if keep_end else whole[:max_tokens])


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_sequence_without_special_tokens_tells_that_it_was_cut(tiny: Tiny, side: Any) -> None:
    tokenizer = TextTokenizer(hostile(), "bare")
    spec = resolve(open_checkpoint(tiny("bert_ce")), user_options({"max_length": 64}))
    spec = replace(spec, truncation="prompt-end", truncation_side=side)

    work = pair_work(tokenizer, spec, Pairs(Cells.of(["", ""]), Cells.of(["b" * 64, "b" * 65])))

    assert (work.items.lengths.tolist(), work.cut.tolist()) == ([64, 64], [0, CUT_QUERY | CUT_DOCUMENT])
