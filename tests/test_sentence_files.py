"""What sentence-transformers, PyLate and ColBERT save beside the weights: read as they read it, or refused by name."""

from __future__ import annotations

import json
import shutil
import string
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from batchscore import Scorer
from batchscore.errors import BatchscoreError, CheckpointError, UsageError
from batchscore.models.checkpoint import Checkpoint
from batchscore.models.resolve import resolve
from batchscore.models.resolve.chain import module_kinds
from batchscore.models.resolve.options import user_options
from batchscore.models.spec import Marks, ModelSpec
from batchscore.models.text.sides import InputReader
from batchscore.models.text.tokenizer import load_tokenizer
from batchscore.runners.build import input_reader
from batchscore.types import CUT_NAMES, Cells, Items, Pairs, Work

Tiny = Callable[[str], str]
Edit = Callable[..., Checkpoint]

SAVED, POOLING, ARTIFACT = "config_sentence_transformers.json", "1_Pooling/config.json", "artifact.metadata"
IDENTITY, TANH = "torch.nn.modules.linear.Identity", "torch.nn.modules.activation.Tanh"
MARKED = {"query_prefix": "?", "document_prefix": "!", "query_length": 8, "document_length": 12, "skiplist_words": []}
PUNCTUATION = tuple(string.punctuation)


@pytest.fixture
def edit(tiny: Tiny, tmp_path: Path) -> Edit:
    """edit(row, {file: content}): a copy of a tiny checkpoint; a dict is merged into the file, None deletes it."""

    def copy(name: str, changed: dict[str, Any]) -> Checkpoint:
        folder = Path(shutil.copytree(tiny(name), tmp_path / "copy", dirs_exist_ok=True))
        for file, content in changed.items():
            path = folder / file
            path.parent.mkdir(exist_ok=True)
            if content is None:
                path.unlink()
            elif isinstance(content, str):
                path.write_text(content, "utf-8")
            else:
                old = json.loads(path.read_text("utf-8")) if path.is_file() and isinstance(content, dict) else {}
                path.write_text(json.dumps({**old, **content} if isinstance(content, dict) else content), "utf-8")
        return Checkpoint("tiny", folder, folder)

    return copy


def spec_of(checkpoint: Checkpoint, **options: Any) -> ModelSpec:
    return resolve(checkpoint, user_options(options))


def modules(*types: str) -> list[dict[str, Any]]:
    """modules.json with these types, each in the folder of its place and name."""
    kinds = [kind.rsplit(".", 1)[-1] for kind in types]
    paths = ["" if kind.endswith("Transformer") else f"{place}_{kind}" for place, kind in enumerate(kinds)]
    return [{"idx": n, "name": str(n), "path": p, "type": t} for n, (t, p) in enumerate(zip(types, paths, strict=True))]


# ---- modules.json


@pytest.mark.parametrize(
    ("transformer", "pooling"),
    [
        ("sentence_transformers.models.Transformer", "sentence_transformers.models.Pooling"),
        (
            "sentence_transformers.base.modules.transformer.Transformer",
            "sentence_transformers.sentence_transformer.modules.pooling.Pooling",
        ),
        ("pylate.models.Transformer.Transformer", "pylate.models.Pooling.Pooling"),
    ],
)
def test_a_module_is_known_by_the_last_part_of_its_type(edit: Edit, transformer: str, pooling: str) -> None:
    checkpoint = edit("bert_max", {"modules.json": modules(transformer, pooling)})

    assert module_kinds(checkpoint) == ["Transformer", "Pooling"]
    assert spec_of(checkpoint).pooling == ("max",)


@pytest.mark.parametrize("kind", ["LSTM", "CNN", "WordWeights", "Router", "StaticEmbedding"])
def test_a_module_that_this_program_lacks_is_refused_by_its_kind(edit: Edit, kind: str) -> None:
    """Left out, it would change every vector in silence."""
    listed = modules(*(f"sentence_transformers.models.{name}" for name in ("Transformer", "Pooling", kind)))
    checkpoint = edit("bert_mean", {"modules.json": listed})

    for options in ({}, {"score_type": "late-interaction"}, {"score_type": "cross-encoder"}):
        with pytest.raises(CheckpointError, match=f"^tiny: modules.json has a {kind}, which is not supported$"):
            spec_of(checkpoint, **options)


