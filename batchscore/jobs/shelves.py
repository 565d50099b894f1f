"""Where encodings of earlier jobs are found, and those of this one are kept: what `--store` names."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from batchscore.errors import UsageError
from batchscore.io.digests import Digests
from batchscore.io.storage import open_folder
from batchscore.io.store import Shelf, Text, open_shelf
from batchscore.io.upkeep import store_path
from batchscore.io.vectors import VectorFile, encoded_by
from batchscore.jobs.parts import JOB, first_difference
from batchscore.jobs.plan import Plan
from batchscore.types import SIDES, Encodings


@dataclass(frozen=True, slots=True)
class Shelves:
    """Encodings of one side's texts, or raw scores of pairs."""

    files: Sequence[VectorFile]  # are only read
    shelf: Shelf | None  # of the store

    def find(self, digests: Digests) -> tuple[NDArray[np.bool_], Encodings]:
        """(bool [n]: which texts are there; their encodings, in that order); raises as a shelf's."""
        is_known = np.zeros(len(digests), bool)
        parts: list[tuple[NDArray[np.int64], Encodings]] = []
        for one in (*self.files, *([self.shelf] if self.shelf else ())):
            left = np.flatnonzero(~is_known)
            is_found, encodings = one.find(digests[left])
            parts.append((left[is_found], encodings))
            is_known[left[is_found]] = True
        known = np.flatnonzero(is_known)
        return is_known, Encodings.interleave([(np.searchsorted(known, places), part) for places, part in parts])

    def add(self, digests: Digests, encodings: Encodings, samples: Mapping[int, Text]) -> None:
        """Keep encodings, if there is a store; raises as a shelf's."""
        if self.shelf:
            self.shelf.add(digests, encodings, samples)


@dataclass(frozen=True, slots=True)
class Stores:
    """What `--store` names."""

    folder: str | None
    files: Mapping[str, Sequence[str]]  # by the side whose texts they are of

    @classmethod
    def of(cls, plan: Plan, names: Sequence[str]) -> Stores:
        """Tell folders and files apart, and look at the files; nothing is written.

        Raises:
            UsageError: two folders, a URL as one, a file without encodings, or with those of another model.
        """
        paths = [name for name in names if os.path.isfile(name) or name.endswith(".parquet")]
        folders = [name for name in names if name not in paths]
        if len(folders) > 1:
            raise UsageError(f"--store names two folders, {folders[0]} and {folders[1]}", hint="drop one of them")
        folder = store_path(folders[0]) if folders else None
        if folder and open_folder(folder).has(JOB):
            raise UsageError(
                f"--store {folder} is the folder of a job",
                hint="name another folder, or the file that `batchscore merge` makes of what `encode` wrote there",
            )
        if paths and plan.setup.spec.score_type == "cross-encoder":
            raise UsageError(
                f"--store {paths[0]} has encodings of texts, and a cross-encoder reads pairs", hint="name a folder"
            )
        files: dict[str, list[str]] = {}
        for path in paths:
            note = encoded_by(path)
            if (difference := first_difference(note, plan.encoding_fingerprint(note["side"]))) is not None:
                raise UsageError(
                    f"--store {path} has encodings of another model: {difference}",
                    hint="encode the texts with the same model and options, or drop --store",
                )
            files.setdefault(note["side"], []).append(path)
        return cls(folder, files)

    def open(self, plan: Plan) -> dict[str, Shelves]:
        """Encodings by side: "query" and "document", or "pair"; nothing if nothing is named."""
        dtype = plan.setup.placement.dtype
        sides: Sequence[str] = ("pair",) if plan.setup.spec.score_type == "cross-encoder" else SIDES
        return {
            side: Shelves(
                [VectorFile.open(path, dtype) for path in self.files.get(side, ())],
                _shelf(plan, side, self.folder) if self.folder else None,
            )
            for side in sides
            if self.folder or side in self.files
        }


def _shelf(plan: Plan, side: str, store: str) -> Shelf:
    scorer = {name: value for name, value in plan.pinned_scorer.items() if name != "model"}
    about = {"model": plan.setup.checkpoint.name, "side": side, "scorer": scorer}
    return open_shelf(store, plan.encoding_fingerprint(side), about)
