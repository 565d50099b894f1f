"""From the paths of a command line to files and datasets, each of which any process can open again."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from batchscore.errors import InputError, NotFoundError, UsageError
from batchscore.io import hf, jsonl, parquet
from batchscore.io.block import Reader
from batchscore.io.hive import Partition, partition_of
from batchscore.io.storage import is_url, list_files, local_path, special_kind

_READERS: dict[str, Callable[[str], Reader]] = {
    **dict.fromkeys(parquet.SUFFIXES, parquet.ParquetReader),
    **dict.fromkeys(jsonl.SUFFIXES, jsonl.JsonlReader),
}

Skip = Callable[[str], bool]


@dataclass(frozen=True, slots=True)
class Input:
    """One file or dataset. What it is was decided once, so that no process has to look at a path again."""

    kind: Literal["file", "saved", "hub"]
    name: str  # as errors call it
    partition: Partition = ()  # what the folders of a file say of its rows

    def open(self, split: str | None) -> Reader:
        """Raises as `open_source`."""
        if self.kind == "hub":
            return hf.open_hub(self.name.removeprefix("hf:"), split, self.name)
        if self.kind == "saved":
            return hf.open_folder(self.name, split)
        if not is_url(self.name) and (kind := special_kind(self.name)):
            raise _not_a_file(self.name, kind)
        for suffix, reader in _READERS.items():
            if self.name.lower().endswith(suffix):
                return reader(self.name)
        suffixes = ", ".join(_READERS)
        raise UsageError(
            f"cannot read {self.name}: its suffix is none of {suffixes}",
            hint="convert it; JSON Lines of another suffix need only a new name",
        )


def find_inputs(path: str, skip: Skip, *, hive: bool = True) -> list[Input]:
    """What a file, glob pattern, folder, saved dataset or Hub dataset stands for.

    Raises NotFoundError. `skip` and `hive` as in `open_source`.
    """
    path = local_path(path)
    inputs = _found(path, skip)
    if not hive:
        return inputs
    wild = re.search(r"[*?\[]", path)
    base = path[: wild.start()].rpartition("/")[0] if wild else path  # only folders below it name columns
    return [
        replace(file, partition=partition_of(file.name.removeprefix(base).rpartition("/")[0]))
        if file.kind == "file"
        else file
        for file in inputs
    ]


def _found(path: str, skip: Skip) -> list[Input]:
    if is_url(path):
        return _files(_supported(list_files(path), path, skip))
    if path.startswith("hf:"):
        return [Input("hub", path)]
    if os.path.isdir(path):
        if any(os.path.exists(os.path.join(path, marker)) for marker in hf.MARKERS):
            return [Input("saved", path)]
        return _files(_files_under(path, skip))
    if os.path.exists(path):
        return [Input("file", path)]
    if matches := sorted(
        match for match in glob.glob(path, recursive=True) if os.path.exists(match) and not skip(match)
    ):
        # `**` matches folders and also the files in them: each file is read once
        return list(dict.fromkeys(file for match in matches for file in _found(match, skip)))
    if re.fullmatch(r"[\w-]+/[\w-]+", path):  # a suffix means a file; `hf:` opens a dataset with a dot in its name
        return [Input("hub", path)]
    if path == "-":
        raise _not_a_file(path, "standard input")
    raise NotFoundError(f"{path}: no such file or folder", hint="check the path; a Hub dataset is hf:org/name")


def _not_a_file(path: str, kind: str) -> InputError:
    message = f"{path} is {kind}, not a file: an input is read more than once"
    return InputError(message, hint="write its rows to a file, and name that")


def _files(names: Sequence[str]) -> list[Input]:
    return [Input("file", name) for name in names]


def _files_under(folder: str, skip: Skip) -> list[str]:
    """Supported files below `folder`, sorted; hidden names (. or _ first) are left out, as in Spark and Hive."""
    files = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name[0] not in "._"]
        files += [os.path.join(parent, name) for name in names if name[0] not in "._"]
    return sorted(_supported(files, folder, skip))


def _supported(files: Sequence[str], folder: str, skip: Skip) -> list[str]:
    """Those with a suffix that can be read and that are not to be skipped; NotFoundError if there are none."""
    if files == [folder]:
        return [folder]  # the user named this file: opening it says what is wrong with its suffix
    supported = [file for file in files if file.lower().endswith(tuple(_READERS)) and not skip(file)]
    if not supported:
        raise NotFoundError(f"no input files in {folder}; suffixes: {', '.join(_READERS)}", hint="check the folder")
    return supported
