"""Encodings as bytes: safetensors, which any tensor library reads and which can be mapped from a disk.

A file has the arrays of `Encodings`, of bfloat16 the bits, a digest for each text, and a JSON note of its writer's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any
from zlib import crc32

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from batchscore.errors import InputError
from batchscore.io.digests import Digests
from batchscore.types import Encodings, Fault

VECTOR, MATRIX, DIGEST = "vector", "vectors", "text_digest"  # columns of tables of encodings

_DTYPES = {"F32": "<f4", "F16": "<f2", "U16": "<u2", "U64": "<u8", "I64": "<i8", "I32": "<i4", "U8": "u1"}


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
        }
        arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        faults = {str(text): asdict(fault) for text, fault in sorted(encodings.faults.items())}
        note = {"note": self.note, "faults": faults, "crc32": _checksum(arrays)}
        return save(arrays, {"batchscore": json.dumps(note, sort_keys=True)})

    @classmethod
    def of_bytes(cls, content: pa.Buffer, name: str, *, checked: bool = True) -> EncodingsFile:
        """Read the content of a file.

        Args:
            content: of the file, which the arrays keep alive.
            name: for the error.
            checked: compare the bytes of all arrays with their checksum.

        Raises:
            InputError: the file is damaged, or no file of encodings.
        """
        try:
            arrays, note = _arrays(content)
            if checked and _checksum(arrays) != note["crc32"]:
                raise ValueError("its checksum differs")
            faults = {int(text): Fault(**fault) for text, fault in note["faults"].items()}
            offsets, tokens, cut = arrays["offsets"], arrays["tokens"], arrays["cut"]
            encodings = Encodings(arrays["values"], offsets, tokens, cut, faults)
            return cls(encodings, arrays["digests"], note["note"])
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{name} is damaged: {error}", hint="remove it, and run the same command again") from error


def _arrays(content: pa.Buffer) -> tuple[dict[str, NDArray[Any]], Any]:
    """(name -> array, without a copy; what `to_bytes` put beside them)."""
    start = 8 + int.from_bytes(content.slice(0, min(8, content.size)).to_pybytes(), "little")
    if not 8 < start <= content.size:
        raise ValueError("it ends early")
    header = json.loads(content.slice(8, start - 8).to_pybytes())
    arrays = {}
    for name, field in header.items():
        if name != "__metadata__":
            first, last = field["data_offsets"]
            part = content.slice(start + first, last - first)
            arrays[name] = np.frombuffer(part, _DTYPES[field["dtype"]]).reshape(field["shape"])
    return arrays, json.loads(header["__metadata__"]["batchscore"])


def _checksum(arrays: Mapping[str, NDArray[Any]]) -> int:
    """A CRC over all arrays, by name."""
    crc = 0
    for name in sorted(arrays):
        crc = crc32(np.ascontiguousarray(arrays[name]).view(np.uint8).reshape(-1).data, crc)
    return crc
