"""`write_report`: outputs in, one HTML file out, and a picture of what matters most.

The page is complete in itself: styles, script and figures are in it, and a content security policy keeps everything
else out. What it shows is bounded, so its size is too, whatever the size of the outputs. Texts, ids and names come from
outside: the template escapes them all.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal

from markupsafe import Markup, escape

from batchscore import __version__
from batchscore.errors import MissingDependencyError, OutputError, UsageError
from batchscore.evaluation.evaluate import Evaluation, PairsEvaluation
from batchscore.io.storage import is_url, open_folder, split_url, target_path
from batchscore.report.outputs import Reported, cut, printable, read_outputs, short_names
from batchscore.report.pairs import shown_pairs
from batchscore.report.queries import ShownQuery, shown_queries
from batchscore.report.settings import compared
from batchscore.report.texts import Texts, find_texts

_HERE = Path(__file__).parent
_TEXT_BYTES = 600_000  # of all texts of results, those that come several times too
_LONGEST_QUERY = 200
_LONGEST_ID = 120
_FIGURES: Mapping[str, Literal["png", "svg"]] = {".png": "png", ".svg": "svg"}


def require_destinations(report: str | None, figure: str | None) -> None:
    """Raise the error that a report would end with, before a long run: a wrong name, a missing folder or package."""
    for path, suffixes in ((report, (".html", ".htm")), (figure, tuple(_FIGURES))):
        if path is None:
            continue
        if not path.lower().endswith(suffixes):
            raise UsageError(f"cannot write {path}: its suffix is not {' or '.join(suffixes)}", hint="rename it")
        folder = os.path.dirname(target_path(path)) or "."
        if not is_url(path) and not os.path.isdir(folder):
            raise OutputError(f"cannot write {path}: no folder {folder}", hint=f"mkdir -p {shlex.quote(folder)}")
        if not is_url(path) and (os.path.isdir(path) or not os.access(folder, os.W_OK | os.X_OK)):
            raise OutputError(f"cannot write {path}: no permission, or it is a folder", hint="choose another name")
        if importlib.util.find_spec("matplotlib") is None:
            raise MissingDependencyError(
                "pictures need the package matplotlib", hint="pip install 'batchscore[report]'"
            )


def write_report(
    paths: Sequence[str | os.PathLike[str]],
    report: str | os.PathLike[str] | None = None,
    *,
    evaluation: Evaluation | PairsEvaluation | None = None,
    figure: str | os.PathLike[str] | None = None,
) -> None:
    """Write what is known of outputs as an HTML page, and the main figure as a picture.

    Args:
        paths: outputs of `score` or `rerank`, or runs of others; of an evaluation, those that it is of, in its order.
        report: the page to write, .html.
        evaluation: of these outputs.
        figure: the picture to write, .png or .svg.

    Raises:
        UsageError, InputError, OutputError: a file that cannot be used.
        MissingDependencyError: matplotlib, of `batchscore[report]`.
    """
    names = [None if path is None else os.fspath(path) for path in (report, figure)]
    require_destinations(*names)
    outputs = read_outputs([os.fspath(path) for path in paths])
    from batchscore.report.pictures import main_picture

    if names[0] is not None:
        _write(names[0], page(outputs, evaluation).encode("utf-8", "replace"))
    if names[1] is not None:
        _write(names[1], main_picture(outputs, evaluation, _FIGURES[os.path.splitext(names[1])[1].lower()]))


def page(outputs: Sequence[Reported], evaluation: Evaluation | PairsEvaluation | None) -> str:
    """The page as text."""
    import jinja2

    from batchscore.report.pictures import page_pictures

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "short": _short,
        "count": _count,
        "signed": _signed,
        "span": _span,
        "cut": cut,
        "breakable": _breakable,
        "places": _places,
        "moment": _moment,
    }
    script = (_HERE / "report.js").read_text("utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    ranking = evaluation if isinstance(evaluation, Evaluation) else None
    queries = shown_queries(ranking) if ranking else []
    pictures = page_pictures(outputs, evaluation)
    wanted = _wanted(queries)
    texts = find_texts(outputs, wanted)
    runs = short_names([run.run for run in evaluation.runs]) if evaluation else []
    return environment.from_string((_HERE / "report.html.jinja").read_text("utf-8")).render(
        style=(_HERE / "report.css").read_text("utf-8"),
        script=script,
        script_digest=digest,
        version=__version__,
        written=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        title=", ".join(output.name for output in outputs),
        outputs=outputs,
        runs=runs,
        names=dict(zip((run.run for run in evaluation.runs), runs, strict=True)) if evaluation else {},
        ranking=ranking,
        pairs=(pairs := evaluation if isinstance(evaluation, PairsEvaluation) else None),
        disagreements=shown_pairs(pairs) if pairs else [],
        queries=queries,
        query_texts={query: cut(text, _LONGEST_QUERY) for query, text in texts.queries.items()},
        document_texts=(shown := _bounded(texts, queries)),
        lacks_texts=any((query.query, document) not in shown for query in queries for document in _documents(query)),
        is_barred="data-bar" in "".join(pictures.changes),
        groups=compared(outputs),
        pictures=pictures,
        speeds=[_speed(output) for output in outputs],
    )


@dataclass(frozen=True, slots=True)
class Speed:
    """How fast a run was."""

    output: Reported
    seconds: Mapping[str, float]
    rows_a_second: float
    tokens_a_second: float


def _speed(output: Reported) -> Speed | None:
    seconds = output.counts.get("seconds")
    if not seconds:
        return None
    total = max(seconds["total"], 1e-3)
    course = output.record.get("over_time")
    rows = course["rows"][-1] if course else output.counts["rows"]
    return Speed(output, seconds, rows / total, output.counts["tokens_forwarded"] / total)


def _wanted(queries: Sequence[ShownQuery]) -> dict[str, list[str]]:
    """The documents of each query whose texts the page shows."""
    return {query.query: list(dict.fromkeys(_documents(query))) for query in queries}


def _documents(query: ShownQuery) -> list[str]:
    """The documents that are shown for a query, each as often as it is shown."""
    if not query.is_open:
        return []
    return [result.document for results in query.results for result in results] + [one.document for one in query.missed]


def _bounded(texts: Texts, queries: Sequence[ShownQuery]) -> dict[tuple[str, str], str]:
    """The beginnings of documents by query and document, as many as fit."""
    left, kept = _TEXT_BYTES, dict[tuple[str, str], str]()
    for query in queries:
        for document in _documents(query):
            if (key := (query.query, document)) in texts.documents:
                text = cut(texts.documents[key])
                left -= len(str(escape(text)).encode())
                if left < 0:
                    return kept
                kept[key] = text
    return kept


def _short(text: object) -> str:
    """An id, the middle of a very long one left out."""
    text = printable(str(text))
    return text if len(text) <= _LONGEST_ID else f"{text[: _LONGEST_ID // 2]}…{text[-_LONGEST_ID // 2 :]}"


def _count(number: float) -> str:
    return f"{number:,.0f}"


def _signed(number: float) -> str:
    return f"{number:+.4f}".replace("-", "−")


def _span(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02} min"


def _places(ends: tuple[float, float]) -> str:
    first, last = (f"{100 * end:.0f}" for end in ends)
    return f"{first} %" if first == last else f"{first}–{last} %"


def _breakable(name: str) -> Markup:
    """A name that a line may end in, behind its punctuation."""
    return Markup("<wbr>").join(part for part in re.split(r"(?<=[_./-])(?=\w)", name) if part)


def _moment(text: str) -> str:
    """A time in ISO 8601 to the minute, in UTC."""
    moment = datetime.fromisoformat(text).astimezone(timezone.utc)
    return f"{moment:%Y-%m-%d %H:%M} UTC"


def _write(path: str, content: bytes) -> None:
    folder, name = split_url(target_path(path))
    open_folder(folder).write(name, content)
