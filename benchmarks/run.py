"""Times workloads: every system that is there, in its own process and turn, and prints a table for LOG.md.

    python benchmarks/run.py W1 [--dtype auto] [--rounds 3] [--minutes 3] [--peers DIR] [--only batchscore,st]
    python benchmarks/run.py W1 --only batchscore --ours before:checkout=DIR --ours plain:VARIABLE=0

Every system loads once (benchmarks/peers.py); then they take turns, there and back, with all others stopped, so that
no idle thread of one takes time from another and a slow minute of the machine falls on all of them. Command lines and
scripts are processes that start anew each round. There are two rounds, and more while `--minutes` last.

Speeds are medians; "x" is how many times as long a system takes as the first, by medians and by minima, and CPU is the
same for the processor time of all its processes. The gap is the largest difference between its scores and those of the
first. A peer without a virtual environment in DIR, where benchmarks/peers.sh puts them, is left out.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from models import model_folder
from turns import CHECKOUT, CommandLineAlone, Entrant, FailedError, Server, Task, Variant, enter
from workloads import WORKLOADS, Pairs, Workload

KEPT = CHECKOUT / ".bench"
TOY_PAIRS = 24


def write_pairs(path: Path, pairs: Pairs) -> None:
    """JSONL."""
    lines = (json.dumps({"query": query, "document": document}) for query, document in pairs)
    path.write_text("\n".join(lines) + "\n", "utf-8")


def chosen_dtype(asked: str) -> str:
    """What batchscore would take here for "auto"."""
    from batchscore.runners.device import choose_device

    return choose_device("cpu", asked).dtype if asked == "auto" else asked  # type: ignore[arg-type]


def say(text: str) -> None:
    """Progress."""
    print(text, file=sys.stderr, flush=True)


def start(names: Sequence[str], task: Task, variants: Mapping[str, Variant], started: list[Entrant]) -> None:
    """Add every system that can be started."""
    for name in names:
        try:
            started.append(enter(name, task, variants))
        except FailedError as error:
            say(f"{name} is left out: {error}")


def take_turns(entrants: list[Entrant], rounds: int, end: float) -> None:
    """Run every system in each round, two rounds at least and none that would go on past the end.

    A system that fails leaves the list.
    """
    longest = 0.0
    for number in range(rounds):
        begun = time.monotonic()
        if number >= 2 and begun + longest > end:
            return
        for entrant in entrants[:: 1 if number % 2 == 0 else -1]:
            try:
                entrant.turn()
                say(f"round {number + 1}: {entrant.name} {entrant.rounds[-1].seconds:.2f} s")
            except FailedError as error:
                say(f"{entrant.name} failed: {error}")
                entrants.remove(entrant)
        longest = max(longest, time.monotonic() - begun)


def ratios(entrant: Entrant, first: Entrant) -> tuple[float, float, float]:
    """How many times what the first takes: medians, minima, processor time at the median."""
    cpu = [statistics.median(some.cpu_seconds) for some in (entrant, first)]
    median = statistics.median(entrant.seconds) / statistics.median(first.seconds)
    # processor time is counted in ticks of 10 ms, of which a toy's round may take none
    return median, min(entrant.seconds) / min(first.seconds), cpu[0] / cpu[1] if cpu[1] else math.nan


def gap(entrant: Entrant, first: Entrant) -> str:
    """The largest difference of scores."""
    if not entrant.scores or entrant is first:
        return ""
    return f"{max(abs(a - b) for a, b in zip(entrant.scores, first.scores, strict=True)):.1e}"


def table(entrants: Sequence[Entrant], pairs: int, goals: Mapping[str, float]) -> list[str]:
    """Lines of Markdown, the first system first."""
    lines = ["| system | pairs/s | median s [min-max] | x | x of minima | x of CPU | goal | gap |", "|" + "---|" * 8]
    first = entrants[0]
    for entrant in entrants:
        seconds = entrant.seconds
        median = statistics.median(seconds)
        times, least, cpu = ratios(entrant, first)
        goal = goals.get(entrant.name)
        reached = "" if goal is None else f"{goal:.2f} {'reached' if times >= goal else 'missed'}"
        cells = [f"{entrant.name} {entrant.version}".strip(), f"{pairs / median:,.1f}"]
        cells += [f"{median:.2f} [{min(seconds):.2f}-{max(seconds):.2f}]", f"{times:.2f}", f"{least:.2f}", f"{cpu:.2f}"]
        lines.append(f"| {' | '.join([*cells, reached, gap(entrant, first)])} |")
    return lines


def notes(entrants: Sequence[Entrant]) -> list[str]:
    """What the table does not say."""
    found = []
    for entrant in entrants:
        if isinstance(entrant, CommandLineAlone):
            start_up = [one.seconds for one in entrant.start_up]
            found.append(f"{entrant.name}: less a start-up of {statistics.median(start_up):.2f} s")
        if isinstance(entrant, Server):
            found.append(f"{entrant.name}: loaded in {entrant.load_seconds:.1f} s")
    return found


def machine() -> str:
    """The processor, and what it multiplies."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return "unknown processor"
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    has = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in facts.get("flags", "").split()]
    return f"{facts.get('model name', 'unknown processor')}, {len(os.sched_getaffinity(0))} cores, {' '.join(has)}"


