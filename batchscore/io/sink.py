"""The output file, which is either complete or absent.

Tables go to a hidden temporary file beside it, which is renamed once it is safe on the disk. A killed run leaves no
partial output and keeps an older one; the price is disk space for both. A matrix in .npy has a list of ids beside it,
which is renamed first.
"""

from __future__ import annotations

import json
import math
import os
import shlex
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from types import TracebackType
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.lib import format as npy
from numpy.typing import NDArray

from batchscore.errors import InputError, OutputError, RuntimeFailureError
from batchscore.io.encodings import VECTOR
from batchscore.io.forms import OutForm
from batchscore.io.lines import compression
from batchscore.io.outputs import Format, Origin, chosen_format
from batchscore.io.run_files import MsMarcoWriter, MtebWriter, RankLlmWriter, TrecWriter
from batchscore.io.schema import is_nested, join
from batchscore.io.storage import (
    TEMPORARY,
    is_url,
    remove_orphans,
    require_store,
    special_kind,
    split_url,
    sync_folder,
    upload,
    write_hint,
    writer_id,
)
from batchscore.io.text_files import DelimitedWriter
from batchscore.io.values import KEEP_HINT, as_text, empty_table, json_values, readable

_UNKNOWN = Origin()


def open_sinks(path: str, columns: Sequence[str], form: Format | None = None, origin: Origin = _UNKNOWN) -> list[Sink]:
    """Sinks that each take every table of these columns, to be entered in this order; raises as `open_sink`.

    For an .npy file the second one lists ids, if there are any.
    """
    sinks = [open_sink(path, form, origin)]
    if (form or chosen_format(path)).name == "npy" and columns[0] != VECTOR:
        sinks.append(Sink(f"{path}.ids.txt", _IdsWriter))
    return sinks


def parquet_options(schema: pa.Schema) -> dict[str, Any]:
    """Keywords of Arrow's writer of Parquet for tables of this schema.

    The texts of a unit are at most 32 MiB: each is written once however often rows repeat it. Arrow's 1 MiB is too
    small for the documents of a few queries, which took three times as long and as many bytes. Vectors have no
    dictionary: one of numbers that never repeat takes ten times the time, and half as many bytes again.
    """
    stream = pa.BufferOutputStream()
    pq.write_table(empty_table(schema), stream)
    leaves = pq.ParquetFile(pa.BufferReader(stream.getvalue())).schema
    columns = (leaves.column(index) for index in range(len(leaves)))
    repeated = [column.path for column in columns if column.physical_type not in _NUMBERS]
    return {"compression": "zstd", "dictionary_pagesize_limit": 32 << 20, "use_dictionary": repeated}


_NUMBERS = ("FLOAT", "DOUBLE", "FIXED_LEN_BYTE_ARRAY")  # half floats are of the last kind


def open_sink(path: str, form: Format | None = None, origin: Origin = _UNKNOWN) -> Sink:
    """A sink in this form, by default that of the suffix; raises UsageError (suffix) and OutputError (folder)."""
    require_writable(path)
    return Sink(path, _writer(form or chosen_format(path), origin))


def _writer(form: Format, origin: Origin) -> Callable[[str, str], _Writer]:
    writers: dict[OutForm, Callable[[str, str], _Writer]] = {
        "parquet": _ParquetWriter,
        "jsonl": _JsonlWriter,
        "csv": partial(DelimitedWriter, delimiter=","),
        "tsv": partial(DelimitedWriter, delimiter="\t"),
        "npy": _NpyWriter,
        "trec": partial(TrecWriter, tag=form.tag or origin.tag),
        "msmarco": MsMarcoWriter,
        "mteb": partial(MtebWriter, origin=origin),
        "rank-llm": RankLlmWriter,
        "lines": _LinesWriter,
    }
    return writers[form.name]


