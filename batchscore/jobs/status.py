"""How far a job is, read from its folder alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from batchscore.jobs.blocks import Blocks, open_blocks
from batchscore.jobs.checks import bad_rows
from batchscore.jobs.leases import workers
from batchscore.jobs.output import find_parts, find_record
from batchscore.jobs.parts import total


def job_status(path: str) -> dict[str, Any]:
    """JSON-able state of the job that writes `path`.

    `running` are units that a live process works on, `failed` those that were given up, `missing` all others without a
    part. The time to go is for the rows that are neither finished nor scored in a running unit, at the summed speed of
    the live processes; while these encode texts, it is the longest that one of them expects. If the parts are gone, the
    state comes from the run record, which does not list units.

    Raises:
        OutputError: there are neither parts nor a record.
    """
    parts = find_parts(path)
    if parts is None:
        return _finished(find_record(path))
    done, failed, live = parts.finished(), parts.failed(), workers(parts)
    running = {unit for worker in live for unit in worker["units"]} - done
    counts = total([parts.part(unit).counts for unit in sorted(done)])
    blocks = open_blocks(parts.folder, parts.id)
    rows = counts.get("rows", 0)
    speed = sum(worker["rows_per_second"] for worker in live)
    left = max(0, parts.rows - rows - sum(worker["rows_in_work"] for worker in live))
    eta = round(left / speed) if speed else None
    if eta is None and (seconds := [worker["seconds_left"] for worker in live if worker["seconds_left"] is not None]):
        eta = round(max(seconds))  # texts are being encoded
    gone = set(failed) - done - running
    return {
        "folder": parts.folder.path,
        "command": parts.fingerprint["command"],
        "inputs": [file["name"] for file in parts.fingerprint["inputs"]],
        "complete": len(done) >= len(parts.units),
        "units": {
            "total": len(parts.units),
            "done": len(done),
            "running": len(running),
            "missing": len(parts.units) - len(done | running | gone),
            "failed": len(gone),
        },
        "encode": parts.encode,
        "texts": None if blocks is None else _texts(blocks, live),
        "rows": {"total": parts.rows, "done": rows, "faulty": bad_rows(counts)},
        "failed": {str(unit): failed[unit] for unit in sorted(gone)},
        "workers": live,
        "eta_seconds": eta,
    }


def _texts(blocks: Blocks, live: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How many distinct texts are encoded."""
    missing = blocks.to_encode()
    left = sum(block.texts for block in missing)
    running = {block for worker in live for block in worker["blocks"]} & {block.index for block in missing}
    return {
        "total": blocks.num_texts,
        "done": blocks.num_texts - left,
        "blocks": len(blocks.blocks),
        "blocks_done": len(blocks.blocks) - len(missing),
        "blocks_running": len(running),
    }


def _finished(record: Mapping[str, Any]) -> dict[str, Any]:
    counts = record["counts"]
    return {
        "folder": None,
        "command": record["command"],
        "inputs": [file["name"] for file in record["inputs"]],
        "complete": True,
        "units": None,
        "encode": counts.get("encode"),
        "texts": None,
        "rows": {"total": counts["rows"], "done": counts["rows"], "faulty": bad_rows(counts)},
        "failed": {},
        "workers": [],
        "eta_seconds": None,
    }
