"""Config files: what a published model needs and its own files lack, like the prompts it was trained with.

A config is found by the hub ids it lists (the only place where a model's name matters) or named by the user. Its keys
are the options.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from batchscore.errors import UsageError
from batchscore.models.resolve.options import RULES, nearest, read_values
from batchscore.models.spec import Source, Sourced
from batchscore.resources import find_resource, shipped_files


def load_config(model: str, name: str | None) -> dict[str, Sourced]:
    """{option: (value, source)} from the config a user named, else the shipped one that lists this hub id, else {}.

    Raises:
        UsageError: no such config, invalid YAML, an unknown key, a value that its option cannot take.
    """
    if name is not None:
        path = find_resource("configs", name)
        return _options(path, _read(path))
    for path in shipped_files("configs").values():
        # few files mention a model, and YAML takes long to read
        if model in path.read_text("utf-8") and model in (content := _read(path)).get("models", []):
            return _options(path, content)
    return {}


def _read(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise UsageError(f"{path} holds no settings", hint=f"one `key: value` a line; keys: {', '.join(RULES)}")
    return content


def _options(path: Path, content: dict[str, Any]) -> dict[str, Sourced]:
    options = {key: value for key, value in content.items() if key != "models"}
    for key in options:
        if key not in RULES:
            raise UsageError(f"{path}: unknown key {key!r}", hint=nearest(str(key), RULES))
    return read_values({key: (value, Source("config", path.name)) for key, value in options.items()})
