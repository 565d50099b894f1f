"""Each field of a spec comes from the right file, and the spec says which; what cannot give a score is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

import checkpoints
from batchscore.errors import CheckpointError, UsageError
from batchscore.models.arch.entry import Layer
from batchscore.models.checkpoint import Checkpoint
from batchscore.models.resolve import resolve
from batchscore.models.resolve.configs import load_config
from batchscore.models.resolve.options import read_values, taken_apart, user_options
from batchscore.models.spec import DenseSpec, ModelSpec
from batchscore.scorer import Scorer

Tiny = Callable[[str], str]
Edit = Callable[..., Path]

REFUSED = {"bert_ce_two_labels", "bert_bad_pooling"}
RESOLVED = [name for name in checkpoints.ROWS if name not in REFUSED]
IDENTITY, SIGMOID = "torch.nn.modules.linear.Identity", "torch.nn.modules.activation.Sigmoid"
TANH = "torch.nn.modules.activation.Tanh"
MODULES = [("Transformer", ""), ("Pooling", "1_Pooling"), ("Dense", "2_Dense"), ("Dense", "3_Dense")]
ST, POOLING = "config_sentence_transformers.json", "1_Pooling/config.json"


def resolved(folder: str | Path, **options: Any) -> ModelSpec:
    """The spec under these options, given as flags."""
    overrides = options.get("hf_overrides", {})
    checkpoint = Checkpoint("tiny", Path(folder), Path(folder), overrides)
    return resolve(checkpoint, taken_apart(read_values(user_options(options))))


def sourced(spec: ModelSpec, *names: str) -> list[tuple[Any, str]]:
    return [(getattr(spec, name), str(spec.sources[name])) for name in names]


@pytest.fixture
def edit(tiny: Tiny, tmp_path: Path) -> Edit:
    """edit(row, {file: content}): a copy of a tiny checkpoint; a dict is merged into the file, None deletes it."""

    def copy(name: str, files: dict[str, Any]) -> Path:
        folder = Path(shutil.copytree(tiny(name), tmp_path / name))
        for file, content in files.items():
            path = folder / file
            path.parent.mkdir(exist_ok=True)
            if content is None:
                path.unlink()
            elif isinstance(content, dict) and path.is_file():
                path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | content), "utf-8")
            else:
                path.write_text(json.dumps(content), "utf-8")
        return folder

    return copy


# ---- the tiny rows


@pytest.mark.parametrize("name", RESOLVED)
def test_every_field_has_a_value_that_is_json_and_a_source(tiny: Tiny, name: str) -> None:
    described = resolved(tiny(name)).describe()

    assert set(described) == {field.name for field in fields(ModelSpec)} - {"sources", "arch", "config"}
    assert json.loads(json.dumps(described)) == described
    assert all(part["source"] for part in described.values())


@pytest.mark.parametrize("name", [name for name in RESOLVED if name in checkpoints.CROSS_ENCODERS])
def test_a_classifier_of_one_label_is_a_cross_encoder(tiny: Tiny, name: str) -> None:
    spec, row = resolved(tiny(name)), f"architecture {checkpoints.ROWS[name].architecture}"

    assert sourced(spec, "score_type", "similarity", "pooling", "query_prompt", "document_prompt", "modules") == [
        ("cross-encoder", row),
        ("identity", "score type"),
        (("cls",), row),
        ("", "default"),
        ("", "score type"),
        ((), "default"),
    ]
    assert (spec.chat_template, str(spec.sources["chat_template"])) == ("", "tokenizer")  # two segments


@pytest.mark.parametrize("name", [name for name in RESOLVED if name in checkpoints.BI_ENCODERS])
def test_any_other_encoder_is_a_bi_encoder_scored_by_cosine(tiny: Tiny, name: str) -> None:
    """Whatever similarity_fn_name says: bert_dot asks for a dot product."""
    spec = resolved(tiny(name))

    assert sourced(spec, "score_type", "similarity", "activation") == [
        ("bi-encoder", f"architecture {checkpoints.ROWS[name].architecture}"),
        ("cosine", "score type"),
        (IDENTITY, "score type"),
    ]
    assert spec.head == ()


@pytest.mark.parametrize(
    ("name", "head", "first_position", "token_types", "pad_token_id"),
    [
        ("bert_ce", (Layer("pooler.dense", "tanh"), Layer("classifier")), 0, True, 0),
        ("roberta_ce", (Layer("classifier.dense", "tanh"), Layer("classifier.out_proj")), 2, False, 1),
        ("xlmr_ce", (Layer("classifier.dense", "tanh"), Layer("classifier.out_proj")), 2, False, 1),
        ("bert_mean", (), 0, True, 0),
        ("roberta_mlm", (), 2, False, 1),
        ("xlmr_cls", (), 2, False, 1),
    ],
)
def test_the_architecture_says_where_the_head_is_and_how_positions_count(
    tiny: Tiny, name: str, head: tuple[Layer, ...], first_position: int, token_types: bool, pad_token_id: int
) -> None:
    spec = resolved(tiny(name))

    row = f"architecture {checkpoints.ROWS[name].architecture}"
    assert sourced(spec, "head", "first_position", "token_types", "pad_token_id", "position_limit") == [
        (head, row),
        (first_position, row),
        (token_types, "config.json"),
        (pad_token_id, "config.json"),
        (64, "config.json"),  # of the 66 positions of a RoBERTa, two are never used
    ]


@pytest.mark.parametrize(
    ("name", "activation", "source"),
    [
        ("bert_ce", IDENTITY, "config.json"),
        ("bert_ce_tanh", TANH, "config.json"),
        ("bert_ce_default", SIGMOID, "default for one label"),
        ("roberta_ce", SIGMOID, "default for one label"),
        ("bert_ce_regression", IDENTITY, "config.json problem_type"),
    ],
)
def test_the_activation_of_each_cross_encoder(tiny: Tiny, name: str, activation: str, source: str) -> None:
    assert sourced(resolved(tiny(name)), "activation") == [(activation, source)]


@pytest.mark.parametrize(
    ("name", "pooling", "source"),
    [
        ("bert_mean", ("mean",), POOLING),
        ("bert_cls", ("cls",), POOLING),
        ("bert_max", ("max",), POOLING),
        ("bert_sqrt", ("mean_sqrt_len",), POOLING),
        ("bert_wmean", ("weightedmean",), POOLING),
        ("bert_last", ("lasttoken",), POOLING),
        ("bert_concat", ("cls", "mean"), POOLING),
        ("bert_modes_list", ("mean",), POOLING),
        ("bert_plain", ("cls",), "architecture BertModel"),
        ("roberta_mlm", ("cls",), "architecture RobertaForMaskedLM"),
    ],
)
def test_the_pooling_of_each_bi_encoder(tiny: Tiny, name: str, pooling: tuple[str, ...], source: str) -> None:
    assert sourced(resolved(tiny(name)), "pooling") == [(pooling, source)]


@pytest.mark.parametrize(
    ("name", "normalize", "lower_case", "include_prompt"),
    [
        ("bert_mean", True, False, True),
        ("bert_dot", False, False, True),
        ("xlmr_lower", True, True, True),
        ("bert_no_prompt_pooling", True, False, False),
        ("bert_plain", False, False, True),
    ],
)
def test_the_flags_of_the_sentence_transformers_files(
    tiny: Tiny, name: str, normalize: bool, lower_case: bool, include_prompt: bool
) -> None:
    spec = resolved(tiny(name))

    assert (spec.normalize, spec.lower_case, spec.include_prompt) == (normalize, lower_case, include_prompt)


def test_the_dense_chain_is_read_in_the_order_of_modules_json(edit: Edit) -> None:
    modules = [{"type": f"sentence_transformers.models.{kind}", "path": path} for kind, path in MODULES]
    second = {"in_features": 16, "out_features": 8, "bias": False, "activation_function": IDENTITY}

    spec = resolved(edit("bert_dense", {"modules.json": modules, "3_Dense/config.json": second}))

    chain = (DenseSpec("2_Dense", 32, 16, True, TANH), DenseSpec("3_Dense", 16, 8, False, IDENTITY))
    assert sourced(spec, "modules") == [(chain, "modules.json")]


@pytest.mark.parametrize(
    ("architecture", "score_type", "head"),
    [
        ("BrandNewModel", "bi-encoder", ()),
        ("BrandNewForCausalLM", "bi-encoder", ()),
        ("BrandNewLMHeadModel", "bi-encoder", ()),
        ("BrandNewForSequenceClassification", "cross-encoder", (Layer("score"),)),
    ],
)
def test_a_language_model_without_a_row_is_read_at_its_last_token(
    edit: Edit, architecture: str, score_type: str, head: tuple[Layer, ...]
) -> None:
    spec = resolved(edit("bert_plain", {"config.json": {"architectures": [architecture], "id2label": {"0": "x"}}}))

    assert (spec.score_type, spec.pooling, spec.head) == (score_type, ("lasttoken",), head)
    assert str(spec.sources["pooling"]) == f"architecture {architecture}"


# ---- variants of the files


@pytest.mark.parametrize(
    ("content", "pooling"),
    [
        ({"pooling_mode": "max"}, ("max",)),
        ({"pooling_mode": ["mean", "cls", "mean"]}, ("mean", "cls", "mean")),  # side by side in the list's order
        ({"pooling_mode_lasttoken": True}, ("mean", "lasttoken")),  # beside the mean flag that is there
    ],
    ids=str,
)
def test_both_spellings_of_pooling_modes_are_read(
    edit: Edit, content: dict[str, Any], pooling: tuple[str, ...]
) -> None:
    assert resolved(edit("bert_mean", {POOLING: content})).pooling == pooling


def test_dense_without_pooling_is_late_interaction(edit: Edit) -> None:
    modules = [{"type": f"pylate.models.{kind}", "path": path} for kind, path in MODULES if kind != "Pooling"][:2]

    spec = resolved(edit("bert_dense", {"modules.json": modules}))

    assert sourced(spec, "score_type", "similarity", "pooling") == [
        ("late-interaction", "modules.json"),
        ("maxsim", "score type"),
        ((), "score type"),
    ]
    assert [dense.source for dense in spec.modules] == ["2_Dense"]
    assert spec.query_prompt == "query: "


def test_sentence_transformers_4_saves_the_activation_under_a_key_of_its_own(edit: Edit) -> None:
    """It wins over the older key, which stays in files that were saved again."""
    folder = edit("bert_ce", {"config.json": {"sentence_transformers": {"activation_fn": TANH, "version": "4.1.0"}}})

    assert sourced(resolved(folder), "activation") == [(TANH, "config.json")]


@pytest.mark.parametrize(
    ("files", "activation", "source"),
    [
        ({ST: {"activation_fn": TANH}}, TANH, ST),
        ({ST: {"activation_fn": None}}, IDENTITY, "config.json"),
        ({"config.json": {"sentence_transformers": {"version": "4.1.0"}}}, IDENTITY, "config.json"),
        ({"config.json": {"problem_type": "regression"}}, IDENTITY, "config.json"),
        (
            {"config.json": {"sbert_ce_default_activation_function": None, "problem_type": "regression"}},
            IDENTITY,
            "config.json problem_type",
        ),
        ({"config.json": {"sbert_ce_default_activation_function": None}}, SIGMOID, "default for one label"),
    ],
    ids=str,
)
def test_the_activation_is_the_first_that_is_saved(
    edit: Edit, files: dict[str, Any], activation: str, source: str
) -> None:
    assert sourced(resolved(edit("bert_ce", files)), "activation") == [(activation, source)]


@pytest.mark.parametrize(
    "file", [f"sentence_{kind}_config.json" for kind in ("roberta", "distilbert", "camembert", "albert", "xlm-roberta")]
)
def test_older_names_of_the_sentence_config_are_read(edit: Edit, file: str) -> None:
    folder = edit("bert_mean", {"sentence_bert_config.json": None, file: {"max_seq_length": 48, "do_lower_case": True}})

    assert sourced(resolved(folder), "max_length", "lower_case") == [(48, file), (True, file)]


@pytest.mark.parametrize(
    ("files", "max_length", "source"),
    [
        ({"sentence_bert_config.json": {"max_seq_length": 48}}, 48, "sentence_bert_config.json"),
        ({"sentence_bert_config.json": {"max_seq_length": 512}}, 64, "sentence_bert_config.json"),
        ({"sentence_bert_config.json": {"max_seq_length": None}}, 64, "config.json"),
        ({"sentence_bert_config.json": None}, 64, "config.json"),
        (
            {"sentence_bert_config.json": None, "tokenizer_config.json": {"model_max_length": 32}},
            32,
            "tokenizer_config.json",
        ),
        ({"sentence_bert_config.json": None, "tokenizer_config.json": {"model_max_length": 1e30}}, 64, "config.json"),
        ({"config.json": {"max_position_embeddings": 40}}, 40, "sentence_bert_config.json"),
        # rotary positions have no end; the tokenizer's length is all there is
        (
            {"sentence_bert_config.json": None, "config.json": {"max_position_embeddings": None}},
            64,
            "tokenizer_config.json",
        ),
    ],
    ids=str,
)
def test_max_length_is_the_sentence_configs_or_the_tokenizers_within_the_positions(
    edit: Edit, files: dict[str, Any], max_length: int, source: str
) -> None:
    assert sourced(resolved(edit("bert_mean", files)), "max_length") == [(max_length, source)]


def test_positions_begin_behind_the_padding_id_of_the_checkpoint(edit: Edit) -> None:
    spec = resolved(edit("roberta_mean", {"config.json": {"pad_token_id": 5}}))

    assert (spec.first_position, spec.position_limit, spec.pad_token_id) == (6, 66 - 6, 5)


@pytest.mark.parametrize(
    ("saved", "query", "document"),
    [
        ({"prompts": {}}, ("", "default"), ("", "default")),
        ({"prompts": None}, ("", "default"), ("", "default")),
        ({"prompts": {"query": "Q: ", "document": "D: ", "passage": "P: "}}, ("Q: ", ST), ("D: ", ST)),
        ({"prompts": {"query": "Q: ", "document": "", "passage": "P: "}}, ("Q: ", ST), ("P: ", ST)),
        ({"prompts": {"corpus": "C: "}}, ("", "default"), ("C: ", ST)),
        ({"prompts": {"x": "X: "}, "default_prompt_name": "x"}, ("X: ", ST), ("X: ", ST)),
        ({"prompts": {"x": "X: ", "query": "Q: "}, "default_prompt_name": "x"}, ("Q: ", ST), ("X: ", ST)),
        ({"prompts": {"x": "X: "}}, ("", "default"), ("", "default")),  # a prompt that no side and no default names
        ({"prompts": {"x": "X: "}, "default_prompt_name": "y"}, ("", "default"), ("", "default")),
    ],
    ids=str,
)
def test_each_side_takes_its_own_prompt_else_the_default(
    edit: Edit, saved: dict[str, Any], query: tuple[str, str], document: tuple[str, str]
) -> None:
    """sentence-transformers writes an empty "document" beside a real "passage", which must not win."""
    spec = resolved(edit("bert_mean", {ST: saved}))

    assert sourced(spec, "query_prompt", "document_prompt") == [query, document]


# ---- what the user asks for


def test_flags_win_over_the_config_file_over_the_checkpoints_files_over_the_row(tiny: Tiny, tmp_path: Path) -> None:
    config = tmp_path / "mine.yaml"
    config.write_text("max_length: 32\nquery_prompt: 'mine: '\n")

    with Scorer(tiny("bert_mean"), config=str(config), max_length=16, device="cpu", dtype="float32") as scorer:
        names = ("max_length", "query_prompt", "pooling", "first_position")
        assert sourced(scorer.spec, *names) == [
            (16, "--max-length"),
            ("mine: ", "mine.yaml"),  # its own files say "query: "
            (("mean",), POOLING),  # its row says cls
            (0, "architecture BertModel"),
        ]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("bert_ce", {"max_length": 1}),
        ("bert_ce", {"max_length": 64}),
        ("bert_ce", {"query_prompt": "q"}),
        ("bert_ce", {"query_prompt": "", "document_prompt": ""}),
        ("roberta_mean", {"max_length": 64, "query_prompt": "", "document_prompt": "d"}),
        ("bert_mean", {"similarity": "dot"}),
        ("bert_mean", {"score_type": "late-interaction", "query_prompt": "q"}),
        ("bert_ce", {"score_type": "bi-encoder", "similarity": "dot", "query_prompt": "q"}),
    ],
    ids=str,
)
def test_an_option_that_fits_is_taken_and_named(tiny: Tiny, name: str, options: dict[str, Any]) -> None:
    spec = resolved(tiny(name), **options)

    assert sourced(spec, *options) == [(value, f"--{key.replace('_', '-')}") for key, value in options.items()]


@pytest.mark.parametrize("name", ["bert_mean", "bert_plain", "bert_ce"])
def test_late_interaction_on_request_compares_all_tokens(tiny: Tiny, name: str) -> None:
    spec = resolved(tiny(name), score_type="late-interaction")

    assert (spec.similarity, spec.pooling, spec.include_prompt, spec.head) == ("maxsim", (), True, ())


def test_a_classifier_read_as_a_bi_encoder_is_its_body_without_the_head(tiny: Tiny) -> None:
    spec = resolved(tiny("bert_ce_two_labels"), score_type="bi-encoder")

    assert (spec.head, spec.pooling, spec.similarity, spec.activation) == ((), ("cls",), "cosine", IDENTITY)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("bert_mean", {"max_length": 0}, "--max-length 0: must be a number of tokens, k for thousands and K for 1024s"),
        ("bert_mean", {"max_length": 65}, "--max-length 65: must be between 1 and the model's 64 positions"),
        ("roberta_ce", {"max_length": 66}, "--max-length 66: must be between 1 and the model's 64 positions"),
        ("bert_ce", {"document_prompt": "d"}, "--document-prompt 'd': a cross-encoder reads both sides at once"),
        ("bert_ce", {"similarity": "dot"}, "--similarity 'dot': a cross-encoder reads both sides at once"),
        (
            "bert_mean",
            {"similarity": "dot", "score_type": "late-interaction"},
            "--similarity 'dot': a late-interaction has a similarity of its own",
        ),
    ],
)
def test_an_option_that_cannot_take_effect_is_a_usage_error(
    tiny: Tiny, name: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError) as caught:
        resolved(tiny(name), **options)

    assert caught.value.message == message


@pytest.mark.parametrize(
    "line",
    [
        "score_type: cross_encoder",
        "similarity: euclid",
        "max_length: '32 tokens'",
        "max_length: '8.5k'",
        "max_length: 0",
        "max_length: true",
        "max_length: 8 k",
        "max_length: 12.5",
        "max_length:",
        "query_prompt: 5",
    ],
)
def test_a_config_value_that_cannot_be_meant_is_a_usage_error(tiny: Tiny, tmp_path: Path, line: str) -> None:
    config = tmp_path / "mine.yaml"
    config.write_text(line)

    folder = Path(tiny("bert_mean"))
    checkpoint = Checkpoint("tiny", folder, folder)

    with pytest.raises(UsageError, match=r"mine\.yaml"):
        resolve(checkpoint, load_config("tiny", str(config)))


# ---- checkpoints that cannot give a score


@pytest.mark.parametrize(
    ("name", "files", "options", "message"),
    [
        (
            "bert_plain",
            {"config.json": {"architectures": ["GPT9Encoder"]}},
            {},
            "tiny: architecture GPT9Encoder is not supported",
        ),
        ("bert_plain", {"config.json": {"architectures": None}}, {}, "tiny: config.json names no architectures"),
        ("bert_plain", {"config.json": None}, {}, "tiny has no config.json"),
        (
            "bert_ce_two_labels",
            {},
            {},
            "tiny: its classifier has 2 labels; a relevance score needs num_labels == 1",
        ),
        (
            "bert_ce",
            {"config.json": {"id2label": None}},  # transformers takes this for two labels
            {},
            "tiny: its classifier has 2 labels; a relevance score needs num_labels == 1",
        ),
        (
            "bert_ce",
            {"config.json": {"num_labels": 3}},
            {},
            "tiny: its classifier has 3 labels; a relevance score needs num_labels == 1",
        ),
        (
            "bert_mean",
            {},
            {"score_type": "cross-encoder"},
            "tiny: BertModel has no score head, so it cannot be a cross-encoder",
        ),
        ("bert_bad_pooling", {}, {}, "tiny: 1_Pooling/config.json asks for pooling attention"),
        ("bert_mean", {POOLING: {"pooling_mode": ["cls", "b", "a"]}}, {}, f"tiny: {POOLING} asks for pooling a, b"),
        (
            "bert_mean",
            {POOLING: {"pooling_mode_mean_tokens": False}},
            {},
            "tiny: 1_Pooling/config.json asks for pooling by no mode at all",
        ),
        ("bert_dense", {"2_Dense/config.json": None}, {}, "tiny: 2_Dense/config.json lacks 'in_features'"),
    ],
)
def test_a_checkpoint_that_cannot_score_is_refused_with_the_reason(
    edit: Edit, name: str, files: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    folder = edit(name, files)

    with pytest.raises(CheckpointError) as caught:
        resolved(folder, **options)

    assert caught.value.message == message


@pytest.mark.parametrize(
    ("name", "options", "hint"),
    [
        ("bert_mean", {"score_type": "cross-encoder"}, "--score-type bi-encoder or late-interaction"),
        ("bert_ce_two_labels", {}, "a reranker trained with one label"),
        ("bert_bad_pooling", {}, "known modes: cls, max, mean, mean_sqrt_len, weightedmean, lasttoken"),
    ],
)
def test_a_refusal_says_what_to_do_instead(tiny: Tiny, name: str, options: dict[str, Any], hint: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        resolved(tiny(name), **options)

    assert caught.value.hint is not None
    assert hint in caught.value.hint


@pytest.mark.parametrize("file", ["config.json", "modules.json", POOLING, ST, "tokenizer_config.json"])
def test_a_file_that_is_not_json_is_named(edit: Edit, file: str) -> None:
    """The sentence config is left out of the way, so that the tokenizer's is read."""
    folder = edit("bert_mean", {"sentence_bert_config.json": None})
    (folder / file).write_text('{"half": ')

    with pytest.raises(CheckpointError, match=f"^tiny: {file} is not valid JSON: "):
        resolved(folder)


def test_nothing_outside_the_checkpoints_folder_is_looked_at(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at: list[Path] = []
    is_file = Path.is_file

    def noted(path: Path, **_: Any) -> bool:
        looked_at.append(path)
        return is_file(path)

    monkeypatch.setattr(Path, "is_file", noted)

    resolved(tiny("bert_mean"))

    assert [path for path in looked_at if not path.is_relative_to(tiny("bert_mean"))] == []
