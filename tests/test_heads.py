"""From states and vectors to scores: the checkpoint's own head in float32, and similarities a person can check."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

import checkpoints
from batchscore.errors import BatchscoreError, CheckpointError
from batchscore.models.arch.entry import Layer
from batchscore.models.checkpoint import Checkpoint, open_checkpoint
from batchscore.models.heads import Head, activate, answer_head, load_modules, make_activation, take_head, value_range
from batchscore.models.load import LoadedModel, load_model
from batchscore.models.resolve import resolve
from batchscore.models.similarity import VECTOR_SIMILARITIES
from batchscore.models.spec import DenseSpec
from batchscore.models.text.tokenizer import load_tokenizer
from batchscore.scorer import Scorer

Tiny = Callable[[str], str]

IDENTITY, TANH = "torch.nn.modules.linear.Identity", "torch.nn.modules.activation.Tanh"

# ---- activations


@pytest.mark.parametrize(
    ("name", "scores"),
    [
        ("torch.nn.modules.activation.Sigmoid", [0.5, 0.75]),
        ("torch.nn.modules.activation.Tanh", [0.0, 0.8]),
        ("torch.nn.modules.linear.Identity", [0.0, 1.0986123]),
        ("torch.nn.Identity", [0.0, 1.0986123]),
    ],
)
def test_an_activation_is_found_by_its_dotted_name(name: str, scores: list[float]) -> None:
    logits = torch.tensor([0.0, np.log(3)])

    assert activate(make_activation(name), logits).tolist() == pytest.approx(scores)


class RoundsByPosition(nn.Module):
    """A sigmoid that rounds up in the first places of an array and down in the last, as a vectorised one may."""

    def forward(self, x: Tensor) -> Tensor:
        bits = torch.finfo(x.dtype).eps * (torch.arange(x.numel()).reshape(x.shape) % 8 - 4)
        return torch.sigmoid(x) * (1 + bits)


@pytest.mark.parametrize("activation", [nn.Sigmoid(), nn.Tanh(), nn.GELU(), RoundsByPosition()], ids=repr)
@pytest.mark.parametrize("count", [1, 3, 8, 17, 63, 64, 65, 501])
def test_equal_logits_give_equal_scores_wherever_they_stand(activation: nn.Module, count: int) -> None:
    """In one array, and in arrays of another length or with other neighbours."""
    logits = torch.linspace(-7, 7, count)
    scores = activate(activation, logits)
    repeated = activate(activation, logits.repeat(5))
    shorter = torch.cat([activate(activation, logits[place : place + 1]) for place in range(count)])

    assert scores.dtype == torch.float32
    assert torch.equal(repeated, scores.repeat(5))
    assert torch.equal(shorter, scores)
    assert torch.equal(activate(activation, logits.flip(0)[:, None])[:, 0], scores.flip(0))


@pytest.mark.parametrize(
    "name",
    [
        "os.system",
        "mypackage.torch.nn.Sigmoid",
        "torch.Sigmoid",
        "Sigmoid",
        "",
        "torch.nn.functional.relu",
        "torch.nn.modules.activation.Telepathy",
    ],
)
def test_a_name_outside_of_torch_nn_is_refused(name: str) -> None:
    with pytest.raises(CheckpointError, match=f"^activation '{name}' is not supported\n"):
        make_activation(name)


@pytest.mark.parametrize("name", ["torch.nn.Linear", "torch.nn.modules.rnn.LSTM"])
def test_a_layer_that_needs_sizes_is_no_activation(name: str) -> None:
    with pytest.raises(CheckpointError, match=f"^activation '{name}' is not supported\n"):
        make_activation(name)


@pytest.mark.parametrize("name", ["torch.nn.Module", "torch.nn.modules.activation.Softmax", "torch.nn.Flatten"])
def test_what_is_no_function_of_one_logit_is_refused(name: str) -> None:
    with pytest.raises(CheckpointError):
        make_activation(name)


@pytest.mark.parametrize(
    ("activation", "similarity", "values"),
    [
        ("torch.nn.modules.activation.Sigmoid", "identity", "0 to 1"),
        ("torch.nn.modules.activation.Tanh", "identity", "-1 to 1"),
        (IDENTITY, "identity", "unbounded"),
        ("torch.nn.ReLU", "identity", "unbounded"),
        (IDENTITY, "cosine", "-1 to 1"),
        (IDENTITY, "dot", "unbounded"),
        (IDENTITY, "maxsim", "up to the number of query tokens"),
    ],
)
def test_the_range_of_a_score(activation: str, similarity: str, values: str) -> None:
    assert value_range(activation, similarity) == values


# ---- the score head


def loaded(folder: str, dtype: str = "float32") -> LoadedModel:
    checkpoint = open_checkpoint(folder)
    spec, tokenizer = (
        resolve(checkpoint, {}),
        load_tokenizer(checkpoint, trust_remote_code=False, restore_specials=False),
    )
    return load_model(checkpoint, spec, tokenizer, dtype=dtype, device="cpu")


def padded(folder: str) -> dict[str, Tensor]:
    """Pairs of many lengths as one padded batch, by the tokenizers library."""
    tokenizer = Tokenizer.from_file(f"{folder}/tokenizer.json")
    tokenizer.enable_truncation(checkpoints.TOKENS)
    tokenizer.enable_padding(pad_id=tokenizer.token_to_id("[PAD]") or tokenizer.token_to_id("<pad>") or 0)
    encoded = tokenizer.encode_batch(list(zip(*checkpoints.pairs(7), strict=True)))
    columns = {"input_ids": "ids", "token_type_ids": "type_ids", "attention_mask": "attention_mask"}
    return {name: torch.tensor([getattr(e, column) for e in encoded]) for name, column in columns.items()}


@pytest.mark.parametrize("name", ["bert_ce", "roberta_ce", "xlmr_ce"])
@torch.inference_mode()
def test_body_and_score_head_give_the_logits_of_the_whole_model(tiny: Tiny, name: str) -> None:
    """Their first layer is the pooler of BERT's body, and the first of the two of RoBERTa's classifier."""
    inputs = padded(tiny(name))
    whole = AutoModelForSequenceClassification.from_pretrained(tiny(name)).eval()
    parts = loaded(tiny(name))

    logits = parts.head(parts.bodies[0](**inputs).last_hidden_state[:, 0])[:, 0]

    expected = whole(**inputs).logits[:, 0]
    assert expected.std() > 0.01  # texts do differ
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-6)


def test_a_head_is_float32_whatever_its_tensors_are_in() -> None:
    """A logit rounded to 16 bits has three digits, and near documents would tie."""
    tensors = {
        "dense.weight": torch.eye(4).half(),
        "out.weight": torch.ones(1, 4).half(),
        "out.bias": torch.ones(1).half(),
    }
    head = Head((Layer("dense", "tanh"), Layer("out")), tensors, 1e-5)

    assert {parameter.dtype for parameter in head.parameters()} == {torch.float32}
    assert head(torch.tensor([[0.1, 0.2, 0.3, 0.4]])).tolist() == [
        [pytest.approx(1 + np.tanh([0.1, 0.2, 0.3, 0.4]).sum())]
    ]


@torch.inference_mode()
def test_a_layer_whose_weight_is_a_vector_is_a_layer_norm_with_the_checkpoints_epsilon() -> None:
    states = torch.tensor([[1.0, 3.0]])
    tensors = {"norm.weight": torch.tensor([1.0, 2.0])}

    found = Head((Layer("norm"),), tensors, 3.0)(states)

    assert found.tolist() == [pytest.approx([-0.5, 1.0])]  # the deviation is sqrt(1 + 3)


def test_a_head_is_taken_from_a_checkpoints_tensors_whatever_its_backbone_is_called() -> None:
    tensors = {
        name: torch.zeros(1)
        for name in ("bert.pooler.dense.weight", "bert.pooler.dense.bias", "classifier.weight", "x")
    }

    head = take_head((Layer("pooler.dense", "tanh"), Layer("classifier")), tensors)

    assert sorted(head) == ["classifier.weight", "pooler.dense.bias", "pooler.dense.weight"]
    assert list(tensors) == ["x"]


def test_a_layer_that_two_tensors_could_be_is_refused() -> None:
    tensors = {"a.classifier.weight": torch.zeros(1), "b.classifier.weight": torch.zeros(1)}

    with pytest.raises(
        CheckpointError, match=r"^the head's classifier\.weight could be any of a\.classifier\.weight, b\."
    ):
        take_head((Layer("classifier"),), tensors)


def test_a_vocabulary_layer_shares_the_rows_of_the_token_table_and_has_its_bias_beside_it() -> None:
    """As transformers saves a masked language model: the decoder's weight is tied, its bias one level up."""
    table, bias = torch.eye(3), torch.ones(3)
    tensors = {"bert.embeddings.word_embeddings.weight": table, "cls.predictions.bias": bias}

    head = take_head((Layer("cls.predictions.decoder"),), tensors)

    assert (head["cls.predictions.decoder.weight"] is table, head["cls.predictions.decoder.bias"] is bias) == (
        True,
        True,
    )
    assert list(tensors) == ["bert.embeddings.word_embeddings.weight"]  # which the body needs too


