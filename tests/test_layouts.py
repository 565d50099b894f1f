"""Folders and names that stand for a whole test collection."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from batchscore import encode_files, rerank_files, score_files
from batchscore.errors import BatchscoreError, MissingDependencyError
from batchscore.io import hf
from batchscore.types import Side

pytestmark = pytest.mark.usefixtures("here")

Tiny = Callable[[str], str]
CORPUS = [
    {"_id": "d1", "title": "A river", "text": "of paper"},
    {"_id": "d2", "title": "", "text": "horses"},
    {"_id": "d3", "title": "Salt", "text": "and winter"},
]
QUERIES = [{"_id": "q1", "text": "a river"}, {"_id": "q2", "text": "winter"}]
JUDGED = {"test": [("q2", "d3", 1), ("q2", "d1", 0)], "train": [("q1", "d1", 2)]}
ALL = {(query, document) for query in ("q1", "q2") for document in ("d1", "d2", "d3")}


def write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def beir(prefix: str = "") -> str:
    """A folder in BEIR's layout."""
    folder = Path("nano")
    (folder / f"{prefix}qrels").mkdir(parents=True)
    write(folder / "corpus.jsonl", CORPUS)
    write(folder / f"{prefix}queries.jsonl", QUERIES)
    for split, judged in JUDGED.items():
        rows = "".join(f"{query}\t{document}\t{grade}\n" for query, document, grade in judged)
        (folder / f"{prefix}qrels" / f"{split}.tsv").write_text(f"query-id\tcorpus-id\tscore\n{rows}", "utf-8")
    return str(folder)


def mteb(subset: str = "", *, ranked: bool = True) -> str:
    """A folder that is a dataset in MTEB's layout: configurations that a card lists."""
    folder, card = Path("task"), ["configs:"]
    folder.mkdir()
    prefix = f"{subset}-" if subset else ""
    qrels = [{"query-id": q, "corpus-id": d, "score": grade} for q, d, grade in JUDGED["test"]]
    configs: dict[str, list[dict[str, Any]]] = {"corpus": CORPUS, "queries": QUERIES, "qrels": qrels}
    if ranked:
        configs["top_ranked"] = [
            {"query-id": "q1", "corpus-ids": ["d3", "d1", "gone"]},
            {"query-id": "q2", "corpus-ids": []},
        ]
    for name, rows in configs.items():
        write(folder / f"{name}.jsonl", rows)
        card += [f"- config_name: {prefix}{name}", "  data_files:", "  - split: test", f"    path: {name}.jsonl"]
    (folder / "README.md").write_text("\n".join(["---", *card, "---", ""]), "utf-8")
    return str(folder)


def scored(tiny: Tiny, inputs: str | None, **options: Any) -> list[tuple[str, str]]:
    """The pairs that a run scores, in order."""
    score_files(tiny("bert_ce"), inputs, "out.jsonl", **options)
    rows = map(json.loads, Path("out.jsonl").read_text("utf-8").splitlines())
    return [(row["query_id"], row["document_id"]) for row in rows]


@pytest.mark.parametrize("prefix", ["", "gen-"])
def test_a_beir_folder_has_queries_corpus_and_judgements(tiny: Tiny, prefix: str) -> None:
    assert scored(tiny, beir(prefix), split="test") == [("q2", "d3"), ("q2", "d1")]


def test_all_pairs_of_a_beir_folder_are_of_all_queries_or_of_a_splits(tiny: Tiny) -> None:
    folder = beir()

    assert scored(tiny, folder, all_pairs=True, split="train") == [("q1", "d1"), ("q1", "d2"), ("q1", "d3")]
    assert set(scored(tiny, folder, all_pairs=True, overwrite=True)) == ALL


def test_a_run_goes_with_a_beir_folder(tiny: Tiny) -> None:
    Path("run.trec").write_text("q1 Q0 d2 1 1 x\n", "utf-8")

    assert scored(tiny, beir(), run="run.trec") == [("q1", "d2")]


@pytest.mark.parametrize(("side", "ids"), [("document", ["d1", "d2", "d3"]), ("query", ["q1", "q2"])])
def test_the_texts_of_one_side_of_a_collection_are_encoded(tiny: Tiny, side: Side, ids: list[str]) -> None:
    encode_files(tiny("bert_mean"), beir(), "out.jsonl", side=side)
    rows = map(json.loads, Path("out.jsonl").read_text("utf-8").splitlines())

    assert [row["_id"] for row in rows] == ids


