"""Files that `batchscore encode` wrote, as encodings that can be looked up by their texts."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from batchscore.errors import InputError, UsageError, first_line
from batchscore.io.digests import DigestIndex, Digests, first_of_each
from batchscore.io.encodings import DIGEST, MATRIX, VECTOR
from batchscore.io.storage import open_file
from batchscore.types import CUT_NAMES, Encodings, offsets_of


def encoded_by(path: str) -> Any:
    """The fingerprint of what encoded the texts of a file.

    Raises:
        NotFoundError, InputError: there is no such file, or it is no Parquet file.
        UsageError: it has no encodings that can be looked up.
    """
    try:
        with open_file(path) as source, pq.ParquetFile(source) as file:
            metadata, names = file.metadata.metadata or {}, file.schema_arrow.names
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path} cannot be read: {first_line(error)}", hint="name a Parquet file") from error
    note = json.loads(metadata.get(b"batchscore", b"{}")).get("encoding")
    if note is None or DIGEST not in names:
        raise UsageError(
            f"--store {path} has no encodings that can be looked up",
            hint="name a folder, or a Parquet file that `batchscore encode` wrote",
        )
    return note


@dataclass(frozen=True, slots=True)
class VectorFile:
    """The encodings of a file. Its vectors are copied to a disk where they can be read in any order.

    What is on the disk has no name, and vanishes with the last use.
    """

    index: DigestIndex  # digest of a text -> its row
    encodings: Encodings  # mapped

    @classmethod
    def open(cls, path: str, dtype: str) -> VectorFile:
        """Read a file from front to back.

        Args:
            path: of a Parquet file.
            dtype: of the model's body: what the vectors were before they were written.
        """
        digests, counts, tokens, cut = [], [], [], []
        shape, kind = 0, np.dtype(np.float32)
        with tempfile.TemporaryFile() as out:
            for batch in _batches(path):
                values, sizes = _vectors(batch, dtype)
                if len(values):
                    shape, kind = values.shape[1], values.dtype
                out.write(np.ascontiguousarray(values).data)
                digests.append(np.frombuffer(b"".join(batch[DIGEST].to_pylist()), "<u8").reshape(-1, 2))
                counts.append(sizes)
                tokens.append(batch["num_tokens"].to_numpy(zero_copy_only=False).astype(np.int32))
                cut.append(pc.index_in(batch["truncated"], pa.array(CUT_NAMES)).to_numpy(zero_copy_only=False))
            out.flush()
            offsets = offsets_of(_joined(counts, np.int64))
            size = int(offsets[-1]), shape
            values = np.memmap(out, kind, "r", shape=size) if size[0] else np.empty((0, 0), kind)
        encodings = Encodings(values, offsets, _joined(tokens, np.int32), _joined(cut, np.uint8))
        index, all_digests = DigestIndex(tempfile.gettempdir()), np.concatenate([np.empty((0, 2), np.uint64), *digests])
        rows = np.flatnonzero(first_of_each(all_digests))
        index.add(all_digests[rows], rows)
        return cls(index, encodings)

    def find(self, digests: Digests) -> tuple[NDArray[np.bool_], Encodings]:
        """(bool [n]: which texts are there; their encodings, in that order)."""
        rows = self.index.find(digests)
        return rows >= 0, self.encodings.take(rows[rows >= 0])


def _batches(path: str) -> Iterator[pa.RecordBatch]:
    """The rows of a file that have an encoding."""
    with open_file(path) as source, pq.ParquetFile(source) as file:
        name = VECTOR if VECTOR in file.schema_arrow.names else MATRIX
        for batch in file.iter_batches(1_024, columns=[name, DIGEST, "num_tokens", "truncated"]):
            yield batch.filter(pc.is_valid(batch[name]))


def _vectors(batch: pa.RecordBatch, dtype: str) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """([vectors, dim] as they were made; int64 [rows], how many each text has)."""
    column = batch[VECTOR] if VECTOR in batch.schema.names else batch[MATRIX]
    counts, rows = np.ones(len(column), np.int64), column
    if VECTOR not in batch.schema.names:
        counts, rows = np.asarray(pc.list_value_length(column), np.int64), column.flatten()
    if not len(rows):
        return np.empty((0, 0), np.float32), counts
    values = rows.flatten().to_numpy(zero_copy_only=False).reshape(len(rows), -1)
    if VECTOR not in batch.schema.names and dtype == "bfloat16":  # widened when it was written
        values = (values.view(np.uint32) >> 16).astype(np.uint16)
    return values, counts


def _joined(parts: Sequence[NDArray[Any]], dtype: type[np.generic]) -> NDArray[Any]:
    return np.concatenate([np.empty(0, dtype), *parts]).astype(dtype)
