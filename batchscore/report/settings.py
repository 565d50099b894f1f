"""What runs were made with, from their records, side by side."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from batchscore.report.outputs import Reported, printable

_LONGEST = 1_000  # characters of a value, such as a template
_FIRST = ("score_type", "architecture", "similarity", "max_length")  # shown first, whatever their source
_USUAL = ("default", "score type")
_MOST_FILES = 20  # inputs that are listed
_DIGITS = 12  # of a digest

Record = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Cell:
    """A setting of one run."""

    value: str  # "" if it is not set
    source: str = ""  # where it comes from, if the record says


@dataclass(frozen=True, slots=True)
class Setting:
    """A setting of all runs."""

    name: str
    cells: Sequence[Cell]
    differs: bool


@dataclass(frozen=True, slots=True)
class Group:
    """Settings of one kind."""

    title: str
    settings: Sequence[Setting]


def compared(outputs: Sequence[Reported]) -> list[Group]:
    """The settings of the outputs that have a record; those that none of them has set are left out."""
    records = [output.record for output in outputs if output.record]
    groups = []
    for title, read in _GROUPS.items():
        found = [dict(read(record)) for record in records]
        names = dict.fromkeys(name for one in found for name in one)
        settings = [_setting(name, [one.get(name, Cell("")) for one in found]) for name in names]
        settings = [one for one in settings if any(cell.value for cell in one.cells)]
        decided = [one for one in settings if one.name in _FIRST or not all(_is_usual(cell) for cell in one.cells)]
        groups.append(Group(title, decided))
        groups.append(Group(f"{title}, by its architecture or by default", [s for s in settings if s not in decided]))
    return [group for group in groups if group.settings]


def _is_usual(cell: Cell) -> bool:
    """Whether neither a person nor a file has decided a setting of a model."""
    return cell.source in _USUAL or cell.source.startswith("architecture ")


def _setting(name: str, cells: Sequence[Cell]) -> Setting:
    return Setting(name, cells, len({cell.value for cell in cells}) > 1)


def _model(record: Record) -> Iterator[tuple[str, Cell]]:
    yield "model", Cell(_text(record["model"]))
    files = record["weights"]
    yield (
        "weights",
        Cell(f"{sum(file['bytes'] for file in files):,} bytes in {len(files)} file{'s' * (len(files) != 1)}"),
    )
    yield "score range", Cell(_text(record["score_range"]))
    for name, field in record["spec"].items():
        yield name, Cell(_text(field["value"]), field["source"])


def _files(record: Record) -> Iterator[tuple[str, Cell]]:
    for name, digest in record["fingerprint"]["files"].items():
        yield name, Cell(digest[:_DIGITS])


def _device(record: Record) -> Iterator[tuple[str, Cell]]:
    placement = dict(record["placement"])
    reason = placement.pop("dtype_reason", "")
    for name, value in placement.items():
        yield name, Cell(_text(value), reason if name == "dtype" else "")


def _options(record: Record) -> Iterator[tuple[str, Cell]]:
    yield "command", Cell(record["command"])
    for name, value in record["options"].items():
        if name != "model":
            flag = {"window_rows": "unit_rows"}.get(name, name)
            yield f"--{flag.replace('_', '-')}", Cell(_text(value))


def _inputs(record: Record) -> Iterator[tuple[str, Cell]]:
    files = record["inputs"]
    for number, file in enumerate(files[:_MOST_FILES], 1):
        size = f", {file['bytes']:,} bytes" if file.get("bytes") else ""
        changed = f", changed {file['modified'][:19].replace('T', ' ')} UTC" if file.get("modified") else ""
        yield f"input {number}", Cell(_text(file["name"]) + size + changed)
    if len(files) > _MOST_FILES:
        yield "more inputs", Cell(f"{len(files) - _MOST_FILES:,}")


def _versions(record: Record) -> Iterator[tuple[str, Cell]]:
    for name, version in record["versions"].items():
        yield name, Cell(version or "")


_GROUPS: Mapping[str, Callable[[Record], Iterator[tuple[str, Cell]]]] = {
    "Model": _model,
    "Files of the model, by the digest of their contents": _files,
    "Options": _options,
    "Device": _device,
    "Inputs": _inputs,
    "Versions": _versions,
}


def _text(value: object) -> str:
    """A value as a person reads it; "" for what is not set."""
    if not value:  # 0 stands for "no limit" and the like, as `inspect` has it
        return ""
    if value is True:
        return "yes"
    if isinstance(value, list):
        text = ", ".join(one if isinstance(one, str) else json.dumps(one, ensure_ascii=False) for one in value if one)
    else:
        text = json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else str(value)
    return printable(text if len(text) <= _LONGEST else f"{text[:_LONGEST]}… ({len(text):,} characters)")
