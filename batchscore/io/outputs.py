"""The formats of an output: by what suffix each is known, and what tables it takes.

`rerank` ranks in the order of the input where scores are equal. The formats of runs have tables of their own: their
readers sort by score alone, so equal scores come in the order in which trec_eval reads them, and the score is the
number by which documents are ranked, since a sigmoid saturates where the logit does not.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from batchscore.errors import InputError, UsageError
from batchscore.io import jsonl, parquet
from batchscore.io.forms import Lines, OutForm, OutFormat
from batchscore.io.lines import compression, packed

Layout = Literal["own", "run", "lists"]  # the command's own tables; a document of a run a row; a query of a run a row


class UnfitError(InputError):
    """An id that a format of runs has no place for."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What a format is called, and how it is recognised."""

    noun: str
    suffixes: tuple[str, ...]  # of names that mean it
    suffix: str  # that a name gets which has none
    layout: Layout = "own"


KINDS: Mapping[OutForm, Kind] = {
    "parquet": Kind("Parquet", parquet.SUFFIXES, ".parquet"),
    "jsonl": Kind("JSON Lines", jsonl.SUFFIXES, ".jsonl"),
    "csv": Kind("CSV", packed(".csv"), ".csv"),
    "tsv": Kind("TSV", packed(".tsv"), ".tsv"),
    "npy": Kind("NPY", (".npy",), ".npy"),
    "trec": Kind("a TREC run", packed(".trec", ".run"), ".trec", "run"),
    "msmarco": Kind("an MS MARCO run", (), ".tsv", "run"),
    "mteb": Kind("a file of MTEB's predictions", (), ".json", "lists"),
    "rank-llm": Kind("a file of rank_llm's results", (), ".jsonl", "lists"),
    "lines": Kind("lines", (), ".jsonl"),
}
_BINARY = ("parquet", "npy")


@dataclass(frozen=True, slots=True)
class Format:
    """The format of one output, and what it is called in it."""

    name: OutForm = "parquet"
    tag: str | None = None  # of a TREC run; None: the model's name

    @property
    def kind(self) -> Kind:
        """What there is to know of the format."""
        return KINDS[self.name]


@dataclass(frozen=True, slots=True)
class RunColumns:
    """Which columns a ranking has of those that a format of runs may need."""

    query_ids: bool
    query_texts: bool
    document_ids: bool
    document_texts: bool


@dataclass(frozen=True, slots=True)
class Origin:
    """What scores are of, for formats that say so."""

    model: str = "batchscore"
    revision: str | None = None
    split: str = "test"

    @property
    def tag(self) -> str:
        """The model's name as one word."""
        return re.sub(r"\s+", "-", self.model.rstrip("/").rpartition("/")[2].strip()) or "batchscore"


def chosen_format(path: str | None, name: OutFormat | Lines = "auto", tag: str | None = None) -> Format:
    """The form that the options and the suffix of `path` mean; None: a file that is named after its format.

    Raises UsageError for a suffix that means none, and a tag that no format has or that is not one word.
    """
    if name == "auto":
        name = "parquet" if path is None else _form_of(path)
    if path is not None and name in _BINARY and compression(path) is not None:
        raise UsageError(f"cannot write {path}: {KINDS[name].noun} is not packed", hint="drop .gz or .zst")
    if tag is not None and name != "trec":
        raise UsageError(f"--run-tag has no effect: {KINDS[name].noun} has no tag", hint="pass --out-format trec")
    if tag is not None and tag.split() != [tag]:
        raise UsageError(f"--run-tag {tag!r} is not one word", hint="a TREC run has fields between spaces")
    return Format(name, tag)


def _form_of(path: str) -> OutForm:
    for name, known in KINDS.items():
        if path.lower().endswith(known.suffixes):
            return name
    suffixes = ", ".join(suffix for known in KINDS.values() for suffix in known.suffixes)
    raise UsageError(
        f"cannot write {path}: its suffix is none of {suffixes}",
        hint="end the name with one of these, or pass --out-format; --out of a job may also be a folder, with / at "
        "its end",
    )
