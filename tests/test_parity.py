"""Scores of the reference libraries, stored beside tiny checkpoints of each architecture in a folder of fixtures.

The folder is no part of the repository; the environment variable BATCHSCORE_PARITY names it. A row is a checkpoint
with what official libraries, sentence-transformers and vLLM make of its texts; test_parity_media.py has the rows
that read images.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tokenizers import Tokenizer
from typer.testing import CliRunner

from batchscore import Scorer
from batchscore.cli.main import app
from batchscore.types import Cells, Pairs
from windows import score_work

pytestmark = pytest.mark.skipif(
    "BATCHSCORE_PARITY" not in os.environ, reason="BATCHSCORE_PARITY does not name a folder of parity fixtures"
)

Json = dict[str, Any]
Scorers = Callable[..., Scorer]
Matrix = NDArray[np.float32]  # [queries, documents]

CLOSE = {"ce": 1e-5, "li": 1e-4, "bi": 1e-5}  # absolute: logits, sums of cosines up to 45, cosines

CROSS_ENCODERS = """
    bert_default bert_minilm bert_st4 deberta_v2 distilbert electra ernie gemma2_lightweight gemma_bge gpt2_seqcls
    gte_new gte_new_norope_scaling jina_v2 llama_bidirec llama_bidirec_temp llama_causal_convert llama_seqcls
    minicpm_layerwise mistral_seqcls modernbert_cls modernbert_mean qwen2_model_convert qwen2_model_from_token
    qwen2_mxbai qwen2_score_bias qwen3_orig qwen3_seqcls qwen3_seqcls_notemplate qwen3_untied roberta_quora
    xlmr_bge_m3 zerank2
""".split()
LISTWISE = ["jina_v3"]
LATE_INTERACTION = """
    bge_m3 generic_causal hf_colbert hf_colbert_bin jina_colbert_v2 lfm2_colbert moderncolbert
""".split()
BI_ENCODERS = """
    arctic_m_long bert e5_mistral ernie gemma2 gemma3 generic_gpt2 generic_granite gritlm gte_arctic gte_new gte_qwen2
    gte_qwen2_causal jina_v3 llama_bidir llama_causal llama_model modernbert nomic_moe nomic_v1 qwen3 roberta
    roberta_mlm splade ssmits voyage xlmr_bge_m3 xlmr_me5 xlmr_me5_prompts