def test_title_and_text_are_one_document(tiny: Tiny) -> None:
    beir()
    options = {"all_pairs": True, "keep_columns": "document_id,document"}
    score_files(tiny("bert_ce"), "nano", "out.jsonl", **options)
    rows = [json.loads(line) for line in Path("out.jsonl").read_text("utf-8").splitlines()]

    assert {row["document_id"]: row["document"] for row in rows} == {
        "d1": "A river of paper", "d2": "horses", "d3": "Salt and winter"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {},
            "nano is a test collection, and nothing says which of its pairs are scored\n"
            "hint: add --run, --qrels or --all-pairs, or --split test or train for those that are judged",
        ),
        ({"split": "dev"}, "nano has no split 'dev'; splits: test, train\nhint: pass --split test"),
        (
            {"corpus": "x.jsonl", "all_pairs": True},
            "nano has queries and a corpus of its own\nhint: drop --queries and --corpus",
        ),
        (
            {"run": "nano/qrels/test.tsv", "split": "test"},
            "no split 'test': all of this is files, and datasets have splits\nhint: drop --split",
        ),
    ],
)
def test_a_beir_folder_alone_is_no_pairs(tiny: Tiny, options: dict[str, Any], message: str) -> None:
    with pytest.raises(BatchscoreError) as caught:
        rerank_files(tiny("bert_ce"), beir(), "out.jsonl", **options)

    assert str(caught.value).partition(" (in Python")[0] == message


@pytest.mark.parametrize("subset", ["", "en"])
def test_the_ranked_lists_of_an_mteb_task_are_its_run(tiny: Tiny, subset: str) -> None:
    folder = mteb(subset)
    path = f"hf:{Path(folder).absolute()}/{subset}" if subset else folder
    outcome = rerank_files(tiny("bert_ce"), path, "out.jsonl")
    rows = map(json.loads, Path("out.jsonl").read_text("utf-8").splitlines())

    assert {row["document_id"]: row["index"] for row in rows} == {"d3": 0, "d1": 1}
    assert outcome.errors is not None
    (bad,) = map(json.loads, Path(outcome.errors).read_text("utf-8").splitlines())
    assert (bad["row"], bad["column"]) == (0, "corpus-ids")
    assert bad["message"].startswith("is 'gone', which hf:")


def test_depth_cuts_ranked_lists(tiny: Tiny) -> None:
    assert scored(tiny, mteb(), depth=1) == [("q1", "d3")]


def test_an_mteb_task_without_lists_has_judgements(tiny: Tiny) -> None:
    folder = mteb(ranked=False)

    assert scored(tiny, folder, split="test") == [("q2", "d3"), ("q2", "d1")]
    assert {query for query, _ in scored(tiny, folder, all_pairs=True, split="test", overwrite=True)} == {"q2"}


def test_a_configuration_is_named_after_its_dataset(tiny: Tiny) -> None:
    base = f"hf:{Path(mteb()).absolute()}"
    names = {"queries": f"{base}/queries", "corpus": f"{base}/corpus", "qrels": f"{base}/qrels"}

    assert scored(tiny, None, **names) == [("q2", "d3"), ("q2", "d1")]
    assert hf.parts("mteb/scifact/corpus") == ("mteb/scifact", "corpus")
    assert hf.parts("mteb/scifact") == ("mteb/scifact", None)


# ---- ir_datasets


@pytest.fixture
def toy() -> str:
    """A dataset of ir_datasets, of files here."""
    package = pytest.importorskip("ir_datasets")
    Path("docs.tsv").write_text("".join(f"{row['_id']}\t{row['text']}\n" for row in CORPUS), "utf-8")
    Path("queries.tsv").write_text("".join(f"{row['_id']}\t{row['text']}\n" for row in QUERIES), "utf-8")
    Path("qrels").write_text("".join(f"{q} 0 {d} {grade}\n" for q, d, grade in JUDGED["test"]), "utf-8")
    files = {"docs_tsv": "docs.tsv", "queries_tsv": "queries.tsv", "qrels_trec": "qrels"}
    dataset = package.create_dataset(**{name: str(Path(file).absolute()) for name, file in files.items()})
    package.registry._registered["toy"] = dataset
    return "irds:toy"


def test_a_name_of_ir_datasets_is_a_collection(tiny: Tiny, toy: str) -> None:
    assert set(scored(tiny, toy, all_pairs=True)) == ALL
    assert scored(tiny, toy, qrels=toy, overwrite=True) == [("q2", "d3"), ("q2", "d1")]
    assert scored(tiny, None, queries=toy, corpus=toy, qrels="qrels", overwrite=True) == [("q2", "d3"), ("q2", "d1")]


def test_a_name_that_ir_datasets_does_not_have_is_said(tiny: Tiny, toy: str) -> None:
    with pytest.raises(BatchscoreError, match=r"^irds:no/such is no dataset of ir_datasets"):
        scored(tiny, None, queries="irds:no/such", corpus=toy, qrels=toy)
    with pytest.raises(BatchscoreError, match=r"^irds:toy has no scoreddocs"):
        scored(tiny, None, queries=toy, corpus=toy, run=toy)


def test_without_the_package_its_names_are_refused(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ir_datasets", None)
    with pytest.raises(MissingDependencyError) as caught:
        scored(tiny, "irds:beir/scifact/test", all_pairs=True)

    assert str(caught.value) == (
        "irds:beir/scifact/test is a name of ir_datasets, which is not installed\n"
        "hint: pip install 'batchscore[ir-datasets]'"
    )
