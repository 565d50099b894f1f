"""Weights that are missing, left over or not those of the config are refused, and answer tokens make a head."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from batchscore import Scorer
from batchscore.errors import CheckpointError, UsageError
from batchscore.models.checkpoint import open_checkpoint
from batchscore.models.load import LoadedModel, load_model
from batchscore.models.resolve import resolve
from batchscore.models.resolve.options import user_options
from batchscore.models.spec import Sourced
from batchscore.models.text.tokenizer import load_tokenizer

Tiny = Callable[[str], str]
Change = Callable[[dict[str, Tensor]], dict[str, Tensor]]

QUERY, DOCUMENTS = "what is a cat", ["a dog", "the old cat", "light over water"]


def rewritten(source: str, to: Path, change: Change, **config: Any) -> str:
    """A copy of a checkpoint with other tensors, and other values in its config.json."""
    folder = Path(shutil.copytree(source, to / "copy"))
    save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors", {"format": "pt"})
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | config), "utf-8")
    return str(folder)


def without(*starts: str) -> Change:
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if not name.startswith(starts)}


def beside(**extra: Tensor) -> Change:
    return lambda tensors: {**tensors, **{name.replace("__", "."): tensor for name, tensor in extra.items()}}


def loaded(folder: str, *, dry: bool = False, **options: Any) -> LoadedModel:
    checkpoint = open_checkpoint(folder)
    spec = resolve(checkpoint, user_options(options))
    tokenizer = load_tokenizer(checkpoint, trust_remote_code=False, restore_specials=False)
    return load_model(checkpoint, spec, tokenizer, dtype="float32", device="cpu", dry=dry)


def flag(overrides: dict[str, Any]) -> Sourced:
    return user_options({"hf_overrides": overrides})["hf_overrides"]


def same(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return tensors


@pytest.mark.skipif(not hasattr(transformers, "GteModel"), reason="this release of transformers has no mGTE to save")
def test_mgte_saved_again_by_transformers_keeps_its_rotary_base(tiny: Tiny, tmp_path: Path) -> None:
    """Which is then in `rope_parameters`."""

    def scores(name: str, **config: Any) -> Any:
        (tmp_path / name).mkdir()
        return Scorer(rewritten(tiny("gte"), tmp_path / name, same, **config), dtype="float32").score(QUERY, DOCUMENTS)

    first, other = (scores(f"old {theta}", rope_theta=theta, rope_scaling=None) for theta in (160_000.0, 50.0))
    saved = {"rope_theta": None, "rope_scaling": None}
    again = scores("new", rope_parameters={"rope_type": "default", "rope_theta": 160_000.0}, **saved)

    np.testing.assert_allclose(again, first, rtol=0, atol=1e-6)
    assert np.abs(np.subtract(again, other)).max() > 1e-4


def test_only_layer_norms_have_old_names(tiny: Tiny, tmp_path: Path) -> None:
    """The activation of an Apertus has a number called beta."""
    folder = rewritten(tiny("bert_mean"), tmp_path, beside(act__beta=torch.tensor(0.5)))

    with pytest.raises(CheckpointError, match=r"unread by the architecture, act\.beta\n"):
        loaded(folder)


# ---- tensors that do not fit


@pytest.mark.parametrize(
    ("name", "gone", "shown"),
    [
        ("bert_ce", ["bert.encoder.layer.0.output.dense.bias"], "lacks encoder.layer.0.output.dense.bias"),
        ("bert_mean", ["embeddings.position_embeddings"], "lacks embeddings.position_embeddings.weight"),
        ("bert_mean", ["encoder.layer.1"], "lacks encoder.layer.1.attention.output.LayerNorm.bias, "),
        (
            "roberta_ce",
            ["roberta.embeddings.LayerNorm"],
            "lacks embeddings.LayerNorm.bias, embeddings.LayerNorm.weight",
        ),
        ("bert_ce", ["classifier.weight"], "it has no score head: classifier.weight is not among its weights"),
        ("bert_ce", ["bert.pooler.dense.weight"], "it has no score head: pooler.dense.weight is not among its weights"),
        ("roberta_ce", ["classifier.dense"], "it has no score head: classifier.dense.weight is not among its weights"),
    ],
)
def test_a_missing_weight_is_an_error_that_names_it(
    tiny: Tiny, tmp_path: Path, name: str, gone: list[str], shown: str
) -> None:
    """transformers makes one up."""
    folder = rewritten(tiny(name), tmp_path, without(*gone))

    with pytest.raises(CheckpointError) as caught:
        Scorer(folder, dtype="float32")
    assert caught.value.message.startswith(f"{folder}: {shown}")


@pytest.mark.parametrize(
    "extra",
    ["encoder__layer__2__output__dense__weight", "projection__weight", "linear__weight", "embeddings__norm__weight"],
)
def test_a_weight_that_nothing_reads_is_an_error_that_names_it(tiny: Tiny, tmp_path: Path, extra: str) -> None:
    """A projection that is left out gives other vectors."""
    folder = rewritten(tiny("bert_mean"), tmp_path, beside(**{extra: torch.zeros(4, 4)}))

    with pytest.raises(CheckpointError) as caught:
        Scorer(folder, dtype="float32")
    named = extra.replace("__", ".")
    assert caught.value.message == f"{folder}: has, unread by the architecture, {named}"


@pytest.mark.parametrize("extra", ["embeddings__position_ids", "pooler__dense__weight", "cls__predictions__bias"])
def test_buffers_of_old_files_and_heads_for_other_tasks_are_left_unread(tiny: Tiny, tmp_path: Path, extra: str) -> None:
    folder = rewritten(tiny("bert_mean"), tmp_path, beside(**{extra: torch.zeros(32, 32)}))

    report = loaded(folder).report

    assert not set(report["used"]) & set(report["unused"])
    assert {*report["used"], *report["unused"]} == set(load_file(f"{folder}/model.safetensors"))
    np.testing.assert_array_equal(
        Scorer(folder, dtype="float32").score(QUERY, DOCUMENTS),
        Scorer(tiny("bert_mean"), dtype="float32").score(QUERY, DOCUMENTS),
    )


@pytest.mark.parametrize(
    "config", [{"vocab_size": 10}, {"max_position_embeddings": 32}, {"intermediate_size": 8}], ids=str
)
def test_weights_of_other_sizes_than_the_configs_are_an_error(
    tiny: Tiny, tmp_path: Path, config: dict[str, int]
) -> None:
    folder = rewritten(tiny("bert_mean"), tmp_path, same, **config)

    with pytest.raises(CheckpointError, match=f"^{folder}"):
        Scorer(folder, dtype="float32")


@pytest.mark.parametrize("labels", [1, 2])
def test_a_head_that_gives_another_number_of_scores_than_its_config_says_is_refused(
    tiny: Tiny, tmp_path: Path, labels: int
) -> None:
    wide = {"classifier.weight": torch.zeros(2, 32), "classifier.bias": torch.zeros(2)}
    folder = rewritten(tiny("bert_ce"), tmp_path, lambda tensors: {**tensors, **wide}, num_labels=labels)

    message = "its head gives 2 numbers, and a score needs one" if labels == 1 else "its classifier has 2 labels"
    with pytest.raises(CheckpointError, match=message):
        Scorer(folder, dtype="float32")


def test_a_head_for_another_task_is_reported_as_unused(tiny: Tiny, tmp_path: Path) -> None:
    folder = rewritten(tiny("bert_mean"), tmp_path, beside(cls__predictions__bias=torch.zeros(4)))

    pooler = ["pooler.dense.bias", "pooler.dense.weight"]
    assert loaded(folder).report["unused"] == ["cls.predictions.bias", *pooler]
    assert loaded(tiny("bert_ce")).report["unused"] == []
    assert loaded(tiny("bert_ce"), score_type="bi-encoder").report["unused"] == [
        *(f"bert.{name}" for name in pooler),
        "classifier.bias",
        "classifier.weight",
    ]


def test_a_dry_load_finds_the_same_faults_without_reading_weights(tiny: Tiny, tmp_path: Path) -> None:
    assert loaded(tiny("bert_mean"), dry=True).report == loaded(tiny("bert_mean")).report
    folder = rewritten(tiny("bert_mean"), tmp_path, without("encoder.layer.1.output"))
    messages = []
    for dry in (True, False):
        with pytest.raises(CheckpointError) as caught:
            loaded(folder, dry=dry)
        messages.append(caught.value.message)

    assert messages[0] == messages[1]
    assert "lacks encoder.layer.1.output.LayerNorm.bias" in messages[0]


# ---- answer tokens

ONE = {"classifier_from_token": ["cat"], "method": "no_post_processing"}
TWO = {"classifier_from_token": ["dog", "cat"], "method": "from_2_way_softmax"}


def first_states(folder: str) -> Tensor:
    """float32 [documents, hidden]: the first token's state, by transformers."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder, add_pooling_layer=False).eval()
    batch = tokenizer([QUERY] * len(DOCUMENTS), DOCUMENTS, padding=True, return_tensors="pt")
    with torch.inference_mode():
        states: Tensor = model(**batch).last_hidden_state[:, 0]
    return states