""".split()
EXTRAS = {  # checkpoint: the name of its scores in extras.json, of the texts of `bert` without prompts
    "x_bin": "bin",
    "x_dense": "dense_tanh",
    "x_wmean": "weightedmean",
    "x_max": "max",
    "x_sqrt": "mean_sqrt_len",
    "x_legacy": "legacy_names",
    "x_lower": "do_lower_case",
}
OTHER_BI_ENCODERS = [*EXTRAS, "x_trunc", "x_dot", "splade_dedup"]  # scores stored with another row's
MULTIMODAL = {
    "ce": "jina_vl nemotron_vl qwen3_vl qwen3_vl_untied qwen3_vl_video".split(),
    "li": """
        colmodernvbert_hf colmodernvbert_merged colpali colqwen2 colqwen2_5 colqwen2_hf colqwen3 colqwen3_5
        colqwen3_5_causal generic_vlm nemotron_colembed ops_colqwen3
    """.split(),
    "bi": "clip e5v generic_llava nemotron_vl phi3v qwen3_vl qwen3_vl_video siglip siglip2".split(),
}
TEXT = {"ce": CROSS_ENCODERS + LISTWISE, "li": LATE_INTERACTION, "bi": BI_ENCODERS + OTHER_BI_ENCODERS}

CASES = """short_pos short_neg long_doc long_query unicode empty_doc empty_query newlines special_text trunc""".split()
OWN_CASES = {"qwen3_orig": ["instruction"]}
# the reference cuts the end of the prompt, where the answer is read; batchscore never does
CUT_PROMPT = ("zerank2", "trunc")
NOT_IN_VLLM = {"deberta_v2", "distilbert", "gemma2_lightweight", "minicpm_layerwise"}
# what vLLM itself gives is no target: NaN for electra, logits 3 to 6 away from Hugging Face's for ernie
WRONG_IN_VLLM = {"electra", "ernie"}
LAYERS = {"gemma2_lightweight": [2, 3, 4], "minicpm_layerwise": [2, 4, 6]}

RAW = {"query_prompt": "", "document_prompt": ""}
VLLM = {"compat": "vllm"}


def cases_of(rows: Sequence[str]) -> list[Any]:
    """A parameter (row, case) for each case of each row."""
    return [pytest.param(row, case, id=f"{row}-{case}") for row in rows for case in [*CASES, *OWN_CASES.get(row, [])]]


FAITHFUL_CASES = [case for case in cases_of(CROSS_ENCODERS) if case.values != CUT_PROMPT]
VLLM_CASES = cases_of([row for row in CROSS_ENCODERS if row not in NOT_IN_VLLM | WRONG_IN_VLLM])
LISTS = range(4)

flat_and_padded = pytest.mark.parametrize("padded", [False, True], ids=["flat", "padded"])


@pytest.fixture(scope="module")
def scorer() -> Iterator[Scorers]:
    """A float32 Scorer by family, row and options, loaded once."""
    loaded: dict[str, Scorer] = {}

    def load(family: str, row: str, **options: Any) -> Scorer:
        key = json.dumps([family, row, options], sort_keys=True)
        if key not in loaded:
            options = {**saved_options(family, row), **options}
            loaded[key] = Scorer(checkpoint(family, row), dtype="float32", cache_mb=0, **options)
        return loaded[key]

    yield load
    for each in loaded.values():
        each.close()


def checkpoint(family: str, row: str) -> str:
    return str(Path(os.environ["BATCHSCORE_PARITY"], family, "ckpt", row.removesuffix("_video")))


@cache
def read(file: str) -> Any:
    return json.loads(Path(os.environ["BATCHSCORE_PARITY"], file).read_text("utf-8"))


def saved_options(family: str, row: str) -> Json:
    """What a user passes for the row's faithful score."""
    options: Json = read("options.json")[family].get(row, {})
    return {**options, "score_type": "late-interaction"} if family == "li" else options


def cases(row: str) -> dict[str, Json]:
    return {case["id"]: case for case in read(f"ce/expected/{row}.json")["cases"]}


def own_options(case: Json) -> Json:
    """What a user passes for this case alone."""
    return {name: case[name] for name in ("max_length", "instruction") if case.get(name)}


def texts_of(family: str, row: str) -> tuple[list[str], list[str]]:
    """The queries and documents of a matrix of scores."""
    expected = read(f"{family}/expected/{row}.json")
    texts = expected["inputs"] if family == "li" else expected
    return texts["queries"], texts["documents"]


def faithful(family: str, row: str) -> Matrix:
    """What the model's own library gives."""
    if family == "li":
        return late_interaction(row, "hand_reference")
    return engine(row, read("bi/expected/index.json")[row]["faithful"])


def of_vllm(family: str, row: str) -> Matrix:
    """What vLLM's score API gives."""
    if family == "li":
        return late_interaction(row, "hand_reference" if row == "generic_causal" else "hand_vllm")
    return engine(row, read("bi/expected/index.json")[row]["vllm_raw"])


def late_interaction(row: str, name: str) -> Matrix:
    return np.array(read(f"li/expected/{row}.json")["expected"][name]["scores"], np.float32)


def engine(row: str, name: str) -> Matrix:
    return np.array(read(f"bi/expected/{row}.json")["engines"][name], np.float32)


def one_pair(case: Json) -> Pairs:
    return Pairs(Cells.of([case["query"]]), Cells.of([case["document"]]))


def matrix(scorer: Scorer, queries: Sequence[str], documents: Sequence[str]) -> Matrix:
    scores = scorer.score([query for query in queries for _ in documents], [*documents] * len(queries))
    return scores.reshape(len(queries), len(documents))


def assert_close(found: Any, expected: Any, family: str) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=CLOSE[family])


# ---- nothing is forgotten


@pytest.mark.parametrize("family", ["ce", "li", "bi"])
def test_every_row_of_the_fixtures_is_in_one_list(family: str) -> None:
    folder = Path(os.environ["BATCHSCORE_PARITY"], family)
    checkpoints = {path.name for path in (folder / "ckpt").iterdir()}
    scores = {path.stem for path in (folder / "expected").glob("*.json")} - {"_summary", "index", "extras"}
    assert sorted(checkpoints | scores) == sorted([*TEXT[family], *MULTIMODAL[family]])


