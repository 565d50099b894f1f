"""The part of gpu.py that measures: ratios to sentence-transformers, the share of the card's peak, where the time goes.

Models have published sizes and random weights, texts are words of a small vocabulary. The peak is that of one large
product in bfloat16, measured first. The work of a model is that of all its layers for all tokens, whatever is left out.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from gpu_kernels import measure_kernels, measure_peak
from gpu_report import Cells, OutOfTimeError, Report, checkpoints
from numpy.typing import NDArray

from batchscore import Scorer, score_files
from batchscore.engine.batcher import Batcher
from batchscore.types import Cells as Texts
from batchscore.types import Pairs

Peer = Callable[[Cells, Cells], Any]


@dataclass(frozen=True)
class Size:
    """A model of a published size."""

    name: str
    kind: str  # in transformers
    sizes: dict[str, Any]
    pairs: int
    options: dict[str, Any] = field(default_factory=dict)
    like: str = ""  # the tiny checkpoint that has the tokenizer, if not the family's
    suffix: str = "ForSequenceClassification"
    goal: str = ""
    processes: int = 0  # on one card, to compare with one


MODELS = [
    Size(
        "bge-reranker-v2-m3-size",
        "XLMRoberta",
        {
            "hidden_size": 1024,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "intermediate_size": 4096,
            "vocab_size": 250_002,
            "max_position_embeddings": 8_194,
            "pad_token_id": 1,
            "type_vocab_size": 1,
            "num_labels": 1,
        },
        65_536,
        goal="3x sentence-transformers at its best batch size, 55 % of the peak",
    ),
    Size(
        "Qwen3-Reranker-0.6B-size",
        "Qwen3",
        {
            "hidden_size": 1024,
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "intermediate_size": 3072,
            "vocab_size": 151_936,
            "max_position_embeddings": 40_960,
            "tie_word_embeddings": True,
        },
        4_096,
        options={"config": "qwen3-reranker"},
        like="qwen3_reranker",
        suffix="ForCausalLM",
        goal="55 % of the peak",
    ),
    Size(
        "MiniLM-size",
        "Bert",
        {
            "hidden_size": 384,
            "num_hidden_layers": 6,
            "num_attention_heads": 12,
            "intermediate_size": 1536,
            "vocab_size": 30_522,
            "max_position_embeddings": 512,
            "num_labels": 1,
        },
        131_072,
        goal="1.3 times the time of tokenization alone",
        processes=2,
    ),
]
SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
SMALL |= {"vocab_size": 700, "num_key_value_heads": 2, "head_dim": 16}


def speed(report: Report) -> None:
    """The peak of the card, then every model."""
    peak = measure_peak(report)
    try:
        with report.at_most(75):
            measure_kernels(report)
    except Exception as error:  # torch.compile may lack anything; the models are what counts
        report.say(f"kernels: {str(error).splitlines()[0]}")
    for model in MODELS:
        try:
            with report.at_most(150):
                measure(report, model, peak)
        except OutOfTimeError as error:
            report.say(f"{model.name}: {error}")


def measure(report: Report, model: Size, peak: float) -> None:
    """One model: against its peer, against the peak, against tokenization, and its profile."""
    folder = large_model(report, model)
    queries, documents = workload(6 if report.small else model.pairs)
    report.say(f"{model.name}, {len(queries):,} pairs in bfloat16; goal: {model.goal}")
    with Scorer(folder, device=report.device, dtype="bfloat16", cache_mb=0, **model.options) as scorer:
        lengths, alone = tokenization(report, scorer, queries, documents)
        work = work_of(scorer, lengths)
        scorer.score(queries[:2000], documents[:2000])  # warm up
        peers = {"batchscore": scorer.score, **other_peers(report, model, folder)}
        seconds = race(report, model, peers, queries, documents)
        share(report, "Scorer.score", work, seconds, peak)
        profile(report, scorer, queries, documents, work / len(queries), peak)
    seconds = job(report, folder, model, queries, documents)
    share(report, "file to file", work, seconds, peak)
    report.say(f"ratio   file to file: {seconds / alone:.2f} times tokenization alone")
    if model.processes and not report.small:  # whose start takes longer than all else at small sizes
        compare_processes(report, folder, model)


# ---- models and texts


def large_model(report: Report, model: Size) -> str:
    """Random weights, and a tokenizer of a few hundred words."""
    import transformers

    folder = report.folder / model.name
    if model.like:
        checkpoints.build(model.like, folder)
        for weights in folder.glob("*.safetensors*"):
            weights.unlink()
    else:
        family = checkpoints.FAMILIES[model.kind]
        folder.mkdir()
        tokens = {"tokenizer_class": f"{model.kind}Tokenizer", "model_max_length": 512, **family.tokenizer_config}
        checkpoints.write_json(folder / "tokenizer_config.json", tokens)
        family.tokenizer().save(str(folder / "tokenizer.json"))
    torch.manual_seed(0)
    small = {name: size for name, size in SMALL.items() if report.small and name in model.sizes}
    config = getattr(transformers, f"{model.kind}Config")(**{**model.sizes, **small})
    with torch.device(report.device):  # random numbers are slow on a CPU
        made = getattr(transformers, f"{model.kind}{model.suffix}")(config)
    made.to(torch.bfloat16).save_pretrained(folder)
    return str(folder)


def workload(count: int) -> tuple[Cells, Cells]:
    """Pairs as in workloads.py: queries of 3 to 12 words, documents of 10 to 250 with a median of 60."""
    chance = random.Random(0)

    def text(length: int) -> str:
        return " ".join(chance.choices(checkpoints.WORDS, k=length))

    queries = [text(chance.randint(3, 12)) for _ in range(-(-count // 10))]
    documents = [text(min(250, max(10, round(chance.lognormvariate(4.1, 0.7))))) for _ in range(count)]
    return [queries[row // 10] for row in range(count)], documents


# ---- shares


def tokenization(
    report: Report, scorer: Scorer, queries: Cells, documents: Cells
) -> tuple[NDArray[np.integer[Any]], float]:
    """(tokens of each pair, seconds that window after window takes without a model)."""
    begun, lengths = time.perf_counter(), []
    for start in range(0, len(queries), scorer.budget.window_rows):
        window = slice(start, start + scorer.budget.window_rows)
        work = scorer.batcher.tokenize(Pairs(Texts.of(queries[window]), Texts.of(documents[window])))
        lengths.append(work.items.lengths)
    seconds = time.perf_counter() - begun
    joined = np.concatenate(lengths)
    total = int(joined.sum())
    text = f"{total:,} tokens, {joined.min()}-{joined.max()} a pair, mean {joined.mean():.0f}; {seconds:.2f} s"
    report.say(f"texts   tokenization alone: {text}, {total / seconds:,.0f} tokens/s")
    return joined, seconds


def work_of(scorer: Scorer, lengths: NDArray[np.integer[Any]]) -> float:
    """FLOP of all layers for all tokens of these sequences."""
    runner: Any = scorer.batcher._runner
    layers = [runner.model.bodies[0], *([] if runner.last_layer is None else [runner.last_layer])]
    linears = [part for layer in layers for part in layer.modules() if hasattr(part, "in_features")]
    config = runner.model.bodies[0].config
    width = config.num_attention_heads * getattr(config, "head_dim", config.hidden_size // config.num_attention_heads)
    seen = 0.5 if hasattr(config, "num_key_value_heads") else 1.0  # of all pairs of tokens, if causal
    products = 4 * width * config.num_hidden_layers * seen * float((lengths.astype(np.float64) ** 2).sum())
    weights = sum(int(linear.in_features * linear.out_features) for linear in linears)
    return 2.0 * weights * int(lengths.sum()) + float(products)


def share(report: Report, what: str, work: float, seconds: float, peak: float) -> None:
    """Of the peak, by the clock, tokenization and all else included."""
    rate = work / seconds / 1e12
    report.say(f"share   {what}: {seconds:.2f} s, {rate:.3g} TFLOP/s, {rate / peak:.1%} of the peak")


def job(report: Report, folder: str, model: Size, queries: Cells, documents: Cells) -> float:
    """Seconds from file to file, without those in which the weights are read."""
    pairs, out = Path(folder) / "pairs.parquet", Path(folder) / "scores.parquet"
    pq.write_table(pa.table({"query": queries, "document": documents}), pairs)
    options: Any = {"device": report.device, "dtype": "bfloat16", **model.options}
    with noted_loads() as loads:
        outcome = score_files(folder, str(pairs), str(out), **options)
    seconds = float(outcome.counts["seconds"]["total"]) - sum(loads)
    stages = ", ".join(f"{stage} {spent:.2f} s" for stage, spent in outcome.counts["seconds"].items())
    report.say(f"job     {stages}; {seconds:.2f} s without reading weights")
    return seconds


def compare_processes(report: Report, folder: str, model: Size) -> None:
    """Rows a second between the first part and the last, by one process and by several on the same device."""
    rates = {}
    for count in (1, model.processes):
        out = Path(folder) / f"parts-{count}"
        device = f"{report.device}:0" if report.device == "cuda" else "cpu"
        options: Any = {"devices": ",".join([device] * count), "dtype": "bfloat16", "unit_rows": 4_096, **model.options}
        score_files(folder, str(Path(folder) / "pairs.parquet"), f"{out}/", **options)
        times = sorted(part.stat().st_mtime for part in out.glob("part-*.parquet"))
        rates[count] = 4_096 * (len(times) - 1) / (times[-1] - times[0])
        report.say(f"process {count} on one device: {rates[count]:,.0f} rows/s, {rates[count] / rates[1]:.2f}x")


@contextmanager
def noted_loads() -> Iterator[list[float]]:
    """Meanwhile a list gets the seconds in which weights are read."""
    seconds: list[float] = []
    load = Batcher.load

    def noted(batcher: Batcher) -> None:
        start = time.perf_counter()
        load(batcher)
        seconds.append(time.perf_counter() - start)

    Batcher.load = noted  # type: ignore[assignment, method-assign]
    try:
        yield seconds
    finally:
        Batcher.load = load  # type: ignore[method-assign]


# ---- peers


def race(report: Report, model: Size, peers: dict[str, Peer], queries: Cells, documents: Cells) -> float:
    """Medians of three rounds in which the peers take turns, slow ones over fewer pairs; ours."""
    rates: dict[str, list[float]] = {peer: [] for peer in peers}
    count = min(len(queries), 8192)
    scores = {}
    for _ in range(1 if report.small else 3):
        for peer, score in peers.items():
            some = len(queries) if peer == "batchscore" else count
            begun = time.perf_counter()
            scores[peer] = np.asarray(score(queries[:some], documents[:some]), np.float32)[:count]
            rates[peer].append(some / (time.perf_counter() - begun))
    ours = statistics.median(rates["batchscore"])
    for peer, found in rates.items():
        median, span = statistics.median(found), f"[{min(found):,.0f}-{max(found):,.0f}]"
        gap = np.abs(scores[peer] - scores["batchscore"]).max() / (np.ptp(scores["batchscore"]) or 1)
        text = f"{median:,.0f} pairs/s {span}, {median / ours:.3f}x, scores {gap:.1e} of their range apart"
        report.say(f"speed   {model.name}, {peer}: {text}")
    return len(queries) / ours


def other_peers(report: Report, model: Size, folder: str) -> dict[str, Peer]:
    """sentence-transformers' cross-encoder, where it is installed, at its best batch size; not at small sizes.

    Once more with flash attention where that is installed.
    """
    if report.small or find_spec("sentence_transformers") is None:
        report.say("without sentence-transformers")
        return {}
    if model.suffix != "ForSequenceClassification":
        return {}
    peers: dict[str, Peer] = {}
    kinds = {"": "sdpa"}
    if find_spec("flash_attn") is not None or find_spec("kernels") is not None:
        kinds[", flash attention"] = "flash_attention_2"
    else:
        report.say("without flash attention: neither flash_attn nor kernels is installed")
    for name, attention in kinds.items():
        try:
            peers |= best_batch(report, model, folder, name, attention)
        except (ImportError, OSError, RuntimeError, ValueError) as error:
            report.say(f"sentence-transformers{name}: {str(error).splitlines()[0][:200]}")
    return peers


def best_batch(report: Report, model: Size, folder: str, name: str, attention: str) -> dict[str, Peer]:
    """The peer at the batch size that is fastest over some of the pairs."""
    from sentence_transformers import CrossEncoder

    keywords = {"dtype": torch.bfloat16, "attn_implementation": attention}
    encoder = CrossEncoder(folder, device=report.device, model_kwargs=keywords)

    def score(queries: Cells, documents: Cells, size: int) -> Any:
        pairs = list(zip(queries, documents, strict=True))
        return encoder.predict(pairs, batch_size=size, show_progress_bar=False)

    some, seconds = workload(4096), {}
    for size in (32, 64, 128, 256, 512):
        score(some[0][:size], some[1][:size], size)
        begun = time.perf_counter()
        score(*some, size)
        seconds[size] = time.perf_counter() - begun
    best = min(seconds, key=lambda size: seconds[size])
    tried = ", ".join(f"{size}: {4096 / spent:,.0f}" for size, spent in seconds.items())
    report.say(f"sentence-transformers{name}, {model.name}, pairs/s by batch size: {tried}")
    return {f"sentence-transformers{name} (batches of {best})": lambda left, right: score(left, right, best)}


# ---- where the time goes


def profile(report: Report, scorer: Scorer, queries: Cells, documents: Cells, work_a_pair: float, peak: float) -> None:
    """The operations that take most of the device's time, over one window, and how long the device idled."""
    from torch._C._profiler import _ExperimentalConfig
    from torch.profiler import ProfilerActivity

    on_gpu = report.device == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    # packs run in threads of their own
    every_thread = _ExperimentalConfig(profile_all_threads=True)
    some = slice(3 if report.small else 4096)
    batcher = scorer.batcher
    work = batcher.tokenize(Pairs(Texts.of(queries[some]), Texts.of(documents[some])))
    with torch.profiler.profile(activities=activities, experimental_config=every_thread) as profiler:
        begun = time.perf_counter()
        batcher.score(work)
        wall = time.perf_counter() - begun
    # on a GPU its kernels alone: an operation's own entry counts them once more
    kind = "CUDA" if on_gpu else "CPU"
    events = [event for event in profiler.key_averages() if event.device_type.name == kind]
    times = {event.key: event.self_device_time_total if on_gpu else event.self_cpu_time_total for event in events}
    total = sum(times.values()) or 1
    rate = work_a_pair * len(work) / (total / 1e6) / 1e12
    busy = (
        f"{total / 1000:.1f} ms on the {'GPU' if on_gpu else 'CPU'} in {wall * 1000:.1f} ms ({total / 1e6 / wall:.0%})"
    )
    report.say(f"profile {len(work):,} pairs without tokenization: {busy}, {rate / peak:.1%} of the peak while busy")
    for key in sorted(times, key=lambda key: -times[key])[:12]:
        print(f"          {times[key] / total:6.1%}  {times[key] / 1000:8.2f} ms  {key[:90]}", flush=True)
