"""How time, memory and tokens of `batchscore score` grow, and a picture of each.

    python benchmarks/growth.py [STUDY ...] [--rounds 2] [--pictures docs/growth]

* rows: 10 and 100 times as many pairs of the same kind, MiniLM-size cross-encoder.
* texts: the same with a bi-encoder that costs nothing, so that everything else is what is measured.
* length: documents of 2 and 4 times the mean length, MiniLM-size cross-encoder.
* distinct: 1 to 100 % of the texts of the rows are distinct, all-MiniLM-L6-v2 as a bi-encoder.

Every point is a whole process. In a round all points of a study are measured once; the least time counts, less that of
the same command on two rows, which is start-up. Memory and tokens are those of the run's record.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from models import model_folder
from turns import CHECKOUT
from workloads import Pairs, Texts

KEPT = CHECKOUT / ".bench"


@dataclass(frozen=True)
class Study:
    """Points along one axis."""

    model: str  # of models.py
    axis: str
    points: Sequence[float]
    pairs: Callable[[float, float], Pairs]  # of a point, and of how large all of it is to be


@dataclass
class Point:
    """What one size took."""

    x: float
    rows: int = 0
    seconds: float = math.inf
    peak_mb: int = 0
    tokens: int = 0  # that the model reads


def mixed(rows: int, document: Callable[[Texts], str], per_query: int = 10) -> Pairs:
    """So many rows, each query with several documents of its own."""
    texts, pairs, query = Texts(), [], ""
    for row in range(rows):
        query = texts.query() if row % per_query == 0 else query
        pairs.append((query, document(texts)))
    return pairs


def repeated(rows: int, share: float) -> Pairs:
    """Rows that draw from a share of as many queries and documents."""
    texts, chance, count = Texts(), random.Random(0), max(1, round(share * rows))
    # each text at least once, so that the share is exact
    places = [[*range(count), *(chance.randrange(count) for _ in range(rows - count))] for _ in range(2)]
    for side in places:
        chance.shuffle(side)
    queries, documents = [texts.query() for _ in range(count)], [texts.document() for _ in range(count)]
    return [(queries[left], documents[right]) for left, right in zip(*places, strict=True)]


STUDIES = {
    "rows": Study(
        "MiniLM cross-encoder",
        "pairs",
        (50, 500, 5_000),
        lambda x, scale: mixed(round(x * scale), lambda texts: texts.document()),
    ),
    "texts": Study(
        "tiny bi-encoder",
        "pairs",
        (3_000, 30_000, 300_000),
        lambda x, scale: mixed(round(x * scale), lambda texts: texts.text(12)),
    ),
    "length": Study(
        "MiniLM cross-encoder",
        "mean length of documents in tokens",
        (30, 60, 120),
        lambda x, scale: mixed(round(600 * scale), lambda texts: texts.document(x / 1.3, 480)),
    ),
    "distinct": Study(
        "MiniLM bi-encoder",
        "distinct texts, % of the rows",
        (1, 3, 10, 30, 100),
        lambda x, scale: repeated(round(3_000 * scale), x / 100),
    ),
}
READINGS = ("seconds", "peak_mb", "tokens")
TITLES = {"seconds": "seconds, without start-up", "peak_mb": "peak memory, MB", "tokens": "tokens that the model reads"}


def score(model: Path, pairs: Path, out: Path, dtype: str, *more: str) -> tuple[float, dict[str, int]]:
    """(seconds of a whole process, what its record counts)."""
    command = [sys.executable, "-m", "batchscore", "score", "-m", str(model), "-i", str(pairs), "-o", str(out)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(CHECKOUT)}
    begun = time.perf_counter()
    subprocess.run([*command, "--dtype", dtype, "--overwrite", "--quiet", *more], env=environment, check=True)
    seconds = time.perf_counter() - begun
    counts: dict[str, int] = json.loads(Path(f"{out}.run.json").read_text("utf-8"))["counts"]
    return seconds, counts


def measure(study: Study, model: Path, work: Path, args: argparse.Namespace) -> list[Point]:
    """All points of a study."""
    points = [Point(x) for x in study.points]
    for point in points:
        pairs = study.pairs(point.x, args.scale)
        lines = (json.dumps({"query": query, "document": document}) for query, document in pairs)
        (work / f"{point.x}.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
        point.rows = len(pairs)
    start_up = math.inf
    for number in range(args.rounds):
        start_up = min(
            start_up, score(model, work / f"{points[0].x}.jsonl", work / "two.parquet", args.dtype, "--limit", "2")[0]
        )
        for point in points:
            seconds, counts = score(model, work / f"{point.x}.jsonl", work / "out.parquet", args.dtype)
            point.seconds = min(point.seconds, seconds)
            point.peak_mb = max(point.peak_mb, counts["peak_rss_mb"])
            point.tokens = counts["tokens_forwarded"]
            print(f"round {number + 1}: {point.x:g}: {seconds:.1f} s", file=sys.stderr, flush=True)
    for point in points:
        point.seconds = max(0.0, point.seconds - start_up)
    return points


def exponent(points: Sequence[Point], name: str) -> float:
    """The slope between the two largest points where both axes are logarithmic: 1 is in proportion."""
    (a, b), (p, q) = ((point.x, float(getattr(point, name))) for point in points[-2:])
    return math.log(max(q, 1e-9) / max(b, 1e-9)) / math.log(p / a)


def table(name: str, study: Study, points: Sequence[Point]) -> list[str]:
    """Lines of Markdown."""
    lines = [
        f"{name}, {study.model}:",
        "",
        f"| {study.axis} | rows | tokens | seconds | peak MB |",
        "|" + "---|" * 5,
    ]
    for point in points:
        cells = [f"{point.x:g}", f"{point.rows:,}", f"{point.tokens:,}"]
        lines.append(f"| {' | '.join([*cells, f'{point.seconds:.2f}', f'{point.peak_mb:,}'])} |")
    grown = ", ".join(f"{name} ^{exponent(points, name):.2f}" for name in READINGS)
    return [*lines, "", f"Growth between the two largest, as a power of the axis: {grown}.", ""]


def draw(study: Study, points: Sequence[Point], path: Path) -> None:
    """Three curves side by side, as SVG."""
    import matplotlib

    matplotlib.use("svg")
    # the same file from the same numbers, with its letters as text
    matplotlib.rcParams.update({"svg.hashsalt": "batchscore", "svg.fonttype": "none", "font.size": 9})
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(READINGS), figsize=(9, 2.6), layout="constrained")
    for panel, name in zip(panels, READINGS, strict=True):
        values = [float(getattr(point, name)) for point in points]
        panel.plot([point.x for point in points], values, marker="o", color="#1f5f8b", linewidth=1.5)
        panel.set_xscale("log")
        panel.set_xticks([point.x for point in points], [f"{point.x:,g}" for point in points])
        panel.set_yscale("log" if name != "peak_mb" else "linear")
        panel.minorticks_off()
        panel.set_title(TITLES[name], fontsize=9)
        panel.set_xlabel(study.axis)
        panel.grid(visible=True, which="major", linewidth=0.4)
        if name == "peak_mb":
            panel.set_ylim(0, max(values) * 1.15)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def main() -> None:
    """Every study that is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="*", metavar="STUDY", help=f"{', '.join(STUDIES)}; all by default")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--scale", type=float, default=1, help="times as many rows")
    parser.add_argument("--models", type=Path, default=KEPT / "models", help="where checkpoints are built and kept")
    parser.add_argument("--results", type=Path, default=KEPT / "growth", help="numbers, from which --draw draws again")
    parser.add_argument("--pictures", type=Path, default=CHECKOUT / "docs" / "growth")
    parser.add_argument("--draw", action="store_true", help="measure nothing")
    args = parser.parse_args()
    for name in args.studies or STUDIES:
        study, kept = STUDIES[name], args.results / f"{name}.json"
        if not args.draw:
            with tempfile.TemporaryDirectory() as folder:
                points = measure(study, model_folder(study.model, args.models), Path(folder), args)
            args.results.mkdir(parents=True, exist_ok=True)
            kept.write_text(json.dumps([asdict(point) for point in points], indent=1), "utf-8")
        points = [Point(**values) for values in json.loads(kept.read_text("utf-8"))]
        print("\n".join(table(name, study, points)), flush=True)
        draw(study, points, args.pictures / f"{name}.svg")


if __name__ == "__main__":
    main()
