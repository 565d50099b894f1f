"""The start of a process that runs jobs and nothing else, as the command line does: it imports what jobs need."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from types import ModuleType

from batchscore.models.lean import lean_imports

__all__ = ["job_functions", "lean_imports"]


def job_functions(inputs: Sequence[str]) -> ModuleType:
    """The module `batchscore.jobs.files`, with what these inputs need."""
    with lean_imports():
        if not {"pandas", "pyarrow"} & sys.modules.keys() and all(
            name == "-" or os.path.isfile(name) for name in inputs
        ):
            _do_without_pandas()  # which a dataset of the Hub in CSV, say, is read with
        from batchscore.jobs import files
    return files


def _do_without_pandas() -> None:
    """Have pyarrow, which looks for pandas at its first array and never again, find none."""
    import pyarrow

    sys.meta_path.insert(0, finder := _NoPandas())
    pyarrow.array([])
    sys.meta_path.remove(finder)


class _NoPandas(MetaPathFinder):
    def find_spec(self, name: str, path: Sequence[str] | None, target: object = None) -> None:
        if name == "pandas":
            raise ModuleNotFoundError(name=name)
