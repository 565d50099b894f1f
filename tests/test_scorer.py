"""The Python face: what `Scorer` takes, what it gives back, and how it refuses."""

from __future__ import annotations

import builtins
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import batchscore
from batchscore import Scorer
from batchscore.errors import (
    BatchscoreError,
    CheckpointError,
    MissingDependencyError,
    NotFoundError,
    RuntimeFailureError,
    UsageError,
)
from checkpoints import pairs

Tiny = Callable[[str], str]

SAME = 1e-6  # sums in another order differ in the last bits
QUERY, DOCUMENTS = "what is a cat", ["a dog", "the old cat", "a cat is a small animal", "", "light over water"]


@pytest.fixture(scope="module")
def scorer(tiny: Tiny) -> Iterator[Scorer]:
    """A float32 cross-encoder that forwards whatever it is asked."""
    with Scorer(tiny("bert_ce_default"), dtype="float32", cache_mb=0) as loaded:
        yield loaded


def copied(source: str, folder: Path, **config: Any) -> Path:
    """A copy of a checkpoint to damage, with other values in its config.json."""
    shutil.copytree(source, folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | config))
    return folder


# ---- shapes


def test_one_pair_one_to_many_and_many_to_many_give_a_score_for_each_document(scorer: Scorer) -> None:
    queries = [f"what is {word}" for word in ("a", "dog", "cat", "river", "light")]
    row_by_row = [float(scorer.score(q, d)[0]) for q, d in zip(queries, DOCUMENTS, strict=True)]

    assert scorer.score(QUERY, DOCUMENTS[0]).shape == scorer.score([QUERY], DOCUMENTS[:1]).shape == (1,)
    np.testing.assert_allclose(scorer.score(QUERY, DOCUMENTS), scorer.score([QUERY], DOCUMENTS), rtol=0, atol=SAME)
    np.testing.assert_allclose(scorer.score(queries, DOCUMENTS), row_by_row, rtol=0, atol=SAME)
    assert scorer.score(queries, DOCUMENTS).dtype == np.float32
    assert scorer.score(tuple(queries), np.array(DOCUMENTS)).shape == (5,)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("queries", "documents", "message"),
    [
        (["a", "b"], ["c"], "2 queries and 1 documents; lengths must be 1:1, 1:N or N:N"),
        (["a", "b"], "c", "2 queries and 1 documents"),
        (["a", "b"], ["c", "d", "e"], "2 queries and 3 documents"),
        ([], ["c"], "queries is empty"),
        ("a", [], "documents is empty"),
        ([], [], "queries is empty"),
        (["a", None], ["c", "d"], r"queries\[1\] is NoneType, not a string"),
        ("a", ["c", "d", 3], r"documents\[2\] is int, not a string"),
        ("a", [b"c"], r"documents\[0\] is bytes, not a string"),
        ("a", ["c", ["d"]], r"documents\[1\] is a list of strings, not text"),
        ("a", ["c", "d \udc80"], r"documents\[1\] has half of a surrogate pair at character 2"),
        ("\ud83d", "c", r"queries\[0\] has half of a surrogate pair at character 0"),
    ],
)
def test_what_cannot_be_paired_is_a_value_error_that_says_where(
    scorer: Scorer, queries: Any, documents: Any, message: str
) -> None:
    with pytest.raises(UsageError, match=message) as raised:
        scorer.score(queries, documents)
    assert isinstance(raised.value, ValueError)


# ---- rerank


@pytest.mark.parametrize(
    ("name", "score_type"),
    [("bert_ce_default", "cross-encoder"), ("bert_mean", "bi-encoder"), ("bert_mean", "late-interaction")],
)
def test_rerank_is_score_in_descending_order(tiny: Tiny, name: str, score_type: Any) -> None:
    with Scorer(tiny(name), dtype="float32", score_type=score_type) as loaded:
        scores = loaded.score(QUERY, DOCUMENTS)
        ranked = loaded.rerank(QUERY, DOCUMENTS)
    order = np.argsort(-scores).tolist()
    assert [(each.index, each.document) for each in ranked] == [(i, DOCUMENTS[i]) for i in order]
    np.testing.assert_allclose([each.relevance_score for each in ranked], scores[order], rtol=1e-6)
    assert order != list(range(5)), "documents that came in order would prove nothing"


