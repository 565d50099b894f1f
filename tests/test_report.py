"""The page and the picture of a run: what they say, that they are bounded, and that what they show can do no harm."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

import checkpoints
from batchscore.cli.main import app
from batchscore.errors import InputError, UsageError
from batchscore.evaluation.evaluate import evaluate_runs, evaluate_scores
from batchscore.jobs.lengths import length_bins, length_counts
from batchscore.jobs.meter import Course
from batchscore.report import figures, outputs, page
from batchscore.report.outputs import short_names
from batchscore.report.page import write_report

pytestmark = pytest.mark.usefixtures("here")

Tiny = Callable[[str], str]
HOSTILE = '<script>window.hacked = 1</script><img src=x onerror="window.hacked = 1">\'"&'
_, TEXTS = checkpoints.pairs(60, seed=5)
JUDGED = TEXTS[3]  # is judged the most relevant for q0, so it is shown whatever its rank
MOST_BYTES = 2_000_000


def write(path: str, rows: Sequence[dict[str, Any]]) -> str:
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def batchscore(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


class Page(HTMLParser):
    """What a browser makes of a page, as far as tests ask."""

    def __init__(self, path: str = "report.html") -> None:
        super().__init__()
        self.source = Path(path).read_text("utf-8")
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self._silent = False
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._silent = tag in ("script", "style")
        if tag not in ("wbr", "span"):
            self.texts.append(" ")

    def handle_data(self, data: str) -> None:
        if not self._silent:
            self.texts.append(data)

    def handle_endtag(self, tag: str) -> None:
        self._silent = False

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", "".join(self.texts))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def rows(queries: int = 6, documents: int = 10) -> list[dict[str, Any]]:
    return [
        {
            "query_id": f"q{query}",
            "query": f"question number {query}",
            "document_id": f"d{place}",
            "document": TEXTS[(documents * query + place) % len(TEXTS)],
        }
        for query in range(queries)
        for place in range(documents)
    ]


@pytest.fixture(scope="module")
def job(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two runs of `rerank`, of which one cuts texts, their input, a first run, and judgements."""
    folder = tmp_path_factory.mktemp("job")
    candidates = write(f"{folder}/candidates.jsonl", rows())
    for name, options in (("long", []), ("short", ["--max-length", "12"])):
        options = ["--query-id-column", "query_id", "--dtype", "float32", *options]
        out = f"{folder}/{name}.parquet"
        result = batchscore("rerank", "--model", tiny("bert_ce"), "--in", candidates, "--out", out, *options)
        assert result.exit_code == 0, result.output
    write(
        f"{folder}/first.jsonl",
        [
            {"query_id": row["query_id"], "document_id": row["document_id"], "score": -place % 7}
            for place, row in enumerate(rows())
        ],
    )
    write(
        f"{folder}/qrels.jsonl",
        [
            {"query_id": f"q{query}", "document_id": f"d{(query * 3 + place) % 10}", "relevance": place}
            for query in range(6)
            for place in range(4)
        ],
    )
    return folder


def marked(page: Page) -> list[str]:
    """Settings of a page that differ between its runs."""
    names = re.findall(r'<tr class="differs">.*?</span>([\w.<>-]+)</th>', page.source)
    return [name.replace("<wbr>", "") for name in names]


def evaluated(job: Path, *names: str) -> Page:
    paths = [str(job / name) for name in names]
    write_report(paths, "report.html", evaluation=evaluate_runs(paths, job / "qrels.jsonl"))
    return Page()


@pytest.fixture(scope="module")
def compared(job: Path) -> Page:
    """The page of three runs."""
    paths = [str(job / name) for name in ("first.jsonl", "long.parquet", "short.parquet")]
    write_report(paths, job / "compared.html", evaluation=evaluate_runs(paths, job / "qrels.jsonl"))
    return Page(str(job / "compared.html"))


@pytest.fixture(scope="module")
def alone(job: Path) -> Page:
    """The page of one run without judgements."""
    write_report([job / "short.parquet"], job / "alone.html")
    return Page(str(job / "alone.html"))


# ---- what the record keeps for it