@pytest.mark.parametrize("row", CROSS_ENCODERS)
def test_every_case_of_a_cross_encoder_is_tried(row: str) -> None:
    assert list(cases(row)) == [*CASES, *OWN_CASES.get(row, [])]
    in_vllm = ["vllm" in case or "vllm_ref" in case for case in cases(row).values()]
    assert in_vllm == [row not in NOT_IN_VLLM] * len(in_vllm)


def test_every_extra_is_tried() -> None:
    assert sorted(read("bi/expected/extras.json")) == sorted([*EXTRAS.values(), "trunc", "dot"])


# ---- cross-encoders


@flat_and_padded
@pytest.mark.parametrize(("row", "name"), FAITHFUL_CASES)
def test_a_cross_encoder_reads_the_same_tokens_and_gives_the_same_logit_and_score(
    scorer: Scorers, row: str, name: str, padded: bool
) -> None:
    case = cases(row)[name]
    loaded = scorer("ce", row, padded=padded, **own_options(case))
    work = loaded.batcher.tokenize(one_pair(case))
    scores = score_work(loaded, work)
    assert work.items.ids.tolist() == case["input_ids"]
    assert_close(scores.logit, [case["logit"]], "ce")
    assert_close(scores.score, [case["score"]], "ce")


@flat_and_padded
def test_a_cut_prompt_keeps_its_end(scorer: Scorers, padded: bool) -> None:
    row, name = CUT_PROMPT
    case = cases(row)[name]
    end = Tokenizer.from_file(f"{checkpoint('ce', row)}/tokenizer.json").encode("<|im_end|>\n<|im_start|>assistant\n")
    whole = scorer("ce", row, padded=padded).batcher.tokenize(one_pair(case)).items.ids.tolist()
    loaded = scorer("ce", row, padded=padded, max_length=case["max_length"])
    work = loaded.batcher.tokenize(one_pair(case))
    cut = work.items.ids.tolist()
    assert len(cut) == case["max_length"] < len(whole)
    assert cut == whole[: len(cut) - len(end)] + end.ids
    assert whole[-len(end) :] == end.ids
    assert np.isfinite(score_work(loaded, work).score).all()


@flat_and_padded
@pytest.mark.parametrize(("row", "name"), VLLM_CASES)
def test_a_cross_encoder_reads_the_tokens_of_vllm_and_gives_its_logit_and_score(
    scorer: Scorers, row: str, name: str, padded: bool
) -> None:
    case = cases(row)[name]
    prompted = case.get("vllm_ref", {})
    # vLLM does not divide by the temperature, so there its own logit counts
    expected = case["vllm"] if not prompted or row == "llama_bidirec_temp" else prompted
    # of an empty document vLLM makes a single sequence, not a pair
    ids = prompted.get("input_ids") or case.get("as_single", case)["input_ids"]
    options = {"truncate_prompt_tokens" if key == "max_length" else key: v for key, v in own_options(case).items()}
    loaded = scorer("ce", row, padded=padded, **VLLM, **options)
    work = loaded.batcher.tokenize(one_pair(case))
    scores = score_work(loaded, work)
    assert work.items.ids.tolist() == ids
    assert_close(scores.logit, [expected["logit"]], "ce")
    assert_close(scores.score, [expected["score"]], "ce")


@flat_and_padded
@pytest.mark.parametrize(
    ("row", "layer"), [pytest.param(row, layer, id=f"{row}-{layer}") for row in LAYERS for layer in LAYERS[row]]
)
def test_a_layerwise_head_gives_the_logit_of_its_layer(scorer: Scorers, row: str, layer: int, padded: bool) -> None:
    for case in cases(row).values():
        assert list(case["logits_by_layer"]) == [str(each) for each in LAYERS[row]]
        options = {"hf_overrides": {"cutoff_layers": layer}, **own_options(case)}
        loaded = scorer("ce", row, padded=padded, **options)
        scores = score_work(loaded, loaded.batcher.tokenize(one_pair(case)))
        assert_close(scores.logit, [case["logits_by_layer"][str(layer)]], "ce")


