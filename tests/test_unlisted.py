"""Encoders and encoder-decoders beyond their rows: what is read without one, and what is refused in which words."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer

from batchscore import Scorer
from batchscore.errors import CheckpointError, UsageError
from batchscore.models.open import open_model
from batchscore.types import Cells, Pairs

Tiny = Callable[[str], str]
QUERY, DOCUMENTS = "what is a bird", ["the bird is small", "A river runs from the mountain, and the bridge is over it!"]


# ---- what is refused


@pytest.mark.parametrize(
    ("architecture", "kind", "message"),
    [
        (
            "XLNetForSequenceClassification",
            "xlnet",
            r"it needs score\.weight, which its weights lack\nhint: batchscore models .*; transformers .* has this one",
        ),
        (
            "BertFancyForSequenceClassification",
            "bert_fancy",
            r"it needs score\.weight, .*\nhint: .* does not know this one either; did you mean Bert",
        ),
        # its attention remembers whether it has met a short text
        ("BigBirdForSequenceClassification", "big_bird", r"it needs score\.weight.*\nhint: .* has this one"),
        ("BertForTokenClassification", "bert", r"\nhint: batchscore models .* has this one"),
        ("BertFancyHead", "bert", r"\nhint: .* does not know this one either; \d+ are known"),
    ],
)
def test_an_architecture_that_cannot_be_read_is_named(tiny: Tiny, architecture: str, kind: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=f"bert_ce: architecture {architecture} is not supported.*{message}"):
        Scorer(tiny("bert_ce"), hf_overrides={"architectures": [architecture], "model_type": kind})


def test_a_classifier_of_transformers_needs_every_weight_of_its_head(tiny: Tiny, tmp_path: Path) -> None:
    """Its pooler too, which a body may lack."""
    config = transformers.RemBertConfig(
        vocab_size=300,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        input_embedding_size=16,
        output_embedding_size=16,
        num_labels=1,
    )
    net = transformers.RemBertForSequenceClassification(config)
    net.rembert.pooler = None
    net.save_pretrained(tmp_path)
    shutil.copytree(
        tiny("bert_ce"), tmp_path, ignore=lambda *_: {"config.json", "model.safetensors"}, dirs_exist_ok=True
    )

    with pytest.raises(CheckpointError, match=r"lacks rembert\.pooler\.dense\.bias, rembert\.pooler\.dense\.weight"):
        Scorer(str(tmp_path))


def test_a_body_may_call_its_pooler_without_asking_whether_it_has_one(tiny: Tiny, tmp_path: Path) -> None:
    config = transformers.SqueezeBertConfig(
        vocab_size=300,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        embedding_size=32,
    )
    net = transformers.SqueezeBertModel(config).eval()
    net.save_pretrained(tmp_path)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(Path(tiny("bert_mean"), file), tmp_path)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))

    def first(text: str) -> torch.Tensor:
        return net(torch.tensor([tokenizer.encode(text).ids])).last_hidden_state[0, 0]

    with Scorer(str(tmp_path), dtype="float32") as scorer, torch.inference_mode():
        expected = [float(torch.cosine_similarity(first(QUERY), first(document), dim=0)) for document in DOCUMENTS]
        np.testing.assert_allclose(scorer.score([QUERY] * 2, DOCUMENTS), expected, rtol=0, atol=1e-6)


def test_positions_behind_a_padding_index_are_counted_without_a_row(tiny: Tiny) -> None:
    folder = tiny("roberta")
    options = {"architectures": ["RobertaFancyModel"]}

    with pytest.raises(CheckpointError, match="a table of 128 positions, and max_length is 130\nhint: pass --max-len"):
        Scorer(folder, hf_overrides=options)
    Scorer(folder, hf_overrides=options, max_length=128)


def test_answer_tokens_are_refused_where_layers_stand_before_the_vocabulary(tiny: Tiny) -> None:
    with pytest.raises(CheckpointError, match="BertForMaskedLM has layers between its states and its vocabulary"):
        Scorer(tiny("bert_mlm"), hf_overrides={"classifier_from_token": ["dog"]})


# ---- token types


def test_token_types_are_left_out_where_the_tokenizer_names_its_outputs_without_them(
    tiny: Tiny, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny("bert_pairs"), tmp_path / "model")
    settings = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    settings["model_input_names"] = ["input_ids", "attention_mask"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")
    ids = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(QUERY, DOCUMENTS[0]).ids
    net = transformers.BertForSequenceClassification.from_pretrained(folder).eval()
    with torch.inference_mode():
        expected = net(input_ids=torch.tensor([ids])).logits.item()

    with Scorer(str(folder), dtype="float32", use_activation=False) as scorer:
        assert scorer.score(QUERY, DOCUMENTS[:1])[0] == pytest.approx(expected, abs=1e-5)
    with Scorer(tiny("bert_pairs"), dtype="float32", use_activation=False) as typed:
        assert abs(typed.score(QUERY, DOCUMENTS[:1])[0] - expected) > 1e-2


# ---- monoT5


def test_monot5_scores_are_the_probability_of_its_true(tiny: Tiny) -> None:
    with (
        Scorer(tiny("monot5"), dtype="float32") as probable,
        Scorer(tiny("monot5"), dtype="float32", use_activation=False) as odds,
    ):
        chance = np.array(probable.score(QUERY, DOCUMENTS))
        np.testing.assert_allclose(np.log(chance / (1 - chance)), odds.score(QUERY, DOCUMENTS), atol=1e-5)


def test_other_answers_of_a_monot5_can_be_named(tiny: Tiny) -> None:
    overrides = {"classifier_from_token": ["▁true", "▁false"], "method": "from_2_way_softmax"}
    with Scorer(tiny("monot5"), dtype="float32", use_activation=False) as plain:
        expected = -np.array(plain.score(QUERY, DOCUMENTS))
    with Scorer(tiny("monot5"), dtype="float32", use_activation=False, hf_overrides=overrides) as swapped:
        np.testing.assert_allclose(swapped.score(QUERY, DOCUMENTS), expected, atol=1e-6)


def test_the_end_of_a_monot5_prompt_survives_a_long_document(tiny: Tiny) -> None:
    with Scorer(tiny("monot5"), dtype="float32", max_length=40) as scorer:
        work = scorer.batcher.tokenize(Pairs(Cells.of([QUERY]), Cells.of([DOCUMENTS[1] * 9])))
    tokenizer = Tokenizer.from_file(str(Path(tiny("monot5")) / "tokenizer.json"))
    end = tokenizer.encode(" Relevant:").ids

    assert len(work.items.ids) == 40
    assert work.items.ids[-len(end) :].tolist() == end


def test_a_pooling_has_no_effect_on_what_reads_no_states(tiny: Tiny) -> None:
    for name in ("monot5", "convbert_pairs"):
        with pytest.raises(UsageError, match="this architecture has a readout of its own"):
            open_model(tiny(name), None, {"pooler_config": {"pooling_type": "MEAN"}})
