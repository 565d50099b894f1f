"""From the paths of a command line to files and datasets, each of which any process can open again."""

from __future__ import annotations

import difflib
import glob
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Literal, cast

from batchscore.errors import InputError, NotFoundError, UsageError
from batchscore.io import delimited, fields, hf, irds, json_array, jsonl, parquet, raw_lines, topics
from batchscore.io.block import Reader
from batchscore.io.dialects import DIALECTS, DialectReader
from batchscore.io.forms import DialectName, Form, InFormat, Lines
from batchscore.io.hive import Partition, partition_of
from batchscore.io.storage import is_url, list_files, local_path, special_kind

_READERS: dict[Form, Callable[[str], Reader]] = {
    "parquet": parquet.ParquetReader,
    "jsonl": jsonl.JsonlReader,
    "json": json_array.JsonArrayReader,
    "csv": partial(delimited.DelimitedReader, delimiter=","),
    "tsv": partial(delimited.DelimitedReader, delimiter="\t"),
    "msmarco": fields.msmarco_reader,
    "trec-run": partial(fields.FieldsReader, layout=fields.TREC_RUN),
    "trec-qrels": partial(fields.FieldsReader, layout=fields.TREC_QRELS),
    "trec-topics": topics.TopicsReader,
    "lines": raw_lines.RawLineReader,
}
_SUFFIXES: dict[Form, tuple[str, ...]] = {
    "parquet": parquet.SUFFIXES,
    "jsonl": jsonl.SUFFIXES,
    "json": json_array.SUFFIXES,
    "csv": delimited.CSV_SUFFIXES,
    "tsv": delimited.TSV_SUFFIXES,
    "trec-run": fields.RUN_SUFFIXES,
    "trec-qrels": fields.QRELS_SUFFIXES,
    "trec-topics": topics.SUFFIXES,
}
_FORMS = {suffix: form for form, suffixes in _SUFFIXES.items() for suffix in suffixes}
_NAMED = ", ".join(suffix for suffix in _FORMS if not suffix.endswith((".gz", ".zst"))) + " (.gz and .zst too)"
_OF_DIALECTS: tuple[Form, ...] = ("parquet", "jsonl", "json")  # files that have rows with lists

_LOOKED_AT, _SHOWN, _CLOSE = 10_000, 3, 0.7  # of files that are called like one that is missing

Skip = Callable[[str], bool]


@dataclass(frozen=True, slots=True)
class Input:
    """One file or dataset. What it is was decided once, so that no process has to look at a path again."""

    kind: Literal["file", "saved", "hub", "irds"]
    name: str  # as errors call it
    form: Form
    dialect: DialectName | None = None
    partition: Partition = ()  # what the folders of a file say of its rows
    part: irds.Kind = "docs"  # of a dataset of ir_datasets

    def open(self, split: str | None, *, is_strict: bool = True) -> Reader:
        """Raises as `open_source`; unless `is_strict`, the only split of a dataset may have any name."""
        if self.kind == "irds":
            return irds.IrDatasetReader(self.name, self.part)
        if self.kind == "file":
            reader, part = _READERS[self.form](self.name), _split_of(self.name)
        else:
            reader = dataset = self._dataset(split, is_strict=is_strict)
            part = dataset.split
        return reader if self.dialect is None else DialectReader(reader, self.dialect, part)

    def in_dialect(self, dialect: DialectName) -> Input:
        """The same with rows in a dialect, if they can have lists."""
        return replace(self, dialect=dialect) if self.form in ("dataset", *_OF_DIALECTS) else self

    def _dataset(self, split: str | None, *, is_strict: bool) -> hf.DatasetReader:
        if self.kind == "hub":
            return hf.open_hub(self.name.removeprefix("hf:"), split, self.name, is_strict=is_strict)
        return hf.open_folder(self.name, split, is_strict=is_strict)


def find_inputs(path: str, skip: Skip, *, hive: bool = True, form: InFormat | Lines = "auto") -> list[Input]:
    """What a file, glob pattern, folder, saved dataset or Hub dataset stands for.

    Raises NotFoundError, and UsageError or InputError for a file whose format nothing tells. The others as in
    `open_source`.
    """
    path = local_path(path)
    inputs = _found(path, skip, form)
    if form == "auto":
        _refuse_mixture(path, inputs)
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


def _found(path: str, skip: Skip, form: InFormat | Lines) -> list[Input]:
    if is_url(path):
        return _files(_supported(list_files(path), path, skip, form), form)
    if path.startswith("hf:"):
        return [_dataset("hub", path, form)]
    if path.startswith(irds.PREFIX):
        return [Input("irds", path, "dataset")]
    if os.path.isdir(path):
        if any(os.path.exists(os.path.join(path, marker)) for marker in hf.MARKERS):
            return [_dataset("saved", path, form)]
        return _files(_files_under(path, skip, form), form)
    if os.path.exists(path):
        return _files([path], form)
    if matches := sorted(
        match for match in glob.glob(path, recursive=True) if os.path.exists(match) and not skip(match)
    ):
        # `**` matches folders and also the files in them: each file is read once
        return list(dict.fromkeys(file for match in matches for file in _found(match, skip, form)))
    if re.fullmatch(r"[\w-]+/[\w-]+", path):  # a suffix means a file; `hf:` opens a dataset with a dot in its name
        return [_dataset("hub", path, form)]
    if path == "-":
        raise _not_a_file(path, "standard input")
    near = _similar(path)
    hint = f"did you mean {' or '.join(near)}?" if near else "check the path; a Hub dataset is hf:org/name"
    raise NotFoundError(f"{path}: no such file or folder", hint=hint)


