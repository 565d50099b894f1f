"""Folders and datasets that hold a whole test collection: BEIR's layout, MTEB's, and the names of ir_datasets."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from batchscore.errors import UsageError
from batchscore.io import hf, irds
from batchscore.io.inputs import Input, find_inputs
from batchscore.io.source import FileAddresses

_QRELS = re.compile(r"(.+)\.(tsv|qrels|jsonl|parquet)(\.gz|\.zst)?")


@dataclass(frozen=True, slots=True)
class Layout:
    """What of a test collection lies where."""

    name: str
    queries: Input
    corpus: Input
    qrels: Mapping[str, FileAddresses] = field(default_factory=dict)  # by split
    runs: Mapping[str, FileAddresses] = field(default_factory=dict)


def find_layout(path: str) -> Layout | None:
    """The collection that a path stands for; None if it is none.

    Raises:
        UsageError: its files do not say which queries are meant.
        MissingDependencyError: ir_datasets is not installed.
        NotFoundError: it does not have this name.
    """
    if path.startswith(irds.PREFIX):
        return _of_ir_datasets(path)
    name = path.removeprefix("hf:")
    layout = _of_mteb(path, name) if path.startswith("hf:") or hf.has_card(name) else None
    return _of_beir(name) if layout is None and os.path.isdir(name) else layout


def _of_beir(folder: str) -> Layout | None:
    """`corpus.jsonl`, `queries.jsonl` and `qrels/SPLIT.tsv`, or else PREFIX-queries.jsonl and PREFIX-qrels/."""
    names = os.listdir(folder)
    corpora = [name for name in names if re.fullmatch(r"corpus\.(jsonl|parquet)(\.gz|\.zst)?", name)]
    queries = [name for name in names if re.fullmatch(r"(.+-)?queries\.(jsonl|parquet)(\.gz|\.zst)?", name)]
    if not (corpora and queries):
        return None
    plain = [name for name in queries if name.startswith("queries.")] or queries
    if len(plain) > 1 or len(corpora) > 1:
        several = ", ".join(sorted(plain if len(plain) > 1 else corpora))
        raise UsageError(f"{folder} has several of a kind: {several}", hint="name the files: --queries, --corpus")
    prefix = plain[0].partition("queries.")[0]
    return Layout(folder, _file(folder, plain[0]), _file(folder, corpora[0]), _beir_qrels(folder, prefix))


def _beir_qrels(folder: str, prefix: str) -> dict[str, FileAddresses]:
    place = os.path.join(folder, f"{prefix}qrels")
    names = sorted(os.listdir(place)) if os.path.isdir(place) else []
    found = {match[1]: name for name in names if (match := _QRELS.fullmatch(name))}
    return {split: FileAddresses((_file(place, name),)) for split, name in found.items()}


def _file(folder: str, name: str) -> Input:
    (file,) = find_inputs(os.path.join(folder, name), lambda file: False, hive=False)
    return file


def _of_mteb(path: str, name: str) -> Layout | None:
    """Configurations `corpus`, `queries`, `default` or `qrels`, and `top_ranked`; those of a subset begin with it."""
    base, subset = hf.parts(name)
    prefix = f"{subset}-" if subset else ""
    configs = hf.configs(base)
    queries = next((one for one in (f"{prefix}queries", f"{prefix}query") if one in configs), None)
    if queries is None or f"{prefix}corpus" not in configs:
        return None
    judged = next((one for one in (f"{prefix}qrels", subset or "default") if one in configs), None)
    ranked = f"{prefix}top_ranked" if f"{prefix}top_ranked" in configs else None
    return Layout(
        path, _config(base, queries), _config(base, f"{prefix}corpus"), _by_split(base, judged), _by_split(base, ranked)
    )


def _config(base: str, config: str) -> Input:
    return Input("hub", f"hf:{base}/{config}", "dataset")


def _by_split(base: str, config: str | None) -> dict[str, FileAddresses]:
    splits = [] if config is None else hf.splits(base, config)
    return {split: FileAddresses((_config(base, str(config)),), split) for split in splits}


def _of_ir_datasets(name: str) -> Layout:
    dataset, file = irds.load(name), Input("irds", name, "dataset")
    ranked = {"": FileAddresses((replace(file, part="scoreddocs"),))} if dataset.has_scoreddocs() else {}
    return Layout(name, replace(file, part="queries"), replace(file, part="docs"), {}, ranked)


def of_split(found: Mapping[str, FileAddresses], split: str | None, name: str) -> FileAddresses:
    """What belongs to a split, or the only thing there is; UsageError, which begins with `name`."""
    if split is None and len(found) == 1:
        return next(iter(found.values()))
    if split is not None and split in found:
        return found[split]
    problem = "has several splits" if split is None else f"has no split {split!r}"
    raise UsageError(f"{name} {problem}; splits: {', '.join(found)}", hint=f"pass --split {next(iter(found), 'NAME')}")
