"""Encodings as a file: the same bits come back, and no damage goes unnoticed."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from safetensors.numpy import load

from batchscore.errors import InputError
from batchscore.io.digests import digests_of
from batchscore.io.encodings import EncodingsFile
from batchscore.types import Encodings, Fault

DIGESTS = digests_of(["a", "b", "c"])
FAULTS = {1: Fault("null", "is null", "fill it in", "document")}


def encodings(dtype: Any = np.float32) -> Encodings:
    """Of three texts two, no and one vectors."""
    values = np.arange(12, dtype=dtype).reshape(3, 4)
    return Encodings(
        values, np.array([0, 2, 2, 3]), np.array([5, 0, 7], np.int32), np.array([1, 0, 3], np.uint8), FAULTS
    )


def same(one: Encodings, other: Encodings) -> bool:
    arrays = ("values", "offsets", "tokens", "cut")
    parts = [(getattr(one, name), getattr(other, name)) for name in arrays]
    return all(a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes() for a, b in parts)


def read(content: bytes, **options: Any) -> EncodingsFile:
    return EncodingsFile.of_bytes(pa.py_buffer(content), "block-00001.safetensors", **options)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.uint16])
def test_a_file_gives_back_what_was_written(dtype: Any) -> None:
    content = EncodingsFile(encodings(dtype), DIGESTS, {"job": "x"}).to_bytes()
    file = read(content)

    assert same(file.encodings, encodings(dtype))
    assert file.encodings.faults == FAULTS
    assert (file.digests.tolist(), file.note) == (DIGESTS.tolist(), {"job": "x"})
    assert load(content)["values"].tolist() == encodings(dtype).values.tolist()


def test_a_file_of_no_texts_is_read() -> None:
    nothing = encodings().take(np.empty(0, np.int64))

    assert len(read(EncodingsFile(nothing, DIGESTS[:0], {}).to_bytes()).encodings) == 0


def test_no_bit_of_a_text_can_change_unnoticed() -> None:
    content = EncodingsFile(encodings(), DIGESTS, {}).to_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    for place in range(len(content)):
        changed = content[:place] + bytes([content[place] ^ 1 << place % 8]) + content[place + 1 :]
        file = None
        with suppress(InputError):
            file = read(changed)
        if file is not None:
            assert place < start  # in the JSON, where some changes have no meaning
            assert same(file.encodings, encodings())


@pytest.mark.parametrize("size", [0, 4, 8, 100, -1])
@pytest.mark.parametrize("checked", [False, True])
def test_a_short_file_is_damaged_also_if_not_checked(size: int, checked: bool) -> None:
    content = EncodingsFile(encodings(), DIGESTS, {}).to_bytes()

    with pytest.raises(InputError, match="is damaged") as caught:
        read(content[:size], checked=checked)
    assert caught.value.hint == "remove it, and run the same command again"
