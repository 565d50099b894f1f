"""Builds docs/, and pages beside it, as a site in site/ that needs neither a server nor a network.

`make docs` runs it. It fails where a link or an anchor leads nowhere, and where the navigation lacks a page.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
# pages outside docs/ -> what they are called in the site
_OUTSIDE = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md", "benchmarks/LOG.md": "log.md"}
_LINK = re.compile(r"(?<=\]\()(?!https?:|#)([^)#\s]+)")  # its path, if it leads to a file of the repository
_CODE = re.compile(r"`[^`\n]+`")


def build(site: Path, root: Path = ROOT) -> None:
    """Build the site of a repository in a folder, which is replaced.

    Raises:
        SystemExit: a link, an anchor or the navigation is wrong; it says which, or that has been printed.
    """
    with TemporaryDirectory() as folder:
        work = Path(folder).resolve()
        shutil.copy(root / "docs" / "zensical.toml", work)
        wrong = [*_stage(root, work / "pages"), *_wrong_navigation(work)]
        if wrong:
            sys.exit("\n".join(wrong))
        command = [sys.executable, "-m", "zensical", "build", "--strict"]
        if subprocess.run(command, cwd=work, check=False).returncode:
            sys.exit("the site was not built")
        shutil.rmtree(site, ignore_errors=True)
        shutil.move(work / "site", site)


def _stage(root: Path, folder: Path) -> Iterator[str]:
    """Write all pages into one folder, with links and tables as the site has them. Yields the links that are broken."""
    shutil.copytree(root / "docs", folder, ignore=shutil.ignore_patterns("*.py", "*.toml", "__pycache__"))
    pages = {f"docs/{page.name}": page.name for page in (root / "docs").glob("*.md")} | _OUTSIDE
    known = pages | {"README.md": "index.md"}
    for origin, name in pages.items():
        parts = _LINK.split((root / origin).read_text("utf-8"))
        for index in range(1, len(parts), 2):  # the paths
            target = os.path.normpath(os.path.join(os.path.dirname(origin), parts[index]))
            if target in known:
                parts[index] = known[target]
            elif (root / target).is_file():
                parts[index] = _copied(root, target, folder)
            else:
                yield f"{origin} links to {parts[index]}, which is no file"
        lines = (_table_row(line) if line.startswith("|") else line for line in "".join(parts).splitlines(True))
        (folder / name).write_text("".join(lines), "utf-8")


def _copied(root: Path, target: str, folder: Path) -> str:
    """Where the site has a file that is no page: pictures where they were, others as text, which any browser shows."""
    if target.startswith("docs/"):
        return target.removeprefix("docs/")
    place = f"files/{target}.txt"
    (folder / place).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(root / target, folder / place)
    return place


def _table_row(line: str) -> str:
    """GitHub wants a bar inside code escaped in a table; Python-Markdown takes the backslash for a part of the code."""
    return _CODE.sub(lambda code: code[0].replace("\\|", "|"), line)


def _wrong_navigation(work: Path) -> Iterator[str]:
    """Pages that only the navigation or only the folder has; zensical 0.0.73 does not look."""
    config = tomllib.loads((work / "zensical.toml").read_text("utf-8"))
    navigation = set(_names(config["project"]["nav"]))
    pages = {page.name for page in (work / "pages").glob("*.md")}
    yield from (f"{page} is not in the navigation of zensical.toml" for page in sorted(pages - navigation))
    yield from (f"{page} is in the navigation of zensical.toml, but no page" for page in sorted(navigation - pages))


def _names(entry: Any) -> Iterator[str]:
    """The pages in a part of the navigation: a name, or a list or a table of parts."""
    if isinstance(entry, str):
        yield entry
        return
    for part in entry.values() if isinstance(entry, dict) else entry:
        yield from _names(part)


if __name__ == "__main__":
    build(ROOT / "site")