def _similar(path: str) -> list[str]:
    """What is called similarly in the folder of a path, the most similar first."""
    folder, name = os.path.split(path.rstrip("/"))
    try:
        with os.scandir(folder or ".") as entries:
            names = [entry.name for entry in islice(entries, _LOOKED_AT) if entry.name[0] != "."]
    except OSError:
        return []
    stems: dict[str, list[str]] = {}  # which are compared first, since all names with one suffix are similar
    for one in names:
        stems.setdefault(one.partition(".")[0], []).append(one)
    close = difflib.get_close_matches(name.partition(".")[0], stems, _SHOWN, _CLOSE)
    found = difflib.get_close_matches(name, [one for stem in close for one in stems[stem]], _SHOWN, 0.0)
    return [os.path.join(folder, one) for one in found]


def _not_a_file(path: str, kind: str) -> InputError:
    message = f"{path} is {kind}, not a file: an input is read more than once"
    return InputError(message, hint="write its rows to a file, and name that")


def _dataset(kind: Literal["saved", "hub"], name: str, form: InFormat | Lines) -> Input:
    if form in DIALECTS:
        return Input(kind, name, "dataset", form)
    if form != "auto":
        raise UsageError(f"--in-format {form}: {name} is a dataset", hint="drop --in-format")
    return Input(kind, name, "dataset")


def _files(names: Sequence[str], form: InFormat | Lines) -> list[Input]:
    for name in names:
        if not is_url(name) and (kind := special_kind(name)):
            raise _not_a_file(name, kind)
    if form == "auto":
        return [Input("file", name, _form_of(name)) for name in names]
    if form in DIALECTS:
        forms = {name: _form_of(name) for name in names if _suffix_form(name) in _OF_DIALECTS}
        return [Input("file", name, forms.get(name, "jsonl"), form) for name in names]
    return [Input("file", name, cast("Form", form)) for name in names]


def _suffix_form(name: str) -> Form | None:
    return next((form for suffix, form in _FORMS.items() if name.lower().endswith(suffix)), None)


def has_known_suffix(path: str) -> bool:
    """Whether the suffix of a file says what format it has."""
    return path.lower().endswith(tuple(_FORMS))


def format_of_ids(path: str, usual: InFormat) -> InFormat:
    """How a run or judgements are read: as `usual`, TREC's, where the suffix says nothing (results.test), else auto."""
    return usual if os.path.isfile(path) and not has_known_suffix(path) else "auto"


def _form_of(name: str) -> Form:
    """The format of a file by its suffix, and of some by how they begin; UsageError if neither tells."""
    form = _suffix_form(name)
    if form is None:
        raise UsageError(
            f"cannot read {name}: its suffix is none of {_NAMED}",
            hint="pass --in-format, if it has one of these formats under another name",
        )
    if form == "tsv" and fields.is_msmarco(name):
        return "msmarco"
    return "jsonl" if form == "json" and not json_array.is_array(name) else form


def _refuse_mixture(path: str, inputs: Sequence[Input]) -> None:
    """Raise InputError for a folder or pattern with files of several formats, which are hardly rows of one kind.

    Parquet and JSON Lines go together: whoever writes rows of their own writes either.
    """
    first = {file.form: file.name for file in reversed(inputs)}
    if len(first) > 1 and not first.keys() <= {"parquet", "jsonl"}:
        found = ", ".join(f"{form} ({first[form]})" for form in sorted(first))
        raise InputError(f"{path} has files of several formats: {found}", hint="name the files, or pass --in-format")


def _files_under(folder: str, skip: Skip, form: InFormat | Lines) -> list[str]:
    """Supported files below `folder`, sorted; hidden names (. or _ first) are left out, as in Spark and Hive."""
    files = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name[0] not in "._"]
        files += [os.path.join(parent, name) for name in names if name[0] not in "._"]
    return sorted(_supported(files, folder, skip, form))


def _supported(files: Sequence[str], folder: str, skip: Skip, form: InFormat | Lines) -> list[str]:
    """Those of a folder that are read, by their suffixes; NotFoundError if there are none.

    A .json beside files of other formats tells about them, as a rule, and is left out. If no suffix is of the format
    that was asked for, all files are.
    """
    if files == [folder]:
        return [folder]  # the user named this file: opening it says what is wrong with its suffix
    forms = {file: _suffix_form(file) for file in files if not skip(file)}
    if form == "auto":
        known = {file: found for file, found in forms.items() if found is not None}
        others = [file for file, found in known.items() if found != "json"]
        chosen = others or list(known)
    else:
        wanted = _OF_DIALECTS if form in DIALECTS else ("tsv",) if form == "msmarco" else (form,)
        chosen = [file for file, found in forms.items() if found in wanted] or list(forms)
    if not chosen:
        raise NotFoundError(f"no input files in {folder}; suffixes: {_NAMED}", hint="check the folder")
    return chosen


def _split_of(file: str) -> str:
    """What MTEB calls the split of a file: its name without suffixes, and without a number if it is the only part."""
    suffix = next((suffix for suffix in sorted(_FORMS, key=len, reverse=True) if file.lower().endswith(suffix)), "")
    name = file.rpartition("/")[2]
    return re.sub(r"-0+-of-0*1$", "", name[: len(name) - len(suffix)])
