"""Sequences assembled from texts tokenised once are the tokenizer's own encodings, token for token."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

import checkpoints
from batchscore.errors import CheckpointError
from batchscore.models import tokenizer as tokenizer_module
from batchscore.models.checkpoint import Checkpoint
from batchscore.models.tokenizer import Pattern, TextTokenizer, assemble, load_tokenizer, num_specials
from batchscore.types import Items

Tiny = Callable[[str], str]

FAMILIES = ["bert_mean", "roberta_mean", "xlmr_cls"]
SPECIAL_TEXTS = ["[SEP]", "a [SEP] b [CLS]", "</s>", "<s> a </s>", "a <mask> b", "[MASK]", "<pad>", "[UNK]"]
ODD_TEXTS = ["", " ", "\n\t", "a\x00b", "東京 你好世界", "👩‍🔬", "e\u0301", "  two  spaces ", "İstanbul", "don't"]
QUERIES, DOCUMENTS = checkpoints.pairs(12)
TEXTS = [*SPECIAL_TEXTS, *ODD_TEXTS, *QUERIES, *DOCUMENTS]


def load(folder: str | Path) -> TextTokenizer:
    return load_tokenizer(Checkpoint("tiny", Path(folder)), trust_remote_code=False)


def reference(folder: str | Path) -> Tokenizer:
    return Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))


def copied(source: str, to: Path, **tokenizer_config: Any) -> Path:
    """A checkpoint's folder with some keys of tokenizer_config.json changed."""
    folder = Path(shutil.copytree(source, to / "copy"))
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | tokenizer_config), "utf-8")
    return folder


def sequences(tokenizer: TextTokenizer, pattern: Pattern, *columns: list[str]) -> list[tuple[list[int], list[int]]]:
    """(ids, type ids) of each sequence that `pattern` makes of the texts' columns."""
    index = np.arange(len(columns[0]))
    sides = [tokenizer.tokenize(column, 10_000)[0] for column in columns]
    items = assemble(pattern, [(side, index, side.lengths) for side in sides])
    assert items.types is not None
    spans = [slice(*span) for span in pairwise(items.offsets)]
    return [(items.ids[span].tolist(), items.types[span].tolist()) for span in spans]


def ids_of(tokenizer: TextTokenizer, text: str) -> list[int]:
    return tokenizer.tokenize([text], 10_000)[0].ids.tolist()


# ---- assembled sequences


@pytest.mark.parametrize("name", FAMILIES)
def test_a_single_sequence_is_the_tokenizers_own(tiny: Tiny, name: str) -> None:
    tokenizer, own = load(tiny(name)), reference(tiny(name)).encode_batch(TEXTS)

    assert sequences(tokenizer, tokenizer.single, TEXTS) == [(e.ids, e.type_ids) for e in own]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_pair_is_the_tokenizers_own(tiny: Tiny, name: str) -> None:
    """Every text stands on either side once, next to an empty one as well."""
    tokenizer = load(tiny(name))
    first, second = [*TEXTS, *TEXTS, ""], [*TEXTS[::-1], *[""] * len(TEXTS), "a"]

    own = reference(tiny(name)).encode_batch(list(zip(first, second, strict=True)))

    assert sequences(tokenizer, tokenizer.pair, first, second) == [(e.ids, e.type_ids) for e in own]


@pytest.mark.parametrize(("name", "single", "pair"), [("bert_mean", 2, 3), ("roberta_mean", 2, 4), ("xlmr_cls", 2, 4)])
def test_specials_are_counted_by_pattern(tiny: Tiny, name: str, single: int, pair: int) -> None:
    tokenizer = load(tiny(name))

    assert (num_specials(tokenizer.single), num_specials(tokenizer.pair)) == (single, pair)


def test_assemble_takes_the_first_tokens_of_the_texts_it_is_told(tiny: Tiny) -> None:
    tokenizer = load(tiny("bert_mean"))
    texts = Items(np.array([10, 11, 12, 20, 21], np.int32), np.array([0, 3, 5]))
    sides = [(texts, np.array([1, 0]), np.array([1, 2])), (texts, np.array([0, 0]), np.array([3, 0]))]

    items = assemble(tokenizer.pair, sides)

    cls, sep = 2, 3
    assert items.ids.tolist() == [cls, 20, sep, 10, 11, 12, sep, cls, 10, 11, sep, sep]
    assert items.types is not None
    assert items.types.tolist() == [0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0, 1]
    assert items.offsets.tolist() == [0, 7, 12]