def test_a_dense_module_without_an_activation_has_the_librarys_default(edit: Edit) -> None:
    checkpoint = edit("bert_dense", {})
    sizes = {"in_features": 32, "out_features": 16, "bias": True}
    (checkpoint.folder / "2_Dense" / "config.json").write_text(json.dumps(sizes))

    assert spec_of(checkpoint).modules[0].activation == TANH


@pytest.mark.parametrize("name", ["bert_dense", "bert_concat"])
def test_modules_whose_widths_do_not_meet_are_refused(edit: Edit, name: str) -> None:
    changed = {"2_Dense/config.json": {"in_features": 24, "out_features": 16}}
    if name == "bert_concat":
        kinds = ("Transformer", "Pooling", "Dense")
        changed["modules.json"] = modules(*(f"sentence_transformers.models.{kind}" for kind in kinds))  # type: ignore[assignment]

    width = 64 if name == "bert_concat" else 32
    with pytest.raises(CheckpointError, match=f"in_features 24, and the vectors before it are {width} wide$"):
        spec_of(edit(name, changed))


# ---- pooling


@pytest.mark.parametrize(
    ("name", "modes"),
    [
        ("bert_mean", ("mean",)),
        ("bert_last", ("lasttoken",)),
        ("bert_sqrt", ("mean",)),  # the same direction
        ("bert_concat", ("mean",)),  # of several flags the last
        ("bert_modes_list", ("mean",)),
        ("bert_max", ("cls",)),  # unknown to it: the row's
        ("bert_wmean", ("cls",)),
    ],
)
def test_vllm_knows_three_poolings_and_takes_the_rows_for_others(edit: Edit, name: str, modes: tuple[str, ...]) -> None:
    assert spec_of(edit(name, {}), compat="vllm").pooling == modes
    if name in {"bert_max", "bert_wmean", "bert_sqrt", "bert_concat"}:
        assert spec_of(edit(name, {})).pooling != modes


def test_an_asked_for_pooling_wins_over_the_files(edit: Edit) -> None:
    spec = spec_of(edit("bert_no_prompt_pooling", {}), pooling="max")

    assert (spec.pooling, str(spec.sources["pooling"])) == (("max",), "--pooling")
    assert not spec.include_prompt  # which is another question


# ---- SPLADE


def test_splade_pooling_reads_the_vocabulary(edit: Edit) -> None:
    listed = modules("sentence_transformers.sparse_encoder.models.MLMTransformer", "s.SpladePooling")
    checkpoint = edit("roberta_mlm", {"modules.json": listed})

    spec = spec_of(checkpoint)

    assert (spec.score_type, spec.pooling, spec.similarity) == ("bi-encoder", ("splade",), "cosine")
    assert [layer.name for layer in spec.head] == ["lm_head.dense", "lm_head.layer_norm", "lm_head.decoder"]
    with Scorer(str(checkpoint.folder), dtype="float32") as scorer:
        scores = scorer.score("a cat", ["a cat", "the river"])
    assert scores[0] == pytest.approx(1, abs=1e-6)
    assert 0 < scores[1] < 1


@pytest.mark.parametrize(
    ("config", "asked"),
    [
        ({"pooling_strategy": "sum"}, "sum of relu"),
        ({"activation_function": "log1p_relu"}, "max of log1p_relu"),
    ],
)
def test_another_splade_than_max_over_relu_is_refused(edit: Edit, config: dict[str, str], asked: str) -> None:
    listed = modules("s.MLMTransformer", "s.SpladePooling")
    checkpoint = edit("roberta_mlm", {"modules.json": listed, "1_SpladePooling/config.json": config})

    with pytest.raises(CheckpointError, match=f"^tiny: SpladePooling by {asked} is not supported$"):
        spec_of(checkpoint)


def test_splade_over_a_body_without_a_vocabulary_head_is_refused(edit: Edit) -> None:
    checkpoint = edit("bert_mean", {"modules.json": modules("s.MLMTransformer", "s.SpladePooling")})

    with pytest.raises(CheckpointError, match="^tiny: SPLADE over BertModel is not supported$"):
        spec_of(checkpoint)


# ---- prompts and templates of a reranker


