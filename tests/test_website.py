"""The site of the documentation holds together and opens from the disk, and mistakes in pages end its build."""

from __future__ import annotations

import re
import runpy
from collections.abc import Callable
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from PIL import Image

pytest.importorskip("zensical")

ROOT = Path(__file__).parent.parent
build = runpy.run_path(str(ROOT / "docs" / "website.py"))["build"]


class Page(HTMLParser):
    """The links of a page, by what they are for, and its anchors."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []  # that a reader may follow
        self.loaded: list[str] = []  # that a browser does
        self.anchors = {""}
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.anchors |= {values["id"]} if "id" in values else set()
        (self.links if tag == "a" else self.loaded).extend(values[name] for name in ("href", "src") if name in values)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("site") / "site"
    build(folder)
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {path: Page(path) for path in site.glob("*.html")}


# ---- what is built


def test_links_and_anchors_within_the_site_lead_somewhere(site: Path, pages: dict[Path, Page]) -> None:
    followed, broken = 0, []
    for path, page in pages.items():
        for link in page.links + page.loaded:
            url = urlsplit(link)
            if url.scheme:
                continue
            # the page for addresses that do not exist begins at the root of the host: its own place is not known
            target = (site / unquote(url.path).lstrip("/")).resolve() if url.path else path
            anchors = pages[target].anchors if target in pages else {""}
            followed += 1
            if not target.is_file() or url.fragment not in anchors:
                broken.append((path.name, link))

    assert broken == []
    assert followed > 1000


def test_nothing_is_loaded_from_another_host(site: Path, pages: dict[Path, Page]) -> None:
    styles = [path.read_text("utf-8") for path in site.rglob("*.css")]
    inside_styles = [url for text in styles for url in re.findall(r"""(?:url\(|@import )["']?([^"')]+)""", text)]

    assert len(inside_styles) > 10
    assert [url for url in inside_styles if re.match(r"(https?:)?//", url)] == []
    assert [url for page in pages.values() for url in page.loaded if urlsplit(url).netloc] == []


def test_links_to_other_sites_are_addresses(pages: dict[Path, Page]) -> None:
    outside = [urlsplit(link) for page in pages.values() for link in page.links if urlsplit(link).scheme]

    assert outside
    assert [url for url in outside if url.scheme != "https" or not re.fullmatch(r"[\w-]+(\.[\w-]+)+", url.netloc)] == []


def test_bars_in_the_code_of_a_table_have_no_backslash(site: Path) -> None:
    page = (site / "cli.html").read_text("utf-8")

    assert "auto|cross-encoder|bi-encoder" in page
    assert "\\|" not in page


# ---- what ends a build

Repository = Callable[..., Path]


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    """repository(**pages): a repository with these pages in docs/, and its front page in the navigation."""

    def made(**pages: str) -> Path:
        for name in ("CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/LOG.md", "docs/index.md"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text("# A page\n\nText.\n")
        names = ["index.md", "contributing.md", "changelog.md", "log.md"]
        config = f'[project]\nsite_name = "x"\ndocs_dir = "pages"\nnav = {names}\n[project.plugins.offline]\n'
        (tmp_path / "docs" / "zensical.toml").write_text(config)
        for name, text in pages.items():
            (tmp_path / "docs" / f"{name}.md").write_text(text)
        return tmp_path

    return made


def test_a_page_links_to_pages_anchors_and_files(repository: Repository, tmp_path: Path) -> None:
    text = "# A\n\n## B\n\n[1](#b) [2](../CHANGELOG.md#a-page) [3](../README.md) [4](../run.py) ![5](a.svg)\n"
    root = repository(index=text)
    (root / "run.py").write_text("run()\n")
    (root / "docs" / "a.svg").write_text("<svg/>")
    build(tmp_path / "site", root)

    page = Page(tmp_path / "site" / "index.html")
    assert {"#b", "changelog.html#a-page", "index.html", "files/run.py.txt", "a.svg"} <= {*page.links, *page.loaded}
    assert (tmp_path / "site" / "files" / "run.py.txt").read_text() == "run()\n"
    assert (tmp_path / "site" / "a.svg").is_file()


@pytest.mark.parametrize(
    ("pages", "message"),
    [
        ({"index": "# A\n\n[b](b.md)\n"}, "docs/index.md links to b.md, which is no file"),
        ({"index": "# A\n\n![b](b.svg)\n"}, "docs/index.md links to b.svg, which is no file"),
        ({"index": "# A\n\n[b](../README.md)\n", "b": "# B\n"}, "b.md is not in the navigation of zensical.toml"),
        ({"index": "# A\n\n[b](#b)\n"}, "the site was not built"),
        ({"index": "# A\n\n[b](../CHANGELOG.md#b)\n"}, "the site was not built"),
    ],
)
def test_a_mistake_ends_the_build(repository: Repository, tmp_path: Path, pages: dict[str, str], message: str) -> None:
    with pytest.raises(SystemExit, match=re.escape(message)):
        build(tmp_path / "site", repository(**pages))
    assert not (tmp_path / "site").exists()


def test_a_page_that_only_the_navigation_has_ends_the_build(repository: Repository, tmp_path: Path) -> None:
    root = repository()
    (root / "docs" / "index.md").unlink()

    with pytest.raises(SystemExit, match=r"index\.md is in the navigation of zensical\.toml, but no page"):
        build(tmp_path / "site", root)


# ---- in a browser


def test_pages_fit_a_narrow_screen_and_ask_no_other_host(browser: Any, site: Path) -> None:
    page = browser.new_page(viewport={"width": 390, "height": 844})
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    wide = []
    for name in ("index", "api", "cli", "models"):  # with the widest tables
        page.goto((site / f"{name}.html").as_uri())
        if page.evaluate("document.documentElement.scrollWidth > innerWidth"):
            wide.append(name)

    assert wide == []
    assert len(asked) > 10
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []


def test_the_site_is_searched_from_the_disk(browser: Any, site: Path) -> None:
    page = browser.new_page()
    page.goto((site / "index.html").as_uri())
    page.keyboard.press("Control+k")
    page.keyboard.type("run_batch_files", delay=30)
    page.get_by_text("Answer requests of the scoring API in files").first.wait_for(timeout=20_000)
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile(r"/api\.html\?.*#run_batch_files$"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_site_is_as_light_or_dark_as_the_system(browser: Any, site: Path, scheme: str) -> None:
    page = browser.new_page(color_scheme=scheme)
    page.goto((site / "index.html").as_uri())
    red, green, blue = re.findall(r"\d+", page.evaluate("getComputedStyle(document.body).backgroundColor"))[:3]

    assert (min(map(int, (red, green, blue))) > 200) == (scheme == "light")


def test_the_search_is_at_the_right_end_of_the_header(browser: Any, site: Path) -> None:
    page = browser.new_page(viewport={"width": 1400, "height": 800})
    page.goto((site / "index.html").as_uri())
    header, button = (page.locator(name).bounding_box() for name in (".md-header__inner", ".md-search__button"))

    assert 0 <= header["x"] + header["width"] - button["x"] - button["width"] < 20


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_figures_have_the_ground_of_their_page(browser: Any, site: Path, scheme: str) -> None:
    page = browser.new_page(color_scheme=scheme)
    page.goto((site / "speed.html").as_uri())
    with Image.open(BytesIO(page.locator("img").first.screenshot())) as figure:
        corner = figure.convert("L").getpixel((2, 2))

    assert corner > 240 if scheme == "light" else corner < 30
