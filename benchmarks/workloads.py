"""The workloads: which pairs, scored by which model, against whom, and what ratio is wanted.

Texts are words drawn evenly from a vocabulary, each of one token, so that lengths in words are lengths in tokens. The
lengths of documents are log-normal, as those of passages are.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from models import words

Pairs = list[tuple[str, str]]
Goals = Mapping[str, Mapping[str, float]]  # dtype -> system -> the least ratio


@dataclass(frozen=True)
class Workload:
    """One row of the table of goals."""

    title: str
    kind: str  # of the loaders in peers.py
    model: str  # of models.py
    toy: str  # a model of the same kind that costs nothing
    pairs: Callable[[], Pairs]
    systems: tuple[str, ...]  # of peers.py; ratios are to the first
    goals: Goals = field(default_factory=dict)


class Texts:
    """Draws texts, the same in every process."""

    def __init__(self, seed: int = 0) -> None:
        self._chance = random.Random(seed)
        self._words = words()

    def text(self, length: int) -> str:
        """So many words."""
        return " ".join(self._chance.choices(self._words, k=length))

    def query(self) -> str:
        """3 to 12 words."""
        return self.text(self._chance.randint(3, 12))

    def document(self, median: float = 46, longest: int = 350) -> str:
        """At least 8 words; the mean is 1.3 times the median."""
        return self.text(min(longest, max(8, round(median * self._chance.lognormvariate(0, 0.73)))))

    def sample(self, texts: list[str], count: int) -> list[str]:
        """Some of the texts, none of them twice."""
        return self._chance.sample(texts, count)


def own_documents(queries: int, documents: int) -> Pairs:
    """So many queries, each with so many documents that no other query has."""
    texts = Texts()
    return [(query, texts.document()) for query in (texts.query() for _ in range(queries)) for _ in range(documents)]


def shared_documents(queries: int, candidates: int, documents: int) -> Pairs:
    """So many queries, each with so many candidates out of the documents."""
    texts = Texts()
    corpus = [texts.document() for _ in range(documents)]
    return [
        (query, document)
        for query in (texts.query() for _ in range(queries))
        for document in texts.sample(corpus, candidates)
    ]


def in_any_dtype(goals: Mapping[str, float]) -> Goals:
    """The same goals whatever the dtype."""
    return {"bfloat16": goals, "float32": goals}


CROSS = ("batchscore", "vllm", "openvino", "st-openvino", "st", "st-float32")
CROSS_GOALS = {
    "bfloat16": {"vllm": 2.0, "openvino": 1.5, "st-float32": 8.0},
    "float32": {"vllm": 1.8, "st": 1.8, "openvino": 1.2},
}
RERANKER = ("batchscore", "vllm", "st")
RERANKER_GOALS = in_any_dtype({"unshared": 1.6, "vllm": 1.2, "st": 2.0})
ENCODED_GOALS = in_any_dtype({"st": 1.8, "pylate": 1.8})

WORKLOADS = {
    "W1": Workload(
        "4,000 mixed pairs, MiniLM-size cross-encoder",
        "cross-encoder",
        "MiniLM cross-encoder",
        "tiny cross-encoder",
        lambda: own_documents(400, 10),
        CROSS,
        CROSS_GOALS,
    ),
    "W2": Workload(
        "600 mixed pairs, BERT-base-size cross-encoder",
        "cross-encoder",
        "BERT-base cross-encoder",
        "tiny cross-encoder",
        lambda: own_documents(60, 10),
        CROSS,
        CROSS_GOALS,
    ),
    "W4": Workload(
        "200 queries x 100 of 2,000 documents, MiniLM bi-encoder",
        "bi-encoder",
        "MiniLM bi-encoder",
        "tiny bi-encoder",
        lambda: shared_documents(200, 100, 2_000),
        ("batchscore-cli", "batchscore", "st"),
        ENCODED_GOALS,
    ),
    "W5": Workload(
        "200 queries x 100 of 2,000 documents, late interaction of MiniLM size",
        "late-interaction",
        "MiniLM late interaction",
        "MiniLM late interaction",
        lambda: shared_documents(200, 100, 2_000),
        ("batchscore-cli", "batchscore", "st", "pylate"),
        ENCODED_GOALS,
    ),
    "W6": Workload(
        "20 queries x 20 documents, small Qwen3 reranker with its prompt",
        "reranker",
        "small Qwen3 reranker",
        "tiny Qwen3 reranker",
        lambda: own_documents(20, 20),
        RERANKER,
        RERANKER_GOALS,
    ),
    "W6-wide": Workload(
        "20 queries x 20 documents, 4 layers of the width of Qwen3-Reranker-0.6B",
        "reranker",
        "wide Qwen3 reranker",
        "tiny Qwen3 reranker",
        lambda: own_documents(20, 20),
        RERANKER,
        RERANKER_GOALS,
    ),
    "W7": Workload(
        "100 pairs, from the start of a process to the file, MiniLM-size cross-encoder",
        "cross-encoder",
        "MiniLM cross-encoder",
        "tiny cross-encoder",
        lambda: own_documents(10, 10),
        ("batchscore-file", "st-file", "st-openvino-file", "vllm-file", "import-torch"),
        in_any_dtype({"st-file": 2.5, "import-torch": 1 / 2.2}),
    ),
}