@pytest.mark.parametrize(
    ("method", "rows", "logit"),
    [("no_post_processing", [[3.0, 4.0]], 11.0), ("from_2_way_softmax", [[1.0, 1.0], [3.0, 4.0]], 8.0)],
)
def test_answer_tokens_make_a_head_of_their_rows(method: Any, rows: list[list[float]], logit: float) -> None:
    """[true], or [false, true]: the sigmoid of a difference of logits is the softmax over the two."""
    assert answer_head(torch.tensor(rows), method)(torch.tensor([[1.0, 2.0]])).tolist() == [[logit]]


@pytest.mark.parametrize(
    ("method", "logit"), [("no_post_processing", math.tanh(2)), ("from_2_way_softmax", math.tanh(2) - math.tanh(1))]
)
def test_each_logit_of_an_answer_is_scaled_and_softly_capped(method: Any, logit: float) -> None:
    """As Granite and Gemma 2 do, before the difference is taken."""
    rows = [[1.0], [2.0]] if method == "from_2_way_softmax" else [[2.0]]

    assert answer_head(torch.tensor(rows), method, 0.5, 5.0)(torch.tensor([[10.0]])).item() == pytest.approx(logit * 5)


def test_answer_rows_are_subtracted_in_float32() -> None:
    """Both numbers are exact in bfloat16; their difference is not, and would be 255."""
    head = answer_head(torch.tensor([[256.0], [1.0078125]]).bfloat16(), "from_2_way_softmax")

    assert (head.weight.tolist(), head.weight.dtype) == ([[-254.9921875]], torch.float32)


