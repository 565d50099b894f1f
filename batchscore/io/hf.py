"""Hugging Face datasets: a folder of `save_to_disk`, memory-mapped, or one of the Hub, streamed.

Both come as Arrow tables batch by batch and are never held whole; the price is that the Hub is read again by each run.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from batchscore.errors import InputError, MissingDependencyError, NotFoundError, UsageError
from batchscore.io.block import Block, iso_time

MARKERS = ("state.json", "dataset_dict.json")  # what `save_to_disk` leaves in a folder


class DatasetReader:
    """One split of a dataset."""

    def __init__(self, file: str, dataset: Any, rows: int | None, size: int = 0, modified: str | None = None) -> None:
        self.file = file
        self.size = size
        self.modified = modified
        self._dataset = dataset
        self._rows = rows

    def column_names(self) -> list[str]:
        """From the features or, where a streamed dataset declares none, from its first row."""
        return list(self._dataset.column_names or next(iter(self._dataset), {}))

    def num_rows(self) -> int | None:
        """Exact on disk; of the Hub what the dataset's card says, if it does."""
        return self._rows

    def blocks(self, columns: Sequence[str] | None, rows: int) -> Iterator[Block]:
        """Tables of at most `rows` rows; an empty dataset gives one empty table."""
        dataset = self._dataset
        if columns is not None:
            dataset = dataset.select_columns([name for name in self.column_names() if name in columns])
        done = 0
        tables = dataset.with_format("arrow").iter(batch_size=rows)
        try:
            for table in tables:
                places = range(done, done + table.num_rows)
                yield Block(table, self.file, places, "row", places.stop / self._rows if self._rows else None)
                done = places.stop
        except Exception as error:  # remote readers document no exceptions
            raise InputError(f"{self.file}, row {done}: cannot be read: {error}") from error
        finally:
            # a Parquet scan left half done aborts the process at exit (huggingface/datasets#7566)
            del tables
            gc.collect()
        if not done:
            yield Block(dataset.features.arrow_schema.empty_table(), self.file, range(0), "row", 1.0)


def open_folder(folder: str, split: str | None) -> DatasetReader:
    """Open what `save_to_disk` wrote."""
    datasets = _import_datasets(folder)
    try:
        loaded = datasets.load_from_disk(folder)
    except Exception as error:  # whatever the many files of a folder can be wrong in
        raise InputError(f"{folder} is not a readable dataset: {error}", hint="save the dataset again") from error
    splits = loaded if isinstance(loaded, dict) else {str(loaded.split or "train"): loaded}
    chosen = _choose(splits, split, folder)
    files = [os.stat(part["filename"]) for part in chosen.cache_files]
    modified = iso_time(max((file.st_mtime for file in files), default=0))
    return DatasetReader(folder, chosen, chosen.num_rows, sum(file.st_size for file in files), modified)


def open_hub(name: str, split: str | None, file: str) -> DatasetReader:
    """Stream `name` from the Hub; `file` is what the user called it."""
    datasets = _import_datasets(file)
    try:
        splits = datasets.load_dataset(name, streaming=True)
    except Exception as error:  # the Hub client's own, and whatever a dataset's files raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise NotFoundError(f"{file} is no file here and no dataset of the Hub: {reason}", hint=_HUB_HINT) from error
    chosen = _choose(splits, split, file)
    declared = (chosen.info.splits or {}).get(str(chosen.split))
    return DatasetReader(file, chosen, declared.num_examples if declared else None)


_HUB_HINT = "check the path, or the dataset's name and your network"


def _choose(splits: Mapping[str, Any], split: str | None, file: str) -> Any:
    if split is None and len(splits) == 1:
        return next(iter(splits.values()))
    if split is not None and split in splits:
        return splits[split]
    what = "has several splits" if split is None else f"has no split {split!r}"
    raise UsageError(f"{file} {what}; splits: {', '.join(splits)}", hint=f"pass --split {next(iter(splits))}")


def _import_datasets(file: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        what = f"{file} can only be read as a Hugging Face dataset, which needs the package datasets"
        raise MissingDependencyError(what, hint="pip install datasets") from error
    return datasets