@pytest.mark.parametrize("overrides", [ONE, TWO], ids=["one", "two"])
def test_a_score_from_answer_tokens_is_the_state_times_their_embeddings(tiny: Tiny, overrides: dict[str, Any]) -> None:
    folder = tiny("bert_ce_default")
    vocab = json.loads(Path(folder, "tokenizer.json").read_text("utf-8"))["model"]["vocab"]
    rows = load_file(f"{folder}/model.safetensors")["bert.embeddings.word_embeddings.weight"]
    weight = rows[vocab["cat"]] - (rows[vocab["dog"]] if overrides is TWO else 0)

    with Scorer(
        folder, hf_overrides={**overrides, "use_sep_token": True}, use_activation=False, dtype="float32"
    ) as scorer:
        found = scorer.score(QUERY, DOCUMENTS)
        assert (scorer.spec.head, scorer.spec.answer_tokens) == ((), tuple(overrides["classifier_from_token"]))

    torch.testing.assert_close(torch.from_numpy(found), first_states(folder) @ weight, rtol=0, atol=1e-5)


def test_answer_tokens_make_one_sequence_without_a_separator(tiny: Tiny) -> None:
    """As vLLM does for language models, whose tokenizers have no pair of segments."""
    spec = resolve(open_checkpoint(tiny("bert_ce"), overrides=flag(ONE)), {})
    both = {**ONE, "use_sep_token": True}

    assert spec.chat_template == "{{ query }}{{ document }}"
    assert resolve(open_checkpoint(tiny("bert_ce"), overrides=flag(both)), {}).chat_template == ""