def test_lengths_are_counted_in_bins_that_add_up() -> None:
    lengths = np.array([1, 2, 2, 63, 64, 65, 66, 512, 527, 528], np.int32)

    counts = length_counts(lengths)

    assert counts == {"1": 1, "2": 2, "63": 1, "64": 2, "66": 1, "512": 2, "528": 1}
    assert length_bins(counts)[2:] == [(63, 64, 1), (64, 66, 2), (66, 68, 1), (512, 528, 2), (528, 544, 1)]


def test_a_bin_of_the_page_holds_whole_bins_of_the_record() -> None:
    lengths = np.random.default_rng(0).integers(1, 3_000, 5_000).astype(np.int32)

    counts, edges = figures._even_bins(length_bins(length_counts(lengths)))

    assert counts.tolist() == np.histogram(lengths, edges)[0].tolist()


def test_the_course_of_a_long_run_has_few_moments_from_start_to_end() -> None:
    course = Course()
    for second in range(100_000):
        course.add(second, second * 2.0, second * 3)

    moments = course.describe(100_000, 200_000, 300_000)

    assert 60 <= len(moments["seconds"]) <= 122
    assert (moments["seconds"][0], moments["seconds"][-1]) == (0, 100_000)
    assert [round(rows / 2) for rows in moments["rows"]] == [round(seconds) for seconds in moments["seconds"]]


def test_the_record_has_lengths_of_all_pairs_and_the_course_of_the_run(job: Path) -> None:
    record = json.loads((job / "long.parquet.run.json").read_text())

    assert sum(record["counts"]["num_tokens"].values()) == record["counts"]["scored"] == 60
    assert record["over_time"]["rows"][-1] == 60
    assert record["over_time"]["tokens"][-1] == record["counts"]["tokens_forwarded"]


# ---- what the page says


def test_a_page_says_what_was_run_and_where_its_settings_come_from(alone: Page) -> None:
    text = alone.text

    assert "rerank, cross-encoder, float32 on cpu" in text
    assert "max_length 12--max-length" in text
    assert "architecture BertForSequenceClassificationconfig.json" in text
    for heading in ("At a glance", "Scores", "Lengths", "Speed", "Bad rows", "Settings", "Versions"):
        assert heading in text


def test_the_cut_share_is_that_of_the_record(job: Path, alone: Page) -> None:
    cut = json.loads((job / "short.parquet.run.json").read_text())["counts"]["cut"]

    assert sum(cut.values()) > 0
    assert f"{sum(cut.values())}{100 * sum(cut.values()) / 60:.1f} %" in alone.text


def test_settings_that_differ_are_marked(compared: Page) -> None:
    assert marked(compared) == ["max_length", "--max-length"]


def test_weights_that_differ_are_marked_whatever_the_model_is_called(job: Path, tmp_path: Path) -> None:
    record = json.loads((job / "long.parquet.run.json").read_text())
    for name in ("good", "broken"):
        (tmp_path / f"{name}.parquet").write_bytes((job / "long.parquet").read_bytes())
        (tmp_path / f"{name}.parquet.run.json").write_text(json.dumps(record))
        record["fingerprint"]["files"]["model.safetensors"] = "0" * 32

    write_report([tmp_path / "good.parquet", tmp_path / "broken.parquet"], "report.html")

    assert marked(Page()) == ["model.safetensors"]


def test_an_evaluation_is_on_the_page_with_its_intervals_and_tests(job: Path, compared: Page) -> None:
    paths = [str(job / name) for name in ("first.jsonl", "long.parquet", "short.parquet")]
    evaluation = evaluate_runs(paths, job / "qrels.jsonl")

    measure, (comparison, *_) = evaluation.runs[1].measures[0], evaluation.comparisons
    low, high = measure.interval
    assert f"{measure.value:.4f}{low:.4f} to {high:.4f}" in compared.text
    assert f"better in {comparison.better} of 6 queries, worse in {comparison.worse}" in compared.text
    assert f"p {comparison.adjusted:.4f}" in compared.text


def test_every_query_is_in_the_table_with_its_change_and_opens_to_texts(compared: Page) -> None:
    queries = [tag["id"] for tag in compared.all("tbody") if str(tag.get("id")).startswith("query-")]
    assert sorted(map(str, queries)) == [f"query-{number}" for number in range(6)]
    assert compared.text.count("question number 3") == 1
    assert JUDGED in compared.text


