"""One system that scores pairs, in a process of its own with its own interpreter: benchmarks/run.py starts these.

    VENV/bin/python benchmarks/peers.py serve vllm --kind cross-encoder --model DIR --pairs pairs.jsonl
    VENV/bin/python benchmarks/peers.py file st --kind cross-encoder --model DIR --pairs pairs.jsonl --out scores.jsonl

`serve` loads once and then scores all pairs for each line on stdin; it answers with JSON lines: first {"version",
"torch", "load_seconds"}, then {"seconds"} a line of input, or with "scores" too if the line is "scores". A round is
timed from texts in memory to Python floats, tokenization included. `file` is the script that a user of the library
would write: it reads the pairs, scores them once and writes them with their scores.

Peers pin their own torch and transformers, so this file imports nothing heavy before it knows which one it serves. Each
is called the way its documentation advises, with as many threads as it is told:

* batchscore: one `Scorer.score` call, which keeps nothing for the next.
* st (sentence-transformers): `CrossEncoder.predict`, which sorts by length and pads each batch. With a bi-encoder every
  distinct text is encoded once, then the rows of a pair are multiplied; with late interaction too, then each query is
  compared with its documents.
* st-openvino: the same `predict` with OpenVINO behind it.
* openvino: by hand what it can do best: the model converted, texts sorted by length, one stream a thread, and batches
  handed to it without waiting.
* vllm: one `LLM.score` call of N queries to N documents, prefixes cached within a round and not beyond it.
* pylate: as late interaction with sentence-transformers, by its own `ColBERT`.

All but the JSON lines goes to stderr, vLLM's log too: "core ids=[0, 1]" there are the cores it computes on.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

WARM_UP_PAIRS = 64
BATCH = 32  # of sentence-transformers and PyLate: their default
OPENVINO_BATCH_TOKENS = 1024  # padding included

Pairs = list[tuple[str, str]]
Scores = list[float]

# the prompt of Qwen3's rerankers, as its model card splits it over the two texts of a pair
QUERY_HALF = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n<Instruct>: Given a web '
    "search query, retrieve relevant passages that answer the query\n<Query>: {}\n"
)
DOCUMENT_HALF = "<Document>: {}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"


@dataclass(frozen=True)
class Request:
    """What is to be loaded."""

    kind: str
    model: str
    dtype: str
    threads: int
    options: Mapping[str, Any] = field(default_factory=dict)  # more of them, for a Scorer


@dataclass(frozen=True)
class Loaded:
    """A loaded model. Only `score` is timed; `forget` runs before it and empties caches that an earlier call filled."""

    version: str
    score: Callable[[Pairs], Scores]
    forget: Callable[[], object] = lambda: None


Loader = Callable[[Request], Loaded]


def by_query(pairs: Pairs) -> Iterator[tuple[str, list[int]]]:
    """Each distinct query with its rows."""
    rows: dict[str, list[int]] = {}
    for row, (query, _) in enumerate(pairs):
        rows.setdefault(query, []).append(row)
    yield from rows.items()


def prompted(pairs: Pairs) -> Pairs:
    """Pairs whose texts, one after the other, are the prompt."""
    return [(QUERY_HALF.format(query), DOCUMENT_HALF.format(document)) for query, document in pairs]


# ---- ourselves


def load_batchscore(request: Request) -> Loaded:
    """A Scorer without the cache that would answer every round after the first."""
    import torch

    torch.set_num_threads(request.threads)
    import batchscore

    options: Any = {"dtype": request.dtype, **request.options}
    if request.kind == "reranker":
        options["chat_template"] = "qwen3-reranker"
    # all pairs are one window: each text is encoded once without a cache, too
    model = batchscore.Scorer(request.model, cache_mb=0, window_rows=2**17, **options)

    def score(pairs: Pairs) -> Scores:
        queries, documents = (list(side) for side in zip(*pairs, strict=True))
        scores: Scores = model.score(queries, documents).tolist()
        return scores

    return Loaded(batchscore.__version__, score)


# ---- sentence-transformers


def load_st(request: Request, **options: Any) -> Loaded:
    """The class for the kind, with the activation that the checkpoint names."""
    import sentence_transformers
    import torch

    torch.set_num_threads(request.threads)
    options = options or {"model_kwargs": {"dtype": request.dtype}}
    load = {"bi-encoder": _st_bi_encoder, "late-interaction": _st_late_interaction}.get(request.kind, _st_cross_encoder)
    return Loaded(sentence_transformers.__version__, load(request, options))


def _st_cross_encoder(request: Request, options: dict[str, Any]) -> Callable[[Pairs], Scores]:
    from sentence_transformers import CrossEncoder

    model = CrossEncoder(request.model, **options)

    def score(pairs: Pairs) -> Scores:
        given = prompted(pairs) if request.kind == "reranker" else pairs
        scores: Scores = model.predict(given, batch_size=BATCH, show_progress_bar=False).tolist()
        return scores

    return score


def _st_bi_encoder(request: Request, options: dict[str, Any]) -> Callable[[Pairs], Scores]:
    import torch
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(request.model, **options)
    settings: Any = {"batch_size": BATCH, "convert_to_tensor": True, "show_progress_bar": False}

    def encode(texts: list[str]) -> torch.Tensor:
        """One normalised row per given text, [n, d]; equal texts share one forward."""
        row_of = {text: row for row, text in enumerate(dict.fromkeys(texts))}
        vectors: torch.Tensor = model.encode(list(row_of), normalize_embeddings=True, **settings)
        return vectors[[row_of[text] for text in texts]]

    def score(pairs: Pairs) -> Scores:
        queries, documents = (encode(list(side)) for side in zip(*pairs, strict=True))
        scores: Scores = (queries * documents).sum(dim=1).tolist()
        return scores

    return score


def _st_late_interaction(request: Request, options: dict[str, Any]) -> Callable[[Pairs], Scores]:
    from sentence_transformers import MultiVectorEncoder

    model = MultiVectorEncoder(request.model, **options)

    def encode(encoder: Callable[..., Any], texts: list[str]) -> dict[str, Any]:
        distinct = list(dict.fromkeys(texts))
        return dict(zip(distinct, encoder(distinct, batch_size=BATCH, show_progress_bar=False), strict=True))

    def score(pairs: Pairs) -> Scores:
        queries = encode(model.encode_query, [query for query, _ in pairs])
        documents = encode(model.encode_document, [document for _, document in pairs])
        scores = [0.0] * len(pairs)
        for query, rows in by_query(pairs):
            found = model.similarity([queries[query]], [documents[pairs[row][1]] for row in rows])
            for row, value in zip(rows, found[0].tolist(), strict=True):
                scores[row] = value
        return scores

    return score


# ---- OpenVINO


def _openvino_settings(request: Request) -> dict[str, Any]:
    hint = {"bfloat16": "bf16", "float32": "f32"}[request.dtype]
    return {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": request.threads}


def load_st_openvino(request: Request) -> Loaded:
    """sentence-transformers exports the model to OpenVINO by itself."""
    settings = {key: str(value) for key, value in _openvino_settings(request).items()}
    return load_st(request, backend="openvino", model_kwargs={"ov_config": settings})


def load_openvino(request: Request) -> Loaded:
    """The compiled model, and a queue of requests that keeps every stream busy."""
    import numpy as np
    import openvino
    from optimum.intel import OVModelForSequenceClassification
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(Path(request.model, "tokenizer.json")))
    tokenizer.no_padding()
    tokenizer.enable_truncation(512)
    converted = OVModelForSequenceClassification.from_pretrained(request.model, export=True, compile=False).model
    names = [node.get_any_name() for node in converted.inputs]
    settings = {"NUM_STREAMS": request.threads, "PERFORMANCE_HINT": "THROUGHPUT", **_openvino_settings(request)}
    compiled = openvino.Core().compile_model(converted, "CPU", settings)
    queue = openvino.AsyncInferQueue(compiled, 2 * request.threads)
    logits: dict[int, Any] = {}

    def keep(answer: Any, rows: list[int]) -> None:
        logits.update(zip(rows, answer.get_output_tensor(0).data[:, 0].tolist(), strict=True))

    queue.set_callback(keep)

    def score(pairs: Pairs) -> Scores:
        encoded = tokenizer.encode_batch(pairs)
        order, start = sorted(range(len(pairs)), key=lambda row: -len(encoded[row].ids)), 0
        while start < len(order):
            longest = len(encoded[order[start]].ids)
            rows = order[start : start + max(1, OPENVINO_BATCH_TOKENS // longest)]
            columns = {name: np.zeros((len(rows), longest), np.int64) for name in names}
            for place, row in enumerate(rows):
                one = encoded[row]
                values = {"input_ids": one.ids, "attention_mask": one.attention_mask, "token_type_ids": one.type_ids}
                for name, column in columns.items():
                    column[place, : len(one.ids)] = values[name]
            queue.start_async(columns, rows)
            start += len(rows)
        queue.wait_all()
        raw = np.array([logits[row] for row in range(len(pairs))])
        scores: Scores = (1 / (1 + np.exp(-raw))).tolist()
        return scores

    return Loaded(openvino.__version__.partition("-")[0], score, logits.clear)


# ---- vLLM


def configure_vllm(threads: int) -> None:
    """Set vLLM's environment, which it reads at import. What the caller has set already stays."""
    cores = sorted(os.sched_getaffinity(0))[:threads]
    # the default, "auto", keeps one core free for vLLM's own scheduler: of two cores only one would compute
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", ",".join(map(str, cores)))
    # Intel's OpenMP, which vLLM's log asks for and its wheel installs: with GNU's the same pairs took twice as long on
    # two cores. It reaches the engine, a child process; in this process it comes too late, and is not needed.
    openmp = Path(sys.prefix, "lib", "libiomp5.so")
    if openmp.exists():
        os.environ.setdefault("LD_PRELOAD", str(openmp))
    # an explicit size also skips a check that wants most of the machine's memory free; encoders keep no KV cache
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
    os.environ.setdefault("DO_NOT_TRACK", "1")


