"""The modules of modules.json, followed in their order: ours = the same modules written out in plain torch."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn.functional import cosine_similarity, gelu, layer_norm, linear, normalize
from transformers import BertModel

from batchscore import Scorer
from batchscore.errors import CheckpointError, InputError
from batchscore.models.checkpoint import Checkpoint
from batchscore.models.resolve import resolve
from batchscore.models.resolve.options import user_options
from batchscore.models.spec import DenseSpec, ModelSpec, NormalizeSpec
from batchscore.types import Cells, Pairs

Tiny = Callable[[str], str]
Weights = dict[str, Tensor]
Step = tuple[str, dict[str, Any], Weights]
Chained = Callable[..., str]

HIDDEN = 32
QUERIES = ["what is the old bridge", "how to bake bread", "a fast train"]
DOCUMENTS = ["the bridge over the river is old", "coffee", "the train runs from the city to the mountain every morning"]
IDENTITY = {"activation_function": "torch.nn.modules.linear.Identity"}
GELU = {"activation_function": "torch.nn.modules.activation.GELU"}
TOKENS = {"module_input_name": "token_embeddings", "module_output_name": "token_embeddings"}


@pytest.fixture
def chained(tiny: Tiny, tmp_path: Path) -> Chained:
    """chained(steps, ...): a copy of a tiny BERT with these modules behind its Transformer."""

    def make(
        *steps: Step, model_type: str | None = None, transformer: dict[str, Any] | None = None, **saved: Any
    ) -> str:
        folder = Path(shutil.copytree(tiny("bert_mean"), tmp_path / "copy", dirs_exist_ok=True))
        listed = [{"path": "", "type": "sentence_transformers.base.modules.transformer.Transformer"}]
        for place, (kind, config, weights) in enumerate(steps, 1):
            module = folder / f"{place}_{kind}"
            module.mkdir(exist_ok=True)
            (module / "config.json").write_text(json.dumps(config))
            if weights:
                save_file(weights, module / "model.safetensors")
            listed.append({"path": module.name, "type": f"sentence_transformers.any.{kind.lower()}.{kind}"})
        settings = {"prompts": {}, "model_type": model_type, **saved}
        (folder / "modules.json").write_text(json.dumps(listed))
        (folder / "config_sentence_transformers.json").write_text(json.dumps(settings))
        (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 64, **(transformer or {})}))
        return str(folder)

    return make


def drawn(name: str, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(sum(name.encode()))
    return torch.randn(*shape, generator=generator) * 0.3


def dense(out: int, into: int = HIDDEN, name: str = "dense", bias: bool = True, **config: Any) -> Step:
    weights = {"linear.weight": drawn(name, out, into), **({"linear.bias": drawn(f"{name}.b", out)} if bias else {})}
    sizes = {"in_features": into, "out_features": out, "bias": bias}
    return "Dense", {**sizes, **IDENTITY, **config}, weights


def pooling(*modes: str, include_prompt: bool = True) -> Step:
    return "Pooling", {"embedding_dimension": HIDDEN, "pooling_mode": modes, "include_prompt": include_prompt}, {}


NORMALIZE: Step = ("Normalize", {}, {})


def apply(step: Step, x: Tensor) -> Tensor:
    return linear(x, step[2]["linear.weight"], step[2].get("linear.bias"))


def states(folder: str, *texts: str) -> Tensor:
    """[tokens, dim]: what plain transformers gives for a text or a pair."""
    encoding = Tokenizer.from_file(str(Path(folder) / "tokenizer.json")).encode(*texts)
    body = BertModel.from_pretrained(folder).eval()
    ids, types = torch.tensor([encoding.ids]), torch.tensor([encoding.type_ids])
    with torch.inference_mode():
        return body(input_ids=ids, token_type_ids=types).last_hidden_state[0]


def scores(folder: str, **options: Any) -> list[float]:
    with Scorer(folder, dtype="float32", **options) as scorer:
        found: list[float] = scorer.score(QUERIES, DOCUMENTS).tolist()
        return found


def pairs(queries: list[str], documents: list[str]) -> Pairs:
    return Pairs(Cells.of(queries), Cells.of(documents))


def cosines(folder: str, vector: Callable[[Tensor], Tensor]) -> list[float]:
    sides = [[vector(states(folder, text)) for text in texts] for texts in (QUERIES, DOCUMENTS)]
    return [float(cosine_similarity(q, d, dim=0)) for q, d in zip(*sides, strict=True)]


def spec_of(folder: str, **options: Any) -> ModelSpec:
    return resolve(Checkpoint("tiny", Path(folder), Path(folder)), user_options(options))


# ---- cross-encoders


def test_a_cross_encoder_of_modules_ends_where_a_module_writes_scores(chained: Chained) -> None:
    last = dense(1, name="last", module_output_name="scores")
    folder = chained(pooling("cls"), last, model_type="CrossEncoder")

    expected = [
        torch.sigmoid(apply(last, states(folder, *pair)[0])).item() for pair in zip(QUERIES, DOCUMENTS, strict=True)
    ]
    assert scores(folder) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("mode", ["cls", "mean"])
def test_dense_layer_norm_and_dense_make_the_head_of_a_cross_encoder(chained: Chained, mode: str) -> None:
    first, last = dense(HIDDEN, **GELU), dense(1, name="last", module_output_name="scores")
    norm = {"norm.weight": drawn("scale", HIDDEN), "norm.bias": drawn("shift", HIDDEN)}
    steps = (pooling(mode), first, ("LayerNorm", {"dimension": HIDDEN}, norm), ("Dropout", {"dropout": 0.5}, {}), last)
    folder = chained(*steps, model_type="CrossEncoder", activation_fn="torch.nn.modules.linear.Identity")

    def logit(query: str, document: str) -> float:
        hidden = states(folder, query, document)
        pooled = hidden[0] if mode == "cls" else hidden.mean(0)
        normed = layer_norm(gelu(apply(first, pooled)), (HIDDEN,), norm["norm.weight"], norm["norm.bias"])
        return apply(last, normed).item()

    assert scores(folder) == pytest.approx([logit(*pair) for pair in zip(QUERIES, DOCUMENTS, strict=True)], abs=1e-5)
    assert scores(folder, padded=True) == pytest.approx(scores(folder), abs=1e-6)


def test_vectors_of_one_dimension_are_scores_of_nothing(chained: Chained) -> None:
    """A cross-encoder that was read as a bi-encoder gave 1.0 for every pair."""
    folder = chained(pooling("cls"), dense(1, module_output_name="scores"), model_type="CrossEncoder")
    assert spec_of(folder).score_type == "cross-encoder"
    assert spec_of(folder, score_type="bi-encoder").modules == ()  # that Dense is for scores

    with pytest.raises(CheckpointError, match="vectors of one number, and the cosine of such is 1 or -1"):
        Scorer(chained(pooling("cls"), dense(1)), dtype="float32")


def test_a_cross_encoder_without_a_module_that_writes_scores_is_refused(chained: Chained) -> None:
    with pytest.raises(CheckpointError, match=r"^tiny: no module of modules.json writes scores$"):
        spec_of(chained(pooling("cls"), dense(1), model_type="CrossEncoder"))


# ---- vectors


def test_modules_run_in_the_order_of_the_list(chained: Chained) -> None:
    first, second = dense(16, name="first"), dense(8, 16, name="second")
    folder = chained(pooling("cls"), NORMALIZE, first, NORMALIZE, second, NORMALIZE)

    def vector(hidden: Tensor) -> Tensor:
        return apply(second, normalize(apply(first, normalize(hidden[0], dim=0)), dim=0))

    assert scores(folder) == pytest.approx(cosines(folder, vector), abs=1e-6)
    spec = spec_of(folder)
    assert [type(module) for module in spec.modules] == [NormalizeSpec, DenseSpec, NormalizeSpec, DenseSpec]
    assert spec.normalize  # the last one, which only a dot product needs


def test_a_module_whose_output_nothing_reads_changes_nothing(chained: Chained) -> None:
    with_it = scores(chained(pooling("mean"), dense(16, module_output_name="other")))
    assert with_it == pytest.approx(scores(chained(pooling("mean"))), abs=1e-7)


@pytest.mark.parametrize("mode", ["mean", "cls", "max", "lasttoken"])
def test_a_dense_on_tokens_comes_before_the_pooling(chained: Chained, mode: str) -> None:
    on_tokens = dense(HIDDEN, **TOKENS, **GELU)
    folder = chained(on_tokens, pooling(mode))
    pool = {
        "mean": lambda hidden: hidden.mean(0),
        "cls": lambda hidden: hidden[0],
        "max": lambda hidden: hidden.max(0).values,
        "lasttoken": lambda hidden: hidden[-1],
    }[mode]

    assert scores(folder) == pytest.approx(cosines(folder, lambda h: pool(gelu(apply(on_tokens, h)))), abs=1e-5)


@pytest.mark.parametrize("side", ["tokens", "pooled"])
def test_a_dot_product_is_of_unit_vectors_only_where_they_come_last(chained: Chained, side: str) -> None:
    on_tokens: Step = ("Normalize", TOKENS, {})
    folder = chained(on_tokens, pooling("mean")) if side == "tokens" else chained(pooling("mean"), NORMALIZE)

    def vector(text: str) -> Tensor:
        hidden = states(folder, text)
        return normalize(hidden, dim=1).mean(0) if side == "tokens" else normalize(hidden.mean(0), dim=0)

    expected = [float(vector(q) @ vector(d)) for q, d in zip(QUERIES, DOCUMENTS, strict=True)]
    assert scores(folder, similarity="dot") == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("out", [HIDDEN, 16])
def test_a_residual_dense_adds_its_input(chained: Chained, out: int) -> None:
    kind, config, weights = dense(out, use_residual=True, **GELU)
    if out != HIDDEN:
        weights["residual.weight"] = drawn("residual", out, HIDDEN)
    folder = chained(pooling("mean"), (kind, config, weights))

    def vector(hidden: Tensor) -> Tensor:
        pooled = hidden.mean(0)
        beside = pooled if out == HIDDEN else linear(pooled, weights["residual.weight"])
        return gelu(apply((kind, config, weights), pooled)) + beside

    assert scores(folder) == pytest.approx(cosines(folder, vector), abs=1e-5)


def test_several_poolings_stand_side_by_side_in_the_lists_order(chained: Chained) -> None:
    step = dense(8, 3 * HIDDEN)
    folder = chained(pooling("mean", "cls", "mean"), step)

    def vector(hidden: Tensor) -> Tensor:
        return apply(step, torch.cat([hidden.mean(0), hidden[0], hidden.mean(0)]))

    assert scores(folder) == pytest.approx(cosines(folder, vector), abs=1e-5)


@pytest.mark.parametrize("prompt", ["the query : ", " "])
@pytest.mark.parametrize("mode", ["mean", "cls"])
def test_a_prompt_that_does_not_count_takes_the_token_before_it_along(chained: Chained, mode: str, prompt: str) -> None:
    """Both for vectors and for the pairs of a cross-encoder; a prompt of spaces has no token of its own."""
    left_out, last = 1 + len(prompt.split()), dense(1, name="last", module_output_name="scores")
    saved = {"prompts": {"q": prompt}, "default_prompt_name": "q"}

    def pooled(hidden: Tensor) -> Tensor:
        return hidden[left_out:].mean(0) if mode == "mean" else hidden[left_out]

    folder = chained(pooling(mode, include_prompt=False), **saved)
    sides = [[pooled(states(folder, prompt + text)) for text in texts] for texts in (QUERIES, DOCUMENTS)]
    expected = [float(cosine_similarity(q, d, dim=0)) for q, d in zip(*sides, strict=True)]
    assert scores(folder) == pytest.approx(expected, abs=1e-5)

    folder = chained(pooling(mode, include_prompt=False), last, model_type="CrossEncoder", **saved)
    read = [states(folder, prompt + q, d) for q, d in zip(QUERIES, DOCUMENTS, strict=True)]
    assert scores(folder) == pytest.approx([torch.sigmoid(apply(last, pooled(x))).item() for x in read], abs=1e-5)


# ---- late interaction


def multi_vector(chained: Chained, *steps: Step, **transformer: Any) -> str:
    return chained(*steps, model_type="MultiVectorEncoder", transformer=transformer)


def maxsim(folder: str, step: Step, *, unit: bool) -> list[float]:
    """Of texts as they stand, every token counted."""

    def vectors(text: str) -> Tensor:
        found = apply(step, states(folder, text))
        return normalize(found, dim=1) if unit else found

    return [float((vectors(q) @ vectors(d).T).max(1).values.sum()) for q, d in zip(QUERIES, DOCUMENTS, strict=True)]


@pytest.mark.parametrize("unit", [True, False])
def test_a_saved_multi_vector_encoder_does_what_its_modules_say_and_no_more(chained: Chained, unit: bool) -> None:
    step = dense(8, **TOKENS)
    tail = [("Normalize", TOKENS, {})] if unit else []
    folder = multi_vector(chained, step, ("MultiVectorMask", {"skiplist_words": []}, {}), *tail)

    assert spec_of(folder).score_type == "late-interaction"
    assert scores(folder) == pytest.approx(maxsim(folder, step, unit=unit), rel=1e-6)


def test_its_queries_are_filled_up_as_its_expansion_says(chained: Chained) -> None:
    step = dense(8, **TOKENS)

    mask = ("MultiVectorMask", {"skiplist_words": []}, {})

    def lengths(*steps: Step, **expansion: Any) -> list[int]:
        expansion = {"length": 9, "attend": False, "token": None, **expansion}
        folder = multi_vector(chained, step, *steps, query_expansion=expansion)
        with Scorer(folder, dtype="float32") as scorer:
            work = scorer.batcher.tokenize(pairs(["a", "the old bridge over the river and the new bridge"], ["a", "b"]))
            return work.items.lengths[: work.queries].tolist()

    assert lengths(mask, strategy="fixed") == [9, 9]
    assert lengths(mask, strategy="min") == [9, 12]
    assert lengths(strategy="fixed") == [3, 9]  # nothing counts what is not seen
    assert lengths(strategy="fixed", attend=True) == [9, 9]


def test_its_lengths_hold_whatever_the_tokenizer_says(chained: Chained) -> None:
    folder = multi_vector(chained, dense(8, **TOKENS), document_length=40, query_length=20)
    config = Path(folder, "tokenizer_config.json")
    config.write_text(json.dumps(json.loads(config.read_text()) | {"model_max_length": 16}))

    def lengths(**options: Any) -> tuple[int, int]:
        spec = spec_of(folder, **options)
        return spec.query_length, spec.document_length

    assert lengths() == (20, 40)
    assert lengths(max_length=30) == (20, 30)


def test_its_mask_leaves_out_words_on_the_sides_it_names(chained: Chained) -> None:
    step = dense(8, **TOKENS)

    def kept(*tasks: str) -> tuple[int, int]:
        mask = ("MultiVectorMask", {"skiplist_words": ["the", "no such word"], "skiplist_tasks": list(tasks)}, {})
        with Scorer(multi_vector(chained, step, mask), dtype="float32") as scorer:
            items = scorer.batcher.tokenize(pairs(["the old bridge"], ["the river the city"])).items
            return tuple(int(part.sum()) for part in np.split(items.filled("keep"), items.offsets[1:-1]))

    assert kept("document") == (5, 4)
    assert kept("query") == (4, 6)
    assert kept("query", "document") == (4, 4)


def test_a_document_of_which_no_token_counts_has_no_score(chained: Chained) -> None:
    mask = ("MultiVectorMask", {"skiplist_words": ["[CLS]", "[SEP]", "!"]}, {})
    with Scorer(multi_vector(chained, dense(8, **TOKENS), mask), dtype="float32") as scorer:
        with pytest.raises(InputError, match="pair 1: every token of the document is on the model's skip list"):
            scorer.score("old", ["a river", "! !"])
        assert scorer.score("!", "a river")  # of a query some tokens are left


def test_late_interaction_of_a_bi_encoder_takes_its_dense_for_tokens_and_pools_nothing(chained: Chained) -> None:
    step = dense(8)
    folder = chained(pooling("mean"), step, NORMALIZE)
    assert scores(folder, score_type="late-interaction") == pytest.approx(maxsim(folder, step, unit=True), abs=1e-5)


# ---- tables of vectors


def test_a_static_embedding_needs_no_config_and_its_tokens_may_share_rows(tiny: Tiny, tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(Path(tiny("bert_mean")) / "tokenizer.json"))
    count, folder = tokenizer.get_vocab_size(), tmp_path / "0_StaticEmbedding"
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    rows, mapping, weights = drawn("rows", 20, 8).half(), torch.arange(count) % 20, drawn("weights", count).double()
    save_file({"embeddings": rows, "mapping": mapping, "weights": weights}, folder / "model.safetensors")
    listed = [{"path": folder.name, "type": "a.StaticEmbedding"}, {"path": "1_Normalize", "type": "a.Normalize"}]
    (tmp_path / "modules.json").write_text(json.dumps(listed))

    def vector(text: str) -> Tensor:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        return (rows.float()[mapping[ids]] * weights[ids].float()[:, None]).mean(0)

    expected = [float(cosine_similarity(vector(q), vector(d), dim=0)) for q, d in zip(QUERIES, DOCUMENTS, strict=True)]
    assert scores(str(tmp_path)) == pytest.approx(expected, abs=1e-6)
    with Scorer(str(tmp_path), dtype="bfloat16") as scorer:  # the table stays as it is
        assert scorer.score(QUERIES, DOCUMENTS).tolist() == pytest.approx(expected, abs=1e-6)


def test_a_table_of_vectors_reads_as_many_tokens_as_its_tokenizer_keeps(tiny: Tiny, tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(Path(tiny("bert_mean")) / "tokenizer.json"))
    tokenizer.enable_truncation(4)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    save_file({"embedding.weight": drawn("rows", tokenizer.get_vocab_size(), 8)}, tmp_path / "model.safetensors")
    (tmp_path / "modules.json").write_text(json.dumps([{"path": "", "type": "a.StaticEmbedding"}]))

    with Scorer(str(tmp_path), dtype="float32") as scorer:
        assert scorer.score("old", "the old bridge over the river") == scorer.score("old", "the old bridge over")


# ---- refusals


@pytest.mark.parametrize(
    ("steps", "saved", "message"),
    [
        ([pooling("cls")], {"model_type": "Oracle"}, "model_type 'Oracle' is not supported"),
        (
            [pooling("cls"), dense(8, module_input_name="other")],
            {},
            "2_Dense reads other, which no module before it writes",
        ),
        (
            [pooling("cls")],
            {"transformer": {"transformer_task": "fill-mask"}},
            "1_Pooling after a backbone for fill-mask is not supported",
        ),
        ([pooling("cls")], {"transformer": {"transformer_task": "retrieval"}}, "transformer_task 'retrieval' is not"),
        (
            [pooling("cls"), ("LayerNorm", {"dimension": 8}, {})],
            {},
            "has dimension 8, and the vectors before it are 32",
        ),
        ([pooling("cls"), ("LayerNorm", {}, {})], {}, "2_LayerNorm/config.json lacks 'dimension'"),
        (
            [dense(8, **TOKENS), pooling("cls"), dense(8)],
            {},
            "has in_features 32, and the vectors before it are 8 wide",
        ),
    ],
)
def test_a_chain_that_is_not_understood_is_refused_by_name(
    chained: Chained, steps: list[Step], saved: dict[str, Any], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        spec_of(chained(*steps, **saved))


def test_a_module_behind_a_classifiers_own_head_is_refused(chained: Chained) -> None:
    scored = {"module_input_name": "scores", "module_output_name": "scores"}
    folder = chained(
        dense(1, 1, **scored), model_type="CrossEncoder", transformer={"transformer_task": "sequence-classification"}
    )
    with pytest.raises(CheckpointError, match="1_Dense after a classifier's own head is not supported"):
        spec_of(folder)


def test_a_layer_norm_of_vectors_has_no_meaning_for_late_interaction(chained: Chained) -> None:
    folder = chained(pooling("cls"), ("LayerNorm", {"dimension": HIDDEN}, {}))
    with pytest.raises(CheckpointError, match="2_LayerNorm is for pooled vectors, and late interaction has none"):
        spec_of(folder, score_type="late-interaction")


def test_weights_that_are_not_a_layer_norms_are_refused(chained: Chained) -> None:
    folder = chained(pooling("cls"), ("LayerNorm", {"dimension": HIDDEN}, {"norm.weight": drawn("scale", HIDDEN)}))
    with pytest.raises(CheckpointError, match="weights of module '2_LayerNorm' are not those of a LayerNorm"):
        Scorer(folder, dtype="float32")