def test_a_saved_reranker_has_its_default_prompt_before_the_query(edit: Edit) -> None:
    saved = {"prompts": {"query": "query: ", "web": "web: "}, "default_prompt_name": "web"}
    checkpoint = edit("bert_ce", {SAVED: saved})

    spec = spec_of(checkpoint)

    assert (spec.query_prompt, str(spec.sources["query_prompt"]), spec.document_prompt) == ("web: ", SAVED, "")
    assert spec_of(checkpoint, query_prompt_name="query").query_prompt == "query: "
    assert spec_of(checkpoint, compat="vllm").query_prompt == ""
    assert spec_of(edit("bert_ce", {SAVED: {**saved, "default_prompt_name": None}})).query_prompt == ""


TEMPLATE = "{% for m in messages if m['role'] == 'system' %}[{{ m.content }}]{% endfor %}" + "".join(
    f"{{% for m in messages if m['role'] == '{role}' %}}{role} {{{{ m.content }}}} {{% endfor %}}"
    for role in ("query", "document")
)


@pytest.mark.parametrize("place", ["chat_template.jinja", "tokenizer_config.json"])
def test_a_saved_template_for_query_and_document_makes_the_prompt(edit: Edit, place: str) -> None:
    in_place = {"chat_template": TEMPLATE} if place.endswith(".json") else f"{TEMPLATE}\n"
    prompts = {"prompts": {"web": "Find."}, "default_prompt_name": "web"}
    checkpoint = edit("bert_ce", {place: in_place, SAVED: prompts})

    spec = spec_of(checkpoint)
    template = input_reader(checkpoint, spec, trust_remote_code=False).template

    assert template is not None
    assert template.render("Q", "D") == ["[Find.]query Q document D "]  # the prompt is a message, no prefix
    assert (spec.system_prompt, spec.query_prompt) == ("Find.", "")
    assert str(spec.sources["chat_template"]) == "chat_template of the checkpoint"


def test_a_saved_template_is_given_its_saved_variables(edit: Edit) -> None:
    text = TEMPLATE + "{% if think %}<think>{% endif %}{{ restore_suffix }}"
    variables = {"processing_kwargs": {"chat_template": {"think": True, "restore_suffix": True}}}
    checkpoint = edit("bert_ce", {"chat_template.jinja": text, "sentence_bert_config.json": variables})

    template = input_reader(checkpoint, spec_of(checkpoint), trust_remote_code=False).template

    assert template is not None
    assert template.render("Q", "D") == ["query Q document D <think>"]


@pytest.mark.parametrize(
    "text",
    [
        "{% for m in messages %}{{ m['role'] }}{% endfor %}",
        "{% if m['role'] == 'user' %}x{% endif %}",
        "{{ 'query' }} {{ query }}",  # only one of the two
        "the query and the document",  # as words, not as roles
    ],
)
def test_a_chat_template_for_other_roles_is_not_for_scoring(edit: Edit, text: str) -> None:
    """The template of the language model underneath would make a prompt that no reranker was trained on."""
    spec = spec_of(edit("bert_ce", {"chat_template.jinja": text}))

    assert (spec.chat_template, str(spec.sources["chat_template"])) == ("", "tokenizer")


def test_vllm_reads_no_saved_template_and_the_user_overrules_it(edit: Edit) -> None:
    checkpoint = edit("bert_ce", {"chat_template.jinja": TEMPLATE})

    assert spec_of(checkpoint, compat="vllm").chat_template == ""
    assert spec_of(checkpoint, chat_template="none").chat_template == "{{ query }}{{ document }}"


def test_a_syntax_error_in_a_saved_template_names_the_checkpoint_and_the_line(edit: Edit) -> None:
    text = "{# 'query' 'document' #}\n{% if %}"

    with pytest.raises(BatchscoreError, match="^tiny: chat_template of the checkpoint, line 2: "):
        spec_of(edit("bert_ce", {"chat_template.jinja": text}))


# ---- answers of a language model


@pytest.mark.parametrize(
    ("config", "tokens", "method"),
    [
        ({"true_token_id": 7, "false_token_id": 5}, (5, 7), "from_2_way_softmax"),
        ({"true_token_id": 7}, (7,), "no_post_processing"),
        ({"true_token_id": 7, "false_token_id": None}, (7,), "no_post_processing"),
        ({"true_token_id": 7, "false_token_id": 0}, (0, 7), "from_2_way_softmax"),
    ],
)
def test_a_logit_score_module_names_its_answers_by_id(
    edit: Edit, config: dict[str, Any], tokens: tuple[int, ...], method: str
) -> None:
    listed = modules(
        "sentence_transformers.models.Transformer", "sentence_transformers.cross_encoder.modules.LogitScore"
    )
    checkpoint = edit("bert_mean", {"modules.json": listed, "1_LogitScore/config.json": config})

    spec = spec_of(checkpoint)

    assert (spec.score_type, str(spec.sources["score_type"])) == ("cross-encoder", "modules.json")
    assert (spec.answer_tokens, spec.method, spec.head) == (tokens, method, ())