def require_writable(path: str) -> None:
    """Raise OutputError if no file can be written there."""
    if not is_url(path) and (kind := special_kind(path)):
        raise OutputError(f"cannot write {path}: it is {kind}", hint="choose another output")
    if is_url(path):
        require_store(split_url(path)[0])
    else:
        folder = os.path.dirname(path) or "."
        if not os.path.isdir(folder):
            raise OutputError(f"cannot write {path}: no folder {folder}", hint=f"mkdir -p {shlex.quote(folder)}")
        if os.path.isdir(path) or not os.access(folder, os.W_OK | os.X_OK):
            reason = "it is a folder" if os.path.isdir(path) else f"no permission to write in {folder}"
            raise OutputError(f"cannot write {path}: {reason}", hint="choose another output")


class Sink:
    """Takes at least one table (an empty one gives a file its columns); the file appears when `with` ends well.

    A file for an object store is written to the local disk first.
    """

    def __init__(self, path: str, writer: Callable[[str, str], _Writer]) -> None:
        folder, name = os.path.split(path)
        self.path = path
        if is_url(path):
            folder = tempfile.gettempdir()
        self._temporary = os.path.join(folder, f".{name}{TEMPORARY}{writer_id()}")
        remove_orphans(folder or ".", f".{name}{TEMPORARY}")
        with _write_errors_as(path):
            self._writer = writer(path, self._temporary)

    def __enter__(self) -> Sink:
        return self

    def write(self, table: pa.Table) -> None:
        """Append rows; tables may lack columns of earlier ones, and types may widen."""
        with _write_errors_as(self.path):
            self._writer.write(table)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                with _write_errors_as(self.path):
                    self._commit()
        finally:
            self._discard()  # does nothing after a commit

    def _commit(self) -> None:
        self._writer.close()
        if is_url(self.path):
            upload(self._temporary, self.path)
            return
        with open(self._temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(self._temporary, self.path)
        sync_folder(os.path.dirname(self.path))

    def _discard(self) -> None:
        with suppress(OSError, AssertionError):
            self._writer.close()
        with suppress(FileNotFoundError):
            os.remove(self._temporary)


@contextmanager
def _write_errors_as(path: str) -> Iterator[None]:
    """Turn errors of Arrow and of the disk into errors that name the output."""
    try:
        yield
    except OSError as error:
        raise RuntimeFailureError(f"cannot write {path}: {error}", hint=write_hint(error)) from error
    except (pa.ArrowException, ValueError) as error:
        raise InputError(f"{path} cannot hold these values: {error}", hint=KEEP_HINT) from error


class _Writer(Protocol):
    """One format; closing twice does nothing."""

    def write(self, table: pa.Table) -> None: ...
    def close(self) -> None: ...


class _ParquetWriter:
    """The schema is that of all tables so far; a table that widens it has the file rewritten."""

    def __init__(self, path: str, temporary: str) -> None:
        self._temporary = temporary
        self._file: pq.ParquetWriter | None = None

    def write(self, table: pa.Table) -> None:
        table = readable(table)
        if self._file is None:
            self._file = self._open(table.schema)
        fitted = _fit(table, self._file.schema)
        if fitted.schema != self._file.schema:
            self._widen(fitted.schema)
            fitted = _fit(table, self._file.schema)
        self._file.write_table(fitted)

    def close(self) -> None:
        assert self._file is not None, "a sink needs at least one table, to know its columns"
        self._file.close()

    def _open(self, schema: pa.Schema) -> pq.ParquetWriter:
        return pq.ParquetWriter(self._temporary, schema, **parquet_options(schema))

    def _widen(self, schema: pa.Schema) -> None:
        """Rewrite the file with `schema`, or a wider one if its rows need it, one row group at a time."""
        self.close()
        narrow = pq.ParquetFile(self._temporary)
        os.remove(self._temporary)  # it stays readable while it is open
        with narrow:
            for group in range(narrow.num_row_groups):
                schema = _fit(narrow.read_row_group(group), schema).schema
            self._file = self._open(schema)
            for group in range(narrow.num_row_groups):
                self._file.write_table(_fit(narrow.read_row_group(group), schema))


def _fit(table: pa.Table, schema: pa.Schema) -> pa.Table:
    return readable(join([empty_table(schema), table]))


class _JsonlWriter:
    """One object a line, UTF-8."""

    def __init__(self, path: str, temporary: str) -> None:
        self._file = pa.output_stream(temporary, compression=compression(path))

    def write(self, table: pa.Table) -> None:
        for lines in json_lines(table):
            self._file.write(lines)

    def close(self) -> None:
        self._file.close()


class _NpyWriter:
    """The vectors as one matrix, float32 [rows, dimension], for numpy and faiss; NaN where a row has none."""

    def __init__(self, path: str, temporary: str) -> None:
        self._file = open(temporary, "wb")  # noqa: SIM115  closed by `close`
        self._rows, self._dimension = 0, 0

    def write(self, table: pa.Table) -> None:
        kind = table.schema.field(VECTOR).type if VECTOR in table.column_names else None
        if kind is None or not (pa.types.is_null(kind) or is_nested(kind)):
            raise ValueError(".npy has vectors alone, one for each row")
        vectors = self._matrix(table[VECTOR].combine_chunks())
        self._rows += len(vectors)
        self._file.write(vectors.tobytes())

    def _matrix(self, vectors: pa.Array) -> NDArray[np.float32]:
        """Of lists, which have no fixed size where one is null; or of nulls alone."""
        has_one = vectors.is_valid().to_numpy(zero_copy_only=False)
        values = vectors.flatten().to_numpy().reshape(has_one.sum(), -1) if has_one.any() else np.empty((0, 0))
        if not self._dimension and len(values):
            self._dimension = values.shape[1]
            self._write_header()
            self._file.write(np.full((self._rows, self._dimension), np.nan, np.float32).tobytes())
        matrix = np.full((len(vectors), self._dimension), np.nan, np.float32)
        if len(values):
            matrix[has_one] = values
        return matrix

    def _write_header(self) -> None:
        """Its length does not depend on the number of rows, for which numpy leaves room."""
        shape = self._rows, self._dimension
        npy.write_array_header_1_0(self._file, {"descr": "<f4", "fortran_order": False, "shape": shape})

    def close(self) -> None:
        if not self._file.closed:
            self._file.seek(0)
            self._write_header()
            self._file.close()


class _LinesWriter:
    """The first column, of which each value is a line of JSON already."""

    def __init__(self, path: str, temporary: str) -> None:
        self._file = pa.output_stream(temporary, compression=compression(path))

    def write(self, table: pa.Table) -> None:
        for batch in table.to_batches(max_chunksize=1024):
            self._file.write("".join(f"{line}\n" for line in batch.column(0).to_pylist()).encode())

    def close(self) -> None:
        self._file.close()


class _IdsWriter:
    """The first column, a value a line."""

    def __init__(self, path: str, temporary: str) -> None:
        self._file = pa.output_stream(temporary, compression=None)

    def write(self, table: pa.Table) -> None:
        for value in as_text(table.column(0)).to_pylist():
            value = value or ""
            if len(f"{value}.".splitlines()) > 1:
                raise ValueError(
                    f"{table.column_names[0]} {value!r} has a line break, and a line is an id: write .parquet or .jsonl"
                )
            self._file.write(f"{value}\n".encode())

    def close(self) -> None:
        self._file.close()


def json_lines(table: pa.Table) -> Iterator[bytes]:
    """The rows as JSON Lines in UTF-8, some at a time: as Python objects they take ten times the memory of Arrow's."""
    for batch in table.to_batches(max_chunksize=1024):
        yield "".join(map(_json_line, json_values(batch.to_struct_array()))).encode()


def _json_line(row: dict[str, Any]) -> str:
    try:
        return json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"
    except ValueError:  # has a NaN: only such rows are walked through
        return json.dumps(_finite(row), ensure_ascii=False) + "\n"


def _finite(value: Any) -> Any:
    """The value with null for NaN and infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