@pytest.mark.parametrize("name", ["bert_ce", "roberta_ce"])
def test_the_head_of_a_16_bit_body_has_the_files_weights(tiny: Tiny, name: str) -> None:
    head = loaded(tiny(name), "bfloat16").head

    saved = load_file(f"{tiny(name)}/model.safetensors")
    bias = "classifier.bias" if name == "bert_ce" else "classifier.out_proj.bias"
    assert list(head.parameters())[-1].tolist() == saved[bias].tolist()


def test_a_classifier_without_its_weights_is_refused(tiny: Tiny) -> None:
    with pytest.raises(CheckpointError, match=r"has no score head: classifier\.weight is not among its weights"):
        loaded(tiny("bert_ce_headless"))


# ---- the Dense chain


def dense(folder: Path, name: str, activation: str, weights: dict[str, np.ndarray], **sizes: int) -> DenseSpec:
    """A Dense module on disk and its spec; sizes are those of the weight unless given."""
    (folder / name).mkdir()
    save_file(weights, folder / name / "model.safetensors")
    rows, columns = weights["linear.weight"].shape
    sizes = {"in_features": columns, "out_features": rows, **sizes}
    return DenseSpec(name, **sizes, bias="linear.bias" in weights, activation=activation)


def matrix(*rows: list[float]) -> np.ndarray:
    return np.array(rows, np.float32)


def test_dense_modules_are_applied_one_after_the_other(tmp_path: Path) -> None:
    first = {"linear.weight": matrix([1, 0], [0, 2], [1, 1]), "linear.bias": np.array([0, 0, -3], np.float32)}
    second = {"linear.weight": matrix([1, 1, 1])}
    specs = [dense(tmp_path, "2_Dense", "torch.nn.ReLU", first), dense(tmp_path, "3_Dense", IDENTITY, second)]

    chain = load_modules(Checkpoint("tiny", tmp_path, tmp_path), specs)

    # [1, 2] -> [1, 4, 0] -> 5; [-1, 5] -> [-1, 10, 1] -> relu -> 11
    assert chain(torch.tensor([[1.0, 2.0], [-1.0, 5.0]])).tolist() == [[5], [11]]


@torch.inference_mode()
def test_the_dense_module_of_a_checkpoint_is_its_formula(tiny: Tiny) -> None:
    checkpoint = open_checkpoint(tiny("bert_dense"))
    weights = load_file(checkpoint.folder / "2_Dense" / "model.safetensors")
    vectors = np.random.default_rng(0).standard_normal((5, 32), np.float32)

    result = load_modules(checkpoint, resolve(checkpoint, {}).modules)(torch.from_numpy(vectors))

    expected = np.tanh(vectors @ weights["linear.weight"].T + weights["linear.bias"])
    np.testing.assert_allclose(result, expected, atol=1e-6)


def test_dense_weights_are_read_from_an_old_file_in_16_bits(tmp_path: Path) -> None:
    (tmp_path / "2_Dense").mkdir()
    torch.save({"linear.weight": torch.tensor([[0.5, 2]]).half()}, tmp_path / "2_Dense" / "pytorch_model.bin")

    chain = load_modules(Checkpoint("tiny", tmp_path, tmp_path), [DenseSpec("2_Dense", 2, 1, False, TANH)])

    assert chain(torch.tensor([[2.0, -0.25]])).tolist() == [[pytest.approx(np.tanh(0.5))]]