@pytest.mark.parametrize("token", ["elephant", "Cat", " cat", "cat dog", ""])
def test_an_answer_token_that_is_not_in_the_vocabulary_is_refused(tiny: Tiny, token: str) -> None:
    """vLLM dies on it with an assertion."""
    with pytest.raises(
        CheckpointError, match=f"the answer token '{token}' is not in the vocabulary\nhint: classifier_"
    ):
        Scorer(tiny("bert_ce"), hf_overrides={"classifier_from_token": [token]})


def test_an_answer_token_behind_the_end_of_the_embeddings_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    table = "bert.embeddings.word_embeddings.weight"
    folder = rewritten(
        tiny("bert_ce"), tmp_path, lambda tensors: {**tensors, table: tensors[table][:40].clone()}, vocab_size=40
    )

    with pytest.raises(CheckpointError, match="the answer token 'water' is not in the vocabulary"):
        Scorer(folder, hf_overrides={"classifier_from_token": ["water"]})


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"classifier_from_token": ["dog", "cat"]},
            "no_post_processing makes one score of 1 token, and classifier_from",
        ),
        (
            {**ONE, "method": "from_2_way_softmax"},
            "from_2_way_softmax makes one score of 2 tokens, and classifier_from",
        ),
        (
            {**TWO, "classifier_from_token": ["a", "b", "c"]},
            "from_2_way_softmax makes one score of 2 tokens, and class",
        ),
        (
            {**ONE, "method": "softmax"},
            "method 'softmax' is unknown\nhint: known: from_2_way_softmax, no_post_processing",
        ),
        ({"is_original_qwen3_reranker": True}, "is_original_qwen3_reranker needs classifier_from_token, like"),
        (
            {"is_original_qwen3_reranker": True, "classifier_from_token": ["yes"]},
            "from_2_way_softmax makes one score of 2 tokens, and classifier_from_token has 1",
        ),
    ],
    ids=str,
)
def test_answer_tokens_that_make_no_score_are_refused(tiny: Tiny, overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=f"^--hf-overrides: {message}"):
        Scorer(tiny("bert_ce"), hf_overrides=overrides)


@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", "Qwen3Model", "UnheardOfForCausalLM"])
def test_a_language_model_is_no_reranker_until_its_answers_are_named(tmp_path: Path, architecture: str) -> None:
    """vLLM gives it a head of zeros, and every pair 0.5."""
    (tmp_path / "config.json").write_text(json.dumps({"architectures": [architecture], "hidden_size": 8}))
    checkpoint = open_checkpoint(str(tmp_path))

    with pytest.raises(
        CheckpointError, match="its classifier has 2 labels; a relevance score needs num_labels == 1"
    ) as e:
        resolve(checkpoint, user_options({"score_type": "cross-encoder"}))
    assert "name the tokens of the answer: --hf-overrides" in str(e.value.hint)
    named = open_checkpoint(str(tmp_path), overrides=flag(TWO))
    assert resolve(named, {}).answer_tokens == ("dog", "cat")
    assert resolve(named, {}).score_type == "cross-encoder"


def test_a_head_in_the_file_wins_over_the_tokens_it_was_made_of(tiny: Tiny, tmp_path: Path) -> None:
    """A conversion to sequence classification that kept its config's answer tokens."""
    folder = rewritten(
        tiny("bert_plain"),
        tmp_path,
        beside(score__weight=torch.ones(1, 32)),
        architectures=["SomeForSequenceClassification"],
        id2label={"0": "LABEL_0"},
        **TWO,
    )

    spec = resolve(open_checkpoint(folder), {})

    assert (spec.answer_tokens, [layer.name for layer in spec.head]) == ((), ["score"])
