"""Figures by matplotlib: in a page as SVG whose colours are CSS variables, in a mail as PNG or SVG.

matplotlib draws on the side of the program, so the page needs no script to be seen, prints in full, and is small. What
it lacks is interaction, of which the page has a little of its own.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
from markupsafe import Markup, escape
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

# light theme; report.css has a variable for each, with a value of its own in the dark theme
TEXT, MUTED, GRID, BETTER, WORSE = "#1f2329", "#57606b", "#d8dee5", "#1a7f38", "#c4320b"
SERIES = ("#0a69db", "#bc4c01", "#8251e0", "#116330", "#bf3990", "#0e7490", "#953801", "#57606a", "#6e7782", "#a40f27")
MARKERS = "osD^vP*X<>"
VARIABLES: Mapping[str, str] = {
    TEXT: "--text",
    MUTED: "--muted",
    GRID: "--grid",
    BETTER: "--better",
    WORSE: "--worse",
    **{colour: f"--series-{number}" for number, colour in enumerate(SERIES)},
}
WIDE, NARROW = 920, 344  # pixels, of the page's two columns: a screen's and a phone's
_OF_MAIL = 720  # each of the pictures in a file
_FONT = "system-ui, sans-serif"
_STYLE = {
    "svg.fonttype": "none",  # texts stay texts, in the page's font
    "svg.hashsalt": "batchscore",
    "text.parse_math": False,  # a name may have dollars
    "font.size": 12.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": TEXT,
    "axes.titlesize": 12.0,
    "axes.titlelocation": "left",
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "text.color": TEXT,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": TEXT,
    "ytick.labelcolor": TEXT,
    "legend.frameon": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}
_BINS = 50
_STEPS = 40  # of a run's course
_PIXELS = 40.0  # of a row of a figure


@dataclass(frozen=True, slots=True)
class Estimate:
    """A measure of a run, with the ends of its interval."""

    run: int  # which of the page's runs
    measure: str
    value: float
    low: float
    high: float


Draw = Callable[[Any, int], None]  # (a figure or part of one, its width in pixels)


@dataclass(frozen=True, slots=True)
class Picture:
    """A figure that can be drawn in any width."""

    title: str  # what a screen reader says, and a mail's subject might
    description: str  # what it shows, in a sentence or two
    height: Callable[[int], float]  # width -> height, in pixels
    draw: Draw


def estimates(runs: Sequence[str], values: Sequence[Estimate]) -> Picture:
    """A point and an interval for each measure of each run."""
    measures = list(dict.fromkeys(value.measure for value in values))

    def draw(figure: Any, width: int) -> None:
        axes = figure.subplots()
        step = 0.8 / len(runs)
        for run, name in enumerate(runs):
            own = [value for value in values if value.run == run]
            places = [measures.index(value.measure) - 0.4 + step * (run + 0.5) for value in own]
            means = np.array([value.value for value in own])
            reach = [means - [value.low for value in own], [value.high for value in own] - means]
            colour = SERIES[run]
            axes.errorbar(
                means, places, xerr=np.maximum(reach, 0), fmt=MARKERS[run], color=colour, capsize=3, label=name
            )
        axes.set_yticks(range(len(measures)), measures)
        axes.set_ylim(len(measures) - 0.4, -0.6)
        axes.grid(axis="y", visible=False)
        if len(runs) > 1:
            _legend(axes, width)

    rows = len(measures) * max(1.0, 0.55 * len(runs))
    return Picture(
        "Measures of each run, with 95 % intervals",
        "A point is the value over all queries or pairs, a line its 95 % interval. The table below has the numbers.",
        lambda width: 50 + _PIXELS * rows + 20 * len(runs) * (len(runs) > 1),
        draw,
    )


def changes(
    differences: NDArray[np.float64], measure: str, run: str, baseline: str, ids: Sequence[str] | None
) -> Picture:
    """How much a measure changed, query by query, from the greatest loss to the greatest gain.

    Args:
        differences: float64 [queries], ascending.
        measure: what changed.
        run: that changed it.
        baseline: against which.
        ids: SVG ids for bars, by which a script finds what they stand for; None: an outline, as bars are too many.
    """
    better, worse = int((differences > 0).sum()), int((differences < 0).sum())

    def draw(figure: Any, width: int) -> None:
        axes = figure.subplots()
        if ids is not None:
            colours = np.where(differences < 0, WORSE, BETTER)
            for bar, name in zip(axes.bar(range(len(differences)), differences, color=colours), ids, strict=True):
                bar.set_gid(name)
        else:
            places = np.arange(len(differences) + 1) - 0.5
            for sign, colour in ((-1, WORSE), (1, BETTER)):
                axes.stairs(np.where(differences * sign > 0, differences, 0), places, fill=True, color=colour)
        axes.axhline(0, color=MUTED, linewidth=0.8)
        axes.grid(axis="x", visible=False)
        axes.set_xticks([])
        axes.set_xlabel(f"{len(differences):,} queries, from the greatest loss to the greatest gain", wrap=True)
        axes.set_ylabel(f"change of {measure}")

    return Picture(
        f"Change of {measure} in each query: {run} against {baseline}",
        f"{run} is better in {better:,} of {len(differences):,} queries and worse in {worse:,}.",
        lambda width: 260,
        draw,
    )


def score_histograms(runs: Sequence[tuple[int, str, NDArray[np.float64]]]) -> Picture:
    """The distribution of scores, a panel for each run, since runs may have different scales.

    Args:
        runs: (number of the run, name, float64 scores) of each.
    """

    def draw(figure: Any, width: int) -> None:
        for axes, run, scores in _panels(figure, runs, "score"):
            counts, edges = np.histogram(scores, bins=min(_BINS, 1 + len(scores)))
            axes.stairs(counts, edges, fill=True, color=SERIES[run])
            _count_axis(axes)

    medians = "; ".join(
        f"{name}: from {scores.min():.4g} to {scores.max():.4g}, half of them below {np.median(scores):.4g}"
        for _, name, scores in runs
    )
    return Picture("How many results have which score", f"{medians}.", lambda width: 30 + 150 * len(runs), draw)


def length_histograms(
    runs: Sequence[tuple[int, str, Sequence[tuple[int, int, int]]]], limits: Mapping[int, int]
) -> Picture:
    """The distribution of lengths in tokens.

    Args:
        runs: (number of the run, name, (least, first beyond, count) of each bin in ascending order).
        limits: number of a run -> tokens at which pairs are cut, where it is one for the pair.
    """
    longest = max(bins[-1][1] for _, _, bins in runs)

    def draw(figure: Any, width: int) -> None:
        for axes, run, bins in _panels(figure, runs, "tokens of query and document", sharex=True):
            counts, edges = _even_bins(bins)
            axes.stairs(counts, edges, fill=True, color=SERIES[run])
            if (limit := limits.get(run)) and limit <= longest * 1.5:
                axes.axvline(limit, color=WORSE, linestyle="--")
                axes.set_title(f"cut at {limit:,} tokens", loc="right", color=WORSE)
            axes.set_xlim(left=0)
            axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
            _count_axis(axes)

    return Picture(
        "How many pairs have which length",
        "; ".join(f"{name}: half of the pairs have fewer than {_median(bins):,} tokens" for _, name, bins in runs)
        + ".",
        lambda width: 30 + 150 * len(runs),
        draw,
    )


def throughput(runs: Sequence[tuple[int, str, Mapping[str, Sequence[float]]]]) -> Picture:
    """Tokens a second in the course of each run, or rows if the model had nothing to read.

    Args:
        runs: (number of the run, name, its `over_time`).
    """

    def draw(figure: Any, width: int) -> None:
        for axes, run, course in _panels(figure, runs, "seconds since the start of the run"):
            seconds = np.asarray(course["seconds"])
            unit = "tokens" if course["tokens"][-1] else "rows"
            moments = np.linspace(0, seconds[-1], min(_STEPS, len(seconds)) + 1)
            speeds = np.diff(np.interp(moments, seconds, course[unit])) / np.diff(moments)
            axes.stairs(speeds, moments, fill=True, color=SERIES[run])
            axes.set_ylabel(f"{unit}/s")
            axes.yaxis.set_major_formatter(FuncFormatter(_short_count))
            axes.yaxis.set_major_locator(MaxNLocator(4))
            axes.set_xlim(left=0)

    spoken = "; ".join(
        f"{name}: {course['tokens'][-1]:,} tokens and {course['rows'][-1]:,.0f} rows in {course['seconds'][-1]:,.1f} s"
        for _, name, course in runs
    )
    return Picture("Speed in the course of the run", f"{spoken}.", lambda width: 30 + 150 * len(runs), draw)


# ---- forms


def inline(picture: Picture, name: str) -> Markup:
    """The picture as SVG for a page, once for wide screens and once for narrow ones; style sheets show one of them."""
    kinds = {"wide": WIDE, "narrow": NARROW}
    return Markup("").join(_svg(picture, f"{name}-{kind}", kind, width) for kind, width in kinds.items())


def _svg(picture: Picture, name: str, kind: str, width: int) -> Markup:
    with _styled():
        text = _saved(_drawn([picture], width), "svg").decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", rf"font: \1px {_FONT}", text)
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    # ids are unique in a page, which has several figures
    text = re.sub(r'(\bid="|"#|url\(#)(?!bar-)', rf"\g<1>{name}-", text)
    text = re.sub(r'\bid="(bar-[^"]*)"', r'data-bar="\1"', text)
    found = re.search(r'viewBox="([\d. ]+)"', text)
    box = found[1] if found else ""
    head = (
        f'<svg class="{kind}" viewBox="{box}" width="{width}" role="img" aria-labelledby="{name}-t {name}-d" '
        f'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">'
        f'<title id="{name}-t">{escape(picture.title)}</title><desc id="{name}-d">{escape(picture.description)}</desc>'
    )
    return Markup(re.sub(r"<svg[^>]*>", lambda _: head, text, count=1))


def picture_file(pictures: Sequence[Picture], form: Literal["png", "svg"]) -> bytes:
    """Pictures one below the other in one file, with their titles, on white."""
    with _styled({"savefig.facecolor": "white"}):
        return _saved(_drawn(pictures, _OF_MAIL, titled=True), form)


def _drawn(pictures: Sequence[Picture], width: int, *, titled: bool = False) -> Figure:
    heights = [picture.height(width) + 32 * titled for picture in pictures]
    pad = 0.12 if titled else None
    layout = ConstrainedLayoutEngine(w_pad=pad, h_pad=pad)
    figure = Figure((width / 72, sum(heights) / 72), layout=layout)
    parts = figure.subfigures(len(pictures), 1, squeeze=False, height_ratios=heights)[:, 0] if titled else [figure]
    for picture, part in zip(pictures, parts, strict=True):
        picture.draw(part, width)
        if titled:
            part.suptitle(picture.title, x=0.01, horizontalalignment="left", fontweight="bold")
    return figure


def _saved(figure: Figure, form: str) -> bytes:
    content = BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of characters that the measuring font lacks, and of labels without room
        figure.savefig(
            content, format=form, dpi=160 if form == "png" else 72, metadata={"Date": None} if form == "svg" else None
        )
    return content.getvalue()


@contextmanager
def _styled(more: Mapping[str, Any] | None = None) -> Iterator[None]:
    with mpl.rc_context({**_STYLE, **(more or {})}):
        yield


def _panels(
    figure: Any, runs: Sequence[tuple[int, str, Any]], xlabel: str, *, sharex: bool = False
) -> Iterator[tuple[Any, int, Any]]:
    """(axes, number of the run, what it has) of each run, one below the other, by name where there are several."""
    panels = np.atleast_1d(figure.subplots(len(runs), 1, sharex=sharex))
    panels[-1].set_xlabel(xlabel)
    for axes, (run, name, values) in zip(panels, runs, strict=True):
        if len(runs) > 1:
            axes.set_title(name)
        yield axes, run, values


def _legend(axes: Any, width: int) -> None:
    handles, names = axes.get_legend_handles_labels()
    longest = max(10, width // 8 - 14)
    names = [name if len(name) <= longest else f"{name[: longest // 2]}…{name[-longest // 2 :]}" for name in names]
    axes.legend(handles, names, loc="lower left", bbox_to_anchor=(0, 1.01), borderaxespad=0)


def _count_axis(axes: Any) -> None:
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.yaxis.set_major_formatter(FuncFormatter(_short_count))
    axes.set_ylabel("count")
    axes.grid(axis="x", visible=False)


def _short_count(value: float, _: object = None) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if value >= size:
            size = 1e3 if letter == "k" else size
            return f"{value / size:g} {letter}"
    return f"{value:g}"


def _even_bins(bins: Sequence[tuple[int, int, int]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(counts, edges) in bins of the width of the widest, whose edges theirs are."""
    width = max(beyond - least for least, beyond, _ in bins)
    edges = np.arange(bins[0][0] // width * width, bins[-1][1] + width, width)
    counts = np.zeros(len(edges) - 1, np.int64)
    for least, _, count in bins:
        counts[(least - edges[0]) // width] += count
    return counts, edges


def _median(bins: Sequence[tuple[int, int, int]]) -> int:
    """The end of the bin that the middle one is in."""
    ends = np.cumsum([count for _, _, count in bins])
    return bins[int(np.searchsorted(ends, ends[-1] / 2))][1]
