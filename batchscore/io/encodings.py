"""Encodings as bytes: safetensors, which any tensor library reads and which can be mapped from a disk.

A file has the arrays of `Encodings`, of bfloat16 the bits, a digest and a CRC for each text, and a JSON note of its
writer's. A CRC a text, so that one can be checked without reading the others.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from math import prod
from typing import Any
from zlib import crc32

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from batchscore.errors import InputError
from batchscore.io.digests import Digests
from batchscore.types import Encodings, Fault

VECTOR, MATRIX, DIGEST = "vector", "vectors", "text_digest"  # columns of tables of encodings

_DTYPES = {"F32": "<f4", "F16": "<f2", "U16": "<u2", "U64": "<u8", "I64": "<i8", "I32": "<i4", "U32": "<u4", "U8": "u1"}


@dataclass(frozen=True, slots=True)
class EncodingsFile:
    """What a file of encodings holds; its arrays are views of the file's bytes."""

    encodings: Encodings
    digests: Digests  # [n, 2], of the texts
    note: Mapping[str, Any]

    def to_bytes(self) -> bytes:
        """The content of the file."""
        from safetensors.numpy import save

        encodings = self.encodings
        arrays = {
            "values": encodings.values,
            "offsets": encodings.offsets,
            "tokens": encodings.tokens,
            "cut": encodings.cut,
            "digests": self.digests,
            "crc32": checksums(encodings, self.digests),
        }
        arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        faults = {str(text): asdict(fault) for text, fault in sorted(encodings.faults.items())}
        return save(arrays, {"batchscore": json.dumps({"note": self.note, "faults": faults}, sort_keys=True)})

    @classmethod
    def of_bytes(cls, content: pa.Buffer, name: str, *, checked: bool = True) -> EncodingsFile:
        """Read the content of a file.

        Args:
            content: of the file, which the arrays keep alive.
            name: for the error.
            checked: compare each text's bytes with their checksum.

        Raises:
            InputError: the file is damaged, or no file of encodings.
        """
        try:
            layout, note = read_layout(content.slice, content.size)
            arrays = {key: array.of(content.slice(array.start, array.nbytes)) for key, array in layout.items()}
            faults = {int(text): Fault(**fault) for text, fault in note["faults"].items()}
            offsets, tokens, cut = arrays["offsets"], arrays["tokens"], arrays["cut"]
            encodings = Encodings(arrays["values"], offsets, tokens, cut, faults)
            if offsets[0] != 0 or offsets[-1] != len(encodings.values) or (offsets[1:] < offsets[:-1]).any():
                raise ValueError("its offsets are wrong")
            if checked and (checksums(encodings, arrays["digests"]) != arrays["crc32"]).any():
                raise ValueError("a checksum differs")
            return cls(encodings, arrays["digests"], note["note"])
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{name} is damaged: {error}", hint="remove it, and run the same command again") from error


@dataclass(frozen=True, slots=True)
class StoredArray:
    """Where an array lies in a file, and what it is."""

    start: int  # bytes
    dtype: str
    shape: tuple[int, ...]

    @property
    def row_bytes(self) -> int:
        """Bytes of one entry along the first axis."""
        return np.dtype(self.dtype).itemsize * prod(self.shape[1:])

    @property
    def nbytes(self) -> int:
        """Bytes of the whole."""
        return self.shape[0] * self.row_bytes

    def of(self, content: Any) -> NDArray[Any]:
        """The array [any number, ...] of the bytes of whole rows, without a copy."""
        rows = len(content) // self.row_bytes if self.row_bytes else self.shape[0]
        return np.frombuffer(content, self.dtype).reshape(rows, *self.shape[1:])


def read_layout(read: Callable[[int, int], Any], size: int) -> tuple[dict[str, StoredArray], Any]:
    """Read where the arrays of a file are.

    Args:
        read: gives the bytes of a part of the file, from its start and its size.
        size: bytes of the whole file.

    Returns:
        The arrays by name, and what `to_bytes` put beside them.

    Raises:
        ValueError, KeyError, TypeError: the file is short, or no file of encodings.
    """
    length = int.from_bytes(bytes(read(0, min(8, size))), "little")
    if not 0 < length <= size - 8:
        raise ValueError("it ends early")
    header = json.loads(bytes(read(8, length)))
    note = json.loads(header.pop("__metadata__")["batchscore"])
    layout = {}
    for name, field in header.items():
        first, last = field["data_offsets"]
        layout[name] = StoredArray(8 + length + first, _DTYPES[field["dtype"]], tuple(field["shape"]))
        if layout[name].nbytes != last - first or 8 + length + last > size:
            raise ValueError("it ends early")
    return layout, note


def checksums(encodings: Encodings, digests: Digests) -> NDArray[np.uint32]:
    """uint32 [n]: a CRC of all that is kept of each text: what is read of it, the vectors and what they are made of."""
    values = np.ascontiguousarray(encodings.values)
    kind = crc32(f"{values.dtype.str} {values.shape[1:]}".encode())
    columns = [digests.astype("<u8"), encodings.tokens.astype("<i4")[:, None], encodings.cut[:, None]]
    heads = np.concatenate([np.ascontiguousarray(column).view(np.uint8) for column in columns], axis=1)
    head, data = heads.reshape(-1).data, values.reshape(-1).view(np.uint8).data
    width, ends = heads.shape[1], (encodings.offsets * (values.nbytes // max(1, len(values)))).tolist()
    return np.fromiter(
        (
            crc32(data[start:stop], crc32(head[width * text : width * (text + 1)], kind))
            for text, (start, stop) in enumerate(pairwise(ends))
        ),
        np.uint32,
        len(digests),
    )