# ---- ColBERT's settings


@pytest.mark.parametrize(
    ("changed", "marks", "lengths", "source"),
    [
        (
            {SAVED: {"query_prefix": "[Q] ", "document_prefix": "[D] ", "query_length": 48, "document_length": 40}},
            Marks("[Q] ", "[D] ", expand=True, attend=False, skip=PUNCTUATION),  # PyLate's default
            (48, 40),
            SAVED,
        ),
        (
            {SAVED: {"query_length": 20, "skiplist_words": [".", ","], "do_query_expansion": False}},
            Marks("[Q] ", "[D] ", expand=False, attend=False, skip=(".", ",")),
            (20, 64),  # PyLate's default of 180, within the model's positions
            SAVED,
        ),
        (
            {
                SAVED: {
                    "query_prefix": "",
                    "document_prefix": "",
                    "query_length": 24,
                    "attend_to_expansion_tokens": True,
                }
            },
            Marks("", "", expand=True, attend=True, skip=PUNCTUATION),
            (24, 64),
            SAVED,
        ),
        (
            {ARTIFACT: {"query_maxlen": 16, "doc_maxlen": 60, "query_token_id": "[unused0]", "mask_punctuation": True}},
            Marks("[unused0]", "[unused1]", expand=True, attend=False, skip=PUNCTUATION),
            (16, 60),
            ARTIFACT,
        ),
        (
            {ARTIFACT: {"attend_to_mask_tokens": True, "mask_punctuation": False, "doc_token_id": "[D]"}},
            Marks("[unused0]", "[D]", expand=True, attend=True, skip=()),
            (32, 64),
            ARTIFACT,
        ),
        (
            {SAVED: {"query_prefix": "[Q] "}, ARTIFACT: {"query_maxlen": 16}},  # PyLate's file says more
            Marks("[Q] ", "[D] ", expand=True, attend=False, skip=PUNCTUATION),
            (32, 64),
            SAVED,
        ),
    ],
)
def test_the_settings_of_pylate_and_of_colbert(
    edit: Edit, changed: dict[str, Any], marks: Marks, lengths: tuple[int, int], source: str
) -> None:
    spec = spec_of(edit("bert_plain", changed), score_type="late-interaction")

    assert (spec.marks, str(spec.sources["marks"])) == (marks, source)
    assert (spec.query_length, spec.document_length) == lengths
    assert str(spec.sources["query_length"]) == source


def test_an_encoder_without_such_settings_has_no_marks(edit: Edit) -> None:
    spec = spec_of(edit("bert_mean", {}), score_type="late-interaction")

    assert (spec.marks, spec.query_length, spec.document_length) == (None, 64, 64)


def test_marks_are_for_late_interaction_and_not_for_vllm(edit: Edit) -> None:
    checkpoint = edit("bert_plain", {SAVED: MARKED})

    assert spec_of(checkpoint).marks is None
    assert spec_of(checkpoint, score_type="late-interaction").marks is not None
    vllm = spec_of(checkpoint, score_type="late-interaction", compat="vllm")
    assert (vllm.marks, vllm.query_length, vllm.document_length) == (None, 64, 64)


def test_the_users_lengths_win_over_the_saved_ones(edit: Edit) -> None:
    options = {"score_type": "late-interaction", "query_length": 10, "document_length": 20}
    spec = spec_of(edit("bert_plain", {SAVED: MARKED}), **options)

    assert (spec.query_length, spec.document_length) == (10, 20)


def test_another_similarity_than_cosine_is_refused(edit: Edit) -> None:
    checkpoint = edit("bert_plain", {ARTIFACT: {"similarity": "l2"}})

    with pytest.raises(CheckpointError, match="^tiny: artifact.metadata asks for similarity 'l2'$"):
        spec_of(checkpoint, score_type="late-interaction")


