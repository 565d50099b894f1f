"""Queries and documents in a file of a job's own, from which another process opens their media again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from batchscore.media.policy import MediaPolicy
from batchscore.media.stored import pack, unpack
from batchscore.types import Cell, Content

_MEDIUM = pa.struct(
    [
        ("kind", pa.string()),
        ("digest", pa.binary()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("count", pa.int32()),
        ("fps", pa.float64()),
        ("sampled", pa.bool_()),
        ("where", pa.large_string()),
        ("bytes", pa.large_binary()),
    ]
)
_CONTENT = pa.struct(
    [("ordered", pa.bool_()), ("parts", pa.list_(pa.struct([("text", pa.large_string()), ("media", _MEDIUM)])))]
)


def pack_cells(cells: Sequence[Cell]) -> pa.Table:
    """A row each: `text`, and, if there are any with media, `content` where `text` is null."""
    texts = pa.array([cell if isinstance(cell, str) else None for cell in cells], pa.large_string())
    if not texts.null_count:
        return pa.table({"text": texts})
    contents = [None if isinstance(cell, str) else _packed(cell) for cell in cells]
    return pa.table({"text": texts, "content": pa.array(contents, _CONTENT)})


def unpack_cells(table: pa.Table, policy: MediaPolicy) -> list[Cell]:
    """The cells of such a table; media are opened within `policy`."""
    texts: list[Cell] = table["text"].to_pylist()
    if "content" not in table.column_names:
        return texts
    contents = table["content"].to_pylist()
    return [
        text if content is None else _unpacked(content, policy) for text, content in zip(texts, contents, strict=True)
    ]


def _packed(content: Content) -> dict[str, Any]:
    parts = [{"text": part} if isinstance(part, str) else {"media": pack(part)} for part in content.parts]
    return {"ordered": content.ordered, "parts": parts}


def _unpacked(content: Mapping[str, Any], policy: MediaPolicy) -> Content:
    parts = [part["text"] if part["media"] is None else unpack(part["media"], policy) for part in content["parts"]]
    return Content(tuple(parts), content["ordered"])
