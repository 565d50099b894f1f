"""Hugging Face datasets: a folder written by `save_to_disk`, memory-mapped, or a dataset of the Hub, streamed.

Both are read as Arrow tables, batch by batch, and are never in memory as a whole. The price is that each run downloads
a Hub dataset again.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from functools import cached_property
from typing import Any

import pyarrow as pa

from batchscore.errors import InputError, MissingDependencyError, NotFoundError, UsageError, first_line
from batchscore.io.block import Block, RowCursor, Stamp
from batchscore.io.schema import Shape, has_bytes, join
from batchscore.io.storage import iso_time
from batchscore.io.units import Span, Steps, count_steps, table_steps
from batchscore.io.values import empty_table

_ROWS = 4096  # in a table of the stream; datasets knows no row sizes, and a unit of long texts must not be far exceeded
_ROW_BYTES = 1 << 18  # of a row with images, where nothing says how large they are: a usual photo
_BYTES = 8 << 20  # in a table of the stream, if its rows are as large as that
MARKERS = ("state.json", "dataset_dict.json")  # `save_to_disk` writes one of these into its folder


class DatasetReader:
    """One split of a dataset."""

    first_number = 0
    is_ragged = False

    def __init__(
        self,
        file: str,
        dataset: Any,
        rows: int | None,
        size: int = 0,
        modified: str | None = None,
        split: str = "train",
    ) -> None:
        self.file = file
        self.split = split
        self._size = size
        self._modified = modified
        self._dataset = dataset
        self._rows = rows
        self._is_streamed = rows is None or not hasattr(dataset, "select")
        self._cursor = RowCursor(lambda row: 0 if self._is_streamed else row, self._stream)

    def stamp(self) -> Stamp:
        """As it was opened: it stays open, so it cannot change."""
        return self._size, self._modified

    @cached_property
    def schema(self) -> pa.Schema:
        """From the features or, where a streamed dataset declares none, from its first rows."""
        if self._dataset.features is not None:
            return self._dataset.features.arrow_schema
        with closing(self._stream(None, 0)) as tables:
            first = next(tables, None)
        return pa.schema([]) if first is None else first.schema

    def steps(self, group: str | None, sparse: Collection[str] = ()) -> Iterator[Steps]:
        """From the number of rows where it is known, else by reading a column."""
        size = self._row_size
        if group is None and self._rows is not None:
            yield from count_steps(self._rows, size)
        else:
            yield from table_steps(self._stream([group or self.schema.names[0]], 0), size)

    @cached_property
    def _row_size(self) -> int:
        """Average bytes of a row; 0: unknown, and it holds texts and numbers only."""
        if self._size or not any(has_bytes(kind) for kind in self.schema.types):
            return self._size // max(1, self._rows or 0)
        declared = self._dataset.info.dataset_size or 0  # by the dataset's card
        return declared // (self._rows or 1) or _ROW_BYTES

    def read(self, span: Span, columns: Sequence[str] | None, shapes: Mapping[str, Shape]) -> Block:
        """The rows of a span; a streamed dataset is read from its start up to there."""
        tables = self._cursor.read(columns, span.start, span.stop)
        if sum(map(len, tables)) < span.rows:
            raise InputError(f"{self.file} has fewer rows than when the job began", hint="see that it has not changed")
        # the number of rows of a streamed dataset is what its card says, which may be wrong
        if self._is_streamed and span.stop == self._rows and self._cursor.read(columns, span.stop, span.stop + 1):
            raise InputError(
                f"{self.file} has more rows than the {self._rows:,} of its card",
                hint="download it with save_to_disk, and name the folder",
            )
        table = join(tables) if tables else empty_table(self._chosen(columns).features.arrow_schema)
        return Block(table, self.file, range(span.start, span.stop), "row")

    def close(self) -> None:
        """Leave the stream."""
        self._cursor.close()

    def _chosen(self, columns: Sequence[str] | None) -> Any:
        if columns is None:
            return self._dataset
        return self._dataset.select_columns([name for name in self.schema.names if name in columns])

    def _table_rows(self, columns: Sequence[str] | None) -> int:
        """Rows of a table of the stream: few where they hold images."""
        features = self._dataset.features  # None: only what has no images is stored without them
        kinds = [] if features is None else features.arrow_schema
        if any(has_bytes(field.type) for field in kinds if columns is None or field.name in columns):
            return max(1, min(_ROWS, _BYTES // max(1, self._row_size)))
        return _ROWS

    def _stream(self, columns: Sequence[str] | None, start: int) -> Generator[pa.Table]:
        """Arrow tables of the rows from `start` on."""
        dataset, done = self._chosen(columns), start
        if start:
            dataset = dataset.select(range(start, len(dataset)))
        tables = dataset.with_format("arrow").iter(batch_size=self._table_rows(columns))
        try:
            for table in tables:
                yield table
                done += table.num_rows
        except Exception as error:  # remote readers do not document what they raise
            raise InputError(f"{self.file}, row {done}: cannot be read: {error}") from error
        finally:
            # an unfinished Parquet scan aborts the process at exit (huggingface/datasets#7566)
            del tables
            if self._is_streamed:
                gc.collect()


def open_folder(folder: str, split: str | None, *, is_strict: bool = True) -> DatasetReader:
    """Open what `save_to_disk` wrote; unless `is_strict`, the only split may have any name."""
    datasets = _import_datasets(folder)
    try:
        loaded = datasets.load_from_disk(folder)
    except Exception as error:  # a folder has many files that can be wrong in many ways
        raise InputError(f"{folder} is not a readable dataset: {error}", hint="save the dataset again") from error
    splits = loaded if isinstance(loaded, dict) else {str(loaded.split or "train"): loaded}
    name = _choose(splits, split, folder, is_strict=is_strict)
    chosen = splits[name]
    files = [os.stat(part["filename"]) for part in chosen.cache_files]
    modified = iso_time(max((file.st_mtime for file in files), default=0))
    return DatasetReader(folder, chosen, chosen.num_rows, sum(file.st_size for file in files), modified, name)


def open_hub(name: str, split: str | None, file: str, *, is_strict: bool = True) -> DatasetReader:
    """Stream a dataset, or one configuration of it, from the Hub or from a folder; the user called it `file`.

    Unless `is_strict`, the only split may have any name.
    """
    datasets = _import_datasets(file)
    try:
        splits = datasets.load_dataset(*filter(None, parts(name)), streaming=True)
    except Exception as error:  # from the Hub client, and from the parsers of many formats
        message = f"{file} is neither a file nor a dataset on the Hub: {first_line(error)}"
        raise NotFoundError(message, hint=_HUB_HINT) from error
    part = _choose(splits, split, file, is_strict=is_strict)
    chosen = splits[part]
    declared = (chosen.info.splits or {}).get(str(chosen.split))
    return DatasetReader(file, chosen, declared.num_examples if declared else None, split=part)


def parts(name: str) -> tuple[str, str | None]:
    """(dataset, configuration) of org/dataset/configuration, or of a folder with a card and a configuration."""
    dataset, _, config = name.rpartition("/")
    has_config = not os.path.isdir(name) and (name.count("/") == 2 or has_card(dataset))
    return (dataset, config) if has_config else (name, None)


def has_card(folder: str) -> bool:
    """Whether a folder has a card that lists configurations, as a repository of the Hub has."""
    try:
        with open(os.path.join(folder, "README.md"), encoding="utf-8", errors="replace") as card:
            return "config_name:" in card.read(1 << 20)
    except OSError:
        return False


def configs(name: str) -> list[str]:
    """The configurations of a dataset; none if it cannot be reached, which opening it explains."""
    datasets = _import_datasets(name)
    try:
        return list(datasets.get_dataset_config_names(name))
    except Exception:  # as in `open_hub`
        return []


def splits(name: str, config: str) -> list[str]:
    """The splits of a configuration."""
    datasets = _import_datasets(name)
    try:
        return list(datasets.get_dataset_split_names(name, config))
    except Exception as error:
        raise NotFoundError(f"hf:{name}/{config} cannot be read: {first_line(error)}", hint=_HUB_HINT) from error


_HUB_HINT = "check the path, or the dataset's name and your network"


def _choose(splits: Mapping[str, Any], split: str | None, file: str, *, is_strict: bool) -> str:
    if (split is None or not is_strict) and len(splits) == 1:
        return next(iter(splits))
    if split is not None and split in splits:
        return split
    problem = "has several splits" if split is None else f"has no split {split!r}"
    raise UsageError(f"{file} {problem}; splits: {', '.join(splits)}", hint=f"pass --split {next(iter(splits))}")


def _import_datasets(file: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        message = f"{file} can only be read as a Hugging Face dataset, which needs the package datasets"
        raise MissingDependencyError(message, hint="pip install datasets") from error
    return datasets