def test_a_multi_vector_head_beside_the_weights_reads_every_token_but_the_first(edit: Edit, tiny: Tiny) -> None:
    """bge-m3's."""
    checkpoint = edit("xlmr_cls", {})
    head = {"weight": torch.eye(32), "bias": torch.zeros(32)}
    torch.save(head, checkpoint.folder / "colbert_linear.pt")

    spec = spec_of(checkpoint, score_type="late-interaction")

    assert (spec.drop_first, spec.similarity, len(spec.modules)) == (True, "meanmaxsim", 1)
    assert not spec_of(checkpoint).drop_first
    tokenizer = load_tokenizer(checkpoint, trust_remote_code=False, restore_specials=True)
    work = InputReader(spec, tokenizer, None, None).text_work(Pairs(Cells.of(["cat dog"]), Cells.of(["bird"])))
    assert flags(work.items, "keep") == [[0, 1, 1, 1], [0, 1, 1]]
    assert spec_of(checkpoint, score_type="late-interaction", compat="vllm").similarity == "maxsim"
    with Scorer(str(checkpoint.folder), score_type="late-interaction", dtype="float32") as scorer:
        assert scorer.score("cat dog bird", "cat dog bird")[0] == pytest.approx(1, abs=1e-5)  # a mean, not a sum


# ---- the backbone's settings

SENTENCE, TOKENIZER = "sentence_bert_config.json", "tokenizer_config.json"


@pytest.mark.parametrize(
    ("changed", "length"),
    [
        ({SENTENCE: {"processing_kwargs": {"text": {"max_length": 9}, "common": {"padding": True}}}}, 9),
        ({SENTENCE: {"tokenizer_args": {"model_max_length": 8, "use_fast": True}}}, 8),
        ({SENTENCE: {"processor_kwargs": {"model_max_length": 8}, "model_args": {"torch_dtype": "float16"}}}, 8),
    ],
)
def test_keywords_for_the_tokenizer_may_say_how_long_a_text_is(
    edit: Edit, changed: dict[str, Any], length: int
) -> None:
    assert spec_of(edit("bert_mean", changed)).max_length == length


def test_a_side_may_have_a_length_of_its_own(edit: Edit) -> None:
    """Which beats that of any text, unless the user says otherwise."""
    checkpoint = edit("bert_mean", {SENTENCE: {"max_seq_length": 20, "query_length": 7, "document_length": 50}})

    def lengths(**options: Any) -> tuple[int, int]:
        spec = spec_of(checkpoint, **options)
        return spec.query_length, spec.document_length

    assert lengths() == (7, 50)
    assert lengths(max_length=20) == (7, 20)
    assert lengths(compat="vllm") == (20, 20)