def test_equal_scores_keep_the_order_given(scorer: Scorer) -> None:
    ranked = scorer.rerank(QUERY, ["a dog", "the old cat"] * 3)
    best = ranked[0].document
    assert [document.document for document in ranked] == sorted(["a dog", "the old cat"] * 3, key=best.__ne__)
    assert [document.index % 2 for document in ranked] in ([0, 0, 0, 1, 1, 1], [1, 1, 1, 0, 0, 0])
    assert [document.index // 2 for document in ranked] == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize(("top_n", "kept"), [(0, 5), (1, 1), (3, 3), (5, 5), (99, 5)])
def test_top_n_keeps_the_best(scorer: Scorer, top_n: int, kept: int) -> None:
    ranks = [[each.index for each in scorer.rerank(QUERY, DOCUMENTS, n)] for n in (top_n, 0)]
    assert ranks[0] == ranks[1][:kept]
    assert len(ranks[0]) == kept


@pytest.mark.parametrize(
    ("query", "documents", "top_n", "message"),
    [
        (QUERY, DOCUMENTS, -1, "top_n -1 is negative; 0 keeps all documents"),
        ([QUERY], DOCUMENTS, 0, "rerank takes one query as a string, not list"),
        (None, DOCUMENTS, 0, "rerank takes one query as a string, not NoneType"),
        (QUERY, [], 0, "documents is empty"),
        (QUERY, ["a", 1], 0, r"documents\[1\] is int"),
    ],
)
def test_rerank_refuses_what_it_cannot_rank(
    scorer: Scorer, query: Any, documents: Any, top_n: int, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        scorer.rerank(query, documents, top_n)


# ---- a Scorer's life


def test_leaving_the_context_stops_the_workers(tiny: Tiny) -> None:
    before = set(threading.enumerate())
    with Scorer(tiny("bert_mean"), dtype="float32") as loaded:
        loaded.score(QUERY, DOCUMENTS)
        assert {thread.name.split("_")[0].split("-")[0] for thread in set(threading.enumerate()) - before} == {
            "batchscore"
        }
    assert set(threading.enumerate()) <= before


def test_two_scorers_do_not_disturb_each_other(tiny: Tiny) -> None:
    """The packed attention is registered with transformers once for all models."""
    with Scorer(tiny("bert_mean"), dtype="float32") as one, Scorer(tiny("roberta_ce"), dtype="float32") as other:
        alone = one.score(QUERY, DOCUMENTS), other.score(QUERY, DOCUMENTS)
        with Scorer(tiny("bert_mean"), dtype="float32", padded=True) as third:
            third.score(QUERY, DOCUMENTS)
            together = one.score(QUERY, DOCUMENTS), other.score(QUERY, DOCUMENTS)
    np.testing.assert_allclose(together, alone, rtol=0, atol=SAME)
    assert np.abs(alone[0] - alone[1]).min() > 1e-3


@pytest.mark.parametrize("name", ["bert_ce_default", "bert_mean"])
def test_scoring_from_several_threads_gives_the_same(tiny: Tiny, name: str) -> None:
    queries, documents = pairs(12)
    with Scorer(tiny(name), dtype="float32", batch_tokens=64) as loaded:
        expected = loaded.score(queries, documents)
    # outputs that one thread caches are found by another
    with Scorer(tiny(name), dtype="float32", batch_tokens=64) as loaded, ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda _: loaded.score(queries, documents), range(8)))
    np.testing.assert_allclose(found, [expected] * 8, rtol=0, atol=SAME)


def test_importing_batchscore_leaves_torch_alone() -> None:
    """`batchscore --help` must not take the seconds that torch takes to load."""
    code = "import sys, batchscore; print(sorted({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    root = Path(batchscore.__file__).parents[1]
    shell = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert shell.stdout == "[]\n"


def test_the_package_has_its_public_names_and_no_others() -> None:
    assert [getattr(batchscore, name).__name__ for name in ("Ranked", "Scorer")] == ["Ranked", "Scorer"]
    with pytest.raises(AttributeError, match="module 'batchscore' has no attribute 'Scores'"):
        batchscore.Scores  # noqa: B018


# ---- refusals: a checkpoint


@pytest.mark.parametrize(
    ("name", "message", "hint"),
    [
        (
            "bert_ce_headless",
            r"bert_ce_headless: it has no score head: classifier\.weight is not",
            "not those of a rer",
        ),
        ("bert_missing_weight", r"bert_missing_weight: lacks encoder\.layer\.1\.output\.dense\.weight", "random"),
        ("bert_missing_dense", "module '2_Dense' has no weights", "expected model.safetensors or"),
        ("bert_ce_two_labels", "its classifier has 2 labels; a relevance score needs num_labels == 1", "one label"),
        ("bert_bad_pooling", r"1_Pooling/config\.json asks for pooling attention", "known modes: cls, max, mean,"),
    ],
)
def test_a_checkpoint_that_cannot_score_is_refused_with_the_reason(
    tiny: Tiny, name: str, message: str, hint: str
) -> None:
    """transformers would fill a missing weight with random numbers and go on."""
    with pytest.raises(CheckpointError, match=message) as raised:
        Scorer(tiny(name), dtype="float32")
    assert hint in str(raised.value.hint)


