"""Find the files that ship with the code, score templates and model configs, and the releases of what it needs.

In a wheel `templates/` and `configs/` are inside the package; in a checkout they are at the top level.
"""

from __future__ import annotations

import os
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from batchscore.errors import UsageError

_PACKAGE = Path(__file__).parent
_HOMES = (_PACKAGE, _PACKAGE.parent)


def shipped_files(kind: str) -> dict[str, Path]:
    """Name (without suffix) -> path of every shipped file of a kind, "templates" or "configs"."""
    home = next((home / kind for home in _HOMES if (home / kind).is_dir()), None)
    paths = sorted(home.iterdir()) if home else []
    return {path.stem: path for path in paths if path.suffix in {".jinja", ".yaml"}}


def find_resource(kind: str, name: str) -> Path:
    """The file that a user names: a path (`~` is the home folder) if it exists, else a shipped name.

    Raises:
        UsageError: neither; the message lists the shipped names.
    """
    path = Path(os.path.expanduser(name))
    if os.path.isfile(path):  # which is false, and no error, of a text too long for a name
        return path
    shipped = shipped_files(kind)
    if name not in shipped:
        raise UsageError(f"no file and no shipped name {name!r} in {kind}; shipped: {', '.join(shipped)}")
    return shipped[name]


def installed_version(package: str) -> str | None:
    """The release of a package; None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