def test_texts_are_not_shown_once_the_input_has_changed(job: Path, tmp_path: Path) -> None:
    for name in ("long.parquet", "long.parquet.run.json", "qrels.jsonl"):
        (tmp_path / name).write_bytes((job / name).read_bytes())
    record = json.loads((tmp_path / "long.parquet.run.json").read_text())
    record["inputs"][0]["bytes"] += 1
    (tmp_path / "long.parquet.run.json").write_text(json.dumps(record))

    page = evaluated(tmp_path, "long.parquet")

    assert JUDGED not in page.text
    assert "their texts were not found" in page.text


def test_texts_that_rerank_returned_need_no_input(job: Path, tiny: Tiny) -> None:
    candidates = write("mine.jsonl", rows())
    options = ["--query-id-column", "query_id", "--return-documents", "--out", "mine.parquet"]
    assert batchscore("rerank", "--model", tiny("bert_ce"), "--in", candidates, *options).exit_code == 0
    Path(candidates).unlink()

    write_report(["mine.parquet"], "report.html", evaluation=evaluate_runs(["mine.parquet"], job / "qrels.jsonl"))

    assert JUDGED in Page().text


def test_texts_that_the_run_looked_up_are_looked_up_again(tiny: Tiny, job: Path) -> None:
    queries = {row["query_id"]: row["query"] for row in rows()}
    write("queries.jsonl", [{"_id": name, "text": text} for name, text in queries.items()])
    write("corpus.jsonl", [{"_id": f"d{place}", "title": "", "text": TEXTS[place]} for place in range(10)])
    joined = ["--run", str(job / "first.jsonl"), "--queries", "queries.jsonl", "--corpus", "corpus.jsonl"]
    assert batchscore("rerank", "--model", tiny("bert_ce"), *joined, "--out", "out.jsonl").exit_code == 0

    write_report(["out.jsonl"], "report.html", evaluation=evaluate_runs(["out.jsonl"], job / "qrels.jsonl"))

    assert JUDGED in Page().text
    assert "question number 5" in Page().text


def test_bad_rows_are_counted_and_named(tiny: Tiny) -> None:
    candidates = write("in.jsonl", [*rows(1), {"query": None, "document": "x"}])
    assert batchscore("score", "--model", tiny("bert_ce"), "--in", candidates, "--out", "out.jsonl").exit_code == 7

    write_report(["out.jsonl"], "report.html")

    assert "out.jsonl: 1 bad row (null: 1)" in Page().text
    assert "line 11" in Page().text


def test_scores_of_pairs_are_shown_with_their_measures() -> None:
    write("pairs.jsonl", [{"score": place / 10, "label": int(place > 5)} for place in range(10)])

    write_report(["pairs.jsonl"], "report.html", evaluation=evaluate_scores(["pairs.jsonl"], metrics="pearson"))

    assert "pairs.jsonl: pearson 0.8528, 95 % interval 0." in Page().text


def scored(path: str, pairs: Sequence[tuple[float | None, float | None]], **columns: Any) -> Page:
    """The page of pairs with these labels and scores."""
    write(
        path,
        [{"label": label, "score": score, "row": f"r{row}", **columns} for row, (label, score) in enumerate(pairs)],
    )
    write_report([path], "report.html", evaluation=evaluate_scores([path], metrics="spearman"))
    return Page()


def apart(page: Page) -> list[tuple[str, str]]:
    """(row, what its score is) of the table of disagreements."""
    rows = re.findall(
        r'<tr><th scope="row"><button[^>]*class="open"[^>]*>(\d+)<.*?>([\d.]+ % too \w+)</td></tr>', page.source
    )
    return [(row, said) for row, said in rows]


def test_rows_on_which_score_and_label_disagree_come_by_how_much() -> None:
    """Ranks count, not the scales of both; rows without one of them are passed over, and counted."""
    grades = [0.0, 1, 2, 3, 4, 5]
    pairs: list[Any] = [(None, 9.0), *zip(grades, [0.5, 10, 20, 300, 40, 50], strict=True), (1.5, None)]
    page = scored("pairs.jsonl", pairs, text=f"{HOSTILE} of some length")

    assert apart(page) == [("4", "40 % too high"), ("5", "20 % too low"), ("6", "20 % too low")]
    assert "the 3 of 6 rows whose score is furthest from their label" in page.text
    assert "row: r4" in page.text
    assert page.all("img") == []
    assert scored("equal.jsonl", [(grade, grade) for grade in grades]).all("section") != []
    assert "Disagreements" not in Page().text