def test_a_model_that_is_nowhere_is_an_error_with_a_next_step(tmp_path: Path) -> None:
    for model in ("no-such-user/no-such-model", str(tmp_path / "nowhere")):
        with pytest.raises(NotFoundError, match="is not a folder and could not be fetched from the hub") as raised:
            Scorer(model)
        assert repr(model) in raised.value.message
        assert raised.value.hint == "check the spelling and the network, or download it and pass the folder"


def test_a_folder_without_config_json_says_which_folder_is_meant(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no config\.json\nhint: pass the folder that holds config\.json"):
        Scorer(str(tmp_path))


def test_a_file_is_not_a_checkpoint(tiny: Tiny) -> None:
    with pytest.raises(CheckpointError, match=r"model\.safetensors is a file\nhint: pass the folder"):
        Scorer(str(Path(tiny("bert_mean")) / "model.safetensors"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"architectures": ["NoSuchEncoder"]},
            "architecture NoSuchEncoder is not supported\nhint: batchscore models l",
        ),
        ({"architectures": []}, r"config\.json names no architectures"),
        ({"num_hidden_layers": 3}, r"lacks encoder\.layer\.2\..* and \d+ more"),
        ({"num_hidden_layers": 1}, r"has, unread by the architecture, bert\.encoder\.layer\.1\..* and \d+ more"),
        ({"hidden_size": 16}, r"embeddings\.LayerNorm\.bias is \[32\], and by config\.json it should be \[16\]"),
        ({"sbert_ce_default_activation_function": "os.system"}, r"activation 'os\.system' is not supported"),
        (
            {"sbert_ce_default_activation_function": "torch.nn.Linear"},
            r"'torch\.nn\.Linear' is not supported",
        ),
    ],
)
def test_a_config_that_does_not_fit_is_refused(
    tiny: Tiny, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        Scorer(str(copied(tiny("bert_ce_default"), tmp_path / "copy", **changes)), dtype="float32")


def test_a_checkpoints_python_files_are_neither_run_nor_asked_about(
    tiny: Tiny, scorer: Scorer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A prompt on stdin would hang a batch job; running the file would hand the machine over."""
    marker = tmp_path / "ran"
    remote = {
        auto: f"modeling_own.{auto}" for auto in ("AutoConfig", "AutoModel", "AutoModelForSequenceClassification")
    }
    folder = copied(tiny("bert_ce_default"), tmp_path / "copy", auto_map=remote)
    (folder / "modeling_own.py").write_text(f"open({str(marker)!r}, 'w').close()\nraise SystemExit\n")
    tokenizer_config = folder / "tokenizer_config.json"
    auto_map = {"auto_map": {"AutoTokenizer": ["modeling_own.AutoTokenizer", None]}}
    tokenizer_config.write_text(json.dumps(json.loads(tokenizer_config.read_text("utf-8")) | auto_map))
    monkeypatch.setattr(builtins, "input", lambda prompt="": pytest.fail(f"asked {prompt!r}"))

    with Scorer(str(folder), dtype="float32") as loaded:
        scores = loaded.score(QUERY, DOCUMENTS)
    np.testing.assert_allclose(scores, scorer.score(QUERY, DOCUMENTS), rtol=0, atol=SAME)
    # a type that only the Python file could load
    own_type = copied(str(folder), tmp_path / "own", model_type="own")
    with pytest.raises(CheckpointError, match="has no model of type 'own'\nhint: .*--trust-remote-code runs the"):
        Scorer(str(own_type), dtype="float32")
    assert not marker.exists()


# ---- refusals: options


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"device": "cuda"}, MissingDependencyError, "device cuda is not there; CUDA devices found: 0\nhint: .*cpu"),
        ({"device": "cuda:7"}, MissingDependencyError, "device cuda:7 is not there"),
        ({"device": "mps"}, UsageError, "only cpu and cuda are supported"),
        ({"device": "gpu"}, UsageError, "--device 'gpu' is not a torch device; known: auto, cpu, cuda, cuda:N"),
        ({"device": "cpu", "dtype": "float16"}, UsageError, "--dtype float16: CPUs .*\nhint: use auto, bfloat16 or"),
        ({"max_length": 65}, UsageError, "--max-length 65: must be between 1 and the model's 64 positions"),
        ({"max_length": 0}, UsageError, "--max-length 0: must be a number of tokens, k for thousands and K for 1024s"),
        ({"document_prompt": "p: "}, UsageError, "--document-prompt 'p: ': a cross-encoder reads both sides at once"),
        ({"similarity": "dot"}, UsageError, "--similarity 'dot': a cross-encoder reads both sides at once"),
    ],
)
def test_an_option_the_machine_or_model_cannot_take_is_refused(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], error: type[BatchscoreError], message: str
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(error, match=message):
        Scorer(tiny("bert_ce"), **options)


def test_a_bi_encoder_is_no_cross_encoder(tiny: Tiny) -> None:
    with pytest.raises(
        CheckpointError, match="BertModel has no score head, so it cannot be a cross-encoder\nhint: use"
    ):
        Scorer(tiny("bert_mean"), score_type="cross-encoder")


# ---- numbers that are none


def with_nan_in(tensors: dict[str, Tensor], row: int) -> dict[str, Tensor]:
    table = next(name for name in tensors if name.endswith("word_embeddings.weight"))
    tensors[table][row] = torch.nan
    return tensors


@pytest.mark.parametrize("window_rows", [1, 3, 1000])
@pytest.mark.parametrize(
    ("name", "score_type", "said"),
    [
        ("bert_ce_default", "cross-encoder", "its score is nan"),
        ("bert_mean", "bi-encoder", "its vector has a number that is not finite"),
        ("bert_max", "bi-encoder", "its vector has a number that is not finite"),
        ("bert_dense", "late-interaction", "its vector has a number that is not finite"),
    ],
)
def test_a_score_that_is_no_number_is_an_error_that_names_the_pair(
    tiny: Tiny, tmp_path: Path, name: str, score_type: Any, said: str, window_rows: int
) -> None:
    """One word's embedding is NaN. The other pairs are untouched, and no NaN reaches a caller."""
    folder = copied(tiny(name), tmp_path / "nan")
    bird = json.loads((folder / "tokenizer.json").read_text("utf-8"))["model"]["vocab"]["bird"]
    weights = with_nan_in(load_file(folder / "model.safetensors"), bird)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    options: dict[str, Any] = {"dtype": "float32", "score_type": score_type, "window_rows": window_rows}
    with Scorer(str(folder), **options) as damaged, Scorer(tiny(name), **options) as sound:
        with pytest.raises(RuntimeFailureError, match=f"^pair 4: {said}\nhint: the checkpoint's weights"):
            damaged.score(QUERY, [*DOCUMENTS[:4], "a bird", "a dog", "a bird"])
        with pytest.raises(RuntimeFailureError, match=f"^pair 1: {said}"):
            damaged.rerank(QUERY, ["a dog", "a bird"])
        np.testing.assert_allclose(damaged.score(QUERY, DOCUMENTS), sound.score(QUERY, DOCUMENTS), rtol=0, atol=SAME)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"truncation": "both"},
            "--truncation 'both': must be one of document-first, longest-first, flag-embedding, mxbai-rerank, "
            "qwen3-vl, error",
        ),
        ({"dtype": "int8"}, "dtype 'int8' is unknown; choices: auto, float32, bfloat16, float16"),
        ({"score_type": "cosine"}, "--score-type 'cosine': must be one of cross-encoder, bi-encoder, late-interaction"),
        ({"batch_tokens": 0}, "batch_tokens 0 is less than 1"),
        ({"window_rows": -1}, "window_rows -1 is less than 1"),
        ({"cache_mb": -1}, "cache_mb -1 is less than 0"),
    ],
)
def test_an_option_outside_its_choices_is_refused(tiny: Tiny, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        Scorer(tiny("bert_mean"), **options)

    assert caught.value.message == message


def test_rerank_reads_a_window_at_a_time_as_score_does(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    with Scorer(tiny("bert_ce"), dtype="float32", window_rows=3, cache_mb=0) as scorer:
        tokenize = scorer.batcher.tokenize
        monkeypatch.setattr(scorer.batcher, "tokenize", lambda pairs: sizes.append(len(pairs)) or tokenize(pairs))
        documents = ["cat", "dog", "bird", "fish", "river", "house", "seven"]
        ranked = scorer.rerank("cat", documents)
        scores = scorer.score("cat", documents)

    assert sizes == [3, 3, 1] * 2
    assert [one.index for one in ranked] == np.argsort(-scores, kind="stable").tolist()
    assert [one.relevance_score for one in ranked] == sorted(scores.tolist(), reverse=True)