@pytest.mark.parametrize(
    ("name", "changed", "message"),
    [
        (
            "bert_mean",
            {SENTENCE: {"processing_kwargs": {"text": {"add_special_tokens": False}}}},
            "processing_kwargs: text: add_special_tokens False is not supported",
        ),
        ("bert_mean", {SENTENCE: {"config_args": {"hidden_act": "relu"}}}, "config_args: hidden_act 'relu' is not"),
        (
            "bert_mean",
            {SENTENCE: {"modality_config": {"text": {"method": "forward", "method_output_name": "pooler_output"}}}},
            "the output 'pooler_output' of its backbone is not supported",
        ),
        (
            "llama_model",
            {SENTENCE: {"modality_config": {"message": {"method": "forward", "method_output_name": "logits"}}}},
            "its texts go through its chat template, which only rerankers and models of images support",
        ),
        ("bert_splade", {SAVED: {"max_active_dims": 8}}, "max_active_dims is not supported"),
    ],
)
def test_a_setting_that_would_change_scores_is_not_passed_over(
    edit: Edit, name: str, changed: dict[str, Any], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        spec_of(edit(name, changed))


@pytest.mark.parametrize("name", ["bert_mean", "bert_ce"])
def test_texts_are_cut_at_the_end_that_the_tokenizers_files_name(edit: Edit, name: str) -> None:
    checkpoint = edit(name, {TOKENIZER: {"truncation_side": "left"}})

    def sides(**options: Any) -> str | None:
        return spec_of(checkpoint, **options).truncation_side

    assert (sides(), sides(truncation_side="right"), sides(compat="vllm")) == ("left", "right", None)


def test_vectors_are_cut_to_the_saved_dimensions(edit: Edit) -> None:
    checkpoint = edit("bert_mean", {SAVED: {"truncate_dim": 8}})

    assert (spec_of(checkpoint).dimensions, spec_of(checkpoint, dimensions=16).dimensions) == (8, 16)
    assert spec_of(checkpoint, compat="vllm").dimensions == 0


def test_a_multi_vector_encoder_may_be_scored_by_the_mean(edit: Edit) -> None:
    saved = {"model_type": "MultiVectorEncoder", "similarity_fn_name": "meanmaxsim"}
    modules = [{"type": "a.Transformer", "path": ""}]

    assert spec_of(edit("bert_plain", {SAVED: saved, "modules.json": modules})).similarity == "meanmaxsim"


def test_a_tokenizer_without_a_class_of_its_own_gives_no_token_types(edit: Edit) -> None:
    plain = {"tokenizer_class": "TokenizersBackend", "model_input_names": None}

    assert not spec_of(edit("bert_ce", {TOKENIZER: plain})).token_types
    assert spec_of(edit("bert_ce", {TOKENIZER: {**plain, "tokenizer_class": "BertTokenizer"}})).token_types


@pytest.mark.parametrize("modality", ["message", "text"])
def test_a_saved_template_is_for_messages_and_has_all_the_special_tokens(edit: Edit, modality: str) -> None:
    """The tokenizer's own ones stand around the pair where there are no messages."""
    output = {"method": "forward", "method_output_name": "logits"}
    template = "{% for m in messages %}{{ 'query' if m.role == 'query' else 'document' }} {{ m.content }} {% endfor %}"
    files = {SENTENCE: {"modality_config": {modality: output}}, "chat_template.jinja": template}
    spec = spec_of(edit("llama_pairs", files))

    assert (spec.chat_template == template, spec.special_tokens) == (modality == "message", modality == "text")


# ---- ColBERT's sequences


def marked(edit: Edit, changed: dict[str, Any], queries: Sequence[str], documents: Sequence[str]) -> Work:
    checkpoint = edit("bert_plain", {SAVED: MARKED | changed})
    spec = spec_of(checkpoint, score_type="late-interaction")
    tokenizer = load_tokenizer(checkpoint, trust_remote_code=False, restore_specials=spec.restore_specials)
    return InputReader(spec, tokenizer, None, None).text_work(Pairs(Cells.of(queries), Cells.of(documents)))


def words(tiny: Tiny, items: Items) -> list[str]:
    """Each sequence as its tokens."""
    tokenizer = Tokenizer.from_file(f"{tiny('bert_plain')}/tokenizer.json")
    tokens = [str(tokenizer.id_to_token(int(token))) for token in items.ids]
    return [" ".join(tokens[start:stop]) for start, stop in pairwise(items.offsets)]


def flags(items: Items, column: str) -> list[list[int]]:
    values: Any = items.columns[column]
    return [values[start:stop].astype(int).tolist() for start, stop in pairwise(items.offsets)]


def test_each_side_has_its_mark_behind_the_first_token_and_queries_are_filled_up(tiny: Tiny, edit: Edit) -> None:
    work = marked(edit, {}, ["cat dog"], ["the river"])

    assert words(tiny, work.items) == ["[CLS] ? cat dog [SEP] [MASK] [MASK] [MASK]", "[CLS] ! the river [SEP]"]
    assert flags(work.items, "keep") == [[1] * 8, [1] * 5]  # what fills a query counts
    assert flags(work.items, "seen") == [[1, 1, 1, 1, 1, 0, 0, 0], [1] * 5]  # and nothing attends to it


def test_what_fills_a_query_is_seen_where_the_model_was_trained_so(edit: Edit) -> None:
    assert (
        marked(edit, {"attend_to_expansion_tokens": True}, ["cat dog"], ["the river"]).items.columns.get("seen") is None
    )


def test_a_query_is_not_filled_up_where_the_model_was_not_trained_so(tiny: Tiny, edit: Edit) -> None:
    work = marked(edit, {"do_query_expansion": False}, ["cat dog"], ["the river"])

    assert words(tiny, work.items) == ["[CLS] ? cat dog [SEP]", "[CLS] ! the river [SEP]"]
    assert work.items.columns.get("seen") is None


def test_a_side_without_a_mark_is_plain(tiny: Tiny, edit: Edit) -> None:
    work = marked(edit, {"query_prefix": "", "do_query_expansion": False}, ["cat dog"], ["the river"])

    assert words(tiny, work.items) == ["[CLS] cat dog [SEP]", "[CLS] ! the river [SEP]"]


def test_every_query_fills_its_length_and_no_text_passes_its_sides(tiny: Tiny, edit: Edit) -> None:
    sides = [" ".join(["cat"] * n) for n in (0, 1, 4, 5, 6, 30)]

    work = marked(edit, {}, sides, sides)

    lengths = work.items.lengths.tolist()
    assert (lengths[:6], lengths[6:]) == ([8] * 6, [3, 4, 7, 8, 9, 12])
    ends = [tokens.replace(" [MASK]", "").split()[-1] for tokens in words(tiny, work.items)]
    assert set(ends) == {"[SEP]"}
    assert [CUT_NAMES[bits] for bits in work.cut] == ["none", "none", "none", "none", "query", "both"]


def test_document_tokens_of_the_skip_list_do_not_count_and_those_of_queries_do(edit: Edit) -> None:
    work = marked(edit, {"skiplist_words": [".", ",", "the", "nowhere"]}, ["the cat, dog."], ["the cat, dog."])

    assert flags(work.items, "keep")[0] == [1] * 8
    # [CLS] ! the cat , dog . [SEP]
    assert flags(work.items, "keep")[1] == [1, 1, 0, 1, 0, 1, 0, 1]
    bare = {"skiplist_words": ["the"], "do_query_expansion": False}
    assert flags(marked(edit, bare, ["the cat"], ["the cat"]).items, "keep") == [[1] * 5, [1, 1, 0, 1, 1]]


def test_skipped_and_unseen_tokens_change_scores_as_they_should(edit: Edit) -> None:
    """A skipped token is still read: it changes the states of the others."""

    def scores(**changed: Any) -> np.ndarray:
        checkpoint = edit("bert_plain", {SAVED: MARKED | {"do_query_expansion": True, "skiplist_words": []} | changed})
        with Scorer(str(checkpoint.folder), score_type="late-interaction", dtype="float32") as scorer:
            return scorer.score("cat dog", ["cat , dog", "the river , water"])

    plain = scores()
    for changed in ({"skiplist_words": [","]}, {"do_query_expansion": False}, {"attend_to_expansion_tokens": True}):
        assert np.abs(scores(**changed) - plain).max() > 1e-4, changed
    assert (scores(skiplist_words=[","]) <= plain + 1e-6).all()  # a maximum over fewer tokens


@pytest.mark.parametrize(
    ("changed", "marker"), [({"query_prefix": "[Q] "}, "[Q] "), ({"document_prefix": "[unused1]"}, "[unused1]")]
)
def test_a_mark_that_is_not_in_the_vocabulary_is_refused(edit: Edit, changed: dict[str, str], marker: str) -> None:
    checkpoint = edit("bert_plain", {SAVED: MARKED | changed})

    with pytest.raises(CheckpointError, match="is not in the vocabulary\nhint: the tokenizer is not the one") as caught:
        Scorer(str(checkpoint.folder), score_type="late-interaction").score("cat", "dog")
    assert repr(marker) in caught.value.message


def test_queries_cannot_be_filled_without_a_token_to_fill_them_with(edit: Edit) -> None:
    checkpoint = edit("bert_plain", {SAVED: MARKED})
    path = checkpoint.folder / "tokenizer_config.json"
    settings = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps({name: value for name, value in settings.items() if not name.endswith("_token")}))

    with pytest.raises(CheckpointError, match="no mask, EOS or padding token to expand queries with"):
        Scorer(str(checkpoint.folder), score_type="late-interaction").score("cat", "dog")


def test_a_side_too_short_for_its_special_tokens_is_refused(edit: Edit) -> None:
    with pytest.raises(UsageError, match="^max_length 3 leaves no room for text beside 3 special tokens"):
        marked(edit, {"query_length": 3}, ["cat"], ["dog"])


# ---- damage


@pytest.mark.parametrize("file", [ARTIFACT, SAVED])
def test_settings_that_are_not_json_are_named(edit: Edit, file: str) -> None:
    checkpoint = edit("bert_plain", {file: '{"half": '})

    with pytest.raises(CheckpointError, match=f"^tiny: {file} is not valid JSON: "):
        spec_of(checkpoint, score_type="late-interaction")