def test_of_rare_labels_both_kinds_of_mistakes_are_shown() -> None:
    rare = [(1.0, 0.0), (1.0, 0.999)]
    page = scored("pairs.jsonl", [*rare, *((0.0, place / 300) for place in range(1, 299))])

    # a label of no is right wherever it is below all of yes
    assert apart(page) == [("0", "100 % too low"), ("299", "0.3 % too high")]


def test_a_page_of_many_scored_pairs_is_bounded() -> None:
    names = []
    for run in range(4):
        wide = {f"column {number}": "\U0001f600&" * 300 for number in range(20)}
        pairs = [(place, (place * 37 + run) % 200) for place in range(200)]
        names.append(f"{run}.jsonl")
        write(names[-1], [{"label": label, "score": score, **wide} for label, score in pairs])
    write_report(names, "report.html", evaluation=evaluate_scores(names, metrics="pearson"))

    assert Path("report.html").stat().st_size < MOST_BYTES
    assert Page().source.count("% too ") == 30 * len(names)
    assert "as far as the page has room" in Page().text


@pytest.mark.parametrize("suffix", ["csv", "trec", "json"])
def test_outputs_of_other_formats_are_shown(suffix: str, tiny: Tiny, job: Path) -> None:
    form = ["--out-format", "mteb"] if suffix == "json" else []
    arguments = ["--in", write("in.jsonl", rows()), "--out", f"out.{suffix}", *form]
    assert batchscore("rerank", "--model", tiny("bert_ce"), *arguments).exit_code == 0

    result = batchscore("report", f"out.{suffix}", "--qrels", str(job / "qrels.jsonl"))

    assert result.exit_code == 0, result.output
    assert all(heading in Page().text for heading in ("How many results have which score", JUDGED, "question number 2"))


def test_of_many_rows_some_are_read_and_the_page_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outputs, "_ROWS", 100)
    monkeypatch.setattr(outputs, "_UNIT", 10)
    write("many.jsonl", [{"query_id": "q", "document_id": str(n), "score": n / 7} for n in range(1_000)])

    write_report(["many.jsonl"], "report.html")

    assert "the scores of 100 results were read, from parts that are spread evenly over its 1,000 rows" in Page().text


def test_names_are_as_short_as_tells_them_apart() -> None:
    assert short_names(["runs/a/out.parquet", "runs/b/out.parquet"]) == ["a/out.parquet", "b/out.parquet"]
    assert short_names(["runs/a.jsonl", "b.jsonl"]) == ["a.jsonl", "b.jsonl"]
    assert short_names(["one.jsonl"]) == ["one.jsonl"]


# ---- what it must not do


def test_nothing_is_loaded_from_elsewhere(compared: Page) -> None:
    links = [
        value
        for _, tag in compared.tags
        for name, value in tag.items()
        if name in ("src", "href", "xlink:href", "data")
    ]
    assert [link for link in links if not str(link).startswith(("#", "data:,"))] == []
    assert not re.search(r"@import|url\((?!#)", compared.source)
    (policy,) = (tag["content"] for tag in compared.all("meta") if tag.get("http-equiv") == "Content-Security-Policy")
    assert str(policy).startswith("default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-")


def hostile_run() -> str:
    """A run, judgements and a record whose every text is markup."""
    name = f"<b>{HOSTILE.replace('/', '')}.jsonl"
    query, document = f"q{HOSTILE}", f"d{HOSTILE}"
    write(name, [{"query_id": query, "document_id": document, "score": 1.0}])
    write("qrels.jsonl", [{"query_id": query, "document_id": document, "relevance": 1}])
    return name


