"""Score a file of pairs with one peer library, run by that peer's own interpreter, and print one JSON line.

    PEER_VENV/bin/python benchmarks/peers.py --peer vllm --model DIR --pairs pairs.jsonl --kind cross-encoder --repeat 5

    {"peer", "version", "torch", "pairs", "load_seconds", "seconds": [one per repeat], "scores": [the first 20]}

Peers pin their own torch and transformers, so each lives in its own virtual environment: this file imports nothing
heavy before it knows which peer it serves. `--peer batchscore` measures ourselves in the same way. A repeat is timed
from texts in memory to Python floats, tokenization included. `load_seconds` is imports and weights; then the first 32
pairs are scored once, untimed.

Each peer is called the way its documentation advises:

* sentence-transformers, cross-encoder: `CrossEncoder.predict`, which sorts by length and pads each batch;
  bi-encoder: every distinct text is encoded once, then the rows of a pair are multiplied.
* vllm: one `LLM.score` call of N queries to N documents. The checkpoint decides which kind it is, so `--kind` changes
  nothing; a bi-encoder's repeated texts are encoded again for every pair, which is what that call does.
* batchscore: one `Scorer.score` call, without the cache that would answer every repeat after the first.

All but the JSON line goes to stderr, vLLM's log too: "core ids=[0, 1]" there are the cores it computes on.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

WARM_UP_PAIRS = 32
SHOWN_SCORES = 20

Pairs = list[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Peer:
    """A loaded model. Only `score` is timed; `forget` runs before it and empties caches that an earlier call filled."""

    version: str
    score: Callable[[Pairs], list[float]]
    forget: Callable[[], object] = lambda: None


def load_cross_encoder(args: argparse.Namespace) -> Peer:
    """sentence-transformers' reranker, with the activation that its checkpoint names."""
    import sentence_transformers
    import torch

    torch.set_num_threads(args.threads)
    model = sentence_transformers.CrossEncoder(args.model, model_kwargs={"dtype": args.dtype})

    def score(pairs: Pairs) -> list[float]:
        scores: list[float] = model.predict(pairs, batch_size=args.batch_size, show_progress_bar=False).tolist()
        return scores

    return Peer(sentence_transformers.__version__, score)


def load_bi_encoder(args: argparse.Namespace) -> Peer:
    """sentence-transformers' embedder, used as a careful caller does: distinct texts once, cosine as a dot product."""
    import sentence_transformers
    import torch

    torch.set_num_threads(args.threads)
    model = sentence_transformers.SentenceTransformer(args.model, model_kwargs={"dtype": args.dtype})

    def encode(texts: list[str]) -> torch.Tensor:
        """One normalised row per given text, [n, d]; equal texts share one forward."""
        row_of = {text: row for row, text in enumerate(dict.fromkeys(texts))}
        vectors = model.encode(
            list(row_of),
            batch_size=args.batch_size,
            normalize_embeddings=True,
            convert_to_tensor=True,
            show_progress_bar=False,
        )
        return vectors[[row_of[text] for text in texts]]

    def score(pairs: Pairs) -> list[float]:
        queries, documents = (encode(list(side)) for side in zip(*pairs, strict=True))
        return (queries * documents).sum(dim=1).tolist()

    return Peer(sentence_transformers.__version__, score)


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


def load_vllm(args: argparse.Namespace) -> Peer:
    """vLLM's pooling runner; it sizes its batches itself, and cuts texts beyond the model's length where asked to."""
    configure_vllm(args.threads)
    import vllm

    model = vllm.LLM(args.model, runner="pooling", enforce_eager=True, dtype=args.dtype)

    def score(pairs: Pairs) -> list[float]:
        queries, documents = (list(side) for side in zip(*pairs, strict=True))
        cut = {"truncate_prompt_tokens": -1}
        outputs = model.score(queries, documents, use_tqdm=False, tokenization_kwargs=cut)
        return [output.outputs.score for output in outputs]

    # a decoder's prefix cache would answer every repeat after the first
    return Peer(vllm.__version__, score, model.reset_prefix_cache)


def load_batchscore(args: argparse.Namespace) -> Peer:
    """Ourselves."""
    import torch

    torch.set_num_threads(args.threads)
    import batchscore

    model = batchscore.Scorer(args.model, dtype=args.dtype, cache_mb=0)

    def score(pairs: Pairs) -> list[float]:
        queries, documents = (list(side) for side in zip(*pairs, strict=True))
        scores: list[float] = model.score(queries, documents).tolist()
        return scores

    return Peer(batchscore.__version__, score)


LOADERS: dict[tuple[str, str], Callable[[argparse.Namespace], Peer]] = {
    ("batchscore", "cross-encoder"): load_batchscore,
    ("batchscore", "bi-encoder"): load_batchscore,
    ("sentence-transformers", "cross-encoder"): load_cross_encoder,
    ("sentence-transformers", "bi-encoder"): load_bi_encoder,
    ("vllm", "cross-encoder"): load_vllm,
    ("vllm", "bi-encoder"): load_vllm,
}


def read_pairs(path: Path) -> Pairs:
    """The `query` and `document` of every line; other fields are ignored."""
    with path.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return [(row["query"], row["document"]) for row in rows]


def measure(args: argparse.Namespace) -> dict[str, object]:
    """Load, warm up, repeat."""
    pairs = read_pairs(args.pairs)
    start = time.perf_counter()
    peer = LOADERS[args.peer, args.kind](args)
    load_seconds = time.perf_counter() - start
    peer.score(pairs[:WARM_UP_PAIRS])
    seconds, scores = [], []
    for _ in range(args.repeat):
        peer.forget()
        start = time.perf_counter()
        scores = peer.score(pairs)
        seconds.append(time.perf_counter() - start)
    return {
        "peer": args.peer,
        "version": peer.version,
        "torch": importlib.metadata.version("torch"),
        "pairs": len(pairs),
        "load_seconds": load_seconds,
        "seconds": seconds,
        "scores": scores[:SHOWN_SCORES],
    }


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Score pairs with a peer library; prints one JSON line.")
    parser.add_argument("--peer", required=True, choices=sorted({peer for peer, _ in LOADERS}))
    parser.add_argument("--kind", required=True, choices=sorted({kind for _, kind in LOADERS}))
    parser.add_argument("--model", required=True, help="a checkpoint's folder")
    parser.add_argument("--pairs", required=True, type=Path, help='JSONL of {"query", "document"}')
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=32, help="sentence-transformers only")
    parser.add_argument("--repeat", type=int, default=3)
    return parser.parse_args()


def main() -> None:
    """Print the measurement as one JSON line."""
    args = parse_arguments()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    # libraries, and vLLM's child processes, print to descriptor 1: keep the real one for the result alone
    with os.fdopen(os.dup(1), "w") as result:
        os.dup2(2, 1)
        print(json.dumps(measure(args)), file=result)


# vLLM starts its engine with spawn, which imports this file again
if __name__ == "__main__":
    main()