def load_vllm(request: Request) -> Loaded:
    """vLLM's pooling runner; it sizes its batches itself, and cuts texts beyond the model's length where asked to."""
    configure_vllm(request.threads)
    import vllm

    is_prompted = request.kind == "reranker"
    model = vllm.LLM(
        request.model,
        runner="pooling",
        enforce_eager=True,
        dtype=request.dtype,
        enable_prefix_caching=is_prompted,
    )

    def score(pairs: Pairs) -> Scores:
        queries, documents = (list(side) for side in zip(*(prompted(pairs) if is_prompted else pairs), strict=True))
        cut = {"truncate_prompt_tokens": -1}
        outputs = model.score(queries, documents, use_tqdm=False, tokenization_kwargs=cut)
        return [output.outputs.score for output in outputs]

    return Loaded(vllm.__version__, score, model.reset_prefix_cache)


# ---- PyLate


def load_pylate(request: Request) -> Loaded:
    """ColBERT by the library that such checkpoints come from."""
    import torch
    from pylate import models, rank

    torch.set_num_threads(request.threads)
    model = models.ColBERT(request.model, model_kwargs={"dtype": getattr(torch, request.dtype)})

    def encode(texts: list[str], is_query: bool) -> dict[str, Any]:
        distinct = list(dict.fromkeys(texts))
        settings = {"batch_size": BATCH, "show_progress_bar": False, "convert_to_tensor": True, "is_query": is_query}
        return dict(zip(distinct, model.encode(distinct, **settings), strict=True))

    def score(pairs: Pairs) -> Scores:
        queries = encode([query for query, _ in pairs], is_query=True)
        documents = encode([document for _, document in pairs], is_query=False)

        scores = [0.0] * len(pairs)
        for query, rows in by_query(pairs):
            some = [documents[pairs[row][1]] for row in rows]
            for one in rank.rerank([rows], [queries[query]], [some])[0]:
                scores[one["id"]] = one["score"]
        return scores

    return Loaded(importlib.metadata.version("pylate"), score)