def test_no_dense_modules_change_nothing(tmp_path: Path) -> None:
    vectors = torch.tensor([[1.0, -2.0]])

    assert load_modules(Checkpoint("tiny", tmp_path, tmp_path), [])(vectors).tolist() == [[1, -2]]


@pytest.mark.parametrize("wrong", [{"in_features": 3}, {"out_features": 5}], ids=str)
def test_dense_weights_of_other_sizes_are_refused(tmp_path: Path, wrong: dict[str, int]) -> None:
    spec = dense(tmp_path, "2_Dense", TANH, {"linear.weight": matrix([1, 0], [0, 1])}, **wrong)

    with pytest.raises(
        CheckpointError, match=r"^tiny: weights of module '2_Dense' do not fit its config\.json, which says "
    ):
        load_modules(Checkpoint("tiny", tmp_path, tmp_path), [spec])


def test_a_dense_bias_that_the_config_promises_and_the_file_lacks_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    """sentence-transformers loads a Dense module strictly; a missing weight is an error, never a zero."""
    folder = Path(shutil.copytree(tiny("bert_dense"), tmp_path / "copy"))
    weights = load_file(folder / "2_Dense" / "model.safetensors")
    save_file({"linear.weight": weights["linear.weight"]}, folder / "2_Dense" / "model.safetensors")
    assert json.loads((folder / "2_Dense" / "config.json").read_text("utf-8"))["bias"]

    with pytest.raises(CheckpointError, match="2_Dense"):
        Scorer(str(folder), device="cpu", dtype="float32")


def test_a_dense_bias_is_added(tmp_path: Path) -> None:
    weights = {"linear.weight": matrix([1, 0]), "linear.bias": np.array([5], np.float32)}
    spec = dense(tmp_path, "2_Dense", IDENTITY, weights)

    assert load_modules(Checkpoint("tiny", tmp_path, tmp_path), [spec])(torch.tensor([[2.0, 3.0]])).tolist() == [[7]]


def test_a_dense_tensor_that_nothing_reads_is_refused(tmp_path: Path) -> None:
    spec = dense(tmp_path, "2_Dense", TANH, {"linear.weight": matrix([1, 0]), "linear.scale": np.zeros(1, np.float32)})

    with pytest.raises(CheckpointError, match="'2_Dense' do not fit"):
        load_modules(Checkpoint("tiny", tmp_path, tmp_path), [spec])


def test_a_dense_module_without_weights_is_refused(tiny: Tiny) -> None:
    checkpoint = open_checkpoint(tiny("bert_missing_dense"))

    with pytest.raises(CheckpointError, match=r"module '2_Dense' has no weights") as caught:
        load_modules(checkpoint, resolve(checkpoint, {}).modules)

    assert caught.value.hint == "expected model.safetensors or pytorch_model.bin in 2_Dense/"


def test_a_dense_module_that_does_not_fit_the_pooling_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny("bert_dense"), tmp_path / "copy"))
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode": ["cls", "mean"]}))

    with pytest.raises(BatchscoreError), Scorer(str(folder), device="cpu", dtype="float32") as scorer:
        scorer.score("cat", "dog")


# ---- similarities


def rows(*vectors: list[float]) -> Tensor:
    return torch.tensor(vectors, dtype=torch.float32)


@pytest.mark.parametrize(("name", "scores"), [("cosine", [0.8, -1, 0]), ("dot", [20, -2, 0])])
def test_a_similarity_of_two_vectors(name: str, scores: list[float]) -> None:
    """The vector of a text of which nothing counts is zero; its cosine is 0."""
    queries, documents = rows([3, 4], [1, 0], [1, 1]), rows([0, 5], [-2, 0], [0, 0])

    pairs = np.arange(3), np.arange(3)
    assert VECTOR_SIMILARITIES[name](queries, documents, *pairs).tolist() == pytest.approx(scores)


@pytest.mark.parametrize("name", ["cosine", "dot"])
def test_rows_that_are_all_one_pair_have_one_score(name: str) -> None:
    queries, documents = torch.tensor([[1.0, 0.0], [3.0, 4.0]]), torch.tensor([[0.6, 0.8], [0.0, 2.0]])
    score = VECTOR_SIMILARITIES[name]
    [once] = score(queries, documents, np.array([1]), np.array([0])).tolist()

    assert score(queries, documents, np.ones(5, int), np.zeros(5, int)).tolist() == [once] * 5