# ---- tokenize


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("slice_chars", [1, 100])
def test_texts_in_slices_are_tokenised_as_one_by_one(
    tiny: Tiny, name: str, slice_chars: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = load(tiny(name))
    whole = tokenizer.tokenize(TEXTS, 10_000)[0]

    monkeypatch.setattr(tokenizer_module, "_SLICE_CHARS", slice_chars)
    sliced = tokenizer.tokenize(TEXTS, 10_000)[0]

    one_by_one = [ids_of(tokenizer, text) for text in TEXTS]
    assert whole.ids.tolist() == sliced.ids.tolist() == sum(one_by_one, [])
    assert whole.lengths.tolist() == sliced.lengths.tolist() == [len(ids) for ids in one_by_one]


@pytest.mark.parametrize("max_tokens", [0, 1, 5])
def test_a_text_is_its_first_max_tokens(tiny: Tiny, max_tokens: int) -> None:
    tokenizer = load(tiny("roberta_mean"))

    short = tokenizer.tokenize(TEXTS, max_tokens)[0]

    assert short.ids.tolist() == sum((ids_of(tokenizer, text)[:max_tokens] for text in TEXTS), [])


def test_no_texts_are_no_sequences(tiny: Tiny) -> None:
    items = load(tiny("bert_mean")).tokenize([], 5)[0]

    assert (len(items), items.ids.tolist(), items.offsets.tolist()) == (0, [], [0])


# ---- loading


@pytest.mark.parametrize(
    ("changes", "text", "tokens"),
    [
        ({}, "Dog", ["dog"]),
        ({"do_lower_case": False}, "Dog", ["[UNK]"]),  # the vocabulary has no capitals
        ({}, "dög", ["dog"]),
        ({"strip_accents": False}, "dög", ["[UNK]"]),
        ({"do_lower_case": False, "strip_accents": True}, "dög", ["dog"]),
        ({}, "東京", ["東", "京"]),
        ({"tokenize_chinese_chars": False}, "東京", ["[UNK]"]),  # one word, and no ##京
    ],
)
def test_tokenizer_config_overrules_a_bert_normaliser(
    tiny: Tiny, tmp_path: Path, changes: dict[str, bool], text: str, tokens: list[str]
) -> None:
    folder = copied(tiny("bert_mean"), tmp_path, **changes)

    vocab = reference(folder).get_vocab()
    assert ids_of(load(folder), text) == [vocab[token] for token in tokens]


def test_do_lower_case_means_nothing_to_a_tokenizer_that_is_not_bert(tiny: Tiny, tmp_path: Path) -> None:
    folder = copied(tiny("roberta_mean"), tmp_path, do_lower_case=True)

    assert ids_of(load(folder), "Dog") == ids_of(load(tiny("roberta_mean")), "Dog") != ids_of(load(folder), "dog")


def test_truncation_and_padding_saved_in_tokenizer_json_are_off(tiny: Tiny, tmp_path: Path) -> None:
    """Checkpoints saved after training carry them; ids must neither be lost nor padded."""
    folder = copied(tiny("bert_mean"), tmp_path)
    saved = reference(folder)
    saved.enable_truncation(6)
    saved.enable_padding(length=200)
    saved.save(str(folder / "tokenizer.json"))

    assert ids_of(load(folder), "cat dog " * 30) == ids_of(load(tiny("bert_mean")), "cat dog " * 30)


def test_a_bert_vocabulary_alone_loads_through_transformers_with_equal_ids(tiny: Tiny, tmp_path: Path) -> None:
    folder = copied(tiny("bert_mean"), tmp_path)
    vocab = reference(folder).get_vocab()
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in sorted(vocab, key=vocab.__getitem__)), "utf-8")
    (folder / "tokenizer.json").unlink()

    tokenizer, own = load(folder), load(tiny("bert_mean"))

    assert (tokenizer.single, tokenizer.pair) == (own.single, own.pair)
    assert sequences(tokenizer, tokenizer.single, TEXTS) == sequences(own, own.single, TEXTS)


@pytest.mark.parametrize("content", ["{", "{}", '{"model": {"type": "Telepathy"}}'])
def test_a_broken_tokenizer_json_is_a_checkpoint_error(tiny: Tiny, tmp_path: Path, content: str) -> None:
    folder = copied(tiny("bert_mean"), tmp_path)
    (folder / "tokenizer.json").write_text(content, "utf-8")

    with pytest.raises(CheckpointError, match="^tiny: its tokenizer cannot be loaded: "):
        load(folder)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_checkpoint_without_any_tokenizer_is_a_checkpoint_error(tiny: Tiny, tmp_path: Path, name: str) -> None:
    folder = copied(tiny(name), tmp_path)
    (folder / "tokenizer.json").unlink()

    with pytest.raises(CheckpointError, match="tiny has no tokenizer"):
        load(folder)


def words(single: str, pair: str) -> Tokenizer:
    """A word tokenizer with these templates."""
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "[SEP]": 1, "a": 2, "b": 3}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single, pair, [("[SEP]", 1)])
    return tokenizer


@pytest.mark.parametrize(
    ("single", "pair"), [("$A [SEP] $A", "$A [SEP] $B"), ("$A [SEP]", "$A [SEP] $B $A")], ids=["single", "pair"]
)
def test_a_tokenizer_that_repeats_a_text_is_refused(single: str, pair: str) -> None:
    with pytest.raises(CheckpointError, match="^repeater: its tokenizer does not put fixed tokens around its texts"):
        TextTokenizer(words(single, pair), "repeater")


def test_a_tokenizer_that_puts_the_document_first_is_read_as_it_is() -> None:
    tokenizer = TextTokenizer(words("$A [SEP]", "$B [SEP] $A:1"), "swapped")

    assert sequences(tokenizer, tokenizer.pair, ["a"], ["b b"]) == [([3, 3, 1, 2], [0, 0, 0, 1])]


def test_a_tokenizer_without_specials_joins_the_texts() -> None:
    tokenizer = TextTokenizer(words("$A", "$A $B:1"), "bare")

    assert num_specials(tokenizer.pair) == 0
    assert sequences(tokenizer, tokenizer.pair, ["a b"], ["b"]) == [([2, 3, 3], [0, 0, 1])]