@flat_and_padded
@pytest.mark.parametrize("compat", [None, "vllm"], ids=["reference", "vllm"])
@pytest.mark.parametrize("place", LISTS)
@pytest.mark.parametrize("row", LISTWISE)
def test_a_listwise_reranker_reads_the_same_tokens_and_gives_the_same_scores(
    scorer: Scorers, row: str, place: int, compat: str | None, padded: bool
) -> None:
    each = read(f"ce/expected/{row}.json")["lists"][place]
    queries, documents = [each["query"]] * len(each["documents"]), each["documents"]
    loaded = scorer("ce", row, padded=padded, compat=compat, **own_options(each))
    work = loaded.batcher.tokenize(Pairs(Cells.of(queries), Cells.of(documents), np.zeros(len(documents), np.int64)))
    assert work.items.ids.tolist() == each["input_ids"]
    assert_close(loaded.score(each["query"], documents), each["scores_vllm" if compat else "scores"], "ce")


def test_every_list_of_a_listwise_reranker_is_tried() -> None:
    assert len(read("ce/expected/jina_v3.json")["lists"]) == len(LISTS)


# ---- late interaction


@flat_and_padded
@pytest.mark.parametrize("row", LATE_INTERACTION)
def test_late_interaction_gives_the_maxsim_of_the_reference(scorer: Scorers, row: str, padded: bool) -> None:
    found = matrix(scorer("li", row, padded=padded), *texts_of("li", row))
    assert_close(found, faithful("li", row), "li")


@flat_and_padded
@pytest.mark.parametrize("row", LATE_INTERACTION)
def test_late_interaction_gives_the_maxsim_of_vllm(scorer: Scorers, row: str, padded: bool) -> None:
    found = matrix(scorer("li", row, padded=padded, **VLLM), *texts_of("li", row))
    assert_close(found, of_vllm("li", row), "li")


# ---- bi-encoders


@flat_and_padded
@pytest.mark.parametrize("row", BI_ENCODERS)
def test_a_bi_encoder_gives_the_cosines_of_its_faithful_engine(scorer: Scorers, row: str, padded: bool) -> None:
    found = matrix(scorer("bi", row, padded=padded), *texts_of("bi", row))
    assert_close(found, faithful("bi", row), "bi")


@flat_and_padded
@pytest.mark.parametrize("row", BI_ENCODERS)
def test_a_bi_encoder_gives_the_cosines_of_vllm(scorer: Scorers, row: str, padded: bool) -> None:
    found = matrix(scorer("bi", row, padded=padded, **VLLM), *texts_of("bi", row))
    assert_close(found, of_vllm("bi", row), "bi")


@flat_and_padded
def test_a_task_sets_the_adapter_and_instruction_of_each_side(scorer: Scorers, padded: bool) -> None:
    found = matrix(scorer("bi", "jina_v3", padded=padded, task="retrieval"), *texts_of("bi", "jina_v3"))
    assert_close(found, engine("jina_v3", "torch.ref retrieval.query/passage + instructions"), "bi")


@flat_and_padded
def test_a_splade_head_tied_to_the_embeddings_need_not_be_in_the_file(scorer: Scorers, padded: bool) -> None:
    found = matrix(scorer("bi", "splade_dedup", padded=padded), *texts_of("bi", "splade"))
    assert_close(found, engine("splade", "st.cosine"), "bi")


@flat_and_padded
@pytest.mark.parametrize("row", EXTRAS)
def test_a_variant_of_files_or_modules_gives_the_cosines_of_sentence_transformers(
    scorer: Scorers, row: str, padded: bool
) -> None:
    found = matrix(scorer("bi", row, padded=padded, **RAW), *texts_of("bi", "bert"))
    assert_close(found, read("bi/expected/extras.json")[EXTRAS[row]]["st"], "bi")


@flat_and_padded
@pytest.mark.parametrize("row", [row for row in [*EXTRAS, "x_dot"] if row != "x_legacy"])  # vLLM cannot load it
def test_a_variant_of_files_or_modules_gives_the_cosines_of_vllm(scorer: Scorers, row: str, padded: bool) -> None:
    found = matrix(scorer("bi", row, padded=padded, **VLLM), *texts_of("bi", "bert"))
    assert_close(found, read("bi/expected/extras.json")[EXTRAS.get(row, "dot")]["vllm"], "bi")


