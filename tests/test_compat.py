"""`compat vllm` changes what vLLM does otherwise, field by field, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from batchscore import Scorer
from batchscore.errors import InputError, UsageError
from batchscore.jobs.commands import ScoreCommand
from batchscore.jobs.plan import Plan
from batchscore.media.policy import MediaPolicy
from batchscore.models.open import open_model
from batchscore.models.spec import COMPAT_VLLM, ModelSpec
from batchscore.scorer import set_up
from batchscore.types import CUT_NAMES, Cells, Pairs, Work

Tiny = Callable[[str], str]

ALWAYS = {"pair_of_empty": False, "truncation": "prompt-end"}
TEXTS = {**ALWAYS, "restore_specials": False}
LATE = {"score_type": "late-interaction"}


def specs(folder: str, **options: Any) -> tuple[ModelSpec, ModelSpec]:
    """(the reference library's, vLLM's)."""
    plain, vllm = (open_model(folder, None, {**options, "compat": compat})[1] for compat in (None, "vllm"))
    return plain, vllm


def changes(folder: str, **options: Any) -> Mapping[str, Any]:
    plain, vllm = (spec.describe() for spec in specs(folder, **options))
    return {name: vllm[name]["value"] for name in plain if plain[name]["value"] != vllm[name]["value"]}


def laid_out(folder: str, query: str, document: str, **options: Any) -> Work:
    with Scorer(folder, dtype="float32", compat="vllm", **options) as scorer:
        return scorer.batcher.tokenize(Pairs(Cells.of([query]), Cells.of([document])))


def words(folder: str, work: Work) -> list[str]:
    """Each sequence as its tokens."""
    tokenizer = Tokenizer.from_file(f"{folder}/tokenizer.json")
    tokens = [str(tokenizer.id_to_token(int(token))) for token in work.items.ids]
    return [" ".join(tokens[start:stop]) for start, stop in pairwise(work.items.offsets)]


# ---- the spec


@pytest.mark.parametrize(
    ("name", "options", "changed"),
    [
        ("bert_ce", {}, ALWAYS),
        ("bert_ce_tanh", {}, ALWAYS),  # the activation is read as the checkpoint says
        ("roberta_ce", {}, ALWAYS),
        ("bert_mean", {}, {**TEXTS, "query_prompt": ""}),
        ("roberta_mean", {}, TEXTS),
        ("bert_dense", {}, {**TEXTS, "query_prompt": ""}),
        ("bert_sqrt", {}, {**TEXTS, "query_prompt": "", "pooling": ["mean"]}),
        ("bert_concat", {}, {**TEXTS, "query_prompt": "", "pooling": ["mean"]}),
        ("bert_max", {}, {**TEXTS, "query_prompt": "", "pooling": ["cls"], "layers": "encoder.layer"}),
        (
            "bert_no_prompt_pooling",
            {},
            {**TEXTS, "query_prompt": "", "document_prompt": "", "include_prompt": True},
        ),
        ("xlmr_lower", {}, TEXTS),  # texts are lowered there too, pairs are not
        ("bert_mean", LATE, {**TEXTS, "query_prompt": ""}),
        ("bert_plain", LATE, TEXTS),
        ("bert_dot", LATE, {**TEXTS, "query_prompt": "", "normalize": False}),  # no Normalize beside its Pooling
    ],
    ids=str,
)
def test_vllm_reads_a_checkpoint_otherwise_in_these_fields_alone(
    tiny: Tiny, name: str, options: dict[str, Any], changed: dict[str, Any]
) -> None:
    assert changes(tiny(name), **options) == changed


@pytest.mark.parametrize("name", ["bert_ce", "bert_mean"])
def test_what_vllm_decides_is_named_as_its_source(tiny: Tiny, name: str) -> None:
    _, vllm = specs(tiny(name))

    assert {vllm.sources[field] for field in ("pair_of_empty", "truncation", "restore_specials")} == {COMPAT_VLLM}


def test_vllm_lowers_no_case_of_pairs(tiny: Tiny, tmp_path: Path) -> None:
    for file in Path(tiny("xlmr_ce")).iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "sentence_bert_config.json").write_text('{"do_lower_case": true}')

    assert changes(str(tmp_path)) == {**ALWAYS, "lower_case": False}


def test_vllm_knows_no_temperature_of_a_model(tmp_path: Path) -> None:
    config = {"architectures": ["LlamaBidirectionalForSequenceClassification"], "temperature": 0.2, "num_labels": 1}
    (tmp_path / "config.json").write_text(json.dumps({**config, "pooling": "avg", "max_position_embeddings": 64}))

    assert changes(str(tmp_path)) == {**ALWAYS, "logit_sigma": 1.0}


def test_a_config_files_prompts_give_way_to_vllms_raw_texts(tiny: Tiny) -> None:
    _, spec = open_model(tiny("bert_mean"), "e5", {"compat": "vllm"})

    assert (spec.query_prompt, spec.document_prompt) == ("", "")


# ---- the sequences


def test_an_empty_document_loses_its_separators(tiny: Tiny) -> None:
    """vLLM encodes pairs one by one, and an empty second text is none."""
    folder = tiny("bert_ce")

    work = laid_out(folder, "the cat", "")

    assert words(folder, work) == ["[CLS] the cat [SEP]"]
    assert work.items.columns.get("types") is not None
    assert work.items.columns.get("types").tolist() == [0, 0, 0, 0]
    with Scorer(folder, dtype="float32") as scorer:
        pair = scorer.batcher.tokenize(Pairs(Cells.of(["the cat"]), Cells.of([""])))
    assert words(folder, pair) == ["[CLS] the cat [SEP] [SEP]"]


def test_empty_documents_among_others_are_the_only_ones_that_do(tiny: Tiny) -> None:
    folder = tiny("bert_ce")
    with Scorer(folder, dtype="float32", compat="vllm") as scorer:
        work = scorer.batcher.tokenize(Pairs(Cells.of(["cat", "", "dog", "cat"]), Cells.of(["", "a", "", "bird"])))

    sequences = words(folder, work)
    assert [sequences[item] for item in work.right] == [
        "[CLS] cat [SEP]",
        "[CLS] [SEP] a [SEP]",
        "[CLS] dog [SEP]",
        "[CLS] cat [SEP] bird [SEP]",
    ]


@pytest.mark.parametrize(
    ("side", "sequence", "types", "cut"),
    [
        (None, "[CLS] the cat dog [SEP] a small old bird [SEP]", [0] * 5 + [1] * 5, "both"),  # longest first
        ("right", "[CLS] the cat dog fish river [SEP] a small old", [0] * 7 + [1] * 3, "both"),
        ("left", "fish river [SEP] a small old bird house city [SEP]", [0] * 3 + [1] * 7, "both"),
    ],
)
def test_a_pair_is_cut_before_its_special_tokens_or_through_them_where_a_side_is_named(
    tiny: Tiny, side: str | None, sequence: str, types: list[int], cut: str
) -> None:
    folder = tiny("bert_ce")
    query, document = "the cat dog fish river", "a small old bird house city"

    work = laid_out(folder, query, document, max_length=10, truncation_side=side)

    assert words(folder, work) == [sequence]
    assert work.items.columns.get("types") is not None
    assert work.items.columns.get("types").tolist() == types
    assert [CUT_NAMES[bits] for bits in work.cut] == [cut]


@pytest.mark.parametrize(
    ("side", "sequences"),
    [
        (None, ["[CLS] the cat [SEP]", "[CLS] a small [SEP]"]),
        ("right", ["[CLS] the cat dog", "[CLS] a small old"]),
        ("left", ["cat dog fish [SEP]", "small old bird [SEP]"]),
    ],
)
def test_a_text_is_cut_before_its_special_tokens_or_through_them_where_a_side_is_named(
    tiny: Tiny, side: str | None, sequences: list[str]
) -> None:
    folder = tiny("bert_mean")

    work = laid_out(folder, "the cat dog fish", "a small old bird", max_length=4, truncation_side=side)

    assert words(folder, work) == sequences
    assert [CUT_NAMES[bits] for bits in work.cut] == ["both"]


@pytest.mark.parametrize(
    ("side", "sequence"),
    [
        (None, "[CLS] read the cat on a small [SEP]"),
        ("right", "[CLS] read the cat on a small old"),
        ("left", "a small old bird open answer : [SEP]"),
    ],
)
def test_a_prompt_loses_its_end_whatever_stands_there(tiny: Tiny, side: str | None, sequence: str) -> None:
    folder = tiny("bert_ce")
    template = "read {{ query }} on {{ document }} open answer :"

    work = laid_out(folder, "the cat", "a small old bird", max_length=8, truncation_side=side, chat_template=template)

    assert words(folder, work) == [sequence]
    assert work.cut.any()


@pytest.mark.parametrize("name", ["bert_ce", "bert_mean"])
def test_what_fits_is_laid_out_the_same(tiny: Tiny, name: str) -> None:
    texts = Pairs(Cells.of(["the cat", "cat"]), Cells.of(["a dog", "bird, fish"]))
    for side in (None, "left", "right"):
        with Scorer(tiny(name), dtype="float32", compat="vllm", truncation_side=side) as vllm:
            found = vllm.batcher.tokenize(texts)
        with Scorer(tiny(name), dtype="float32", no_prompts=True) as plain:
            expected = plain.batcher.tokenize(texts)

        np.testing.assert_array_equal(found.items.ids, expected.items.ids)
        assert not found.cut.any()


def test_truncation_error_holds_for_vllm_too(tiny: Tiny) -> None:
    """As it does by itself, where nothing is asked for."""
    with (
        Scorer(tiny("bert_ce"), dtype="float32", compat="vllm", truncation="error", max_length=8) as scorer,
        pytest.raises(InputError, match="^pair 1: longer than max_length 8 tokens"),
    ):
        scorer.score("the cat", ["a dog", "a small old bird house city"])


def test_a_shipped_template_is_rendered_as_vllm_renders_it(tiny: Tiny) -> None:
    plain, vllm = specs(tiny("bert_ce"), chat_template="qwen3-reranker")

    assert plain.chat_template.replace("{{ piece }}", "") == vllm.chat_template + "\n"
    assert "{{ piece }}" in plain.chat_template


@pytest.mark.parametrize("kind", ["longrope", "su"])  # the second is what Phi-3's first files call it
def test_longrope_has_the_factors_for_long_sequences_where_vllm_takes_these(tiny: Tiny, kind: str) -> None:
    factors = [1 + n / 10 for n in range(8)], [4.0 + n for n in range(8)]
    pair = "the old bridge", ["a river in the city"]  # far shorter than the 24 tokens at which factors change

    def score(of_short: list[float], **options: Any) -> float:
        rope = {"rope_type": kind, "type": kind, "short_factor": of_short, "long_factor": factors[1]}
        overrides = {"rope_scaling": rope}
        with Scorer(tiny("phi3_longrope"), dtype="float32", hf_overrides=overrides, **options) as scorer:
            return float(scorer.score(*pair)[0])

    short, long = map(score, factors)
    assert abs(short - long) > 1e-3
    assert score(factors[0], compat="vllm", max_model_len=24) == pytest.approx(short, abs=1e-5)
    assert score(factors[0], compat="vllm") == pytest.approx(long, abs=1e-5)
    assert score(factors[0], compat="vllm", truncate_prompt_tokens=20) == pytest.approx(long, abs=1e-5)


def test_another_engine_than_vllm_is_not_known(tiny: Tiny) -> None:
    with pytest.raises(UsageError, match="^--compat 'tei': must be one of vllm$"):
        Scorer(tiny("bert_ce"), compat="tei")  # type: ignore[arg-type]


@pytest.mark.parametrize("asked", [{"query_prompt": "q: "}, {"query_prompt_name": "query"}])
def test_a_prompt_that_is_asked_for_is_left_out_and_the_plan_says_so(tiny: Tiny, asked: dict[str, str]) -> None:
    setup = set_up(tiny("bert_mean"), dtype="float32", compat="vllm", **asked)  # type: ignore[arg-type]
    lines = Plan(setup, ScoreCommand(), "quarantine", "auto", [], "x.parquet", {}, MediaPolicy()).lines()

    assert setup.spec.query_prompt == ""
    assert any("as vLLM reads it (--compat vllm)" in line for line in lines)