# ---- all of them


@dataclass(frozen=True)
class System:
    """Something that scores pairs."""

    load: Loader
    venv: str = ""  # below the folder of peers; "" is the interpreter that runs the benchmark
    dtype: str = ""  # instead of the one that is asked for


SYSTEMS = {
    "batchscore": System(load_batchscore),
    "openvino": System(load_openvino, "openvino"),
    "pylate": System(load_pylate, "pylate"),
    "st": System(load_st, "st"),
    "st-float32": System(load_st, "st", dtype="float32"),
    "st-openvino": System(load_st_openvino, "openvino"),
    "vllm": System(load_vllm, "vllm"),
}


def read_pairs(path: Path) -> Pairs:
    """The `query` and `document` of every line."""
    with path.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return [(row["query"], row["document"]) for row in rows]


def serve(loaded: Loaded, pairs: Pairs, load_seconds: float, out: Any) -> None:
    """Answer each line of stdin with a round."""
    loaded.score(pairs[:WARM_UP_PAIRS])

    def answer(**content: object) -> None:
        out.write(json.dumps(content) + "\n")
        out.flush()

    answer(version=loaded.version, torch=importlib.metadata.version("torch"), load_seconds=load_seconds)
    for line in sys.stdin:
        loaded.forget()
        start = time.perf_counter()
        scores = loaded.score(pairs)
        seconds = time.perf_counter() - start
        answer(seconds=seconds, **({"scores": scores} if line.strip() == "scores" else {}))


def main() -> None:
    """One system."""
    parser = argparse.ArgumentParser(description="Score pairs with one system; see the top of this file.")
    parser.add_argument("command", choices=["serve", "file"])
    parser.add_argument("system", choices=sorted(SYSTEMS))
    parser.add_argument("--kind", required=True)
    parser.add_argument("--model", required=True, help="a checkpoint's folder")
    parser.add_argument("--pairs", required=True, type=Path, help='JSONL of {"query", "document"}')
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--options", type=json.loads, default={}, help="JSON, for batchscore")
    parser.add_argument("--out", type=Path, help="of `file`")
    args = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    out = os.fdopen(os.dup(1), "w")  # stdout for the answers alone: whatever libraries print goes to stderr
    os.dup2(2, 1)
    system, pairs = SYSTEMS[args.system], read_pairs(args.pairs)
    start = time.perf_counter()
    loaded = system.load(Request(args.kind, args.model, system.dtype or args.dtype, args.threads, args.options))
    if args.command == "serve":
        serve(loaded, pairs, time.perf_counter() - start, out)
        return
    scores = loaded.score(pairs)
    with args.out.open("w", encoding="utf-8") as file:
        for (query, document), score in zip(pairs, scores, strict=True):
            file.write(json.dumps({"query": query, "document": document, "score": score}) + "\n")


if __name__ == "__main__":
    main()
