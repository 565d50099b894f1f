"""The page of a run in a real browser: headless Chromium, if there is one on this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from batchscore.evaluation.evaluate import evaluate_runs, evaluate_scores
from batchscore.report.page import write_report
from test_report import HOSTILE, write

Opened = Callable[..., Any]
QUERIES = ["alpha", "beta", "gamma", HOSTILE]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of two runs of four queries; the second run is better in the first query and worse in the last."""
    folder = tmp_path_factory.mktemp("page")
    for name, ranks in (("old", (2, 1, 3, 1)), ("new", (1, 1, 3, 3))):
        scores = {1: (9, 5, 4), 2: (5, 9, 4), 3: (4, 9, 5)}  # of d1, which is relevant, d2 and d3, by the rank of d1
        results = [
            {"query_id": query, "document_id": f"{HOSTILE} d{place}", "score": score}
            for query, rank in zip(QUERIES, ranks, strict=True)
            for place, score in enumerate(scores[rank], 1)
        ]
        write(f"{folder}/{name}.jsonl", results)
    write(
        f"{folder}/qrels.jsonl",
        [{"query_id": query, "document_id": f"{HOSTILE} d1", "relevance": 1} for query in QUERIES],
    )
    runs = [f"{folder}/old.jsonl", f"{folder}/new.jsonl"]
    write_report(runs, folder / "report.html", evaluation=evaluate_runs(runs, folder / "qrels.jsonl", metrics="RR@10"))
    return folder / "report.html"


@pytest.fixture
def opened(browser: Any, report: Path) -> Iterator[Opened]:
    """opened(**context): the page in a tab; at the end, whether it said or asked for anything."""
    said: list[str] = []

    def tab(**context: Any) -> Any:
        page = browser.new_context(**{"viewport": {"width": 1400, "height": 900}, **context}).new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: said.append(request.url) if request.url != report.as_uri() else None)
        page.goto(report.as_uri())
        return page

    yield tab
    for context in browser.contexts:
        context.close()
    assert said == []


def shown(page: Any) -> list[str]:
    """The queries in the table, as they are called and in their order."""
    return [name.removeprefix("▸").strip() for name in page.locator("#queries-table .open:visible").all_inner_texts()]


def test_a_search_leaves_what_it_finds(opened: Opened) -> None:
    page = opened()
    page.get_by_label("Search queries").fill("ALPH")

    assert shown(page) == ["alpha"]
    assert page.get_by_role("status").inner_text() == "1 of 4 queries"


def test_a_column_sorts_both_ways(opened: Opened) -> None:
    page = opened()
    change = page.get_by_role("columnheader", name="change")
    change.get_by_role("button").click()
    assert (shown(page)[0], shown(page)[-1]) == (HOSTILE, "alpha")
    assert change.get_attribute("aria-sort") == "ascending"

    change.get_by_role("button").click()
    assert shown(page)[0] == "alpha"
    assert change.get_attribute("aria-sort") == "descending"


def test_a_query_opens_and_closes_by_keyboard(opened: Opened) -> None:
    page = opened()
    button, grades = page.get_by_role("button", name="alpha"), page.get_by_text("relevance 1")
    assert grades.locator("visible=true").count() == 0

    button.press("Enter")
    assert grades.locator("visible=true").count() == 2
    assert button.get_attribute("aria-expanded") == "true"

    button.press("Enter")
    assert grades.locator("visible=true").count() == 0


def test_a_scored_pair_opens_by_keyboard(browser: Any, tmp_path: Path) -> None:
    rows = [{"label": place, "score": abs(place - 7), "text": f"{HOSTILE} {place}"} for place in range(10)]
    pairs = write(f"{tmp_path}/pairs.jsonl", rows)
    write_report([pairs], tmp_path / "pairs.html", evaluation=evaluate_scores([pairs], metrics="spearman"))
    for width in (320, 1400):
        page = browser.new_page(viewport={"width": width, "height": 800})
        page.goto((tmp_path / "pairs.html").as_uri())
        section = page.locator("#disagreements")
        assert not section.locator("dd").first.is_visible()
        section.locator(".open").first.press("Enter")

        assert section.locator("dd").first.inner_text() == f"{HOSTILE} 0"
        assert section.locator("dd").first.is_visible()
        assert page.evaluate("[window.hacked === undefined, document.documentElement.scrollWidth]") == [True, width]
        page.close()


def test_a_bar_leads_to_its_query(opened: Opened) -> None:
    page = opened()
    page.get_by_label("Search queries").fill("beta")
    page.locator("svg.wide [data-bar=bar-1]").click()

    button = page.locator("#query-1 .open")
    assert button.get_attribute("aria-expanded") == "true"
    assert button.evaluate("button => button === document.activeElement")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_theme_is_the_systems_until_the_button_says_otherwise(theme: str, opened: Opened) -> None:
    page = opened(color_scheme=theme)
    background = "getComputedStyle(document.body).backgroundColor"
    grounds = {"light": "rgb(255, 255, 255)", "dark": "rgb(15, 20, 26)"}
    other = "dark" if theme == "light" else "light"
    assert page.evaluate(background) == grounds[theme]

    page.get_by_role("button", name=f"{other} theme").click()

    assert page.evaluate(background) == grounds[other]
    page.reload()
    assert page.evaluate(background) == grounds[other]
    assert page.get_by_role("button", name=f"{theme} theme").is_visible()


@pytest.mark.parametrize("width", [320, 390, 800, 1400])
def test_a_page_is_as_wide_as_the_window(width: int, opened: Opened) -> None:
    page = opened(viewport={"width": width, "height": 800})
    page.locator(".open").first.click()

    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.locator("figure svg:visible").count() == page.locator("figure svg").count() / 2


def test_the_keyboard_reaches_the_content_first_and_tables_that_scroll(opened: Opened) -> None:
    page = opened()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.getAttribute('role')") == "region"


def test_print_is_light_and_without_controls(opened: Opened) -> None:
    page = opened(color_scheme="dark")
    page.emulate_media(media="print")

    assert page.evaluate("getComputedStyle(document.querySelector('h1')).color") == "rgb(31, 35, 41)"
    assert not page.get_by_label("Search queries").is_visible()
    assert not page.locator("#theme").is_visible()
    assert page.evaluate("getComputedStyle(document.querySelector('.open'), '::before').content") == "none"
    assert page.locator("svg.wide [data-bar]").first.is_visible()
    assert page.pdf().startswith(b"%PDF")


def test_markup_of_others_does_nothing(opened: Opened) -> None:
    page = opened()

    assert page.evaluate("window.hacked === undefined")
    assert HOSTILE in shown(page)
    assert page.evaluate("document.querySelector('svg [data-bar] title').textContent").strip() in ("alpha", HOSTILE)


def test_without_scripts_everything_is_there(opened: Opened) -> None:
    page = opened(java_script_enabled=False)

    assert page.get_by_text("relevance 1").first.is_visible()
    assert not page.get_by_label("Search queries").is_visible()
