"""From the paths of a command line to files and datasets, each of which any process can open again."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from batchscore.errors import InputError, NotFoundError, UsageError
from batchscore.io import delimited, fields, hf, jsonl, parquet
from batchscore.io.block import Reader
from batchscore.io.forms import Form, InFormat
from batchscore.io.hive import Partition, partition_of
from batchscore.io.storage import is_url, list_files, local_path, special_kind

_READERS: dict[Form, Callable[[str], Reader]] = {
    "parquet": parquet.ParquetReader,
    "jsonl": jsonl.JsonlReader,
    "csv": partial(delimited.DelimitedReader, delimiter=","),
    "tsv": partial(delimited.DelimitedReader, delimiter="\t"),
    "msmarco": fields.msmarco_reader,
    "trec-run": partial(fields.FieldsReader, layout=fields.TREC_RUN),
    "trec-qrels": partial(fields.FieldsReader, layout=fields.TREC_QRELS),
}
_FORMS: dict[str, Form] = {  # by suffix
    **dict.fromkeys(parquet.SUFFIXES, "parquet"),
    **dict.fromkeys(jsonl.SUFFIXES, "jsonl"),
    **dict.fromkeys(delimited.CSV_SUFFIXES, "csv"),
    **dict.fromkeys(delimited.TSV_SUFFIXES, "tsv"),
    **dict.fromkeys(fields.RUN_SUFFIXES, "trec-run"),
    **dict.fromkeys(fields.QRELS_SUFFIXES, "trec-qrels"),
}

Skip = Callable[[str], bool]


@dataclass(frozen=True, slots=True)
class Input:
    """One file or dataset. What it is was decided once, so that no process has to look at a path again."""

    kind: Literal["file", "saved", "hub"]
    name: str  # as errors call it
    form: Form
    partition: Partition = ()  # what the folders of a file say of its rows

    def open(self, split: str | None) -> Reader:
        """Raises as `open_source`."""
        if self.kind == "hub":
            return hf.open_hub(self.name.removeprefix("hf:"), split, self.name)
        if self.kind == "saved":
            return hf.open_folder(self.name, split)
        return _READERS[self.form](self.name)


def find_inputs(path: str, skip: Skip, *, hive: bool = True, form: InFormat = "auto") -> list[Input]:
    """What a file, glob pattern, folder, saved dataset or Hub dataset stands for.

    Raises NotFoundError, and UsageError or InputError for a file whose format nothing tells. The others as in
    `open_source`.
    """
    path = local_path(path)
    inputs = _found(path, skip, form)
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


def _found(path: str, skip: Skip, form: InFormat) -> list[Input]:
    if is_url(path):
        return _files(_supported(list_files(path), path, skip), form)
    if path.startswith("hf:"):
        return [Input("hub", path, "dataset")]
    if os.path.isdir(path):
        if any(os.path.exists(os.path.join(path, marker)) for marker in hf.MARKERS):
            return [Input("saved", path, "dataset")]
        return _files(_files_under(path, skip), form)
    if os.path.exists(path):
        return _files([path], form)
    if matches := sorted(
        match for match in glob.glob(path, recursive=True) if os.path.exists(match) and not skip(match)
    ):
        # `**` matches folders and also the files in them: each file is read once
        return list(dict.fromkeys(file for match in matches for file in _found(match, skip, form)))
    if re.fullmatch(r"[\w-]+/[\w-]+", path):  # a suffix means a file; `hf:` opens a dataset with a dot in its name
        return [Input("hub", path, "dataset")]
    if path == "-":
        raise _not_a_file(path, "standard input")
    raise NotFoundError(f"{path}: no such file or folder", hint="check the path; a Hub dataset is hf:org/name")


def _not_a_file(path: str, kind: str) -> InputError:
    message = f"{path} is {kind}, not a file: an input is read more than once"
    return InputError(message, hint="write its rows to a file, and name that")


def _files(names: Sequence[str], form: InFormat) -> list[Input]:
    return [Input("file", name, _form_of(name) if form == "auto" else form) for name in names]


def _form_of(name: str) -> Form:
    """The format of a file by its suffix, and of a .tsv by its first line too."""
    if not is_url(name) and (kind := special_kind(name)):
        raise _not_a_file(name, kind)
    form = next((form for suffix, form in _FORMS.items() if name.lower().endswith(suffix)), None)
    if form is None:
        raise UsageError(
            f"cannot read {name}: its suffix is none of {', '.join(_FORMS)}",
            hint="pass --in-format, if it has one of these formats under another name",
        )
    return _tsv_form(name) if form == "tsv" else form


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
    supported = [file for file in files if file.lower().endswith(tuple(_FORMS)) and not skip(file)]
    if not supported:
        raise NotFoundError(f"no input files in {folder}; suffixes: {', '.join(_FORMS)}", hint="check the folder")
    return supported


def _tsv_form(name: str) -> Form:
    """Whether a .tsv has a header, or is one of MS MARCO's files, which have numbers for ids."""
    return "msmarco" if fields.is_msmarco(name) else "tsv"