def measure(name: str, workload: Workload, args: argparse.Namespace, work: Path) -> list[str]:
    """One workload: the lines of its entry."""
    variants = {"batchscore": Variant(), **dict(Variant.read(text) for text in args.ours)}
    only = workload.systems if args.only is None else args.only.split(",")
    names = [*(one for one in workload.systems if one in only), *(one for one in variants if one != "batchscore")]
    pairs = workload.pairs()[: TOY_PAIRS if args.toy else args.pairs]
    model = model_folder(workload.toy if args.toy else workload.model, args.models)
    dtype = chosen_dtype(args.dtype)
    if dtype == "float32":
        names = [one for one in names if one != "st-float32"]
    write_pairs(work / "pairs.jsonl", pairs)
    end = time.monotonic() + 60 * args.minutes
    task = Task(workload.kind, model, work / "pairs.jsonl", dtype, args.threads, args.peers, work)
    everyone: list[Entrant] = []
    try:
        start(names, task, variants, everyone)
        entrants = list(everyone)
        take_turns(entrants, args.rounds, end)
    finally:
        for entrant in everyone:
            entrant.close()
    if not entrants:
        return [f"{name}: nothing could be run"]
    how = f"{len(pairs):,} pairs, {dtype}, {args.threads} threads, {len(entrants[0].rounds)} rounds"
    return [
        f"{name}, {workload.title}: {how}",
        f"({machine()})",
        "",
        *table(entrants, len(pairs), workload.goals.get(dtype, {})),
        "",
        *notes(entrants),
    ]


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "workloads", nargs="+", choices=[*WORKLOADS, "all"], metavar="W", help=", ".join([*WORKLOADS, "all"])
    )
    parser.add_argument("--dtype", default="auto", help="auto, bfloat16 or float32, of every system")
    parser.add_argument("--rounds", type=int, default=5, help="at most")
    parser.add_argument("--minutes", type=float, default=3, help="of a workload, unless two rounds take longer")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--pairs", type=int, help="the first so many; all by default")
    parser.add_argument("--only", help="these systems, with commas")
    parser.add_argument("--ours", action="append", default=[], metavar="NAME:KEY=VALUE", help=str(Variant.__doc__))
    parser.add_argument(
        "--peers", type=Path, default=KEPT / "peers", help="virtual environments of benchmarks/peers.sh"
    )
    parser.add_argument("--models", type=Path, default=KEPT / "models", help="where checkpoints are built and kept")
    parser.add_argument("--toy", action="store_true", help="few pairs and tiny models, to see whether all of it runs")
    return parser.parse_args()


def main() -> None:
    """Print a table a workload."""
    args = parse_arguments()
    # stopped processes would stay behind
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    args.peers, args.models = args.peers.resolve(), args.models.resolve()  # processes run in folders of their own
    for name in WORKLOADS if "all" in args.workloads else args.workloads:
        with tempfile.TemporaryDirectory() as folder:
            print("\n".join([*measure(name, WORKLOADS[name], args, Path(folder)), ""]), flush=True)


if __name__ == "__main__":
    main()