def test_markup_in_ids_texts_and_names_is_text(tiny: Tiny) -> None:
    run = hostile_run()
    candidates = write(
        "in.jsonl",
        [{"query_id": f"q{HOSTILE}", "query": HOSTILE, "document_id": f"d{HOSTILE}", "document": f"{HOSTILE} cat"}],
    )
    options = ["--query-id-column", "query_id", "--out", "out.jsonl"]
    assert batchscore("rerank", "--model", tiny("bert_ce"), "--in", candidates, *options).exit_code == 0
    record = json.loads(Path("out.jsonl.run.json").read_text())
    record["model"] = f"org/{HOSTILE}"
    record["spec"]["query_prompt"] = {"value": HOSTILE, "source": HOSTILE}
    Path("out.jsonl.run.json").write_text(json.dumps(record))

    paths = [run, "out.jsonl"]
    write_report(paths, "report.html", evaluation=evaluate_runs(paths, "qrels.jsonl"), figure="figure.svg")
    page = Page()

    assert len(page.all("script")) == 1
    assert page.all("img") == []
    assert {tag for tag, _ in page.tags} & {"b", "iframe", "object"} == set()
    assert page.source.count("window.hacked") > 8
    assert not any(name.startswith("on") for _, tag in page.tags for name in tag)


def test_a_page_is_small_whatever_it_is_of() -> None:
    draw = np.random.default_rng(0)
    queries, documents = (
        [f"query {HOSTILE} {n} " + "x" * 300 for n in range(150)],
        [f"d{n} {HOSTILE}" for n in range(8)],
    )
    for run in range(10):
        write(
            f"run{run}.jsonl",
            [
                {"query_id": query, "document_id": name, "score": draw.random()}
                for query in queries
                for name in documents
            ],
        )
    write("qrels.jsonl", [{"query_id": query, "document_id": documents[0], "relevance": 1} for query in queries])
    runs = [f"run{run}.jsonl" for run in range(10)]

    write_report(runs, "report.html", evaluation=evaluate_runs(runs, "qrels.jsonl", metrics="RR@10"))

    assert Path("report.html").stat().st_size < MOST_BYTES
    assert "80 of 150" in Page().text


def test_texts_fill_no_more_than_their_share_of_a_page() -> None:
    found = page.Texts({}, {("q", f"d{number}"): "&" * 1_000 for number in range(5_000)})
    result = [page.ShownQuery(0, "q", [], [], [_results(number) for number in range(0, 5_000, 5)], [], True)]

    kept = page._bounded(found, result)

    written = sum(len(text.replace("&", "&amp;").encode()) for text in kept.values())
    assert page._TEXT_BYTES - 3_000 < written <= page._TEXT_BYTES


def _results(first: int) -> list[Any]:
    from batchscore.report.queries import Result as Found

    return [Found(1, f"d{number}", 0.0, None) for number in range(first, first + 5)]


def test_a_page_of_too_many_outputs_or_of_none_that_has_scores_is_refused() -> None:
    with pytest.raises(UsageError, match="11 outputs in one report"):
        write_report(["x.jsonl"] * 11, "report.html")
    write("texts.jsonl", [{"query_id": "q", "document_id": "d", "score": "high"}])
    with pytest.raises(InputError, match="column 'score' does not hold numbers"):
        write_report(["texts.jsonl"], "report.html")
    write("none.jsonl", [{"query_id": "q", "document_id": "d"}])
    with pytest.raises(InputError, match="nothing to draw: none.jsonl has no scores"):
        write_report(["none.jsonl"], figure="main.png")


# ---- that everybody can use it