@flat_and_padded
@pytest.mark.parametrize(
    ("options", "name"),
    [(RAW, "st.no_prompts"), ({**VLLM, "truncate_prompt_tokens": -1}, "vllm.truncate_prompt_tokens=-1")],
    ids=["reference", "vllm"],
)
def test_a_document_past_the_limit_is_cut(scorer: Scorers, options: Json, name: str, padded: bool) -> None:
    (queries, documents), expected = texts_of("bi", "bert"), read("bi/expected/extras.json")["trunc"]
    long = " ".join([documents[3]] * 4)
    loaded = scorer("bi", "x_trunc", padded=padded, **options)
    assert (
        loaded.batcher.tokenize(Pairs(Cells.of(["a"]), Cells.of([long]))).items.lengths[1] == expected["n_ids"] == 512
    )
    assert_close(matrix(loaded, queries, [long, documents[0]]), expected[name], "bi")


@flat_and_padded
def test_a_dot_product_is_that_of_sentence_transformers(scorer: Scorers, padded: bool) -> None:
    texts, expected = texts_of("bi", "bert"), read("bi/expected/extras.json")["dot"]
    products = matrix(scorer("bi", "x_dot", padded=padded, similarity="dot", **RAW), *texts)
    np.testing.assert_allclose(products, expected["st.similarity"], rtol=1e-5)  # of 10 to 100
    # the default is the cosine, whatever the checkpoint prefers
    assert_close(matrix(scorer("bi", "x_dot", padded=padded, **RAW), *texts), expected["st.cosine"], "bi")


# ---- the command line


def run(command: str, family: str, row: str, rows: Sequence[Json], *more: str) -> list[Json]:
    """The rows that a command writes in the working folder, given the row's options as flags."""
    Path("in.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows), "utf-8")
    options = {"model": checkpoint(family, row), "in": "in.jsonl", "out": "out.jsonl", "dtype": "float32"}
    result = CliRunner().invoke(app, [command, *flags({**options, **saved_options(family, row)}), *more])
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in Path("out.jsonl").read_text("utf-8").splitlines()]


def flags(options: Mapping[str, Any]) -> list[str]:
    """Keywords of Scorer as a person types them."""
    typed: list[str] = []
    for name, value in options.items():
        flag = "--" + name.replace("_", "-")
        text = json.dumps(value) if isinstance(value, dict) else str(value)
        typed += [flag] if value is True else [flag, text]
    return typed


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("row", CROSS_ENCODERS)
def test_the_command_scores_as_the_official_library_of_a_cross_encoder(row: str) -> None:
    rows = [case for case in cases(row).values() if not own_options(case)]
    out = run("score", "ce", row, [{"query": case["query"], "document": case["document"]} for case in rows])
    assert len(out) == len(CASES) - 1
    assert_close([each["score"] for each in out], [case["score"] for case in rows], "ce")


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("family", "row"),
    [pytest.param("li", row, id=f"li-{row}") for row in LATE_INTERACTION]
    + [pytest.param("bi", row, id=f"bi-{row}") for row in BI_ENCODERS],
)
def test_the_command_scores_as_the_reference_of_vectors(family: str, row: str) -> None:
    queries, documents = texts_of(family, row)
    out = run("score", family, row, [{"query": q, "document": d} for q in queries for d in documents])
    assert_close([each["score"] for each in out], faithful(family, row).ravel(), family)


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("nested", [True, False], ids=["nested", "long"])
@pytest.mark.parametrize("row", LISTWISE)
def test_the_command_ranks_lists_as_the_official_library_of_a_listwise_reranker(row: str, nested: bool) -> None:
    lists = [each for each in read(f"ce/expected/{row}.json")["lists"] if not own_options(each)]
    rows = [{"id": each["id"], "query": each["query"], "documents": each["documents"]} for each in lists]
    if not nested:
        rows = [
            {"id": each["id"], "query": each["query"], "document": text} for each in rows for text in each["documents"]
        ]
    out = run("rerank", "ce", row, rows, "--query-id-column", "id")
    found = {(each["id"], each["index"]): each["relevance_score"] for each in out}
    expected = {(each["id"], place): score for each in lists for place, score in enumerate(each["scores"])}
    assert sorted(found) == sorted(expected)
    assert_close([found[key] for key in expected], list(expected.values()), "ce")