def test_parts_of_the_page_have_names(compared: Page) -> None:
    ids = Counter(tag["id"] for _, tag in compared.tags if "id" in tag)

    assert [name for name, count in ids.items() if count > 1] == []
    named = [str(tag["aria-labelledby"]).split() for _, tag in compared.tags if "aria-labelledby" in tag]
    assert {name for names in named for name in names} <= ids.keys()
    assert all(tag["aria-controls"] in ids for tag in compared.all("button") if "aria-controls" in tag)
    assert len(compared.all("table")) == len(compared.all("caption"))
    assert all("scope" in tag for tag in compared.all("th"))
    assert all(tag.get("role") == "img" and tag.get("aria-labelledby") for tag in compared.all("svg"))
    links = {str(tag["href"])[1:] for tag in compared.all("a")}
    assert links <= ids.keys()
    levels = [int(tag[1]) for tag, _ in compared.tags if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


STYLE = (Path(page.__file__).parent / "report.css").read_text("utf-8")


def colours(theme: str) -> dict[str, str]:
    start = STYLE.index(":root {" if theme == "light" else ':root[data-theme="dark"] {')
    return dict(re.findall(r"(--[\w-]+): (#\w{6})", STYLE[start : STYLE.index("}", start)]))


def contrast(one: str, other: str) -> float:
    """Of WCAG 2."""
    shares = []
    for colour in (one, other):
        parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        shares.append(float(np.dot(linear, (0.2126, 0.7152, 0.0722))) + 0.05)
    return max(shares) / min(shares)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_colours_can_be_told_apart(theme: str) -> None:
    values = colours(theme)
    texts = ["--text", "--muted", "--link", "--better", "--worse"]
    pairs = {(text, ground) for text in texts for ground in ("--page", "--panel")} | {
        ("--text", "--mark"),
        ("--muted", "--mark"),
    }

    assert [pair for pair in sorted(pairs) if contrast(values[pair[0]], values[pair[1]]) < 4.5] == []
    assert [name for name in values if "series" in name and contrast(values[name], values["--page"]) < 3] == []


def test_the_colours_of_figures_are_those_of_the_page() -> None:
    light = colours("light")

    assert {light[name]: name for name in figures.VARIABLES.values()} == dict(figures.VARIABLES)
    assert STYLE.count(STYLE[STYLE.index("    --page: #0f141a") :].split("color-scheme")[0].split("\n")[0].strip()) == 2


# ---- commands


def test_report_writes_a_page_and_a_picture(job: Path) -> None:
    paths = [str(job / "first.jsonl"), str(job / "long.parquet")]
    result = batchscore("report", *paths, "--qrels", str(job / "qrels.jsonl"), "--figure", "main.png")

    assert result.exit_code == 0, result.output
    assert re.fullmatch(r"report   report.html, \d+ kB\n", result.stderr)
    assert Path("main.png").read_bytes().startswith(b"\x89PNG")


def test_a_picture_may_be_svg(job: Path) -> None:
    write_report([job / "long.parquet"], figure="main.svg")

    assert ElementTree.parse("main.svg").getroot().tag == "{http://www.w3.org/2000/svg}svg"


@pytest.mark.parametrize("command", ["score", "rerank"])
def test_a_run_writes_its_page(command: str, tiny: Tiny) -> None:
    out = ["--out", "out.jsonl", "--report", "report.html", "--figure", "main.svg"]
    result = batchscore(command, "--model", tiny("bert_ce"), "--in", write("in.jsonl", rows(2)), *out)

    assert result.exit_code == 0, result.output
    assert "out.jsonl" in Page().text
    assert Path("main.svg").exists()


def test_a_page_that_fails_costs_neither_scores_nor_exit_code(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outputs, "_sample", lambda *_: 1 / 0)
    arguments = ["--in", write("in.jsonl", rows(2)), "--out", "out.jsonl", "--report", "report.html", "--quiet"]
    result = batchscore("score", "--model", tiny("bert_ce"), *arguments)

    assert result.exit_code == 0
    assert len(Path("out.jsonl").read_text().splitlines()) == 20
    assert result.stderr == ("report   not written: division by zero; to try again: batchscore report out.jsonl\n")


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--report", "report.pdf"], 2, "cannot write report.pdf: its suffix is not .html or .htm"),
        (["--figure", "main.jpg"], 2, "cannot write main.jpg: its suffix is not .png or .svg"),
        (["--report", "r.html", "--out", "-"], 2, "--report and --figure need an output that stays"),
        (["--report", "no/report.html"], 8, "cannot write no/report.html: no folder no"),
    ],
)
def test_a_page_that_cannot_be_written_is_refused_before_the_run(
    options: list[str], code: int, message: str, tiny: Tiny
) -> None:
    arguments = ["--in", write("in.jsonl", rows(1)), "--out", "out.jsonl", *options]
    result = batchscore("score", "--model", tiny("bert_ce"), *arguments)

    assert result.exit_code == code
    assert f"error: {message}\n" in result.stderr
    assert not Path("out.jsonl").exists()


def test_eval_writes_its_page_even_if_a_gate_fails(job: Path) -> None:
    run, qrels = str(job / "long.parquet"), str(job / "qrels.jsonl")
    result = batchscore("eval", run, "--qrels", qrels, "--fail-under", "nDCG@10=0.99", "--report", "report.html")

    assert result.exit_code == 9
    assert re.search(r"Failed long.parquet: nDCG@10 0.\d{4} is less than 0.99", Page().text)
